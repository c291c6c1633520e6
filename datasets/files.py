"""What readers of corpora with a label file share: audio files by name, and names matched with labels."""
import os
from dataclasses import replace

from config import UserError
from datasets.utterance import Utterance


def audio_in(folders, suffixes=('.wav',)):
    """{name without suffix: path} of the audio files in `folders`; hidden files are ignored.

    UserError if two have the same name.
    """
    found = {}
    for folder in sorted(folders):
        for entry in os.scandir(folder):
            name, ending = os.path.splitext(entry.name)
            if entry.name.startswith('.') or ending.lower() not in suffixes:
                continue
            if name in found:
                raise UserError(f'{entry.path}: the same name as {found[name]}; remove one')
            found[name] = entry.path
    return found


def blocks(path, begins):
    """(number, text) of each line that begins a block: the first after a blank line or a line of %, and any that starts with
    one of `begins`.
    """
    first = True
    with open(path, encoding='utf-8', errors='replace') as f:  # raters' comments may be in any encoding
        for number, line in enumerate(f, 1):
            line = line.strip()
            between = not line or line.startswith('%')
            if not between and (first or line.startswith(begins)):
                yield number, line
            first = between


def matched(rows, audio):
    """Utterances in the order of their names. What is on one side only is marked, not dropped.

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


def add(rows, name, utterance, where, lines):
    """rows[name] = utterance; UserError where the name was there before. lines: {name: where}, of the rows so far."""
    if name in lines:
        raise UserError(f'{where}: {name} stands at {lines[name]} already; remove one')
    rows[name], lines[name] = utterance, where
