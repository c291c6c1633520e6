"""Normalisation of the vector that enters the classifier, by the recordings of its speaker and without labels."""
from collections.abc import Callable

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from datasets import scoring
from datasets.dataset import Moments, SpeechDataset, shrunk
from models.parallel import sharing, sum_over_ranks
from models.rnn_ops import at_least_float32

WINDOW = 50  # recordings of a speaker, after which the weight of an older one in the training moments has fallen to 1/e
VARIANCE_FLOOR = 1e-5


class SpeakerNorm(nn.Module):
    """(N, C), speakers (N,) -> (N, C): the recordings of every speaker get mean 0 and deviation 1 in every dimension.

    In training a speaker's moments are exponential averages over the speaker's recordings, those of the batch included,
    which take part in the gradient as in batch norm. In eval mode they are what `adapt` computed for the speakers of a
    set; without it, those of all training speakers together. Moments of few recordings are shrunk towards the latter
    (datasets.dataset.shrunk). recordings: (n_speakers,) number of recordings of each training speaker, however often one is
    heard in training.
    """

    def __init__(self, C: int, recordings: Tensor):
        super().__init__()
        self.recordings = recordings
        # Number, sum and sum of squares of the recordings of each training speaker, older ones with less weight.
        self.register_buffer('sums', torch.zeros(len(recordings), 1 + 2 * C))
        self.adapted: Moments | None = None  # (n_speakers of the set, C)

    def forward(self, x: Tensor, speaker: Tensor | None = None) -> Tensor:
        x = at_least_float32(x)
        if speaker is not None and self.training:
            mean, std = (moment[speaker] for moment in self._training_moments(x, speaker))
        elif speaker is not None and self.adapted is not None:
            mean, std = (moment[speaker] for moment in self.adapted)
        else:
            mean, std = self.corpus()
        return (x - mean) / std

    def corpus(self) -> Moments:
        """Moments of all training speakers together, two tensors (C,)."""
        return moments(self.sums.sum(dim=0))

    def _training_moments(self, x, speaker):
        """Adds a batch to the sums, and returns the moments of every training speaker, (n_speakers, C)."""
        batch = sum_over_ranks(sums_of(x, speaker, len(self.sums)))
        sums = self.sums * (1 - 1 / WINDOW) ** batch[:, :1].detach() + batch
        self.sums.copy_(sums.detach())
        n = torch.minimum(sums[:, :1].detach(), self.recordings.unsqueeze(1))  # hearing one again tells nothing new
        return shrunk(moments(sums), n, moments(sums.sum(dim=0)))


def sums_of(x: Tensor, speaker: Tensor, n_speakers: int) -> Tensor:
    """Number, sum and sum of squares of the vectors x (N, C) of each speaker: (n_speakers, 1 + 2C)"""
    rows = torch.cat([x.new_ones(len(x), 1), x, x.square()], dim=1)
    return x.new_zeros(n_speakers, rows.shape[1]).index_add(0, speaker, rows)


def moments(sums: Tensor) -> Moments:
    """Mean and deviation (..., C) of what `sums_of` summed (..., 1 + 2C); 0 and 1 where there is no recording."""
    C = sums.shape[-1] // 2
    n, total, squares = sums.split([1, C, C], dim=-1)
    some = n.clamp_min(torch.finfo(n.dtype).tiny)
    mean = total / some
    variance = torch.where(n > 0, (squares / some - mean.square()).clamp_min(0.), 1.)
    return mean, (variance + VARIANCE_FLOOR).sqrt()


def added(net: nn.Module, config, recordings: Tensor) -> nn.Module:
    """The network, with a SpeakerNorm before its classifier `linear`, or before each, if --embedding asks for one.

    recordings: (n_speakers,) of each training speaker; zeros, if the network will not be trained.
    """
    if config.embedding == 'speaker':
        for part in net.classifiers.values() if hasattr(net, 'classifiers') else [net]:
            first = next(layer for layer in part.linear.modules() if isinstance(layer, nn.Linear))
            part.speaker_norm = SpeakerNorm(first.in_features, recordings)
    return net


@torch.no_grad()
def adapt(net: nn.Module, dataset: SpeechDataset, batch_size: int, forward: Callable | None = None) -> Callable:
    """Gives `net`, in eval mode, the moments of the speakers of a set, before the set is scored. Labels are not read.

    The moments are over all windows of a speaker's recordings. Does nothing if the network has no SpeakerNorm. Another
    set whose dataset.speakers are the same may be scored afterwards. forward: forward(*Inputs) -> logits, if it is not
    net's. Of a network with several classifiers, the one that its path leads to gets the moments.

    Returns a function of *Inputs -> logits for one pass over this set: it must get every batch of
    dataset.scoring_windows(batch_size), in order. It remembers the vectors that enter the classifier, so that the network
    need not run again.
    """
    forward, seen, used = forward or net, [], []
    norms = {part.speaker_norm: part for part in net.modules() if isinstance(getattr(part, 'speaker_norm', None), SpeakerNorm)}
    if not norms:
        return sharing(forward)

    def embed(*X):
        forward(*X)
        return seen.pop()

    def note(norm, args):
        seen.append(args[0])
        used[:] = [norm]
    for norm in norms:
        norm.adapted = None
    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    whole, sums, vectors = sharing(embed), 0., []
    try:
        for X, owner in dataset.scoring_windows(batch_size):
            vectors.append(whole(*X))
            sums = sums + sums_of(vectors[-1].double(), dataset.speaker[owner], len(dataset.speakers))
    finally:
        for hook in hooks:
            hook.remove()
    norm, n = used[0], dataset.speaker.bincount(minlength=len(dataset.speakers)).unsqueeze(1)
    norm.adapted = tuple(m.to(norm.sums.dtype) for m in shrunk(moments(sums), n, norm.corpus()))
    left = iter(vectors)
    return lambda *X: norms[norm].linear(norm(next(left), X[-1]))


def evaluate(net: nn.Module, dataset: SpeechDataset, batch_size: int, class_weights: Tensor,
             forward: Callable | None = None) -> tuple[dict[str, float], np.ndarray]:
    """datasets.scoring.evaluate of a network in eval mode, after `adapt`, whose `forward` it takes too."""
    return scoring.evaluate(adapt(net, dataset, batch_size, forward), dataset, batch_size, class_weights)
