"""scripts/reproduce.py, and the record of what made a run."""
import json
import sys

import pytest
import torch
from conftest import FEATURES, ROOT

import augment
import config as cf
import utils
from models import parallel

sys.path.insert(0, str(ROOT / 'scripts'))
import reproduce  # noqa: E402


def test_a_run_is_repeated_to_the_bit_or_what_differs_is_said(small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').symlink_to(small_corpus.parent)
    augment.main(['--name', 'a/x', '--model', 'rnn', '--params', '300', '--dataset', 'manifest', '--data_path',
                  'data/corpus.csv', *FEATURES, '--epochs', '2', '--no-amp'])
    path = tmp_path / 'runs/augment/a/x/results.json'
    record = json.loads(path.read_text())['provenance']
    assert record['torch'] == torch.__version__ and set(record['speakers']) == {'train', 'dev', 'test'}
    assert utils.read_torch(path.parent / 'checkpoint.pt')['provenance'] == record
    assert reproduce.main(['runs/augment/a/x', '--device', 'cpu']) == 0
    assert capsys.readouterr().out.endswith('equal to the bit\n')
    augment.main(['--name', 'tuned', '--init', 'runs/augment/a/x', '--dataset', 'manifest', '--data_path', 'data/corpus.csv',
                  '--epochs', '1', '--no-amp'])
    assert reproduce.main(['runs/augment/tuned', '--device', 'cpu']) == 0  # --init is relative to the folder of the run
    assert capsys.readouterr().out.endswith('\nequal to the bit\n')
    path.write_text(path.read_text().replace('"wa": ', '"wa": 1').replace('"torch": "', '"torch": "1.'))
    assert reproduce.main(['runs/augment/a/x', '--device', 'cpu']) == 1
    said = capsys.readouterr().out
    assert f'made with torch: 1.{torch.__version__}, now {torch.__version__}' in said and 'results.json.wa: 1' in said
    with pytest.raises(cf.UserError, match='no finished run'):
        reproduce.main(['runs/augment/a'])


def test_deterministic_switches_every_switch(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, 'use_deterministic_algorithms', lambda mode, warn_only: calls.append((mode, warn_only)))
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':16:8')
    parallel.start(cf.SearchConfig(name='x', device='cpu', threads=1))
    assert not calls
    parallel.start(cf.SearchConfig(name='x', device='cpu', threads=1, deterministic=True))
    assert calls == [(True, True)] and torch.backends.cudnn.benchmark is False
