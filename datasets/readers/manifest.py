"""Your own corpus: a CSV file with the columns path,label,speaker and, optionally, session,gender,split,start,end,frames.

Column names may be in any case; commas, semicolons or tabs separate them. Paths are relative to the
file; start and end are in seconds; split is train, dev or test; frames is a .npy file, and the audio of
an utterance that has one need not be there.
"""
import csv
import math
import os
from pathlib import Path

from config import UserError, one_line, short
from datasets.faults import Faults
from datasets.files import check_text
from datasets.utterance import Utterance

REQUIRED = ('path', 'label', 'speaker')
OPTIONAL = ('session', 'gender', 'split', 'start', 'end', 'frames')
OTHER_NAMES = {'path': ('file', 'filename', 'filepath', 'file_name', 'wav', 'audio'),
               'label': ('emotion', 'class', 'target'), 'speaker': ('speaker_id', 'spk', 'spkrid', 'actor'),
               'session': ('dialog', 'dialogue'), 'gender': ('sex',),
               'split': ('set', 'partition', 'split_set', 'subset'), 'start': ('begin', 'onset'),
               'end': ('stop', 'offset')}
GENDERS = {'m': 'm', 'male': 'm', 'man': 'm', 'f': 'f', 'female': 'f', 'woman': 'f', '': None}
SPLITS = ('train', 'dev', 'test')
MAX_SECONDS = 1e6  # eleven days


def scan(root: str | Path) -> list[Utterance]:
    """Utterances of the CSV file `root`, in its order."""
    root = Path(root)
    if not root.is_file():
        raise UserError(f'{root}: --data_path of a manifest must be a CSV file')
    found, lines, faults, read = [], {}, Faults(), 0
    try:
        with open(root, newline='', encoding='utf-8-sig') as f:
            header = f.readline()
            f.seek(0)
            reader = csv.DictReader(f, delimiter=max(',;\t', key=header.count), strict=True)
            reader.fieldnames = [column.strip().lower() for column in reader.fieldnames or []]
            _check_columns(reader.fieldnames, root)
            read = reader.line_num
            for row in reader:
                where, read = f'{root}, line {reader.line_num}', reader.line_num
                with faults.collect():
                    utterance = _utterance(row, where, root.parent)
                    segment = utterance.path, utterance.start, utterance.end
                    if segment in lines:
                        raise UserError(f'{where}: the same audio as line {lines[segment]}; keep one of them')
                    lines[segment] = reader.line_num
                    found.append(utterance)
    except UnicodeDecodeError:
        raise UserError(f'{root}: not UTF-8 text; save the CSV file as UTF-8') from None
    except csv.Error as error:
        raise UserError(f'{root}, line {read + 1}: not a CSV file ({error})') from None
    if len({u.split is None for u in found}) > 1:
        faults.messages.append(f'{root}: column split is filled in some rows and empty in others; fill all '
                               'or none')
    faults.check(found)
    if not found:
        raise UserError(f'{root}: has a header and no rows')
    return found


def _check_columns(columns, root):
    """UserError if a column is missing, unknown or there twice; it says what was found and how to name it."""
    missing = [column for column in REQUIRED if column not in columns]
    unknown = [column for column in columns if column not in REQUIRED + OPTIONAL]
    twice = [column for column in columns if columns.count(column) > 1]
    if not (missing or unknown or twice):
        return
    if missing:
        mistake = f'column {missing[0]} is missing'
    else:
        mistake = f'unknown column {short(unknown[0])}' if unknown else f'column {twice[0]} is there twice'
    renamings = [f'{column} to {name}' for name, others in OTHER_NAMES.items() for column in unknown
                 if column in others and name not in columns]
    advice = f'; rename {" and ".join(renamings)}' if renamings else ''
    found = one_line(', '.join(filter(None, columns)) or 'no columns', 120)
    raise UserError(f'{root}: {mistake}; the file has {found}{advice}; columns are {",".join(REQUIRED)} and, '
                    f'optionally, {",".join(OPTIONAL)}')


def _utterance(row, where, folder):
    if None in row or None in row.values():
        raise UserError(f'{where}: the number of fields differs from the header')
    row = {column: value.strip() for column, value in row.items()}
    for column, value in row.items():
        check_text(value, column, where)
    for column in REQUIRED:
        if not row[column]:
            raise UserError(f'{where}: {column} is empty')
    if row.get('gender', '').lower() not in GENDERS:
        raise UserError(f'{where}: gender {short(row["gender"])} is not m or f')
    if row.get('split') and row['split'] not in SPLITS:
        raise UserError(f'{where}: split {short(row["split"])} is not {", ".join(SPLITS)}')
    path, frames = folder / row['path'], folder / row['frames'] if row.get('frames') else None
    if not os.path.isfile(frames or path):  # unlike Path.is_file, False for a name that is too long
        raise UserError(f'{where}: no file {frames or path}')
    start, end = (_seconds(row.get(column), column, where) for column in ('start', 'end'))
    if end is not None and end <= (start or 0.):
        raise UserError(f'{where}: end {end} is not after start {start or 0.}')
    return Utterance(str(path), row['label'], row['speaker'], row.get('session') or None,
                     GENDERS[row.get('gender', '').lower()], row.get('split') or None, start, end,
                     frames=frames and str(frames))


def _seconds(text, column, where):
    """The time in seconds, None for an empty field; '0,5' is what spreadsheets write in half of Europe."""
    if not text:
        return None
    try:
        seconds = float(text.replace(',', '.'))
    except ValueError:
        seconds = math.nan
    if not 0. <= seconds <= MAX_SECONDS:
        raise UserError(f'{where}: {column} {short(text)} is not a time in seconds')
    return seconds
