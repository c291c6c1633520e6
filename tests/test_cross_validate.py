"""scripts/cross_validate.py: the plan, what is run and what is not, what the tables say. Runs are those of a fake program."""
import collections
import csv
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from sklearn.metrics import balanced_accuracy_score

import config as cf
import datasets
import genotypes as gt
import utils

sys.path.insert(0, str(ROOT / 'scripts'))
import cross_validate  # noqa: E402
import cv_figures  # noqa: E402
import cv_plan  # noqa: E402
import cv_runner  # noqa: E402
import cv_statistics  # noqa: E402
import cv_table  # noqa: E402

CELL = "[[('{}', 0), ('{}', 1)]]"
GENOTYPE = (f'Genotype(normal={CELL}, normal_concat=range(2, 3), reduce={CELL}, reduce_concat=range(2, 3), rnn={CELL}, '
            'rnn_concat=range(2, 3))')
# Writes what search.py and augment.py write, notes its flags in calls.txt, and does what orders.json says of its --name.
FAKE = '''
import csv, json, os, random, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
name, fold, seed = flags['--name'], flags['--fold'], int(flags['--seed'])
with open('calls.txt', 'a') as f:
    f.write(json.dumps(sys.argv) + chr(10))
order = json.load(open('orders.json')).get(name, '') if os.path.exists('orders.json') else ''
random.seed(name)
search = sys.argv[0].endswith('search.py')
folder = os.path.join('runs', 'search' if search else 'augment', name)
os.makedirs(folder, exist_ok=True)
if order == 'fail':
    sys.exit('warning: nothing' + chr(10) + 'search.py: --n_mels 3: must not be' + chr(10))
if order == 'vanish':
    sys.exit(0)
if order == 'hang':
    time.sleep(600)
if order:
    time.sleep(float(order))
genotype = json.load(open('genotypes.json'))[int(fold) % 2]
if search:
    with open(folder + '/metrics.jsonl', 'w') as f:
        f.write('{"seconds": 60}' + chr(10) + '{"seconds": 30}' + chr(10))
    product, tree = 'genotype.json', {'text': genotype, 'operations': {
        'cnn': ['skip_connect', 'max_pool_3x3', 'none'], 'rnn': ['skip_connect', 'gru_1', 'lstm_1', 'none']}}
else:
    rows, labels = json.load(open('speech.json'))[int(fold) - 1], ['angry', 'sad']
    rows = [row + [row[2] if random.random() < .8 else random.choice(labels)] for row in rows]
    with open(folder + '/predictions.csv', 'w', newline='') as f:
        csv.writer(f).writerows([['path', 'speaker', 'label', 'predicted', 'p_angry', 'p_sad']] + [r + [0, 0] for r in rows])
    searched = '--model' not in flags and sys.argv[0].endswith('augment.py')
    product, tree = 'results.json', {
        'ua': .5, 'wa': .5, 'macro_f1': .5, 'labels': labels, 'n_test': len(rows), 'n_params': 1000 + 10 * seed + int(fold),
        'best_epoch': 1, 'dev_ua': .5, 'genotype': genotype if searched else None, 'seconds': 120, 'device': 'fake',
        'test_speakers': sorted({row[1] for row in rows}), 'search_heard_test_speakers': []}
with open(folder + '/tmp', 'w') as f:
    json.dump(tree, f)
os.replace(folder + '/tmp', folder + '/' + product)
'''
MODELS, DRAW = 'searched,random,cnn,cnn_gru_matched', cv_figures.draw


@pytest.fixture
def desk(tmp_path, monkeypatch, small_corpus):
    """A folder with the fake programs in which to call cross_validate; of 6 speakers in 3 folds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cv_runner, 'TICK', .01)
    monkeypatch.setattr(cv_figures, 'draw', lambda *_: None)
    monkeypatch.setattr(cv_statistics, 'N_RESAMPLES', 400)
    utterances = datasets.scan('manifest', str(small_corpus))
    speech = [[[u.path, u.speaker, u.label] for u in fold.split(utterances, 'test')]
              for fold in datasets.folds_of('manifest', utterances, '3')]
    (tmp_path / 'speech.json').write_text(json.dumps(speech))
    names = [['skip_connect', 'max_pool_3x3'] * 2 + ['gru_1', 'gru_1'], ['max_pool_3x3'] * 4 + ['gru_1', 'skip_connect']]
    (tmp_path / 'genotypes.json').write_text(json.dumps([GENOTYPE.format(*some) for some in names]))
    for program in ('search', 'augment', 'svm'):
        (tmp_path / f'{program}.py').write_text(FAKE)
    return tmp_path


def flags(corpus, *more, models=MODELS, seeds='0,1'):
    return ['--name', 'x', '--dataset', 'manifest', '--data_path', str(corpus), '--folds', '3', '--models', models, '--seeds',
            seeds, *more]


def call(desk, corpus, *more, **kwargs):
    """Exit code of cross_validate.main, 0 where it returns."""
    programs = {name: desk / f'{name}.py' for name in ('search', 'augment', 'svm')}
    try:
        cross_validate.main(flags(corpus, *more, **kwargs), programs)
    except SystemExit as done:
        return 1 if isinstance(done.code, str) else done.code
    return 0


def calls(desk):
    """[(program, {flag: value})] in the order in which they began, and forgets them."""
    path = desk / 'calls.txt'
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    assert all(line[-1] == '--resume' for line in lines)
    return [(os.path.basename(line[0]), dict(zip(line[1::2], line[2::2]))) for line in lines]


def names(desk):
    return [flags['--name'] for _, flags in calls(desk)]


def rows(name='runs.csv'):
    with open(f'runs/cv/x/{name}', newline='') as f:
        return list(csv.DictReader(f))


def table():
    with open('runs/cv/x/table.md') as f:
        return f.read()


def all_names(models=MODELS, seeds=(0, 1), folds=(1, 2, 3)):
    found = {f'cv/x/{model}-f{f}-s{s}' for model in models.split(',') for f in folds for s in seeds}
    return found | {f'cv/x/f{f}-s{s}' for f in folds for s in seeds if 'searched' in models}


def test_every_run_is_made_once_with_the_right_flags(desk, small_corpus, capsys):
    assert call(desk, small_corpus, '--search.epochs', '5', '--augment.lr', '0.5', '--n_mels', '16', '--device', 'cpu',
                '--no-amp') == 0
    made = calls(desk)
    assert collections.Counter(found['--name'] for _, found in made) == collections.Counter(all_names())
    begun = [found['--name'] for _, found in made]
    for program, found in made:
        name, fold, seed = found['--name'], found['--fold'], found['--seed']
        assert found['--config'] == 'runs/cv/x/config.yaml' and found['--device'] == 'cpu' and name.endswith(f'f{fold}-s{seed}')
        assert found['--data_path'] == str(small_corpus)
        rest = {k: v for k, v in found.items() if k in ('--genotype', '--model', '--params')}
        assert program == ('search.py' if name.startswith('cv/x/f') else 'augment.py')
        if name.startswith('cv/x/searched'):
            assert rest == {'--genotype': f'runs/search/cv/x/f{fold}-s{seed}/genotype.json'}
            assert begun.index(f'cv/x/f{fold}-s{seed}') < begun.index(name)
        elif name.startswith('cv/x/cnn_gru_matched'):
            assert rest == {'--model': 'cnn_gru', '--params': str(1000 + 10 * int(seed) + int(fold))}
        else:
            assert rest == {'x/f': {}, 'x/r': {'--genotype': 'random'}, 'x/c': {'--model': 'cnn'}}[name[3:6]]
    kept = yaml.safe_load((desk / 'runs/cv/x/config.yaml').read_text())
    both = {'dataset': 'manifest', 'folds': '3', 'n_mels': 16, 'amp': False}
    read = {'dataset': 'manifest', 'folds': '3', 'n_mels': 16}
    assert kept == {'search': {**both, 'epochs': 5}, 'augment': {**both, 'lr': .5}, 'svm': read}
    assert table().startswith('24 of 24 runs are there.\n') and {row['state'] for row in rows()} == {'finished'}
    assert call(desk, small_corpus, '--search.epochs', '5', '--augment.lr', '0.5', '--n_mels', '16', '--no-amp') == 0
    assert calls(desk) == []


def test_the_numbers_in_the_tables(desk, small_corpus, monkeypatch):
    monkeypatch.setattr(cv_figures, 'draw', DRAW)
    call(desk, small_corpus, '--clean_folds', '3')
    found = {row['model']: row for row in rows('table.csv')}
    assert list(found) == ['searched', 'random', 'cnn', 'cnn_gru_matched']
    pooled = rows('predictions.csv')
    assert len(pooled) == 48 * 8
    for model, row in found.items():
        ua = [balanced_accuracy_score(*([r[key] for r in pooled if r['model'] == model and r['seed'] == str(seed)]
                                        for key in ('label', 'predicted'))) for seed in (0, 1)]
        assert (float(row['ua']), float(row['ua_sd'])) == pytest.approx((np.mean(ua), np.std(ua, ddof=1)))
        assert (row['seeds'], row['n_folds'], row['n_test']) == ('0 1', '3', '48')
        by_fold = [np.mean([balanced_accuracy_score(*([r[key] for r in pooled if (r['model'], r['seed'], r['fold']) == (
            model, str(seed), str(fold))] for key in ('label', 'predicted'))) for seed in (0, 1)]) for fold in (1, 2, 3)]
        assert (float(row['ua_folds']), float(row['ua_folds_sd'])) == pytest.approx((np.mean(by_fold), np.std(by_fold, ddof=1)))
        assert float(row['params']) == 1007 and float(row['minutes']) == 2
        assert row['search_minutes'] == ('1.5' if model == 'searched' else '')
        assert float(row['ua_low']) < float(row['ua']) < float(row['ua_high'])
        line = next(line for line in table().splitlines() if line.startswith(f'| {model} | 0 1 | 48 | 6 |'))
        assert f'| {100 * np.mean(ua):.1f} ± {100 * np.std(ua, ddof=1):.1f} |' in line
    text = table()
    clean = text.index('Only fold 3, whose test speakers took part in no choice (those of folds 1, 2 did')
    assert clean > text.index('## All folds') and text.count('| searched minus |') == 2 and '| chance | ' in text
    assert '| searched | 0 1 | 16 | 2 |' in text[clean:text.index('## UA of each fold')]
    # Folds 1 and 3 found max_pool twice in normal, fold 2 once beside skip_connect: 10 of 12 edges, in all 6 cells.
    assert '| max_pool_3x3 | 83.3 (6 of 6) | 83.3 (6 of 6) | 50.0 |' in text
    assert '| lstm_1 | 0.0 (0 of 6) | 0.0 (0 of 6) | 33.3 |' in text
    assert 'Genotype(normal=' in text and 'python scripts/cross_validate.py --name x' in text and 'WARNING' not in text
    pictures = {path.name for path in (desk / 'runs/cv/x/figures').iterdir()}
    assert pictures == {'folds.png', 'parameters.png', *(f'confusion-{model}.png' for model in found)}


def test_a_failing_run_is_a_row_and_the_rest_goes_on(desk, small_corpus, capsys):
    orders = {'cv/x/f1-s0': 'fail', 'cv/x/cnn-f2-s1': 'vanish', 'cv/x/searched-f3-s1': 'fail'}
    (desk / 'orders.json').write_text(json.dumps(orders))
    assert call(desk, small_corpus) == 1
    state = {(row['model'], row['fold'], row['seed']): row['failed'] for row in rows() if row['state'] == 'failed'}
    why = 'exit code 1: search.py: --n_mels 3: must not be'
    assert state == {
        ('searched', '1', '0'): f'its search failed: {why}', ('cnn_gru_matched', '1', '0'): f'its search failed: {why}',
        ('cnn', '2', '1'): 'exit code 0, but runs/augment/cv/x/cnn-f2-s1/results.json is not there',
        ('searched', '3', '1'): why, ('cnn_gru_matched', '3', '1'): f'its searched network failed: {why}'}
    assert 'warning: nothing' in (desk / 'runs/cv/x/failed/search-f1-s0.txt').read_text()
    text = table()
    assert text.startswith('19 of 24 runs are there; 5 failed: searched (fold 1 seed 0, fold 3 seed 1), cnn (fold 2 seed 1), ')
    assert '| searched | partial: seed 0 folds 2 3; seed 1 folds 1 2 | 32 | 6 |' in text
    assert '| cnn | 0 (1 left out) | 48 | 6 |' in text  # seed 1 lacks a fold, seed 0 has all
    assert f'- searched-f3-s1: {why}' in text
    calls(desk)
    (desk / 'orders.json').unlink()
    assert call(desk, small_corpus, '--jobs', '2') == 0
    assert set(names(desk)) == {'cv/x/f1-s0', 'cv/x/searched-f1-s0', 'cv/x/cnn_gru_matched-f1-s0', 'cv/x/cnn-f2-s1',
                                'cv/x/searched-f3-s1', 'cv/x/cnn_gru_matched-f3-s1'}
    assert table().startswith('24 of 24 runs are there.\n') and not any((desk / 'runs/cv/x/failed').iterdir())


@pytest.mark.parametrize('number, name', [(signal.SIGKILL, 'SIGKILL'), (signal.SIGRTMIN + 6, f'signal {signal.SIGRTMIN + 6}')])
def test_a_run_ended_by_a_signal_says_which(number, name, desk, small_corpus):
    (desk / 'augment.py').write_text(f'import os\nos.kill(os.getpid(), {int(number)})')
    assert call(desk, small_corpus, '--only_folds', '2', models='cnn', seeds='0') == 1
    assert [row['failed'] for row in rows()] == [f'ended by {name}']


def test_shards_share_the_work_and_the_table_says_what_is_missing(desk, small_corpus):
    assert call(desk, small_corpus, '--shard', '1/2') == 0
    first = names(desk)
    assert table().startswith('12 of 24 runs are there; 12 missing: searched (fold 1 seed 1, fold 2 seed 0, fold 3 seed 1), ')
    assert call(desk, small_corpus, '--shard', '2/2') == 0
    second = names(desk)
    assert set(first) | set(second) == all_names() and len(first) + len(second) == len(all_names())
    assert table().startswith('24 of 24 runs are there.\n')


@pytest.mark.parametrize('n', [1, 2, 3, 5, 7])
def test_shards_are_disjoint_whole_and_keep_groups_together(n):
    models, folds, seeds = ['cnn_matched', 'searched', 'cnn'], [1, 2, 3, 4], [0, 5]
    shards = [cv_plan.jobs_of(models, folds, seeds, (i, n)) for i in range(1, n + 1)]
    every = list(itertools.chain(*shards))
    assert len(every) == len(set(every)) == 4 * 2 * 4 and set(every) == set(cv_plan.jobs_of(models, folds, seeds))
    for shard in shards:
        for place, job in enumerate(shard):
            assert job.needs() is None or job.needs() in shard[:place]
    later = [cv_plan.jobs_of(models, folds, [*seeds, 9], (i, n)) for i in range(1, n + 1)]
    assert all(more[:len(shard)] == shard for shard, more in zip(shards, later))


def launch(desk, corpus, *more, **kwargs):
    """cross_validate as a program, in a process of its own; what it says on stderr is in said.txt."""
    def program():
        for number, name in enumerate(('said.out', 'said.txt'), 1):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')
        utils.cli(lambda: sys.exit(call(desk, corpus, *more, **kwargs)))
    process = multiprocessing.get_context('fork').Process(target=program)
    process.start()
    return process


def wait_for(condition):
    deadline = time.time() + 60
    while not condition():
        assert time.time() < deadline
        time.sleep(.01)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_runs_and_the_same_command_goes_on(number, desk, small_corpus):
    (desk / 'orders.json').write_text(json.dumps({'cv/x/random-f1-s0': 'hang'}))
    process = launch(desk, small_corpus, '--only_folds', '1')
    wait_for(lambda: (desk / 'runs/augment/cv/x/random-f1-s0').exists())
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 130
    assert (desk / 'said.txt').read_text().endswith('cross_validate.py: interrupted; the same command goes on\n')
    assert names(desk)[-1] == 'cv/x/random-f1-s0' and not (desk / 'runs/cv/x/failed').exists()
    (desk / 'orders.json').unlink()
    assert call(desk, small_corpus, '--only_folds', '1') == 0
    assert names(desk) == ['cv/x/random-f1-s0', 'cv/x/cnn-f1-s0', 'cv/x/cnn_gru_matched-f1-s0', 'cv/x/f1-s1'] + [
        f'cv/x/{model}-f1-s1' for model in MODELS.split(',')]  # the run that hung was ended, else its log would be locked


def test_a_kill_that_leaves_a_run_behind_repeats_nothing(desk, small_corpus):
    """Killed, not to be caught: the run goes on alone. The same command waits for it and does not make it twice."""
    (desk / 'orders.json').write_text(json.dumps({'cv/x/cnn-f1-s0': '1.5'}))
    process = launch(desk, small_corpus, '--only_folds', '1', seeds='0')
    wait_for(lambda: (desk / 'runs/augment/cv/x/cnn-f1-s0').exists())
    process.kill()
    process.join()
    assert not (desk / 'runs/augment/cv/x/cnn-f1-s0/results.json').exists()
    assert call(desk, small_corpus, '--only_folds', '1', seeds='0') == 0
    assert collections.Counter(names(desk)) == collections.Counter(all_names(seeds=[0], folds=[1]))
    assert table().startswith('4 of 4 runs are there.\n')


def test_whatever_is_there_is_not_made_again(desk, small_corpus):
    """From every state that a kill can leave: each prefix of finished runs, the next one begun."""
    jobs = cv_plan.jobs_of(MODELS.split(','), [1], [0])
    assert call(desk, small_corpus, '--only_folds', '1', seeds='0') == 0
    experiment, whole = cv_plan.Experiment('x'), names(desk)
    for n in range(len(jobs)):
        for job in jobs[n:]:
            experiment.product(job).unlink()
        assert call(desk, small_corpus, '--only_folds', '1', seeds='0') == 0
        assert names(desk) == whole[n:]


def test_side_by_side_waits_for_what_it_needs(desk, small_corpus):
    (desk / 'orders.json').write_text(json.dumps({'cv/x/f1-s0': '1', 'cv/x/searched-f1-s0': '.5'}))
    assert call(desk, small_corpus, '--jobs', '4', seeds='0') == 0
    made = names(desk)
    assert collections.Counter(made) == collections.Counter(all_names(seeds=[0]))
    assert made.index('cv/x/random-f1-s0') < made.index('cv/x/searched-f1-s0') < made.index('cv/x/cnn_gru_matched-f1-s0')


def test_a_flag_beats_the_file_and_what_is_said_of_one_program_what_is_said_of_both(tmp_path):
    (tmp_path / 'x.yaml').write_text('layers: 4\nn_mels: 20\nsearch:\n  layers: 5\n  epochs: 6\naugment:\n  epochs: 7\n')

    def given(*more):
        return cf.given_to_all(cross_validate.Settings, ['--config', str(tmp_path / 'x.yaml'), *more], cross_validate.OWNED)
    both = {'n_mels': 20}
    svm = {'svm': both}
    own, found = given('--jobs', '3')
    assert own.jobs == 3 and own.seeds == '0'
    assert found == {'search': {**both, 'layers': 5, 'epochs': 6}, 'augment': {**both, 'layers': 4, 'epochs': 7}, **svm}
    _, found = given('--layers', '8', '--augment.layers', '9', '--search.epochs', '1')
    assert found == {'search': {**both, 'layers': 8, 'epochs': 1}, 'augment': {**both, 'layers': 9, 'epochs': 7}, **svm}


def test_sizes_and_space_of_the_search_are_those_of_every_network(desk, small_corpus):
    sizes = ['--search.layers', '5', '--search.rnn_layers', '2', '--augment.rnn_layers', '1', '--search.cnn_ops', 'conv']
    assert call(desk, small_corpus, *sizes, models='random', seeds='0') == 0
    kept = yaml.safe_load((desk / 'runs/cv/x/config.yaml').read_text())
    assert kept['augment']['layers'] == 5 and kept['augment']['rnn_layers'] == 1 and kept['augment']['cnn_ops'] == 'conv'


def test_finished_runs_of_other_settings_are_not_taken(desk, small_corpus):
    assert call(desk, small_corpus, '--augment.epochs', '5', models='cnn', seeds='0') == 0
    folder = Path('runs/augment/cv/x/cnn-f2-s0')
    made = cf.AugmentConfig(name='cv/x/cnn-f2-s0', dataset='manifest', folds='3', fold=2, epochs=5, model='cnn')
    (folder / 'config.yaml').write_text(yaml.safe_dump({k: v for k, v in asdict(made).items() if k not in utils.CURRENT}))
    shutil.rmtree('runs/cv')
    calls(desk)
    with pytest.raises(utils.UserError, match='cnn-f2-s0 was made with epochs 5, not 6: delete it'):
        call(desk, small_corpus, '--augment.epochs', '6', models='cnn', seeds='0')
    assert not (desk / 'calls.txt').exists()
    shutil.rmtree('runs/cv')
    assert call(desk, small_corpus, '--augment.epochs', '5', models='cnn', seeds='0') == 0


def test_another_labelling_of_the_same_speakers_is_refused(desk, small_corpus):
    assert call(desk, small_corpus, models='cnn', seeds='0') == 0
    text = small_corpus.read_text().replace('angry,', 'other,').replace('sad,', 'angry,').replace('other,', 'sad,')
    swapped = small_corpus.with_name('swapped.csv')
    swapped.write_text(text)
    with pytest.raises(utils.UserError, match='labels or speakers are not those'):
        call(desk, swapped, models='cnn', seeds='0')


@pytest.mark.parametrize('more, said', [
    (['--augment.epochs', '9'], 'epochs of augment.py is 9, but runs/cv/x began with its default'),
    (['--n_mels', '9'], 'n_mels of search.py is 9'), (['--epochs', '9'], 'unknown argument --epochs'),
    (['--search.epoch', '9'], 'nearest valid one is --search.epochs'), (['--seed', '1'], 'nearest valid one is --seeds'),
    (['--augment.lr', '-1'], '--lr -1.0'), (['--search.n_mels', '9'], 'n_mels is 9 for search, 32 for augment'),
    (['--search.n_nodes', '4', '--augment.n_nodes', '3'], 'n_nodes is 4 for search, 3 for augment: all models must be of one'),
    (['--models', 'cnn,svm', '--augment.train_on_dev'], 'train_on_dev is True for augment, False for svm: all models'),
    (['--models', 'serched'], '--models serched'), (['--models', 'cnn_matched'], 'name searched too'),
    (['--models', 'cnn,cnn'], 'named twice'), (['--seeds', '0,a'], '--seeds 0,a'), (['--only_folds', '4'], 'from 1 to 3'),
    (['--shard', '3/2'], '--shard 3/2'), (['--jobs', '0'], '--jobs 0'), (['--name', 'a/b'], '--name a/b'),
    (['--folds', '4'], 'folds of search.py is 4, but runs/cv/x began with 3'), (['--config', 'seed.yaml'], 'seed has no place'),
    (['--data_path', 'other.csv'], 'fold 1 now tests'), (['--jobs', 'two'], 'jobs'),
    (['--name', 'y', '--table'], 'there is no runs/cv/y/plan.json'), (['--table', '--models', 'svm'], 'has no such runs'),
])
def test_a_mistake_is_one_line_and_runs_nothing(more, said, desk, small_corpus):
    (desk / 'seed.yaml').write_text('seed: 3\n')
    lines = small_corpus.read_text().splitlines()
    (desk / 'other.csv').write_text('\n'.join([lines[0]] + [f'{small_corpus.parent}/{row}'.replace('spk', 'man')
                                                            for row in lines[1:]]))
    call(desk, small_corpus, '--only_folds', '1', models='cnn', seeds='0')
    calls(desk)
    before = table()
    with pytest.raises(utils.UserError) as error:
        call(desk, small_corpus, *more, models='cnn')
    assert said in str(error.value) and '\n' not in str(error.value)
    assert calls(desk) == [] and table() == before


def test_a_run_that_another_shard_finishes_while_tables_are_made_is_in_them(desk, small_corpus, monkeypatch):
    call(desk, small_corpus, models='cnn', seeds='0')
    product = cv_plan.Experiment('x').product(cv_plan.Job('cnn', 2, 0))
    product.rename('later.json')
    write = cv_table.runs_csv

    def meanwhile(results):
        if os.path.exists('later.json'):
            os.rename('later.json', product)
        return write(results)
    monkeypatch.setattr(cv_table, 'runs_csv', meanwhile)
    assert call(desk, small_corpus, '--table', models='cnn', seeds='0') == 0
    assert table().startswith('3 of 3 runs are there.\n')


def test_a_table_that_cannot_be_made_stops_no_run(desk, small_corpus, monkeypatch, capsys):
    made, make = [], cv_table.make

    def fail_twice(*args, **kwargs):
        made.append(args)
        if len(made) < 3:
            raise KeyError('seconds')
        make(*args, **kwargs)
    monkeypatch.setattr(cv_table, 'make', fail_twice)
    assert call(desk, small_corpus, models='cnn', seeds='0') == 0
    assert capsys.readouterr().out.count("the table could not be made: KeyError('seconds')") == 2
    assert table().startswith('3 of 3 runs are there.\n')


def test_models_seeds_and_places_may_change(desk, small_corpus):
    assert call(desk, small_corpus, '--only_folds', '1,2', models='cnn', seeds='0') == 0
    assert table().count('Folds 1, 2 of 3') == 1
    assert call(desk, small_corpus, '--device', 'cpu', '--threads', '1', models='cnn,svm', seeds='0,1') == 0
    assert set(names(desk)) == all_names('cnn,svm') and table().startswith('12 of 12 runs are there.\n')
    assert call(desk, small_corpus, '--table', models='cnn', seeds='1') == 0
    assert calls(desk) == [] and table().startswith('3 of 3 runs are there.\n') and 'svm' not in table().split('## Made by')[0]


def test_what_a_reader_must_know_is_said(desk, small_corpus):
    call(desk, small_corpus, models='searched,cnn', seeds='0')
    path = desk / 'runs/augment/cv/x/searched-f1-s0/results.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'search_heard_test_speakers': ['spk1']}))
    path = desk / 'runs/augment/cv/x/cnn-f2-s0/predictions.csv'
    path.write_text('\n'.join(path.read_text().splitlines()[:-1]) + '\n')
    assert call(desk, small_corpus, '--table', models='searched,cnn', seeds='0') == 0
    assert 'WARNING: the search heard test speakers in searched-f1-s0 (spk1)' in table()
    assert 'WARNING: in fold 2 not all runs were tested on the same utterances' in table()


def test_a_finished_run_that_does_not_say_how_long_it_took_stops_nothing(desk, small_corpus, capsys):
    call(desk, small_corpus, models='cnn', seeds='0')
    for fold in (1, 2):
        path = desk / f'runs/augment/cv/x/cnn-f{fold}-s0/results.json'
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != 'seconds'}))
    assert call(desk, small_corpus, models='cnn', seeds='0,1') == 0
    assert table().startswith('6 of 6 runs are there.\n') and 'could not be made' not in capsys.readouterr().out


def test_the_help_of_models_names_those_that_there_are():
    said = cross_validate.Settings.__dataclass_fields__['models'].metadata['help']
    sized = re.search(r'svm, ([a-z_ ]+), and these six with _matched', said)[1].split()
    assert {'searched', 'random', 'svm', *sized, *(f'{name}_matched' for name in sized)} == set(cv_plan.MODELS)
    assert len(sized) == 6 and 'searched, random (' in said


def test_time_left_is_measured_or_said_to_be_unknown(desk, monkeypatch):
    experiment, jobs = cv_plan.Experiment('x'), cv_plan.jobs_of(['searched', 'cnn'], [1, 2, 3], [0])
    monkeypatch.setattr(cv_plan.Experiment, 'seconds', lambda self, job: {'search': 600, 'cnn': 3000}[job.model])

    def left(done, n_parallel):
        monkeypatch.setattr(cv_plan.Experiment, 'done', lambda self, job: job in done)
        return cv_runner.Runner(experiment, jobs, None, n_parallel, None).time_left()
    assert left([], 1) == 'no estimate yet for 2 models and the search'
    assert left(jobs[:1], 1) == 'about 20 min left + no estimate yet for 2 models'
    done = [jobs[0], jobs[2]]  # the search and cnn of fold 1
    assert left(done, 1) == 'about 2 h 00 min left + no estimate yet for 1 model'
    assert left(done, 2) == 'about 60 min left + no estimate yet for 1 model'
    assert left(done, 8) == 'about 50 min left + no estimate yet for 1 model'  # no run is shorter for company
    monkeypatch.setattr(cv_plan.Experiment, 'seconds', lambda self, job: 60)
    assert left(jobs, 1) == 'all have ended'


def test_with_the_real_programs(small_corpus, tmp_path, monkeypatch):
    """A fold of tiny networks; what is in the table is what scikit-learn finds in the runs' predictions."""
    monkeypatch.chdir(tmp_path)
    small = ('--device cpu --threads 1 --duration .8 --n_mels 16 --hop_ms 32 --time_pool 1 --init_channels 2 --layers 3 '
             '--rnn_channels 4 --search.epochs 2 --search.batch_size 10 --n_nodes 1 --rnn_nodes 1 '
             '--augment.epochs 2 --augment.batch_size 10 --only_folds 1 --jobs 2').split()
    models = ['searched', 'random', 'lstm_matched', 'svm']
    argv = flags(small_corpus, *small, models=','.join(models), seeds='4')
    argv = [sys.executable, str(ROOT / 'scripts/cross_validate.py'), *argv]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0 and 'runs/cv/x/table.md: 4 of 4 runs are there.' in done.stdout, done.stdout + done.stderr
    assert table().startswith('4 of 4 runs are there.\n') and 'WARNING' not in table() and 'Fold 1 of 3' in table()
    found = {model: json.loads((tmp_path / f'runs/augment/cv/x/{model}-f1-s4/results.json').read_text()) for model in models}
    scored = {row['model']: row for row in rows('table.csv')}
    for model in models:
        pooled = [row for row in rows('predictions.csv') if row['model'] == model]
        y, p = ([row[key] for row in pooled] for key in ('label', 'predicted'))
        assert len(pooled) == 16 and float(scored[model]['ua']) == pytest.approx(balanced_accuracy_score(y, p))
        assert found[model]['search_heard_test_speakers'] == [] and found[model]['seed'] == 4
        assert float(scored[model]['params']) == found[model]['n_params']
    assert float(scored['searched']['search_minutes']) > 0
    assert found['random']['genotype'] == gt.to_str(gt.draw(np.random.default_rng([4, 1]), 1, 1))
    assert abs(found['lstm_matched']['n_params'] / found['searched']['n_params'] - 1) < .1
