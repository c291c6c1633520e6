"""On a CUDA device: both forms against the CPU, autocast, discrete networks, baselines, order 2 of both kinds."""
import copy

import pytest
import torch
from forms import NETWORKS, SEQ_OPS, alpha_gradient, assert_same, assert_same_passes, batch, pair

import genotypes as gt
from config import ANY_INPUT
from models.augment_cnn import AugmentCNN
from models.baselines import make_baseline
from models.ops import OPS

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


@pytest.mark.parametrize('kwargs', NETWORKS, ids=str)
@pytest.mark.parametrize('channels_last', [False, True])
def test_passes_are_those_of_the_plain_form(kwargs, channels_last):
    assert_same_passes(*pair(torch.float, 'cuda', channels_last, **kwargs), *batch(torch.float, 'cuda'), 1e-3)


@pytest.mark.parametrize('order, hessian', [(1, 'exact'), (2, 'exact'), (2, 'difference')])
@pytest.mark.parametrize('rnn_primitives', ['mixed', 'all'])
def test_alpha_steps_of_both_forms_are_those_of_a_cpu(order, hessian, rnn_primitives):
    nets = pair(torch.float, n_layers=4, rnn_primitives=rnn_primitives)
    trn, val = batch(torch.float), batch(torch.float)
    expected = alpha_gradient(copy.deepcopy(nets[0]), order, hessian, trn, val)
    for net in nets:
        on_gpu = [tuple(t.cuda() for t in part) for part in (trn, val)]
        found = [g.cpu() for g in alpha_gradient(net.cuda(), order, hessian, *on_gpu)]
        assert_same(found, expected, 1e-1 if hessian == 'difference' else 1e-2)


@pytest.mark.parametrize('fast', [True, False])
def test_a_step_under_autocast_is_near_that_in_float32(fast):
    net = pair(torch.float, 'cuda', True, rnn_primitives='all')[0 if fast else 1]
    X, y = batch(torch.float, 'cuda')
    losses = []
    for enabled in (False, True):
        with torch.autocast('cuda', torch.bfloat16, enabled=enabled):
            losses.append(net.loss(X, y))
        grads = torch.autograd.grad(losses[-1], list(net.parameters()), allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in grads)
    torch.testing.assert_close(losses[1].float(), losses[0], rtol=.1, atol=.1)


def run(net, X, y, device, autocast=False):
    """Logits, and the gradients of all weights, on the CPU."""
    net.to(device)
    with torch.autocast('cuda', torch.bfloat16, enabled=autocast):
        logits = net(X.to(device))[0]
        loss = torch.nn.functional.cross_entropy(logits, y.to(device))
    grads = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
    return [logits.float().cpu(), *(None if g is None else g.cpu() for g in grads)]


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['contiguous', 'channels_last'])
@pytest.mark.parametrize('stride', [1, 2, (1, 2)], ids=str)
@pytest.mark.parametrize('op', [name for name in OPS if name != gt.NONE])
def test_every_cnn_operation_in_both_layouts(op, stride, layout):
    """Gradients too: PyTorch's average pooling with padding has wrong ones in channels_last.

    The tolerance lets rounding move an input across the kink of a ReLU, which changes gradients by 0.2% here. It could be
    smaller in float64, but then cuDNN's convolutions take no channels_last.
    """
    net, x = OPS[op](8, stride, True), torch.randn(4, 8, 13, 18)
    direction, found = torch.randn(net(x).shape), []
    for device, its in (('cpu', torch.contiguous_format), ('cuda', layout)):
        its_net = copy.deepcopy(net).to(device, memory_format=its)
        its_x = x.to(device, memory_format=its, copy=True).requires_grad_()
        y = its_net(its_x)
        inputs = [its_x, *its_net.parameters()]
        found.append([t.cpu() for t in (y, *torch.autograd.grad((y * direction.to(device)).sum(), inputs))])
    assert_same(found[1], found[0], 1e-2)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['contiguous', 'channels_last'])
@pytest.mark.parametrize('seq_op', SEQ_OPS)
def test_discrete_network_of_every_operation(seq_op, layout):
    cell = [[(op, 0), (op, 1)] for op in gt.PRIMITIVES[:-1]]
    genotype = gt.Genotype(cell, [2, 3], cell, [2, 3], [[(seq_op, 0), (seq_op, 1)]], [2])
    net, (X, y) = AugmentCNN(None, 1, 4, 3, 3, False, genotype, C_rnn=6), batch(torch.float)
    expected = run(net, X, y, 'cpu')
    net.to(memory_format=layout)
    assert_same(run(net, X, y, 'cuda'), expected, 1e-2)  # as above
    assert_same(run(net, X, y, 'cuda', autocast=True)[:1], expected[:1], .1)


@pytest.mark.parametrize('name', ANY_INPUT)
def test_baselines(name):
    net, (X, y) = make_baseline(name, 13, 18, 3, 0.), batch(torch.float)
    expected = run(net, X, y, 'cpu')
    assert_same(run(net, X, y, 'cuda'), expected, 1e-3)
    assert_same(run(net, X, y, 'cuda', autocast=True)[:1], expected[:1], .1)


def test_weights_of_recurrences_stay_in_one_piece_in_the_virtual_step(recwarn):
    """Otherwise cuDNN copies them at every call, and warns."""
    net, _ = pair(torch.float, 'cuda', rnn_primitives='all')
    alpha_gradient(net, 2, 'difference', batch(torch.float, 'cuda'), batch(torch.float, 'cuda'))
    assert not [w for w in recwarn if 'contiguous chunk' in str(w.message)]
