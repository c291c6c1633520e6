"""Genotypes: the cells that a search finds, and the written forms in which people pass them around.

A gene is a list of nodes. A node is a list of edges (operation, state it reads). States 0 and 1 are the outputs of the two
cells before; state 2 + i is node i. The output of a cell is the concatenation of the states in `*_concat`.

    Genotype(normal=[[('sep_conv_3x3', 0), ('skip_connect', 1)], ...], normal_concat=range(2, 6), reduce=..., rnn=...)

A genotype of the space `speech` also has `network`, decisions outside the cells: {'C': 8, 'head': 'mean', ...}. For those that
it lacks, the settings of the program hold.

`load` and `from_str` read this form, which pt.darts prints, the flat lists of DARTS and PC-DARTS, and JSON. They parse
literals and never execute anything; `check` bounds what a file can ask for.
"""
import ast
import os
import re
from collections import Counter, namedtuple

from config import UserError, one_line, parse_json, read_text, short

Genotype = namedtuple('Genotype', 'normal normal_concat reduce reduce_concat rnn rnn_concat network', defaults=([], [], None))
KINDS = ('normal', 'reduce', 'rnn')

NONE, SKIP = 'none', 'skip_connect'
MAX_NODES = 32  # in a cell; DARTS has 4
MAX_BYTES = 1_000_000  # in a file; its record lists the speakers
MAX_TEXT = 100_000  # characters of a printed Genotype(...)
_REST = (SKIP, NONE)
_SEP, _DIL = ('sep_conv_3x3', 'sep_conv_5x5'), ('dil_conv_3x3', 'dil_conv_5x5')
_POOL = ('max_pool_3x3', 'avg_pool_3x3')


# `none` is the last operation of every set.
CNN_OP_SETS = {
    'paper': _POOL + (SKIP,) + _SEP + _DIL + (NONE,),  # the eight operations of the paper
    'sep_conv': _SEP + _REST,
    'dil_conv': _DIL + _REST,
    'conv': _SEP + _DIL + _REST,
    'pool': _POOL + _REST,
    'speech': ('max_pool_3x3', SKIP, 'sep_conv_3x3', 'time_conv_5', 'time_conv_9', 'time_conv_5_dil_4', 'freq_conv_5',
               'freq_conv_9', 'dense_conv_3x3', 'gated_conv_3x3', 'se_conv_3x3', 'broadcast_conv', 'freq_attention', NONE),
    # Those of `speech` that do something along time, for maps of one row.
    'frames': ('max_pool_3x3', SKIP, 'sep_conv_3x3', 'time_conv_5', 'time_conv_9', 'time_conv_5_dil_4', 'dense_conv_3x3',
               'gated_conv_3x3', 'se_conv_3x3', 'broadcast_conv', NONE),
}
_LSTM, _GRU, _RNN = ([f'{family}_{depth}' for depth in (1, 2, 3, 4)] for family in ('lstm', 'gru', 'rnn'))
_LSTM_ATT, _GRU_ATT, _RNN_ATT = ([f'{family}_att_1', f'{family}_att_2'] for family in ('lstm', 'gru', 'rnn'))
RNN_OP_SETS = {name: (*ops, *_REST) for name, ops in {
    'mixed': _LSTM[:2] + _GRU[:2] + _RNN[:2],
    'paper': _LSTM + _RNN + _LSTM_ATT + _RNN_ATT,  # its fourteen
    'all': _LSTM + _LSTM_ATT + _GRU + _GRU_ATT + _RNN + _RNN_ATT,
    'lstm': _LSTM, 'gru': _GRU, 'rnn': _RNN,
    'lstm_att': _LSTM_ATT, 'gru_att': _GRU_ATT, 'rnn_att': _RNN_ATT,
    'speech': ('gru_1', 'lstm_att_1', 'bilstm', 'bigru', 'res_bilstm', 'res_bigru', 'gated_conv_1', 'gated_conv_3',
               'self_attention'),
}.items()}
PRIMITIVES, RNN_PRIMITIVES = CNN_OP_SETS['paper'], RNN_OP_SETS['mixed']

# The decisions outside the cells and what --space speech draws from. Widths: C of the first CNN cell, C_rnn of a SeqNN node.
NETWORK_CHOICES = {
    'layers': (2, 3, 4, 6),  # CNN cells
    'C': (2, 4, 6, 8, 12, 16),
    'reduce_1': ('both', 'time', 'frequency'),  # axes that the first reduction cell halves
    'reduce_2': ('both', 'time', 'frequency'),
    'bands': (1, 2, 4, 8, 'attended'),  # how frequency becomes the width of a sequence
    'rnn_layers': (0, 1, 2),  # SeqNN cells
    'C_rnn': (8, 12, 16, 24, 32, 48),
    'head': ('mean', 'mean_std', 'max', 'attention'),  # from a sequence to the classifier
}
NETWORK_LIMITS = {'layers': (1, 32), 'C': (1, 512), 'bands': (1, 64), 'rnn_layers': (0, 16), 'C_rnn': (2, 1024)}  # in a file
STRIDES = {'both': 2, 'time': (1, 2), 'frequency': (2, 1)}  # of a reduction cell, along F and T
FRAME_STRIDES = {'time': (1, 2), 'frequency': (1, 1)}  # maps of frames have one row, so that `both` is `time`
_KNOWN = {'cnn': set(sum(CNN_OP_SETS.values(), ())), 'rnn': set(sum(RNN_OP_SETS.values(), ()))}


def op_set(ops, kind: str = 'cnn') -> tuple[str, ...]:
    """The operations of a set, `none` last.

    ops: the name of a set (CNN_OP_SETS, or RNN_OP_SETS for kind 'rnn'), operations separated by commas, or a sequence of them.
    Raises ValueError on an unknown or repeated operation, and if `none` is the only one.
    """
    sets = CNN_OP_SETS if kind == 'cnn' else RNN_OP_SETS
    if isinstance(ops, str) and ops in sets:
        return sets[ops]
    names = [name.strip() for name in ops.split(',')] if isinstance(ops, str) else list(ops)
    if len(names) > 1 and set(names) & set(sets):
        raise ValueError(f'sets of {kind} operations cannot be combined: name one set, or operations separated by commas')
    for name in names:
        if name not in _KNOWN[kind]:
            raise ValueError(f'unknown {kind} operation or set {short(name)}: sets are {", ".join(sets)}; '
                             f'operations are {", ".join(sorted(_KNOWN[kind]))}')
    if len(set(names)) < len(names):
        raise ValueError(f'repeated {kind} operation in {short(",".join(names))}')
    if not set(names) - {NONE}:
        raise ValueError(f'{kind} operations: name at least one other than none')
    return tuple(n for n in names if n != NONE) + ((NONE,) if NONE in names else ())


def allowed(names: tuple[str, ...], state: int, order: str = 'free') -> list[bool]:
    """Which of the operations of a CNN cell an edge from this state may have.

    order 'free': all. 'imposed': from the inputs of the cell, states 0 and 1, all but pooling; from its nodes no convolution
    but pooling, so that pooling comes after convolution. skip_connect and none are allowed everywhere. Raises ValueError if
    nothing but none is left.
    """
    pools = [name in _POOL for name in names]
    found = [order == 'free' or name in _REST or pool == (state > 1) for name, pool in zip(names, pools)]
    if not any(may and name != NONE for name, may in zip(names, found)):
        raise ValueError(f'cnn operations {", ".join(names)}: an imposed order needs a convolution, and pooling or '
                         'skip_connect')
    return found


def draw(rng, n_nodes: int, rnn_nodes: int, cnn_ops='paper', rnn_ops='mixed', k: int = 2, space: str = 'paper',
         order: str = 'free', frames: bool = False) -> Genotype:
    """A genotype of the space, drawn at random: the states that a node reads, then the operation of each edge, all uniformly.

    rng: numpy Generator. Each node reads k different earlier states, each through an operation other than `none` that `allowed`
    lets it have.
    rnn_nodes = 0: no SeqNN cell. space 'speech': decisions outside the cells are drawn too, each from NETWORK_CHOICES; a kind
    of cell that the network then lacks stays empty. frames: the network reads frames, whose maps have one row: it has no
    `bands`, and a reduction cell halves time or, as `frequency`, nothing. Raises ValueError as `op_set` does.
    """
    def gene(n: int, names: list[str], order: str = 'free') -> list:
        states = [rng.choice(2 + i, k, replace=False) for i in range(n)]
        of_state = [[name for name, may in zip(names, allowed(names, j, order)) if may] for j in range(1 + n)]
        return [[(of_state[j][rng.integers(len(of_state[j]))], int(j)) for j in node] for node in states]
    cnn = [name for name in op_set(cnn_ops) if name != NONE]
    rnn = [name for name in op_set(rnn_ops, 'rnn') if name != NONE]
    normal, reduce = gene(n_nodes, cnn, order), gene(n_nodes, cnn, order)
    concat = range(2, 2 + n_nodes)
    drawn = Genotype(normal, concat, reduce, concat, gene(rnn_nodes, rnn), range(2, 2 + rnn_nodes) if rnn_nodes else [])
    if space == 'paper':
        return drawn
    decisions = {**NETWORK_CHOICES}
    if frames:
        del decisions['bands']
        decisions |= dict.fromkeys(('reduce_1', 'reduce_2'), tuple(FRAME_STRIDES))
    network = {name: choices[rng.integers(len(choices))] for name, choices in decisions.items()}
    if network['layers'] == 2:  # both are reduction cells
        drawn = drawn._replace(normal=[], normal_concat=[])
    if not rnn_nodes or not network['rnn_layers']:
        network['rnn_layers'] = 0
        del network['C_rnn']
        drawn = drawn._replace(rnn=[], rnn_concat=[])
    return drawn._replace(network=network)


def op_counts(genotype: Genotype) -> dict[str, dict[str, int]]:
    """How many edges have each operation: {'normal': {'skip_connect': 3, ...}, 'reduce': ..., 'rnn': ...}"""
    return {kind: dict(Counter(sorted(name for node in getattr(genotype, kind) for name, _ in node))) for kind in KINDS}


def compare(a: Genotype, b: Genotype) -> dict[str, list]:
    """How the edges of two genotypes differ: {kind: [(node, (operation, state) of a or None, of b or None, word), ...]}.

    word: 'same'; 'operation', another operation on the same edge; 'moved', the same operation from another state; 'only', an
    edge without a partner. Every edge is in one row; pairs are looked for in this order. Nodes are numbered as states.
    """
    found = {}
    for kind in KINDS:
        rows, genes = [], [[sorted(node) for node in getattr(one, kind)] for one in (a, b)]
        for i in range(max(map(len, genes))):
            left, right = ([*gene[i]] if i < len(gene) else [] for gene in genes)
            for word, alike in (('same', lambda x, y: x == y), ('operation', lambda x, y: x[1] == y[1]),
                                ('moved', lambda x, y: x[0] == y[0])):
                for x in [*left]:
                    if (y := next((y for y in right if alike(x, y)), None)) is not None:
                        left.remove(x)
                        right.remove(y)
                        rows.append((2 + i, x, y, word))
            rows += [(2 + i, x, None, 'only') for x in left] + [(2 + i, None, y, 'only') for y in right]
        if rows:
            found[kind] = rows
    return found


def collapsed(genotype: Genotype) -> list[str]:
    """The kinds of cell in which skip_connect has more than half of the edges: the known failure of DARTS."""
    return [kind for kind, counts in op_counts(genotype).items() if 2 * counts.get(SKIP, 0) > sum(counts.values())]


def check(genotype: Genotype) -> Genotype:
    """The genotype with its lists, tuples and ranges in their places. Raises ValueError on one that makes no cell."""
    fields = {}
    for kind in KINDS:
        fields[kind] = _check_gene(kind, getattr(genotype, kind))
        fields[f'{kind}_concat'] = _check_concat(kind, getattr(genotype, f'{kind}_concat'), len(fields[kind]))
    return Genotype(**fields, network=_check_network(genotype.network))


def _check_network(network) -> dict | None:
    if network is None:
        return None
    if not isinstance(network, dict) or not network:
        raise ValueError(f'network {short(network)} must be a table of decisions: {", ".join(NETWORK_CHOICES)}')
    for name, value in network.items():
        if name not in NETWORK_CHOICES:
            raise ValueError(f'network: unknown decision {short(name)}; decisions are {", ".join(NETWORK_CHOICES)}')
        words = [choice for choice in NETWORK_CHOICES[name] if isinstance(choice, str)]
        low, high = NETWORK_LIMITS.get(name, (0, -1))
        if value not in words if isinstance(value, str) else type(value) is not int or not low <= value <= high:
            wanted = words + [f'a number from {low} to {high}'] * (name in NETWORK_LIMITS)
            raise ValueError(f'network: {name} {short(value)} must be {" or ".join(wanted)}')
    return {name: network[name] for name in NETWORK_CHOICES if name in network}


def _check_gene(kind: str, gene) -> list:
    if isinstance(gene, list | tuple) and gene and _is_edge(gene[0]):  # the flat form of DARTS: two edges per node
        if len(gene) % 2 or not all(map(_is_edge, gene)):
            raise ValueError(f'{kind} is a flat list, which must hold two edges (operation, state) for every node')
        gene = [gene[i:i + 2] for i in range(0, len(gene), 2)]
    if not isinstance(gene, list | tuple) or len(gene) > MAX_NODES:
        raise ValueError(f'{kind} must be a list of at most {MAX_NODES} nodes')
    known = _KNOWN['rnn' if kind == 'rnn' else 'cnn'] - {NONE}
    for i, node in enumerate(gene):
        if not isinstance(node, list | tuple) or not 1 <= len(node) <= 2 + i:
            raise ValueError(f'{kind}[{i}] must be a list of 1 to {2 + i} edges (operation, state)')
        for edge in node:
            if not _is_edge(edge):
                raise ValueError(f'{kind}[{i}]: {short(edge)} is not (operation, state)')
            if edge[0] not in known:
                raise ValueError(f'{kind}[{i}]: {short(edge[0])} is not an operation of this kind of cell')
            if not 0 <= edge[1] < 2 + i:
                raise ValueError(f'{kind}[{i}] reads state {short(edge[1])}, but only 0 to {1 + i} come before it')
    return [[tuple(edge) for edge in node] for node in gene]


def _check_concat(kind: str, concat, n_nodes: int) -> list | range:
    states = range(2 + n_nodes if n_nodes else 0)
    if not isinstance(concat, list | tuple | range) or bool(concat) != bool(n_nodes) or len(concat) > len(states) \
            or any(type(c) is not int or c not in states for c in concat) or len(set(concat)) < len(concat):
        raise ValueError(f'{kind}_concat {short(concat)} must list states of a cell of {n_nodes} nodes, each once')
    whole = range(min(concat), max(concat) + 1) if concat else range(0)
    return whole if concat and list(concat) == list(whole) else list(concat)


def _is_edge(edge) -> bool:
    return isinstance(edge, list | tuple) and len(edge) == 2 and isinstance(edge[0], str) and type(edge[1]) is int


def to_str(genotype: Genotype) -> str:
    """The form that pt.darts prints, on one line."""
    return repr(Genotype(*genotype)).replace(', network=None)', ')')


def from_str(text: str) -> Genotype:
    """A genotype from text: Genotype(...) with four fields or more, or JSON. Raises ValueError; executes nothing."""
    try:
        return _parse(text)[0]
    except ValueError as error:
        raise ValueError(f'genotype: {error}') from None


def save(path, genotype: Genotype, record: dict) -> None:
    """Writes the genotype and `record`, the settings of the search that found it, as JSON; whole or not at all."""
    from utils import write_json  # loads torch
    fields = {name: value if name == 'network' else list(value) for name, value in check(genotype)._asdict().items()
              if value is not None}
    write_json(path, {'genotype': fields, **record})


def load(source) -> tuple[Genotype, dict]:
    """(genotype, record) from a file in any form, a folder of search.py, or the text of a genotype itself.

    The record is what the JSON holds besides the genotype; other forms have none: {}. Raises ValueError, which names the file.
    """
    is_text = isinstance(source, str) and re.match(r'\s*(\{|(\w+\s*=\s*)?Genotype\s*\()', source)
    try:
        return _parse(source if is_text else _read(source))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(one_line(f'{"Genotype(...)" if is_text else source}: {why}', 400)) from None


def _missing(source) -> str:
    """Why there is no genotype at `source`, and what to do."""
    run = re.search(r'(?:^|/)runs/search/(.+?)(/genotype\.json)?/?$', os.fspath(source).replace(os.sep, '/'))
    if not run:
        return 'no genotype.json in this folder; name a folder of search.py' if os.path.isdir(source) else 'no such file'
    folder = os.fspath(source).removesuffix('genotype.json')
    if os.path.exists(os.path.join(folder, 'config.yaml')):
        return f'the search has not finished: continue it with search.py --name {run[1]} --resume'
    if os.path.isdir(folder):
        return 'no genotype.json in this folder; name one of the searches in it'
    return f'no such file: run search.py --name {run[1]} first'


def _read(source) -> str:
    path = os.fspath(source)
    if not os.path.exists(path) or os.path.isdir(path) and not os.path.exists(os.path.join(path, 'genotype.json')):
        raise ValueError(_missing(path))
    path = os.path.join(path, 'genotype.json') if os.path.isdir(path) else path
    try:
        text = read_text(path, MAX_BYTES)
    except UserError as error:
        what = _what_else(path)
        raise ValueError(f'{what}; name genotype.json' if what else str(error).removeprefix(f'{path}: ')) from None
    if text.startswith('<?xml'):
        raise ValueError('is a picture, not a genotype; name genotype.json')
    return text


def _what_else(path) -> str | None:
    """What a file is that cannot be a genotype; None if that is not known."""
    with open(path, 'rb') as f:
        begins = f.read(4)
    if begins == b'PK\x03\x04' or path.endswith('.pt'):
        return 'holds a trained network, not a genotype'
    return 'is a picture, not a genotype' if begins in (b'\x89PNG', b'%PDF') else None


def _parse(text: str) -> tuple[Genotype, dict]:
    if not text.lstrip().startswith('{'):
        return check(_from_call(text)), {}
    try:
        tree = parse_json(text, 'genotype')
    except UserError as error:
        raise ValueError(str(error).removeprefix('genotype: ')) from None
    found = tree.get('genotype', tree)
    if isinstance(found, str):  # results.json has the printed form
        return check(_from_call(found)), {key: value for key, value in tree.items() if key != 'genotype'}
    if not isinstance(found, dict):
        raise ValueError('holds no genotype')
    return check(_fields(found)), {key: value for key, value in tree.items() if found is not tree and key != 'genotype'}


def _from_call(text: str) -> Genotype:
    """From 'Genotype(...)', or an assignment such as 'PCDARTS = Genotype(...)'."""
    if len(text) > MAX_TEXT:
        raise ValueError(f'a Genotype(...) of more than {MAX_TEXT:,} characters')
    try:
        call = ast.parse(re.sub(r'^\w+\s*=\s*', '', text.strip()), mode='eval').body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        call = None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == 'Genotype') \
            or len(call.args) > len(Genotype._fields):
        raise ValueError('not a complete Genotype(...), nor JSON')
    pairs = [*zip(Genotype._fields, call.args), *((str(keyword.arg), keyword.value) for keyword in call.keywords)]
    fields = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f'field {short(name)} is there twice')
        fields[name] = _literal(value)
    return _fields(fields)


def _literal(node: ast.AST):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'range':
        bounds = [_literal(arg) for arg in node.args]
        if len(bounds) == 2 and all(type(b) is int and 0 <= b < 1000 for b in bounds) and not node.keywords:
            return range(*bounds)
        raise ValueError('range takes two small whole numbers')
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ValueError('only names, numbers, lists, tuples and range(a, b) are allowed') from None


def _fields(fields: dict) -> Genotype:
    for name in (*fields, *Genotype._fields[:4]):
        if name not in fields or name not in Genotype._fields:
            raise ValueError(f'field {name} is missing' if name not in fields else f'unknown field {short(name)}')
    return Genotype(**fields)
