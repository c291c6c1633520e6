"""Hand-designed networks, (N, 1, F, T) -> logits, which are trained exactly as the network of a genotype is.

Five are those that the emoDARTS paper compares with (CNN, RNN, LSTM, CNN-LSTM, CNN-LSTM with attention), repaired: an utterance
is a sequence over time, not one vector; convolutions have more than one channel and a ReLU behind them; no softmax runs
over the batch; the loss is cross-entropy. `cnn_gru` is what a practitioner would write today.

Each name of config.BASELINES is a function at the end of this file: name(n_mels, n_frames, n_classes, width, dropout). Its
default width is its own; another width brings it near to a given number of parameters.
"""
import inspect
import sys

import torch
import torch.nn as nn
from torch import Tensor

import config
from models.rnn_ops import run_rnn
from models.skeleton import N_BANDS, masked_mean, to_sequence, valid_steps
from models.sync import BatchNorm2d

H_CLASSIFIER = 32  # hidden units before the logits, in the paper's five
UNITS_PER_CHANNEL = 8  # recurrent units for one channel of the convolution before them


class Baseline(nn.Module):
    """The interface of AugmentCNN."""

    pools_padding = False  # True: pooling ignores `valid`, as networks trained by the first version did

    def __init__(self):
        super().__init__()
        self.speaker_norm = None  # see models/speaker_norm.py
        self.dropout = nn.Identity()

    def forward(self, x: Tensor, valid: Tensor | None = None, prosody: Tensor | None = None, speaker: Tensor | None = None):
        """(N, 1, F, T) -> logits (N, n_classes), None: there is no auxiliary head. Arguments as in datasets.dataset.Inputs."""
        pooled = self.pooled(x, None if self.pools_padding else valid)
        pooled = pooled if self.speaker_norm is None else self.speaker_norm(pooled, speaker)
        return self.linear(self.dropout(pooled)), None

    def drop_path_prob(self, p: float):
        """Does nothing: there is no drop-path."""

    def check_batches(self, n_mels: int, n_frames: int, sizes):
        """Accepts every batch size."""


class ConvBlock(nn.Sequential):
    """The paper's: a 2 x 2 convolution of stride 2, then the maximum of 2 x 2: F and T shrink to a quarter."""

    def __init__(self, channels: int, dropout: float):
        super().__init__(nn.Conv2d(1, channels, 2, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
                         nn.Dropout(dropout))

    @staticmethod
    def size(n: int) -> int:
        """Frames or bands that remain of n."""
        return -(-(n // 2 + 1) // 2)


def classifier(H: int, n_classes: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(H, H_CLASSIFIER), nn.ReLU(), nn.Dropout(dropout), nn.Linear(H_CLASSIFIER, n_classes))


class ConvBaseline(Baseline):
    """width: channels. The classifier reads every position of the map, so that only windows of n_frames fit."""

    def __init__(self, n_mels, n_frames, n_classes, width, dropout):
        super().__init__()
        self.conv = ConvBlock(width, dropout)
        self.linear = classifier(width * ConvBlock.size(n_mels) * ConvBlock.size(n_frames), n_classes, dropout)

    def pooled(self, x, valid):
        return self.conv(x).flatten(1)


class RecurrentBaseline(Baseline):
    """One-directional layers over the mel bands, then the mean over time. width: hidden units."""

    def __init__(self, n_mels, n_classes, width, dropout, family, depth):
        super().__init__()
        self.rnn = family(n_mels, width, depth, batch_first=True)
        self.linear = classifier(width, n_classes, dropout)

    def pooled(self, x, valid):
        h = run_rnn(self.rnn, x.squeeze(1).transpose(1, 2))  # (N, 1, F, T) -> (N, T, F) -> (N, T, H)
        return mean_pool(h, valid)


class ConvLstmBaseline(Baseline):
    """Convolution, a bidirectional LSTM over time, mean or attention pooling. width: hidden units per direction."""

    def __init__(self, n_mels, n_classes, width, dropout, attention):
        super().__init__()
        channels = max(1, width // UNITS_PER_CHANNEL)
        self.conv = ConvBlock(channels, dropout)
        self.lstm = nn.LSTM(channels * ConvBlock.size(n_mels), width, batch_first=True, bidirectional=True)
        self.pool = AttentionPool(2 * width) if attention else None
        self.linear = classifier(2 * width, n_classes, dropout)

    def pooled(self, x, valid):
        x = self.conv(x)  # (N, 1, F, T) -> (N, C, F', T')
        h = run_rnn(self.lstm, x.flatten(1, 2).transpose(1, 2))  # (N, C*F', T') -> (N, T', C*F') -> (N, T', 2H)
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

    def __init__(self, n_classes, width, dropout):
        super().__init__()
        widths, blocks = (1, width, width * 3 // 2, 2 * width), []
        for C_in, C_out, stride in zip(widths, widths[1:], ((2, 1), (2, 2), (2, 2))):  # stride in F, T
            blocks += [nn.Conv2d(C_in, C_out, 3, padding=1, bias=False), BatchNorm2d(C_out), nn.ReLU(),
                       nn.MaxPool2d(stride, ceil_mode=True)]
        self.conv = nn.Sequential(*blocks)
        self.gru = nn.GRU(N_BANDS * widths[-1], 2 * width, batch_first=True, bidirectional=True)
        self.pool = AttentionPool(4 * width)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(4 * width, n_classes)

    def pooled(self, x, valid):
        x = self.conv(x)  # (N, 1, F, T) -> (N, C, F/8, T/4)
        h = run_rnn(self.gru, to_sequence(x, x.shape[-1]))  # (N, T', 4C) -> (N, T', 4 * width)
        return self.pool(h, valid)


# The functions that config.BASELINES names. Widths are the paper's numbers of hidden units or channels.

def cnn(n_mels, n_frames, n_classes, width=5, dropout=0.):
    return ConvBaseline(n_mels, n_frames, n_classes, width, dropout)


def rnn(n_mels, n_frames, n_classes, width=512, dropout=0.):
    return RecurrentBaseline(n_mels, n_classes, width, dropout, nn.RNN, depth=3)


def lstm(n_mels, n_frames, n_classes, width=512, dropout=0.):
    return RecurrentBaseline(n_mels, n_classes, width, dropout, nn.LSTM, depth=1)


def cnn_lstm(n_mels, n_frames, n_classes, width=128, dropout=0.):
    return ConvLstmBaseline(n_mels, n_classes, width, dropout, attention=False)


def cnn_lstm_att(n_mels, n_frames, n_classes, width=128, dropout=0.):
    return ConvLstmBaseline(n_mels, n_classes, width, dropout, attention=True)


def cnn_gru(n_mels, n_frames, n_classes, width=32, dropout=0.):
    return ConvGruBaseline(n_classes, width, dropout)


def make_baseline(name: str, n_mels: int, n_frames: int, n_classes: int, dropout: float, n_params: int = 0) -> Baseline:
    """A network of config.BASELINES, of its own width, or of the width that brings it nearest to n_params parameters."""
    if name not in config.BASELINES:
        raise ValueError(f'{name!r} is not one of {", ".join(config.BASELINES)}')
    network = getattr(sys.modules[__name__], name)
    width = inspect.signature(network).parameters['width'].default
    if n_params:
        width = nearest_width(lambda w: count_parameters(network, n_mels, n_frames, n_classes, w, dropout), n_params)
    return network(n_mels, n_frames, n_classes, width, dropout)


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
