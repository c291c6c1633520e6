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
from conftest import FEATURES, SIZES, SMALL
from scipy.stats import kendalltau

import augment
import config as cf
import datasets
import genotypes as gt
import search
from datasets.dataset import SpeechDataset
from scripts import rank_correlation, rank_networks, rank_report, spread, spread_plan
from utils import UserError

GENOTYPE = gt.Genotype([[('sep_conv_3x3', 0), ('max_pool_3x3', 1)], [('skip_connect', 2), ('dil_conv_3x3', 0)]], range(2, 4),
                       [[('avg_pool_3x3', 1), ('sep_conv_5x5', 0)], [('dil_conv_5x5', 1), ('sep_conv_3x3', 2)]], range(2, 4),
                       [[('gru_1', 0), ('rnn_2', 1)], [('skip_connect', 0), ('lstm_1', 2)]], range(2, 4))


class Config:
    batch_size, seed, finalists, scored_utterances = 4, 0, 1, 0


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
        low, high = rank_report.interval(x, y)
        covered += low <= 2 / np.pi * np.arcsin(.5) <= high  # tau of a normal distribution with correlation .5
        x = x.round(1)  # with ties
        assert rank_report.kendall(x, y) == pytest.approx(kendalltau(x, y).statistic)
    assert 87 <= covered <= 99
    drawn = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), rank_report.BOOTSTRAP)
    taus = rank_report.kendall(x, y, drawn.astype(float))
    assert rank_report.interval(x, y) == pytest.approx(np.percentile(taus, [2.5, 97.5]))
    counts = np.array([[2., 1., 0., 1.], [1., 1., 1., 1.]])
    x, y = np.array([1., 2., 3., 4.]), np.array([1., 3., 2., 4.])
    assert rank_report.kendall(x, y, counts) == pytest.approx([1., 4 / 6])


def test_the_program_ranks_what_was_retrained(small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ['--dataset', 'manifest', '--data_path', str(small_corpus), *SMALL, '--epochs', '1', '--n_nodes', '1',
             '--rnn_nodes', '1']
    search.main(['--name', 's', *small])
    for seed in '012':
        augment.main(['--name', f'r{seed}', *small, '--genotype', 'random', '--seed', seed])
    augment.main(['--name', 'other', *small[:4], *FEATURES, '--epochs', '1', '--model', 'rnn', '--params', '300'])
    augment.main(['--name', 'fold2', *small, '--genotype', 'random', '--fold', '2'])
    augment.main(['--name', 'longer', *small, '--genotype', 'random', '--seed', '4', '--epochs', '2', '--lr', '.01'])
    augment.main(['--name', 'nodev', *small, '--genotype', 'random', '--seed', '3', '--train_on_dev'])
    capsys.readouterr()
    folders = [f'runs/augment/{name}' for name in ('r0', 'r1', 'r2', 'r0', 'other', 'fold2', 'nodev', 'begun', 'old', 'wide',
                                                    'longer')]
    made_from_r0('begun', 'old', 'wide')
    rank_correlation.main(['runs/search/s', *folders, '--data_path', str(small_corpus)])
    said = capsys.readouterr().out
    rows = [[float(x) for x in line.split(' | ')[1:3]] + [float(line[2:].split(' | ')[0])] for line in said.splitlines()
            if re.search(r'\| runs/augment', line)]
    assert len(rows) == 3 and 'Kendall tau, 3 networks' in said
    assert said.splitlines()[0] == 'passed over 8: ' + ', '.join(
        f'{why} 1 (runs/augment/{name})' for why, name in (
            ('a genotype that another run has', 'r0'), ('no genotype', 'other'), ('other fold', 'fold2'),
            ('trained on dev (--no-train_on_dev leaves a dev UA)', 'nodev'),
            ('not finished', 'begun'), ('other n_mels time_pool', 'old'),
            ('trained with other epochs lr than runs/augment/r0', 'longer'),
            ('a normal cell with other nodes or operations than the supernet', 'wide')))
    tau = kendalltau([row[2] for row in rows], [-row[1] for row in rows]).statistic
    assert float(re.search(r'low to high: (\S+)', said)[1]) == pytest.approx(tau, abs=.01, nan_ok=True)
    row = next(line for line in said.splitlines() if 'runs/augment/r1' in line)
    results = json.loads(Path('runs/augment/r1/results.json').read_text())
    assert float(row.split('|')[1]) == pytest.approx(100 * results['dev_ua'], abs=.05)
    for some, why in ((folders[3:-2], 'no genotype 1'), (folders[2:3] + folders[-2:-1], 'a normal cell with'),
                      (folders[:1], 'name more folders')):
        with pytest.raises(UserError, match=f'^1 of these runs .*: 2 are needed; .*{why}'):
            rank_correlation.main(['runs/search/s', *some, '--data_path', str(small_corpus)])
    fewer = tmp_path / 'fewer.csv'
    rows = small_corpus.read_text().splitlines()
    fewer.write_text('\n'.join([rows[0], *(f'{small_corpus.parent}/{row}' for row in rows[1:-1])]))
    with pytest.raises(UserError, match=f'speakers of {fewer} are not those of runs/search/s: name the corpus of the search'):
        rank_correlation.main(['runs/search/s', *folders, '--data_path', str(fewer)])
    record = gt.load('runs/search/s')[1]['search']
    assert rank_networks.heard_by(Path('runs/search/s/genotype.json')) == [record['train_speakers'], record['dev_speakers']]
    for part in ('train', 'dev'):
        path = Path('runs/augment/r0/results.json')
        before = path.read_text()
        path.write_text(json.dumps({**json.loads(before), f'{part}_speakers': ['zoe']}))
        with pytest.raises(UserError, match=r'other speakers to train or for dev 1 \(runs/augment/r0\)'):
            rank_correlation.main(['runs/search/s', folders[0], folders[1], '--data_path', str(small_corpus)])
        path.write_text(before)
    with pytest.raises(UserError, match='runs/augment/typo/results.json: cannot be read'):
        rank_correlation.main(['runs/search/s', *folders, 'runs/augment/typo', '--data_path', str(small_corpus)])


def test_fewer_epochs_have_a_shorter_warm_up(tmp_path):
    (tmp_path / 'c.yaml').write_text('augment:\n  epochs: 12\n  warmup: 4\n')
    config = cf.SearchConfig(name='s', config=str(tmp_path / 'c.yaml'))
    for epochs, expected in ((0, (12, 4)), (6, (6, 2)), (24, (24, 4))):
        training = rank_networks.training_of(SimpleNamespace(epochs=epochs, band=None), config)
        assert (training.epochs, training.warmup) == expected


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
    assert 'too few networks for an interval' in said
    Path('runs/ranks/s').rename('runs/ranks/both')
    rank_correlation.main([*argv, '--name', 'both'])
    assert Path('runs/ranks/both/supernet-s.csv').read_text() == Path('runs/ranks/both/supernet.csv').read_text()
    Path('runs/ranks/both').rename('runs/ranks/s')
    table.loc[table.index[0], ['ua', 'loss']] = np.nan
    table.to_csv('runs/ranks/s/trainings.csv', index=False, na_rep='nan')
    capsys.readouterr()
    rank_correlation.main(argv)
    said = capsys.readouterr().out
    assert 'a training diverged' in said and 'Kendall tau, 2 networks, by loss' in said
    with pytest.raises(UserError, match='epochs is 2, but'):
        rank_correlation.main([*argv[:-4], '--epochs', '2', *argv[-2:]])
    with pytest.raises(UserError, match='^--seeds has an effect with --networks alone, which trains: leave it out$'):
        rank_correlation.main([argv[0], 'runs/augment/x', '--seeds', '3'])
    for wrong in (argv[:1], [argv[0], 'runs/augment/x', *argv[1:]]):
        with pytest.raises(UserError, match='--networks'):
            rank_correlation.main(wrong)


def test_the_program_ranks_the_networks_of_a_random_search(small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ['--dataset', 'manifest', '--data_path', str(small_corpus), *FEATURES, '--space', 'speech']
    search.main(['--name', 's', *small, *SIZES, '--epochs', '1', '--relaxation', 'sampled'])
    draws = [*small, '--relaxation', 'none', '--finalists', '5', '--finalist_epochs', '4']
    search.main(['--name', 'd', *draws, '--last_rung', '0', '--seed', '3'])
    search.main(['--name', 'e', *draws, '--last_rung', '2', '--seed', '1'])
    capsys.readouterr()
    rank_correlation.main(['runs/search/s', *(f'runs/search/{name}' for name in 'ded'), '--data_path', str(small_corpus)])
    said = capsys.readouterr().out
    assert 'Kendall tau, 7 networks, by loss' in said and 'passed over' not in said  # those of few layers lack normal cells
    tree = json.loads(Path('runs/search/d/candidates.json').read_text())
    assert any('normal=[]' in row['genotype'] for row in tree['finalists'])
    table = pd.read_csv('runs/ranks/s/supernet.csv').set_index('architecture')
    for i, row in enumerate(tree['finalists'], 1):
        assert table.loc[f'd-{i}', 'loss_retrained'] == pytest.approx(row['trainings'][0]['loss'], abs=1e-6)
    assert sorted(name for name in table.index if name[0] == 'e') == [f'e-{i}' for i, row in enumerate(json.loads(
        Path('runs/search/e/candidates.json').read_text())['finalists'], 1) if len(row['trainings']) == 2]
    tree['recipe']['lr'] *= 2
    tree['finalists'] = tree['finalists'][:2]
    shutil.copytree('runs/search/d', 'runs/search/g')
    Path('runs/search/g/candidates.json').write_text(json.dumps(tree))
    with pytest.raises(UserError, match='^runs/search/g has networks of another recipe than the folder before it'):
        rank_correlation.main(['runs/search/s', 'runs/search/d', 'runs/search/g', '--data_path', str(small_corpus)])
    search.main(['--name', 'f', *draws, '--last_rung', '0', '--fold', '2'])
    Path('runs/search/s/candidates.json').write_text('{}')
    for other, why in (('f', ': it has another fold; leave it out'), ('s', '; leave it out')):
        with pytest.raises(UserError, match=f'^runs/search/{other} is no search with --relaxation none .*data{why}$'):
            rank_correlation.main(['runs/search/s', f'runs/search/{other}', '--data_path', str(small_corpus)])


def test_the_program_takes_trainings_of_spread(small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = ['--dataset', 'manifest', *SMALL, '--n_nodes', '1', '--rnn_nodes', '1', '--folds', '3', '--epochs', '1',
           '--data_path', str(small_corpus)]
    rng = np.random.default_rng(0)
    monkeypatch.setattr(spread, 'train', lambda *_: (dict(zip(('ua', 'loss'), rng.random(2))), None))
    search.main(['--name', 's', '--fold', '2', *own])
    spread.main(['--name', 't', *own, '--architectures', '4', '--seeds', '2', '--hand_made', 'rnn:300', '--train_on_dev',
                 '--only_folds', '2,3'])
    path = Path('runs/spread/t/trainings.csv')
    table = pd.read_csv(path, dtype={'architecture': str}, keep_default_na=False)
    table = table[(table['architecture'] != '3') | (table['fold'] != 2) | (table['seed'] != 1)]
    texts = [table.loc[table['architecture'] == name, 'genotype'].iloc[0] for name in '012']

    def ranked(*genotypes):
        table['genotype'] = table['architecture'].map(dict(zip('012', genotypes))).fillna(table['genotype'])
        table.to_csv(path, index=False)
        capsys.readouterr()
        rank_correlation.main(['runs/search/s', '--trainings', 'runs/spread/t', '--data_path', str(small_corpus)])
        return capsys.readouterr().out, pd.read_csv('runs/ranks/s/supernet.csv', dtype={'architecture': str})
    said, found = ranked(*texts)
    assert said.splitlines()[:2] == [
        'fold 2: the retrained networks are scored on test speakers, with dev speakers among those they trained on; the '
        'supernet is scored on dev speakers', 'passed over 2: some seeds not trained 1 (3), no genotype 1 (rnn:300)']
    assert 'network; retrained: test, supernet: dev' in said and re.search(r'\| network 2, [\d,]+ parameters \|', said)
    means = table[table['fold'] == 2].groupby('architecture')[['loss', 'ua']].mean().loc[[*'012']]
    assert [*found['architecture']] == [*'012']
    np.testing.assert_allclose(found[['loss_retrained', 'ua_retrained']], means, atol=1e-6)
    tau = kendalltau(found['loss_retrained'], found['loss_supernet']).statistic
    assert f'Kendall tau, 3 networks, by loss: {tau:.2f} (' in said and Path('runs/ranks/s/supernet.png').stat().st_size > 1000
    for measure in ('loss_supernet', 'ua_supernet'):  # a score is that of the genotype
        assert [*ranked(*texts[::-1])[1][measure]] == pytest.approx([*found[measure]][::-1], abs=2e-6)
    genotype = gt.from_str(texts[1])
    wide = gt.to_str(genotype._replace(normal=genotype.normal * 2, normal_concat=range(2, 4)))
    said, _ = ranked(texts[0], wide, texts[2])
    assert '(rnn:300), a normal cell with other nodes or operations than the supernet 1 (1)' in said


def test_two_supernets_are_compared_without_training(small_corpus, tmp_path, monkeypatch, capsys):
    """A supernet agrees with itself, in every digit, and has other scores than that of another seed."""
    monkeypatch.chdir(tmp_path)
    small = ['--dataset', 'manifest', '--data_path', str(small_corpus), *SMALL, '--space', 'speech', '--epochs', '1']
    for seed in '01':
        search.main(['--name', f's{seed}', *small, '--relaxation', 'sampled', '--seed', seed])
    for name, setting, value in (('fold2', 'fold', 2), ('wide', 'init_channels', 7), ('draws', 'relaxation', 'none')):
        path = Path(shutil.copytree('runs/search/s1', f'runs/search/{name}'), 'config.yaml')
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), setting: value}))
    monkeypatch.setattr(spread, 'train', None)

    def scored(search, other, *more):
        capsys.readouterr()
        rank_correlation.main([f'runs/search/{search}', '--other', f'runs/search/{other}', '--data_path', str(small_corpus),
                               '--networks', '6', *more])
        return capsys.readouterr().out, pd.read_csv(f'runs/ranks/{search}-{other}/supernet.csv')
    said, found = scored('s0', 's0')
    assert [*found] == ['architecture', 'loss_other_supernet', 'ua_other_supernet', 'loss_supernet', 'ua_supernet']
    assert [*found['loss_other_supernet']] == [*found['loss_supernet']] and 'networks, by loss: 1.00 (' in said
    said, found = scored('s0', 's1')
    assert '| UA in the other supernet | loss in the other supernet | UA in the supernet |' in said and 'retrain' not in said
    tau = kendalltau(found['loss_other_supernet'], found['loss_supernet']).statistic
    assert f'Kendall tau, 6 networks, by loss: {tau:.2f} (' in said and len({*found['loss_supernet']}) > 3
    assert not np.allclose(found['loss_other_supernet'], found['loss_supernet'])
    assert not [*Path('runs/ranks').rglob('trainings.csv')]
    Path('runs/search/s1/genotype.json').rename('elsewhere.json')
    for search_, other, more, why in (
            ('s0', 'fold2', (), r'runs/search/fold2 has other settings than runs/search/s0 \(fold 2, not 1\): name a search'),
            ('s0', 'wide', (), r'runs/search/wide has other settings than runs/search/s0 \(init_channels 7, not '),
            ('s0', 's1', ('--trainings', 'x'), '--other runs/search/s1 takes no networks that were trained: leave --trainings'),
            ('draws', 's0', (), 'runs/search/draws is of a search with --relaxation none, which trains no supernet'),
            ('s0', 's1', (), 'runs/search/s1 is not finished: it has no genotype.json; continue the search with --resume'),
            ('s0', 'x', (), 'runs/search/x/config.yaml: cannot be read'),
            ('s0', 's1', ('--seeds', '2'), '--seeds has no effect with --other, which trains nothing: leave it out'),
            ('s0', 's1', ('--networks', '0'), '--other runs/search/s1: say how many networks to score with --networks')):
        with pytest.raises(UserError, match=f'^{why}'):
            scored(search_, other, *more)


def test_trainings_of_another_corpus_or_space_are_refused(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = ['--dataset', 'manifest', *SMALL, '--n_nodes', '1', '--rnn_nodes', '1', '--folds', '3', '--data_path',
           str(small_corpus)]
    config = cf.build('search', cf.given('search', ['--name', 's', *own]))
    settings = {'format': 3, **vars(config)}
    digest = datasets.digest(datasets.select(config)[0])
    args = SimpleNamespace(search=Path('s'), trainings=Path('t'))

    def refused(message, rows='', **changed):
        Path('t').mkdir(exist_ok=True)
        its = {name: value for name, value in settings.items() if name not in ('fold', 'prosody')}  # as an older version wrote
        Path('t/settings.yaml').write_text(yaml.safe_dump({**its, 'digest': digest, **changed}))
        Path('t/trainings.csv').write_text(f'{",".join(spread_plan.COLUMNS)}\n{rows}')
        with pytest.raises(UserError, match=message):
            rank_networks.trained_before(args, settings, config)
    refused('no training on fold 1 of s; it has folds none')
    refused(r't has other settings than s \(normalise speaker, not corpus; n_nodes 2, not 1\)', normalise='speaker', n_nodes=2)
    refused('utterances, labels or speakers of .* are not those of t', digest='0')
    refused('t has trainings of this program', fold=1)
    refused('no training on fold 1 of s; it has folds 3', '0,x,9,0,3,0,.5,1,1,\n')
    refused('trainings.csv is damaged: name a folder of scripts/spread.py', '0,x,9,0,1\n')
    refused('not what it should hold', '0,x,9,0,1,0,.5,1,1,\n')
    args.trainings = Path('none')
    with pytest.raises(UserError, match='none/settings.yaml: cannot be read .* name a folder of scripts/spread.py'):
        rank_networks.trained_before(args, settings, config)


def test_tau_of_networks_with_recurrent_cells_and_the_figure(capsys):
    rng = np.random.default_rng(0)
    rows = [rank_report.Row(str(i), i < 5, [dict(ua=ua, loss=loss, parameters=1000 + i) for ua, loss in rng.random((3, 2))],
                            dict(zip(('ua', 'loss'), rng.random(2)))) for i in range(9)]
    rank_report.report(rows, 'test')
    said = capsys.readouterr().out
    x, y = ([f(row) for row in rows[:5]] for f in (lambda row: row.mean('loss'), lambda row: row.scores['loss']))
    assert f'Kendall tau, 5 networks with SeqNN cells, by loss: {kendalltau(x, y).statistic:.2f} (' in said
    rank_report.report(rows[:5], 'test')
    assert 'with SeqNN' not in capsys.readouterr().out
    with_cells, without = rank_report.draw(rows, 'test').axes[0].containers
    assert [*with_cells[0].get_xdata()] == pytest.approx(x) and [*with_cells[0].get_ydata()] == y
    bars = [sorted(segment[:, 0]) for segment in without[2][0].get_segments()]
    assert np.allclose(bars, [[f(one['loss'] for one in row.measured) for f in (min, max)] for row in rows[5:]])
    only_ua = [row._replace(measured=[{'ua': .5 + .01 * i}]) for i, row in enumerate(rows)]
    assert 'UA, % retrained, dev' in rank_report.draw(only_ua, 'dev').axes[0].get_xlabel()
    assert rank_report.csv_rows(only_ua)[3][:3] == ('3', '', .53)


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

