"""Decisions outside the cells as part of a supernet: strides, bands, number of SeqNN cells and head.

A pass computes the network of the decisions in weights['network'], {'reduce_1': 'time', 'bands': 8, ...}; without them that of
the settings. The output is that of the discrete network of these decisions. Where shapes depend on a choice, each choice has
weights of its own: a reduction cell for every stride; in the cell after it, an entrance (fit_map) for every stride; for every
number of bands, the entrances of the SeqNN cells that read maps; and for every head of every sequence that may be pooled, a
classifier with a SpeakerNorm of its own. Widths and the number of CNN cells are those of the settings.
"""
import torch.nn as nn
from torch import Tensor

import genotypes as gt
from models.heads import N_HEADS, AttendedBands
from models.skeleton import FitSequence, JointNetwork, add_classifier, fit_map


class Chosen(nn.ModuleDict):
    """A module for every choice of a decision: {'reduce_1': 'time', ...}, args -> the output of the module that is chosen."""

    def __init__(self, decision: str, choices, make):
        super().__init__({str(choice): make(choice) for choice in choices})
        self.decision = decision

    def forward(self, network: dict, *args) -> Tensor:
        return self[str(network[self.decision])](*args)


class DecidedCell(nn.Module):
    """A cell, or a Chosen among cells, and what replaces its preprocessing: for each of its two inputs a Chosen, or None."""

    def __init__(self, cell: nn.Module, fit0: Chosen | None = None, fit1: Chosen | None = None):
        super().__init__()
        self.cell, self.fit0, self.fit1 = cell, fit0, fit1
        for one in cell.values() if isinstance(cell, Chosen) else [cell]:
            self.kind, self.C_out = one.kind, one.C_out
            one.preproc0 = nn.Identity() if fit0 else one.preproc0
            one.preproc1 = nn.Identity() if fit1 else one.preproc1

    def forward(self, s0: Tensor, s1: Tensor, weights: list, network: dict) -> Tensor:
        s0 = self.fit0(network, s0) if self.fit0 else s0
        s1 = self.fit1(network, s1) if self.fit1 else s1
        return self.cell(network, s0, s1, weights) if isinstance(self.cell, Chosen) else self.cell(s0, s1, weights)


class Deciding(JointNetwork):
    """A JointNetwork with all choices of the decisions.

    choices: {decision: what it chooses from}. settings: the decisions of a pass that is given none.
    """

    def _cell(self, make_cell, C_pp, C_p, C, reduction_p, reduction):
        strides, fit = gt.FRAME_STRIDES if self.n_sources else gt.STRIDES, None
        place = sum(cell.kind == 'reduce' for cell in self.cells)
        if reduction_p:
            fit = Chosen(f'reduce_{place}', strides, lambda name: fit_map(C_pp, C, strides[name], affine=False))
        if not reduction:
            return DecidedCell(make_cell(C_pp, C_p, C, False, False), fit)
        return DecidedCell(Chosen(f'reduce_{place + 1}', strides, lambda name: make_cell(C_pp, C_p, C, False, strides[name])),
                           fit)

    def _add_sequences(self, C_pp, C_p, bands, n_layers_rnn, C_rnn, make_seq_cell, head, n_classes):
        strides = tuple(gt.FRAME_STRIDES if self.n_sources else gt.STRIDES)
        reduce = [f'reduce_{i + 1}' for i in range(sum(cell.kind == 'reduce' for cell in self.cells))]
        self.settings = {**dict.fromkeys(reduce, strides[0]), 'bands': bands, 'rnn_layers': n_layers_rnn, 'head': head}
        depths = sorted({*gt.NETWORK_CHOICES['rnn_layers'], n_layers_rnn}) if n_layers_rnn else [0]  # 0: a pure CNN
        self.choices = {**dict.fromkeys(reduce, strides), 'bands': (1,) if self.n_sources else gt.NETWORK_CHOICES['bands'],
                        'rnn_layers': tuple(depths), 'head': gt.NETWORK_CHOICES['head']}
        width = {bands: N_HEADS if bands == 'attended' else bands for bands in self.choices['bands']}
        self.attend = nn.ModuleList(AttendedBands(C) for C in (C_pp, C_p)) if 'attended' in width else None

        def entrance(C):
            return Chosen('bands', width, lambda bands: FitSequence(width[bands] * C + self.n_prosody, C_rnn, affine=False))
        self.seq_cells, H = nn.ModuleList(), 1
        for i in range(depths[-1]):
            fits = [entrance(C) for C in (C_pp, C_p)[i:]]  # of inputs that come from the CNN
            self.seq_cells.append(DecidedCell(make_seq_cell(H, H, C_rnn), *fits))
            H = self.seq_cells[-1].C_out
        pooled = {**{bands: n * C_p for bands, n in width.items()}, **({'rnn': H} if self.seq_cells else {})}
        self.classifiers = nn.ModuleDict()
        for source, H in pooled.items():
            for head in self.choices['head']:
                part = self.classifiers[f'{source}_{head}'] = nn.Module()
                add_classifier(part, H, head, self.n_prosody, n_classes)

    def decided(self, network: dict | None) -> dict:
        """These decisions, and those of the settings where one is missing. ValueError if there is no such choice."""
        found = self.settings | {name: value for name, value in (network or {}).items() if name in self.choices}
        if self.n_sources:
            found |= {'bands': 1, **{name: 'time' for name, value in found.items() if value == 'both'}}
        for name, value in found.items():
            if value not in self.choices[name]:
                raise ValueError(f'the supernet has no {name} {value}; it has {", ".join(map(str, self.choices[name]))}')
        return found

    def _network(self, weights):
        return weights['network'] or self.settings

    def _sequence_part(self, weights):
        network = self._network(weights)
        n, bands = network['rnn_layers'], network['bands']
        return bands, self.seq_cells[:n], self.classifiers[f'{"rnn" if n else bands}_{network["head"]}']

    def _run(self, cell, s0, s1, weights):
        return cell(s0, s1, weights[cell.kind], self._network(weights))
