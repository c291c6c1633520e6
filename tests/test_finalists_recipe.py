"""models/finalists.py: the recipe that finalists are trained with."""
import json
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import SMALL
from test_finalists import ARGS, SEARCH, close_all, killed, read

import augment
import config as cf
import search
import utils
from models import finalists


def test_the_recipe_is_that_of_augment(tmp_path):
    path = tmp_path / 'c.yaml'
    path.write_text(yaml.safe_dump({'n_mels': 20, 'search': {'dropout': .5, 'epochs': 9}, 'augment': {
        'epochs': 40, 'lr': .5, 'dropout': .25, 'train_on_dev': True, 'patience': 3, 'init_channels': 12}}))
    flags = ['--name', 'x', '--config', str(path), '--layers', '4']
    found = finalists.recipe_of(cf.build('search', cf.given('search', flags)))
    assert (found.epochs, found.lr, found.dropout, found.init_channels, found.layers, found.n_mels) == (40, .5, .25, 12, 4, 20)
    assert not found.train_on_dev and not found.patience and found.weight_decay == cf.AugmentConfig(name='x').weight_decay
    config = cf.build('search', cf.given('search', [*flags, '--finalists', '2', '--finalist_epochs', '7']))
    assert finalists.recipe_of(config).epochs == 7
    sized = cf.build('search', cf.given('search', [*flags, '--init_channels', '6']))  # the file has its own for retraining
    assert finalists.recipe_of(sized).init_channels == 12 and 'init_channels' not in finalists.typed(sized)


@pytest.mark.parametrize('epochs, warmup', [(8, 2), (40, 10), (60, 10)])
def test_finalists_of_fewer_epochs_have_a_shorter_warm_up(epochs, warmup, tmp_path):
    path = tmp_path / 'c.yaml'
    path.write_text(yaml.safe_dump({'augment': {'epochs': 40, 'warmup': 10}}))
    flags = ['--name', 'x', '--config', str(path), '--finalists', '2', '--finalist_epochs', str(epochs)]
    found = finalists.recipe_of(cf.build('search', cf.given('search', flags)))
    assert (found.epochs, found.warmup) == (epochs, warmup)


def test_the_short_rung_has_a_short_warm_up(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('c.yaml').write_text(yaml.safe_dump({'augment': {'epochs': 8, 'warmup': 4}}))
    trained = []
    monkeypatch.setattr(finalists, 'train', lambda config, *args: trained.append((config.epochs, config.warmup)) or (
        {'loss': 1., 'ua': .5}, None))
    search.main(['--name', 's', *ARGS, '--data_path', str(small_corpus), '--config', 'c.yaml',
                 *'--relaxation none --finalists 2 --last_rung 1'.split()])
    assert trained == [(2, 1), (2, 1), (8, 4)]


def test_a_settings_file_may_change_while_a_search_runs(small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path, text = Path('c.yaml'), yaml.safe_dump({'init_channels': 3, 'augment': {'lr': .01}})
    path.write_text(text)
    argv = [*SEARCH, '--data_path', str(small_corpus), '--finalist_epochs', '1', '--last_rung', '0', '--config', 'c.yaml']
    train_epoch = search.train_epoch
    monkeypatch.setattr(search, 'train_epoch', lambda *args: path.write_text('augment: {lr: abc}') and train_epoch(*args))
    search.main(['--name', 's', *argv])
    assert read('s')[0]['recipe']['lr'] == .01 and '--init_channels 2 --genotype' in capsys.readouterr().out
    with pytest.raises(utils.UserError, match="--config c.yaml: --lr: 'abc' is not a number"):
        search.main(['--name', 't', *argv])
    path.write_text(text)
    with monkeypatch.context() as patch:
        patch.setattr(finalists, 'choose', killed(finalists.choose, 1, []))
        with pytest.raises(KeyboardInterrupt):
            search.main(['--name', 't', *argv])
    close_all()
    path.write_text(yaml.safe_dump({'init_channels': 3, 'augment': {'lr': .02}}))
    with pytest.raises(utils.UserError, match='--resume: lr of retraining is 0.02, but the finalists of .* began with 0.01'):
        search.main(['--name', 't', *argv, '--resume'])


def test_flags_of_a_search_hold_for_its_finalists_and_for_the_retraining(small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('c.yaml').write_text(yaml.safe_dump({
        'init_channels': 4, 'speed': .1, 'fold': 1, 'search': {'n_masks': 3, 'stem_multiplier': 2},
        'augment': {'epochs': 2, 'stem_multiplier': 1}}))
    argv = [*ARGS, '--data_path', str(small_corpus), '--config', 'c.yaml',
            *'--epochs 1 --alpha_warmup 0 --relaxation sampled'.split(),
            *'--finalists 2 --candidates 3 --finalist_epochs 2'.split(),
            *'--init_channels 2 --speed 0 --max_time .2 --fold 2 --dropout .3'.split()]
    search.main(['--name', 's', *argv])
    found = read('s')[0]['recipe']
    assert [found[name] for name in ('init_channels', 'speed', 'max_time', 'n_masks', 'stem_multiplier', 'dropout')] == [
        2, 0., .2, 1, 1, cf.AugmentConfig(name='x').dropout]  # masks of the search's section are for the supernet alone
    said = next(line for line in capsys.readouterr().out.splitlines() if 'retrain: ' in line)
    words = shlex.split(said.partition('python augment.py ')[2])
    assert ' '.join(words).endswith(' --fold 2 --init_channels 2 --max_time 0.2 --speed 0.0 --genotype runs/search/s')
    config, genotype, origin = augment.configure(cf.given('augment', words))
    assert (config.init_channels, config.speed, config.max_time, config.fold) == (2, 0., .2, 2)
    assert {name: getattr(config, name) for name in found if name not in ('epochs', 'patience')} == {
        name: value for name, value in found.items() if name not in ('epochs', 'patience')}


def test_a_typed_flag_holds_for_finalists_though_the_search_has_its_value_anyway(small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('c.yaml').write_text(yaml.safe_dump({'search': {'vtlp': .1}, 'augment': {'epochs': 2, 'n_masks': 2, 'vtlp': .2}}))
    argv = [*ARGS, '--data_path', str(small_corpus), '--config', 'c.yaml', '--relaxation', 'none', '--finalists', '1']
    for name, flags, found in (('typed', '--n_masks 1 --vtlp .1 --seed 3', (1, .1)), ('left', '', (2, .2))):
        search.main(['--name', name, *argv, *flags.split()])
        recipe = read(name)[0]['recipe']
        assert (recipe['n_masks'], recipe['vtlp']) == found
        said = next(line for line in capsys.readouterr().out.splitlines() if 'retrain: ' in line)
        config, *_ = augment.configure(cf.given('augment', shlex.split(said.partition('python augment.py ')[2])))
        assert (config.n_masks, config.vtlp, config.seed) == (*found, 3 if flags else 0)


def test_finalists_get_the_noise_of_their_recipe(small_corpus, tmp_path, monkeypatch):
    """Of features normalised by speaker, noise needs the way back, which the search itself does not."""
    monkeypatch.chdir(tmp_path)
    Path('c.yaml').write_text('augment: {noise: 1.0, snr_low: 0.0, snr_high: 5.0}\n')
    argv = [*ARGS[:2], *SMALL, '--data_path', str(small_corpus), '--config', 'c.yaml', '--normalise', 'speaker']
    search.main(['--name', 's', *argv, *ARGS[-4:], *'--relaxation none --finalists 1 --finalist_epochs 2'.split()])
    tree, _ = read('s')
    assert tree['recipe']['noise'] == 1
    augment.main(['--name', 'a', *argv, '--epochs', '2', '--batch_size', str(tree['recipe']['batch_size']), '--genotype',
                  tree['winner']])
    epochs = [json.loads(line) for line in Path('runs/augment/a/metrics.jsonl').read_text().splitlines()]
    assert tree['finalists'][0]['trainings'][0]['train_losses'] == [row['train']['loss'] for row in epochs]
