"""Windows and batches: every frame is scored, every utterance trains once an epoch, ranks share one epoch."""
import tempfile
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from config import UserError
from datasets.dataset import AHEAD, SpeechDataset, ahead, batch_sizes, fits, statistics
from datasets.stored import write
from datasets.transforms import SpecAugment

LENGTHS = [5, 12, 30, 7, 25]
WINDOW = 12


def dataset(lengths=LENGTHS, window=WINDOW, **kwargs):
    """Frame t of utterance i holds 100 i + t + 1 in every band, not normalised."""
    features = [np.tile(100. * i + np.arange(n) + 1, (3, 1)).astype(np.float32) for i, n in enumerate(lengths)]
    us = [SimpleNamespace(path=str(i), speaker=str(i % 4)) for i in range(len(lengths))]
    return SpeechDataset(us, features, [i % 2 for i in range(len(lengths))], torch.zeros(3, 1), torch.ones(3, 1), window,
                         **kwargs)


def speech(dtype=np.float16, **kwargs):
    """Random features of 41 utterances, and their dataset."""
    rng = np.random.default_rng(0)
    features = [rng.normal(-7., 4., (5, n)).astype(dtype) for n in rng.integers(3, 40, 41)]
    us = [SimpleNamespace(path=str(i), speaker=str(i % 4)) for i in range(len(features))]
    mean, std = statistics(features)
    return features, SpeechDataset(us, features, [i % 3 for i in range(len(us))], mean, std, WINDOW, **kwargs)


def test_statistics_are_those_of_scikit_learn_also_of_a_constant_band():
    rng = np.random.default_rng(0)
    features = [np.concatenate([rng.normal(-7., 4., (4, n)), np.full((1, n), -13.8)]).astype(np.float16) for n in (5, 90, 31)]
    frames = np.concatenate(features, axis=1).T.astype(np.float64)
    own, scaler = statistics(features), StandardScaler().fit(frames)
    for found, expected in zip(own, (scaler.mean_, scaler.scale_)):
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)
    assert own[1][4] == 1.
    with tempfile.TemporaryDirectory() as folder:
        stored = statistics([write(f'{folder}/{i}.npy', x.T) for i, x in enumerate(features)])
    torch.testing.assert_close(stored, own)


def cut(data, i, start):
    return next(data.windows(torch.tensor([i]), torch.tensor([start]), 1))[0].x


def frames_of(x):
    return [v for v in x.flatten().unique().tolist() if v]


def test_scoring_reads_every_frame_of_every_utterance():
    data, seen = dataset(), {}
    for i, start in zip(data.window_owner.tolist(), data.window_start.tolist()):
        window = cut(data, i, start)
        assert window.shape == (1, 1, 3, WINDOW)
        seen.setdefault(i, set()).update(frames_of(window))
    assert seen == {i: {100. * i + t + 1 for t in range(n)} for i, n in enumerate(LENGTHS)}
    assert data.window_owner.tolist() == [0, 1, 2, 2, 2, 3, 4, 4, 4]


def test_scores_are_averaged_over_windows_and_do_not_depend_on_the_batch():
    data = dataset()

    def forward(x, valid, *_):
        assert torch.equal(x[:, 0, 0] != 0, valid)
        top = x.amax(dim=(1, 2, 3)) / 300.
        return torch.stack([top, 1. - top], dim=1)
    whole = data.score(forward, 100)
    assert whole.shape == (5, 2)
    torch.testing.assert_close(whole.sum(dim=1), torch.ones(5))
    for batch_size in (1, 2, 4):
        torch.testing.assert_close(data.score(forward, batch_size), whole)
    full = torch.ones(1, WINDOW, dtype=torch.bool)
    by_hand = torch.stack([torch.softmax(forward(cut(data, 2, s), full)[0], dim=0) for s in (0, 9, 18)]).mean(dim=0)
    torch.testing.assert_close(whole[2], by_hand)


@pytest.mark.parametrize('resident', [True, False])
def test_a_part_of_a_set_is_scored_as_in_the_whole(resident):
    data, chosen = dataset(resident=resident), torch.tensor([1, 2, 4])
    part = data.part(chosen)
    assert len(part) == 3 and [u.path for u in part.utterances] == [data.utterances[i].path for i in (1, 2, 4)]

    def forward(x, valid, *_):
        return torch.stack([x.mean(dim=(1, 2, 3)), x.std(dim=(1, 2, 3))], dim=1) / 1000
    torch.testing.assert_close(part.score(forward, 2), data.score(forward, 2)[chosen])
    assert torch.equal(part.labels, data.labels[chosen]) and len(data) == 5


def test_an_epoch_has_every_utterance_once_at_random_places():
    data, starts = dataset(), {i: set() for i in range(5)}
    for _ in range(60):
        seen = []
        for (X, valid, *_), y in data.batches(2):
            for x, is_audio, label in zip(X, valid, y):
                inside = frames_of(x)
                i = int(inside[0] - 1) // 100
                assert label == i % 2 and inside == list(np.arange(inside[0], inside[-1] + 1))  # one piece, in order
                assert len(inside) == min(LENGTHS[i], WINDOW) and torch.equal(x[0, 0] != 0, is_audio)
                seen.append(i)
                starts[i].add((inside[0], int((x[0, 0] != 0).float().argmax())))
        assert sorted(seen) == [0, 1, 2, 3, 4]
    assert len(starts[2]) > 10 and len(starts[0]) > 5 and len(starts[1]) == 1


@pytest.mark.parametrize('batch_size, indices, sizes', [
    (2, None, [2, 3]),  # a batch of one utterance is merged with the one before
    (3, None, [3, 2]), (1, None, [1] * 5), (9, None, [5]), (2, [1, 3, 4], [3]), (2, [0, 2], [2])])
def test_sizes_of_the_batches_of_an_epoch(batch_size, indices, sizes):
    data = dataset()
    assert [len(y) for _, y in data.batches(batch_size, indices)] == sizes
    assert data.n_batches(batch_size, indices) == len(sizes)


def test_more_processes_than_utterances_in_a_batch_are_refused():
    data = speech(world_size=8)[1]
    assert data.n_batches(9) == 4 and batch_sizes(41, 9, 8) == [9, 9, 9, 14]  # 5 utterances are too few for 8 processes
    with pytest.raises(UserError, match='--batch_size'):
        next(data.batches(4))


def test_features_kept_in_float16_give_the_bits_of_normalising_them_beforehand():
    features, data = speech()
    whole = [(torch.from_numpy(x.astype(np.float32)) - data.mean[..., 0]) / data.std[..., 0] for x in features]
    assert data.frames.dtype == torch.float16
    for i, x in enumerate(whole):
        for start in (-3, 0, x.shape[1] - 1):
            inside = torch.nn.functional.pad(x, (WINDOW, WINDOW))[:, start + WINDOW:start + 2 * WINDOW]
            assert torch.equal(cut(data, i, start)[0, 0], inside)


def check_same_batches(one, other):
    """Two datasets give the same batches, to the bit, draw as many random numbers, and score alike."""
    def forward(x, valid, *_):
        return x.sum(dim=2)[:, 0, :3]
    for indices in (None, range(7), range(11, 24)):
        seen = []
        for data in (one, other):
            torch.manual_seed(3)
            batches = [(x.cpu(), valid.cpu(), y.cpu()) for (x, valid, *_), y in data.batches(6, indices)]
            seen.append([*batches, (torch.rand(1),) * 3])
        for (x, valid, y), (x2, valid2, y2) in zip(*seen, strict=True):
            assert torch.equal(x, x2) and torch.equal(valid, valid2) and torch.equal(y, y2) and x.stride() == x2.stride()
    torch.testing.assert_close(one.score(forward, 5).cpu(), other.score(forward, 5).cpu())  # a GPU adds in any order


@pytest.mark.parametrize('share', [{}, dict(rank=1, world_size=3)])
@pytest.mark.parametrize('dtype', [np.float16, np.float32])
def test_batches_from_the_host_are_those_of_resident_features(dtype, share):
    threads = threading.active_count()
    check_same_batches(speech(dtype, **share)[1], speech(dtype, resident=False, **share)[1])
    (x, valid, *_), _ = next(iter(speech(resident=False)[1].batches(4)))  # the other batches are dropped
    assert x.shape == (4, 1, 5, WINDOW) and valid.shape == (4, WINDOW) and valid.dtype == torch.bool
    assert threading.active_count() == threads


@pytest.mark.parametrize('augment', [None, SpecAugment(2, .6, .6)])
@pytest.mark.parametrize('resident', [True, False])
def test_processes_share_each_batch_and_its_masks(resident, augment):
    def epoch(rank, world_size):
        data = speech(resident=resident, rank=rank, world_size=world_size)[1]
        return list(data.batches(8, None, torch.Generator().manual_seed(4), augment))
    whole = epoch(0, 1)
    for rank in range(3):
        for ((x, valid, *_), y), ((own_x, own_valid, *_), own_y) in zip(whole, epoch(rank, 3), strict=True):
            assert torch.equal(x[rank::3], own_x) and torch.equal(valid[rank::3], own_valid)
            assert torch.equal(y[rank::3], own_y)


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_of_the_cpu_and_wait_for_nothing():
    for resident in (True, False):
        data = speech(device='cuda', resident=resident)[1]
        assert data.frames.is_cuda == resident
        check_same_batches(speech()[1], data)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode('error')
        try:
            assert all(x.is_cuda and valid.is_cuda and y.is_cuda for (x, valid, *_), y in data.batches(6))
        finally:
            torch.cuda.set_sync_debug_mode('default')


def test_a_thread_is_ahead_but_not_far_and_stops_with_its_reader():
    done, threads = [], threading.active_count()
    results = ahead(lambda i: done.append(i) or 1 // (i - 8), range(100))
    assert next(results) == -1
    deadline = time.time() + 10
    while len(done) < 1 + AHEAD and time.time() < deadline:
        time.sleep(.001)
    time.sleep(.05)
    assert done == list(range(1 + AHEAD))
    with pytest.raises(ZeroDivisionError):  # an error comes with the batch it belongs to
        for i, _ in enumerate(results, 1):
            assert i < 8
    assert i == 7 and done[8:] in ([8], [8, 9], [8, 9, 10]) and threading.active_count() == threads
    results = ahead(done.append, range(1000))
    next(results)
    results.close()
    assert len(done) < 20 and threading.active_count() == threads


def test_features_stay_on_the_device_if_they_fit(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (4000, 9000))
    assert fits(1000, 'auto', 'cuda:1') and not fits(1001, 'auto', torch.device('cuda'))
    assert fits(10 ** 12, 'always', 'cuda') and not fits(1, 'never', 'cuda')
    assert fits(10 ** 12, 'auto', 'cpu') and not fits(1, 'never', 'cpu')


def test_spec_augment_masks_bands_within_bounds():
    x = torch.ones(200, 1, 20, 40)
    y = SpecAugment(1, .2, .1)(x)
    bands, steps = (y == 0).all(dim=3)[:, 0].sum(dim=1), (y == 0).all(dim=2)[:, 0].sum(dim=1)
    assert bands.max() == 4 and steps.max() == 4 and bands.min() == 0 and len(bands.unique()) == 5
    assert torch.equal(SpecAugment(0, .2, .1)(x), x) and (x == 1).all()
    assert ((y == 0) == ((y == 0).all(dim=3, keepdim=True) | (y == 0).all(dim=2, keepdim=True))).all()
    for axis, sizes in ((2, (.2, 0.)), (3, (0., .1))):  # from the first band or step to the last
        other = 5 - axis
        masked = (SpecAugment(1, *sizes)(torch.ones(4_000, 1, 20, 40)) == 0).all(dim=other)[:, 0].float().mean(dim=0)
        assert masked[0] > .02 and masked[-1] > .02 and masked[0] == pytest.approx(masked[-1].item(), rel=.4)


def test_two_masks_are_those_of_the_paper():
    """Park et al. 2019: a width f is drawn from 0 to F, then the first band from 0 to n - f; twice."""
    u = [torch.rand(2, 2, 50, 1, generator=torch.Generator().manual_seed(0)).double(), None]
    y = SpecAugment(2, .2, 0.)(torch.ones(50, 1, 20, 40), torch.Generator().manual_seed(0))
    runs = 0
    for i in range(50):
        expected = np.zeros(20, bool)
        for m in range(2):
            width = int(u[0][0, m, i, 0] * 5)
            begin = int(u[0][1, m, i, 0] * (20 - width + 1))
            expected[begin:begin + width] = True
        assert ((y[i, 0] == 0).all(dim=1).numpy() == expected).all()
        runs = max(runs, int(np.diff(expected.astype(int), prepend=0).clip(0).sum()))
    assert runs == 2


def test_masks_inside_batches_change_neither_order_nor_windows_nor_what_is_valid():
    data, generators = speech()[1], [torch.Generator().manual_seed(5) for _ in range(2)]
    plain = list(data.batches(8, None, generators[0]))
    masked = list(data.batches(8, None, generators[1], SpecAugment(1, .9, .9)))
    assert any(not torch.equal(x, x2) for ((x, *_), _), ((x2, *_), _) in zip(plain, masked, strict=True))
    for ((x, valid, *_), y), ((x2, valid2, *_), y2) in zip(plain, masked):
        assert torch.equal(valid, valid2) and torch.equal(y, y2) and ((x2 == x) | (x2 == 0)).all()
