"""The alpha step of DARTS: gradient of the validation loss with respect to the architecture."""
from collections import Counter
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

    net: any module with loss(X, y), weights() and alphas(); X is passed on as it is, such as datasets.dataset.Inputs.
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
        All passes over the training batch begin with the same random generators and buffers: they draw the same dropout masks,
        and normalise speakers by the same moments, so that they differentiate the same L_trn.
        Returns the validation loss at w', detached.
        """
        alphas, weights = list(self.net.alphas()), list(self.net.weights())
        exact = self.hessian == 'exact'
        with self._undisturbed(), cudnn(tf32=False):  # second derivatives do not survive TF32
            state = self._state()
            dtrn = self.training_gradient(trn_X, trn_y, create_graph=exact)
            with self.virtual_step(dtrn, xi, w_optim):
                loss = self.net.loss(val_X, val_y)  # L_val(w', alpha)
                grads = _grad(loss, alphas + weights)
            dalpha, dw = grads[:len(alphas)], grads[len(alphas):]
            if exact:
                hessian = self.exact_hessian(dw, dtrn)
            else:
                self._restore(state)
                hessian = self.compute_hessian(dw, trn_X, trn_y)
            # d/dalpha L_val(w', alpha) - xi * d2 L_trn / (dalpha dw) . d/dw' L_val
            _assign(alphas, torch._foreach_sub(dalpha, hessian, alpha=xi))
        return all_reduce([loss.detach()])[0]

    def training_gradient(self, trn_X, trn_y, create_graph):
        """d L_trn / dw of this rank's share. With create_graph it can be differentiated once more.

        cuDNN's recurrences have no second derivative, so with create_graph cuDNN is off, unless the net handles this
        itself (`twice_differentiable`).
        """
        weights = list(self.net.weights())
        allowed = not create_graph or getattr(self.net, 'twice_differentiable', False)
        with differentiating_twice(create_graph), cudnn(enabled=allowed, tf32=False):
            return torch.autograd.grad(self.net.loss(trn_X, trn_y), weights, create_graph=create_graph, allow_unused=True)

    @contextmanager
    def virtual_step(self, dtrn, xi, w_optim):
        """Inside, w is w' = w - xi * (momentum * v + d L_trn / dw + weight_decay * w), SGD's next step if it is not clipped."""
        weights = list(self.net.weights())
        with torch.no_grad():
            step = all_reduce([torch.zeros_like(p) if g is None else g.detach() for p, g in zip(weights, dtrn)])
            step = torch._foreach_add(step, weights, alpha=self.w_weight_decay)
            moving = [(s, v) for p, s in zip(weights, step)
                      if (v := w_optim.state.get(p, {}).get('momentum_buffer')) is not None]
            if moving:
                torch._foreach_add_(*map(list, zip(*moving)), alpha=self.w_momentum)
            moved = torch._foreach_sub(weights, step, alpha=xi)
        with replaced(weights, moved):
            yield

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
        state, grads = self._state(), []
        for move in (torch._foreach_add, torch._foreach_sub):
            self._restore(state)
            with torch.no_grad():
                moved = move(weights, direction)
            with replaced(weights, moved):
                with frozen(weights):
                    loss = self.net.loss(trn_X, trn_y)
                grads.append(_grad(loss, alphas))
        return torch._foreach_div(torch._foreach_sub(*grads), 2. * eps)

    @contextmanager
    def _undisturbed(self):
        """Restores buffers and random generators at the end."""
        state = self._state()
        try:
            yield
        finally:
            self._restore(state)

    def _state(self):
        """Buffers and random generators: what a pass changes and the next one depends on."""
        buffers = list(self.net.buffers()) if hasattr(self.net, 'buffers') else []
        by_dtype = [[b for b in buffers if b.dtype == dtype] for dtype in {b.dtype for b in buffers}]
        kept = [torch.cat([b.flatten() for b in alike]) for alike in by_dtype]  # one operation, not one per buffer
        return by_dtype, kept, self._rng()

    def _restore(self, state):
        by_dtype, kept, rng = state
        for alike, flat in zip(by_dtype, kept):
            _copy(alike, [part.view_as(b) for b, part in zip(alike, flat.split([b.numel() for b in alike]))])
        self._set_rng(rng)

    def _rng(self):
        devices = {p.device for p in self.net.weights() if p.is_cuda}
        return [(None, torch.get_rng_state())] + [(d, torch.cuda.get_rng_state(d)) for d in devices]

    @staticmethod
    def _set_rng(states):
        for device, state in states:
            torch.set_rng_state(state) if device is None else torch.cuda.set_rng_state(state, device)


@contextmanager
def replaced(parameters, values):
    """Inside, the parameters have these values, in another storage. Gradients of what is computed inside must be taken inside.

    Afterwards all is as before: a graph made from the old values can still be differentiated.
    """
    before = [p.data for p in parameters]
    try:
        for p, value in zip(parameters, _laid_out(values, like=before)):
            p.data = value
        yield
    finally:
        for p, old in zip(parameters, before):
            p.data = old


def _laid_out(values, like):
    """The values, in memory as the tensors `like` lie there.

    A convolution whose weights have other strides may leave channels_last. cuDNN wants the weights of a recurrence, which share
    a storage, in one piece.
    """
    storages = [t.untyped_storage() for t in like]
    owners = Counter(storage._cdata for storage in storages)
    shared = {storage._cdata: storage.clone() for storage in storages if owners[storage._cdata] > 1}
    found = list(values)
    for i, (t, storage) in enumerate(zip(like, storages)):
        if storage._cdata in shared:
            found[i] = t.new_empty(0).set_(shared[storage._cdata], t.storage_offset(), t.shape, t.stride())
        elif t.stride() != values[i].stride():
            found[i] = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
    moved = [(new, old) for new, old in zip(found, values) if new is not old]
    if moved:
        torch._foreach_copy_(*map(list, zip(*moved)))
    return found


@contextmanager
def frozen(parameters):
    """Inside, autograd neither computes gradients of these parameters nor stores activations for them."""
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
        # A sampled path may have `none` on every edge to the classifier: its loss depends on no alpha at all.
        grads = torch.autograd.grad(loss, inputs, allow_unused=True) if loss.requires_grad else [None] * len(inputs)
    return all_reduce([torch.zeros_like(p) if g is None else g for p, g in zip(inputs, grads)])


def _assign(parameters, grads):
    for p, g in zip(parameters, grads):
        p.grad = g.detach().clone()


@torch.no_grad()
def _copy(targets, sources):
    torch._foreach_copy_(targets, sources) if targets else None
