"""Cells of the supernet: every node reads every state before it, each edge a mixture of all operations."""
import torch
import torch.nn as nn

import genotypes as gt
from models.network import Fit, FitSequence
from models.ops import OPS, MixedOp
from models.rnn_ops import RNN_OPS


def mixed_dag(n_nodes, make_op):
    """ModuleList over nodes of ModuleLists over incoming edges; make_op(state index) -> MixedOp."""
    return nn.ModuleList(nn.ModuleList(make_op(j) for j in range(2 + i)) for i in range(n_nodes))


def run_dag(dag, s0, s1, weights):
    """States of the nodes. weights: one (n_inputs, n_ops) tensor a node, softmax over operations already taken."""
    states = [s0, s1]
    for edges, w_edges in zip(dag, weights, strict=True):
        states.append(sum(edge(s, w) for edge, s, w in zip(edges, states, w_edges, strict=True)))
    return states[2:]


class SearchCell(nn.Module):
    """CNN cell: (N, C_pp, ., .), (N, C_p, F, T) -> (N, n_nodes * C, F, T), F and T halved where `reduction`."""

    def __init__(self, n_nodes, C_pp, C_p, C, reduction_p, reduction, primitives=gt.PRIMITIVES):
        super().__init__()
        self.kind = 'reduce' if reduction else 'normal'
        self.C_out = n_nodes * C
        self.preproc0, self.preproc1 = Fit(C_pp, C, reduction_p, affine=False), Fit(C_p, C, False, affine=False)

        def edge(j):
            stride = 2 if reduction and j < 2 else 1  # only the cell's inputs are still at full size
            return MixedOp(OPS[name](C, stride, affine=False) for name in primitives)
        self.dag = mixed_dag(n_nodes, edge)

    def forward(self, s0, s1, weights):
        return torch.cat(run_dag(self.dag, self.preproc0(s0), self.preproc1(s1), weights), dim=1)


class SearchSeqCell(nn.Module):
    """SeqNN cell: (N, T, H_pp), (N, T, H_p) -> (N, T, n_nodes * H)."""
    kind = 'rnn'

    def __init__(self, n_nodes, H_pp, H_p, H, primitives=gt.RNN_PRIMITIVES):
        super().__init__()
        self.C_out = n_nodes * H
        self.preproc0, self.preproc1 = FitSequence(H_pp, H, affine=False), FitSequence(H_p, H, affine=False)
        self.dag = mixed_dag(n_nodes, lambda j: MixedOp(RNN_OPS[name](H, affine=False) for name in primitives))

    def forward(self, s0, s1, weights):
        return torch.cat(run_dag(self.dag, self.preproc0(s0), self.preproc1(s1), weights), dim=-1)
