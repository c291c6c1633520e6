"""--space speech: its operations in both networks, its decisions outside the cells, and its draws."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import SMALL
from forms import alpha_gradient, assert_same, assert_same_passes, batch, branch, pair  # noqa: F401
from test_networks import check_batch_invariance, copy_weights, one_hot, padded, settle, supernet

import augment
import config as cf
import genotypes as gt
from config import UserError
from models import decisions as its_decisions
from models import heads, skeleton
from models.augment_cnn import AugmentCNN
from models.heads import HEADS, AttendedBands
from models.ops import OPS, AxisReduce
from models.rnn_ops import RNN_OPS
from models.search_cnn import SearchCNNController
from models.skeleton import valid_steps
from models.training import n_parameters

CNN_OPS, SEQ_OPS = (gt.op_set('speech', kind)[:-1] for kind in ('cnn', 'rnn'))
NEW_OPS = [name for name in CNN_OPS if name not in gt.PRIMITIVES]
NEW_SEQ_OPS = [name for name in SEQ_OPS if name not in gt.RNN_OP_SETS['all']]
STRIDES = [1, 2, (1, 2), (2, 1)]


def rng(seed=0):
    return np.random.default_rng(seed)


def draw(seed=0, **network):
    genotype = gt.draw(rng(seed), 2, 1, 'speech', 'speech', space='speech')
    return genotype._replace(network={**genotype.network, **network})


@pytest.mark.parametrize('name', {**OPS})
def test_operations_halve_the_axes_of_their_stride(name):
    for C in (1, 3, 8):
        for F, T in ((8, 12), (7, 5), (2, 3), (1, 4)):
            for stride in STRIDES:
                along_f, along_t = stride if isinstance(stride, tuple) else (stride, stride)
                y = OPS[name](C, stride, affine=True)(torch.randn(2, C, F, T))
                assert y.shape == (2, C, -(-F // along_f), -(-T // along_t))


def test_new_operations_cannot_rescale_themselves_in_a_search():
    for name in NEW_OPS:
        assert not any(p.ndim == 1 for p in OPS[name](4, 1, affine=False).parameters()), name
    for name in NEW_SEQ_OPS:
        assert not [*RNN_OPS[name](4, affine=False).norm.parameters()] and [*RNN_OPS[name](4, affine=True).norm.parameters()]


# Where an impulse in the middle of a 17 x 17 map is noticed: along F, along T. None: everywhere on this axis.
REACH = {'time_conv_5': (0, 2), 'time_conv_9': (0, 4), 'time_conv_5_dil_4': (0, 8), 'freq_conv_5': (2, 0),
         'freq_conv_9': (4, 0), 'dense_conv_3x3': (1, 1), 'gated_conv_3x3': (1, 1), 'se_conv_3x3': (None, None),
         'broadcast_conv': (None, 2), 'freq_attention': (None, 0)}


@pytest.mark.parametrize('name', NEW_OPS)
def test_cnn_operations_see_as_far_as_they_should(name):
    op, x = OPS[name](4, 1, affine=False).double().eval(), torch.randn(1, 4, 17, 17, dtype=torch.double)
    other = x.clone()
    other[:, :, 8, 8] += 3.
    seen = (op(x) - op(other)).abs().sum(dim=(0, 1)) > 1e-9
    for axis, reach in enumerate(REACH[name]):
        found = seen.any(dim=1 - axis).nonzero().flatten()
        assert (found[0], found[-1]) == ((0, 16) if reach is None else (8 - reach, 8 + reach))


@pytest.mark.parametrize('name, reach', [('gated_conv_1', 1), ('gated_conv_3', 7), ('self_attention', None), ('bilstm', None),
                                         ('bigru', None), ('res_bilstm', None), ('res_bigru', None)])
def test_sequential_operations_see_as_far_as_they_should(name, reach):
    op, x = RNN_OPS[name](6, False).double(), torch.randn(3, 21, 6, dtype=torch.double)
    other = x.clone()
    other[1, 10] += 3.
    seen = ((op(x) - op(other)).abs().amax(dim=2) > 1e-9)
    assert not seen[0].any() and not seen[2].any()  # no operation mixes utterances
    found = seen[1].nonzero().flatten()
    assert (found[0], found[-1]) == ((0, 20) if reach is None else (10 - reach, 10 + reach))
    turned = (op(x.flip(1)).flip(1) - op(x)).abs().max()
    assert turned < 1e-9 if name == 'self_attention' else turned > 1e-3


@pytest.mark.parametrize('family', ['lstm', 'gru'])
def test_residual_recurrences_add_their_input(family):
    plain, residual = (RNN_OPS[f'{prefix}bi{family}'](6, False).double() for prefix in ('', 'res_'))
    residual.load_state_dict(plain.state_dict())
    plain.norm, residual.norm, x = nn.Identity(), nn.Identity(), torch.randn(2, 5, 6, dtype=torch.double)
    torch.testing.assert_close(residual(x) - plain(x), x)
    torch.testing.assert_close(plain(x), plain.rnn(x)[0].view(2, 5, 2, 6).sum(dim=2))


def test_an_odd_axis_is_halved_after_a_zero():
    reduce, signed = AxisReduce(2, 3, (1, 2)).double(), torch.randn(1, 2, 4, 5, dtype=torch.double)
    reduce.bn, x = nn.Identity(), signed.relu()
    torch.testing.assert_close(reduce(signed), reduce(x))
    weight = reduce.conv.weight[:, :, 0]  # (3, 2, 2)
    torch.testing.assert_close(reduce(x)[..., 1], torch.einsum('oci,ncfi->nof', weight, x[..., 2:4]))
    torch.testing.assert_close(reduce(x)[..., 2], torch.einsum('oc,ncf->nof', weight[..., 0], x[..., 4]))


def covering(names, n_nodes, first):
    """A gene whose edges have these operations, from number `first` on, in turn."""
    edges = [[(names[(first + 2 * i + e) % len(names)], e + i) for e in range(2)] for i in range(n_nodes)]
    return edges, range(2, 2 + n_nodes)


@pytest.mark.parametrize('first', [0, 4, 8])
@pytest.mark.parametrize('fast', [True, False])
def test_supernet_with_one_hot_alphas_is_the_discrete_network(first, fast):
    genotype = gt.Genotype(*covering(CNN_OPS, 2, first), *covering(CNN_OPS, 2, first + 2), *covering(SEQ_OPS, 2, first))
    net = supernet(4, n_layers_rnn=2, primitives='speech', rnn_primitives='speech', fast=fast).double()
    one_hot(net, genotype)
    discrete = AugmentCNN(None, 1, 4, 3, 4, False, genotype, n_layers_rnn=2, C_rnn=6).double()
    copy_weights(net, discrete, genotype)
    x, y = torch.randn(3, 1, 12, 17, dtype=torch.double), torch.tensor([0, 1, 2])
    torch.testing.assert_close(net(x), discrete(x)[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.autograd.grad(net.loss(x, y), net.net.stem[0].weight)[0],
                               torch.autograd.grad(nn.CrossEntropyLoss()(discrete(x)[0], y), discrete.stem[0].weight)[0])
    with torch.no_grad():
        net.alpha_normal[1].zero_()
    assert (net(x) - discrete(x)[0]).abs().max() > 1e-6


def test_the_one_hot_genotypes_have_every_operation():
    for names in (CNN_OPS, SEQ_OPS):
        genes = [covering(names, 2, first + shift)[0] for first in (0, 4, 8) for shift in (0, 2)]
        found = {op for gene in genes for node in gene for op, _ in node}
        assert found == set(names)


def test_the_fast_supernet_is_the_plain_one(branch):  # noqa: F811
    net, plain = pair(primitives='speech', rnn_primitives='speech', n_layers=2, n_nodes=1, n_nodes_rnn=1)
    assert_same_passes(net, plain, *batch(), 1e-9)
    trn, val = batch(), batch()
    found, expected = (alpha_gradient(form, 2, 'exact', trn, val) for form in (net, plain))
    assert_same(found, expected, 1e-9)


@pytest.mark.parametrize('seed', range(6))
def test_drawn_networks_train_and_score_alone_as_in_a_batch(seed):
    genotype = draw(seed, bands=gt.NETWORK_CHOICES['bands'][seed % 5], head=gt.NETWORK_CHOICES['head'][seed % 4])
    net = settle(AugmentCNN(None, 1, 4, 3, 3, True, genotype).double(), 1, 12, 17)
    check_batch_invariance(lambda x: net(x)[0])
    logits, aux = net.train()(torch.randn(2, 1, 5, 31, dtype=torch.double))
    (logits.sum() + aux.sum()).backward()
    assert logits.shape == (2, 3) and all(p.grad is not None for cell in net.cells[-1:] for p in cell.parameters())


@pytest.mark.parametrize('one, two, sizes', [
    ('both', 'both', [(6, 9), (3, 5)]), ('time', 'frequency', [(12, 9), (6, 9)]), ('time', 'time', [(12, 9), (12, 5)]),
    ('frequency', 'both', [(6, 17), (3, 9)])])
def test_decisions_reach_the_network(one, two, sizes):
    genotype = draw(3, layers=4, C=3, C_rnn=5, rnn_layers=2, reduce_1=one, reduce_2=two, bands=8, head='mean_std')
    net, same = (AugmentCNN(None, 1, *others, False, genotype) for others in ((9, 3, 7), (3, 3, 4)))
    assert [p.shape for p in net.parameters()] == [p.shape for p in same.parameters()]
    shapes = []
    for cell in net.cells[1:3]:  # the reduction cells
        cell.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    net(torch.randn(2, 1, 12, 17))
    assert shapes == [(2, 2 * 3 * 2, *sizes[0]), (2, 2 * 3 * 4, *sizes[1])] and len(net.cells) == 4 and len(net.seq_cells) == 2
    assert net.seq_cells[0].preproc1[0].weight.shape == (5, 8 * 24) and net.linear.in_features == 2 * 5


@pytest.mark.parametrize('layers, reduced', [(2, [0, 1]), (3, [1, 2]), (4, [1, 2]), (5, [1, 3]), (6, [2, 4]), (8, [2, 5])])
def test_reduction_cells_are_at_one_and_two_thirds_of_the_depth(layers, reduced):
    net = AugmentCNN(None, 1, 3, 3, layers, False, draw(3)._replace(network=None))
    assert [i for i, cell in enumerate(net.cells) if cell.kind == 'reduce'] == reduced


def test_a_batch_of_one_is_refused_where_a_map_shrinks_to_one_value():
    net = AugmentCNN(None, 1, 4, 3, 3, False, draw(0, layers=3, reduce_1='time', reduce_2='both', rnn_layers=0))
    net.check_batches(3, 4, [1])
    with pytest.raises(ValueError, match='--batch_size'):
        net.check_batches(2, 4, [1])


@pytest.mark.parametrize('name', [*HEADS, 'mean_std'])
def test_heads_see_no_padding(name):
    """The logits of a padded window are those of its pooled steps alone, cut where the padding begins."""
    net = AugmentCNN(None, 1, 4, 3, 3, False, draw(1, rnn_layers=1, C_rnn=8, head=name)).double()
    settle(net, 1, 12, 17)
    (x, valid), sequences = padded(), []
    net.seq_cells[-1].register_forward_hook(lambda module, args, out: sequences.append(out))
    masked, plain, h = net(x, valid)[0], net(x)[0], sequences[0]
    for i, n in enumerate(valid_steps(valid, h.shape[1]).sum(dim=1)[:, 0].tolist()):
        cut = h[i:i + 1, :n]
        if name == 'mean_std':
            pooled = torch.cat([cut.mean(dim=1), (cut.var(dim=1, unbiased=False) + 1e-5).sqrt()], dim=-1)
        elif name == 'attention':
            weights = torch.softmax(net.head.score(cut), dim=1)
            pooled = (weights * cut).sum(dim=1)
        else:
            pooled = cut.mean(dim=1) if name == 'mean' else cut.max(dim=1).values
        torch.testing.assert_close(net.linear(pooled), masked[i:i + 1])
    assert (plain[1:] - masked[1:]).abs().max() > 1e-6


@pytest.mark.parametrize('decisions', [False, True])
def test_a_sequence_is_as_wide_as_its_heads(decisions, monkeypatch):
    for module in (heads, skeleton, its_decisions):
        monkeypatch.setattr(module, 'N_HEADS', 3, raising=False)
    x, genotype = torch.randn(2, 1, 8, 12), draw(layers=3, bands='attended', rnn_layers=0)
    if decisions:
        net = SearchCNNController(1, 2, 3, 3, nn.CrossEntropyLoss(), 1, C_rnn=4, decisions=True)
        net.paths = {**net.path_of(net.genotype()), 'network': net.net.decided({'bands': 'attended'})}
        assert net(x).shape == (2, 3)
    else:
        assert AugmentCNN(None, 1, 2, 3, 3, False, genotype)(x)[0].shape == (2, 3)


def test_attended_bands_are_weighted_means_over_frequency():
    attend, x = AttendedBands(3).double(), torch.randn(2, 3, 7, 10, dtype=torch.double)
    y = attend(x, 10).view(2, 10, 3, 4)
    assert (y.amax(dim=3) <= x.amax(dim=2).transpose(1, 2)).all() and (y.amin(dim=3) >= x.amin(dim=2).transpose(1, 2)).all()
    flat = x[:, :, :1].expand(-1, -1, 7, -1)
    torch.testing.assert_close(attend(flat, 10).view(2, 10, 3, 4)[..., 2], x[:, :, 0].transpose(1, 2))
    assert (attend(x.flip(2), 10).view(2, 10, 3, 4) - y).abs().max() > 1e-3  # it knows where a frequency is
    assert attend(x, 4).shape == (2, 4, 12)


def test_a_search_finds_genotypes_of_the_space():
    net = SearchCNNController(1, 4, 3, 3, nn.CrossEntropyLoss(), 2, n_nodes_rnn=1, C_rnn=6, primitives='speech',
                              rnn_primitives='speech')
    net.loss(torch.randn(2, 1, 12, 17), torch.tensor([0, 2])).backward()
    genotype = net.genotype()
    assert genotype.network is None and gt.from_str(gt.to_str(genotype)) == genotype
    AugmentCNN(None, 1, 4, 3, 3, False, genotype)(torch.randn(2, 1, 12, 17))


def test_draws_reach_every_choice_and_survive_both_forms(tmp_path):
    seen = {name: set() for name in gt.NETWORK_CHOICES}
    ops, generator = set(), rng()
    for _ in range(150):
        genotype = gt.draw(generator, 2, 1, 'speech', 'speech', space='speech')
        assert gt.check(genotype) == genotype == gt.from_str(gt.to_str(genotype))
        assert bool(genotype.rnn) == bool(genotype.network['rnn_layers']) == ('C_rnn' in genotype.network)
        assert bool(genotype.normal) == (genotype.network['layers'] > 2)
        ops |= {op for kind in gt.KINDS for op in gt.op_counts(genotype)[kind]}
        for name, value in genotype.network.items():
            seen[name].add(value)
    assert seen == {name: set(choices) for name, choices in gt.NETWORK_CHOICES.items()} and ops == {*CNN_OPS, *SEQ_OPS}
    with pytest.raises(UserError, match='--init_channels has no effect with this --genotype, which decides it itself'):
        augment.configure(cf.given('augment', ['--name', 'x', '--genotype', gt.to_str(genotype), '--init_channels', '4']))
    resumed = ['--name', 'x', '--genotype', gt.to_str(genotype), '--init_channels', '4', '--resume']
    assert augment.configure(cf.given('augment', resumed))[1] == genotype  # versions that let a run begin so
    gt.save(tmp_path / 'g.json', genotype, {'network': {'layers': 9}})
    assert gt.load(tmp_path / 'g.json') == (genotype, {'network': {'layers': 9}})
    assert json.loads((tmp_path / 'g.json').read_text())['genotype']['network'] == genotype.network
    assert (tmp_path / 'g.json').stat().st_size < 2_000


def test_genotypes_of_the_paper_are_written_as_before(tmp_path):
    genotype = gt.draw(rng(), 2, 1)
    assert genotype.network is None and gt.to_str(genotype).endswith('rnn_concat=range(2, 3))')
    gt.save(tmp_path / 'g.json', genotype, {})
    assert 'network' not in (tmp_path / 'g.json').read_text() and gt.load(tmp_path / 'g.json') == (genotype, {})
    assert gt.from_str(gt.to_str(genotype).replace('Genotype(', 'Genotype(network={"C": 3}, ')).network == {'C': 3}


@pytest.mark.parametrize('network, wrong', [
    ([], 'table of decisions'), ({}, 'table of decisions'), ('C', 'table of decisions'),
    ({'C': 10 ** 9}, 'C 1000000000 must be a'), ({'C': True}, 'C True'), ({'C': 4.}, 'C 4.0'), ({'C': '4'}, "C '4'"),
    ({'C_rnn': 1}, 'from 2 to'), ({'layers': 0}, 'layers 0'),
    ({'bands': 'all'}, 'attended or a number'), ({'bands': 0}, 'bands 0'), ({'head': 'sum' * 99}, 'mean or mean_std'),
    ({'head': ['mean']}, 'head'), ({'reduce_1': 2}, 'reduce_1 2 must be both'), ({'rnn_layers': -1}, 'rnn_layers -1'),
    ({'x' * 999: 1}, 'unknown decision'), ({4: 1}, 'unknown decision'), ({'C': None}, 'C None'), ({'C': [[]] * 999}, 'C ')])
def test_hostile_decisions_are_refused(network, wrong):
    genotype = draw()._replace(network=network)
    with pytest.raises(ValueError, match=wrong) as error:
        gt.from_str(gt.to_str(genotype))
    assert len(str(error.value)) < 250
    with pytest.raises(ValueError):
        gt.from_str(json.dumps({name: list(value) if isinstance(value, range) else value
                                for name, value in genotype._asdict().items()}))


def test_random_genotypes_of_augment_obey_space_and_band(small_corpus):
    argv = ['--name', 'x', '--genotype', 'random', '--space', 'speech', '--dataset', 'manifest', '--data_path',
            str(small_corpus), *SMALL[:SMALL.index('--init_channels')]]
    config, free, _ = augment.configure(cf.given('augment', argv))
    assert (config.cnn_ops, config.rnn_ops, config.n_nodes, config.rnn_nodes) == ('speech', 'speech', 2, 1)
    assert free == augment.configure(cf.given('augment', argv))[1] and free.network
    config, genotype, _ = augment.configure(cf.given('augment', [*argv, '--band', '3000-5000']))
    assert 3000 <= n_parameters(config, ['angry', 'sad'], genotype) <= 5000
    config, _, _ = augment.configure(cf.given('augment', [*argv, '--cnn_ops', 'conv', '--n_nodes', '4']))
    assert (config.cnn_ops, config.n_nodes, config.rnn_ops) == ('conv', 4, 'speech')


def test_the_page_of_the_method_names_every_operation_and_decision():
    page = (Path(gt.__file__).parent / 'docs' / 'method.md').read_text().partition('### `--space speech`')[2]
    assert not [name for name in (*CNN_OPS, *SEQ_OPS, *gt.NETWORK_CHOICES) if f'`{name}`' not in page]


def normalised(y):
    """Batch norm of a training batch, without affine parameters."""
    return (y - y.mean(dim=(0, 2, 3), keepdim=True)) / (y.var(dim=(0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()


def conv(x, weight, stride=1, dilation=1):
    """Zero-padded convolution, depthwise if the weight has one input channel."""
    padding = [dilation * (k // 2) for k in weight.shape[2:]]
    return torch.nn.functional.conv2d(x, weight, None, stride, padding, dilation, x.shape[1] if weight.shape[1] == 1 else 1)


FORMULAS = {  # of x, the weights in order, and the stride
    'time_conv_5_dil_4': lambda x, w, s: normalised(conv(conv(x.relu(), w[0], s, 4), w[1])),
    'freq_conv_9': lambda x, w, s: normalised(conv(conv(x.relu(), w[0], s), w[1])),
    'dense_conv_3x3': lambda x, w, s: normalised(conv(x.relu(), w[0], s)),
    'gated_conv_3x3': lambda x, w, s: normalised(gated(*conv(conv(x, w[0], s), w[1]).chunk(2, dim=1))),
    'se_conv_3x3': lambda x, w, s: normalised(squeezed(conv(conv(x.relu(), w[0], s), w[1]), *w[2:])),
    'broadcast_conv': lambda x, w, s: normalised(broadcast(normalised(conv(x.relu(), w[0], s)), *w[1:])),
    'freq_attention': lambda x, w, s: normalised(attended(pooled(x, s), *w)),
}


def gated(a, b):
    return a / (1 + (-b).exp())


def squeezed(y, W1, W2):
    return y * torch.sigmoid(conv(conv(y.mean(dim=(2, 3), keepdim=True), W1).relu(), W2))


def broadcast(y, along_time, mix):
    t = conv(y.mean(dim=2, keepdim=True), along_time)
    return y + conv(gated(t, t), mix)


def pooled(x, stride):
    """Means of blocks; those at the end may be smaller."""
    f, t = stride if isinstance(stride, tuple) else (stride, stride)
    return torch.stack([torch.stack([block.mean(dim=(2, 3)) for block in rows.split(t, dim=3)], dim=-1)
                        for rows in x.split(f, dim=2)], dim=2)


def attended(x, score, out):
    weights = torch.softmax(conv(x, score), dim=2)
    return x + conv((weights * x).sum(dim=2, keepdim=True), out)


@pytest.mark.parametrize('stride', STRIDES, ids=str)
@pytest.mark.parametrize('name', FORMULAS)
def test_an_operation_is_the_formula_of_its_weights(name, stride):
    torch.manual_seed(0)
    op, x = OPS[name](4, stride, False).double(), torch.randn(2, 4, 5, 7, dtype=torch.double)
    torch.testing.assert_close(op(x), FORMULAS[name](x, [p.detach() for p in op.parameters()], stride))


def test_longer_maps_and_prosody_are_averaged_to_the_steps():
    """Of 7 frames the 3 steps hear frames 0 to 2, 2 to 4 and 4 to 6."""
    torch.manual_seed(0)
    bands, x = AttendedBands(4).double(), torch.randn(2, 4, 5, 7, dtype=torch.double)
    means = torch.stack([x[..., i:i + 3].mean(dim=-1) for i in (0, 2, 4)], dim=-1)
    torch.testing.assert_close(bands(x, 3), bands(means, 3))
    prosody = x[:, :, 0]
    torch.testing.assert_close(skeleton.prosody_steps(prosody, 3), means[:, :, 0].transpose(1, 2))


def test_sequence_operations_and_attended_bands_are_their_formulas():
    torch.manual_seed(0)
    x = torch.randn(2, 7, 4, dtype=torch.double)  # (N, T, H)
    attend, gated = (RNN_OPS[name](4, False).double() for name in ('self_attention', 'gated_conv_3'))
    q, k, v = (x @ W.T + b for W, b in zip(attend.maps.weight.chunk(3), attend.maps.bias.chunk(3)))
    weights = torch.softmax(torch.einsum('nth,nsh->nts', q, k) / 2, dim=-1)
    torch.testing.assert_close(attend(x), attend.norm(x + torch.einsum('nts,nsh->nth', weights, v)))
    y = x
    for i, conv in enumerate(gated.convs):
        d, padded = 2 ** i, torch.nn.functional.pad(y, (0, 0, 2 ** i, 2 ** i))
        taps = sum(padded[:, j * d:j * d + 7] @ conv.weight[:, :, j].T for j in range(3)) + conv.bias
        y = y + taps[..., :4] * torch.sigmoid(taps[..., 4:])
    torch.testing.assert_close(gated(x), gated.norm(y))
    bands, x = AttendedBands(4).double(), torch.randn(2, 4, 5, 7, dtype=torch.double)
    score = torch.einsum('hc,ncft->nhft', bands.score.weight[:, :, 0, 0], x) + bands.score.bias[:, None, None]
    place = torch.nn.functional.interpolate(bands.position, 5, mode='linear', align_corners=True)
    weights = torch.softmax(score + place[..., None], dim=2)
    torch.testing.assert_close(bands(x, 7), torch.einsum('nhft,ncft->ntch', weights, x).flatten(2))
