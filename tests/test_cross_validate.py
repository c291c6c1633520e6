"""scripts/cross_validate.py: which runs are made with which flags, what is refused, and a small experiment in earnest."""
import collections
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from desk import all_names, call, calls, cross_validate, flags, jobs, names, rows, table
from desk import desk as desk
from sklearn.metrics import balanced_accuracy_score

import config as cf
import genotypes as gt

import experiment as ex  # isort: skip  (scripts/, which desk made importable)
import figures  # isort: skip
import latency  # isort: skip
import options  # isort: skip
import table as tables  # isort: skip


def record(program, made):
    """config.yaml as the program leaves it. made: its flags."""
    section = program.removesuffix('.py')
    config = cf.build(section, cf.given(section, [word for pair in made.items() for word in pair]))
    kept = {name: value for name, value in asdict(config).items() if name not in {*ex.MACHINE, 'config', 'resume', 'overwrite'}}
    Path('runs', section, config.name, 'config.yaml').write_text(yaml.safe_dump(kept))


def finished(n):
    return f'{n} of {n} runs are finished.' in table()


def test_every_run_is_made_once_with_the_right_flags(desk, small_corpus):
    more = ['--search.epochs', '5', '--augment.lr', '0.5', '--n_mels', '16', '--no-amp']
    assert call(desk, small_corpus, *more, '--device', 'cpu') == 0
    made = calls(desk)
    assert collections.Counter(found['--name'] for _, found in made) == all_names()
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
    assert finished(24) and {row['state'] for row in rows()} == {'finished'}
    assert call(desk, small_corpus, *more) == 0
    assert calls(desk) == []


def test_random_search_gets_the_minutes_of_the_search_and_transferred_its_genotype(desk, small_corpus, tmp_path):
    cell, text = [[('gru_1', 0), ('gru_1', 1)]], json.loads((desk / 'genotypes.json').read_text())[0]
    given = gt.from_str(text)._replace(rnn=cell)
    gt.save(tmp_path / 'other.json', given, {'network': {'layers': 9}, 'search': {'dataset': 'nemo'}})
    more = ['--only_folds', '1,2', '--transferred', str(tmp_path / 'other.json')]
    models = 'random_search,searched,transferred'
    assert call(desk, small_corpus, *more, models=models, seeds='0') == 0
    made = {found['--name']: (program, found) for program, found in calls(desk)}
    assert len(made) == 10 and list(made)[:4] == [f'cv/x/{name}' for name in (
        'f1-s0', 'draws-f1-s0', 'searched-f1-s0', 'random_search-f1-s0')]
    program, found = made['cv/x/draws-f1-s0']
    assert program == 'search.py' and (found['--relaxation'], found['--tournament_minutes']) == ('none', '1.50')
    words = [word for pair in found.items() for word in pair]
    assert cf.build('search', cf.given('search', words)).tournament_minutes == 1.5
    assert made['cv/x/random_search-f2-s0'][1]['--genotype'] == 'runs/search/cv/x/draws-f2-s0/genotype.json'
    assert made['cv/x/transferred-f2-s0'][1]['--genotype'] == 'runs/cv/x/transferred-s0.json'
    assert gt.load('runs/cv/x/transferred-s0.json') == (given, {'search': {'dataset': 'nemo'}})
    record(*made['cv/x/draws-f1-s0'])
    assert finished(6) and {row['model']: row['search_minutes'] for row in rows()} == {
        'searched': '1.5', 'random_search': '1.5', 'transferred': ''}
    assert call(desk, small_corpus, *more, models=models, seeds='0') == 0 and calls(desk) == []
    gt.save(tmp_path / 'other.json', given._replace(rnn=[cell[0][::-1]]), {})
    with pytest.raises(cf.UserError, match='began with another genotype'):
        call(desk, small_corpus, *more, models=models, seeds='0')
    for models in ('transferred', 'searched,random_search'):
        with pytest.raises(cf.UserError, match='--transferred names'):
            call(desk, small_corpus, *(more if models != 'transferred' else more[:2]), models=models, seeds='0')
    with pytest.raises(cf.UserError, match='takes its minutes from the searched network'):
        call(desk, small_corpus, models='random_search', seeds='0')


def test_every_seed_has_transferred_genotypes_of_its_own_and_a_baseline_their_size(desk, small_corpus, tmp_path):
    genotype = gt.from_str(json.loads((desk / 'genotypes.json').read_text())[0])
    for name, op in (('s0', 'gru_1'), ('s1', 'gru_2'), ('r0', 'rnn_1'), ('r1', 'rnn_2')):
        gt.save(tmp_path / f'{name}.json', genotype._replace(rnn=[[(op, 0), (op, 1)]]), {})
    for seed in '01':  # folders of search.py, which know their minutes
        (tmp_path / f's{seed}').mkdir()
        (tmp_path / f's{seed}.json').rename(tmp_path / f's{seed}' / 'genotype.json')
        (tmp_path / f's{seed}' / 'metrics.jsonl').write_text('{"seconds": 90}\n')
    more = ['--only_folds', '1', '--transferred', str(tmp_path / 's{seed}'), '--random_transferred',
            str(tmp_path / 'r{seed}.json'), '--jobs', '2']
    models = 'cnn_gru_matched,random_transferred,transferred'
    assert call(desk, small_corpus, *more, models=models, seeds='0,1') == 0
    made = {found['--name'].removeprefix('cv/x/'): found for _, found in calls(desk)}
    assert len(made) == 6 and {(row['model'], row['seed']) for row in rows()} == {
        (model, seed) for model in models.split(',') for seed in '01'}
    for model, there, known in (('transferred', 's{}', {'search_minutes': 1.5}), ('random_transferred', 'r{}.json', {})):
        for seed in '01':
            path = made[f'{model}-f1-s{seed}']['--genotype']
            assert gt.load(path) == (gt.load(str(tmp_path / there.format(seed)))[0], known)
    assert {(row['model'], row['search_minutes']) for row in rows()} == {
        ('transferred', '1.5'), ('random_transferred', ''), ('cnn_gru_matched', '')}
    sizes = {row['seed']: row['n_params'] for row in rows() if row['model'] == 'transferred'}
    assert {seed: made[f'cnn_gru_matched-f1-s{seed}']['--params'] for seed in '01'} == sizes
    with pytest.raises(cf.UserError, match='--random_transferred names the genotype'):
        call(desk, small_corpus, *more, models='transferred', seeds='0')
    with pytest.raises(cf.UserError, match='takes its size from the searched network, so name searched or transferred too'):
        call(desk, small_corpus, models='cnn_gru_matched', seeds='0')


def test_one_part_is_searched_and_the_other_fixed(desk, small_corpus):
    assert call(desk, small_corpus, '--only_folds', '1', '--jobs', '2', models='searched_seqnn,searched_cnn', seeds='0') == 0
    made = {found['--name'].removeprefix('cv/x/'): found for _, found in calls(desk)}
    assert len(made) == 4
    for part, flag, op in (('cnn', '--rnn_ops', 'lstm_att_1'), ('seqnn', '--cnn_ops', 'sep_conv_3x3')):
        found, names = made[f'search_{part}-f1-s0'], list(made)
        config = cf.build('search', cf.given('search', [word for pair in found.items() for word in pair]))
        assert found[flag] == op and getattr(config, flag[2:]) == op and not {'--rnn_ops', '--cnn_ops'} - {flag} & set(found)
        assert made[f'searched_{part}-f1-s0']['--genotype'] == f'runs/search/cv/x/search_{part}-f1-s0/genotype.json'
        assert names.index(f'search_{part}-f1-s0') < names.index(f'searched_{part}-f1-s0')
    record('search.py', made['search_cnn-f1-s0'])
    assert finished(2) and {row['search_minutes'] for row in rows()} == {'1.5'}
    assert call(desk, small_corpus, '--only_folds', '1', models='searched_cnn', seeds='0') == 0 and not calls(desk)


def test_minutes_of_a_search_include_the_choice_among_candidates(tmp_path):
    job = jobs.Job('x', 'search', 1, 0, cwd=str(tmp_path))
    folder = tmp_path / job.folder
    folder.mkdir(parents=True)
    (folder / 'metrics.jsonl').write_text('{"seconds": 60}\n{"seconds": 30}\n')
    assert job.minutes_of_search() == 1.5
    (folder / 'candidates.json').write_text(json.dumps({'scores': [{'seconds': 6}, {'seconds': 6}], 'finalists': [
        {'trainings': [{'seconds': 18}, {'seconds': 30}]}, {'trainings': []}]}))
    assert job.minutes_of_search() == 2.5
    tree = json.loads((folder / 'candidates.json').read_text())
    (folder / 'candidates.json').write_text(json.dumps({**tree, 'drawing': {'seconds': 30.}}))
    assert job.minutes_of_search() == 3.


def test_the_programs_accept_the_command_lines(desk, small_corpus):
    """A setting of the experiment that has no effect on a model is no mistake, for nobody typed it for that model."""
    more = ['--augment.momentum', '.5', '--augment.optimizer', 'adamw', '--n_masks', '0', '--max_freq', '.1', '--device', 'cpu']
    assert call(desk, small_corpus, *more, models='searched,random,cnn_gru_matched,svm', seeds='0') == 0
    for program, found in calls(desk):
        section = os.path.splitext(program)[0]
        words = [word for pair in found.items() for word in pair]
        config = cf.build(section, cf.given(section, words))
        assert config.folds == '3' and config.name == found['--name']
        if section == 'augment':
            assert 'momentum' in config.unused() and config.max_freq == .1


def test_a_flag_overrides_the_file_and_one_program_overrides_all(tmp_path):
    (tmp_path / 'x.yaml').write_text('layers: 4\nn_mels: 20\nsearch:\n  layers: 5\n  epochs: 6\naugment:\n  epochs: 7\n')

    def given(*more):
        return options.parse(['--name', 'x', '--config', str(tmp_path / 'x.yaml'), *more])
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


@pytest.mark.parametrize('layout', ['today', 'first'])
def test_finished_runs_with_other_settings_are_refused(layout, desk, small_corpus):
    def again(epochs, *more):
        Path('runs/cv/x/config.yaml').unlink(missing_ok=True)  # what each run recorded counts
        more = ['--augment.epochs', epochs, '--augment.aux_weight', '.2', *more]
        return call(desk, small_corpus, *more, models='cnn', seeds='0')
    assert again('5') == 0
    folder = Path('runs/augment/cv/x/cnn-f2-s0')
    made = cf.AugmentConfig(name='cv/x/cnn-f2-s0', dataset='manifest', folds='3', fold=2, epochs=5, model='cnn', aux_weight=.2)
    kept = {name: value for name, value in asdict(made).items() if name not in {*ex.MACHINE, 'resume', 'overwrite', 'config'}}
    if layout == 'today':  # a format, and what has no effect apart
        unused = made.unused()
        kept = {'format': 2, **{k: v for k, v in kept.items() if k not in unused}, 'not_used': {k: kept[k] for k in unused}}
    else:  # a run that is older than three settings
        del kept['trim_db'], kept['normalise'], kept['n_masks']
    (folder / 'config.yaml').write_text(yaml.safe_dump(kept))
    calls(desk)
    with pytest.raises(cf.UserError, match='cnn-f2-s0 was made with epochs 5, not 6: delete it'):
        again('6')
    with pytest.raises(cf.UserError, match='cnn-f2-s0 was made with trim_db 0.0, not 30.0: delete it'):
        again('5', '--trim_db', '30')
    with pytest.raises(cf.UserError, match='cnn-f2-s0 was made with n_masks (1|None), not 2: delete it'):
        again('5', '--n_masks', '2')
    assert again('5') == 0 and not (desk / 'calls.txt').exists()


def test_another_labelling_of_the_same_speakers_is_refused(desk, small_corpus):
    assert call(desk, small_corpus, models='cnn', seeds='0') == 0
    text = small_corpus.read_text().replace('angry,', 'other,').replace('sad,', 'angry,').replace('other,', 'sad,')
    swapped = small_corpus.with_name('swapped.csv')
    swapped.write_text(text)
    with pytest.raises(cf.UserError, match='labels or speakers are not those'):
        call(desk, swapped, models='cnn', seeds='0')


@pytest.mark.parametrize('more, said', [
    (['--augment.epochs', '9'], 'epochs of augment.py is 9, but runs/cv/x began with its default'),
    (['--n_mels', '9'], 'n_mels of search.py is 9'), (['--folds', '4'], 'folds of search.py is 4, but runs/cv/x began with 3'),
    (['--epochs', '9'], '--epochs differs between programs: say --search.epochs or --augment.epochs'),
    (['--order', '2'], '--order is a setting of search.py alone: say --search.order'),
    (['--no-fast'], '--no-fast is a setting of search.py alone: say --search.fast'),
    (['--search.epoch', '9'], 'did you mean --search.epochs'), (['--seed', '1'], '--seed is chosen for each run by'),
    (['--genotype', 'random'], 'see --models'), (['--nmels', '9'], 'did you mean --n_mels'),
    (['--augment.lr', '-1'], '--lr -1.0'), (['--search.n_mels', '9'], 'n_mels is 9 for search, 32 for augment'),
    (['--search.n_nodes', '4', '--augment.n_nodes', '3'], 'n_nodes is 4 for search, 3 for augment: all models must use'),
    (['--models', 'cnn,svm', '--augment.train_on_dev'], 'train_on_dev is True for augment, False for svm: all models'),
    (['--models', 'searched,ssl_mlp_matched'], '--model ssl_mlp reads frames of a speech encoder'),
    (['--models', 'ssl_linear_matched'], '--models ssl_linear_matched: choose from'),
    (['--models', 'serched'], '--models serched'), (['--models', 'cnn_matched'], 'name searched or transferred too'),
    (['--models', 'cnn,cnn'], 'named twice'), (['--models', ','], '--models : choose from searched'),
    (['--seeds', '0,a'], '--seeds 0,a'), (['--only_folds', '4'], 'from 1 to 3'), (['--clean_folds', '0'], '--clean_folds 0'),
    (['--shard', '3/2'], '--shard 3/2'), (['--jobs', '0'], '--jobs 0'), (['--jobs', 'two'], 'jobs'),
    (['--name', 'a/b'], '--name a/b'), (['--name', ''], '--name is required'),
    (['--config', 'seed.yaml'], 'seed is chosen for each run'), (['--data_path', 'other.csv'], 'fold 1 now tests'),
    (['--device', 'cuda:1'], 'every job gets a GPU of its own. Say --device cuda'),
])
def test_a_mistake_is_one_line_and_runs_nothing(more, said, desk, small_corpus):
    (desk / 'seed.yaml').write_text('seed: 3\n')
    lines = small_corpus.read_text().splitlines()
    (desk / 'other.csv').write_text('\n'.join([lines[0]] + [f'{small_corpus.parent}/{row}'.replace('spk', 'man')
                                                            for row in lines[1:]]))
    call(desk, small_corpus, '--only_folds', '1', models='cnn', seeds='0')
    calls(desk)
    before = table()
    with pytest.raises(cf.UserError) as error:
        call(desk, small_corpus, *more, models='cnn')
    assert said in str(error.value) and '\n' not in str(error.value)
    assert calls(desk) == [] and table() == before


def test_models_seeds_and_machines_may_change(desk, small_corpus):
    assert call(desk, small_corpus, '--only_folds', '1,2', models='cnn', seeds='0') == 0
    assert '## Folds 1, 2 of 3' in table()
    assert call(desk, small_corpus, '--device', 'cpu', '--threads', '1', models='cnn,svm', seeds='0,1') == 0
    assert collections.Counter(names(desk)) == all_names('cnn,svm')
    assert finished(12) and '## All 3 folds' in table()
    tables.main(['runs/cv/x', '--models', 'cnn', '--seeds', '1'])
    assert finished(3) and 'svm' not in table().split('## Made by')[0]


def test_a_run_that_another_shard_finishes_meanwhile_is_in_the_tables(desk, small_corpus, monkeypatch):
    call(desk, small_corpus, models='cnn', seeds='0')
    product = Path(jobs.Job('x', 'cnn', 2, 0).product)
    product.rename('later.json')
    write = ex.publish

    def meanwhile(path, text):
        if path.name == 'runs.csv' and os.path.exists('later.json'):
            os.rename('later.json', product)
        write(path, text)
    monkeypatch.setattr(ex, 'publish', meanwhile)
    cross_validate.make_tables(ex.Experiment('x'))
    assert finished(3)


def test_a_table_that_cannot_be_made_stops_no_run(desk, small_corpus, monkeypatch, capsys):
    made, make = [], tables.make

    def fail_twice(*args, **kwargs):
        made.append(args)
        if len(made) < 3:
            raise KeyError('seconds')
        return make(*args, **kwargs)
    monkeypatch.setattr(tables, 'make', fail_twice)
    assert call(desk, small_corpus, models='cnn', seeds='0') == 0
    assert capsys.readouterr().out.count("the tables could not be made: KeyError('seconds')") == 2 and finished(3)


def test_a_run_without_recorded_seconds_stops_nothing(desk, small_corpus, capsys):
    call(desk, small_corpus, models='cnn', seeds='0')
    for fold in (1, 2):
        path = desk / f'runs/augment/cv/x/cnn-f{fold}-s0/results.json'
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != 'seconds'}))
    assert call(desk, small_corpus, models='cnn', seeds='0,1') == 0
    assert finished(6) and 'could not be made' not in capsys.readouterr().out


def test_a_damaged_result_names_its_file(desk, small_corpus):
    call(desk, small_corpus, models='cnn', seeds='0')
    (desk / 'runs/augment/cv/x/cnn-f1-s0/results.json').write_text('{"ua": ')
    with pytest.raises(cf.UserError, match='cnn-f1-s0/results.json: .*: delete it'):
        call(desk, small_corpus, models='cnn', seeds='0')


def test_help_answers_without_torch_and_names_all_models():
    argv = [sys.executable, '-X', 'importtime', str(ROOT / 'scripts/cross_validate.py'), '--help']
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert '| torch\n' not in done.stderr and '| librosa\n' not in done.stderr
    words = set(done.stdout.replace(',', ' ').replace(';', ' ').split())
    assert words >= {model for model in ex.MODELS if not model.endswith(jobs.MATCHED)} | {jobs.MATCHED}
    assert '--search.' not in done.stdout.split('options:')[1].split('examples:')[0]  # one flag per setting in the list


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
    assert done.returncode == 0 and 'runs/cv/x/table.md: 2 speakers cannot show' in done.stdout, done.stdout + done.stderr
    assert finished(4) and 'WARNING' not in table() and 'Fold 1 of 3' in table()
    assert (tmp_path / 'runs/cv/x/figures/confusion-searched.png').exists()
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
    again = subprocess.run(argv, capture_output=True, text=True)  # the finished runs' settings are found equal
    assert again.returncode == 0 and 'jobs have ended' not in again.stdout, again.stdout + again.stderr
    latency.main(['runs/cv/x'])
    timed = rows('latency.csv')
    assert [(row['model'], row['seed'], row['fold']) for row in timed] == [(model, '4', '1') for model in models[:3]]
    assert all(0 < float(row['latency_ms']) < 1000 for row in timed)
    assert len(figures.against_costs(*reversed(analysed(tmp_path / 'runs/cv/x'))).axes) == 3
    with pytest.raises(cf.UserError, match='searched-f1-s4 has .* parameters, but .* with these settings'):
        latency.main(['runs/cv/x', '--init_channels', '3'])
    assert rows('latency.csv') == timed


def analysed(folder):
    """(results, rows of its models)"""
    results, parts, _ = tables.analyse(folder)
    return results, parts[0][1]


def test_the_plan_keeps_the_commands_of_all_parts(desk, small_corpus):
    for shard in ('1/2', '2/2'):
        assert call(desk, small_corpus, '--shard', shard, '--clean_folds', '1', models='cnn', seeds='0') == 0
    assert call(desk, small_corpus, '--only_folds', '1', models='rnn', seeds='0') == 0
    plan = json.loads(Path('runs/cv/x/plan.json').read_text())
    commands = plan['command'].splitlines()
    assert plan['clean_folds'] == [1]  # which the last command does not say again
    assert len(commands) == 2 and '--models cnn' in commands[0] and '--models rnn' in commands[1]
    assert '--shard' not in commands[0] and '--only_folds 1' in commands[1]
    assert 'Commands:' in table() and all(f'    {line}' in table() for line in commands)


def test_two_commands_that_begin_together_both_get_into_the_plan(desk, small_corpus, monkeypatch):
    """The second one comes between the first one's look at plan.json and its writing, and waits."""
    assert call(desk, small_corpus, '--only_folds', '1', models='svm', seeds='0') == 0
    plan = ex.Experiment.plan
    here, others = threading.current_thread(), []

    def disturbed(experiment):
        found = plan(experiment)
        if not others and threading.current_thread() is here:
            other = ex.Experiment('x')
            args = ([jobs.Job('x', 'rnn', 1, 0)], found['test_speakers'], found['digest'], [], 'python b')
            others.append(threading.Thread(target=other.add_to_plan, args=args))
            others[0].start()
            others[0].join(.5)
        return found
    monkeypatch.setattr(ex.Experiment, 'plan', disturbed)
    kept = plan(ex.Experiment('x'))
    ex.Experiment('x').add_to_plan([jobs.Job('x', 'cnn', 1, 0)], kept['test_speakers'], kept['digest'], [], 'python a')
    others[0].join()
    assert [run[0] for run in plan(ex.Experiment('x'))['runs']] == ['cnn', 'rnn', 'svm']


def test_tables_are_made_again_if_a_run_was_finished_meanwhile(desk, small_corpus, monkeypatch):
    """Its shard wrote the whole tables, and ours, which are older, over them."""
    call(desk, small_corpus, models='cnn', seeds='0')
    product = Path(jobs.Job('x', 'cnn', 2, 0).product)
    product.rename('later.json')
    make = tables.make

    def meanwhile(*args, **kwargs):
        if os.path.exists('later.json'):
            os.rename('later.json', product)
        return make(*args, **kwargs)
    monkeypatch.setattr(tables, 'make', meanwhile)
    cross_validate.make_tables(ex.Experiment('x'))
    assert finished(3)


def test_whoever_reads_meanwhile_finds_predictions_of_every_finished_run(desk, small_corpus, monkeypatch):
    call(desk, small_corpus, models='cnn', seeds='0')
    product = Path(jobs.Job('x', 'cnn', 2, 0).product)
    product.rename('later.json')
    cross_validate.make_tables(ex.Experiment('x'))
    write, read = ex.publish, []

    def publish(path, text):
        write(path, text)
        if os.path.exists('later.json'):  # finished after these predictions were collected
            os.rename('later.json', product)
        read.append((tables.read(Path('runs/cv/x')).runs['state'] == 'finished').sum())
    monkeypatch.setattr(ex, 'publish', publish)
    ex.Experiment('x').collect()
    assert read == [2, 2, 2, 3]  # twice predictions.csv and runs.csv


def test_a_baseline_that_was_sized_after_another_network_is_refused(desk, small_corpus, tmp_path):
    gt.save(tmp_path / 'g.json', gt.from_str(json.loads((desk / 'genotypes.json').read_text())[0]), {})
    more = ['--only_folds', '1', '--transferred', str(tmp_path / 'g.json')]
    models = 'transferred,cnn_gru_matched'
    assert call(desk, small_corpus, *more, models=models, seeds='0') == 0
    folder = Path('runs/augment/cv/x/cnn_gru_matched-f1-s0')
    made = asdict(cf.AugmentConfig(name='x', dataset='manifest', folds='3', model='cnn_gru', params=1001))
    (folder / 'config.yaml').write_text(yaml.safe_dump({k: v for k, v in made.items() if k not in ex.MACHINE}))
    assert call(desk, small_corpus, *more, models=models, seeds='0') == 0
    searched = Path('runs/augment/cv/x/searched-f1-s0/results.json')
    assert call(desk, small_corpus, '--only_folds', '1', models='searched', seeds='0') == 0
    searched.write_text(searched.read_text().replace('"n_params": 1001', '"n_params": 1500'))
    with pytest.raises(cf.UserError, match='cnn_gru_matched-f1-s0 was sized after a network of 1001 parameters, but '
                                           'searched-f1-s0 has 1500: leave cnn_gru_matched out'):
        call(desk, small_corpus, *more, models=f'searched,{models}', seeds='0')


def test_the_device_of_a_search_is_kept_beside_its_minutes(desk, small_corpus, tmp_path):
    genotype = gt.from_str(json.loads((desk / 'genotypes.json').read_text())[0])
    gt.save(tmp_path / 'g.json', genotype, {'provenance': {'device': 'cpu, 4 threads'}})
    more = ['--only_folds', '1', '--transferred', str(tmp_path / 'g.json')]
    assert call(desk, small_corpus, *more, models='searched,transferred', seeds='0') == 0
    gt.save('runs/search/cv/x/f1-s0/genotype.json', genotype, {'provenance': {'device': 'H100'}})
    ex.Experiment('x').collect()
    assert {row['model']: row['search_device'] for row in rows()} == {'searched': 'H100', 'transferred': 'cpu, 4 threads'}


def test_parts_of_recordings_keep_their_times(desk, small_corpus):
    assert call(desk, small_corpus, '--only_folds', '1', models='cnn', seeds='0') == 0
    path = Path('runs/augment/cv/x/cnn-f1-s0/predictions.csv')
    pd.read_csv(path).assign(start=.5, end=1.25).to_csv(path, index=False)
    ex.Experiment('x').collect()
    found = pd.read_csv('runs/cv/x/predictions.csv')
    assert {*zip(found['start'], found['end'])} == {(.5, 1.25)}
