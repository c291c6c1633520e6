"""Settings: precedence, types, and what is said of mistakes."""
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import config as cf
import genotypes as gt
from config import UserError


def build(section, *argv):
    return cf.build(section, cf.given(section, ['--name', 'x', *argv]))


def test_flag_beats_file_beats_record_beats_default(tmp_path):
    path = tmp_path / 'c.yaml'
    path.write_text('n_mels: 40\nsearch:\n  epochs: 7\n  w_lr: 1e-2\naugment:\n  epochs: 9\n')
    found = build('search', '--config', str(path), '--epochs', '3')
    assert (found.n_mels, found.epochs, found.w_lr) == (40, 3, .01)
    assert build('augment', '--config', str(path)).epochs == 9
    given = cf.given('augment', ['--name', 'x', '--config', str(path), '--init_channels', '5'])
    found = cf.build('augment', given, {'n_mels': 99, 'init_channels': 6, 'layers': 4})
    assert (found.n_mels, found.init_channels, found.layers, found.dropout) == (40, 5, 4, .1)


def test_types_and_switches():
    found = build('search', '--no-amp', '--order', '2', '--duration', '4')
    assert found.amp is False and found.order == 2 and found.duration == 4. and found.data_path is None
    with pytest.raises(FrozenInstanceError):
        found.order = 1


@pytest.mark.parametrize('argv, named', [
    (['--epoch', '3'], '--epoch;.*--epochs'), (['--alfa_lr=3'], '--alfa_lr=3;.*--alpha_lr'),
    (['--epochs', 'ten'], "--epochs: 'ten'"),
    (['--epochs', '0'], '--epochs 0'), (['--dataset', 'emobd'], 'emodb'), (['--order', '3'], '--order 3'),
    (['--w_lr', 'nan'], '--w_lr'), (['--w_lr', '-1'], '--w_lr -1'), (['--fold'], '--fold'), (['stray'], 'stray'),
    (['--config', 'absent.yaml'], 'absent.yaml'), (['--xyz', '3'], '--xyz; --help lists'),
    (['--model', 'rnn'], 'a flag of augment.py'), (['--amp', 'false'], '--no-amp'),
    (['--dataset', 'EmoDB'], 'did you mean emodb'), (['--config', ''], '--config'),
    (['--seed', '4294967296'], '--seed'), (['--name', '/a'], '--name'), (['--hop_ms', '999'], '--hop_ms 999'),
    (['--name', 'a//b'], '--name'), (['--name', 'a/../b'], '--name'), (['--name', '..'], '--name'),
    (['--resume', '--overwrite'], 'exclude'),
])
def test_a_wrong_flag_is_named(argv, named):
    with pytest.raises(UserError, match=named):
        build('search', *argv)


@pytest.mark.parametrize('text, named', [
    ('epochs: 3', "'epochs' has no effect at the top level; it belongs under search: or augment:$"),
    ('epoch: 3', 'did you mean epochs, under search: or augment:'),
    ('lr: 0.01', "'lr' .* belongs under augment:$"),
    ('search:\n  epohcs: 3', "'epohcs' under search:; did you mean epochs\\?"),
    ('serach:\n  epochs: 3', 'did you mean search\\?'), ('augment:\n  w_lr: 3', "'w_lr' .* under augment:; .* under search:$"),
    ('search:\n  train_on_dev: true', 'belongs at the top level$'), ('qqqqq: 1', "unknown key 'qqqqq'"),
    ('n_mels: many', "--n_mels: 'many'"), ('n_mels: 3.5', 'n_mels'), ('n_mels: [1]', 'n_mels'),
    ('amp: 1', 'amp'), ('n_mels: true', 'n_mels'), ('- 1', 'name: value'), ('a: [', 'not YAML'), ('search: 3', 'name: value'),
    ('n_mels:', 'n_mels'), ('config: x.yaml', 'config'),
])
def test_a_wrong_key_is_named_with_its_file_and_its_place(text, named, tmp_path):
    (tmp_path / 'c.yaml').write_text(text)
    with pytest.raises(UserError, match=named) as error:
        build('search', '--config', str(tmp_path / 'c.yaml'))
    assert 'c.yaml' in str(error.value)


@pytest.mark.parametrize('parts, labels', [
    ('[a, b+c]', 'a,b+c'), ('[a, "b, c"]', r'a,b\, c'), (r"[a, 'b\, c']", r'a,b\, c'), (r"'a,b\, c'", r'a,b\, c')])
def test_a_comma_in_a_name_of_a_list_is_no_separator(parts, labels, tmp_path):
    (tmp_path / 'c.yaml').write_text(f'labels: {parts}\n')
    assert build('search', '--config', str(tmp_path / 'c.yaml')).labels == labels


@pytest.mark.parametrize('text', ['{"a": 1, "b": 2, "a": 1}', '{"x": [{"a": 1, "a": 2}]}'])
def test_a_name_that_is_twice_in_a_json_file_is_refused(text):
    with pytest.raises(UserError, match="^x.json: 'a' is there twice$"):
        cf.parse_json(text, 'x.json')


@pytest.mark.parametrize('path', sorted(ROOT.glob('configs/*.yaml')), ids=lambda p: p.stem)
def test_presets_are_valid(path):
    for section in cf.SECTIONS:
        build(section, '--config', str(path))
    assert yaml.safe_load(path.read_text())


def test_a_settings_file_extends_another(tmp_path):
    (tmp_path / 'base.yaml').write_text('n_mels: 40\nduration: 2\nsearch:\n  epochs: 7\n  w_lr: 1e-2\n')
    (tmp_path / 'c.yaml').write_text('extends: base.yaml\nduration: 4\nsearch:\n  epochs: 3\n')
    found = build('search', '--config', str(tmp_path / 'c.yaml'))
    assert (found.n_mels, found.duration, found.epochs, found.w_lr) == (40, 4., 3, .01)
    (tmp_path / 'c.yaml').write_text('extends: base.yaml\nsearch:\n  n_mels: 8\n')
    (tmp_path / 'base.yaml').write_text('search:\n  n_mels: 40\n  layers: 4\n')
    assert build('search', '--config', str(tmp_path / 'c.yaml')).n_mels == 8
    (tmp_path / 'c.yaml').write_text('extends: base.yaml\nn_mels: 9\n')  # above a section of the base
    assert build('search', '--config', str(tmp_path / 'c.yaml')).n_mels == 9
    for text, named in (('extends: absent.yaml', 'absent.yaml'), ('extends: 3', '/3: No such'), ('extends: c.yaml', 'extends'),
                        ('extends:', 'extends'), ('extends: ""', 'extends')):
        (tmp_path / 'c.yaml').write_text(text)
        with pytest.raises(UserError, match=named):
            build('search', '--config', str(tmp_path / 'c.yaml'))


def test_the_file_with_the_mistake_is_named(tmp_path):
    (tmp_path / 'base.yaml').write_text('search:\n  epohcs: 7\n')
    (tmp_path / 'c.yaml').write_text('extends: base.yaml\n')
    with pytest.raises(UserError, match='base.yaml: unknown key .epohcs.'):
        build('search', '--config', str(tmp_path / 'c.yaml'))


@pytest.mark.parametrize('text', ['2024_01', '1.10', '007', '010', '0x10', '2024-01-01', '1:30', '1e5'])
def test_a_settings_file_keeps_text_that_looks_like_a_number(text, tmp_path):
    (tmp_path / 'c.yaml').write_text(f'search:\n  name: {text}\n')
    assert cf.given('search', ['--config', str(tmp_path / 'c.yaml')]).values['name'] == text


def test_numbers_of_a_settings_file_are_those_of_the_flags(tmp_path):
    (tmp_path / 'c.yaml').write_text('fold: 010\nduration: 1e1\nprosody: true\nsearch:\n  labels: [1, 2]\n')
    found = cf.given('search', ['--name', 'x', '--config', str(tmp_path / 'c.yaml')]).values
    assert (found['fold'], found['duration'], found['prosody'], found['labels']) == (10, 10., True, '1,2')
    (tmp_path / 'c.yaml').write_text('duration: 1:30\n')
    with pytest.raises(UserError, match='c.yaml: --duration: .1:30. is not a number'):
        cf.given('search', ['--name', 'x', '--config', str(tmp_path / 'c.yaml')])


GENOTYPE = ('--genotype', 'g.json')
SPACE, SIZES = cf.names_of(cf.SpaceSettings), [name for name in cf.names_of(cf.NetworkSettings) if name != 'dropout']
SEQ = ['rnn_channels', 'rnn_nodes', 'rnn_ops']
WITHOUT_EFFECT = [
    *(('augment', ['--model', 'cnn_gru'], name) for name in [*SPACE, *SIZES, 'aux_weight', 'drop_path_prob']),
    *(('augment', GENOTYPE, name) for name in [*SPACE, 'params']), ('augment', ['--genotype', 'random'], 'params'),
    ('augment', [*GENOTYPE, '--optimizer', 'adamw'], 'momentum'), ('augment', [*GENOTYPE, '--n_masks', '0'], 'max_time'),
    ('search', ['--n_masks', '0'], 'max_freq'), ('search', [], 'hessian'), ('svm', [], 'duration'),
    ('search', ['--relaxation', 'none', '--finalists', '2'], 'dropout'),
    ('search', [], 'band'), *(('augment', ['--genotype', 'random', '--space', 'speech'], name) for name in (
        'init_channels', 'layers', 'rnn_layers', 'rnn_channels')),
    *((section, [*argv, '--rnn_layers', '0'], name) for name in SEQ for section, argv in (
        ('search', []), ('augment', ['--genotype', 'random'])))]
VALUES = {'drop_path_prob': '.5', 'dropout': '.5', 'momentum': '.5', 'hessian': 'difference', 'cnn_ops': 'pool',
          'rnn_ops': 'gru', 'rnn_layers': '2', 'space': 'speech', 'band': '1-2', 'cnn_order': 'imposed'}


@pytest.mark.parametrize('section, argv, name', WITHOUT_EFFECT)
def test_a_typed_flag_without_effect_is_refused_and_a_presets_is_recorded(section, argv, name, tmp_path):
    value = VALUES.get(name, '1')
    with pytest.raises(UserError, match=f'--{name} has no effect with '):
        build(section, *argv, f'--{name}', value)
    (tmp_path / 'c.yaml').write_text(f'{section}:\n  {name}: {value}\n')
    assert name in build(section, *argv, '--config', str(tmp_path / 'c.yaml')).unused()


def test_alpha_that_is_not_trained_needs_no_second_order():
    config = cf.SearchConfig(name='x', order=2, alpha_split='none', relaxation='sampled', sampling='uniform', finalists=2)
    assert {'order', 'hessian'} <= config.unused().keys()


def test_a_settings_file_cannot_overwrite(tmp_path):
    (tmp_path / 'c.yaml').write_text('overwrite: true\n')
    with pytest.raises(UserError, match='c.yaml: overwrite: only as a flag'):
        build('search', '--config', str(tmp_path / 'c.yaml'))


@pytest.mark.parametrize('flag, value', [('encoder', 'x'), ('encoder_layers', '8')])
def test_an_encoder_without_its_features_says_which_flag_is_wanted(flag, value):
    with pytest.raises(UserError, match=f'--{flag} has no effect with --features logmel: say --features encoder, or leave'):
        build('augment', '--model', 'rnn', f'--{flag}', value)


@pytest.mark.parametrize('section, argv', [
    ('augment', ['--model', 'cnn_gru', '--dropout', '.3', '--params', '100', '--momentum', '.5']),
    ('augment', ['--genotype', 'random', '--n_nodes', '2', '--cnn_ops', 'pool']),
    ('augment', [*GENOTYPE, '--init_channels', '4', '--drop_path_prob', '.2']),
    ('search', ['--order', '2', '--hessian', 'difference']), ('search', ['--max_time', '.3', '--rnn_channels', '8']),
])
def test_flags_with_effect_are_taken(section, argv):
    build(section, *argv)


def test_what_would_need_dev_speakers_is_refused():
    with pytest.raises(UserError, match='--patience .*--train_on_dev'):
        cf.AugmentConfig(name='x', patience=3, train_on_dev=True)
    cf.AugmentConfig(name='x', patience=3)


def test_every_setting_is_described_and_read():
    """No setting is a dead flag: each is read by name, or with its group through cf.pick."""
    picked = ('FeatureSettings', 'NetworkSettings')
    names = ('search.py', 'augment.py', 'utils.py', 'models/*.py', 'datasets/*.py', 'scripts/svm.py')
    source = ''.join(path.read_text() for name in names for path in ROOT.glob(name))
    for section, cls in cf.SECTIONS.items():
        assert {f.name for group in cls.GROUPS for f in fields(group)} == {f.name for f in fields(cls)}, section
        for f in fields(cls):
            assert f.metadata['help']
            whole = any(f.name in getattr(cf, group).__dataclass_fields__ for group in picked)
            if f.name != 'config' and not whole:  # read by config.py itself
                assert re.search(rf"(config\.{f.name}\b|'{f.name}')", source), f'{section}: {f.name} is never read'


def test_help_is_grouped_shows_choices_defaults_and_examples_without_slow_imports():
    code = 'import sys, config\ntry:\n    config.given("search", ["--help"])\nexcept SystemExit:\n    pass\n'
    code += 'assert not {"torch", "librosa", "tensorboardX", "sklearn"} & set(sys.modules)'
    shown = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(bool(re.search(rf'--{f.name}\b', shown)) != f.metadata.get('found', False)
               for f in fields(cf.SearchConfig))
    assert '{logmel,mfcc,encoder,frames}' in shown and '(default: 0.025)' in shown
    assert '\nfeatures:' in shown and '\nnetwork:' in shown
    assert shown.partition('examples:')[2].count('python search.py') == 2


def test_the_corpora_are_the_readers():
    assert set(cf.CORPORA) == {p.stem for p in (ROOT / 'datasets/readers').glob('*.py')} - {'__init__'}
    assert Path(ROOT / 'datasets/readers/manifest.py').exists() and 'emodb' in cf.CORPORA


def test_the_help_names_every_set_of_operations_and_the_defaults_of_the_space():
    helps = {f.name: f.metadata['help'] for f in fields(cf.SpaceSettings)}
    for name, sets in (('cnn_ops', gt.CNN_OP_SETS), ('rnn_ops', gt.RNN_OP_SETS)):
        words = helps[name].partition(': ')[2].partition(', or names')[0]
        assert {*re.split(', | or ', words)} == {*sets}
    assert ' '.join(f'--{name} {value}' for name, value in cf.SPACES['speech'].items()) in helps['space']
