"""The choice after a search: candidates are scored in the supernet, the best are retrained by rungs, the best of those wins.

All finalists train for a quarter of the epochs; then the best few of them train, from the beginning, for all epochs; or all of
them do so at once. Each training has its whole schedule, so that networks are compared after their learning rate has decayed:
successive halving (Jamieson & Talwalkar 2016) without trainings that stop halfway. A training is judged by its log-loss on the
dev speakers after the last epoch. candidates.json has every score, every training, and the training loss of every epoch. Dev
speakers are scored once a training, because it takes much of an epoch's time. A resumed run begins the training again that was
interrupted, but none that was complete, and repeats fewer than SAVE_EVERY scores.
"""
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import numpy as np

import config as cf
import genotypes as gt
import utils
from datasets.scoring import Diverged
from datasets.transforms import Voices
from models import parallel, stopwatch
from models.candidates import Scorer, distinct, genotypes_from_alpha, in_band, random_genotypes, with_decisions
from models.stopwatch import Stopwatch
from models.training import make_net, n_parameters, train

FIRST_RUNG = 4  # the first rung has the epochs divided by this
SAVE_EVERY = 20  # scores
LEFT_OUT = 20  # candidates in a row that are within --band with none of the networks drawn, after which a search ends
RECIPE = (cf.RetrainingSettings, cf.NetworkSettings, cf.AugmentationSettings)


def choose(run, recipe: cf.AugmentConfig, net, scorer: Scorer | None, data, device) -> tuple[gt.Genotype, list[dict]]:
    """The winner, and what each part of the choice took, as a Stopwatch reads it. All ranks must call this.

    Diverged if all finalists did.
    """
    config, book = run.config, Book(run, recipe, data, device)
    if config.relaxation == 'none':
        contenders = first_rung(book, config)
    else:
        contenders = [(loss_of(book.train(genotype, book.short_epochs)) if config.short_rung else 0., genotype)
                      for genotype in best_in_supernet(book, net, scorer, config)]
    contenders.sort(key=lambda pair: pair[0])
    last = contenders[:config.last_rung or None]
    results = [(book.train(genotype, book.config.epochs), genotype) for _, genotype in last]
    found, winner = min(results, key=lambda pair: loss_of(pair[0]))
    if found['loss'] is None:
        raise Diverged(f'all {len(last)} finalists diverged ({run.file("candidates.json")}): take a new --name, and a lower lr '
                       'under augment: in --config')
    book.tree['winner'] = gt.to_str(winner)
    book.write()
    run.logger.info('best of %d finalists: dev loss %.3f UA %.3f after %d epochs (%s of choice): %s', len(contenders),
                    found['loss'], found['ua'], found['epochs'], stopwatch.in_minutes(stopwatch.total(book.took())),
                    run.file('candidates.json'))
    return winner, book.took()


def check(config: cf.SearchConfig, recipe: cf.AugmentConfig, data):
    """UserError if a candidate cannot be retrained, or none is within --band: known before the search, not after it."""
    genotype, _ = next(in_band(random_genotypes(config, np.random.default_rng(0)), recipe, data.labels))
    make_net(recipe, data, genotype)
    Voices.of(recipe, data.labels)


def recipe_of(config: cf.SearchConfig, flags: Collection[str] | None = None) -> cf.AugmentConfig:
    """How finalists are trained: sizes and features of the search, the `augment` section of its --config, its typed flags.

    flags: as for `typed`.
    """
    shared = [group for group in cf.SearchConfig.GROUPS if group in cf.AugmentConfig.GROUPS]
    values = cf.pick(config, *(group for group in shared if group is not cf.AugmentationSettings))
    del values['dropout']  # the search's and the retraining's differ
    given = cf.read_yaml(config.config, 'augment') if config.config else {}
    values |= {name: value for name, value in given.items() if name in cf.names_of(*RECIPE)}
    values |= typed(config, flags)
    values |= {'genotype': 'a finalist', 'patience': 0, 'resume': False, 'overwrite': False}
    if config.finalist_epochs:
        epochs, warmup = (values.get(name, getattr(cf.AugmentConfig, name)) for name in ('epochs', 'warmup'))
        values |= {'epochs': config.finalist_epochs, 'warmup': round(warmup * min(1, config.finalist_epochs / epochs))}
    return cf.AugmentConfig(**values)


def check_same(before: dict, recipe: cf.AugmentConfig, path: str):
    """UserError if a resumed search would train its finalists by another recipe than it began with. before: of RECIPE."""
    for name, now in cf.pick(recipe, *RECIPE).items():
        if before.get(name, now) != now:
            raise utils.UserError(f'--resume: {name} of retraining is {now}, but the finalists of {path} began with '
                                  f'{before[name]}; if you typed --{name}, leave it out, or take another --name')


def typed(config: cf.SearchConfig, flags: Collection[str] | None = None) -> dict:
    """{name: value} of the flags of a search that its retrainings need too, and would not get without them.

    These are the flags for augmentation, and those for sizes, features and folds where the settings file says otherwise for
    augment.py: the genotype's record has these, but a settings file has precedence over it. Sizes that the file has under
    `augment:` are meant for retraining, and stay. flags: names of those that were typed; if they are not known, all that differ
    from the settings file and from defaults.
    """
    of_search, of_augment = (cf.read_yaml(config.config, part) if config.config else {} for part in ('search', 'augment'))
    own = cf.read_yaml(config.config, 'augment', alone=True) if config.config else {}
    own_sizes = own.keys() & cf.names_of(cf.NetworkSettings)
    default, augmentation = cf.SearchConfig(name='x'), cf.names_of(cf.AugmentationSettings)
    values = cf.pick(config, cf.DataSettings, cf.FeatureSettings, cf.NetworkSettings, cf.AugmentationSettings)
    if flags is None:
        flags = {name for name, value in values.items() if value != of_search.get(name, getattr(default, name))}
    found = {name: values[name] for name in values if name in flags and name not in {'dropout', *own_sizes}}
    return {name: value for name, value in found.items()
            if (name in of_augment or name in augmentation) and value != of_augment.get(name)}


def best_in_supernet(book, net, scorer, config) -> list[gt.Genotype]:
    """The candidates with the lowest log-loss in the supernet. The genotype of the alphas is among the candidates.

    In the space `speech` a candidate also has decisions outside its cells, drawn within --band; those that the supernet holds
    count in its score.
    """
    rng, within = np.random.default_rng([config.seed, config.fold]), {}  # {candidate: the network within the supernet}
    left_out = 0  # in a row

    def completed():
        nonlocal left_out
        for cells in itertools.chain([net.genotype()], genotypes_from_alpha(net, rng)):
            genotype = with_decisions(cells, book.config, rng, book.data.labels) if config.space == 'speech' else cells
            left_out = 0 if genotype else left_out + 1
            if left_out == LEFT_OUT:
                raise utils.UserError(f'--band {config.band}: the cells of {LEFT_OUT} candidates in a row are outside of it '
                                      'in all networks drawn; change --band in a run of another --name')
            if not genotype:
                continue
            within.setdefault(gt.to_str(genotype), cells._replace(network=genotype.network))  # may lack a kind of cell
            yield genotype
    drawn = distinct(completed())
    drawn = itertools.islice(drawn if config.space == 'speech' else book.allowed(drawn), config.candidates)
    watch = book.watch()
    candidates = list(parallel.progress(drawn, 'candidates drawn', config.candidates))  # takes minutes within a narrow band
    book.tree['drawing'] = watch.read()
    if not candidates:
        raise utils.UserError(f'--band {config.band}: alpha draws no network within it; change it in a run of another --name')
    scored = [(book.score(genotype, scorer, within[gt.to_str(genotype)]), i, genotype) for i, genotype in enumerate(
        parallel.progress(candidates, 'candidates scored', len(candidates)))]
    book.write()
    scored.sort(key=lambda row: row[:2])
    if scored[0][0] == math.inf:
        raise Diverged(f'the supernet gives no probabilities with any of {len(scored)} candidates: take a new --name and a '
                       'lower --w_lr')
    book.log('%d candidates scored in the supernet: dev loss %.3f to %.3f', len(scored), scored[0][0], scored[-1][0])
    return [genotype for *_, genotype in scored[:config.finalists]]


def first_rung(book, config) -> list[tuple[float, gt.Genotype]]:
    """[(log-loss, genotype)] of genotypes drawn at random: --finalists of them, or as many as bring the whole choice, the last
    rung included, nearest to --tournament_minutes.

    --tournament_cores counts the time of the cores, so that other programs take no candidate away.
    """
    found, budget, spent = [], 60 * config.tournament_minutes, 0.
    genotypes = book.allowed(distinct(random_genotypes(config, np.random.default_rng([config.seed, config.fold]))))
    epochs = book.short_epochs if config.short_rung else book.config.epochs
    book.tree['drawing'] = drawings = Counter(dict.fromkeys(book.watch().read(), 0.))
    for genotype, drawing in timed(genotypes, book.watch):
        to_come = 1 + min(config.last_rung, len(found) + 1) * book.config.epochs / epochs  # trainings as long as those before
        # half a training may be over, so that the time is neither more nor less on average
        enough = spent + (to_come - .5) * spent / max(1, len(found)) > budget if budget else len(found) == config.finalists
        if found and enough:
            break
        drawings.update(drawing)
        training = book.train(genotype, epochs)
        spent += cost(drawing, config) + cost(training, config)
        found.append((loss_of(training), genotype))
    return found


def cost(row: dict, config: cf.SearchConfig) -> float:
    """The seconds that --tournament_minutes limits."""
    return row['core_seconds' if config.tournament_cores else 'seconds']


def check_cores(config: cf.SearchConfig, device):
    """UserError if --tournament_cores has no time to count."""
    if config.tournament_cores and (device.type != 'cpu' or parallel.world_size() > 1):
        raise utils.UserError('--tournament_cores counts the time of the cores of a CPU, in one process: say --device '
                              'cpu, or leave it out, and --tournament_minutes are those of the clock')


def timed(genotypes: Iterator[gt.Genotype], new_watch: Callable) -> Iterator[tuple[gt.Genotype, dict[str, float]]]:
    """(genotype, what it took to draw, which is the same on all ranks)"""
    while True:
        watch = new_watch()
        genotype = next(genotypes, None)
        if genotype is None:
            return
        yield genotype, parallel.gather(watch.read())[0]


def loss_of(training: dict) -> float:
    """Log-loss on dev; infinite if the training diverged or the score is no number, which JSON does not know."""
    return math.inf if training['loss'] is None else training['loss']


class Book:
    """candidates.json: the recipe, the scores in the supernet, the finalists with their trainings, the winner."""

    def __init__(self, run, config: cf.AugmentConfig, data, device):
        self.run, self.config, self.data, self.device, self.log = run, config, data, device, run.logger.info
        self.short_epochs = max(1, round(config.epochs / FIRST_RUNG))
        self.tree = {'recipe': cf.pick(config, *RECIPE), 'scores': [], 'finalists': [], 'winner': None,
                     'drawing': {'seconds': 0.}}
        before = parallel.from_main(self._read)
        if before:
            check_same(before['recipe'], config, run.path)
            self.tree |= before
        self.scores = {row['genotype']: row for row in self.tree['scores']}
        self.finalists = {row['genotype']: row for row in self.tree['finalists']}

    def _read(self) -> dict | None:
        path = self.run.file('candidates.json')
        if not os.path.exists(path):
            return None
        with cf.contents_of(path, 'delete it, and the choice begins again'):
            tree = cf.read_json(path)
            for key, kind in (('recipe', dict), ('scores', list), ('finalists', list)):
                if not isinstance(tree[key], kind):
                    raise ValueError(f'{key} is no {kind.__name__}')
            for row in (*tree['scores'], *tree['finalists']):
                gt.from_str(row['genotype'])
            trainings = [training for row in tree['finalists'] for training in row['trainings']]
            timed = [tree.get('drawing', self.tree['drawing']), *tree['scores'], *trainings]
            numbers = [row[name] for row in timed for name in stopwatch.NAMES if name == 'seconds' or name in row]
            numbers += [x for one in trainings for x in (one['epochs'], one['ua'], cost(one, self.run.config))]
            numbers += [row['loss'] for row in (*tree['scores'], *trainings) if row['loss'] is not None]
            if wrong := [x for x in numbers if isinstance(x, bool) or not isinstance(x, int | float)]:
                raise ValueError(f'{cf.short(wrong[0])} is no number')
            return tree

    def watch(self) -> Stopwatch:
        return Stopwatch(self.device)

    def write(self):
        if self.run.writes:
            utils.write_json(self.run.file('candidates.json'), self.tree)

    def took(self) -> list[dict]:
        """What drawing, scores and trainings took, earlier processes of this run included."""
        trainings = [training for row in self.tree['finalists'] for training in row['trainings']]
        return [self.tree['drawing'], *self.tree['scores'], *trainings]

    def allowed(self, genotypes: Iterator[gt.Genotype]) -> Iterator[gt.Genotype]:
        """Those within --band."""
        return (genotype for genotype, _ in in_band(genotypes, self.config, self.data.labels))

    def score(self, genotype, scorer: Scorer, within: gt.Genotype) -> float:
        """Log-loss of a genotype, which is that of the network `within` the supernet."""
        text = gt.to_str(genotype)
        if text not in self.scores:
            watch = self.watch()
            try:
                found = scorer.score(within)
            except Diverged:
                found = {'loss': None, 'ua': 0.}
            self.scores[text] = {'genotype': text, 'loss': found['loss'], 'ua': found['ua'], **watch.read()}
            self.tree['scores'].append(self.scores[text])
            if len(self.scores) % SAVE_EVERY == 0:
                self.write()
        return loss_of(self.scores[text])

    def train(self, genotype, epochs: int) -> dict:
        """Dev scores of a network trained for so many epochs."""
        text = gt.to_str(genotype)
        if text not in self.finalists:
            self.finalists[text] = {
                'genotype': text, 'score': self.scores[text]['loss'] if text in self.scores else None,
                'parameters': n_parameters(self.config, self.data.labels, genotype), 'operations': gt.op_counts(genotype),
                'trainings': []}
            self.tree['finalists'].append(self.finalists[text])
        row = self.finalists[text]
        for training in row['trainings']:
            if training['epochs'] == epochs:
                return training
        config = replace(self.config, epochs=epochs, warmup=round(self.config.warmup * epochs / self.config.epochs))
        watch = self.watch()
        try:
            found, _ = train(config, genotype, self.data, self.device, 'dev')
        except Diverged:
            found = {'loss': None, 'ua': 0.}
        training = {'epochs': epochs, **found, **watch.read()}
        training = parallel.gather(training)[0]  # all ranks decide alike
        row['trainings'].append(training)
        self.write()
        self.log('finalist %d: %s parameters, %d epoch%s: dev loss %.3f UA %.3f (%.1f minutes)',
                 1 + list(self.finalists).index(text), f'{row["parameters"]:,}', epochs, 's' * (epochs != 1),
                 loss_of(found), found['ua'], training['seconds'] / 60)
        return training
