"""Batch norm and the loss as of the whole batch, where each rank holds a share of it. With one process they are PyTorch's."""
import torch
import torch.nn as nn
import torch.nn.functional as F

from models.parallel import all_reduce, rank, sum_over_ranks, world_size


def batch_norm(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=.1, eps=1e-5):
    """F.batch_norm by the statistics of the whole batch, of which x, (N, C, ...), is this rank's share.

    One sum over ranks a call. Composed of operations that can be differentiated twice, which nn.SyncBatchNorm's cannot.
    """
    if not training or world_size() == 1:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    C, wide = x.shape[1], x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(wide, [0, *range(2, x.ndim)], unbiased=False)  # (C,), of the share
    own = torch.cat([mean, var, mean.new_full((1,), x.numel() / C)])  # (2C+1,)
    table = sum_over_ranks(F.pad(own[None], (0, 0, rank(), world_size() - rank() - 1)))  # (n_ranks, 2C+1): one row per rank
    means, variances, counts = table.split([C, C, 1], dim=1)
    n = counts.sum()
    mean = (counts * means).sum(dim=0) / n
    var = (counts * (variances + (means - mean).square())).sum(dim=0) / n
    if running_mean is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * n / (n - 1)).to(running_var.dtype), momentum)
    scale = torch.rsqrt(var + eps) if weight is None else torch.rsqrt(var + eps) * weight
    shape = (1, C) + (1,) * (x.ndim - 2)
    y = (wide - mean.view(shape)) * scale.view(shape)
    return (y if bias is None else y + bias.view(shape)).to(x.dtype)


def slow_on_cpu(x) -> bool:
    """Whether PyTorch's CPU kernel takes x, (N, C, F, T), channel by channel: in channels_last, if C is no multiple of 8.

    The contiguous layout, with both copies, then takes a fourteenth (C = 3) to four fifths (C = 15) of the time.
    """
    return x.ndim == 4 and x.shape[1] % 8 > 0 and x.is_contiguous(memory_format=torch.channels_last)


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, its parameters and buffers too, over the whole batch."""

    def forward(self, x):
        if self.training and x.device.type == 'cpu' and slow_on_cpu(x):
            return self._forward(x.contiguous()).contiguous(memory_format=torch.channels_last)
        return self._forward(x)

    def _forward(self, x):
        if not self.training or world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        self.num_batches_tracked.add_(1)
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps)


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """This rank's part of the class-weighted mean over the whole batch: the parts add up to it, and so do gradients."""

    def forward(self, logits, y):
        if world_size() == 1:
            return super().forward(logits, y)
        total = F.cross_entropy(logits, y, self.weight, reduction='sum')
        norm = total.new_full((), len(y)) if self.weight is None else self.weight[y].sum()
        return total / all_reduce([norm])[0].to(total.dtype)
