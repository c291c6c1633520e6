"""Operations of the SeqNN cells: (N, T, H) -> (N, T, H), along time. No operation mixes utterances.

`RNN_OPS[name](H, affine)` makes one. A name gives the family, `att` for attention, and the number of stacked layers. Every
operation but the skip ends in a layer norm, so its output has the scale of a skip and only alpha decides between them. The norm
is not affine during search.
"""
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from models.derivatives import cudnn, second_derivatives
from models.ops import Zero

_FAMILIES = {'lstm': nn.LSTM, 'gru': nn.GRU, 'rnn': nn.RNN}


def run_rnn(rnn: nn.RNNBase, x: Tensor, state=None) -> Tensor:
    """The outputs of an nn.LSTM, nn.GRU or nn.RNN, (N, T, K) -> (N, T, n_directions * H), always computed in float32.

    Under autocast, of any dtype, PyTorch runs cuDNN's recurrences in float16, where small gradients vanish.
    state: initial state; zeros by default.
    """
    with torch.autocast(x.device.type, enabled=False), cudnn(enabled=not second_derivatives()):
        return rnn(at_least_float32(x), state)[0]


def both_directions(rnn: nn.RNNBase, x: Tensor, state=None, onto: Tensor | None = None) -> Tensor:
    """`run_rnn` of a bidirectional recurrence, whose directions are added, to `onto` if that is given: (N, T, H)."""
    forward, backward = run_rnn(rnn, x, state).chunk(2, dim=-1)  # (N, T, 2H) -> 2 x (N, T, H)
    return (forward if onto is None else onto + forward) + backward


def at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Recurrent(nn.Module):
    """Stacked layers of one direction - layer norm: the output at t depends on inputs up to t. depth: number of layers."""

    def __init__(self, H: int, affine: bool, family: str, depth: int):
        super().__init__()
        self.rnn = _FAMILIES[family](H, H, num_layers=depth, batch_first=True)
        self.norm = nn.LayerNorm(H, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(run_rnn(self.rnn, x))


class AttentiveRecurrent(nn.Module):
    """Stacked bidirectional layers - attention over time - layer norm. depth: number of layers.

    The sum of both directions is h, (N, T, H). Each step then adds what it attends to in the whole utterance:
    h + softmax(q(h) k(h)^T / sqrt(H)) h, the scaled dot product of Vaswani et al. 2017, section 3.2.1.
    """

    def __init__(self, H: int, affine: bool, family: str, depth: int):
        super().__init__()
        self.rnn = _FAMILIES[family](H, H, num_layers=depth, batch_first=True, bidirectional=True)
        self.query = nn.Linear(H, H)
        self.key = nn.Linear(H, H)
        self.norm = nn.LayerNorm(H, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        h = both_directions(self.rnn, x)
        scores = self.query(h) @ self.key(h).transpose(1, 2) / h.shape[-1] ** 0.5  # (N, T, T)
        return self.norm(h + torch.softmax(scores, dim=-1) @ h)


class Bidirectional(nn.Module):
    """The sum of both directions of one layer - layer norm."""

    def __init__(self, H: int, affine: bool, family: str):
        super().__init__()
        self.rnn = _FAMILIES[family](H, H, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(H, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(both_directions(self.rnn, x))


class ResidualRecurrent(Bidirectional):
    """Input + both directions of one layer - layer norm (the residual: Krasnoproshin & Vashkevich, ResLSTM-SA)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(both_directions(self.rnn, x, onto=x))


class GatedTimeConv(nn.Module):
    """Dilated convolutions along time with gates and residuals - layer norm (van den Oord et al. 2016, without causality).

    depth: layers of width 3, dilated by 1, 2, 4, ...; the output at t depends on 2 ** depth - 1 steps to either side.
    """

    def __init__(self, H: int, affine: bool, depth: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(H, 2 * H, 3, padding=2 ** i, dilation=2 ** i) for i in range(depth))
        self.norm = nn.LayerNorm(H, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(1, 2)  # (N, H, T)
        for conv in self.convs:
            y = y + F.glu(conv(y), dim=1)
        return self.norm(y.transpose(1, 2))


class SelfAttention(nn.Module):
    """norm(x + softmax(q(x) k(x)^T / sqrt(H)) v(x)), (Vaswani et al. 2017), without positions."""

    def __init__(self, H: int, affine: bool):
        super().__init__()
        self.maps = nn.Linear(H, 3 * H)
        self.norm = nn.LayerNorm(H, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.maps(x).chunk(3, dim=-1)
        scores = q @ k.transpose(1, 2) / x.shape[-1] ** .5  # (N, T, T)
        return self.norm(x + torch.softmax(scores, dim=-1) @ v)


RNN_OPS = {
    'none': lambda H, affine: Zero(),
    'skip_connect': lambda H, affine: nn.Identity(),
    **{f'{f}_{d}': partial(Recurrent, family=f, depth=d) for f in _FAMILIES for d in (1, 2, 3, 4)},
    **{f'{f}_att_{d}': partial(AttentiveRecurrent, family=f, depth=d) for f in _FAMILIES for d in (1, 2)},
    **{f'bi{f}': partial(Bidirectional, family=f) for f in ('lstm', 'gru')},
    **{f'res_bi{f}': partial(ResidualRecurrent, family=f) for f in ('lstm', 'gru')},
    **{f'gated_conv_{d}': partial(GatedTimeConv, depth=d) for d in (1, 3)},
    'self_attention': SelfAttention,
}
