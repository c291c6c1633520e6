"""Genotypes: what a search finds, in the two forms people pass around.

A gene is a list over nodes; a node is a list of (operation, index of the state it reads). States 0 and 1 are the outputs of
the two cells before; state 2 + i is node i. `*_concat` names the states whose concatenation is the cell's output.

    Genotype(normal=[[('sep_conv_3x3', 0), ('skip_connect', 1)], ...], normal_concat=range(2, 6), reduce=..., rnn=...)

Text in that form, and JSON, are read by a parser of literals: nothing in a genotype file is ever executed.
"""
import ast
import json
import os
from collections import namedtuple

import torch
import torch.nn.functional as F

Genotype = namedtuple('Genotype', 'normal normal_concat reduce reduce_concat rnn rnn_concat', defaults=([], []))

NONE = 'none'
SKIP = 'skip_connect'
_REST = (SKIP, NONE)
_SEP, _DIL, _POOL = ('sep_conv_3x3', 'sep_conv_5x5'), ('dil_conv_3x3', 'dil_conv_5x5'), ('max_pool_3x3', 'avg_pool_3x3')


def _depths(family, deepest):
    return tuple(f'{family}_{depth}' for depth in range(1, deepest + 1))


# `none` stands last in every set.
CNN_OP_SETS = {
    'paper': _POOL + (SKIP,) + _SEP + _DIL + (NONE,),  # the eight of the paper
    'sep_conv': _SEP + _REST,
    'dil_conv': _DIL + _REST,
    'conv': _SEP + _DIL + _REST,
    'pool': _POOL + _REST,
}
_PLAIN = ('lstm', 'gru', 'rnn')
RNN_OP_SETS = {
    'mixed': sum((_depths(f, 2) for f in _PLAIN), ()) + _REST,
    'paper': _depths('lstm', 4) + _depths('rnn', 4) + _depths('lstm_att', 2) + _depths('rnn_att', 2) + _REST,
    'all': sum((_depths(f, 4) + _depths(f + '_att', 2) for f in _PLAIN), ()) + _REST,
    **{f: _depths(f, 4) + _REST for f in _PLAIN},
    **{f + '_att': _depths(f + '_att', 2) + _REST for f in _PLAIN},
}
PRIMITIVES = CNN_OP_SETS['paper']
RNN_PRIMITIVES = RNN_OP_SETS['mixed']
_KNOWN = {'cnn': set(sum(CNN_OP_SETS.values(), ())), 'rnn': set(sum(RNN_OP_SETS.values(), ()))}


def op_set(ops, kind='cnn'):
    """A set's name, or operations themselves -> tuple of operation names, `none` last.

    `ops`: a key of CNN_OP_SETS (RNN_OP_SETS for kind='rnn'), a comma-separated text, or a sequence of names.
    Raises ValueError on an unknown name, a repeated one, or where no operation but `none` is left.
    """
    sets = CNN_OP_SETS if kind == 'cnn' else RNN_OP_SETS
    if isinstance(ops, str) and ops in sets:
        return sets[ops]
    names = [name.strip() for name in ops.split(',')] if isinstance(ops, str) else list(ops)
    for name in names:
        if name not in _KNOWN[kind]:
            raise ValueError(f'unknown {kind} operation or set {name!r}: sets are {", ".join(sets)}; '
                             f'operations are {", ".join(sorted(_KNOWN[kind]))}')
    if len(set(names)) < len(names):
        raise ValueError(f'repeated {kind} operation in {",".join(names)}')
    if not set(names) - {NONE}:
        raise ValueError(f'a set of {kind} operations needs one that is not none')
    return tuple(n for n in names if n != NONE) + ((NONE,) if NONE in names else ())


def parse(alpha, k=2, primitives=PRIMITIVES, edge_weights=None):
    """Discrete gene of one kind of cell.

    alpha: one tensor a node, (n_inputs, n_ops), raw (before softmax). Edges are ranked by the largest softmax weight among
    their operations other than `none`; each node keeps its k best edges (DARTS, section 2.4). edge_weights: one tensor a
    node, (n_inputs,), that multiplies them for the ranking (PC-DARTS, section 3.2).
    Returns [[(operation, state), ...], ...], best edge first.
    """
    gene = []
    allowed = [i for i, name in enumerate(primitives) if name != NONE]
    for edges, shares in zip(alpha, edge_weights or [None] * len(alpha), strict=True):
        if edges.shape[-1] != len(primitives):
            raise ValueError(f'alpha has {edges.shape[-1]} operations, the primitives are {len(primitives)}')
        weights = F.softmax(edges.detach().double(), dim=-1)[:, allowed]  # (n_inputs, n_ops without none)
        best, op = weights.max(dim=-1)
        best = best if shares is None else best * shares.detach().double()
        order = torch.sort(best, descending=True, stable=True).indices[:k].tolist()
        gene.append([(primitives[allowed[op[edge]]], edge) for edge in order])
    return gene


def draw(rng, n_nodes, rnn_nodes, cnn_ops='paper', rnn_ops='mixed', k=2):
    """A genotype drawn uniformly from those that a search over these nodes and operations can end with.

    rng: numpy Generator. Each node reads k different states before it, each through any operation but `none`. rnn_nodes = 0: no
    SeqNN cell. Raises ValueError as `op_set`.
    """
    def gene(n, names):
        states = [rng.choice(2 + i, k, replace=False) for i in range(n)]
        return [[(names[rng.integers(len(names))], int(state)) for state in node] for node in states]
    cnn, rnn = ([name for name in op_set(ops, kind) if name != NONE] for ops, kind in ((cnn_ops, 'cnn'), (rnn_ops, 'rnn')))
    normal, reduce = gene(n_nodes, cnn), gene(n_nodes, cnn)
    concat = range(2, 2 + n_nodes)
    return Genotype(normal, concat, reduce, concat, gene(rnn_nodes, rnn), range(2, 2 + rnn_nodes) if rnn_nodes else [])


def op_counts(genotype):
    """How often each operation stands in a genotype: {'normal': {'skip_connect': 3, ...}, 'reduce': ..., 'rnn': ...}"""
    counts = {}
    for kind in ('normal', 'reduce', 'rnn'):
        names = [name for node in getattr(genotype, kind) for name, _ in node]
        counts[kind] = {name: names.count(name) for name in sorted(set(names))}
    return counts


def collapsed(genotype):
    """Kinds of cell in which more than half of the edges are skip_connect: the way in which DARTS is known to fail."""
    return [kind for kind, counts in op_counts(genotype).items() if 2 * counts.get(SKIP, 0) > sum(counts.values())]


def check(genotype):
    """Returns the genotype with lists, tuples and ranges where they belong; ValueError names what is wrong with it."""
    fields = {}
    for kind in ('normal', 'reduce', 'rnn'):
        known = _KNOWN['rnn' if kind == 'rnn' else 'cnn'] - {NONE}
        gene, concat = getattr(genotype, kind), getattr(genotype, kind + '_concat')
        if not isinstance(gene, list | tuple) or not isinstance(concat, list | tuple | range):
            raise ValueError(f'genotype: {kind} and {kind}_concat must be lists')
        nodes = []
        for i, node in enumerate(gene):
            if not isinstance(node, list | tuple) or not node:
                raise ValueError(f'genotype: {kind}, node {i}: not a list of (operation, state)')
            for edge in node:
                if not isinstance(edge, list | tuple) or len(edge) != 2 or type(edge[1]) is not int:
                    raise ValueError(f'genotype: {kind}, node {i}: {edge!r} is not (operation, state)')
                if edge[0] not in known:
                    raise ValueError(f'genotype: {kind}, node {i}: {edge[0]!r} is not an operation of this kind of cell')
                if not 0 <= edge[1] < 2 + i:
                    raise ValueError(f'genotype: {kind}, node {i} reads state {edge[1]}, only 0..{1 + i} come before it')
            nodes.append([tuple(edge) for edge in node])
        concat = list(concat)
        if bool(concat) != bool(nodes) or any(type(c) is not int or not 0 <= c < 2 + len(nodes) for c in concat):
            raise ValueError(f'genotype: {kind}_concat {concat} does not name states of a cell of {len(nodes)} nodes')
        if concat and concat == list(range(concat[0], concat[-1] + 1)):
            concat = range(concat[0], concat[-1] + 1)
        fields[kind], fields[kind + '_concat'] = nodes, concat
    return Genotype(**fields)


def to_str(genotype):
    """pt.darts' form, one line."""
    return repr(Genotype(*genotype))


def from_str(text):
    """A genotype from text: pt.darts' form (four fields or six) or JSON. Executes nothing; ValueError says what is wrong."""
    return check(_from_json(_loads(text))) if text.lstrip().startswith('{') else check(_from_repr(text))


def save(path, genotype, record):
    """Writes genotype and `record` (dict: settings of the search that found it) as JSON: aside, then renamed."""
    fields = {name: list(value) for name, value in check(genotype)._asdict().items()}
    with open(f'{path}.tmp', 'w') as f:
        f.write(json.dumps({'genotype': fields, **record}, indent=1) + '\n')
    os.replace(f'{path}.tmp', path)


def load(path):
    """(Genotype, record) from a file in either form; the record of pt.darts' form is empty. ValueError names the file."""
    try:
        with open(path) as f:
            text = f.read()
        record = _loads(text) if text.lstrip().startswith('{') else {}
        return from_str(text), {key: value for key, value in record.items() if key != 'genotype'}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'{path}: cannot be read as a genotype ({error})') from None
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None


def _loads(text):
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f'not JSON: {error}') from None


def _from_json(tree):
    fields = tree.get('genotype', tree)
    if not isinstance(fields, dict):
        raise ValueError('genotype: not a table of fields')
    return _fields(fields)


def _from_repr(text):
    try:
        call = ast.parse(text.strip(), mode='eval').body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError('genotype: neither Genotype(...) nor JSON') from None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == 'Genotype'):
        raise ValueError('genotype: neither Genotype(...) nor JSON')
    names = Genotype._fields
    fields = {names[i]: _literal(arg) for i, arg in enumerate(call.args[:len(names)])}
    fields.update({keyword.arg: _literal(keyword.value) for keyword in call.keywords})
    return _fields(fields)


def _literal(node):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'range':
        bounds = [_literal(arg) for arg in node.args]
        if len(bounds) == 2 and all(type(b) is int and 0 <= b < 1000 for b in bounds) and not node.keywords:
            return range(*bounds)
        raise ValueError('genotype: a range needs two small whole numbers')
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        raise ValueError('genotype: only names, numbers, lists, tuples and range(a, b) may stand in it') from None


def _fields(fields):
    unknown = [str(name) for name in fields if name not in Genotype._fields]
    missing = [name for name in Genotype._fields[:4] if name not in fields]
    if unknown or missing:
        raise ValueError('genotype: ' + (f'unknown field {unknown[0]}' if unknown else f'field {missing[0]} is missing'))
    return Genotype(**fields)
