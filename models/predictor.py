"""A trained network with everything around it: from a recording to the probabilities that augment.py's test gives it."""
import copy
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from numbers import Real
from types import SimpleNamespace
from typing import NamedTuple

import joblib
import librosa
import numpy as np
import torch

import config as cf
import genotypes as gt
import utils
from config import SAMPLE_RATE, UserError
from datasets import frames, recording
from datasets.dataset import ENOUGH, SpeechDataset, scaled, shrunk, statistics
from datasets.features import MIN_SAMPLES
from datasets.utterance import Utterance
from models import speaker_norm
from models.augment_cnn import AugmentCNN
from models.baselines import make_baseline

AT_ONCE = 64  # recordings whose features are held together, fewer if they are larger than recording.HELD at
USUAL = 10  # s each
BLOCK = 1000  # frames that are normalised at once
KEYS = ('settings', 'weights', 'genotype', 'labels', 'mean', 'std')  # that every best.pt has


class Prediction(NamedTuple):
    label: str
    probabilities: dict[str, float]  # of every class


class Timeline(NamedTuple):
    """The windows of a recording, in s, and their probabilities (n_windows, n_classes); a Prediction is their mean."""
    begin: np.ndarray
    end: np.ndarray
    probabilities: np.ndarray


class Predictor:
    """Scores recordings as augment.py scored its test speakers, in float32.

    best: contents of a best.pt. The result does not depend on batch_size, nor on the recordings beside it. encoder: folder or
    name of the encoder whose frames the network reads, if it is no longer where the training found it. warn(line) is told if it
    may be another one, and what is odd about a recording. UserError.
    """

    def __init__(self, best: dict, device: str | torch.device = 'cpu', batch_size: int = 32, encoder: str | None = None,
                 warn: Callable[[str], None] = lambda line: None):
        if batch_size < 1:
            raise UserError(f'batch_size {batch_size} must be 1 or more')
        self.device, self.batch_size = utils.choose_device(device) if isinstance(device, str) else device, batch_size
        self.warn = warn
        self.net = rebuild(best).to(self.device)
        self.labels, self.mean, self.std = best['labels'], best['mean'], best['std']
        self.config = with_encoder(cf.FeatureSettings(**_known(best['settings'], cf.FeatureSettings)), encoder, warn)
        self.prior = best.get('prior')  # moments of the training speakers before --normalise speaker
        self.moments = None  # of the speaker

    @property
    def needs_speaker(self) -> bool:
        """Whether the network was trained with each speaker normalised."""
        return self.config.normalise == 'speaker'

    def of_speaker(self, recordings: Iterable[str | Utterance], warn: Callable[[str], None] = lambda line: None) -> 'Predictor':
        """A Predictor for the one speaker of these recordings; warn(line) is told if they are few. UserError."""
        if not self.needs_speaker:
            raise UserError('this network does not normalise speakers: leave --speaker_files out')
        features = _in_threads(lambda r: recording.features(self._utterance(r), self.config, self.device, warn)[0],
                               list(recordings))
        if not features:
            raise UserError('--speaker_files: there is no recording')
        n, own = len(features), statistics(features)
        if n < ENOUGH:
            if self.prior is None:
                raise UserError(f'--speaker_files: there are {n} recordings, and this network needs {ENOUGH}: its best.pt was '
                                'made before statistics of the corpus were kept in it')
            warn(f'NOTE: the speaker has {n} recordings, and {ENOUGH} are advisable: their statistics are shrunk towards '
                 'those of the training speakers')
            own = shrunk(own, n, self.prior)
        found = copy.copy(self)
        found.moments = own
        if self.net.speaker_norm is not None:
            found.net = copy.deepcopy(self.net)
            speaker_norm.adapt(found.net, self._dataset([scaled(x, own) for x in features]), self.batch_size)
        return found

    def check_speaker(self):
        """UserError if the network normalises speakers, and nothing is known of the one who is heard."""
        if self.needs_speaker and self.moments is None:
            raise UserError('this network was trained with each speaker normalised by all their recordings: name a folder with '
                            'recordings of the one speaker, --speaker_files FOLDER or Predictor.of_speaker(files)')

    def __call__(self, audio: str | os.PathLike | np.ndarray, rate: int = SAMPLE_RATE) -> Prediction:
        """audio: a file, or a wave of floats (n_samples,) or (n_samples, n_channels) of this rate. UserError."""
        return self._prediction(audio, self.probabilities([self.features(audio, rate)[0]])[0])

    def many(self, recordings: Iterable[str | os.PathLike | Utterance],
             failed: Callable[[UserError], None] | None = None) -> Iterator[tuple]:
        """Yields (recording, Prediction) in the order of recordings, in constant memory.

        failed(error) is told of a file that cannot be used, which is then left out; without it the error is raised.
        """
        def attempt(audio):
            try:
                return self.features(audio)[0]
            except UserError as error:
                return error
        recordings = list(recordings)
        n_bytes = 2 * self.config.n_rows * self.config.frame_rate * USUAL
        at_once = max(1, min(AT_ONCE, int(recording.HELD / n_bytes)))
        for i in range(0, len(recordings), at_once):
            chunk = recordings[i:i + at_once]
            good = []
            for audio, found in zip(chunk, _in_threads(attempt, chunk)):
                if not isinstance(found, UserError):
                    good.append((audio, found))
                elif failed is None:
                    raise found
                else:
                    failed(found)
            for (audio, _), p in zip(good, self.probabilities([x for _, x in good]) if good else ()):
                try:
                    found = self._prediction(audio, p)
                except UserError as error:
                    if failed is None:
                        raise
                    failed(error)
                else:
                    yield audio, found

    def timeline(self, audio: str | os.PathLike | np.ndarray, rate: int = SAMPLE_RATE) -> Timeline:
        """The windows whose mean a Prediction is. UserError."""
        x, skipped = self.features(audio, rate)
        data = self._dataset([x])
        logits = []

        def forward(*X):
            logits.append(self.net(*X)[0])
            return logits[-1]
        data.score(forward, self.batch_size)
        probabilities = torch.softmax(torch.cat(logits).float(), dim=1).cpu().numpy()
        frames = data.window_start.numpy()[:, None] + [0, data.n_frames]  # (n_windows, 2)
        begin, end = skipped + frames.clip(0, x.shape[1]).T / self.config.frame_rate
        return Timeline(begin, end, probabilities)

    def features(self, audio: str | os.PathLike | Utterance | np.ndarray,
                 rate: int = SAMPLE_RATE) -> tuple[np.ndarray, float]:
        """Features (F, T) float16 as the network's set would hold them, and the s trimmed off the beginning. UserError."""
        self.check_speaker()
        if isinstance(audio, str | os.PathLike | Utterance):
            x, skipped = recording.features(self._utterance(audio), self.config, self.device, self.warn)
        elif self.config.features == 'frames':
            raise UserError('this network reads frames, not waves: name their .npy file')
        else:
            x, skipped = recording.of_wave(_wave(audio, rate), self.config, self.device)
        for i in range(0, x.shape[1], BLOCK) if self.needs_speaker else ():
            x[:, i:i + BLOCK] = scaled(x[:, i:i + BLOCK], self.moments)
        return x, skipped

    def probabilities(self, features: list[np.ndarray]) -> np.ndarray:
        """(n, n_classes) of the results of `features`."""
        if len(features) > 1 and any(isinstance(x, np.memmap) for x in features):  # together they would be read whole
            return np.concatenate([self.probabilities([x]) for x in features])
        return self._dataset(features).score(lambda *X: self.net(*X)[0], self.batch_size).cpu().numpy()

    def _utterance(self, audio):
        if isinstance(audio, Utterance):
            return audio
        path = os.fspath(audio)
        return Utterance(path, '', '', **({'frames': path} if self.config.features == 'frames' else {}))

    def _dataset(self, features):
        nobody = [Utterance('', '', '')] * len(features)  # one speaker, so that `adapt` knows all of them
        return SpeechDataset(nobody, features, [0] * len(features), self.mean, self.std, self.config.n_frames, self.device,
                             not isinstance(features[0], np.memmap), **self.config.inputs)

    def _prediction(self, audio, p):
        """The Prediction of probabilities p (n_classes,). UserError."""
        if not np.isfinite(p).all():
            where = 'the wave' if isinstance(audio, np.ndarray) else self._utterance(audio).path
            raise UserError(f'{where}: the network overflows, since the features are far from all that it was trained on')
        return Prediction(self.labels[p.argmax()], dict(zip(self.labels, p.tolist())))


def _in_threads(function, items) -> list:
    """[function(item) for each item], side by side."""
    if len(items) < 2:
        return [function(item) for item in items]
    n_threads = torch.get_num_threads()
    try:  # torch works with one thread in each of ours, as in datasets.features
        with ThreadPoolExecutor(min(8, joblib.cpu_count()), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(n_threads)


def _wave(audio, rate):
    """float32 (n_samples,) at SAMPLE_RATE. UserError."""
    if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < rate < np.inf:
        raise UserError(f'rate {rate!r} must be a positive number of Hz')
    wave = np.asarray(audio)
    if wave.dtype.kind != 'f' or wave.ndim not in (1, 2):
        raise UserError(f'a wave must be floats between -1 and 1, (n_samples,) or (n_samples, n_channels), not {wave.dtype} '
                        f'{wave.shape}')
    wave = wave.astype(np.float32)
    wave = wave.mean(axis=1) if wave.ndim == 2 else wave
    if not np.isfinite(wave).all():
        raise UserError('the wave contains samples that are not finite numbers')
    if len(wave) * SAMPLE_RATE / rate < MIN_SAMPLES:
        raise UserError(f'the wave has {len(wave)} samples at {rate} Hz; {MIN_SAMPLES / SAMPLE_RATE:.3f} s are needed')
    return wave if rate == SAMPLE_RATE else librosa.resample(wave, orig_sr=rate, target_sr=SAMPLE_RATE)


def with_encoder(config: cf.FeatureSettings, encoder: str | None, warn: Callable[[str], None]) -> cf.FeatureSettings:
    """These settings of a training with the encoder, found here under its recorded name or as `encoder`.

    UserError if it is another one; warn(line) is told if that cannot be known.
    """
    if config.features != 'encoder':
        if encoder:
            raise UserError(f'--encoder has no effect: this network reads {config.features}; leave it out')
        return config
    here = replace(config, encoder=encoder or config.encoder)
    try:
        found = frames.found(SimpleNamespace(**vars(here), cache=None))
    except UserError as error:
        if encoder or not str(error).startswith('--encoder'):
            raise
        raise UserError(f'{error}; the network needs it: if it lies elsewhere, say --encoder FOLDER') from None
    here, recorded = replace(here, **found), config.encoder_revision
    if here.frame_shape != config.frame_shape or here.frames_per_s != config.frames_per_s:
        raise UserError(f'{here.encoder} gives frames of {here.frame_shape}, and the network was trained on '
                        f'{config.frame_shape} of {config.encoder}: name the folder of that one, --encoder FOLDER')
    if recorded not in (here.encoder_revision, os.path.basename(os.path.realpath(here.encoder))):  # or a snapshot of the hub
        what = f'{here.encoder} is revision {here.encoder_revision}, and the network was trained with revision {recorded}'
        if len(here.encoder_revision) == len(recorded):
            raise UserError(f'{what} of {config.encoder}: name the folder of that one, --encoder FOLDER')
        warn(f'NOTE: {what}. A folder and the hub name revisions in different ways: be sure that they are the same encoder')
    return here


def load(run: str | os.PathLike, device: str | torch.device = 'cpu', batch_size: int = 32,
         encoder: str | None = None, warn: Callable[[str], None] = lambda line: None) -> Predictor:
    """The Predictor of a folder of augment.py or its best.pt. UserError if there is none, or it is damaged."""
    try:
        return Predictor(read_best(run), device, batch_size, encoder, warn)
    except ValueError as error:
        raise UserError(f'{best_file(run)}: {error}') from None


def best_file(run: str | os.PathLike) -> str:
    """Path of the best.pt of a run, which may be named itself."""
    return os.path.join(run, 'best.pt') if os.path.isdir(run) else os.fspath(run)


def read_best(run: str | os.PathLike) -> dict:
    """Contents of a best.pt, which anyone may have written: nothing in it is executed. UserError."""
    path = best_file(run)
    if not os.path.isfile(path):
        raise UserError(f'{path}: no such file; name a folder of augment.py that has finished an epoch, or its best.pt')
    best = utils.read_torch(path)
    try:
        _check(best)
    except ValueError as error:
        raise UserError(f'{path}: {error}') from None
    return best


def _check(best):
    """ValueError if this is not the content of a best.pt. Weights are checked by `rebuild`."""
    if not isinstance(best, dict) or any(key not in best for key in KEYS):
        raise ValueError('not a best.pt of augment.py')
    if not isinstance(version := best.get('format', 1), int) or version > utils.FORMAT:
        raise ValueError('made by a newer version of emoDARTS: update')
    labels = best['labels']
    if not isinstance(labels, list) or len(labels) < 2 or not all(isinstance(label, str) for label in labels) \
            or len(set(labels)) < len(labels):
        raise ValueError('labels must be two or more different names')
    if not isinstance(best['settings'], dict) or not isinstance(best['weights'], dict) \
            or not isinstance(best['genotype'], str | None) or not isinstance(best.get('auxiliary', False), bool):
        raise ValueError('settings and weights must be tables, genotype a text, auxiliary true or false')
    config = cf.FeatureSettings(**_known(best['settings'], cf.FeatureSettings))
    if config.features in cf.FRAMES and not re.fullmatch(r'[1-9]\d{0,3}x[1-9]\d{0,5}', config.frame_shape, re.ASCII):
        raise ValueError(f'frame_shape {cf.short(config.frame_shape)} must be LAYERSxCHANNELS')
    n_rows = config.n_rows + config.inputs['n_prosody']
    pairs = [(best['mean'], best['std']), *([best['prior']] if best.get('prior') is not None else [])]
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(
                is_plain(x) and x.dtype == torch.float32 and x.shape == (n_rows, 1) and x.isfinite().all() for x in pair) \
                or not (pair[1] > 0).all():
            raise ValueError(f'mean and std must be finite float32 tensors ({n_rows}, 1), and std positive')
    heard = best.get('heard', [])
    if not isinstance(heard, list) or not all(
            isinstance(entry, dict) and isinstance(entry.get('speakers'), list)
            and all(isinstance(name, str) for name in (entry.get('dataset'), entry.get('corpus'), *entry['speakers']))
            for entry in heard) or not isinstance(best.get('heard_all', True), bool):
        raise ValueError('heard must list {dataset, corpus, speakers}, and heard_all be true or false')


def is_plain(x) -> bool:
    """Whether this is a dense tensor in memory, which all operations take: a file may hold others."""
    return type(x) is torch.Tensor and x.layout is torch.strided and x.device.type == 'cpu' and not x.is_quantized


def _known(settings, *groups) -> dict:
    """The settings of these groups, checked. ValueError."""
    try:
        return {name: cf.checked(cf.AugmentConfig, name, value) for name in cf.names_of(*groups)
                if (value := utils.recorded(settings, name)) is not None}
    except UserError as error:
        raise ValueError(str(error)) from None


def rebuild(best: dict) -> torch.nn.Module:
    """The trained network in eval mode, from the contents of a best.pt of this or an earlier version.

    ValueError if the weights are not those of the network that its settings describe.
    """
    net, weights = skeleton(best, len(best['labels'])), best['weights']
    expected = net.state_dict()
    if weights.keys() != expected.keys() or any(
            not is_plain(x) or x.shape != expected[name].shape or x.dtype != expected[name].dtype
            for name, x in weights.items()):
        raise ValueError('the weights are not those of the network that the settings describe')
    if not all(x.isfinite().all() for x in weights.values()):
        raise ValueError('weights are not finite numbers')
    net.load_state_dict(weights, assign=True)
    net.requires_grad_(False)
    net.pools_padding = best.get('format', 1) < 2
    return net.eval()


def skeleton(best: dict, n_classes: int) -> torch.nn.Module:
    """The network that a best.pt describes, with so many classes and without memory for its weights. ValueError.

    Its widths are those of the trained network: --params decides them with that one's classes.
    """
    settings = _known(best['settings'], cf.NetworkSettings, cf.FeatureSettings, cf.ModelSettings)
    try:
        config = cf.AugmentConfig(name='x', **settings)
    except UserError as error:  # settings that exclude each other
        raise ValueError(str(error)) from None
    sums = best['weights'].get('speaker_norm.sums')
    n_speakers = len(sums) if is_plain(sums) and sums.ndim == 2 else 0
    with torch.device('meta'):
        if best['genotype']:
            net = AugmentCNN(None, C=config.init_channels, n_classes=n_classes, n_layers=config.layers,
                             auxiliary=bool(best.get('auxiliary')), genotype=gt.from_str(best['genotype']),
                             stem_multiplier=config.stem_multiplier, n_layers_rnn=config.rnn_layers,
                             C_rnn=config.rnn_channels, **config.inputs)
        else:
            net = make_baseline(config.model, config.height, config.n_frames, n_classes, config.dropout, config.params,
                                **config.inputs, sized_for=len(best['labels']))
        return speaker_norm.added(net, config, torch.zeros(n_speakers))


def tells_all(best: dict) -> bool:
    """Whether a best.pt names all speakers that its network was trained on."""
    return 'heard' in best and best.get('heard_all', True)


def digest(best: dict) -> str:
    """Of the weights in a best.pt, of their network, and of whom that was trained on."""
    names = sorted(best['weights'])
    return utils.digest_of([best['genotype'], best['labels'], best.get('heard'), tells_all(best), names,
                            utils.digest_of_tensors(best['weights'][name] for name in names)])


def head(best: dict) -> set[str]:
    """Names of the weights whose shape depends on the number of classes."""
    n = len(best['labels'])
    a, b = (skeleton(best, size).state_dict() for size in (n, n + 1))
    return {name for name, x in a.items() if x.shape != b[name].shape}


def of_same_width(config: cf.AugmentConfig, best: dict, n_classes: int) -> cf.AugmentConfig:
    """The settings, with the --params that give a network for n_classes the width of the trained one, if both had the same.

    With another number of classes another width may be nearest to --params, and no weight of that one would fit.
    """
    trained = settings_of(best)
    if not config.params or n_classes == len(best['labels']) \
            or (config.model, config.params) != (trained.get('model'), trained.get('params')):
        return config
    net = skeleton(best, n_classes)
    n_params = sum(p.numel() for name, p in net.named_parameters() if not name.startswith('speaker_norm.'))
    return replace(config, params=n_params)


def settings_of(best: dict) -> dict:
    """The settings of AugmentConfig that describe the network and its features. ValueError."""
    found = _known(best['settings'], cf.NetworkSettings, cf.FeatureSettings, cf.ModelSettings)
    found.pop('dropout', None)
    return {**found, 'genotype': best['genotype']} if best['genotype'] else found


def start_from(net: torch.nn.Module, best: dict, labels: list[str], genotype: gt.Genotype | None) -> str:
    """Gives `net` the trained weights, but for the classifier if the classes differ. Returns what was done, in words.

    genotype: of `net`; None for a hand-designed network. UserError if the networks differ in more than the classifier.
    """
    if (genotype and gt.to_str(genotype)) != (best['genotype'] and gt.to_str(gt.from_str(best['genotype']))):
        raise UserError('--init: the trained network has another genotype, or none: leave --genotype and --model out to take '
                        'that one')
    own, anew = net.state_dict(), []
    other_classes, classifier = labels != best['labels'], head(best)
    if ('mix.scores' in own) != ('mix.scores' in best['weights']):
        raise UserError('--init: of this network and the trained one, one mixes the layers of an encoder and one does not')
    for name, x in own.items():
        there = best['weights'].get(name)
        if name.startswith('speaker_norm.') or name in classifier and other_classes \
                or there is None and name.startswith('aux_head.'):
            anew.append(name)
        elif there is not None and not there.isfinite().all():
            raise ValueError(f'{name} is not finite')
        elif there is None or there.shape != x.shape:
            raise UserError(f'--init: {name} of this network is not in the trained one, which must have the same genotype or '
                            'model, sizes and features: leave these flags out to take them from there')
        else:
            x.detach().copy_(there)  # a state_dict shares memory with its network
    why = f', because the classes were {", ".join(best["labels"])}' if other_classes else ''
    return f'took {len(own) - len(anew)} of {len(own)} weights; made anew: {", ".join(anew) or "none"}{why}'
