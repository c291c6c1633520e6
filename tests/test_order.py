"""--cnn_order imposed: a CNN cell convolves its inputs, and pools what its nodes hold."""
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

import config as cf
import genotypes as gt
from models.candidates import genotypes_from_alpha, random_genotypes
from models.sampled import Sampler
from models.search_cnn import SearchCNNController


def imposed(genotype) -> bool:
    edges = [edge for kind in ('normal', 'reduce') for node in getattr(genotype, kind) for edge in node]
    return all(name == 'skip_connect' or name.endswith('_pool_3x3') == (state > 1) for name, state in edges)


def supernet(order='imposed', **more):
    torch.manual_seed(0)
    return SearchCNNController(1, 2, 3, 3, nn.CrossEntropyLoss(), 3, 1, 1, 1, 4, order=order, **more)


@pytest.mark.parametrize('space', ['paper', 'speech'])
def test_genotypes_are_drawn_in_this_order(space):
    config = cf.build('search', cf.Given({'name': 'x', 'space': space, 'n_nodes': 3, 'cnn_order': 'imposed'}))
    drawn = list(islice(random_genotypes(config, np.random.default_rng(0)), 50))
    assert all(map(imposed, drawn))
    assert {name for g in drawn for name, _ in g.reduce[2]} >= {'max_pool_3x3', 'sep_conv_3x3', 'skip_connect'}


def test_a_genotype_in_another_order_is_none_of_the_supernets():
    net, cells = supernet(), [[('sep_conv_3x3', 0), ('skip_connect', 1)], [('sep_conv_3x3', 1), ('max_pool_3x3', 2)]] * 2
    within = net.genotype()._replace(normal=cells[:3])
    assert imposed(within) and net.path_of(within)
    for node in ([('max_pool_3x3', 0)], [('sep_conv_3x3', 2)]):
        outside = within._replace(normal=[*cells[:2], node])
        assert supernet('free').path_of(outside)
        with pytest.raises(ValueError, match='a normal cell in another order .* imposed'):
            net.path_of(outside)


def test_whatever_alpha_says_no_other_genotype_is_found():
    net = supernet()
    for alpha in net.alphas():
        nn.init.normal_(alpha, std=3)
    assert imposed(net.genotype()) and not imposed(supernet('free').genotype())
    assert all(map(imposed, islice(genotypes_from_alpha(net, np.random.default_rng(0)), 50)))


def test_a_banned_operation_has_weight_0_and_the_others_the_softmax_of_their_alphas():
    net = supernet()
    for weights, alpha in zip(net.op_weights('normal'), net.alpha_normal):
        for state in range(len(alpha)):
            may = torch.tensor(gt.allowed(net.primitives, state, 'imposed'))
            assert (weights[state, ~may] == 0).all() and may.sum() == (6 if state < 2 else 4)
            torch.testing.assert_close(weights[state, may], torch.softmax(alpha[state, may], dim=0))
    x, y = torch.randn(4, 1, 8, 12), torch.tensor([0, 1, 2, 0])
    net.loss(x, y).backward()
    for alpha in net.alpha_normal:
        assert alpha.grad.isfinite().all() and (alpha.grad[:2, :2] == 0).all() and (alpha.grad[:2, 3:] != 0).any()


@pytest.mark.parametrize('sampling', ['gumbel', 'uniform'])
def test_sampled_paths_keep_the_order(sampling):
    net = supernet()
    settings = {'name': 'x', 'relaxation': 'sampled', 'sampling': sampling, 'cnn_order': 'imposed'}
    sampler = Sampler(net, cf.build('search', cf.Given(settings)))
    for step in range(30):
        sampler.before_weights() if step % 2 else sampler.before_alphas(1)
        path = net.cell_weights('normal')
        for edges in path:
            for state, choice in enumerate(edges):
                assert choice is None or gt.allowed(net.primitives, state, 'imposed')[choice.op]
    net.loss(torch.randn(4, 1, 8, 12), torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_a_set_without_pooling_or_skip_connect_is_refused():
    with pytest.raises(ValueError, match='imposed order needs'):
        supernet(primitives='sep_conv_3x3,none')
