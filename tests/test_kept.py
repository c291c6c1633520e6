"""What outlasts a kill, a full disk or a damaged file: TensorBoard's events, checkpoints, files that are written aside."""
import errno
import io
import os
from types import SimpleNamespace

import pytest
import soundfile
import torch
from conftest import shown
from matplotlib.figure import Figure

import config as cf
import models.run
import utils
from config import UserError
from datasets.folds import Fold
from datasets.readers import synthetic
from models import events
from models.run import Run

DATA = SimpleNamespace(mean=torch.zeros(2, 1), std=torch.ones(2, 1), digest='d', audio=['m', 'f'], fold=Fold((), (), ()))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def opened(**settings):
    one = Run('search', cf.SearchConfig(name='x', **settings))
    return one, one.open(DATA)


def epoch(one, number, ua, saved=True):
    one.end_epoch({'epoch': number, 'train': {'ua': ua}})
    if saved:
        one.save_checkpoint({'w': torch.full((2,), ua)})


def killed(one):
    """As a kill leaves it: nothing is flushed or closed, and the lock is free."""
    utils.open_runs.discard(one)
    one.lock.close()


def test_events_are_on_disk_before_the_checkpoint_and_never_twice():
    one, _ = opened()
    epoch(one, 1, .5)
    epoch(one, 2, .25, saved=False)
    one.writer.add_scalar('test/ua', .75, 1)  # of an earlier step, which a purge of later ones does not remove
    killed(one)
    again, checkpoint = opened(resume=True)
    assert len(checkpoint['history']) == 1
    epoch(again, 2, .125)
    again.writer.add_scalar('test/ua', .75, 1)
    killed(again)
    again, _ = opened(resume=True)  # of a finished run
    again.writer.add_scalar('test/ua', .75, 1)
    killed(again)
    assert [(tag, step) for tag, step, _ in shown(again.path)] == [
        ('parameters/text_summary', 0), ('test/ua', 1), ('train/ua', 1), ('train/ua', 2)]


def test_a_run_killed_before_its_first_checkpoint_begins_with_no_events():
    one, _ = opened()
    epoch(one, 1, .5, saved=False)
    killed(one)
    again, checkpoint = opened(resume=True)
    assert checkpoint is None
    epoch(again, 1, .5)
    assert [(tag, step) for tag, step, _ in shown(again.path)] == [('parameters/text_summary', 0), ('train/ua', 1)]
    again.close()


@pytest.mark.parametrize('damage', ['cut', 'flip', 'gone', 'empty'])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, capsys):
    one, _ = opened()
    for number in (1, 2):
        epoch(one, number, number / 4)
    path = one.file('checkpoint.pt')
    killed(one)
    with open(path, 'rb') as f:
        whole = bytearray(f.read())
    os.unlink(path)
    at = whole.index(torch.full((2,), .5).numpy().tobytes())  # a bit of a weight: torch.load takes it
    whole[at] ^= damage == 'flip'
    if damage != 'gone':
        utils.write_aside(path, lambda f: f.write({'cut': whole[:-9], 'flip': whole, 'empty': b''}[damage]))
    again, checkpoint = opened(resume=True)
    assert torch.equal(checkpoint['w'], torch.full((2,), .25)) and len(again.history) == 1
    assert 'continuing from the checkpoint before it' in capsys.readouterr().out
    killed(again)  # before it writes one: the good one is the only one
    again, checkpoint = opened(resume=True)
    assert torch.equal(checkpoint['w'], torch.full((2,), .25))
    epoch(again, 2, .5)
    assert shown(again.path)[-1] == ('train/ua', 2, .5)
    again.close()


def test_every_damaged_byte_of_a_checkpoint_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / 'x.pt'
    utils.write_torch(path, {'w': torch.arange(3.), 'history': [{'epoch': 1}]})
    assert torch.equal(torch.load(path, weights_only=True)['w'], torch.arange(3.))
    whole = path.read_bytes()
    for i in range(len(whole)):
        for damaged in (whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1:], whole[:i]):
            monkeypatch.setattr('builtins.open', lambda *_, damaged=damaged: io.BytesIO(damaged))
            with pytest.raises(UserError, match='is damaged'):
                utils.read_torch(path)
    monkeypatch.undo()
    torch.save({'w': 1}, path)  # of an earlier version, without a checksum
    assert utils.read_torch(path) == {'w': 1}


def test_a_picture_that_fails_is_one_warning(capsys):
    one, _ = opened()

    def fails():
        raise ValueError('bad mathtext')
    for step in (1, 2):
        one.draw('confusion', fails, step)
    one.write_figure('genotype.png', fails)
    figure = Figure()
    figure.suptitle(r'$\bad$')
    one.draw('label', lambda: figure, 1)
    said = capsys.readouterr().out
    assert said.count('the picture confusion could not be written (ValueError: bad mathtext)') == 1
    assert said.count('the picture label') == 1 and 'genotype.png' in said
    epoch(one, 1, .5)
    one.close()
    assert [(tag, step) for tag, step, _ in shown(one.path)] == [('parameters/text_summary', 0), ('train/ua', 1)]


def test_a_full_disk_under_tensorboard_hides_no_event_and_stops_nothing(monkeypatch, capsys):
    one, _ = opened()
    write, room = os.write, [30]

    def full(fd, data):
        if fd != one.writer._writer.file_writer.event_writer.fd or room[0] is None:
            return write(fd, data)
        n, room[0] = min(room[0], len(data)), max(0, room[0] - len(data))
        if not n:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return write(fd, data[:n])
    monkeypatch.setattr(os, 'write', full)
    epoch(one, 1, .5)
    assert capsys.readouterr().out.count('No space left') == 1
    room[0] = None
    epoch(one, 2, .5)
    one.close()
    assert [(tag, step) for tag, step, _ in shown(one.path)] == [('parameters/text_summary', 0), ('train/ua', 2)]


def test_a_full_disk_is_named_and_the_old_file_stays(monkeypatch, capsys):
    def fills():
        one, _ = opened()
        epoch(one, 1, .5)
        monkeypatch.setattr(os, 'fsync', full)
        epoch(one, 2, .5)

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    codes, sync = [], os.fsync
    utils.cli(fills, leave=codes.append)
    monkeypatch.setattr(os, 'fsync', sync)
    said = capsys.readouterr().err
    assert codes == [2] and said.count('\n') == 1
    for part in ('runs/search/x/checkpoint.pt: No space left', '(disk /', 'MB free', 'whole', '--resume'):
        assert part in said
    assert not [name for name in os.listdir('runs/search/x') if name.endswith('.tmp')]
    assert len(utils.read_torch('runs/search/x/checkpoint.pt')['history']) == 1


def test_what_killed_processes_left_is_removed(tmp_path):
    host = os.uname().nodename
    names = {'live': f'a.npy.{host}-{os.getpid()}-00000000.tmp', 'dead': f'b.npy.{host}-999999999-00000000.tmp',
             'other': 'c.npy.elsewhere-1-00000000.tmp', 'foreign': 'thesis.tmp'}
    (tmp_path / 'sub').mkdir()
    for name in names.values():
        (tmp_path / 'sub' / name).touch()
        os.utime(tmp_path / 'sub' / name, (0, 0) if 'elsewhere' not in name else None)
    os.utime(tmp_path / 'sub' / names['live'])
    utils.remove_asides(tmp_path)
    assert {*os.listdir(tmp_path / 'sub')} == {names['live'], names['other'], names['foreign']}
    utils.remove_asides(tmp_path, ours=True)
    assert os.listdir(tmp_path / 'sub') == ['thesis.tmp']


def test_the_checkpoint_before_is_kept_on_a_file_system_without_links(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, 'no links')
    monkeypatch.setattr(os, 'link', refuse)
    one, _ = opened()
    for number in (1, 2):
        epoch(one, number, number / 4)
    one.close()
    assert [len(utils.read_torch(one.file(name))['history']) for name in (models.run.PREVIOUS, 'checkpoint.pt')] == [1, 2]


def test_a_run_killed_in_its_first_write_begins_again(monkeypatch):
    write = utils.write_all

    def fails(fd, data):
        write(fd, data[:9])
        raise KeyboardInterrupt  # which leaves what a kill leaves
    monkeypatch.setattr(utils, 'write_all', fails)
    one = Run('search', cf.SearchConfig(name='x'))
    with pytest.raises(KeyboardInterrupt):
        one.open(DATA)
    one.lock.close()
    monkeypatch.setattr(utils, 'write_all', write)
    assert [name for name in os.listdir(one.path) if name != 'lock'][0].endswith('.tmp')
    opened(resume=True)[0].close()
    assert not [name for name in os.listdir(one.path) if name.endswith('.tmp')]


def test_a_corpus_that_a_killed_process_was_making_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, 'TAKES', [(0, 'angry', 0)])
    for name in ('corpus.dead', 'corpus.live'):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / 'corpus.dead', (0, 0))
    synthetic._make(tmp_path / 'corpus')
    assert {p.name for p in tmp_path.iterdir()} == {'corpus', 'corpus.live'}
    wave, path = synthetic.synthesise(0, 'angry', 0), tmp_path / 'plain.wav'
    soundfile.write(path, wave, synthetic.SAMPLE_RATE, subtype='PCM_16')
    assert next((tmp_path / 'corpus').iterdir()).read_bytes() == path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(utils, 'write_all', full)
    with pytest.raises(OSError, match='00_angry_00.wav') as error:
        synthetic._make(tmp_path / 'again')
    assert error.value.errno == errno.ENOSPC


def test_an_event_file_is_what_tensorboard_reads(tmp_path):
    """TensorBoard's own reader, on every kind of event that the programs write."""
    board = events.Board(str(tmp_path / 'tb'), pytest.fail)
    board.add_text('parameters', '|a|b|', 0)
    board.add_scalar('ua', .5, 1)
    board.draw('figure', Figure, 2)
    board.close()
    assert [(tag, step) for tag, step, _ in shown(tmp_path)] == [('figure', 2), ('parameters/text_summary', 0), ('ua', 1)]
