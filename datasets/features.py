"""Audio file -> 16 kHz mono -> log-mel or MFCC -> cache."""
import contextlib
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache

import joblib
import librosa
import numpy as np
import soundfile
import torch
import torchaudio
from tqdm import tqdm

from config import SAMPLE_RATE, WINDOW_MS, FeatureSettings, UserError
from datasets.faults import Faults
from datasets.utterance import Utterance

WIN_LENGTH = SAMPLE_RATE * WINDOW_MS // 1000  # 512 samples
N_FFT = 2_048  # samples; zero padding of the window gives each of 128 mel filters at least one frequency bin
MIN_SAMPLES = N_FFT // 2 + 1  # 64 ms; the first frame is centred on the first sample and mirrors this much
F_MIN, F_MAX = 20., SAMPLE_RATE / 2  # Hz
FLOOR = 1e-6  # mel power of silence, added before the logarithm
TRIM_FRAME, TRIM_HOP = 2_048, 512  # samples; frames whose loudness --trim_db compares
VERSION = 1  # part of every cache key; raise it when the arithmetic below changes
THREADS = 8  # at most; more would wait for Python's lock
SETTLED_NS = 2_000_000_000  # a file changed less than 2 s ago might change again without a later time stamp


@lru_cache(maxsize=4)
def mel_spectrogram(n_mels: int, hop_length: int) -> torchaudio.transforms.MelSpectrogram:
    """The torchaudio transform. UserError if a mel filter would be empty."""
    with warnings.catch_warnings():  # torchaudio only warns of empty filters
        warnings.simplefilter('ignore', UserWarning)
        transform = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, n_fft=N_FFT, win_length=WIN_LENGTH, hop_length=hop_length, f_min=F_MIN, f_max=F_MAX, n_mels=n_mels)
    if (transform.mel_scale.fb.amax(dim=0) == 0).any():
        raise UserError(f'--n_mels {n_mels}: some mel filters would be empty; use fewer')
    return transform


def extract(wave: np.ndarray, config: FeatureSettings) -> np.ndarray:
    """float32 wave (n_samples,) at SAMPLE_RATE -> float32 (n_mels, n_frames)."""
    wave = trim(wave, config.trim_db) if config.trim_db else wave
    mel = mel_spectrogram(config.n_mels, config.hop_length)(torch.from_numpy(np.ascontiguousarray(wave)))
    x = torch.log(mel + FLOOR)  # (n_mels, n_frames)
    if config.features == 'mfcc':
        x = torchaudio.functional.create_dct(config.n_mels, config.n_mels, 'ortho').T @ x
    if config.time_pool > 1:
        x = torch.nn.functional.max_pool1d(x, config.time_pool, ceil_mode=True)
    return x.numpy()


def trim(wave: np.ndarray, top_db: float) -> np.ndarray:
    """Wave (n_samples,) without the silence at both ends: frames more than top_db dB below the loudest one.

    As librosa.effects.trim, but at least MIN_SAMPLES are kept.
    """
    first, last = librosa.effects.trim(wave, top_db=top_db, frame_length=TRIM_FRAME, hop_length=TRIM_HOP)[1]
    first = max(0, min(first, (first + last - MIN_SAMPLES) // 2, len(wave) - MIN_SAMPLES))
    return wave[first:max(last, first + MIN_SAMPLES)]


def read_audio(utterance: Utterance) -> tuple[np.ndarray, int]:
    """(float32 (n_samples,), mono; sample rate in Hz) of the file. UserError if features cannot be extracted from it."""
    start, end = utterance.start or 0., utterance.end
    try:
        with soundfile.SoundFile(utterance.path) as f:
            rate = f.samplerate
            first = min(round(start * rate), f.frames)
            last = f.frames if end is None else min(round(end * rate), f.frames)
            f.seek(first)
            wave = f.read(last - first, dtype='float32', always_2d=True).mean(axis=1)  # (n, channels) -> (n,)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f'{utterance.path}: cannot be read as audio ({error})') from None
    n_samples = math.ceil(len(wave) * (SAMPLE_RATE / rate))  # after resampling
    if n_samples < MIN_SAMPLES:
        raise UserError(f'{utterance.path}: {n_samples} samples of audio{f" from {start} s" if start else ""} at '
                        f'{SAMPLE_RATE} Hz, but features need {MIN_SAMPLES}; leave it out of the corpus')
    if not np.isfinite(wave).all():
        raise UserError(f'{utterance.path}: contains samples that are not finite numbers; leave it out of the corpus')
    return wave, rate


def load_audio(utterance: Utterance) -> np.ndarray:
    """float32 (n_samples,), mono, at SAMPLE_RATE. UserError names a file that cannot be used."""
    wave, rate = read_audio(utterance)
    return wave if rate == SAMPLE_RATE else librosa.resample(wave, orig_sr=rate, target_sr=SAMPLE_RATE)


def file_digest(path: str) -> 'hashlib._Hash':
    """SHA-256 of the file's bytes; the caller may copy and extend it."""
    digest = hashlib.sha256()
    try:
        with open(path, 'rb') as f:
            while block := f.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    return digest


def parameters(config: FeatureSettings) -> tuple:
    """The settings that cached features depend on."""
    return config.features, config.n_mels, float(config.hop_ms), config.time_pool, float(config.trim_db)


def constants() -> tuple:
    """The constants and versions that cached features depend on."""
    return (VERSION, SAMPLE_RATE, WIN_LENGTH, N_FFT, F_MIN, F_MAX, FLOOR, TRIM_FRAME, TRIM_HOP, torchaudio.__version__,
            librosa.__version__)


def cache_key(utterance: Utterance, config: FeatureSettings, digest_of: Callable = file_digest) -> str:
    """Hex key of all that the features depend on: the bytes of the file, the segment and every parameter."""
    digest = digest_of(utterance.path).copy()
    digest.update(repr((constants(), parameters(config), utterance.start, utterance.end)).encode())
    return digest.hexdigest()


class Index:
    """Cache keys by path and segment, in a file of the cache: a recording that has not changed is not read again.

    There is one index for each set of parameters: {path: [[size, mtime, ctime], {segment: key}]}.
    If it is damaged or lost, it is made anew. Processes that write at the same time may lose
    entries of each other, which only costs time.
    """

    def __init__(self, cache_dir: str, config: FeatureSettings):
        name = hashlib.sha256(repr((constants(), parameters(config))).encode()).hexdigest()[:16]
        self.path, self.config = os.path.join(cache_dir, f'index-{name}.json'), config
        self.entries, self.new = self._read(), {}
        self.digest_of = cache(file_digest)  # a file of many segments is read once

    def key(self, utterance: Utterance) -> str:
        """As cache_key."""
        path, segment = os.path.abspath(utterance.path), f'{utterance.start} {utterance.end}'
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(f'{utterance.path}: cannot be read ({error.strerror})') from None
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        known, keys = self.entries.get(path, (None, {}))
        if known == stamp and segment in keys:
            return keys[segment]
        key = cache_key(utterance, self.config, self.digest_of)
        if time.time_ns() - max(stamp[1:]) > SETTLED_NS:
            self.entries[path] = self.new[path] = [stamp, {**(keys if known == stamp else {}), segment: key}]
        return key

    def save(self) -> None:
        if self.new:
            with contextlib.suppress(OSError):  # a cache that cannot be written to can still be read
                write_aside(self.path, lambda f: f.write(json.dumps({**self._read(), **self.new}).encode()))

    def _read(self):
        try:
            with open(self.path, encoding='utf-8') as f:
                entries = json.load(f)
            if all(len(stamp) == 3 and all(isinstance(key, str) for key in keys.values()) for stamp, keys in entries.values()):
                return entries
        except (OSError, ValueError, TypeError, AttributeError):
            pass
        return {}


def cached_features(utterances: list[Utterance], config: FeatureSettings, cache_dir: str, workers: int = 0,
                    quiet: bool = False) -> tuple[list[np.ndarray], int]:
    """Features of the utterances, [(n_mels, n_frames) float16, ...], and how many had to be extracted.

    Every utterance has its own file in the cache, so that an interrupted extraction continues where
    it stopped. workers: threads; 0: one per available core, up to THREADS. All faults of the
    recordings are raised together.
    """
    index, faults, paths, missing = Index(cache_dir, config), Faults(), [], {}
    found = {}  # {path in the cache: features}
    with tqdm(total=len(utterances), desc=f'features in {cache_dir}', disable=quiet or None, leave=False) as bar:
        for u in utterances:
            with faults.collect():
                key = index.key(u)
                path = os.path.join(cache_dir, key[:2], f'{key}.npy')
                paths.append(path)
                if path not in found and path not in missing and (x := _read(path)) is not None:
                    found[path] = x
                if path in found:
                    bar.update()
                else:
                    missing.setdefault(path, []).append(u)
        index.save()
        for path, x in _extract_all(missing, config, workers, faults):
            found[path] = x
            bar.update()
    faults.check()
    return [found[path] for path in paths], len(missing)


def _extract_all(missing, config, workers, faults):
    """Yields (path, features) for each of {path in the cache: utterances that are the same audio}, once it is written.

    UserErrors go to `faults`.
    """
    def job(path, utterance):
        x = extract(load_audio(utterance), config).astype(np.float16)
        write_aside(path, lambda f: np.save(f, x))
        return x
    mel_spectrogram(config.n_mels, config.hop_length)  # impossible settings are refused before any audio is read
    n_threads = torch.get_num_threads()
    # torch works with one thread in each of ours: they do not compete, and any number of them gives
    # the same bits.
    pool = ThreadPoolExecutor(workers or min(THREADS, joblib.cpu_count()), initializer=torch.set_num_threads, initargs=(1,))
    try:
        results = {path: pool.submit(job, path, utterances[0]) for path, utterances in missing.items()}
        for path, result in results.items():
            if isinstance(result.exception(), UserError):
                faults.messages.append(str(result.exception()))
                for copy in missing[path][1:]:
                    with faults.collect():
                        load_audio(copy)
            else:
                yield path, result.result()
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C only the utterances in hand are finished
        torch.set_num_threads(n_threads)


def write_aside(path: str, write: Callable) -> None:
    """Calls write(file) on a temporary file, then renames it to `path`: a reader finds a whole file or none."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    aside = f'{path}.{os.getpid()}.tmp'
    with open(aside, 'wb') as f:
        write(f)
    os.replace(aside, path)


def _read(path):
    """The array in the file, or None if there is none or it is damaged."""
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
