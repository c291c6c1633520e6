"""The estimate of memory, against what autograd saves; and what does not fit is refused before anything is built."""
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import augment
import config as cf
import genotypes as gt
import search
from config import UserError
from models import memory
from models.augment_cnn import AugmentCNN
from models.sampled import Sampler
from models.search_cnn import SearchCNNController

SIZES = dict(init_channels=4, layers=3, stem_multiplier=2, rnn_channels=32, n_nodes=2, rnn_nodes=2, n_mels=16)
N, T = 4, 60


def saved(net, draw=lambda: None, shape=(1, 16, T), n_frames=T) -> int:
    """Bytes that the backward pass of net needs, besides its parameters, after draw(). shape: of a window."""
    draw()
    known = {p.untyped_storage()._cdata for p in net.parameters()}
    kept = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage  # keeps it alive, so that no other has its address
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net(torch.zeros(N, *shape), torch.ones(N, n_frames, dtype=torch.bool))
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize('fast', [True, False])
@pytest.mark.parametrize('changed', [
    {}, dict(layers=6, n_nodes=3), dict(rnn_layers=0), dict(rnn_ops='paper', rnn_channels=64), dict(cnn_ops='pool'),
    dict(cnn_ops='dil_conv'), dict(partial_channels=4, init_channels=8), dict(rnn_ops='gru', layers=1)], ids=str)
def test_the_estimate_of_a_supernet_is_within_a_factor_of_two(changed, fast):
    config = cf.SearchConfig(name='x', **{**SIZES, **changed}, fast=fast)
    net = SearchCNNController(1, config.init_channels, 4, config.layers, torch.nn.CrossEntropyLoss(), config.n_nodes,
                              config.stem_multiplier, config.rnn_layers, config.rnn_nodes, config.rnn_channels, config.cnn_ops,
                              config.rnn_ops, .1, partial_channels=config.partial_channels, fast=fast)
    _, activations = memory.estimate(config, memory.of_space(config), T, N)
    assert .5 < activations / saved(net) < 2


@pytest.mark.parametrize('T', [60, 4000])
@pytest.mark.parametrize('op', ['gru_att_1', 'lstm_att_2', 'self_attention', 'bigru'])
def test_the_estimate_of_attention_grows_with_the_square_of_the_frames(op, T):
    cell = [[('skip_connect', 0), ('skip_connect', 1)]]
    genotype = gt.Genotype(cell, [2], cell, [2], [[(op, 0), (op, 1)]], [2])
    config = cf.AugmentConfig(name='x', genotype='g', **{**SIZES, 'init_channels': 1, 'stem_multiplier': 1, 'rnn_channels': 16})
    net = AugmentCNN(None, 1, 1, 4, 3, False, genotype, 1, 1, 16, .1)
    assert .5 < memory.estimate(config, memory.of_genotype(genotype), T, N)[1] / saved(net, shape=(1, 16, T), n_frames=T) < 2


@pytest.mark.parametrize('ops', [{}, dict(cnn_ops='speech', rnn_ops='speech')], ids=str)
@pytest.mark.parametrize('relaxation', ['softmax', 'sampled'])
def test_the_estimate_of_the_speech_space_and_of_sampled_paths_is_within_a_factor_of_two(relaxation, ops):
    config = cf.SearchConfig(name='x', **{**SIZES, **ops}, relaxation=relaxation)
    net = SearchCNNController(1, config.init_channels, 4, config.layers, torch.nn.CrossEntropyLoss(), config.n_nodes,
                              config.stem_multiplier, config.rnn_layers, config.rnn_nodes, config.rnn_channels, config.cnn_ops,
                              config.rnn_ops, .1)
    sampler = Sampler(net, config)
    _, activations = memory.estimate(config, memory.of_space(config), T, N)
    assert .5 < activations / np.mean([saved(net, lambda: sampler.before_alphas(1)) for _ in range(5)]) < 2


@pytest.mark.parametrize('layers', [3, 6])
def test_the_estimate_of_a_supernet_with_decisions_is_that_of_the_largest_network_within_a_factor_of_two(layers):
    changed = dict(layers=layers, space='speech', cnn_ops='speech', rnn_ops='speech', n_nodes=2, rnn_nodes=1)
    config = cf.SearchConfig(name='x', **{**SIZES, **changed}, relaxation='sampled')
    net = SearchCNNController(1, config.init_channels, 4, layers, torch.nn.CrossEntropyLoss(), 2, config.stem_multiplier,
                              config.rnn_layers, 1, config.rnn_channels, 'speech', 'speech', .1, decisions=config.decisions)
    sampler = Sampler(net, config)
    fixed, activations = memory.estimate(config, memory.of_space(config), T, N)
    found = sorted(saved(net, lambda: sampler.before_alphas(1)) for _ in range(20))
    assert .5 < activations / found[-1] < 2 and activations > np.mean(found)
    parameters = fixed - memory.OBJECT * sum(len(module._ops) for module in net.modules() if hasattr(module, '_ops'))
    assert .5 < parameters / memory.COPIES / sum(p.numel() for p in net.weights()) < 2


@pytest.mark.parametrize('seed', range(4))
def test_the_estimate_of_a_genotype_of_the_speech_space_is_within_a_factor_of_two(seed):
    genotype = gt.draw(np.random.default_rng(seed), 2, 1, 'speech', 'speech', space='speech')
    config = memory.sized(cf.AugmentConfig(name='x', genotype='random', **SIZES), genotype)
    net = AugmentCNN(None, 1, 4, 4, 3, False, genotype, dropout=.1, stem_multiplier=2)
    assert .5 < memory.estimate(config, memory.of_genotype(genotype), T, N)[1] / saved(net) < 2


@pytest.mark.parametrize('seed, changed', [(0, {}), (1, dict(layers=8, n_nodes=4)), (2, dict(rnn_ops='all', rnn_channels=128))])
def test_the_estimate_of_a_genotype_is_within_a_factor_of_two(seed, changed):
    config = cf.AugmentConfig(name='x', genotype='random', **{**SIZES, **changed})
    genotype = gt.draw(np.random.default_rng(seed), config.n_nodes, config.rnn_nodes, config.cnn_ops, config.rnn_ops)
    net = AugmentCNN(None, 1, config.init_channels, 4, config.layers, False, genotype, config.stem_multiplier,
                     config.rnn_layers, config.rnn_channels, .1)
    fixed, activations = memory.estimate(config, memory.of_genotype(genotype), T, N)
    assert .5 < activations / saved(net) < 2
    assert .5 < fixed / memory.COPIES / sum(p.numel() for p in net.parameters()) < 3


@pytest.mark.parametrize('argv', [['--layers', '100', '--n_nodes', '32'], ['--init_channels', '4096', '--layers', '50'],
                                  ['--rnn_channels', '4096', '--rnn_layers', '100'], ['--duration', '600', '--n_mels', '1024']])
def test_a_supernet_that_cannot_fit_is_refused_with_its_size_at_once(argv, monkeypatch):
    monkeypatch.setattr(memory, 'free_memory', lambda device: 16 * 10 ** 9)
    config = cf.build('search', cf.given('search', ['--name', 'x', *argv, '--batch_size', '64']))
    train = SimpleNamespace(n_frames=config.n_frames, world_size=1, device=torch.device('cpu'),
                            batch_sizes=lambda batch_size, half: [batch_size])
    data = SimpleNamespace(sets={'train': train}, labels=['a', 'b'], class_weights=None)
    began = time.process_time()
    with pytest.raises(UserError, match=r'takes about [\d,.]+ GB of memory .* but cpu has 16.0 GB: lower --batch_size'):
        search.make_net(config, data, [range(9)])
    assert time.process_time() - began < .5
    if '--layers' not in argv:
        return
    genotype = gt.draw(np.random.default_rng(0), 4, 2)
    config = cf.AugmentConfig(name='x', genotype='random', layers=config.layers, init_channels=4096, batch_size=64)
    train.batch_sizes = lambda batch_size: [batch_size]
    with torch.device('meta'), pytest.raises(UserError, match='GB of memory'):  # whatever torch's default device is
        augment.make_net(config, data, genotype)


def test_the_memory_that_is_free_is_at_most_that_of_the_machine():
    there = memory.free_memory(torch.device('cpu'))
    total = int(next(line.split()[1] for line in open('/proc/meminfo') if line.startswith('MemTotal'))) * 1024
    assert 0 < there <= total
