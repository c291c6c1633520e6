"""Operations of the CNN cells: (N, C, F, T) -> (N, C, ceil(F / stride), ceil(T / stride)).

`OPS[name](C, stride, affine)` makes one; stride is 1, 2, or a pair (along F, along T) such as (1, 2). Batch norm has no affine
parameters during search: with them an operation could rescale its output and cancel its alpha (DARTS, appendix A.1.1). A new
operation is one class and one row of OPS, and its name in a set of genotypes.py.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from models import fast
from models.sync import BatchNorm2d

OPS = {
    'none': lambda C, stride, affine: Zero(stride),
    'max_pool_3x3': lambda C, stride, affine: PoolBN(nn.MaxPool2d(3, stride, padding=1), C, affine),
    'avg_pool_3x3': lambda C, stride, affine: PoolBN(AvgPool(stride), C, affine),
    'skip_connect': lambda C, stride, affine: nn.Identity() if stride == 1 else reduce_map(C, C, stride, affine),
    'sep_conv_3x3': lambda C, stride, affine: SepConv(C, 3, stride, affine),
    'sep_conv_5x5': lambda C, stride, affine: SepConv(C, 5, stride, affine),
    'dil_conv_3x3': lambda C, stride, affine: DilConv(C, 3, stride, dilation=2, affine=affine),
    'dil_conv_5x5': lambda C, stride, affine: DilConv(C, 5, stride, dilation=2, affine=affine),
    'time_conv_5': lambda C, stride, affine: SeparableConv(C, (1, 5), stride, 1, affine),
    'time_conv_9': lambda C, stride, affine: SeparableConv(C, (1, 9), stride, 1, affine),
    'time_conv_5_dil_4': lambda C, stride, affine: SeparableConv(C, (1, 5), stride, 4, affine),
    'freq_conv_5': lambda C, stride, affine: SeparableConv(C, (5, 1), stride, 1, affine),
    'freq_conv_9': lambda C, stride, affine: SeparableConv(C, (9, 1), stride, 1, affine),
    'dense_conv_3x3': lambda C, stride, affine: DenseConv(C, stride, affine),
    'gated_conv_3x3': lambda C, stride, affine: GatedConv(C, stride, affine),
    'se_conv_3x3': lambda C, stride, affine: SqueezeConv(C, stride, affine),
    'broadcast_conv': lambda C, stride, affine: BroadcastConv(C, stride, affine),
    'freq_attention': lambda C, stride, affine: FrequencyAttention(C, stride, affine),
}


def _pair(stride) -> tuple[int, int]:
    return stride if isinstance(stride, tuple) else (stride, stride)


def _depthwise(C: int, kernel: tuple[int, int], stride=1, dilation: int = 1) -> nn.Conv2d:
    padding = tuple(dilation * (k // 2) for k in kernel)
    return nn.Conv2d(C, C, kernel, stride, padding, dilation, groups=C, bias=False)


class Zero(nn.Module):
    """The operation `none`. At stride 1 the input may have any rank, otherwise it is (N, C, F, T)."""

    def __init__(self, stride=1):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return torch.zeros_like(x)
        along_f, along_t = _pair(self.stride)
        return torch.zeros_like(x[:, :, ::along_f, ::along_t])


class PoolBN(nn.Sequential):
    """Pooling - batch norm."""

    def __init__(self, pool: nn.Module, C: int, affine: bool):
        super().__init__(pool, BatchNorm2d(C, affine=affine))


class AvgPool(nn.AvgPool2d):
    """The mean of those positions of a 3x3 window that lie within the map.

    On a GPU the map is padded first. PyTorch's own padding gives wrong gradients there, without a warning, if maps are in
    channels_last (https://github.com/pytorch/pytorch/issues/188344; seen with torch 2.11 on an H100).
    """

    def __init__(self, stride):
        super().__init__(3, stride, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        if not fast.on_gpu(x):
            return super().forward(x)
        ones = torch.ones(1, 1, *x.shape[2:], dtype=torch.promote_types(x.dtype, torch.float), device=x.device)
        y, share = (F.avg_pool2d(F.pad(maps, (1, 1, 1, 1)), 3, self.stride) for maps in (x, ones))
        return (y / share).to(y.dtype)  # share: how much of each window lies within the map


class StdConv(nn.Sequential):
    """ReLU - 1x1 convolution - batch norm. Brings a state to the width of a cell."""

    def __init__(self, C_in: int, C_out: int, affine: bool = True):
        super().__init__(nn.ReLU(), nn.Conv2d(C_in, C_out, 1, bias=False), BatchNorm2d(C_out, affine=affine))


class SeparableConv(nn.Sequential):
    """ReLU - depthwise convolution - 1x1 convolution - batch norm. A kernel may lie along one axis (Light-SERNet)."""

    def __init__(self, C: int, kernel: tuple[int, int], stride, dilation: int, affine: bool):
        super().__init__(nn.ReLU(), _depthwise(C, kernel, stride, dilation), nn.Conv2d(C, C, 1, bias=False),
                         BatchNorm2d(C, affine=affine))


class DilConv(SeparableConv):
    """That with a square kernel, which models/fast knows by its type."""

    def __init__(self, C: int, kernel_size: int, stride, dilation: int, affine: bool):
        super().__init__(C, (kernel_size, kernel_size), stride, dilation, affine)


class SepConv(nn.Sequential):
    """A separable convolution applied twice, the first with the stride."""

    def __init__(self, C: int, kernel_size: int, stride, affine: bool):
        super().__init__(DilConv(C, kernel_size, stride, 1, affine), DilConv(C, kernel_size, 1, 1, affine))


class FactorizedReduce(nn.Module):
    """ReLU - two 1x1 convolutions, of every second row and column - batch norm.

    (N, C_in, F, T) -> (N, C_out, ceil(F / 2), ceil(T / 2)). The first convolution reads even rows and columns, the second reads
    odd ones, after a zero is appended to an odd F or T. They have no stride: with few channels in `channels_last`, oneDNN's
    weight gradient of a 1x1 convolution that has one writes past its memory (uxlfoundation/oneDNN#6035).
    """

    def __init__(self, C_in: int, C_out: int, affine: bool = True):
        super().__init__()
        self.even = nn.Conv2d(C_in, C_out - C_out // 2, 1, bias=False)
        self.odd = nn.Conv2d(C_in, C_out // 2, 1, bias=False) if C_out > 1 else None
        self.bn = BatchNorm2d(C_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        even, odd = halves(F.relu(x))
        maps = [self.even(even), *([self.odd(odd)] if self.odd is not None else [])]
        return self.bn(torch.cat(maps, dim=1))


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Even and odd rows and columns, after a zero is appended to an odd axis: (N, C, ceil(F / 2), ceil(T / 2)) each."""
    return x[:, :, ::2, ::2], F.pad(x[:, :, 1::2, 1::2], (0, x.shape[3] % 2, 0, x.shape[2] % 2))


class AxisReduce(nn.Module):
    """ReLU - convolution of width and stride 2 along one axis - batch norm. (N, C_in, F, T) -> (N, C_out, F', T')

    stride: (1, 2) halves T, (2, 1) halves F; an odd axis gets a zero first, so that its length is rounded up.
    """

    def __init__(self, C_in: int, C_out: int, stride: tuple[int, int], affine: bool = True):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(C_in, C_out, stride, stride, bias=False)
        self.bn = BatchNorm2d(C_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        missing = [-size % step for size, step in zip(x.shape[2:], self.stride)]
        return self.bn(self.conv(F.pad(F.relu(x), (0, missing[1], 0, missing[0]))))


def reduce_map(C_in: int, C_out: int, stride, affine: bool = True) -> nn.Module:
    """Halves both axes of a map (stride 2), or one of them (a pair)."""
    return FactorizedReduce(C_in, C_out, affine) if stride == 2 else AxisReduce(C_in, C_out, stride, affine)


class DenseConv(nn.Sequential):
    """ReLU - 3x3 convolution across channels - batch norm."""

    def __init__(self, C: int, stride, affine: bool):
        super().__init__(nn.ReLU(), nn.Conv2d(C, C, 3, stride, 1, bias=False), BatchNorm2d(C, affine=affine))


class GatedConv(nn.Sequential):
    """Depthwise 3x3 convolution - 1x1 convolution to 2C - gated linear unit (Dauphin et al. 2017) - batch norm."""

    def __init__(self, C: int, stride, affine: bool):
        super().__init__(_depthwise(C, (3, 3), stride), nn.Conv2d(C, 2 * C, 1, bias=False), nn.GLU(dim=1),
                         BatchNorm2d(C, affine=affine))


class SqueezeConv(nn.Module):
    """ReLU - depthwise 3x3 - 1x1 convolution - squeeze and excitation (Hu et al. 2018) - batch norm."""

    def __init__(self, C: int, stride, affine: bool):
        super().__init__()
        hidden = max(1, C // 2)
        self.conv = nn.Sequential(nn.ReLU(), _depthwise(C, (3, 3), stride), nn.Conv2d(C, C, 1, bias=False))
        self.gate = nn.Sequential(nn.Conv2d(C, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, C, 1, bias=False),
                                  nn.Sigmoid())
        self.bn = BatchNorm2d(C, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y * self.gate(y.mean(dim=(2, 3), keepdim=True)))  # (N, C, 1, 1)


class BroadcastConv(nn.Module):
    """A residual along time that is broadcast over frequency (Kim et al. 2021, BC-ResNet).

    y = depthwise convolution along frequency; its mean over F, (N, C, 1, T), passes a depthwise convolution along time and a
    1x1 convolution, and is added to all frequencies of y. Batch norm comes last.
    """

    def __init__(self, C: int, stride, affine: bool):
        super().__init__()
        self.along_frequency = nn.Sequential(nn.ReLU(), _depthwise(C, (3, 1), stride), BatchNorm2d(C, affine=affine))
        self.along_time = nn.Sequential(_depthwise(C, (1, 5)), nn.SiLU(), nn.Conv2d(C, C, 1, bias=False))
        self.bn = BatchNorm2d(C, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        y = self.along_frequency(x)
        return self.bn(y + self.along_time(y.mean(dim=2, keepdim=True)))


class FrequencyAttention(nn.Module):
    """Each channel attends to frequencies, and what it finds is added to all of them: BN(x + W sum_f softmax_f(V x) x)."""

    def __init__(self, C: int, stride, affine: bool):
        super().__init__()
        self.stride = _pair(stride)
        self.score, self.out = nn.Conv2d(C, C, 1, bias=False), nn.Conv2d(C, C, 1, bias=False)
        self.bn = BatchNorm2d(C, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride != (1, 1):
            x = F.avg_pool2d(x, self.stride, self.stride, ceil_mode=True, count_include_pad=False)
        attended = (torch.softmax(self.score(x), dim=2) * x).sum(dim=2, keepdim=True)  # (N, C, 1, T)
        return self.bn(x + self.out(attended))


class MixedOp(nn.Module):
    """An edge of the supernet: sum_o weight_o * op_o(x), the continuous relaxation (DARTS, equation 2).

    ops: one module per primitive. `none` adds nothing, but its weight takes part in the softmax. States may have any rank.
    """

    def __init__(self, ops):
        super().__init__()
        self._ops = nn.ModuleList(ops)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True) if not isinstance(op, Zero))

    def one(self, x: Tensor, choice) -> Tensor:
        """A single operation: search_cells.Choice."""
        y = self._ops[choice.op](x)
        return y if choice.share is None else choice.share.to(y.dtype) * y


class PartialMixedOp(MixedOp):
    """An edge of PC-DARTS (Xu et al. 2020, section 3.1): 1/K of the channels pass the mixture, the others bypass it.

    The weights of an edge sum to the edge's share in its node (section 3.2); the bypassing channels are multiplied by it.
    """

    def __init__(self, ops, partial_channels: int, stride):
        super().__init__(ops)
        self.partial_channels, self.stride = partial_channels, stride

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        C_mixed = x.shape[1] // self.partial_channels
        mixed = super().forward(x[:, :C_mixed], weights)
        return self.merge(mixed, weights.sum() * self.bypass(x[:, C_mixed:]))

    def one(self, x: Tensor, choice) -> Tensor:
        C_mixed = x.shape[1] // self.partial_channels
        return self.merge(super().one(x[:, :C_mixed], choice), self.bypass(x[:, C_mixed:]))

    def bypass(self, x: Tensor) -> Tensor:
        """The channels that enter no operation, at the size of the node."""
        return x if _pair(self.stride) == (1, 1) else F.max_pool2d(x, self.stride, ceil_mode=True)

    def merge(self, mixed: Tensor, bypassed: Tensor) -> Tensor:
        """Both parts, shuffled: the next edge mixes other channels."""
        return channel_shuffle(torch.cat([mixed, bypassed], dim=1), self.partial_channels)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """(N, C, F, T): channel g * C / groups + c moves to c * groups + g (Zhang et al. 2018, ShuffleNet)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def drop_path(x: Tensor, drop_prob: float, training: bool) -> Tensor:
    """Zeroes whole samples of x, (N, ...), with probability drop_prob, and scales the others so that the mean stays."""
    if not training or drop_prob == 0.:
        return x
    keep = 1. - drop_prob
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    return x * mask / keep


class DropPath(nn.Module):
    """`drop_path` as a module. AugmentCNN.drop_path_prob sets its `p`."""

    def __init__(self):
        super().__init__()
        self.p = 0.

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.p, self.training)
