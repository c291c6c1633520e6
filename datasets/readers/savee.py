"""SAVEE (Haq and Jackson 2009): AudioData/DC/a01.wav, or all in one folder as DC_a01.wav. Four men."""
import re
from pathlib import Path

from config import UserError
from datasets.faults import Faults
from datasets.files import audio_in
from datasets.utterance import Utterance

LABELS = {'a': 'anger', 'd': 'disgust', 'f': 'fear', 'h': 'happiness', 'n': 'neutral', 'sa': 'sadness',
          'su': 'surprise'}
SPEAKERS = ('DC', 'JE', 'JK', 'KL')
NAME = re.compile(rf'({"|".join(SPEAKERS)})_({"|".join(LABELS)})\d\d$')  # speaker, emotion, number


def scan(root: str | Path) -> list[Utterance]:
    """Utterances below `root`, the folder that holds AudioData/, the speakers' folders or the files themselves."""
    root = Path(root) / 'AudioData' if (Path(root) / 'AudioData').is_dir() else Path(root)
    if not root.is_dir():
        return []
    found, faults = {}, Faults()
    below = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith('.'))
    for folder in (root, *below):
        for name, path in sorted(audio_in([folder]).items()):
            name = f'{folder.name}_{name}' if folder.name in SPEAKERS and folder != root else name
            with faults.collect():
                match = NAME.match(name)
                if not match:
                    raise UserError(f'{path}: not a SAVEE name such as DC/a01.wav or DC_a01.wav; move it '
                                    'out of the corpus')
                if name in found:
                    raise UserError(f'{path}: the same utterance as {found[name].path}; keep one of them')
                speaker, emotion = match.groups()
                found[name] = Utterance(path, LABELS[emotion], speaker, gender='m')
    utterances = [found[name] for name in sorted(found)]
    faults.check(utterances)
    return utterances
