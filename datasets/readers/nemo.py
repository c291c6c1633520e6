"""nEMO (Christop 2024): data.tsv, and samples/EB0_neutral_13.wav or .flac."""
import csv
from pathlib import Path

from config import UserError
from datasets.files import add, audio_in, matched
from datasets.utterance import Utterance

LABELS = ('anger', 'fear', 'happiness', 'neutral', 'sadness', 'surprised')
GENDERS = {'female': 'f', 'male': 'm'}
COLUMNS = ('file_id', 'emotion', 'speaker_id', 'gender')
TABLE, AUDIO = 'data.tsv', 'samples'


def scan(root):
    """Utterances below `root`, the folder that holds data.tsv and samples/."""
    table, folder = Path(root) / TABLE, Path(root) / AUDIO
    if not table.is_file() or not folder.is_dir():
        raise UserError(f'--data_path {root}: must hold {TABLE} and the folder {AUDIO}')
    rows, lines = {}, {}
    with open(table, newline='', encoding='utf-8-sig') as f:
        reader = csv.DictReader(f, delimiter='\t', quoting=csv.QUOTE_NONE)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
        if missing:
            raise UserError(f'{table}: column {missing[0]} is missing')
        for row in reader:
            where = f'{table}, line {reader.line_num}'
            utterance = _utterance(row, where, folder)
            add(rows, Path(utterance.path).stem, utterance, where, lines)
    return matched(rows, audio_in([folder], ('.wav', '.flac')))


def _utterance(row, where, folder):
    if None in row or None in row.values():
        raise UserError(f'{where}: not as many fields as the header has')
    file, emotion, speaker, gender = (row[column].strip() for column in COLUMNS)  # speaker_id has stray spaces
    if emotion not in LABELS:
        raise UserError(f'{where}: emotion {emotion!r} is none of {" ".join(LABELS)}')
    if gender not in GENDERS:
        raise UserError(f'{where}: gender {gender!r} is none of {" ".join(GENDERS)}')
    if not file.startswith(f'{speaker}_{emotion}_'):
        raise UserError(f'{where}: file_id {file!r} is not of speaker {speaker} and emotion {emotion}')
    return Utterance(str(folder / file), emotion, speaker, gender=GENDERS[gender])
