"""Operations of the CNN cells: (N, C, F, T) -> (N, C, ceil(F / stride), ceil(T / stride)).

`OPS[name](C, stride, affine)` makes one. During search batch norm is not affine, so that no operation can rescale itself past
its alpha (DARTS, section 3.1). A new operation is one class and one row.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from models.fast.depthwise import DepthwiseConv2d
from models.sync import BatchNorm2d

OPS = {
    'none': lambda C, stride, affine: Zero(stride),
    'max_pool_3x3': lambda C, stride, affine: PoolBN(nn.MaxPool2d(3, stride, padding=1), C, affine),
    'avg_pool_3x3': lambda C, stride, affine: PoolBN(
        nn.AvgPool2d(3, stride, padding=1, count_include_pad=False), C, affine),
    'skip_connect': lambda C, stride, affine: nn.Identity() if stride == 1 else FactorizedReduce(C, C, affine),
    'sep_conv_3x3': lambda C, stride, affine: SepConv(C, 3, stride, affine),
    'sep_conv_5x5': lambda C, stride, affine: SepConv(C, 5, stride, affine),
    'dil_conv_3x3': lambda C, stride, affine: DilConv(C, 3, stride, dilation=2, affine=affine),
    'dil_conv_5x5': lambda C, stride, affine: DilConv(C, 5, stride, dilation=2, affine=affine),
}


class Zero(nn.Module):
    """The operation `none`. Any rank at stride 1, (N, C, F, T) otherwise."""

    def __init__(self, stride=1):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return torch.zeros_like(x if self.stride == 1 else x[:, :, ::self.stride, ::self.stride])


class PoolBN(nn.Sequential):
    """Pooling, then batch norm."""

    def __init__(self, pool, C, affine):
        super().__init__(pool, BatchNorm2d(C, affine=affine))


class StdConv(nn.Sequential):
    """ReLU - 1x1 convolution - batch norm: brings a state to a cell's width."""

    def __init__(self, C_in, C_out, affine=True):
        super().__init__(nn.ReLU(), nn.Conv2d(C_in, C_out, 1, bias=False), BatchNorm2d(C_out, affine=affine))


class DilConv(nn.Sequential):
    """ReLU - depthwise convolution (dilated) - pointwise convolution - batch norm."""

    def __init__(self, C, kernel_size, stride, dilation, affine):
        super().__init__(
            nn.ReLU(),
            DepthwiseConv2d(C, kernel_size, stride, dilation),
            nn.Conv2d(C, C, 1, bias=False),
            BatchNorm2d(C, affine=affine))


class SepConv(nn.Sequential):
    """Separable convolution applied twice, the stride in the first."""

    def __init__(self, C, kernel_size, stride, affine):
        super().__init__(DilConv(C, kernel_size, stride, 1, affine), DilConv(C, kernel_size, 1, 1, affine))


class FactorizedReduce(nn.Module):
    """Halves F and T by two strided 1x1 convolutions, the second one step aside, so that every position is read by one.

    An odd F or T is padded by one zero for the second: both give ceil(size / 2).
    """

    def __init__(self, C_in, C_out, affine=True):
        super().__init__()
        self.even = nn.Conv2d(C_in, C_out - C_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False) if C_out > 1 else None
        self.bn = BatchNorm2d(C_out, affine=affine)

    def forward(self, x):
        x = F.relu(x)
        if self.odd is None:
            return self.bn(self.even(x))
        aside = F.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))
        return self.bn(torch.cat([self.even(x), self.odd(aside)], dim=1))  # (N, C_out, ceil(F/2), ceil(T/2))

    def matrix(self):
        """(C_out, 2 C_in): the two convolutions as one map of `factors`."""
        even = self.even.weight.flatten(1)
        if self.odd is None:
            return F.pad(even, (0, even.shape[1]))
        return torch.block_diag(even, self.odd.weight.flatten(1))


def factors(x):
    """(N, C, F, T) -> (N, 2C, ceil(F / 2), ceil(T / 2)): what FactorizedReduce reads of each 2 x 2 square."""
    height, width = x.shape[2] % 2, x.shape[3] % 2
    aside = F.pad(x[:, :, 1::2, 1::2], (0, width, 0, height))
    return torch.cat([x[:, :, ::2, ::2], aside], dim=1)


class MixedOp(nn.Module):
    """sum_o weight_o * op_o(x): the continuous relaxation (DARTS, equation 2), for states of any rank.

    ops: modules in the order of the primitives. `none` adds nothing but takes its share of the softmax. A cell of the supernet
    holds its edges' operations in these, and computes the same sums for all of its edges together; this is the definition.
    """

    def __init__(self, ops):
        super().__init__()
        self._ops = nn.ModuleList(ops)

    def forward(self, x, weights):
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True) if not isinstance(op, Zero))


def channel_shuffle(x, groups):
    """(N, C, F, T): channel g * C / groups + c goes to c * groups + g (Zhang et al. 2018, ShuffleNet)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def drop_path(x, drop_prob, training):
    """Zeroes whole samples of x, (N, ...), with probability drop_prob, and scales the rest so that the mean stays."""
    if not training or drop_prob == 0.:
        return x
    keep = 1. - drop_prob
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    return x * mask / keep


class DropPath(nn.Module):
    """`drop_path` as a module; the training loop sets `p` through AugmentCNN.drop_path_prob."""

    def __init__(self):
        super().__init__()
        self.p = 0.

    def forward(self, x):
        return drop_path(x, self.p, self.training)
