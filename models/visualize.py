"""Pictures, as matplotlib Figures: the genotype as a graph, the alphas over the epochs, the confusion matrix."""
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

_TITLES = {'normal': 'normal CNN cell', 'reduce': 'reduction CNN cell', 'rnn': 'SeqNN cell'}
_COLORS = {'skip': '#999999', 'max': '#d98c21', 'avg': '#d98c21', 'sep': '#2f6db5', 'dil': '#6a4fb0', 'lstm': '#217a4b',
           'gru': '#b53a5a', 'rnn': '#0f8a9d'}


def plot(genotype):
    """Graph of every kind of cell that the genotype has: one row a kind, inputs on the left, output on the right."""
    kinds = [kind for kind in _TITLES if getattr(genotype, kind)]
    figure = Figure(figsize=(11, 3. * len(kinds)), layout='constrained')
    for row, kind in enumerate(kinds):
        _plot_cell(figure.add_subplot(len(kinds), 1, row + 1), getattr(genotype, kind), getattr(genotype, f'{kind}_concat'))
        figure.axes[row].set_title(_TITLES[kind])
    return figure


def _plot_cell(axes, gene, concat):
    n = len(gene)
    place = {0: (0., .4), 1: (0., -.4), 'out': (1.6 * (n + 1), 0.),
             **{2 + i: (1.6 * (i + 1), .9 * (-1) ** i) for i in range(n)}}
    names = {0: 'c_{k-2}', 1: 'c_{k-1}', **{2 + i: str(i) for i in range(n)}, 'out': 'c_{k}'}
    for state, (x, y) in place.items():
        axes.text(x, y, names[state], ha='center', va='center', fontsize=10, zorder=3,
                  bbox=dict(boxstyle='round,pad=0.35', fc='#eef3f8' if state in (0, 1, 'out') else '#fff6dd', ec='#555555'))
    for i, node in enumerate(gene):
        for rank, (name, source) in enumerate(node):
            bend = (.12 + .08 * rank) * (1 if (i + rank) % 2 else -1)
            _arrow(axes, place[source], place[2 + i], bend, _COLORS[name.split('_')[0]], name, .42 + .16 * rank)
    for state in concat:
        _arrow(axes, place[state], place['out'], 0., '#bbbbbb')
    axes.set(xlim=(-.6, 1.6 * (n + 1) + .6), ylim=(-1.5, 1.5))
    axes.axis('off')


def _arrow(axes, begin, end, bend, color, name=None, along=.5):
    axes.add_patch(FancyArrowPatch(begin, end, connectionstyle=f'arc3,rad={bend}', arrowstyle='-|>', mutation_scale=12,
                                   shrinkA=16, shrinkB=16, color=color, lw=1.5))
    if name:
        (x0, y0), (x1, y1) = begin, end
        aside = 2 * along * (1 - along) * bend  # of the quadratic curve that arc3 draws
        x, y = x0 + along * (x1 - x0) + aside * (y1 - y0), y0 + along * (y1 - y0) - aside * (x1 - x0)
        axes.text(x, y, name, fontsize=8, color=color, ha='center', va='center', zorder=4,
                  bbox=dict(boxstyle='round,pad=0.1', fc='white', ec='none', alpha=.85))


def plot_alphas(history, primitives):
    """Heat map of softmax(alpha) over epochs, one line an edge and operation, lines of one edge together.

    history: one entry an epoch, each a list over nodes of (n_inputs, n_ops) nested lists. primitives: operation names.
    """
    epochs = [np.concatenate([np.asarray(edges) for edges in nodes]) for nodes in history]  # (n_edges, n_ops)
    image = np.stack(epochs, axis=-1).reshape(-1, len(epochs))  # (n_edges * n_ops, n_epochs)
    edges = [f'{j} -> {i + 2}' for i, node in enumerate(history[0]) for j in range(len(node))]
    figure = Figure(figsize=(7, .6 + .13 * len(image)), layout='constrained')
    axes = figure.add_subplot()
    shown = axes.imshow(image, aspect='auto', interpolation='nearest', extent=(.5, len(epochs) + .5, len(image) - .5, -.5))
    axes.set_yticks(range(len(image)), [f'{edge}  {name}' for edge in edges for name in primitives], fontsize=6)
    for line in range(len(primitives), len(image), len(primitives)):
        axes.axhline(line - .5, color='white', lw=1)
    axes.set_xlabel('epoch')
    figure.colorbar(shown, ax=axes, label='softmax(alpha)')
    return figure


def plot_confusion(labels, predicted, names):
    """Confusion matrix, rows normalised to recall. labels, predicted: class indices (n,). names: of the classes."""
    side = 2 + .6 * len(names)  # inches
    figure = Figure(figsize=(side, side), layout='constrained')
    matrix = confusion_matrix(labels, predicted, labels=range(len(names)), normalize='true')
    ConfusionMatrixDisplay(matrix, display_labels=names).plot(
        ax=figure.add_subplot(), xticks_rotation='vertical', values_format='.2f', colorbar=False)
    return figure
