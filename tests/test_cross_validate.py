"""scripts/cross_validate.py: which runs are made with which flags, what is refused, and a small experiment in earnest."""
import collections
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from desk import all_names, call, calls, finished, flags, jobs, names, rows, table
from desk import desk as desk
from sklearn.metrics import balanced_accuracy_score

import config as cf
import genotypes as gt

import experiment as ex  # isort: skip  (scripts/, which desk made importable)
import figures  # isort: skip
import latency  # isort: skip
import options  # isort: skip
import table as tables  # isort: skip


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
    tables.main(['runs/cv/x', '--models', 'cnn', '--seeds', '1', '--to', 'y'])
    part = (desk / 'y' / 'table.md').read_text()
    assert '3 of 3 runs are finished.' in part and 'svm' not in part.split('## Made by')[0] and finished(12)


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
    more = ['--name', 'y', '--models', 'searched', '--genotypes_of', 'runs/cv/x', '--augment.epochs', '1']
    done = subprocess.run([*argv, *more], capture_output=True, text=True)
    assert done.returncode == 0 and not (tmp_path / 'runs/search/cv/y').exists(), done.stdout + done.stderr
    retrained = json.loads((tmp_path / 'runs/augment/cv/y/searched-f1-s4/results.json').read_text())
    for name in ('genotype', 'n_params', 'search_heard_test_speakers'):
        assert retrained[name] == found['searched'][name]
    assert 'not known' not in (tmp_path / 'runs/augment/cv/y/searched-f1-s4/augment.log').read_text()
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
