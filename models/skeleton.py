"""What supernet and discrete network share: stem, order and widths of the cells, the way from maps to sequences, classifier."""
import torch
import torch.nn as nn
import torch.nn.functional as F

from models.ops import FactorizedReduce, StdConv
from models.sync import BatchNorm2d

N_BANDS = 4  # frequency bands a map is pooled into before it is read as a sequence
VARIANCE_FLOOR = 1e-5  # under the root of the statistics pooling: a constant sequence has a gradient


def reduction_layers(n_layers):
    """Indices of the CNN cells that halve F and T and double the width: one third and two thirds of the depth."""
    return {n_layers // 3, 2 * n_layers // 3}


def Fit(C_in, C_out, halve, affine):
    """Brings an earlier state to a cell's width, and to its size where the cell between was a reduction."""
    return FactorizedReduce(C_in, C_out, affine) if halve else StdConv(C_in, C_out, affine)


class FitSequence(nn.Sequential):
    """(N, T, H_in) -> (N, T, H_out)"""

    def __init__(self, H_in, H_out, affine):
        super().__init__(nn.Linear(H_in, H_out), nn.LayerNorm(H_out, elementwise_affine=affine))


def to_sequence(x, n_steps):
    """(N, C, F, T) -> (N, n_steps, C * N_BANDS): frequency averaged into bands and folded into the width, time kept."""
    x = F.adaptive_avg_pool2d(x, (N_BANDS, n_steps))  # (N, C, F, T) -> (N, C, B, T')
    return x.flatten(1, 2).transpose(1, 2)  # (N, C*B, T') -> (N, T', C*B)


def statistics_pool(x):
    """Mean and standard deviation over time, (N, T, H) -> (N, 2H): statistics pooling (Snyder et al. 2018)."""
    var = x.var(dim=1, unbiased=False)
    return torch.cat([x.mean(dim=1), (var + VARIANCE_FLOOR).sqrt()], dim=-1)


class JointNetwork(nn.Module):
    """Stem -> CNN cells -> sequences over time -> SeqNN cells -> statistics pooling -> linear.

    make_cell(C_pp, C_p, C, reduction_p, reduction) and make_seq_cell(H_pp, H_p, H) build the cells; a cell carries `kind`
    ('normal', 'reduce' or 'rnn') and `C_out`. With n_layers_rnn = 0 the pooled CNN output goes to the classifier.
    Raises ValueError on a size that makes no network.
    """

    def __init__(self, C_in, C, n_classes, n_layers, stem_multiplier, n_layers_rnn, C_rnn, dropout, make_cell, make_seq_cell):
        super().__init__()
        sizes = dict(C_in=C_in, C=C, n_layers=n_layers, stem_multiplier=stem_multiplier, C_rnn=C_rnn)
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f'{name} must be 1 or more, not {size}')
        if n_layers_rnn < 0 or n_classes < 2 or not 0. <= dropout < 1.:
            raise ValueError(f'n_layers_rnn {n_layers_rnn} must be 0 or more, n_classes {n_classes} 2 or more, '
                             f'dropout {dropout} in [0, 1)')
        if n_layers_rnn and C_rnn < 2:
            raise ValueError('C_rnn 1: the layer norm of one channel is always 0; a SeqNN cell needs 2 or more')
        self.C_in = C_in
        C_cur = stem_multiplier * C
        self.stem = nn.Sequential(nn.Conv2d(C_in, C_cur, 3, padding=1, bias=False), BatchNorm2d(C_cur))
        C_pp, C_p, C_cur = C_cur, C_cur, C
        self.cells = nn.ModuleList()
        reduction_p = False
        for i in range(n_layers):
            reduction = i in reduction_layers(n_layers)
            C_cur *= 2 if reduction else 1
            self.cells.append(make_cell(C_pp, C_p, C_cur, reduction_p, reduction))
            reduction_p, C_pp, C_p = reduction, C_p, self.cells[-1].C_out
        H_pp, H_p = N_BANDS * C_pp, N_BANDS * C_p
        self.seq_cells = nn.ModuleList()
        for _ in range(n_layers_rnn):
            self.seq_cells.append(make_seq_cell(H_pp, H_p, C_rnn))
            H_pp, H_p = H_p, self.seq_cells[-1].C_out
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * H_p, n_classes)

    def forward_cells(self, x, weights=None, tap=None):
        """x (N, C_in, F, T) -> logits (N, n_classes), and the output of CNN cell number `tap` (None without one).

        weights: {kind: one (n_inputs, n_ops) tensor a node} for cells of the supernet.
        """
        if x.ndim != 4 or x.shape[1] != self.C_in:
            raise ValueError(f'expected (N, {self.C_in}, F, T), got {tuple(x.shape)}')
        tapped = None
        s0 = s1 = self.stem(x)  # (N, C_in, F, T) -> (N, C, F, T)
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, self.dropout(self._run(cell, s0, s1, weights))
            if i == tap:
                tapped = s1
        n_steps = s1.shape[-1]
        s0, s1 = to_sequence(s0, n_steps), to_sequence(s1, n_steps)  # (N, C, F', T') -> (N, T', H)
        for cell in self.seq_cells:
            s0, s1 = s1, self.dropout(self._run(cell, s0, s1, weights))
        return self.linear(statistics_pool(s1)), tapped

    def check_batches(self, n_mels, n_frames, sizes):
        """ValueError where a training batch among `sizes` leaves batch norm one value a channel, which has no variance."""
        shrink = 2 ** sum(cell.kind == 'reduce' for cell in self.cells)
        if min(sizes) == 1 and n_mels <= shrink and n_frames <= shrink:
            raise ValueError(f'a batch of one utterance, whose {n_mels} x {n_frames} map shrinks to one value, cannot be '
                             'normalised: take a larger --batch_size, more --n_mels or a longer --duration')

    @staticmethod
    def _run(cell, s0, s1, weights):
        return cell(s0, s1) if weights is None else cell(s0, s1, weights[cell.kind])
