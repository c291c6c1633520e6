"""Augmentation of whole batches, on the device of the batch."""
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SpecAugment:
    """SpecAugment (Park et al. 2019) without time warping: every utterance gets its own masks.

    n_masks: bands along frequency, and as many along time. Widths are uniform from 0 to max_freq or
    max_time, which are fractions of F and T.
    """
    n_masks: int
    max_freq: float
    max_time: float

    def __call__(self, x: torch.Tensor, generator: torch.Generator | None = None,
                 n: int | None = None, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        """Returns a masked copy of x (N, 1, F, T), which is normalised: zero is the mean.

        If x is the share of process `rank`, n is the size of the whole batch: every process draws
        the masks of all its utterances, so that generators stay in step.
        """
        for axis, fraction in ((2, self.max_freq), (3, self.max_time)):
            size = x.shape[axis]
            u = torch.rand(2, self.n_masks, n or len(x), 1, generator=generator)[:, :, rank::world_size]
            u = u.to(x.device, non_blocking=True)
            width = (u[0] * (fraction * size + 1)).floor()  # (n_masks, N, 1)
            begin = (u[1] * (size - width + 1)).floor()
            position = torch.arange(size, device=x.device)
            masked = ((position >= begin) & (position < begin + width)).any(dim=0)  # (N, size)
            masked = masked[:, None, :, None] if axis == 2 else masked[:, None, None, :]
            x = x.masked_fill(masked, 0.)
        return x
