"""Statistics of predictions, from confusion counts a speaker. Speakers, not utterances, are what was sampled independently.

Counts are arrays (n_seeds, n_speakers, n_classes, n_classes), the true class before the predicted one. A score of several seeds
is the mean of the seeds' scores, each over all predictions of that seed at once. Every resample is drawn from a fixed seed.
"""
import numpy as np

MEASURES = ('ua', 'wa', 'macro_f1')
N_RESAMPLES = 10_000
EXACT_UP_TO = 14  # speakers: 2^14 ways to swap two models are all looked at
TIE = 1e-12  # differences nearer than this are the same


def count(speakers, labels, predicted, n_speakers, n_classes):
    """(n_speakers, n_classes, n_classes) from indices (n,) of speakers, true and predicted classes."""
    counts = np.zeros((n_speakers, n_classes, n_classes), int)
    np.add.at(counts, (speakers, labels, predicted), 1)
    return counts


def measures(confusion):
    """scoring.scores of confusion matrices (..., n_classes, n_classes): {'ua', 'wa', 'macro_f1'}, each (...).

    UA is of the classes that occur, F1 of those that occur or are predicted: a resample that lacks a class is judged by the
    others. nan where there is nothing.
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)  # (..., n_classes)
    support, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)

    def mean_ratio(above, below):  # over the classes whose denominator is not 0
        return (above / np.maximum(below, 1)).sum(axis=-1) / (below > 0).sum(axis=-1)
    with np.errstate(invalid='ignore'):
        return {'ua': mean_ratio(right, support), 'wa': right.sum(axis=-1) / support.sum(axis=-1),
                'macro_f1': mean_ratio(2 * right, support + predicted)}


def score(counts, weights=None):
    """{measure: score}. weights: (n, n_speakers), how often each speaker counts; the scores are (n,) then."""
    n_seeds, n_speakers, n_classes, _ = counts.shape
    weights = np.ones((1, n_speakers)) if weights is None else weights
    flat = counts.transpose(1, 0, 2, 3).reshape(n_speakers, -1)
    found = measures((weights @ flat.astype(float)).reshape(-1, n_seeds, n_classes, n_classes))
    found = {name: _mean(x) for name, x in found.items()}
    return {name: float(x[0]) for name, x in found.items()} if len(weights) == 1 else found


def resamples(n_speakers, n, seed=0):
    """(n, n_speakers): how often each speaker is drawn in n samples of n_speakers with replacement."""
    return np.random.default_rng(seed).multinomial(n_speakers, np.full(n_speakers, 1 / n_speakers), size=n)


def interval(values, level=.95):
    """Percentile interval (low, high) of resampled scores (n,)."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap(counts):
    """{measure: (low, high)}, 95% over speakers with all their utterances and seeds; None for a single speaker."""
    n_speakers = counts.shape[1]
    if n_speakers < 2:
        return dict.fromkeys(MEASURES)
    return {name: interval(x) for name, x in score(counts, resamples(n_speakers, N_RESAMPLES)).items()}


def paired(a, b):
    """{measure: (difference a - b, (low, high) or None, p)}: counts of two models on the same seeds and speakers.

    p is two-sided, of a randomization test: were the models alike, each speaker's predictions (of all seeds) might as well have
    been swapped between them. All swaps are looked at where they are few, else N_RESAMPLES drawn ones and the one that was.
    """
    n_speakers = a.shape[1]
    there = {name: x - y for (name, x), y in zip(score(a).items(), score(b).values())}
    spread = dict.fromkeys(MEASURES)
    if n_speakers > 1:
        weights = resamples(n_speakers, N_RESAMPLES)
        of_a, of_b = score(a, weights), score(b, weights)
        spread = {name: interval(of_a[name] - of_b[name]) for name in MEASURES}
    if n_speakers <= EXACT_UP_TO:
        swaps = np.arange(2 ** n_speakers)[:, None] >> np.arange(n_speakers) & 1
    else:
        swaps = np.random.default_rng(0).integers(0, 2, (N_RESAMPLES + 1, n_speakers))
        swaps[0] = 0
    both = np.concatenate([a, b], axis=1)  # (n_seeds, 2 * n_speakers, ...)
    of_a, of_b = score(both, np.hstack([1 - swaps, swaps])), score(both, np.hstack([swaps, 1 - swaps]))
    p = {name: float(np.mean(np.abs(of_a[name] - of_b[name]) >= abs(there[name]) - TIE)) for name in MEASURES}
    return {name: (there[name], spread[name], p[name]) for name in MEASURES}


def smallest_p(n_speakers):
    """The least p that `paired` can find: for one speaker 1, for each more one half of that."""
    return max(2. ** (1 - n_speakers), 1 / (N_RESAMPLES + 1)) if n_speakers > EXACT_UP_TO else 2. ** (1 - n_speakers)


def holm(ps):
    """Holm's p values for a family of tests, in the order given."""
    ps, found, largest = np.asarray(ps, float), np.empty(len(ps)), 0.
    for i, k in enumerate(np.argsort(ps, kind='stable')):
        largest = max(largest, min(1., (len(ps) - i) * ps[k]))
        found[k] = largest
    return found.tolist()


def mean_sd(values):
    """(mean, sample standard deviation or None where there is one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def overlap(counts):
    """Mean over pairs of cells of the share of edges that both have; counts: {name: n} of each cell. None for one cell."""
    shares = [sum(min(n, b.get(name, 0)) for name, n in a.items()) / max(1, sum(a.values()), sum(b.values()))
              for i, a in enumerate(counts) for b in counts[:i]]
    return float(np.mean(shares)) if shares else None


def _mean(x):
    """Over the last axis, of what is not nan."""
    there = ~np.isnan(x)
    with np.errstate(invalid='ignore'):
        return np.where(there, x, 0.).sum(axis=-1) / there.sum(axis=-1)
