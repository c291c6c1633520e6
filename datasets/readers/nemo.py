"""nEMO (Christop 2024): data.tsv, and samples/EB0_neutral_13.wav or .flac."""
from functools import partial
from pathlib import Path

from config import UserError
from datasets.files import audio_in, labelled, table_rows
from datasets.utterance import Utterance

LABELS = ('anger', 'fear', 'happiness', 'neutral', 'sadness', 'surprised')
GENDERS = {'female': 'f', 'male': 'm'}
COLUMNS = ('file_id', 'emotion', 'speaker_id', 'gender')
TABLE, AUDIO = 'data.tsv', 'samples'


def scan(root: str | Path) -> list[Utterance]:
    """Utterances below `root`, the folder that holds data.tsv and samples/."""
    table, folder = Path(root) / TABLE, Path(root) / AUDIO
    if not table.is_file() or not folder.is_dir():
        raise UserError(f'--data_path {root}: needs {TABLE} and the folder {AUDIO}')
    rows = table_rows(table, COLUMNS, delimiter='\t')
    return labelled(rows, partial(_utterance, folder), audio_in([folder], ('.wav', '.flac')))


def _utterance(folder, row, where):
    """(name, Utterance) of a row."""
    if row is None:
        raise UserError(f'{where}: the number of fields differs from the header')
    file, emotion, speaker, gender = row
    if emotion not in LABELS:
        raise UserError(f'{where}: emotion {emotion!r} is none of {" ".join(LABELS)}')
    if gender not in GENDERS:
        raise UserError(f'{where}: gender {gender!r} is none of {" ".join(GENDERS)}')
    if not file.startswith(f'{speaker}_{emotion}_'):
        raise UserError(f'{where}: file_id {file!r} does not begin with speaker and emotion, '
                        f'{speaker}_{emotion}_')
    return Path(file).stem, Utterance(str(folder / file), emotion, speaker, gender=GENDERS[gender])
