"""The supernet as DARTS writes it, edge by edge and operation by operation: what the fast form must equal and is timed against."""
import torch
import torch.nn as nn
import torch.nn.functional as F

from models.depthwise import DepthwiseConv2d
from models.search_cells import SearchCell, SearchSeqCell


def partial(cell, edge, j, x, weights):
    """An edge of PC-DARTS, as its authors' code has it; an edge's weights sum to its share in the node."""
    K = cell.partial_channels
    y = edge(x[:, :x.shape[1] // K], weights)
    rest = x[:, x.shape[1] // K:]
    rest = F.max_pool2d(rest, 2, 2, ceil_mode=True) if cell.stride(j) == 2 else rest
    N, C, H, W = (y := torch.cat([y, weights.sum() * rest], dim=1)).shape
    return y.view(N, K, C // K, H, W).transpose(1, 2).contiguous().view(N, C, H, W)


class TextbookCell(SearchCell):
    def forward(self, s0, s1, weights):
        def carry(edge, j, x, w):
            return edge(x, w) if self.partial_channels == 1 else partial(self, edge, j, x, w)
        states = [self.preproc0(s0), self.preproc1(s1)]
        for edges, w_node in zip(self.dag, weights, strict=True):
            states.append(sum(carry(edge, j, s, w) for j, (edge, s, w) in enumerate(zip(edges, states, w_node, strict=True))))
        return torch.cat(states[2:], dim=1)


class TextbookSeqCell(SearchSeqCell):
    def forward(self, s0, s1, weights):
        states = [self.preproc0(s0), self.preproc1(s1)]
        for edges, w_node in zip(self.dag, weights, strict=True):
            states.append(sum(edge(s, w) for edge, s, w in zip(edges, states, w_node, strict=True)))
        return torch.cat(states[2:], dim=-1)


def textbook(net):
    """Turns a network into its textbook form, in place: the same parameters and buffers. Returns it."""
    forms = {SearchCell: TextbookCell, SearchSeqCell: TextbookSeqCell, DepthwiseConv2d: nn.Conv2d}
    for module in net.modules():
        module.__class__ = forms.get(type(module), type(module))
    return net
