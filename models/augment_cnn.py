"""The discrete network that a genotype describes, to be trained from scratch."""
import torch.nn as nn

from models.augment_cells import AugmentCell, AugmentSeqCell
from models.ops import DropPath
from models.skeleton import JointNetwork
from models.sync import BatchNorm2d

C_AUX = 128  # channels of the auxiliary head


class AuxiliaryHead(nn.Sequential):
    """Classifier on a map inside the CNN, (N, C, F, T) -> (N, n_classes), any F and T; helps training only."""

    def __init__(self, C, n_classes):
        super().__init__(
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),  # (N, C, F, T) -> (N, C, 2, 2)
            nn.Conv2d(C, C_AUX, 1, bias=False), BatchNorm2d(C_AUX), nn.ReLU(),
            nn.Flatten(), nn.Linear(C_AUX * 4, n_classes))


class AugmentCNN(JointNetwork):
    """Discrete network, with pt.darts' arguments first.

    input_size: taken for pt.darts' sake and not used, since any F and T will do. auxiliary: with an auxiliary head in training.
    genotype: genotypes.Genotype. The others as in SearchCNNController. Raises ValueError where the genotype lacks a kind of
    cell that these layers need.
    """

    def __init__(self, input_size, C_in, C, n_classes, n_layers, auxiliary, genotype, stem_multiplier=3, n_layers_rnn=None,
                 C_rnn=32, dropout=0.):
        if n_layers_rnn is None:
            n_layers_rnn = 1 if genotype.rnn else 0

        def make_cell(C_pp, C_p, C, reduction_p, reduction):
            return AugmentCell(genotype, C_pp, C_p, C, reduction_p, reduction)

        def make_seq_cell(H_pp, H_p, H):
            return AugmentSeqCell(genotype, H_pp, H_p, H)

        super().__init__(C_in, C, n_classes, n_layers, stem_multiplier, n_layers_rnn, C_rnn, dropout, make_cell, make_seq_cell)
        self.aux_pos = 2 * n_layers // 3 if auxiliary else -1
        self.aux_head = AuxiliaryHead(self.cells[self.aux_pos].C_out, n_classes) if auxiliary else None

    def forward(self, x):
        """(N, C_in, F, T) -> logits (N, n_classes), auxiliary logits (None in eval mode or without the head)"""
        logits, tapped = self.forward_cells(x, tap=self.aux_pos)
        return logits, self.aux_head(tapped) if self.training and self.aux_head is not None else None

    def drop_path_prob(self, p):
        """Sets the probability of every drop-path, in [0, 1)."""
        for module in self.modules():
            if isinstance(module, DropPath):
                module.p = p
