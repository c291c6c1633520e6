"""Figures of an experiment: UA of the folds, UA against parameters, confusion matrices."""
from pathlib import Path

import numpy as np
from experiment import MODELS
from jobs import MATCHED
from matplotlib.figure import Figure

COLOURS = ['#d62728', '#17becf', '#000000', '#ffd700', '#000080',
           '#1f77b4', '#8c564b', '#e377c2', '#bcbd22', '#ff7f0e', '#9467bd', '#2ca02c',
           '#008080', '#9acd32', '#c71585', '#7f7f7f']
MARKERS = 'Dph*8o<>Pv^s.dHX'
SIDE_BY_SIDE = 1.05  # factor between the places of models that have nearly the same number of parameters


def make(results, summaries: list[dict]) -> dict[str, Figure]:
    """{name: Figure}"""
    from datasets.scoring import plot_confusion  # loads torch
    figures = {'folds': of_folds(summaries, results), 'parameters': against_parameters(summaries, results)}
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
    place = [name for name in MODELS if not name.endswith(MATCHED)].index(plain)
    return dict(color=COLOURS[place], marker=MARKERS[place], markerfacecolor='white' if plain != model else COLOURS[place])


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


def against_parameters(summaries, results) -> Figure:
    """A point per model; vertical bars are the 95% intervals over speakers."""
    figure = Figure(figsize=(9, 4.6), layout='constrained')
    axes = figure.add_subplot()
    rows, places = sorted((row for row in summaries if row['params'] > 0), key=lambda row: row['params']), []
    for row in rows:
        places.append(max(row['params'], places[-1] * SIDE_BY_SIDE if places else 0))
    for row, x in zip(rows, places):
        bars = None if np.isnan(row['ua_low']) else 100 * np.abs(
            [[row['ua'] - row['ua_low']], [row['ua_high'] - row['ua']]])
        axes.errorbar([x], [100 * row['ua']], bars, ls='', capsize=2, elinewidth=1, ms=7, label=title(row),
                      **style(row['model']))
    axes.set(xscale='log', xlabel='parameters (models of nearly the same size are drawn side by side)', ylabel='UA, %')
    axes.set_ylim(0)
    chance_line(axes, results)
    if rows:
        figure.legend(loc='outside right center', fontsize=9)
    return figure


def title(row) -> str:
    return row['model'] + ' (partial)' * row['partial']
