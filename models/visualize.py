"""Pictures as matplotlib Figures: the cells of a genotype as graphs, two genotypes compared, and the alphas."""
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle

from genotypes import NONE, Genotype, compare

TITLES = {'normal': 'normal CNN cell', 'reduce': 'reduction CNN cell', 'rnn': 'SeqNN cell'}
COLORS = {'skip': '#777777', 'max': '#b96d00', 'avg': '#d98c21', 'sep': '#2f6db5', 'dil': '#6a4fb0', 'lstm': '#217a4b',
          'gru': '#b53a5a', 'rnn': '#0f8a9d', 'time': '#2f6db5', 'freq': '#6a4fb0', 'dense': '#a0522d', 'gated': '#008080',
          'se': '#5b7a1f', 'broadcast': '#9a2fb5', 'bilstm': '#217a4b', 'bigru': '#b53a5a', 'res': '#c05a00',
          'self': '#0f8a9d'}  # by the first word of an operation
DIFFERENCES = {'same': ('#777777', '-', 'the same'), 'operation': ('#d55e00', '--', 'another operation on the edge'),
               'moved': ('#0072b2', ':', 'the operation moved to another edge'),
               'only': ('#000000', '-.', 'in one of them only')}  # colour (Okabe and Ito), stroke, words
OUT = 'out'
STEP = 2.2  # between the columns of two nodes; all sizes below are in the same data units
SAGS = (.15, -.15, .3, -.3, .45, -.45)  # by how much the middle of an edge may leave the straight line
CLEAR, TOP = .45, 1.5  # an edge keeps this distance from other states, and below this height
LETTER, LINE = .085, .2  # size of a label: width of a letter, height of a line
INCHES = .95  # of one data unit
ROWS = 30  # of a heat map


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
        # A title may come from a stranger's file: $ is no formula.
        figure.suptitle(title, fontsize=9 if decisions else None, wrap=True, parse_math=False)
    for row, kind in enumerate(kinds):
        axes = figure.add_subplot(len(kinds), 1, row + 1)
        axes.set_title(TITLES[kind], fontsize=11)
        _plot_cell(axes, getattr(genotype, kind), getattr(genotype, f'{kind}_concat'))
    return figure


def plot_comparison(a: Genotype, b: Genotype, names: tuple[str, str] = ('A', 'B')) -> Figure:
    """Two genotypes side by side; colour and stroke of an edge say how it differs (see genotypes.compare)."""
    found = compare(a, b)
    widest = max((len(getattr(one, kind)) for one in (a, b) for kind in found), default=1)
    size = 2 * INCHES * (STEP * (widest + 1) + 1.4), .9 + 3.6 * INCHES * max(1, len(found))
    figure = Figure(figsize=size, layout='constrained')
    for row, (kind, rows) in enumerate(found.items()):
        for side, (one, name) in enumerate(zip((a, b), names)):
            axes = figure.add_subplot(len(found), 2, 2 * row + side + 1)
            axes.set_title(f'{TITLES[kind]}, {name}'.replace('$', r'\$'), fontsize=11)
            words = {(node, *pair[side]): word for node, *pair, word in rows if pair[side]}
            _plot_cell(axes, getattr(one, kind), getattr(one, f'{kind}_concat'), words)
    handles = [Line2D([], [], color=color, ls=stroke, lw=2, label=text) for color, stroke, text in DIFFERENCES.values()]
    figure.legend(handles=handles, loc='outside lower center', ncols=len(handles), frameon=False)
    return figure


def _plot_cell(axes, gene, concat, words=None):
    """words: {(node, operation, state): how the edge differs from that of another genotype}"""
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
    for edge, key in zip(edges, [(2 + i, name, source) for i, node in enumerate(gene) for name, source in node]):
        stroke = '-'
        if words:
            edge.color, stroke, _ = DIFFERENCES[words[key]]
        axes.add_patch(_arrow(edge, color=edge.color, lw=1.5, ls=stroke, zorder=2))
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


def plot_alphas(nodes: list, primitives, gene: list | None = None, title: str | None = None, small: bool = False) -> Figure:
    """Heat map of softmax(alpha): a row per edge, a column per operation; the chosen operations are framed.

    nodes: for each node (n_inputs, n_ops) nested lists. primitives: operation names. gene: the chosen edges; without it, the
    best operation of every edge is framed. A colour means the same in every picture: how many times the uniform weight.
    Of more than ROWS edges, only those of the gene are drawn. small: as large as TensorBoard shows it, without numbers.
    """
    edges = [(source, 2 + i) for i, node in enumerate(nodes) for source in range(len(node))]
    weights = dict(zip(edges, np.concatenate([np.asarray(node) for node in nodes])))  # {edge: (n_ops,)}
    if gene is None:
        allowed = [i for i, name in enumerate(primitives) if name != NONE]
        chosen = {(edge, primitives[max(allowed, key=w.__getitem__)]) for edge, w in weights.items()}
    else:
        chosen = {((source, 2 + i), name) for i, node in enumerate(gene) for name, source in node}
    if len(edges) > ROWS:
        edges = [edge for edge in edges if edge in {edge for edge, _ in chosen}]
    image = np.stack([weights[edge] for edge in edges])  # (n_edges, n_ops)
    size = (3.5, max(2.15, .95 + .125 * len(edges))) if small else (2.2 + .7 * len(primitives), 1.6 + .34 * len(edges))
    font = 7 if small else 10
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.add_subplot()
    shown = axes.imshow(np.log2(np.maximum(image * len(primitives), 1e-9)), aspect='auto', cmap='RdBu_r', vmin=-2., vmax=2.)
    axes.set_xticks(range(len(primitives)), primitives, rotation=35, ha='right')
    axes.set_yticks(range(len(edges)), [f'{source} \N{RIGHTWARDS ARROW} {node}' for source, node in edges])
    axes.tick_params(labelsize=font)
    for (row, column), weight in np.ndenumerate(image):
        mark = (edges[row], primitives[column]) in chosen
        if not small:
            axes.text(column, row, f'{100 * weight:.1f}', ha='center', va='center', fontsize=9,
                      fontweight='bold' if mark else 'normal', gid='chosen' if mark else None,
                      color='white' if abs(np.log2(weight * len(primitives) + 1e-9)) > 1.2 else 'black')
        if mark:
            axes.add_patch(Rectangle((column - .47, row - .45), .94, .9, fill=False, ec='black', lw=1 if small else 1.8))
    axes.set_title(title or 'softmax(alpha) in percent; framed: chosen', fontsize=font + 1)
    if not small:
        axes.set_ylabel('edge: state \N{RIGHTWARDS ARROW} node')
    bar = figure.colorbar(shown, ax=axes, ticks=range(-2, 3))
    bar.ax.set_yticklabels(['1/4', '1/2', 'uniform', '\N{MULTIPLICATION SIGN}2', '\N{MULTIPLICATION SIGN}4'], fontsize=font)
    return figure
