"""Intervals and tests of UA, WA and macro F1. Speakers were sampled independently, not utterances: speakers are resampled.

Counts are confusion matrices, one per seed and speaker: an array (n_seeds, n_speakers, n_classes, n_classes), the true class
before the predicted one. A score is the mean over seeds, each computed from all predictions of that seed at once.
"""
import numpy as np
import scipy.stats

MEASURES = ('ua', 'wa', 'macro_f1')
N_RESAMPLES = 10_000
N_SWAPS = 20_000  # up to 14 speakers, all 2^14 swaps are fewer than this, and every one is looked at
BATCH = 2_000  # resamples scored at once
FEW = 5  # speakers; an interval over fewer would say nothing
DIGITS = 12  # differences that agree in so many decimals are equal


def count(speakers, labels, predicted, n_speakers: int, n_classes: int) -> np.ndarray:
    """(n_speakers, n_classes, n_classes) from the indices (n,) of speakers, true and predicted classes."""
    counts = np.zeros((n_speakers, n_classes, n_classes), int)
    np.add.at(counts, (speakers, labels, predicted), 1)
    return counts


def scores(confusion: np.ndarray) -> np.ndarray:
    """UA, WA and macro F1 (3, ...) of confusion matrices (..., n_classes, n_classes).

    As in datasets.scoring.scores: UA is over the classes that occur, F1 over those that occur or are predicted. nan if the
    matrix is empty.
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)  # (..., n_classes)
    support, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)

    def mean_ratio(above, below):  # over the classes with a denominator
        return (above / np.maximum(below, 1)).sum(axis=-1) / (below > 0).sum(axis=-1)
    with np.errstate(invalid='ignore'):
        return np.stack([mean_ratio(right, support), right.sum(axis=-1) / support.sum(axis=-1),
                         mean_ratio(2 * right, support + predicted)])


def score(counts: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Scores (3, n) of n resamples; drawn (n, m): indices of their speakers, repeated ones included."""
    n_seeds, n_speakers, n_classes, _ = counts.shape
    n = len(drawn)
    flat = counts.transpose(1, 0, 2, 3).reshape(n_speakers, -1).astype(float)
    cells = (drawn + n_speakers * np.arange(n)[:, None]).ravel()
    weights = np.bincount(cells, minlength=n * n_speakers).reshape(n, n_speakers)
    by_seed = scores((weights @ flat).reshape(n, n_seeds, n_classes, n_classes))  # (3, n, n_seeds)
    there = ~np.isnan(by_seed)  # a seed that lacks folds may have no prediction of the speakers drawn
    return np.where(there, by_seed, 0.).sum(axis=-1) / there.sum(axis=-1)


def point(counts: np.ndarray) -> np.ndarray:
    """Scores (3,) of what was observed."""
    return score(counts, np.arange(counts.shape[1])[None])[:, 0]


def interval(counts: np.ndarray, minus: np.ndarray | None = None) -> np.ndarray:
    """95% percentile intervals (2, 3) over speakers, each with all utterances and seeds; nan for fewer than FEW speakers.

    minus: counts of another model on the same seeds and speakers; the intervals are then those of the difference.
    """
    return pooled_interval([(counts, minus)])


def of_predictions(speakers, labels, predicted, n_classes: int) -> tuple[int, np.ndarray]:
    """(number of speakers, `interval` of one run) from a speaker's name and the indices of two classes for each utterance."""
    names, numbers = np.unique(np.asarray(speakers, str), return_inverse=True)
    return len(names), interval(count(numbers, labels, predicted, len(names), n_classes)[None])


def p_values(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two-sided p (3,) of a paired randomization test: counts of two models on the same seeds and speakers.

    If the models were alike, all predictions of a speaker might as well have been swapped between them.
    """
    return pooled_p_values([(a, b)])


def pooled_interval(pairs: list[tuple[np.ndarray, np.ndarray | None]]) -> np.ndarray:
    """`interval` of the mean over corpora, each a pair of counts; every corpus keeps its number of speakers."""
    sizes = [counts.shape[1] for counts, _ in pairs]
    if min(sizes) < FEW:
        return np.full((2, len(MEASURES)), np.nan)

    def statistic(*drawn, axis):
        return np.mean([score(counts, np.atleast_2d(its)) - (0 if minus is None else score(minus, np.atleast_2d(its)))
                        for (counts, minus), its in zip(pairs, drawn)], axis=0)
    found = scipy.stats.bootstrap([np.arange(n) for n in sizes], statistic, n_resamples=N_RESAMPLES, batch=BATCH,
                                  vectorized=True, method='percentile', rng=np.random.default_rng(0))
    return np.stack(found.confidence_interval)


def pooled_p_values(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """`p_values` of the mean difference over corpora, each a pair of counts."""
    sizes = [a.shape[1] for a, _ in pairs]
    n_speakers, starts = sum(sizes), np.cumsum([0, *sizes])
    both = [np.concatenate(pair, axis=1) for pair in pairs]  # speaker i under model a, n_speakers of the corpus + i under b

    def scores_of(drawn):
        """Index i: speaker i of all corpora under model a; n_speakers + i: the same under model b."""
        drawn, found = drawn.reshape(-1, len(MEASURES), n_speakers)[:, 0], []
        for counts, start, size in zip(both, starts, sizes):
            its = drawn[:, start:start + size]
            found.append(score(counts, its % n_speakers - start + size * (its // n_speakers)))
        return found

    def statistic(x, y, axis):
        return np.round(np.mean([a - b for a, b in zip(scores_of(x), scores_of(y))], axis=0), DIGITS).T
    if n_speakers == 1:
        return np.ones(len(MEASURES))
    rows = np.tile(np.arange(n_speakers), (len(MEASURES), 1))  # a row per measure, all swapped alike
    found = scipy.stats.permutation_test((rows, rows + n_speakers), statistic, permutation_type='samples', axis=-1,
                                         vectorized=True, n_resamples=N_SWAPS, batch=BATCH, rng=np.random.default_rng(0))
    return found.pvalue.reshape(len(MEASURES))


def smallest_p(n_speakers: int) -> float:
    """The least p that `p_values` can find."""
    return max(2. ** (1 - n_speakers), 2 / (N_SWAPS + 1))


def holm(ps: list[float]) -> list[float]:
    """Holm's corrected p values of a family of tests, in the order given."""
    found, largest = [0.] * len(ps), 0.
    for i, k in enumerate(np.argsort(ps, kind='stable')):
        largest = max(largest, min(1., (len(ps) - i) * ps[k]))
        found[k] = largest
    return found
