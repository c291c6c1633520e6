"""The supernet, and the controller that owns the alphas."""
import torch
import torch.nn as nn
import torch.nn.functional as F

import genotypes as gt
from models.search_cells import SearchCell, SearchSeqCell
from models.skeleton import JointNetwork

ALPHA_INIT = 1e-3  # standard deviation: near uniform softmax weights at the start (DARTS, appendix A.1.1)


class SearchCNN(JointNetwork):
    """Supernet; knows nothing of alphas, gets softmax weights with each call."""

    def __init__(self, C_in, C, n_classes, n_layers, n_nodes=4, stem_multiplier=3, n_layers_rnn=1, n_nodes_rnn=2, C_rnn=32,
                 primitives=gt.PRIMITIVES, rnn_primitives=gt.RNN_PRIMITIVES, dropout=0., partial_channels=1):
        def make_cell(C_pp, C_p, C, reduction_p, reduction):
            return SearchCell(n_nodes, C_pp, C_p, C, reduction_p, reduction, primitives, partial_channels)

        def make_seq_cell(H_pp, H_p, H):
            return SearchSeqCell(n_nodes_rnn, H_pp, H_p, H, rnn_primitives)

        super().__init__(C_in, C, n_classes, n_layers, stem_multiplier, n_layers_rnn, C_rnn, dropout, make_cell, make_seq_cell)

    def forward(self, x, weights_normal, weights_reduce, weights_rnn=()):
        """x (N, C_in, F, T) -> logits (N, n_classes)"""
        weights = {'normal': weights_normal, 'reduce': weights_reduce, 'rnn': weights_rnn}
        return self.forward_cells(x, weights)[0]


class SearchCNNController(nn.Module):
    """Supernet with its alphas: what the Architect and the search loop work on.

    C: width of the first cell's nodes. n_layers, n_layers_rnn: CNN and SeqNN cells (0 SeqNN cells: a pure CNN). n_nodes,
    n_nodes_rnn: nodes in each. C_rnn: width of a SeqNN node. primitives, rnn_primitives: see genotypes.op_set.
    partial_channels: K > 1 sends 1/K of the channels of a CNN cell's states through the operations, and edges of CNN cells
    then have weights of their own, softmax(beta) over what enters a node (PC-DARTS, Xu et al. 2020).
    device_ids: taken for pt.darts' sake; one device at most. Raises ValueError on sizes or operations that make no network.
    """

    twice_differentiable = True  # on a GPU its recurrences are models.fast.recurrences's, not cuDNN's

    def __init__(self, C_in, C, n_classes, n_layers, criterion, n_nodes=4, stem_multiplier=3, n_layers_rnn=1, n_nodes_rnn=2,
                 C_rnn=32, primitives='paper', rnn_primitives='mixed', dropout=0., device_ids=None, partial_channels=1):
        super().__init__()
        if n_nodes < 1 or n_nodes_rnn < 1:
            raise ValueError(f'a cell needs 1 node or more, not n_nodes {n_nodes}, n_nodes_rnn {n_nodes_rnn}')
        if device_ids is not None and len(device_ids) > 1:
            raise ValueError(f'device_ids {device_ids}: the controller works on one device')
        if partial_channels < 1:
            raise ValueError(f'partial_channels {partial_channels} must be 1 or more')
        self.criterion = criterion
        self.n_nodes, self.n_nodes_rnn = n_nodes, n_nodes_rnn
        self.primitives, self.rnn_primitives = gt.op_set(primitives), gt.op_set(rnn_primitives, 'rnn')
        self.net = SearchCNN(C_in, C, n_classes, n_layers, n_nodes, stem_multiplier, n_layers_rnn, n_nodes_rnn, C_rnn,
                             self.primitives, self.rnn_primitives, dropout, partial_channels)
        self.alpha_normal = self._alpha(n_nodes, self.primitives)
        self.alpha_reduce = self._alpha(n_nodes, self.primitives)
        self.alpha_rnn = self._alpha(n_nodes_rnn if n_layers_rnn else 0, self.rnn_primitives)
        self.beta_normal, self.beta_reduce = (self._alpha(n_nodes if partial_channels > 1 else 0) for _ in range(2))

    @staticmethod
    def _alpha(n_nodes, primitives=None):
        """A row an edge with a number an operation; without primitives, a number an edge."""
        sizes = [(2 + i,) if primitives is None else (2 + i, len(primitives)) for i in range(n_nodes)]
        return nn.ParameterList(ALPHA_INIT * torch.randn(size) for size in sizes)

    def forward(self, x):
        """(N, C_in, F, T) -> logits (N, n_classes)"""
        return self.net(x, *(self.mixture(kind) for kind in ('normal', 'reduce', 'rnn')))

    def mixture(self, kind):
        """What the cells mix with: op_weights, times the edge's share in its node where edges have weights."""
        weights, shares = self.op_weights(kind), self.edge_weights(kind)
        return weights if shares is None else [w * share.unsqueeze(-1) for w, share in zip(weights, shares, strict=True)]

    def op_weights(self, kind):
        """Softmax weights of 'normal', 'reduce' or 'rnn' cells: one (n_inputs, n_ops) tensor a node."""
        return [F.softmax(alpha, dim=-1) for alpha in getattr(self, f'alpha_{kind}')]

    def edge_weights(self, kind):
        """Softmax weights of the edges that enter a node: one (n_inputs,) tensor a node; None where edges have none."""
        betas = getattr(self, f'beta_{kind}', ())
        return [F.softmax(beta, dim=-1) for beta in betas] if len(betas) else None

    def loss(self, X, y):
        return self.criterion(self(X), y)

    def kinds(self):
        """Kinds of cell that stand in this supernet, in order: a shallow one may lack normal cells or have no SeqNN."""
        present = {cell.kind for cell in (*self.net.cells, *self.net.seq_cells)}
        return [kind for kind in ('normal', 'reduce', 'rnn') if kind in present]

    def primitives_of(self, kind):
        return self.rnn_primitives if kind == 'rnn' else self.primitives

    def genotype(self):
        """The discrete architecture that the alphas name now. A kind of cell that never stood in the supernet stays empty."""
        fields = dict.fromkeys(gt.Genotype._fields, [])
        for kind in self.kinds():
            fields[kind] = gt.parse(getattr(self, f'alpha_{kind}'), k=2, primitives=self.primitives_of(kind),
                                    edge_weights=self.edge_weights(kind))
            fields[f'{kind}_concat'] = range(2, 2 + len(fields[kind]))
        return gt.Genotype(**fields)

    def weights(self):
        return self.net.parameters()

    def named_weights(self):
        return self.net.named_parameters()

    def alphas(self):
        return (alpha for _, alpha in self.named_alphas())

    def named_alphas(self):
        return ((name, p) for name, p in self.named_parameters() if name.startswith(('alpha_', 'beta_')))

    def print_alphas(self, logger):
        for kind in self.kinds():
            shares = self.edge_weights(kind)
            logger.info('# softmax(alpha), %s: %s%s', kind, ' '.join(self.primitives_of(kind)),
                        '' if shares is None else ' | softmax(beta)')
            for i, weights in enumerate(self.op_weights(kind)):
                for j, row in enumerate(weights.tolist()):
                    share = '' if shares is None else f' | {shares[i][j]:.3f}'
                    logger.info('  %d -> %d  %s%s', j, i + 2, ' '.join(f'{w:.3f}' for w in row), share)
