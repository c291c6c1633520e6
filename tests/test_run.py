"""The folder of a run: what is refused, what is kept, what a resumed run continues from."""
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT

import config as cf
import models.run
import utils
from config import UserError
from datasets.folds import Fold
from models.run import Run

DATA = SimpleNamespace(mean=torch.zeros(2, 1), std=torch.ones(2, 1), digest='d', audio=['m', 'f'], fold=Fold((), (), ()))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(name='x', **settings):
    return Run('search', cf.SearchConfig(name=name, **settings))


def made(name='x', **settings):
    """A run that was begun and ended."""
    one = run(name, **settings)
    one.open(DATA)
    one.close()
    return one


def test_an_earlier_run_is_never_lost_by_accident():
    first = run()
    assert first.open(DATA) is None
    first.end_epoch({'epoch': 1, 'train': {'ua': .5}})
    first.save_checkpoint({'w': torch.ones(2), 'rng': {'ranks': []}})
    first.end_epoch({'epoch': 2, 'train': {'ua': .6}})  # killed here: the second epoch has no checkpoint
    first.close()
    with pytest.raises(UserError, match='--resume'):
        run()
    with pytest.raises(UserError, match='n_mels is 40'):
        run(resume=True, n_mels=40)
    again = run(resume=True, device='cpu')
    assert torch.equal(again.open(DATA)['w'], torch.ones(2))
    assert [json.loads(line)['epoch'] for line in open(again.file('metrics.jsonl'))] == [1]
    again.close()


@pytest.mark.parametrize('changed, said', [
    (dict(mean=torch.ones(2, 1)), 'recordings differ'), (dict(std=torch.zeros(2, 1)), 'recordings differ'),
    (dict(audio=['m', 'other recordings']), 'recordings differ'), (dict(digest='e'), 'labels or speakers')])
def test_a_run_does_not_continue_with_other_data(changed, said):
    first = made()
    first.save_checkpoint({'w': torch.ones(2)})
    with pytest.raises(UserError, match=said):
        run(resume=True).open(SimpleNamespace(**{**vars(DATA), **changed}))


def test_a_checkpoint_that_cannot_be_read_is_named():
    path = made().file('checkpoint.pt')
    utils.write_torch(path, {'w': torch.ones(2), 'mean': DATA.mean, 'std': DATA.std, 'history': []})
    with pytest.raises(UserError, match='earlier version'):
        run(resume=True).open(DATA)
    with open(path, 'wb') as f:
        f.write(b'damaged')
    with pytest.raises(UserError, match='checkpoint.pt is damaged'):
        run(resume=True).open(DATA)
    with pytest.raises(UserError, match='is None, but'):  # another program's run
        Run('search', cf.SvmConfig(name='x', resume=True))


def test_overwrite_begins_anew_and_never_resumes(monkeypatch):
    first = made()
    first.save_checkpoint({'w': torch.ones(2)})
    stray = os.path.join(first.path, 'stray')
    with open(stray, 'w'):
        pass
    with monkeypatch.context() as m:  # a file system that deletes nothing, and says nothing
        m.setattr(Run, '_set_aside', lambda self: None)
        anew = run(overwrite=True)
        assert anew.open(DATA) is None and anew.history == []
        anew.close()
    anew = run(overwrite=True)
    assert anew.open(DATA) is None and not os.path.exists(stray) and not os.path.exists(anew.file('checkpoint.pt'))
    anew.close()
    with monkeypatch.context() as m:  # a file system that refuses to delete
        def refuse(path, *_):
            raise PermissionError(1, 'Operation not permitted', path)
        m.setattr(os, 'rename', refuse)
        with pytest.raises(PermissionError):
            run(overwrite=True).open(DATA)


def test_what_is_to_be_overwritten_stays_until_the_new_run_has_a_checkpoint(capsys):
    first = made()
    first.save_checkpoint({'w': torch.ones(2)})
    old = {name: Path(first.file(name)).read_bytes() for name in ('checkpoint.pt', 'config.yaml', 'search.log')}

    def same():
        return all(os.path.exists(first.file(name)) and Path(first.file(name)).read_bytes() == old[name] for name in old)

    def fails():
        run(overwrite=True, seed=5).open(DATA)
        assert not same()
        raise UserError('diverged')
    codes = []
    utils.cli(fails, leave=codes.append)
    assert codes == [2] and same() and 'is again the run' in capsys.readouterr().err
    for _ in range(2):  # killed twice
        anew = run(overwrite=True, seed=5)
        assert anew.open(DATA) is None
        utils.open_runs.discard(anew)
        anew.lock.close()
    with pytest.raises(UserError, match='--resume'):
        run(seed=5)
    utils.cli(fails, leave=codes.append)
    assert same() and not os.path.exists(first.file(models.run.BEFORE))
    os.mkdir(first.file(models.run.MOVING))  # killed while it moved the run
    for name in old:
        os.rename(first.file(name), first.file(f'{models.run.MOVING}/{name}'))
    with pytest.raises(UserError, match='exists: continue it'):
        run().open(DATA)
    assert same()
    anew = run(overwrite=True, seed=5)
    anew.open(DATA)
    anew.save_checkpoint({'w': torch.ones(2)})
    assert not os.path.exists(anew.file(models.run.BEFORE)) and not same()
    anew.close()


def test_a_run_with_a_checkpoint_stays_although_what_it_replaced_was_not_yet_gone():
    made().save_checkpoint({'w': torch.zeros(2)})
    first = run(overwrite=True, seed=5)
    first.open(DATA)
    os.rename(first.file(models.run.BEFORE), 'older')
    first.save_checkpoint({'w': torch.ones(2)})
    os.rename('older', first.file(models.run.BEFORE))  # killed before it deleted this
    utils.open_runs.discard(first)
    first.lock.close()

    def fails():
        run(overwrite=True, seed=6).open(DATA)
        raise UserError('diverged')
    codes = []
    utils.cli(fails, leave=codes.append)
    assert codes == [2] and not os.path.exists(first.file(models.run.BEFORE))
    again = run(resume=True, seed=5)
    assert torch.equal(again.open(DATA)['w'], torch.ones(2))
    again.close()


def test_overwrite_does_not_follow_a_link():
    made('kept')
    os.symlink('kept', 'runs/search/link')
    with pytest.raises(UserError, match='link to another folder'):
        run('link', overwrite=True)
    assert os.path.exists('runs/search/kept/config.yaml')


def test_runs_do_not_nest():
    """A run inside another would be deleted with it, and would make it look like a folder of runs."""
    made('x/y/z')
    for how in ({}, {'overwrite': True}, {'resume': True}):
        with pytest.raises(UserError, match='contains other runs, such as runs/search/x/y/z; take another'):
            run(**how)
    with pytest.raises(UserError, match='begin with'):
        run('x/.hidden')
    for inner in ('x/y/z/tb', 'x/y/z/a/b'):
        for how in ({}, {'overwrite': True}, {'resume': True}):
            with pytest.raises(UserError, match='runs/search/x/y/z is a run; take a --name outside it'):
                run(inner, **how)
    made('x/y/other')
    assert os.path.exists('runs/search/x/y/z/config.yaml')


def test_two_processes_do_not_write_one_run():
    one, other = run(), run()  # both before either has made the folder
    one.open(DATA)
    with pytest.raises(UserError, match='another process is writing runs/search/x'):
        other.open(DATA)
    for how in ({'resume': True}, {'overwrite': True}):
        code = f'import config as cf\nfrom models.run import Run\nRun("search", cf.SearchConfig(name="x", **{how})).open(None)'
        code = code.replace('.open(None)', '.open(__import__("types").SimpleNamespace(mean=0, std=0, digest=0, audio=0))')
        done = subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True,
                              text=True)
        assert 'another process is writing' in done.stderr
    assert os.path.exists(one.file('config.yaml'))
    one.save_checkpoint({'w': torch.ones(2)})
    one.close()
    with pytest.raises(UserError, match='exists: continue it'):  # checked before `one` was made, opened after it was done
        other.open(DATA)
    resumed = run('y', resume=True, n_mels=40)
    made('y')
    with pytest.raises(UserError, match='n_mels is 40'):
        resumed.open(DATA)
    made(resume=True)


def test_recordings_are_only_compared_with_digests_of_the_same_kind():
    made().save_checkpoint({'rng': {'ranks': []}})
    one = run(resume=True)
    one.open(SimpleNamespace(**{**vars(DATA), 'audio': ['another librosa', 'g']}))
    one.close()
    checkpoint = torch.load(one.file('checkpoint.pt'))
    del checkpoint['audio']  # of an earlier version
    torch.save(checkpoint, one.file('checkpoint.pt'))
    again = run(resume=True)
    assert again.open(SimpleNamespace(**{**vars(DATA), 'audio': ['m', 'g']})) is not None
    again.close()


def test_a_folder_that_is_no_run_is_not_touched():
    os.makedirs('runs/search/x')
    with open('runs/search/x/thesis.tex', 'w') as f:
        f.write('work')
    for how in ({}, {'overwrite': True}, {'resume': True}):
        with pytest.raises(UserError, match='is not a run'):
            run(**how)
    os.unlink('runs/search/x/thesis.tex')
    made()  # an empty folder does no harm


def test_overwrite_does_not_follow_links_inside_a_run():
    first = made()
    os.makedirs('elsewhere')
    with open('elsewhere/kept', 'w'):
        pass
    os.symlink(os.path.abspath('elsewhere'), first.file('link'))
    made(overwrite=True)
    assert os.path.exists('elsewhere/kept') and not os.path.lexists(first.file('link'))


def test_a_setting_without_effect_may_change():
    made('n', n_masks=0, max_time=.2).save_checkpoint({})
    made('n', n_masks=0, resume=True)
    made('m', max_time=.2).save_checkpoint({})
    with pytest.raises(UserError, match='max_time is 0.15, but .* began with 0.2'):
        made('m', resume=True)


def test_a_checkpoint_of_another_version_is_noted(capsys):
    first = made()
    first.provenance |= {'torch': '1.0', 'commit': None}  # of a folder without git
    first.save_checkpoint({})
    made(resume=True)
    said = capsys.readouterr().out
    assert f'NOTE: the checkpoint was written by another torch {torch.__version__} (there 1.0)\n' in said


def test_resume_without_a_run_says_so_names_near_ones_and_begins(capsys):
    made('emodb')
    begun = made('emodb2', resume=True)
    said = capsys.readouterr().out
    assert 'WARNING: --resume: there was no run runs/search/emodb2, so a NEW run begins' in said
    assert 'similar names: emodb' in said and os.path.exists(begun.file('config.yaml'))
    made('emodb2', resume=True)  # the same command again: a requeued job
    assert 'NEW run' not in capsys.readouterr().out


def test_settings_without_effect_are_recorded_as_not_used(capsys):
    first = made(n_masks=0, max_time=.5)
    assert 'NOTE: settings without effect: max_time 0.5 (with --n_masks 0)' in capsys.readouterr().out
    with open(first.file('config.yaml')) as f:
        tree = yaml.safe_load(f)
    assert tree['format'] == utils.FORMAT and tree['not_used']['max_time'] == .5 and 'max_time' not in tree
    assert utils.read_settings(first.file('config.yaml'))['max_time'] == .5
    made(n_masks=0, max_time=.5, resume=True)


def test_a_run_of_an_earlier_version_keeps_its_format():
    first = made()
    with open(first.file('config.yaml')) as f:
        tree = yaml.safe_load(f)
    old = {**tree.pop('not_used'), **{k: v for k, v in tree.items() if k not in ('format', *utils.BEFORE_THE_SETTING)}}
    with open(first.file('config.yaml'), 'w') as f:
        yaml.safe_dump(old, f)
    assert made(resume=True).format == 1
    assert utils.read_settings(first.file('config.yaml'))['format'] == 1
    with pytest.raises(UserError, match='trim_db is 30.0, but .* began with 0.0'):
        run(resume=True, trim_db=30.)
    with open(first.file('config.yaml'), 'w') as f:
        yaml.safe_dump({name: value for name, value in old.items() if name != 'alpha_lr'}, f)
    with pytest.raises(UserError, match='alpha_lr is 0.003, but .* began with None'):  # unknown to that run
        run(resume=True)
    with open(first.file('config.yaml'), 'w') as f:
        yaml.safe_dump({**old, 'format': 99}, f)
    with pytest.raises(UserError, match='newer version'):
        run(resume=True)
    with open(first.file('config.yaml'), 'w') as f:
        f.write('a: [')
    with pytest.raises(UserError, match='config.yaml is damaged'):
        run(resume=True)


@pytest.mark.parametrize('error, code', [(UserError('no'), 2), (PermissionError(1, 'no'), 2), (KeyboardInterrupt(), 130),
                                         (KeyError(), 1)])
def test_tensorboard_has_what_was_drawn_before_a_failure(error, code):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def fails():
        one = run()
        one.open(DATA)
        one.end_epoch({'epoch': 1, 'train': {'ua': .5}})
        raise error
    codes = []
    utils.cli(fails, leave=codes.append)
    events = EventAccumulator('runs/search/x/tb')
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars('train/ua')] == [(1, .5)] and codes == [code]
    last = Path('runs/search/x/search.log').read_text().rstrip().splitlines()[-1:]
    assert bool(last and last[0].startswith('FAILED: ')) == (code in (1, 2))  # for scripts/runs.py


def test_a_picture_that_fails_is_a_line_in_the_log():
    one = run()
    one.open(DATA)
    one.draw('broken', lambda: 1 / 0, 1)
    one.close()
    assert 'broken could not be' in Path('runs/search/x/search.log').read_text()


def test_tensorboard_forgets_what_comes_after_the_checkpoint():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    first = run()
    first.open(DATA)
    for epoch, ua in ((1, .5), (2, .6), (3, .7)):
        first.end_epoch({'epoch': epoch, 'train': {'ua': ua}})
        if epoch == 1:
            first.save_checkpoint({'w': torch.ones(2)})
    first.close()
    again = run(resume=True)
    again.open(DATA)
    again.end_epoch({'epoch': 2, 'train': {'ua': .9}})
    again.close()
    events = EventAccumulator('runs/search/x/tb')
    events.Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars('train/ua')] == [(1, .5), (2, .9)]


def test_a_closed_pipe_ends_the_program(capsys, monkeypatch):
    one = run()
    one.open(DATA)

    def broken(*_):
        raise BrokenPipeError
    monkeypatch.setattr(sys.stdout, 'write', broken)
    with pytest.raises(BrokenPipeError):
        one.logger.info('nobody reads this')
    monkeypatch.undo()
    one.close()
