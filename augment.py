"""Retraining: train the network of a genotype, or a hand-designed one, from scratch. Dev selects the epoch; test is scored
once, at the end.

    python augment.py --name demo --config configs/demo.yaml --genotype runs/search/demo
"""
import config as cf

if __name__ == '__main__':
    cf.begin('augment')  # before the slow imports

import math
import os
import shlex
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

import datasets
import genotypes as gt
import utils
from datasets import frames, scoring
from models import board, memory, parallel, sources, stopwatch
from models.candidates import drawn
from models.predictor import digest, of_same_width, read_best, settings_of, start_from, tells_all
from models.run import Run
from models.steps import Steps
from models.training import evaluate, make_net, setup, tested_parameters, train_epoch


def main(argv: list[str] | None = None):
    config, genotype, origin = configure(cf.given('augment', argv))
    device = parallel.start(config)
    run = parallel.together(lambda: Run('augment', config, parallel.is_main()))
    data = parallel.together(lambda: datasets.load(config, ('train', 'dev', 'test'), device, not run.writes,
                                                   config.train_on_dev, **parallel.place()))
    train, dev, test = (data.sets.get(name) for name in ('train', 'dev', 'test'))

    start = read_best(config.init) if config.init else None
    with cf.contents_of(config.init, 'name a whole best.pt, or its run'):
        config = of_same_width(config, start, len(data.labels)) if start else config
    utils.set_seed(config.seed)
    net = make_net(config, data, genotype)
    with cf.contents_of(config.init, 'name a whole best.pt, or its run'):
        taken, begun_with = start and start_from(net, start, data.labels, genotype), start and digest(start)
    net.to(device)
    if config.channels_last:
        net.to(memory_format=torch.channels_last)
    net.pools_padding = run.format < 2
    criterion, optim, scheduler, autocast, masks, voices, ema = setup(net, config, data, device)
    kept = ema.module if ema else net  # the network that is scored and kept
    n_params, text = tested_parameters(net), genotype and gt.to_str(genotype)

    def save():
        run.save_checkpoint({'best': best, 'genotype': text, 'init': begun_with, **state.state_dict()})
    steps = Steps(save)
    state = parallel.State(config.seed, device, net=net, optim=optim, scheduler=scheduler, steps=steps,
                           **({'ema': ema} if ema else {}))
    checkpoint = parallel.from_main(lambda: run.open(data))
    best = {'epoch': 0, 'ua': -1., 'loss': float('inf'), 'file': None}
    log, hardware = run.logger.info, utils.describe_device(device, parallel.world_size())
    with run.reading():
        if checkpoint:
            run.history, best = checkpoint['history'], checkpoint['best']
            if checkpoint.get('genotype', text) != text:
                raise utils.UserError(f'--resume: {config.genotype} is another genotype than {run.path} began with')
            if checkpoint.get('init', begun_with) != begun_with:
                raise utils.UserError(f'--resume: {config.init} is another network than {run.path} began with: begin anew with '
                                      '--overwrite')
            if best['file']:  # else the run was stopped in its first epoch
                check_best(best, genotype, net, run)
                run.save('best.pt', best['file'])  # a run killed between the two files may have left that of a later epoch
        state.load(checkpoint, log)
    log('augment %s on %s, fold %d: %d utterances to train, %d for dev, %d for test; %s parameters; %s', config.model,
        config.dataset, config.fold, len(train), len(dev or ()), len(test), f'{n_params:,}', hardware)
    for line in (*datasets.describe(config, data), *origin.describe(config, data), *describe_start(config, data, start, taken)):
        log('%s', line)
    board.begin(run, data, n_params, genotype and memory.sized(config, genotype))
    board.network(run, genotype)
    if config.warmup >= config.epochs:
        log('WARNING: warmup %d leaves no epoch at the full learning rate', config.warmup)

    for epoch in range(len(run.history) + 1, config.epochs + 1):
        if config.patience and epoch - 1 - best['epoch'] >= config.patience:
            log('no better dev UA for %d epochs: stopped early', config.patience)
            break
        lr = scheduler.get_last_lr()[0]
        net.drop_path_prob(config.drop_path_prob * (epoch - 1) / max(1, config.epochs - 1))
        steps.begin(epoch, state, optim, partial(train.files_of, batch_size=config.batch_size))
        batches = train.batches(config.batch_size, None, state.draws, masks, voices)
        batches = parallel.progress(batches, f'epoch {epoch}/{config.epochs}', train.n_batches(config.batch_size))
        scores = {'train': train_epoch(net, criterion, optim, steps, batches, autocast, config, ema)}
        parallel.check_equal(net, epoch)
        if dev:
            with steps.interruptible():
                scores['dev'], probabilities = evaluate(kept, dev, criterion, autocast, config)
        scheduler.step()
        took = steps.end()
        # Few dev speakers give few distinct UAs: the lower loss decides between equals, then the earlier epoch.
        if not dev or (scores['dev']['ua'], -scores['dev']['loss']) > (best['ua'], -best['loss']):
            best = {'epoch': epoch, **({name: scores['dev'][name] for name in ('ua', 'loss')} if dev else {}),
                    'file': portable(kept, genotype, data, config, epoch, start)}
            run.save('best.pt', best['file'])
        run.end_epoch({'epoch': epoch, **scores, 'lr': lr, **sources.of_layers(kept, config), **took})
        board.retraining(run, data, probabilities if dev else None, best)
        save()
        shown = ' | '.join(f'{part} UA {s["ua"]:.3f} WA {s["wa"]:.3f} loss {s["loss"]:.3f}'
                           for part, s in reversed(scores.items()))
        log('epoch %d/%d: %s%s | %.0f s%s', epoch, config.epochs, shown, f' (best UA {best["ua"]:.3f}, epoch {best["epoch"]})'
            if dev else '', run.history[-1]['seconds'], utils.time_left(run))

    utils.hold_signals(False)
    kept.load_state_dict(best['file']['weights'])
    _, probabilities = evaluate(kept, test, criterion, autocast, config)  # the test speakers, once
    if run.writes:
        chosen = 'the last' if config.train_on_dev else 'chosen on dev'
        report(run, probabilities, config, data, dict(
            model=config.model, n_params=n_params, best_epoch=best['epoch'], dev_ua=best['ua'] if dev else None,
            genotype=genotype and gt.to_str(genotype), search=origin.search or None,
            search_heard_test_speakers=origin.heard(config, data), device=hardware, **sources.of_layers(kept, config),
            **({'init': config.init, 'init_digest': begun_with,
                'init_heard_test_speakers': heard_before(config, data, start)} if start else {}),
            **stopwatch.total(run.history)), f'epoch {best["epoch"]}, {chosen}')
    run.close()
    parallel.stop()


def configure(given: cf.Given):
    """AugmentConfig, Genotype (None for a hand-designed network) and Origin. UserError."""
    def built(*recorded):
        return frames.complete(cf.build('augment', given, *recorded))

    given = from_start(given)
    values = given.values
    if values.get('model', 'genotype') != 'genotype':
        return built(), None, Origin({})
    if not values.get('genotype'):
        raise utils.UserError('--genotype is required: a genotype.json or folder of search.py, or random; or name a --model')
    if values['genotype'] == cf.RANDOM:
        config = built()
        labels = sorted({u.label for u in datasets.select(config)[0]}) if config.band else []
        return config, next(drawn(config, np.random.default_rng([config.seed, config.fold]), labels))[0], Origin({})
    try:
        genotype, record = gt.load(values['genotype'])
    except ValueError as error:
        raise utils.UserError(f'--genotype {error}') from None
    mistaken = sorted(memory.decided(genotype).keys() & given.typed)
    if mistaken and not values.get('resume'):  # a run of an earlier version may have begun with them
        raise utils.UserError(f'--{mistaken[0]} has no effect with this --genotype, which decides it itself: leave it out')
    origin = Origin(record, values['genotype'])
    return built(origin.settings(values)), genotype, origin


def from_start(given: cf.Given) -> cf.Given:
    """The settings, with those of the network of --init below them, unless another network is named."""
    values = given.values
    if not values.get('init') or {'model', 'genotype'} & values.keys():
        return given
    try:
        return cf.Given({**settings_of(read_best(values['init'])), **values}, given.typed)
    except ValueError as error:
        raise utils.UserError(f'--init {values["init"]}: {error}') from None


def heard_before(config, data, start: dict, part: str = 'test') -> list | None:
    """Test speakers that the network of --init was trained on: there should be none. None if that cannot be known.

    part: 'dev' for those of dev.
    """
    records = [{**entry, 'train_speakers': entry['speakers'], 'dev_speakers': []} for entry in start.get('heard', [])]
    found = [Origin({'search': record}, config.init).heard(config, data, part) for record in records]
    names = set().union(*(names for names in found if names))
    known = tells_all(start) and None not in found
    return sorted(names) if names or known else None


def describe_start(config, data, start: dict | None, taken: str):
    """Lines for the log: what was taken from the network of --init, and whether it was trained on test speakers."""
    if start is None:
        return
    yield f'--init {config.init}: {taken}'
    if differ := different_features(config, start['settings']):
        yield f'NOTE: features differ from those of the network of --init: {differ}'
    heard = heard_before(config, data, start)
    if heard is None:
        yield ('NOTE: it is not known whether the network of --init was trained on test speakers: its best.pt does not say, or '
               'names another corpus')
    elif heard:
        yield (f'WARNING: the network of --init was trained on test speakers of this fold: {" ".join(heard)}. The scores below '
               'are not speaker-independent.')


class Origin:
    """What a genotype's file says of the search that found it.

    Anyone may have written the file, so only known settings are read from it.
    """

    def __init__(self, record: dict, where: str | None = None):
        """where: the file, for messages; None for a network that no search found."""
        self.where = where
        self.search, self.features, self.network = (record.get(part) or {} for part in ('search', 'features', 'network'))
        for part in (self.search, self.features, self.network):
            if not isinstance(part, dict):
                raise utils.UserError(f'--genotype {where}: search, features and network must be tables of settings')
        # In an experiment's copy of a genotype from elsewhere: its settings are not this experiment's.
        elsewhere = self.search.get('elsewhere')
        self.searched = elsewhere if isinstance(elsewhere, dict) else self.search

    def settings(self, given: dict) -> dict:
        """Settings that search.py records: sizes and features; protocol and fold, if --dataset is the same."""
        sizes = [name for name in cf.names_of(cf.NetworkSettings) if name != 'dropout']
        found = {**self._known(self.network, sizes), **self._known(self.features, cf.names_of(cf.FeatureSettings))}
        dataset, folds = self.search.get('dataset'), self.search.get('folds')
        if dataset is not None and given.get('dataset', dataset) == dataset:
            shared = self._known(self.search, ['dataset', 'labels', 'turns', 'scenarios', 'folds'])
            if given.get('folds', folds) == folds:  # in another division the number means other speakers
                shared |= self._known(self.search, ['fold'])
            self._check_rows(given, shared)
            found |= shared
        return found

    def _check_rows(self, given, shared):
        """UserError if classes or fold would be taken over to another manifest than that of the search."""
        silent = [name for name, value in shared.items()
                  if name not in {'dataset', *given} and value != getattr(cf.AugmentConfig, name)]
        corpus, path = self.search.get('corpus'), given.get('data_path')
        # A run that is there may have begun with an earlier version, which did not ask.
        begun = Path('runs', 'augment', given['name'], 'config.yaml').exists()
        if shared['dataset'] != 'manifest' or not silent or not corpus or not path or begun:
            return
        if datasets.corpus_digest(datasets.scan('manifest', path)) != corpus:
            raise utils.UserError(f'--genotype {self.where}: the search had other rows than {path}, and '
                                  f'{", ".join(f"{name} {shared[name]}" for name in silent)}: say '
                                  f'{" and ".join(f"--{name}" for name in silent)} for this manifest')

    def _known(self, table, names):
        """The settings in `table` that are among `names`, checked."""
        try:
            return {name: cf.checked(cf.AugmentConfig, name, table[name]) for name in names if name in table}
        except utils.UserError as error:
            raise utils.UserError(f'--genotype {self.where}: {error}') from None

    def heard(self, config, data, part: str = 'test') -> list | None:
        """Test speakers that took part in the search: there should be none. None if that cannot be known.

        part: another set of the fold, whose speakers are asked for instead.
        Speakers are compared by name, so the corpus must be the same, or one that has other speakers. A name in a manifest may
        mean another person in another file, so there the rows must be the same too (Data.corpus).
        """
        def is_of(found):
            same = found.get('dataset') == config.dataset
            return same and (config.dataset != 'manifest' or found.get('corpus') == data.corpus)
        if not self.where or datasets.strangers(str(self.searched.get('dataset')), config.dataset):
            return []
        tested = self.search.get('tested')  # what an earlier experiment knew
        judged = getattr(data.fold, part)
        if isinstance(tested, dict) and is_of(tested) and tested.get('speakers') == list(judged):
            return [str(name) for name in tested['heard']] if isinstance(tested.get('heard'), list) else None
        speakers = [self.searched.get(name) for name in ('train_speakers', 'dev_speakers')]
        if not is_of(self.searched) or not all(isinstance(names, list) for names in speakers):
            return None
        return sorted(set(judged) & {str(name) for names in speakers for name in names})

    def describe(self, config, data):
        """Lines for the log: whether the search used test speakers, and whether the features differ from its own."""
        heard = self.heard(config, data)
        if heard is None:
            yield ('NOTE: it is not known whether the search used test speakers: the genotype\'s record is missing, or of '
                   'another corpus')
        elif heard:
            yield (f'WARNING: the search used test speakers of this fold: {" ".join(heard)}. The scores below are not '
                   'speaker-independent.')
        if differ := different_features(config, self.features):
            yield f'NOTE: features differ from those of the search: {differ}'


def different_features(config, before: dict) -> str:
    """The settings of features that differ from those of an earlier run, in words. before: {} if they are not known."""
    now = cf.pick(config, cf.FeatureSettings) if before else {}
    return ', '.join(f'{name} {value} (there {then})' for name, value in now.items()
                     if (then := utils.recorded(before, name)) not in (None, value))


def check_best(best, genotype, net, run):
    """UserError if a resumed run began with another genotype. Other errors if `best` is not what a checkpoint holds."""
    if best['file']['genotype'] != (genotype and gt.to_str(genotype)):
        raise utils.UserError(f'--resume: {run.config.genotype} is another genotype than {run.path} began with')
    expected = {name: x.shape for name, x in net.state_dict().items()}
    if {name: x.shape for name, x in best['file']['weights'].items()} != expected:
        raise ValueError('the best network has other weights')
    if not isinstance(best['epoch'], int) or not (run.config.train_on_dev or best['ua'] - best['loss'] < math.inf):
        raise ValueError('the best epoch has no scores')


def portable(net, genotype, data, config, epoch: int, start: dict | None = None) -> dict:
    """Contents of best.pt: everything needed to score a new recording, as plain values and tensors.

    mean and std are those of the network's input; with normalise 'speaker' a recording is first normalised by its
    speaker's recordings, and prior has the mean and std that those of few recordings are shrunk towards.
    heard lists the corpora and speakers it was trained on, those of `start`, the network of --init, included. heard_all tells
    whether these are all of them, which `start` may not know.
    """
    start = start or {'heard': []}
    heard = [{'dataset': config.dataset, 'corpus': data.corpus, 'speakers': [*data.fold.train, *data.fold.dev]},
             *start.get('heard', [])]
    settings = {**cf.pick(config, cf.NetworkSettings, cf.FeatureSettings), 'model': config.model, 'params': config.params}
    return {'format': 1 if net.pools_padding else utils.FORMAT, 'settings': settings,
            'weights': {name: x.detach().cpu().clone() for name, x in net.state_dict().items()},
            'genotype': genotype and gt.to_str(genotype), 'labels': data.labels, 'mean': data.mean, 'std': data.std,
            'prior': list(data.prior), 'heard': heard, 'heard_all': tells_all(start),
            'auxiliary': bool(genotype) and config.aux_weight > 0, 'epoch': epoch}


def report(run, probabilities, config, data, facts: dict, chosen: str):
    """Writes predictions.csv, results.json and the last lines of the log.

    probabilities: (n_test, n_classes). facts: of the network and its training. chosen: in words, how the network was chosen.
    """
    test, speakers = data.sets['test'], data.fold.test
    labels, predicted = test.labels.cpu().numpy(), probabilities.argmax(axis=1)
    found = scoring.scores(labels, predicted)
    write_predictions(run.file('predictions.csv'), probabilities, config, data)
    matrix = confusion_matrix(labels, predicted, labels=range(len(data.labels)))
    chance = {'ua': 1 / len(set(labels.tolist())), 'wa': float(matrix.sum(axis=1).max() / matrix.sum())}
    board.test(run, data, probabilities, found, facts['best_epoch'])
    run.writer.flush()
    # Last: who finds this file takes the run for finished.
    utils.write_json(run.file('results.json'), {
        **found, 'chance': chance, 'confusion': matrix.tolist(), 'labels': data.labels, 'n_test': len(test), **facts,
        'dataset': config.dataset, 'protocol': data.protocol, 'folds': config.folds, 'fold': config.fold,
        'train_speakers': list(data.fold.train), 'dev_speakers': list(data.fold.dev), 'test_speakers': list(speakers),
        'train_on_dev': config.train_on_dev, 'normalise': config.normalise, 'embedding': config.embedding,
        'seed': config.seed, 'format': run.format, 'provenance': run.provenance,
        'command': f'{parallel.launcher()} {shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])}'})
    log = run.logger.info
    log('network:     %s', config.genotype if facts['genotype'] else facts['model'])
    # Unknown, None, is not unseen.
    unseen = all(facts.get(f'{network}_heard_test_speakers', []) == [] for network in ('search', 'init'))
    log('test (%d utterances of %sspeakers %s), %s%s:', len(test), 'unseen ' * unseen, ' '.join(speakers), chosen,
        ', each speaker normalised by all their recordings' if config.normalise == 'speaker' else '')
    log('  UA %.3f (chance %.3f)   WA %.3f (largest class %.3f)   macro F1 %.3f', found['ua'], chance['ua'], found['wa'],
        chance['wa'], found['macro_f1'])
    log('  recall: %s', ', '.join(f'{name} {recall:.2f} of {n}' for name, (recall, n) in
                                 scoring.recalls(labels, predicted, data.labels).items()))
    if 'layers' in facts:
        log('  %s', sources.describe(facts['layers']))
    log('results:     %s', run.file('results.json'))
    tensorboard = os.path.join(os.path.dirname(sys.executable), 'tensorboard')  # of this environment
    log('TensorBoard: %s --logdir runs', os.path.relpath(tensorboard) if os.path.exists(tensorboard) else 'tensorboard')


def write_predictions(path, probabilities, config, data):
    """One row per test utterance: path, speaker, label, predicted, a probability per class."""
    root = Path(config.data_path or '').parent if config.dataset == 'manifest' else Path(config.data_path or '')
    test = data.sets['test'].utterances
    timed = any(u.start is not None or u.end is not None for u in test)
    rows = []
    for u, p in zip(test, probabilities):
        relative = u.path.removeprefix(os.path.join(root, ''))  # as a manifest names it
        cells = map(cf.csv_cell, (relative, u.speaker, u.label, data.labels[p.argmax()]))
        rows.append([*cells, *(f'{value:.6f}' for value in p), *([u.start, u.end] if timed else [])])
    header = ['path', 'speaker', 'label', 'predicted', *(f'p_{label}' for label in data.labels)]
    utils.write_csv(path, header + (['start', 'end'] if timed else []), rows)


if __name__ == '__main__':
    utils.cli(main, parallel.first_to_speak, parallel.leave, 'the same command with --resume continues')
