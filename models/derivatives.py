"""Whether gradients will be differentiated once more, as exact order 2 does, and what cuDNN may do meanwhile.

cuDNN's recurrences have no second derivative, and torch's depthwise convolutions have a slow one. Forward passes therefore ask
`second_derivatives()`; the Architect sets it for the one pass that needs it.
"""
from contextlib import contextmanager

import torch

_second_derivatives = False


def second_derivatives() -> bool:
    """True while a forward pass runs whose gradient will be differentiated again."""
    return _second_derivatives


@contextmanager
def differentiating_twice(enabled: bool = True):
    """Sets what `second_derivatives` returns inside."""
    global _second_derivatives
    before, _second_derivatives = _second_derivatives, enabled
    try:
        yield
    finally:
        _second_derivatives = before


@contextmanager
def cudnn(enabled: bool = True, tf32: bool = True):
    """Inside, cuDNN is off unless `enabled`, and rounds no factor to ten bits (TF32) unless `tf32`."""
    flags = torch.backends.cudnn
    before = flags.enabled, flags.allow_tf32
    try:
        flags.enabled, flags.allow_tf32 = before[0] and enabled, before[1] and tf32
        yield
    finally:
        flags.enabled, flags.allow_tf32 = before
