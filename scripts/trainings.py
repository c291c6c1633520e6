"""What programs share that train many networks one after another: a locked folder, its settings, its rows, one training."""
import csv
import fcntl
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

import augment
import config as cf
import utils
from datasets.transforms import SpecAugment, Voices
from models.sync import CrossEntropyLoss


@contextmanager
def locked(path: Path):
    """Makes the folder and keeps other processes out of it."""
    path.mkdir(parents=True, exist_ok=True)
    with open(path / 'lock', 'a') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise utils.UserError(f'another process is writing {path}: wait for it, or take another --name') from None
        yield


def check_settings(folder: Path, settings: dict, write: bool):
    """UserError if the trainings in the folder began with other settings. write: keep the settings if there are none yet."""
    path = folder / 'settings.yaml'
    if not path.exists():
        if write:
            utils.write_aside(path, lambda f: f.write(yaml.safe_dump(settings, sort_keys=False).encode()))
        return
    try:
        before = dict(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, TypeError, ValueError):
        raise utils.UserError(f'{path} is damaged: take another --name') from None
    for name in {**before, **settings}:
        then, now = utils.recorded(before, name), settings.get(name)
        if name == 'digest' and then != now:
            raise utils.UserError(f'utterances, labels or speakers differ from those that {folder} began with: take '
                                  'another --name')
        if then != now:
            raise utils.UserError(f'{name} is {now}, but {folder} began with {then}: take another --name')


def read_rows(path: Path, columns: dict[str, Callable]) -> list[dict]:
    """The rows of a CSV file of trainings, {column: function of its text}. [] if there is no file; UserError if it is damaged.

    A column that the file lacks has the text ''.
    """
    if not path.exists():
        return []
    try:
        with open(path, newline='', encoding='utf-8') as f:
            return [{name: kind(row.get(name, '')) for name, kind in columns.items()} for row in csv.DictReader(f)]
    except (TypeError, ValueError, csv.Error):
        raise utils.UserError(f'{path} is damaged: delete it, or take another --name') from None


def train(config: cf.AugmentConfig, genotype, data, device, judged: str = 'test') -> tuple[dict, 'np.ndarray']:  # noqa: F821
    """Scores and probabilities (n, n_classes) of the set `judged` after the last epoch.

    They are those of augment.py with this seed, if no dev speaker picks the epoch there.
    """
    utils.set_seed(config.seed)
    net = augment.make_net(config, data, genotype).to(device)
    if config.channels_last:
        net.to(memory_format=torch.channels_last)
    criterion = CrossEntropyLoss(data.class_weights.to(device))
    optim = augment.make_optimizer(net, config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optim, lambda epoch: augment.schedule(epoch, config.warmup, config.epochs))
    autocast = utils.autocast(device, config.amp)
    masks, voices = SpecAugment(config.n_masks, config.max_freq, config.max_time), Voices.of(config, data.labels)
    ema, draws = augment.averaged(net, config.ema), torch.Generator().manual_seed(config.seed)
    for epoch in range(1, config.epochs + 1):
        net.drop_path_prob(config.drop_path_prob * (epoch - 1) / max(1, config.epochs - 1))
        batches = data.sets['train'].batches(config.batch_size, None, draws, masks, voices)
        augment.train_epoch(net, criterion, optim, batches, autocast, config, ema)
        scheduler.step()
    return augment.evaluate(ema.module if ema else net, data.sets[judged], criterion, autocast, config)
