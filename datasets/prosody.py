"""Prosody of a recording, frame by frame, from torch operations alone: pitch, voicing, loudness, spectral flux, harmonicity.

Pitch is the highest peak of the autocorrelation (Boersma 1993, "Accurate short-term analysis of the fundamental frequency
and the harmonics-to-noise ratio"): that of the windowed frame, divided by that of the window. There is no tracking over
time; frames that are not voiced get the pitch of voiced frames near them.

Version 1, which earlier networks read, also took the slope at lag 0 and ripples on it for peaks: frames with nothing but
rumble were voiced at about 500 Hz. A constant offset counted as loudness.
"""
import math
from functools import cache

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

from config import SAMPLE_RATE

# Whoever changes these numbers, or the arithmetic below, adds a config.prosody_version: it tells cached prosody apart.
FRAME = 1_024  # samples (64 ms): three periods of 50 Hz
N_FFT = 2 * FRAME  # the autocorrelation does not wrap around
F0_MIN, F0_MAX = 60., 500.  # Hz
LAGS = math.ceil(SAMPLE_RATE / F0_MAX), math.floor(SAMPLE_RATE / F0_MIN)  # samples, shortest and longest period
OCTAVE_COST = .02  # that a peak loses with every octave of its lag: of two equal peaks the shorter lag wins
SILENCE = 1e-4  # root of the mean square, full scale 1, added to the energy: below it nothing is voiced
RISE = .2  # of a peak above the lowest point between lag 0 and it
VOICED, SLOPE = .5, 10.  # height of a peak that is voiced with probability 1/2; steepness of the logistic curve there
NEAR = .2  # s around a frame in which voiced frames lend it their pitch
N_MELS = 40  # bands of the spectral flux
FLOOR = 1e-6  # power added before a logarithm


@cache
def constants():
    """Window (FRAME,), autocorrelation of the window (FRAME,), and mel filters (N_FFT // 2 + 1, N_MELS)."""
    window = torch.hann_window(FRAME)
    own = torch.fft.irfft(torch.fft.rfft(window, N_FFT).abs().square())[:FRAME]
    mel = torchaudio.functional.melscale_fbanks(N_FFT // 2 + 1, 20., SAMPLE_RATE / 2, N_MELS, SAMPLE_RATE)
    return window, own / own[0], mel


def extract(wave: Tensor, hop_length: int, time_pool: int, version: int) -> Tensor:
    """Wave (n_samples,), at SAMPLE_RATE and longer than FRAME / 2 -> the rows of config.PROSODY, (10, n_frames).

    Frames are those of datasets.features.extract; of time_pool frames the mean is kept. version: config.prosody_version.
    """
    window, window_autocorrelation, mel = constants()
    frames = F.pad(wave[None], (FRAME // 2, FRAME // 2), mode='reflect')[0].unfold(0, FRAME, hop_length)  # (n, FRAME)
    spectrum = torch.fft.rfft((frames - frames.mean(dim=1, keepdim=True)) * window, N_FFT).abs().square()
    rows = of_frames(frames, spectrum, torch.fft.irfft(spectrum)[:, :FRAME], window_autocorrelation, mel, hop_length, version)
    rows = F.avg_pool1d(rows[None], time_pool, ceil_mode=True)[0] if time_pool > 1 else rows
    ahead, behind = F.pad(rows, (0, 1), mode='replicate'), F.pad(rows, (1, 0), mode='replicate')
    return torch.cat([rows, (ahead[:, 1:] - behind[:, :-1]) / 2])


def of_frames(frames: Tensor, spectrum: Tensor, autocorrelation: Tensor, window_autocorrelation: Tensor, mel: Tensor,
              hop_length: int, version: int, exists: Tensor | float = 1.) -> Tensor:
    """The rows of every frame without their differences, (5, n).

    frames: (n, FRAME). spectrum: power of the windowed frames, (n, N_FFT // 2 + 1); autocorrelation: theirs, (n, lags) of lags
    from 0 to LAGS[1] + 1. The next two are of `constants`. exists: (n,), 0 for what lies beyond the end.
    """
    power = frames.square().mean(dim=1) if version == 1 else frames.var(dim=1, correction=0)  # (n,)
    pitch, height = pitch_of(autocorrelation, window_autocorrelation, version)
    voicing = torch.sigmoid(SLOPE * (height - VOICED))
    bands = torch.log(spectrum @ mel + FLOOR)
    flux = F.pad((bands[1:] - bands[:-1]).clamp_min(0.).mean(dim=1), (1, 0))
    return torch.stack([filled(pitch, voicing * exists, hop_length), voicing, torch.log(power + FLOOR), flux,
                        torch.log(height / (1. - height))])


def pitch_of(autocorrelation: Tensor, of_window: Tensor, version: int) -> tuple[Tensor, Tensor]:
    """Natural logarithm of F0 in Hz, and the height of its peak, between 0 and 1, .01 without a peak: two tensors (n,).

    autocorrelation: (n, lags), of windowed frames. of_window: (FRAME,), at lag 0 it is 1.
    """
    low, high = LAGS
    energy = autocorrelation[:, :1] + SILENCE ** 2 * FRAME
    r = autocorrelation[:, :high + 2] / energy / of_window[:high + 2]
    before, here, after = r[:, low - 1:-2], r[:, low:-1], r[:, low + 1:]
    lags = torch.arange(low, high + 1, device=r.device)
    is_peak = (here >= before) & (here >= after)
    if version > 1:
        lowest = -F.max_pool1d(F.pad(-r[:, :-1], (high, 0), value=-torch.inf)[:, None], high + 1, 1)[:, 0]  # so far
        is_peak &= here - lowest[:, low:] >= RISE
    cost = OCTAVE_COST * torch.log2(lags * (F0_MAX / SAMPLE_RATE))
    best = torch.where(is_peak, here - cost, -1. if version == 1 else -torch.inf).argmax(dim=1, keepdim=True)
    before, here, after = (part.gather(1, best).squeeze(1) for part in (before, here, after))
    curve = (before - 2 * here + after).clamp_max(-1e-6)  # of the parabola through the three
    shift = ((before - after) / (2 * curve)).clamp(-.5, .5)
    height = here - (before - after) * shift / 4
    if version > 1:
        height = torch.where(is_peak.any(dim=1), height, 0.)
    return torch.log(SAMPLE_RATE / (lags[best.squeeze(1)] + shift)), height.clamp(.01, .99)


def filled(pitch: Tensor, voicing: Tensor, hop_length: int) -> Tensor:
    """Pitch (n,); where a frame is not voiced, the mean of its surroundings weighted by voicing, else of the recording."""
    side = round(NEAR * SAMPLE_RATE / hop_length)
    weight = voicing.square()
    mean = (weight * pitch).sum() / weight.sum().clamp_min(1e-6)
    both = F.avg_pool1d(torch.stack([weight * pitch, weight]), 2 * side + 1, 1, side)
    near = (both[0] + 1e-3 * mean) / (both[1] + 1e-3)
    return voicing * pitch + (1. - voicing) * near
