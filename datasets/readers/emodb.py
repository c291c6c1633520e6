"""EMO-DB, the Berlin Database of Emotional Speech (Burkhardt et al. 2005): wav/03a01Fa.wav."""
import re
from pathlib import Path

from config import UserError
from datasets.faults import Faults
from datasets.files import audio_in
from datasets.utterance import Utterance

LABELS = {'W': 'anger', 'L': 'boredom', 'E': 'disgust', 'A': 'fear', 'F': 'happiness', 'T': 'sadness',
          'N': 'neutral'}
MEN = {'03', '10', '11', '12', '15'}
NAME = re.compile(r'(\d\d)[ab]\d\d([WLEAFTN])[a-z]$')  # speaker, text, emotion, version

# One man and one woman are the test speakers of a fold; dev is the next pair, and the first pair
# after the last.
_PAIRS = [('03', '08'), ('10', '09'), ('11', '13'), ('12', '14'), ('15', '16')]
FOLDS = list(zip(_PAIRS, _PAIRS[1:] + _PAIRS[:1]))  # (test speakers, dev speakers)


def scan(root: str | Path) -> list[Utterance]:
    """Utterances below `root`, the folder that holds wav/ or the files themselves."""
    audio = {}
    for folder in (Path(root) / 'wav', Path(root)):
        if folder.is_dir():
            audio = audio or audio_in([folder])
    found, faults = [], Faults()
    for name, path in sorted(audio.items()):
        with faults.collect():
            match = NAME.match(name)
            if not match:
                raise UserError(f'{path}: not an EMO-DB name such as 03a01Fa.wav; move it out of the corpus')
            speaker, emotion = match.groups()
            gender = 'm' if speaker in MEN else 'f'
            found.append(Utterance(path, LABELS[emotion], speaker, gender=gender))
    faults.check(found)
    return found
