"""Convolutions with derivatives of their own: on a CPU first ones that take oneDNN's fast paths, anywhere fast second ones."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from models import fast
from models.derivatives import second_derivatives

_WIDTH = 3  # widest kernel row for which oneDNN has a depthwise weight gradient


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise nn.Conv2d of models/ops.py with the backward pass of `depthwise`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if fast.on_gpu(x) else depthwise(x, [self])[0]


def use_fast_depthwise(net: nn.Module, one_row: bool = False):
    """Turns the depthwise convolutions of a network into DepthwiseConv2d; parameters and results stay the same.

    one_row: those whose kernel has one row; otherwise those with a square kernel.
    """
    for module in net.modules():
        if type(module) is nn.Conv2d and _has_fast_form(module, one_row):
            module.__class__ = DepthwiseConv2d


def _has_fast_form(conv: nn.Conv2d, one_row: bool) -> bool:
    """Whether `depthwise` computes this convolution: C -> C, an odd kernel, 'same' padding with zeros, no bias."""
    k, d = conv.kernel_size[1], conv.dilation[0]
    kernel = (1 if one_row else k, k)
    return (conv.groups == conv.in_channels == conv.out_channels > 1 and conv.bias is None and conv.padding_mode == 'zeros'
            and k % 2 == 1 and conv.kernel_size == kernel and conv.dilation == (d, d) and len({*conv.stride}) == 1
            and conv.padding == tuple(d * (size // 2) for size in kernel))


def depthwise(x: Tensor, convs: list) -> tuple:
    """[conv(x) for conv in convs]: depthwise convolutions, C -> C, of one stride and one dilation, odd kernels of any size.

    Kernels are square, or all have one row.

    oneDNN differentiates a depthwise convolution quickly only if the kernel is not dilated and, for the weight gradient, three
    wide; otherwise backward takes six to fifteen times as long as forward (docs/benchmarks). Here all of them are brought to
    that form, and what this needs of x is computed once for all convs.
    """
    stride, dilation = convs[0].stride[0], convs[0].dilation[0]
    if stride == dilation > 1:  # reads only every stride-th row and column, and among those it is not dilated
        x, stride, dilation = x[:, :, ::stride, ::stride], 1, 1
    return _Conv.apply(x, stride, dilation, *(conv.weight for conv in convs))


def grouped_conv(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """F.conv2d with 'same' padding, in as many groups as the shapes say: x (N, G * K, F, T), weight (G * C, K, k, k).

    Where a gradient will be differentiated again, the functions below spare torch's loop over groups.
    """
    if second_derivatives():
        return _Conv.apply(x, stride, dilation, weight)[0]
    return _conv(x, weight, stride, dilation)


def _conv(x, w, stride, dilation):
    return F.conv2d(x, w, None, stride, _padding(w.shape, dilation), dilation, x.shape[1] // w.shape[1])


def _padding(shape, dilation):
    """Along F and T, so that a kernel of this shape keeps the size of a map."""
    return [dilation * (size // 2) for size in shape[2:]]


# y = conv(x, w) is linear in x and in w, and so are its two gradients in both of their arguments. Each of these three functions
# is therefore a derivative of the other two, and they can be differentiated any number of times.

class _Conv(torch.autograd.Function):
    """x, *ws -> *ys"""

    @staticmethod
    def forward(ctx, x, stride, dilation, *ws):
        ctx.save_for_backward(x, *ws)
        ctx.how = stride, dilation
        return tuple(_conv(x, w, stride, dilation) for w in ws)

    @staticmethod
    def backward(ctx, *gs):
        x, *ws = ctx.saved_tensors
        dx = _data_gradient(gs, ws, x.shape, *ctx.how) if ctx.needs_input_grad[0] else None
        dws = _WeightGradient.apply(x, *ctx.how, [w.shape for w in ws], *gs) if any(ctx.needs_input_grad[3:]) else ()
        return dx, None, None, *(dws or [None] * len(ws))


class _DataGradient(torch.autograd.Function):
    """y, w -> x: the transpose of a convolution."""

    @staticmethod
    def forward(ctx, y, w, shape, stride, dilation):
        ctx.save_for_backward(y, w)
        ctx.how = stride, dilation
        if stride == 1 and w.shape[1] == 1 and not fast.on_gpu(y):
            return _conv(y, w.flip(2, 3), 1, dilation)
        return _backward(y, y.new_empty(1).expand(shape), w, stride, _padding(w.shape, dilation), dilation, 0)

    @staticmethod
    def backward(ctx, g):
        y, w = ctx.saved_tensors
        dy = _Conv.apply(g, *ctx.how, w)[0] if ctx.needs_input_grad[0] else None
        dw = _WeightGradient.apply(g, *ctx.how, [w.shape], y)[0] if ctx.needs_input_grad[1] else None
        return dy, dw, None, None, None


class _WeightGradient(torch.autograd.Function):
    """x, *ys -> *ws of these shapes"""

    @staticmethod
    def forward(ctx, x, stride, dilation, shapes, *ys):
        ctx.save_for_backward(x, *ys)
        ctx.how = stride, dilation
        if fast.on_gpu(x):
            return tuple(_backward(y, x, x.new_empty(1).expand(shape), stride, _padding(shape, dilation), dilation, 1)
                         for y, shape in zip(ys, shapes))
        if dilation > 1:  # on each phase a dilated convolution is a plain one
            rows = 1 if all(shape[2] == 1 for shape in shapes) else dilation
            x, ys = _phases(x, rows, dilation), [_phases(y, rows, dilation) for y in ys]
        C, padded, dws = x.shape[1], {}, []
        for (*_, h, k), y in zip(shapes, ys):
            if k <= _WIDTH:
                dws.append(_backward(y, x, x.new_empty(C, 1, h, k), stride, [h // 2, k // 2], 1, 1))
                continue
            dw = x.new_empty(C, 1, h, k)
            for first in {*range(0, k - _WIDTH, _WIDTH - 1), k - _WIDTH}:  # three columns at a time
                if (k, first) not in padded:  # x such that a kernel of only these columns meets them
                    padded[k, first] = _pad(x, k // 2 - first, first + _WIDTH - 1 - k // 2)
                dw[..., first:first + _WIDTH] = _backward(
                    y, padded[k, first], x.new_empty(C, 1, h, _WIDTH), stride, [h // 2, 0], 1, 1)
            dws.append(dw)
        return tuple(dws)

    @staticmethod
    def backward(ctx, *gs):
        x, *ys = ctx.saved_tensors
        dx = _data_gradient(ys, gs, x.shape, *ctx.how) if ctx.needs_input_grad[0] else None
        dys = _Conv.apply(x, *ctx.how, *gs) if any(ctx.needs_input_grad[4:]) else [None] * len(ys)
        return dx, None, None, None, *dys


def _data_gradient(ys, ws, shape, stride, dilation):
    return sum(_DataGradient.apply(y, w, shape, stride, dilation) for y, w in zip(ys, ws))


def _backward(g, x, w, stride, padding, dilation, which):
    """A gradient of conv(x, w), given that of its output: of x (which = 0) or of w (which = 1)."""
    mask = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(
        g, x, w, None, [stride] * 2, padding, [dilation] * 2, False, [0, 0], x.shape[1] // w.shape[1], mask)[which]


def _pad(x, left, right):
    """F.pad by columns of zeros; a negative number removes columns. (F.pad itself fills the whole result twice.)"""
    if left < 0 or right < 0:
        return F.pad(x, (left, right))
    N, C, H, W = x.shape
    wide = x.new_empty(N, H, left + W + right, C).permute(0, 3, 1, 2)
    wide[..., :left], wide[..., left:left + W], wide[..., left + W:] = 0., x, 0.
    return wide


def _phases(x, rows, columns):
    """(N, C, F, T) -> (rows * columns * N, C, F / rows, T / columns), rounded up.

    Each of the rows * columns offsets becomes a map: of every row and column that lies so far apart.
    """
    H, W = x.shape[2:]
    if H % rows or W % columns:
        x = F.pad(x, (0, -W % columns, 0, -H % rows))
    x = x.permute(0, 2, 3, 1).unflatten(2, (-1, columns)).unflatten(1, (-1, rows))  # (N, F/rows, rows, T/columns, columns, C)
    return x.permute(2, 4, 0, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)  # one copy, in channels_last
