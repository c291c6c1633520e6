"""Features of one split, cut into windows without a loop over utterances: on the device, or on the host ahead of it."""
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from utils import UserError

AHEAD = 2  # batches that the host cuts before the device asks for them


def statistics(features):
    """Mean and standard deviation of each mel band over all frames of [(F, T), ...]: two float32 tensors (F, 1)."""
    n = sum(x.shape[1] for x in features)
    mean = sum(x.sum(axis=1, keepdims=True, dtype=np.float64) for x in features) / n  # (F, 1)
    variance = sum(np.square(x - mean).sum(axis=1, keepdims=True) for x in features) / n
    return torch.from_numpy(mean).float(), torch.from_numpy(np.maximum(np.sqrt(variance), 1e-5)).float()


def by_speaker(utterances, features):
    """[(F, T), ...] in their dtype, each mel band by its mean and deviation over all frames of the utterance's speaker.

    Speaker normalisation: no label enters, but scoring an utterance needs the others of its speaker.
    """
    own = {}
    for u, x in zip(utterances, features, strict=True):
        own.setdefault(u.speaker, []).append(x)
    of = {speaker: [x.numpy() for x in statistics(frames)] for speaker, frames in own.items()}
    return [((x - of[u.speaker][0]) / of[u.speaker][1]).astype(x.dtype) for u, x in zip(utterances, features)]


def fits(n_bytes, resident, device):
    """Whether n_bytes of features are kept on the device, by --resident."""
    if resident == 'auto' and torch.device(device).type == 'cuda':
        return n_bytes <= torch.cuda.mem_get_info(device)[0] / 4
    return resident != 'never'


def ahead(function, jobs):
    """Yields function(job) for each of jobs; a thread is up to AHEAD of them before whoever consumes them."""
    with ThreadPoolExecutor(1) as pool:
        results = deque()
        try:
            for job in jobs:
                results.append(pool.submit(function, job))
                if len(results) > AHEAD:
                    yield results.popleft().result()
            while results:
                yield results.popleft().result()
        finally:
            for result in results:
                result.cancel()


def batch_sizes(n, batch_size, world_size=1):
    """Sizes of an epoch's batches, each with an utterance or more for every one of world_size processes.

    A last batch that is smaller, or of one utterance, of which batch norm has little to say, goes with the batch before it.
    """
    sizes = [min(batch_size, n - i) for i in range(0, n, batch_size)]
    if len(sizes) > 1 and sizes[-1] < min(batch_size, max(2, world_size)):
        sizes[-2:] = [sum(sizes[-2:])]
    if min(sizes) < world_size:
        raise UserError(f'{min(sizes)} utterance(s) a step cannot be shared by {world_size} processes: take a larger '
                        '--batch_size or fewer processes')
    return sizes


class SpeechDataset:
    """Utterances as (N, 1, F, n_frames) batches on `device`.

    features: [(F, T_i), ...], kept in their own dtype and normalised batch by batch. labels: class
    indices. mean, std: (F, 1), of the training speakers. n_frames: the window. Where a window reaches beyond its utterance it
    holds zeros, the mean of the training data. resident: features are on the device, else on the host; the batches are
    the same either way.
    """

    def __init__(self, utterances, features, labels, mean, std, n_frames, device='cpu', resident=True):
        self.utterances, self.n_frames, self.device, self.resident = utterances, n_frames, torch.device(device), resident
        lengths = [x.shape[1] for x in features]
        frames = torch.from_numpy(np.concatenate(features, axis=1))  # (F, sum of T_i)
        self.frames = frames.to(device) if resident else frames
        self.mean, self.std = mean[:, :, None].to(device), std[:, :, None].to(device)  # (F, 1, 1)
        self.labels = torch.tensor(labels, device=device)
        # What is drawn and planned is on the host, so that a seed gives the same windows everywhere.
        self.lengths = torch.tensor(lengths)
        self.offsets = self.lengths.cumsum(0) - self.lengths
        # Scoring reads every frame: as many windows an utterance as it takes, spread evenly; a short one is centred in its own.
        owner, start = [], []
        for i, length in enumerate(lengths):
            n_windows = -(-length // n_frames)
            first, last = (0, length - n_frames) if n_windows > 1 else ((length - n_frames) // 2,) * 2
            owner += [i] * n_windows
            start += np.linspace(first, last, n_windows).round().astype(int).tolist()
        self.window_owner, self.window_start = torch.tensor(owner), torch.tensor(start)

    def __len__(self):
        return len(self.utterances)

    def windows(self, indices, starts, sizes):
        """Windows of utterances `indices` (n,) from frames `starts` (n,), which may be negative; both on the host.

        sizes: of the batches, or one for all. Yields X (N, 1, F, n_frames) and its indices (N,), both on the device, which
        the host waits for nowhere.
        """
        plan = torch.stack([indices, self.offsets[indices] + starts, -starts, self.lengths[indices] - starts])
        there = (plan.pin_memory() if self.device.type == 'cuda' else plan).to(self.device, non_blocking=True)  # (4, n)
        if self.resident:
            cut = map(self._gather, there[1].split(sizes))
        else:
            cut = ahead(self._gather, plan[1].split(sizes))
        for x, (chosen, _, begin, end) in zip(cut, there.split(sizes, dim=1)):
            yield self._finish(x.to(self.device, non_blocking=True), begin, end), chosen

    def _gather(self, first):
        """The n_frames frames from `first` (N,) on, whosever they are: (F, N, n_frames), where the features are."""
        t = first[:, None] + torch.arange(self.n_frames, device=first.device)  # (N, n_frames)
        t = t.clamp(0, self.frames.shape[1] - 1).flatten()
        pinned = not self.resident and self.device.type == 'cuda'  # or the copy to the device would be waited for
        x = torch.empty(len(self.frames), len(t), dtype=self.frames.dtype, device=first.device, pin_memory=pinned)
        return torch.index_select(self.frames, 1, t, out=x).view(len(x), -1, self.n_frames)

    def _finish(self, x, begin, end):
        """x (F, N, n_frames) normalised, and zero but from `begin` (N,) up to `end` (N,): (N, 1, F, n_frames)."""
        t = torch.arange(self.n_frames, device=x.device)
        outside = (t < begin[:, None]) | (t >= end[:, None])  # (N, n_frames)
        x = x.float().sub_(self.mean).div_(self.std).masked_fill_(outside, 0.)
        return x.transpose(0, 1).unsqueeze(1)

    def batches(self, batch_size, indices=None, generator=None, rank=0, world_size=1):
        """One epoch in random order, each utterance at a random time shift: yields X (N, 1, F, n_frames), y (N,).

        Of each batch only the share of process number `rank`; a generator in the same state draws the same epoch for all.
        """
        indices = torch.arange(len(self)) if indices is None else torch.as_tensor(indices)
        order = indices[torch.randperm(len(indices), generator=generator)]
        room = self.lengths[order] - self.n_frames  # > 0: a crop of a longer one; < 0: a place for a shorter one
        shift = (torch.rand(len(order), generator=generator) * (room.abs() + 1)).floor().long()
        starts = torch.where(room > 0, shift, -shift)
        sizes = batch_sizes(len(order), batch_size, world_size)
        parts = [part[rank::world_size] for part in torch.arange(len(order)).split(sizes)]
        own = torch.cat(parts)  # places in the epoch
        for X, chosen in self.windows(order[own], starts[own], [len(part) for part in parts]):
            yield X, self.labels[chosen]

    @torch.no_grad()
    def score(self, forward, batch_size):
        """Probabilities (n, n_classes) of every utterance, softmax of forward(X) averaged over its windows."""
        total = None
        for X, owner in self.windows(self.window_owner, self.window_start, batch_size):
            p = torch.softmax(forward(X).float(), dim=-1)
            if total is None:
                total = p.new_zeros(len(self), p.shape[1])
            total.index_add_(0, owner, p)
        return total / total.sum(dim=1, keepdim=True)
