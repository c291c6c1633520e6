"""IEMOCAP (Busso et al. 2008): Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav.

The labels, by majority, are in Session1/dialog/EmoEvaluation/Ses01F_impro01.txt. Classes are the codes
of the corpus.
"""
import re
from pathlib import Path

from config import UserError
from datasets.faults import Faults
from datasets.files import add, audio_in, blocks, matched
from datasets.utterance import Utterance

CODES = ('ang', 'dis', 'exc', 'fea', 'fru', 'hap', 'neu', 'oth', 'sad', 'sur')
NO_MAJORITY = 'xxx'
HEAD = re.compile(r'\[[\d.]+ - [\d.]+\]\t(\S+)\t(\S+)\t\[.*\]$')  # [start - end], turn, emotion, [V, A, D]
# Both speakers of a session talk in every dialogue; the letter before the turn's number tells who
# says the turn.
TURN = re.compile(r'(Ses0([1-5]))[FM]_(impro|script)\w*_([FM])(?:XX)?\d+$')
KINDS = {'impro': 'improvised', 'script': 'scripted'}

EXAMPLE = 'ang,hap+exc,neu,sad'
PARTS = ('turns', tuple(KINDS.values()))
DEFAULT_FOLDS = 'session'


def scan(root: str | Path) -> list[Utterance]:
    """Utterances below `root`, IEMOCAP_full_release or the folder that holds it."""
    sessions = (sorted(Path(root).glob('Session[1-5]'))
                or sorted(Path(root).glob('IEMOCAP_full_release/Session[1-5]')))
    rows, lines, folders, faults = {}, {}, [], Faults()
    for session in sessions:
        labels, wavs = session / 'dialog/EmoEvaluation', session / 'sentences/wav'
        for folder in (labels, wavs):
            if not folder.is_dir():
                raise UserError(f'{folder}: no such folder; this copy of IEMOCAP is incomplete')
        folders += [p for p in wavs.iterdir() if p.is_dir() and not p.name.startswith('.')]
        for path in sorted(labels.glob('[!.]*.txt')):  # single raters' files are in subfolders
            for number, line in blocks(path, '['):
                where = f'{path}, line {number}'
                with faults.collect():
                    turn, utterance = _utterance(line, where, session)
                    add(rows, turn, utterance, where, lines)
    found = matched(rows, audio_in(folders))
    faults.check(found)
    return found


def _utterance(line, where, session):
    """(turn, Utterance) of the first line of a block."""
    head = HEAD.match(line)
    if not head:
        raise UserError(f'{where}: not "[start - end] turn emotion [V, A, D]" with tabs between: {line!r}')
    turn, emotion = head.groups()
    name = TURN.match(turn)
    if not name or f'Session{name[2]}' != session.name:
        raise UserError(f'{where}: {turn!r} is not a turn of {session.name}, such as Ses01F_impro01_F000 of '
                        'Session1')
    if emotion not in (*CODES, NO_MAJORITY):
        raise UserError(f'{where}: {emotion!r} is none of {" ".join(CODES)} {NO_MAJORITY}')
    path = session / 'sentences/wav' / turn.rpartition('_')[0] / f'{turn}.wav'
    left_out = 'no majority' if emotion == NO_MAJORITY else None
    return turn, Utterance(str(path), emotion, name[1] + name[4], session=name[1], gender=name[4].lower(),
                           part=KINDS[name[3]], left_out=left_out)
