import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import genotypes as gt
from models import fast
from models.ops import OPS, FactorizedReduce, MixedOp, PartialMixedOp, Zero, drop_path
from models.rnn_ops import RNN_OPS
from models.sync import BatchNorm2d, slow_on_cpu

SEQ_OPS = [name for name in gt.RNN_OP_SETS['all'] if name != 'none']
RECURRENT = [name for name in SEQ_OPS if name != 'skip_connect']


@pytest.mark.parametrize('name', gt.PRIMITIVES)
@pytest.mark.parametrize('C', [1, 3, 8])
@pytest.mark.parametrize('F, T', [(8, 12), (7, 5), (2, 3), (1, 4)])
def test_cnn_operations_keep_their_contract(name, C, F, T):
    x = torch.randn(2, C, F, T)
    assert OPS[name](C, 1, False)(x).shape == (2, C, F, T)
    assert OPS[name](C, 2, True)(x).shape == (2, C, -(-F // 2), -(-T // 2))


@pytest.mark.parametrize('name', [*SEQ_OPS, 'none'])
@pytest.mark.parametrize('N, T, H', [(1, 7, 5), (3, 1, 8), (2, 4, 1)])
def test_sequential_operations_keep_their_contract(name, N, T, H):
    assert RNN_OPS[name](H, False)(torch.randn(N, T, H)).shape == (N, T, H)


@pytest.mark.parametrize('name', SEQ_OPS)
def test_sequential_operations_do_not_mix_utterances(name):
    op, x = RNN_OPS[name](6, False).double(), torch.randn(5, 9, 6, dtype=torch.double)
    whole = op(x)
    for i in range(5):
        torch.testing.assert_close(op(x[i:i + 1])[0], whole[i], rtol=0, atol=1e-12)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(op(x[order]), whole[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', RECURRENT)
def test_recurrent_operations_run_along_time(name):
    op, x = RNN_OPS[name](6, False).double(), torch.randn(2, 9, 6, dtype=torch.double)
    assert (op(x.flip(1)).flip(1) - op(x)).abs().max() > 1e-3
    changed = x.clone()
    changed[:, 4] += 1.
    seen = (op(changed) - op(x)).abs().amax(dim=(0, 2)) > 1e-9  # (T,) which steps notice
    assert seen.tolist() == ([True] * 9 if 'att' in name else [False] * 4 + [True] * 5)


def test_number_of_layers_is_in_the_name():
    for name in RECURRENT:
        rnn = RNN_OPS[name](4, False).rnn
        assert rnn.num_layers == int(name[-1]) and rnn.bidirectional == ('att' in name)
        assert type(rnn).__name__.lower() == name.split('_')[0]


@pytest.mark.parametrize('stride', [1, 2, (1, 2), (2, 1), (1, 1)])
def test_channels_that_enter_no_operation_get_the_size_of_the_others(stride):
    along_f, along_t = stride if isinstance(stride, tuple) else (stride, stride)
    edge, x = PartialMixedOp([OPS['max_pool_3x3'](2, stride, False)], 2, stride), torch.randn(2, 4, 7, 5)
    y = edge.bypass(x[:, 2:])
    assert edge(x, torch.ones(1)).shape == (2, 4, *y.shape[2:]) == (2, 4, -(-7 // along_f), -(-5 // along_t))
    assert torch.equal(y[:, :, 1, 1], x[:, 2:, along_f:2 * along_f, along_t:2 * along_t].amax(dim=(2, 3)))


def test_mixed_op_is_the_weighted_sum():
    ops = [RNN_OPS[name](4, False) for name in ('gru_1', 'skip_connect', 'none')]
    x, w = torch.randn(2, 5, 4), torch.tensor([.2, .3, .5])
    torch.testing.assert_close(MixedOp(ops)(x, w), .2 * ops[0](x) + .3 * x)


def test_search_operations_cannot_rescale_themselves():
    for name in gt.PRIMITIVES:
        assert not any(p.ndim == 1 for p in OPS[name](4, 1, False).parameters())


def test_zero():
    assert Zero(2)(torch.randn(1, 2, 5, 5)).abs().sum() == 0


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = torch.ones(4000, 3, 2)
    y = drop_path(x, .25, True)
    assert set(y.unique().tolist()) == {0., x.new_tensor(1 / .75).item()}
    assert (y.amin(dim=(1, 2)) == y.amax(dim=(1, 2))).all()
    assert abs(y.mean().item() - 1.) < .05
    assert drop_path(x, .25, False) is x


@pytest.mark.parametrize('C', [1, 3, 8, 12])
def test_batch_norm_in_channels_last_is_pytorchs_and_keeps_the_layout(C):
    x = torch.randn(4, C, 5, 6).contiguous(memory_format=torch.channels_last)
    own, its = BatchNorm2d(C), nn.BatchNorm2d(C)
    assert slow_on_cpu(x) == (C != 8)
    for norm in (own, its):
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(0))
    found = []
    for norm in (own, its):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        assert y.is_contiguous(memory_format=torch.channels_last)
        gradient, = torch.autograd.grad((y ** 3).sum(), leaf, create_graph=True)
        twice, = torch.autograd.grad(gradient.square().sum(), leaf)
        found.append([y, gradient, twice, norm.running_mean, norm.running_var, norm.eval()(x)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.double, torch.bfloat16])
@pytest.mark.parametrize('stride', [1, 2, (1, 2), (2, 1)], ids=str)
@pytest.mark.parametrize('size', [(1, 1), (4, 7), (13, 18)], ids=str)
def test_average_pooling_that_pads_first_is_pytorchs(size, stride, dtype, monkeypatch):
    """On a GPU in channels_last PyTorch's own padding gives wrong gradients; on a CPU it is the oracle."""
    found, x, tolerance = [], torch.randn(2, 8, *size, dtype=dtype), 2e-2 if dtype is torch.bfloat16 else 1e-12
    for on_gpu in (False, True):
        monkeypatch.setattr(fast, 'on_gpu', lambda x, its=on_gpu: its)
        its_x = x.clone(memory_format=torch.channels_last).requires_grad_()
        y = OPS['avg_pool_3x3'](8, stride, False)[0](its_x)
        y.sin().sum().backward()
        found.append((y, its_x.grad))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        assert a.dtype == b.dtype and a.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('C_in, C_out', [(1, 1), (2, 1), (3, 4), (4, 7)])
@pytest.mark.parametrize('F, T', [(8, 12), (7, 5), (1, 4), (5, 1)])
def test_the_factorized_reduction_is_two_strided_convolutions(C_in, C_out, F, T):
    """pt.darts' form: the second convolution reads the map one pixel further; a zero is appended to an odd axis."""
    op, x = FactorizedReduce(C_in, C_out).double(), torch.randn(3, C_in, F, T, dtype=torch.double, requires_grad=True)
    x = nn.functional.relu(x)
    maps = [nn.functional.conv2d(x, op.even.weight, stride=2)]
    if C_out > 1:
        maps.append(nn.functional.conv2d(nn.functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:], op.odd.weight, stride=2))
    torch.testing.assert_close(op(x), op.bn(torch.cat(maps, dim=1)))


@pytest.mark.parametrize('C', [2, 4, 6])
@pytest.mark.parametrize('name', sorted({*gt.PRIMITIVES, *gt.CNN_OP_SETS['speech']} - {'none'}))
def test_gradients_in_channels_last_are_those_of_float64(name, C):
    """A map as large as one of 2 s of speech: oneDNN takes other kernels for small ones, and for few channels."""
    for stride in (1, 2, *[(1, 2), (2, 1)] * (name in gt.CNN_OP_SETS['speech'])):
        op, exact = OPS[name](C, stride, True), OPS[name](C, stride, True).double()
        exact.load_state_dict(op.state_dict())
        x, found, strided = torch.randn(8, C, 32, 62, dtype=torch.double), [], StridedReductions()
        maps = x.float().contiguous(memory_format=torch.channels_last)
        for net, its in ((op.to(memory_format=torch.channels_last), maps.requires_grad_()), (exact, x.requires_grad_())):
            y = net(its)
            weights = torch.randn(y.shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))
            with strided:
                y.backward(weights.to(y.dtype))
            found.append([its.grad, *(p.grad for p in net.parameters())])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-3 * b.abs().max().item() + 1e-9)
        assert not strided.found


class StridedReductions(TorchDispatchMode):
    """Notes gradients of 1x1 convolutions with a stride, which oneDNN gets wrong (uxlfoundation/oneDNN#6035)."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            weight, stride = args[2], args[4]
            if weight.shape[1] > 1 and set(weight.shape[2:]) == {1} and set(stride) != {1}:
                self.found.append((tuple(weight.shape), stride))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('name, reached', [
    ('sep_conv_3x3', range(-2, 3)), ('sep_conv_5x5', range(-4, 5)), ('dil_conv_3x3', (-2, 0, 2)),
    ('dil_conv_5x5', range(-4, 5, 2))])
def test_convolutions_of_the_paper_reach_as_far_as_their_names_say(name, reached):
    op = OPS[name](2, 1, False).double().eval()
    x = torch.rand(1, 2, 15, 15, dtype=torch.double, requires_grad=True)
    for p in op.parameters():
        p.data.abs_()  # so that no ReLU is closed
    op(x)[0, 0, 7, 7].backward()
    for axis in (0, 1):
        along = x.grad[0].sum(dim=0).sum(dim=1 - axis)
        assert (along.nonzero()[:, 0] - 7).tolist() == [*reached]
