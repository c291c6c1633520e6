"""scripts/cv_statistics.py against scikit-learn, scipy and exhaustive enumeration."""
import itertools
import sys

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT

from datasets import scoring

sys.path.insert(0, str(ROOT / 'scripts'))
import cv_results  # noqa: E402
import cv_statistics as st  # noqa: E402


def speech(n_speakers=5, n_classes=3, n_seeds=2, n=60, hit=.6, seed=0):
    """(speakers, labels, [predicted of a seed]) as indices, and their counts (n_seeds, n_speakers, n_classes, n_classes)"""
    rng = np.random.default_rng(seed)
    speakers = np.concatenate([np.arange(n_speakers), rng.integers(0, n_speakers, n - n_speakers)])
    labels = rng.integers(0, n_classes, n)
    predicted = [np.where(rng.random(n) < hit, labels, rng.integers(0, n_classes, n)) for _ in range(n_seeds)]
    return speakers, labels, predicted, np.stack([st.count(speakers, labels, p, n_speakers, n_classes) for p in predicted])


def plain(speakers, labels, predicted, drawn):
    """Mean over seeds of scoring.scores where each speaker stands as often as he is in `drawn`."""
    rows = np.concatenate([np.flatnonzero(speakers == speaker) for speaker in drawn])
    found = [scoring.scores(labels[rows], p[rows]) for p in predicted]
    return {name: np.mean([one[name] for one in found]) for name in st.MEASURES}


def test_scores_solved_by_hand():
    """Speaker 0: a a b -> a b b; speaker 1: a b c c -> a a c a. Recall of a 2/3, b 1/2, c 1/2; F1 4/7, 1/2, 2/3."""
    counts = st.count([0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 0, 1, 2, 2], [0, 1, 1, 0, 0, 2, 0], 2, 3)
    assert counts[0].tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert counts[1].tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 1]]
    found = st.score(counts[None])
    assert found['ua'] == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3) and found['wa'] == pytest.approx(4 / 7)
    assert found['macro_f1'] == pytest.approx((4 / 7 + 1 / 2 + 2 / 3) / 3)
    assert st.score(counts[None], np.array([[2, 0]]))['ua'] == pytest.approx((1 / 2 + 1) / 2)  # c does not occur


@pytest.mark.parametrize('n_classes', [2, 7])
def test_weighted_scores_are_those_of_repeated_utterances(n_classes):
    """12 utterances of 7 classes: most resamples lack some."""
    speakers, labels, predicted, counts = speech(n_classes=n_classes, n=12)
    drawn = np.random.default_rng(1).integers(0, 5, (40, 5))
    found = st.score(counts, np.stack([np.bincount(some, minlength=5) for some in drawn]))
    for i, some in enumerate(drawn):
        for name, value in plain(speakers, labels, predicted, some).items():
            assert found[name][i] == pytest.approx(value, abs=1e-12)
    assert len({len(np.unique(labels[np.isin(speakers, some)])) for some in drawn}) > 1 or n_classes == 2


def test_a_seed_without_a_drawn_speaker_is_left_out():
    *_, counts = speech(n_speakers=3)
    counts[1, 0] = 0
    alone = st.score(counts[:1], np.array([[3, 0, 0]]))
    assert st.score(counts, np.array([[3, 0, 0]])) == alone and not np.isnan(alone['ua'])


def test_the_interval_is_that_of_all_resamples():
    """4 speakers: 256 resamples, equally likely."""
    speakers, labels, predicted, counts = speech(n_speakers=4, n=30, n_seeds=1)
    every = [plain(speakers, labels, predicted, drawn) for drawn in itertools.product(range(4), repeat=4)]
    for name, found in st.bootstrap(counts).items():
        exact = np.quantile([one[name] for one in every], [.02, .025, .03, .97, .975, .98], method='inverted_cdf')
        assert exact[0] - 1e-9 <= found[0] <= exact[2] + 1e-9 and exact[3] - 1e-9 <= found[1] <= exact[5] + 1e-9
    assert st.bootstrap(counts[:, :1]) == dict.fromkeys(st.MEASURES)


def test_resamples_draw_every_speaker_alike():
    drawn = st.resamples(6, 20_000)
    assert (drawn.sum(axis=1) == 6).all() and drawn.mean(axis=0) == pytest.approx(1, abs=.03)
    assert drawn.var(axis=0) == pytest.approx(5 / 6, abs=.03)  # binomial(6, 1/6)


def test_p_is_that_of_all_swaps():
    speakers, labels, first, a = speech(hit=.8)
    *_, second, b = speech(hit=.4)
    found = st.paired(a, b)
    there = {name: plain(speakers, labels, first, range(5))[name] - plain(speakers, labels, second, range(5))[name]
             for name in st.MEASURES}
    hits = dict.fromkeys(st.MEASURES, 0)
    for swap in itertools.product([False, True], repeat=5):
        swapped = np.array(swap)[speakers]
        one = plain(speakers, labels, [np.where(swapped, q, p) for p, q in zip(first, second)], range(5))
        two = plain(speakers, labels, [np.where(swapped, p, q) for p, q in zip(first, second)], range(5))
        for name in st.MEASURES:
            hits[name] += abs(one[name] - two[name]) >= abs(there[name]) - 1e-12
    for name, (difference, (low, high), p) in found.items():
        assert difference == pytest.approx(there[name]) and p == hits[name] / 32 and low < difference < high
    assert 0 < found['ua'][2] < 1


def test_p_against_scipy(monkeypatch):
    """WA where all speakers say as much is a mean over speakers, of which scipy has the same test."""
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
        return st.paired(counts[:1, :n], counts[1:, :n])['wa'][2]
    assert ours(9) == pytest.approx(exact(9)) and ours(14) == pytest.approx(exact(14))
    assert ours(16) == pytest.approx(exact(16), rel=.2) and ours(16) != exact(16)  # sampled


def test_models_that_do_the_same_do_not_differ():
    *_, counts = speech()
    assert st.paired(counts, counts) == dict.fromkeys(st.MEASURES, (0., (0., 0.), 1.))


@pytest.mark.parametrize('n', [1, 2, 6, 14, 15])
def test_no_p_is_smaller_than_is_said(n):
    """One model is always right, the other never."""
    right, wrong = np.zeros((2, 1, n, 2, 2), int)
    right[..., 0, 0] = right[..., 1, 1] = wrong[..., 0, 1] = wrong[..., 1, 0] = 1
    found = st.paired(right, wrong)['ua'][2]
    assert found >= st.smallest_p(n) and (n > 14 or found == st.smallest_p(n)) and found < 1.1 / 2 ** (min(n, 12) - 1)


def test_holm_by_hand():
    assert st.holm([.01, .04, .03, .005]) == pytest.approx([.03, .06, .06, .02])
    assert st.holm([.5, .9]) == pytest.approx([1., 1.]) and st.holm([]) == []


def test_small_things_by_hand():
    assert st.mean_sd([1., 2., 6.]) == pytest.approx((3., 7 ** .5)) and st.mean_sd([4.]) == (4., None)
    cells = [{'a': 2, 'b': 2}, {'a': 3, 'c': 1}, {'c': 4}]  # pairs share 2, 0 and 1 of 4 edges
    assert st.overlap(cells) == pytest.approx((2 + 0 + 1) / 12) and st.overlap(cells[:1]) is None


def test_which_runs_are_scored():
    whole = [(0, 1), (0, 2), (2, 1), (2, 2)]
    assert cv_results.choose([*whole, (1, 2)], [1, 2]) == whole and cv_results.describe(whole, [1, 2]) == '0 2'
    parts = [(0, 2), (1, 1), (1, 3)]
    assert cv_results.choose(parts, [1, 2, 3]) == parts
    assert cv_results.describe(parts, [1, 2, 3]) == 'partial: seed 0 fold 2; seed 1 folds 1 3'
    assert cv_results.choose(whole, [2]) == [(0, 2), (2, 2)]
