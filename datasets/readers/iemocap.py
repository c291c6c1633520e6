"""IEMOCAP (Busso et al. 2008): Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav.

The labels, by majority, are in Session1/dialog/EmoEvaluation/Ses01F_impro01.txt. Classes are the codes
of the corpus.
"""
import re
from pathlib import Path

from config import UserError
from datasets.files import audio_in, blocks, labelled
from datasets.utterance import Utterance

CODES = ('ang', 'dis', 'exc', 'fea', 'fru', 'hap', 'neu', 'oth', 'sad', 'sur')
NO_MAJORITY = 'xxx'
HEAD = re.compile(r'\[[\d.]+ - [\d.]+\]\t(\S+)\t(\S+)\t\[.*\]$')  # [start - end], turn, emotion, [V, A, D]
# Both speakers of a session talk in every dialogue; the letter before the turn's number tells who
# says the turn.
TURN = re.compile(r'(Ses0([1-5]))[FM]_(impro|script)\w*_([FM])(?:XX)?\d+$')
LABELS, AUDIO = 'dialog/EmoEvaluation', 'sentences/wav'  # in the folder of a session
KINDS = {'impro': 'improvised', 'script': 'scripted'}

EXAMPLE = 'ang,hap+exc,neu,sad'
PARTS = ('turns', tuple(KINDS.values()))
DEFAULT_FOLDS = 'session'


def scan(root: str | Path) -> list[Utterance]:
    """Utterances below `root`, IEMOCAP_full_release or the folder that holds it."""
    sessions = (sorted(Path(root).glob('Session[1-5]'))
                or sorted(Path(root).glob('IEMOCAP_full_release/Session[1-5]')))
    for session in sessions:
        for folder in (session / LABELS, session / AUDIO):
            if not folder.is_dir():
                raise UserError(f'{folder}: no such folder; this copy of IEMOCAP is incomplete')
    folders = [p for session in sessions for p in (session / AUDIO).glob('[!.]*') if p.is_dir()]
    entries = ((where, (line, session)) for session in sessions
               for path in sorted((session / LABELS).glob('[!.]*.txt'))  # single raters' are in subfolders
               for where, line in blocks(path, '['))
    return labelled(entries, _utterance, audio_in(folders))


def _utterance(entry, where):
    """(turn, Utterance) of the first line of a block."""
    line, session = entry
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
    path = session / AUDIO / turn.rpartition('_')[0] / f'{turn}.wav'
    left_out = 'no majority' if emotion == NO_MAJORITY else None
    return turn, Utterance(str(path), emotion, name[1] + name[4], session=name[1], gender=name[4].lower(),
                           part=KINDS[name[3]], left_out=left_out)
