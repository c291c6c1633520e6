"""--train_on_dev: the dev speakers train, and nothing is left to pick an epoch."""
import json

import numpy as np
import pytest
import torch
import yaml
from conftest import write_corpus
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from tensorboardX import SummaryWriter

import augment
import config as cf
import datasets
import utils
from models.run import Run
from scripts import svm

SMALL = ('--dataset manifest --device cpu --duration 0.8 --n_mels 16 --hop_ms 32 --time_pool 1 --batch_size 10 --model rnn '
         '--params 300').split()


def load(corpus, **kwargs):
    config = cf.SvmConfig(name='x', dataset='manifest', data_path=str(corpus), n_mels=8)
    return datasets.load(config, ('train', 'dev', 'test'), **kwargs)


def test_the_training_set_is_of_both_and_the_test_set_as_before(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    apart, joined = load(small_corpus), load(small_corpus, train_on_dev=True)
    assert apart.fold == joined.fold and apart.digest == joined.digest and set(joined.sets) == {'train', 'test'}
    assert joined.sets['train'].utterances == apart.sets['train'].utterances + apart.sets['dev'].utterances
    assert joined.sets['test'].utterances == apart.sets['test'].utterances
    frames = np.concatenate([apart.sets[name].frames.numpy() for name in ('train', 'dev')], axis=1).astype(np.float64)
    np.testing.assert_allclose(joined.mean[:, 0], frames.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(joined.std[:, 0], frames.std(axis=1), rtol=1e-4)
    assert not torch.equal(apart.mean, joined.mean)
    assert torch.equal(torch.cat([apart.sets[name].labels for name in ('train', 'dev')]), joined.sets['train'].labels)


def test_the_last_epoch_is_tested_and_a_killed_run_goes_on(small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = [*SMALL, '--data_path', str(small_corpus), '--epochs', '3', '--train_on_dev']
    augment.main(['--name', 'whole', *argv])
    said = capsys.readouterr().out
    assert ', 0 for dev' in said and 'epoch 3, the last:' in said and 'best UA' not in said and 'dev UA' not in said
    found = json.loads((tmp_path / 'runs/augment/whole/results.json').read_text())
    assert (found['best_epoch'], found['dev_ua'], found['train_on_dev']) == (3, None, True)
    folder = tmp_path / 'runs/augment/whole'
    best, last = (torch.load(folder / name, weights_only=True) for name in ('best.pt', 'checkpoint.pt'))
    assert best['epoch'] == 3 and all(torch.equal(x, last['net'][name]) for name, x in best['weights'].items())
    history = [json.loads(line) for line in (tmp_path / 'runs/augment/whole/metrics.jsonl').read_text().splitlines()]
    assert len(history) == 3 and not any('dev' in row for row in history)

    class Killed(Exception):
        pass

    def kill(run, row, end_epoch=Run.end_epoch):
        if row['epoch'] == 3:
            raise Killed
        end_epoch(run, row)
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(Run, 'end_epoch', kill)
        augment.main(['--name', 'killed', *argv])
    for run in [*utils.open_runs]:  # the end of a process would release the run
        run.lock.close()
    augment.main(['--name', 'killed', *argv, '--resume'])
    paths = [tmp_path / 'runs/augment' / name / 'predictions.csv' for name in ('whole', 'killed')]
    assert paths[0].read_text() == paths[1].read_text()


def test_the_linear_floor_is_fitted_again_with_the_penalty_of_dev(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ['--dataset', 'manifest', '--data_path', str(small_corpus), '--n_mels', '8']
    monkeypatch.setattr(SummaryWriter, 'add_figure', lambda *args: None)
    given = {}
    monkeypatch.setattr(svm, 'report', lambda run, probabilities, config, data, facts, chosen: given.update(
        {run.config.name: (probabilities, facts, chosen)}))
    svm.main(['--name', 'apart', *argv])
    svm.main(['--name', 'joined', *argv, '--train_on_dev'])
    assert given['apart'][1]['C'] == given['joined'][1]['C'] and given['apart'][1]['dev_ua'] == given['joined'][1]['dev_ua']
    assert [given[name][2].partition(', ')[2] for name in given] == ['chosen on dev', 'chosen on dev, then trained on dev too']
    sets = load(small_corpus).sets
    x, y = {name: svm.functionals(part) for name, part in sets.items()}, {name: part.labels for name, part in sets.items()}
    machine = make_pipeline(StandardScaler(), LinearSVC(C=given['joined'][1]['C'], class_weight='balanced', dual=False))
    machine.fit(*(np.concatenate([part['train'], part['dev']]) for part in (x, y)))
    odds = np.log(given['joined'][0][:, 1] / given['joined'][0][:, 0]) / 2  # softmax of -v, v
    np.testing.assert_allclose(odds, machine.decision_function(x['test']), atol=1e-3)
    assert np.abs(given['joined'][0] - given['apart'][0]).max() > 1e-3


@pytest.mark.parametrize('folds, leaks', [('speaker', True), ('session', False)])
def test_a_partner_of_the_test_speaker_is_not_let_in(folds, leaks, tmp_path, monkeypatch):
    write_corpus(tmp_path, n_speakers=6)
    head, *rows = (tmp_path / 'corpus.csv').read_text().splitlines()
    speakers = sorted({row.split(',')[2] for row in rows})
    session = {name: f'S{i // 2}' for i, name in enumerate(speakers)}
    rows = [f'{row},{session[row.split(",")[2]]}' for row in rows]
    (tmp_path / 'corpus.csv').write_text('\n'.join([f'{head},session', *rows]))
    config = cf.SvmConfig(name='x', dataset='manifest', data_path=str(tmp_path / 'corpus.csv'), n_mels=8, folds=folds,
                          cache=str(tmp_path / 'cache'))
    datasets.load(config, ('train', 'test'), quiet=True)
    if leaks:
        with pytest.raises(utils.UserError, match='--train_on_dev: .* partners of the test speakers .session S0'):
            datasets.load(config, ('train', 'test'), quiet=True, train_on_dev=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(utils.UserError, match='partners of the test speakers'):
            svm.main(['--name', 'x', '--dataset', 'manifest', '--data_path', 'corpus.csv', '--folds', folds, '--train_on_dev'])
        assert not (tmp_path / 'runs').exists()
    else:
        datasets.load(config, ('train', 'test'), quiet=True, train_on_dev=True)


def test_one_flag_or_row_is_for_networks_and_the_svm(tmp_path):
    (tmp_path / 'c.yaml').write_text('train_on_dev: true\n')
    assert 'train_on_dev' not in cf.read_yaml(tmp_path / 'c.yaml', 'search')
    for argv in (['--train_on_dev'], ['--config', str(tmp_path / 'c.yaml')]):
        for section in ('augment', 'svm'):
            assert cf.given(section, ['--name', 'x', *argv]).values['train_on_dev'] is True


def test_a_run_older_than_the_setting_goes_on(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ['--name', 'old', *SMALL, '--data_path', str(small_corpus)]
    augment.main([*argv, '--epochs', '1'])
    path = tmp_path / 'runs/augment/old/config.yaml'
    settings = utils.read_settings(path)
    old = {name: x for name, x in settings.items() if name not in utils.BEFORE_THE_SETTING and name != 'format'}

    def age():
        path.write_text(yaml.safe_dump(old))
    age()
    augment.main([*argv, '--epochs', '1', '--resume'])
    for flags in (['--trim_db', '30'], ['--train_on_dev'], ['--normalise', 'speaker']):
        age()
        with pytest.raises(utils.UserError, match=f'--resume: {flags[0][2:]} is .* began with'):
            augment.main([*argv, '--epochs', '1', '--resume', *flags])
