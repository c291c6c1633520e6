"""Processes that start at the same moment on one run or one cache."""
import os
import shutil
import signal
import time
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

DATA = SimpleNamespace(mean=torch.zeros(2, 1), std=torch.ones(2, 1), digest='d', fold=Fold((), (), ()))


def at_once(n, do, last=lambda: None):
    """Exit codes of n forks that call do(i) at the same moment; 2 for a UserError. last(): called when one is left.

    A fork that is still there after a minute is killed. PyTorch's FFT can hang in a fork of a process that has used it.
    """
    ready, go = os.pipe(), os.pipe()
    pids = []
    for i in range(n):
        if not (pid := os.fork()):
            code = 1
            try:
                os.write(ready[1], b'.')
                os.close(go[1])
                os.read(go[0], 1)  # until the last of us is there
                do(i)
                code = 0
            except utils.UserError:
                code = 2
            finally:
                os._exit(code)
        pids.append(pid)
    for _ in pids:
        os.read(ready[0], 1)
    for fd in go:
        os.close(fd)
    codes, deadline = {}, time.monotonic() + 30
    while len(codes) < n:
        for pid in {*pids} - {*codes}:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if len(codes) == n - 1 or time.monotonic() > deadline:
            last()
        if time.monotonic() > deadline + 30:
            for pid in {*pids} - {*codes}:
                os.kill(pid, signal.SIGKILL)
        time.sleep(.01)
    return [codes[pid] for pid in pids]


@pytest.mark.parametrize('how', [{}, {'resume': True}, {'overwrite': True}])
def test_of_processes_that_start_one_run_together_one_writes(how, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    utils.provenance()

    def write(i):
        run = Run('search', cf.SearchConfig(name='x', **how))
        run.open(DATA)
        for epoch in (1, 2, 3):
            run.end_epoch({'epoch': epoch, 'of': i})
            run.save_checkpoint({'w': torch.ones(2)})
        os.read(end[0], 1)  # keeps the run until the others have been refused
    for _ in range(5):
        end = os.pipe()
        if 'overwrite' in how:
            run = Run('search', cf.SearchConfig(name='x'))
            run.open(DATA)
            run.close()
        codes = at_once(3, write, lambda end=end: os.write(end[1], b'.'))
        assert sorted(codes) == [0, 2, 2]
        kept = utils.read_torch('runs/search/x/checkpoint.pt')['history']
        assert len(kept) == 3 and len({row['of'] for row in kept}) == 1
        with open('runs/search/x/metrics.jsonl') as f:
            assert len(f.readlines()) == 3
        shutil.rmtree('runs')


def test_processes_that_fill_one_cache_together_read_equal_features(small_corpus, tmp_path):
    utterances = [Utterance(str(path), 'a', 's') for path in sorted(small_corpus.parent.glob('*.wav'))[:6]]
    config = cf.SearchConfig(name='x', n_mels=8, hop_ms=32.)
    whole = features.cached_features(utterances, config, str(tmp_path / 'alone'), 1, True)[0]

    def extract(i):
        found = features.cached_features(utterances, config, str(tmp_path / 'shared'), 1, True)[0]
        assert all(map(np.array_equal, found, whole))
    for _ in range(3):
        assert at_once(3, extract) == [0, 0, 0]
        assert not [name for _, _, names in os.walk(tmp_path) for name in names if name.endswith('.tmp')]
        shutil.rmtree(tmp_path / 'shared')
