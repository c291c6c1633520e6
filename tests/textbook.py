"""Supernet and alpha step as DARTS' code writes them: what the fast forms must equal, and are timed against."""
import copy

import torch
import torch.nn as nn
import torch.nn.functional as F

from models.architect import RADIUS
from models.fast.depthwise import DepthwiseConv2d
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
    net.twice_differentiable = False  # cuDNN's recurrences are not
    return net


class TextbookArchitect:
    """Order 1 and 2 as in pt.darts: a second network for the virtual step, loops over parameters, no pass spared."""

    def __init__(self, net, w_momentum, w_weight_decay, radius=RADIUS):
        self.net, self.v_net = net, copy.deepcopy(net)
        self.w_momentum, self.w_weight_decay, self.radius = w_momentum, w_weight_decay, radius

    def backward(self, val_X, val_y):
        loss = self.net.loss(val_X, val_y)
        alphas = list(self.net.alphas())
        for alpha, g in zip(alphas, torch.autograd.grad(loss, alphas, allow_unused=True)):
            alpha.grad = torch.zeros_like(alpha) if g is None else g

    def unrolled_backward(self, trn_X, trn_y, val_X, val_y, xi, w_optim):
        weights = list(self.net.weights())
        grads = torch.autograd.grad(self.net.loss(trn_X, trn_y), weights, allow_unused=True)
        with torch.no_grad():
            for w, vw, g in zip(weights, self.v_net.weights(), grads):
                m = w_optim.state[w].get('momentum_buffer', 0.) * self.w_momentum
                vw.copy_(w - xi * (m + (0. if g is None else g) + self.w_weight_decay * w))
            for a, va in zip(self.net.alphas(), self.v_net.alphas()):
                va.copy_(a)
        v_alphas, v_weights = list(self.v_net.alphas()), list(self.v_net.weights())
        v_grads = torch.autograd.grad(self.v_net.loss(val_X, val_y), v_alphas + v_weights, allow_unused=True)
        v_grads = [torch.zeros_like(p) if g is None else g for p, g in zip(v_alphas + v_weights, v_grads)]
        dalpha, dw = v_grads[:len(v_alphas)], v_grads[len(v_alphas):]
        for alpha, da, h in zip(self.net.alphas(), dalpha, self.hessian(dw, trn_X, trn_y)):
            alpha.grad = da - xi * h

    def hessian(self, dw, trn_X, trn_y):
        eps = self.radius / torch.cat([d.flatten() for d in dw]).norm()
        signs = []
        for move in (eps, -2. * eps):  # w + eps d, then w - eps d
            with torch.no_grad():
                for w, d in zip(self.net.weights(), dw):
                    w += move * d
            alphas = list(self.net.alphas())
            grads = torch.autograd.grad(self.net.loss(trn_X, trn_y), alphas, allow_unused=True)
            signs.append([torch.zeros_like(a) if g is None else g for a, g in zip(alphas, grads)])
        with torch.no_grad():
            for w, d in zip(self.net.weights(), dw):
                w += eps * d
        return [(p - n) / (2. * eps) for p, n in zip(*signs)]
