"""RAVDESS speech (Livingstone and Russo 2018): Actor_01/03-01-05-01-01-01-01.wav or .flac, at any rate."""
import re
from pathlib import Path

from config import UserError
from datasets.faults import Faults
from datasets.utterance import Utterance

LABELS = {'01': 'neutral', '02': 'calm', '03': 'happy', '04': 'sad', '05': 'angry', '06': 'fearful',
          '07': 'disgust', '08': 'surprised'}
SUFFIXES = ('.wav', '.flac')
NAME = re.compile(r'(\d\d)-(\d\d)-(0[1-8])-\d\d-\d\d-\d\d-(\d\d)$')  # modality, channel, emotion, ..., actor
AUDIO_ONLY, SPEECH = '03', '01'

# (test actors, dev actors) of Krasnoproshin and Vashkevich, arXiv 2606.03359.
_PUBLISHED = [('02 05 14 15 16', '03 06'), ('03 06 07 13 18', '10 11'), ('10 11 12 19 20', '08 17'),
              ('08 17 21 23 24', '01 14'), ('01 04 09 22', '02 05')]
FOLDS = [(tuple(test.split()), tuple(dev.split())) for test, dev in _PUBLISHED]


def scan(root: str | Path) -> list[Utterance]:
    """Utterances below `root`, the folder that holds Actor_01 to Actor_24 or the files themselves.

    Of a recording that is there as .wav and as .flac, the .wav is used.
    """
    found, faults = {}, Faults()
    for path in sorted([*Path(root).glob('Actor_*/*'), *Path(root).glob('*')]):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith('.'):
            with faults.collect():
                utterance = _utterance(path)
                if path.stem not in found or path.suffix.lower() == '.wav':
                    found[path.stem] = utterance
    utterances = [found[stem] for stem in sorted(found)]
    faults.check(utterances)
    return utterances


def _utterance(path):
    match = NAME.match(path.stem)
    if not match:
        raise UserError(f'{path}: not a RAVDESS name such as 03-01-05-01-01-01-01{path.suffix}; move it out '
                        'of the corpus')
    modality, channel, emotion, actor = match.groups()
    if (modality, channel) != (AUDIO_ONLY, SPEECH):
        raise UserError(f'{path}: not audio-only speech, whose names begin with {AUDIO_ONLY}-{SPEECH}; move '
                        'it out of the corpus')
    return Utterance(str(path), LABELS[emotion], actor, gender='m' if int(actor) % 2 else 'f')
