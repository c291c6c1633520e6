"""Corpora: a reader each, one registry, and `load`, which makes the sets of one fold.

A new corpus is a module with scan(root) -> [Utterance, ...], perhaps with FOLDS or DEFAULT_FOLDS and what protocol.py asks
for, and one row here.
"""
import hashlib
import os
from collections import Counter
from dataclasses import dataclass

import torch

from datasets import protocol
from datasets.dataset import SpeechDataset, by_speaker, fits, statistics
from datasets.features import FeatureConfig, cached_features
from datasets.folds import Fold, make_folds
from datasets.readers import cremad, emodb, iemocap, manifest, msp_improv, msp_podcast, ravdess, savee, synthetic
from utils import UserError

CORPORA = {'iemocap': iemocap, 'msp_improv': msp_improv, 'msp_podcast': msp_podcast, 'emodb': emodb, 'ravdess': ravdess,
           'cremad': cremad, 'savee': savee, 'manifest': manifest, 'synthetic': synthetic}
FEW = 10  # recordings of a speaker; with fewer, on EMO-DB, --normalise speaker lost to corpus (docs/results.md)


@dataclass(frozen=True)
class Data:
    """One fold of a corpus, ready for a network."""
    labels: list[str]  # class names, sorted; a class's index is its place
    fold: Fold
    mean: torch.Tensor  # (F, 1), of the set 'train'
    std: torch.Tensor
    sets: dict[str, SpeechDataset]  # of 'train', 'dev', 'test' those that were asked for
    class_weights: torch.Tensor  # (n_classes,) n / (n_classes * n_c) over the training set
    protocol: dict  # the report of protocol.apply: what was kept and what was left out
    digest: str  # of the names, labels and speakers of all these utterances


def scan(dataset, data_path, cache_dir='.cache'):
    """All that a corpus holds, what no experiment can use included (Utterance.left_out); see `select`.
    data_path: its folder (the CSV of a manifest; may be None for synthetic).
    """
    if data_path is None:
        if dataset != 'synthetic':
            raise UserError(f'--data_path is needed: the folder of {dataset}, or the CSV of a manifest')
        data_path = os.path.join(cache_dir, f'synthetic-{synthetic.SEED}')
    elif not os.path.exists(data_path):
        raise UserError(f'--data_path {data_path}: no such file or folder')
    elif dataset == 'synthetic' and not (os.path.isdir(data_path) and os.listdir(data_path)):
        raise UserError(f'--data_path {data_path}: not a synthetic corpus; name yours with --dataset, or leave --data_path out')
    utterances = CORPORA[dataset].scan(data_path)
    if not utterances:
        raise UserError(f'--data_path {data_path}: no utterance of {dataset} was found there')
    return utterances


def folds_of(dataset, utterances, how):
    return make_folds(utterances, _folds(dataset, how), getattr(CORPORA[dataset], 'FOLDS', None))


def _folds(dataset, how):
    return getattr(CORPORA[dataset], 'DEFAULT_FOLDS', how) if how == 'default' else how


def select(config):
    """(utterances, folds, report): what the protocol of `config` keeps of its corpus, and the report of protocol.apply."""
    utterances, report = protocol.apply(
        config.dataset, CORPORA[config.dataset], scan(config.dataset, config.data_path, config.cache),
        _folds(config.dataset, config.folds), config.labels, {'turns': config.turns, 'scenarios': config.scenarios})
    return utterances, folds_of(config.dataset, utterances, config.folds), report


def describe(config, data):
    """Lines for the reader of a log: what the protocol kept, and by how much each speaker is known."""
    yield from protocol.lines(data.protocol)
    if config.normalise == 'speaker':
        counts = Counter(u.speaker for part in data.sets.values() for u in part.utterances)
        fewest = min(counts, key=counts.get)
        yield f'every speaker is normalised by their own recordings here; the fewest are {counts[fewest]}, of {fewest}'
        if few := [speaker for speaker, n in counts.items() if n < FEW]:
            yield (f'NOTE: {len(few)} of {len(counts)} speakers have fewer than {FEW} recordings: too few to know a voice by, '
                   '--normalise corpus may do better')


def check_sessions(train, dev, test):
    """UserError where dev, were it trained on, would bring a session of the test speakers that train has nothing of."""
    sessions = [{u.session for u in part if u.session} for part in (train, dev, test)]
    if both := sorted(sessions[1] & sessions[2] - sessions[0]):
        raise UserError(f'--train_on_dev: the dev speakers are partners of the test speakers (session {both[0]}): '
                        '--no-train_on_dev, or --folds session')


def digest(utterances):
    """Hex digest of who says what under which label, in this order; where the corpus lies does not matter."""
    rows = [(os.path.basename(u.path), u.start, u.end, u.label, u.speaker) for u in utterances]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def load(config, splits, device='cpu', quiet=False, train_on_dev=False):
    """Data of the fold that `config` (see config.py) names, with the sets `splits`; other sets' audio is not read.
    quiet: no progress bar. train_on_dev: the dev speakers belong to the set 'train', and there is no set 'dev'.

    Raises UserError on a fold that is not there, fewer than two classes, or a class that no training speaker has.
    """
    utterances, folds, report = select(config)
    if not 1 <= config.fold <= len(folds):
        raise UserError(f'--fold {config.fold}: there are folds 1 to {len(folds)}')
    fold = folds[config.fold - 1]
    labels = sorted({u.label for u in utterances})
    parts = {name: fold.split(utterances, name) for name in splits}
    if train_on_dev:
        check_sessions(parts['train'], *(fold.split(utterances, name) for name in ('dev', 'test')))
        parts['train'] += fold.split(utterances, 'dev')
        parts.pop('dev', None)
    targets = {name: [labels.index(u.label) for u in part] for name, part in parts.items()}
    counts = torch.bincount(torch.tensor(targets['train']), minlength=len(labels))
    if len(labels) < 2 or (counts == 0).any():
        missing = [label for label, n in zip(labels, counts) if n == 0]
        raise UserError(f'--fold {config.fold}: ' + (f'no training speaker has {missing[0]!r}' if missing else
                                                     f'only one class, {labels[0]!r}: nothing to learn'))
    features = FeatureConfig(config.features, config.n_mels, config.hop_ms, config.time_pool, config.trim_db)
    n_frames = max(1, round(config.duration * features.frame_rate))
    every = [u for part in parts.values() for u in part]
    rest, arrays = cached_features(every, features, os.path.join(config.cache, 'features'), config.workers, quiet), {}
    resident = fits(sum(x.nbytes for x in rest), config.resident, device)
    for name, part in parts.items():
        arrays[name], rest = rest[:len(part)], rest[len(part):]
        if config.normalise == 'speaker':
            arrays[name] = by_speaker(part, arrays[name])  # set by set: what is tested can reach no other
    mean, std = statistics(arrays['train'])
    sets = {name: SpeechDataset(parts[name], arrays.pop(name), targets[name], mean, std, n_frames, device, resident)
            for name in parts}  # pop: an array is let go once its set holds it
    return Data(labels, fold, mean, std, sets, counts.sum() / (len(labels) * counts.float()), report,
                digest(every))
