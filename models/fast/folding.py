"""Batch norm behind a linear map, folded into that map: what lies between them is never written to memory. For a CPU.

A search cell adds w_o * BN(P_o z_o) over operations o, where P_o is a 1x1 convolution and BN has no affine part. Mean and
variance of y = P z follow from the mean and the second moment of z: mu_y = P mu and var_y = diag(P (M - mu mu^T) P^T). Hence
w * BN(P z) is the linear map w / sigma P and a bias. Results are the same but for rounding; z is read twice, where otherwise y
would be written, read several times and kept. float32 loses accuracy in the difference M - mu mu^T: the result is off by 0.5%
in a channel whose mean is 300 standard deviations from zero.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from models.parallel import sum_over_ranks, world_size


def linear(zs: list, A: Tensor, b: Tensor | None = None) -> list:
    """y_e = A_e z_e + b_e for E maps z_e, (N, K, F, T) -> (N, C, F, T). A: (E, C, K), or (1, C, K) for all. b: (E, C)."""
    A, shifts = A.expand(len(zs), -1, -1), [None] * len(zs) if b is None else b.unbind()
    return [F.conv2d(z, a[:, :, None, None], shift) for z, a, shift in zip(zs, A.unbind(), shifts)]


class _Moments(torch.autograd.Function):
    """z (N, K, F, T) -> sums over N, F and T: z (K,) and z z^T (K, K)"""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        # This sum of products is the weight gradient of a 1x1 convolution, and oneDNN's is fast for few channels.
        K = z.shape[1]
        second = torch.ops.aten.convolution_backward(
            z, z, z.new_empty(K, K, 1, 1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])[1]
        return z.sum(dim=(0, 2, 3)), second[:, :, 0, 0]

    @staticmethod
    def backward(ctx, d_first, d_second):
        z, = ctx.saved_tensors
        weight = (d_second + d_second.T)[:, :, None, None]
        return F.conv2d(z, weight, d_first)


def fold(zs: list, P: Tensor, norms: list) -> tuple:
    """A (E, C, K) and b (E, C) such that BN_e(P_e z_e) = A_e z_e + b_e.

    zs: E maps (N, K, F, T). P: (E, C, K). norms: E batch norms of C channels without affine part. As in nn.BatchNorm2d, their
    running statistics are updated in training and used in eval mode.
    """
    if norms[0].training:
        first, second = zip(*map(_Moments.apply, zs))
        (first, second), n = _mean([torch.stack(first), torch.stack(second)], zs[0])
        mu = (P @ first.unsqueeze(-1)).squeeze(-1)  # (E, C)
        covariance = second - first.unsqueeze(-1) * first.unsqueeze(-2)  # (E, K, K)
        var = ((P @ covariance) * P).sum(dim=-1).clamp_min(0.)  # (E, C)
        _track(norms, mu, var, n)
    else:
        mu, var = _tracked(norms)
    scale = (var + norms[0].eps).rsqrt()
    return P * scale.unsqueeze(-1), -mu * scale


def fold_plain(z: Tensor, norms: list) -> tuple:
    """A and b as in `fold` for E batch norms of one map z, (N, C, F, T), with P = 1: (1 or E, C, C), (1 or E, C)."""
    if norms[0].training:
        (mu, second), n = _mean([z.sum(dim=(0, 2, 3)), (z * z).sum(dim=(0, 2, 3))], z)
        mu, var = mu.unsqueeze(0), (second - mu * mu).clamp_min(0.).unsqueeze(0)
        _track(norms, mu, var, n)
    else:
        mu, var = _tracked(norms)
    scale = (var + norms[0].eps).rsqrt()
    return torch.diag_embed(scale), -mu * scale


def _mean(sums, z):
    """Sums over this rank's share of z, (N, ., F, T) -> means over the whole batch, and the number of values per channel."""
    n = z.numel() // z.shape[1]
    if world_size() > 1:
        flat = sum_over_ranks(torch.cat([s.flatten() for s in sums] + [sums[0].new_full((1,), n)]))
        *totals, n = flat.split([s.numel() for s in sums] + [1])
        sums = [total.view(s.shape) for total, s in zip(totals, sums)]
    elif n == 1:
        raise ValueError('batch norm needs more than one value per channel')
    return [s / n for s in sums], n


@torch.no_grad()
def _track(norms, mean, var, n):
    """Updates running statistics. mean, var (biased): (E, C), or (1, C) for all norms."""
    momentum = norms[0].momentum
    mean, var = mean.expand(len(norms), -1), (var * (n / (n - 1))).expand(len(norms), -1)
    torch._foreach_lerp_([norm.running_mean for norm in norms], list(mean.unbind()), momentum)
    torch._foreach_lerp_([norm.running_var for norm in norms], list(var.unbind()), momentum)
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)


def _tracked(norms):
    return torch.stack([norm.running_mean for norm in norms]), torch.stack([norm.running_var for norm in norms])
