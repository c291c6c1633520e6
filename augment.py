"""Training from scratch of a genotype's network, or a hand-designed one; dev picks the epoch, test is read once, at the end.

    python augment.py --name demo --config configs/demo.yaml --genotype runs/search/demo/genotype.json
"""
import math
import time
from dataclasses import asdict, fields

import numpy as np
import torch
import torch.nn as nn
from tqdm import tqdm

import config as cf
import datasets
import genotypes as gt
import utils
from datasets import features, scoring
from datasets.dataset import batch_sizes
from datasets.transforms import spec_augment
from models import parallel
from models.augment_cnn import AugmentCNN
from models.baselines import make_baseline
from models.report import report
from models.sync import CrossEntropyLoss
from models.visualize import plot, plot_confusion

RANDOM = 'random'  # --genotype: drawn, not found


def main(argv=None):
    config, genotype, found_by = settings_and_genotype(cf.given('augment', argv))
    utils.set_threads(config.threads)
    device = utils.choose_device(config.device, parallel.local_rank())
    parallel.start(device)
    run = parallel.together(lambda: utils.Run('augment', config, parallel.is_main()))
    data = parallel.together(lambda: datasets.load(config, ('train', 'dev', 'test'), device, not run.writes,
                                                      config.train_on_dev))
    train, dev = data.sets['train'], data.sets.get('dev')

    utils.set_seed(config.seed)
    shared = torch.Generator().manual_seed(config.seed)  # of batches and masks, which are drawn alike on every rank
    net = make_net(config, data, genotype).to(device)
    if config.channels_last:
        net.to(memory_format=torch.channels_last)
    criterion = CrossEntropyLoss(data.class_weights.to(device))
    if config.optimizer == 'sgd':
        optim = torch.optim.SGD(net.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    else:
        optim = torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optim, lambda epoch: schedule(epoch, config.warmup, config.epochs))
    parts = dict(net=net, optim=optim, scheduler=scheduler)
    n_params = utils.count_parameters(p for name, p in net.named_parameters() if not name.startswith('aux_head'))

    parallel.seed_own(config.seed)
    checkpoint = parallel.from_main(lambda: run.open(data))
    best = {'epoch': 0, 'ua': -1., 'loss': float('inf')}
    if checkpoint:
        run.history, best = checkpoint['history'], checkpoint['best']
        if best['file']['genotype'] != (genotype and gt.to_str(genotype)):
            raise utils.UserError(f'--resume: {config.genotype} is another genotype than {run.path} began with')
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
        # A run killed between the two files may have left the network of an epoch that is now run again.
        if run.writes:
            utils.write_torch(run.file('best.pt'), best['file'])
        parallel.set_rng_state(checkpoint['rng'], shared, device)
    parallel.broadcast_(net.state_dict().values())
    log, hardware = run.logger.info, utils.describe_device(device, parallel.world_size())
    log('augment %s on %s, fold %d: %d utterances to train, %d for dev, %d for test; %s parameters; %s', config.model,
        config.dataset, config.fold, len(train), len(dev or ()), len(data.sets['test']), f'{n_params:,}', hardware)
    parallel.announce(log, checkpoint)
    for line in datasets.describe(config, data):
        log('%s', line)
    heard = speakers_heard(found_by, config, data) if from_file(config) else []
    if heard is None:
        log('NOTE: the genotype does not say that it was searched on %s: whether the search heard test speakers is not known',
            config.dataset)
    elif heard:
        log('WARNING: the search heard test speakers of this fold: %s. The scores below are not speaker-independent.',
            ' '.join(heard))
    if others := other_features(found_by, config):
        log('NOTE: features are not those of the search: %s', ', '.join(others))
    if run.writes and genotype:
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
        if parallel.differs(net.state_dict().values()):
            raise utils.UserError(f'epoch {epoch} left the processes with different weights, which must not be: --resume goes '
                                  'on from the epoch before')
        scores = {'train': trained}
        if dev is not None:
            scores['dev'], probabilities = score(net, dev, criterion, autocast, config)
        # Few dev speakers give few distinct UAs: the lower loss decides between equals, then the earlier epoch.
        if dev is None or (scores['dev']['ua'], -scores['dev']['loss']) > (best['ua'], -best['loss']):
            best = {'epoch': epoch, **({name: scores['dev'][name] for name in ('ua', 'loss')} if dev is not None else {}),
                    'file': portable(net, genotype, data, config, epoch)}
            if run.writes:
                utils.write_torch(run.file('best.pt'), best['file'])
                if dev is not None:
                    figure = plot_confusion(dev.labels.cpu().numpy(), probabilities.argmax(axis=1), data.labels)
                    run.writer.add_figure('confusion/dev', figure, epoch)
        rng = parallel.rng_state(shared, device)
        if run.writes:
            run.end_epoch({'epoch': epoch, **scores, 'lr': lr, 'seconds': time.time() - began})
            run.save_checkpoint({'rng': rng, 'best': best, **{name: part.state_dict() for name, part in parts.items()}})
        said = ' | '.join(f'{part} loss {s["loss"]:.3f} UA {s["ua"]:.3f} WA {s["wa"]:.3f}' for part, s in scores.items())
        log('epoch %d: %s%s', epoch, said, f' (best UA {best["ua"]:.3f}, epoch {best["epoch"]})' if dev is not None else '')

    net.load_state_dict(best['file']['weights'])
    test(run, net, criterion, autocast, config, data, dict(
        model=config.model, n_params=n_params, best_epoch=best['epoch'], dev_ua=None if dev is None else best['ua'],
        genotype=genotype and gt.to_str(genotype), search=found_by.get('search'), search_heard_test_speakers=heard,
        device=hardware, seconds=sum(row['seconds'] for row in run.history)))
    if run.writes:
        run.close()
    parallel.stop()


def settings_and_genotype(given):
    """AugmentConfig, Genotype (None for a hand-designed network), and the record of the search behind it ({} without one)."""
    if given.get('model', 'genotype') != 'genotype':
        if given.get('genotype'):
            raise utils.UserError(f'--model {given["model"]} is no genotype\'s network: leave --genotype out')
        return cf.build('augment', given), None, {}
    if given.get('params'):
        raise utils.UserError('--params sizes hand-designed networks: name one with --model')
    if not given.get('genotype'):
        raise utils.UserError('--genotype is needed: the genotype.json that search.py wrote, or random')
    if given['genotype'] == RANDOM:
        config = cf.build('augment', given)
        rng = np.random.default_rng([config.seed, config.fold])
        rnn_nodes = config.rnn_nodes if config.rnn_layers else 0
        try:
            return config, gt.draw(rng, config.n_nodes, rnn_nodes, config.cnn_ops, config.rnn_ops), {}
        except ValueError as error:
            raise utils.UserError(str(error)) from None
    try:
        genotype, found_by = gt.load(given['genotype'])
    except ValueError as error:
        raise utils.UserError(f'--genotype {error}') from None
    return cf.build('augment', given, recorded_settings(found_by, given)), genotype, found_by


def from_file(config):
    """Whether the network is one that a file describes, behind which there may be a search."""
    return config.model == 'genotype' and config.genotype != RANDOM


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


def other_features(found_by, config):
    """['duration 2.0 (there 3.0)', ...]: what a flag or preset has otherwise than the search had it."""
    then = found_by.get('features')
    return [f'{name} {getattr(config, name)} (there {utils.recorded(then, name)})' for name in features.NAMES
            if then and utils.recorded(then, name) not in (None, getattr(config, name))]


def speakers_heard(found_by, config, data):
    """Test speakers that took part in the search, sorted: there should be none. None where it cannot be known."""
    origin = found_by.get('search', {})
    if origin.get('dataset') != config.dataset or not {'train_speakers', 'dev_speakers'} <= origin.keys():
        return None
    return sorted(set(data.fold.test) & {*origin['train_speakers'], *origin['dev_speakers']})


def make_net(config, data, genotype):
    """The network of this genotype, or of config.model, and these settings. UserError where there is none."""
    train = data.sets['train']
    if not genotype:
        return make_baseline(config.model, config.n_mels, train.n_frames, len(data.labels), config.dropout, config.params)
    try:
        net = AugmentCNN(None, 1, config.init_channels, len(data.labels), config.layers, config.aux_weight > 0, genotype,
                         config.stem_multiplier, config.rnn_layers, config.rnn_channels, config.dropout)
        net.check_batches(config.n_mels, train.n_frames, batch_sizes(len(train), config.batch_size, parallel.world_size()))
    except ValueError as error:
        raise utils.UserError(f'--genotype {config.genotype}: {error}') from None
    return net


def schedule(epoch, warmup, epochs):
    """Share of the learning rate in an epoch, counted from 0: rises in equal steps while it warms up, then a cosine to 0."""
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    return .5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))


def train_epoch(net, criterion, optim, train, shared, autocast, config, epoch):
    """One pass over the training speakers. shared: draws batches and masks; every rank works on its share of them."""
    tally, place = scoring.Tally(), parallel.place()
    sizes = batch_sizes(len(train), config.batch_size, parallel.world_size())
    bar = tqdm(train.batches(config.batch_size, None, shared, **place), f'epoch {epoch}/{config.epochs}', len(sizes),
               disable=None if parallel.is_main() else True, leave=False)
    for (X, y), n in zip(bar, sizes):
        X = spec_augment(X, config.n_masks, config.max_freq, config.max_time, shared, n, **place)
        optim.zero_grad()
        with autocast:
            logits, aux_logits = net(X)
            loss = criterion(logits, y)
            total = loss if aux_logits is None else loss + config.aux_weight * criterion(aux_logits, y)
        total.backward()
        parallel.sum_gradients(net.parameters())
        nn.utils.clip_grad_norm_(net.parameters(), config.grad_clip)
        optim.step()
        tally.add(loss, logits, y, n)
    return tally.scores(parallel.gather)


def score(net, dataset, criterion, autocast, config):
    net.eval()
    with autocast:
        forward = parallel.sharing(lambda X: net(X)[0])
        found = scoring.evaluate(forward, dataset, config.batch_size, criterion.weight)
    net.train()
    return parallel.gather(found)[0]  # of rank 0: that all choose the same epoch must not hang on the last bit


def portable(net, genotype, data, config, epoch):
    """Contents of best.pt: everything that scoring a new recording needs; plain values and tensors only.

    Its mean and deviation are of what the network was given: with normalise 'speaker' a recording comes first by its speaker's.
    """
    settings = asdict(config)
    names = ('init_channels', 'layers', 'stem_multiplier', 'rnn_layers', 'rnn_channels', 'dropout', 'model', 'params',
             *features.NAMES)
    return {'weights': {name: x.detach().cpu().clone() for name, x in net.state_dict().items()},
            'genotype': genotype and gt.to_str(genotype), 'labels': data.labels, 'mean': data.mean, 'std': data.std,
            'settings': {name: settings[name] for name in names}, 'auxiliary': bool(genotype) and config.aux_weight > 0,
            'epoch': epoch}


def test(run, net, criterion, autocast, config, data, facts):
    """Reads the test speakers, once."""
    _, probabilities = score(net, data.sets['test'], criterion, autocast, config)
    if run.writes:
        chosen = 'the last' if config.train_on_dev else 'picked on dev'
        report(run, probabilities, config, data, facts, f'epoch {facts["best_epoch"]}, {chosen}')


if __name__ == '__main__':
    utils.cli(main, parallel.first_to_speak, parallel.leave)
