"""Pictures as matplotlib Figures: the cells of a genotype as graphs, and the alphas over the epochs."""
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from genotypes import NONE, Genotype

TITLES = {'normal': 'normal CNN cell', 'reduce': 'reduction CNN cell', 'rnn': 'SeqNN cell'}
COLORS = {'skip': '#777777', 'max': '#b96d00', 'avg': '#d98c21', 'sep': '#2f6db5', 'dil': '#6a4fb0', 'lstm': '#217a4b',
          'gru': '#b53a5a', 'rnn': '#0f8a9d', 'time': '#2f6db5', 'freq': '#6a4fb0', 'dense': '#a0522d', 'gated': '#008080',
          'se': '#5b7a1f', 'broadcast': '#9a2fb5', 'bilstm': '#217a4b', 'bigru': '#b53a5a', 'res': '#c05a00',
          'self': '#0f8a9d'}  # by the first word of an operation
OUT = 'out'
STEP = 2.2  # between the columns of two nodes; all sizes below are in the same data units
SAGS = (.15, -.15, .3, -.3, .45, -.45)  # by how much the middle of an edge may leave the straight line
CLEAR, TOP = .45, 1.5  # an edge keeps this distance from other states, and below this height
LETTER, LINE = .085, .2  # size of a label: width of a letter, height of a line
INCHES = .95  # of one data unit


@dataclass
class _Edge:
    name: str
    color: str
    curve: np.ndarray  # (3, 2): the control points of a quadratic Bezier curve
    rad: float

    def at(self, t):
        """The point(s) of the curve at t in [0, 1]: (..., 2)"""
        t = np.asarray(t)[..., None]
        begin, control, end = self.curve
        return (1 - t) ** 2 * begin + 2 * t * (1 - t) * control + t ** 2 * end


def caption(record: dict) -> str:
    """'emodb, fold 1, seed 0, UA 63.4' from results.json or the record of a genotype; '' if they do not say."""
    origin = {**(record.get('search') or {}), **{k: v for k, v in record.items() if k in ('dataset', 'fold', 'seed', 'ua')}}
    parts = [str(origin['dataset'])] if origin.get('dataset') else []
    parts += [f'{name} {origin[name]}' for name in ('fold', 'seed') if origin.get(name) is not None]
    return ', '.join(parts + ([f'test UA {100 * origin["ua"]:.1f}'] if origin.get('ua') is not None else []))


def plot(genotype: Genotype, title: str | None = None) -> Figure:
    """The graph of every kind of cell, one row each: inputs on the left, output on the right, nodes numbered as states.

    Every operation is written on its edge. Grey lines are the concatenation. Decisions outside the cells follow the title.
    """
    decisions = ', '.join(f'{name} {value}' for name, value in (genotype.network or {}).items())
    title = '\n'.join(filter(None, [title, decisions]))
    kinds = [kind for kind in TITLES if getattr(genotype, kind)]
    widest = max((len(getattr(genotype, kind)) for kind in kinds), default=1)
    size = INCHES * (STEP * (widest + 1) + 1.4), .4 * len(title.splitlines()) + 3.6 * INCHES * len(kinds)
    figure = Figure(figsize=size, layout='constrained')
    if title:
        figure.suptitle(title, fontsize=9 if decisions else None, wrap=True)
    for row, kind in enumerate(kinds):
        axes = figure.add_subplot(len(kinds), 1, row + 1)
        axes.set_title(TITLES[kind], fontsize=11)
        _plot_cell(axes, getattr(genotype, kind), getattr(genotype, f'{kind}_concat'))
    return figure


def _plot_cell(axes, gene, concat):
    n = len(gene)
    place = {0: (0., .75), 1: (0., -.75), OUT: (STEP * (n + 1), 0.),
             **{2 + i: (STEP * (i + 1), 1.1 * (-1) ** i) for i in range(n)}}
    names = {0: '$c_{k-2}$', 1: '$c_{k-1}$', OUT: '$c_k$', **{2 + i: str(2 + i) for i in range(n)}}
    edges = []
    for i, node in enumerate(gene):
        for name, source in node:
            others = [point for state, point in place.items() if state not in (source, 2 + i)]
            candidates = [_edge(place[source], place[2 + i], name, sag) for sag in SAGS]
            edges.append(max(candidates, key=lambda edge: _clearance(edge, others, edges)))
    for state in concat:
        axes.add_patch(_arrow(_edge(place[state], place[OUT], 'skip', 0.), color='#cccccc', lw=1.2, zorder=1))
    for edge in edges:
        axes.add_patch(_arrow(edge, color=edge.color, lw=1.5, zorder=2))
    for edge, (x, y) in zip(edges, _label_places(edges, list(place.values()))):
        axes.text(x, y, edge.name, fontsize=8, color=edge.color, ha='center', va='center', zorder=4, gid='label',
                  bbox=dict(boxstyle='square,pad=0.08', fc='white', ec='none'))
    for state, (x, y) in place.items():
        axes.text(x, y, names[state], ha='center', va='center', fontsize=11, zorder=3,
                  bbox=dict(boxstyle='round,pad=0.35', fc='#fff6dd' if state in range(2, 2 + n) else '#eef3f8', ec='#555555'))
    axes.set(xlim=(-.6, STEP * (n + 1) + .6), ylim=(-1.65, 1.65))
    axes.set_aspect('equal')  # arcs bend in display units: only equal axes keep them where `_Edge.at` says
    axes.axis('off')


def _edge(begin, end, name, sag):
    (x0, y0), (x1, y1) = begin, end
    rad = 2 * sag / np.hypot(x1 - x0, y1 - y0)
    control = (x0 + x1) / 2 + rad * (y1 - y0), (y0 + y1) / 2 - rad * (x1 - x0)  # as matplotlib's arc3
    return _Edge(name, COLORS.get(name.split('_')[0], '#333333'), np.array([begin, control, end]), rad)


def _clearance(edge, states, earlier):
    """How well an edge keeps clear of states, of the edges drawn before it and of the margin: larger is better."""
    points = edge.at(np.linspace(0, 1, 40))
    nearest = min(np.linalg.norm(points - state, axis=1).min() for state in states)
    inner = points[10:30, None]
    apart = min((np.linalg.norm(inner - other.at(np.linspace(0, 1, 40)), axis=2).min(axis=1).mean() for other in earlier),
                default=CLEAR)
    return 2 * min(nearest, CLEAR) + min(apart, CLEAR) - .1 * abs(edge.rad) - max(0., np.abs(points[:, 1]).max() - TOP)


def _arrow(edge, **style):
    return FancyArrowPatch(edge.curve[0], edge.curve[2], connectionstyle=f'arc3,rad={edge.rad}', arrowstyle='-|>',
                           mutation_scale=12, shrinkA=14, shrinkB=14, **style)


def _label_places(edges, nodes):
    """For each edge, the point of its curve with the most room for a label between other labels, states and curves."""
    t = np.linspace(.22, .78, 29)
    centred = -.5 * np.abs(t - .5)
    taken = [(point, LETTER * 4) for point in nodes]  # centre and width of the states and of labels placed so far
    places = []
    for edge in edges:
        others = [other.at(np.linspace(0, 1, 60)) for other in edges if other is not edge]
        width = LETTER * len(edge.name)
        points = edge.at(t)
        best = points[np.argmax([_room(point, width, taken, others) for point in points] + centred)]
        taken.append((best, width))
        places.append(best)
    return places


def _room(point, width, taken, others):
    """How much room a label has at `point`: distances in units of its size, so that from 1 on nothing overlaps."""
    def distance(to, size):
        return np.max(np.abs(to - point) / size, axis=-1)
    boxes = min(distance(np.array(centre), ((width + w) / 2, LINE)) for centre, w in taken)
    curves = min((distance(curve, (width / 2, LINE / 2)).min() for curve in others), default=2.)
    return min(boxes, 1.5) + .5 * min(curves, 1.5)


def plot_alphas(history: list, primitives, gene: list | None = None) -> Figure:
    """Heat map of softmax(alpha) over the epochs: one line for each edge and operation, the lines of an edge together.

    history: for each epoch a list over nodes of (n_inputs, n_ops) nested lists. primitives: operation names. gene: the chosen
    edges, which are marked; without it, the best operation of every edge. Colours mean the same in every epoch and every run.
    """
    epochs = [np.concatenate([np.asarray(edges) for edges in nodes]) for nodes in history]  # (n_edges, n_ops)
    image = np.stack(epochs, axis=-1).reshape(-1, len(epochs))  # (n_edges * n_ops, n_epochs)
    edges = [(source, 2 + i) for i, node in enumerate(history[0]) for source in range(len(node))]
    rows = [(edge, name) for edge in edges for name in primitives]
    if gene is None:
        allowed = [i for i, name in enumerate(primitives) if name != NONE]
        chosen = {(edge, primitives[max(allowed, key=weights.__getitem__)]) for edge, weights in zip(edges, epochs[-1])}
    else:
        chosen = {((source, 2 + i), name) for i, node in enumerate(gene) for name, source in node}
    figure = Figure(figsize=(7.5, 1.2 + .15 * len(rows)), layout='constrained')
    axes = figure.add_subplot()
    shown = axes.imshow(image, aspect='auto', interpolation='nearest', norm=PowerNorm(.5, 0., 1.),
                        extent=(.5, len(epochs) + .5, len(rows) - .5, -.5))
    axes.set_yticks(range(len(rows)), [f'{source} \N{RIGHTWARDS ARROW} {node}  {name}' for (source, node), name in rows],
                    fontsize=7)
    for row, label in zip(rows, axes.get_yticklabels()):
        if row in chosen:
            label.set(fontweight='bold', color='#b53a5a')
    for line in range(len(primitives), len(rows), len(primitives)):
        axes.axhline(line - .5, color='white', lw=1)
    axes.set(xlabel='epoch', title='edge (state \N{RIGHTWARDS ARROW} node) and operation; bold: chosen')
    figure.colorbar(shown, ax=axes, label='softmax(alpha)', ticks=(0, .05, .125, .25, .5, 1))
    return figure
