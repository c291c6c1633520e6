"""scripts/rank_correlation.py: a network's score inside the supernet is that of the network."""
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import FEATURES, SMALL
from scipy.stats import kendalltau

import augment
import genotypes as gt
import search
from datasets.dataset import SpeechDataset
from scripts import rank_correlation, spread
from utils import UserError

GENOTYPE = gt.Genotype([[('sep_conv_3x3', 0), ('max_pool_3x3', 1)], [('skip_connect', 2), ('dil_conv_3x3', 0)]], range(2, 4),
                       [[('avg_pool_3x3', 1), ('sep_conv_5x5', 0)], [('dil_conv_5x5', 1), ('sep_conv_3x3', 2)]], range(2, 4),
                       [[('gru_1', 0), ('rnn_2', 1)], [('skip_connect', 0), ('lstm_1', 2)]], range(2, 4))


class Config:
    batch_size, seed, scored_utterances = 4, 0, 0


def data_of(*names):
    """As datasets.Data: twelve short utterances a set."""
    sets = {}
    for name in names:
        features = [torch.randn(8, 14).half().numpy() for _ in range(12)]
        us = [SimpleNamespace(speaker='a') for _ in range(12)]
        sets[name] = SpeechDataset(us, features, [0, 1, 2] * 4, torch.zeros(8, 1), torch.ones(8, 1), 14)
    return type('Data', (), {'sets': sets, 'class_weights': torch.ones(3)})


def test_tau_is_scipys_and_its_interval_covers_the_truth():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        x, y = rng.multivariate_normal([0, 0], [[1, .5], [.5, 1]], 30).T
        low, high = rank_correlation.interval(x, y)
        covered += low <= 2 / np.pi * np.arcsin(.5) <= high  # tau of a normal distribution with correlation .5
        x = x.round(1)  # with ties
        assert rank_correlation.kendall(x, y) == pytest.approx(kendalltau(x, y).statistic)
    assert 87 <= covered <= 99
    counts = np.array([[2., 1., 0., 1.], [1., 1., 1., 1.]])
    x, y = np.array([1., 2., 3., 4.]), np.array([1., 3., 2., 4.])
    assert rank_correlation.kendall(x, y, counts) == pytest.approx([1., 4 / 6])


def test_the_program_ranks_what_was_retrained(small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ['--dataset', 'manifest', '--data_path', str(small_corpus), *SMALL, '--epochs', '1', '--n_nodes', '1',
             '--rnn_nodes', '1']
    search.main(['--name', 's', *small])
    for seed in '012':
        augment.main(['--name', f'r{seed}', *small, '--genotype', 'random', '--seed', seed])
    augment.main(['--name', 'other', *small[:4], *FEATURES, '--epochs', '1', '--model', 'rnn', '--params', '300'])
    augment.main(['--name', 'fold2', *small, '--genotype', 'random', '--fold', '2'])
    augment.main(['--name', 'nodev', *small, '--genotype', 'random', '--seed', '3', '--train_on_dev'])
    capsys.readouterr()
    folders = [f'runs/augment/{name}' for name in ('r0', 'r1', 'r2', 'r0', 'other', 'fold2', 'nodev', 'begun', 'old', 'wide')]
    made_from_r0('begun', 'old', 'wide')
    rank_correlation.main(['runs/search/s', *folders, '--data_path', str(small_corpus)])
    said = capsys.readouterr().out
    rows = [[float(x) for x in line.split(' | ')[1:3]] + [float(line[2:].split(' | ')[0])] for line in said.splitlines()
            if re.search(r'\| runs/augment', line)]
    assert len(rows) == 3 and 'Kendall tau, 3 networks' in said
    assert said.splitlines()[0] == 'passed over 7 of the runs: ' + ', '.join(
        f'{why} 1 (first runs/augment/{name})' for why, name in (
            ('a genotype that another run has', 'r0'), ('no genotype', 'other'), ('other fold', 'fold2'),
            ('trained on dev (--no-train_on_dev leaves a dev UA)', 'nodev'),
            ('not finished', 'begun'), ('other n_mels time_pool', 'old'),
            ('a normal cell with other nodes or operations than the supernet', 'wide')))
    tau = kendalltau([row[2] for row in rows], [-row[1] for row in rows]).statistic
    assert float(re.search(r'low to high: (\S+)', said)[1]) == pytest.approx(tau, abs=.01, nan_ok=True)
    row = next(line for line in said.splitlines() if 'runs/augment/r1' in line)
    results = json.loads(Path('runs/augment/r1/results.json').read_text())
    assert float(row.split('|')[1]) == pytest.approx(100 * results['dev_ua'], abs=.05)
    for some, why in ((folders[3:-1], 'no genotype 1'), (folders[2:3] + folders[-1:], 'a normal cell with'),
                      (folders[:1], 'name more folders')):
        with pytest.raises(UserError, match=f'^1 of these runs .*: 2 are needed; .*{why}'):
            rank_correlation.main(['runs/search/s', *some, '--data_path', str(small_corpus)])
    with pytest.raises(UserError, match='runs/augment/typo/results.json: cannot be read'):
        rank_correlation.main(['runs/search/s', *folders, 'runs/augment/typo', '--data_path', str(small_corpus)])


def test_the_program_trains_networks_and_goes_on_after_an_interruption(small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    search.main(['--name', 's', '--dataset', 'manifest', '--data_path', str(small_corpus), *SMALL, '--epochs', '1', '--n_nodes',
                 '1', '--rnn_nodes', '1', '--relaxation', 'sampled'])
    argv = ['runs/search/s', '--networks', '3', '--seeds', '2', '--epochs', '1', '--data_path', str(small_corpus)]
    calls, train = [], spread.train
    monkeypatch.setattr(spread, 'train', lambda *args: calls.append(args) or (train(*args) if len(calls) < 4 else {}['end']))
    with pytest.raises(KeyError):
        rank_correlation.main(argv)
    monkeypatch.setattr(spread, 'train', lambda *args: calls.append(args) or train(*args))
    rank_correlation.main(argv)
    assert len(calls) == 4 + 3 and {args[-1] for args in calls} == {'dev'}
    assert len({args[0].seed for args in calls[:3] + calls[4:]}) == 6
    said = capsys.readouterr().out
    table = pd.read_csv('runs/ranks/s/trainings.csv')
    found = [[float(x) for x in line.split('|')[1:3]] for line in said.splitlines() if 'parameters |' in line]
    means = table.groupby('architecture')[['ua', 'loss']].mean().sort_values('ua', ascending=False)
    np.testing.assert_allclose(found, means * [100, 1], atol=.051)
    assert 'Kendall tau, 3 networks, by loss' in said and 'two seeds of the retraining' in said
    with pytest.raises(UserError, match='epochs is 2, but'):
        rank_correlation.main([*argv[:-4], '--epochs', '2', *argv[-2:]])
    for wrong in (argv[:1], [argv[0], 'runs/augment/x', *argv[1:]]):
        with pytest.raises(UserError, match='--networks'):
            rank_correlation.main(wrong)


def made_from_r0(begun, old, wide):
    """Runs beside runs/augment/r0: one without results, one older than two settings, one with a node too many."""
    runs = Path('runs/augment')
    for name in (begun, old, wide):
        shutil.copytree(runs / 'r0', runs / name)
    (runs / begun / 'results.json').unlink()
    settings = yaml.safe_load((runs / old / 'config.yaml').read_text())
    older = {name: value for name, value in settings.items() if name not in ('n_mels', 'time_pool', 'scenarios')}
    (runs / old / 'config.yaml').write_text(yaml.safe_dump(older))
    results = json.loads((runs / wide / 'results.json').read_text())
    genotype = gt.from_str(results['genotype'])
    genotype = genotype._replace(normal=genotype.normal * 2, normal_concat=range(2, 4))
    (runs / wide / 'results.json').write_text(json.dumps({**results, 'genotype': gt.to_str(genotype)}))

