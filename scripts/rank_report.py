"""What scripts/rank_correlation.py prints and draws: a table, Kendall's tau, and the supernet against the retraining."""
import itertools
from typing import NamedTuple

import numpy as np

BOOTSTRAP = 2000
FEW = 5  # networks; an interval over fewer would say nothing
OTHER = 'other supernet'  # in place of the set on which retrained networks were scored
MEASURES = {'loss': 'log-loss', 'ua': 'UA'}


class Row(NamedTuple):
    """A network that was scored in the supernet, and retrained or scored in another supernet."""
    name: str
    recurrent: bool  # has SeqNN cells
    measured: list[dict]  # scores of its trainings, or the one elsewhere: {'ua'}, or {'ua', 'loss', 'parameters'}
    scores: dict  # in the supernet

    def mean(self, measure: str) -> float:
        """Mean over the trainings."""
        return float(np.mean([one[measure] for one in self.measured]))

    def text(self) -> str:
        """Name and size; a folder of augment.py is a name of its own."""
        size = self.measured[0].get('parameters')
        return f'network {self.name}, {size:,} parameters' if size else self.name


def report(rows: list[Row], judged: str):
    """Prints a table and the correlations. judged: the set on which the retrained networks were scored, or OTHER."""
    with_loss = has_loss(rows)
    rows = sorted(rows, key=lambda row: -row.mean('ua'))
    where = f'retrained: {judged}, supernet: dev' if judged == 'test' else 'all on dev'
    done = what_was_done(judged)
    head = [f'UA {done}', *[f'loss {done}'] * with_loss, 'UA in the supernet', 'loss in the supernet', f'network; {where}']
    print(f'| {" | ".join(head)} |\n{"|---" * len(head)}|')
    for row in rows:
        loss = [f'{row.mean("loss"):.3f}'] if with_loss else []
        cells = [f'{100 * row.mean("ua"):.1f}', *loss, f'{100 * row.scores["ua"]:.1f}', f'{row.scores["loss"]:.3f}', row.text()]
        print(f'| {" | ".join(cells)} |')
    print_taus(rows, 'networks', with_loss, done)
    recurrent = [row for row in rows if row.recurrent]
    if 2 <= len(recurrent) < len(rows):
        print_taus(recurrent, 'networks with SeqNN cells', with_loss, done)
    if with_loss:
        seeds = np.array([[one['loss'] for one in row.measured] for row in rows]).T
        taus = [kendall(a, b) for a, b in itertools.combinations(seeds, 2)]
        if taus:
            print(f'two seeds of the retraining, by loss: {np.mean(taus):.2f}')


def what_was_done(judged: str) -> str:
    """Words that follow UA or loss: where the scores beside the supernet's come from."""
    return 'in the other supernet' if judged == OTHER else 'retrained'


def print_taus(rows: list[Row], what: str, with_loss: bool, done: str):
    """Prints tau by UA, by UA and loss, and by loss."""
    ua, loss = ([row.scores[measure] for row in rows] for measure in ('ua', 'loss'))
    measured = [row.mean('ua') for row in rows]
    pairs = [('UA', measured, ua), (f'UA {done} and loss in the supernet, from low to high', measured, [-x for x in loss])]
    if with_loss:
        pairs.append(('loss', [row.mean('loss') for row in rows], loss))
    for by, x, y in pairs:
        tau, (low, high) = kendall(x, y), interval(x, y)
        # If all pairs agree, all resamples do; so do most resamples of few networks.
        said = f'{low:.2f} to {high:.2f}' if len(rows) >= FEW and abs(tau) < 1 else 'too few networks for an interval'
        print(f'Kendall tau, {len(rows)} {what}, by {by}: {tau:.2f} ({said})')


def has_loss(rows: list[Row]) -> bool:
    """Whether every training has a log-loss; results.json of augment.py has only the UA on dev."""
    return all('loss' in one for row in rows for one in row.measured)


def kendall(x, y, counts=None):
    """Kendall's tau-b, or one for each row of counts, (n_samples, n): how often a sample has each network.

    Pairs of a network with itself do not count.
    """
    x, y = (np.sign(np.subtract.outer(v, v)) for v in (x, y))
    counts = np.ones((1, len(x))) if counts is None else counts

    def total(pairs):
        return (counts @ pairs * counts).sum(axis=1)
    with np.errstate(invalid='ignore'):
        tau = total(x * y) / np.sqrt(total(np.abs(x)) * total(np.abs(y)))
    return tau if len(tau) > 1 else float(tau[0])


def interval(x, y) -> tuple[float, float]:
    """95% bootstrap interval of tau over networks."""
    n = len(x)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), BOOTSTRAP).astype(float)
    taus = kendall(x, y, counts)
    return tuple(np.nanpercentile(taus, [2.5, 97.5])) if np.isfinite(taus).any() else (np.nan, np.nan)


def columns(judged: str) -> tuple[str, ...]:
    """Of supernet.csv."""
    first = 'other_supernet' if judged == OTHER else 'retrained'
    return ('architecture', f'loss_{first}', f'ua_{first}', 'loss_supernet', 'ua_supernet')


def csv_rows(rows: list[Row]) -> list[tuple]:
    """A row of `columns` for every network; no loss of trainings without one."""
    with_loss = has_loss(rows)
    return [(row.name, round(row.mean('loss'), 6) if with_loss else '', round(row.mean('ua'), 6),
             round(row.scores['loss'], 6), round(row.scores['ua'], 6)) for row in rows]


def draw(rows: list[Row], judged: str):
    """Log-loss in the supernet against that of the retraining, or UA if it has no loss, as a matplotlib Figure."""
    from matplotlib.figure import Figure  # slow to import
    measure, scale = ('loss', 1) if has_loss(rows) else ('ua', 100)
    unit = MEASURES[measure] + ', %' * (measure == 'ua')
    figure = Figure(figsize=(5.6, 4.4), layout='constrained')
    across = f'{what_was_done(judged)}, ' + ('dev speakers' if judged == OTHER else f'{judged} speakers; a bar spans the seeds')
    axes = figure.add_subplot(xlabel=f'{unit} {across}', ylabel=f'{unit} in the supernet, dev speakers')
    for recurrent, label, colour, marker in ((True, 'with SeqNN cells', 'tab:blue', 'o'),
                                             (False, 'without SeqNN cells', 'tab:orange', 's')):
        its = [row for row in rows if row.recurrent == recurrent]
        if its:
            x = scale * np.array([row.mean(measure) for row in its])
            ends = scale * np.array([[f(one[measure] for one in row.measured) for row in its] for f in (min, max)])
            y = [scale * row.scores[measure] for row in its]
            axes.errorbar(x, y, xerr=np.abs(ends - x), ls='', color=colour, marker=marker, capsize=2, lw=1, label=label)
    tau = kendall([row.mean(measure) for row in rows], [row.scores[measure] for row in rows])
    axes.set_title(f'{len(rows)} networks, Kendall\'s tau {tau:.2f}', fontsize=10)
    axes.legend(fontsize=9)
    return figure
