"""The supernet's fast form against its plain form: the same loss, gradients, statistics and alpha steps."""
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from forms import NETWORKS, alpha_gradient, assert_same, assert_same_passes, batch, branch, pair  # noqa: F401

import genotypes as gt
from models import ops, rnn_ops
from models.architect import Architect
from models.fast import cells, side_by_side
from models.ops import OPS, PartialMixedOp, Zero
from models.rnn_ops import RNN_OPS
from models.search_cells import Choice, SearchCell, SearchSeqCell
from scripts.textbook_architect import TextbookArchitect

ALPHA_STEPS = [(1, 'exact'), (2, 'exact'), (2, 'difference')]


@pytest.mark.parametrize('kwargs', NETWORKS, ids=str)
def test_passes_are_those_of_the_plain_form(kwargs, branch):  # noqa: F811
    assert_same_passes(*pair(**kwargs), *batch(), 1e-9)


@pytest.mark.parametrize('F, T', [(16, 16), (5, 31), (1, 4), (2, 2)])
@pytest.mark.parametrize('channels_last', [False, True])
def test_any_size_and_layout(F, T, channels_last, branch):  # noqa: F811
    assert_same_passes(*pair(channels_last=channels_last), *batch(F=F, T=T), 1e-9)


@pytest.mark.parametrize('order, hessian', ALPHA_STEPS)
@pytest.mark.parametrize('kwargs', [dict(), dict(n_layers=4, rnn_primitives='all'), dict(partial_channels=2),
                                    dict(n_layers=1, primitives='pool')], ids=str)
def test_alpha_steps_are_those_of_the_plain_form(order, hessian, kwargs, branch):  # noqa: F811
    trn, val = batch(), batch()
    found, expected = (alpha_gradient(form, order, hessian, trn, val) for form in pair(**kwargs))
    assert_same(found, expected, 1e-9 if hessian == 'exact' else 1e-6)  # a difference divides rounding by its step, 1e-6


def test_a_difference_is_that_of_the_textbook(branch):  # noqa: F811
    """The same finite difference in another way: a second network, loops, nothing skipped."""
    net, plain = pair()
    trn, val = batch(), batch()
    for form, architect in ((net, Architect(net, .9, 3e-4, 'difference')),
                            (plain, TextbookArchitect(plain, .9, 3e-4, torch.finfo(torch.double).eps ** (1 / 3)))):
        w_optim = torch.optim.SGD(form.weights(), .05, momentum=.9)
        form.loss(*trn).backward()
        w_optim.step()
        architect.unrolled_backward(*trn, *val, .05, w_optim)
    assert_same([a.grad for a in net.alphas()], [a.grad for a in plain.alphas()], 1e-6)


def test_padding_is_left_out_alike(branch):  # noqa: F811
    net, plain = pair()
    (X, y), valid = batch(), torch.arange(18) < torch.tensor([[18], [3], [1], [7], [12]])
    assert_same([net.loss((X, valid), y)], [plain.loss((X, valid), y)], 1e-9)
    assert abs(net.loss((X, valid), y) - net.loss(X, y)) > 1e-6


def test_the_forms_are_different_computations(branch):  # noqa: F811
    """A test that compared a form with itself would always pass."""
    net, plain = pair()
    X, y = batch()

    def names(form):
        seen, pending = set(), [form.loss(X, y).grad_fn]
        while pending:
            node = pending.pop()
            if node is not None and node not in seen:
                seen.add(node)
                pending += [parent for parent, _ in node.next_functions]
        return {type(node).__name__ for node in seen}
    own = {'cpu': {'_MomentsBackward', '_ConvBackward'}, 'gpu': {'AddcmulBackward0', 'BmmBackward0'}}[branch]
    assert own <= names(net) and not own & names(plain)
    assert {type(cell) for cell in plain.net.cells} == {SearchCell}
    assert {type(cell) for cell in plain.net.seq_cells} == {SearchSeqCell}


class Wave(nn.Module):
    """An operation that the fast forms do not know."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return torch.sin(self.conv(x))


class WaveConv(ops.DilConv):
    """A subclass of an operation that the fast forms know, which computes something else."""

    def forward(self, x):
        return torch.sin(super().forward(x))


class WaveRecurrent(rnn_ops.Recurrent):
    def forward(self, x):
        return torch.sin(super().forward(x))


@pytest.mark.parametrize('order, hessian', ALPHA_STEPS)
@pytest.mark.parametrize('known', [('sep_conv_3x3', 'gru_1'), ('skip_connect', 'skip_connect'), None], ids=str)
def test_a_new_operation_needs_no_fast_form(order, hessian, known, branch, monkeypatch):  # noqa: F811
    monkeypatch.setitem(OPS, 'wave', lambda C, stride, affine: Wave(nn.Conv2d(C, C, 3, stride, 1)))
    monkeypatch.setitem(OPS, 'wave_conv', lambda C, stride, affine: WaveConv(C, 3, stride, 1, affine))
    monkeypatch.setitem(RNN_OPS, 'wave', lambda H, affine: Wave(nn.Linear(H, H)))
    monkeypatch.setitem(RNN_OPS, 'wave_conv', lambda H, affine: WaveRecurrent(H, affine, 'gru', 2))
    monkeypatch.setattr(gt, 'op_set', lambda names, kind='cnn': tuple(names.split(',')))
    names = ['wave,wave_conv' + (f',{op},none' if op else '') for op in known or (None, None)]
    net, plain = pair(primitives=names[0], rnn_primitives=names[1])
    trn, val = batch(), batch()
    assert_same_passes(net, plain, *trn, 1e-9)
    net.train(), plain.train()
    found, expected = (alpha_gradient(form, order, hessian, trn, val) for form in (net, plain))
    assert_same(found, expected, 1e-9 if hessian == 'exact' else 1e-6)


@pytest.mark.parametrize('kwargs', [dict(), dict(partial_channels=2)], ids=str)
def test_inner_states_keep_the_layout(kwargs, branch, monkeypatch):  # noqa: F811
    """A cell that falls back to contiguous maps is right and slow."""
    module = cells if branch == 'cpu' else side_by_side
    seen, mixtures = [], module.mixtures
    monkeypatch.setattr(module, 'mixtures', lambda x, *args: (seen.append(x.stride(1)), mixtures(x, *args))[1])
    net, _ = pair(channels_last=True, **kwargs)
    net.loss(*batch())
    assert len(seen) == (9 if branch == 'cpu' else 6) and set(seen) == {1}


def partial_edge_of_the_authors(edge, stride, x, weights):
    """An edge of PC-DARTS as its authors' code has it; an edge's weights sum to its share in the node."""
    K = edge.partial_channels
    y = sum(w * op(x[:, :x.shape[1] // K]) for w, op in zip(weights, edge._ops))
    rest = x[:, x.shape[1] // K:]
    rest = F.max_pool2d(rest, 2, 2, ceil_mode=True) if stride == 2 else rest
    N, C, H, W = (y := torch.cat([y, weights.sum() * rest], dim=1)).shape
    return y.view(N, K, C // K, H, W).transpose(1, 2).contiguous().view(N, C, H, W)


@pytest.mark.parametrize('stride', [1, 2])
def test_an_edge_of_partial_channels_is_the_authors(stride):
    edge = PartialMixedOp([OPS[name](2, stride, False) for name in gt.PRIMITIVES], 4, stride)
    x, weights = torch.randn(3, 8, 5, 6), torch.rand(len(gt.PRIMITIVES))
    torch.testing.assert_close(edge(x, weights), partial_edge_of_the_authors(edge, stride, x, weights))
    for i, op in enumerate(edge._ops):  # and one operation alone is the mixture with its weight 1
        if not isinstance(op, Zero):
            torch.testing.assert_close(edge.one(x, Choice(i)), edge(x, torch.eye(len(weights))[i]))
            torch.testing.assert_close(edge.one(x, Choice(i, torch.tensor(1.))), edge.one(x, Choice(i)))


def test_edges_of_partial_channels_have_weights_that_rank_them():
    net, _ = pair(partial_channels=2)
    names = [name for name, _ in net.named_alphas()]
    assert any(name.startswith('beta_normal') for name in names) and not any('beta' in n for n, _ in pair()[0].named_alphas())
    with torch.no_grad():
        for alpha in net.alphas():
            alpha.zero_()
        net.alpha_reduce[1][0, 0], net.beta_reduce[1][0], net.beta_reduce[1][2] = 2., -3., 1.  # the best operation, a poor edge
    assert [j for _, j in net.genotype().reduce[1]] == [2, 1]
    weights = torch.stack([w.sum() for w in net.cell_weights('reduce')])
    torch.testing.assert_close(weights, torch.ones(2, dtype=torch.double))
    with pytest.raises(ValueError, match='must divide'):
        pair(partial_channels=3)
