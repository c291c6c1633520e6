"""Cells of the supernet in their fast form: other ways to the same sums, with the parameters of the plain cells.

Operations of one type are computed for all edges that leave a state, or for both inputs, at once. An operation whose type is
not known here is computed as in the plain form, w * op(x), edge by edge.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from models import fast
from models.derivatives import cudnn, second_derivatives
from models.fast import side_by_side
from models.fast.depthwise import depthwise
from models.fast.folding import fold, fold_plain, linear
from models.fast.recurrences import BATCHED, run_together
from models.ops import DilConv, FactorizedReduce, PoolBN, SepConv, Zero, halves
from models.search_cells import Path, SearchCell, SearchSeqCell


class FastCell(SearchCell):
    def forward(self, s0: Tensor, s1: Tensor, weights: list) -> Tensor:
        if isinstance(weights, Path):
            return super().forward(s0, s1, weights)
        s0, s1 = self.preproc0(s0), self.preproc1(s1)
        node_states = side_by_side.node_states if fast.on_gpu(s0) else state_by_state
        return torch.cat(node_states(self.dag, s0, s1, weights), dim=1)


def state_by_state(dag: nn.ModuleList, s0: Tensor, s1: Tensor, weights: list) -> list:
    """States of all nodes, on a CPU. Work that all edges out of a state share is done once per state."""
    states, n = [s0, s1], len(dag)
    sums = [0.] * n  # what has reached each node so far
    for j in range(n + 1):
        nodes = range(max(0, j - 1), n)  # those that read state j
        w = torch.stack([weights[i][j] for i in nodes])  # (E, n_ops)
        for i, y in zip(nodes, carried(states[j], [dag[i][j] for i in nodes], w)):
            sums[i] = sums[i] + y
        if j > 0:  # no later state leads to this node
            states.append(sums[j - 1])
            if states[-1].requires_grad:
                states[-1].register_hook(_dense)
    return states[2:]


def carried(x: Tensor, edges: list, w: Tensor) -> list:
    """[edge_e(x, w_e) for every edge e]: E maps (N, C, F', T'). x: (N, C, F, T). edges: E MixedOps. w: (E, n_ops)."""
    K = getattr(edges[0], 'partial_channels', 1)
    if K == 1:
        return mixtures(x, edges, w)
    C_mixed = x.shape[1] // K
    bypass = edges[0].bypass(x[:, C_mixed:])
    merged = [edge.merge(y, share * bypass)
              for edge, y, share in zip(edges, mixtures(x[:, :C_mixed], edges, w), w.sum(dim=1))]
    return [_laid_out(y, like=x) for y in merged]


def mixtures(x: Tensor, edges: list, w: Tensor) -> list:
    """[sum_o w_eo op_eo(x) for every edge e]: E maps. x: (N, C, F, T). edges: E MixedOps of the same operations. w: (E, n_ops).

    With its batch norm folded in, every operation but `none` is a linear map of something: y_e = A_e z_e + b_e.
    """
    r, E = F.relu(x), len(edges)
    columns = list(zip(*(edge._ops for edge in edges)))  # per operation: its E modules
    first = first_convolutions(columns, r)
    ys, bias = [None] * E, w.new_zeros(E, 1)
    for ops, w_o in zip(columns, w.unbind(dim=1), strict=True):
        kind = type(ops[0])
        if kind is Zero:
            continue
        if kind in (DilConv, SepConv):
            zs, A, b = separable(ops, [first[_first(op)] for op in ops])
        elif kind is PoolBN:
            z = ops[0][0](x)
            zs, (A, b) = [z] * E, fold_plain(z, [op[1] for op in ops])
        elif kind is FactorizedReduce:
            zs = [shifted_halves(r)] * E
            A, b = fold(zs, torch.stack([_matrix(op) for op in ops]), [op.bn for op in ops])
        elif kind is nn.Identity:
            zs, A, b = [x] * E, torch.eye(x.shape[1], dtype=w.dtype, device=w.device), w.new_zeros(E, 1)
        else:
            ys = [_added(y, w_e * op(x)) for y, w_e, op in zip(ys, w_o, ops)]
            continue
        ys = [_added(y, part) for y, part in zip(ys, linear(zs, A * w_o[:, None, None]))]
        bias = bias + b * w_o[:, None]
    return [y.add_(b[:, None, None]) for y, b in zip(ys, bias.unbind())]


def first_convolutions(columns: list, r: Tensor) -> dict:
    """{depthwise convolution: its output on r} of all operations that begin with one. r: the state after its ReLU."""
    convs = [_first(op) for ops in columns for op in ops if type(op) in (DilConv, SepConv)]
    found = {}
    for dilation in dict.fromkeys(conv.dilation for conv in convs):
        alike = [conv for conv in convs if conv.dilation == dilation]
        found.update(zip(alike, depthwise(r, alike)))
    return found


def separable(ops: tuple, zs: list) -> tuple:
    """zs, A, b such that op_e(x) = A_e z_e + b_e, for E DilConvs or SepConvs. zs: outputs of their first convolutions."""
    if type(ops[0]) is SepConv:
        _, A, b = separable([op[0] for op in ops], zs)
        ops = [op[1] for op in ops]
        zs = [depthwise(y.relu_(), [op[1]])[0] for op, y in zip(ops, linear(zs, A, b))]
    return zs, *fold(zs, torch.stack([op[2].weight.flatten(1) for op in ops]), [op[3] for op in ops])


def shifted_halves(x: Tensor) -> Tensor:
    """(N, C, F, T) -> (N, 2C, ceil(F / 2), ceil(T / 2)): the two pixels of each 2 x 2 square that FactorizedReduce reads."""
    return torch.cat(halves(x), dim=1)


def _matrix(op):
    """(C_out, 2 C_in): the two convolutions of a FactorizedReduce as one linear map of `shifted_halves`."""
    even = op.even.weight.flatten(1)
    if op.odd is None:
        return F.pad(even, (0, even.shape[1]))
    return torch.block_diag(even, op.odd.weight.flatten(1))


def _first(op):
    return op[0][1] if type(op) is SepConv else op[1]


def _added(y, part):
    return part if y is None else y.add_(part)


def _dense(gradient):
    """The gradient of a part of a concatenation is a view with gaps, which every operation behind it would copy."""
    return _laid_out(gradient, like=gradient)


def _laid_out(x, like):
    return x.contiguous(memory_format=torch.channels_last if like.stride(1) == 1 else torch.contiguous_format)


class FastSeqCell(SearchSeqCell):
    def forward(self, s0: Tensor, s1: Tensor, weights: list) -> Tensor:
        if isinstance(weights, Path):
            return super().forward(s0, s1, weights)
        states, n = [self.preproc0(s0), self.preproc1(s1)], len(self.dag)
        sums = None  # (nodes still open, N, T, H): what has reached them so far
        for begin, end in [(0, 2), *((j, j + 1) for j in range(2, n + 1))]:  # both inputs at once, then node after node
            nodes = range(max(0, begin - 1), n)  # those that read these states
            w = torch.stack([weights[i][begin:end] for i in nodes])  # (n_nodes, n_states, n_ops)
            new = sequence_mixtures(states[begin:end], [self.dag[i][begin:end] for i in nodes], w)
            sums = new if sums is None else sums[1:] + new
            states.append(sums[0])
        return torch.cat(states[2:], dim=-1)


def sequence_mixtures(states: list, edges: list, w: Tensor) -> Tensor:
    """sum_s sum_o w_nso op_nso(x_s) for every node n: (n_nodes, N, T, H).

    states: sequences x_s, (N, T, H). edges: for every node one MixedOp per state, all of the same operations.
    w: (n_nodes, n_states, n_ops).
    """
    columns, shape = list(zip(*(edge._ops for node in edges for edge in node))), states[0].shape
    w, parts = w.unbind(dim=2), []  # n_ops x (n_nodes, n_states)
    batched = [o for o, ops in enumerate(columns) if type(ops[0]) in BATCHED]
    if batched:
        S = len(states)
        jobs = [(s, columns[o][n * S + s]) for n in range(len(edges)) for o in batched for s in range(S)]
        copies = [list(x.expand(len(jobs) // S, *shape).unbind()) for x in states]  # one sum for the gradient of a state
        y = run_together([copies[s].pop() for s, _ in jobs], [op for _, op in jobs])  # (jobs, N, T, H)
        w_batched = torch.stack([w[o] for o in batched], dim=1).flatten(1)  # (n_nodes, jobs of a node)
        y = y.view(len(edges), -1, shape.numel())
        parts.append(torch.bmm(w_batched.unsqueeze(1).to(y.dtype), y).view(-1, *shape))
    for ops, w_o in zip(columns, w, strict=True):
        if type(ops[0]) is nn.Identity:
            parts.append((w_o @ torch.stack(states).flatten(1)).view(-1, *shape))
        elif type(ops[0]) is not Zero and type(ops[0]) not in BATCHED:
            with cudnn(enabled=not second_derivatives()):
                maps = iter([w_e * op(x) for op, w_e, x in zip(ops, w_o.flatten(), states * len(edges))])
            parts.append(torch.stack([sum(next(maps) for _ in states) for _ in edges]))
    return sum(parts[1:], parts[0])
