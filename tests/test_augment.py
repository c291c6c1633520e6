"""What augment.py adds to a network: the schedule of the learning rate, the choice of the optimizer."""
import json

import pytest
import torch
from conftest import FEATURES

import augment
from models import training


@pytest.mark.parametrize('epochs', [1, 7])
def test_the_rate_falls_by_torchs_cosine(epochs):
    optim = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optim, epochs)
    for epoch in range(epochs):
        assert training.schedule(epoch, 0, epochs) == pytest.approx(cosine.get_last_lr()[0], abs=1e-12)
        optim.step()
        cosine.step()


def test_the_rate_rises_in_equal_steps_to_its_peak():
    rates = [training.schedule(epoch, 3, 9) for epoch in range(9)]
    assert rates[:4] == pytest.approx([.25, .5, .75, 1.])
    assert rates[3:] == pytest.approx([training.schedule(epoch, 0, 6) for epoch in range(6)])
    assert training.schedule(1, 5, 2) == pytest.approx(2 / 6)  # a run shorter than its warm-up


@pytest.mark.parametrize('optimizer, kind', [('sgd', torch.optim.SGD), ('adamw', torch.optim.AdamW)])
def test_the_optimizer_is_the_one_that_is_named(optimizer, kind, small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made, init = [], kind.__init__
    monkeypatch.setattr(kind, '__init__', lambda self, *args, **kwargs: (made.append(kwargs), init(self, *args, **kwargs))[1])
    augment.main(['--name', 'x', '--dataset', 'manifest', '--data_path', str(small_corpus), *FEATURES, '--model', 'rnn',
                  '--params', '300', '--epochs', '2', '--optimizer', optimizer, '--lr', '0.002', '--warmup', '1',
                  '--weight_decay', '0.03'])
    assert made[0]['weight_decay'] == .03
    rows = [json.loads(line) for line in (tmp_path / 'runs/augment/x/metrics.jsonl').read_text().splitlines()]
    assert [row['lr'] for row in rows] == pytest.approx([.001, .002])
