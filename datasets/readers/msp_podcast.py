"""MSP-Podcast (Lotfian and Busso 2019): Audios/MSP-PODCAST_0001_0008.wav, Labels/labels_consensus.csv (labels_concensus.csv up
to release 1.9).
"""
import csv
from pathlib import Path

from config import UserError
from datasets.files import add, audio_in, matched
from datasets.utterance import Utterance

EMOTIONS = {'A': 'anger', 'H': 'happiness', 'S': 'sadness', 'N': 'neutral', 'U': 'surprise', 'F': 'fear', 'D': 'disgust',
            'C': 'contempt', 'O': 'other'}
NO_AGREEMENT = 'X'
SPLITS = {'Train': 'train', 'Development': 'dev', 'Validation': 'dev', 'Test1': 'Test1', 'Test2': 'Test2', 'Test3': 'Test3'}
GENDERS = {'Male': 'm', 'Female': 'f', 'Unknown': None, '': None}
UNKNOWN = ('Unknown', '')  # speakers: they could be in two sets
COLUMNS = ('FileName', 'EmoClass', 'SpkrID', 'Gender', 'Split_Set')
LABEL_FILES = ('labels_consensus.csv', 'labels_concensus.csv')

EXAMPLE = 'anger,happiness,neutral,sadness'
DEFAULT_FOLDS = 'official'


def scan(root):
    """Utterances below `root`, the folder that holds Labels/ and Audios/."""
    root = Path(root)
    tables = [p for folder in (root / 'Labels', root) for name in LABEL_FILES if (p := folder / name).is_file()]
    audio = [p for name in ('Audios', 'Audio') if (p := root / name).is_dir()]
    if len(tables) != 1 or len(audio) != 1:
        raise UserError(f'--data_path {root}: must hold one Labels/{LABEL_FILES[0]} (there are {len(tables)}) and one folder '
                        f'Audios (there are {len(audio)})')
    rows, lines = {}, {}
    try:
        with open(tables[0], newline='', encoding='utf-8-sig') as f:
            reader = csv.DictReader(f)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
            if missing:
                raise UserError(f'{tables[0]}: column {missing[0]} is missing')
            for row in reader:
                where = f'{tables[0]}, line {reader.line_num}'
                name, utterance = _utterance(row, where, audio[0])
                add(rows, name, utterance, where, lines)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{tables[0]}: not a CSV file in UTF-8 ({error})') from None
    return matched(rows, audio_in(audio))


def _utterance(row, where, folder):
    if None in row or None in row.values():
        raise UserError(f'{where}: not as many fields as the header has')
    file, emotion, speaker, gender, split = (row[column].strip() for column in COLUMNS)
    if Path(file).name != file or not file.endswith('.wav'):
        raise UserError(f'{where}: FileName {file!r} is not a name such as MSP-PODCAST_0001_0008.wav')
    for column, value, valid in (('EmoClass', emotion, (*EMOTIONS, NO_AGREEMENT, '')), ('Gender', gender, GENDERS),
                                 ('Split_Set', split, SPLITS)):
        if value not in valid:
            raise UserError(f'{where}: {column} {value!r} is none of {" ".join(filter(None, valid))}')
    reason = {NO_AGREEMENT: 'no agreement', '': 'no label'}.get(emotion, 'unknown speaker' if speaker in UNKNOWN else None)
    return file.removesuffix('.wav'), Utterance(str(folder / file), EMOTIONS.get(emotion, ''), speaker, gender=GENDERS[gender],
                                                split=SPLITS[split], left_out=reason)
