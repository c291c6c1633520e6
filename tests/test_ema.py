"""--ema: the average against a sum by hand, what is scored and kept, and resumption to the bit."""
import json

import pytest
import torch
from conftest import FEATURES

import augment
import utils
from models import training

ARGS = ['--dataset', 'manifest', *FEATURES, '--model', 'cnn_gru', '--params', '900', '--lr', '0.1', '--ema', '0.8']


def test_the_average_is_that_of_a_sum_by_hand():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    ema, wanted = training.averaged(net, .8), None
    assert training.averaged(net, 0.) is None
    for _ in range(5):
        with torch.no_grad():
            for x in (*net.parameters(), net[1].running_mean, net[1].running_var):
                x.normal_()
        now = [x.detach().clone().double() for x in (*net.parameters(), net[1].running_mean, net[1].running_var)]
        wanted = now if wanted is None else [.8 * w + .2 * x for w, x in zip(wanted, now)]
        ema.update_parameters(net)
    found = (*ema.module.parameters(), ema.module[1].running_mean, ema.module[1].running_var)
    for x, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(x.detach().double(), w, atol=1e-6, rtol=0)


def rows(folder):
    lines = (folder / 'metrics.jsonl').read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if not name.endswith('seconds')} for line in lines]


def test_it_is_scored_kept_and_resumed_to_the_bit(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [*ARGS, '--data_path', str(small_corpus), '--epochs', '3']
    augment.main(['--name', 'whole', *argv])
    evaluate, calls = augment.evaluate, []

    def killed(*args):
        calls.append(args[0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args)
    monkeypatch.setattr(augment, 'evaluate', killed)
    with pytest.raises(KeyboardInterrupt):
        augment.main(['--name', 'cut', *argv])
    for run in list(utils.open_runs):  # as at the end of the process
        run.close()
    monkeypatch.setattr(augment, 'evaluate', evaluate)
    augment.main(['--name', 'cut', *argv, '--resume'])
    folders = [tmp_path / 'runs/augment' / name for name in ('whole', 'cut')]
    assert rows(folders[0]) == rows(folders[1])
    best, other = (torch.load(folder / 'best.pt', weights_only=True) for folder in folders)
    last = torch.load(folders[0] / 'checkpoint.pt', weights_only=True)
    assert last['ema']['n_averaged'] == 3 * 3  # batches of 10 of 24 utterances
    for name, x in best['weights'].items():
        assert torch.equal(x, other['weights'][name])
    if best['epoch'] == 3:  # else an earlier average was better
        assert all(torch.equal(x, last['ema'][f'module.{name}']) for name, x in best['weights'].items())
    assert any(not torch.equal(x, last['net'][name]) for name, x in best['weights'].items())
    portable = augment.portable
    monkeypatch.setattr(augment, 'portable', lambda net, *args: calls.append(net) or portable(net, *args))
    monkeypatch.setattr(augment, 'evaluate', lambda net, *args: calls.append(net) or evaluate(net, *args))
    calls.clear()
    augment.main(['--name', 'more', *argv])
    assert len(calls) > 5 and len(set(map(id, calls))) == 1  # one network is scored on dev, kept, and tested


def test_without_it_nothing_of_it_is_in_a_checkpoint(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    augment.main(['--name', 'x', *ARGS[:-2], '--data_path', str(small_corpus), '--epochs', '1'])
    assert 'ema' not in torch.load(tmp_path / 'runs/augment/x/checkpoint.pt', weights_only=True)
