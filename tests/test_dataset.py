import threading
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_corpus

import config as cf
import datasets
from datasets.dataset import AHEAD, SpeechDataset, ahead, fits, statistics
from datasets.transforms import spec_augment

LENGTHS = [5, 12, 30, 7, 25]
WINDOW = 12


def dataset(lengths=LENGTHS, window=WINDOW):
    """Frame t of utterance i holds 100 i + t + 1 in every band, not normalised."""
    features = [np.tile(100. * i + np.arange(n) + 1, (3, 1)).astype(np.float32) for i, n in enumerate(lengths)]
    us = [SimpleNamespace(path=str(i)) for i in range(len(lengths))]
    return SpeechDataset(us, features, [i % 2 for i in range(len(lengths))], torch.zeros(3, 1), torch.ones(3, 1), window)


def speech(dtype=np.float16, **kwargs):
    """Random features of some 40 utterances, and the dataset of them."""
    rng = np.random.default_rng(0)
    features = [rng.normal(-7., 4., (5, n)).astype(dtype) for n in rng.integers(3, 40, 41)]
    us = [SimpleNamespace(path=str(i)) for i in range(len(features))]
    mean, std = statistics(features)
    return features, SpeechDataset(us, features, [i % 3 for i in range(len(us))], mean, std, WINDOW, **kwargs)


def cut(data, i, start):
    return next(data.windows(torch.tensor([i]), torch.tensor([start]), 1))[0]


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

    def forward(x):
        top = x.amax(dim=(1, 2, 3)) / 300.
        return torch.stack([top, 1. - top], dim=1)
    whole = data.score(forward, 100)
    assert whole.shape == (5, 2)
    torch.testing.assert_close(whole.sum(dim=1), torch.ones(5))
    for batch_size in (1, 2, 4):
        torch.testing.assert_close(data.score(forward, batch_size), whole)
    by_hand = torch.stack([torch.softmax(forward(cut(data, 2, s))[0], dim=0) for s in (0, 9, 18)]).mean(dim=0)
    torch.testing.assert_close(whole[2], by_hand)


def test_an_epoch_has_every_utterance_once_at_random_places():
    data, starts = dataset(), {i: set() for i in range(5)}
    for _ in range(60):
        seen = []
        for X, y in data.batches(2):
            for x, label in zip(X, y):
                inside = frames_of(x)
                i = int(inside[0] - 1) // 100
                assert label == i % 2 and inside == list(np.arange(inside[0], inside[-1] + 1))  # one piece, in order
                assert len(inside) == min(LENGTHS[i], WINDOW)
                seen.append(i)
                starts[i].add((inside[0], int((x[0, 0] != 0).float().argmax())))
        assert sorted(seen) == [0, 1, 2, 3, 4]
    assert len(starts[2]) > 10 and len(starts[0]) > 5 and len(starts[1]) == 1
    assert [len(y) for _, y in data.batches(2)] == [2, 3]  # one utterance alone joins the batch before
    assert [len(y) for _, y in data.batches(3)] == [3, 2] and [len(y) for _, y in data.batches(1)] == [1] * 5
    assert sum(len(y) for _, y in data.batches(2, [1, 3, 4])) == 3


def test_features_kept_in_float16_give_the_bits_of_normalising_them_beforehand():
    features, data = speech()
    whole = [(torch.from_numpy(x.astype(np.float32)) - data.mean[..., 0]) / data.std[..., 0] for x in features]
    assert data.frames.dtype == torch.float16
    for i, x in enumerate(whole):
        for start in (-3, 0, x.shape[1] - 1):
            inside = torch.nn.functional.pad(x, (WINDOW, WINDOW))[:, start + WINDOW:start + 2 * WINDOW]
            assert torch.equal(cut(data, i, start)[0, 0], inside)


def check_same_batches(one, other):
    """Batches of two datasets, to the bit, how many random numbers they draw, and scores, which a GPU adds up in any order."""
    def forward(x):
        return x.sum(dim=2)[:, 0, :3]
    for indices, share in ((None, (0, 1)), (range(7), (0, 1)), (range(11, 24), (0, 1)), (None, (1, 3))):
        seen = []
        for data in (one, other):
            torch.manual_seed(3)
            batches = [(X.cpu(), y.cpu()) for X, y in data.batches(6, indices, None, *share)]
            seen.append([*batches, (torch.rand(1), torch.rand(1))])
        for (X, y), (X2, y2) in zip(*seen, strict=True):
            assert torch.equal(X, X2) and torch.equal(y, y2) and X.stride() == X2.stride()
    torch.testing.assert_close(one.score(forward, 5).cpu(), other.score(forward, 5).cpu())


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
def test_batches_cut_ahead_are_those_of_resident_features(dtype):
    threads = threading.active_count()
    check_same_batches(speech(dtype)[1], speech(dtype, resident=False)[1])
    assert next(iter(speech(resident=False)[1].batches(4)))[0].shape == (4, 1, 5, WINDOW)  # and the others left alone
    assert threading.active_count() == threads


@pytest.mark.parametrize('resident', [True, False])
def test_processes_share_each_batch(resident):
    data = speech(resident=resident)[1]
    whole, *shares = (list(data.batches(8, None, torch.Generator().manual_seed(4), *share))
                      for share in ((0, 1), (0, 3), (1, 3), (2, 3)))
    for rank, share in enumerate(shares):
        for (X, y), (own_X, own_y) in zip(whole, share, strict=True):
            assert torch.equal(X[rank::3], own_X) and torch.equal(y[rank::3], own_y)


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_of_the_cpu_and_wait_for_nothing():
    for resident in (True, False):
        data = speech(device='cuda', resident=resident)[1]
        assert data.frames.is_cuda == resident
        check_same_batches(speech()[1], data)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode('error')
        try:
            assert all(X.is_cuda and y.is_cuda for X, y in data.batches(6))
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


def test_features_stay_on_the_device_where_they_fit(monkeypatch, small_corpus, tmp_path):
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (4000, 9000))
    assert fits(1000, 'auto', 'cuda:1') and not fits(1001, 'auto', torch.device('cuda'))
    assert fits(10 ** 12, 'always', 'cuda') and not fits(1, 'never', 'cuda')
    assert fits(10 ** 12, 'auto', 'cpu') and not fits(1, 'never', 'cpu')
    one, other = (load(small_corpus, tmp_path, resident=how) for how in ('auto', 'never'))
    assert all(one.sets[name].resident and not other.sets[name].resident for name in one.sets)
    check_same_batches(one.sets['train'], other.sets['train'])


def test_spec_augment_masks_bands_within_bounds():
    x = torch.ones(200, 1, 20, 40)
    y = spec_augment(x, 1, .2, .1)
    bands, steps = (y == 0).all(dim=3)[:, 0].sum(dim=1), (y == 0).all(dim=2)[:, 0].sum(dim=1)
    assert bands.max() == 4 and steps.max() == 4 and bands.min() == 0 and len(bands.unique()) == 5
    assert torch.equal(spec_augment(x, 0, .2, .1), x) and (x == 1).all()
    assert ((y == 0) == ((y == 0).all(dim=3, keepdim=True) | (y == 0).all(dim=2, keepdim=True))).all()


def test_statistics_are_numpys():
    parts = [np.random.randn(4, n).astype(np.float32) * 3 + 1 for n in (5, 9)]
    mean, std = statistics(parts)
    np.testing.assert_allclose(mean[:, 0], np.concatenate(parts, axis=1).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(std[:, 0], np.concatenate(parts, axis=1).std(axis=1), rtol=1e-5)


def test_statistics_of_a_large_corpus_neither_round_nor_copy_it():
    parts = [(np.random.randn(4, 1000) * .3 - 13.).astype(np.float16) for _ in range(500)]  # 4 MB, near silence
    whole = np.concatenate(parts, axis=1).astype(np.float64)
    tracemalloc.start()
    mean, std = statistics(parts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_max_ulp(mean[:, 0].numpy(), whole.mean(axis=1).astype(np.float32))
    np.testing.assert_array_max_ulp(std[:, 0].numpy(), whole.std(axis=1).astype(np.float32))
    assert peak < sum(x.nbytes for x in parts) / 10


def load(csv, tmp_path, splits=('train', 'dev', 'test'), **settings):
    return datasets.load(cf.SearchConfig(name='x', dataset='manifest', data_path=str(csv), cache=str(tmp_path / 'cache'),
                                         duration=1., **settings), splits)


def test_normalisation_is_of_the_training_speakers_alone(tmp_path):
    csv = write_corpus(tmp_path / 'c')
    before = load(csv, tmp_path)
    train = before.sets['train']
    frames = (train.frames - train.mean[..., 0]) / train.std[..., 0]
    torch.testing.assert_close(frames.mean(dim=1), torch.zeros(32), atol=1e-3, rtol=0)
    torch.testing.assert_close(frames.std(dim=1), torch.ones(32), atol=1e-3, rtol=0)
    other = write_corpus(tmp_path / 'other', shift=7)
    for u in before.fold.split(datasets.scan('manifest', str(csv)), 'test'):
        (tmp_path / 'c' / u.path).write_bytes((other.parent / u.path.rsplit('/')[-1]).read_bytes())
    after = load(csv, tmp_path)
    assert torch.equal(before.mean, after.mean) and torch.equal(before.std, after.std)
    assert torch.equal(before.sets['train'].frames, after.sets['train'].frames)
    assert torch.equal(before.sets['dev'].frames, after.sets['dev'].frames)
    assert not torch.equal(before.sets['test'].frames[:, :20], after.sets['test'].frames[:, :20])


def test_sets_that_were_not_asked_for_are_not_read(tmp_path):
    csv = write_corpus(tmp_path / 'c')
    fold = load(csv, tmp_path).fold
    for u in fold.split(datasets.scan('manifest', str(csv)), 'test'):
        open(u.path, 'w').close()
    assert set(load(csv, tmp_path, ('train', 'dev')).sets) == {'train', 'dev'}
    with pytest.raises(datasets.UserError, match='wav'):
        load(csv, tmp_path)


def test_class_weights_are_scikit_learns(tmp_path):
    from sklearn.utils.class_weight import compute_class_weight
    csv = write_corpus(tmp_path / 'c')
    lines = csv.read_text().splitlines()
    csv.write_text('\n'.join([*lines[:1], *[line for line in lines[1:] if 'sad_3' not in line and 'sad_2' not in line]]))
    data = load(csv, tmp_path)
    y = data.sets['train'].labels.numpy()
    np.testing.assert_allclose(data.class_weights, compute_class_weight('balanced', classes=np.array([0, 1]), y=y), rtol=1e-6)


@pytest.mark.parametrize('settings, named', [(dict(fold=9), '--fold 9'), (dict(folds='2'), '--folds 2')])
def test_impossible_folds_are_named(settings, named, small_corpus, tmp_path):
    with pytest.raises(datasets.UserError, match=named):
        load(small_corpus, tmp_path, **settings)


def test_a_class_without_training_speakers_is_named(small_corpus, tmp_path):
    rows = small_corpus.read_text().splitlines()
    rows = [rows[0]] + [f'{small_corpus.parent}/{row}' for row in rows[1:]]
    (tmp_path / 'm.csv').write_text('\n'.join(rows).replace('angry,spk1', 'rare,spk1'))
    with pytest.raises(datasets.UserError, match="'rare'"):
        load(tmp_path / 'm.csv', tmp_path)
