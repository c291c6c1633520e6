"""The GPU without a GPU: networks on fake `cuda` tensors, which have a device, a dtype and sizes but no numbers.

A tensor on the wrong device or of the wrong dtype fails here as on a card. cuDNN's recurrences alone cannot be called, so that
a stand-in takes their place; under autocast PyTorch runs them in float16, whatever autocast's dtype, and so does the stand-in.
"""
import contextlib
import functools
import warnings

import numpy as np
import pytest
import torch
import torch.nn as nn
from torch._subclasses import FakeTensorMode

import genotypes as gt
from config import ANY_INPUT, SSL
from models.augment_cnn import AugmentCNN
from models.baselines import make_baseline
from models.derivatives import differentiating_twice
from models.ops import OPS
from models.rnn_ops import RNN_OPS
from models.search_cnn import SearchCNNController

N, F, T, N_CLASSES = 3, 16, 20, 4
WITHOUT_RNN = {'skip_connect', 'gated_conv_1', 'gated_conv_3', 'self_attention'}
CNN_OPS, SEQ_OPS = ([name for name in ops if name != gt.NONE] for ops in (OPS, RNN_OPS))


@pytest.fixture
def recurrences(monkeypatch):
    """Replaces PyTorch's recurrences; the list of the dtypes in which they ran."""
    dtypes = []

    def stand_in(x, hx, weights, bias, n_layers, dropout, training, bidirectional, batch_first):
        state = hx[0] if isinstance(hx, tuple) else hx
        assert {t.device.type for t in (x, state, *weights)} == {'cuda'} and {t.dtype for t in weights} == {torch.float32}
        assert x.dtype == state.dtype
        dtypes.append(torch.float16 if torch.is_autocast_enabled('cuda') else x.dtype)
        return x.new_empty(*x.shape[:2], state.shape[-1] * (1 + bidirectional), dtype=dtypes[-1]), state, state
    for name in ('lstm', 'gru', 'rnn_tanh'):
        monkeypatch.setattr(torch._VF, name, stand_in, raising=False)
    return dtypes


@contextlib.contextmanager
def fake_gpu(autocast):
    """Tensors made inside are fake and on `cuda`. torch.autocast would not switch itself on without a GPU."""
    before = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')
    with FakeTensorMode(), torch.device('cuda'), warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Accessing the data pointer of FakeTensor')
        warnings.filterwarnings('ignore', 'User provided device_type of .cuda.')
        torch.set_autocast_dtype('cuda', torch.bfloat16)
        torch.set_autocast_enabled('cuda', autocast)
        try:
            yield
        finally:
            torch.set_autocast_enabled('cuda', before[0])
            torch.set_autocast_dtype('cuda', before[1])


def check(make, autocast, recurrences, shape=(1, F, T)):
    """Runs make()(x, valid), x (N, *shape), and checks device and dtype of all outputs, and that recurrences ran in float32."""
    with fake_gpu(autocast):
        net = make()
        x = torch.empty(N, *shape).contiguous(memory_format=torch.channels_last)
        outputs = net(x, torch.ones(N, T, dtype=torch.bool))
        logits, aux_logits = outputs if isinstance(outputs, tuple) else (outputs, None)
        for y in (logits, aux_logits):
            assert y is None or (y.shape, y.device.type) == ((N, N_CLASSES), 'cuda')
        assert logits.dtype == torch.float32  # under autocast too
        assert aux_logits is None or aux_logits.dtype == (torch.bfloat16 if autocast else torch.float32)
        n_rnns = sum(isinstance(m, nn.RNNBase) for m in net.modules())
    assert set(recurrences) <= {torch.float32}
    return n_rnns


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('fast', [False, True])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('sizes', [dict(rnn_primitives='all'), dict(n_layers_rnn=0), dict(partial_channels=2),
                                   dict(primitives='pool', rnn_primitives='skip_connect,none')], ids=str)
def test_supernet(sizes, training, fast, autocast, recurrences):
    sizes = {'n_nodes': 2, 'C_rnn': 6, 'dropout': .1, **sizes}
    n_rnns = check(lambda: SearchCNNController(1, 4, N_CLASSES, 3, nn.CrossEntropyLoss(), **sizes, fast=fast).train(training),
                   autocast, recurrences)
    assert len(recurrences) == n_rnns


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('fast', [False, True])
def test_supernet_of_the_speech_space_and_its_sampled_paths(fast, autocast, recurrences):
    def make(genotype=None):
        net = SearchCNNController(1, 4, N_CLASSES, 3, nn.CrossEntropyLoss(), n_nodes=2, n_nodes_rnn=1, C_rnn=6, fast=fast,
                                  primitives='speech', rnn_primitives='speech', decisions=genotype is not None)
        net.paths = genotype and net.path_of(genotype)
        return net
    check(make, autocast, recurrences)
    rng = np.random.default_rng(0)
    drawn = (gt.draw(rng, 2, 1, 'speech', 'speech', space='speech') for _ in range(100))
    for with_seqnn in (False, True):
        genotype = next(one for one in drawn if one.network['layers'] > 2 and bool(one.rnn) == with_seqnn)
        check(functools.partial(make, genotype), autocast, recurrences)


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('fast', [False, True])
def test_supernet_of_frames(fast, autocast, recurrences):
    n_rnns = check(lambda: SearchCNNController(6, 4, N_CLASSES, 3, nn.CrossEntropyLoss(), n_nodes=2, fast=fast, n_sources=3),
                   autocast, recurrences, (3, 6, T))
    assert len(recurrences) == n_rnns


@pytest.mark.parametrize('fast', [False, True])
def test_supernet_where_gradients_are_differentiated_again(fast, recurrences):
    """Then the fast form calls no library recurrence, and the plain one calls them without cuDNN."""
    with differentiating_twice():
        n_rnns = check(lambda: SearchCNNController(1, 4, N_CLASSES, 3, nn.CrossEntropyLoss(), n_nodes=2, fast=fast),
                       False, recurrences)
    assert len(recurrences) == (0 if fast else n_rnns)


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('seq_op', SEQ_OPS)
def test_discrete_network_of_every_operation(seq_op, training, autocast, recurrences):
    cell = [[(op, 0), (op, 1)] for op in CNN_OPS]
    genotype = gt.Genotype(cell, [2, 3], cell, [2, 3], [[(seq_op, 0), (seq_op, 1)]], [2])
    n_rnns = check(lambda: AugmentCNN(None, 1, 4, N_CLASSES, 3, True, genotype, C_rnn=6, dropout=.1).train(training),
                   autocast, recurrences)
    assert len(recurrences) == n_rnns == (0 if seq_op in WITHOUT_RNN else 2)


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('name', ANY_INPUT)
def test_baselines(name, autocast, recurrences):
    n_rnns = check(lambda: make_baseline(name, F, T, N_CLASSES, .1), autocast, recurrences)
    assert len(recurrences) == n_rnns == (name != 'cnn')


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('name', SSL)
def test_heads_for_frames(name, autocast, recurrences):
    assert check(lambda: make_baseline(name, 1, T, N_CLASSES, .1, C_in=6, n_sources=3), autocast, recurrences, (3, 6, T)) == 0
