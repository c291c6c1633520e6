"""Figures of an experiment: UA of the folds, spread of the runs, UA against parameters and minutes, confusion matrices."""
import re
import zlib
from pathlib import Path

import numpy as np
import significance as sig
from experiment import MODELS
from jobs import MATCHED, NEEDS, RANDOM, TRANSFERS
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from scripts.spread_report import AXES

COLOURS = ['#d62728', '#17becf', '#000000', '#ffd700', '#000080',
           '#1f77b4', '#8c564b', '#e377c2', '#bcbd22', '#ff7f0e', '#9467bd', '#2ca02c', '#7f7f7f', '#006400']
MARKERS = 'Dph*8o<>Pv^s'  # not as many as colours, so that each of 84 models has a pair of its own
SIDE_BY_SIDE = 1.05  # factor between the places of models that have nearly the same number of parameters


def make(results, summaries: list[dict]) -> dict[str, Figure]:
    """{name: Figure}"""
    from datasets.scoring import plot_confusion  # loads torch
    figures = {'folds': of_folds(summaries, results), 'spread': of_spread(summaries, results),
               'parameters': against_costs(summaries, results)}
    for row in summaries:
        part = results.predictions[results.predictions['model'] == row['model']]
        part = part[[pair in row['pairs'] for pair in zip(part['seed'], part['fold'])]]
        labels, predicted = (np.searchsorted(results.labels, part[name].to_numpy(str)) for name in ('label', 'predicted'))
        title = f'{row["model"]}: UA {100 * row["ua"]:.1f}, {len(part)} predictions'
        figures[f'confusion-{row["model"]}'] = plot_confusion(labels, predicted, results.labels, title)
    return figures


def draw(folder: Path, results, summaries: list[dict]) -> list[str]:
    """Writes FIGURE.png for each figure and returns their names. Removes confusion matrices of models no longer asked for."""
    from utils import write_aside  # loads torch
    figures = make(results, summaries)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob('confusion-*.png'):
        if path.stem not in figures:
            path.unlink(missing_ok=True)
    for name, figure in figures.items():
        how = dict(format='png', dpi=64 if name.startswith('confusion') else 100, bbox_inches='tight')
        write_aside(folder / f'{name}.png', lambda f, figure=figure, how=how: figure.savefig(f, **how), shared=True)
    return [*figures]


def style(model: str) -> dict:
    """A colour and marker of its own for every model; those of a matched baseline are hollow."""
    plain = model.removesuffix(MATCHED)
    places = [name for name in MODELS if not name.endswith(MATCHED)]
    place = places.index(plain) if plain in places else len(places) + zlib.crc32(plain.encode())  # another system
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    return dict(color=colour, marker=marker, markerfacecolor='white' if plain != model else colour)


def chance_line(axes, results):
    n_classes = results.predictions['label'].nunique()
    axes.axhline(100 / n_classes, color='black', lw=.8, ls=':')
    axes.annotate('chance', (1, 100 / n_classes), xycoords=('axes fraction', 'data'), ha='right', va='bottom', fontsize=8)


def of_folds(summaries, results) -> Figure:
    """The UA of each fold as its number, averaged over seeds; a line at the mean of the folds."""
    figure = Figure(figsize=(2 + .95 * len(summaries), 4.4), layout='constrained')
    axes = figure.add_subplot()
    folds = sorted({*results.runs['fold']})
    for i, row in enumerate(summaries):
        colour = style(row['model'])['color']
        for fold, (ua, _) in row['by_fold'].items():
            x = i + .76 * ((folds.index(fold) + .5) / len(folds) - .5)
            axes.text(x, 100 * ua, fold, color=colour, ha='center', va='center', fontsize=10, weight='bold',
                      bbox=dict(facecolor='white', edgecolor='none', pad=.4))
        axes.plot([i - .4, i + .4], [100 * row['ua_folds']] * 2, color=colour, lw=1.5, alpha=.5, zorder=1)
    every = [100 * ua for row in summaries for ua, _ in row['by_fold'].values()]
    axes.set(xlim=(-.6, len(summaries) - .4), ylim=(0, max(every) + 6), ylabel='UA of a fold, %')
    axes.set_xticks(range(len(summaries)), [title(row) for row in summaries], rotation=30, ha='right')
    axes.set_title('Digits: folds, averaged over seeds. Lines: mean of the folds.', fontsize=9)
    chance_line(axes, results)
    return figure


def of_spread(summaries, results) -> Figure:
    """UA of every run minus the mean over models on its fold, a row per model.

    A fold's mean is over the models that have all folds. The grey band is the mean and standard deviation of `random`.
    """
    folds = {*results.runs['fold']}
    whole = [row['by_fold'] for row in summaries if row['by_fold'].keys() == folds] or [row['by_fold'] for row in summaries]
    level = {fold: np.mean([by_fold[fold][0] for by_fold in whole if fold in by_fold]) for fold in folds
             if any(fold in by_fold for by_fold in whole)}
    found = {row['model']: [100 * (sig.scores(results.counts[(row['model'], *pair)].sum(axis=0))[0] - level[pair[1]])
                            for pair in row['pairs'] if pair[1] in level] for row in summaries}
    rows = sorted(summaries, key=lambda row: np.mean(found[row['model']]))
    figure = Figure(figsize=(8, 1.4 + .42 * len(rows)), layout='constrained')
    axes = figure.add_subplot(xlabel='UA of a run minus the mean over models on its fold, points; black: mean of a model')
    for y, row in enumerate(rows):
        points = found[row['model']]
        axes.plot(points, y + np.linspace(-.25, .25, len(points)), ls='', ms=5, alpha=.7, **style(row['model']))
        axes.plot([np.mean(points)] * 2, [y - .4, y + .4], color='black', lw=2)
    if len(chance := found.get(RANDOM, [])) > 2:
        mean, sd = np.mean(chance), np.std(chance, ddof=1)
        axes.axvspan(mean - sd, mean + sd, color='black', alpha=.1, lw=0, zorder=0)
        axes.set_title('Grey: random genotypes, mean and standard deviation of their runs', fontsize=9)
    axes.set_yticks(range(len(rows)), [title(row) for row in rows])
    return figure


def against_costs(summaries, results) -> Figure:
    """UA against parameters, against minutes of search and training, and against latency if scripts/latency.py measured it.

    Vertical bars are the 95% intervals over speakers.
    """
    label, spent = minutes(summaries, results)
    unknown = any(row['model'] in TRANSFERS and np.isnan(row['search_minutes']) for row in summaries)
    label += ', without the search on another corpus' * unknown
    panels = [('parameters (of nearly the same size: side by side)', lambda row: row['params']),
              (label, lambda row: spent[row['model']])]
    if results.latency:
        panels.append((f'{AXES["latency_ms"]} (no SVM)', lambda row: np.mean(
            [results.latency.get((row['model'], *pair), np.nan) for pair in row['pairs']])))
    figure = Figure(figsize=(2.4 + 5.3 * len(panels), 4.6), layout='constrained')
    for axes, (label, value) in zip(figure.subplots(1, len(panels), sharey=True), panels):
        rows, places = sorted((row for row in summaries if value(row) > 0), key=value), []
        for row in rows:
            places.append(max(value(row), places[-1] * SIDE_BY_SIDE if places else 0))
        for row, x in zip(rows, places):
            bars = None if np.isnan(row['ua_low']) else 100 * np.abs(
                [[row['ua'] - row['ua_low']], [row['ua_high'] - row['ua']]])
            axes.errorbar([x], [100 * row['ua']], bars, ls='', capsize=2, elinewidth=1, ms=7, label=title(row),
                          **style(row['model']))
        axes.set(xscale='log', xlabel=label)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter('{x:,g}')
        axes.xaxis.set_minor_formatter('')
    axes = figure.axes[0]
    axes.set(ylabel='UA, %')
    handles = dict(zip(*reversed(figure.axes[1].get_legend_handles_labels())))
    handles |= dict(zip(*reversed(axes.get_legend_handles_labels())))
    if handles:
        figure.legend(handles.values(), handles, loc='outside right center', fontsize=9)
    return figure


def minutes(summaries, results) -> tuple[str, dict[str, float]]:
    """The axis, and {model: mean of search and training}.

    On CPUs these are core-minutes. Where a run recorded the time of the clock alone, its threads count as busy throughout,
    and the axis says that this is the most they can be. With a GPU the minutes of all runs are those of the clock.
    """
    runs = {row['model']: results.finished(row['model']).loc[row['pairs']] for row in summaries}
    cores = {}  # of every run, its training and its search; None of a GPU
    for model, some in ((model, some) for model, some in runs.items() if model not in results.added):
        search = some['search_device'].astype(object).fillna(some['device'])  # older experiments do not have it
        cores[model] = [[n_cores(device) for device in its] for its in (some['device'], search)]
    on_cpus = all(n for lists in cores.values() for its in lists for n in its)
    found, by_clock = {}, False
    for model, some in ((model, runs[model]) for model in cores):
        training, search = some['minutes'], some['search_minutes']
        if on_cpus:
            by_clock |= bool((some['core_minutes'].isna() | search.notna() & some['search_core_minutes'].isna()).any())
            of_training, of_search = cores[model]
            training = some['core_minutes'].fillna(training * of_training)
            search = some['search_core_minutes'].fillna(search * of_search)
        # nan, and no point, if a run has not recorded its minutes
        found[model] = float(np.mean((training + (search if model in NEEDS else search.fillna(0))).to_numpy()))
    label = f'core-minutes{" (at most)" * by_clock} of a run' if on_cpus else 'minutes of a run'
    return label, {**dict.fromkeys(results.added, np.nan), **found}


def n_cores(device) -> int | None:
    """Threads of a CPU as results.json has it; None of a GPU."""
    match = re.fullmatch(r'cpu(?: \([^)]*\))?(?:, (\d+) threads?)?', str(device))
    return int(match[1] or 1) if match else None


def title(row) -> str:
    return row['model'] + ' (partial)' * row['partial']
