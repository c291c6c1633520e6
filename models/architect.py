"""The alpha step of DARTS: gradient of the validation loss with respect to the architecture."""
from contextlib import contextmanager

import torch

from models.derivatives import cudnn, differentiating_twice
from models.parallel import all_reduce

# Length of the finite-difference step in weight space, in float32. DARTS takes 0.01 (section 2.3, footnote 2). On the default
# supernet, whose ReLUs have kinks, 0.01 misses the exact product by a half and 0.1 by a fifth (docs/results.md).
RADIUS = .1
HESSIANS = ('exact', 'difference')


class Architect:
    """Writes the architecture gradient into alpha.grad; an optimizer of alpha takes the step.

    net: any module with loss(X, y), weights() and alphas(); X is passed on as it is, a tensor or the pair (x, valid).
    w_momentum, w_weight_decay: those of the SGD that trains w.
    hessian: how order 2 multiplies the mixed second derivative with a vector: 'exact', by differentiating twice, or
    'difference', by DARTS' finite difference, which is cheaper and approximate.
    With several processes loss(X, y) is this rank's part of the loss; losses and gradients are summed over ranks.
    A step copies no network. It leaves w, w.grad, buffers (batch-norm statistics) and the random generators as they were.
    """

    def __init__(self, net, w_momentum: float, w_weight_decay: float, hessian: str = 'exact'):
        if hessian not in HESSIANS:
            raise ValueError(f'hessian {hessian!r} must be one of {", ".join(HESSIANS)}')
        self.hessian = hessian
        self.net = net
        self.w_momentum = w_momentum
        self.w_weight_decay = w_weight_decay

    def backward(self, val_X, val_y) -> torch.Tensor:
        """First order: alpha.grad = d L_val(w, alpha) / d alpha. Returns the validation loss, detached."""
        alphas = list(self.net.alphas())
        with self._undisturbed():
            with frozen(self.net.weights()):
                loss = self.net.loss(val_X, val_y)
            _assign(alphas, _grad(loss, alphas))
        return all_reduce([loss.detach()])[0]

    def unrolled_backward(self, trn_X, trn_y, val_X, val_y, xi: float, w_optim) -> torch.Tensor:
        """Second order: alpha.grad = d L_val(w'(alpha), alpha) / d alpha after one virtual step w' (DARTS, equations 6 to 8).

        xi: learning rate of the virtual step. w_optim: the SGD of w, whose momentum buffers the virtual step uses.
        All passes over the training batch draw the same dropout masks, so that they differentiate the same L_trn.
        Returns the validation loss at w', detached.
        """
        alphas, weights = list(self.net.alphas()), list(self.net.weights())
        exact = self.hessian == 'exact'
        with self._undisturbed(), cudnn(tf32=False):  # second derivatives do not survive TF32
            rng = self._rng()
            dtrn = self.training_gradient(trn_X, trn_y, create_graph=exact)
            with self.virtual_step(dtrn, xi, w_optim):
                loss = self.net.loss(val_X, val_y)  # L_val(w', alpha)
                grads = _grad(loss, alphas + weights)
            dalpha, dw = grads[:len(alphas)], grads[len(alphas):]
            if exact:
                hessian = self.exact_hessian(dw, dtrn)
            else:
                self._set_rng(rng)
                hessian = self.compute_hessian(dw, trn_X, trn_y)
            # d/dalpha L_val(w', alpha) - xi * d2 L_trn / (dalpha dw) . d/dw' L_val
            _assign(alphas, torch._foreach_sub(dalpha, hessian, alpha=xi))
        return all_reduce([loss.detach()])[0]

    def training_gradient(self, trn_X, trn_y, create_graph):
        """d L_trn / dw of this rank's share. With create_graph it can be differentiated once more.

        cuDNN's recurrences cannot be differentiated twice. That pass runs without cuDNN unless the net takes care of its
        recurrences itself (`twice_differentiable`).
        """
        weights = list(self.net.weights())
        allowed = not create_graph or getattr(self.net, 'twice_differentiable', False)
        with differentiating_twice(create_graph), cudnn(enabled=allowed, tf32=False):
            return torch.autograd.grad(self.net.loss(trn_X, trn_y), weights, create_graph=create_graph, allow_unused=True)

    @contextmanager
    def virtual_step(self, dtrn, xi, w_optim):
        """Inside, w is w' = w - xi * (momentum * v + d L_trn / dw + weight_decay * w), SGD's next step."""
        weights = list(self.net.weights())
        step = all_reduce([torch.zeros_like(p) if g is None else g.detach().clone() for p, g in zip(weights, dtrn)])
        with torch.no_grad():
            torch._foreach_add_(step, weights, alpha=self.w_weight_decay)
            moving = [(s, v) for p, s in zip(weights, step)
                      if (v := w_optim.state.get(p, {}).get('momentum_buffer')) is not None]
            if moving:
                torch._foreach_add_(*map(list, zip(*moving)), alpha=self.w_momentum)
            moved = _copies(weights)
            torch._foreach_sub_(moved, step, alpha=xi)
        w = [p.data for p in weights]
        try:  # another storage: the values from which `dtrn` was computed stay
            for p, new in zip(weights, moved):
                p.data = new
            yield
        finally:
            for p, old in zip(weights, w):
                p.data = old

    def exact_hessian(self, dw, dtrn):
        """d2 L_trn / (dalpha dw) . dw at the current w: the gradient of (dtrn . dw) with respect to alpha.

        dtrn: training_gradient(create_graph=True).
        """
        alphas = list(self.net.alphas())
        used = [(g, v) for g, v in zip(dtrn, dw) if g is not None and g.requires_grad]
        product = torch.autograd.grad([g for g, _ in used], alphas, [v for _, v in used], allow_unused=True)
        return all_reduce([torch.zeros_like(a) if h is None else h for a, h in zip(alphas, product)])

    def compute_hessian(self, dw, trn_X, trn_y):
        """d2 L_trn / (dalpha dw) . dw by central difference (DARTS, equation 8), at the current w.

        [d/dalpha L_trn(w + eps dw) - d/dalpha L_trn(w - eps dw)] / (2 eps), eps = radius / ||dw||. The radius is RADIUS. In
        float64 it is the cube root of the machine epsilon, where rounding and truncation errors of a central difference meet.
        """
        alphas, weights = list(self.net.alphas()), list(self.net.weights())
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(dw)))
        radius = min(RADIUS, torch.finfo(norm.dtype).eps ** (1 / 3)) if norm.dtype == torch.float64 else RADIUS
        eps = radius / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        direction = torch._foreach_mul(dw, eps)
        w = [p.detach().clone() for p in weights]
        rng = self._rng()
        try:
            _copy(weights, torch._foreach_add(w, direction))
            with frozen(weights):
                loss = self.net.loss(trn_X, trn_y)
            plus = _grad(loss, alphas)
            _copy(weights, torch._foreach_sub(w, direction))
            self._set_rng(rng)
            with frozen(weights):
                loss = self.net.loss(trn_X, trn_y)
            minus = _grad(loss, alphas)
        finally:
            _copy(weights, w)
        return torch._foreach_div(torch._foreach_sub(plus, minus), 2. * eps)

    @contextmanager
    def _undisturbed(self):
        buffers = list(self.net.buffers()) if hasattr(self.net, 'buffers') else []
        kept, rng = [b.clone() for b in buffers], self._rng()
        try:
            yield
        finally:
            _copy(buffers, kept)
            self._set_rng(rng)

    def _rng(self):
        devices = {p.device for p in self.net.weights() if p.is_cuda}
        return [(None, torch.get_rng_state())] + [(d, torch.cuda.get_rng_state(d)) for d in devices]

    @staticmethod
    def _set_rng(states):
        for device, state in states:
            torch.set_rng_state(state) if device is None else torch.cuda.set_rng_state(state, device)


def _copies(tensors):
    """Copies that lie in memory as the tensors do: cuDNN wants all weights of a recurrence in one piece."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
    copied = {key: storage.clone() for key, storage in storages.items()}
    return [t.detach().new_empty(0).set_(copied[t.untyped_storage()._cdata], t.storage_offset(), t.shape, t.stride())
            for t in tensors]


@contextmanager
def frozen(parameters):
    """Passes inside compute no gradient of these parameters, and keep nothing for it."""
    learning = [p for p in parameters if p.requires_grad]
    try:
        for p in learning:
            p.requires_grad_(False)
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)


def _grad(loss, inputs):
    """Gradients, summed over ranks; zeros where the loss does not depend on an input."""
    with torch.autocast(loss.device.type, enabled=False):  # what was computed in float32 is differentiated in float32
        grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    return all_reduce([torch.zeros_like(p) if g is None else g for p, g in zip(inputs, grads)])


def _assign(parameters, grads):
    for p, g in zip(parameters, grads):
        p.grad = g.detach().clone()


@torch.no_grad()
def _copy(targets, sources):
    torch._foreach_copy_(targets, sources) if targets else None
