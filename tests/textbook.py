"""The supernet as DARTS writes it, edge by edge and operation by operation: what the fast form must equal, and is timed against."""
import torch
import torch.nn as nn

from models.depthwise import DepthwiseConv2d
from models.search_cells import SearchCell, SearchSeqCell
from models.search_cnn import SearchCNNController


def run_dag(dag, s0, s1, weights):
    """States of the nodes. weights: one (n_inputs, n_ops) tensor a node, softmax over operations already taken."""
    states = [s0, s1]
    for edges, w_edges in zip(dag, weights, strict=True):
        states.append(sum(edge(s, w) for edge, s, w in zip(edges, states, w_edges, strict=True)))
    return states[2:]


class TextbookCell(SearchCell):
    def forward(self, s0, s1, weights):
        return torch.cat(run_dag(self.dag, self.preproc0(s0), self.preproc1(s1), weights), dim=1)


class TextbookSeqCell(SearchSeqCell):
    def forward(self, s0, s1, weights):
        return torch.cat(run_dag(self.dag, self.preproc0(s0), self.preproc1(s1), weights), dim=-1)


def textbook(net):
    """Turns a network into its textbook form, in place: the same parameters and buffers. Returns it."""
    forms = {SearchCell: TextbookCell, SearchSeqCell: TextbookSeqCell, DepthwiseConv2d: nn.Conv2d}
    for module in net.modules():
        module.__class__ = forms.get(type(module), type(module))
    return net
