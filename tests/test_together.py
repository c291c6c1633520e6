"""Processes that start at the same moment on one run or one cache."""
import os
import shutil
import time
from multiprocessing import forkserver, get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import config as cf
import utils
from datasets import features
from datasets.folds import Fold
from datasets.utterance import Utterance
from models.run import Run

DATA = SimpleNamespace(mean=torch.zeros(2, 1), std=torch.ones(2, 1), digest='d', audio=['m', 'f'], fold=Fold((), (), ()))
TINY = cf.SearchConfig(name='x', n_mels=8, hop_ms=32.)


FRESH = get_context('forkserver')


@pytest.fixture(scope='module', autouse=True)
def server():
    """Starts the process that all others are forks of. A fork of this one could hang: PyTorch's FFT has been used here."""
    FRESH.set_forkserver_preload(['datasets.features', 'models.run'])
    here = os.getcwd()
    os.chdir(Path(__file__).parent.parent)  # the server imports from its working directory
    forkserver.ensure_running()
    os.chdir(here)


def at_once(n, do, *given, last=lambda: None):
    """Exit codes of n processes that call do(i, *given) at once; 2 for a UserError. last(): called when one is left."""
    start = FRESH.Barrier(n)
    processes = [FRESH.Process(target=begin, args=(start, do, i, *given)) for i in range(n)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 60
    while (left := sum(process.is_alive() for process in processes)) and time.monotonic() < deadline:
        if left == 1:
            last()
        time.sleep(.01)
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def begin(start, do, i, *given):
    start.wait()
    try:
        do(i, *given)
    except utils.UserError:
        os._exit(2)


@pytest.mark.parametrize('how', [{}, {'resume': True}, {'overwrite': True}])
def test_of_processes_that_start_one_run_together_one_writes(how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(5):
        end = FRESH.Event()
        if 'overwrite' in how:
            run = Run('search', cf.SearchConfig(name='x'))
            run.open(DATA)
            run.close()
        assert sorted(at_once(3, write, how, end, last=end.set)) == [0, 2, 2]
        kept = utils.read_torch('runs/search/x/checkpoint.pt')['history']
        assert len(kept) == 3 and len({row['of'] for row in kept}) == 1
        with open('runs/search/x/metrics.jsonl') as f:
            assert len(f.readlines()) == 3
        shutil.rmtree('runs')


def write(i, how, end):
    run = Run('search', cf.SearchConfig(name='x', **how))
    run.open(DATA)
    for epoch in (1, 2, 3):
        run.end_epoch({'epoch': epoch, 'of': i})
        run.save_checkpoint({'w': torch.ones(2)})
    end.wait()  # keeps the run until the others have been refused


def test_processes_that_fill_one_cache_together_read_equal_features(small_corpus, tmp_path):
    utterances = [Utterance(str(path), 'a', 's') for path in sorted(small_corpus.parent.glob('*.wav'))[:6]]
    whole = features.cached_features(utterances, TINY, str(tmp_path / 'alone'), 1, True)[0]
    for _ in range(3):
        assert at_once(3, extract, utterances, tmp_path / 'shared', whole) == [0, 0, 0]
        assert not [name for _, _, names in os.walk(tmp_path) for name in names if name.endswith('.tmp')]
        shutil.rmtree(tmp_path / 'shared')


def extract(i, utterances, cache, whole):
    found = features.cached_features(utterances, TINY, str(cache), 1, True)[0]
    assert all(map(np.array_equal, found, whole))
