"""MSP-IMPROV (Busso et al. 2017): session1/S01A/R/MSP-IMPROV-S01A-F01-R-FF01.wav, below Audio/ or not.

Labels are the raters' consensus in Evalution.txt (sic), never the intended emotion in the name (the A
of S01A).
"""
import re
from functools import partial
from pathlib import Path

from config import UserError
from datasets.files import audio_in, blocks, labelled
from datasets.utterance import Utterance

EMOTIONS = {'A': 'anger', 'H': 'happiness', 'S': 'sadness', 'N': 'neutral', 'O': 'other'}
NO_AGREEMENT = 'X'
LABEL_FILES = ('Evalution.txt', 'Evaluation.txt')
HEAD = re.compile(r'(\S+)\.(?:avi|wav)\s*;\s*(\w+)\s*;')  # turn, emotion; then attributes
# Sentence and intended emotion, the actor whose target sentence it is, scenario, speaker and
# listener, number. In a dialogue the partner's turns carry the actor's name too. The speaker is
# therefore taken from the first letter before the number: an assumption from public lists of file
# names, not checked on a release.
TURN = re.compile(r'(?:UTD|MSP)-IMPROV-(S\d\d[AHSN]-[FM]0([1-6])-([PRST])-([FM])[FM]?\d+)$')

EXAMPLE = 'anger,happiness,neutral,sadness'
# Natural interaction, target read, other improvised, target improvised.
PARTS = ('scenarios', ('P', 'R', 'S', 'T'))
DEFAULT_FOLDS = 'session'


def scan(root: str | Path) -> list[Utterance]:
    """Utterances below `root`, which holds Evalution.txt or the folder with it.

    The sessions are in either folder, or in its Audio/.
    """
    root = Path(root)
    tables = [path for name in LABEL_FILES for path in (root / name, *sorted(root.glob(f'*/{name}')))
              if path.is_file()]
    if not tables:
        raise UserError(f'--data_path {root}: has no {LABEL_FILES[0]}; name the folder that holds it')
    if len(tables) > 1:
        raise UserError(f'--data_path {root}: has two label files, {tables[0]} and {tables[1]}; keep one')
    release = tables[0].parent
    above = {folder / name for folder in (root, release) for name in ('', 'Audio')}
    folders = {p for folder in above for p in folder.glob('[sS]ession[1-6]/*/*') if p.is_dir()}
    return labelled(blocks(tables[0], ('UTD-', 'MSP-')), partial(_utterance, release), audio_in(folders))


def _utterance(release, line, where):
    """(turn, Utterance) of the first line of a block."""
    head = HEAD.match(line)
    if not head:
        raise UserError(f'{where}: a block must begin like "UTD-IMPROV-S01A-F01-S-FM01.avi; N; ...", not '
                        f'{line!r}')
    turn, emotion = head.groups()
    name = TURN.match(turn)
    if not name:
        raise UserError(f'{where}: {turn!r} is not a turn such as UTD-IMPROV-S01A-F01-S-FM01')
    if emotion not in (*EMOTIONS, NO_AGREEMENT):
        raise UserError(f'{where}: {emotion!r} is none of {" ".join(EMOTIONS)} {NO_AGREEMENT}')
    fields, session, scenario, gender = name.groups()
    path = release / f'session{session}' / fields.partition('-')[0] / scenario / f'MSP-IMPROV-{fields}.wav'
    left_out = 'no agreement' if emotion == NO_AGREEMENT else None
    return path.stem, Utterance(str(path), EMOTIONS.get(emotion, ''), f'{gender}0{session}', session=session,
                                gender=gender.lower(), part=scenario, left_out=left_out)
