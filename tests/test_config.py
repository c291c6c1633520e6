import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import yaml

import config as cf
from utils import UserError

ROOT = Path(__file__).parent.parent


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
    (['--epochs', 'ten'], "epochs: 'ten'"),
    (['--epochs', '0'], '--epochs 0'), (['--dataset', 'emobd'], 'emodb'), (['--order', '3'], '--order 3'),
    (['--w_lr', 'nan'], '--w_lr'), (['--w_lr', '-1'], '--w_lr -1'), (['--fold'], '--fold'), (['stray'], 'stray'),
    (['--config', 'absent.yaml'], 'absent.yaml'), (['--xyz', '3'], '--xyz; the nearest valid one is --'),
    (['--seed', '4294967296'], '--seed'), (['--name', '/a'], '--name'),
    (['--name', 'a//b'], '--name'), (['--name', 'a/../b'], '--name'), (['--name', '..'], '--name'),
])
def test_a_wrong_flag_is_named(argv, named):
    with pytest.raises(UserError, match=named):
        build('search', *argv)


@pytest.mark.parametrize('text, named', [
    ('epoch: 3', "'epoch'"), ('search:\n  epohcs: 3', "'epohcs' under search:.*epochs"),
    ('serach:\n  epochs: 3', 'nearest.*search'),
    ('augment:\n  w_lr: 3', "'w_lr' under augment"), ('n_mels: many', 'n_mels'), ('n_mels: 3.5', 'n_mels'),
    ('n_mels: [1]', 'n_mels'),
    ('amp: 1', 'amp'), ('n_mels: true', 'n_mels'), ('- 1', 'name: value'), ('a: [', 'not YAML'), ('search: 3', 'name: value'),
    ('n_mels:', 'n_mels'),
])
def test_a_wrong_key_is_named_also_when_it_is_the_other_programs(text, named, tmp_path):
    (tmp_path / 'c.yaml').write_text(text)
    with pytest.raises(UserError, match=named) as error:
        build('search', '--config', str(tmp_path / 'c.yaml'))
    assert 'c.yaml' in str(error.value) or named in ('n_mels', 'amp')


@pytest.mark.parametrize('path', sorted(ROOT.glob('configs/*.yaml')), ids=lambda p: p.stem)
def test_presets_are_valid(path):
    for section in cf.SECTIONS:
        build(section, '--config', str(path))
    assert yaml.safe_load(path.read_text())


def test_every_setting_is_described_and_read():
    paths = [path for folder in ('.', 'datasets', 'models', 'scripts') for path in (ROOT / folder).glob('*.py')]
    source = {path: path.read_text() for path in paths if path.name != 'config.py'}
    for section, cls in cf.SECTIONS.items():
        program = ROOT / 'scripts' / 'svm.py' if section == 'svm' else ROOT / f'{section}.py'
        reads = (program, ROOT / 'utils.py', ROOT / 'models' / 'report.py', ROOT / 'datasets' / '__init__.py')
        text = ''.join(source[path] for path in reads)
        for f in fields(cls):
            assert f.metadata['help']
            if f.name != 'config':  # read while the command line is
                assert re.search(rf'config\.{f.name}\b', text), f'{section}: {f.name} is never read'


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        cf.given('search', ['--help'])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(f'--{f.name}' in shown for f in fields(cf.SearchConfig))
