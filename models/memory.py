"""A rough estimate of the memory that training takes, made before anything is built: what cannot fit is refused at once.

It counts the feature maps and sequences that the backward pass needs, by operation. Tests hold it to a factor of two of
what autograd really saves.
"""
from types import SimpleNamespace

import torch

import genotypes as gt
from config import UserError
from models.skeleton import N_BANDS, reduction_layers
from utils import free_memory

# Maps (N, C, F, T) that an operation saves, by its first word; matrices of C x C or H x H weights; other operations as OTHER.
MAPS = {'none': 0, 'skip': .5, 'max': 3., 'avg': 2.5, 'sep': 7., 'dil': 4., 'time': 4., 'freq': 4.}
MATRICES = {'none': 0, 'skip': .3, 'max': 0, 'avg': 0, 'sep': 2, 'dil': 1, 'time': 1, 'freq': 1, 'se': 2, 'broadcast': 1,
            'lstm': 8, 'gru': 6, 'rnn': 2}
STEPS = {'none': 0, 'skip': .3, 'lstm': 10, 'gru': 11, 'rnn': 6}  # sequences (N, T, H) of one layer
OTHER = 8
ATTENTION = 3  # maps (N, T, T) of an operation with attention over time
FAST = .6  # share of the maps that models/fast saves
OBJECT = 20_000  # bytes of the Python objects of one operation
COPIES = 16  # bytes of a parameter: itself, its gradient, and what the optimizers keep


def of_space(config) -> dict:
    """{kind of cell: (nodes, {operation: how many})} of the supernet of these settings. ValueError as gt.op_set."""
    cnn, rnn = gt.op_set(config.cnn_ops), gt.op_set(config.rnn_ops, 'rnn')
    cells = {'normal': (config.n_nodes, cnn), 'reduce': (config.n_nodes, cnn), 'rnn': (config.rnn_nodes, rnn)}
    return {kind: (n, dict.fromkeys(ops, n * (n + 3) / 2)) for kind, (n, ops) in cells.items()}  # 2 + 3 + ... edges


def of_genotype(genotype: gt.Genotype) -> dict:
    """{kind of cell: (states in its output, {operation: how many})} of a genotype."""
    counts = gt.op_counts(genotype)
    return {kind: (len(getattr(genotype, f'{kind}_concat')), counts[kind]) for kind in gt.KINDS}


def decided(genotype: gt.Genotype) -> dict:
    """{setting: size} of the sizes that the genotype decides itself."""
    names = {'C': 'init_channels', 'layers': 'layers', 'rnn_layers': 'rnn_layers', 'C_rnn': 'rnn_channels'}
    return {names[name]: value for name, value in (genotype.network or {}).items() if name in names}


def sized(config, genotype: gt.Genotype) -> SimpleNamespace:
    """The settings, with the sizes that the genotype decides itself."""
    strides = [gt.STRIDES[(genotype.network or {}).get(name, 'both')] for name in ('reduce_1', 'reduce_2')]
    found = {**vars(config), **decided(genotype)}
    return SimpleNamespace(**found, strides=strides, height=config.height, frames=config.frames)


def estimate(config, cells: dict, n_frames: int, batch_size: int) -> tuple[float, float]:
    """(bytes of parameters and objects, bytes of float32 activations) of a network.

    config: any with NetworkSettings. cells: see of_space. batch_size: windows of n_frames on one device.
    """
    K, C, F, T = getattr(config, 'partial_channels', 1), config.init_channels, config.height, n_frames
    C_out, objects = config.stem_multiplier * C, 0.
    decisions = getattr(config, 'decisions', False)  # of models/decisions.py: the largest network that a step may draw
    relaxation = getattr(config, 'relaxation', 'softmax')
    strides = iter(2 * [gt.STRIDES['frequency']] if decisions else getattr(config, 'strides', (2, 2)))
    rnn_layers = config.rnn_layers
    if decisions and rnn_layers:
        rnn_layers = max(rnn_layers, *gt.NETWORK_CHOICES['rnn_layers'])

    def computed(table, ops):  # by a step, on average
        return share(ops) * _sum(table, ops)

    def share(ops):
        return {'softmax': 1, 'sampled': 1 / max(1, len(ops)), 'none': 0}[relaxation]
    L, D = config.frames or (0, 0)
    maps, entering, parameters = 2 * C_out * F * T, (L + (L > 1)) * D * T, float(D * C_out)  # entering: layers and their mean
    for i in range(config.layers):
        kind = 'reduce' if i in reduction_layers(config.layers) else 'normal'
        if kind == 'reduce':
            stride = next(strides)
            along_F, along_T = (stride, stride) if isinstance(stride, int) else stride
            C, F, T = 2 * C, -(-F // along_F), -(-T // along_T)
        n_nodes, ops = cells[kind]
        copies = len(gt.STRIDES) if decisions and kind == 'reduce' else 1
        maps += (computed(MAPS, ops) / K + 6 + n_nodes) * C * F * T
        parameters += copies * (_sum(MATRICES, ops) * (C / K) ** 2 + 2 * C_out * C)
        objects, C_out = objects + copies * sum(ops.values()), C * n_nodes
    n_nodes, ops = cells['rnn']
    H, H_in, steps = config.rnn_channels, (1 if config.frames else N_BANDS) * C_out, 0.
    attentions = sum(n for name, n in ops.items() if {'att', 'attention'} & {*name.split('_')})
    for _ in range(rnn_layers):
        parameters += _sum(MATRICES, ops) * H ** 2 + 2 * H_in * H
        steps += (computed(STEPS, ops) + 6) * H * T + ATTENTION * share(ops) * attentions * T ** 2
        objects, H_in = objects + sum(ops.values()), n_nodes * H
    maps *= FAST if getattr(config, 'fast', False) and relaxation == 'softmax' else 1
    return COPIES * parameters + OBJECT * objects, 4. * batch_size * (entering + maps + steps)


def _sum(table: dict, ops: dict) -> float:
    """Sum over operations; one of several layers, such as lstm_att_2, counts per layer, and twice with attention."""
    total = 0.
    for name, n in ops.items():
        family, *more = name.split('_')
        layers = int(more[-1]) if more and more[-1].isdigit() and family not in ('time', 'freq') else 1
        total += n * layers * (2 if 'att' in more else 1) * table.get(family, OTHER)
    return total


def check(config, cells: dict, n_frames: int, batch_size: int, device: torch.device) -> None:
    """UserError if training this network cannot fit on the device. cells: {} for a network without them, of config.params."""
    fixed, activations = estimate(config, cells, n_frames, batch_size) if cells else (COPIES * config.params, 0.)
    if device.type == 'cuda' and config.amp:
        activations /= 2  # bfloat16
    needed, there = fixed + activations, free_memory(device)
    if needed > there:
        raise UserError(
            f'training this network takes about {needed / 1e9:,.1f} GB of memory ({fixed / 1e9:,.1f} of them for parameters) '
            f'with {batch_size} utterances per step, but {device} has {there / 1e9:,.1f} GB: lower --batch_size, --duration, '
            + ('--init_channels, --layers, --n_nodes or --rnn_channels' if cells else 'or --params'))
