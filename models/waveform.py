"""A trained network as one module that torch.export and ONNX can hold: waveform in and probabilities out, or frames in.

It computes what models/predictor.py does. torch.export cannot cut a wave at a place that depends on its samples: what trimming
removes is masked instead.
"""
import copy
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchaudio
from torch import Tensor

import config as cf
from config import SAMPLE_RATE, UserError
from datasets import encoders, prosody
from datasets.dataset import Inputs, with_differences
from datasets.features import FLOOR, MIN_SAMPLES, N_FFT, TRIM_FRAME, TRIM_HOP, WIN_LENGTH, mel_spectrogram
from models.predictor import Predictor

PIECE = encoders.PIECE * SAMPLE_RATE  # samples that an exported encoder reads at once
SHORTEST = SAMPLE_RATE // 10  # samples, more than one frame of any encoder that is known
MIN_FRAMES = 2  # of a recording; torch.export would fix a number that may be 1
QUIETEST = 1e-5  # amplitude below which librosa.amplitude_to_db does not go
KNOWN = {'features', 'n_mels', 'hop_ms', 'time_pool', 'trim_db', 'normalise', 'embedding', 'prosody',
         'prosody_version', 'deltas', 'duration'}  # settings that this module computes


def takes_speaker(predictor: Predictor) -> bool:
    """Whether the speaker can be an input of the exported network: with --normalise speaker, but not --embedding speaker too.

    The embedding of a speaker is inside of the network, so nobody could compute its moments.
    """
    return predictor.needs_speaker and predictor.net.speaker_norm is None


def whose(predictor: Predictor) -> str:
    """The speaker whom the predictor knows, in words."""
    if predictor.moments is predictor.prior:
        return 'a voice of which nothing is known (the average of the training speakers)'
    return 'the one whose recordings were given, and no other'


class Standardised(nn.Module):
    """What a speaker's features, or embedding, are when that speaker is fixed: (x - mean) / std."""

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer('mean', mean.clone())
        self.register_buffer('std', std.clone())

    def forward(self, x: Tensor, speaker: Tensor | None = None) -> Tensor:
        return (x - self.mean) / self.std


class Frames(nn.Module):
    """Frames (1, D, T), or (1, L, D, T) of L layers, float32 -> probabilities (1, n_classes).

    A network that `takes_speaker` also takes the mean and deviation of the speaker's features, (F, 1) each. Any other that
    normalises speakers, and with `fixed` all of them, are for the predictor's speaker. UserError if it has none.
    """

    def __init__(self, predictor: Predictor, fixed: bool = False):
        super().__init__()
        fixed = predictor.needs_speaker and (fixed or not takes_speaker(predictor))
        if fixed:
            predictor.check_speaker()
        self.config, self.net = predictor.config, predictor.net
        self.register_buffer('mean', predictor.mean)
        self.register_buffer('std', predictor.std)
        self.features_of_speaker = Standardised(*predictor.moments) if fixed else None
        if predictor.net.speaker_norm is not None:
            norm = predictor.net.speaker_norm
            self.net = copy.deepcopy(predictor.net)
            self.net.speaker_norm = Standardised(*(norm.corpus() if norm.adapted is None else norm.adapted))

    def forward(self, frames: Tensor, speaker_mean: Tensor | None = None, speaker_std: Tensor | None = None) -> Tensor:
        x = torch.cat(frames[0].unbind()) if frames.ndim > 3 else frames[0]  # (n_rows, T)
        x = x.half().float()  # rounded as in the cache
        return self.scored(x, torch.full((), x.shape[1], device=x.device), speaker_mean, speaker_std)

    def scored(self, x: Tensor, n_frames: Tensor, speaker_mean: Tensor | None, speaker_std: Tensor | None) -> Tensor:
        """Features (F, T), of which n_frames exist -> the mean of the probabilities of their windows, (1, n_classes)."""
        if speaker_mean is not None:
            x = ((x - speaker_mean) / speaker_std).half().float()
        if self.features_of_speaker is not None:
            x = self.features_of_speaker(x).half().float()
        X, there = self.windows(x, n_frames)
        p = torch.softmax(self.net(*X)[0], dim=1)
        p = torch.where(there[:, None], p, 0.).sum(dim=0, keepdim=True)
        return p / p.sum()

    def windows(self, x: Tensor, n_frames: Tensor) -> tuple[Inputs, Tensor]:
        """Windows as SpeechDataset scores them, and which of the N windows exist."""
        size, T = self.config.n_frames, x.shape[1]
        n_windows = torch.div(n_frames + size - 1, size, rounding_mode='floor')
        # One more window than there is, and its number as a plain one: torch.export would fix a number that may be 1, and
        # cannot calculate with one that depends on the number of samples.
        n = (n_windows + 1).item()
        torch._check(n >= 2)
        i = torch.arange(n, device=x.device)
        there, i = i < n_windows, torch.minimum(i, n_windows - 1)
        room = n_frames - size
        spread = (i.double() * (room.double() / (n_windows - 1).clamp_min(1).double())).round().long()
        centred = torch.div(room, 2, rounding_mode='floor')
        start = torch.where(n_windows > 1, spread, centred)
        t = start[:, None] + torch.arange(size, device=x.device)
        valid = (t >= 0) & (t < n_frames)
        x = x[:, t.clamp(0, T - 1)]  # (F, N, size)
        x = ((x - self.mean[:, :, None]) / self.std[:, :, None]).masked_fill(~valid, 0.)
        x, rows = x.transpose(0, 1), None  # (N, F, size)
        if self.config.frames:
            shape = frames_shape(self.config)
            x = x.unflatten(1, shape if len(shape) > 1 else (*shape, 1))
        else:
            n_rows = self.config.n_rows
            x, rows = x[:, None, :n_rows], x[:, n_rows:] if self.config.prosody else None
            x = with_differences(x, valid) if self.config.deltas else x
        return Inputs(x, valid, rows), there


class Waveform(Frames):
    """(1, n_samples) float32 at SAMPLE_RATE -> probabilities (1, n_classes); n_samples must be MIN_SAMPLES or more.

    UserError if the features are of a kind that this module does not compute.
    """

    def __init__(self, predictor: Predictor, fixed: bool = False):
        super().__init__(predictor, fixed)
        defaults = cf.FeatureSettings()
        for name, value in cf.pick(self.config, cf.FeatureSettings).items():
            if name not in KNOWN and value != getattr(defaults, name):
                flag = f'--{name}' if value is True else f'--{name} {value}'
                raise UserError(f'a network trained with {flag} cannot be exported; scripts/predict.py runs it')
        config = self.config
        taps = torch.arange(WIN_LENGTH, dtype=torch.float64)
        bins = torch.arange(N_FFT // 2 + 1, dtype=torch.float64)
        phase = 2 * torch.pi * bins[:, None] * taps / N_FFT
        window = torch.hann_window(WIN_LENGTH, dtype=torch.float64)
        self.register_buffer('dft', torch.cat([phase.cos(), phase.sin()]).mul(window)[:, None].float())  # (2 n_bins, 1, taps)
        self.register_buffer('mel', mel_spectrogram(config.n_mels, config.hop_length).mel_scale.fb.T.clone())  # (F, n_bins)
        dct = torchaudio.functional.create_dct(config.n_mels, config.n_mels, 'ortho').T if config.features == 'mfcc' else None
        self.register_buffer('dct', dct)
        self.prosody = Prosody(config) if config.prosody else None

    def forward(self, waveform: Tensor, speaker_mean: Tensor | None = None, speaker_std: Tensor | None = None) -> Tensor:
        return self.scored(*self.features(waveform[0]), speaker_mean, speaker_std)

    def features(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """(n_samples,) -> (F, T) rounded to float16 as in the cache, and how many of the T frames exist."""
        hop, pool, n = self.config.hop_length, self.config.time_pool, wave.shape[0]
        first, length = self.trimmed(wave)
        padded = reflected(wave, first, length, torch.arange(n + WIN_LENGTH, device=wave.device) - WIN_LENGTH // 2)
        re, im = F.conv1d(padded[None, None], self.dft, stride=hop)[0].chunk(2)  # the short-time Fourier transform
        x = torch.log(self.mel @ (re.square() + im.square()) + FLOOR)  # (F, T)
        if self.dct is not None:
            x = self.dct @ x
        n_frames = 1 + length // hop
        if pool > 1:
            T = n // hop + 1
            x = torch.where(torch.arange(T, device=x.device) < n_frames, x, -torch.inf)
            T_pooled = (T + pool - 1) // pool
            x = F.pad(x, (0, T_pooled * pool - T), value=-torch.inf)
            x = F.max_pool2d(x[None], (1, pool))[0]
            n_frames = (n_frames + pool - 1) // pool
        if self.prosody is not None:
            x = torch.cat([x, self.prosody(wave, first, length)])
        return x.half().float(), n_frames

    def trimmed(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """The first sample that trimming keeps, and how many it keeps; as datasets.features.trimmed."""
        n = wave.shape[0]
        end = torch.full((), n, dtype=torch.int64, device=wave.device)
        if not self.config.trim_db:
            return torch.zeros_like(end), end
        padded = F.pad(wave.square(), (TRIM_FRAME // 2, TRIM_FRAME // 2))[None, None]
        sums = F.conv1d(padded, torch.ones(1, 1, TRIM_FRAME, device=wave.device), stride=TRIM_HOP).flatten()
        level = 20. * torch.log10((sums / TRIM_FRAME).sqrt().clamp_min(QUIETEST))  # dB
        loud = level > level.amax(dim=0) - self.config.trim_db
        k = torch.arange(n // TRIM_HOP + 1, device=wave.device)
        first = torch.where(loud, k, n).amin(dim=0) * TRIM_HOP
        last = torch.minimum(end, (torch.where(loud, k, -1).amax(dim=0) + 1) * TRIM_HOP)
        middle = torch.div(first + last - MIN_SAMPLES, 2, rounding_mode='floor')
        first = torch.minimum(torch.minimum(first, middle), end - MIN_SAMPLES).clamp_min(0)
        return first, torch.minimum(end, torch.maximum(last, first + MIN_SAMPLES)) - first


def reflected(wave: Tensor, first: Tensor, length: Tensor, i: Tensor) -> Tensor:
    """Samples i of the part of a wave (n_samples,) that trimming keeps, which is reflected at its beginning and at its end."""
    i = i.abs()
    i = torch.where(i < length, i, 2 * (length - 1) - i)
    return wave[(first + i).clamp(0, wave.shape[0] - 1)]


class Prosody(nn.Module):
    """datasets.prosody.extract of the part of a wave that trimming keeps. Its Fourier transforms are products with matrices.

    (n_samples,), its first sample, its number of samples -> (n_prosody, T). Frames beyond its end have no meaning.
    """

    def __init__(self, config: cf.FeatureSettings):
        super().__init__()
        self.hop, self.pool, self.version = config.hop_length, config.time_pool, config.prosody_version
        window, window_autocorrelation, mel = prosody.constants()
        taps, bins = (torch.arange(n, dtype=torch.float64) for n in (prosody.FRAME, prosody.N_FFT // 2 + 1))
        phase = 2 * torch.pi * taps[:, None] * bins / prosody.N_FFT
        both = torch.cat([phase.cos(), phase.sin()], dim=1)  # (FRAME, 2 n_bins)
        self.register_buffer('dft', (both * window[:, None]).float())
        lags = prosody.LAGS[1] + 2  # from 0, and one more than the longest
        twice = torch.where((bins == 0) | (bins == bins[-1]), 1., 2.)
        self.register_buffer('inverse', (phase[:lags].cos() * twice / prosody.N_FFT).T.float())  # (n_bins, lags)
        self.register_buffer('of_window', window_autocorrelation)
        self.register_buffer('mel', mel)

    def forward(self, wave: Tensor, first: Tensor, length: Tensor) -> Tensor:
        T = wave.shape[0] // self.hop + 1
        t = torch.arange(T, device=wave.device)
        taps = torch.arange(prosody.FRAME, device=wave.device) - prosody.FRAME // 2
        frames = reflected(wave, first, length, t[:, None] * self.hop + taps)  # (T, FRAME)
        re, im = ((frames - frames.mean(dim=1, keepdim=True)) @ self.dft).chunk(2, dim=1)
        spectrum = re.square() + im.square()
        n_frames = 1 + length // self.hop
        exists = (t < n_frames).float()
        x = prosody.of_frames(frames, spectrum, spectrum @ self.inverse, self.of_window, self.mel, self.hop, self.version,
                              exists)
        if self.pool > 1:  # the mean of those that exist
            room = (T + self.pool - 1) // self.pool * self.pool - T
            x, share = (F.avg_pool1d(F.pad(y[None], (0, room)), self.pool)[0] for y in (x * exists, exists[None]))
            x, n_frames = x / share.clamp_min(1. / self.pool), (n_frames + self.pool - 1) // self.pool
        t = torch.arange(x.shape[1], device=wave.device)
        ahead, behind = torch.minimum(t + 1, n_frames - 1), (t - 1).clamp_min(0)
        return torch.cat([x, (x[:, ahead] - x[:, behind]) / 2])


def exported(predictor: Predictor, fixed: bool = False) -> torch.export.ExportedProgram:
    """The Waveform of a predictor, or its Frames, for recordings of any length. UserError if it cannot be exported.

    fixed: the predictor's speaker is inside, and no input.
    """
    config = predictor.config
    if config.frames:
        module, size = Frames(predictor, fixed), math.ceil(2.5 * config.n_frames) + 1
        arguments = [torch.randn(1, *frames_shape(config), size)]
        shapes = [{arguments[0].ndim - 1: torch.export.Dim('n_frames', min=MIN_FRAMES)}]
    else:
        module = Waveform(predictor, fixed)
        arguments = [torch.randn(1, round(2.5 * config.duration * SAMPLE_RATE) + N_FFT)]
        shapes = [{1: torch.export.Dim('n_samples', min=MIN_SAMPLES)}]
    if takes_speaker(predictor) and not fixed:
        # Tensors of their own: export would take the module's mean and std for the inputs if they were the same objects.
        arguments += [torch.zeros_like(predictor.mean), torch.ones_like(predictor.std)]
        shapes += [None, None]
    with torch.no_grad():
        return torch.export.export(module.eval(), tuple(arguments), dynamic_shapes=tuple(shapes))


def bands(config: cf.FeatureSettings) -> str:
    """The rows of a recording's features, in words."""
    more = ', differences' * config.deltas + ', prosody' * config.prosody
    return f'{config.features}, {config.n_mels} bands{more}'


def frames_shape(config: cf.FeatureSettings) -> tuple[int, ...]:
    """(D,), or (L, D) of several layers: the frames of a recording but for their number."""
    n_layers, D = config.frames
    return (n_layers, D) if n_layers > 1 else (D,)


class EncoderFrames(nn.Module):
    """Waveform (1, n_samples) at SAMPLE_RATE -> the frames that the network of a predictor reads, as Frames takes them.

    UserError if this module does not compute what the encoder's feature extractor does.
    """

    def __init__(self, config: cf.FeatureSettings):
        super().__init__()
        encoder = encoders.of(config)
        if encoder.facts.whisper or encoder.facts.rate != SAMPLE_RATE:
            what = 'a spectrogram' if encoder.facts.whisper else f'{encoder.facts.rate} Hz'
            raise UserError(f'{config.encoder} reads {what}')
        self.model, self.layers, self.mean = encoder.model, encoder.layers, encoder.mean
        self.normalises = getattr(encoder.extractor, 'do_normalize', False)

    def forward(self, waveform: Tensor) -> Tensor:
        if self.normalises:
            variance, mean = torch.var_mean(waveform, dim=1, correction=0, keepdim=True)
            waveform = (waveform - mean) / (variance + 1e-7).sqrt()
        states = self.model(waveform, output_hidden_states=True).hidden_states  # (1, T, D) each
        x = torch.stack([states[layer] for layer in self.layers], dim=1)  # (1, L, T, D)
        x = x.mean(dim=1) if self.mean else x[:, 0] if len(self.layers) == 1 else x
        return x.transpose(-1, -2)


def exported_encoder(config: cf.FeatureSettings) -> torch.export.ExportedProgram:
    """The EncoderFrames of a network, for waves of up to PIECE samples. UserError if it cannot be exported."""
    module = EncoderFrames(config).eval()
    n_samples = torch.export.Dim('n_samples', min=SHORTEST, max=PIECE)
    try:
        with torch.no_grad():
            return torch.export.export(module, (torch.randn(1, 2 * SAMPLE_RATE),), dynamic_shapes=({1: n_samples},),
                                       prefer_deferred_runtime_asserts_over_guards=True)
    except Exception as error:  # anything that the code of a model may raise
        raise UserError(cf.one_line(error, 150)) from None


def for_onnx(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without operations that have no counterpart in ONNX."""
    aten = torch.ops.aten
    means = (aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default)
    maxima = (aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default)
    return program.run_decompositions({**dict.fromkeys(means, lambda x, size: _pooled(x, size, torch.mean)),
                                       **dict.fromkeys(maxima, _max_pooled)})


def _max_pooled(x, size):
    y = _pooled(x, size, torch.amax)
    return y, torch.zeros_like(y, dtype=torch.int64)  # nothing here reads the indices


def _pooled(x, size, reduce):
    """Adaptive pooling of the last axes: cell i of m reads positions floor(i n / m) to ceil((i + 1) n / m)."""
    for axis, m in zip(range(-len(size), 0), size):
        n = x.shape[axis]
        if n != m:
            cells = [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
            x = torch.cat([reduce(x.narrow(axis, a, b - a), dim=axis, keepdim=True) for a, b in cells], dim=axis)
    return x
