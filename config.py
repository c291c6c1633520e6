"""Settings of the programs, grouped by what they are about. Precedence: flag > --config FILE > genotype file > default.

A setting is one row in one group; SearchConfig, AugmentConfig and SvmConfig list the groups a program has. This module imports
neither torch nor librosa, so that `--help` answers at once.
"""
import argparse
import contextlib
import difflib
import html
import json
import math
import os
import pkgutil
import re
import reprlib
import signal
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

CORPORA = tuple(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / 'datasets' / 'readers')]))
ANY_INPUT = ('cnn', 'rnn', 'lstm', 'cnn_lstm', 'cnn_lstm_att', 'cnn_gru')  # hand-designed networks
ONE_SIZE = 'ssl_linear'  # the one that has no width
SSL = (ONE_SIZE, 'ssl_mlp', 'ssl_att')  # those that read frames of a speech encoder alone
BASELINES = (*ANY_INPUT, *SSL)  # functions of models/baselines.py
RANDOM = 'random'  # --genotype random: drawn, not searched
SAMPLE_RATE = 16_000  # Hz; every recording is resampled to it
WINDOW_MS = 32  # ms, length of an STFT frame
_PROSODY = ('pitch', 'voicing', 'loudness', 'flux', 'harmonicity')
FRAMES = ('encoder', 'frames')  # --features that are no spectrogram
PROSODY = (*_PROSODY, *(f'difference of {name}' for name in _PROSODY))  # rows of --prosody


class UserError(Exception):
    """A user's mistake. Its message is one line of at most MAX_MESSAGE characters that names the file, flag or row, and
    what to do."""

    def __init__(self, message: str = ''):
        super().__init__(one_line(message))


# --- Untrusted text. Files that somebody else may have written are read here, and shown or written again by what follows. ---

MAX_MESSAGE = 480  # characters
MAX_YAML = 65_536  # bytes; a settings file has 1,000
MAX_JSON = 64_000_000  # bytes
WHATEVER = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError)  # of a parser
FORMULA = re.compile(r"'*[=+\-@\t\r]")  # how a cell begins that a spreadsheet would compute
_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxtuple, _repr.maxdict, _repr.maxset, _repr.maxstring = 2, 3, 3, 3, 3, 60


def one_line(text, limit: int = MAX_MESSAGE) -> str:
    """Text on one line, without control characters; of a longer text the middle is left out."""
    text = str(text)
    if len(text) > 2 * limit:
        text = f'{text[:limit]} ... {text[-limit:]}'
    text = ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in ' '.join(text.split()))
    return text if len(text) <= limit else f'{text[:limit * 2 // 3]} ... {text[5 - limit // 3:]}'


def short(value, limit: int = 60) -> str:
    """repr(value) in a few characters, however large the value is."""
    try:
        return one_line(_repr.repr(value), limit)
    except ValueError:  # Python prints no number of more than 4,300 digits
        return f'a number of {value.bit_length()} bits' if isinstance(value, int) else f'a {type(value).__name__}'


def plain(value) -> str:
    """A value as one would type it, in a few characters."""
    return one_line(value, 60) if isinstance(value, str) else short(value)


def read_text(path, limit: int = MAX_JSON) -> str:
    """Text of a UTF-8 file. UserError if there is none, or more than `limit` bytes."""
    try:
        with open(path, 'rb') as f:
            data = f.read(limit + 1)
        if len(data) > limit:
            raise UserError(f'{path}: is larger than {limit:,} bytes, too large for what it should hold')
        return data.decode('utf-8-sig')
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None
    except UnicodeDecodeError:
        raise UserError(f'{path}: is not a text file in UTF-8') from None
    except ValueError as error:  # a path with a NUL
        raise UserError(f'{path}: {error}') from None


def read_json(path, kind: type = dict, limit: int = MAX_JSON):
    """Contents of a JSON file, which must be a `kind`. UserError."""
    return parse_json(read_text(path, limit), path, kind)


def parse_json(text: str, where, kind: type = dict):
    """The tree of a JSON text, which must be a `kind`. UserError, also if a name is there twice."""
    def each_once(pairs):
        found = {}
        for name, value in pairs:
            if name in found:
                raise UserError(f'{where}: {short(name)} is there twice')
            found[name] = value
        return found
    try:
        tree = json.loads(text, object_pairs_hook=each_once)
    except WHATEVER as error:
        raise UserError(f'{where}: not JSON ({short(str(error))})') from None
    if not isinstance(tree, kind):
        raise UserError(f'{where}: holds {short(tree)} instead of a {kind.__name__}')
    return tree


class _YamlLoader(yaml.SafeLoader):
    """SafeLoader without aliases, which can stand for more than any memory holds, and without a name given twice."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, 'aliases (*name) are not allowed', self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        for i, key in enumerate(keys):
            if isinstance(key, str) and key in keys[:i]:
                raise yaml.constructor.ConstructorError(None, None, f'{short(key)} is there twice', node.value[i][0].start_mark)
        return super().construct_mapping(node, deep)


class _SettingsLoader(_YamlLoader):
    """Numbers and times stay as they are written, as those of flags do: YAML reads `name: 2024_01` as 202401, and 010 as 8."""
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(':')[2] not in ('int', 'float', 'timestamp')]
        for first, resolvers in _YamlLoader.yaml_implicit_resolvers.items()}


def read_yaml_file(path, limit: int = MAX_YAML, loader: type = _YamlLoader) -> dict:
    """Lines "name: value" of a YAML file. UserError."""
    text = read_text(path, limit)
    try:
        tree = yaml.load(text, loader)
    except yaml.MarkedYAMLError as error:
        line = f'line {error.problem_mark.line + 1}: ' if error.problem_mark else ''
        raise UserError(f'{path}: not YAML: {line}{one_line(error.problem, 200)}') from None
    except (yaml.YAMLError, *WHATEVER) as error:
        raise UserError(f'{path}: not YAML: {type(error).__name__}: {one_line(error, 200)}') from None
    if not isinstance(tree, dict | None):
        raise UserError(f'{path}: must contain lines "name: value"')
    return tree or {}


@contextlib.contextmanager
def contents_of(where, advice: str):
    """Inside, what is wrong with the contents of a file that this program wrote once becomes a UserError."""
    try:
        yield
    except (*WHATEVER, RuntimeError, AssertionError) as error:  # torch raises RuntimeErrors for tensors of another shape
        what = f'{type(error).__name__}: {one_line(error, 150)}'
        raise UserError(f'{where}: not what it should hold ({what}): {advice}') from None


def check_target(flag: str, path):
    """UserError if no file can be written to `path`, which may be None: said before the work, not after it."""
    if path is not None and os.path.isdir(path):
        raise UserError(f'--{flag} {path} is a folder: name a file')
    if path is not None and not os.path.isdir(os.path.dirname(path) or '.'):
        raise UserError(f'--{flag} {path}: there is no folder {os.path.dirname(path)}')


def escape_markdown(text) -> str:
    """Text for a cell of a Markdown table, which has neither markup nor HTML."""
    markup = r'([\\`*{}\[\]|~#!$]|(?<!\w)_|_(?!\w))'  # the _ of n_mels is none
    return re.sub(markup, r'\\\1', html.escape(one_line(text, 10_000), quote=False))


def from_markdown_cell(text: str) -> str:
    """What escape_markdown was given."""
    return html.unescape(re.sub(r'\\([\\`*{}\[\]|~#!$_])', r'\1', text))


def csv_cell(text: str) -> str:
    """Text for a cell of a CSV file: ' in front of what a spreadsheet would compute as a formula."""
    return f"'{text}" if FORMULA.match(text) else text


def from_csv_cell(text: str) -> str:
    """The text that csv_cell was given."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


# --- Settings ---

def setting(default, help, choices=None, low=None, high=None, off=False, found=False):
    """A field with its description; `low` and `high` bound a number, both included. off: 0 is allowed too.

    found: it has no flag; `build` finds it out, and runs record it.
    """
    return field(default=default, metadata=dict(help=help, choices=choices, low=low, high=high, off=off, found=found))


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """run"""
    name: str = field(metadata=dict(help='name of the run and of its folder, such as runs/search/NAME; A/B makes a subfolder'))
    config: str | None = setting(None, 'YAML file with settings; a flag overrides it')
    seed: int = setting(0, 'seed of weights, batches and masks', low=0, high=2 ** 32 - 1)
    resume: bool = setting(False, 'continue from the last checkpoint of this run; begin the run if there is none')
    overwrite: bool = setting(False, 'replace an earlier run of this name, once this one has a checkpoint')
    threads: int = setting(0, 'CPU threads; 0: OMP_NUM_THREADS, or all cores but one', low=0, high=1024)


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
    fold: int = setting(1, 'fold to use, from 1', low=1, high=100_000)
    cache: str = setting('.cache', 'folder for extracted features and the synthetic corpus')
    workers: int = setting(0, 'threads that extract features; 0: one per available core, at most 8', low=0, high=256)
    resident: str = setting('auto', 'where features stay: on the device (always), on the host (never), or on the device '
                            'if they fit in a quarter of its free memory (auto). Frames of an encoder stay on disk rather '
                            'than on the host', choices=('auto', 'always', 'never'))


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """features"""
    features: str = setting('logmel', 'input of the network: a spectrogram (logmel, mfcc), frames of a frozen speech model '
                            '(encoder), or frames from files that the column frames of a manifest names (frames)',
                            choices=('logmel', 'mfcc', *FRAMES))
    encoder: str | None = setting(None, 'speech model of --features encoder: a name on the Hugging Face hub, or a folder')
    encoder_layers: str = setting('all', 'its layers: one (8), several (4-9) or all, whose weights the network learns, or '
                                  'their mean. 0 is what enters the first transformer layer')
    frames_per_s: float = setting(50., 'frames per second of --features frames; an encoder has its own', low=.1, high=16_000.)
    frame_shape: str = setting('', 'LAYERSxCHANNELS of the frames', found=True)
    encoder_revision: str = setting('', 'commit of the encoder, or digest of its weights', found=True)
    n_mels: int = setting(32, 'mel bands, or cepstral coefficients', low=1, high=1024)
    hop_ms: float = setting(16., 'ms between frames', low=1., high=WINDOW_MS)
    time_pool: int = setting(2, 'keep the maximum of this many frames', low=1, high=100)
    trim_db: float = setting(0., 'trim both ends below this many dB under the loudest 128 ms; 0: no trimming',
                             low=1., high=200., off=True)
    normalise: str = setting('corpus', 'normalise each band by the training speakers (corpus), or by all recordings of the '
                             'same speaker that are kept, including test speakers (speaker)', choices=('corpus', 'speaker'))
    embedding: str = setting('none', 'normalise the input of the classifier by all recordings of the same speaker, including '
                             'test speakers (speaker)', choices=('none', 'speaker'))
    prosody: bool = setting(False, 'read pitch, voicing, loudness, spectral flux and harmonicity too, and their differences')
    prosody_version: int = setting(2, 'version of --prosody: 2, or 1, whose pitch has a fault, to continue what began with it',
                                   choices=(1, 2))
    deltas: bool = setting(False, 'read the first and second differences of the features over time too')
    duration: float = setting(3., 'length of a window in seconds; longer utterances are scored on several windows',
                              low=.05, high=600.)

    @property
    def hop_length(self):
        """Samples between frames."""
        return round(SAMPLE_RATE * self.hop_ms / 1000)

    @property
    def frames(self):
        """(L, D): layers and channels of the frames of an encoder or of files; None for a spectrogram."""
        return tuple(map(int, self.frame_shape.split('x'))) if self.features in FRAMES else None

    @property
    def n_rows(self):
        """Rows of the features of a recording, (n_rows, T), without prosody: mel bands, or L * D."""
        return math.prod(self.frames) if self.frames else self.n_mels

    @property
    def height(self):
        """F of the maps that enter the first cell: mel bands; 1 for frames, which have none."""
        return 1 if self.frames else self.n_mels

    @property
    def frame_rate(self):
        """Frames per second, after pooling."""
        if self.features in FRAMES:
            return self.frames_per_s
        return SAMPLE_RATE / self.hop_length / self.time_pool

    @property
    def n_frames(self):
        """Frames in a window."""
        return max(1, round(self.duration * self.frame_rate))

    @property
    def inputs(self):
        """What a network reads, as arguments of every network.

        C_in: input channels; D for frames. n_prosody: rows of prosody. n_sources, for frames alone: 1 for frames (N, D, 1, T),
        L for frames of several layers (N, L, D, T), which the network mixes.
        """
        if self.frames:
            return {'C_in': self.frames[1], 'n_prosody': 0, 'n_sources': self.frames[0]}
        return {'C_in': 3 if self.deltas else 1, 'n_prosody': len(PROSODY) if self.prosody else 0}


@dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """device"""
    device: str = setting('auto', 'auto, cpu, cuda or cuda:1; under torchrun each process takes one GPU')
    amp: bool = setting(True, 'bfloat16 autocast on a GPU that supports it')
    channels_last: bool = setting(True, 'keep feature maps in the memory layout channels_last, not in the default of PyTorch')
    deterministic: bool = setting(False, 'on a GPU, deterministic operations where PyTorch has them, which are slower; a CPU '
                                  'gives equal bits without it')


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """augmentation of the training data"""
    n_masks: int = setting(1, 'SpecAugment: masks along frequency, and as many along time', low=0, high=100)
    max_freq: float = setting(.15, 'SpecAugment: widest mask, as a fraction of the mel bands', low=0., high=1.)
    max_time: float = setting(.15, 'SpecAugment: widest mask, as a fraction of the window', low=0., high=1.)
    speed: float = setting(0., 'play utterances at 1 - SPEED to 1 + SPEED times their speed, which moves frequencies too; '
                           '.1 is usual; 0: off', low=0., high=.3)
    vtlp: float = setting(0., 'multiply the resonances of the vocal tract by 1 - VTLP to 1 + VTLP; .1 is usual; 0: off',
                          low=0., high=.3)
    copypaste: float = setting(0., 'probability of appending another utterance of the same speaker (CopyPaste)',
                               low=0., high=1.)
    copypaste_with: str = setting('emotion', 'append an utterance of the same class (emotion), or of the class whose name '
                                  'begins with "neu" (neutral)', choices=('emotion', 'neutral'))
    noise: float = setting(0., 'probability of adding stationary noise, between white and pink, to an utterance',
                           low=0., high=1.)
    snr_low: float = setting(10., 'loudest noise, dB of speech over noise', low=-20., high=60.)
    snr_high: float = setting(30., 'softest noise, dB of speech over noise', low=-20., high=60.)


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """network"""
    init_channels: int = setting(8, 'C: width of a node in the first CNN cell', low=1, high=4096)
    layers: int = setting(3, 'CNN cells', low=1, high=100)
    stem_multiplier: int = setting(2, 'width of the stem, as a multiple of C', low=1, high=64)
    rnn_layers: int = setting(1, 'SeqNN cells; 0: a pure CNN', low=0, high=100)
    rnn_channels: int = setting(32, 'width of a node in a SeqNN cell', low=1, high=4096)
    dropout: float = setting(.1, 'dropout after every cell', low=0., high=.99)


@dataclass(frozen=True, kw_only=True)
class SpaceSettings:
    """search space (also used by --genotype random)"""
    space: str = setting('paper', 'paper; or speech: other operations, and genotypes that also decide widths, depths, strides '
                         'and pooling. Its defaults: --cnn_ops speech --rnn_ops speech --n_nodes 2 --rnn_nodes 1',
                         choices=('paper', 'speech'))
    band: str | None = setting(None, 'LOW-HIGH: draw genotypes and candidates whose network has this many parameters')
    n_nodes: int = setting(3, 'nodes in a CNN cell', low=1, high=32)
    rnn_nodes: int = setting(2, 'nodes in a SeqNN cell', low=1, high=32)
    cnn_ops: str = setting('paper', 'operations of CNN cells: paper, conv, sep_conv, dil_conv, pool, speech or frames, or '
                           'names separated by commas')
    rnn_ops: str = setting('mixed', 'operations of SeqNN cells: mixed, paper, all, lstm, gru, rnn, lstm_att, gru_att, rnn_att '
                           'or speech, or names separated by commas')
    cnn_order: str = setting('free', 'free: the search orders the operations of a CNN cell; imposed: inputs of a cell pass '
                             'convolutions, and nodes pooling', choices=('free', 'imposed'))


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """search (w: weights of the supernet; alpha: weights of the operations)"""
    epochs: int = setting(15, 'epochs', low=1, high=100_000)
    batch_size: int = setting(16, 'utterances per step, for w and for alpha, over all processes', low=1, high=65_536)
    order: int = setting(1, 'order of the alpha gradient: 1, or 2 with one virtual step of w', choices=(1, 2))
    hessian: str = setting('exact', 'second derivative of order 2: exact, or DARTS\' finite difference (cheaper, approximate)',
                           choices=('exact', 'difference'))
    partial_channels: int = setting(1, 'K: only 1/K of the channels of CNN cells enter the mixtures, and edges get weights of '
                                    'their own (PC-DARTS)', low=1, high=4096)
    alpha_split: str = setting('utterance', 'split the training data for w and alpha by utterance or by speaker; none: w gets '
                               'all of it, alpha is not trained, and candidates are drawn uniformly (one-shot search)',
                               choices=('utterance', 'speaker', 'none'))
    alpha_warmup: int = setting(2, 'train w alone for this many epochs first', low=0, high=100_000)
    w_lr: float = setting(.025, 'initial learning rate of w (SGD, cosine schedule)', low=1e-8, high=100.)
    w_lr_min: float = setting(.001, 'final learning rate of w', low=0., high=100.)
    w_momentum: float = setting(.9, 'momentum of w', low=0., high=.9999)
    w_weight_decay: float = setting(3e-4, 'weight decay of w', low=0., high=10.)
    w_grad_clip: float = setting(5., 'largest gradient norm of w; 0: no clipping', low=1e-6, high=1e6, off=True)
    alpha_lr: float = setting(3e-3, 'learning rate of alpha (Adam)', low=1e-8, high=10.)
    alpha_weight_decay: float = setting(1e-3, 'weight decay of alpha', low=0., high=10.)
    fast: bool = setting(True, 'compute the supernet in its fast form; --no-fast: edge by edge, as in the paper')
    relaxation: str = setting('softmax', 'what a step of the supernet computes: the mixture of all operations (softmax), or '
                              'one operation an edge (sampled); none: no supernet, candidates are drawn at random',
                              choices=('softmax', 'sampled', 'none'))
    sampling: str = setting('gumbel', 'how a step of w draws its path: from alpha (gumbel, GDAS), or uniformly among the '
                            'networks of the space (uniform, SPOS); a step of alpha always draws from alpha',
                            choices=('gumbel', 'uniform'))


@dataclass(frozen=True, kw_only=True)
class FinalistSettings:
    """choice among candidates"""
    finalists: int = setting(0, 'retrain this many of the best candidates and keep the best on dev, by log-loss; 0: the '
                             'genotype is that of the alphas. In the space speech each candidate also has drawn decisions '
                             'outside its cells; a sampled supernet ranks them too, except widths and depth',
                             low=0, high=1000)
    candidates: int = setting(300, 'genotypes drawn from alpha and scored in the supernet', low=1, high=100_000)
    scored_utterances: int = setting(0, 'dev utterances, drawn at random, on which the supernet scores candidates; 0: all',
                                     low=2, high=10_000_000, off=True)
    finalist_epochs: int = setting(0, 'epochs of the last rung; 0: as many as augment.py takes from --config',
                                   low=0, high=10_000)
    last_rung: int = setting(3, 'finalists that get to the last rung, after all have trained for a quarter of its epochs, if '
                             'there are more; 0: all train to the end at once', low=1, high=1000, off=True)
    tournament_minutes: float = setting(0., 'with --relaxation none: retrain as many candidates as fit in this time instead of '
                                        '--finalists', low=0., high=1e6)
    tournament_cores: bool = setting(False, 'on a CPU: --tournament_minutes are minutes of its cores, all threads together; '
                                     'with --threads 1 other programs hardly change them')


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
    init: str | None = setting(None, 'begin with the weights of a trained network: its folder of augment.py, or best.pt. '
                               'Without --genotype and --model its network, sizes and features are taken too')
    params: int = setting(0, 'resize a hand-designed network to about this many parameters; 0: its own width', low=0,
                          high=10 ** 9)


@dataclass(frozen=True, kw_only=True)
class RetrainingSettings:
    """retraining"""
    epochs: int = setting(60, 'epochs', low=1, high=100_000)
    batch_size: int = setting(32, 'utterances per step, over all processes', low=1, high=65_536)
    patience: int = setting(0, 'stop after this many epochs without a better one (a higher dev UA, or the same with a lower '
                             'loss); 0: never', low=0, high=100_000)
    optimizer: str = setting('sgd', 'optimizer of the weights', choices=('sgd', 'adamw'))
    lr: float = setting(.025, 'learning rate, decays to 0 along a cosine', low=1e-8, high=100.)
    warmup: int = setting(0, 'epochs of linear warm-up of the learning rate', low=0, high=100_000)
    momentum: float = setting(.9, 'momentum of SGD', low=0., high=.9999)
    weight_decay: float = setting(3e-4, 'weight decay of SGD or AdamW', low=0., high=10.)
    grad_clip: float = setting(5., 'largest gradient norm; 0: no clipping', low=1e-6, high=1e6, off=True)
    aux_weight: float = setting(.4, 'weight of the auxiliary head\'s loss; 0: no head', low=0., high=100.)
    drop_path_prob: float = setting(.1, 'drop-path probability at the last epoch, rising from 0', low=0., high=.99)
    ema: float = setting(0., 'score and keep an exponential moving average of the weights, with this decay per step; .99 '
                         'forgets half in 69 steps; 0: the weights themselves', low=0., high=.9999)


class Settings:
    """What all configurations share: the checks, and which settings have no effect."""
    GROUPS = ()

    def __post_init__(self):
        if not re.fullmatch(r'([\w-][\w.-]*/)*[\w-][\w.-]*', self.name):
            raise UserError(f'--name {short(self.name)}: use letters, digits, ".", "_" and "-", with "/" between folders; no '
                            'name may begin with "."')
        if max(len(part.encode()) for part in self.name.split('/')) > 200 or len(self.name.encode()) > 800:
            raise UserError(f'--name {self.name}: longer than a file system takes')
        for f in fields(self):
            check(f, getattr(self, f.name))
        limits(getattr(self, 'band', None))
        if self.resume and self.overwrite:
            raise UserError('--overwrite and --resume exclude each other')
        if self.embedding == 'speaker' and self.normalise != 'speaker':
            raise UserError('--embedding speaker needs --normalise speaker: both use all recordings of a test speaker')
        self._check_frames()
        self._check_voices()

    def _check_frames(self):
        """UserError if settings of an encoder and of a spectrogram exclude each other."""
        if self.features == 'encoder' and not self.encoder:
            raise UserError('--features encoder needs --encoder: the name of a speech model on the Hugging Face hub, or its '
                            'folder')
        if not re.fullmatch(r'all|mean|\d{1,3}(-\d{1,3})?', self.encoder_layers, re.ASCII):
            raise UserError(f'--encoder_layers {plain(self.encoder_layers)}: must be a number, FIRST-LAST, all or mean')
        if self.features in FRAMES and (flag := next((name for name in ('prosody', 'deltas', 'trim_db') if getattr(self, name)),
                                                     None)):
            raise UserError(f'--{flag} needs --features logmel or mfcc: leave it out')

    def _check_voices(self):
        """UserError if the augmentation asks for what the features do not allow."""
        def asked(*names):
            return next((f'--{name}' for name in names if getattr(self, name, 0)), None)
        if (flag := asked('speed', 'vtlp', 'noise')) and self.features != 'logmel':
            raise UserError(f'{flag} needs --features logmel')
        if (flag := asked('speed', 'noise')) and asked('prosody'):
            raise UserError(f'{flag} and --prosody exclude each other: it would change the prosody too')
        if asked('noise') and self.snr_low > self.snr_high:
            raise UserError(f'--snr_low {self.snr_low}: must not be above --snr_high {self.snr_high}')

    def unused(self) -> dict:
        """{name: why} of the settings that have no effect, given the others."""
        def get(name):
            return getattr(self, name, None)
        model, cells = get('model'), names_of(SpaceSettings, NetworkSettings)
        cells.remove('dropout')
        drawn = get('relaxation') == 'none' or model == 'genotype' and get('genotype') == RANDOM
        draws_sizes = drawn and get('space') == 'speech'
        rows = [
            (self.features in FRAMES, f'--features {self.features}', ['n_mels', 'hop_ms', 'time_pool']),
            (self.features != 'encoder', f'--features {self.features}', ['encoder', 'encoder_layers']),
            (self.features != 'frames', f'--features {self.features}', ['frames_per_s']),
            (not self.prosody, 'no --prosody', ['prosody_version']),
            (get('n_masks') == 0, '--n_masks 0', ['max_freq', 'max_time']),
            (get('copypaste') == 0, '--copypaste 0', ['copypaste_with']),
            (get('noise') == 0, '--noise 0', ['snr_low', 'snr_high']),
            (get('rnn_layers') == 0 and not draws_sizes, '--rnn_layers 0', ['rnn_channels', 'rnn_nodes', 'rnn_ops']),
            (get('order') == 1, '--order 1', ['hessian']),
            (get('alpha_split') == 'none', '--alpha_split none', ['order', 'hessian', 'alpha_lr', 'alpha_weight_decay',
                                                                          'alpha_warmup']),
            (get('relaxation') in ('softmax', 'none'), f'--relaxation {get("relaxation")}', ['sampling']),
            (get('relaxation') == 'none', '--relaxation none', ['dropout', 'candidates', 'scored_utterances'] + [
                name for name in names_of(SearchSettings) if name not in ('relaxation', 'batch_size')]),
            (get('relaxation') in ('softmax', 'sampled'), f'--relaxation {get("relaxation")}',
             ['tournament_minutes', 'tournament_cores']),
            (get('tournament_minutes') == 0, 'no --tournament_minutes', ['tournament_cores']),
            (get('relaxation') == 'none' and get('tournament_minutes') > 0, '--tournament_minutes', ['finalists']),
            (get('finalists') == 0 and get('relaxation') != 'none', '--finalists 0',
             ['band', *names_of(FinalistSettings)[1:]]),
            (get('optimizer') == 'adamw', '--optimizer adamw', ['momentum']),
            (get('patience') and get('patience') >= get('epochs') - 1, f'--epochs {get("epochs")}', ['patience']),
            (isinstance(self, SvmConfig), 'the SVM, which reads whole utterances', ['duration']),
            (isinstance(self, SvmConfig), 'the SVM, whose functionals have differences', ['deltas']),
            (get('functionals') in ('egemaps', 'compare'), f'--functionals {get("functionals")}',
             ['features', 'encoder', 'encoder_layers', 'frames_per_s', 'n_mels', 'hop_ms', 'time_pool', 'prosody',
              'prosody_version']),
            (get('functionals') in ('egemaps', 'compare') and get('normalise') == 'speaker',
             f'--functionals {get("functionals")} --normalise speaker, which normalises what enters the classifier',
             ['embedding']),
            (model == 'genotype', '--model genotype', ['params']),
            (model == 'genotype' and get('genotype') != RANDOM, '--genotype FILE, which fixes the cells',
             names_of(SpaceSettings)),
            (draws_sizes, '--space speech, which draws it',
             ['init_channels', 'layers', 'rnn_layers', 'rnn_channels']),
            (model in BASELINES, f'--model {model}', [*cells, 'aux_weight', 'drop_path_prob']),
        ]
        mine = {f.name for f in fields(self)}
        return {name: why for applies, why, names in rows if applies for name in names if name in mine}


@dataclass(frozen=True, kw_only=True)
class SearchConfig(FinalistSettings, SearchSettings, SpaceSettings, NetworkSettings, AugmentationSettings, DeviceSettings,
                   FeatureSettings, DataSettings, RunSettings, Settings):
    GROUPS = (RunSettings, DataSettings, FeatureSettings, SpaceSettings, NetworkSettings, SearchSettings, FinalistSettings,
              AugmentationSettings, DeviceSettings)

    def __post_init__(self):
        super().__post_init__()
        if self.relaxation == 'sampled' and self.partial_channels > 1:
            raise UserError(f'--partial_channels {self.partial_channels}: --relaxation sampled passes all channels; leave one '
                            'of them out')
        if self.relaxation != 'none' and self.finalists > self.candidates:
            raise UserError(f'--finalists {self.finalists}: there are only --candidates {self.candidates} to choose from')
        if self.relaxation == 'none' and not (self.finalists or self.tournament_minutes):
            raise UserError('--relaxation none trains no supernet: say how many random candidates to retrain with --finalists '
                            'or --tournament_minutes')
        if self.alpha_split == 'none' and self.relaxation != 'none' and not (
                self.relaxation == 'sampled' and self.sampling == 'uniform' and self.finalists):
            raise UserError('--alpha_split none does not train alpha, so the supernet must judge drawn candidates: say '
                            '--relaxation sampled --sampling uniform --finalists 8')
        if self.embedding == 'speaker' and self.alpha_split == 'speaker' and self.relaxation != 'none':
            raise UserError('--alpha_split speaker: with --embedding speaker alpha would be judged by speakers whom w never '
                            'hears, and who so have no moments; say --alpha_split utterance')
        if self.w_lr_min > self.w_lr:
            raise UserError(f'--w_lr_min {self.w_lr_min} is above --w_lr {self.w_lr}: the learning rate must not rise')

    @property
    def short_rung(self):
        """Whether finalists train for a part of the epochs first: not if all of them get to the last rung."""
        return bool(self.last_rung) and (self.tournament_minutes > 0 or self.finalists > self.last_rung)

    @property
    def decisions(self):
        """Whether the supernet has the choices of decisions outside the cells: see models/decisions.py."""
        return self.space == 'speech' and self.relaxation == 'sampled'


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(RetrainingSettings, ModelSettings, SpaceSettings, NetworkSettings, DevSettings, AugmentationSettings,
                    DeviceSettings, FeatureSettings, DataSettings, RunSettings, Settings):
    GROUPS = (RunSettings, ModelSettings, DataSettings, FeatureSettings, NetworkSettings, RetrainingSettings, DevSettings,
              AugmentationSettings, SpaceSettings, DeviceSettings)

    def __post_init__(self):
        super().__post_init__()
        if self.model != 'genotype' and self.genotype:
            raise UserError(f'--genotype does not apply to --model {self.model}: leave one of them out')
        if self.model in SSL and self.features not in FRAMES:
            raise UserError(f'--model {self.model} reads frames of a speech encoder: say --features encoder or frames')
        if self.model == ONE_SIZE and self.params:
            raise UserError(f'--params {self.params}: {ONE_SIZE} has one size; leave --params out')
        if self.patience and self.train_on_dev:
            raise UserError('--patience needs dev speakers, and --train_on_dev trains on them: say --no-train_on_dev or '
                            '--patience 0')


@dataclass(frozen=True, kw_only=True)
class FunctionalSettings:
    """functionals"""
    functionals: str = setting('own', 'what the SVM reads of an utterance: six functionals of each band of the features (own), '
                               'or those of openSMILE, eGeMAPSv02 (egemaps, 88) or ComParE_2016 (compare, 6,373), which need '
                               'requirements-opensmile.txt; openSMILE is free for research and education only',
                               choices=('own', 'egemaps', 'compare'))


@dataclass(frozen=True, kw_only=True)
class SvmConfig(FunctionalSettings, DevSettings, FeatureSettings, DataSettings, RunSettings, Settings):
    GROUPS = (RunSettings, DataSettings, FeatureSettings, FunctionalSettings, DevSettings)

    @property
    def model(self):
        """Its name in tables."""
        return 'svm' if self.functionals == 'own' else f'svm_{self.functionals}'


MANY = 10_000  # numbers in a flag


def parse_numbers(flag: str, text: str, low: int = 0, high: int | None = None) -> list[int]:
    """'0,1,4-6' -> [0, 1, 4, 5, 6]. UserError."""
    numbers, high_or = set(), 2 ** 32 - 1 if high is None else high
    for part in text.split(','):
        match = re.fullmatch(r'\s*(\d{1,10})(?:-(\d{1,10}))?\s*', part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or first < low or last > high_or:
            bounds = f'of {low} or more' if high is None else f'from {low} to {high}'
            raise UserError(f'--{flag} {plain(text)}: must be whole numbers {bounds}, such as 1,3 or 1-3')
        if last - first >= MANY or len(numbers) >= MANY:
            raise UserError(f'--{flag} {plain(text)}: more than {MANY:,} numbers')
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def limits(band: str | None) -> tuple[float, float]:
    """Fewest and most parameters of --band. UserError."""
    low, _, high = (band or '0-').partition('-')
    whole = re.fullmatch(r'\d{1,12}-\d{1,12}', band or '0-0', re.ASCII)
    found = (int(low), int(high) if band else math.inf) if whole else (1, 0)
    if found[0] > found[1]:
        raise UserError(f'--band {band}: must be LOW-HIGH, such as 4000-7000')
    return found


def names_of(*groups) -> list:
    """Names of the settings of these groups."""
    return [f.name for group in groups for f in fields(group)]


def pick(config, *groups) -> dict:
    """{name: value} of the settings of `config` that belong to these groups."""
    return {name: getattr(config, name) for name in names_of(*groups)}


def to_flags(settings: dict) -> list[str]:
    """Settings as words of a command line, without those that are None."""
    words = []
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(f'--{"" if value else "no-"}{name}')
        elif value is not None:
            words += [f'--{name}', str(value)]
    return words


SECTIONS = {'search': SearchConfig, 'augment': AugmentConfig, 'svm': SvmConfig}
HELP = {
    'search': ('search.py', 'Search a CNN and a sequential network jointly, and write a genotype.',
               'python search.py --name demo --config configs/demo.yaml',
               'python search.py --name mine --dataset manifest --data_path my.csv --epochs 30'),
    'augment': ('augment.py', 'Train the network of a genotype, or a hand-designed one, and test it on unseen speakers.',
                'python augment.py --name demo --config configs/demo.yaml --genotype runs/search/demo',
                'python augment.py --name gru --dataset manifest --data_path my.csv --model cnn_gru'),
    'svm': ('scripts/svm.py', 'Train and test a linear SVM on functionals of the utterances of one fold.',
            'python scripts/svm.py --name svm --dataset emodb --data_path DIR',
            'python scripts/svm.py --name svm2 --dataset manifest --data_path my.csv --fold 2'),
}


_GROUPS = [group for cls in SECTIONS.values() for group in cls.GROUPS]
_FOUND = {f.name for f in fields(FeatureSettings) if f.metadata.get('found')}
NAMES = {section: set(names_of(cls)) - {'config'} - _FOUND for section, cls in SECTIONS.items()}
# Settings of several programs: those that may stand at the top level of a settings file.
SHARED = set(names_of(*(group for group in _GROUPS if _GROUPS.count(group) > 1))) - {'config'} - _FOUND


def check(f, value):
    """UserError if the field does not allow `value`."""
    choices, low, high, off = (f.metadata.get(key) for key in ('choices', 'low', 'high', 'off'))
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value)[:60].lower(), map(str, choices), 1)
        hint = f'; did you mean {near[0]}?' if near else ''
        raise UserError(f'--{f.name} {plain(value)}: must be one of {", ".join(map(str, choices))}{hint}')
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f'--{f.name} {value}: must be a finite number')
    if low is not None and not (low <= value <= high or off and value == 0):
        raise UserError(f'--{f.name} {plain(value)}: must be {"0, or " if off else ""}from {low} to {high}')


# Defaults that a space changes. With frames the operations of CNN cells are then 'frames'.
SPACES = {'paper': {}, 'speech': dict(cnn_ops='speech', rnn_ops='speech', n_nodes=2, rnn_nodes=1)}


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

    With --features of FRAMES it lacks what the frames decide: datasets.frames.complete adds that. UserError if a flag was typed
    that has no effect on this model.
    """
    values = {**(recorded or {}), **given.values}
    space = SPACES.get(values.get('space'), {})
    if space and values.get('features') in FRAMES:
        space = {**space, 'cnn_ops': 'frames'}
    config = SECTIONS[section](**{**space, **values})
    for name, why in config.unused().items():
        if name in given.typed:
            wanted = 'say --features encoder, or ' if name.startswith('encoder') else ''
            raise UserError(f'--{name} has no effect with {why}: {wanted}leave it out')
    return config


def read_yaml(path, section: str, alone: bool = False) -> dict:
    """{name: value} of a settings file for one program: keys at the top, overridden by those under `search:` and the like.

    alone: only those under `search:` and the like. UserError.
    """
    tree = _load_yaml(path)
    if 'extends' in tree:
        base = tree.pop('extends')
        below = _load_yaml(Path(path).parent / base) if base and isinstance(base, str) else {'extends': base}
        if 'extends' in below:
            raise UserError(f'--config {path}: extends: must name one settings file, which extends no other')
        _check_keys(below, Path(path).parent / base)
        for part in SECTIONS:
            kept = {key: value for key, value in (below.get(part) or {}).items() if key not in tree}
            tree[part] = {**kept, **(tree.get(part) or {})}
        tree = {**below, **tree}
    parts = _check_keys(tree, path)
    above = {} if alone else {key: value for key, value in parts[None].items() if key in NAMES[section]}
    values = {**above, **parts[section]}
    try:
        return {name: checked(SECTIONS[section], name, value) for name, value in values.items()}
    except UserError as error:
        raise UserError(f'--config {path}: {error}') from None


def _check_keys(tree, path):
    """{section or None: {name: value}} of a settings file. UserError names the file with a key that does not belong there."""
    if 'format' in tree:
        raise UserError(f'--config {path}: this is the record of a run, not a settings file')
    parts = {None: {key: value for key, value in tree.items() if key not in SECTIONS},
             **{part: tree.get(part) or {} for part in SECTIONS}}
    for where, values in parts.items():
        for key in values:
            if key == 'overwrite':
                raise UserError(f'--config {path}: overwrite: only as a flag, --overwrite, or every run would replace another')
            if key not in (NAMES[where] if where else SHARED):
                raise UserError(f'--config {path}: {_misplaced(key, where)}')
    return parts


def _load_yaml(path):
    """Tree of a settings file. UserError."""
    try:
        tree = read_yaml_file(path, loader=_SettingsLoader)
    except UserError as error:
        raise UserError(f'--config {error}') from None
    if any(not isinstance(tree.get(part) or {}, dict) for part in SECTIONS):
        raise UserError(f'--config {path}: must contain lines "name: value"')
    return tree


def _misplaced(key, where):
    """What is wrong with a key of a settings file, and where it belongs."""
    def homes(name):
        return ' or '.join(f'{section}:' for section in SECTIONS if name in NAMES[section])
    text = str(key)[:60] if isinstance(key, str) else short(key)  # difflib takes long for a long word
    at, valid = (f'under {where}:', NAMES[where]) if where else ('at the top level', SHARED)
    if homes(key):
        return f'{short(key)} has no effect {at}; it belongs {"at the top level" if key in SHARED else f"under {homes(key)}"}'
    if near := difflib.get_close_matches(text, [*valid, *SECTIONS], 1):
        return f'unknown key {short(key)} {at}; did you mean {near[0]}?'
    if near := difflib.get_close_matches(text, sorted(set.union(*NAMES.values())), 1):
        return f'unknown key {short(key)} {at}; did you mean {near[0]}, under {homes(near[0])}?'
    return f'unknown key {short(key)} {at}; --help lists all settings'


def of_earlier(settings: dict) -> dict:
    """Settings of a run or experiment, with the prosody_version that earlier versions had, 1, if they do not tell."""
    return {'prosody_version': 1, **settings} if settings.get('prosody') else settings


def checked(cls, name: str, value):
    """`convert`, and the bounds and choices of the field too."""
    value = convert(cls, name, value)
    check(next(f for f in fields(cls) if f.name == name), value)
    return value


def convert(cls, name, value):
    """A value from a flag (text) or from YAML, as the type of the field `name` of cls. UserError."""
    kind = next(f.type for f in fields(cls) if f.name == name)
    if value is None and kind == str | None:
        return None
    target = next(t for t in (bool, int, float, str) if kind in (t, t | None))
    if target is str and isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = ','.join(re.sub(r'(?<!\\),', r'\\,', part) for part in value)  # labels: [ang, "a, b"]
    try:
        if target is bool or isinstance(value, bool):
            if target is not bool or not isinstance(value, bool):
                raise ValueError
            return value
        if not isinstance(value, int | float | str) or (target is int and isinstance(value, float)):
            raise ValueError
        value = target(value)
        if target is str and ('\0' in value or not value.isascii() and value.encode('utf-8', 'ignore').decode() != value):
            raise ValueError  # no file name, nor can it be written to config.yaml
        return value
    except (ValueError, OverflowError):
        kinds = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'text'}
        raise UserError(f'--{name}: {short(value)} is not {kinds[target]}') from None


class Parser(argparse.ArgumentParser):
    """argparse over groups of settings, whose mistakes are UserErrors. Only what is typed is returned."""

    def __init__(self, examples=(), usage=None, **kwargs):
        epilog = '\n  '.join(['examples:', *examples]) if examples else None
        usage = usage or '%(prog)s --name NAME [--config FILE] [--SETTING VALUE ...]'
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, epilog=epilog, usage=usage,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.flags = {}  # flag: (group, name)

    def add_settings(self, group, prefix='', hidden=()):
        """One flag per field of a dataclass of settings, in a section of the help that its docstring names.

        hidden: names of fields that the help leaves out.
        """
        section = self.add_argument_group(group.__doc__.partition('\n')[0])
        for f in fields(group):
            if f.metadata.get('found'):
                continue
            flag, choices = f'--{prefix}{f.name}', f.metadata.get('choices')
            default = '' if f.default in (None, '') or not isinstance(f.default, bool | int | float | str) \
                else f' (default: {f.default})'
            text = argparse.SUPPRESS if f.name in hidden else f.metadata['help'].replace('%', '%%') + default
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


AGAIN = 75  # exit code after SIGTERM and SIGUSR1: the same command with --resume continues (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # exit code after SIGINT
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def begin(section: str):
    """What a program does before its slow imports: it takes signals, and answers --help."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, end_at_once)
    answer_help(section)


def end_at_once(number, _):
    """Handler of a signal while nothing needs to be saved."""
    os.write(2, f'{os.path.basename(sys.argv[0])}: ended by {signal.Signals(number).name} before it began\n'.encode())
    os._exit(INTERRUPTED if number == signal.SIGINT else AGAIN)


def answer_help(section: str):
    """Prints the help of a program and exits, if that is what it was called for; called before slow imports."""
    if {'-h', '--help'} & set(sys.argv[1:]):
        with contextlib.suppress(UserError):  # the program itself will report it
            given(section)
