"""What supernet and discrete network share: stem, order and width of the cells, from maps to sequences, pooling, classifier."""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from models.heads import HEADS, N_HEADS, AttendedBands, masked_mean
from models.ops import StdConv, reduce_map
from models.sources import Network, one_row
from models.sync import BatchNorm2d

N_BANDS = 4  # frequency bands of a sequence: a map is averaged to this height first
VARIANCE_FLOOR = 1e-5  # added under the square root of the statistics pooling: a constant sequence has a finite gradient


def reduction_layers(n_layers: int) -> set:
    """Indices of the CNN cells that shrink maps and double the width, at one third and two thirds of the depth."""
    return {n_layers // 3, 2 * n_layers // 3}


def fit_map(C_in: int, C_out: int, reduction, affine: bool) -> nn.Module:
    """Brings a state to the width of a cell, and to its size if a reduction cell of this stride lies between."""
    return reduce_map(C_in, C_out, reduction, affine) if reduction else StdConv(C_in, C_out, affine)


class FitSequence(nn.Sequential):
    """(N, T, H_in) -> (N, T, H_out)"""

    def __init__(self, H_in: int, H_out: int, affine: bool):
        super().__init__(nn.Linear(H_in, H_out), nn.LayerNorm(H_out, elementwise_affine=affine))


def to_sequence(x: Tensor, n_steps: int, bands: int = N_BANDS) -> Tensor:
    """(N, C, F, T) -> (N, n_steps, C * bands): frequency is averaged into bands, which become part of the width."""
    x = F.adaptive_avg_pool2d(x, (bands, n_steps))  # (N, C, F, T) -> (N, C, B, T')
    return x.flatten(1, 2).transpose(1, 2)  # (N, C*B, T') -> (N, T', C*B)


def valid_steps(valid: Tensor, n_steps: int) -> Tensor:
    """(N, n_frames) bool, True where a frame is audio -> (N, n_steps, 1) bool, True where any frame of a step is."""
    return F.adaptive_max_pool1d(valid.float(), n_steps).unsqueeze(-1) > 0


def prosody_steps(prosody: Tensor, n_steps: int) -> Tensor:
    """(N, P, T) -> (N, n_steps, P)"""
    return F.adaptive_avg_pool1d(prosody, n_steps).transpose(1, 2)


def prosody_statistics(prosody: Tensor, valid: Tensor | None) -> Tensor:
    """Mean and standard deviation over the frames of audio: (N, P, T) -> (N, 2P)"""
    return statistics_pool(prosody.transpose(1, 2), None if valid is None else valid.unsqueeze(-1))


def statistics_pool(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean and standard deviation over time (statistics pooling, Snyder et al. 2018): (N, T, H) -> (N, 2H)

    mask: (N, T, 1) bool; steps where it is False take no part. None: all steps do.
    """
    mean = masked_mean(x, mask)
    var = x.var(dim=1, unbiased=False) if mask is None else masked_mean((x - mean.unsqueeze(1)).square(), mask)
    return torch.cat([mean, (var + VARIANCE_FLOOR).sqrt()], dim=-1)


def add_classifier(to: nn.Module, H: int, head: str, n_prosody: int, n_classes: int):
    """Gives a module what makes logits of a sequence (N, T, H): head, a place for the SpeakerNorm, linear layer."""
    to.speaker_norm = None  # see models/speaker_norm.py
    to.head = None if head == 'mean_std' else HEADS[head](H)
    to.linear = nn.Linear((H if to.head else 2 * H) + 2 * n_prosody, n_classes)


def classify(linear: nn.Module, x: Tensor) -> Tensor:
    """The logits linear(x), in float32 under autocast too.

    In bfloat16, of 7 normal ones with a deviation of 2, the two largest are equal in 3 of a thousand utterances.
    """
    if not torch.is_autocast_enabled(x.device.type):
        return linear(x)
    with torch.autocast(x.device.type, enabled=False):
        return linear(x.float())


class JointNetwork(Network):
    """Stem - CNN cells - sequences over time - SeqNN cells - statistics pooling - linear.

    make_cell(C_pp, C_p, C, reduction_p, reduction) and make_seq_cell(H_pp, H_p, H) build the cells. A cell has the attributes
    `kind` ('normal', 'reduce' or 'rnn') and `C_out`. reduction: False, or the stride of a reduction cell. With n_layers_rnn = 0
    the pooled output of the CNN goes to the classifier.
    strides: of the two reduction cells, 2 or a pair (along F, along T). bands: frequency bands of a sequence, or 'attended'.
    head: 'mean_std' (statistics pooling), or a name in models/heads.py. n_prosody: rows of prosody,
    P, which join the sequences that the first SeqNN cell reads; their mean and deviation over time join the pooled vector.
    n_sources: as in Network. Frames enter through a 1x1 convolution; their maps have one row, so that strides hold along T
    alone and a sequence has one band, whatever `bands` says.
    Raises ValueError on sizes that make no network.
    """

    pools_padding = False  # True: pooling ignores `valid`, as networks trained by the first version did

    def __init__(self, C_in, C, n_classes, n_layers, stem_multiplier, n_layers_rnn, C_rnn, dropout, make_cell, make_seq_cell,
                 strides=(2, 2), bands=N_BANDS, head='mean_std', n_prosody=0, n_sources=0):
        super().__init__(C_in, n_sources)
        sizes = dict(C_in=C_in, C=C, n_layers=n_layers, stem_multiplier=stem_multiplier, C_rnn=C_rnn)
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f'{name} must be 1 or more, not {size}')
        if n_layers_rnn < 0 or n_classes < 2 or not 0. <= dropout < 1.:
            raise ValueError(f'n_layers_rnn {n_layers_rnn} must be 0 or more, n_classes {n_classes} 2 or more, '
                             f'dropout {dropout} in [0, 1)')
        if n_layers_rnn and C_rnn < 2:
            raise ValueError('C_rnn 1: the layer norm of one channel is always 0; a SeqNN cell needs 2 or more')
        self.n_prosody = n_prosody
        C_cur = stem_multiplier * C
        if n_sources:
            strides, bands = [(1, stride if isinstance(stride, int) else stride[1]) for stride in strides], 1
        kernel = 1 if n_sources else 3
        self.stem = nn.Sequential(nn.Conv2d(C_in, C_cur, kernel, padding=kernel // 2, bias=False), BatchNorm2d(C_cur))
        C_pp, C_p, C_cur = C_cur, C_cur, C
        self.cells = nn.ModuleList()
        reductions = dict(zip(sorted(reduction_layers(n_layers)), strides))
        reduction_p = False
        for i in range(n_layers):
            reduction = reductions.get(i, False)
            C_cur *= 2 if reduction else 1
            self.cells.append(self._cell(make_cell, C_pp, C_p, C_cur, reduction_p, reduction))
            reduction_p, C_pp, C_p = reduction, C_p, self.cells[-1].C_out
        if n_sources:
            one_row(self.cells)
        self.dropout = nn.Dropout(dropout)
        self._add_sequences(C_pp, C_p, bands, n_layers_rnn, C_rnn, make_seq_cell, head, n_classes)
        self.shrink = [math.prod(stride if isinstance(stride, int) else stride[axis] for stride in reductions.values())
                       for axis in (0, 1)]  # by which F and T get smaller

    def _cell(self, make_cell, C_pp, C_p, C, reduction_p, reduction) -> nn.Module:
        return make_cell(C_pp, C_p, C, reduction_p, reduction)

    def _add_sequences(self, C_pp, C_p, bands, n_layers_rnn, C_rnn, make_seq_cell, head, n_classes):
        """Adds all that comes after the last CNN cells, which are C_pp and C_p wide."""
        self.bands = bands
        self.attend = nn.ModuleList(AttendedBands(C) for C in (C_pp, C_p)) if bands == 'attended' else None
        width = N_HEADS if self.attend else bands
        H_pp, H_p = width * C_pp, width * C_p
        if n_layers_rnn:
            H_pp, H_p = H_pp + self.n_prosody, H_p + self.n_prosody
        self.seq_cells = nn.ModuleList()
        for _ in range(n_layers_rnn):
            self.seq_cells.append(make_seq_cell(H_pp, H_p, C_rnn))
            H_pp, H_p = H_p, self.seq_cells[-1].C_out
        add_classifier(self, H_p, head, self.n_prosody, n_classes)

    def forward_cells(self, x: Tensor, weights: dict | None = None, tap: int | None = None, valid: Tensor | None = None,
                      prosody: Tensor | None = None, speaker: Tensor | None = None):
        """x (N, C_in, F, T), or (N, L, D, T) -> logits (N, n_classes), and the output of CNN cell number `tap`, or None.

        weights: {kind: one (n_inputs, n_ops) tensor per node} for cells of the supernet, and for models/decisions.py
        {'network': decisions}. valid: (N, T) bool, False where a
        frame is padding, which then takes no part in the pooling over time. prosody: (N, P, T). speaker: (N,) indices, for
        SpeakerNorm.
        """
        tapped = None
        s0 = s1 = self.stem(self.mixed(x))  # (N, C_in, F, T) -> (N, C, F, T)
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, self.dropout(self._run(cell, s0, s1, weights))
            if i == tap:
                tapped = s1
        n_steps = s1.shape[-1]
        bands, seq_cells, part = self._sequence_part(weights)
        if bands == 'attended':
            s0, s1 = (attend(s, n_steps) for attend, s in zip(self.attend, (s0, s1)))  # (N, C, F', T') -> (N, T', H)
        else:
            s0, s1 = to_sequence(s0, n_steps, bands), to_sequence(s1, n_steps, bands)
        if self.n_prosody and seq_cells:
            steps = prosody_steps(prosody, n_steps)
            s0, s1 = torch.cat([s0, steps], dim=-1), torch.cat([s1, steps], dim=-1)
        for cell in seq_cells:
            s0, s1 = s1, self.dropout(self._run(cell, s0, s1, weights))
        mask = None if valid is None or self.pools_padding else valid_steps(valid, n_steps)
        pooled = part.head(s1, mask) if part.head else statistics_pool(s1, mask)
        if self.n_prosody:
            pooled = torch.cat([pooled, prosody_statistics(prosody, valid)], dim=-1)
        return classify(part.linear, pooled if part.speaker_norm is None else part.speaker_norm(pooled, speaker)), tapped

    def _sequence_part(self, weights: dict | None) -> tuple:
        """Bands of a sequence, the SeqNN cells, and the module that has head, speaker_norm and linear."""
        return self.bands, self.seq_cells, self

    def check_batches(self, height: int, n_frames: int, sizes):
        """ValueError if a training batch of one of these sizes leaves batch norm a single value per channel."""
        if min(sizes) == 1 and height <= self.shrink[0] and n_frames <= self.shrink[1]:
            raise ValueError(f'batch norm needs more than one value per channel, but in a batch of one utterance a map of '
                             f'{height} x {n_frames} shrinks to one: raise --batch_size'
                             f'{"" if self.n_sources else ", --n_mels"} or --duration')

    def _run(self, cell, s0, s1, weights):
        return cell(s0, s1) if weights is None else cell(s0, s1, weights[cell.kind])
