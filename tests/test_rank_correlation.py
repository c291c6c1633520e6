"""scripts/rank_correlation.py: a network's score inside the supernet is that of the network."""
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import FEATURES, SMALL
from scipy.stats import kendalltau
from test_networks import one_hot, supernet

import augment
import genotypes as gt
import search
from datasets.dataset import SpeechDataset
from scripts import rank_correlation
from utils import UserError

GENOTYPE = gt.Genotype([[('sep_conv_3x3', 0), ('max_pool_3x3', 1)], [('skip_connect', 2), ('dil_conv_3x3', 0)]], range(2, 4),
                       [[('avg_pool_3x3', 1), ('sep_conv_5x5', 0)], [('dil_conv_5x5', 1), ('sep_conv_3x3', 2)]], range(2, 4),
                       [[('gru_1', 0), ('rnn_2', 1)], [('skip_connect', 0), ('lstm_1', 2)]], range(2, 4))


class Config:
    batch_size, seed = 4, 0


def data_of(*names):
    """As datasets.Data: twelve short utterances a set."""
    sets = {}
    for name in names:
        features = [torch.randn(8, 14).half().numpy() for _ in range(12)]
        us = [SimpleNamespace(speaker='a')] * 12
        sets[name] = SpeechDataset(us, features, [0, 1, 2] * 4, torch.zeros(8, 1), torch.ones(8, 1), 14)
    return type('Data', (), {'sets': sets, 'class_weights': torch.ones(3)})


def test_weights_are_one_hot():
    net = supernet(4, n_nodes=2, n_nodes_rnn=2).double()
    x = torch.randn(3, 1, 8, 14, dtype=torch.double)
    found = net.net.forward_cells(x, rank_correlation.one_hot_weights(net, GENOTYPE))[0]
    one_hot(net, GENOTYPE)
    torch.testing.assert_close(found, net(x), rtol=0, atol=1e-10)
    with pytest.raises(UserError, match='normal cell'):
        rank_correlation.one_hot_weights(net, GENOTYPE._replace(normal=GENOTYPE.normal[:1]))


def test_batch_norm_gets_the_statistics_of_the_network_itself():
    net, data = supernet(4, n_nodes=2, n_nodes_rnn=2, dropout=.5), data_of('train', 'dev')
    for p in net.buffers():
        p.fill_(7.) if p.is_floating_point() else None
    weights = rank_correlation.one_hot_weights(net, GENOTYPE)
    found = [rank_correlation.dev_scores(net, weights, data, Config) for _ in range(2)]
    assert found[0] == pytest.approx(found[1])  # no dropout, nothing left of the statistics before
    norm = net.net.stem[1]
    x = net.net.stem[0](torch.cat([X for (X, *_), _ in data.sets['train'].batches(12)]))
    torch.testing.assert_close(norm.running_mean, x.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)


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
    for some, why in ((folders[3:-1], 'no genotype 1'), (folders[2:3] + folders[-1:], 'a normal cell with'),
                      (folders[:1], 'name more folders')):
        with pytest.raises(UserError, match=f'^1 of these runs .*: 2 are needed; .*{why}'):
            rank_correlation.main(['runs/search/s', *some, '--data_path', str(small_corpus)])
    with pytest.raises(UserError, match='runs/augment/typo/results.json: cannot be read'):
        rank_correlation.main(['runs/search/s', *folders, 'runs/augment/typo', '--data_path', str(small_corpus)])


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

