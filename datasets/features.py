"""Audio file -> 16 kHz mono -> log-mel or MFCC -> cache."""
import hashlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, lru_cache

import librosa
import numpy as np
import soundfile
import torch
import torchaudio
from tqdm import tqdm

from config import SAMPLE_RATE, WINDOW_MS, UserError

WIN_LENGTH = SAMPLE_RATE * WINDOW_MS // 1000  # 512 samples
N_FFT = 2_048  # samples; the window is padded with zeros, so that even 128 mel filters each hold a frequency bin
MIN_SAMPLES = N_FFT // 2 + 1  # 64 ms; the first frame is centred on the first sample and mirrors as much
F_MIN, F_MAX = 20., SAMPLE_RATE / 2  # Hz
FLOOR = 1e-6  # mel power under which all is silence; added before the logarithm
TRIM_FRAME, TRIM_HOP = 2_048, 512  # samples; frames of which the loudness is asked where silence is cut
VERSION = 1  # part of every cache key; raise it when the arithmetic below changes
WORKER_START = 5.  # s until a worker process has imported torch
CHUNK = 16  # utterances that a worker takes at a time


@lru_cache(maxsize=4)
def mel_spectrogram(n_mels, hop_length):
    """The torchaudio transform. Raises UserError where a mel filter would be empty."""
    with warnings.catch_warnings():  # torchaudio warns of what is an error here
        warnings.simplefilter('ignore', UserWarning)
        transform = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, n_fft=N_FFT, win_length=WIN_LENGTH, hop_length=hop_length, f_min=F_MIN, f_max=F_MAX,
            n_mels=n_mels)
    if (transform.mel_scale.fb.amax(dim=0) == 0).any():
        raise UserError(f'--n_mels {n_mels}: some mel filters would be empty; take fewer')
    return transform


def extract(wave, config):
    """float32 wave (n_samples,) at SAMPLE_RATE -> float32 (n_mels, n_frames)."""
    wave = trim(wave, config.trim_db) if config.trim_db else wave
    mel = mel_spectrogram(config.n_mels, config.hop_length)(torch.from_numpy(np.ascontiguousarray(wave)))
    x = torch.log(mel + FLOOR)  # (n_mels, n_frames)
    if config.features == 'mfcc':
        x = torchaudio.functional.create_dct(config.n_mels, config.n_mels, 'ortho').T @ x
    if config.time_pool > 1:
        x = torch.nn.functional.max_pool1d(x, config.time_pool, ceil_mode=True)
    return x.numpy()


def trim(wave, top_db):
    """Wave (n_samples,) without the silence at both ends, which is what is more than top_db dB below the loudest frame.

    As librosa.effects.trim, but MIN_SAMPLES are left, of what lies around.
    """
    first, last = librosa.effects.trim(wave, top_db=top_db, frame_length=TRIM_FRAME, hop_length=TRIM_HOP)[1]
    first = max(0, min(first, (first + last - MIN_SAMPLES) // 2, len(wave) - MIN_SAMPLES))
    return wave[first:max(last, first + MIN_SAMPLES)]


def load_audio(utterance):
    """float32 (n_samples,), mono, SAMPLE_RATE. Raises UserError naming the file where it gives no audio."""
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
    if rate != SAMPLE_RATE:
        wave = librosa.resample(wave, orig_sr=rate, target_sr=SAMPLE_RATE) if len(wave) else wave
    if len(wave) < MIN_SAMPLES:
        raise UserError(f'{utterance.path}: {len(wave)} samples of audio{f" from {start} s" if start else ""} at '
                        f'{SAMPLE_RATE} Hz, fewer than the {MIN_SAMPLES} that features need; remove it')
    if not np.isfinite(wave).all():
        raise UserError(f'{utterance.path}: holds samples that are not finite numbers; remove it')
    return wave


def file_digest(path):
    """SHA-256 of the file's bytes, to be gone on with."""
    digest = hashlib.sha256()
    try:
        with open(path, 'rb') as f:
            while block := f.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    return digest


def parameters(config):
    """The settings that features depend on."""
    return config.features, config.n_mels, float(config.hop_ms), config.time_pool, float(config.trim_db)


def cache_key(utterance, config, digest_of=file_digest):
    """Hex key of what the features depend on: the file's bytes, the segment, every parameter."""
    digest = digest_of(utterance.path).copy()
    constants = (VERSION, SAMPLE_RATE, WIN_LENGTH, N_FFT, F_MIN, F_MAX, FLOOR, TRIM_FRAME, TRIM_HOP, torchaudio.__version__,
                 librosa.__version__)
    digest.update(repr((constants, parameters(config), utterance.start, utterance.end)).encode())
    return digest.hexdigest()


def cached_features(utterances, config, cache_dir, workers=1, quiet=False):
    """Features of every utterance, [(n_mels, n_frames) float16, ...], extracted where the cache lacks them.

    One file an utterance, written aside and renamed: an interrupted extraction loses what is in hand at most and goes on from
    there. workers: processes for what is slow enough to need them; 0: one a core. They change no bit, and of several mistakes
    the first in the order of `utterances` is raised, as by one process.
    """
    digest_of = cache(file_digest)  # once a file, of which there may be many segments; known for this call only
    found, missing, mistake = [], {}, None
    with tqdm(total=len(utterances), desc='features', disable=quiet or None, leave=False) as bar:
        for u in utterances:
            try:
                key = cache_key(u, config, digest_of)
            except UserError as error:
                mistake = error  # after those of the utterances before it
                break
            path = os.path.join(cache_dir, key[:2], f'{key}.npy')
            x = _read(path)
            found.append((path, x))
            if x is None and path not in missing:
                missing[path] = u
            else:
                bar.update()
        _extract_all(missing, config, workers or _cores(), bar)
    if mistake:
        raise mistake
    return [np.load(path) if x is None else x for path, x in found]


def _extract_all(missing, config, workers, bar):
    """Writes {path in the cache: utterance}.

    Workers are slow to start, so that this process begins alone and calls them only where its pace says that they gain more.
    """
    todo, began = list(missing.items()), time.monotonic()
    for done, (path, u) in enumerate(todo):
        spent = time.monotonic() - began  # s
        if done and spent > WORKER_START / 5:
            gain = spent / done * (len(todo) - done) * (1 - 1 / workers)  # s
            if gain > WORKER_START:
                return _extract_in_workers(todo[done:], config, workers, bar)
        _extract_to(path, u, config)
        bar.update()


def _extract_in_workers(todo, config, workers, bar):
    others = multiprocessing.active_children()
    spawn = multiprocessing.get_context('spawn')  # a fork would inherit locks of torch's threads, and CUDA
    chunks = [todo[i:i + CHUNK] for i in range(0, len(todo), CHUNK)]
    pool = ProcessPoolExecutor(min(workers, len(chunks)), spawn, _begin_worker)
    try:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # is inherited: Ctrl-C is for this process alone
        try:
            results = [pool.submit(_extract_chunk, chunk, config) for chunk in chunks]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for chunk, result in zip(chunks, results):
            result.result()
            bar.update(len(chunk))
    except BrokenProcessPool:
        raise UserError('a process that extracts features was killed, perhaps for want of memory: take fewer --workers and '
                        'start again; what is extracted is kept') from None
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()  # its chunk, or its imports, would be waited for
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker():
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # or it would wait for work for ever


def _extract_chunk(chunk, config):
    for path, u in chunk:
        _extract_to(path, u, config)


def _extract_to(path, utterance, config):
    _write(path, extract(load_audio(utterance), config).astype(np.float16))


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def _read(path):
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError, OSError):  # damaged: made anew
        return None


def _write(path, x):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    aside = f'{path}.{os.getpid()}.tmp'
    with open(aside, 'wb') as f:
        np.save(f, x)
    os.replace(aside, path)
