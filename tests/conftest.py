import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from datasets.readers import synthetic

ROOT = Path(__file__).parent.parent
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job, and so in what we start
torch.set_num_threads(1)  # the networks here are tiny: threads would only wait for each other


def pytest_collection_modifyitems(items):
    for item in items:
        if 'gpu' in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason='no CUDA device'))
        if 'speech' in item.keywords and not os.environ.get('SER_DATA'):
            item.add_marker(pytest.mark.skip(reason='SER_DATA does not name a folder of real speech'))


@pytest.fixture
def ser_data():
    return Path(os.environ['SER_DATA'])


def write_corpus(folder, n_speakers=6, emotions=('angry', 'sad'), n_takes=4, shift=0):
    """A small manifest corpus of synthesised speech; returns the CSV. shift: take other utterances of the same speakers."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ['path,label,speaker,gender']
    for s in range(n_speakers):
        for emotion in emotions:
            for take in range(n_takes):
                name = f's{s}_{emotion}_{take}.wav'
                wave = synthetic.synthesise(s, emotion, take + shift)[:16_000 + 900 * take]
                soundfile.write(folder / name, wave, synthetic.SAMPLE_RATE)
                rows.append(f'{name},{emotion},spk{s},{"mf"[s % 2]}')
    path = folder / 'corpus.csv'
    path.write_text('\n'.join(rows) + '\n')
    return path


@pytest.fixture(scope='session')
def small_corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp('corpus'))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)
