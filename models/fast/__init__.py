"""What makes search and retraining fast. Everything here computes what models/search_cells.py and models/ops.py say.

A CPU waits for memory, so cells share what depends on a state alone and keep few maps (folding, depthwise). On a GPU every
operation has to be launched, which takes longer than to compute a small map, so cells put edges side by side in one tensor
(side_by_side). At the paper's sizes maps are not small: docs/benchmarks/h100.md.
"""
from torch import Tensor


def on_gpu(x: Tensor) -> bool:
    """Whether x takes the forms for a GPU; tests and benchmark replace this function to run them on a CPU."""
    return x.is_cuda
