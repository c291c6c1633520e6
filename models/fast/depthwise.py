"""Depthwise convolutions, with a backward pass that takes oneDNN's fast paths on a CPU."""
import torch
import torch.nn as nn
import torch.nn.functional as F

_WIDTH = 3  # the widest kernel row whose weight gradient oneDNN has a depthwise kernel for


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d, C -> C, one filter a channel, odd kernel, 'same' padding; the same numbers, parameters and state_dict."""

    def __init__(self, C, kernel_size, stride=1, dilation=1):
        super().__init__(C, C, kernel_size, stride, dilation * (kernel_size // 2), dilation, groups=C, bias=False)

    def forward(self, x):
        return depthwise(x, [self])[0]


def depthwise(x, convs):
    """[conv(x) for conv in convs], DepthwiseConv2ds of one stride and one dilation, of any kernel size.

    oneDNN differentiates a depthwise convolution quickly only where the kernel is not dilated and, for the weight gradient,
    three wide: otherwise backward takes six to fifteen times as long as forward (docs/benchmarks). Here all are brought to
    that form, and what that takes of x is made once for all convs.
    """
    stride, dilation = convs[0].stride[0], convs[0].dilation[0]
    if x.is_cuda:
        return [nn.Conv2d.forward(conv, x) for conv in convs]
    if stride == dilation > 1:  # reads every stride-th row and column alone, and among them it is not dilated
        x, stride, dilation = x[:, :, ::stride, ::stride], 1, 1
    return _Conv.apply(x, stride, dilation, *(conv.weight for conv in convs))


# y = conv(x, w) is linear in x and in w, and so are its two gradients in both their arguments: each is the derivative of the
# others. The three functions below differentiate one another, any number of times.

class _Conv(torch.autograd.Function):
    """x, *ws -> *ys"""

    @staticmethod
    def forward(ctx, x, stride, dilation, *ws):
        ctx.save_for_backward(x, *ws)
        ctx.how = stride, dilation
        return tuple(F.conv2d(x, w, None, stride, dilation * (w.shape[-1] // 2), dilation, len(w)) for w in ws)

    @staticmethod
    def backward(ctx, *gs):
        x, *ws = ctx.saved_tensors
        dx = _data_gradient(gs, ws, x.shape, *ctx.how) if ctx.needs_input_grad[0] else None
        dws = _WeightGradient.apply(x, *ctx.how, [w.shape[-1] for w in ws], *gs) if any(ctx.needs_input_grad[3:]) else ()
        return dx, None, None, *(dws or [None] * len(ws))


class _DataGradient(torch.autograd.Function):
    """y, w -> x: the transpose of a convolution."""

    @staticmethod
    def forward(ctx, y, w, shape, stride, dilation):
        ctx.save_for_backward(y, w)
        ctx.how = stride, dilation
        if stride == 1:
            return F.conv2d(y, w.flip(2, 3), None, 1, dilation * (w.shape[-1] // 2), dilation, len(w))
        return _backward(y, y.new_empty(1).expand(shape), w, stride, [w.shape[-1] // 2] * 2, 0)

    @staticmethod
    def backward(ctx, g):
        y, w = ctx.saved_tensors
        dy = _Conv.apply(g, *ctx.how, w)[0] if ctx.needs_input_grad[0] else None
        dw = _WeightGradient.apply(g, *ctx.how, [w.shape[-1]], y)[0] if ctx.needs_input_grad[1] else None
        return dy, dw, None, None, None


class _WeightGradient(torch.autograd.Function):
    """x, *ys -> *ws of sizes ks"""

    @staticmethod
    def forward(ctx, x, stride, dilation, ks, *ys):
        ctx.save_for_backward(x, *ys)
        ctx.how = stride, dilation
        if dilation > 1:  # a dilated convolution is a plain one on each phase
            x, ys = _phases(x, dilation), [_phases(y, dilation) for y in ys]
        C, padded, dws = x.shape[1], {}, []
        for k, y in zip(ks, ys):
            if k <= _WIDTH:
                dws.append(_backward(y, x, x.new_empty(C, 1, k, k), stride, [k // 2] * 2, 1))
                continue
            dw = x.new_empty(C, 1, k, k)
            for first in {*range(0, k - _WIDTH, _WIDTH - 1), k - _WIDTH}:  # three columns at a time
                if (k, first) not in padded:  # so that a kernel of these columns alone meets them
                    padded[k, first] = _pad(x, k // 2 - first, first + _WIDTH - 1 - k // 2)
                dw[..., first:first + _WIDTH] = _backward(
                    y, padded[k, first], x.new_empty(C, 1, k, _WIDTH), stride, [k // 2, 0], 1)
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


def _backward(g, x, w, stride, padding, which):
    mask = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(
        g, x, w, None, [stride] * 2, padding, [1, 1], False, [0, 0], len(w), mask)[which]


def _pad(x, left, right):
    """F.pad by columns of zeros; a negative number takes columns away. F.pad itself fills the whole result twice."""
    if left < 0 or right < 0:
        return F.pad(x, (left, right))
    N, C, H, W = x.shape
    wide = x.new_empty(N, H, left + W + right, C).permute(0, 3, 1, 2)
    wide[..., :left], wide[..., left:left + W], wide[..., left + W:] = 0., x, 0.
    return wide


def _phases(x, d):
    """(N, C, F, T) -> (d * d * N, C, ceil(F / d), ceil(T / d)): every d-th row and column, from each of d * d beginnings."""
    H, W = x.shape[2:]
    if H % d or W % d:
        x = F.pad(x, (0, -W % d, 0, -H % d))
    x = x.permute(0, 2, 3, 1).unflatten(2, (-1, d)).unflatten(1, (-1, d))  # (N, F/d, d, T/d, d, C)
    return x.permute(2, 4, 0, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)  # one copy, in channels_last
