"""Operations of the SeqNN cells: (N, T, H) -> (N, T, H), along time; no operation mixes utterances.

`RNN_OPS[name](H, affine)` makes one. Names: family, attention or not, number of stacked layers. A recurrence ends in a layer
norm, so that its output has the scale of the skip beside it and alpha alone weighs them; not affine during search.
"""
from functools import partial

import torch
import torch.nn as nn

from models.ops import Zero

_FAMILIES = {'lstm': nn.LSTM, 'gru': nn.GRU, 'rnn': nn.RNN}


class Recurrent(nn.Module):
    """`depth` stacked one-directional layers: the output at t depends on inputs up to t."""

    def __init__(self, H, affine, family, depth):
        super().__init__()
        self.rnn = _FAMILIES[family](H, H, num_layers=depth, batch_first=True)
        self.norm = nn.LayerNorm(H, elementwise_affine=affine)

    def forward(self, x):
        return self.norm(self.rnn(x)[0])


class AttentiveRecurrent(nn.Module):
    """`depth` stacked bidirectional layers, then attention over time.

    The two directions are added, h (N, T, H); each step then adds what it attends to in the whole utterance:
    h + softmax(q(h) k(h)^T / sqrt(H)) h, scaled dot product as in Vaswani et al. 2017, section 3.2.1.
    """

    def __init__(self, H, affine, family, depth):
        super().__init__()
        self.rnn = _FAMILIES[family](H, H, num_layers=depth, batch_first=True, bidirectional=True)
        self.query = nn.Linear(H, H)
        self.key = nn.Linear(H, H)
        self.norm = nn.LayerNorm(H, elementwise_affine=affine)

    def forward(self, x):
        forth, back = self.rnn(x)[0].chunk(2, dim=-1)  # (N, T, 2H) -> 2 x (N, T, H)
        h = forth + back
        scores = self.query(h) @ self.key(h).transpose(1, 2) / h.shape[-1] ** 0.5  # (N, T, T)
        return self.norm(h + torch.softmax(scores, dim=-1) @ h)


RNN_OPS = {
    'none': lambda H, affine: Zero(),
    'skip_connect': lambda H, affine: nn.Identity(),
    **{f'{f}_{d}': partial(Recurrent, family=f, depth=d) for f in _FAMILIES for d in (1, 2, 3, 4)},
    **{f'{f}_att_{d}': partial(AttentiveRecurrent, family=f, depth=d) for f in _FAMILIES for d in (1, 2)},
}
