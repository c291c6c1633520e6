"""What several test files share: made-up speech, a finished run of both programs, skips."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import utils
from datasets.readers import synthetic

ROOT = Path(__file__).parent.parent
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job, and so in what we start
torch.set_num_threads(1)  # the networks here are tiny: threads would only wait for each other


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker('gpu') and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason='no CUDA device'))
        if item.get_closest_marker('speech') and not os.environ.get('SER_DATA'):
            item.add_marker(pytest.mark.skip(reason='SER_DATA does not name a folder of real speech'))


@pytest.fixture(autouse=True)
def released():
    """Runs that a test left open, as a killed process does, are let go, as the end of that process would."""
    yield
    for run in [*utils.open_runs]:
        run.lock.close()
        utils.open_runs.discard(run)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


FEATURES = '--device cpu --duration 0.8 --n_mels 16 --hop_ms 32 --time_pool 1 --batch_size 10'.split()
SIZES = '--init_channels 2 --layers 3 --rnn_channels 4'.split()
SMALL = [*FEATURES, *SIZES]
SEARCH = '--n_nodes 1 --rnn_nodes 1 --alpha_warmup 1 --alpha_lr 0.05 --trim_db 50'.split()


def run(cwd, program, *argv, ok=True, **kwargs):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run([sys.executable, str(ROOT / program), *map(str, argv)], cwd=cwd, env=env, capture_output=True,
                          text=True, timeout=300, **kwargs)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


def search_args(corpus, name, *more):
    return ['--name', name, '--dataset', 'manifest', '--data_path', corpus, '--epochs', 3, *SMALL, *SEARCH, *more]


def augment_args(corpus, name, genotype, *more):
    return ['--name', name, '--dataset', 'manifest', '--data_path', corpus, '--genotype', genotype, '--epochs', 4,
            '--batch_size', 10, '--device', 'cpu', *more]


@pytest.fixture(scope='session')
def finished(tmp_path_factory, small_corpus):
    """A folder in which both programs have run to the end."""
    cwd = tmp_path_factory.mktemp('finished')
    run(cwd, 'search.py', *search_args(small_corpus, 'a'))
    run(cwd, 'augment.py', *augment_args(small_corpus, 'a', 'runs/search/a/genotype.json'))
    return cwd


def rows(path, drop=('seconds', 'core_seconds')):
    return [{k: v for k, v in json.loads(line).items() if k not in drop} for line in path.read_text().splitlines()]


def results(folder):
    found = json.loads((folder / 'results.json').read_text())
    return {k: v for k, v in found.items() if k not in ('seconds', 'core_seconds', 'command', 'provenance')}


def found_by(search):
    """Genotype and record in the folder of a search, without what differs from run to run."""
    tree = json.loads((search / 'genotype.json').read_text())
    del tree['provenance']
    return tree


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)


def shown(folder):
    """[(tag, step, value), ...] of all that TensorBoard shows of a run, sorted; a picture is its bytes."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray
    events = EventAccumulator(os.path.join(folder, 'tb'), dict.fromkeys(('scalars', 'images', 'tensors'), 0))
    events.Reload()
    tags = events.Tags()
    found = [(tag, e.step, e.value) for tag in tags['scalars'] for e in events.Scalars(tag)]
    found += [(tag, e.step, e.encoded_image_string) for tag in tags['images'] for e in events.Images(tag)]
    found += [(tag, e.step, make_ndarray(e.tensor_proto).tolist()) for tag in tags['tensors'] for e in events.Tensors(tag)]
    return sorted(found, key=lambda row: row[:2])
