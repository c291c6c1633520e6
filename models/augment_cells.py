"""Cells of the discrete network, built from a gene."""
import torch
import torch.nn as nn
from torch import Tensor

from models.ops import OPS, DropPath
from models.rnn_ops import RNN_OPS
from models.skeleton import FitSequence, fit_map


def to_dag(gene: list, make_op) -> nn.ModuleList:
    """ModuleList over nodes of ModuleLists over edges. make_op(name, state index) -> operation.

    Drop-path follows every operation except the identity.
    """
    dag = nn.ModuleList()
    for node in gene:
        edges = nn.ModuleList()
        for name, j in node:
            op = make_op(name, j)
            edge = op if isinstance(op, nn.Identity) else nn.Sequential(op, DropPath())
            edge.s_idx = j
            edges.append(edge)
        dag.append(edges)
    return dag


def run_dag(dag: nn.ModuleList, s0: Tensor, s1: Tensor, concat) -> list:
    """The states that `concat` names; a node sums the outputs of its edges."""
    states = [s0, s1]
    for edges in dag:
        states.append(sum(edge(states[edge.s_idx]) for edge in edges))
    return [states[i] for i in concat]


class AugmentCell(nn.Module):
    """CNN cell: (N, C_pp, ., .), (N, C_p, F, T) -> (N, len(concat) * C, F', T').

    reduction: the stride if this is a reduction cell: 2 halves F and T, (2, 1) and (1, 2) one of them; False otherwise.
    reduction_p: likewise for the cell before.
    """

    def __init__(self, genotype, C_pp: int, C_p: int, C: int, reduction_p, reduction):
        super().__init__()
        self.kind = 'reduce' if reduction else 'normal'
        gene, self.concat = getattr(genotype, self.kind), getattr(genotype, f'{self.kind}_concat')
        if not gene:
            raise ValueError(f'the genotype has no {self.kind} cell, which this number of layers needs: '
                             'retrain with as many layers as were searched')
        self.C_out = len(self.concat) * C
        self.preproc0 = fit_map(C_pp, C, reduction_p, affine=True)
        self.preproc1 = fit_map(C_p, C, False, affine=True)
        if reduction and min(self.concat) < 2:
            raise ValueError('reduce_concat names an input of the cell, whose size differs from that of the nodes')
        self.dag = to_dag(gene, lambda name, j: OPS[name](C, reduction if reduction and j < 2 else 1, affine=True))

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        return torch.cat(run_dag(self.dag, self.preproc0(s0), self.preproc1(s1), self.concat), dim=1)


class AugmentSeqCell(nn.Module):
    """SeqNN cell: (N, T, H_pp), (N, T, H_p) -> (N, T, len(concat) * H)."""
    kind = 'rnn'

    def __init__(self, genotype, H_pp: int, H_p: int, H: int):
        super().__init__()
        if not genotype.rnn:
            raise ValueError('the genotype has no SeqNN cell: retrain with --rnn_layers 0')
        self.concat = genotype.rnn_concat
        self.C_out = len(self.concat) * H
        self.preproc0, self.preproc1 = FitSequence(H_pp, H, affine=True), FitSequence(H_p, H, affine=True)
        self.dag = to_dag(genotype.rnn, lambda name, j: RNN_OPS[name](H, affine=True))

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        return torch.cat(run_dag(self.dag, self.preproc0(s0), self.preproc1(s1), self.concat), dim=-1)
