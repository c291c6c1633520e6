"""Hand-designed networks, (N, 1, F, T) -> logits, to be trained exactly as a genotype's network is.

Five are those that the emoDARTS paper compares with (CNN, RNN, LSTM, CNN-LSTM, CNN-LSTM with attention), repaired: what was one
vector an utterance is a sequence over time, convolutions have more than one channel and are followed by a ReLU, no softmax
runs over the batch, and the loss is cross-entropy. `cnn_gru` is what a practitioner would write today.

A row of BASELINES and a class make a new one. Each has one width that sizes it, so that `matched` can bring it to any number of
parameters.
"""
from functools import partial

import torch
import torch.nn as nn

from models.skeleton import N_BANDS, to_sequence
from models.sync import BatchNorm2d

H_CLASSIFIER = 32  # hidden units before the logits, of the paper's five
HIDDEN_A_CHANNEL = 8  # recurrent units for one channel of the convolution before them


class Baseline(nn.Module):
    """What the trainer expects of a network, as AugmentCNN gives it."""

    def forward(self, x):
        """(N, 1, F, T) -> logits (N, n_classes), None: no auxiliary head"""
        return self.logits(x), None

    def drop_path_prob(self, p):
        """Nothing to drop."""

    def check_batches(self, n_mels, n_frames, sizes):
        """Any batch will do."""


class ConvBlock(nn.Sequential):
    """The paper's: a 2 x 2 convolution of stride 2, then the largest of 2 x 2: F and T fall to a quarter."""

    def __init__(self, channels, dropout):
        super().__init__(nn.Conv2d(1, channels, 2, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
                         nn.Dropout(dropout))

    @staticmethod
    def size(n):
        """Frames or bands that are left of n."""
        return -(-(n // 2 + 1) // 2)


def classifier(H, n_classes, dropout):
    return nn.Sequential(nn.Linear(H, H_CLASSIFIER), nn.ReLU(), nn.Dropout(dropout), nn.Linear(H_CLASSIFIER, n_classes))


class Cnn(Baseline):
    """Width: channels. The classifier reads every place of the map, so that it takes windows of n_frames alone."""

    def __init__(self, n_mels, n_frames, n_classes, width, dropout):
        super().__init__()
        self.conv = ConvBlock(width, dropout)
        self.linear = classifier(width * ConvBlock.size(n_mels) * ConvBlock.size(n_frames), n_classes, dropout)

    def logits(self, x):
        return self.linear(self.conv(x).flatten(1))


class Recurrent(Baseline):
    """Layers of one direction on the mel bands, averaged over time. Width: hidden units."""

    def __init__(self, n_mels, n_frames, n_classes, width, dropout, family, depth):
        super().__init__()
        self.rnn = family(n_mels, width, depth, batch_first=True)
        self.linear = classifier(width, n_classes, dropout)

    def logits(self, x):
        h = self.rnn(x.squeeze(1).transpose(1, 2))[0]  # (N, 1, F, T) -> (N, T, F) -> (N, T, H)
        return self.linear(h.mean(dim=1))


class CnnLstm(Baseline):
    """Convolution, then a bidirectional LSTM over time, averaged or attended to. Width: hidden units a direction."""

    def __init__(self, n_mels, n_frames, n_classes, width, dropout, attention=False):
        super().__init__()
        channels = max(1, width // HIDDEN_A_CHANNEL)
        self.conv = ConvBlock(channels, dropout)
        self.lstm = nn.LSTM(channels * ConvBlock.size(n_mels), width, batch_first=True, bidirectional=True)
        self.pool = AttentionPool(2 * width) if attention else None
        self.linear = classifier(2 * width, n_classes, dropout)

    def logits(self, x):
        x = self.conv(x)  # (N, 1, F, T) -> (N, C, F', T')
        h = self.lstm(x.flatten(1, 2).transpose(1, 2))[0]  # (N, C*F', T') -> (N, T', C*F') -> (N, T', 2H)
        return self.linear(h.mean(dim=1) if self.pool is None else self.pool(h))


class AttentionPool(nn.Module):
    """(N, T, H) -> (N, H): mean over time by learned weights, softmax over T of a two-layer score."""

    def __init__(self, H):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(H, max(1, H // 4)), nn.Tanh(), nn.Linear(max(1, H // 4), 1))

    def forward(self, h):
        return (torch.softmax(self.score(h), dim=1) * h).sum(dim=1)  # (N, T, 1) * (N, T, H)


class CnnGru(Baseline):
    """Three blocks of 3 x 3 convolution, batch norm, ReLU and maximum, a bidirectional GRU, attention pooling.

    Width: channels of the first block; the GRU has twice as many units a direction.
    """

    def __init__(self, n_mels, n_frames, n_classes, width, dropout):
        super().__init__()
        widths, blocks = (1, width, width * 3 // 2, 2 * width), []
        for C_in, C_out, stride in zip(widths, widths[1:], ((2, 1), (2, 2), (2, 2))):  # F, T
            blocks += [nn.Conv2d(C_in, C_out, 3, padding=1, bias=False), BatchNorm2d(C_out), nn.ReLU(),
                       nn.MaxPool2d(stride, ceil_mode=True)]
        self.conv = nn.Sequential(*blocks)
        self.gru = nn.GRU(N_BANDS * widths[-1], 2 * width, batch_first=True, bidirectional=True)
        self.pool = AttentionPool(4 * width)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(4 * width, n_classes)

    def logits(self, x):
        x = self.conv(x)  # (N, 1, F, T) -> (N, C, F/8, T/4)
        h = self.gru(to_sequence(x, x.shape[-1]))[0]  # (N, T', 4C) -> (N, T', 4 * width)
        return self.linear(self.dropout(self.pool(h)))


# name: (network(n_mels, n_frames, n_classes, width, dropout), own width); hidden units are the paper's
BASELINES = {
    'cnn': (Cnn, 5),
    'rnn': (partial(Recurrent, family=nn.RNN, depth=3), 512),
    'lstm': (partial(Recurrent, family=nn.LSTM, depth=1), 512),
    'cnn_lstm': (CnnLstm, 128),
    'cnn_lstm_att': (partial(CnnLstm, attention=True), 128),
    'cnn_gru': (CnnGru, 32),
}


def make_baseline(name, n_mels, n_frames, n_classes, dropout, n_params=0):
    """A network of BASELINES: of its own width, or of the width that brings it nearest to n_params parameters."""
    network, width = BASELINES[name]
    if n_params:
        width = matched(lambda w: count(network, n_mels, n_frames, n_classes, w, dropout), n_params)
    return network(n_mels, n_frames, n_classes, width, dropout)


def count(network, *sizes):
    """Parameters of a network that is not made."""
    with torch.device('meta'):
        return sum(p.numel() for p in network(*sizes).parameters())


def matched(count_of, n_params):
    """The width, 1 or more, whose count_of(width), which grows with it, is nearest to n_params."""
    high = 1
    while count_of(high) < n_params:
        high *= 2
    low = high // 2  # count_of(low) < n_params <= count_of(high), unless high is 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count_of(middle) < n_params else (low, middle)
    return min([w for w in (low, high) if w], key=lambda w: abs(count_of(w) - n_params))
