"""Audio file -> 16 kHz mono -> log-mel or MFCC -> cache."""
import hashlib
import math
import os
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

import utils
from config import SAMPLE_RATE, WINDOW_MS, FeatureSettings, UserError
from datasets.faults import Faults
from datasets.index import Index
from datasets.utterance import Utterance

WIN_LENGTH = SAMPLE_RATE * WINDOW_MS // 1000  # 512 samples
N_FFT = 2_048  # samples; zero-padding makes every one of 128 mel filters cover a frequency bin
MIN_SAMPLES = N_FFT // 2 + 1  # 64 ms; reflection padding of the first frame needs more than N_FFT / 2 samples
F_MIN, F_MAX = 20., SAMPLE_RATE / 2  # Hz
FLOOR = 1e-6  # mel power of silence, added before the logarithm
TRIM_FRAME, TRIM_HOP = 2_048, 512  # samples; frames whose loudness --trim_db compares
VERSION = 1  # part of every cache key; raise it when the arithmetic below changes
THREADS = 8  # at most; more would wait for Python's lock


@lru_cache(maxsize=4)
def mel_spectrogram(n_mels: int, hop_length: int) -> torchaudio.transforms.MelSpectrogram:
    """The torchaudio transform. UserError if a mel filter would be empty."""
    with warnings.catch_warnings():  # torchaudio only warns of empty filters
        warnings.simplefilter('ignore', UserWarning)
        transform = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, n_fft=N_FFT, win_length=WIN_LENGTH, hop_length=hop_length, f_min=F_MIN, f_max=F_MAX,
            n_mels=n_mels)
    if (transform.mel_scale.fb.amax(dim=0) == 0).any():
        raise UserError(f'--n_mels {n_mels}: some mel filters would be empty; use fewer')
    return transform


def extract(wave: np.ndarray, config: FeatureSettings) -> np.ndarray:
    """float32 wave (n_samples,) at SAMPLE_RATE -> float32 (n_mels, n_frames)."""
    wave = trim(wave, config.trim_db) if config.trim_db else wave
    spectrogram = mel_spectrogram(config.n_mels, config.hop_length)
    mel = spectrogram(torch.from_numpy(np.ascontiguousarray(wave)))
    x = torch.log(mel + FLOOR)  # (n_mels, n_frames)
    if config.features == 'mfcc':
        x = torchaudio.functional.create_dct(config.n_mels, config.n_mels, 'ortho').T @ x
    if config.time_pool > 1:
        x = torch.nn.functional.max_pool1d(x, config.time_pool, ceil_mode=True)
    return x.numpy()


def trim(wave: np.ndarray, top_db: float) -> np.ndarray:
    """Wave (n_samples,) without the frames at both ends that are top_db dB below the loudest one.

    As librosa.effects.trim, but at least MIN_SAMPLES are kept.
    """
    _, (first, last) = librosa.effects.trim(wave, top_db=top_db, frame_length=TRIM_FRAME, hop_length=TRIM_HOP)
    first = max(0, min(first, (first + last - MIN_SAMPLES) // 2, len(wave) - MIN_SAMPLES))
    return wave[first:max(last, first + MIN_SAMPLES)]


def read_audio(utterance: Utterance) -> tuple[np.ndarray, int]:
    """(wave, rate): float32 (n_samples,), mono, and its samples per second.

    UserError names a file from which features cannot be extracted.
    """
    start, end = utterance.start or 0., utterance.end
    try:
        with soundfile.SoundFile(utterance.path) as f:
            rate = f.samplerate
            first = min(round(start * rate), f.frames)
            last = f.frames if end is None else min(round(end * rate), f.frames)
            f.seek(first)
            channels = f.read(last - first, dtype='float32', always_2d=True)  # (n_samples, n_channels)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f'{utterance.path}: cannot be read as audio ({error})') from None
    wave = channels.mean(axis=1)
    n_samples = math.ceil(len(wave) * (SAMPLE_RATE / rate))  # after resampling
    if n_samples < MIN_SAMPLES:
        since = f' from {start} s' if start else ''
        raise UserError(f'{utterance.path}: {n_samples} samples of audio{since} at {SAMPLE_RATE} Hz, but '
                        f'features need {MIN_SAMPLES}; leave it out of the corpus')
    if not np.isfinite(wave).all():
        raise UserError(f'{utterance.path}: contains samples that are not finite numbers; leave it out of '
                        'the corpus')
    return wave, rate


def load_audio(utterance: Utterance) -> np.ndarray:
    """float32 (n_samples,), mono, at SAMPLE_RATE. UserError names a file that cannot be used."""
    wave, rate = read_audio(utterance)
    if rate == SAMPLE_RATE:
        return wave
    return librosa.resample(wave, orig_sr=rate, target_sr=SAMPLE_RATE)


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
    return (config.features, config.n_mels, float(config.hop_ms), config.time_pool,
            float(config.trim_db))


def constants() -> tuple:
    """The constants and versions that cached features depend on."""
    return (VERSION, SAMPLE_RATE, WIN_LENGTH, N_FFT, F_MIN, F_MAX, FLOOR, TRIM_FRAME, TRIM_HOP,
            torchaudio.__version__, librosa.__version__)


def cache_key(utterance: Utterance, config: FeatureSettings,
              digest_of: Callable = file_digest) -> str:
    """Hex key of all that the features depend on: the bytes of the file, the segment, the parameters."""
    digest = digest_of(utterance.path).copy()
    digest.update(repr((constants(), parameters(config), utterance.start, utterance.end)).encode())
    return digest.hexdigest()


def open_index(cache_dir: str, config: FeatureSettings) -> Index:
    """The Index of cache keys for these settings; a file of many segments is read once."""
    settings = hashlib.sha256(repr((constants(), parameters(config))).encode()).hexdigest()[:16]
    digest_of = cache(file_digest)
    return Index(os.path.join(cache_dir, f'index-{settings}.json'),
                 lambda utterance: cache_key(utterance, config, digest_of))


def cached_features(utterances: list[Utterance], config: FeatureSettings, cache_dir: str,
                    workers: int = 0, quiet: bool = False) -> tuple[list[np.ndarray], int]:
    """Features [(n_mels, n_frames) float16, ...], and how many of them had to be extracted.

    Every utterance has its own file in the cache, so that an interrupted extraction continues where
    it stopped. workers: threads; 0: one per available core, up to THREADS. All faults of the
    recordings are raised together.
    """
    index, faults = open_index(cache_dir, config), Faults()
    paths, found, missing = [], {}, {}  # in the cache; {path: features}; {path: utterances}
    with tqdm(total=len(utterances), desc=f'features in {cache_dir}', disable=quiet or None,
              leave=False) as bar:
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
        if missing:
            utils.remove_asides(cache_dir)
        for path, x in _extract_all(missing, config, workers, faults):
            found[path] = x
            bar.update()
    faults.check()
    return [found[path] for path in paths], len(missing)


def _extract_all(missing, config, workers, faults):
    """Yields (path, features) when they are in the cache; UserErrors go to `faults`.

    missing: {path in the cache: utterances, which are the same audio}.
    """
    def job(path, utterance):
        x = extract(load_audio(utterance), config).astype(np.float16)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        utils.write_aside(path, lambda f: np.save(f, x), shared=True)
        return x
    mel_spectrogram(config.n_mels, config.hop_length)  # refuses impossible settings before any work
    # torch works with one thread in each of ours: they do not compete, and any number of them gives
    # the same bits.
    n_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers or min(THREADS, joblib.cpu_count()),
                              initializer=torch.set_num_threads, initargs=(1,))
    try:
        results = {path: pool.submit(job, path, same[0]) for path, same in missing.items()}
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


def _read(path):
    """The array in the file, or None if there is none or it is damaged."""
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
