"""The report and the figure of scripts/spread.py. As a program it draws the figure of finished trainings anew, or one of
several folders, such as bands of parameters, if only the networks differ:

    python scripts/spread_report.py docs/search/nemo
    python scripts/spread_report.py docs/search/nemo-speech-5k docs/search/nemo-speech-20k -o bands.png
"""
import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import config as cf  # noqa: E402
from scripts.spread_statistics import (  # noqa: E402
    DIFFERENCE,
    better_half,
    ceiling,
    correlation,
    estimate,
    gate,
    mean_squares,
    one_training_each,
    ratio,
    sd,
    seeds_needed,
)

CANDIDATES = (8, 300)  # networks among which a search chooses
TABLES = (1, 5)  # folds of the tables for which the report counts seeds
AXES = {'parameters': 'parameters', 'latency_ms': 'ms for an utterance of 3 s on one CPU thread, features excluded'}
MARKERS = '^sDvPX<>ph*'  # of hand-made networks
COLOURS = 'tab:blue', 'tab:green', 'tab:orange', 'tab:purple', 'tab:brown', 'tab:cyan'  # of genotypes, a colour a folder
MAY_DIFFER = {'name', 'seed', *cf.names_of(cf.SpaceSettings, cf.NetworkSettings)} - {'dropout'}  # within one figure


def table(rows: list[dict], n_architectures: int, n_seeds: int, folds: list[int],
          measure: str) -> tuple[np.ndarray, list[str]]:
    """y (A, F, S) of the genotypes of which every training is finished, and their names."""
    found = {(row['architecture'], row['fold'], row['seed']): row[measure] for row in rows}
    y = np.array([[[found.get((str(a), f, s), np.nan) for s in range(n_seeds)] for f in folds]
                  for a in range(n_architectures)])
    complete = np.isfinite(y).all(axis=(1, 2))
    return y[complete], [str(a) for a in np.flatnonzero(complete)]


def report(rows: list[dict], n_architectures: int, n_seeds: int, folds: list[int]) -> str:
    """Markdown: the estimates of the finished trainings, and the hand-made networks."""
    from scripts.trainings import diverged  # loads torch
    ua, names = table(rows, n_architectures, n_seeds, folds, 'ua')
    loss, _ = table(rows, n_architectures, n_seeds, folds, 'loss')
    lines = [f'{len(names)} genotypes, {n_seeds} seeds, fold{"s" * (len(folds) > 1)} {", ".join(map(str, folds))}.']
    if len(names) < n_architectures:
        lines = [f'INCOMPLETE: {n_architectures - len(names)} of {n_architectures} genotypes lack trainings, and take no '
                 f'part in the estimates. {lines[0]}']
    if lost := diverged(rows):
        lines = [f'{lost}. {lines[0]}']
    if len(names) < 2:
        lines += ['', 'Estimates need two genotypes with all their trainings.', '']
    elif np.ptp(ua, axis=2).max() == 0:
        lines += ['', 'No genotype has two seeds with different UA: there is nothing to estimate.', '']
    else:
        sizes = {row['architecture']: row['parameters'] for row in rows}
        latency = {row['architecture']: row.get('latency_ms') for row in rows}
        lines += _estimates(100 * ua, loss, [sizes[name] for name in names], [latency[name] for name in names])
    return '\n'.join([*lines, *_hand_made(rows)])


def _estimates(ua, loss, sizes, latency):
    """Lines of the report: what the scores (A, F, S) say. sizes, latency: parameters and ms of the genotypes."""
    means = ua.mean(axis=(1, 2))
    yield (f'Mean UA {means.mean():.1f}; means of the genotypes {means.min():.1f} to {means.max():.1f}; '
           f'{min(sizes):,} to {max(sizes):,} parameters.')
    yield '\n| UA, points | estimate | 95% interval |\n|---|---|---|'
    yield from _components(ua)
    yield f'\n{_verdict(ua)}\n'
    for of, values in (('its parameters', sizes), ('its latency', latency)):
        if None not in values and len(set(values)) > 1 and len(values) > 2:
            rank = spearmanr(values, means)
            yield f'Rank correlation of a genotype\'s mean UA with {of}: {rank.statistic:.2f} (p {rank.pvalue:.2f}).\n'
    if None not in latency:
        yield (f'On one CPU thread, an utterance of 3 s takes {min(latency):.1f} to {max(latency):.1f} ms without its features '
               f'(median {np.median(latency):.1f}).\n')
    of_loss = [estimate(mean_squares(loss), loss.shape, function) for function in (correlation, ratio)]
    yield ('By log-loss instead of UA, two seeds of one genotype correlate {:.2f} ({:.2f} to {:.2f}), and sd of '
           'architectures / sd of seeds is {:.2f} ({:.2f} to {:.2f}).\n').format(*of_loss[0], *of_loss[1])


def _components(ua):
    """Rows of the table of estimates."""
    squares, shape = mean_squares(ua), ua.shape
    of = {'architecture': 'architectures' + ', with their interaction with this fold' * (shape[1] == 1),
          'seed': 'seeds of one architecture', 'fold': 'folds', 'interaction': 'architecture x fold'}
    wanted = [(f'sd of {text}', sd(source), 1) for source, text in of.items() if source in squares]
    wanted += [('correlation of two seeds of one genotype', correlation, 2),
               ('sd of architectures / sd of seeds', ratio, 2)]
    for n in CANDIDATES:
        wanted += [(f'gain of a perfect choice among {n}', ceiling(n), 1),
                   (f'gain of a choice among {n} by one training of each', one_training_each(n), 1)]
    for n in TABLES:
        table = f'to show {DIFFERENCE} points in a table of {n} fold{"s" * (n > 1)}'
        wanted += [(f'seeds {table}: two networks', seeds_needed(n, False), 0),
                   (f'seeds {table}: two methods that draw a genotype in each run', seeds_needed(n, True), 0)]
    for text, function, digits in wanted:
        value, low, high = estimate(squares, shape, function)
        yield f'| {text} | {value:.{digits}f} | {low:.{digits}f} to {high:.{digits}f} |'


def _verdict(ua):
    """The gate, in words."""
    half = better_half(ua)
    if half is None:
        return 'Gate: open. The better half can be measured with 3 seeds and 4 genotypes or more.'
    both = estimate(mean_squares(ua), ua.shape, ratio), estimate(*half, ratio)
    if not np.isfinite(both).all():
        return 'Gate: open. The seeds of some networks do not differ, so that nothing can be divided by their deviation.'
    passed, certain = gate(*both)
    doubt = '' if certain else ', but the intervals do not exclude the opposite'
    of_half = [estimate(*half, sd(source)).value for source in ('architecture', 'seed')]
    return ('Gate: {}{}. sd of architectures / sd of seeds must be 1 or more. It is {:.2f} ({:.2f} to {:.2f}) among all '
            'networks, and {:.2f} ({:.2f} to {:.2f}) among the better half (architectures {:.1f}, seeds {:.1f} points; one '
            'seed chooses the half, the others measure it).').format(
                'PASSED' if passed else 'NOT PASSED', doubt, *both[0], *both[1], *of_half)


def _hand_made(rows):
    """Lines of the report: the hand-designed networks."""
    names = list(dict.fromkeys(row['architecture'] for row in rows if not row['genotype']))
    if names:
        yield ('| hand-made network | parameters | trainings | UA, mean | UA, sd of seeds |\n'
               '|---|---|---|---|---|')
    for name in names:
        its = [row for row in rows if row['architecture'] == name and np.isfinite(row['ua'])]
        if not its:
            continue
        ua = [100 * row['ua'] for row in its]
        by_fold = [[100 * row['ua'] for row in its if row['fold'] == fold] for fold in {row['fold'] for row in its}]
        enough = min(map(len, by_fold)) > 1
        spread = f'{np.sqrt(np.mean([np.var(some, ddof=1) for some in by_fold])):.1f}' if enough else ''
        yield f'| {name} | {its[0]["parameters"]:,} | {len(ua)} | {np.mean(ua):.1f} | {spread} |'
    yield ''


def draw(*groups: list[dict], names=()):
    """UA of every training against parameters, and against latency if it was measured, as a matplotlib Figure.

    A solid line joins the trainings of one network. A dashed line joins the sizes of one hand-made network; in the panel of
    latency they are told apart by their thousands of parameters. groups: the rows of a folder each; names: of several folders.
    """
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.ticker import LogLocator
    panels = [(column, label) for column, label in AXES.items() if any(row.get(column) for rows in groups for row in rows)]
    figure = Figure(figsize=(.5 + 5.5 * len(panels), 4.8), layout='constrained')
    networks = {}  # {(number of the folder, or None for hand-made ones; name): rows}
    for i, rows in enumerate(groups):
        for row in rows:
            its = networks.setdefault((i if row['genotype'] else None, row['architecture']), [])
            if row not in its:  # several folders may hold the same trainings of hand-made networks
                its.append(row)
    for axes, (column, label) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels):
        axes.set(xscale='log', xlabel=label, ylabel='UA, %' if column == 'parameters' else '')
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter('{x:,g}')
        axes.xaxis.set_minor_formatter('')
        hand_made = {}  # {name: [(x, mean UA)]}
        for (group, name), its in networks.items():
            its = [row for row in its if row.get(column)]
            if not its:
                continue
            x, ua = [row[column] for row in its], [100 * row['ua'] for row in its]
            if group is None:
                family, colour = f'{name.partition(":")[0]}, hand-made', 'tab:red'
                hand_made.setdefault(family, []).append((x[0], np.mean(ua)))
                marker = MARKERS[list(hand_made).index(family) % len(MARKERS)]
                if column != 'parameters':
                    axes.annotate(f'{its[0]["parameters"] / 1000:.0f} k', (x[0], max(ua)), (0, 5), textcoords='offset points',
                                  ha='center', color=colour, fontsize=8)
            else:
                family = f'random genotypes of {names[group]}' if len(groups) > 1 else 'random genotypes'
                colour, marker = COLOURS[group % len(COLOURS)], 'o'
            axes.plot(x, ua, f'{marker}-', color=colour, ms=4, lw=.7, alpha=.7, label=family)
            axes.plot(x[0], np.mean(ua), '_', color='black', ms=12, label='mean')
        for points in hand_made.values():
            axes.plot(*zip(*sorted(points)), '--', color='tab:red', lw=1)
    labels = dict(zip(*reversed(axes.get_legend_handles_labels())))
    figure.legend(labels.values(), labels, loc='outside upper center', ncols=3 if len(groups) > 1 else len(labels), fontsize=9,
                  frameon=False)
    return figure


def main(argv=None):
    parser = argparse.ArgumentParser(description='Draw the figure of scripts/spread.py anew: spread.png, or one figure of '
                                     'several folders.', allow_abbrev=False)
    parser.add_argument('folder', type=Path, nargs='+', help='folder with trainings.csv, such as runs/spread/NAME')
    parser.add_argument('-o', '--out', type=Path, metavar='FILE', help='the figure, which several folders need')
    args = parser.parse_args(argv)
    import utils
    cf.check_target('out', args.out)
    if args.out and args.out.suffix != '.png':
        raise utils.UserError(f'--out {args.out}: must end in .png')
    from scripts import spread_plan, trainings  # these load torch
    advice = 'name a folder of scripts/spread.py'
    groups = []
    for path in args.folder:
        groups.append(trainings.read_rows(path / 'trainings.csv', spread_plan.COLUMNS, advice))
        if not groups[-1]:
            raise utils.UserError(f'{path}/trainings.csv does not exist or has no rows: {advice}')
    if len(groups) > 1:
        if not args.out:
            raise utils.UserError('name the figure of several folders: -o FILE')
        check_alike(args.folder, groups)
    path, names = args.out or args.folder[0] / 'spread.png', [folder.name for folder in args.folder]
    write(path, *groups, names=names if len({*names}) == len(names) else [*map(str, args.folder)])
    print(f'figure: {path}')


def check_alike(folders: list[Path], groups: list[list[dict]]):
    """UserError if the folders differ in data, features or training, and not only in the networks that were trained."""
    import utils  # loads torch
    trained = [sorted({row['fold'] for row in rows}) for rows in groups]
    for folder, folds in zip(folders[1:], trained[1:]):
        if folds != trained[0]:
            raise utils.UserError(f'{folder} has trainings of folds {folds}, and {folders[0]} of {trained[0]}, so scores '
                                  'cannot be compared')
    first, *others = [utils.read_yaml_file(folder / 'settings.yaml') for folder in folders]
    for folder, settings in zip(folders[1:], others):
        for name in sorted({*first, *settings} - MAY_DIFFER):
            if utils.recorded(first, name) != utils.recorded(settings, name):
                raise utils.UserError(f'{folder}: its {name} differs from that of {folders[0]}, so scores cannot be compared')


def write(path: Path, *groups: list[dict], names=()):
    """Writes the figure."""
    import utils  # loads torch
    figure = draw(*groups, names=names)
    utils.write_aside(path, lambda f: figure.savefig(f, dpi=110, format='png'))


if __name__ == '__main__':
    if {'-h', '--help'} & {*sys.argv[1:]}:
        main()
    import utils
    utils.cli(main)
