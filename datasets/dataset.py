"""Features of one split, resident on the device, cut into windows there without a loop over utterances."""
import numpy as np
import torch


def statistics(features):
    """Mean and standard deviation of each mel band over all frames of [(F, T), ...]: two float32 tensors (F, 1)."""
    frames = np.concatenate(features, axis=1).astype(np.float64)
    std = np.maximum(frames.std(axis=1, keepdims=True), 1e-5)
    return torch.from_numpy(frames.mean(axis=1, keepdims=True)).float(), torch.from_numpy(std).float()


def batch_sizes(n, batch_size):
    """Sizes of an epoch's batches."""
    sizes = [min(batch_size, n - i) for i in range(0, n, batch_size)]
    return [*sizes[:-2], sizes[-2] + 1] if len(sizes) > 1 and sizes[-1] == 1 < batch_size else sizes


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

    def batches(self, batch_size, indices=None):
        """One epoch in random order, each utterance at a random time shift: yields X (N, 1, F, n_frames), y (N,).

        A last batch of one utterance, of which batch norm has little to say, goes with the batch before it.
        """
        indices = torch.arange(len(self)) if indices is None else torch.as_tensor(indices)
        order = indices[torch.randperm(len(indices))].to(self.labels.device)
        sizes = batch_sizes(len(order), batch_size)
        for chosen in order.split(sizes):
            room = self.lengths[chosen] - self.n_frames  # > 0: a crop of a longer one; < 0: a place for a shorter one
            shift = (torch.rand(len(chosen), device=room.device) * (room.abs() + 1)).floor().long()
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
