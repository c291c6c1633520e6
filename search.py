"""Joint search of a CNN and a SeqNN architecture: bi-level DARTS on one fold. It ends with a genotype.

    python search.py --name demo --config configs/demo.yaml
"""
import config as cf

if __name__ == '__main__':
    cf.begin('search')  # before the slow imports

import itertools
import shlex
from dataclasses import replace
from functools import partial

import torch

import datasets
import genotypes as gt
import utils
from datasets import frames
from datasets.folds import halves
from datasets.transforms import SpecAugment, Voices
from models import board, finalists, memory, parallel, sources, speaker_norm, stopwatch
from models.architect import Architect, frozen
from models.candidates import Scorer
from models.run import Run
from models.sampled import Sampler
from models.search_cnn import SearchCNNController
from models.steps import Steps
from models.sync import CrossEntropyLoss
from models.visualize import plot

ALPHA_BETAS = (.5, .999)  # of Adam (DARTS, appendix A.1.1)


def main(argv: list[str] | None = None):
    given = cf.given('search', argv)
    config = frames.complete(cf.build('search', given))
    # Read now: the settings file may have changed when the search ends.
    typed, chooses = finalists.typed(config, given.typed), config.finalists > 0 or config.relaxation == 'none'
    recipe = finalists.recipe_of(config, given.typed) if chooses else None
    typed = {**{name: getattr(config, name) for name in ('seed', 'cache') if name in given.typed}, **typed}
    device = parallel.start(config)
    finalists.check_cores(config, device)
    run = parallel.together(lambda: Run('search', config, parallel.is_main()))
    # Noise is added to what --normalise speaker left, so the data must know the way back if finalists alone have noise.
    needed = replace(config, noise=max(config.noise, recipe.noise)) if chooses else config
    # The audio of test speakers is not even read.
    data = parallel.together(lambda: datasets.load(needed, ('train', 'dev'), device, not run.writes, **parallel.place()))
    train, dev = data.sets['train'], data.sets['dev']
    n_epochs = 0 if config.relaxation == 'none' else config.epochs
    if chooses:
        finalists.check(config, recipe, data)
    w_half, alpha_half = halves(train.labels.cpu(), [u.speaker for u in train.utterances], config.alpha_split, config.seed)

    utils.set_seed(config.seed)
    net = make_net(config, data, (w_half, alpha_half), run.format).to(device)
    if config.channels_last:
        net.to(memory_format=torch.channels_last)
    net.pools_padding = run.format < 2
    w_optim = torch.optim.SGD(net.weights(), config.w_lr, momentum=config.w_momentum, weight_decay=config.w_weight_decay)
    alpha_optim = torch.optim.Adam(net.alphas(), config.alpha_lr, betas=ALPHA_BETAS, weight_decay=config.alpha_weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(w_optim, config.epochs, eta_min=config.w_lr_min)
    architect = Architect(net, config.w_momentum, config.w_weight_decay, config.hessian)
    autocast = utils.autocast(device, config.amp)
    masks, voices = SpecAugment(config.n_masks, config.max_freq, config.max_time), Voices.of(config, data.labels)

    def save():
        run.save_checkpoint({**state.state_dict(), **({'recipe': cf.pick(recipe, *finalists.RECIPE)} if chooses else {})})
    steps = Steps(save)
    sampler = Sampler(net, config)
    state = parallel.State(config.seed, device, net=net, w_optim=w_optim, alpha_optim=alpha_optim, scheduler=scheduler,
                           steps=steps, **({'sampler': sampler} if sampler.active else {}))
    checkpoint = parallel.from_main(lambda: run.open(data))
    log = run.logger.info
    with run.reading():
        run.history = checkpoint['history'] if checkpoint else []
        state.load(checkpoint, log)
        if checkpoint and chooses:
            finalists.check_same(checkpoint.get('recipe', {}), recipe, run.path)
    scorer = Scorer(net, data, config, autocast) if config.finalists or sampler.active else None
    hardware = utils.describe_device(device, parallel.world_size())
    if n_epochs:
        log('search on %s, fold %d: %d utterances for w, %d for alpha, %d for dev; %s parameters; %s', config.dataset,
            config.fold, len(w_half), len(alpha_half), len(dev), f'{utils.count_parameters(net.weights()):,}', hardware)
    else:
        log('random search on %s, fold %d: %d utterances to train candidates, %d for dev; %s', config.dataset, config.fold,
            len(train), len(dev), hardware)
    for line in datasets.describe(config, data):
        log('%s', line)
    if n_epochs and len(alpha_half):
        for what, half in (('w', w_half), ('alpha', alpha_half)):
            found = {*train.labels[torch.as_tensor(half)].tolist()}
            if gone := [label for i, label in enumerate(data.labels) if i not in found]:
                log('NOTE: the half for %s has no utterance of class %s', what, ', '.join(gone))
    board.begin(run, data, utils.count_parameters(net.weights()))
    warmup = min(config.alpha_warmup, config.epochs - 1)
    if n_epochs and warmup < config.alpha_warmup and len(alpha_half):
        log('WARNING: alpha_warmup %d leaves no epoch for alpha; shortened to %d', config.alpha_warmup, warmup)

    for epoch in range(len(run.history) + 1, n_epochs + 1):
        lr = scheduler.get_last_lr()[0]
        steps.begin(epoch, state, w_optim, partial(train.files_of, batch_size=config.batch_size, indices=w_half))
        batches = train.batches(config.batch_size, w_half, state.draws, masks, voices)
        batches = parallel.progress(batches, f'epoch {epoch}/{config.epochs}', train.n_batches(config.batch_size, w_half))
        val_batches = forever(train, config.batch_size, alpha_half, state.draws) if epoch > warmup and len(alpha_half) else None
        scores, alpha_loss = train_epoch(net, architect, w_optim, alpha_optim, steps, batches, val_batches, autocast, config,
                                         sampler)
        parallel.check_equal(net, epoch)
        genotype = net.genotype()
        with steps.interruptible():
            dev_scores = scorer.score(genotype, whole=True) if sampler.active else evaluate(net, dev, autocast, config)
        scheduler.step()
        took = steps.end()
        run.end_epoch({'epoch': epoch, 'train': scores, 'alpha_loss': alpha_loss, 'dev': dev_scores, 'lr': lr,
                       'entropy': entropies(net), 'ops': gt.op_counts(genotype), 'genotype': gt.to_str(genotype),
                       'alpha': op_weights(net), 'beta': edge_weights(net), **sources.of_layers(net.net, config),
                       **took})
        board.search_epoch(run, net, genotype)
        save()
        log_epoch(run)  # when the epoch is safe

    utils.hold_signals(False)
    if n_epochs == 0 and not checkpoint:
        save()  # remembers the data: --resume refuses others
    genotype, choice = net.genotype(), []
    if chooses:
        genotype, choice = finalists.choose(run, recipe, net, scorer, data, device)
    if run.writes:
        finish(run, net, config, data, genotype, choice, typed)
    run.close()
    parallel.stop()


def make_net(config, data, parts, run_format: int = utils.FORMAT) -> SearchCNNController:
    """The supernet of these settings, as runs of this format have it. UserError if there is none for these sizes.

    parts: training indices for w and for alpha, of which the latter may be none.
    """
    train = data.sets['train']
    try:
        sizes = [n for part in parts if len(part) for n in train.batch_sizes(config.batch_size, part)]
        memory.check(config, memory.of_space(config), train.n_frames, max(sizes) // train.world_size, train.device)
        net = SearchCNNController(
            C=config.init_channels, n_classes=len(data.labels), n_layers=config.layers,
            criterion=CrossEntropyLoss(data.class_weights), n_nodes=config.n_nodes, stem_multiplier=config.stem_multiplier,
            n_layers_rnn=config.rnn_layers, n_nodes_rnn=config.rnn_nodes, C_rnn=config.rnn_channels, primitives=config.cnn_ops,
            rnn_primitives=config.rnn_ops, dropout=config.dropout, partial_channels=config.partial_channels, fast=config.fast,
            order=config.cnn_order, decisions=config.decisions and run_format >= 3, **config.inputs)
        net.net.check_batches(config.height, train.n_frames, sizes)
    except ValueError as error:
        raise utils.UserError(str(error)) from None
    heard = train.speaker[torch.as_tensor(parts[0], device=train.speaker.device)]  # by the steps of w
    speaker_norm.added(net.net, config, heard.bincount(minlength=len(train.speakers)))
    return net


def evaluate(net, dev, autocast, config) -> dict:
    """Scores of the supernet's mixture on dev.

    They are this rank's own, unlike those of models.training.evaluate: the last bit may differ, but they choose nothing.
    """
    net.eval()
    with autocast:
        found, _ = speaker_norm.evaluate(net, dev, config.batch_size, net.criterion.weight)
    net.train()
    return found


def forever(train, batch_size, indices, draws):
    """Batches of the half for alpha, epoch after epoch, without augmentation."""
    return itertools.chain.from_iterable(train.batches(batch_size, indices, draws) for _ in itertools.count())


def paired(batches, val_batches):
    """(batch for w, batch for alpha) of each step; None for alpha while w is trained alone."""
    for batch in batches:
        yield batch, next(val_batches) if val_batches else None


def train_epoch(net, architect, w_optim, alpha_optim, steps, batches, val_batches, autocast, config,
                sampler) -> tuple[dict, float | None]:
    """One pass over the half for w. Before each step of w, one step of alpha on a batch of the other half.

    val_batches: None while w is trained alone. sampler: draws the path of every step. Returns the training scores and the mean
    loss of the alpha steps.
    """
    tally = steps.tally
    for (trn_X, trn_y), val in steps.each(paired(batches, val_batches)):
        if val:
            val_X, val_y = val
            sampler.before_alphas(steps.epoch)
            if config.order == 2:  # in float32: second derivatives do not survive bfloat16
                xi = w_optim.param_groups[0]['lr']
                alpha_loss = architect.unrolled_backward(trn_X, trn_y, val_X, val_y, xi, w_optim)
            else:
                with autocast:
                    alpha_loss = architect.backward(val_X, val_y)
            if steps.sound(parallel.gradient_norm(net.alphas()), 'alpha'):
                alpha_optim.step()
                tally.alpha_losses.append(alpha_loss)
        w_optim.zero_grad()
        sampler.before_weights()
        with frozen(net.alphas()), autocast:
            logits = net(*trn_X)
            loss = net.criterion(logits, trn_y)
        loss.backward()
        if steps.sound(parallel.clip_gradients(net.weights(), config.w_grad_clip)):
            w_optim.step()
            tally.add(loss, logits, trn_y)
    return tally.scores(parallel.gather), float(torch.stack(tally.alpha_losses).mean()) if tally.alpha_losses else None


def op_weights(net) -> dict:
    """softmax(alpha) as nested lists, {kind: [node][edge][operation]}."""
    return {kind: [edges.tolist() for edges in net.op_weights(kind)] for kind in net.kinds()}


def edge_weights(net) -> dict:
    """softmax(beta) as nested lists, {kind: [node][edge]}, of the kinds of cell whose edges have weights of their own."""
    return {kind: [w.tolist() for w in found] for kind in net.kinds() if (found := net.edge_weights(kind)) is not None}


def entropies(net) -> dict:
    """Mean entropy of softmax(alpha) over edges, in nats, by kind of cell: log(n_ops) at the start, 0 when decided."""
    found = {}
    for kind in net.kinds():
        p = torch.cat(net.op_weights(kind)).detach()  # (n_edges, n_ops)
        found[kind] = float(torch.special.entr(p).sum(dim=1).mean())
    return found


def log_epoch(run):
    """Writes the scores of the last epoch to the log, and its genotype if that has changed."""
    row, log = run.history[-1], run.logger.info
    dev, train = row['dev'], row['train']
    log('epoch %d/%d: dev UA %.3f WA %.3f loss %.3f | train UA %.3f WA %.3f loss %.3f | %.0f s%s', row['epoch'],
        run.config.epochs, dev['ua'], dev['wa'], dev['loss'], train['ua'], train['wa'], train['loss'], row['seconds'],
        utils.time_left(run))
    if len(run.history) < 2 or run.history[-2]['genotype'] != row['genotype']:
        log('  %s', row['genotype'])


def finish(run, net, config, data, genotype, choice: list[dict], typed: dict):
    """Writes the genotype to files and to the log.

    choice: what the parts of the choice among finalists took. typed: flags of the search that its retraining needs too.
    """
    log = run.logger.info
    if run.history:
        net.print_alphas(run.logger)
        if layers := run.history[-1].get('layers'):
            log('%s', sources.describe(layers))
    run.write_figure('genotype.png', lambda: plot(genotype, board.title(run)))
    board.search_result(run, genotype)
    run.writer.flush()
    # Last: who finds this file takes the search for finished.
    gt.save(run.file('genotype.json'), genotype, {**record(config, net, data), 'provenance': run.provenance})
    log('%s', gt.to_str(genotype))
    for kind in gt.collapsed(genotype):
        log('WARNING: most edges of the %s cell are skip_connect: the search has collapsed there', kind)
    took = stopwatch.in_minutes(stopwatch.total([*run.history, *choice]))
    log('genotype: %s (%s of search)', run.file('genotype.json'), took)
    flags = {name: value for name in ('config', 'dataset', 'data_path') if (value := getattr(config, name))}
    flags |= {name: value for name, value in typed.items() if name not in memory.decided(genotype)}
    argv = ['python', 'augment.py', '--name', config.name, *cf.to_flags(flags),
            '--genotype', run.path]
    log('retrain:  %s', shlex.join(argv))


def record(config, net, data) -> dict:
    """What augment.py needs to continue without repeated flags, and what tells where a genotype came from."""
    network = cf.pick(config, cf.NetworkSettings)
    del network['dropout']  # the search's and the retraining's differ
    settings, unused = vars(config), config.unused()
    protocol = ('dataset', 'labels', 'turns', 'scenarios', 'folds', 'fold')
    method = ('seed', 'space', 'cnn_order', 'epochs', 'relaxation', 'sampling', 'order', 'hessian', 'alpha_split',
              'partial_channels', 'finalists', 'candidates', 'tournament_minutes', 'tournament_cores', 'band')
    return {
        'network': {**network, 'n_nodes': config.n_nodes, 'rnn_nodes': config.rnn_nodes},
        'operations': {'cnn': list(net.primitives), 'rnn': list(net.rnn_primitives)},
        'features': cf.pick(config, cf.FeatureSettings),
        'search': {**{name: settings[name] for name in (*protocol, *method) if name not in unused}, 'protocol': data.protocol,
                   'corpus': data.corpus, 'train_speakers': list(data.fold.train), 'dev_speakers': list(data.fold.dev)}}


if __name__ == '__main__':
    utils.cli(main, parallel.first_to_speak, parallel.leave, 'the same command with --resume continues')
