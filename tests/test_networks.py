import contextlib

import pytest
import torch
import torch.nn as nn

import genotypes as gt
from models.augment_cnn import AugmentCNN
from models.baselines import make_baseline
from models.ops import DropPath
from models.search_cnn import SearchCNNController
from models.skeleton import statistics_pool, to_sequence, valid_steps

CRITERION = nn.CrossEntropyLoss()


def supernet(layers=3, **kwargs):
    kwargs = {'n_nodes': 2, 'C_rnn': 6, **kwargs}
    return SearchCNNController(1, 4, 3, layers, nn.CrossEntropyLoss(), **kwargs)  # tests give it weights


def settle(net, *shape):
    """A few training passes, so that batch norm's running statistics are not those of a fresh network."""
    for _ in range(2):
        net(torch.randn(6, *shape, dtype=next(net.parameters()).dtype))
    return net.eval()


@pytest.mark.parametrize('layers', [1, 2, 3, 5])
@pytest.mark.parametrize('rnn_layers', [0, 1, 2])
@pytest.mark.parametrize('F, T', [(16, 20), (13, 9), (5, 31), (1, 16)])
def test_any_size_runs_and_its_genotype_trains(layers, rnn_layers, F, T):
    net = supernet(layers, n_layers_rnn=rnn_layers, n_nodes_rnn=1, rnn_primitives='lstm_1,skip_connect,none',
                   primitives='max_pool_3x3,sep_conv_3x3,skip_connect,none')
    x = torch.randn(2, 1, F, T)
    assert net(x).shape == (2, 3)
    net.loss(x, torch.tensor([0, 2])).backward()
    genotype = gt.from_str(gt.to_str(net.genotype()))
    assert genotype == net.genotype()
    discrete = AugmentCNN((F, T), 1, 5, 3, layers, True, genotype, n_layers_rnn=rnn_layers, C_rnn=7)
    logits, aux = discrete(x)
    assert logits.shape == aux.shape == (2, 3)
    assert discrete.eval()(x[:1])[0].shape == (1, 3) and discrete(x)[1] is None


def test_batch_of_one_trains():
    net = supernet()
    net.loss(torch.randn(1, 1, 16, 20), torch.tensor([1])).backward()
    discrete = AugmentCNN(None, 1, 4, 3, 3, True, net.genotype())
    logits, aux = discrete(torch.randn(1, 1, 16, 20))
    (CRITERION(logits, torch.tensor([1])) + CRITERION(aux, torch.tensor([1]))).backward()


@pytest.mark.parametrize('F, T', [(4, 4), (4, 5), (1, 3), (8, 1)])
def test_a_batch_of_one_is_refused_exactly_where_batch_norm_fails(F, T):
    net = supernet()
    try:
        net(torch.randn(1, 1, F, T))
    except ValueError:
        with pytest.raises(ValueError, match='--batch_size'):
            net.net.check_batches(F, T, [3, 1])
    else:
        net.net.check_batches(F, T, [3, 1])
    net.net.check_batches(F, T, [3, 2])


@pytest.mark.parametrize('F, T, fails', [(4, 2, True), (5, 2, False), (4, 3, False), (1, 1, True)])
def test_a_hand_designed_network_too(F, T, fails):
    net = make_baseline('cnn_gru', F, T, 3, 0., 900)
    for call, said in ((lambda: net(torch.randn(1, 1, F, T)), 'more than 1 value'),
                       (lambda: net.check_batches(F, T, [3, 1]), '--batch_size')):
        with pytest.raises(ValueError, match=said) if fails else contextlib.nullcontext():
            call()
    net.check_batches(F, T, [3, 2])


def test_logits_are_float32_under_autocast():
    net = supernet(fast=False)  # the fast form on a CPU knows no autocast
    discrete = AugmentCNN(None, 1, 4, 3, 3, False, net.genotype())
    for its in (net, lambda x: discrete(x)[0], lambda x: make_baseline('cnn_gru', 16, 20, 3, 0., 900)(x)[0]):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert its(torch.randn(2, 1, 16, 20)).dtype == torch.float32


def test_alphas_are_those_that_are_called_so():
    for net in (supernet(), supernet(partial_channels=2, n_layers_rnn=0)):
        named = [name for name, _ in net.named_parameters() if name.startswith(('alpha_', 'beta_'))]
        assert [name for name, _ in net.named_alphas()] == named and len(named) >= 4
        assert {id(p) for p in (*net.alphas(), *net.weights())} == {id(p) for p in net.parameters()}


@pytest.mark.parametrize('wrong', [dict(C_rnn=1), dict(device_ids=[0, 1]),
                                   dict(layers=0), dict(n_nodes=0), dict(n_layers_rnn=-1), dict(C_rnn=0), dict(dropout=1.),
                                   dict(primitives='sep_conv_7x7'), dict(rnn_primitives='none')])
def test_impossible_sizes_are_refused_with_a_reason(wrong):
    with pytest.raises(ValueError, match=r'\w+'):
        supernet(**wrong)


def test_wrong_rank_is_refused():
    with pytest.raises(ValueError, match='expected'):
        supernet()(torch.randn(2, 16, 20))


@pytest.mark.parametrize('rnn_ops', ['all', 'mixed'])
def test_an_utterance_is_scored_alone_as_in_a_batch(rnn_ops):
    net = settle(supernet(rnn_primitives=rnn_ops, primitives='pool' if rnn_ops == 'all' else 'paper').double(), 1, 12, 17)
    check_batch_invariance(net)


@pytest.mark.parametrize('name', gt.RNN_OP_SETS['all'][:-1])
def test_the_discrete_network_scores_alone_as_in_a_batch(name):
    genotype = gt.Genotype(*[[[('sep_conv_3x3', 0), ('max_pool_3x3', 1)]], [2]] * 2, [[(name, 0), (name, 1)]], [2])
    net = settle(AugmentCNN(None, 1, 4, 3, 3, False, genotype, n_layers_rnn=2, C_rnn=5).double(), 1, 12, 17)
    check_batch_invariance(lambda x: net(x)[0])


def check_batch_invariance(forward):
    x = torch.randn(5, 1, 12, 17, dtype=torch.double)
    whole = forward(x)
    torch.testing.assert_close(torch.cat([forward(x[i:i + 1]) for i in range(5)]), whole, rtol=0, atol=1e-10)
    order = torch.tensor([2, 0, 4, 1, 3])
    torch.testing.assert_close(forward(x[order]), whole[order], rtol=0, atol=1e-10)
    assert (whole[0] - whole[1]).abs().max() > 1e-6  # it does look at its input


def one_hot(net, genotype):
    """Sets alphas so that softmax gives exactly one operation to the edges of `genotype` and none to the others."""
    with torch.no_grad():
        for kind in net.kinds():
            names = net.primitives_of(kind)
            for node, alpha in zip(getattr(genotype, kind), getattr(net, f'alpha_{kind}')):
                alpha.fill_(-1e9)
                alpha[:, names.index('none')] = 0.
                for name, j in node:
                    alpha[j, names.index('none')] = -1e9
                    alpha[j, names.index(name)] = 0.


def copy_weights(net, discrete, genotype):
    """The discrete network's weights from the supernet's; its affine norms stay at scale 1, shift 0."""
    source, target = net.net.state_dict(), discrete.state_dict()
    for key in target:
        parts = key.split('.')
        if 'dag' in parts:
            cell = net.net.get_submodule('.'.join(parts[:2]))
            i, e, rest = int(parts[3]), int(parts[4]), parts[5:]
            name, j = getattr(genotype, cell.kind)[i][e]
            k = net.primitives_of(cell.kind).index(name)
            parts = [*parts[:3], str(i), str(j), '_ops', str(k), *rest[1:]]  # rest[0]: the place before drop-path
        if '.'.join(parts) in source:
            target[key] = source['.'.join(parts)]
        else:
            assert key.endswith(('weight', 'bias')) and target[key].ndim == 1, key  # only an affine norm has no source
    discrete.load_state_dict(target)


@pytest.mark.parametrize('seed', range(2))
def test_supernet_with_one_hot_alphas_is_the_discrete_network(seed):
    torch.manual_seed(seed)
    net = supernet(4, n_nodes=2, n_layers_rnn=2, n_nodes_rnn=2, rnn_primitives='all').double()
    for alpha in net.alphas():
        nn.init.normal_(alpha)
    genotype = net.genotype()
    one_hot(net, genotype)
    assert [sorted(node) for node in net.genotype().normal] == [sorted(node) for node in genotype.normal]
    discrete = AugmentCNN(None, 1, 4, 3, 4, False, genotype, n_layers_rnn=2, C_rnn=6).double()
    copy_weights(net, discrete, genotype)
    x = torch.randn(3, 1, 12, 17, dtype=torch.double)
    torch.testing.assert_close(net(x), discrete(x)[0], rtol=0, atol=1e-10)  # train mode: batch statistics
    y = torch.tensor([0, 1, 2])
    torch.testing.assert_close(torch.autograd.grad(net.loss(x, y), net.net.linear.weight)[0],
                               torch.autograd.grad(CRITERION(discrete(x)[0], y), discrete.linear.weight)[0])
    with torch.no_grad():  # the comparison notices one operation in another's place
        kind, first = net.alpha_rnn[0], torch.zeros_like(net.alpha_rnn[0])
        kind.copy_(first)
    assert (net(x) - discrete(x)[0]).abs().max() > 1e-6


@pytest.mark.parametrize('op', ['gru_1', 'skip_connect'])
def test_the_order_of_distant_events_reaches_recurrent_operations_alone(op):
    """Two events change places, too far apart for the CNN: without a recurrence the network cannot tell, with one it does."""
    net = settle(supernet(primitives='skip_connect,none', rnn_primitives=f'{op},none').double(), 1, 12, 48)
    first, second = torch.randn(2, 1, 12, 4, dtype=torch.double)
    x, swapped = torch.zeros(2, 1, 1, 12, 48, dtype=torch.double)
    x[..., 12:16], x[..., 32:36] = first, second  # moved by a multiple of 4, the CNN's stride in time
    swapped[..., 12:16], swapped[..., 32:36] = second, first
    difference = (net(x) - net(swapped)).abs().max()
    assert difference > 1e-4 if op == 'gru_1' else difference < 1e-10


def test_weights_and_alphas_share_nothing_and_leave_nothing_out():
    net = supernet()
    weights, alphas = {id(p) for p in net.weights()}, {id(p) for p in net.alphas()}
    assert not weights & alphas and weights | alphas == {id(p) for p in net.parameters()}
    assert len(list(net.named_weights())) == len(weights) and len(list(net.named_alphas())) == len(alphas)


@pytest.mark.parametrize('rate', [0., .3])
def test_dropout_has_its_rate_after_every_cell_while_training(rate):
    genotype, seen = supernet(n_layers_rnn=2).genotype(), []
    for net in (supernet(n_layers_rnn=2, dropout=rate), AugmentCNN(None, 1, 4, 3, 3, False, genotype, n_layers_rnn=2, C_rnn=16,
                                                                   dropout=rate)):
        seen.clear()
        net.get_submodule('net.dropout' if hasattr(net, 'net') else 'dropout').register_forward_hook(
            lambda module, args, y: seen.append((args[0], y)))
        net.train()(torch.randn(64, 1, 8, 40))
        assert len(seen) == 3 + 2
        for x, y in seen:
            dropped = ((y == 0) & (x != 0)).float().sum() / (x != 0).float().sum()
            assert dropped == pytest.approx(rate, abs=.02)
        seen.clear()
        net.eval()(torch.randn(2, 1, 8, 40))
        assert len(seen) == 3 + 2
        assert all(torch.equal(x, y) for x, y in seen)


def test_a_kind_of_cell_that_never_stood_in_the_supernet_is_not_invented():
    assert supernet(2).genotype().normal == [] and supernet(3, n_layers_rnn=0).genotype().rnn == []
    with pytest.raises(ValueError, match='no normal cell'):
        AugmentCNN(None, 1, 4, 3, 4, False, supernet(2).genotype())
    with pytest.raises(ValueError, match='no SeqNN cell'):
        AugmentCNN(None, 1, 4, 3, 3, False, supernet(3, n_layers_rnn=0).genotype(), n_layers_rnn=1)


def test_drop_path_reaches_every_operation_but_skips():
    cell = [[('sep_conv_3x3', 0), ('skip_connect', 1)], [('max_pool_3x3', 2), ('skip_connect', 0)]]
    genotype = gt.Genotype(cell, [2, 3], cell, [2, 3], [[('gru_1', 0), ('skip_connect', 1)]], [2])
    net = AugmentCNN(None, 1, 4, 3, 3, False, genotype)
    edges = [edge for cell in (*net.cells, *net.seq_cells) for node in cell.dag for edge in node]
    paths = [[m for m in edge.modules() if isinstance(m, DropPath)] for edge in edges]
    assert all(len(found) == (not isinstance(edge, nn.Identity)) for edge, found in zip(edges, paths))
    net.drop_path_prob(.5)
    assert {m.p for found in paths for m in found} == {.5}
    x = torch.randn(4, 1, 12, 16)
    assert (net(x)[0] - net(x)[0]).abs().max() > 1e-6
    net.drop_path_prob(0.)
    assert torch.equal(net(x)[0], net(x)[0])


def padded(n_frames=17):
    """Windows whose ends are padding, and where they are audio."""
    valid = torch.arange(n_frames) < torch.tensor([[n_frames], [12], [8], [1]])
    return torch.randn(4, 1, 12, n_frames, dtype=torch.double) * valid[:, None, None], valid


def test_statistics_of_valid_steps_are_those_of_the_cut_sequence():
    x, mask = torch.randn(4, 9, 5, dtype=torch.double), torch.arange(9) < torch.tensor([[9], [5], [2], [1]])
    found = statistics_pool(x, mask.unsqueeze(-1))
    for i, n in enumerate(mask.sum(dim=1).tolist()):
        torch.testing.assert_close(found[i:i + 1], statistics_pool(x[i:i + 1, :n]))
    torch.testing.assert_close(statistics_pool(x, torch.ones(4, 9, 1, dtype=torch.bool)), statistics_pool(x))


@pytest.mark.parametrize('n_frames, n_steps', [(17, 17), (17, 5), (16, 4), (94, 24)])
def test_a_step_is_valid_if_any_frame_under_it_is_audio(n_frames, n_steps):
    valid = torch.arange(n_frames) < torch.tensor([[n_frames], [n_frames // 2], [1]])
    for i, row in enumerate(valid_steps(valid, n_steps)[..., 0].tolist()):
        for t, step in enumerate(row):
            first, last = t * n_frames // n_steps, -(-(t + 1) * n_frames // n_steps)
            assert step == bool(valid[i, first:last].any())


@pytest.mark.parametrize('n_layers_rnn', [0, 1])
@pytest.mark.parametrize('kind', ['supernet', 'discrete'])
def test_padding_takes_no_part_in_the_statistics_pooling(kind, n_layers_rnn):
    """What the pooling gets for a padded window is cut where the padding begins, pooled, and classified by hand."""
    net = supernet(n_layers_rnn=n_layers_rnn, rnn_primitives='skip_connect,gru_1,none').double()
    if kind == 'discrete':
        net = AugmentCNN(None, 1, 4, 3, 3, False, net.genotype(), n_layers_rnn=n_layers_rnn, C_rnn=6).double()
    body = net.net if kind == 'supernet' else net
    settle(net, 1, 12, 17)
    forward = net if kind == 'supernet' else lambda *args: net(*args)[0]
    (x, valid), sequences = padded(), []
    hook = body.dropout.register_forward_hook(lambda module, args, out: sequences.append(out))
    masked = forward(x, valid)
    hook.remove()
    h = sequences[-1] if n_layers_rnn else to_sequence(sequences[-1], sequences[-1].shape[-1])
    n_steps = valid_steps(valid, h.shape[1]).sum(dim=1)[:, 0].tolist()
    assert n_steps[0] == h.shape[1] == 5 and n_steps[-1] == 1
    for i, n in enumerate(n_steps):
        torch.testing.assert_close(body.linear(statistics_pool(h[i:i + 1, :n])), masked[i:i + 1])
    plain = forward(x)
    assert (plain[1:] - masked[1:]).abs().max() > 1e-6
    torch.testing.assert_close(plain[:1], masked[:1])  # a window without padding
    net.pools_padding = True  # as in networks of the first version
    assert torch.equal(forward(x, valid), plain)
