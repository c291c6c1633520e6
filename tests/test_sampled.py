"""The sampled relaxation: which networks are drawn, what they compute, and the straight-through gradient of alpha."""
import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
import scipy.stats
import torch
from test_networks import CRITERION, one_hot, supernet

import genotypes as gt
from models import sampled
from models.architect import Architect
from models.sampled import Sampler


def sampler(net, sampling='gumbel', seed=0, epochs=2):
    config = SimpleNamespace(relaxation='sampled', sampling=sampling, epochs=epochs, seed=seed)
    return Sampler(net, config)


def batch(n=3):
    return torch.randn(n, 1, 12, 17, dtype=torch.double), torch.tensor([0, 1, 2])


@pytest.mark.parametrize('fast', [True, False])
def test_sampled_and_softmax_agree_where_alpha_is_one_hot(fast):
    torch.manual_seed(1)
    net = supernet(4, n_layers_rnn=2, n_nodes_rnn=2, rnn_primitives='all', fast=fast).double()
    for alpha in net.alphas():
        torch.nn.init.normal_(alpha)
    genotype = net.genotype()
    one_hot(net, genotype)  # `none` on the edges that the genotype lacks
    (X, y), weights = batch(), list(net.weights())
    expected = net(X), torch.autograd.grad(net.loss(X, y), weights, allow_unused=True)
    for paths in ('drawn', net.path_of(genotype)):
        net.paths = paths
        if paths == 'drawn':
            sampler(net).before_weights()
        torch.testing.assert_close(net(X), expected[0], rtol=0, atol=1e-10)
        for found, grad in zip(torch.autograd.grad(net.loss(X, y), weights, allow_unused=True), expected[1]):
            assert found is None and not (grad is not None and grad.abs().max() > 1e-12) or \
                torch.allclose(found, grad, rtol=0, atol=1e-10)


def test_the_straight_through_gradient_is_that_of_the_formula():
    """Oracle: y_i = sum_j sum_o h_jo op_o(x_j), all operations computed, h the relaxed draw, its value replaced by one-hot."""
    net, tau = supernet(3, n_nodes_rnn=2).double(), .7
    for alpha in net.alphas():
        torch.nn.init.normal_(alpha)
    (X, y), alphas = batch(), list(net.alphas())
    draw = sampler(net)
    draw._draw(tau)
    found = torch.autograd.grad(net.loss(X, y), alphas, allow_unused=True)
    noise = {kind: path.keywords['noise'] for kind, path in net.paths.items()}
    net.paths = None

    def hard(kind):
        weights = []
        for alpha, g in zip(getattr(net, f'alpha_{kind}'), noise.get(kind, [])):
            a = torch.exp(alpha) / torch.exp(alpha).sum(dim=1, keepdim=True)
            h = torch.exp((torch.log(a) + g) / tau) / torch.exp((torch.log(a) + g) / tau).sum(dim=1, keepdim=True)
            drawn = torch.zeros_like(h).scatter(1, (alpha + g).argmax(dim=1, keepdim=True), 1.)
            # Only the drawn operation is computed, so that only its weight has a gradient.
            weights.append(drawn * (h - h.detach()) + drawn)
        return weights
    loss = CRITERION(net.net.forward_cells(X, {kind: hard(kind) for kind in net.kinds()})[0], y)
    expected = torch.autograd.grad(loss, alphas, allow_unused=True)
    assert max(g.abs().max() for g in expected if g is not None) > 1e-3
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=0, atol=1e-10)


def test_operations_are_drawn_as_often_as_alpha_says():
    net = supernet(3)
    for alpha in net.alphas():
        torch.nn.init.normal_(alpha)
    draw, counts, n = sampler(net), Counter(), 2000
    for _ in range(n):
        draw.before_weights()
        counts[net.paths['reduce'](net.alpha_reduce)[1][2].op] += 1
    p = torch.softmax(net.alpha_reduce[1][2].detach(), dim=0)
    for op, share in enumerate(p.tolist()):
        assert counts[op] / n == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** .5)


def test_uniform_paths_are_networks_of_the_space():
    net, counts, states = supernet(3, n_nodes=2, n_nodes_rnn=2), Counter(), {kind: Counter() for kind in gt.KINDS}
    draw, n = sampler(net, 'uniform'), 300
    for _ in range(n):
        draw.before_weights()
        for kind in gt.KINDS:
            last = net.paths[kind][-1]
            states[kind][tuple(state for state, choice in enumerate(last) if choice is not None)] += 1
        for node in net.paths['normal']:
            edges = [choice for choice in node if choice is not None]
            assert len(edges) == 2 and all(net.primitives[choice.op] != 'none' for choice in edges)
            counts.update(choice.op for choice in edges)
    for kind, found in states.items():
        inputs = len(net.paths[kind][-1])
        pairs = list(itertools.combinations(range(inputs), 2))
        assert {*found} == {*pairs} and len(pairs) > 2
        assert scipy.stats.chisquare([found[pair] for pair in pairs]).pvalue > .001, kind
    assert len(counts) == 7 and max(counts.values()) < 1.4 * min(counts.values())  # 171 of each expected, sd 12


def test_a_step_of_w_leaves_alpha_and_what_was_not_drawn_alone():
    net, (X, y) = supernet(3).double(), batch()
    draw = sampler(net)
    draw.before_weights()
    net.loss(X, y).backward()
    assert all(alpha.grad is None for alpha in net.alphas())
    assert 0 < sum(w.grad is not None for w in net.weights()) < .4 * len(list(net.weights()))


@pytest.mark.parametrize('order, hessian', [(1, 'exact'), (2, 'exact'), (2, 'difference')])
def test_the_architect_differentiates_one_path(order, hessian):
    """With order 2 both batches pass the same path; the finite difference is near the exact product."""
    net, trn, val = supernet(3, primitives='avg_pool_3x3,skip_connect,none', n_layers_rnn=1).double(), batch(), batch()
    w_optim = torch.optim.SGD(net.weights(), .05, momentum=.9)
    architect, draw = Architect(net, .9, 0., hessian), sampler(net)
    draw.before_alphas(1)
    before = draw.draws.get_state()
    architect.backward(*val) if order == 1 else architect.unrolled_backward(*trn, *val, .05, w_optim)
    assert torch.equal(draw.draws.get_state(), before)
    found = torch.cat([alpha.grad.flatten() for alpha in net.alphas()])
    assert found.abs().max() > 0
    if hessian == 'difference':
        Architect(net, .9, 0., 'exact').unrolled_backward(*trn, *val, .05, w_optim)
        exact = torch.cat([alpha.grad.flatten() for alpha in net.alphas()])
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-4 * exact.abs().max().item())


def test_none_on_every_edge_is_a_node_of_zeros():
    net, (X, _) = supernet(3).double(), batch()
    for alpha in net.alphas():
        torch.nn.init.constant_(alpha, 0.)
        alpha.data[:, -1] = 1e3
    draw = sampler(net)
    draw.before_weights()
    found, net.paths = net(X), None
    torch.testing.assert_close(found, net(X), rtol=0, atol=1e-10)


@pytest.mark.parametrize('order, hessian', [(1, 'exact'), (2, 'exact'), (2, 'difference')])
def test_a_path_that_ends_in_none_gives_alpha_no_gradient(order, hessian):
    net, trn, val = supernet(3, n_nodes_rnn=1, primitives='skip_connect,none').double(), batch(), batch()
    with torch.no_grad():
        net.alpha_rnn[0][:, -1] = 1e3
    w_optim = torch.optim.SGD(net.weights(), .05, momentum=.9)
    architect = Architect(net, .9, 0., hessian)
    sampler(net).before_alphas(1)
    architect.backward(*val) if order == 1 else architect.unrolled_backward(*trn, *val, .05, w_optim)
    assert all(torch.equal(alpha.grad, torch.zeros_like(alpha)) for alpha in net.alphas())


def test_the_temperature_falls_linearly():
    assert [sampled.temperature(epoch, 3) for epoch in (1, 2, 3)] == pytest.approx([10., 5.05, .1])
    assert sampled.temperature(1, 1) == 10.
    net = supernet(3)
    draw = sampler(net)
    for epoch in (1, draw.config.epochs):
        draw.before_alphas(epoch)
        taus = {path.keywords['tau'] for path in net.paths.values()}
        assert taus == {sampled.temperature(epoch, draw.config.epochs)}
    assert draw.config.epochs > 1
