"""The alpha gradient against exact second derivatives, and against a problem solved by hand."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
from torch.func import functional_call

from models import speaker_norm
from models.architect import Architect, replaced
from models.search_cnn import SearchCNNController

TOLERANCE = 1e-4


class Smooth(nn.Module):
    """Two mixtures of tanh layers and dropout: small, smooth, all second derivatives nonzero."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.randn(2, 3))
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))
        self.bn = nn.BatchNorm1d(5)

    def forward(self, x):
        for i, w in enumerate(torch.softmax(self.alpha, dim=-1)):
            x = w[0] * torch.tanh(self.layers[2 * i](x)) + w[1] * torch.sin(self.layers[2 * i + 1](x)) + w[2] * x
            x = self.bn(nn.functional.dropout(x, .3, self.training))
        return x

    def loss(self, X, y):
        return nn.functional.cross_entropy(self(X), y)

    def weights(self):
        return [*self.layers.parameters(), *self.bn.parameters()]

    def alphas(self):
        return [self.alpha]


class Loss(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, X, y):
        return self.net.loss(X, y)


def exact_gradient(net, trn, val, xi, optim, momentum, weight_decay):
    """d L_val(w - xi (momentum v + grad L_trn + weight_decay w), alpha) / d alpha, by autograd through the step."""
    weights, alphas = list(net.weights()), list(net.alphas())
    names = {id(p): name for name, p in Loss(net).named_parameters()}
    grads = torch.autograd.grad(net.loss(*trn), weights, create_graph=True, allow_unused=True)
    moved = {}
    for p, g in zip(weights, grads):
        v = optim.state[p].get('momentum_buffer')
        step = (0. if g is None else g) + weight_decay * p + (0. if v is None else momentum * v)
        moved[names[id(p)]] = p - xi * step
    loss = functional_call(Loss(net), moved, val)
    grads = torch.autograd.grad(loss, alphas, allow_unused=True)
    return [torch.zeros_like(a) if g is None else g for a, g in zip(alphas, grads)]


def relative_error(found, exact):
    found, exact = (torch.cat([x.flatten() for x in xs]) for xs in (found, exact))
    return ((found - exact).norm() / exact.norm()).item()


def batches(net):
    if isinstance(net, Smooth):
        return [(torch.randn(6, 5).double(), torch.randint(5, (6,))) for _ in range(2)]
    return [(torch.randn(3, 1, 8, 12).double(), torch.randint(3, (3,))) for _ in range(2)]


def make(kind):
    if kind == 'smooth':
        return Smooth().double()
    net = SearchCNNController(1, 2, 3, 3, nn.CrossEntropyLoss(), n_nodes=2, stem_multiplier=1, n_layers_rnn=1, n_nodes_rnn=1,
                              C_rnn=4, rnn_primitives='all' if kind == 'supernet_all' else 'mixed', dropout=.2).double()
    for alpha in net.alphas():
        nn.init.normal_(alpha)
    return net


def prepared(kind, momentum, weight_decay):
    """Network, optimizer with momentum buffers from two real steps, and two batches."""
    net = make(kind)
    optim = torch.optim.SGD(net.weights(), .05, momentum=momentum, weight_decay=weight_decay)
    trn, val = batches(net)
    for _ in range(2):
        optim.zero_grad()
        net.loss(*trn).backward()
        optim.step()
    return net, optim, trn, val


@pytest.mark.parametrize('kind, hessian, seed', [
    ('smooth', 'exact', 0), ('smooth', 'difference', 0), *(('supernet', 'exact', seed) for seed in range(4)),
    ('supernet_all', 'exact', 0)])
@pytest.mark.parametrize('momentum, weight_decay', [(0., 0.), (.9, 0.), (0., 1e-2), (.9, 3e-4)])
def test_second_order_is_the_exact_gradient(kind, hessian, seed, momentum, weight_decay):
    torch.manual_seed(seed)
    net, optim, trn, val = prepared(kind, momentum, weight_decay)
    xi, rng = .1, torch.get_rng_state()
    exact = exact_gradient(net, trn, val, xi, optim, momentum, weight_decay)
    torch.set_rng_state(rng)
    Architect(net, momentum, weight_decay, hessian).unrolled_backward(*trn, *val, xi, optim)
    found = [a.grad for a in net.alphas()]
    assert relative_error(found, exact) < TOLERANCE
    # The second-order term is there to be got wrong: first order is far from it.
    torch.set_rng_state(rng)
    Architect(net, momentum, weight_decay).backward(*val)
    assert relative_error([a.grad for a in net.alphas()], exact) > 100 * TOLERANCE


class WrongBracket(Architect):
    def compute_hessian(self, dw, trn_X, trn_y):
        norm = torch.cat([d.flatten() for d in dw]).norm()
        eps = torch.finfo(torch.float64).eps ** (1 / 3) / norm
        return [h * (2. * eps) / 2. * eps for h in super().compute_hessian(dw, trn_X, trn_y)]  # (p - n) / 2. * eps


class OtherMasks(Architect):
    def _set_rng(self, states):
        pass


@pytest.mark.parametrize('broken', [WrongBracket, OtherMasks])
def test_a_broken_second_order_step_is_noticed(broken):
    net, optim, trn, val = prepared('smooth', .9, 3e-4)
    rng = torch.get_rng_state()
    exact = exact_gradient(net, trn, val, .1, optim, .9, 3e-4)
    torch.set_rng_state(rng)
    broken(net, .9, 3e-4, 'difference').unrolled_backward(*trn, *val, .1, optim)
    assert relative_error([a.grad for a in net.alphas()], exact) > 10 * TOLERANCE


def test_the_difference_is_near_at_working_size_and_precision():
    """In float32 on a supernet with kinks a finite difference is only near; how near is what RADIUS was chosen for."""
    net = SearchCNNController(1, 8, 3, 3, nn.CrossEntropyLoss(), n_nodes=2, n_nodes_rnn=1)
    trn, val = ((torch.randn(16, 1, 32, 64), torch.randint(3, (16,))) for _ in range(2))
    architect = Architect(net, .9, 3e-4)
    dw = torch.autograd.grad(net.loss(*val), list(net.weights()), allow_unused=True)
    dw = [torch.zeros_like(p) if g is None else g for p, g in zip(net.weights(), dw)]
    products = (architect.exact_hessian(dw, architect.training_gradient(*trn, create_graph=True)),
                architect.compute_hessian(dw, *trn))
    exact, near = (torch.cat([h.flatten() for h in product]) for product in products)
    assert torch.cosine_similarity(exact, near, dim=0) > .9


def test_first_order_is_autograd_of_the_validation_loss():
    net, _, _, val = prepared('supernet', .9, 3e-4)
    rng = torch.get_rng_state()
    exact = torch.autograd.grad(net.loss(*val), list(net.alphas()), allow_unused=True)
    torch.set_rng_state(rng)
    Architect(net, .9, 3e-4).backward(*val)
    for a, g in zip(net.alphas(), exact):
        torch.testing.assert_close(a.grad, torch.zeros_like(a) if g is None else g, rtol=0, atol=1e-14)


@pytest.mark.parametrize('hessian', [None, 'exact', 'difference'])
def test_a_step_leaves_weights_buffers_and_rng_as_they_were(hessian):
    net, optim, trn, val = prepared('supernet', .9, 3e-4)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    grads = [p.grad.clone() if p.grad is not None else None for p in net.weights()]
    momenta = [s['momentum_buffer'].clone() for s in optim.state.values()]
    rng = torch.get_rng_state()
    if hessian is None:
        Architect(net, .9, 3e-4).backward(*val)
    else:
        Architect(net, .9, 3e-4, hessian).unrolled_backward(*trn, *val, .1, optim)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    for p, g in zip(net.weights(), grads):
        assert p.grad is None if g is None else torch.equal(p.grad, g)
    assert all(torch.equal(s['momentum_buffer'], m) for s, m in zip(optim.state.values(), momenta))
    assert torch.equal(torch.get_rng_state(), rng)


class Plain:
    """Not a Module, and its weight's gradient is one number expanded."""

    def __init__(self):
        self.w, self.a = torch.ones(3, requires_grad=True), torch.ones(1, requires_grad=True)

    def loss(self, X, y):
        return (self.w.sum() * self.a * X).sum()

    def weights(self):
        return [self.w]

    def alphas(self):
        return [self.a]


def test_any_net_with_loss_weights_and_alphas_will_do():
    net, X = Plain(), torch.tensor(2.)
    Architect(net, .9, .1).unrolled_backward(X, None, X, None, .5, torch.optim.SGD(net.weights(), .1))
    # w' = 1 - .5 (2 + .1) = -.05; d/da L_val = 3 (-.05) 2 = -.3; d2 L_trn / (da dw) . dw' = 3 * 2 * 2 = 12
    torch.testing.assert_close(net.a.grad, torch.tensor([-.3 - .5 * 12.]))


def test_weights_come_back_when_a_pass_fails():
    net, optim, trn, val = prepared('smooth', .9, 3e-4)
    before = [p.detach().clone() for p in net.weights()]
    with pytest.raises(IndexError):
        Architect(net, .9, 3e-4).unrolled_backward(*trn, val[0], val[1] + 99, .1, optim)
    assert all(torch.equal(p, b) for p, b in zip(net.weights(), before))


def test_replaced_weights_lie_in_memory_as_the_weights_do():
    """cuDNN keeps the weights of a recurrence in one piece; convolutions in channels_last want strides to match."""
    piece = torch.arange(12.)
    weights = [nn.Parameter(piece[:4].view(2, 2)), nn.Parameter(piece[4:]),
               nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))]
    values, before = [torch.randn(p.shape) for p in weights], [p.data_ptr() for p in weights]
    with replaced(weights, values):
        assert all(torch.equal(p, value) for p, value in zip(weights, values))
        assert weights[0].untyped_storage().data_ptr() == weights[1].untyped_storage().data_ptr() != before[0]
        assert weights[1].data_ptr() - weights[0].data_ptr() == 4 * 4
        assert weights[2].is_contiguous(memory_format=torch.channels_last)
    assert [p.data_ptr() for p in weights] == before and torch.equal(piece, torch.arange(12.))


class Figure2(nn.Module):
    """L_val = alpha w - 2 alpha + 1, L_train = w^2 - 2 alpha w + alpha^2 (DARTS, figure 2); X says which."""

    def __init__(self):
        super().__init__()
        self.alpha, self.w = (nn.Parameter(torch.tensor(v, dtype=torch.double)) for v in (2., -2.))

    def loss(self, X, y):
        a, w = self.alpha, self.w
        return X * (a * w - 2 * a + 1) + (1 - X) * (w ** 2 - 2 * a * w + a ** 2)

    def weights(self):
        return [self.w]

    def alphas(self):
        return [self.alpha]


@pytest.mark.parametrize('xi', [0., .1, .25, .5])
def test_figure_2_ends_where_theory_says(xi):
    # At rest w = alpha and w - 2 + xi * 2 alpha = 0, so alpha = w = 2 / (1 + 2 xi): the optimum (1, 1) for xi = 1/2,
    # DARTS' best guess, and (2, 2) for the first order.
    net = Figure2()
    w_optim, alpha_optim = torch.optim.SGD([net.w], .1), torch.optim.SGD([net.alpha], .05)
    architect = Architect(net, 0., 0.)
    trn, val = torch.tensor(0., dtype=torch.double), torch.tensor(1., dtype=torch.double)
    for _ in range(800):
        architect.unrolled_backward(trn, None, val, None, xi, w_optim) if xi else architect.backward(val, None)
        alpha_optim.step()
        w_optim.zero_grad()
        net.loss(trn, None).backward()
        w_optim.step()
    end = 2. / (1. + 2. * xi)
    assert abs(net.alpha.item() - end) < 1e-5 and abs(net.w.item() - end) < 1e-5


def test_the_difference_is_exact_although_moments_of_speakers_move():
    """Every pass in training changes what SpeakerNorm normalises by; all passes over the training batch must see the same."""
    torch.manual_seed(0)
    net = SearchCNNController(1, 4, 3, 3, nn.CrossEntropyLoss(), n_nodes=2, n_nodes_rnn=1, C_rnn=6,
                              primitives='avg_pool_3x3,skip_connect,sep_conv_3x3,none')
    speaker_norm.added(net.net, SimpleNamespace(embedding='speaker'), torch.full((4,), 40.))
    net.double()
    for alpha in net.alphas():
        nn.init.normal_(alpha)

    def batch():
        return (torch.randn(16, 1, 12, 17, dtype=torch.double), None, None, torch.arange(16) % 4), torch.randint(3, (16,))
    optim = torch.optim.SGD(net.weights(), .025, momentum=.9)
    for _ in range(2):
        optim.zero_grad()
        net.loss(*batch()).backward()
        optim.step()
    trn, val, found = batch(), batch(), []
    before = net.net.speaker_norm.sums.clone()
    for hessian in ('exact', 'difference'):
        Architect(net, .9, 3e-4, hessian).unrolled_backward(*trn, *val, .025, optim)
        found.append(torch.cat([alpha.grad.flatten() for alpha in net.alphas()]))
        assert torch.equal(net.net.speaker_norm.sums, before) and before.any()
    exact, difference = found
    assert (difference - exact).norm() < 1e-6 * exact.norm()
