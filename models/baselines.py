"""Hand-designed networks, (N, C_in, F, T) or (N, L, D, T) -> logits, which are trained exactly as the network of a genotype is.

Five are those that the emoDARTS paper compares with (CNN, RNN, LSTM, CNN-LSTM, CNN-LSTM with attention), repaired: an utterance
is a sequence over time, not one vector; convolutions have more than one channel and a ReLU behind them; no softmax runs
over the batch; the loss is cross-entropy. `cnn_gru` is what a practitioner would write today.

Each name of config.BASELINES is a function at the end of this file: name(height, n_frames, n_classes, width, dropout, C_in,
n_prosody, n_sources). Its default width is its own; another width brings it near to a given number of parameters. Prosody
joins what a recurrence reads, and its mean and deviation over time what the classifier reads.

The networks of config.SSL are heads for frames of a speech encoder, those that a search must beat. SUPERB's head for emotion
(Yang et al. 2021; s3prl) mixes the layers, projects each frame to 256 channels, takes the mean over time, and has one linear
layer to the classes. `ssl_mlp` is that with a hidden layer of 256 and ReLU before the classes, `ssl_linear` that without the
projection. `ssl_att` is `ssl_mlp` with attention in place of the mean.
"""
import inspect
import sys

import torch
import torch.nn as nn
from torch import Tensor

import config
from models.heads import masked_mean
from models.rnn_ops import run_rnn
from models.skeleton import N_BANDS, classify, prosody_statistics, prosody_steps, to_sequence, valid_steps
from models.sources import Network, one_row
from models.sync import BatchNorm2d

H_CLASSIFIER = 32  # hidden units before the logits, in the paper's five
UNITS_PER_CHANNEL = 8  # recurrent units for one channel of the convolution before them


class Baseline(Network):
    """The interface of AugmentCNN. n_prosody: rows of prosody in the input. C_in, n_sources: as in Network."""

    pools_padding = False  # True: pooling ignores `valid`, as networks trained by the first version did

    def __init__(self, C_in: int, n_prosody: int, n_sources: int):
        super().__init__(C_in, n_sources)
        self.n_prosody = n_prosody
        self.speaker_norm = None  # see models/speaker_norm.py
        self.dropout = nn.Identity()

    def forward(self, x: Tensor, valid: Tensor | None = None, prosody: Tensor | None = None, speaker: Tensor | None = None):
        """(N, C_in, F, T), or (N, L, D, T) -> logits (N, n_classes), None: there is no auxiliary head.

        Arguments as in datasets.dataset.Inputs.
        """
        valid = None if self.pools_padding else valid
        pooled = self.pooled(self.mixed(x), valid, prosody)
        if self.n_prosody:
            pooled = torch.cat([pooled, prosody_statistics(prosody, valid)], dim=-1)
        pooled = pooled if self.speaker_norm is None else self.speaker_norm(pooled, speaker)
        return classify(self.linear, self.dropout(pooled)), None

    def with_prosody(self, x: Tensor, prosody: Tensor | None) -> Tensor:
        """A sequence (N, T, H), with the prosody of its steps beside it if the network reads prosody."""
        return torch.cat([x, prosody_steps(prosody, x.shape[1])], dim=-1) if self.n_prosody else x

    def drop_path_prob(self, p: float):
        """Does nothing: there is no drop-path."""

    def check_batches(self, height: int, n_frames: int, sizes):
        """ValueError if a training batch of one of these sizes leaves batch norm a single value per channel."""


class ConvBlock(nn.Sequential):
    """The paper's: a 2 x 2 convolution of stride 2, then the maximum of 2 x 2: F and T shrink to a quarter."""

    def __init__(self, C_in: int, channels: int, dropout: float, n_sources: int):
        super().__init__(nn.Conv2d(C_in, channels, 2, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
                         nn.Dropout(dropout))
        if n_sources:
            one_row(self)

    @staticmethod
    def size(n: int) -> int:
        """Frames or bands that remain of n."""
        return -(-(n // 2 + 1) // 2)


def classifier(H: int, n_classes: int, dropout: float, hidden: int = H_CLASSIFIER) -> nn.Module:
    return nn.Sequential(nn.Linear(H, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, n_classes))


class ConvBaseline(Baseline):
    """width: channels. The classifier reads every position of the map, so that only windows of n_frames fit."""

    def __init__(self, height, n_frames, n_classes, width, dropout, C_in, n_prosody, n_sources):
        super().__init__(C_in, n_prosody, n_sources)
        self.conv = ConvBlock(C_in, width, dropout, n_sources)
        places = ConvBlock.size(height) * ConvBlock.size(n_frames)
        self.linear = classifier(width * places + 2 * n_prosody, n_classes, dropout)

    def pooled(self, x, valid, prosody):
        return self.conv(x).flatten(1)


class RecurrentBaseline(Baseline):
    """One-directional layers over the mel bands or channels, then the mean over time. width: hidden units."""

    def __init__(self, height, n_classes, width, dropout, C_in, n_prosody, n_sources, family, depth):
        super().__init__(C_in, n_prosody, n_sources)
        self.rnn = family(C_in * height + n_prosody, width, depth, batch_first=True)
        self.linear = classifier(width + 2 * n_prosody, n_classes, dropout)

    def pooled(self, x, valid, prosody):
        x = x.flatten(1, 2).transpose(1, 2)  # (N, C_in, F, T) -> (N, T, C_in*F)
        h = run_rnn(self.rnn, self.with_prosody(x, prosody))  # (N, T, H)
        return mean_pool(h, valid)


class ConvLstmBaseline(Baseline):
    """Convolution, a bidirectional LSTM over time, mean or attention pooling. width: hidden units per direction."""

    def __init__(self, height, n_classes, width, dropout, C_in, n_prosody, n_sources, attention):
        super().__init__(C_in, n_prosody, n_sources)
        channels = max(1, width // UNITS_PER_CHANNEL)
        self.conv = ConvBlock(C_in, channels, dropout, n_sources)
        self.lstm = nn.LSTM(channels * ConvBlock.size(height) + n_prosody, width, batch_first=True, bidirectional=True)
        self.pool = AttentionPool(2 * width) if attention else None
        self.linear = classifier(2 * (width + n_prosody), n_classes, dropout)

    def pooled(self, x, valid, prosody):
        x = self.conv(x).flatten(1, 2).transpose(1, 2)  # (N, C_in, F, T) -> (N, C, F', T') -> (N, T', C*F')
        h = run_rnn(self.lstm, self.with_prosody(x, prosody))  # (N, T', 2H)
        return mean_pool(h, valid) if self.pool is None else self.pool(h, valid)


def mean_pool(h: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over time without padding: (N, T, H) -> (N, H)"""
    return masked_mean(h, None if valid is None else valid_steps(valid, h.shape[1]))


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

    def __init__(self, n_classes, width, dropout, C_in, n_prosody, n_sources):
        super().__init__(C_in, n_prosody, n_sources)
        widths, blocks = (C_in, width, width * 3 // 2, 2 * width), []
        for C_in, C_out, stride in zip(widths, widths[1:], ((2, 1), (2, 2), (2, 2))):  # stride in F, T
            blocks += [nn.Conv2d(C_in, C_out, 3, padding=1, bias=False), BatchNorm2d(C_out), nn.ReLU(),
                       nn.MaxPool2d(stride, ceil_mode=True)]
        self.conv, self.bands = nn.Sequential(*blocks), 1 if n_sources else N_BANDS
        if n_sources:
            one_row(self.conv)
        self.gru = nn.GRU(self.bands * widths[-1] + n_prosody, 2 * width, batch_first=True, bidirectional=True)
        self.pool = AttentionPool(4 * width)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(4 * width + 2 * n_prosody, n_classes)

    def check_batches(self, height, n_frames, sizes):
        if min(sizes) == 1 and height <= 4 and n_frames <= 2:  # at the last batch norm
            raise ValueError('batch norm needs more than one value per channel: raise --batch_size or --duration')

    def pooled(self, x, valid, prosody):
        x = self.conv(x)  # (N, C_in, F, T) -> (N, C, F/8, T/4)
        x = to_sequence(x, x.shape[-1], self.bands)  # (N, T', 4C), or (N, T', C) of frames
        h = run_rnn(self.gru, self.with_prosody(x, prosody))  # (N, T', 4 * width)
        return self.pool(h, valid)


class FramesBaseline(Baseline):
    """A projection of every frame, mean or attention pooling, a perceptron with one hidden layer; all `width` wide.

    width 0: the mean over time and one linear layer. Frames have no prosody.
    """

    def __init__(self, n_classes, width, dropout, C_in, n_prosody, n_sources, attention=False):
        if not n_sources:
            raise ValueError('a head for frames of a speech encoder reads no spectrogram')
        super().__init__(C_in, n_prosody, n_sources)
        self.project = nn.Linear(C_in, width) if width else nn.Identity()
        self.pool = AttentionPool(width) if attention else None
        self.dropout = nn.Dropout(dropout)
        self.linear = classifier(width, n_classes, dropout, width) if width else nn.Linear(C_in, n_classes)

    def pooled(self, x, valid, prosody):
        h = self.project(x.squeeze(2).transpose(1, 2))  # (N, D, 1, T) -> (N, T, H)
        return mean_pool(h, valid) if self.pool is None else self.pool(h, valid)


# The functions that config.BASELINES names. Widths are the paper's numbers of hidden units or channels, and SUPERB's.

def cnn(height, n_frames, n_classes, width=5, dropout=0., C_in=1, n_prosody=0, n_sources=0):
    return ConvBaseline(height, n_frames, n_classes, width, dropout, C_in, n_prosody, n_sources)


def rnn(height, n_frames, n_classes, width=512, dropout=0., C_in=1, n_prosody=0, n_sources=0):
    return RecurrentBaseline(height, n_classes, width, dropout, C_in, n_prosody, n_sources, nn.RNN, depth=3)


def lstm(height, n_frames, n_classes, width=512, dropout=0., C_in=1, n_prosody=0, n_sources=0):
    return RecurrentBaseline(height, n_classes, width, dropout, C_in, n_prosody, n_sources, nn.LSTM, depth=1)


def cnn_lstm(height, n_frames, n_classes, width=128, dropout=0., C_in=1, n_prosody=0, n_sources=0):
    return ConvLstmBaseline(height, n_classes, width, dropout, C_in, n_prosody, n_sources, attention=False)


def cnn_lstm_att(height, n_frames, n_classes, width=128, dropout=0., C_in=1, n_prosody=0, n_sources=0):
    return ConvLstmBaseline(height, n_classes, width, dropout, C_in, n_prosody, n_sources, attention=True)


def cnn_gru(height, n_frames, n_classes, width=32, dropout=0., C_in=1, n_prosody=0, n_sources=0):
    return ConvGruBaseline(n_classes, width, dropout, C_in, n_prosody, n_sources)


def ssl_linear(height, n_frames, n_classes, width=0, dropout=0., C_in=1, n_prosody=0, n_sources=0):
    return FramesBaseline(n_classes, 0, dropout, C_in, n_prosody, n_sources)


def ssl_mlp(height, n_frames, n_classes, width=256, dropout=0., C_in=1, n_prosody=0, n_sources=0):
    return FramesBaseline(n_classes, width, dropout, C_in, n_prosody, n_sources)


def ssl_att(height, n_frames, n_classes, width=256, dropout=0., C_in=1, n_prosody=0, n_sources=0):
    return FramesBaseline(n_classes, width, dropout, C_in, n_prosody, n_sources, attention=True)


def make_baseline(name: str, height: int, n_frames: int, n_classes: int, dropout: float, n_params: int = 0, C_in: int = 1,
                  n_prosody: int = 0, n_sources: int = 0, sized_for: int | None = None) -> Baseline:
    """A network of config.BASELINES, of its own width, or of the width that brings it nearest to n_params parameters.

    height: mel bands, 1 for frames. sized_for: number of classes with which it has these parameters; n_classes by default.
    ValueError if there is none that reads such an input, or of such a size.
    """
    if name not in config.BASELINES:
        raise ValueError(f'{name!r} is not one of {", ".join(config.BASELINES)}')
    network = getattr(sys.modules[__name__], name)
    width = inspect.signature(network).parameters['width'].default
    if n_params and not width:
        raise ValueError(f'{name} has one size and cannot be brought to {n_params} parameters')
    if n_params:
        width = nearest_width(lambda w: count_parameters(network, height, n_frames, sized_for or n_classes, w, dropout, C_in,
                                                         n_prosody, n_sources), n_params)
    return network(height, n_frames, n_classes, width, dropout, C_in, n_prosody, n_sources)


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
