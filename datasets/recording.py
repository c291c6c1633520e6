"""Features of one recording of any length: a long one is read, resampled and transformed block by block."""
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import librosa
import numpy as np
import soundfile
import soxr
import torch

from config import SAMPLE_RATE, FeatureSettings, UserError
from datasets import encoders
from datasets.features import (
    SHORT,
    TRIM_FRAME,
    TRIM_HOP,
    at_least_min,
    check_header,
    extract,
    extract_prosody,
    odd_range,
    read_audio,
    resampled,
    trimmed,
)
from datasets.frames import of_file
from datasets.utterance import Utterance

HELD = 2 ** 28  # bytes of frames of an encoder that are held in memory
LONG = 60  # s; a longer recording is read in blocks of this length
MARGIN = .5  # s around a block; a frame sees less than this of its neighbourhood


def features(utterance: Utterance, config: FeatureSettings, device: str | torch.device = 'cpu',
             warn: Callable[[str], None] = lambda line: None) -> tuple[np.ndarray, float]:
    """The features (n_rows, n_frames) of an utterance, float16 as in the cache, and the s trimmed off its beginning.

    device: where the encoder computes, if there is one. warn(line) is told what is odd about the file. UserError if it cannot
    be used.
    """
    def note(what):
        warn(f'NOTE: {path} {what}')
    if config.features == 'frames':
        return of_file(utterance.frames, config).T, 0.
    path = utterance.path
    try:
        info = soundfile.info(path)
        long = info.frames > LONG * info.samplerate
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError):  # TypeError: .raw; ValueError: a name that is not UTF-8
        long = False  # read_audio says what is wrong
    whole = not long or utterance.start is not None or utterance.end is not None
    if whole or config.features == 'encoder':
        if whole:
            audio = read_audio(utterance)
            for what in audio.notes:
                note(what)
            wave = resampled(audio)
        else:
            wave = np.concatenate([*read(path, note)])
        return of_wave(wave, config, device, path)
    first, last = kept(read(path), config.trim_db) if config.trim_db else (0, None)
    x = in_blocks(part(read(path, note), first, last), config, path)
    return x, first / SAMPLE_RATE


def of_wave(wave: np.ndarray, config: FeatureSettings, device: str | torch.device = 'cpu',
            where: str = 'the wave') -> tuple[np.ndarray, float]:
    """As `features`, of a float32 wave (n_samples,) at SAMPLE_RATE, which messages call `where`."""
    if config.features == 'encoder':
        encoder = encoders.of(config, device)
        return through(encoder, encoder.wave(wave, where), where).T, 0.
    first = trimmed(wave, config.trim_db)[0] if config.trim_db else 0
    return extracted(wave, config, where), first / SAMPLE_RATE


def through(encoder: encoders.Encoder, wave: np.ndarray, where: str) -> np.ndarray:
    """The frames (T, n_rows) of a wave at the encoder's rate. Of more than HELD bytes: a map of a file without a name."""
    with tempfile.TemporaryFile() as f:
        for piece in encoder.facts.pieces(wave):
            x = encoder([piece])[0]
            if not np.isfinite(x).all():
                raise UserError(f'{where}: its frames are beyond what float16 holds, 65,504')
            f.write(np.ascontiguousarray(x))
        f.flush()
        frames = np.memmap(f, np.float16, 'r+').reshape(-1, x.shape[1])
    return frames if frames.nbytes > HELD else np.array(frames)


def extracted(wave: np.ndarray, config: FeatureSettings, where: str) -> np.ndarray:
    """What the cache holds of a wave, and below it the rows of prosody, if there are any: float16. UserError."""
    x = extract(wave, config)
    x = (np.concatenate([x, extract_prosody(wave, config)]) if config.prosody else x).astype(np.float16)
    if not np.isfinite(x).all():
        raise UserError(f'{where}: its samples are so large that features overflow; leave it out')
    return x


def read(path: str, note: Callable[[str], None] = lambda what: None) -> Iterator[np.ndarray]:
    """The blocks of the wave that load_audio returns: float32 (n,), mono, at SAMPLE_RATE. note(what) is odd. UserError."""
    n_read = n_given = 0
    low, high = math.inf, -math.inf
    try:
        with soundfile.SoundFile(path) as f:
            rate = f.samplerate
            check_header(path, f)
            resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype='float32', quality='HQ')
            # Not f.blocks: where the file ends before its header says, that gives a buffer which was never filled.
            while len(channels := f.read(LONG * rate, dtype='float32', always_2d=True)):  # (n, n_channels)
                wave = channels.mean(axis=1)
                if not np.isfinite(wave).all():
                    raise UserError(f'{path}: contains samples that are not finite numbers; leave it out')
                n_read += len(wave)
                low, high = min(low, wave.min()), max(high, wave.max())
                if rate != SAMPLE_RATE:
                    wave = resampler.resample_chunk(wave)
                n_given += len(wave)
                yield wave
            for what in [SHORT] * (n_read < f.frames) + odd_range(low, high):
                note(what)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f'{path}: cannot be read as audio ({error})') from None
    if rate != SAMPLE_RATE:  # librosa cuts or pads the last samples so that the length is that of the ratio
        rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        missing = math.ceil(n_read * SAMPLE_RATE / rate) - n_given
        yield np.pad(rest[:missing], (0, max(0, missing - len(rest))))


def part(waves: Iterable[np.ndarray], first: int, last: int | None) -> Iterator[np.ndarray]:
    """Samples first:last of a wave in blocks."""
    begin = 0
    for wave in waves:
        yield wave[max(0, first - begin):None if last is None else max(0, last - begin)]
        begin += len(wave)


def kept(waves: Iterable[np.ndarray], top_db: float) -> tuple[int, int]:
    """`trimmed` of a wave in blocks."""
    squares, rest, n = [], np.zeros(0, np.float32), 0
    for wave in waves:
        n += len(wave)
        wave = np.concatenate([rest, wave])
        whole = len(wave) // TRIM_HOP * TRIM_HOP
        squares.append(_squares(wave[:whole]))
        rest = wave[whole:]
    squares.append(_squares(np.pad(rest, (0, -len(rest) % TRIM_HOP))))
    hops = TRIM_FRAME // TRIM_HOP  # in a frame, whose middle is at a multiple of a hop
    q = np.pad(np.concatenate(squares), (hops // 2, hops // 2))
    sums = np.convolve(q, np.ones(hops), 'valid')[:1 + n // TRIM_HOP]
    rms = np.sqrt(np.maximum(sums, 0.) / TRIM_FRAME)
    loud = np.flatnonzero(librosa.amplitude_to_db(rms, ref=np.max, top_db=None) > -top_db)
    first, last = loud[0] * TRIM_HOP, min(n, (loud[-1] + 1) * TRIM_HOP)
    return at_least_min(int(first), int(last), n)


def _squares(wave):
    """Sum of squares of every hop: (n_hops,) float64."""
    return np.square(wave.astype(np.float64)).reshape(-1, TRIM_HOP).sum(axis=1)


def in_blocks(waves: Iterable[np.ndarray], config: FeatureSettings, where: str) -> np.ndarray:
    """`extracted`, without trimming, of a wave in blocks; float16 (n_rows, n_frames).

    Every block is extracted with a margin on both sides, whose frames are dropped. In unvoiced stretches pitch is filled with
    the mean of the block, where a short recording has its own.
    """
    config = replace(config, trim_db=0.)
    step = config.hop_length * config.time_pool  # samples between the frames that are kept
    margin, size = (step * math.ceil(seconds * SAMPLE_RATE / step) for seconds in (MARGIN, LONG))
    take = _buffered(waves)
    parts, wave, before = [], np.zeros(0, np.float32), 0  # before: samples of the margin in front
    while True:
        wave = np.concatenate([wave, take(before + size + margin - len(wave))])
        whole = len(wave) == before + size + margin
        x = extracted(wave, config, where)
        parts.append(x[:, before // step:(before + size) // step if whole else None])
        if not whole:
            return np.concatenate(parts, axis=1)
        wave, before = wave[before + size - margin:], margin


def _buffered(waves) -> Callable[[int], np.ndarray]:
    """take(n): the next n samples of a wave in blocks, fewer at its end."""
    waves, held = iter(waves), [np.zeros(0, np.float32)]

    def take(n):
        while sum(map(len, held)) < n and (wave := next(waves, None)) is not None:
            held.append(wave)
        wave = np.concatenate(held)
        held[:] = [wave[n:]]
        return wave[:n]
    return take
