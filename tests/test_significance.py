"""scripts/significance.py against scikit-learn, scipy on a mean, and enumeration of all resamples and swaps."""
import itertools
import sys

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT

from datasets import scoring

sys.path.insert(0, str(ROOT / 'scripts'))
import significance as sig  # noqa: E402


def speech(n_speakers=5, n_classes=3, n_seeds=2, n=60, hit=.6, seed=0):
    """(speakers, labels, [predicted of a seed]) as indices, and their counts (n_seeds, n_speakers, n_classes, n_classes)."""
    rng = np.random.default_rng(seed)
    speakers = np.concatenate([np.arange(n_speakers), rng.integers(0, n_speakers, n - n_speakers)])
    labels = rng.integers(0, n_classes, n)
    predicted = [np.where(rng.random(n) < hit, labels, rng.integers(0, n_classes, n)) for _ in range(n_seeds)]
    return speakers, labels, predicted, np.stack([sig.count(speakers, labels, p, n_speakers, n_classes) for p in predicted])


def plain(speakers, labels, predicted, drawn):
    """(3,) mean over seeds of scoring.scores, each speaker as often as drawn."""
    rows = np.concatenate([np.flatnonzero(speakers == speaker) for speaker in drawn])
    found = [scoring.scores(labels[rows], p[rows]) for p in predicted]
    return np.array([np.mean([one[name] for one in found]) for name in sig.MEASURES])


def test_scores_solved_by_hand():
    """Speaker 0: a a b -> a b b; speaker 1: a b c c -> a a c a. Recall of a 2/3, b 1/2, c 1/2; F1 4/7, 1/2, 2/3."""
    counts = sig.count([0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 0, 1, 2, 2], [0, 1, 1, 0, 0, 2, 0], 2, 3)
    assert counts[0].tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert counts[1].tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 1]]
    expected = [(2 / 3 + 1 / 2 + 1 / 2) / 3, 4 / 7, (4 / 7 + 1 / 2 + 2 / 3) / 3]
    assert sig.point(counts[None]) == pytest.approx(expected)
    assert sig.score(counts[None], np.array([[0, 0]]))[0] == pytest.approx((1 / 2 + 1) / 2)  # c does not occur


@pytest.mark.parametrize('n_classes', [2, 7])
def test_scores_of_resamples_are_those_of_repeated_utterances(n_classes):
    """12 utterances of 7 classes: most resamples lack some."""
    speakers, labels, predicted, counts = speech(n_classes=n_classes, n=12)
    drawn = np.random.default_rng(1).integers(0, 5, (40, 5))
    found = sig.score(counts, drawn)
    for i, some in enumerate(drawn):
        assert found[:, i] == pytest.approx(plain(speakers, labels, predicted, some), abs=1e-12)
    assert len({len(np.unique(labels[np.isin(speakers, some)])) for some in drawn}) > 1 or n_classes == 2


def test_a_seed_without_a_drawn_speaker_is_left_out():
    *_, counts = speech(n_speakers=3)
    counts[1, 0] = 0
    drawn = np.array([[0, 0, 0]])
    alone = sig.score(counts[:1], drawn)
    assert (sig.score(counts, drawn) == alone).all() and not np.isnan(alone).any()


def test_the_interval_is_that_of_all_resamples(monkeypatch):
    """4 speakers: 256 equally likely resamples, of one model and of a difference."""
    monkeypatch.setattr(sig, 'FEW', 2)
    speakers, labels, first, a = speech(n_speakers=4, n=30, n_seeds=1)
    *_, second, b = speech(n_speakers=4, n=30, n_seeds=1, hit=.3)
    every = [[plain(speakers, labels, p, drawn) for drawn in itertools.product(range(4), repeat=4)] for p in (first, second)]
    for found, values in ((sig.interval(a), np.array(every[0])), (sig.interval(a, b), np.array(every[0]) - every[1])):
        exact = np.quantile(values, [.02, .025, .03, .97, .975, .98], axis=0, method='inverted_cdf')  # (6, 3)
        assert (exact[0] - 1e-9 <= found[0]).all() and (found[0] <= exact[2] + 1e-9).all()
        assert (exact[3] - 1e-9 <= found[1]).all() and (found[1] <= exact[5] + 1e-9).all()
    monkeypatch.undo()
    assert np.isnan(sig.interval(a)).all()  # of four speakers an interval says nothing


def test_p_is_that_of_all_swaps():
    speakers, labels, first, a = speech(hit=.8)
    *_, second, b = speech(hit=.4)
    there = plain(speakers, labels, first, range(5)) - plain(speakers, labels, second, range(5))
    hits = np.zeros(3)
    for swap in itertools.product([False, True], repeat=5):
        swapped = np.array(swap)[speakers]
        one = plain(speakers, labels, [np.where(swapped, q, p) for p, q in zip(first, second)], range(5))
        two = plain(speakers, labels, [np.where(swapped, p, q) for p, q in zip(first, second)], range(5))
        hits += np.abs(one - two) >= np.abs(there) - 1e-12
    found = sig.p_values(a, b)
    assert sig.point(a) - sig.point(b) == pytest.approx(there) and found == pytest.approx(hits / 32)
    assert (0 < found).all() and (found < 1).all()
    low, high = sig.interval(a, b)
    assert (low < there).all() and (there < high).all()


def test_p_of_wa_is_that_of_a_mean_over_speakers():
    """All speakers say the same number of utterances. 16 are sampled, and come near the p of all swaps."""
    rng = np.random.default_rng(3)
    counts = np.zeros((2, 16, 2, 2), int)  # two models of one seed
    for model, hit in enumerate((.75, .6)):
        right = rng.binomial(10, hit, 16)
        counts[model, :, 0, 0], counts[model, :, 0, 1] = right, 10 - right
    shares = counts[:, :, 0, 0] / 10

    def exact(n):
        return scipy.stats.permutation_test((shares[0, :n], shares[1, :n]), lambda x, y, axis: (x - y).mean(axis=axis),
                                            permutation_type='samples', n_resamples=np.inf, vectorized=True).pvalue

    def ours(n):
        return sig.p_values(counts[:1, :n], counts[1:, :n])[1]
    assert ours(9) == pytest.approx(exact(9)) and ours(14) == pytest.approx(exact(14))
    assert ours(16) == pytest.approx(exact(16), rel=.2) and ours(16) != exact(16)


def test_a_mean_over_corpora_is_that_of_all_swaps_and_resamples(monkeypatch):
    """Corpora of 2 and 3 speakers: 32 equally likely swaps, 4 x 27 resamples; each corpus weighs the same."""
    monkeypatch.setattr(sig, 'FEW', 2)
    corpora = [(speech(n_speakers=n, n=30, hit=.8, seed=n), speech(n_speakers=n, n=30, hit=.6, seed=n)) for n in (2, 3)]
    swaps, resamples = [], []
    for (speakers, labels, first, a), (*_, second, _) in corpora:
        n = a.shape[1]
        every = []
        for swap in itertools.product([False, True], repeat=n):
            swapped = np.array(swap)[speakers]
            one = plain(speakers, labels, [np.where(swapped, q, p) for p, q in zip(first, second)], range(n))
            every.append(one - plain(speakers, labels, [np.where(swapped, p, q) for p, q in zip(first, second)], range(n)))
        swaps.append(np.array(every))  # the first has none
        resamples.append(np.array([plain(speakers, labels, first, drawn) - plain(speakers, labels, second, drawn)
                                   for drawn in itertools.product(range(n), repeat=n)]))
    pairs = [(a, b) for (*_, a), (*_, b) in corpora]
    means = (swaps[0][:, None] + swaps[1][None]).reshape(-1, 3) / 2
    there = means[0]
    assert sig.pooled_p_values(pairs) == pytest.approx((np.abs(means) >= np.abs(there) - 1e-12).mean(axis=0))
    drawn = (resamples[0][:, None] + resamples[1][None]).reshape(-1, 3) / 2
    exact = np.quantile(drawn, [.02, .025, .03, .97, .975, .98], axis=0, method='inverted_cdf')
    low, high = sig.pooled_interval(pairs)
    assert (exact[0] - 1e-9 <= low).all() and (low <= exact[2] + 1e-9).all()
    assert (exact[3] - 1e-9 <= high).all() and (high <= exact[5] + 1e-9).all()
    assert np.isnan(sig.pooled_interval([pairs[0], (pairs[1][0][:, :1], pairs[1][1][:, :1])])).all()


def test_models_that_do_the_same_do_not_differ():
    *_, counts = speech()
    assert (sig.p_values(counts, counts) == 1).all() and (sig.interval(counts, counts) == 0).all()


@pytest.mark.parametrize('n', [1, 2, 6, 14, 15, 20])
def test_no_p_is_smaller_than_the_smallest(n):
    """One model is always right, the other never."""
    right, wrong = np.zeros((2, 1, n, 2, 2), int)
    right[..., 0, 0] = right[..., 1, 1] = wrong[..., 0, 1] = wrong[..., 1, 0] = 1
    found = sig.p_values(right, wrong)
    assert (found >= sig.smallest_p(n)).all() and (n == 15 or found == pytest.approx(sig.smallest_p(n)))
    assert (found < 1.1 / 2 ** (min(n, 12) - 1)).all()


def test_holm_by_hand():
    assert sig.holm([.01, .04, .03, .005]) == pytest.approx([.03, .06, .06, .02])
    assert sig.holm([.5, .9]) == pytest.approx([1., 1.]) and sig.holm([]) == []


def test_an_interval_needs_five_speakers_in_each_corpus():
    (*_, many), (*_, few) = speech(n_speakers=5), speech(n_speakers=4)
    assert not np.isnan(sig.interval(many)).any() and np.isnan(sig.interval(few)).all()
    assert np.isnan(sig.pooled_interval([(many, many), (few, few)])).all()
