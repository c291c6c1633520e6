"""Cells of the supernet: every node reads every state before it, each edge a mixture of all operations.

What a cell computes is the sum over edges of sum_o w_o op_o(x) (DARTS, equation 2). It does so state by state: edges that leave
one state share whatever depends on that state alone, and the arithmetic of operations of one kind is done for all of them at
once. tests/textbook.py has the plain form, edge by edge and operation by operation, which it equals up to
rounding.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import genotypes as gt
from models.fast import recurrences
from models.fast.depthwise import depthwise
from models.fast.folding import fold, fold_plain, linear
from models.ops import OPS, DilConv, FactorizedReduce, MixedOp, PoolBN, SepConv, Zero, channel_shuffle, factors
from models.rnn_ops import RNN_OPS, AttentiveRecurrent, Recurrent
from models.skeleton import Fit, FitSequence


def mixed_dag(n_nodes, make_op):
    """ModuleList over nodes of ModuleLists over incoming edges; make_op(state index) -> MixedOp."""
    return nn.ModuleList(nn.ModuleList(make_op(j) for j in range(2 + i)) for i in range(n_nodes))


class SearchCell(nn.Module):
    """CNN cell: (N, C_pp, ., .), (N, C_p, F, T) -> (N, n_nodes * C, F, T), F and T halved where `reduction`.

    partial_channels: K of PC-DARTS (Xu et al. 2020, section 3.1): the first C / K channels of a state go through the
    operations, the others past them, and the two are shuffled. An edge's weights then sum to its share in the node
    (section 3.2), which is what its other channels are multiplied with.
    """

    def __init__(self, n_nodes, C_pp, C_p, C, reduction_p, reduction, primitives=gt.PRIMITIVES, partial_channels=1):
        super().__init__()
        if C % partial_channels:
            raise ValueError(f'partial_channels {partial_channels} must divide the width of every cell, {C} is one')
        self.kind = 'reduce' if reduction else 'normal'
        self.C_out, self.partial_channels = n_nodes * C, partial_channels
        self.C_mixed = C // partial_channels
        self.preproc0, self.preproc1 = Fit(C_pp, C, reduction_p, affine=False), Fit(C_p, C, False, affine=False)
        self.dag = mixed_dag(n_nodes, lambda j: MixedOp(
            OPS[name](self.C_mixed, self.stride(j), affine=False) for name in primitives))

    def stride(self, j):
        """Of the edges that leave state j: only the cell's inputs are still at full size."""
        return 2 if self.kind == 'reduce' and j < 2 else 1

    def forward(self, s0, s1, weights):
        """weights: one (n_inputs, n_ops) tensor a node, softmax over operations already taken."""
        states, n = [self.preproc0(s0), self.preproc1(s1)], len(self.dag)
        reached = [0.] * n  # what has come to each node so far
        for j in range(n + 1):
            nodes = range(max(0, j - 1), n)  # those that read state j
            w = torch.stack([weights[i][j] for i in nodes])  # (E, n_ops)
            for i, y in zip(nodes, self.leave(states[j], j, w)):
                reached[i] = reached[i] + y
            if j > 0:  # no later state leads to this node
                states.append(reached[j - 1])
                if states[-1].requires_grad:
                    states[-1].register_hook(_dense)
        return torch.cat(states[2:], dim=1)

    def leave(self, x, j, w):
        """What the E edges out of state j carry: E maps (N, C, F, T). w: (E, n_ops)."""
        edges = [node[j] for node in self.dag if j < len(node)]
        if self.partial_channels == 1:
            return mixtures(x, edges, w)
        x, past = x[:, :self.C_mixed], x[:, self.C_mixed:]
        past = past if self.stride(j) == 1 else F.max_pool2d(past, 2, ceil_mode=True)
        shuffled = [channel_shuffle(torch.cat([y, share * past], dim=1), self.partial_channels)
                    for y, share in zip(mixtures(x, edges, w), w.sum(dim=1))]
        return [_laid_out(y, like=x) for y in shuffled]


def mixtures(x, edges, w):
    """[sum_o w_eo op_eo(x) for every edge e]: E maps. x: (N, C, F, T). edges: E MixedOps of like operations. w: (E, n_ops).

    Every operation but `none` is, once its batch norm is folded in, a linear map of something: y_e = A_e z_e + b_e.
    """
    r, E = F.relu(x), len(edges)
    columns = list(zip(*(edge._ops for edge in edges)))  # over operations: that operation on every edge
    first = first_convolutions(columns, r)
    ys, bias = [None] * E, w.new_zeros(E, 1)
    for ops, w_o in zip(columns, w.unbind(dim=1), strict=True):
        if isinstance(ops[0], Zero):
            continue
        if isinstance(ops[0], DilConv | SepConv):
            zs, A, b = separable(ops, [first[_first(op)] for op in ops])
        elif isinstance(ops[0], PoolBN):
            z = ops[0][0](x)
            zs, (A, b) = [z] * E, fold_plain(z, [op[1] for op in ops])
        elif isinstance(ops[0], FactorizedReduce):
            zs = [factors(r)] * E
            A, b = fold(zs, torch.stack([op.matrix() for op in ops]), [op.bn for op in ops])
        elif isinstance(ops[0], nn.Identity):
            zs, A, b = [x] * E, torch.eye(x.shape[1], dtype=w.dtype, device=w.device), w.new_zeros(E, 1)
        else:
            raise TypeError(f'{type(ops[0]).__name__}: a new operation of the supernet needs its row here')
        parts = linear(zs, A * w_o[:, None, None])
        ys = [part if y is None else y.add_(part) for y, part in zip(ys, parts)]
        bias = bias + b * w_o[:, None]
    return [y.add_(b[:, None, None]) for y, b in zip(ys, bias.unbind())]


def first_convolutions(columns, r):
    """{convolution: its output on r}, of all operations that begin with a depthwise one; r: the state after its ReLU."""
    convs = [_first(op) for ops in columns for op in ops if isinstance(op, DilConv | SepConv)]
    found = {}
    for dilation in dict.fromkeys(conv.dilation for conv in convs):
        alike = [conv for conv in convs if conv.dilation == dilation]
        found.update(zip(alike, depthwise(r, alike)))
    return found


def _first(op):
    return op[0][1] if isinstance(op, SepConv) else op[1]


def separable(ops, zs):
    """zs, A, b with op_e(x) = A_e z_e + b_e, of E DilConvs or SepConvs; zs: what their first convolutions gave."""
    if isinstance(ops[0], SepConv):
        _, A, b = separable([op[0] for op in ops], zs)
        ops = [op[1] for op in ops]
        zs = [op[1](y.relu_()) for op, y in zip(ops, linear(zs, A, b))]
    return zs, *fold(zs, torch.stack([op[2].weight.flatten(1) for op in ops]), [op[3] for op in ops])


def _dense(gradient):
    """A part of a concatenation gets its gradient as a view with gaps, which every operation behind it would copy."""
    return _laid_out(gradient, like=gradient)


def _laid_out(x, like):
    return x.contiguous(memory_format=torch.channels_last if like.stride(1) == 1 else torch.contiguous_format)


class SearchSeqCell(nn.Module):
    """SeqNN cell: (N, T, H_pp), (N, T, H_p) -> (N, T, n_nodes * H)."""
    kind = 'rnn'

    def __init__(self, n_nodes, H_pp, H_p, H, primitives=gt.RNN_PRIMITIVES):
        super().__init__()
        self.C_out = n_nodes * H
        self.preproc0, self.preproc1 = FitSequence(H_pp, H, affine=False), FitSequence(H_p, H, affine=False)
        self.dag = mixed_dag(n_nodes, lambda j: MixedOp(RNN_OPS[name](H, affine=False) for name in primitives))

    def forward(self, s0, s1, weights):
        states, n = [self.preproc0(s0), self.preproc1(s1)], len(self.dag)
        reached = [0.] * n
        for begin, end in [(0, 2), *((j, j + 1) for j in range(2, n + 1))]:  # both inputs at once, then node after node
            edges = [(i, j) for j in range(begin, end) for i in range(max(0, j - 1), n)]
            for i, y in self.leave(states, edges, weights).items():
                reached[i] = reached[i] + y
            states.append(reached[end - 2])
        return torch.cat(states[2:], dim=-1)

    def leave(self, states, edges, weights):
        """What `edges`, (node, state) pairs, carry to their nodes: {node: sum over its edges of sum_o w_o op_o(x)}."""
        carried = {i: torch.zeros_like(states[0]) for i in sorted({i for i, _ in edges})}
        jobs = []  # node, weight, sequence, operation
        for i, j in edges:
            for op, w in zip(self.dag[i][j]._ops, weights[i][j].unbind(), strict=True):
                if isinstance(op, Recurrent | AttentiveRecurrent):
                    jobs.append((i, w, states[j], op))
                elif not isinstance(op, Zero):
                    carried[i] = carried[i] + w * op(states[j])
        if jobs:
            jobs.sort(key=lambda job: job[0])
            owners, ws, xs, ops = zip(*jobs)
            sizes = [owners.count(i) for i in carried]
            parts = zip(torch.stack(ws).split(sizes), recurrences.run(xs, ops).split(sizes))  # (J_i,), (J_i, N, T, H) a node
            carried = {i: carried[i] + torch.tensordot(w, y, dims=1) for i, (w, y) in zip(carried, parts)}
        return carried
