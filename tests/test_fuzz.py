"""tests/reliability/fuzz.py: it sees what it is to see, and a short run of it finds nothing."""
import os
import random
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT

from config import UserError

sys.path.insert(0, str(ROOT / 'tests' / 'reliability'))
import fuzz  # noqa: E402
import fuzz_mutations  # noqa: E402

SLOW = ('trained networks', 'tables of an experiment', 'checkpoints', 'audio')
SHORT = {name: 30 if name in SLOW else 80 for name in fuzz.READERS}


@pytest.fixture(scope='module')
def watch(tmp_path_factory):
    return fuzz.Watch(tmp_path_factory.mktemp('fuzz'))


@pytest.mark.parametrize('name', fuzz.READERS)
def test_a_short_run_finds_nothing(name, watch, monkeypatch):
    folder = Path(watch.folder)
    monkeypatch.chdir(folder)
    reader = fuzz.READERS[name](folder / name)
    for _ in range(2):
        reader.read(reader.valid())
    found = [fuzz.judge(reader, random.Random(f'0-{name}-{i}'), watch) for i in range(SHORT[name])]
    assert [one['what'] for one in found if one['what']] == []
    refused = sum(one['refused'] for one in found)
    assert refused == 0 if name == 'cached features' else refused > len(found) / 5  # the damage is real


class Wrong:
    """A reader with one fault."""

    def __init__(self, fault):
        self.read = fault

    def make(self, rng):
        return None

    def size(self, data):
        return 0


def long(_):
    error = UserError('x')
    error.args = ('x' * 600,)
    raise error


def slow(_):
    while True:
        pass


def write_outside(_):
    path = Path(tempfile.gettempdir()) / f'fuzz-outside-{os.getpid()}'
    path.touch()
    path.unlink()


@pytest.mark.parametrize('column, fault', [
    ('other exceptions', lambda _: [][0]), ('message too long', long), ('over 2 s', lambda _: sum(range(10 ** 7))),
    ('over 1 GB', lambda _: len(bytearray(os.urandom(1)) * (200 << 20))),
    ('executed or written', lambda _: os.system('true')), ('executed or written', write_outside),
    ('other exceptions', slow)])
def test_every_fault_is_seen(column, fault, watch, monkeypatch):
    monkeypatch.setattr(fuzz, 'CPU', .05)
    monkeypatch.setattr(fuzz, 'MEMORY', 100 << 20)
    monkeypatch.setattr(fuzz, 'END', .2)
    before = fuzz.signal.signal(fuzz.signal.SIGVTALRM, fuzz.give_up)
    found = fuzz.judge(Wrong(fault), random.Random(0), watch)
    fuzz.signal.signal(fuzz.signal.SIGVTALRM, before)
    assert found[column] == 1
    assert fuzz.judge(Wrong(lambda _: None), random.Random(0), watch)['what'] == []


def test_a_run_continues_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz.resource, 'setrlimit', lambda *_: None)
    for n in (4, 10):
        monkeypatch.chdir(tmp_path)
        fuzz.main(['--inputs', str(n), '--readers', 'results,label files', '--to', 'out'])
        assert f'| all | {n} |' in capsys.readouterr().out
    with pytest.raises(UserError, match='--readers x'):
        fuzz.main(['--readers', 'x', '--to', 'out'])


def test_damage_is_the_same_for_the_same_number():
    one, other = (fuzz_mutations.damaged_text('a: 1\nb: 2\n', random.Random(3)) for _ in range(2))
    assert one == other and any(fuzz_mutations.damaged_bytes(b'abcd', random.Random(i)) != b'abcd' for i in range(3))


def test_what_longer_runs_have_found_is_refused(tmp_path):
    reader = fuzz.READERS['tables of an experiment'](tmp_path / 'x')
    for name, old, new, said in (('predictions.csv', 'cnn,0,1', 'cn,0,1', 'lacks the run cnn-f1-s0'),
                                 ('runs.csv', 'cnn,2,0,missing', 'cnn,1,0,missing', 'a run is there twice')):
        path = reader.valid() / name
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(UserError, match=f'{name}.* {said}'):
            reader.read(reader.folder)
    reader = fuzz.READERS['trained networks'](tmp_path / 'y')
    fuzz_mutations.torch.save({**reader.tree, 'format': fuzz_mutations.torch.ones(2)}, reader.path)
    with pytest.raises(UserError, match='best.pt: made by a newer version'):
        reader.read(reader.path)
