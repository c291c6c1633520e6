"""Training of a discrete network: what augment.py, spread.py and the tournament of finalists share."""
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import utils
from config import AugmentConfig
from datasets.transforms import SpecAugment, Voices
from models import memory, parallel, speaker_norm
from models.augment_cnn import AugmentCNN
from models.baselines import make_baseline
from models.steps import Steps
from models.sync import CrossEntropyLoss


def make_net(config, data, genotype) -> torch.nn.Module:
    """The network of this genotype, or of config.model. UserError if there is none for these sizes, or too little memory."""
    train = data.sets['train']
    cells, its = (memory.of_genotype(genotype), memory.sized(config, genotype)) if genotype else ({}, config)
    memory.check(its, cells, train.n_frames, max(train.batch_sizes(config.batch_size)) // train.world_size, train.device)
    return built(config, data, genotype)


def built(config, data, genotype) -> torch.nn.Module:
    """What `make_net` makes, whatever memory there is."""
    train = data.sets['train']
    if not genotype:
        net = make_baseline(config.model, config.height, train.n_frames, len(data.labels), config.dropout, config.params,
                            **config.inputs)
        try:
            net.check_batches(config.height, train.n_frames, train.batch_sizes(config.batch_size))
        except ValueError as error:
            raise utils.UserError(f'--model {config.model}: {error}') from None
        return speaker_norm.added(net, config, train.recordings)
    try:
        net = AugmentCNN(None, C=config.init_channels, n_classes=len(data.labels), n_layers=config.layers,
                         auxiliary=config.aux_weight > 0, genotype=genotype, stem_multiplier=config.stem_multiplier,
                         n_layers_rnn=config.rnn_layers, C_rnn=config.rnn_channels, dropout=config.dropout, **config.inputs)
        net.check_batches(config.height, train.n_frames, train.batch_sizes(config.batch_size))
    except ValueError as error:
        raise utils.UserError(f'--genotype {config.genotype[:60]}: {error}') from None
    return speaker_norm.added(net, config, train.recordings)


def n_parameters(config, labels, genotype) -> int:
    """Parameters of a network without its auxiliary head; no memory is allocated for them."""
    train = SimpleNamespace(n_frames=config.n_frames, recordings=torch.zeros(0), batch_sizes=lambda batch_size: [batch_size])
    with torch.device('meta'):
        net = built(config, SimpleNamespace(labels=labels, sets={'train': train}), genotype)
    return tested_parameters(net)


def tested_parameters(net: torch.nn.Module) -> int:
    """Parameters without the auxiliary head, which takes part in training alone."""
    return utils.count_parameters(p for name, p in net.named_parameters() if not name.startswith('aux_head'))


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


def averaged(net: torch.nn.Module, decay: float) -> AveragedModel | None:
    """The exponential moving average of the weights and of the statistics of batch norm; None if decay is 0."""
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None


class Setup(NamedTuple):
    """What a network is trained with, besides its batches."""
    criterion: CrossEntropyLoss
    optim: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    autocast: torch.autocast
    masks: SpecAugment
    voices: Voices | None
    ema: AveragedModel | None


def setup(net: torch.nn.Module, config: AugmentConfig, data, device) -> Setup:
    """The setup for training `net`, which is on `device`, as the settings say."""
    optim = make_optimizer(net, config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optim, lambda epoch: schedule(epoch, config.warmup, config.epochs))
    masks, voices = SpecAugment(config.n_masks, config.max_freq, config.max_time), Voices.of(config, data.labels)
    return Setup(CrossEntropyLoss(data.class_weights.to(device)), optim, scheduler, utils.autocast(device, config.amp), masks,
                 voices, averaged(net, config.ema))


def train(config: AugmentConfig, genotype, data, device, part: str = 'test',
          begin: Callable[[torch.nn.Module], object] = lambda net: None) -> tuple[dict, np.ndarray]:
    """Scores and probabilities (n, n_classes) of the set `part` after the last epoch.

    They are those of augment.py with this seed, if no dev speaker picks the epoch there. The scores have the training loss of
    every epoch too, 'train_losses'. begin: gives the network its first weights, if they are not to be random.
    """
    utils.set_seed(config.seed)
    net = make_net(config, data, genotype)
    begin(net)
    net.to(device)
    if config.channels_last:
        net.to(memory_format=torch.channels_last)
    criterion, optim, scheduler, autocast, masks, voices, ema = setup(net, config, data, device)
    state = parallel.State(config.seed, device, net=net)
    state.load(None, lambda *_: None)
    losses = []
    for epoch in range(1, config.epochs + 1):
        net.drop_path_prob(config.drop_path_prob * (epoch - 1) / max(1, config.epochs - 1))
        batches = data.sets['train'].batches(config.batch_size, None, state.draws, masks, voices)
        losses.append(train_epoch(net, criterion, optim, Steps(buffers=net.buffers()), batches, autocast, config, ema)['loss'])
        scheduler.step()
    found, probabilities = evaluate(ema.module if ema else net, data.sets[part], criterion, autocast, config)
    return {**found, 'train_losses': losses}, probabilities


def train_epoch(net, criterion, optim, steps: Steps, batches, autocast, config, ema: AveragedModel | None = None) -> dict:
    """One pass over the training speakers, or what is left of it. Returns the training scores."""
    for X, y in steps.each(batches):
        optim.zero_grad()
        with autocast:
            logits, aux_logits = net(*X)
            loss = criterion(logits, y)
            total = loss if aux_logits is None else loss + config.aux_weight * criterion(aux_logits, y)
        total.backward()
        if steps.sound(parallel.clip_gradients(net.parameters(), config.grad_clip)):
            optim.step()
            if ema:
                ema.update_parameters(net)
            steps.tally.add(loss, logits, y)
    return steps.tally.scores(parallel.gather)


def evaluate(net, dataset, criterion, autocast, config) -> tuple[dict, np.ndarray]:
    """Scores of a set, and its probabilities (n, n_classes)."""
    net.eval()
    with autocast:
        found = speaker_norm.evaluate(net, dataset, config.batch_size, criterion.weight, lambda *X: net(*X)[0])
    net.train()
    return parallel.gather(found)[0]  # of rank 0: the last bit must not make ranks choose different epochs
