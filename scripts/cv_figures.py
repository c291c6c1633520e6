"""Figures of an experiment: folds, confusion matrices, UA against parameters."""
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay


def draw(experiment, results, folds):
    """Writes figures/*.png of what is there, and removes those of models that were not asked for."""
    asked = {confusion_name(run.job.model) for run in results.runs}
    for path in (experiment.path / 'figures').glob(confusion_name('*') + '.png'):
        if path.stem not in asked:
            path.unlink(missing_ok=True)  # another shard may have been first
    found = results.summaries(folds)
    if not found:
        return
    figures = {'folds': box_plot(found), 'parameters': against_parameters(found)}
    figures.update({confusion_name(one['model']): confusion(one, results.labels) for one in found})
    for name, figure in figures.items():
        experiment.publish(f'figures/{name}.png', lambda path, figure=figure: figure.savefig(path, dpi=110, format='png'))


def confusion_name(model):
    return f'confusion-{model}'


def title(one):
    return one['model'] + (' (partial)' if one['partial'] else '')


def box_plot(found):
    """A box a model over its folds' UA, each fold a point, averaged over seeds."""
    figure = Figure(figsize=(2 + .9 * len(found), 4), layout='constrained')
    axes = figure.add_subplot()
    values = [[100 * mean for mean, _ in one['ua']['by_fold'].values()] for one in found]
    axes.boxplot(values, showfliers=False)
    for i, (one, some) in enumerate(zip(found, values), 1):
        axes.plot([i] * len(some), some, 'o', ms=4, alpha=.7)
        for fold, value in zip(one['ua']['by_fold'], some):
            axes.annotate(str(fold), (i, value), (5, 0), textcoords='offset points', va='center', fontsize=7)
    axes.set_xticks(range(1, len(found) + 1), [title(one) for one in found], rotation=30, ha='right')
    axes.set_ylabel('UA of a fold, %')
    return figure


def against_parameters(found):
    """A point a model, bars of one standard deviation over its runs (across) and of the 95% interval over speakers (up)."""
    figure = Figure(figsize=(6.5, 4.5), layout='constrained')
    axes = figure.add_subplot()
    for one in found:
        if one['params'] is None:
            continue
        (x, x_sd), (y, _), spread = one['params'], one['ua']['seeds'], one['ua']['interval']
        up = None if spread is None else 100 * np.abs(np.array([[y - spread[0]], [spread[1] - y]]))
        axes.errorbar([x], [100 * y], up, x_sd, 'o', capsize=2, label=title(one))
    axes.set(xscale='log', xlabel='parameters', ylabel='UA, %')
    if axes.containers:
        axes.legend(fontsize=8)
    return figure


def confusion(one, labels):
    """Rows normalised to recall, over all seeds and folds of the model."""
    side = 2.4 + .6 * len(labels)  # inches
    figure = Figure(figsize=(side, side), layout='constrained')
    rows = one['confusion'].sum(axis=1, keepdims=True)
    axes = figure.add_subplot()
    ConfusionMatrixDisplay(one['confusion'] / np.maximum(rows, 1), display_labels=labels).plot(
        ax=axes, xticks_rotation='vertical', values_format='.2f', colorbar=False)
    axes.set_title(title(one))
    return figure
