"""The supernet's fast form against its textbook form: the same loss, gradients, statistics and alpha steps."""
import copy

import pytest
import torch
import torch.nn as nn
from textbook import TextbookArchitect, textbook

import genotypes as gt
from models import search_cells
from models.architect import Architect
from models.fast import recurrences
from models.fast.depthwise import DepthwiseConv2d, depthwise
from models.fast.folding import fold, linear
from models.rnn_ops import RNN_OPS
from models.search_cnn import SearchCNNController

CNN_OPS, SEQ_OPS = gt.PRIMITIVES[:-1], gt.RNN_OP_SETS['all'][:-1]
assert gt.PRIMITIVES[-1] == gt.RNN_OP_SETS['all'][-1] == gt.NONE

NETWORKS = [
    dict(), dict(n_layers=1), dict(n_layers=4, n_nodes=3, n_layers_rnn=2, n_nodes_rnn=3), dict(n_layers_rnn=0),
    dict(rnn_primitives='all'), dict(rnn_primitives='paper'), dict(partial_channels=2), dict(partial_channels=4, n_layers=5),
    *(dict(primitives=f'{op},none', rnn_primitives='skip_connect', n_nodes=2) for op in CNN_OPS),
    *(dict(primitives='skip_connect', rnn_primitives=f'{op},none', n_nodes=1) for op in SEQ_OPS)]


def pair(dtype=torch.double, device='cpu', channels_last=False, **kwargs):
    """A supernet with alphas away from zero, and the same one in textbook form."""
    sizes = {'n_layers': 3, 'n_nodes': 2, 'C_rnn': 5, **kwargs}
    net = SearchCNNController(1, 4, 3, criterion=nn.CrossEntropyLoss(), **sizes).to(device, dtype)
    for alpha in net.alphas():
        nn.init.normal_(alpha)
    book = textbook(copy.deepcopy(net))
    return net.to(memory_format=torch.channels_last) if channels_last else net, book


def batch(dtype=torch.double, device='cpu', N=5, F=13, T=18):
    return torch.randn(N, 1, F, T, dtype=dtype, device=device), torch.randint(3, (N,), device=device)


def assert_same(found, expected, tolerance):
    """Tensors in pairs, None where there is no gradient; the tolerance is relative to the largest number of all."""
    scale = max(e.abs().max() for e in expected if e is not None)
    assert scale > 0
    for f, e in zip(found, expected, strict=True):
        if f is None or e is None:
            assert (f is None or not f.any()) and (e is None or not e.any())
        else:
            assert (f - e).abs().max() <= tolerance * scale


def same_passes(net, book, X, y, tolerance):
    """Two training passes and one in eval mode."""
    for _ in range(2):
        losses, grads = [], []
        for form in (net, book):
            losses.append(form.loss(X, y))
            grads.append(torch.autograd.grad(losses[-1], list(form.parameters()), allow_unused=True))
        assert_same(losses[:1], losses[1:], tolerance)
        assert_same(*grads, tolerance)
    names, buffers = zip(*((name, b) for name, b in net.named_buffers() if 'num_batches' not in name))
    assert_same(buffers, [dict(book.named_buffers())[name] for name in names], tolerance)
    for name, b in net.named_buffers():
        if 'num_batches' in name:
            assert torch.equal(b, dict(book.named_buffers())[name]), name
    assert_same([net.eval()(X)], [book.eval()(X)], tolerance)


@pytest.mark.parametrize('kwargs', NETWORKS, ids=str)
def test_passes_are_those_of_the_textbook(kwargs):
    same_passes(*pair(**kwargs), *batch(), 1e-9)


@pytest.mark.parametrize('F, T', [(16, 16), (5, 31), (1, 4), (2, 2)])
@pytest.mark.parametrize('channels_last', [False, True])
def test_any_size_and_layout(F, T, channels_last):
    same_passes(*pair(channels_last=channels_last), *batch(F=F, T=T), 1e-9)


def alpha_gradient(net, order, hessian, trn, val):
    w_optim = torch.optim.SGD(net.weights(), .05, momentum=.9)
    net.loss(*trn).backward()
    w_optim.step()
    architect = Architect(net, .9, 3e-4, hessian)
    architect.backward(*val) if order == 1 else architect.unrolled_backward(*trn, *val, .05, w_optim)
    return [alpha.grad for alpha in net.alphas()]


@pytest.mark.parametrize('order, hessian', [(1, 'exact'), (2, 'exact'), (2, 'difference')])
@pytest.mark.parametrize('kwargs', [dict(), dict(n_layers=4, rnn_primitives='all'), dict(partial_channels=2),
                                    dict(n_layers=1, primitives='pool')], ids=str)
def test_alpha_steps_are_those_of_the_textbook(order, hessian, kwargs):
    net, book = pair(**kwargs)
    trn, val = batch(), batch()
    found, expected = (alpha_gradient(form, order, hessian, trn, val) for form in (net, book))
    assert_same(found, expected, 1e-9 if hessian == 'exact' else 1e-6)  # a difference divides rounding by its step, 1e-6


def test_a_difference_is_that_of_the_textbook():
    """The same finite difference by the other way: a second network, loops, nothing skipped."""
    net, book = pair()
    trn, val = batch(), batch()
    for form, architect in ((net, Architect(net, .9, 3e-4, 'difference')),
                            (book, TextbookArchitect(book, .9, 3e-4, torch.finfo(torch.double).eps ** (1 / 3)))):
        w_optim = torch.optim.SGD(form.weights(), .05, momentum=.9)
        form.loss(*trn).backward()
        w_optim.step()
        architect.unrolled_backward(*trn, *val, .05, w_optim)
    assert_same([a.grad for a in net.alphas()], [a.grad for a in book.alphas()], 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize('kwargs', NETWORKS, ids=str)
@pytest.mark.parametrize('channels_last', [False, True])
def test_gpu_passes_are_those_of_the_textbook(kwargs, channels_last, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    same_passes(*pair(torch.float, 'cuda', channels_last, **kwargs), *batch(torch.float, 'cuda'), 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize('order, hessian', [(1, 'exact'), (2, 'exact')])
def test_gpu_alpha_steps_are_those_of_the_textbook(order, hessian, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    net, book = pair(torch.float, 'cuda', n_layers=4)
    trn, val = batch(torch.float, 'cuda'), batch(torch.float, 'cuda')
    assert_same(*(alpha_gradient(form, order, hessian, trn, val) for form in (net, book)), 1e-3)


def test_the_textbook_is_another_computation():
    """Each form takes its own way: a test that compared one with itself would always pass."""
    net, book = pair()
    X, y = batch()
    def names(form):
        seen, pending = set(), [form.loss(X, y).grad_fn]
        while pending:
            node = pending.pop()
            if node is not None and node not in seen:
                seen.add(node)
                pending += [parent for parent, _ in node.next_functions]
        return {type(node).__name__ for node in seen}
    assert '_MomentsBackward' in names(net) and '_ConvBackward' in names(net)
    assert '_MomentsBackward' not in names(book) and '_ConvBackward' not in names(book)


@pytest.mark.parametrize('k', [1, 3, 5, 7])
@pytest.mark.parametrize('stride, dilation', [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize('H, W', [(8, 12), (7, 9), (1, 4), (2, 3)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_depthwise_convolution_is_that_of_torch_with_first_and_second_derivatives(k, stride, dilation, H, W, layout):
    convs = [DepthwiseConv2d(3, size, stride, dilation).double() for size in (k, 3)]
    x = torch.randn(2, 3, H, W, dtype=torch.double).contiguous(memory_format=layout).requires_grad_()
    inputs = [x, *(conv.weight for conv in convs)]

    def derivatives(ys):
        generator = torch.Generator().manual_seed(1)

        def weights(tensors):
            return [torch.randn(t.shape, dtype=t.dtype, generator=generator).requires_grad_() for t in tensors]
        v = weights(ys)
        first = torch.autograd.grad(ys, inputs, v, create_graph=True)
        return [*ys, *first, *torch.autograd.grad(first, [*inputs, *v], weights(first))]
    assert_same(derivatives(depthwise(x, convs)), derivatives([nn.Conv2d.forward(conv, x) for conv in convs]), 1e-10)


def test_folded_batch_norm_survives_a_channel_that_is_constant_and_one_far_from_zero():
    norms = [nn.BatchNorm2d(2, affine=False) for _ in range(2)]
    z = torch.randn(4, 3, 6, 6)
    z[:, 0], z[:, 1] = 7., z[:, 1] + 30.
    P = torch.tensor([[[1., 0., 0.], [0., 1., 0.]], [[0., 0., 1.], [1., 1., 1.]]])
    for norm, y, p in zip(copy.deepcopy(norms), linear([z, z], *fold([z, z], P, norms)), P):
        expected = norm(torch.einsum('ck,nkft->ncft', p, z))
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-3)  # measured: 2.3e-4


@pytest.mark.parametrize('names', [SEQ_OPS, SEQ_OPS[::-1], ('gru_att_2',), ('rnn_1', 'gru_3', 'rnn_att_1', 'lstm_2')], ids=len)
def test_batched_recurrences_are_the_operations(names):
    ops = [RNN_OPS[name](6, False).double() for name in names if name != 'skip_connect']
    xs = [torch.randn(2, 7, 6, dtype=torch.double, requires_grad=True) for _ in ops]
    parameters = [p for op in ops for p in op.parameters() if p.numel()]
    found, expected = recurrences.run(xs, ops), torch.stack([op(x) for x, op in zip(xs, ops)])
    v = torch.randn_like(expected)
    assert_same([found], [expected], 1e-12)
    assert_same(*(torch.autograd.grad(y, [*xs, *parameters], v, allow_unused=True) for y in (found, expected)), 1e-10)


def test_batched_lstms_too_which_a_cpu_leaves_to_the_library():
    ops = [RNN_OPS[name](6, False).double() for name in ('lstm_3', 'lstm_att_2', 'lstm_2', 'lstm_1')]
    xs, rnns = [torch.randn(2, 7, 6, dtype=torch.double, requires_grad=True) for _ in ops], [op.rnn for op in ops]
    batched = recurrences.stacks(xs, rnns, range(len(rnns)))
    found = torch.stack([batched[j] for j in range(len(rnns))])
    expected = torch.stack([recurrences.directions_added(rnn(x)[0], rnn) for x, rnn in zip(xs, rnns)])
    assert_same([found], [expected], 1e-12)
    inputs = [*xs, *(p for rnn in rnns for p in rnn.parameters())]
    assert_same(*(torch.autograd.grad(y.sin().sum(), inputs) for y in (found, expected)), 1e-10)


@pytest.mark.parametrize('kwargs', [dict(), dict(partial_channels=2)], ids=str)
def test_inner_states_keep_the_layout(kwargs, monkeypatch):
    """A cell that falls back to contiguous maps is right and slow."""
    seen, original = [], search_cells.mixtures
    monkeypatch.setattr(search_cells, 'mixtures', lambda x, *args: (seen.append(x.stride(1)), original(x, *args))[1])
    net, _ = pair(channels_last=True, **kwargs)
    net.loss(*batch())
    assert len(seen) == 9 and set(seen) == {1}


def test_edges_of_partial_channels_have_weights_that_rank_them():
    net, _ = pair(partial_channels=2)
    names = [name for name, _ in net.named_alphas()]
    assert any(name.startswith('beta_normal') for name in names) and not any('beta' in n for n, _ in pair()[0].named_alphas())
    with torch.no_grad():
        for alpha in net.alphas():
            alpha.zero_()
        net.alpha_reduce[1][0, 0], net.beta_reduce[1][0], net.beta_reduce[1][2] = 2., -3., 1.  # the best operation, a poor edge
    assert [j for _, j in net.genotype().reduce[1]] == [2, 1]
    torch.testing.assert_close(torch.stack([w.sum() for w in net.mixture('reduce')]), torch.ones(2, dtype=torch.double))
    with pytest.raises(ValueError, match='must divide'):
        pair(partial_channels=3)
