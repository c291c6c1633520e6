"""Candidates: genotypes drawn from the space or from alpha, and their scores within the supernet."""
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch

import config as cf
import genotypes as gt
from config import UserError
from models import parallel, speaker_norm
from models.skeleton import reduction_layers
from models.sync import BatchNorm2d
from models.training import n_parameters

MAX_DRAWS = 2_000  # for one genotype within --band, or that has not been drawn before
REFIT = 256  # training utterances from which batch norm gets the statistics of a candidate
REFIT_BATCH = 64


def random_genotypes(config, rng: np.random.Generator) -> Iterator[gt.Genotype]:
    """Genotypes drawn uniformly from the search space, without end. UserError if the space has none."""
    rnn_nodes = config.rnn_nodes if config.rnn_layers or config.space == 'speech' else 0
    only_reduce = config.space == 'paper' and len(reduction_layers(config.layers)) == config.layers
    while True:
        try:
            genotype = gt.draw(rng, config.n_nodes, rnn_nodes, config.cnn_ops, config.rnn_ops, space=config.space,
                               order=config.cnn_order, frames=config.frames is not None)
        except ValueError as error:
            raise UserError(str(error)) from None
        # Genotypes that differ in cells which the network lacks are one network.
        yield genotype._replace(normal=[], normal_concat=[]) if only_reduce else genotype


def genotypes_from_alpha(net, rng: np.random.Generator) -> Iterator[gt.Genotype]:
    """Genotypes drawn from the alphas, without end."""
    weights = {kind: [w.detach().double().cpu().numpy() for w in net.op_weights(kind)] for kind in net.kinds()}
    shares = {kind: net.edge_weights(kind) for kind in net.kinds()}
    for kind, found in shares.items():
        if found is not None:
            weights[kind] = [w * s.detach().double().cpu().numpy()[:, None] for w, s in zip(weights[kind], found)]
    while True:
        fields = dict.fromkeys(gt.Genotype._fields[:6], [])
        for kind in net.kinds():
            names = net.primitives_of(kind)
            fields[kind] = [draw_node(w, names, rng) for w in weights[kind]]
            fields[f'{kind}_concat'] = range(2, 2 + len(fields[kind]))
        yield gt.Genotype(**fields)


def draw_node(weights: np.ndarray, names: tuple, rng: np.random.Generator, k: int = 2) -> list[tuple[str, int]]:
    """The edges of a node: one after another, in proportion to their weights, without `none` and without a state twice.

    weights: (n_inputs, n_ops), of softmax(alpha).
    """
    left = weights * [name != gt.NONE for name in names]
    edges = []
    for _ in range(min(k, len(left))):
        state, op = divmod(int(rng.choice(left.size, p=(left / left.sum()).flatten())), len(names))
        left[state] = 0.
        edges.append((names[op], state))
    return edges


def distinct(genotypes: Iterable[gt.Genotype]) -> Iterator[gt.Genotype]:
    """Genotypes without those that came before, in whatever order their edges are. Ends when nothing new comes."""
    seen, repeats = set(), 0
    for genotype in genotypes:
        nodes = tuple(tuple(tuple(sorted(node)) for node in getattr(genotype, kind)) for kind in gt.KINDS)
        key = (nodes, str(getattr(genotype, 'network', None)))
        repeats = repeats + 1 if key in seen else 0
        if repeats == MAX_DRAWS:
            return
        if not repeats:
            seen.add(key)
            yield genotype


def drawn(config, rng: np.random.Generator, labels: list[str]) -> Iterator[tuple[gt.Genotype, int | None]]:
    """Genotypes of the space and band of `config`, drawn uniformly, and their numbers of parameters. UserError."""
    return in_band(random_genotypes(config, rng), config, labels)


def in_band(genotypes: Iterable[gt.Genotype], config, labels: list[str]) -> Iterator[tuple[gt.Genotype, int | None]]:
    """(genotype, parameters) of those whose network has as many as config.band says. UserError if too many do not.

    Without a band no network is built, and the number is None. config: AugmentConfig of the network. labels: classes, whose
    number counts towards the parameters.
    """
    if not config.band:
        yield from ((genotype, None) for genotype in genotypes)
        return
    low, high = cf.limits(config.band)
    outside = []
    for genotype in genotypes:
        n = n_parameters(config, labels, genotype)
        if low <= n <= high:
            outside = []
            yield genotype, n
            continue
        outside.append(n)
        if len(outside) == MAX_DRAWS:
            raise UserError(f'--band {config.band}: {MAX_DRAWS} genotypes in a row had {min(outside):,} to {max(outside):,} '
                            'parameters; change --band' + ', --init_channels or --rnn_channels' * (config.space == 'paper'))


def with_decisions(genotype: gt.Genotype, config, rng: np.random.Generator, labels: list[str]) -> gt.Genotype | None:
    """The cells of a genotype in a network whose decisions outside the cells are drawn from the space `speech` and the band.

    None if MAX_DRAWS - 1 networks in a row are outside of the band.
    """
    def complete():
        for other in random_genotypes(config, rng):
            lacks = [kind for kind in gt.KINDS if not getattr(other, kind)]
            if all(kind in lacks or getattr(genotype, kind) for kind in gt.KINDS):
                empty = {field: [] for kind in lacks for field in (kind, f'{kind}_concat')}
                yield genotype._replace(network=other.network, **empty)
    return next((found for found, _ in in_band(itertools.islice(complete(), MAX_DRAWS - 1), config, labels)), None)


class Scorer:
    """Scores discrete networks with the weights of the supernet, on dev.

    Only the operations of the network are computed. Batch norm gets its statistics from training utterances, the same for all
    candidates (Guo et al. 2020, arXiv 1904.00420): those of the supernet are of many networks at once.
    """

    def __init__(self, net, data, config, autocast):
        self.net, self.config, self.autocast = net, config, autocast
        self.norms = [module for module in net.modules() if isinstance(module, BatchNorm2d)]
        generator, train = torch.Generator().manual_seed(config.seed), data.sets['train']
        chosen = torch.randperm(len(train), generator=generator)[:REFIT]
        # Without speakers: the network may know those of dev. Batch norm comes before their normalisation.
        self.batches = [X._replace(speaker=None) for X, _ in train.batches(min(REFIT_BATCH, len(chosen)), chosen, generator)]
        self.dev = self.part = data.sets['dev']
        if config.finalists and 0 < config.scored_utterances < len(self.dev):
            self.part = self.dev.part(torch.randperm(len(self.dev), generator=generator)[:config.scored_utterances].sort()[0])

    @torch.no_grad()
    def score(self, genotype, whole: bool = False) -> dict:
        """UA, WA, F1 and log-loss on the part of dev that candidates are scored on, or on all of it.

        UserError if the supernet does not contain the network. Diverged if its outputs are not finite.
        """
        net, dev = self.net, self.dev if whole else self.part
        try:
            net.paths = net.path_of(genotype)
        except ValueError as error:
            raise UserError(str(error)) from None
        try:
            with self.autocast:
                self._refit()
                found, _ = speaker_norm.evaluate(net, dev, self.config.batch_size, net.criterion.weight)
        finally:
            net.paths = None
            net.train()
        return parallel.gather(found)[0]

    def _refit(self):
        """Batch statistics, averaged over batches, become the running statistics; the network is in eval mode then.

        A signal may end this at any point. A checkpoint is then as if it had not begun, but for statistics that the next call
        replaces.
        """
        before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in self.norms]
        self.net.eval()
        for norm in self.norms:
            norm.train()
            for statistic in (norm.running_mean, norm.running_var):
                statistic.nan_to_num_(0., 0., 0.)  # of a candidate that overflowed: momentum 1 would keep it
        try:
            for i, X in enumerate(self.batches):
                for norm in self.norms:
                    norm.momentum = 1 / (i + 1)
                self.net(*X)
        finally:
            for norm, (momentum, n_batches) in zip(self.norms, before):
                norm.momentum = momentum
                norm.num_batches_tracked.copy_(n_batches)
        self.net.eval()
