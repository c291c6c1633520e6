"""Planted problems: one operation alone can solve them. Search must find it from every seed; a random choice does not."""
import functools

import pytest
import torch
import torch.nn as nn

import genotypes as gt
from models.architect import Architect
from models.ops import OPS, MixedOp
from models.rnn_ops import RNN_OPS
from models.search_cnn import parse

CNN_OPS = ('max_pool_3x3', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'dil_conv_3x3', 'dil_conv_5x5', 'none')
SEQ_OPS = ('gru_1', 'skip_connect', 'none')


def distant_pairs(n):
    """Pairs of pulses 8 frames apart (class 0) or 7 or 9 apart (class 1), in four channels of noise: (n, 4, 1, 60).

    Of CNN_OPS only the dilated 5x5 convolution reads two frames that lie 8 apart: the others reach 2, 4 and 4.
    """
    y = torch.randint(2, (n,))
    gap = torch.where(y == 0, 8, 7 + 2 * torch.randint(2, (n,)))
    x = .1 * torch.rand(n, 4, 1, 60)
    rows = torch.arange(n)
    for third in range(3):
        begin = 20 * third + torch.randint(0, 10, (n,))
        x[rows, :, 0, begin] += 1.
        x[rows, :, 0, begin + gap] += 1.
    return x, y


class OneEdge(nn.Module):
    """A single mixed edge, then what lies above its norm, averaged."""
    make, primitives, width = staticmethod(lambda name: OPS[name](4, 1, affine=False)), CNN_OPS, 8

    def __init__(self, primitives=None):
        super().__init__()
        names = primitives or self.primitives
        self.edge = MixedOp(self.make(name) for name in names)
        self.alpha = nn.Parameter(1e-3 * torch.randn(1, len(names)))
        self.linear = nn.Linear(self.width, 2)

    def read(self, x):
        x = x.flatten(2)  # (N, 4, T)
        return torch.cat([x.relu().square().mean(dim=2), x.mean(dim=2)], dim=1)

    def loss(self, X, y):
        return nn.functional.cross_entropy(self(X), y)

    def forward(self, x):
        return self.linear(self.read(self.edge(x, torch.softmax(self.alpha[0], dim=-1))))

    def weights(self):
        return [*self.edge.parameters(), *self.linear.parameters()]

    def alphas(self):
        return [self.alpha]

    def found(self):
        return parse(self.alphas(), 1, self.primitives)[0][0][0]


def order_of_events(n):
    """Event A before event B or after it, far apart: (n, 12, 8). Means and maxima over time do not tell."""
    x, y, rows = .3 * torch.randn(n, 12, 8), torch.randint(2, (n,)), torch.arange(n)
    early, late = torch.randint(0, 4, (n,)), torch.randint(8, 12, (n,))
    x[rows, torch.where(y == 0, early, late), 0] += 3.
    x[rows, torch.where(y == 0, late, early), 1] += 3.
    return x, y


class OneSeqEdge(OneEdge):
    """A single mixed edge over time, then the mean over time."""
    make, primitives, width = staticmethod(lambda name: RNN_OPS[name](8, affine=False)), SEQ_OPS, 8

    def read(self, x):
        return x.mean(dim=1)


def fit(net, draw, n_steps, lr, order=None, warmup=0):
    """Trains w, and with an order alpha before each step of w after `warmup` steps. Returns the accuracy on new data."""
    w_optim = torch.optim.SGD(net.weights(), lr, momentum=.9)
    alpha_optim = torch.optim.Adam(net.alphas(), .02, betas=(.5, .999))
    architect = Architect(net, .9, 0.)
    for step in range(n_steps):
        trn, val = draw(64), draw(64)
        if order and step >= warmup:
            if order == 1:
                architect.backward(*val)
            else:
                architect.unrolled_backward(*trn, *val, w_optim.param_groups[0]['lr'], w_optim)
            alpha_optim.step()
        w_optim.zero_grad()
        net.loss(*trn).backward()
        nn.utils.clip_grad_norm_(net.weights(), 5.)
        w_optim.step()
    X, y = draw(1000)
    with torch.no_grad():
        return (net.eval()(X).argmax(dim=1) == y).float().mean().item()


@functools.cache
def alone(kind, name):
    """Accuracy of one operation in the edge's place."""
    torch.manual_seed(7)
    net, draw = (OneEdge([name]), distant_pairs) if kind == 'cnn' else (OneSeqEdge([name]), order_of_events)
    return fit(net, draw, 250, .8 if kind == 'cnn' else .2)


def test_the_problems_are_what_they_say():
    assert alone('cnn', 'dil_conv_5x5') > .9 and alone('rnn', 'gru_1') > .9
    for name in CNN_OPS[:-2]:
        assert alone('cnn', name) < .75, name
    assert alone('rnn', 'skip_connect') < .6


@pytest.mark.parametrize('order, seed', [(1, 0), (1, 1), (1, 2), (1, 3), (2, 4), (2, 5)])
def test_search_finds_the_planted_operation(order, seed):
    torch.manual_seed(seed)
    edge = OneEdge()
    fit(edge, distant_pairs, 250, .8, order, warmup=150)
    assert edge.found() == 'dil_conv_5x5'
    torch.manual_seed(seed)
    cell = OneSeqEdge()
    fit(cell, order_of_events, 160, .2, order)
    assert cell.found() == 'gru_1'


def test_operations_are_all_reachable():
    assert {*gt.RNN_OP_SETS['all'], *gt.RNN_OP_SETS['speech']} == set(RNN_OPS)
    assert {*gt.PRIMITIVES, *gt.CNN_OP_SETS['speech']} == set(OPS)
