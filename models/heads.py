"""From maps to sequences and from sequences to vectors, in other ways than those of the paper's space."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

N_HEADS = 4  # attention heads over frequency: as wide a sequence as four bands
N_POSITIONS = 16  # learned scores of frequencies; they are interpolated to the height of a map


class AttendedBands(nn.Module):
    """(N, C, F, T) -> (N, n_steps, C * N_HEADS): each head attends to frequencies, by content and by position."""

    def __init__(self, C: int):
        super().__init__()
        self.score = nn.Conv2d(C, N_HEADS, 1)
        self.position = nn.Parameter(.1 * torch.randn(1, N_HEADS, N_POSITIONS))

    def forward(self, x: Tensor, n_steps: int) -> Tensor:
        x = F.adaptive_avg_pool2d(x, (x.shape[2], n_steps))  # (N, C, F, T')
        position = F.interpolate(self.position, x.shape[2], mode='linear', align_corners=True)  # (1, heads, F)
        weights = torch.softmax(self.score(x) + position.unsqueeze(-1), dim=2)  # (N, heads, F, T')
        return torch.einsum('nhft,ncft->ntch', weights, x).flatten(2)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over time of the steps where mask, (N, T, 1) bool, is True: (N, T, H) -> (N, H). None: of all steps."""
    return x.mean(dim=1) if mask is None else x.masked_fill(~mask, 0.).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


class Mean(nn.Module):
    """Mean over time: (N, T, H) -> (N, H). mask: (N, T, 1) bool, False where a step is padding; None: there is none."""

    def __init__(self, H: int):
        super().__init__()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return masked_mean(x, mask)


class Max(Mean):
    """Maximum over time: (N, T, H) -> (N, H)"""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return (x if mask is None else x.masked_fill(~mask, torch.finfo(x.dtype).min)).amax(dim=1)


class Attention(Mean):
    """Weighted mean over time; each channel attends by itself: softmax_t(W tanh(V x)), (N, T, H) -> (N, H)"""

    def __init__(self, H: int):
        super().__init__(H)
        hidden = max(1, H // 4)
        self.score = nn.Sequential(nn.Linear(H, hidden), nn.Tanh(), nn.Linear(hidden, H))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = self.score(x)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return (torch.softmax(scores, dim=1) * x).sum(dim=1)


HEADS = {'mean': Mean, 'max': Max, 'attention': Attention}
