"""The estimates of scripts/spread.py against simulations with known variances, and its report."""
import numpy as np
import pytest
from scipy.optimize import minimize

from scripts import spread_report
from scripts import spread_statistics as st


def made_up(rng, shape, architecture, seed, fold=0., interaction=0.):
    """(y, effects of the architectures (A,)) of normal effects with these standard deviations."""
    A, F, S = shape
    of_a = architecture * rng.standard_normal(A)
    y = (50. + of_a[:, None, None] + fold * rng.standard_normal((1, F, 1)) + interaction * rng.standard_normal((A, F, 1))
         + seed * rng.standard_normal(shape))
    return y, of_a


@pytest.mark.parametrize('shape, truth', [
    ((12, 1, 3), dict(architecture=1.5, seed=3.)),
    ((10, 3, 2), dict(architecture=2., seed=1., fold=4., interaction=1.5))])
def test_variance_components_are_unbiased(shape, truth):
    rng = np.random.default_rng(1)
    found = []
    for _ in range(1500):
        squares = st.mean_squares(made_up(rng, shape, **truth)[0])
        found.append(st.variances({source: square for source, (square, _) in squares.items()}, shape))
    for source in found[0]:
        values = np.array([v[source] for v in found])
        assert abs(values.mean() - truth[source] ** 2) < 4 * values.std() / np.sqrt(len(values)), source


def test_variance_components_are_those_of_reml():
    """A complete table whose components are all above 0: the likelihood, maximised numerically, has them too."""
    shape = A, F, S = 6, 3, 2
    y, _ = made_up(np.random.default_rng(3), shape, 3., 1., 2., 1.5)
    squares = st.mean_squares(y)
    ours = st.variances({source: square for source, (square, _) in squares.items()}, shape)
    assert min(ours.values()) > 0
    a, f, _ = (index.ravel() for index in np.indices(shape))
    same = {'architecture': a[:, None] == a, 'fold': f[:, None] == f,
            'interaction': (a[:, None] == a) & (f[:, None] == f), 'seed': np.eye(A * F * S, dtype=bool)}
    contrasts = np.linalg.qr(np.column_stack([np.ones(y.size), np.eye(y.size)[:, 1:]]))[0][:, 1:]  # orthogonal to the mean
    z = contrasts.T @ y.ravel()

    def minus_log_likelihood(logs):
        covariance = contrasts.T @ sum(np.exp(log) * same[source] for log, source in zip(logs, same)) @ contrasts
        return np.linalg.slogdet(covariance)[1] + z @ np.linalg.solve(covariance, z)
    found = minimize(minus_log_likelihood, np.zeros(4), method='Nelder-Mead',
                     options=dict(xatol=1e-6, fatol=1e-9, maxiter=4000, maxfev=4000))
    assert np.exp(found.x) == pytest.approx([ours[source] for source in same], rel=1e-3)


@pytest.mark.parametrize('shape, truth', [
    ((12, 1, 3), dict(architecture=1.5, seed=3.)),
    ((12, 1, 3), dict(architecture=4., seed=2.)),
    ((12, 3, 3), dict(architecture=2., seed=2., fold=4., interaction=1.))])
def test_intervals_cover_the_truth(shape, truth):
    rng = np.random.default_rng(2)
    v = {source: sd ** 2 for source, sd in truth.items()}
    functions = dict(architecture=st.sd('architecture'), seed=st.sd('seed'), ratio=st.ratio, correlation=st.correlation,
                     ceiling=st.ceiling(8), one_training=st.one_training_each(8))
    covered = dict.fromkeys(functions, 0)
    n = 400
    for _ in range(n):
        squares = st.mean_squares(made_up(rng, shape, **truth)[0])
        for name, function in functions.items():
            _, low, high = st.estimate(squares, shape, function, 1000)
            covered[name] += low <= function(v) <= high
    shares = {name: k / n for name, k in covered.items()}
    assert min(shares.values()) > .915, shares  # 95% minus three standard errors
    assert max(shares['seed'], shares['ratio'] if shape[1] == 1 else 0) < .985, shares  # exact, not merely wide


def test_the_better_half_is_measured_without_selection_bias():
    """The half's variance is that of the true effects of the networks chosen. If all seeds choose, it is not."""
    rng, n_half = np.random.default_rng(4), 6
    ours, truth, naive = [], [], []
    for _ in range(1500):
        y, of_a = made_up(rng, (12, 1, 3), 2., 2.)
        squares, shape = st.better_half(y)
        ours.append(st.variances({source: square for source, (square, _) in squares.items()}, shape)['architecture'])
        chosen = [np.argsort(-y[:, 0, s])[:n_half] for s in range(3)]
        truth.append(np.mean([of_a[some].var(ddof=1) for some in chosen]))
        best = y[np.argsort(-y.mean(axis=(1, 2)))[:n_half]]
        naive.append(st.variances({source: square for source, (square, _) in st.mean_squares(best).items()},
                                  best.shape)['architecture'])
    error = np.std(np.subtract(ours, truth)) / np.sqrt(len(ours))
    assert abs(np.mean(ours) - np.mean(truth)) < 4 * error
    assert np.mean(naive) < np.mean(truth) - 10 * error
    assert st.better_half(y[:, :, :2]) is None and st.better_half(y[:3]) is None


def test_intervals_of_the_better_half_cover():
    rng = np.random.default_rng(5)
    found, truth = [], []
    for _ in range(300):
        y, of_a = made_up(rng, (12, 1, 3), 4., 2.)
        half = st.better_half(y)
        found.append([st.estimate(*half, function, 1000) for function in (st.sd('architecture'), st.ratio)])
        truth.append(np.mean([of_a[np.argsort(-y[:, 0, s])[:6]].var(ddof=1) for s in range(3)]))
    sd = np.sqrt(np.mean(truth))
    for i, value in enumerate((sd, sd / 2.)):
        assert np.mean([one[i].low <= value <= one[i].high for one in found]) > .915


def test_gate():
    E = st.Estimate
    assert st.gate(E(1.2, 1.1, 2.), E(1., 1., 2.)) == (True, True)
    assert st.gate(E(1.2, .4, 2.), E(1.3, 1.1, 2.)) == (True, False)
    assert st.gate(E(1.2, .4, 2.), E(.3, 0., 2.)) == (False, False)
    assert st.gate(E(3.2, 2.4, 5.), E(.3, 0., .9)) == (False, True)


def test_a_few_bad_operations_do_not_pass_the_gate():
    """Half of the networks are equally good, the others are much worse: luck avoids those as well as a search does."""
    rng, found = np.random.default_rng(6), []
    for _ in range(200):
        y = 50. - 10. * (np.arange(40) < 20)[:, None, None] + rng.standard_normal((40, 1, 4))
        whole = st.estimate(st.mean_squares(y), y.shape, st.ratio, 1000)
        assert whole.low > 1
        found.append(st.gate(whole, st.estimate(*st.better_half(y), st.ratio, 1000)))
    passed, certain = np.mean(found, axis=0)
    assert passed == 0 and certain > .95


def test_ceiling_and_seeds_needed():
    assert st.expected_maximum(2) == pytest.approx(1 / np.sqrt(np.pi))
    assert st.expected_maximum(8) == pytest.approx(1.42360, abs=1e-5)
    rng = np.random.default_rng(7)
    of_a = 2. * rng.standard_normal((4000, 300))
    v = dict(architecture=4., seed=9., interaction=3.)
    assert st.correlation(v) == pytest.approx(7 / 16)
    assert st.correlation(dict(architecture=4., seed=9.)) == pytest.approx(4 / 13)
    assert st.ceiling(300)(v) == pytest.approx(of_a.max(axis=1).mean(), rel=.01)
    chosen = (of_a + 12 ** .5 * rng.standard_normal(of_a.shape)).argmax(axis=1)  # by one training on one fold
    assert st.one_training_each(300)(v) == pytest.approx(np.take_along_axis(of_a, chosen[:, None], 1).mean(), rel=.04)
    for n_folds, anew, sd in ((1, False, 3.), (5, False, 3.), (5, True, 4.)):
        n = int(st.seeds_needed(n_folds, anew)(v))
        error = sd * np.sqrt(2 / n_folds)  # of the difference, with one seed
        powers = [np.mean(np.abs(st.DIFFERENCE + error / np.sqrt(k) * rng.standard_normal(40_000)) > 1.96 * error / np.sqrt(k))
                  for k in (n - 1, n)]
        assert powers[0] < st.POWER + .01 and powers[1] > st.POWER - .01


def test_report():
    rows = [dict(architecture=str(a), genotype='g', parameters=100 + a, seed=s, fold=f, ua=.5 + .01 * a + .001 * s,
                 loss=1. - .1 * a + .01 * s) for a in range(4) for s in range(3) for f in (1, 2)]
    hand_made = dict(rows[0], genotype='', parameters=70)
    rows += [dict(hand_made, architecture='cnn_gru', ua=.6)]
    rows += [dict(hand_made, architecture='cnn', fold=f, seed=s, ua=.1 * f + .02 * s) for f in (1, 2) for s in (0, 1)]
    text = spread_report.report(rows, 5, 3, [1, 2])
    assert text.startswith('INCOMPLETE: 1 of 5 genotypes lack') and '| cnn_gru | 70 | 1 | 60.0 |  |' in text
    assert '| cnn | 70 | 4 | 16.0 | 1.4 |' in text  # the deviation of seeds within folds, not of folds
    assert 'Rank correlation of a genotype\'s mean UA with its parameters: 1.00' in text and 'Gate: PASSED' in text
    assert 'Gate: open' in spread_report.report(rows, 4, 2, [1, 2])
    assert 'need two' in spread_report.report(rows, 4, 3, [1, 2, 3])
