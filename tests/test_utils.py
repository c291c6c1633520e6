import csv
import json
import os
from types import SimpleNamespace

import pytest
import torch

import config as cf
import utils


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / 'a.json'
    utils.write_json(path, {'a': 1})

    def fails(f):
        f.write(b'half')
        raise RuntimeError
    with pytest.raises(RuntimeError):
        utils.write_aside(path, fails)
    assert json.loads(path.read_text()) == {'a': 1}


def test_csv_quotes(tmp_path):
    utils.write_csv(tmp_path / 'a.csv', ['path', 'x'], [['a,"b".wav', 1]])
    with open(tmp_path / 'a.csv', newline='') as f:
        assert list(csv.reader(f)) == [['path', 'x'], ['a,"b".wav', '1']]


DATA = SimpleNamespace(mean=torch.zeros(2, 1), std=torch.ones(2, 1), digest='d')


def run(section='search', **settings):
    return utils.Run(section, cf.SECTIONS[section](name='x', **settings))


def test_an_earlier_run_is_never_lost_by_accident(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = run()
    assert first.open(DATA) is None
    first.end_epoch({'epoch': 1, 'train': {'ua': .5}})
    first.save_checkpoint({'w': torch.ones(2), 'rng': {'ranks': []}})
    first.end_epoch({'epoch': 2, 'train': {'ua': .6}})  # killed here: the second epoch has no checkpoint
    first.close()
    with pytest.raises(utils.UserError, match='--resume'):
        run()
    with pytest.raises(utils.UserError, match='n_mels is 40'):
        run(resume=True, n_mels=40)
    again = run(resume=True, device='cpu')
    assert torch.equal(again.open(DATA)['w'], torch.ones(2))
    assert [json.loads(line)['epoch'] for line in open(again.file('metrics.jsonl'))] == [1]
    again.close()
    with pytest.raises(utils.UserError, match='training audio'):
        run(resume=True).open(SimpleNamespace(mean=torch.ones(2, 1), std=torch.ones(2, 1), digest='d'))
    with pytest.raises(utils.UserError, match='labels or speakers'):
        run(resume=True).open(SimpleNamespace(mean=torch.zeros(2, 1), std=torch.ones(2, 1), digest='e'))
    with pytest.raises(utils.UserError, match='amp is None'):  # another program's run
        utils.Run('search', cf.Reading(name='x', resume=True))
    utils.write_torch(again.file('checkpoint.pt'), {'w': torch.ones(2), 'mean': DATA.mean, 'std': DATA.std, 'history': []})
    with pytest.raises(utils.UserError, match='earlier version'):
        run(resume=True).open(DATA)
    with open(again.file('checkpoint.pt'), 'wb') as f:
        f.write(b'damaged')
    with pytest.raises(utils.UserError, match='checkpoint.pt'):
        run(resume=True).open(DATA)
    anew = run(overwrite=True)
    assert anew.open(DATA) is None and anew.history == []
    anew.close()


@pytest.mark.parametrize('error, code', [(utils.UserError('no'), 2), (OSError('no'), 2), (KeyboardInterrupt(), 130),
                                         (KeyError(), 1)])
def test_tensorboard_has_what_was_drawn_before_a_failure(error, code, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    monkeypatch.chdir(tmp_path)

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


def test_a_folder_of_runs_is_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inner = utils.Run('search', cf.SearchConfig(name='x/y/z'))
    inner.open(DATA)
    inner.close()
    for how in ({}, {'overwrite': True}, {'resume': True}):
        with pytest.raises(utils.UserError, match='folder of other runs, as runs/search/x/y/z; take another'):
            run(**how)
    assert os.path.exists(inner.file('config.yaml'))


def test_resuming_what_never_began_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun = run(resume=True)
    assert begun.open(DATA) is None and os.path.exists(begun.file('config.yaml'))
    begun.close()


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


def test_devices():
    assert utils.choose_device('cpu').type == 'cpu'
    assert utils.choose_device('auto').type in ('cpu', 'cuda')
    for wrong in ('gpu', 'cuda:77'):
        with pytest.raises(utils.UserError, match=wrong):
            utils.choose_device(wrong)


def test_a_users_mistake_is_one_line_and_not_0(capsys):
    def main():
        raise utils.UserError('--fold 9:\n there are\n folds 1 to 5')
    with pytest.raises(SystemExit) as end:
        utils.cli(main)
    shown = capsys.readouterr()
    assert end.value.code == 2 and shown.out == '' and shown.err.endswith('--fold 9: there are folds 1 to 5\n')
    assert shown.err.count('\n') == 1
