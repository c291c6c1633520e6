"""Cells of the supernet, as in the paper: a node is the sum of its edges from all earlier states; an edge mixes all operations.

models/fast/cells.py computes the same sums faster, with the same parameters. Where the weights of a cell are a `Path`, an edge
computes one operation or none.
"""
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

import genotypes as gt
from models.ops import OPS, MixedOp, PartialMixedOp, Zero
from models.rnn_ops import RNN_OPS
from models.skeleton import FitSequence, fit_map


def mixed_dag(n_nodes: int, make_edge) -> nn.ModuleList:
    """Node i reads states 0..i+1: ModuleList over nodes of ModuleLists over edges; make_edge(state index) -> MixedOp."""
    return nn.ModuleList(nn.ModuleList(make_edge(j) for j in range(2 + i)) for i in range(n_nodes))


class Choice(NamedTuple):
    """The operation of an edge: its number, and a factor of its output; None: a factor of 1 without gradient."""
    op: int
    share: Tensor | None = None


class Path(list):
    """One network within a supernet: for each node of a kind of cell, a Choice or None for every earlier state."""


def node_states(dag: nn.ModuleList, s0: Tensor, s1: Tensor, weights: list) -> list:
    """States of all nodes: s_i = sum_j sum_o weights[i][j, o] * op_o(s_j), over all states j before node i.

    This is equation 1 of DARTS (the sum over edges j), with the mixture of equation 2 on every edge (the sum over o).
    """
    if isinstance(weights, Path):
        return path_states(dag, s0, s1, weights)
    states = [s0, s1]
    for edges, w_node in zip(dag, weights, strict=True):
        states.append(sum(edge(s, w) for edge, s, w in zip(edges, states, w_node, strict=True)))
    return states[2:]


def path_states(dag: nn.ModuleList, s0: Tensor, s1: Tensor, path: Path) -> list:
    """States of all nodes: s_i = sum_j op_ij(s_j), over the states j that the path of node i reads."""
    states = [s0, s1]
    for edges, choices in zip(dag, path, strict=True):
        chosen = [(edge, s, choice) for edge, s, choice in zip(edges, states, choices, strict=True) if choice is not None]
        maps = [edge.one(s, choice) for edge, s, choice in chosen if not isinstance(edge._ops[choice.op], Zero)]
        if not maps:  # `none` everywhere; state 0 has the size of the inputs
            edge, s, choice = chosen[0]
            maps = [edge._ops[choice.op](s)]
        states.append(sum(maps[1:], maps[0]))
    return states[2:]


class SearchCell(nn.Module):
    """CNN cell: (N, C_pp, ., .), (N, C_p, F, T) -> (N, n_nodes * C, F, T), F and T halved where `reduction`.

    reduction, reduction_p: as in AugmentCell. partial_channels: K of PC-DARTS; 1 sends all channels through the operations.
    """

    def __init__(self, n_nodes: int, C_pp: int, C_p: int, C: int, reduction_p, reduction,
                 primitives=gt.PRIMITIVES, partial_channels: int = 1):
        super().__init__()
        if C % partial_channels:
            raise ValueError(f'partial_channels {partial_channels} must divide the width of every cell, but one is {C} wide')
        self.kind = 'reduce' if reduction else 'normal'
        self.C_out, self.partial_channels = n_nodes * C, partial_channels
        self.preproc0 = fit_map(C_pp, C, reduction_p, affine=False)
        self.preproc1 = fit_map(C_p, C, False, affine=False)

        def make_edge(j):
            stride = reduction if reduction and j < 2 else 1  # only the cell's inputs have the full size
            ops = [OPS[name](C // partial_channels, stride, affine=False) for name in primitives]
            return MixedOp(ops) if partial_channels == 1 else PartialMixedOp(ops, partial_channels, stride)
        self.dag = mixed_dag(n_nodes, make_edge)

    def forward(self, s0: Tensor, s1: Tensor, weights: list) -> Tensor:
        """weights: one (n_inputs, n_ops) tensor per node, after the softmax."""
        return torch.cat(node_states(self.dag, self.preproc0(s0), self.preproc1(s1), weights), dim=1)


class SearchSeqCell(nn.Module):
    """SeqNN cell: (N, T, H_pp), (N, T, H_p) -> (N, T, n_nodes * H)."""
    kind = 'rnn'

    def __init__(self, n_nodes: int, H_pp: int, H_p: int, H: int, primitives=gt.RNN_PRIMITIVES):
        super().__init__()
        self.C_out = n_nodes * H
        self.preproc0, self.preproc1 = FitSequence(H_pp, H, affine=False), FitSequence(H_p, H, affine=False)
        self.dag = mixed_dag(n_nodes, lambda j: MixedOp(RNN_OPS[name](H, affine=False) for name in primitives))

    def forward(self, s0: Tensor, s1: Tensor, weights: list) -> Tensor:
        """weights: one (n_inputs, n_ops) tensor per node, after the softmax."""
        return torch.cat(node_states(self.dag, self.preproc0(s0), self.preproc1(s1), weights), dim=-1)
