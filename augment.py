"""Training from scratch of the network that a genotype describes; dev picks the epoch, test is read once, at the end.

    python augment.py --name demo --config configs/demo.yaml --genotype runs/search/demo/genotype.json
"""
import os
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import torch
import torch.nn as nn
from sklearn.metrics import confusion_matrix
from tqdm import tqdm

import config as cf
import datasets
import genotypes as gt
import utils
from datasets.dataset import batch_sizes
from datasets.transforms import spec_augment
from models import distributed
from models.augment_cnn import AugmentCNN
from models.sync import CrossEntropyLoss
from models.visualize import plot, plot_confusion


def main(argv=None):
    given = cf.given('augment', argv)
    if not given.get('genotype'):
        raise utils.UserError('--genotype is needed: the genotype.json that search.py wrote')
    try:
        genotype, found_by = gt.load(given['genotype'])
    except ValueError as error:
        raise utils.UserError(f'--genotype {error}') from None
    config = cf.build('augment', given, recorded_settings(found_by, given))
    utils.set_threads(config.threads)
    device = utils.choose_device(config.device, distributed.local_rank())
    distributed.start(device)
    run = distributed.together(lambda: utils.Run('augment', config, distributed.is_main()))
    data = distributed.together(lambda: datasets.load(config, ('train', 'dev', 'test'), device, not run.writes))
    train, dev = data.sets['train'], data.sets['dev']

    utils.set_seed(config.seed)
    shared = torch.Generator().manual_seed(config.seed)  # of batches and masks, which are drawn alike on every rank
    net = make_net(config, data, genotype).to(device)
    if config.channels_last:
        net.to(memory_format=torch.channels_last)
    criterion = CrossEntropyLoss(data.class_weights.to(device))
    optim = torch.optim.SGD(net.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optim, config.epochs)
    parts = dict(net=net, optim=optim, scheduler=scheduler)
    n_params = utils.count_parameters(p for name, p in net.named_parameters() if not name.startswith('aux_head'))

    distributed.seed_own(config.seed)
    checkpoint = distributed.from_main(lambda: run.open(data))
    best = {'epoch': 0, 'ua': -1., 'loss': float('inf')}
    if checkpoint:
        run.history, best = checkpoint['history'], checkpoint['best']
        if best['file']['genotype'] != gt.to_str(genotype):
            raise utils.UserError(f'--resume: {config.genotype} is another genotype than {run.path} began with')
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
        # A run killed between the two files may have left the network of an epoch that is now run again.
        if run.writes:
            utils.write_torch(run.file('best.pt'), best['file'])
        distributed.set_rng_state(checkpoint['rng'], shared, device)
    distributed.broadcast_(net.state_dict().values())
    log, hardware = run.logger.info, utils.describe_device(device, distributed.world_size())
    log('augment on %s, fold %d: %d utterances to train, %d for dev, %d for test; %s parameters; %s', config.dataset,
        config.fold, len(train), len(dev), len(data.sets['test']), f'{n_params:,}', hardware)
    distributed.announce(log, checkpoint)
    for line in datasets.protocol.lines(data.protocol):
        log('%s', line)
    heard = speakers_heard(found_by, config, data)
    if heard is None:
        log('NOTE: the genotype does not say that it was searched on %s: whether the search heard test speakers is not known',
            config.dataset)
    elif heard:
        log('WARNING: the search heard test speakers of this fold: %s. The scores below are not speaker-independent.',
            ' '.join(heard))
    if run.writes:
        run.writer.add_figure('genotype', plot(genotype), 0)

    autocast = utils.autocast(device, config.amp)
    for epoch in range(len(run.history) + 1, config.epochs + 1):
        if config.patience and epoch - 1 - best['epoch'] >= config.patience:
            log('no better dev UA for %d epochs: stopped early', config.patience)
            break
        began, lr = time.time(), scheduler.get_last_lr()[0]
        net.drop_path_prob(config.drop_path_prob * (epoch - 1) / max(1, config.epochs - 1))
        trained = train_epoch(net, criterion, optim, train, shared, autocast, config, epoch)
        scheduler.step()
        if distributed.differs(net.state_dict().values()):
            raise utils.UserError(f'epoch {epoch} left the processes with different weights, which must not be: --resume goes '
                                  'on from the epoch before')
        dev_scores, probabilities = score(net, dev, criterion, autocast, config)
        # Few dev speakers give few distinct UAs: the lower loss decides between equals, then the earlier epoch.
        if (dev_scores['ua'], -dev_scores['loss']) > (best['ua'], -best['loss']):
            best = {'epoch': epoch, 'ua': dev_scores['ua'], 'loss': dev_scores['loss'],
                    'file': portable(net, genotype, data, config, epoch)}
            if run.writes:
                utils.write_torch(run.file('best.pt'), best['file'])
                figure = plot_confusion(dev.labels.cpu().numpy(), probabilities.argmax(axis=1), data.labels)
                run.writer.add_figure('confusion/dev', figure, epoch)
        rng = distributed.rng_state(shared, device)
        if run.writes:
            run.end_epoch({'epoch': epoch, 'train': trained, 'dev': dev_scores, 'lr': lr, 'seconds': time.time() - began})
            run.save_checkpoint({'rng': rng, 'best': best, **{name: part.state_dict() for name, part in parts.items()}})
        log('epoch %d: train loss %.3f UA %.3f WA %.3f | dev loss %.3f UA %.3f WA %.3f (best UA %.3f, epoch %d)', epoch,
            *(s[name] for s in (trained, dev_scores) for name in ('loss', 'ua', 'wa')), best['ua'], best['epoch'])

    net.load_state_dict(best['file']['weights'])
    test(run, net, criterion, autocast, config, data, dict(
        n_params=n_params, best_epoch=best['epoch'], dev_ua=best['ua'], genotype=gt.to_str(genotype),
        search=found_by.get('search'), search_heard_test_speakers=heard, device=hardware))
    if run.writes:
        run.close()
    distributed.stop()


def recorded_settings(found_by, given):
    """Settings that the genotype's own record brings: sizes and features; protocol and fold where the corpus is the same."""
    for part in ('network', 'features', 'search'):
        if not isinstance(found_by.get(part, {}), dict):
            raise utils.UserError(f'--genotype {given["genotype"]}: "{part}" is not a table of settings')
    searched = {**found_by.get('network', {}), **found_by.get('features', {})}
    origin = found_by.get('search', {})
    if 'dataset' in origin and given.get('dataset', origin['dataset']) == origin['dataset']:
        searched.update({name: origin[name] for name in ('dataset', 'labels', 'turns', 'scenarios', 'folds', 'fold')
                         if name in origin})
        if 'folds' in given:  # another division: its fold number means another thing
            searched.pop('fold', None)
    names = {f.name for f in fields(cf.AugmentConfig)}
    return {name: value for name, value in searched.items() if name in names}


def speakers_heard(found_by, config, data):
    """Test speakers that took part in the search, sorted: there should be none. None where it cannot be known."""
    origin = found_by.get('search', {})
    if origin.get('dataset') != config.dataset:
        return None
    return sorted(set(data.fold.test) & {*origin.get('train_speakers', []), *origin.get('dev_speakers', [])})


def make_net(config, data, genotype):
    """The network of this genotype and these settings. UserError where there is none."""
    train = data.sets['train']
    try:
        net = AugmentCNN(None, 1, config.init_channels, len(data.labels), config.layers, config.aux_weight > 0, genotype,
                          config.stem_multiplier, config.rnn_layers, config.rnn_channels, config.dropout)
        net.check_batches(config.n_mels, train.n_frames, batch_sizes(len(train), config.batch_size, distributed.world_size()))
    except ValueError as error:
        raise utils.UserError(f'--genotype {config.genotype}: {error}') from None
    return net


def train_epoch(net, criterion, optim, train, shared, autocast, config, epoch):
    """One pass over the training speakers. shared: draws batches and masks; every rank works on its share of them."""
    tally, place = utils.Tally(), distributed.place()
    sizes = batch_sizes(len(train), config.batch_size, distributed.world_size())
    bar = tqdm(train.batches(config.batch_size, None, shared, **place), f'epoch {epoch}/{config.epochs}', len(sizes),
               disable=None if distributed.is_main() else True, leave=False)
    for (X, y), n in zip(bar, sizes):
        X = spec_augment(X, config.n_masks, config.max_freq, config.max_time, shared, n, **place)
        optim.zero_grad()
        with autocast:
            logits, aux_logits = net(X)
            loss = criterion(logits, y)
            total = loss if aux_logits is None else loss + config.aux_weight * criterion(aux_logits, y)
        total.backward()
        distributed.sum_gradients(net.parameters())
        nn.utils.clip_grad_norm_(net.parameters(), config.grad_clip)
        optim.step()
        tally.add(loss, logits, y, n)
    return tally.scores(distributed.gather)


def score(net, dataset, criterion, autocast, config):
    net.eval()
    with autocast:
        forward = distributed.sharing(lambda X: net(X)[0])
        found = utils.evaluate(forward, dataset, config.batch_size, criterion.weight)
    net.train()
    return distributed.gather(found)[0]  # of rank 0: that all choose the same epoch must not hang on the last bit


def portable(net, genotype, data, config, epoch):
    """Contents of best.pt: everything that scoring a new recording needs; plain values and tensors only."""
    settings = asdict(config)
    names = ('init_channels', 'layers', 'stem_multiplier', 'rnn_layers', 'rnn_channels', 'dropout', 'features', 'n_mels',
             'hop_ms', 'time_pool', 'duration')
    return {'weights': {name: x.detach().cpu().clone() for name, x in net.state_dict().items()},
            'genotype': gt.to_str(genotype), 'labels': data.labels, 'mean': data.mean, 'std': data.std,
            'settings': {name: settings[name] for name in names}, 'auxiliary': config.aux_weight > 0,
            'epoch': epoch}


def test(run, net, criterion, autocast, config, data, facts):
    """Reads the test speakers, once: predictions.csv, results.json, and a line a reader of the log looks for."""
    held_out = data.sets['test']
    found, probabilities = score(net, held_out, criterion, autocast, config)
    if not run.writes:
        return
    labels, predicted = held_out.labels.cpu().numpy(), probabilities.argmax(axis=1)
    root = Path(config.data_path or '').parent if config.dataset == 'manifest' else Path(config.data_path or '')
    timed = any(u.start is not None or u.end is not None for u in held_out.utterances)
    rows = []
    for u, p, k in zip(held_out.utterances, probabilities, predicted):
        path = u.path.removeprefix(os.path.join(root, ''))  # as a manifest names it; else from the corpus' folder on
        rows.append([path, u.speaker, u.label, data.labels[k], *(f'{value:.6f}' for value in p)]
                    + ([u.start, u.end] if timed else []))
    header = ['path', 'speaker', 'label', 'predicted', *(f'p_{label}' for label in data.labels)]
    utils.write_csv(run.file('predictions.csv'), header + (['start', 'end'] if timed else []), rows)
    matrix = confusion_matrix(labels, predicted, labels=range(len(data.labels)))
    chance = {'ua': 1 / len(set(labels.tolist())), 'wa': float(matrix.sum(axis=1).max() / matrix.sum())}
    minutes = sum(row['seconds'] for row in run.history) / 60
    utils.write_json(run.file('results.json'), {
        'ua': found['ua'], 'wa': found['wa'], 'macro_f1': found['macro_f1'], 'chance': chance,
        'confusion': matrix.tolist(), 'labels': data.labels, 'n_test': len(held_out), **facts,
        'dataset': config.dataset, 'protocol': data.protocol, 'folds': config.folds, 'fold': config.fold,
        'train_speakers': list(data.fold.train), 'dev_speakers': list(data.fold.dev),
        'test_speakers': list(data.fold.test), 'seed': config.seed, 'seconds': minutes * 60, 'command': command()})
    run.writer.add_figure('confusion/test', plot_confusion(labels, predicted, data.labels), facts['best_epoch'])
    for name in ('ua', 'wa', 'macro_f1'):
        run.writer.add_scalar(f'test/{name}', found[name], facts['best_epoch'])
    run.logger.info('genotype:    %s', config.genotype)
    run.logger.info('test (%d utterances of held-out speakers %s), epoch %d, picked on dev:', len(held_out),
                    ' '.join(data.fold.test), facts['best_epoch'])
    run.logger.info('  UA %.3f (chance %.3f)   WA %.3f (largest class %.3f)   macro F1 %.3f', found['ua'], chance['ua'],
                    found['wa'], chance['wa'], found['macro_f1'])
    run.logger.info('results:     %s', run.file('results.json'))
    tensorboard = os.path.join(os.path.dirname(sys.executable), 'tensorboard')  # of the environment that runs this
    tensorboard = os.path.relpath(tensorboard) if os.path.exists(tensorboard) else 'tensorboard'
    run.logger.info('TensorBoard: %s --logdir runs', tensorboard)


def command():
    return ' '.join([distributed.launcher(), os.path.basename(sys.argv[0]), *sys.argv[1:]])


if __name__ == '__main__':
    utils.cli(main, distributed.first_to_speak)
