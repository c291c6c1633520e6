"""Files, devices, and the end of a program."""
import csv
import errno
import json
import os

import pytest
import torch

import utils
from config import UserError


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / 'a.json'
    utils.write_json(path, {'a': 1})

    def fails(f):
        f.write(b'half')
        raise RuntimeError
    with pytest.raises(RuntimeError):
        utils.write_aside(path, fails)
    assert json.loads(path.read_text()) == {'a': 1}


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path):
    def fails(f):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match='a.json') as error:
        utils.write_aside(tmp_path / 'a.json', fails)
    assert error.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_processes_that_share_a_file_do_not_share_what_they_write_aside(tmp_path, monkeypatch):
    """The other process writes the same file while this one does: both are whole, the later one stays."""
    def other(f):
        f.write(b'this ')
        with monkeypatch.context() as m:
            m.setattr(os, 'getpid', lambda: 1)
            utils.write_aside(tmp_path / 'a', lambda g: g.write(b'other'), shared=True)
        assert (tmp_path / 'a').read_bytes() == b'other'
        f.write(b'one')
    utils.write_aside(tmp_path / 'a', other, shared=True)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [('a', b'this one')]


def test_csv_quotes(tmp_path):
    utils.write_csv(tmp_path / 'a.csv', ['path', 'x'], [['a,"b".wav', 1]])
    with open(tmp_path / 'a.csv', newline='') as f:
        assert list(csv.reader(f)) == [['path', 'x'], ['a,"b".wav', '1']]


def test_threads(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch, 'set_num_threads', set_to.append)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 4)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    utils.set_threads(0)
    utils.set_threads(2)
    monkeypatch.setenv('OMP_NUM_THREADS', '4')
    utils.set_threads(0)
    assert set_to == [3, 2]


def test_devices(monkeypatch):
    assert utils.choose_device('cpu').type == 'cpu'
    assert utils.choose_device('auto').type in ('cpu', 'cuda')
    for wrong, hint in (('gpu', 'did you mean cuda'), ('cuda:77', 'cuda:77'), ('cuda:x', 'cuda:N'), ('mps', 'must be auto')):
        with pytest.raises(UserError, match=hint):
            utils.choose_device(wrong)
    with pytest.raises(UserError, match='GPU of its number'):
        utils.choose_device('cuda:1', 0)
    current, empty = [], torch.empty
    monkeypatch.setattr(torch.cuda, 'set_device', current.append)
    monkeypatch.setattr(torch, 'empty', lambda *args, device: empty(*args, device='cpu'))
    assert utils.choose_device('cuda:1') == torch.device('cuda:1') and utils.choose_device('cuda', 3).index == 3
    assert current == [1, 3]  # pinned memory and bf16 support are of the current GPU


def ended(capsys, main):
    """Exit code and stderr of a program."""
    with pytest.raises(SystemExit) as end:
        utils.cli(main)
    shown = capsys.readouterr()
    assert shown.out == ''
    return end.value.code, shown.err


def raises(error):
    def main():
        raise error
    return main


def test_a_users_mistake_is_one_line_and_not_0(capsys):
    code, said = ended(capsys, raises(UserError('--fold 9:\n there are\n folds 1 to 5')))
    assert code == 2 and said.endswith('--fold 9: there are folds 1 to 5\n') and said.count('\n') == 1
    code, said = ended(capsys, raises(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'runs/search/a/checkpoint.pt')))
    assert code == 2 and 'runs/search/a/checkpoint.pt: No space left on device (disk /' in said and said.count('\n') == 1
    assert ended(capsys, raises(KeyboardInterrupt()))[0] == 130


@pytest.mark.parametrize('error', [KeyError('x'), FileNotFoundError(errno.ENOENT, 'No such file', 'forgotten'), OSError('odd')])
def test_a_mistake_of_ours_shows_where_it_happened(error, capsys):
    code, said = ended(capsys, raises(error))
    assert code == 1 and 'Traceback' in said
