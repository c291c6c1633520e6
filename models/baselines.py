"""Hand-designed networks, (N, 1, F, T) -> logits, which are trained exactly as the network of a genotype is.

Five are those that the emoDARTS paper compares with (CNN, RNN, LSTM, CNN-LSTM, CNN-LSTM with attention), repaired: an utterance
is a sequence over time, not one vector; convolutions have more than one channel and a ReLU behind them; no softmax runs
over the batch; the loss is cross-entropy. `cnn_gru` is what a practitioner would write today.

Each name of config.BASELINES is a function at the end of this file: name(n_mels, n_frames, n_classes, width, dropout, C_in,
n_prosody). Its default width is its own; another width brings it near to a given number of parameters. Prosody joins what a
recurrence reads, and its mean and deviation over time what the classifier reads.
"""
import inspect
import sys

import torch
import torch.nn as nn
from torch import Tensor

import config
from models.rnn_ops import run_rnn
from models.skeleton import N_BANDS, masked_mean, prosody_statistics, prosody_steps, to_sequence, valid_steps
from models.sync import BatchNorm2d

H_CLASSIFIER = 32  # hidden units before the logits, in the paper's five
UNITS_PER_CHANNEL = 8  # recurrent units for one channel of the convolution before them


class Baseline(nn.Module):
    """The interface of AugmentCNN. n_prosody: rows of prosody in the input."""

    pools_padding = False  # True: pooling ignores `valid`, as networks trained by the first version did

    def __init__(self, n_prosody: int):
        super().__init__()
        self.n_prosody = n_prosody
        self.speaker_norm = None  # see models/speaker_norm.py
        self.dropout = nn.Identity()

    def forward(self, x: Tensor, valid: Tensor | None = None, prosody: Tensor | None = None, speaker: Tensor | None = None):
        """(N, 1, F, T) -> logits (N, n_classes), None: there is no auxiliary head. Arguments as in datasets.dataset.Inputs."""
        valid = None if self.pools_padding else valid
        pooled = self.pooled(x, valid, prosody)
        if self.n_prosody:
            pooled = torch.cat([pooled, prosody_statistics(prosody, valid)], dim=-1)
        pooled = pooled if self.speaker_norm is None else self.speaker_norm(pooled, speaker)
        return self.linear(self.dropout(pooled)), None

    def with_prosody(self, x: Tensor, prosody: Tensor | None) -> Tensor:
        """A sequence (N, T, H), with the prosody of its steps beside it if the network reads prosody."""
        return torch.cat([x, prosody_steps(prosody, x.shape[1])], dim=-1) if self.n_prosody else x

    def drop_path_prob(self, p: float):
        """Does nothing: there is no drop-path."""

    def check_batches(self, n_mels: int, n_frames: int, sizes):
        """Accepts every batch size."""


class ConvBlock(nn.Sequential):
    """The paper's: a 2 x 2 convolution of stride 2, then the maximum of 2 x 2: F and T shrink to a quarter."""

    def __init__(self, C_in: int, channels: int, dropout: float):
        super().__init__(nn.Conv2d(C_in, channels, 2, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
                         nn.Dropout(dropout))

    @staticmethod
    def size(n: int) -> int:
        """Frames or bands that remain of n."""
        return -(-(n // 2 + 1) // 2)


def classifier(H: int, n_classes: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(H, H_CLASSIFIER), nn.ReLU(), nn.Dropout(dropout), nn.Linear(H_CLASSIFIER, n_classes))


class ConvBaseline(Baseline):
    """width: channels. The classifier reads every position of the map, so that only windows of n_frames fit."""

    def __init__(self, n_mels, n_frames, n_classes, width, dropout, C_in, n_prosody):
        super().__init__(n_prosody)
        self.conv = ConvBlock(C_in, width, dropout)
        places = ConvBlock.size(n_mels) * ConvBlock.size(n_frames)
        self.linear = classifier(width * places + 2 * n_prosody, n_classes, dropout)

    def pooled(self, x, valid, prosody):
        return self.conv(x).flatten(1)


class RecurrentBaseline(Baseline):
    """One-directional layers over the mel bands, then the mean over time. width: hidden units."""

    def __init__(self, n_mels, n_classes, width, dropout, C_in, n_prosody, family, depth):
        super().__init__(n_prosody)
        self.rnn = family(C_in * n_mels + n_prosody, width, depth, batch_first=True)
        self.linear = classifier(width + 2 * n_prosody, n_classes, dropout)

    def pooled(self, x, valid, prosody):
        x = x.flatten(1, 2).transpose(1, 2)  # (N, C_in, F, T) -> (N, T, C_in*F)
        h = run_rnn(self.rnn, self.with_prosody(x, prosody))  # (N, T, H)
        return mean_pool(h, valid)


class ConvLstmBaseline(Baseline):
    """Convolution, a bidirectional LSTM over time, mean or attention pooling. width: hidden units per direction."""

    def __init__(self, n_mels, n_classes, width, dropout, C_in, n_prosody, attention):
        super().__init__(n_prosody)
        channels = max(1, width // UNITS_PER_CHANNEL)
        self.conv = ConvBlock(C_in, channels, dropout)
        self.lstm = nn.LSTM(channels * ConvBlock.size(n_mels) + n_prosody, width, batch_first=True, bidirectional=True)
        self.pool = AttentionPool(2 * width) if attention else None
        self.linear = classifier(2 * (width + n_prosody), n_classes, dropout)

    def pooled(self, x, valid, prosody):
        x = self.conv(x).flatten(1, 2).transpose(1, 2)  # (N, C_in, F, T) -> (N, C, F', T') -> (N, T', C*F')
        h = run_rnn(self.lstm, self.with_prosody(x, prosody))  # (N, T', 2H)
        return mean_pool(h, valid) if self.pool is None else self.pool(h, valid)


def mean_pool(h: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over time without padding: (N, T, H) -> (N, H)"""
    return h.mean(dim=1) if valid is None else masked_mean(h, valid_steps(valid, h.shape[1]))


class AttentionPool(nn.Module):
    """Mean over time with learned weights, the softmax over T of a two-layer score: (N, T, H) -> (N, H).

    Padding has weight 0.
    """

    def __init__(self, H: int):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(H, max(1, H // 4)), nn.Tanh(), nn.Linear(max(1, H // 4), 1))

    def forward(self, h: Tensor, valid: Tensor | None = None) -> Tensor:
        scores = self.score(h)  # (N, T, 1)
        if valid is not None:
            scores = scores.masked_fill(~valid_steps(valid, h.shape[1]), -torch.inf)
        return (torch.softmax(scores, dim=1) * h).sum(dim=1)


class ConvGruBaseline(Baseline):
    """Three blocks of 3 x 3 convolution, batch norm, ReLU and maximum; a bidirectional GRU; attention pooling.

    width: channels of the first block; the GRU has twice as many units per direction.
    """

    def __init__(self, n_classes, width, dropout, C_in, n_prosody):
        super().__init__(n_prosody)
        widths, blocks = (C_in, width, width * 3 // 2, 2 * width), []
        for C_in, C_out, stride in zip(widths, widths[1:], ((2, 1), (2, 2), (2, 2))):  # stride in F, T
            blocks += [nn.Conv2d(C_in, C_out, 3, padding=1, bias=False), BatchNorm2d(C_out), nn.ReLU(),
                       nn.MaxPool2d(stride, ceil_mode=True)]
        self.conv = nn.Sequential(*blocks)
        self.gru = nn.GRU(N_BANDS * widths[-1] + n_prosody, 2 * width, batch_first=True, bidirectional=True)
        self.pool = AttentionPool(4 * width)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(4 * width + 2 * n_prosody, n_classes)

    def pooled(self, x, valid, prosody):
        x = self.conv(x)  # (N, 1, F, T) -> (N, C, F/8, T/4)
        x = to_sequence(x, x.shape[-1])  # (N, T', 4C)
        h = run_rnn(self.gru, self.with_prosody(x, prosody))  # (N, T', 4 * width)
        return self.pool(h, valid)


# The functions that config.BASELINES names. Widths are the paper's numbers of hidden units or channels.

def cnn(n_mels, n_frames, n_classes, width=5, dropout=0., C_in=1, n_prosody=0):
    return ConvBaseline(n_mels, n_frames, n_classes, width, dropout, C_in, n_prosody)


def rnn(n_mels, n_frames, n_classes, width=512, dropout=0., C_in=1, n_prosody=0):
    return RecurrentBaseline(n_mels, n_classes, width, dropout, C_in, n_prosody, nn.RNN, depth=3)


def lstm(n_mels, n_frames, n_classes, width=512, dropout=0., C_in=1, n_prosody=0):
    return RecurrentBaseline(n_mels, n_classes, width, dropout, C_in, n_prosody, nn.LSTM, depth=1)


def cnn_lstm(n_mels, n_frames, n_classes, width=128, dropout=0., C_in=1, n_prosody=0):
    return ConvLstmBaseline(n_mels, n_classes, width, dropout, C_in, n_prosody, attention=False)


def cnn_lstm_att(n_mels, n_frames, n_classes, width=128, dropout=0., C_in=1, n_prosody=0):
    return ConvLstmBaseline(n_mels, n_classes, width, dropout, C_in, n_prosody, attention=True)


def cnn_gru(n_mels, n_frames, n_classes, width=32, dropout=0., C_in=1, n_prosody=0):
    return ConvGruBaseline(n_classes, width, dropout, C_in, n_prosody)


def make_baseline(name: str, n_mels: int, n_frames: int, n_classes: int, dropout: float, n_params: int = 0, C_in: int = 1,
                  n_prosody: int = 0) -> Baseline:
    """A network of config.BASELINES, of its own width, or of the width that brings it nearest to n_params parameters."""
    if name not in config.BASELINES:
        raise ValueError(f'{name!r} is not one of {", ".join(config.BASELINES)}')
    network = getattr(sys.modules[__name__], name)
    width = inspect.signature(network).parameters['width'].default
    if n_params:
        width = nearest_width(lambda w: count_parameters(network, n_mels, n_frames, n_classes, w, dropout, C_in, n_prosody),
                              n_params)
    return network(n_mels, n_frames, n_classes, width, dropout, C_in, n_prosody)


def count_parameters(network, *sizes) -> int:
    """Number of parameters of network(*sizes), without making them."""
    with torch.device('meta'):
        return sum(p.numel() for p in network(*sizes).parameters())


def nearest_width(count, n_params: int) -> int:
    """The width, 1 or more, for which count(width) is nearest to n_params. count must grow with the width."""
    high = 1
    while count(high) < n_params:
        high *= 2
    low = high // 2  # count(low) < n_params <= count(high), unless high is 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < n_params else (low, middle)
    return min([w for w in (low, high) if w], key=lambda w: abs(count(w) - n_params))
