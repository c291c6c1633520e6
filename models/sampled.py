"""The sampled relaxation: a step passes one operation of an edge instead of mixing all of them.

`gumbel_path` has an operation on every edge, drawn from softmax(alpha) by the Gumbel-max trick (GDAS, Dong & Yang 2019);
`uniform_path` is a whole network of the space, whatever alpha is (SPOS, Guo et al. 2020). Draws are made on the host from a
generator that all ranks have in the same state, so that they agree, and a resumed run goes on as if never interrupted.
"""
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import genotypes as gt
from models.search_cells import Choice, Path

TAU_FIRST, TAU_LAST = 10., .1  # temperature of the gradient, linear in the epoch (GDAS, section 4.1)


def temperature(epoch: int, epochs: int) -> float:
    """Temperature of the Gumbel-softmax in an epoch, from 1."""
    return TAU_FIRST + (TAU_LAST - TAU_FIRST) * (epoch - 1) / max(1, epochs - 1)


def gumbel(alphas, generator: torch.Generator) -> list[Tensor]:
    """Standard Gumbel noise, -log(-log(u)), of the sizes of these tensors, on the host."""
    tiny = torch.finfo(torch.double).tiny
    return [-(-torch.rand(alpha.shape, generator=generator, dtype=torch.double).clamp_min(tiny).log()).log()
            for alpha in alphas]


def gumbel_path(alphas, noise: list[Tensor], drawn: list[Tensor], tau: float | None = None) -> Path:
    """The cell of the drawn operations, one on every edge.

    alphas, noise: one (n_inputs, n_ops) tensor per node. drawn: the argmax of alpha + noise, (n_inputs,) on the host. With
    `tau` a choice has a share of 1, whose gradient is that of softmax((log softmax(alpha) + noise) / tau) at the drawn
    operation (straight-through; GDAS, section 3.2).
    """
    nodes = []
    for alpha, g, ops in zip(alphas, noise, drawn, strict=True):
        shares = [None] * len(ops)
        if tau is not None:
            p = F.softmax((F.log_softmax(alpha, dim=-1) + g.to(alpha)) / tau, dim=-1)
            p = p.gather(1, ops.to(alpha.device)[:, None])[:, 0]
            shares = (1. + p - p.detach()).unbind()
        nodes.append([Choice(op, share) for op, share in zip(ops.tolist(), shares)])
    return Path(nodes)


def uniform_path(n_nodes: int, primitives: tuple, generator: torch.Generator, order: str = 'free', k: int = 2) -> Path:
    """A cell of the space, drawn uniformly: each node reads k states, through any operation but `none` of genotypes.allowed."""
    nodes = []
    for n in range(2, 2 + n_nodes):
        edges = [None] * n
        for state in torch.randperm(n, generator=generator)[:k].tolist():
            may = gt.allowed(primitives, state, order)
            ops = [i for i, name in enumerate(primitives) if name != gt.NONE and may[i]]
            edges[state] = Choice(ops[int(torch.randint(len(ops), (1,), generator=generator))])
        nodes.append(edges)
    return Path(nodes)


class Sampler:
    """Draws the paths of a search. For softmax it does nothing.

    Its generator is its own: batches that a resumed run draws again must not depend on how many paths came between.
    """

    def __init__(self, net, config):
        self.net, self.config = net, config
        self.draws = torch.Generator().manual_seed(config.seed)
        self.active = config.relaxation == 'sampled'

    def state_dict(self) -> dict:
        return {'draws': self.draws.get_state()}

    def load_state_dict(self, state: dict):
        self.draws.set_state(state['draws'])

    def before_weights(self):
        """Before a step of w: a path without gradient for alpha."""
        if self.active and self.config.sampling == 'uniform':
            self.net.paths = {kind: uniform_path(len(alphas), self.net.primitives_of(kind), self.draws,
                                                 'free' if kind == 'rnn' else self.net.order)
                              for kind, alphas in self._alphas().items()}
            self._decide()
        elif self.active:
            self._draw(None)

    def before_alphas(self, epoch: int):
        """Before a step of alpha: a path drawn from alpha, through which alpha has a gradient."""
        if self.active:
            self._draw(temperature(epoch, self.config.epochs))

    def _alphas(self) -> dict:
        return {kind: self.net.logits(kind) for kind in self.net.kinds()}

    @torch.no_grad()
    def _draw(self, tau):
        alphas = self._alphas()
        flat = torch.cat([alpha.flatten() for nodes in alphas.values() for alpha in nodes]).cpu().double()
        self.net.paths = {}
        for kind, nodes in alphas.items():
            noise, drawn = gumbel(nodes, self.draws), []
            for alpha, g in zip(nodes, noise):
                values, flat = flat[:alpha.numel()], flat[alpha.numel():]
                drawn.append((values.view_as(g) + g).argmax(dim=-1))
            self.net.paths[kind] = partial(gumbel_path, noise=noise, drawn=drawn, tau=tau)
        self._decide()

    def _decide(self):
        """Adds decisions outside the cells to the path, drawn uniformly; a supernet without choices draws nothing."""
        if self.net.decisions:
            self.net.paths['network'] = {name: choices[int(torch.randint(len(choices), (1,), generator=self.draws))]
                                         for name, choices in self.net.decisions.items()}
