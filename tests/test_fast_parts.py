"""Parts of models/fast against what they replace."""
import copy

import pytest
import torch
import torch.nn as nn
from forms import SEQ_OPS, assert_same, branch  # noqa: F401

import genotypes as gt
from models import rnn_ops
from models.augment_cnn import AugmentCNN
from models.derivatives import differentiating_twice
from models.fast import recurrences
from models.fast.depthwise import DepthwiseConv2d, depthwise, grouped_conv
from models.fast.folding import fold, linear
from models.rnn_ops import RNN_OPS


def derivatives(f, inputs):
    """f(*inputs), and first and second derivatives in random directions."""
    generator = torch.Generator().manual_seed(1)

    def directions(tensors):
        return [torch.randn(t.shape, dtype=t.dtype, generator=generator).requires_grad_() for t in tensors]
    ys = f(*inputs)
    v = directions(ys)
    first = torch.autograd.grad(ys, inputs, v, create_graph=True)
    return [*ys, *first, *torch.autograd.grad(first, [*inputs, *v], directions(first))]


@pytest.mark.parametrize('k', [1, 3, 5, 7])
@pytest.mark.parametrize('stride, dilation', [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize('H, W', [(8, 12), (7, 9), (1, 4), (2, 3)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_depthwise_convolution_with_first_and_second_derivatives(k, stride, dilation, H, W, layout, branch):  # noqa: F811
    convs = [nn.Conv2d(3, 3, size, stride, dilation * (size // 2), dilation, groups=3, bias=False).double() for size in (k, 3)]
    x = torch.randn(2, 3, H, W, dtype=torch.double).contiguous(memory_format=layout).requires_grad_()
    inputs = [x, *(conv.weight for conv in convs)]
    found = derivatives(lambda x, *_: depthwise(x, convs), inputs)
    assert_same(found, derivatives(lambda x, *_: [conv(x) for conv in convs], inputs), 1e-10)


@pytest.mark.parametrize('k', [1, 3, 5, 7])
@pytest.mark.parametrize('stride, dilation', [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize('W', [9, 12])
def test_depthwise_convolution_of_one_row_with_first_and_second_derivatives(k, stride, dilation, W, branch):  # noqa: F811
    convs = [nn.Conv2d(3, 3, (1, size), stride, (0, dilation * (size // 2)), dilation, groups=3, bias=False).double()
             for size in (k, 3)]
    inputs = [torch.randn(2, 3, 1, W, dtype=torch.double, requires_grad=True), *(conv.weight for conv in convs)]
    found = derivatives(lambda x, *_: depthwise(x, convs), inputs)
    assert_same(found, derivatives(lambda x, *_: [conv(x) for conv in convs], inputs), 1e-10)


@pytest.mark.parametrize('twice', [False, True])
@pytest.mark.parametrize('groups, k, stride, dilation', [(6, 3, 1, 1), (6, 5, 2, 2), (6, 3, 1, 2), (2, 1, 1, 1), (3, 3, 2, 1)])
def test_grouped_convolution_with_first_and_second_derivatives(groups, k, stride, dilation, twice, monkeypatch):
    monkeypatch.setattr('models.fast.on_gpu', lambda x: True)
    conv = nn.Conv2d(6, 6, k, stride, dilation * (k // 2), dilation, groups, bias=False).double()
    inputs = [torch.randn(2, 6, 7, 9, dtype=torch.double, requires_grad=True), conv.weight]
    with differentiating_twice(twice):
        found = derivatives(lambda x, w: [grouped_conv(x, w, stride, dilation)], inputs)
    assert_same(found, derivatives(lambda x, w: [conv(x)], inputs), 1e-10)


@pytest.mark.parametrize('channels_last', [False, True])
def test_the_discrete_network_has_fast_depthwise_convolutions_and_computes_the_same(channels_last):
    cell = [[('sep_conv_3x3', 0), ('dil_conv_5x5', 1)], [('sep_conv_5x5', 2), ('dil_conv_3x3', 0)]]
    genotype = gt.Genotype(cell, [2, 3], cell, [2, 3], [[('gru_1', 0)]], [2])
    fast, plain = (AugmentCNN(None, 1, 4, 3, 3, True, genotype, fast=form).double() for form in (True, False))
    plain.load_state_dict(fast.state_dict())
    kinds = [[type(m) for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1] for net in (fast, plain)]
    assert kinds[0].count(DepthwiseConv2d) == len(kinds[0]) - 1 == 18 and set(kinds[1]) == {nn.Conv2d}  # all but the stem
    if channels_last:
        fast.to(memory_format=torch.channels_last)
    x, y = torch.randn(3, 1, 9, 14, dtype=torch.double), torch.tensor([0, 1, 2])
    results = []
    for net in (fast, plain):
        logits, aux = net(x)
        loss = nn.functional.cross_entropy(logits + aux, y)
        results.append([logits, aux, *torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)])
    assert_same(*results, 1e-10)


def test_folded_batch_norm_survives_a_channel_that_is_constant_and_one_far_from_zero():
    norms = [nn.BatchNorm2d(2, affine=False) for _ in range(2)]
    z = torch.randn(4, 3, 6, 6)
    z[:, 0], z[:, 1] = 7., z[:, 1] + 30.
    P = torch.tensor([[[1., 0., 0.], [0., 1., 0.]], [[0., 0., 1.], [1., 1., 1.]]])
    for norm, y, p in zip(copy.deepcopy(norms), linear([z, z], *fold([z, z], P, norms)), P):
        expected = norm(torch.einsum('ck,nkft->ncft', p, z))
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-3)  # measured: 2.3e-4


@pytest.mark.parametrize('twice', [False, True])
@pytest.mark.parametrize('names', [SEQ_OPS, SEQ_OPS[::-1], ('gru_att_2',), ('rnn_1', 'gru_3', 'rnn_att_1', 'lstm_2')], ids=len)
def test_recurrences_together_are_the_operations(names, twice, branch):  # noqa: F811
    ops = [RNN_OPS[name](6, False).double() for name in names if name != 'skip_connect']
    xs = [torch.randn(2, 7, 6, dtype=torch.double, requires_grad=True) for _ in ops]
    parameters = [p for op in ops for p in op.parameters() if p.numel()]
    with differentiating_twice(twice):
        found = recurrences.run_together(xs, ops)
    expected = torch.stack([op(x) for x, op in zip(xs, ops)])
    v = torch.randn_like(expected)
    assert_same([found], [expected], 1e-12)
    assert_same(*(torch.autograd.grad(y, [*xs, *parameters], v, allow_unused=True) for y in (found, expected)), 1e-10)


def test_the_library_runs_what_is_differentiated_once_on_a_gpu_and_lstms_on_a_cpu(branch, monkeypatch):  # noqa: F811
    ran = []
    for module in (recurrences, rnn_ops):  # recurrences of one direction, and of both
        monkeypatch.setattr(module, 'run_rnn', lambda rnn, x, state: (ran.append(type(rnn)), rnn(x, state)[0])[1])
    ops, x = [RNN_OPS[name](6, False) for name in ('lstm_2', 'gru_1', 'rnn_att_1')], torch.randn(2, 7, 6)
    recurrences.run_together([x] * 3, ops)
    assert ran == ([nn.LSTM] if branch == 'cpu' else [nn.LSTM, nn.GRU, nn.RNN])
    with differentiating_twice():
        recurrences.run_together([x] * 3, ops)
    assert ran[-1:] == ([nn.LSTM] if branch == 'cpu' else [nn.RNN]) and len(ran) == (2 if branch == 'cpu' else 3)
