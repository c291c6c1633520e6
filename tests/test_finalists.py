"""models/finalists.py: how a winner is chosen, and that nothing is repeated."""
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL, write_corpus
from test_rank_correlation import GENOTYPE

import augment
import config as cf
import genotypes as gt
import search
import utils
from datasets import scoring
from datasets.dataset import SpeechDataset
from models import candidates, finalists, parallel, speaker_norm
from models.training import train

ARGS = ['--dataset', 'manifest', *SMALL, '--n_nodes', '1', '--rnn_nodes', '1']
SEARCH = [*ARGS, '--epochs', '1', '--alpha_warmup', '0', '--relaxation', 'sampled', '--finalists', '4', '--candidates', '6']


TIMED = ('seconds', 'core_seconds')


def stopwatch_of(monkeypatch):
    """Each draw and each training takes 30 s of a core; other work makes that 300 s by the clock."""
    clock = iter(range(0, 10_000))

    def now(watch):
        i = next(clock)
        return {'seconds': 300. * i, 'core_seconds': 30. * i}
    monkeypatch.setattr(finalists.Stopwatch, '_now', now)


def untrained(monkeypatch):
    """Trainings take no time, and give a loss that depends on the genotype and the epochs."""
    def scored(config, genotype, *_):
        loss = zlib.crc32(f'{gt.to_str(genotype)} {config.epochs}'.encode()) / 2 ** 32
        return {'loss': loss, 'ua': .5, 'wa': .5, 'macro_f1': .5, 'train_losses': [loss] * config.epochs}, None
    monkeypatch.setattr(finalists, 'train', scored)
    return scored


def without_seconds(tree):
    if isinstance(tree, dict):
        return {name: without_seconds(value) for name, value in tree.items() if name not in TIMED}
    return [without_seconds(value) for value in tree] if isinstance(tree, list) else tree


def read(name):
    folder = Path('runs/search', name)
    return without_seconds(json.loads((folder / 'candidates.json').read_text())), (folder / 'genotype.json').read_text()


def killed(where, limit, calls):
    """The function, but its call number `limit` is interrupted. calls: a list that gets the arguments."""
    def instead(*args, **kwargs):
        calls.append(args)
        if len(calls) == limit:
            raise KeyboardInterrupt
        return where(*args, **kwargs)
    return instead


def close_all():
    """What the end of a process does."""
    for run in [*utils.open_runs]:
        run.close()


@pytest.mark.parametrize('relaxation', ['softmax', 'sampled'])
def test_candidates_of_the_speech_space_get_decisions_within_the_band(relaxation, small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    score, within = candidates.Scorer.score, []
    monkeypatch.setattr(finalists.Scorer, 'score', lambda scorer, genotype, whole=False: within.append(genotype) or score(
        scorer, genotype, whole))
    bars, progress = [], parallel.progress
    monkeypatch.setattr(parallel, 'progress', lambda items, what, total: bars.append((what, total, isinstance(items, list))) or
                        progress(items, what, total))
    search.main(['--name', 's', '--dataset', 'manifest', '--data_path', str(small_corpus), *SMALL, '--space', 'speech',
                 '--band', '2000-6000', '--relaxation', relaxation, '--finalists', '3', '--candidates', '5', '--epochs', '1',
                 '--finalist_epochs', '1'])
    assert bars[-2:] == [('candidates drawn', 5, False), ('candidates scored', 5, True)]  # the first draws while it moves
    tree, genotype = read('s')
    best = sorted(tree['scores'], key=lambda row: row['loss'])[:3]
    assert [(row['genotype'], row['score']) for row in tree['finalists']] == [(row['genotype'], row['loss']) for row in best]
    assert all(2000 <= row['parameters'] <= 6000 for row in tree['finalists'])
    for row, scored in zip(tree['scores'], within[-5:], strict=True):  # before them, a sampled search scores its epoch
        found = gt.from_str(row['genotype'])
        assert found.network == scored.network and found.network['layers'] in gt.NETWORK_CHOICES['layers']
        assert scored.normal and scored.rnn and found.reduce == scored.reduce
        assert found.normal == (scored.normal if found.network['layers'] > 2 else [])
        assert found.rnn == (scored.rnn if found.network['rnn_layers'] else [])
    assert gt.to_str(gt.load(genotype)[0]) == tree['winner']


def test_what_finalists_cannot_do_is_said_before_the_search(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [*SEARCH, '--data_path', str(small_corpus), '--config', 'c.yaml']
    for name, settings, said in (('a', {'copypaste': .5, 'copypaste_with': 'neutral'}, 'neutral'),
                                 ('b', {'init_channels': 4096, 'layers': 100}, 'memory|GB')):
        Path('c.yaml').write_text(yaml.safe_dump({'augment': settings}))
        with pytest.raises(utils.UserError, match=said):
            search.main(['--name', name, *argv])
        assert not Path('runs/search', name).exists()


def test_a_candidate_without_a_score_loses_and_no_finalist_wins_that_diverged(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [*SEARCH, '--data_path', str(small_corpus), '--finalist_epochs', '1', '--last_rung', '0']
    evaluate, calls = speaker_norm.evaluate, []

    def lost(*args):
        calls.append(args)
        if len(calls) == 2:  # the first is that of the epoch
            raise scoring.Diverged('no probabilities')
        return evaluate(*args)
    with monkeypatch.context() as patch:
        patch.setattr(candidates.speaker_norm, 'evaluate', lost)
        search.main(['--name', 's', *argv])
    tree, _ = read('s')
    losses = [row['loss'] for row in tree['scores']]
    assert losses[0] is None and None not in losses[1:]
    assert tree['scores'][0]['genotype'] not in [row['genotype'] for row in tree['finalists']]

    def diverges(*args):
        raise scoring.Diverged('training diverged')
    monkeypatch.setattr(finalists, 'train', diverges)
    with pytest.raises(scoring.Diverged, match='all 4 finalists diverged'):
        search.main(['--name', 'd', *argv])
    assert not Path('runs/search/d/genotype.json').exists()


def test_cells_that_no_network_fits_within_the_band_are_left_out(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    complete, calls = finalists.with_decisions, []

    def sometimes(*args):
        calls.append(args)
        return complete(*args) if len(calls) % 2 == 0 else None
    argv = ['--dataset', 'manifest', '--data_path', str(small_corpus), *SMALL, '--space', 'speech', '--relaxation', 'sampled',
            *'--finalists 2 --candidates 3 --epochs 1 --finalist_epochs 1 --last_rung 0 --band 100-9999999'.split()]
    monkeypatch.setattr(finalists, 'with_decisions', sometimes)
    search.main(['--name', 's', *argv])
    assert len(read('s')[0]['scores']) == 3 and len(calls) == 6
    monkeypatch.setattr(finalists, 'with_decisions', lambda *args: None)
    with pytest.raises(utils.UserError, match='--band 100-9999999: the cells of 20 candidates in a row are outside'):
        search.main(['--name', 't', *argv])
    with monkeypatch.context() as patch:  # alpha draws the same few networks again and again
        patch.setattr(finalists, 'distinct', lambda drawn: iter(()))
        with pytest.raises(utils.UserError, match='--band 100-9999999: alpha draws no network within it'):
            search.main(['--name', 'u', *argv])
    config = finalists.recipe_of(cf.build('search', cf.given('search', ['--name', 'x', *argv])))
    monkeypatch.setattr(candidates, 'MAX_DRAWS', 5)
    cells = next(candidates.random_genotypes(config, np.random.default_rng(0)))
    assert candidates.with_decisions(cells, replace(config, band='1-2'), np.random.default_rng(0), ['a', 'b']) is None


def test_a_half_that_lacks_a_class_is_noted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    csv = write_corpus(tmp_path / 'corpus')
    speaker = augment.datasets.select(cf.SearchConfig(name='x', dataset='manifest', data_path=str(csv)))[1][0].train[0]
    head, *rows = csv.read_text().splitlines()
    i = next(i for i, row in enumerate(rows) if row.split(',')[2] == speaker)
    rows[i] = rows[i].replace(',angry,', ',rare,').replace(',sad,', ',rare,')
    csv.write_text('\n'.join([head, *rows]) + '\n')
    search.main(['--name', 's', *ARGS, '--data_path', str(csv), *'--epochs 1 --alpha_warmup 0 --alpha_split utterance'.split()])
    said = [line for line in capsys.readouterr().out.splitlines() if 'has no utterance of class' in line]
    assert len(said) == 1 and said[0].endswith(' has no utterance of class rare')
    search.main(['--name', 'd', *ARGS, '--data_path', str(csv), *'--relaxation none --finalists 1 --finalist_epochs 1'.split()])
    assert 'has no utterance of class' not in capsys.readouterr().out  # it has no halves


def test_a_tournament_interrupted_twice_is_one_that_was_not(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [*SEARCH, '--data_path', str(small_corpus), '--finalist_epochs', '4']
    search.main(['--name', 'whole', *argv])
    tree, genotype = read('whole')
    trained = [training for row in tree['finalists'] for training in row['trainings']]
    assert all(len(training['train_losses']) == training['epochs'] for training in trained)
    augment.main(['--name', 'a', *ARGS[:2], *SMALL, *argv[-4:-2], '--epochs', '4', '--batch_size',
                  str(tree['recipe']['batch_size']), '--genotype', tree['winner']])
    epochs = [json.loads(line) for line in Path('runs/augment/a/metrics.jsonl').read_text().splitlines()]
    training = next(row['trainings'][1] for row in tree['finalists'] if row['genotype'] == tree['winner'])
    assert training['train_losses'] == [row['train']['loss'] for row in epochs]
    assert (training['loss'], training['ua']) == (epochs[-1]['dev']['loss'], epochs[-1]['dev']['ua'])
    losses = [row['loss'] for row in tree['scores']]
    best = [row['genotype'] for row in sorted(tree['scores'], key=lambda row: row['loss'])[:4]]
    assert len(losses) == len({row['genotype'] for row in tree['scores']}) == 6
    assert [row['genotype'] for row in tree['finalists']] == best
    short = {row['genotype']: row['trainings'][0]['loss'] for row in tree['finalists']}
    long = {row['genotype']: row['trainings'][1]['loss'] for row in tree['finalists'] if len(row['trainings']) == 2}
    assert sorted(long, key=short.get) == sorted(short, key=short.get)[:3] and tree['winner'] == min(long, key=long.get)
    assert gt.to_str(gt.load(genotype)[0]) == tree['winner']
    assert [t['epochs'] for t in tree['finalists'][0]['trainings']][0] == 1 and tree['recipe']['epochs'] == 4

    score = candidates.Scorer.score
    with monkeypatch.context() as patch:
        patch.setattr(finalists, 'SAVE_EVERY', 3)
        patch.setattr(finalists.Scorer, 'score', killed(score, 1 + 5, []))  # the epoch is scored as well
        with pytest.raises(KeyboardInterrupt):
            search.main(['--name', 'killed', *argv])
    close_all()
    scored = []
    with monkeypatch.context() as patch:
        patch.setattr(finalists, 'train', killed(train, 3, []))
        patch.setattr(finalists.Scorer, 'score', lambda *args, **kw: scored.append(args) or score(*args, **kw))
        with pytest.raises(KeyboardInterrupt):
            search.main(['--name', 'killed', *argv, '--resume'])
        assert len(scored) == 3  # of 6; three were on disk
    close_all()
    with pytest.raises(utils.UserError, match='epochs of retraining is 8, but the finalists of .* began with 4'):
        monkeypatch.setattr(finalists, 'recipe_of', lambda *_: cf.AugmentConfig(name='x', epochs=8))
        search.main(['--name', 'killed', *argv, '--resume'])
    close_all()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    search.main(['--name', 'killed', *argv, '--resume'])
    assert read('killed') == (tree, genotype)


def test_a_tournament_of_an_earlier_version_goes_on(tmp_path):
    config = finalists.recipe_of(cf.build('search', cf.given('search', ['--name', 'x', *ARGS])))
    training = {'epochs': 10, 'loss': 1., 'ua': .5, 'seconds': 3.}  # without the losses of its epochs
    utils.write_json(tmp_path / 'candidates.json', {
        'recipe': cf.pick(config, *finalists.RECIPE), 'scores': [], 'winner': None,
        'finalists': [{'genotype': gt.to_str(GENOTYPE), 'trainings': [training]}]})
    settings = cf.SearchConfig(name='x', relaxation='none', tournament_minutes=1.)
    run = SimpleNamespace(file=lambda name: tmp_path / name, path=tmp_path, logger=SimpleNamespace(info=print), config=settings)
    assert finalists.Book(run, config, None, None).train(GENOTYPE, 10) == training
    run.config = replace(settings, tournament_cores=True)
    with pytest.raises(utils.UserError, match='candidates.json: not what it should hold .*core_seconds'):
        finalists.Book(run, config, None, None)
    run.config, tree = settings, json.loads((tmp_path / 'candidates.json').read_text())
    for name, value in (('loss', 'low'), ('epochs', True), ('ua', []), ('seconds', '3')):
        tree['finalists'][0]['trainings'] = [{**training, name: value}]
        utils.write_json(tmp_path / 'candidates.json', tree)
        with pytest.raises(utils.UserError, match='candidates.json: not what it should hold .* is no number'):
            finalists.Book(run, config, None, None)


def test_random_candidates_need_no_supernet_and_fill_the_time(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    untrained(monkeypatch)
    argv = [*ARGS, '--data_path', str(small_corpus), '--relaxation', 'none', '--finalist_epochs', '4']
    search.main(['--name', 'k', *argv, '--finalists', '2'])
    tree, _ = read('k')
    assert not tree['scores'] and [[one['epochs'] for one in row['trainings']] for row in tree['finalists']] == [[4], [4]]
    assert not Path('runs/search/k/metrics.jsonl').read_text()
    log = Path('runs/search/k/search.log').read_text()
    assert re.search(r'random search on manifest, fold 1: \d+ utterances to train candidates, \d+ for dev; cpu', log)
    assert ' for alpha' not in log
    stopwatch_of(monkeypatch)
    argv += ['--tournament_cores']
    search.main(['--name', 't', *argv, '--tournament_minutes', '22.9'])
    tree, _ = read('t')
    assert len(tree['finalists']) == 11 and sum(len(row['trainings']) == 2 for row in tree['finalists']) == 3
    search.main(['--name', 'v', *argv, '--tournament_minutes', '22.9', '--finalist_epochs', '6'])  # 2 epochs, then 3 times 6
    assert len(read('v')[0]['finalists']) == 14
    search.main(['--name', 'r', *argv, '--tournament_minutes', '6.7', '--last_rung', '0'])
    tree, _ = read('r')
    assert [[one['epochs'] for one in row['trainings']] for row in tree['finalists']] == [[4]] * 7
    assert tree['winner'] == min(tree['finalists'], key=lambda row: row['trainings'][0]['loss'])['genotype']
    search.main(['--name', 'u', *argv, '--tournament_minutes', '11', '--last_rung', '8'])  # two get there, not eight
    assert [len(row['trainings']) for row in read('u')[0]['finalists']] == [2, 2]
    search.main(['--name', 'c', *argv[:-1], '--tournament_minutes', '229'])  # by the clock, which is ten times as fast
    assert read('c')[0] == read('t')[0]
    log = Path('runs/search/t/search.log').read_text()
    assert '(125.0 minutes, 12.5 of cores of choice)' in log and '(125.0 minutes, 12.5 of cores of search)' in log
    with pytest.raises(utils.UserError, match='--relaxation none trains no supernet'):
        search.main(['--name', 'n', *argv[:-3]])
    with pytest.raises(utils.UserError, match='--tournament_cores has no effect with no --tournament_minutes'):
        search.main(['--name', 'n', *argv, '--finalists', '2'])


@pytest.mark.parametrize('device, processes', [('cuda', 1), ('cpu', 2)])
def test_time_of_cores_is_that_of_one_process_on_a_cpu(device, processes, monkeypatch):
    monkeypatch.setattr(parallel, 'world_size', lambda: processes)
    config = cf.SearchConfig(name='x', relaxation='none', tournament_minutes=1.)
    finalists.check_cores(config, torch.device(device))
    with pytest.raises(utils.UserError, match='--tournament_cores counts the time of the cores of a CPU'):
        finalists.check_cores(replace(config, tournament_cores=True), torch.device(device))


@pytest.mark.parametrize('last_rung', [[], ['--last_rung', '0']], ids=['rungs', 'at once'])
def test_random_candidates_of_a_search_that_was_interrupted_are_as_many(last_rung, small_corpus, tmp_path, monkeypatch):
    """Trainings of before the interruption count; draws are repeated and count once; what was lost does not count."""
    monkeypatch.chdir(tmp_path)
    argv = [*ARGS, '--data_path', str(small_corpus), '--relaxation', 'none', '--finalist_epochs', '4', '--tournament_minutes',
            '17', '--tournament_cores', *last_rung]
    stopwatch_of(monkeypatch)
    train = untrained(monkeypatch)
    search.main(['--name', 'whole', *argv])
    assert len(read('whole')[0]['finalists']) > 3
    for call in (2, 4):
        with monkeypatch.context() as patch:
            patch.setattr(finalists, 'train', killed(train, call, []))
            with pytest.raises(KeyboardInterrupt):
                search.main(['--name', f'killed-{call}', *argv])
        close_all()
        search.main(['--name', f'killed-{call}', *argv, '--resume'])
        assert read(f'killed-{call}') == read('whole')


def test_a_one_shot_search_trains_w_on_all_data_and_leaves_alpha(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [*ARGS, '--data_path', str(small_corpus), *'--epochs 2 --finalist_epochs 4 --candidates 6'.split(),
            *'--relaxation sampled --sampling uniform --alpha_split none'.split()]
    with pytest.raises(utils.UserError, match='--alpha_split none does not train alpha, so .*: say --relaxation sampled'):
        search.main(['--name', 'x', *argv])
    with pytest.raises(utils.UserError, match='--alpha_warmup has no effect with --alpha_split none'):
        search.main(['--name', 'x', *argv, '--finalists', '4', '--alpha_warmup', '1'])
    seen, batches = [], SpeechDataset.batches

    def spied(data, batch_size, indices=None, *args):
        seen.append((len(data), indices))
        return batches(data, batch_size, indices, *args)
    monkeypatch.setattr(SpeechDataset, 'batches', spied)
    search.main(['--name', 'x', *argv, '--finalists', '4', '--last_rung', '0'])
    n_train = seen[1][0]
    assert [sorted(indices) for n, indices in seen if indices is not None][-2:] == [list(range(n_train))] * 2
    rows = [json.loads(line) for line in Path('runs/search/x/metrics.jsonl').read_text().splitlines()]
    assert rows[0]['alpha'] == rows[1]['alpha'] and rows[1]['alpha_loss'] is None
    tree, _ = read('x')
    assert [[one['epochs'] for one in row['trainings']] for row in tree['finalists']] == [[4]] * 4


def test_a_finalist_that_diverges_loses_and_a_band_without_networks_is_told_first(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [*ARGS, '--data_path', str(small_corpus), '--relaxation', 'none', '--finalist_epochs', '4', '--finalists', '2']
    calls = []

    def diverges(*args):
        calls.append(args)
        if len(calls) == 1:
            raise scoring.Diverged('training diverged')
        return {'loss': 1., 'ua': .5}, None
    monkeypatch.setattr(finalists, 'train', diverges)
    search.main(['--name', 'd', *argv, '--last_rung', '1'])
    tree, _ = read('d')
    assert len(calls) == 3 and tree['winner'] == tree['finalists'][1]['genotype']
    monkeypatch.setattr(candidates, 'MAX_DRAWS', 20)
    with pytest.raises(utils.UserError, match='--band 1-2: 20 genotypes in a row'):
        search.main(['--name', 'b', *argv, '--band', '1-2'])
    assert not Path('runs/search/b').exists()


@pytest.mark.parametrize('argv, message', [
    (['--relaxation', 'sampled', '--partial_channels', '2'], '--partial_channels 2: --relaxation sampled'),
    (['--sampling', 'uniform'], '--sampling has no effect with --relaxation softmax'),
    (['--candidates', '9'], '--candidates has no effect with --finalists 0'),
    (['--finalists', '2', '--band', '9-2'], '--band 9-2: must be LOW-HIGH'),
    (['--finalists', '9', '--candidates', '8'], '--finalists 9: there are only --candidates 8 to choose from'),
    (['--relaxation', 'none', '--tournament_minutes', '1', '--finalists', '8'], '--finalists has no effect with --tournament'),
    (['--relaxation', 'none', '--finalists', '4', '--space', 'speech', '--rnn_layers', '0'], '--rnn_layers has no effect')])
def test_mistakes(argv, message):
    with pytest.raises(utils.UserError, match=message):
        cf.build('search', cf.given('search', ['--name', 'x', *argv]))
