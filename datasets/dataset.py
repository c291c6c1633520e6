"""The features of one set, cut into windows without a loop over utterances."""
import copy
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import utils
from config import UserError
from datasets.stored import OnDisk, Stored, columns
from datasets.transforms import SpecAugment, Voices, n_frames_of
from datasets.utterance import Utterance

AHEAD = 2  # batches that the host prepares before the device needs them
# Recordings of a speaker. With fewer, a speaker's own statistics scored below the corpus' on EMO-DB.
ENOUGH = 10
CONSTANT = 1e-5  # deviation up to which a band is constant


class Inputs(NamedTuple):
    """What a network reads: forward(*inputs)."""
    x: torch.Tensor  # (N, C_in, F, T); of several layers of an encoder (N, L, D, T), of one (N, D, 1, T)
    valid: torch.Tensor | None = None  # (N, T) bool, False where a frame is padding
    prosody: torch.Tensor | None = None  # (N, P, T)
    speaker: torch.Tensor | None = None  # (N,) indices into SpeechDataset.speakers


Batch = tuple[Inputs, torch.Tensor]  # (X, y)


def statistics(features: list[np.ndarray] | list[Stored]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each band over all frames of [(F, T), ...]: two float32 tensors (F, 1).

    A constant band has a deviation of 1, as in scikit-learn's StandardScaler: divided by next to nothing, a frame that differs
    there would drown all other bands.
    """
    n = sum(x.shape[1] for x in features)
    if isinstance(features[0], Stored):
        return _pooled(features, n)
    mean = sum(x.sum(axis=1, keepdims=True, dtype=np.float64) for x in features) / n  # (F, 1)
    variance = sum(np.square(x - mean).sum(axis=1, keepdims=True) for x in features) / n
    return _moments(mean, variance)


def _moments(mean, variance):
    """`statistics` of float64 arrays."""
    std = np.sqrt(np.maximum(variance, 0.))
    return torch.from_numpy(mean).float(), torch.from_numpy(np.where(std > CONSTANT, std, 1.)).float()


def _pooled(features, n):
    """`statistics` from those of each file, so that no file of a large corpus is read."""
    mean = square = 0.  # of all frames, in float64
    for x in features:
        its_mean, its_variance = x.moments()
        mean = mean + its_mean * (x.shape[1] / n)
        square = square + (its_variance + its_mean ** 2) * (x.shape[1] / n)
    return _moments(mean, square - mean ** 2)


Moments = tuple[torch.Tensor, torch.Tensor]  # mean and deviation, of one shape


def shrunk(own: Moments, n: torch.Tensor | int, corpus: Moments) -> Moments:
    """Moments of a speaker of n recordings, filled up to ENOUGH with recordings of the corpus' moments.

    With ENOUGH or more they are the speaker's own, with none the corpus'. Between them, w = n / ENOUGH:
    mean = w m + (1 - w) M, and E[x^2] is mixed likewise. n: a number, or a tensor that broadcasts.
    """
    n = torch.as_tensor(n, dtype=own[0].dtype, device=own[0].device)
    w = (n / ENOUGH).clamp(max=1.)
    step = own[0] - corpus[0]
    variance = w * own[1] ** 2 + (1 - w) * corpus[1] ** 2 + w * (1 - w) * step ** 2
    return corpus[0] + w * step, variance.sqrt()


def by_speaker(utterances: list[Utterance], features: list[np.ndarray], corpus: Moments) -> list[np.ndarray]:
    """Features [(F, T), ...] in their dtype, each band normalised over all frames of the speaker.

    Scoring one utterance needs the others of its speaker; their labels are not read. corpus: `statistics` of
    the training recordings, towards which a speaker of fewer than ENOUGH recordings is `shrunk`.
    """
    of_speaker = {}
    for u, x in zip(utterances, features, strict=True):
        of_speaker.setdefault(u.speaker, []).append(x)
    moments = {speaker: statistics(frames) for speaker, frames in of_speaker.items()}
    for speaker, frames in of_speaker.items():
        if len(frames) < ENOUGH:
            moments[speaker] = shrunk(moments[speaker], len(frames), corpus)
    return [scaled(x, moments[u.speaker]) for u, x in zip(utterances, features)]


def scaled(x: np.ndarray | Stored, moments: Moments) -> np.ndarray | Stored:
    """x (F, T) with each band normalised by `moments` (F, 1), in the dtype of x."""
    if isinstance(x, Stored):
        return x.normalised(moments)
    mean, std = (moment.numpy() for moment in moments)
    return ((x - mean) / std).astype(x.dtype)


def to_logmel(utterances: list[Utterance], features: list[np.ndarray],
              normalised: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift (F, n) that give the features back from those normalised by speaker."""
    of_speaker = {}
    for u, *both in zip(utterances, features, normalised, strict=True):
        of_speaker.setdefault(u.speaker, []).append(both)
    found = {}
    for speaker, frames in of_speaker.items():
        (mean, std), (its_mean, its_std) = map(statistics, zip(*frames))
        found[speaker] = std / its_std, mean - its_mean * std / its_std
    scale, shift = zip(*(found[u.speaker] for u in utterances))
    return torch.cat(scale, dim=1), torch.cat(shift, dim=1)


def with_differences(x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """x and its first and second difference over time, (N, 1, F, T) -> (N, 3, F, T).

    (x[t + 1] - x[t - 1]) / 2 and x[t + 1] - 2 x[t] + x[t - 1]; 0 at the first and last frame of the audio.
    """
    around = F.pad(valid, (1, 1))
    inside = (around[:, 2:] & valid & around[:, :-2])[:, None, None]
    before, after = F.pad(x, (1, 0))[..., :-1], F.pad(x, (0, 1))[..., 1:]
    parts = [(after - before) / 2, after - 2 * x + before]
    return torch.cat([x, *(part.masked_fill(~inside, 0.) for part in parts)], dim=1)


def fits(n_bytes: int, resident: str, device: str | torch.device, stored: bool = False) -> bool:
    """Whether n_bytes of features stay on the device, given --resident. stored: they lie in files and need no memory."""
    device = torch.device(device)
    if resident == 'auto' and (stored or device.type == 'cuda'):
        return n_bytes <= utils.free_memory(device) / 4
    return resident != 'never'


def ahead(function: Callable, jobs: Iterable) -> Iterator:
    """Yields function(job) for each job; a thread computes up to AHEAD results before they are needed."""
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


def batch_sizes(n: int, batch_size: int, world_size: int = 1) -> list[int]:
    """Sizes of the batches of an epoch of n utterances, each with at least one for every process.

    If the last batch has a single utterance, too few for batch norm, or fewer than there are
    processes, it is merged with the batch before it.
    """
    sizes = [min(batch_size, n - i) for i in range(0, n, batch_size)]
    if len(sizes) > 1 and sizes[-1] < min(batch_size, max(2, world_size)):
        sizes[-2:] = [sum(sizes[-2:])]
    if min(sizes) < world_size:
        raise UserError(f'a batch of {min(sizes)} utterance(s) cannot be shared by {world_size} processes: '
                        'use a larger --batch_size or fewer processes')
    return sizes


class SpeechDataset:
    """Utterances as batches (Inputs, y) on `device`: x is (N, 1, F, n_frames), the labels y are (N,).

    features: [(F, T_i), ...], arrays or Stored; they keep their dtype and are normalised batch by batch. labels:
    class indices. mean, std: (F, 1), of the training speakers. n_frames: length of a window. A
    window that reaches beyond its utterance is padded with zeros, the mean of the training data.
    resident: whether the features are kept on the device, or on the host, Stored ones in their files; the batches are
    the same.
    rank, world_size: this process and how many share every batch. n_prosody: the last rows of the
    features, which are no part of x. C_in: 3 to add first and second differences to x. n_sources: layers L of an
    encoder, one below the other in the rows: x is (N, L, D, n_frames), or (N, D, 1, n_frames) for one layer.
    to_logmel: as in transforms.Voices.change, if noise is added and the features are not log-mel.
    """

    def __init__(self, utterances: list[Utterance], features: list[np.ndarray], labels: list[int],
                 mean: torch.Tensor, std: torch.Tensor, n_frames: int, device: str | torch.device = 'cpu',
                 resident: bool = True, rank: int = 0, world_size: int = 1, C_in: int = 1,
                 n_prosody: int = 0, n_sources: int = 0, to_logmel: tuple | None = None):
        self.C_in, self.n_prosody, self.n_sources = C_in, n_prosody, n_sources
        self.utterances, self.n_frames = utterances, n_frames
        self.device, self.resident = torch.device(device), resident
        self.rank, self.world_size = rank, world_size
        lengths = [x.shape[1] for x in features]
        if isinstance(features[0], Stored):
            frames = OnDisk(features, pin=self.device.type == 'cuda')
            frames = frames.load() if resident else frames
        else:
            frames = torch.from_numpy(np.concatenate(features, axis=1) if len(features) > 1 else features[0])
        self.frames = frames.to(device) if resident else frames  # (F, sum of T_i)
        self.mean, self.std = mean[:, :, None].to(device), std[:, :, None].to(device)  # (F, 1, 1)
        self.labels = torch.tensor(labels, device=device)
        self.to_logmel = to_logmel and tuple(part.to(device) for part in to_logmel)  # (F, n) each
        self.speakers = sorted({u.speaker for u in utterances})
        numbers = {speaker: i for i, speaker in enumerate(self.speakers)}
        self.speaker = torch.tensor([numbers[u.speaker] for u in utterances], device=device)
        self.recordings = self.speaker.bincount(minlength=len(self.speakers))  # of each speaker
        # Random draws are made on the host, so that a seed gives the same windows on every device.
        self.lengths = torch.tensor(lengths)
        self.offsets = self.lengths.cumsum(0) - self.lengths
        self.window_owner, self.window_start = self._scoring_windows(lengths)

    def __len__(self) -> int:
        return len(self.utterances)

    def part(self, chosen: torch.Tensor) -> 'SpeechDataset':
        """The utterances chosen (n,) alone, with the same features, to be scored. Speakers keep their numbers."""
        found = copy.copy(self)
        found.utterances = [self.utterances[i] for i in chosen.tolist()]
        found.lengths, found.offsets = self.lengths[chosen], self.offsets[chosen]
        found.window_owner, found.window_start = self._scoring_windows(found.lengths.tolist())
        chosen = chosen.to(self.device)
        found.labels, found.speaker = self.labels[chosen], self.speaker[chosen]
        return found

    def _scoring_windows(self, lengths):
        """Utterance and first frame of each window that is scored, two tensors (n_windows,).

        An utterance gets as few windows as cover all its frames, evenly spread. A short one is
        centred in its window.
        """
        owner, start = [], []
        for i, length in enumerate(lengths):
            n_windows = -(-length // self.n_frames)
            room = length - self.n_frames
            first, last = (0, room) if n_windows > 1 else (room // 2, room // 2)
            owner += [i] * n_windows
            start += np.linspace(first, last, n_windows).round().astype(int).tolist()
        return torch.tensor(owner), torch.tensor(start)

    def windows(self, indices: torch.Tensor, starts: torch.Tensor,
                sizes: int | list[int], voices: Voices | None = None,
                table: torch.Tensor | None = None) -> Iterator[tuple[Inputs, torch.Tensor]]:
        """Yields batches (Inputs, indices (N,)), on the device. The host never waits for the device.

        indices (n,): utterances. starts (n,): first frame of each window, negative for padding in
        front. Both are on the host. sizes: of the batches. table: (9, n), what `voices` drew.
        """
        first = self.offsets[indices] + starts  # among the frames of all utterances
        lengths = n_frames_of(table) if voices else self.lengths[indices]
        begin, end = -starts, lengths - starts  # frames of the window from begin to end are audio
        low = self.offsets[indices]
        plan = torch.stack([indices, begin, end, first, low, low + self.lengths[indices] - 1])  # (6, n)
        pinned = plan.pin_memory() if self.device.type == 'cuda' else plan
        on_device = pinned.to(self.device, non_blocking=True)
        gather, where, drawn = self._gather, (plan[3:], on_device[3:]), itertools.repeat(None)
        if voices:
            gather = functools.partial(voices.cut, self.frames, self.n_frames)
            pinned = table.pin_memory() if self.device.type == 'cuda' else table
            where = table, pinned.to(self.device, non_blocking=True)
            drawn = where[1].split(sizes, dim=1)
        where = where[self.resident].split(sizes, dim=-1)
        cut = map(gather, where) if self.resident else ahead(gather, where)
        t = torch.arange(self.n_frames, device=self.device)
        for x, (chosen, begin, end, *_), its in zip(cut, on_device.split(sizes, dim=1), drawn):
            valid = (t >= begin[:, None]) & (t < end[:, None])  # (N, n_frames)
            x, prosody = x.to(self.device, non_blocking=True), None
            if voices:
                n, back = len(x) - self.n_prosody, self.to_logmel and [part[:, chosen] for part in self.to_logmel]
                x = torch.cat([voices.change(x[:n], valid, its, back), x[n:]])
            x = self._finish(x, valid)
            if self.n_prosody:
                x, prosody = x[:, :, :-self.n_prosody], x[:, 0, -self.n_prosody:]
            yield Inputs(x, valid, prosody, self.speaker[chosen]), chosen

    def _gather(self, where):
        """Windows (F, N, n_frames). where (3, N): first frame of each, and the first and last frame of its utterance.

        Columns outside the utterance repeat its first or last frame.
        """
        first, low, high = where[:, :, None]
        t = first + torch.arange(self.n_frames, device=where.device)  # (N, n_frames)
        t = t.clamp(low, high).flatten()
        if self.n_sources:
            x = columns(self.frames, t)
        else:
            pinned = not self.resident and self.device.type == 'cuda'  # the host need not wait for the copy
            x = torch.empty(len(self.frames), len(t), dtype=self.frames.dtype, device=where.device, pin_memory=pinned)
            torch.index_select(self.frames, 1, t, out=x)
        return x.view(len(x), -1, self.n_frames)

    def _finish(self, x, valid):
        """Normalises x (F, N, n_frames) and pads it where it is not valid: (N, max(1, L), F / max(1, L), n_frames)."""
        x = x.float().sub_(self.mean).div_(self.std).masked_fill_(~valid, 0.)
        return x.transpose(0, 1).unflatten(1, (max(1, self.n_sources), -1))

    def batches(self, batch_size: int, indices=None, generator: torch.Generator | None = None,
                augment: SpecAugment | None = None, voices: Voices | None = None) -> Iterator[Batch]:
        """One epoch in random order and at random time shifts: this process's shares (Inputs, y).

        batch_size: of all processes together. Generators in the same state give the same epoch in
        every process.
        """
        order = self._chosen(indices)
        order = order[torch.randperm(len(order), generator=generator)]
        table = voices.draw(order, self, generator) if voices else None
        lengths = n_frames_of(table) if voices else self.lengths[order]
        room = lengths - self.n_frames  # > 0: crop a longer utterance; < 0: pad a shorter one
        shift = (torch.rand(len(order), generator=generator) * (room.abs() + 1)).floor().long()
        starts = torch.where(room > 0, shift, -shift)
        sizes = batch_sizes(len(order), batch_size, self.world_size)
        shares = [part[self.rank::self.world_size] for part in torch.arange(len(order)).split(sizes)]
        own = torch.cat(shares)  # positions in the epoch
        if voices:
            table = torch.cat([starts[None].double(), table[1:]])[:, own]
        windows = self.windows(order[own], starts[own], [len(share) for share in shares], voices, table)
        for n, (X, chosen) in zip(sizes, windows):
            if augment is not None:
                X = X._replace(x=augment(X.x, generator, n, self.rank, self.world_size))
            yield self._shaped(X), self.labels[chosen]

    def files_of(self, step: int, draws: torch.Generator, batch_size: int, indices=None) -> list[str]:
        """Files of one of the `batches`, counted from 0, of all processes. draws: as it was before they were drawn."""
        order = self._chosen(indices)
        order = order[torch.randperm(len(order), generator=draws)]
        batch = order.split(self.batch_sizes(batch_size, indices))[step]
        return [self.utterances[i].path for i in batch.tolist()]

    def batch_sizes(self, batch_size: int, indices=None) -> list[int]:
        """Sizes of the batches of an epoch, over all processes."""
        return batch_sizes(len(self._chosen(indices)), batch_size, self.world_size)

    def n_batches(self, batch_size: int, indices=None) -> int:
        """Number of batches of an epoch."""
        return len(self.batch_sizes(batch_size, indices))

    def _chosen(self, indices):
        return torch.arange(len(self)) if indices is None else torch.as_tensor(indices)

    def scoring_windows(self, batch_size: int) -> Iterator[tuple[Inputs, torch.Tensor]]:
        """Yields the windows that are scored, (Inputs, indices (N,) of their utterances)."""
        for X, owner in self.windows(self.window_owner, self.window_start, batch_size):
            yield self._shaped(X), owner

    def _shaped(self, X):
        """X with its differences, or, of one layer of an encoder, with the rows as channels."""
        if self.n_sources:
            return X._replace(x=X.x.transpose(1, 2)) if self.n_sources == 1 else X
        return X if self.C_in == 1 else X._replace(x=with_differences(X.x, X.valid))

    def features_of(self, i: int) -> np.ndarray:
        """Features (F, T) of an utterance, float32, before they are normalised by `mean` and `std`."""
        t = torch.arange(self.lengths[i]) + self.offsets[i]
        return columns(self.frames, t.to(self.device) if self.resident else t).float().cpu().numpy()

    @torch.no_grad()
    def score(self, forward: Callable[..., torch.Tensor], batch_size: int) -> torch.Tensor:
        """Probabilities (n, n_classes): the softmax of forward(*Inputs), averaged over windows."""
        total = None
        for X, owner in self.scoring_windows(batch_size):
            p = torch.softmax(forward(*X).float(), dim=-1)
            if total is None:
                total = p.new_zeros(len(self), p.shape[1])
            total.index_add_(0, owner, p)
        return total / total.sum(dim=1, keepdim=True)
