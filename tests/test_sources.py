"""Networks that read frames of a speech encoder: the mixture of its layers, and maps of one row."""
import numpy as np
import pytest
import torch
import torch.nn as nn
from forms import alpha_gradient, assert_same, assert_same_passes, branch, pair  # noqa: F401
from test_memory import SIZES, N, T, saved
from test_networks import copy_weights, one_hot

import config as cf
import genotypes as gt
from models import memory
from models.augment_cnn import C_AUX, AugmentCNN
from models.fast.depthwise import DepthwiseConv2d
from models.ops import OPS
from models.sampled import Sampler
from models.search_cnn import SearchCNNController
from models.skeleton import statistics_pool, valid_steps
from models.sources import LayerMix, one_row, window_shape

D = 6
CRITERION = nn.CrossEntropyLoss()
SETS = [('paper', 'all'), ('speech', 'speech')]
assert {*sum(gt.CNN_OP_SETS.values(), ())} == {op for name, _ in SETS for op in gt.CNN_OP_SETS[name]}
assert {*sum(gt.RNN_OP_SETS.values(), ())} == {op for _, name in SETS for op in gt.RNN_OP_SETS[name]}


def frames(L, n=4, n_frames=21, dtype=torch.double):
    return torch.randn(n, L, D, n_frames, dtype=dtype) if L > 1 else torch.randn(n, D, 1, n_frames, dtype=dtype)


def supernet(L, layers=3, **kwargs):
    kwargs = {'n_nodes': 2, 'C_rnn': 6, **kwargs}
    return SearchCNNController(C_in=D, C=4, n_classes=3, n_layers=layers, criterion=CRITERION, n_sources=L, **kwargs).double()


def test_layers_are_mixed_by_a_softmax_that_is_uniform_at_first():
    mix, x = LayerMix(3), torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(mix(x), x.mean(dim=1, keepdim=True).transpose(1, 2))
    mix.scores.data = torch.tensor([1., 2., 5.]).log()
    torch.testing.assert_close(mix(x)[1, 4, 0], (x[1, 0, 4] + 2 * x[1, 1, 4] + 5 * x[1, 2, 4]) / 8)
    torch.testing.assert_close(mix.weights(), torch.tensor([1., 2., 5.]) / 8)


def test_the_weights_of_the_layers_are_among_w_and_are_learned():
    net = supernet(3)
    assert net.net.layer_weights() == pytest.approx([1 / 3] * 3) and supernet(1).net.layer_weights() == []
    assert 'mix.scores' in dict(net.named_weights()) and not any('mix' in name for name, _ in net.named_alphas())
    net = supernet(3, 1, primitives='skip_connect', n_layers_rnn=0)
    x, y = 3 * frames(3, 24), torch.arange(24) % 3
    x[range(24), 2, y] += 3.  # the last layer alone knows the classes
    optim = torch.optim.Adam(net.weights(), .05)
    for _ in range(30):
        optim.zero_grad()
        net.loss(x, y).backward()
        optim.step()
    assert net.net.layer_weights()[2] > .4 and sum(net.net.layer_weights()) == pytest.approx(1)


@pytest.mark.parametrize('name', sorted(OPS))
@pytest.mark.parametrize('stride', [1, (1, 2), (1, 1)])
def test_a_kernel_of_one_row_computes_what_the_whole_one_does(name, stride):
    """The rows that are left out read nothing but padding."""
    whole, row = (OPS[name](4, stride, affine=True).double() for _ in range(2))
    one_row(row)
    weights = whole.state_dict()
    for key, x in row.state_dict().items():
        rows = weights[key].shape[2] if x.ndim == 4 else 1
        weights[key] = weights[key] if rows == 1 else weights[key][:, :, rows // 2:rows // 2 + 1]
    row.load_state_dict(weights)
    x = torch.randn(3, 4, 1, 11, dtype=torch.double)
    assert row(x).shape == (3, 4, 1, 6 if stride == (1, 2) else 11)
    torch.testing.assert_close(row(x), whole(x))
    assert all(m.kernel_size[0] == 1 for m in row.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize('changed', [
    *(dict(primitives=cnn, rnn_primitives=rnn, n_nodes=1, n_nodes_rnn=1) for cnn, rnn in SETS),
    dict(partial_channels=2, n_layers_rnn=0), dict(n_layers=4, rnn_primitives='rnn_1,none')], ids=str)
def test_the_fast_supernet_is_the_plain_one(changed, branch):  # noqa: F811
    net, plain = pair(C_in=D, n_sources=3, **changed)
    assert_same_passes(net, plain, frames(3), torch.tensor([0, 1, 2, 1]), 1e-9)


def test_second_derivatives_of_the_fast_supernet_are_those_of_the_plain_one(branch):  # noqa: F811
    y = torch.tensor([0, 1, 2, 1])
    batches = (frames(3), y), (frames(3), y.flip(0))
    found, expected = (alpha_gradient(net, 2, 'exact', *batches) for net in pair(C_in=D, n_sources=3))
    assert_same(found, expected, 1e-9)


@pytest.mark.parametrize('primitives', ['paper', 'frames'])
@pytest.mark.parametrize('L', [1, 3])
def test_every_weight_learns_and_no_map_has_a_second_row(L, primitives):
    net = supernet(L, 4, primitives=primitives, n_layers_rnn=2)
    heights = []
    for module in net.net.cells.modules():
        module.register_forward_hook(lambda module, args, out: heights.append(out.shape[2]))
    net.loss(frames(L, 24), torch.arange(24) % 3).backward()
    assert set(heights) == {1}
    assert {m.kernel_size[0] for m in net.net.modules() if isinstance(m, nn.Conv2d)} == {1}
    assert [name for name, p in net.net.named_parameters() if not p.grad.any() and 'gate' not in name] == []
    assert net.net.seq_cells[0].preproc1[0].in_features == net.net.cells[-1].C_out  # one band: no copies


def test_a_supernet_with_one_hot_alphas_is_the_discrete_network():
    net = supernet(3, 4, n_layers_rnn=2, rnn_primitives='all')
    for alpha in net.alphas():
        nn.init.normal_(alpha)
    genotype = net.genotype()
    one_hot(net, genotype)
    discrete = AugmentCNN(None, D, 4, 3, 4, False, genotype, n_layers_rnn=2, C_rnn=6, n_sources=3).double()
    net.net.mix.scores.data.normal_()
    copy_weights(net, discrete, genotype)
    x = frames(3)
    torch.testing.assert_close(net(x), discrete(x)[0], rtol=0, atol=1e-10)
    assert (discrete(x[:, [1, 0, 2]])[0] - discrete(x)[0]).abs().max() > 1e-6  # the order of layers is heard


@pytest.mark.parametrize('kind', ['supernet', 'discrete'])
@pytest.mark.parametrize('L', [1, 3])
def test_frames_are_scored_alone_as_in_a_batch_and_without_their_padding(kind, L):
    net = supernet(L)
    body, forward = net.net, net
    if kind == 'discrete':
        net = body = AugmentCNN(None, D, 4, 3, 3, True, net.genotype(), C_rnn=6, n_sources=L).double()
        assert net(frames(L))[1].shape == (4, 3) and net.aux_head[-1].in_features == 2 * C_AUX  # no copies
        forward = lambda *X: net(*X)[0]  # noqa: E731
    for _ in range(2):
        net(frames(L))
    net.eval()
    x, valid = frames(L), torch.arange(21) < torch.tensor([[21], [12], [8], [1]])
    x = x * valid[:, None, None]
    whole, sequences = forward(x, valid), []
    torch.testing.assert_close(torch.cat([forward(x[i:i + 1], valid[i:i + 1]) for i in range(4)]), whole, rtol=0, atol=1e-10)
    hook = body.dropout.register_forward_hook(lambda module, args, out: sequences.append(out))
    forward(x, valid)
    hook.remove()
    h = sequences[-1]
    for i, n in enumerate(valid_steps(valid, h.shape[1]).sum(dim=1)[:, 0].tolist()):
        torch.testing.assert_close(body.linear(statistics_pool(h[i:i + 1, :n])), whole[i:i + 1])
    assert (forward(x)[1:] - whole[1:]).abs().max() > 1e-6


@pytest.mark.parametrize('seed', range(4))
def test_networks_drawn_from_the_speech_space_read_frames(seed):
    config = cf.SearchConfig(name='x', space='speech', features='frames', frame_shape=f'3x{D}')
    genotype = gt.draw(np.random.default_rng(seed), 2, 1, 'frames', 'speech', space='speech', frames=True)
    assert 'bands' not in genotype.network and 'both' not in genotype.network.values()
    net = AugmentCNN(None, config.inputs['C_in'], 4, 3, 3, True, gt.from_str(gt.to_str(genotype)), n_sources=3)
    logits, auxiliary = net(frames(3, 2, dtype=torch.float))
    (logits + auxiliary).sum().backward()
    halvings = [genotype.network[name] for name in ('reduce_1', 'reduce_2')].count('time')
    assert net.shrink == [1, 2 ** halvings]
    assert window_shape(config, 21) == (3, D, 21)


def test_strides_of_frames_are_drawn_alike():
    rng = np.random.default_rng(0)
    drawn = [gt.draw(rng, 1, 1, 'frames', 'speech', space='speech', frames=True).network for _ in range(600)]
    for name in ('reduce_1', 'reduce_2'):
        assert 250 < [network[name] for network in drawn].count('time') < 350  # 4 standard deviations: 49


@pytest.mark.parametrize('bands', [4, 'attended'])
def test_decisions_on_frequency_of_a_genotype_of_spectrograms_do_not_matter(bands):
    drawn = gt.draw(np.random.default_rng(0), 2, 1, 'speech', 'speech', space='speech')
    shapes = []
    for network in ({'bands': bands, 'reduce_1': 'both'}, {'reduce_1': 'time'}):
        genotype = drawn._replace(network={**drawn.network, 'layers': 3, **network})
        net = AugmentCNN(None, D, 4, 3, 3, False, genotype, n_sources=1)
        shapes.append({name: x.shape for name, x in net.state_dict().items()})
        assert net(frames(1, dtype=torch.float))[0].shape == (4, 3)
    assert shapes[0] == shapes[1] and not any('attend.' in name for name in shapes[0])


@pytest.mark.parametrize('T', [4, 5, 3])
def test_a_batch_of_one_is_refused_exactly_where_batch_norm_fails(T):
    net = supernet(3)
    try:
        net(frames(3, 1, T))
    except ValueError:
        with pytest.raises(ValueError, match='1 x . shrinks to one: raise --batch_size or --duration'):
            net.net.check_batches(1, T, [1])
    else:
        net.net.check_batches(1, T, [1])


@pytest.mark.parametrize('L, shape', [
    (3, (2, 4, D, 9)), (3, (2, 3, 5, 9)), (1, (2, D, 2, 9)), (1, (2, 1, D, 9)), (1, (2, D, 9)), (0, (2, 1, 4, 9))])
def test_another_input_is_refused(L, shape):
    with pytest.raises(ValueError, match=r'expected \(N, .*\), got'):
        supernet(L)(torch.randn(shape, dtype=torch.double))


def test_the_discrete_network_has_fast_convolutions_of_one_row():
    genotype = supernet(1, primitives='sep_conv_3x3,dil_conv_5x5').genotype()
    net = AugmentCNN(None, D, 4, 3, 3, False, genotype, n_sources=1)
    kinds = {type(m) for m in net.cells.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[1] > 2}
    assert kinds == {DepthwiseConv2d}


@pytest.mark.parametrize('changed', [{}, dict(relaxation='sampled'), dict(cnn_ops='frames', rnn_ops='speech')], ids=str)
@pytest.mark.parametrize('L', [1, 5])
def test_the_estimate_of_memory_is_within_a_factor_of_two(L, changed):
    config = cf.SearchConfig(name='x', features='frames', frame_shape=f'{L}x512', **SIZES, **changed)
    net = SearchCNNController(C=4, n_classes=4, n_layers=3, criterion=CRITERION, n_nodes=2, stem_multiplier=2, C_rnn=32,
                              primitives=config.cnn_ops, rnn_primitives=config.rnn_ops, dropout=.1, **config.inputs)
    sampler, shape = Sampler(net, config), window_shape(config, T)
    found = [saved(net, lambda: sampler.before_alphas(1), shape) for _ in range(3)]
    assert .5 < memory.estimate(config, memory.of_space(config), T, N)[1] / np.mean(found) < 2
    sized = memory.sized(cf.AugmentConfig(name='x', genotype='random', features='frames', frame_shape=f'{L}x512', **SIZES),
                         net.genotype())
    discrete = AugmentCNN(None, C=4, n_classes=4, n_layers=3, auxiliary=False, genotype=net.genotype(), dropout=.1,
                          stem_multiplier=2, **config.inputs)
    assert .5 < memory.estimate(sized, memory.of_genotype(net.genotype()), T, N)[1] / saved(discrete, shape=shape) < 2
