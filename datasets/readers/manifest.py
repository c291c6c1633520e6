"""A user's own corpus: a CSV with the columns path,label,speaker and, optionally, session,gender,split,start,end.

Paths are relative to the CSV; start and end are in seconds; split is train, dev or test.
"""
import csv
from pathlib import Path

from config import UserError
from datasets.utterance import Utterance

REQUIRED = ('path', 'label', 'speaker')
OPTIONAL = ('session', 'gender', 'split', 'start', 'end')
GENDERS = {'m': 'm', 'male': 'm', 'man': 'm', 'f': 'f', 'female': 'f', 'woman': 'f', '': None}
SPLITS = ('train', 'dev', 'test')


def scan(root):
    """Utterances of the CSV file `root`, in its order."""
    root = Path(root)
    if not root.is_file():
        raise UserError(f'{root}: --data_path of a manifest must be a CSV file')
    utterances, rows_of = [], {}
    try:
        with open(root, newline='', encoding='utf-8-sig') as f:
            reader = csv.DictReader(f)
            columns = reader.fieldnames or []
            missing = [c for c in REQUIRED if c not in columns]
            unknown = [c for c in columns if c not in REQUIRED + OPTIONAL]
            if missing or unknown:
                mistake = f'column {missing[0]} is missing' if missing else f'unknown column {unknown[0]!r}'
                raise UserError(f'{root}: {mistake}; columns are {",".join(REQUIRED)} and, if wanted, {",".join(OPTIONAL)}')
            for row in reader:
                utterance = _utterance(row, f'{root}, line {reader.line_num}', root.parent)
                key = (utterance.path, utterance.start, utterance.end)
                if key in rows_of:
                    raise UserError(f'{root}, line {reader.line_num}: the same audio as line {rows_of[key]}; remove one')
                rows_of[key] = reader.line_num
                utterances.append(utterance)
    except UnicodeDecodeError:
        raise UserError(f'{root}: not UTF-8 text; save the CSV as UTF-8') from None
    except csv.Error as error:
        raise UserError(f'{root}: not a CSV file ({error})') from None
    if len({u.split is None for u in utterances}) > 1:
        raise UserError(f'{root}: column split is filled in some rows and empty in others; fill it in all or none')
    return utterances


def _utterance(row, where, folder):
    if None in row or None in row.values():
        raise UserError(f'{where}: not as many fields as the header has')
    row = {key: value.strip() for key, value in row.items()}
    for column in REQUIRED:
        if not row[column]:
            raise UserError(f'{where}: {column} is empty')
    if row.get('gender', '').lower() not in GENDERS:
        raise UserError(f'{where}: gender {row["gender"]!r} is not m or f')
    if row.get('split') and row['split'] not in SPLITS:
        raise UserError(f'{where}: split {row["split"]!r} is not {", ".join(SPLITS)}')
    path = folder / row['path']
    if not path.is_file():
        raise UserError(f'{where}: no file {path}')
    start, end = (_seconds(row.get(column), column, where) for column in ('start', 'end'))
    if end is not None and end <= (start or 0.):
        raise UserError(f'{where}: end {end} is not after start {start or 0.}')
    return Utterance(str(path), row['label'], row['speaker'], row.get('session') or None,
                     GENDERS[row.get('gender', '').lower()], row.get('split') or None, start, end)


def _seconds(text, column, where):
    try:
        seconds = float(text) if text else None
    except ValueError:
        seconds = -1.
    if seconds is not None and not 0. <= seconds < float('inf'):
        raise UserError(f'{where}: {column} {text!r} is not a time in seconds')
    return seconds
