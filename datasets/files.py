"""What readers of corpora with label files share: to list audio, to read labels, and to match the two."""
import csv
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from config import UserError, short
from datasets.faults import Faults
from datasets.utterance import Utterance

MAX_NAME = 4_096  # characters of a path, a label or a speaker


def check_text(text: str, what: str, where: str) -> None:
    """UserError if a cell of a table holds control characters or is far too long."""
    if len(text) > MAX_NAME:
        raise UserError(f'{where}: {what} has {len(text):,} characters')
    if not text.isprintable() and any(unicodedata.category(c) in ('Cc', 'Cs') for c in text):
        raise UserError(f'{where}: {what} {short(text)} holds a control character')


def audio_in(folders: Iterable[Path], suffixes: tuple[str, ...] = ('.wav',)) -> dict[str, str]:
    """{name without suffix: path} of the audio files in `folders`; hidden files are ignored.

    UserError if two have the same name.
    """
    found = {}
    for folder in sorted(folders):
        for entry in os.scandir(folder):
            name, suffix = os.path.splitext(entry.name)
            if entry.name.startswith('.') or suffix.lower() not in suffixes:
                continue
            if name in found:
                raise UserError(f'{entry.path}: the same name as {found[name]}; keep one of them')
            found[name] = entry.path
    return found


def table_rows(path: Path, columns: tuple[str, ...],
               delimiter: str = ',') -> Iterator[tuple[str, list[str] | None]]:
    """('PATH, line N', fields of these columns) of each row; None if its length is not the header's.

    Fields are without spaces around them. Quotation marks have no meaning in a table with tabs.
    """
    quoting = csv.QUOTE_NONE if delimiter == '\t' else csv.QUOTE_MINIMAL
    try:
        with open(path, newline='', encoding='utf-8-sig') as f:
            reader = csv.DictReader(f, delimiter=delimiter, quoting=quoting)
            names = reader.fieldnames or []
            if missing := [column for column in columns if column not in names]:
                raise UserError(f'{path}: column {missing[0]} is missing')
            if twice := [column for column in columns if names.count(column) > 1]:
                raise UserError(f'{path}: column {twice[0]} is there twice')
            for row in reader:
                whole = None not in row and None not in row.values()
                where, fields = f'{path}, line {reader.line_num}', None
                if whole:
                    fields = [row[column].strip() for column in columns]
                    for column, field in zip(columns, fields):
                        check_text(field, column, where)
                yield where, fields
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{path}: not a table in UTF-8 ({error})') from None


def blocks(path: Path, prefix: str | tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """('PATH, line N', text) of every line that begins a block of a label file.

    It is the first line after a blank line or a line of %, or any line that starts with `prefix`.
    """
    begins = True
    with open(path, encoding='utf-8', errors='replace') as f:  # raters' comments may be in any encoding
        for number, line in enumerate(f, 1):
            line = line.strip()
            separates = not line or line.startswith('%')
            if not separates and (begins or line.startswith(prefix)):
                yield f'{path}, line {number}', line
            begins = separates


def matched(rows: dict[str, Utterance], audio: dict[str, str]) -> list[Utterance]:
    """Utterances in the order of their names; what is on one side only is marked, not dropped.

    rows: {name: Utterance whose path is where its audio should be}. audio: {name: path}.
    """
    found = []
    for name in sorted({*rows, *audio}):
        if name not in rows:
            found.append(Utterance(audio[name], '', '', left_out='no label'))
        elif name not in audio:
            found.append(replace(rows[name], left_out='no audio file'))
        else:
            found.append(replace(rows[name], path=audio[name]))
    return found


def labelled(entries: Iterable[tuple], read: Callable, audio: dict[str, str]) -> list[Utterance]:
    """Utterances of a corpus with a label file, matched with their audio; one UserError of all faults.

    entries: ('PATH, line N', entry) of each label. read(entry, 'PATH, line N') -> (name, Utterance),
    or a UserError. audio: {name: path}.
    """
    rows, lines, faults = {}, {}, Faults()
    for where, entry in entries:
        with faults.collect():
            name, utterance = read(entry, where)
            if name in lines:
                raise UserError(f'{where}: {name} is already in {lines[name]}; keep one of them')
            rows[name], lines[name] = utterance, where
    found = matched(rows, audio)
    faults.check(found)
    return found
