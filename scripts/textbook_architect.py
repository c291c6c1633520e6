"""The alpha step as pt.darts writes it, with which the Architect is compared: the same numbers, and how much faster."""
import copy

import torch

from models.architect import RADIUS


class TextbookArchitect:
    """Order 1, and order 2 by finite difference: a second network for the virtual step, loops over parameters."""

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
        """[d/dalpha L_trn(w + eps dw) - d/dalpha L_trn(w - eps dw)] / (2 eps)"""
        eps = self.radius / torch.cat([d.flatten() for d in dw]).norm()
        signs = []
        for move in (eps, -2. * eps):  # to w + eps dw, then to w - eps dw
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
