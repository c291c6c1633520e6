"""Settings of the programs, grouped by what they are about. Precedence: flag > --config FILE > genotype file > default.

A setting is one row in one group; SearchConfig, AugmentConfig and SvmConfig list the groups a program has. This module imports
neither torch nor librosa, so that `--help` answers at once.
"""
import argparse
import contextlib
import difflib
import math
import pkgutil
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

CORPORA = tuple(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / 'datasets' / 'readers')]))
BASELINES = ('cnn', 'rnn', 'lstm', 'cnn_lstm', 'cnn_lstm_att', 'cnn_gru')  # functions of models/baselines.py
RANDOM = 'random'  # --genotype random: drawn, not searched
SAMPLE_RATE = 16_000  # Hz; every recording is resampled to it
WINDOW_MS = 32  # ms, length of an STFT frame


class UserError(Exception):
    """A user's mistake. Its message is one line that names the file, flag or row, and what to do."""


def setting(default, help, choices=None, low=None, high=None):
    """A field with its description; `low` and `high` bound a number, both included."""
    return field(default=default, metadata=dict(help=help, choices=choices, low=low, high=high))


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """run"""
    name: str = field(metadata=dict(help='name of the run: runs/search/NAME or runs/augment/NAME; A/B makes a subfolder'))
    config: str | None = setting(None, 'YAML file with settings; a flag overrides it')
    seed: int = setting(0, 'seed of weights, batches and masks', low=0, high=2 ** 32 - 1)
    resume: bool = setting(False, 'continue from the last checkpoint of this run; begin if there is none')
    overwrite: bool = setting(False, 'delete an earlier run of this name')
    threads: int = setting(0, 'CPU threads; 0: OMP_NUM_THREADS, or all cores but one', low=0)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """corpus and fold"""
    dataset: str = setting('synthetic', 'corpus', choices=CORPORA)
    data_path: str | None = setting(None, 'folder of the corpus, or the CSV file of a manifest')
    labels: str | None = setting(None, 'classes, separated by commas; + merges: ang,hap+exc,neu,sad; \\, is a comma in a name. '
                                 'Required for iemocap, msp_improv and msp_podcast; otherwise all classes')
    turns: str | None = setting(None, 'required for iemocap: improvised, scripted or all')
    scenarios: str | None = setting(None, 'required for msp_improv: letters from P,R,S,T, or all')
    folds: str = setting('default', 'default, session (leave one session out), speaker (leave one speaker out; the rest of the '
                         'session is dev), loso (leave one speaker out), official or official:Test2 (msp_podcast), or a number')
    fold: int = setting(1, 'fold to use, from 1', low=1)
    cache: str = setting('.cache', 'folder for extracted features and the synthetic corpus')
    workers: int = setting(0, 'threads that extract features; 0: one per available core, at most 8', low=0)
    resident: str = setting('auto', 'where features stay: on the device (always), on the host (never), or on the device '
                            'if they fit in a quarter of its free memory (auto)', choices=('auto', 'always', 'never'))


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """features"""
    features: str = setting('logmel', 'input of the network', choices=('logmel', 'mfcc'))
    n_mels: int = setting(32, 'mel bands, or cepstral coefficients', low=1)
    hop_ms: float = setting(16., 'ms between frames', low=1., high=WINDOW_MS)
    time_pool: int = setting(2, 'keep the maximum of this many frames', low=1)
    trim_db: float = setting(0., 'trim both ends below this many dB under the loudest 128 ms; 0: no trimming', low=0.)
    normalise: str = setting('corpus', 'normalise each band by the training speakers (corpus), or by all recordings of the '
                             'same speaker, including test speakers (speaker)', choices=('corpus', 'speaker'))
    duration: float = setting(3., 's of audio in a window; longer utterances are scored on several windows', low=.05)

    @property
    def hop_length(self):
        """Samples between frames."""
        return round(SAMPLE_RATE * self.hop_ms / 1000)

    @property
    def frame_rate(self):
        """Frames per second, after pooling."""
        return SAMPLE_RATE / self.hop_length / self.time_pool

    @property
    def n_frames(self):
        """Frames in a window."""
        return max(1, round(self.duration * self.frame_rate))


@dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """device"""
    device: str = setting('auto', 'auto, cpu, cuda or cuda:1; under torchrun each process takes one GPU')
    amp: bool = setting(True, 'bfloat16 autocast on a GPU that supports it')
    channels_last: bool = setting(True, 'memory layout of feature maps')
    deterministic: bool = setting(False, 'equal bits in every run on one GPU, which is slower; a CPU always gives them')


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """augmentation of the training data"""
    n_masks: int = setting(1, 'SpecAugment: masks along frequency, and as many along time', low=0)
    max_freq: float = setting(.15, 'SpecAugment: widest mask, as a fraction of the mel bands', low=0., high=1.)
    max_time: float = setting(.15, 'SpecAugment: widest mask, as a fraction of the window', low=0., high=1.)


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """network"""
    init_channels: int = setting(8, 'C: width of a node in the first CNN cell', low=1)
    layers: int = setting(3, 'CNN cells', low=1)
    stem_multiplier: int = setting(2, 'width of the stem, as a multiple of C', low=1)
    rnn_layers: int = setting(1, 'SeqNN cells; 0: a pure CNN', low=0)
    rnn_channels: int = setting(32, 'width of a node in a SeqNN cell', low=1)
    dropout: float = setting(.1, 'dropout after every cell', low=0., high=.99)


@dataclass(frozen=True, kw_only=True)
class SpaceSettings:
    """search space, also of --genotype random"""
    n_nodes: int = setting(3, 'nodes in a CNN cell', low=1)
    rnn_nodes: int = setting(2, 'nodes in a SeqNN cell', low=1)
    cnn_ops: str = setting('paper', 'operations of CNN cells: a set of genotypes.py, or names separated by commas')
    rnn_ops: str = setting('mixed', 'operations of SeqNN cells: a set of genotypes.py, or names separated by commas')


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """search"""
    epochs: int = setting(15, 'epochs', low=1)
    batch_size: int = setting(16, 'utterances per step, for w and for alpha, over all processes', low=1)
    order: int = setting(1, 'order of the alpha gradient: 1, or 2 with one virtual step of w', choices=(1, 2))
    hessian: str = setting('exact', 'second derivative of order 2: exact, or DARTS\' finite difference (cheaper, approximate)',
                           choices=('exact', 'difference'))
    partial_channels: int = setting(1, 'K: only 1/K of the channels of CNN cells enter the mixtures, and edges get weights of '
                                    'their own (PC-DARTS)', low=1)
    alpha_split: str = setting('utterance', 'split the training data for w and alpha by utterance or by speaker',
                               choices=('utterance', 'speaker'))
    alpha_warmup: int = setting(2, 'first epochs, which train w alone', low=0)
    w_lr: float = setting(.025, 'initial learning rate of w (SGD, cosine schedule)', low=0.)
    w_lr_min: float = setting(.001, 'final learning rate of w', low=0.)
    w_momentum: float = setting(.9, 'momentum of w', low=0., high=1.)
    w_weight_decay: float = setting(3e-4, 'weight decay of w', low=0.)
    w_grad_clip: float = setting(5., 'largest gradient norm of w; 0: no clipping', low=0.)
    alpha_lr: float = setting(3e-3, 'learning rate of alpha (Adam)', low=0.)
    alpha_weight_decay: float = setting(1e-3, 'weight decay of alpha', low=0.)
    fast: bool = setting(True, 'compute the supernet in its fast form; --no-fast: edge by edge, as in the paper')


@dataclass(frozen=True, kw_only=True)
class DevSettings:
    """dev speakers"""
    train_on_dev: bool = setting(False, 'train on the dev speakers too. Networks are then tested after their last epoch; the '
                                 'SVM still chooses C on dev first')


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """model"""
    model: str = setting('genotype', 'network: that of --genotype, or a hand-designed one', choices=('genotype', *BASELINES))
    genotype: str | None = setting(None, 'genotype.json, a folder of search.py, a text "Genotype(...)" or a file with one, or '
                                   'random: drawn from the search space by seed and fold')
    params: int = setting(0, 'resize a hand-designed network to about this many parameters; 0: its own width', low=0)


@dataclass(frozen=True, kw_only=True)
class RetrainingSettings:
    """retraining"""
    epochs: int = setting(60, 'epochs', low=1)
    batch_size: int = setting(32, 'utterances per step, over all processes', low=1)
    patience: int = setting(0, 'stop after this many epochs without a better dev UA; 0: never', low=0)
    optimizer: str = setting('sgd', 'optimizer of the weights', choices=('sgd', 'adamw'))
    lr: float = setting(.025, 'learning rate, decays to 0 along a cosine', low=0.)
    warmup: int = setting(0, 'epochs of linear warm-up of the learning rate', low=0)
    momentum: float = setting(.9, 'momentum of SGD', low=0., high=1.)
    weight_decay: float = setting(3e-4, 'weight decay of SGD or AdamW', low=0.)
    grad_clip: float = setting(5., 'largest gradient norm; 0: no clipping', low=0.)
    aux_weight: float = setting(.4, 'weight of the auxiliary head\'s loss; 0: no head', low=0.)
    drop_path_prob: float = setting(.1, 'drop-path probability at the last epoch, rising from 0', low=0., high=.99)


class Settings:
    """What all configurations share: the checks, and which settings have no effect."""
    GROUPS = ()

    def __post_init__(self):
        if not re.fullmatch(r'([\w-][\w.-]*/)*[\w-][\w.-]*', self.name):
            raise UserError(f'--name {self.name!r}: use letters, digits, ".", "_" and "-", with "/" between folders; no name '
                            'may begin with "."')
        for f in fields(self):
            check(f, getattr(self, f.name))
        if self.resume and self.overwrite:
            raise UserError('--overwrite and --resume exclude each other')

    def unused(self) -> dict:
        """{name: why} of the settings that have no effect, given the others."""
        def get(name):
            return getattr(self, name, None)
        model, cells = get('model'), names_of(SpaceSettings, NetworkSettings)
        cells.remove('dropout')
        rows = [
            (get('n_masks') == 0, '--n_masks 0', ['max_freq', 'max_time']),
            (get('rnn_layers') == 0, '--rnn_layers 0', ['rnn_channels', 'rnn_nodes', 'rnn_ops']),
            (get('order') == 1, '--order 1', ['hessian']),
            (get('optimizer') == 'adamw', '--optimizer adamw', ['momentum']),
            (isinstance(self, SvmConfig), 'the SVM, which reads whole utterances', ['duration']),
            (model == 'genotype', '--model genotype', ['params']),
            (model == 'genotype' and get('genotype') != RANDOM, '--genotype FILE, which fixes the cells',
             names_of(SpaceSettings)),
            (model in BASELINES, f'--model {model}', [*cells, 'aux_weight', 'drop_path_prob']),
        ]
        mine = {f.name for f in fields(self)}
        return {name: why for applies, why, names in rows if applies for name in names if name in mine}


@dataclass(frozen=True, kw_only=True)
class SearchConfig(SearchSettings, SpaceSettings, NetworkSettings, AugmentationSettings, DeviceSettings, FeatureSettings,
                   DataSettings, RunSettings, Settings):
    GROUPS = (RunSettings, DataSettings, FeatureSettings, SpaceSettings, NetworkSettings, SearchSettings, AugmentationSettings,
              DeviceSettings)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(RetrainingSettings, ModelSettings, SpaceSettings, NetworkSettings, DevSettings, AugmentationSettings,
                    DeviceSettings, FeatureSettings, DataSettings, RunSettings, Settings):
    GROUPS = (RunSettings, ModelSettings, DataSettings, FeatureSettings, NetworkSettings, RetrainingSettings, DevSettings,
              AugmentationSettings, SpaceSettings, DeviceSettings)

    def __post_init__(self):
        super().__post_init__()
        if self.model != 'genotype' and self.genotype:
            raise UserError(f'--genotype does not apply to --model {self.model}: leave one of them out')
        if self.patience and self.train_on_dev:
            raise UserError('--patience needs dev speakers, and --train_on_dev trains on them: say --no-train_on_dev or '
                            '--patience 0')


@dataclass(frozen=True, kw_only=True)
class SvmConfig(DevSettings, FeatureSettings, DataSettings, RunSettings, Settings):
    GROUPS = (RunSettings, DataSettings, FeatureSettings, DevSettings)


def names_of(*groups) -> list:
    """Names of the settings of these groups."""
    return [f.name for group in groups for f in fields(group)]


def pick(config, *groups) -> dict:
    """{name: value} of the settings of `config` that belong to these groups."""
    return {name: getattr(config, name) for name in names_of(*groups)}


SECTIONS = {'search': SearchConfig, 'augment': AugmentConfig, 'svm': SvmConfig}
HELP = {
    'search': ('search.py', 'Search a CNN and a sequential network jointly, and write a genotype.',
               'python search.py --name demo --config configs/demo.yaml',
               'python search.py --name mine --dataset manifest --data_path my.csv --epochs 30'),
    'augment': ('augment.py', 'Train the network of a genotype, or a hand-designed one, and test it on unseen speakers.',
                'python augment.py --name demo --config configs/demo.yaml --genotype runs/search/demo',
                'python augment.py --name gru --dataset manifest --data_path my.csv --model cnn_gru'),
    'svm': ('scripts/svm.py', 'Train and test a linear SVM on functionals of the features of one fold.',
            'python scripts/svm.py --name svm --dataset emodb --data_path DIR',
            'python scripts/svm.py --name svm2 --dataset manifest --data_path my.csv --fold 2'),
}


_GROUPS = [group for cls in SECTIONS.values() for group in cls.GROUPS]
NAMES = {section: set(names_of(cls)) - {'config'} for section, cls in SECTIONS.items()}
# Settings of several programs: those that may stand at the top level of a settings file.
SHARED = set(names_of(*(group for group in _GROUPS if _GROUPS.count(group) > 1))) - {'config'}


def check(f, value):
    """UserError if the field does not allow `value`."""
    choices, low, high = (f.metadata.get(key) for key in ('choices', 'low', 'high'))
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value).lower(), map(str, choices), 1)
        hint = f'; did you mean {near[0]}?' if near else ''
        raise UserError(f'--{f.name} {value}: must be one of {", ".join(map(str, choices))}{hint}')
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f'--{f.name} {value}: must be a finite number')
    if low is not None and value < low or high is not None and value > high:
        raise UserError(f'--{f.name} {value}: must be ' + (f'{low} or more' if high is None else f'from {low} to {high}'))


@dataclass(frozen=True)
class Given:
    """Settings that a command line and its YAML file name, and which of them were typed as flags."""
    values: dict
    typed: frozenset = frozenset()


def given(section, argv=None):
    """The Given of 'search', 'augment' or 'svm'. UserError; `--help` prints and exits."""
    cls, (prog, description, *examples) = SECTIONS[section], HELP[section]
    parser = Parser(prog=prog, description=description, examples=examples)
    for group in cls.GROUPS:
        parser.add_settings(group)
    flags = parser.known(argv)
    values = {**(read_yaml(flags['config'], section) if 'config' in flags else {}), **flags}
    if 'name' not in values:
        raise UserError('--name is required: results go to runs/.../NAME')
    return Given(values, frozenset(flags))


def build(section: str, given: Given, recorded: dict | None = None):
    """The frozen configuration. recorded: settings that a genotype brings along; flags and YAML override them.

    UserError if a flag was typed that has no effect on this model.
    """
    config = SECTIONS[section](**{**(recorded or {}), **given.values})
    for name, why in config.unused().items():
        if name in given.typed:
            raise UserError(f'--{name} has no effect with {why}: leave it out')
    return config


def read_yaml(path, section: str) -> dict:
    """{name: value} of a settings file for one program: keys at the top, overridden by those under `search:` and the like."""
    tree = _load_yaml(path)
    if base := tree.pop('extends', None):
        below = _load_yaml(Path(path).parent / base) if isinstance(base, str) else {'extends': base}
        if 'extends' in below:
            raise UserError(f'--config {path}: extends: must name one settings file, which extends no other')
        for part in SECTIONS:
            kept = {key: value for key, value in (below.get(part) or {}).items() if key not in tree}
            tree[part] = {**kept, **(tree.get(part) or {})}
        tree = {**below, **tree}
    if 'format' in tree:
        raise UserError(f'--config {path}: this is the record of a run, not a settings file')
    parts = {None: {key: value for key, value in tree.items() if key not in SECTIONS},
             **{part: tree.get(part) or {} for part in SECTIONS}}
    for where, values in parts.items():
        for key in values:
            if key not in (NAMES[where] if where else SHARED):
                raise UserError(f'--config {path}: {_misplaced(key, where)}')
    values = {**{key: value for key, value in parts[None].items() if key in NAMES[section]}, **parts[section]}
    try:
        return {name: convert(SECTIONS[section], name, value) for name, value in values.items()}
    except UserError as error:
        raise UserError(f'--config {path}: {error}') from None


def _load_yaml(path):
    """Tree of a settings file. UserError."""
    try:
        with open(path, encoding='utf-8') as f:
            tree = yaml.safe_load(f) or {}
    except OSError as error:
        raise UserError(f'--config {path}: {error.strerror}') from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f'--config {path}: not YAML: {error}') from None
    if not isinstance(tree, dict) or any(not isinstance(tree.get(part) or {}, dict) for part in SECTIONS):
        raise UserError(f'--config {path}: must contain lines "name: value"')
    return tree


def _misplaced(key, where):
    """What is wrong with a key of a settings file, and where it belongs."""
    def homes(name):
        return ' or '.join(f'{section}:' for section in SECTIONS if name in NAMES[section])
    at, valid = (f'under {where}:', NAMES[where]) if where else ('at the top level', SHARED)
    if homes(key):
        return f'{key!r} has no effect {at}; it belongs {"at the top level" if key in SHARED else f"under {homes(key)}"}'
    if near := difflib.get_close_matches(str(key), [*valid, *SECTIONS], 1):
        return f'unknown key {key!r} {at}; did you mean {near[0]}?'
    if near := difflib.get_close_matches(str(key), sorted(set.union(*NAMES.values())), 1):
        return f'unknown key {key!r} {at}; did you mean {near[0]}, under {homes(near[0])}?'
    return f'unknown key {key!r} {at}; --help lists all settings'


def checked(cls, name: str, value):
    """`convert`, and the bounds and choices of the field too."""
    value = convert(cls, name, value)
    check(next(f for f in fields(cls) if f.name == name), value)
    return value


def convert(cls, name, value):
    """A value from a flag (text) or from YAML, as the type of the field `name` of cls. UserError."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = ','.join(value)  # labels: [ang, sad]
    kind = next(f.type for f in fields(cls) if f.name == name)
    if value is None and kind == str | None:
        return None
    target = next(t for t in (bool, int, float, str) if kind in (t, t | None))
    try:
        if target is bool or isinstance(value, bool):
            if target is not bool or not isinstance(value, bool):
                raise ValueError
            return value
        if isinstance(value, dict | list) or value is None or (target is int and isinstance(value, float)):
            raise ValueError
        return target(value)
    except (ValueError, OverflowError):
        kinds = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'text'}
        raise UserError(f'--{name}: {value!r} is not {kinds[target]}') from None


class Parser(argparse.ArgumentParser):
    """argparse over groups of settings, whose mistakes are UserErrors. Only what is typed is returned."""

    def __init__(self, examples=(), usage=None, **kwargs):
        epilog = '\n  '.join(['examples:', *examples]) if examples else None
        usage = usage or '%(prog)s --name NAME [--config FILE] [--SETTING VALUE ...]'
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, epilog=epilog, usage=usage,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.flags = {}  # flag: (group, name)

    def add_settings(self, group, prefix='', hidden=False):
        """One flag per field of a dataclass of settings, in a section of the help that its docstring names."""
        section = self.add_argument_group(group.__doc__.partition('\n')[0])
        for f in fields(group):
            flag, choices = f'--{prefix}{f.name}', f.metadata.get('choices')
            default = '' if f.default in (None, '') or not isinstance(f.default, bool | int | float | str) \
                else f' (default: {f.default})'
            text = argparse.SUPPRESS if hidden else f.metadata['help'].replace('%', '%%') + default
            how = dict(action=argparse.BooleanOptionalAction) if f.type is bool else dict(
                metavar='{' + ','.join(map(str, choices)) + '}' if choices else f.name.upper())
            section.add_argument(flag, dest=f'{prefix}{f.name}', help=text, **how)
            self.flags[flag] = group, f.name

    def known(self, argv=None):
        """{name with its prefix: converted value} of the flags in argv. UserError."""
        found, unknown = self.parse_known_args(argv)
        if unknown:
            raise UserError(f'unknown argument {unknown[0]}; {self._hint(unknown[0].split("=")[0])}')
        return {name: convert(*self.flags[f'--{name}'], value) for name, value in vars(found).items()}

    def _hint(self, word):
        name = word.removeprefix('--').removeprefix('no-')
        homes = [HELP[section][0] for section in SECTIONS if name in NAMES[section]]
        if word.startswith('--') and homes:
            return f'it is a flag of {" and ".join(homes)}'
        if word.lower() in ('true', 'false', 'yes', 'no', '0', '1'):
            return 'a switch takes no value: say --amp or --no-amp, for example'
        near = difflib.get_close_matches(word, self.flags, 1)
        return f'did you mean {near[0]}?' if near else '--help lists all flags'

    def error(self, message):
        raise UserError(message)


def answer_help(section: str):
    """Prints the help of a program and exits, if that is what it was called for; called before slow imports."""
    if {'-h', '--help'} & set(sys.argv[1:]):
        with contextlib.suppress(UserError):  # the program itself will report it
            given(section)
