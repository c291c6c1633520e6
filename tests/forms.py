"""Pairs of networks in fast and plain form, and how they are compared."""
import pytest
import torch
import torch.nn as nn

import genotypes as gt
from models import fast
from models.architect import Architect
from models.search_cnn import SearchCNNController

CNN_OPS, SEQ_OPS = gt.PRIMITIVES[:-1], gt.RNN_OP_SETS['all'][:-1]
assert gt.PRIMITIVES[-1] == gt.RNN_OP_SETS['all'][-1] == gt.NONE

NETWORKS = [
    dict(), dict(n_layers=1), dict(n_layers=4, n_nodes=3, n_layers_rnn=2, n_nodes_rnn=3), dict(n_layers_rnn=0),
    dict(rnn_primitives='all'), dict(rnn_primitives='paper'), dict(partial_channels=2), dict(partial_channels=4, n_layers=5),
    *(dict(primitives=f'{op},none', rnn_primitives='skip_connect', n_nodes=2) for op in CNN_OPS),
    *(dict(primitives='skip_connect', rnn_primitives=f'{op},none', n_nodes=1) for op in SEQ_OPS)]


@pytest.fixture(params=['for_cpu', 'for_gpu'])
def branch(request, monkeypatch):
    """Tests run twice on a CPU: with the fast forms for a CPU, and with those for a GPU."""
    monkeypatch.setattr(fast, 'on_gpu', lambda x: request.param == 'for_gpu')
    return request.param[4:]


def pair(dtype=torch.double, device='cpu', channels_last=False, **kwargs):
    """A supernet in fast form with alphas away from zero, and the same one in plain form."""
    sizes = {'C_in': 1, 'n_layers': 3, 'n_nodes': 2, 'C_rnn': 5, **kwargs}
    net, plain = (SearchCNNController(C=4, n_classes=3, criterion=nn.CrossEntropyLoss(), **sizes, fast=form).to(device, dtype)
                  for form in (True, False))
    for alpha in net.alphas():
        nn.init.normal_(alpha)
    plain.load_state_dict(net.state_dict())
    return net.to(memory_format=torch.channels_last) if channels_last else net, plain


def batch(dtype=torch.double, device='cpu', N=5, F=13, T=18):
    return torch.randn(N, 1, F, T, dtype=dtype, device=device), torch.randint(3, (N,), device=device)


def assert_same(found, expected, tolerance):
    """Compares tensors in pairs; None means no gradient. The tolerance is relative to the largest number of all."""
    scale = max(e.abs().max() for e in expected if e is not None)
    assert scale > 0
    for f, e in zip(found, expected, strict=True):
        if f is None or e is None:
            assert (f is None or not f.any()) and (e is None or not e.any())
        else:
            assert (f - e).abs().max() <= tolerance * scale


def assert_same_passes(net, plain, X, y, tolerance):
    """Compares two training passes and one in eval mode: loss, all gradients, running statistics, logits."""
    for _ in range(2):
        losses, grads = [], []
        for form in (net, plain):
            losses.append(form.loss(X, y))
            grads.append(torch.autograd.grad(losses[-1], list(form.parameters()), allow_unused=True))
        assert_same(losses[:1], losses[1:], tolerance)
        assert_same(*grads, tolerance)
    expected = dict(plain.named_buffers())
    names, buffers = zip(*((name, b) for name, b in net.named_buffers() if 'num_batches' not in name))
    assert_same(buffers, [expected[name] for name in names], tolerance)
    for name, b in net.named_buffers():
        if 'num_batches' in name:
            assert torch.equal(b, expected[name]), name
    assert_same([net.eval()(X)], [plain.eval()(X)], tolerance)


def alpha_gradient(net, order, hessian, trn, val):
    """The gradient of the alphas after one step of w."""
    w_optim = torch.optim.SGD(net.weights(), .05, momentum=.9)
    net.loss(*trn).backward()
    w_optim.step()
    architect = Architect(net, .9, 3e-4, hessian)
    architect.backward(*val) if order == 1 else architect.unrolled_backward(*trn, *val, .05, w_optim)
    return [alpha.grad for alpha in net.alphas()]
