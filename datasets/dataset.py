"""Features of one split, resident on the device, cut into windows there without a loop over utterances."""
import numpy as np
import torch

from utils import UserError


def statistics(features):
    """Mean and standard deviation of each mel band over all frames of [(F, T), ...]: two float32 tensors (F, 1)."""
    frames = np.concatenate(features, axis=1).astype(np.float64)
    std = np.maximum(frames.std(axis=1, keepdims=True), 1e-5)
    return torch.from_numpy(frames.mean(axis=1, keepdims=True)).float(), torch.from_numpy(std).float()


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
    """Utterances as (N, 1, F, n_frames) batches.

    features: [(F, T_i), ...]. labels: class indices. mean, std: (F, 1), of the training speakers. n_frames: the window.
    Where a window reaches beyond its utterance it holds zeros, the mean of the training data.
    """

    def __init__(self, utterances, features, labels, mean, std, n_frames, device='cpu'):
        self.utterances, self.n_frames = utterances, n_frames
        frames = (torch.from_numpy(np.concatenate(features, axis=1)) - mean) / std  # (F, sum of T_i)
        self.frames = frames.to(device)
        lengths = [x.shape[1] for x in features]
        self.lengths = torch.tensor(lengths, device=device)
        self.offsets = torch.tensor([0, *np.cumsum(lengths)[:-1].tolist()], device=device)
        self.labels = torch.tensor(labels, device=device)
        # Scoring reads every frame: as many windows an utterance as it takes, spread evenly; a short one is centred in its own.
        owner, start = [], []
        for i, length in enumerate(lengths):
            n_windows = -(-length // n_frames)
            first, last = (0, length - n_frames) if n_windows > 1 else ((length - n_frames) // 2,) * 2
            owner += [i] * n_windows
            start += np.linspace(first, last, n_windows).round().astype(int).tolist()
        self.window_owner, self.window_start = torch.tensor(owner, device=device), torch.tensor(start, device=device)

    def __len__(self):
        return len(self.utterances)

    def cut(self, indices, starts):
        """Windows of utterances `indices` (N,) from frames `starts` (N,), which may be negative: (N, 1, F, n_frames)."""
        t = starts[:, None] + torch.arange(self.n_frames, device=starts.device)  # (N, n_frames)
        inside = (t >= 0) & (t < self.lengths[indices][:, None])
        x = self.frames[:, torch.where(inside, self.offsets[indices][:, None] + t, 0)]  # (F, N, n_frames)
        return (x * inside).transpose(0, 1).unsqueeze(1)

    def batches(self, batch_size, indices=None, generator=None, rank=0, world_size=1):
        """One epoch in random order, each utterance at a random time shift: yields X (N, 1, F, n_frames), y (N,).

        Of each batch only the share of process number `rank`; a generator in the same state draws the same epoch for all.
        """
        indices = torch.arange(len(self)) if indices is None else torch.as_tensor(indices)
        order = indices[torch.randperm(len(indices), generator=generator)].to(self.labels.device, non_blocking=True)
        draws = torch.rand(len(order), generator=generator).to(self.labels.device, non_blocking=True)
        sizes = batch_sizes(len(order), batch_size, world_size)
        for chosen, u in zip(order.split(sizes), draws.split(sizes)):
            chosen, u = chosen[rank::world_size], u[rank::world_size]
            room = self.lengths[chosen] - self.n_frames  # > 0: a crop of a longer one; < 0: a place for a shorter one
            shift = (u * (room.abs() + 1)).floor().long()
            yield self.cut(chosen, torch.where(room > 0, shift, -shift)), self.labels[chosen]

    @torch.no_grad()
    def score(self, forward, batch_size):
        """Probabilities (n, n_classes) of every utterance, softmax of forward(X) averaged over its windows."""
        total = None
        for owner, start in zip(self.window_owner.split(batch_size), self.window_start.split(batch_size)):
            p = torch.softmax(forward(self.cut(owner, start)).float(), dim=-1)
            if total is None:
                total = p.new_zeros(len(self), p.shape[1])
            total.index_add_(0, owner, p)
        return total / total.sum(dim=1, keepdim=True)
