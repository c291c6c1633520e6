"""Augmentation in batch, on the device the batch is on."""
import torch


def spec_augment(x, n_masks, max_freq, max_time, generator=None, n=None, rank=0, world_size=1):
    """SpecAugment (Park et al. 2019) without time warping, each utterance with masks of its own.

    x: (N, 1, F, T), normalised, so that zero is the mean. n_masks: bands along frequency, and as many along time; widths
    uniform from 0 to max_freq and max_time, fractions of F and T. n: utterances of the whole batch, where x holds the share
    of process number `rank`: masks are drawn for all of it. Returns a new tensor.
    """
    for axis, fraction in ((2, max_freq), (3, max_time)):
        size = x.shape[axis]
        u = torch.rand(2, n_masks, n or len(x), 1, generator=generator)[:, :, rank::world_size]
        u = u.to(x.device, non_blocking=True)
        width = (u[0] * (fraction * size + 1)).floor()
        begin = (u[1] * (size - width + 1)).floor()
        place = torch.arange(size, device=x.device)
        hit = ((place >= begin) & (place < begin + width)).any(dim=0)  # (N, size)
        x = x.masked_fill(hit[:, None, :, None] if axis == 2 else hit[:, None, None, :], 0.)
    return x
