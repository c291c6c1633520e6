"""CREMA-D (Cao et al. 2014): AudioWAV/1001_DFA_ANG_XX.wav; VideoDemographics.csv tells the actors' genders."""
import csv
import re
from pathlib import Path

from config import UserError
from datasets.faults import Faults
from datasets.files import audio_in
from datasets.utterance import Utterance

LABELS = {'ANG': 'anger', 'DIS': 'disgust', 'FEA': 'fear', 'HAP': 'happiness', 'NEU': 'neutral', 'SAD': 'sadness'}
GENDERS = {'Male': 'm', 'Female': 'f'}
TABLE = 'VideoDemographics.csv'
# Actor, sentence, emotion, level; in one file the level is X.
NAME = re.compile(rf'(1\d\d\d)_[A-Z]{{3}}_({"|".join(LABELS)})_(?:LO|MD|HI|XX?)$')


def scan(root: str | Path) -> list[Utterance]:
    """Utterances below `root`, the folder that holds AudioWAV/ and the table."""
    root = Path(root)
    audio = audio_in([root / 'AudioWAV' if (root / 'AudioWAV').is_dir() else root])
    beside = root.parent if root.name == 'AudioWAV' and not (root / TABLE).is_file() else root
    gender = _genders(beside / TABLE)
    found, faults = [], Faults()
    for name, path in sorted(audio.items()):
        with faults.collect():
            found.append(_utterance(name, path, gender))
    faults.check(found)
    return found


def _utterance(name, path, gender):
    match = NAME.match(name)
    if not match:
        raise UserError(f'{path}: not a CREMA-D name such as 1001_DFA_ANG_XX.wav; move it out of the '
                        'corpus')
    speaker, emotion = match.groups()
    if speaker not in gender:
        raise UserError(f'{path}: {TABLE} has no row for actor {speaker}')
    return Utterance(path, LABELS[emotion], speaker, gender=gender[speaker])


def _genders(path):
    """{actor: 'm' or 'f'}"""
    if not path.is_file():
        raise UserError(f'{path}: no such file; it is part of the corpus, and folds with balanced '
                        'genders need it')
    gender, faults = {}, Faults()
    try:
        with open(path, newline='', encoding='utf-8-sig', errors='replace') as f:
            reader = csv.DictReader(f)
            for row in reader:
                actor, sex = row.get('ActorID'), row.get('Sex')
                known = actor and sex in GENDERS
                with faults.collect():
                    if not known or gender.setdefault(actor, GENDERS[sex]) != GENDERS[sex]:
                        raise UserError(f'{path}, line {reader.line_num}: needs an ActorID that is '
                                        'unique, and Sex, Male or Female')
    except csv.Error as error:
        raise UserError(f'{path}: not a CSV file ({error})') from None
    faults.check()
    return gender
