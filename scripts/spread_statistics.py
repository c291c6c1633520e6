"""The statistics of scripts/spread.py: variance components, the gate, the ceiling of a search, the seeds of a table.

Scores are a complete table y (A, F, S): architectures, folds, seeds. The model has random effects,

    y[a, f, s] = mean + architecture[a] + fold[f] + interaction[a, f] + seed[a, f, s],

with seeds nested within architecture and fold. Estimates are those of the analysis of variance (method of moments). In
a complete table they equal REML if none is negative; a negative variance counts as 0. Intervals are generalised
confidence intervals (Weerahandi 1993): each mean square is divided by draws of chi-square over its degrees of freedom,
which assumes normal effects. With one fold, the component of architectures includes their interaction with that fold.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import integrate
from scipy.stats import norm

N_DRAWS = 20_000
LEVEL = .95
DIFFERENCE = 1.5  # UA, in points, that a table is to show
POWER = .8  # with which it is shown, two-sided at 5%


class Estimate(NamedTuple):
    value: float
    low: float
    high: float


def mean_squares(y: np.ndarray) -> dict[str, tuple[float, int]]:
    """{source: (mean square, degrees of freedom)} of y (A, F, S); one fold has neither 'fold' nor 'interaction'."""
    A, F, S = y.shape
    cells, mean = y.mean(axis=2), y.mean()  # (A, F)
    of_a, of_f = cells.mean(axis=1, keepdims=True), cells.mean(axis=0, keepdims=True)
    found = {'architecture': (F * S * np.square(of_a - mean).sum(), A - 1),
             'fold': (A * S * np.square(of_f - mean).sum(), F - 1),
             'interaction': (S * np.square(cells - of_a - of_f + mean).sum(), (A - 1) * (F - 1)),
             'seed': (np.square(y - cells[:, :, None]).sum(), A * F * (S - 1))}
    return {source: (float(squares) / df, df) for source, (squares, df) in found.items() if df}


def variances(squares: dict, shape: tuple[int, int, int]) -> dict:
    """{source: variance component}, which may be negative, from mean squares: numbers, or draws (n,)."""
    A, F, S = shape
    found = {'seed': squares['seed']}
    below = squares['seed']  # expectation of the mean square of architectures that do not differ
    if F > 1:
        below = squares['interaction']
        found.update(interaction=(below - squares['seed']) / S, fold=(squares['fold'] - below) / (A * S))
    return {'architecture': (squares['architecture'] - below) / (F * S), **found}


def estimate(squares: dict, shape: tuple[int, int, int], function: Callable, n_draws: int = N_DRAWS) -> Estimate:
    """function(variances), with its interval. squares: of mean_squares; shape: of the table."""
    rng = np.random.default_rng(0)
    drawn = {source: square * df / rng.chisquare(df, n_draws) for source, (square, df) in squares.items()}
    value = function(variances({source: square for source, (square, _) in squares.items()}, shape))
    low, high = np.quantile(function(variances(drawn, shape)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))


def better_half(y: np.ndarray) -> tuple[dict, tuple[int, int, int]] | None:
    """(mean squares, shape) of the better half of the architectures; None if there are fewer than 3 seeds or 4 architectures.

    One seed chooses the half, and only the others enter the mean squares: scores that also chose the networks would make
    them look alike. Each seed chooses once, and the mean squares are averaged. They keep the degrees of freedom of one
    choice, so the interval is too wide rather than too narrow.
    """
    A, F, S = y.shape
    if S < 3 or A < 4:
        return None
    found = []
    for s in range(S):
        chosen = np.argsort(-y[:, :, s].mean(axis=1), kind='stable')[:A // 2]
        found.append(mean_squares(np.delete(y[chosen], s, axis=2)))
    squares = {source: (float(np.mean([one[source][0] for one in found])), df) for source, (_, df) in found[0].items()}
    return squares, (A // 2, F, S - 1)


def sd(source: str) -> Callable:
    """Function of the variances: the standard deviation of a source."""
    return lambda v: np.sqrt(np.maximum(0., v[source]))


def ratio(v: dict):
    """Standard deviation of architectures, divided by that of seeds."""
    return sd('architecture')(v) / np.sqrt(v['seed'])


def correlation(v: dict):
    """Correlation of two seeds of one genotype on one fold; it may be negative."""
    shared = v['architecture'] + v.get('interaction', 0.)
    return shared / (shared + v['seed'])


def expected_maximum(n: int) -> float:
    """Mean of the largest of n standard normal numbers."""
    return integrate.quad(lambda x: n * x * norm.pdf(x) * norm.cdf(x) ** (n - 1), -10., 10., epsabs=1e-10, limit=200)[0]


def ceiling(n: int) -> Callable:
    """Function of the variances: what a perfect choice among n architectures gains over a random one."""
    largest = expected_maximum(n)
    return lambda v: largest * sd('architecture')(v)


def one_training_each(n: int) -> Callable:
    """Function of the variances: what a choice by one training of each, on one fold, gains over a random one."""
    largest = expected_maximum(n)

    def gain(v):
        of_a = np.maximum(0., v['architecture'])
        return largest * of_a / np.sqrt(of_a + np.maximum(0., v.get('interaction', 0.)) + v['seed'])
    return gain


def seeds_needed(n_folds: int, drawn_anew: bool) -> Callable:
    """Function of the variances: seeds a model with which a table shows DIFFERENCE on the speakers of its folds.

    drawn_anew: each training is of another architecture, as with a search in every fold; otherwise both networks are fixed.
    """
    z = norm.ppf(.975) + norm.ppf(POWER)

    def seeds(v):
        one = v['seed']
        if drawn_anew:
            one = one + np.maximum(0., v['architecture']) + np.maximum(0., v.get('interaction', 0.))
        return np.ceil(2 * z ** 2 * one / (DIFFERENCE ** 2 * n_folds))
    return seeds


def gate(whole: Estimate, half: Estimate) -> tuple[bool, bool]:
    """(passed, certain) from `ratio` of all networks and of the better half: passed if both are 1 or more.

    certain: the intervals say the same.
    """
    passed = min(whole.value, half.value) >= 1
    return passed, min(whole.low, half.low) >= 1 if passed else min(whole.high, half.high) < 1
