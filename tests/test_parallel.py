"""Two processes against one: the same numbers. Gloo on the CPU, over localhost."""
import os
import socket
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn as nn

import config as cf
import utils
from datasets import features as ft
from datasets import scoring
from datasets.dataset import SpeechDataset, batch_sizes
from datasets.readers import synthetic
from datasets.transforms import SpecAugment
from datasets.utterance import Utterance
from genotypes import Genotype
from models import parallel, speaker_norm
from models.architect import Architect
from models.augment_cnn import AugmentCNN
from models.baselines import make_baseline
from models.search_cnn import SearchCNNController
from models.sync import CrossEntropyLoss

N_RANKS = 2
N = 5  # utterances a batch: shares of 3 and 2
WEIGHTS = torch.tensor([1., 2., .5], dtype=torch.double)  # of the classes, so that shares differ in their normaliser too


def one_batch(size=(8, 12)):
    """This rank's share of a batch that is the same for every number of ranks."""
    X, y = torch.randn(N, 1, *size, dtype=torch.double), torch.randint(3, (N,))
    return X[parallel.rank()::parallel.world_size()], y[parallel.rank()::parallel.world_size()]


def flat(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


def supernet_numbers():
    """Gradients of w over two steps of SGD with momentum, then those of alpha, and batch norm's buffers."""
    torch.manual_seed(0)
    net = SearchCNNController(1, 2, 3, 3, CrossEntropyLoss(WEIGHTS), n_nodes=1, stem_multiplier=1, n_layers_rnn=1,
                              n_nodes_rnn=1, C_rnn=4).double()
    for alpha in net.alphas():
        nn.init.normal_(alpha)
    trn, val, found = one_batch(), one_batch(), {}
    optim = torch.optim.SGD(net.weights(), .05, momentum=.9)
    for step in range(2):
        optim.zero_grad()
        net.loss(*trn).backward()
        parallel.clip_gradients(net.weights(), 0.)
        found[f'w, step {step}'] = flat(p.grad for p in net.weights() if p.grad is not None)
        optim.step()
    found['buffers'] = flat(net.buffers())
    for order in ('exact', 'difference', 1):
        architect = Architect(net, .9, 3e-4, 'exact' if order == 1 else order)
        loss = architect.backward(*val) if order == 1 else architect.unrolled_backward(*trn, *val, .1, optim)
        found[f'alpha, {order}'] = flat([*(a.grad for a in net.alphas()), loss])
    return found


def discrete_numbers():
    cell = [[('sep_conv_3x3', 0), ('max_pool_3x3', 1)]]
    torch.manual_seed(0)
    net = AugmentCNN(None, 1, 3, 3, 3, True, Genotype(cell, [2], cell, [2], [[('gru_1', 0), ('lstm_att_1', 1)]], [2])).double()
    criterion, (X, y) = CrossEntropyLoss(WEIGHTS), one_batch()
    logits, aux_logits = net(X)
    (criterion(logits, y) + .4 * criterion(aux_logits, y)).backward()
    parallel.sum_gradients(net.parameters())
    return {'w': flat(p.grad for p in net.parameters()), 'buffers': flat(net.buffers())}


def corpus(n=11):
    """Utterances of 5 to 40 frames of noise, windows of 12: 11 utterances have an odd number of windows."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(3, length)).astype(np.float32) for length in np.linspace(5, 40, n).astype(int)]
    us = [SimpleNamespace(path=str(i), speaker=str(i % 4)) for i in range(n)]
    return SpeechDataset(us, arrays, [i % 3 for i in range(n)],
                         torch.zeros(3, 1), torch.ones(3, 1), 12, **parallel.place())


def epoch_numbers():
    """Batches with their masks, and the training scores of an epoch."""
    data, tally, seen = corpus(), scoring.Tally(), []
    shared, criterion = torch.Generator().manual_seed(1), CrossEntropyLoss(WEIGHTS.float())
    batches = data.batches(N, None, shared, SpecAugment(2, .6, .6))
    for ((x, valid, *_), y), n in zip(batches, data.batch_sizes(N), strict=True):
        logits = x.mean(dim=(1, 3))  # (N, 3)
        tally.add(criterion(logits, y), logits, y)
        shares = parallel.gather((x, valid, y))
        whole = [torch.zeros(n, *t.shape[1:], dtype=t.dtype) for t in (x, valid, y)]
        for rank, share in enumerate(shares):
            for w, t in zip(whole, share):
                w[rank::len(shares)] = t
        seen += whole
    return {'batches': flat(seen), 'scores': torch.tensor(list(tally.scores(parallel.gather).values()))}


def score_numbers():
    data, rows = corpus(), []

    def forward(x, valid, *_):
        rows.append(len(x))
        return x.mean(dim=(1, 3)) + valid.sum(dim=1, keepdim=True)
    found = {f'batch {size}': data.score(parallel.sharing(forward), size).flatten() for size in (1, 4, 100)}
    return {**found, 'windows': torch.tensor(float(sum(parallel.gather(sum(rows[-1:])))))}


def speaker_numbers():
    """Gradients, training moments and scores of a network with a SpeakerNorm."""
    torch.manual_seed(0)
    net, criterion, found = make_baseline('rnn', 3, 12, 3, 0., 300), CrossEntropyLoss(WEIGHTS), {}
    speaker_norm.added(net, SimpleNamespace(embedding='speaker'), torch.full((3,), 99)).double()
    own = slice(parallel.rank(), None, parallel.world_size())
    for step in range(2):
        x, y = one_batch((3, 12))
        net.zero_grad()
        criterion(net(x, speaker=torch.tensor([0, 1, 1, 2, 0])[own])[0], y).backward()
        parallel.sum_gradients(net.parameters())
        found[f'step {step}'] = flat([*(p.grad for p in net.parameters()), *net.buffers()])
    net.float().eval()
    for size in (1, 4):
        remembered = corpus().score(speaker_norm.adapt(net, corpus(), size, lambda *X: net(*X)[0]), size)
        scores = corpus().score(parallel.sharing(lambda *X: net(*X)[0]), size)
        found[f'scores, batch {size}'] = torch.cat([t.flatten() for t in (remembered, scores, *net.speaker_norm.adapted)])
    return found


def numbers():
    parts = supernet_numbers, discrete_numbers, speaker_numbers, epoch_numbers, score_numbers
    return {f'{part.__name__}: {name}': x for part in parts for name, x in part().items()}


def what_only_ranks_have(folder):
    """{claim: whether it held on this rank}"""
    rank, found, x = parallel.rank(), {}, torch.arange(6.)
    torch.manual_seed(3)
    shared = parallel.State(3, x.device).draws
    state = parallel.rng_state(shared, x.device)
    drawn = torch.rand(4), torch.rand(4, generator=shared)
    others = parallel.gather(drawn)
    found['own random numbers differ'] = not torch.equal(others[0][0], others[1][0])
    found['shared ones do not'] = torch.equal(others[0][1], others[1][1])
    parallel.set_rng_state(state, shared, x.device)
    found['random numbers come back'] = torch.equal(torch.rand(4), drawn[0]) and torch.equal(
        torch.rand(4, generator=shared), drawn[1])

    found['equal tensors do not differ'] = not parallel.differs([x, torch.tensor(3)])
    y = x + rank * torch.tensor([0., 0., 1e-6, 0., 0., 0.])
    found['tensors that differ in a bit differ'] = parallel.differs([x, y])
    parallel.broadcast_([y])
    found['rank 0 gives what all hold'] = torch.equal(y, x)

    calls, extract = [], ft.extract
    ft.extract = lambda wave, config: calls.append(1) or extract(wave, config)
    us = [Utterance(os.path.join(folder, f'{i}.wav'), 'x', 'a') for i in range(3)]
    parallel.together(lambda: ft.cached_features(us, cf.SearchConfig(name='x', n_mels=8), os.path.join(folder, 'cache')))
    found['features are extracted once'] = len(calls) == (3 if rank == 0 else 0)

    def fails():
        if rank == 1:
            raise utils.UserError('only here')
    try:
        parallel.together(fails)
    except utils.UserError as error:
        found['what fails on one rank fails on all'] = str(error) == 'only here'
    found['rank 0 alone is asked'] = parallel.from_main(lambda: rank) == 0
    found['one rank speaks'] = sum(parallel.gather(parallel.first_to_speak())) == 1
    return found


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def rank_main(rank, port, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(N_RANKS), LOCAL_RANK=str(rank), MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=str(port), TORCHELASTIC_RUN_ID='test')
    torch.set_num_threads(1)
    parallel.join(torch.device('cpu'))
    found, group = (numbers(), what_only_ranks_have(folder)), weakref.ref(dist.group.WORLD)
    parallel.stop()
    found[1]['nothing keeps the threads of gloo'] = group() is None
    torch.save(found, os.path.join(folder, f'{rank}.pt'))


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """What every rank found: [(numbers, claims), ...]."""
    folder = tmp_path_factory.mktemp('ranks')
    for i in range(3):
        soundfile.write(folder / f'{i}.wav', synthetic.synthesise(0, 'sad', i), synthetic.SAMPLE_RATE)
    mp.spawn(rank_main, (free_port(), str(folder)), nprocs=N_RANKS)
    return [torch.load(folder / f'{rank}.pt') for rank in range(N_RANKS)]


def test_two_processes_find_the_numbers_of_one(ranks):
    alone = numbers()
    assert len(alone) == 18
    for found, _ in ranks:
        assert found.keys() == alone.keys()
        for name, x in alone.items():
            torch.testing.assert_close(found[name], x, rtol=0, atol=1e-6 if 'scores' in name or 'batch ' in name else 1e-9,
                                       msg=lambda text, name=name: f'{name}: {text}')
    assert alone['score_numbers: windows'] == len(corpus().window_owner)


def test_what_only_ranks_have(ranks):
    for _, claims in ranks:
        assert len(claims) == 11 and [claim for claim, held in claims.items() if not held] == []


def test_every_batch_has_an_utterance_for_every_process():
    assert batch_sizes(23, 10, 4) == [10, 13] and batch_sizes(24, 10, 4) == [10, 10, 4] and batch_sizes(4, 10, 4) == [4]
    for n, size in ((3, 10), (20, 3)):
        with pytest.raises(utils.UserError, match='4 processes'):
            batch_sizes(n, size, 4)
