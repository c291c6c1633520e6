"""Corpora: `scan` reads one, `select` applies the protocol, `load` makes the sets of one fold.

A new corpus is one file in datasets/readers/ with a function scan(root) -> [Utterance, ...]. If
they apply, it also has FOLDS or DEFAULT_FOLDS (see folds.py) and PARTS and EXAMPLE (see
protocol.py).
"""
import hashlib
import importlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import torch

from config import CORPORA, UserError
from datasets import duplicates, protocol
from datasets.dataset import ENOUGH, Moments, SpeechDataset, by_speaker, fits, statistics, to_logmel
from datasets.faults import CorpusError
from datasets.features import Cached, cached_features
from datasets.folds import Fold, make_folds
from datasets.frames import cached_frames
from datasets.stored import Stored
from datasets.utterance import Utterance

OF_ACTORS = ('emodb', 'ravdess', 'cremad', 'savee', 'nemo', 'iemocap', 'msp_improv')


@dataclass(frozen=True)
class Data:
    """One fold of a corpus, ready for a network."""
    labels: list[str]  # names of the classes, sorted; a target is an index into this list
    fold: Fold
    mean: torch.Tensor  # (F, 1), of the set 'train'; the last rows are of the prosody, if there is any
    std: torch.Tensor
    prior: Moments  # the same before --normalise speaker; speakers of few recordings are shrunk towards it
    sets: dict[str, SpeechDataset]  # the sets that were asked for, of 'train', 'dev' and 'test'
    class_weights: torch.Tensor  # (n_classes,): n / (n_classes * n_c) over the training set
    protocol: dict  # the report of protocol.apply: what was kept and what was left out
    digest: str  # of file names, segments, labels and speakers in `sets`
    corpus: str  # digest of file names, segments and speakers of the whole corpus, before the protocol
    audio: list[str]  # digest of what makes features of a recording, and one of the bytes of all recordings in `sets`
    extracted: int  # utterances whose features were not in the cache


def reader(dataset: str) -> ModuleType:
    """The module of datasets/readers/ that reads this corpus."""
    if dataset not in CORPORA:
        raise UserError(f'--dataset {dataset}: must be one of {", ".join(CORPORA)}')
    return importlib.import_module(f'datasets.readers.{dataset}')


def strangers(one: str, other: str) -> bool:
    """Whether no speaker of one corpus is in the other: both are of actors, recorded in different cities."""
    return one != other and {one, other} <= {*OF_ACTORS}


def scan(dataset: str, data_path: str | None, cache_dir: str = '.cache') -> list[Utterance]:
    """All utterances of a corpus, including those that no experiment can use; see `select`.

    data_path: its folder; the CSV file of a manifest; None for the synthetic corpus, which is then
    made in cache_dir.
    """
    corpus = reader(dataset)
    if data_path is None:
        if dataset != 'synthetic':
            what = 'the CSV file' if dataset == 'manifest' else f'the folder of {dataset}'
            raise UserError(f'--data_path is required: {what}')
        data_path = os.path.join(cache_dir, f'synthetic-{corpus.SEED}')
    elif not os.path.exists(data_path):
        raise UserError(f'--data_path {data_path}: no such file or folder')
    elif dataset == 'synthetic' and not os.path.isfile(os.path.join(data_path, corpus.FIRST)):
        raise UserError(f'--data_path {data_path}: not the synthetic corpus, which is the default of '
                        f'--dataset; {_suggestion(data_path)}')
    utterances = corpus.scan(data_path)
    if not utterances:
        raise UserError(f'--data_path {data_path}: contains no utterance of {dataset}; '
                        f'{_suggestion(data_path)}')
    return utterances


def _suggestion(data_path):
    """The --dataset that reads most utterances below data_path."""
    counts = {}
    for dataset in CORPORA:
        try:
            counts[dataset] = 0 if dataset == 'synthetic' else len(reader(dataset).scan(data_path))
        except CorpusError as error:
            counts[dataset] = len(error.found)
        except (UserError, OSError):
            counts[dataset] = 0
    best = 'manifest' if os.path.isfile(data_path) else max(counts, key=counts.get)
    if counts[best] or os.path.isfile(data_path):
        return f'did you mean --dataset {best}?'
    return f'name the corpus with --dataset: {", ".join(CORPORA)}'


def select(config,
           utterances: list[Utterance] | None = None) -> tuple[list[Utterance], list[Fold], dict]:
    """(utterances, folds, report): what the protocol of `config` keeps of its corpus.

    utterances: all of the corpus, if it has been scanned. report: as in protocol.apply.
    """
    corpus = reader(config.dataset)
    if utterances is None:
        utterances = scan(config.dataset, config.data_path, config.cache)
    flags = {'turns': config.turns, 'scenarios': config.scenarios}
    kept, report = protocol.apply(config.dataset, corpus, utterances, _folds(config.dataset, config.folds),
                                  config.labels, flags)
    return kept, folds_of(config.dataset, kept, config.folds), report


def folds_of(dataset: str, utterances: list[Utterance], how: str) -> list[Fold]:
    """Folds by --folds, which the corpus may have a default for."""
    return make_folds(utterances, _folds(dataset, how), getattr(reader(dataset), 'FOLDS', None))


def _folds(dataset, how):
    return getattr(reader(dataset), 'DEFAULT_FOLDS', how) if how == 'default' else how


def load(config, splits: tuple[str, ...], device: str | torch.device = 'cpu', quiet: bool = False,
         train_on_dev: bool = False, rank: int = 0, world_size: int = 1) -> Data:
    """The fold that `config` names, with the sets `splits`; the audio of other sets is not read.

    quiet: no progress bar. train_on_dev: the dev speakers join the set 'train', and there is no set
    'dev'. rank, world_size: this process and how many share every batch.
    """
    corpus = scan(config.dataset, config.data_path, config.cache)
    utterances, folds, report = select(config, corpus)
    if not 1 <= config.fold <= len(folds):
        raise UserError(f'--fold {config.fold}: must be from 1 to {len(folds)}')
    fold = folds[config.fold - 1]
    parts = split(utterances, fold, splits, train_on_dev)
    if left_out := fold.split(utterances, 'left_out'):
        reason = '--folds loso: in a session with the test speaker'
        report = {**report, 'left_out_of_fold': [protocol.row(reason, left_out)]}

    labels = sorted({u.label for u in utterances})
    targets = {name: [labels.index(u.label) for u in part] for name, part in parts.items()}
    counts = _count(targets['train'], labels, config.fold)
    class_weights = counts.sum() / (len(labels) * counts.float())

    notes = duplicates.check(utterances, map(duplicates.inode, (u.path for u in utterances)))
    features, prior, back, cached = _features(parts, config, device, quiet)
    heard = [u for part in parts.values() for u in part]
    if config.features == 'frames':  # a file of them is one utterance
        heard = [replace(u, path=u.frames, start=None, end=None) for u in heard]
    notes += duplicates.check(heard, cached.files)
    if notes := [*report.get('notes', ()), *dict.fromkeys(notes), *_counted(cached.notes)]:
        report = {**report, 'notes': notes}
    mean, std = statistics(features['train']) if config.normalise == 'speaker' else prior
    n_bytes = sum(x.nbytes for arrays in features.values() for x in arrays)
    resident = fits(n_bytes, config.resident, device, stored=bool(config.frames))
    sets = {}
    for name, part in parts.items():
        arrays = features.pop(name)  # freed once the set holds them
        sets[name] = SpeechDataset(part, arrays, targets[name], mean, std, config.n_frames, device, resident,
                                   rank, world_size, **config.inputs, to_logmel=back.get(name))
    digests = digest([u for part in parts.values() for u in part]), corpus_digest(corpus)
    audio = [_hash(cached.made_by), _hash(cached.files)]
    return Data(labels, fold, mean, std, prior, sets, class_weights, report, *digests, audio, cached.extracted)


def split(utterances: list[Utterance], fold: Fold, splits: tuple[str, ...],
          train_on_dev: bool) -> dict[str, list[Utterance]]:
    """{name: utterances} of the sets `splits`."""
    parts = {name: fold.split(utterances, name) for name in splits}
    if train_on_dev:
        check_sessions(parts['train'], *(fold.split(utterances, name) for name in ('dev', 'test')))
        parts['train'] += fold.split(utterances, 'dev')
        parts.pop('dev', None)
    return parts


def check_sessions(train: list[Utterance], dev: list[Utterance], test: list[Utterance]) -> None:
    """UserError if training on dev would add a session of the test speakers that is not in train."""
    in_train, in_dev, in_test = ({u.session for u in part if u.session} for part in (train, dev, test))
    if shared := sorted(in_dev & in_test - in_train):
        raise UserError('--train_on_dev: the dev speakers are partners of the test speakers (session '
                        f'{shared[0]}); use --no-train_on_dev or --folds session')


def _count(targets, labels, number):
    """Training utterances of each class, (n_classes,)."""
    counts = torch.bincount(torch.tensor(targets), minlength=len(labels))
    if (counts == 0).any():
        missing = labels[int((counts == 0).nonzero()[0])]
        raise UserError(f'--fold {number}: no training speaker has class {missing!r}')
    if len(labels) < 2:
        raise UserError(f'--fold {number}: there is only one class, {labels[0]!r}; two are needed')
    return counts


def _counted(notes):
    """Notes on recordings, as at most two lines."""
    yield from notes[:1]
    if len(notes) > 1:
        yield f'{len(notes) - 1} more recordings are silent or shorter than they should be; scripts/corpus.py lists them'


def _features(parts, config, device, quiet) -> tuple[dict[str, list[np.ndarray] | list[Stored]], Moments, dict, Cached]:
    """{set: [(F, T), ...]}, normalised by speaker if --normalise says so; the moments of the training
    recordings before that; {set: the way back to log-mel}, for noise; and all that the cache says. The
    last rows are the prosody, if there is any.
    """
    utterances = [u for part in parts.values() for u in part]
    if config.frames:
        cached = cached_frames(utterances, config, _cache_dir(config), device, quiet)
    else:
        cached = cached_features(utterances, config, _cache_dir(config), config.workers, quiet)
    arrays = cached.features
    if config.prosody:
        below = cached_features(utterances, config, _cache_dir(config), config.workers, quiet, prosody=True)
        arrays = [np.concatenate(both) for both in zip(arrays, below.features, strict=True)]
        notes = sorted({*cached.notes, *below.notes})  # one of the two may have read recordings that the other had kept
        cached = cached._replace(extracted=max(cached.extracted, below.extracted), notes=notes)
    arrays = iter(arrays)
    features, back = {name: [next(arrays) for _ in part] for name, part in parts.items()}, {}
    prior = statistics(features['train'])
    if config.normalise == 'speaker':  # set by set, so that test recordings cannot affect another set
        normalised = {name: by_speaker(parts[name], part, prior) for name, part in features.items()}
        if getattr(config, 'noise', 0):  # a setting that the SVM lacks
            back = {'train': to_logmel(parts['train'], features['train'], normalised['train'])}
        features = normalised
    return features, prior, back, cached


def _cache_dir(config):
    return os.path.join(config.cache, 'frames' if config.frames else 'features')


def digest(utterances: list[Utterance]) -> str:
    """Hex digest of who says what under which label, in this order. Folders do not matter."""
    return _hash([(os.path.basename(u.path), u.start, u.end, u.label, u.speaker) for u in utterances])


def corpus_digest(utterances: list[Utterance]) -> str:
    """Hex digest of files, segments and speakers, in any order.

    If it is equal for two scans, their speakers' names are taken to mean the same people. Folders do not count, so that a
    corpus may move: two corpora with the same names of files and speakers look the same.
    """
    rows = ((os.path.basename(u.path), u.start or 0., u.end or 0., u.speaker) for u in utterances)
    return _hash(sorted(rows))


def _hash(rows):
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def describe(config, data: Data) -> Iterator[str]:
    """Lines for the log: what the protocol kept, where features went, and what a reader should know."""
    yield from protocol.lines(data.protocol)
    if data.extracted:
        yield f'extracted the features of {data.extracted} utterances to {os.path.abspath(_cache_dir(config))}'
    if config.frames:
        yield _frames_line(config, data)
    if shared := _shared_sessions(data):
        yield (f'NOTE: test and training speakers share sessions ({", ".join(shared)}), and may be heard '
               'in each other\'s recordings; --folds session keeps sessions apart')
    if config.normalise == 'speaker':
        counts = Counter(u.speaker for part in data.sets.values() for u in part.utterances)
        fewest = min(counts, key=counts.get)
        what = ' and the vector before the classifier' if config.embedding == 'speaker' else ''
        yield (f'features{what} of each speaker are normalised by their own recordings; the fewest are '
               f'{counts[fewest]}, of {fewest}')
        if data.protocol['left_out']:
            yield ('NOTE: recordings that were left out do not normalise their speakers: if --labels left them out, labels of '
                   'test speakers have an influence')
        if few := [speaker for speaker, n in counts.items() if n < ENOUGH]:
            yield (f'NOTE: {len(few)} of {len(counts)} speakers have fewer than {ENOUGH} recordings: their '
                   'statistics are shrunk towards those of the training speakers')


def _frames_line(config, data):
    """What the frames are, and where they are read from."""
    L, D = config.frames
    whose = f'the files of {config.data_path}'
    if config.features == 'encoder':
        whose = f'{config.encoder} ({config.encoder_revision})'
    sets = data.sets.values()
    size = 2 * L * D * sum(int(part.lengths.sum()) for part in sets) / 1e9
    where = 'held in memory' if all(part.resident for part in sets) else 'read from the cache window by window'
    return (f'frames of {whose}: {L} layer{"s" * (L > 1)} of {D} channels, {config.frame_rate:g} per second; {size:.2g} GB, '
            f'{where}')


def _shared_sessions(data):
    """Sessions of both test and training speakers, as far as sets are loaded and sessions known."""
    sessions = {name: {u.session for u in part.utterances if u.session} for name, part in data.sets.items()}
    return sorted(sessions['train'] & sessions.get('test', set()))
