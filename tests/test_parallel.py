"""Two processes against one: the same numbers, and a run that ends as one. Gloo on the CPU, over localhost."""
import csv
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn as nn
from conftest import ROOT

import augment
import datasets
import search
import utils
from datasets import features as ft
from datasets import scoring
from datasets.dataset import SpeechDataset, batch_sizes
from datasets.readers import synthetic
from datasets.transforms import spec_augment
from datasets.utterance import Utterance
from genotypes import Genotype
from models import parallel
from models.architect import Architect
from models.augment_cnn import AugmentCNN
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
        parallel.sum_gradients(net.weights())
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
    return SpeechDataset([SimpleNamespace(path=str(i)) for i in range(n)], arrays, [i % 3 for i in range(n)],
                         torch.zeros(3, 1), torch.ones(3, 1), 12)


def epoch_numbers():
    """Batches with their masks, and the training scores of an epoch."""
    data, tally, seen, place = corpus(), scoring.Tally(), [], parallel.place()
    shared = torch.Generator().manual_seed(1)
    criterion, sizes = CrossEntropyLoss(WEIGHTS.float()), batch_sizes(len(data), N, parallel.world_size())
    for (X, y), n in zip(data.batches(N, None, shared, **place), sizes, strict=True):
        X = spec_augment(X, 2, .6, .6, shared, n, **place)
        logits = X.mean(dim=(1, 3))  # (N, 3)
        tally.add(criterion(logits, y), logits, y, n)
        shares = parallel.gather((X, y))
        whole = [torch.zeros(n, *t.shape[1:], dtype=t.dtype) for t in (X, y)]
        for rank, share in enumerate(shares):
            for w, t in zip(whole, share):
                w[rank::len(shares)] = t
        seen += whole
    return {'batches': flat(seen), 'scores': torch.tensor(list(tally.scores(parallel.gather).values()))}


def score_numbers():
    data, rows = corpus(), []

    def forward(X):
        rows.append(len(X))
        return X.mean(dim=(1, 3))
    found = {f'batch {size}': data.score(parallel.sharing(forward), size).flatten() for size in (1, 4, 100)}
    return {**found, 'windows': torch.tensor(float(sum(parallel.gather(sum(rows[-1:])))))}


def numbers():
    return {f'{part.__name__}: {name}': x for part in (supernet_numbers, discrete_numbers, epoch_numbers, score_numbers)
            for name, x in part().items()}


def what_only_ranks_have(folder):
    """{claim: whether it held on this rank}"""
    rank, found, x = parallel.rank(), {}, torch.arange(6.)
    torch.manual_seed(3)
    parallel.seed_own(3)
    shared = torch.Generator().manual_seed(3)
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
    parallel.together(lambda: ft.cached_features(us, ft.FeatureConfig(n_mels=8), os.path.join(folder, 'cache')))
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
    parallel.start(torch.device('cpu'))
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
    assert len(alone) == 14
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


SMALL = ('--device cpu --duration 0.8 --n_mels 16 --hop_ms 32 --time_pool 1 --init_channels 2 --layers 3 --rnn_channels 4 '
         '--batch_size 5 --n_nodes 1 --rnn_nodes 1 --alpha_warmup 1 --alpha_lr 0.05 --cnn_ops sep_conv_3x3,max_pool_3x3,none '
         '--rnn_ops gru_1,skip_connect,none --dropout 0 --epochs 4').split()


def double(program, setattr=setattr):
    """Makes search or augment work in float64: in float32 kinks of ReLU and pooling carry the last bit far."""
    load, finished, make_net, evaluate = datasets.load, SpeechDataset._finish, program.make_net, scoring.evaluate

    def load_double(*args):
        data = load(*args)
        return dataclasses.replace(data, class_weights=data.class_weights.double())
    setattr(datasets, 'load', load_double)
    setattr(SpeechDataset, '_finish', lambda self, *args: finished(self, *args).double())
    setattr(program, 'make_net', lambda *args: make_net(*args).double())
    setattr(scoring, 'evaluate', lambda forward, data, size, weights: evaluate(forward, data, size, weights.float()))


def launch(cwd, program, *argv):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    torchrun = ['-m', 'torch.distributed.run', '--master_addr', '127.0.0.1', '--master_port', free_port(), '--nproc_per_node',
                N_RANKS, program]
    return subprocess.Popen([sys.executable, *map(str, [*torchrun, *argv])], cwd=cwd, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def finish(process, program, ok=True):
    """stdout, and the lines of stderr that are the program's own. No process may have crashed."""
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert (process.returncode == 0) == ok and 'terminate called' not in err, out + err
    return out, [line for line in err.splitlines() if line.startswith(f'{program}: ')]


def rows(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def workers(pid):
    shown = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(pid)], capture_output=True, text=True).stdout
    return list(map(int, shown.split()))


def in_double(folder, name):
    """A program like search.py or augment.py that works in float64."""
    path = folder / f'{name}64.py'
    path.write_text(f'import sys\nsys.path[:0] = {[str(ROOT), str(ROOT / "tests")]}\n'
                    f'import test_parallel, {name}, utils\nfrom models import parallel\n'
                    f'test_parallel.double({name})\nutils.cli({name}.main, parallel.first_to_speak, parallel.leave)\n')
    return path


@pytest.fixture(scope='module')
def finished(tmp_path_factory, small_corpus):
    """A search of two processes of which one was killed and that went on, and what was said then."""
    cwd = tmp_path_factory.mktemp('torchrun')
    argv = ['--name', 'two', '--dataset', 'manifest', '--data_path', small_corpus, *SMALL]
    program = in_double(cwd, 'search')
    process, deadline = launch(cwd, program, *argv), time.time() + 120
    while not (cwd / 'runs/search/two/checkpoint.pt').exists():
        if process.poll() is not None or time.time() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(str(process.communicate()))
        time.sleep(.01)
    os.kill(max(workers(process.pid)), signal.SIGKILL)
    began = time.time()
    killed = *finish(process, program.name, ok=False), time.time() - began
    done = finish(launch(cwd, program, *argv, '--resume'), program.name)
    return SimpleNamespace(cwd=cwd, argv=argv, killed=killed, done=done)


def test_a_rank_that_dies_ends_the_run_and_says_what_to_do(finished):
    out, said, seconds = finished.killed
    assert '--resume' in out and len(said) <= 1 and all('--resume' in line for line in said) and seconds < 40
    assert rows(finished.cwd / 'runs/search/two')[0]['epoch'] == 1 and 'epoch 1:' not in finished.done[0]


def test_search_finds_with_two_processes_what_it_finds_with_one(finished, monkeypatch, small_corpus):
    monkeypatch.chdir(finished.cwd)
    double(search, monkeypatch.setattr)
    search.main(list(map(str, ['--name', 'one', *finished.argv[2:]])))
    one, two = (finished.cwd / f'runs/search/{name}' for name in ('one', 'two'))
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    assert len(rows(one)) == len(rows(two)) == 4
    for a, b in zip(rows(one), rows(two)):
        for kind in a['alpha']:
            for node, other in zip(a['alpha'][kind], b['alpha'][kind], strict=True):
                np.testing.assert_allclose(node, other, rtol=0, atol=1e-9)
        assert a['train'] == pytest.approx(b['train'], abs=1e-9) and a['dev'] == pytest.approx(b['dev'], abs=1e-5)
        assert a['alpha_loss'] == (b['alpha_loss'] and pytest.approx(b['alpha_loss'], abs=1e-9))
    assert np.ptp(rows(one)[-1]['alpha']['rnn'][0]) > .02  # alpha has moved
    log = (two / 'search.log').read_text()
    assert all(log.count(f'epoch {epoch}:') == 1 for epoch in (2, 3, 4)) and '2 processes share' in log
    assert rows(two)[-1]['genotype'] == rows(one)[-1]['genotype']


def test_augment_counts_every_utterance_once(finished, monkeypatch, small_corpus):
    monkeypatch.chdir(finished.cwd)
    genotype = 'runs/search/two/genotype.json'
    argv = ['--dataset', 'manifest', '--data_path', small_corpus, '--genotype', genotype, '--epochs', 2, '--batch_size', 9,
            '--device', 'cpu', '--dropout', 0, '--drop_path_prob', 0]
    program = in_double(finished.cwd, 'augment')
    _, said = finish(launch(finished.cwd, program, '--name', 'two', *argv), program.name)
    double(augment, monkeypatch.setattr)
    augment.main(list(map(str, ['--name', 'one', *argv])))
    tables, found = [], []
    for name in ('one', 'two'):
        folder = finished.cwd / 'runs/augment' / name
        found.append(json.loads((folder / 'results.json').read_text()))
        with open(folder / 'predictions.csv', newline='') as f:
            tables.append(list(csv.DictReader(f)))
    assert said == [] and [r['path'] for r in tables[0]] == [r['path'] for r in tables[1]]
    assert found[1]['n_test'] == len(tables[1]) == 16
    for a, b in zip(*tables):
        assert float(a['p_sad']) == pytest.approx(float(b['p_sad']), abs=1e-5)
    assert found[1]['ua'] == found[0]['ua'] and np.sum(found[1]['confusion']) == len(tables[1])
    assert 'torchrun --nproc_per_node 2' in found[1]['command'] and found[1]['device'].startswith('2 processes')


def test_a_mistake_under_torchrun_is_one_line(finished):
    before = rows(finished.cwd / 'runs/search/two')
    out, said = finish(launch(finished.cwd, ROOT / 'search.py', *finished.argv), 'search.py', ok=False)  # rank 0 alone looks
    assert len(said) == 1 and '--overwrite' in said[0] and out == '' and rows(finished.cwd / 'runs/search/two') == before


@pytest.mark.parametrize('error, code, said', [('utils.UserError("too late")', 2, ['late.py: too late']),
                                               ('KeyError(1)', 1, [])])
def test_a_process_that_fails_late_ends_at_once_with_its_own_exit_code(error, code, said, tmp_path):
    """Python's end would now and then abort it, while threads of gloo hold the tensors of the last sums."""
    program = tmp_path / 'late.py'
    program.write_text(f'import atexit, sys\nsys.path[:0] = [{str(ROOT)!r}]\nimport torch\nimport utils\n'
                       'from models import parallel\ndef main():\n    parallel.start(torch.device("cpu"))\n'
                       '    atexit.register(print, "Python ends")\n    parallel.gather(1)\n'
                       f'    raise {error}\nutils.cli(main, parallel.first_to_speak, parallel.leave)\n')
    process = launch(tmp_path, program)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and out == '' and f'exitcode  : {code} ' in err
    assert [line for line in err.splitlines() if line.startswith('late.py: ')] == said and ('KeyError: 1' in err) == (code == 1)
