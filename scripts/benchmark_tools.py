"""What benchmark.py measures with: time, memory, traffic, and what the device can do at most."""
import statistics
import time
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def seconds(step, device):
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def resident(field='VmRSS'):
    """Bytes of this process in memory, now or (VmHWM) at most."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write; views move none."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.bytes += sum(t.nbytes for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor))
        return result


def ceilings(device):
    """The device's own copy bandwidth, read and write, in bytes/s, and its float32 matrix rate in FLOP/s."""
    x = torch.ones(2 ** 26, device=device)  # 256 MiB
    y, m = torch.empty_like(x), torch.ones(2048, 2048, device=device)

    def median(step):
        return statistics.median([seconds(step, device) for _ in range(9)][2:])
    return {'copy': 2 * x.nbytes / median(lambda: y.copy_(x)), 'matrix': 2 * 2048 ** 3 / median(lambda: m @ m)}


def work(step):
    """Bytes and FLOP of a step."""
    with Traffic() as traffic:
        step()
    with FlopCounterMode(display=False) as counter:
        step()
    return traffic.bytes, counter.get_total_flops()
