"""Retraining: train the network of a genotype, or a hand-designed one, from scratch. Dev selects the epoch; test is scored
once, at the end.

    python augment.py --name demo --config configs/demo.yaml --genotype runs/search/demo
"""
import config as cf
import signals

if __name__ == '__main__':
    signals.begin()
    cf.answer_help('augment')  # before the slow imports

import math
import os
import shlex
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

import datasets
import genotypes as gt
import utils
from datasets import scoring
from datasets.transforms import SpecAugment
from models import parallel
from models.augment_cnn import AugmentCNN
from models.baselines import make_baseline
from models.steps import Steps
from models.sync import CrossEntropyLoss
from models.visualize import plot


def main(argv: list[str] | None = None):
    config, genotype, origin = configure(cf.given('augment', argv))
    device = parallel.start(config)
    run = parallel.together(lambda: utils.Run('augment', config, parallel.is_main()))
    data = parallel.together(lambda: datasets.load(config, ('train', 'dev', 'test'), device, not run.writes,
                                                   config.train_on_dev, **parallel.place()))
    train, dev, test = (data.sets.get(name) for name in ('train', 'dev', 'test'))

    utils.set_seed(config.seed)
    net = make_net(config, data, genotype).to(device)
    if config.channels_last:
        net.to(memory_format=torch.channels_last)
    net.pools_padding = run.format < 2
    criterion = CrossEntropyLoss(data.class_weights.to(device))
    optim = make_optimizer(net, config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optim, lambda epoch: schedule(epoch, config.warmup, config.epochs))
    autocast = utils.autocast(device, config.amp)
    masks = SpecAugment(config.n_masks, config.max_freq, config.max_time)
    n_params = utils.count_parameters(p for name, p in net.named_parameters() if not name.startswith('aux_head'))

    steps = Steps(lambda: run.save_checkpoint({'best': best, **state.state_dict()}))
    state = parallel.State(config.seed, device, net=net, optim=optim, scheduler=scheduler, steps=steps)
    checkpoint = parallel.from_main(lambda: run.open(data))
    best = {'epoch': 0, 'ua': -1., 'loss': float('inf'), 'file': None}
    if checkpoint:
        run.history, best = checkpoint['history'], checkpoint['best']
        if best.get('file'):  # else the run was stopped in its first epoch
            check_genotype(best, genotype, run)
            run.save('best.pt', best['file'])  # a run killed between the two files may have left that of a later epoch
    log, hardware = run.logger.info, utils.describe_device(device, parallel.world_size())
    state.load(checkpoint, log)
    log('augment %s on %s, fold %d: %d utterances to train, %d for dev, %d for test; %s parameters; %s', config.model,
        config.dataset, config.fold, len(train), len(dev or ()), len(test), f'{n_params:,}', hardware)
    for line in (*datasets.describe(config, data), *origin.describe(config, data)):
        log('%s', line)
    if genotype and not checkpoint:
        run.draw('genotype', lambda: plot(genotype, f'{config.dataset}, fold {config.fold}'), 0)

    if config.warmup >= config.epochs:
        log('WARNING: warmup %d leaves no epoch at the full learning rate', config.warmup)

    for epoch in range(len(run.history) + 1, config.epochs + 1):
        if config.patience and epoch - 1 - best['epoch'] >= config.patience:
            log('no better dev UA for %d epochs: stopped early', config.patience)
            break
        began, lr = time.time(), scheduler.get_last_lr()[0]
        net.drop_path_prob(config.drop_path_prob * (epoch - 1) / max(1, config.epochs - 1))
        steps.begin(epoch, state, optim, partial(train.files_of, batch_size=config.batch_size))
        batches = train.batches(config.batch_size, None, state.draws, masks)
        batches = parallel.progress(batches, f'epoch {epoch}/{config.epochs}', train.n_batches(config.batch_size))
        scores = {'train': train_epoch(net, criterion, optim, steps, batches, autocast, config)}
        parallel.check_equal(net, epoch)
        if dev:
            with steps.interruptible():
                scores['dev'], probabilities = evaluate(net, dev, criterion, autocast, config)
        scheduler.step()
        steps.end()
        # Few dev speakers give few distinct UAs: the lower loss decides between equals, then the earlier epoch.
        if not dev or (scores['dev']['ua'], -scores['dev']['loss']) > (best['ua'], -best['loss']):
            best = {'epoch': epoch, **({name: scores['dev'][name] for name in ('ua', 'loss')} if dev else {}),
                    'file': portable(net, genotype, data, config, epoch)}
            run.save('best.pt', best['file'])
            if dev:
                predicted = dev.labels.cpu().numpy(), probabilities.argmax(axis=1)
                run.draw('confusion/dev', partial(scoring.plot_confusion, *predicted, data.labels), epoch)
        run.end_epoch({'epoch': epoch, **scores, 'lr': lr, 'seconds': time.time() - began})
        run.save_checkpoint({'best': best, **state.state_dict()})
        shown = ' | '.join(f'{part} loss {s["loss"]:.3f} UA {s["ua"]:.3f} WA {s["wa"]:.3f}' for part, s in scores.items())
        log('epoch %d/%d: %s%s', epoch, config.epochs, shown,
            f' (best UA {best["ua"]:.3f}, epoch {best["epoch"]})' if dev else '')

    signals.hold(False)
    net.load_state_dict(best['file']['weights'])
    _, probabilities = evaluate(net, test, criterion, autocast, config)  # the test speakers, once
    if run.writes:
        chosen = 'the last' if config.train_on_dev else 'chosen on dev'
        report(run, probabilities, config, data, dict(
            model=config.model, n_params=n_params, best_epoch=best['epoch'], dev_ua=best['ua'] if dev else None,
            genotype=genotype and gt.to_str(genotype), search=origin.search or None,
            search_heard_test_speakers=origin.heard(config, data), device=hardware,
            seconds=sum(row['seconds'] for row in run.history)), f'epoch {best["epoch"]}, {chosen}')
    run.close()
    parallel.stop()


def train_epoch(net, criterion, optim, steps, batches, autocast, config) -> dict:
    """One pass over the training speakers. Returns the training scores."""
    for X, y in steps.each(batches):
        optim.zero_grad()
        with autocast:
            logits, aux_logits = net(*X)
            loss = criterion(logits, y)
            total = loss if aux_logits is None else loss + config.aux_weight * criterion(aux_logits, y)
        total.backward()
        if steps.sound(parallel.clip_gradients(net.parameters(), config.grad_clip)):
            optim.step()
            steps.tally.add(loss, logits, y)
    return steps.tally.scores(parallel.gather)


def evaluate(net, dataset, criterion, autocast, config) -> tuple[dict, np.ndarray]:
    """Scores of a set, and its probabilities (n, n_classes)."""
    net.eval()
    with autocast:
        forward = parallel.sharing(lambda x, valid: net(x, valid)[0])
        found = scoring.evaluate(forward, dataset, config.batch_size, criterion.weight)
    net.train()
    return parallel.gather(found)[0]  # of rank 0: the last bit must not make ranks choose different epochs


def configure(given: cf.Given):
    """AugmentConfig, Genotype (None for a hand-designed network) and Origin. UserError."""
    values = given.values
    if values.get('model', 'genotype') != 'genotype':
        return cf.build('augment', given), None, Origin({})
    if not values.get('genotype'):
        raise utils.UserError('--genotype is required: a genotype.json or folder of search.py, or random; or name a --model')
    if values['genotype'] == cf.RANDOM:
        config = cf.build('augment', given)
        rng = np.random.default_rng([config.seed, config.fold])
        rnn_nodes = config.rnn_nodes if config.rnn_layers else 0
        try:
            return config, gt.draw(rng, config.n_nodes, rnn_nodes, config.cnn_ops, config.rnn_ops), Origin({})
        except ValueError as error:
            raise utils.UserError(str(error)) from None
    try:
        genotype, record = gt.load(values['genotype'])
    except ValueError as error:
        raise utils.UserError(f'--genotype {error}') from None
    origin = Origin(record, values['genotype'])
    return cf.build('augment', given, origin.settings(values)), genotype, origin


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

    def settings(self, given: dict) -> dict:
        """Settings that search.py records: sizes and features; protocol and fold, if --dataset is the same."""
        sizes = [name for name in cf.names_of(cf.NetworkSettings) if name != 'dropout']
        found = {**self._known(self.network, sizes), **self._known(self.features, cf.names_of(cf.FeatureSettings))}
        dataset, folds = self.search.get('dataset'), self.search.get('folds')
        if dataset is not None and given.get('dataset', dataset) == dataset:
            found.update(self._known(self.search, ['dataset', 'labels', 'turns', 'scenarios', 'folds']))
            if given.get('folds', folds) == folds:  # in another division the number means other speakers
                found.update(self._known(self.search, ['fold']))
        return found

    def _known(self, table, names):
        """The settings in `table` that are among `names`, checked."""
        try:
            return {name: cf.checked(cf.AugmentConfig, name, table[name]) for name in names if name in table}
        except utils.UserError as error:
            raise utils.UserError(f'--genotype {self.where}: {error}') from None

    def heard(self, config, data) -> list | None:
        """Test speakers that took part in the search: there should be none. None if that cannot be known.

        Speakers are compared by name, so the corpus must be the same. A name in a manifest may mean another person in
        another file, so there the rows must be the same too (Data.corpus).
        """
        if not self.where:
            return []
        same = self.search.get('dataset') == config.dataset
        if config.dataset == 'manifest':
            same = same and self.search.get('corpus') == data.corpus
        speakers = [self.search.get(part) for part in ('train_speakers', 'dev_speakers')]
        if not same or not all(isinstance(names, list) for names in speakers):
            return None
        return sorted(set(data.fold.test) & {str(name) for names in speakers for name in names})

    def describe(self, config, data):
        """Lines for the log: whether the search used test speakers, and whether the features differ from its own."""
        heard = self.heard(config, data)
        if heard is None:
            yield ('NOTE: it is not known whether the search used test speakers: the genotype\'s record is missing, or of '
                   'another corpus')
        elif heard:
            yield (f'WARNING: the search used test speakers of this fold: {" ".join(heard)}. The scores below are not '
                   'speaker-independent.')
        differ = [f'{name} {now} (there {utils.recorded(self.features, name)})'
                  for name, now in cf.pick(config, cf.FeatureSettings).items()
                  if self.features and utils.recorded(self.features, name) not in (None, now)]
        if differ:
            yield f'NOTE: features differ from those of the search: {", ".join(differ)}'


def check_genotype(best, genotype, run):
    """UserError if a resumed run began with another genotype."""
    if best['file']['genotype'] != (genotype and gt.to_str(genotype)):
        raise utils.UserError(f'--resume: {run.config.genotype} is another genotype than {run.path} began with')


def make_net(config, data, genotype) -> torch.nn.Module:
    """The network of this genotype, or of config.model. UserError if there is none for these sizes."""
    train = data.sets['train']
    if not genotype:
        return make_baseline(config.model, config.n_mels, train.n_frames, len(data.labels), config.dropout, config.params)
    try:
        net = AugmentCNN(None, 1, config.init_channels, len(data.labels), config.layers, config.aux_weight > 0, genotype,
                         config.stem_multiplier, config.rnn_layers, config.rnn_channels, config.dropout)
        net.check_batches(config.n_mels, train.n_frames, train.batch_sizes(config.batch_size))
    except ValueError as error:
        raise utils.UserError(f'--genotype {config.genotype[:60]}: {error}') from None
    return net


def make_optimizer(net, config) -> torch.optim.Optimizer:
    """SGD or AdamW."""
    if config.optimizer == 'sgd':
        return torch.optim.SGD(net.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay)


def schedule(epoch: int, warmup: int, epochs: int) -> float:
    """Factor of the learning rate in an epoch, from 0: a linear warm-up, then a cosine to 0."""
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    return .5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))


def portable(net, genotype, data, config, epoch: int) -> dict:
    """Contents of best.pt: everything needed to score a new recording, as plain values and tensors.

    mean and std are those of the network's input; with normalise 'speaker' a recording is first normalised by its
    speaker's recordings.
    """
    settings = {**cf.pick(config, cf.NetworkSettings, cf.FeatureSettings), 'model': config.model, 'params': config.params}
    return {'format': 1 if net.pools_padding else utils.FORMAT, 'settings': settings,
            'weights': {name: x.detach().cpu().clone() for name, x in net.state_dict().items()},
            'genotype': genotype and gt.to_str(genotype), 'labels': data.labels, 'mean': data.mean, 'std': data.std,
            'auxiliary': bool(genotype) and config.aux_weight > 0, 'epoch': epoch}


def rebuild(best: dict) -> torch.nn.Module:
    """The trained network in eval mode, from the contents of a best.pt of this or an earlier version."""
    config = cf.AugmentConfig(name='x', **{name: value for name, value in best['settings'].items() if value is not None})
    n_classes = len(best['labels'])
    if best['genotype']:
        net = AugmentCNN(None, 1, config.init_channels, n_classes, config.layers, best['auxiliary'],
                         gt.from_str(best['genotype']), config.stem_multiplier, config.rnn_layers, config.rnn_channels)
    else:
        net = make_baseline(config.model, config.n_mels, config.n_frames, n_classes, config.dropout, config.params)
    net.load_state_dict(best['weights'])
    net.pools_padding = best.get('format', 1) < 2
    return net.eval()


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
    utils.write_json(run.file('results.json'), {
        **found, 'chance': chance, 'confusion': matrix.tolist(), 'labels': data.labels, 'n_test': len(test), **facts,
        'dataset': config.dataset, 'protocol': data.protocol, 'folds': config.folds, 'fold': config.fold,
        'train_speakers': list(data.fold.train), 'dev_speakers': list(data.fold.dev), 'test_speakers': list(speakers),
        'train_on_dev': config.train_on_dev, 'normalise': config.normalise, 'seed': config.seed, 'format': run.format,
        'provenance': run.provenance,
        'command': f'{parallel.launcher()} {shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])}'})
    title = f'{config.dataset}, fold {config.fold}: UA {100 * found["ua"]:.1f}, n = {len(test)}'
    run.draw('confusion/test', lambda: scoring.plot_confusion(labels, predicted, data.labels, title), facts['best_epoch'])
    for name, value in found.items():
        run.writer.add_scalar(f'test/{name}', value, facts['best_epoch'])
    log = run.logger.info
    log('network:     %s', config.genotype if facts['genotype'] else facts['model'])
    log('test (%d utterances of unseen speakers %s), %s%s:', len(test), ' '.join(speakers), chosen,
        ', each speaker normalised by all their recordings' if config.normalise == 'speaker' else '')
    log('  UA %.3f (chance %.3f)   WA %.3f (largest class %.3f)   macro F1 %.3f', found['ua'], chance['ua'], found['wa'],
        chance['wa'], found['macro_f1'])
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
        rows.append([relative, u.speaker, u.label, data.labels[p.argmax()], *(f'{value:.6f}' for value in p),
                     *([u.start, u.end] if timed else [])])
    header = ['path', 'speaker', 'label', 'predicted', *(f'p_{label}' for label in data.labels)]
    utils.write_csv(path, header + (['start', 'end'] if timed else []), rows)


if __name__ == '__main__':
    utils.cli(main, parallel.first_to_speak, parallel.leave, 'the same command with --resume continues')
