"""Counts the operations that a step sends to a GPU; needs no GPU.

Tensors are fake: they have sizes but no numbers (FakeTensorMode). They are CPU tensors, since autograd refuses to go backward
on a `cuda` device that is not there; the forms for a GPU are forced, and a call of a library recurrence counts as the one
operation that cuDNN makes of it. Views, which start nothing on a GPU, do not count.
"""
from contextlib import contextmanager
from unittest import mock

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import models.fast
from models.derivatives import second_derivatives

_library = torch.library.Library('emodarts_counts', 'DEF')
_library.define('recurrence(Tensor x, Tensor[] weights, int width) -> Tensor')
_library.define('recurrence_backward(Tensor dy, Tensor x, Tensor[] weights) -> Tensor[]')
_library.impl('recurrence', lambda x, weights, width: x.new_empty(*x.shape[:2], width), 'Meta')
_library.impl('recurrence_backward', lambda dy, x, weights: [torch.empty_like(t) for t in (x, *weights)], 'Meta')


class _CudnnRecurrence(torch.autograd.Function):
    """One operation forward, one backward, no second derivative: as cuDNN."""

    @staticmethod
    def forward(ctx, x, width, *weights):
        ctx.save_for_backward(x, *weights)
        return torch.ops.emodarts_counts.recurrence(x, weights, width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, *weights = ctx.saved_tensors
        dx, *dweights = torch.ops.emodarts_counts.recurrence_backward(dy, x, weights)
        return dx, None, *dweights


def _rnn_forward(rnn, x, state=None):
    """Stands in for nn.RNNBase.forward, with the zeros that it makes for want of an initial state."""
    n_directions = 2 if rnn.bidirectional else 1
    if state is None:
        for _ in range(2 if isinstance(rnn, nn.LSTM) else 1):
            x.new_zeros(rnn.num_layers * n_directions, len(x), rnn.hidden_size)
    return _CudnnRecurrence.apply(x, n_directions * rnn.hidden_size, *rnn._flat_weights), None


class Operations(TorchDispatchMode):
    """Counts dispatched operations that are not views, those of autograd's backward passes too."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += not func.is_view and func.namespace != 'prim'  # prim: questions about a tensor, such as its device
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_a_gpu():
    """Inside, tensors are fake and networks take their forms for a GPU."""
    native = {family: family.forward for family in (nn.LSTM, nn.GRU, nn.RNN)}

    def forward(rnn, x, state=None):
        without_cudnn = second_derivatives() and not torch.backends.cudnn.enabled
        return native[type(rnn)](rnn, x, state) if without_cudnn else _rnn_forward(rnn, x, state)
    with FakeTensorMode(allow_non_fake_inputs=True), mock.patch.object(models.fast, 'on_gpu', lambda x: True), \
            mock.patch.object(nn.LSTM, 'forward', forward), mock.patch.object(nn.GRU, 'forward', forward), \
            mock.patch.object(nn.RNN, 'forward', forward):
        yield


def count(step) -> int:
    """Operations of a step."""
    with Operations() as operations:
        step()
    return operations.n
