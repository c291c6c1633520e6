"""The supernet, and the controller that owns its alphas."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import genotypes as gt
from models.decisions import Deciding
from models.fast.cells import FastCell, FastSeqCell
from models.fast.depthwise import use_fast_depthwise
from models.search_cells import Choice, Path, SearchCell, SearchSeqCell
from models.skeleton import JointNetwork

NEVER = -1e4  # added to the alpha of an operation that an edge may not have: its softmax is 0
ALPHA_INIT = 1e-3  # standard deviation; softmax starts nearly uniform. The DARTS paper starts from zero (appendix A.1.1)


def parse(alpha, k: int = 2, primitives=gt.PRIMITIVES, edge_weights=None) -> list:
    """Discrete gene of one kind of cell: [[(operation, state), ...], ...], best edge first.

    alpha: one tensor per node, (n_inputs, n_ops), before the softmax. An edge is ranked by the largest softmax weight among its
    operations other than `none`; each node keeps its k best edges (DARTS, section 2.4). edge_weights: one tensor per node,
    (n_inputs,), by which the ranking is multiplied (PC-DARTS, section 3.2).
    """
    gene = []
    allowed = [i for i, name in enumerate(primitives) if name != gt.NONE]
    for edges, shares in zip(alpha, edge_weights or [None] * len(alpha), strict=True):
        if edges.shape[-1] != len(primitives):
            raise ValueError(f'alpha has {edges.shape[-1]} operations, but there are {len(primitives)} primitives')
        weights = F.softmax(edges.detach().double(), dim=-1)[:, allowed]  # (n_inputs, n_ops without none)
        best, op = weights.max(dim=-1)
        best = best if shares is None else best * shares.detach().double()
        order = torch.sort(best, descending=True, stable=True).indices[:k].tolist()
        gene.append([(primitives[allowed[op[edge]]], edge) for edge in order])
    return gene


class SearchCNN(JointNetwork):
    """The supernet. It knows nothing of alphas: each call passes softmax weights."""

    def __init__(self, C_in, C, n_classes, n_layers, n_nodes=4, stem_multiplier=3, n_layers_rnn=1, n_nodes_rnn=2, C_rnn=32,
                 primitives=gt.PRIMITIVES, rnn_primitives=gt.RNN_PRIMITIVES, dropout=0., partial_channels=1, fast=True,
                 n_prosody=0, n_sources=0):
        cell, seq_cell = (FastCell, FastSeqCell) if fast else (SearchCell, SearchSeqCell)

        def make_cell(C_pp, C_p, C, reduction_p, reduction):
            return cell(n_nodes, C_pp, C_p, C, reduction_p, reduction, primitives, partial_channels)

        def make_seq_cell(H_pp, H_p, H):
            return seq_cell(n_nodes_rnn, H_pp, H_p, H, rnn_primitives)

        super().__init__(C_in, C, n_classes, n_layers, stem_multiplier, n_layers_rnn, C_rnn, dropout, make_cell, make_seq_cell,
                         n_prosody=n_prosody, n_sources=n_sources)
        if fast:
            use_fast_depthwise(self, one_row=n_sources > 0)  # for a Path; mixtures call no convolution of a cell

    def forward(self, x: Tensor, weights_normal, weights_reduce, weights_rnn=(), valid: Tensor | None = None,
                prosody: Tensor | None = None, speaker: Tensor | None = None, network: dict | None = None) -> Tensor:
        """x (N, C_in, F, T), or (N, L, D, T) -> logits (N, n_classes). network: as in models/decisions.py."""
        weights = {'normal': weights_normal, 'reduce': weights_reduce, 'rnn': weights_rnn, 'network': network}
        return self.forward_cells(x, weights, None, valid, prosody, speaker)[0]


class DecidingCNN(Deciding, SearchCNN):
    """The supernet with the choices of decisions outside the cells."""


class SearchCNNController(nn.Module):
    """Supernet with its alphas: what the Architect and the search loop work on.

    C: width of a node in the first cell. n_layers, n_layers_rnn: number of CNN and SeqNN cells (0 SeqNN cells: a pure CNN).
    n_nodes, n_nodes_rnn: nodes per cell. C_rnn: width of a SeqNN node. primitives, rnn_primitives: see genotypes.op_set.
    partial_channels: with K > 1, 1/K of the channels of a CNN state pass the operations, and edges of CNN cells have weights of
    their own, softmax(beta) over the edges of a node (PC-DARTS, Xu et al. 2020).
    n_prosody: rows of prosody in the input. n_sources: as in models.sources.Network. order: of the operations in CNN cells, see
    genotypes.allowed. decisions: hold the choices of models/decisions.py too, for sampled paths.
    device_ids: accepted for compatibility with pt.darts; at most one device. fast: compute the cells as models/fast does;
    False: edge by edge, as models/search_cells.py does. Parameters and results are the same. Raises ValueError on sizes or
    operations that make no network.
    """

    twice_differentiable = True  # its recurrences do without cuDNN where the Architect differentiates twice

    def __init__(self, C_in: int, C: int, n_classes: int, n_layers: int, criterion: nn.Module, n_nodes: int = 4,
                 stem_multiplier: int = 3, n_layers_rnn: int = 1, n_nodes_rnn: int = 2, C_rnn: int = 32, primitives='paper',
                 rnn_primitives='mixed', dropout: float = 0., device_ids=None, partial_channels: int = 1, fast: bool = True,
                 n_prosody: int = 0, n_sources: int = 0, order: str = 'free', decisions: bool = False):
        super().__init__()
        if n_nodes < 1 or n_nodes_rnn < 1:
            raise ValueError(f'a cell needs 1 node or more, not n_nodes {n_nodes}, n_nodes_rnn {n_nodes_rnn}')
        if device_ids is not None and len(device_ids) > 1:
            raise ValueError(f'device_ids {device_ids}: the controller works on one device')
        if partial_channels < 1:
            raise ValueError(f'partial_channels {partial_channels} must be 1 or more')
        self.criterion, self.order = criterion, order
        self.n_nodes, self.n_nodes_rnn = n_nodes, n_nodes_rnn
        self.primitives, self.rnn_primitives = gt.op_set(primitives), gt.op_set(rnn_primitives, 'rnn')
        self.net = (DecidingCNN if decisions else SearchCNN)(
            C_in, C, n_classes, n_layers, n_nodes, stem_multiplier, n_layers_rnn, n_nodes_rnn, C_rnn, self.primitives,
            self.rnn_primitives, dropout, partial_channels, fast, n_prosody, n_sources)
        self.decisions = self.net.choices if decisions else {}  # {name: choices}
        self.alpha_normal = self._alpha(n_nodes, self.primitives)
        self.alpha_reduce = self._alpha(n_nodes, self.primitives)
        self.alpha_rnn = self._alpha(n_nodes_rnn if n_layers_rnn else 0, self.rnn_primitives)
        self.beta_normal, self.beta_reduce = (self._alpha(n_nodes if partial_channels > 1 else 0) for _ in range(2))
        banned = [[[NEVER * (not may) for may in gt.allowed(self.primitives, state, order)] for state in range(2 + i)]
                  for i in range(n_nodes)] if order != 'free' else []
        for i, table in enumerate(banned):
            self.register_buffer(f'banned_{i}', torch.tensor(table), persistent=False)  # (n_inputs, n_ops)
        # {kind: Path or function of the alphas that makes one, 'network': decisions}; models/sampled.py sets it.
        self.paths = None

    @staticmethod
    def _alpha(n_nodes, primitives=None):
        """One tensor per node: (n_inputs, n_ops), or (n_inputs,) without primitives."""
        sizes = [(2 + i,) if primitives is None else (2 + i, len(primitives)) for i in range(n_nodes)]
        return nn.ParameterList(ALPHA_INIT * torch.randn(size) for size in sizes)

    @property
    def pools_padding(self) -> bool:
        """Whether the pooling over time ignores `valid`, as networks trained by the first version did."""
        return self.net.pools_padding

    @pools_padding.setter
    def pools_padding(self, value: bool):
        self.net.pools_padding = value

    def forward(self, x: Tensor, valid: Tensor | None = None, prosody: Tensor | None = None,
                speaker: Tensor | None = None) -> Tensor:
        """x (N, C_in, F, T), or (N, L, D, T) -> logits (N, n_classes). Arguments as in datasets.dataset.Inputs."""
        weights = (self.cell_weights(kind) for kind in ('normal', 'reduce', 'rnn'))
        return self.net(x, *weights, valid, prosody, speaker, (self.paths or {}).get('network'))

    def cell_weights(self, kind: str) -> list:
        """The weights of a cell's operations: `op_weights`, times the edge's share in its node in PC-DARTS; or a Path."""
        if self.paths is not None:
            found = self.paths.get(kind, Path())
            return found(self.logits(kind)) if callable(found) else found
        weights, shares = self.op_weights(kind), self.edge_weights(kind)
        return weights if shares is None else [w * share.unsqueeze(-1) for w, share in zip(weights, shares, strict=True)]

    def logits(self, kind: str) -> list:
        """alpha of 'normal', 'reduce' or 'rnn' cells, and what the order of operations adds: see `op_weights`."""
        alphas = list(getattr(self, f'alpha_{kind}'))
        if kind == 'rnn' or not hasattr(self, 'banned_0'):
            return alphas
        return [alpha + getattr(self, f'banned_{i}') for i, alpha in enumerate(alphas)]

    def op_weights(self, kind: str) -> list:
        """softmax(alpha) of 'normal', 'reduce' or 'rnn' cells: one (n_inputs, n_ops) tensor per node."""
        return [F.softmax(alpha, dim=-1) for alpha in self.logits(kind)]

    def edge_weights(self, kind: str) -> list | None:
        """softmax(beta): one (n_inputs,) tensor per node; None if edges have no weights of their own."""
        betas = getattr(self, f'beta_{kind}', ())
        return [F.softmax(beta, dim=-1) for beta in betas] if len(betas) else None

    def loss(self, X, y: Tensor) -> Tensor:
        """X: datasets.dataset.Inputs, a tuple of its first fields, or x alone."""
        return self.criterion(self(*X) if isinstance(X, tuple | list) else self(X), y)

    def kinds(self) -> list:
        """Kinds of cell in this supernet: a shallow one has no normal cell, a pure CNN no SeqNN cell."""
        present = {cell.kind for cell in (*self.net.cells, *self.net.seq_cells)}
        return [kind for kind in ('normal', 'reduce', 'rnn') if kind in present]

    def primitives_of(self, kind: str) -> tuple:
        return self.rnn_primitives if kind == 'rnn' else self.primitives

    def genotype(self) -> gt.Genotype:
        """The discrete architecture of the current alphas. Kinds of cell that the supernet lacks stay empty."""
        fields = {name: [] for name in gt.Genotype._fields[:6]}
        for kind in self.kinds():
            fields[kind] = parse(self.logits(kind), k=2, primitives=self.primitives_of(kind),
                                 edge_weights=self.edge_weights(kind))
            fields[f'{kind}_concat'] = range(2, 2 + len(fields[kind]))
        return gt.Genotype(**fields)

    def path_of(self, genotype) -> dict:
        """`paths` of a discrete network within this supernet, whose sizes are not compared.

        ValueError if it is not one of its networks.
        """
        paths = {'network': self.net.decided(genotype.network)} if self.decisions else {}
        for kind in self.kinds():
            if kind == 'rnn' and self.decisions and not paths['network']['rnn_layers']:
                continue
            names, gene, alphas = self.primitives_of(kind), getattr(genotype, kind), getattr(self, f'alpha_{kind}')
            if len(gene) != len(alphas) or not {op for node in gene for op, _ in node} <= set(names):
                raise ValueError(f'a {kind} cell with other nodes or operations than the supernet')
            if set(getattr(genotype, f'{kind}_concat')) != set(range(2, 2 + len(gene))):
                raise ValueError(f'a {kind} cell whose output is not that of all its nodes')
            paths[kind] = Path([None] * len(alpha) for alpha in alphas)
            for node, edges in zip(gene, paths[kind]):
                for op, state in node:
                    number = names.index(op)
                    if edges[state] is not None:
                        raise ValueError(f'a {kind} cell with two edges from one state to one node')
                    if kind != 'rnn' and not gt.allowed(names, state, self.order)[number]:
                        raise ValueError(f'a {kind} cell in another order than the supernet, whose order is {self.order}')
                    edges[state] = Choice(number)
        return paths

    def weights(self):
        return self.net.parameters()

    def named_weights(self):
        return self.net.named_parameters()

    def alphas(self):
        return (alpha for _, alpha in self.named_alphas())

    def named_alphas(self):
        lists = ((name, module) for name, module in self.named_children() if name.startswith(('alpha_', 'beta_')))
        return (named for name, module in lists for named in module.named_parameters(prefix=name))

    def print_alphas(self, logger):
        for kind in self.kinds():
            shares = self.edge_weights(kind)
            logger.info('# softmax(alpha), %s: %s%s', kind, ' '.join(self.primitives_of(kind)),
                        '' if shares is None else ' | softmax(beta)')
            for i, weights in enumerate(self.op_weights(kind)):
                for j, row in enumerate(weights.tolist()):
                    share = '' if shares is None else f' | {shares[i][j]:.3f}'
                    logger.info('  %d -> %d  %s%s', j, i + 2, ' '.join(f'{w:.3f}' for w in row), share)
