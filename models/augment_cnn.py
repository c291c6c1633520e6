"""The discrete network of a genotype, which is trained from scratch."""
import torch.nn as nn
from torch import Tensor

import genotypes as gt
from models.augment_cells import AugmentCell, AugmentSeqCell
from models.fast.depthwise import use_fast_depthwise
from models.ops import DropPath
from models.skeleton import JointNetwork
from models.sync import BatchNorm2d

C_AUX = 128  # channels of the auxiliary head


class AuxiliaryHead(nn.Sequential):
    """Classifier on a map inside the CNN, for training only: (N, C, F, T) -> (N, n_classes), any F and T.

    rows: to which F is averaged; 1 for maps of one row.
    """

    def __init__(self, C: int, n_classes: int, rows: int = 2):
        super().__init__(
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((rows, 2)),  # (N, C, F, T) -> (N, C, rows, 2)
            nn.Conv2d(C, C_AUX, 1, bias=False), BatchNorm2d(C_AUX), nn.ReLU(),
            nn.Flatten(), nn.Linear(C_AUX * rows * 2, n_classes))


def arguments(network: dict | None) -> dict:
    """The decisions outside the cells, Genotype.network, as arguments of JointNetwork; those that are not made are left out."""
    names = {'C': 'C', 'layers': 'n_layers', 'rnn_layers': 'n_layers_rnn', 'C_rnn': 'C_rnn', 'bands': 'bands', 'head': 'head'}
    network = network or {}
    found = {argument: network[name] for name, argument in names.items() if name in network}
    if {'reduce_1', 'reduce_2'} & set(network):
        found['strides'] = [gt.STRIDES[network.get(name, 'both')] for name in ('reduce_1', 'reduce_2')]
    return found


class AugmentCNN(JointNetwork):
    """Discrete network.

    input_size: not used, any F and T will do; pt.darts has it first. auxiliary: add an auxiliary head for training.
    genotype: genotypes.Genotype. What it decides outside the cells replaces C, n_layers, n_layers_rnn and C_rnn. Other
    arguments as in SearchCNNController. fast: use the depthwise convolutions of models/fast, which compute the same numbers.
    Raises ValueError if the genotype lacks a kind of cell that these layers need.
    """

    def __init__(self, input_size, C_in: int, C: int, n_classes: int, n_layers: int, auxiliary: bool, genotype,
                 stem_multiplier: int = 3, n_layers_rnn: int | None = None, C_rnn: int = 32, dropout: float = 0.,
                 fast: bool = True, n_prosody: int = 0, n_sources: int = 0):
        if n_layers_rnn is None:
            n_layers_rnn = 1 if genotype.rnn else 0
        sizes = dict(C=C, n_layers=n_layers, n_layers_rnn=n_layers_rnn, C_rnn=C_rnn) | arguments(genotype.network)

        def make_cell(C_pp, C_p, C, reduction_p, reduction):
            return AugmentCell(genotype, C_pp, C_p, C, reduction_p, reduction)

        def make_seq_cell(H_pp, H_p, H):
            return AugmentSeqCell(genotype, H_pp, H_p, H)

        super().__init__(C_in=C_in, n_classes=n_classes, stem_multiplier=stem_multiplier, dropout=dropout, make_cell=make_cell,
                         make_seq_cell=make_seq_cell, n_prosody=n_prosody, n_sources=n_sources, **sizes)
        self.aux_pos = 2 * sizes['n_layers'] // 3 if auxiliary else -1
        self.aux_head = AuxiliaryHead(self.cells[self.aux_pos].C_out, n_classes, 1 if n_sources else 2) if auxiliary else None
        if fast:
            use_fast_depthwise(self, one_row=n_sources > 0)

    def forward(self, x: Tensor, valid: Tensor | None = None, prosody: Tensor | None = None, speaker: Tensor | None = None):
        """x (N, C_in, F, T), or (N, L, D, T) -> logits (N, n_classes), auxiliary logits.

        The latter are None in eval mode or without the head. Arguments as in datasets.dataset.Inputs.
        """
        logits, tapped = self.forward_cells(x, None, self.aux_pos, valid, prosody, speaker)
        return logits, self.aux_head(tapped) if self.training and self.aux_head is not None else None

    def drop_path_prob(self, p: float):
        """Sets the probability of every drop-path, in [0, 1)."""
        for module in self.modules():
            if isinstance(module, DropPath):
                module.p = p
