"""Search of a joint CNN and SeqNN architecture: bi-level DARTS on one fold, ends with a genotype.

    python search.py --name demo --config configs/demo.yaml
"""
import itertools
import time
from dataclasses import asdict

import torch
import torch.nn as nn
from tqdm import tqdm

import config as cf
import datasets
import genotypes as gt
import utils
from datasets import features, scoring
from datasets.dataset import batch_sizes
from datasets.folds import halves
from datasets.transforms import spec_augment
from models import parallel
from models.architect import Architect
from models.search_cnn import SearchCNNController
from models.sync import CrossEntropyLoss
from models.visualize import plot, plot_alphas

ALPHA_BETAS = (.5, .999)  # of Adam (DARTS, appendix A.1.1)


def main(argv=None):
    config = cf.build('search', cf.given('search', argv))
    utils.set_threads(config.threads)
    device = utils.choose_device(config.device, parallel.local_rank())
    parallel.start(device)
    run = parallel.together(lambda: utils.Run('search', config, parallel.is_main()))
    # Test speakers' audio is not even read.
    data = parallel.together(lambda: datasets.load(config, ('train', 'dev'), device, not run.writes))
    train = data.sets['train']
    w_half, alpha_half = halves(train.labels.cpu(), [u.speaker for u in train.utterances], config.alpha_split, config.seed)

    utils.set_seed(config.seed)
    shared = torch.Generator().manual_seed(config.seed)  # of batches and masks, which are drawn alike on every rank
    n_ranks = parallel.world_size()
    sizes = [n for half in (w_half, alpha_half) for n in batch_sizes(len(half), config.batch_size, n_ranks)]
    net = make_net(config, data, sizes).to(device)
    if config.channels_last:
        net.to(memory_format=torch.channels_last)
    w_optim = torch.optim.SGD(net.weights(), config.w_lr, momentum=config.w_momentum, weight_decay=config.w_weight_decay)
    alpha_optim = torch.optim.Adam(net.alphas(), config.alpha_lr, betas=ALPHA_BETAS, weight_decay=config.alpha_weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(w_optim, config.epochs, eta_min=config.w_lr_min)
    architect = Architect(net, config.w_momentum, config.w_weight_decay, config.hessian)
    parts = dict(net=net, w_optim=w_optim, alpha_optim=alpha_optim, scheduler=scheduler)

    parallel.seed_own(config.seed)
    checkpoint = parallel.from_main(lambda: run.open(data))
    if checkpoint:
        run.history = checkpoint['history']
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
        parallel.set_rng_state(checkpoint['rng'], shared, device)
    parallel.broadcast_(net.state_dict().values())
    log = run.logger.info
    log('search on %s, fold %d: %d utterances for w, %d for alpha, %d for dev; %s parameters; %s', config.dataset, config.fold,
        len(w_half), len(alpha_half), len(data.sets['dev']), f'{utils.count_parameters(net.weights()):,}',
        utils.describe_device(device, n_ranks))
    parallel.announce(log, checkpoint)
    for line in datasets.describe(config, data):
        log('%s', line)

    warmup = min(config.alpha_warmup, config.epochs - 1)
    if warmup < config.alpha_warmup:
        log('WARNING: alpha_warmup %d leaves no epoch for alpha, shortened to %d', config.alpha_warmup, warmup)
    autocast = utils.autocast(device, config.amp)
    for epoch in range(len(run.history) + 1, config.epochs + 1):
        began, lr = time.time(), scheduler.get_last_lr()[0]
        scored = train_epoch(net, architect, w_optim, alpha_optim, train, w_half, alpha_half, shared, autocast, config, epoch,
                             with_alpha=epoch > warmup)
        scheduler.step()
        if parallel.differs(net.state_dict().values()):
            raise utils.UserError(f'epoch {epoch} left the processes with different weights, which must not be: --resume goes '
                                  'on from the epoch before')
        net.eval()
        with autocast:
            dev, _ = scoring.evaluate(parallel.sharing(net), data.sets['dev'], config.batch_size, net.criterion.weight)
        net.train()
        genotype = net.genotype()
        row = {'epoch': epoch, **scored, 'dev': dev, 'lr': lr, 'entropy': entropies(net), 'ops': gt.op_counts(genotype),
               'genotype': gt.to_str(genotype), 'alpha': op_weights(net), 'beta': edge_weights(net),
               'seconds': time.time() - began}
        rng = parallel.rng_state(shared, device)
        if run.writes:
            run.end_epoch(row)
            show(run, net, genotype, row)
            run.save_checkpoint({'rng': rng, **{name: part.state_dict() for name, part in parts.items()}})

    if run.writes:
        finish(run, net, config, data)
        run.close()
    parallel.stop()


def finish(run, net, config, data):
    """The genotype as files and in the log."""
    genotype, log = net.genotype(), run.logger.info
    net.print_alphas(run.logger)
    plot(genotype).savefig(run.file('genotype.png'), dpi=110)
    gt.save(run.file('genotype.json'), genotype, record(config, net, data))
    seconds = sum(row['seconds'] for row in run.history)
    log('%s', gt.to_str(genotype))
    for kind in gt.collapsed(genotype):
        log('WARNING: most edges of the %s cell are skip_connect: the search has collapsed there', kind)
    log('genotype: %s (%.1f minutes of search)', run.file('genotype.json'), seconds / 60)


def make_net(config, data, sizes):
    """The supernet of these settings, for batches of these sizes. UserError where there is none."""
    criterion = CrossEntropyLoss(data.class_weights)
    try:
        net = SearchCNNController(
            1, config.init_channels, len(data.labels), config.layers, criterion, config.n_nodes, config.stem_multiplier,
            config.rnn_layers, config.rnn_nodes, config.rnn_channels, config.cnn_ops, config.rnn_ops, config.dropout,
            partial_channels=config.partial_channels)
        net.net.check_batches(config.n_mels, data.sets['train'].n_frames, sizes)
    except ValueError as error:
        raise utils.UserError(str(error)) from None
    return net


def train_epoch(net, architect, w_optim, alpha_optim, train, w_half, alpha_half, shared, autocast, config, epoch, with_alpha):
    """One pass over the half for w; before each step of w, one step of alpha on a batch of the other half.

    shared: the generator that draws batches and masks; every rank works on its share of them.
    """
    tally, val_loss, place = scoring.Tally(), [], parallel.place()
    val_batches = itertools.chain.from_iterable(
        train.batches(config.batch_size, alpha_half, shared, **place) for _ in itertools.count())
    sizes = batch_sizes(len(w_half), config.batch_size, parallel.world_size())
    bar = tqdm(train.batches(config.batch_size, w_half, shared, **place), f'epoch {epoch}/{config.epochs}', len(sizes),
               disable=None if parallel.is_main() else True, leave=False)
    for (trn_X, trn_y), n in zip(bar, sizes):
        trn_X = spec_augment(trn_X, config.n_masks, config.max_freq, config.max_time, shared, n, **place)
        if with_alpha:
            val_X, val_y = next(val_batches)
            if config.order == 2:  # in float32: second derivatives do not survive bfloat16
                xi = w_optim.param_groups[0]['lr']
                val_loss.append(architect.unrolled_backward(trn_X, trn_y, val_X, val_y, xi, w_optim))
            else:
                with autocast:
                    val_loss.append(architect.backward(val_X, val_y))
            alpha_optim.step()
        w_optim.zero_grad()
        with autocast:
            logits = net(trn_X)
            loss = net.criterion(logits, trn_y)
        loss.backward()
        parallel.sum_gradients(net.weights())
        nn.utils.clip_grad_norm_(net.weights(), config.w_grad_clip)
        w_optim.step()
        tally.add(loss, logits, trn_y, n)
    return {'train': tally.scores(parallel.gather), 'alpha_loss': float(torch.stack(val_loss).mean()) if val_loss else None}


def op_weights(net):
    """softmax(alpha) as nested lists: {kind: [node][edge][operation]}"""
    return {kind: [edges.tolist() for edges in net.op_weights(kind)] for kind in net.kinds()}


def edge_weights(net):
    """softmax(beta) as nested lists, {kind: [node][edge]}, of the kinds of cell whose edges have weights of their own."""
    return {kind: [w.tolist() for w in found] for kind in net.kinds() if (found := net.edge_weights(kind)) is not None}


def entropies(net):
    """Mean entropy of the edges' operation weights, in nats, by kind: log(n_ops) at the start, 0 when decided."""
    found = {}
    for kind in net.kinds():
        p = torch.cat(net.op_weights(kind)).detach()  # (n_edges, n_ops)
        found[kind] = float(torch.special.entr(p).sum(dim=1).mean())
    return found


def show(run, net, genotype, row):
    """The epoch in the log and in TensorBoard."""
    run.logger.info('epoch %d: train loss %.3f UA %.3f WA %.3f | dev loss %.3f UA %.3f WA %.3f | %.0f s', row['epoch'],
                    *(row[part][name] for part in ('train', 'dev') for name in ('loss', 'ua', 'wa')), row['seconds'])
    run.logger.info('  %s', row['genotype'])
    writer, epoch = run.writer, row['epoch']
    for kind in net.kinds():
        counts = row['ops'][kind]
        for name in net.primitives_of(kind):
            if name not in (gt.NONE, gt.SKIP):
                writer.add_scalar(f'ops_{kind}/{name}', counts.get(name, 0), epoch)
        writer.add_scalar(f'skips/{kind}', counts.get(gt.SKIP, 0), epoch)
        writer.add_figure(f'alpha/{kind}', plot_alphas([past['alpha'][kind] for past in run.history],
                                                       net.primitives_of(kind)), epoch)
    writer.add_figure('genotype', plot(genotype), epoch)


def record(config, net, data):
    """What augment.py needs to go on without repeated flags, and what tells where a genotype came from."""
    settings = asdict(config)

    def take(*names):
        return {name: settings[name] for name in names}
    return {
        'network': take('init_channels', 'layers', 'n_nodes', 'stem_multiplier', 'rnn_layers', 'rnn_nodes', 'rnn_channels'),
        'operations': {'cnn': list(net.primitives), 'rnn': list(net.rnn_primitives)},
        'features': take(*features.NAMES),
        'search': {**take('dataset', 'labels', 'turns', 'scenarios', 'folds', 'fold', 'seed', 'epochs', 'order', 'hessian',
                          'alpha_split', 'partial_channels'),
                   'protocol': data.protocol,
                   'train_speakers': list(data.fold.train), 'dev_speakers': list(data.fold.dev)}}


if __name__ == '__main__':
    utils.cli(main, parallel.first_to_speak, parallel.leave)
