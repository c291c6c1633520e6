"""scripts/recipe.py: resumption, dev speakers only, its report against a sum by hand, mistakes."""
import contextlib
import csv
import errno
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FEATURES
from scipy.stats import ttest_1samp

import augment
import datasets
import genotypes as gt
from datasets.scoring import Diverged
from scripts import recipe, recipe_report
from utils import UserError

ARGS = ['--name', 'r', '--dataset', 'manifest', '--folds', '3', *FEATURES, '--model', 'rnn', '--params', '300', '--epochs', '2',
        '--workers', '1', '--threads', '1', '--seeds', '2', '--only_folds', '1,3']
VARIANTS = ['--variant', 'fast', 'lr=0.1,speed=0.1', '--variant', 'ema', 'ema=0.5,n_mels=9']


@pytest.fixture(scope='module')
def whole(small_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp('recipe')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe.main([*ARGS, *VARIANTS, '--data_path', str(small_corpus)])
    return folder


def rows(folder):
    with open(folder / 'runs/recipe/r/trainings.csv', newline='') as f:
        return [{name: value for name, value in row.items() if 'minutes' not in name} for row in csv.DictReader(f)]


def test_a_row_is_a_training_of_augment_scored_on_dev(small_corpus, whole, here):
    found = rows(whole)
    assert [(row['variant'], row['seed'], row['fold']) for row in found] == [
        (name, seed, fold) for seed in '01' for fold in '13' for name in ('base', 'fast', 'ema')]
    row = found[-1]
    args = ARGS[2:ARGS.index('--seeds')]
    augment.main(['--name', 'a', '--seed', '1', '--fold', '3', '--data_path', str(small_corpus), *args, '--ema', '0.5',
                  '--n_mels', '9'])
    last = json.loads((here / 'runs/augment/a/metrics.jsonl').read_text().splitlines()[-1])
    results = json.loads((here / 'runs/augment/a/results.json').read_text())
    assert float(row['ua']) == pytest.approx(last['dev']['ua'], abs=1e-6)
    assert float(row['loss']) == pytest.approx(last['dev']['loss'], abs=1e-5)  # classes are balanced here
    assert row['dev_speakers'].split() == results['dev_speakers']
    augment.main(['--name', 'b', '--seed', '1', '--fold', '3', '--data_path', str(small_corpus), *args, '--lr', '.1', '--speed',
                  '.1'])
    last = json.loads((here / 'runs/augment/b/metrics.jsonl').read_text().splitlines()[-1])
    assert float(found[-2]['loss']) == pytest.approx(last['dev']['loss'], abs=1e-5)
    assert len({row['loss'] for row in found}) > 6


def test_a_variant_with_noise_gets_the_data_that_noise_needs(small_corpus, here):
    argv = [*ARGS[:ARGS.index('--seeds')], '--normalise', 'speaker', '--data_path', str(small_corpus)]
    recipe.main([*argv, *'--seeds 1 --only_folds 1 --variant loud noise=1,snr_low=0,snr_high=5'.split()])
    augment.main(['--name', 'a', *argv[2:], *'--fold 1 --noise 1 --snr_low 0 --snr_high 5'.split()])
    last = json.loads((here / 'runs/augment/a/metrics.jsonl').read_text().splitlines()[-1])
    assert [row['variant'] for row in rows(here)] == ['base', 'loud']
    assert float(rows(here)[1]['loss']) == pytest.approx(last['dev']['loss'], abs=1e-5)


def test_resumed_equals_uninterrupted_and_test_speakers_are_not_read(small_corpus, whole, here, monkeypatch, capsys):
    train, load, calls = recipe.train, datasets.load, []

    def killed(*args):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(args)
        return train(*args)

    def loaded(config, splits, *more, **kwargs):
        assert 'test' not in splits and not config.train_on_dev
        return load(config, splits, *more, **kwargs)
    monkeypatch.setattr(recipe, 'train', killed)
    monkeypatch.setattr(datasets, 'load', loaded)
    argv = [*ARGS, *VARIANTS, '--data_path', str(small_corpus)]
    with pytest.raises(SystemExit) as ended:
        recipe.main(argv)
    assert ended.value.code == 130 and rows(here) == rows(whole)[:4]
    recipe.main([*argv, '--dry_run'])
    assert '4 of 12 trainings finished' in capsys.readouterr().out
    monkeypatch.setattr(recipe, 'train', train)
    recipe.main(argv)
    assert rows(here) == rows(whole)
    for changed, message in ((['--epochs', '3'], 'epochs is 3, but'), (['--folds', '4'], 'folds is 4')):
        with pytest.raises(UserError, match=message):
            recipe.main([*argv, *changed])
    argv[argv.index('ema=0.5,n_mels=9')] = 'ema=0.6,n_mels=9'
    with pytest.raises(UserError, match='--variant ema: is {"ema": 0.6, "n_mels": 9}, but .* with {"ema": 0.5, "n_mels": 9}'):
        recipe.main(argv)


@pytest.mark.parametrize('what, flag', [('network', '--genotype'), ('weights', '--init')])
def test_files_that_were_written_anew_are_other_settings(what, flag, tmp_path):
    recipe.trainings.check_settings(tmp_path, {'lr': .1, what: 'a'}, True)
    recipe.trainings.check_settings(tmp_path, {'lr': .1, what: 'a'}, True)
    with pytest.raises(UserError, match=f'^{flag} is not the file that {tmp_path} began with: take another --name$'):
        recipe.trainings.check_settings(tmp_path, {'lr': .1, what: 'b'}, True)
    (tmp_path / 'settings.yaml').write_text('lr: 0.1\n')  # an earlier version's
    recipe.trainings.check_settings(tmp_path, {'lr': .1, what: 'b'}, True)


def test_a_genotype_is_on_record(small_corpus, here):
    argv = [word for word in ARGS if word not in ('--model', 'rnn', '--params', '300')]
    genotype = gt.from_str("Genotype(normal=[[('skip_connect', 0), ('max_pool_3x3', 1)]], normal_concat=[2], reduce=[[("
                           "'skip_connect', 0), ('max_pool_3x3', 1)]], reduce_concat=[2], rnn=[[('gru_1', 0), ('gru_1', 1)]], "
                           "rnn_concat=[2])")
    gt.save('g.json', genotype, {})
    argv += ['--init_channels', '2', '--genotype', 'g.json', '--data_path', str(small_corpus)]
    recipe.main([*argv, '--seeds', '1', '--only_folds', '1'])
    gt.save('g.json', genotype._replace(rnn=[[('gru_2', 0), ('gru_1', 1)]]), {})
    with pytest.raises(UserError, match='^--genotype is not the file that runs/recipe/r began with'):
        recipe.main([*argv, '--dry_run'])


def test_variants_begin_with_the_weights_of_a_network_that_has_not_heard_dev(small_corpus, here, capsys):
    argv = [*ARGS[2:ARGS.index('--seeds')], '--data_path', str(small_corpus)]
    augment.main(['--name', 'base', '--fold', '1', *argv])
    folds = datasets.select(recipe.configure(['--name', 'r', *argv])[1])[1]
    number = next(i for i, fold in enumerate(folds, 1) if fold.dev == folds[0].test)
    for other in {1, 2, 3} - {number}:
        with pytest.raises(UserError, match=f'--init runs/augment/base: .* dev speakers of fold {other}, '):
            recipe.main(['--name', 'r', *argv, '--init', 'runs/augment/base', '--only_folds', f'{number},{other}'])
    recipe.main(['--name', 'r', *argv, '--init', 'runs/augment/base', '--only_folds', str(number), '--seeds', '1'])
    augment.main(['--name', 'a', *argv, '--init', 'runs/augment/base', '--fold', str(number)])
    last = json.loads((here / 'runs/augment/a/metrics.jsonl').read_text().splitlines()[-1])
    assert float(rows(here)[0]['loss']) == pytest.approx(last['dev']['loss'], abs=1e-5)
    best = torch.load('runs/augment/base/best.pt')
    torch.save({**best, 'heard': [], 'heard_all': False}, 'runs/augment/base/best.pt')
    capsys.readouterr()
    recipe.main(['--name', 's', *argv, '--init', 'runs/augment/base', '--only_folds', '1', '--dry_run'])
    assert 'it is not known whether the network of --init was trained on dev speakers of fold 1' in capsys.readouterr().err


def test_a_variant_does_not_change_what_the_genotype_decides(here):
    gene = [[('skip_connect', 0), ('max_pool_3x3', 1)]]
    genotype = gt.Genotype(gene, [2], gene, [2], [[('gru_1', 0), ('skip_connect', 1)]], [2], {'C': 8, 'layers': 3})
    gt.save(here / 'g.json', genotype, {})
    argv = ['--name', 'r', '--genotype', 'g.json', '--variant', 'a']
    assert recipe.configure([*argv, 'rnn_channels=8'])[3]['a'] == {'rnn_channels': 8}
    for value in ('layers=4', 'lr=0.1,init_channels=4'):
        with pytest.raises(UserError, match='--variant a: .* has no effect with this --genotype, which decides it itself'):
            recipe.configure([*argv, value])


def test_the_fold_that_found_a_genotype_does_not_matter(small_corpus, here):
    corpus = datasets.corpus_digest(datasets.scan('manifest', str(small_corpus)))
    gene = [[('skip_connect', 0), ('max_pool_3x3', 1)]]
    genotype = gt.Genotype(gene, [2], gene, [2], [[('gru_1', 0), ('skip_connect', 1)]], [2])
    gt.save(here / 'g.json', genotype, {'search': {'dataset': 'manifest', 'corpus': corpus, 'fold': 2, 'folds': 'default'}})
    fewer = small_corpus.with_name('fewer-rows.csv')
    fewer.write_text(''.join(small_corpus.read_text().splitlines(keepends=True)[:-1]))
    argv = ['--name', 'r', '--dataset', 'manifest', '--data_path', str(fewer), '--genotype', 'g.json']
    _, config, *_ = recipe.configure(argv)
    assert config.fold == 1 and config.data_path == str(fewer)


def test_a_folder_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(recipe.trainings.fcntl, 'flock', no_locks)
    with recipe.trainings.locked(tmp_path / 'x'):
        assert (tmp_path / 'x').is_dir()


def test_report_is_the_sum_by_hand():
    losses = {'base': [[1., 2.], [1.2, 1.8]], 'new': [[.9, 1.5], [1., 1.6]], 'half': [[.5, np.nan], [np.nan, np.nan]]}
    n = [10, 30]
    found = [dict(variant=name, seed=s, fold=f, loss=losses[name][s][f - 1], ua=.5, n=n[f - 1], core_minutes=1.)
             for name in losses for s in (0, 1) for f in (1, 2) if not np.isnan(losses[name][s][f - 1])]
    text = recipe_report.report(found, {'base': {}, 'new': {'lr': .1}, 'half': {}}, 2, [1, 2])
    lines = text.splitlines()
    of_new = [(10 * .9 + 30 * 1.5) / 40, (10 * 1. + 30 * 1.6) / 40]
    of_base = [(10 * 1. + 30 * 2.) / 40, (10 * 1.2 + 30 * 1.8) / 40]
    difference = np.mean(of_new) - np.mean(of_base)
    spread = np.std(of_new, ddof=1)
    assert lines[2].startswith(f'| new | lr 0.1 | 2 | {np.mean(of_new):.4f} | {spread:.4f} | {difference:+.4f} (')
    paired = np.array([(.9 - 1.) * 10, (1.5 - 2.) * 30, (1. - 1.2) * 10, (1.6 - 1.8) * 30]) / 20
    low, high = ttest_1samp(paired, 0).confidence_interval()
    assert lines[2].split('|')[6].strip() == f'{paired.mean():+.4f} ({low:+.4f} to {high:+.4f})'
    assert lines[2].endswith('| 50.0 | 4.0 |') and lines[3].startswith(f'| base |  | 2 | {np.mean(of_base):.4f}')
    assert 'half' not in text


@pytest.mark.parametrize('argv, message', [
    (['--variant', 'a', 'seed=3'], '--variant a: seed is no setting that a variant may change'),
    (['--variant', 'a', 'frame_shape=1x8'], '--variant a: frame_shape is no setting that a variant may change'),
    (['--variant', 'a', 'speed=fast'], "--variant a: --speed: 'fast' is not a number"),
    (['--variant', 'a', 'speed=2'], '--variant a: --speed 2.0: must be from'),
    (['--variant', 'base', 'lr=1'], '--variant base: must be a new name'),
    (['--variant', 'a', 'snr_low=1'], '--variant a: snr_low has no effect with --noise 0'),
    (['--variant', 'a'], 'expected 2 arguments'),
    (['--variants', 'absent.yaml'], '--variants absent.yaml: No such file or directory'),
    (['--train_on_dev'], '--train_on_dev: leave it out')])
def test_mistakes(argv, message):
    with pytest.raises(UserError, match=message):
        recipe.configure([*ARGS, *argv])


def test_variants_of_a_file(here):
    (here / 'v.yaml').write_text('still: {n_masks: 0}\nvoices: {speed: 0.1, vtlp: 0.1}\n')
    variants = recipe.configure([*ARGS, '--variants', 'v.yaml', '--variant', 'slow', 'lr=0.001', '--variant', 'pitch',
                                  'prosody=true,deltas=false'])[3]
    assert variants == {'base': {}, 'still': {'n_masks': 0}, 'voices': {'speed': .1, 'vtlp': .1}, 'slow': {'lr': .001},
                        'pitch': {'prosody': True, 'deltas': False, 'prosody_version': 2}}


def test_a_variant_with_prosody_of_an_earlier_version_goes_on_with_that(here):
    folder = here / 'runs/recipe/r'
    folder.mkdir(parents=True)
    row = dict.fromkeys(recipe.COLUMNS, '1') | {'variant': 'pitch', 'settings': '{"prosody": true}'}
    with open(folder / 'trainings.csv', 'w', newline='') as f:
        writer = csv.DictWriter(f, [*recipe.COLUMNS])
        writer.writeheader()
        writer.writerow(row)
    for given, fits in (('prosody=true,prosody_version=1', True), ('prosody=true', False)):
        variants = recipe.configure([*ARGS, '--variant', 'pitch', given])[3]
        with contextlib.nullcontext() if fits else pytest.raises(UserError, match='--variant pitch: is .*"prosody_version": 2'):
            assert len(recipe.read(folder, variants)) == 1


def test_damaged_settings_of_a_variant_are_one_line(here):
    row = dict.fromkeys(recipe.COLUMNS, '1') | {'settings': '{"lr": '}
    (here / 'trainings.csv').write_text(f'{",".join(row)}\n{",".join(row.values())}\n')
    with pytest.raises(UserError, match='trainings.csv is damaged'):
        recipe.read(here, {})


def test_a_training_that_diverges_is_counted_and_the_rest_goes_on(small_corpus, whole, here, monkeypatch, capsys):
    train, calls = recipe.train, []

    def diverging(config, *args):
        calls.append(config)
        if config.lr == .1:
            raise Diverged('training diverged: the loss is not finite')
        return train(config, *args)
    monkeypatch.setattr(recipe, 'train', diverging)
    argv = [*ARGS, *VARIANTS, '--data_path', str(small_corpus)]
    recipe.main(argv)
    said = capsys.readouterr().out
    assert 'NOTE: fast, seed 0, fold 1: training diverged: the loss is not finite' in said
    assert 'DIVERGED: 4 trainings (fast seed 0 fold 1, fast seed 0 fold 3, fast seed 1 fold 1, fast seed 1 fold 3)' in said
    assert '| ema |' in said and '| base |' in said and '| fast |' not in said
    assert [row for row in rows(here) if row['variant'] != 'fast'] == [row for row in rows(whole) if row['variant'] != 'fast']
    assert {row['loss'] for row in rows(here) if row['variant'] == 'fast'} == {'nan'}
    calls.clear()
    recipe.main(argv)
    assert not calls  # all seeds are fixed, so it would diverge again


def test_minutes_are_of_the_wall_and_of_the_cores(small_corpus, here, monkeypatch):
    walls, cores = itertools.cycle([0., 60.]), itertools.cycle([0., 90.])
    monkeypatch.setattr(recipe, 'time', SimpleNamespace(monotonic=lambda: next(walls), process_time=lambda: next(cores)))

    def diverging(*args):
        raise Diverged('training diverged')
    monkeypatch.setattr(recipe, 'train', diverging)
    recipe.main([*ARGS, '--data_path', str(small_corpus)])
    with open('runs/recipe/r/trainings.csv', newline='') as f:
        assert {(row['minutes'], row['core_minutes']) for row in csv.DictReader(f)} == {('1.0', '1.5')}
