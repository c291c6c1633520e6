"""Settings of the programs: frozen dataclasses, one row a setting; command line over YAML file over default."""
import argparse
import difflib
import math
import re
from dataclasses import MISSING, dataclass, field, fields

import yaml

from utils import UserError

# of models/baselines.py
BASELINES = ('cnn', 'rnn', 'lstm', 'cnn_lstm', 'cnn_lstm_att', 'cnn_gru')


def setting(default, help, choices=None, low=None, high=None):
    """A field with its description; `low` and `high` bound a number, both included."""
    return field(default=default, metadata=dict(help=help, choices=choices, low=low, high=high))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What every program needs to read a fold of a corpus."""
    name: str = field(metadata=dict(help='name of the run: runs/search/NAME or runs/augment/NAME; may hold folders, A/B'))
    config: str | None = setting(None, 'YAML file with settings; a flag beats it')
    seed: int = setting(0, 'of weights, batches and masks', low=0, high=2 ** 32 - 1)
    threads: int = setting(0, 'CPU threads; 0: all cores but one, or OMP_NUM_THREADS', low=0)
    resume: bool = setting(False, 'go on from the last checkpoint of this run')
    overwrite: bool = setting(False, 'delete an earlier run of this name')
    # corpus and fold
    dataset: str = setting('synthetic', 'corpus', choices=('iemocap', 'msp_improv', 'msp_podcast', 'emodb', 'ravdess', 'cremad',
                                                           'savee', 'manifest', 'synthetic'))
    data_path: str | None = setting(None, 'folder of the corpus, or the CSV of a manifest')
    labels: str | None = setting(None, 'classes, with commas; + merges: ang,hap+exc,neu,sad. Needed with iemocap, msp_improv, '
                                 'msp_podcast; elsewhere None means all')
    turns: str | None = setting(None, 'needed with iemocap: improvised, scripted or all')
    scenarios: str | None = setting(None, 'needed with msp_improv: letters of P,R,S,T with commas, or all')
    folds: str = setting('default', 'default, session (leave one session out), speaker (leave one speaker out, the session\'s '
                         'other is dev), official or official:Test2 (msp_podcast), loso (leave one speaker out) or a number')
    fold: int = setting(1, 'which fold, from 1', low=1)
    cache: str = setting('.cache', 'folder for extracted features and the synthetic corpus')
    workers: int = setting(0, 'most processes that extract features; 0: one a core', low=0)
    resident: str = setting('auto', 'features stay on the device, or batches are cut on the host ahead of it; auto: stay where '
                            'they take a quarter of its free memory at most', choices=('auto', 'always', 'never'))
    # features
    features: str = setting('logmel', 'input of the network', choices=('logmel', 'mfcc'))
    n_mels: int = setting(32, 'mel bands (cepstral coefficients for mfcc)', low=1)
    hop_ms: float = setting(16., 'ms between frames')
    time_pool: int = setting(2, 'keep the largest of so many frames', low=1)
    trim_db: float = setting(0., 'cut from both ends what is so many dB below the loudest 128 ms; 0: keep silence', low=0.)
    normalise: str = setting('corpus', 'every band by mean and deviation over the training speakers (corpus), or over all '
                             'recordings that take part of whoever speaks (speaker), test speakers too',
                             choices=('corpus', 'speaker'))
    duration: float = setting(3., 's of audio in a window; longer utterances are scored on several windows', low=.05)

    def __post_init__(self):
        if not re.fullmatch(r'([\w.-]*\w[\w.-]*/)*[\w.-]*\w[\w.-]*', self.name):
            raise UserError(f'--name {self.name!r}: letters, digits, ".", "_" and "-" only, and "/" between them')
        for f in fields(self):
            value, meta = getattr(self, f.name), f.metadata
            if meta.get('choices') and value not in meta['choices']:
                near = difflib.get_close_matches(str(value), map(str, meta['choices']), 1)
                raise UserError(f'--{f.name} {value}: must be one of {", ".join(map(str, meta["choices"]))}'
                                + (f'; did you mean {near[0]}?' if near else ''))
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f'--{f.name} {value}: must be a finite number')
            if meta.get('low') is not None and value < meta['low'] or meta.get('high') is not None and value > meta['high']:
                bounds = f'{meta["low"]} or more' if meta.get('high') is None else f'from {meta["low"]} to {meta["high"]}'
                raise UserError(f'--{f.name} {value}: must be {bounds}')


@dataclass(frozen=True, kw_only=True)
class Common(Reading):
    """What search and retraining share beyond that."""
    device: str = setting('auto', 'auto, cpu, cuda, cuda:1; under torchrun each process takes the GPU of its number')
    amp: bool = setting(True, 'bfloat16 autocast where CUDA has it')
    channels_last: bool = setting(True, 'memory layout of the maps')
    # augmentation
    n_masks: int = setting(1, 'SpecAugment: masks along frequency, and as many along time', low=0)
    max_freq: float = setting(.15, 'SpecAugment: widest mask, fraction of the mel bands', low=0., high=1.)
    max_time: float = setting(.15, 'SpecAugment: widest mask, fraction of the window', low=0., high=1.)
    # space of genotypes, of the search and of --genotype random
    n_nodes: int = setting(3, 'nodes in a CNN cell', low=1)
    rnn_nodes: int = setting(2, 'nodes in a SeqNN cell', low=1)
    cnn_ops: str = setting('paper', 'operations of the CNN cells: a set of genotypes.py, or names with commas')
    rnn_ops: str = setting('mixed', 'operations of the SeqNN cells: likewise')
    # network
    init_channels: int = setting(8, 'C: width of a node in the first CNN cell', low=1)
    layers: int = setting(3, 'CNN cells', low=1)
    stem_multiplier: int = setting(2, 'width of the stem, in C', low=1)
    rnn_layers: int = setting(1, 'SeqNN cells; 0: a pure CNN', low=0)
    rnn_channels: int = setting(32, 'width of a node in a SeqNN cell', low=1)
    dropout: float = setting(.1, 'after every cell', low=0., high=.99)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Common):
    epochs: int = setting(15, 'epochs', low=1)
    batch_size: int = setting(16, 'utterances a step, for w and for alpha, of all processes together', low=1)
    partial_channels: int = setting(1, 'K: 1/K of the channels of CNN cells take part in the mixtures, edges have weights of '
                                    'their own (PC-DARTS); for widths that do not fit otherwise', low=1)
    order: int = setting(1, 'of the alpha gradient: 1, or 2 with one virtual step', choices=(1, 2))
    hessian: str = setting('exact', 'second derivative of order 2: exact, or difference (DARTS; cheaper, only near)',
                           choices=('exact', 'difference'))
    alpha_split: str = setting('utterance', 'what the halves for w and alpha do not share', choices=('utterance', 'speaker'))
    alpha_warmup: int = setting(2, 'first epochs that train w alone', low=0)
    w_lr: float = setting(.025, 'SGD of w: learning rate, falls by a cosine ...', low=0.)
    w_lr_min: float = setting(.001, '... to this', low=0.)
    w_momentum: float = setting(.9, 'SGD of w', low=0., high=1.)
    w_weight_decay: float = setting(3e-4, 'SGD of w', low=0.)
    w_grad_clip: float = setting(5., 'largest gradient norm of w', low=0.)
    alpha_lr: float = setting(3e-3, 'Adam of alpha', low=0.)
    alpha_weight_decay: float = setting(1e-3, 'Adam of alpha', low=0.)


@dataclass(frozen=True, kw_only=True)
class Final(Reading):
    """What the programs share that train what is tested."""
    train_on_dev: bool = setting(False, 'train on the dev speakers too. Networks: dev then picks no epoch, the last is tested; '
                                 'SVM: after C is chosen on dev')


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Common, Final):
    model: str = setting('genotype', 'network: the one of --genotype, or a hand-designed one', choices=('genotype', *BASELINES))
    genotype: str | None = setting(None, 'genotype.json of a search, a file with pt.darts\' Genotype(...), or random: drawn by '
                                   'seed and fold from the space of n_nodes, rnn_nodes, cnn_ops, rnn_ops')
    params: int = setting(0, 'of a hand-designed network: the width that comes nearest to so many; 0: its own', low=0)
    epochs: int = setting(60, 'epochs', low=1)
    batch_size: int = setting(32, 'utterances a step, of all processes together', low=1)
    patience: int = setting(0, 'stop after so many epochs without a better dev UA; 0: never', low=0)
    optimizer: str = setting('sgd', 'of the weights', choices=('sgd', 'adamw'))
    lr: float = setting(.025, 'learning rate, falls by a cosine to 0', low=0.)
    warmup: int = setting(0, 'first epochs in which the learning rate rises', low=0)
    momentum: float = setting(.9, 'of SGD', low=0., high=1.)
    weight_decay: float = setting(3e-4, 'of SGD or AdamW', low=0.)
    grad_clip: float = setting(5., 'largest gradient norm', low=0.)
    aux_weight: float = setting(.4, 'weight of the auxiliary head\'s loss; 0: no head', low=0.)
    drop_path_prob: float = setting(.1, 'drop-path at the last epoch, rising from 0', low=0., high=.99)

    def __post_init__(self):
        super().__post_init__()
        if self.patience and self.train_on_dev:
            raise UserError('--patience asks the dev speakers, whom --train_on_dev trains on: say --no-train_on_dev or '
                            '--patience 0')


SECTIONS = {'search': SearchConfig, 'augment': AugmentConfig, 'svm': Final}


def given(section, argv=None):
    """Settings that the command line and its --config file name, {name: value}, for 'search' or 'augment'. UserError."""
    cls = SECTIONS[section]
    flags = _parse(section, argv)
    in_file = read_yaml(flags['config'], section) if flags.get('config') else {}
    values = {**in_file, **flags}
    if 'name' not in values:
        raise UserError('--name is needed: the run will be runs/.../NAME')
    return {name: _convert(cls, name, value) for name, value in values.items()}


def read_yaml(path, section):
    """{name: value} of a settings file: keys at the top go to every program that has them, those under `search:` to search."""
    try:
        with open(path) as f:
            tree = yaml.safe_load(f) or {}
    except OSError as error:
        raise UserError(f'--config {path}: {error.strerror}') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f'--config {path}: not YAML: {error}') from None
    if not isinstance(tree, dict) or any(not isinstance(tree.get(s) or {}, dict) for s in SECTIONS):
        raise UserError(f'--config {path}: must hold settings as "name: value"')
    names = {s: [f.name for f in fields(cls)] for s, cls in SECTIONS.items()}
    common = [f.name for f in _shared()]
    for where, keys, valid in [(None, [k for k in tree if k not in SECTIONS], common),
                               *((s, tree.get(s) or {}, names[s]) for s in SECTIONS)]:
        for key in keys:
            if key not in valid or key == 'config':
                at = f' under {where}:' if where else ''
                raise UserError(f'--config {path}: unknown key {key!r}{at}{_nearest(key, [*valid, *SECTIONS])}')
    top = {key: value for key, value in tree.items() if key in names[section]}
    return {**top, **(tree.get(section) or {})}


def build(section, values, recorded=None):
    """The frozen configuration. recorded: settings that a genotype brings along; `values` beat them."""
    cls = SECTIONS[section]
    recorded = {name: _convert(cls, name, value) for name, value in (recorded or {}).items()}
    return cls(**{**recorded, **values})


def given_to_all(cls, argv, owned):
    """(settings of cls, {'search': {...}, 'augment': {...}, 'svm': {...}}) of a program that runs the others, as `given`.

    cls: dataclass of its own settings, `config` among them. owned: settings of the others that it chooses itself, so that
    neither flags nor the file may. A setting of Common or Final goes to all that have it, --search.epochs to one; a flag beats
    the file.
    """
    parts = {'': fields(cls), 'all.': _shared(), **{f'{section}.': fields(SECTIONS[section]) for section in SECTIONS}}
    parser, valid = _Parser(allow_abbrev=False, argument_default=argparse.SUPPRESS,
                            epilog='--search.SETTING and --augment.SETTING go to one program, whose --help lists them'), []
    for part, settings in parts.items():
        for f in settings:
            if not part or f.name not in owned:
                valid.append(f'--{part.removeprefix("all.")}{f.name}')
                _add(parser, f, valid[-1], part + f.name, hidden=part not in ('', 'all.'))
    flags = _known(parser, valid, argv)
    own = {name: _convert(cls, name, value) for name, value in flags.items() if '.' not in name}
    found = {}
    for section, of in SECTIONS.items():
        values = read_yaml(own['config'], section) if own.get('config') else {}
        for name in owned & values.keys():
            raise UserError(f'--config {own["config"]}: {name} has no place there, this program chooses it')
        for part in ('all.', f'{section}.'):
            values.update({name.removeprefix(part): value for name, value in flags.items() if name.startswith(part)})
        has = {f.name for f in fields(of)}
        found[section] = {name: _convert(of, name, value) for name, value in values.items() if name in has}
    return cls(**own), found


def _shared():
    """Fields that stand for several programs at once."""
    return list({f.name: f for cls in (Common, Final) for f in fields(cls)}.values())


def _parse(section, argv):
    parser = _Parser(prog=f'{section}.py', allow_abbrev=False, argument_default=argparse.SUPPRESS)
    valid = [f'--{f.name}' for f in fields(SECTIONS[section])]
    for f, flag in zip(fields(SECTIONS[section]), valid):
        _add(parser, f, flag, f.name)
    return _known(parser, valid, argv)


def _add(parser, f, flag, dest, hidden=False):
    default = '' if f.default is MISSING else f' (default: {f.default})'
    action = dict(action=argparse.BooleanOptionalAction) if f.type is bool else {}
    text = argparse.SUPPRESS if hidden else f.metadata['help'].replace('%', '%%') + default
    parser.add_argument(flag, dest=dest, help=text, **({} if action else {'metavar': f.name.upper()}), **action)


def _known(parser, valid, argv):
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(f'unknown argument {unknown[0]}{_nearest(unknown[0].split("=")[0], valid)}')
    return vars(flags)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def _nearest(word, valid):
    return f'; the nearest valid one is {difflib.get_close_matches(str(word), valid, 1, cutoff=0.)[0]}'


def _convert(cls, name, value):
    """A value from a flag (text) or from YAML, as the field's type."""
    kind = next(f.type for f in fields(cls) if f.name == name)
    if value is None and kind == str | None:
        return None
    for target in (bool, int, float, str):
        if kind in (target, target | None):
            break
    try:
        if target is bool or isinstance(value, bool):
            if target is not bool or not isinstance(value, bool):
                raise ValueError
            return value
        if isinstance(value, dict | list) or value is None or (target is int and isinstance(value, float)):
            raise ValueError
        return target(value)
    except ValueError:
        kinds = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'text'}
        raise UserError(f'{name}: {value!r} is not {kinds[target]}') from None
