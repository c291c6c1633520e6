"""Audio file -> 16 kHz mono -> log-mel or MFCC -> cache."""
import hashlib
import math
import os
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from queue import SimpleQueue
from typing import NamedTuple

import joblib
import librosa
import numpy as np
import soundfile
import torch
import torchaudio

import utils
from config import SAMPLE_RATE, WINDOW_MS, FeatureSettings, UserError, one_line
from datasets import prosody as prosody_module
from datasets.faults import Faults
from datasets.index import Index
from datasets.utterance import Utterance

WIN_LENGTH = SAMPLE_RATE * WINDOW_MS // 1000  # 512 samples
N_FFT = 2_048  # samples; zero-padding makes every one of 128 mel filters cover a frequency bin
MIN_SAMPLES = N_FFT // 2 + 1  # 64 ms; reflection padding of the first frame needs more than N_FFT / 2 samples
F_MIN, F_MAX = 20., SAMPLE_RATE / 2  # Hz
FLOOR = 1e-6  # mel power of silence, added before the logarithm
TRIM_FRAME, TRIM_HOP = 2_048, 512  # samples; frames whose loudness --trim_db compares
VERSION = 1  # part of every cache key; raise it when the arithmetic below changes (prosody has config.prosody_version)
THREADS = 8  # at most; more would wait for Python's lock
RATES = 1_000, 768_000  # Hz: below, speech is lost and resampling multiplies the samples; above, the header is wrong
MAX_SECONDS = 3_600  # of a recording or segment: its spectrogram takes 3 GB
BLOCK = 1 << 20  # samples, over all channels, that are read at once: a header may promise more than there is
CUT_SHORT = re.compile(r'^data : (\d+) \(should be (\d+)\)', re.MULTILINE)  # libsndfile's notes on a WAV header
NPY_HEADER_BYTES = 128
NPY_HEADER = re.compile(rb"\x93NUMPY\x01\x00\x76\x00\{'descr': '<f2', 'fortran_order': (?P<order>True|False), "
                        rb"'shape': \((?P<bands>[1-9]\d{0,4}), (?P<frames>[1-9]\d{0,8})\), \} *\n\Z")  # as numpy.save writes it
BEYOND = .05  # s by which the end of a segment may exceed its file, as when times are rounded
SHORT = 'holds less audio than its header says: it was cut short'
NO_LENGTH = 2 ** 62  # samples; libsndfile says 2 ** 63 - 1 of a file without a length
LOUD = 8.  # times full scale: no recording peaks there, but samples of 16 bits in a file of floats do
UNKNOWN_SIZE = 0x7fff_0000  # bytes; who writes to a pipe leaves a size from here on, or 0, in the header


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
    first, last = trimmed(wave, top_db)
    return wave[first:last]


def trimmed(wave: np.ndarray, top_db: float) -> tuple[int, int]:
    """First sample that `trim` keeps, and the one behind the last."""
    _, (first, last) = librosa.effects.trim(wave, top_db=top_db, frame_length=TRIM_FRAME, hop_length=TRIM_HOP)
    return at_least_min(int(first), int(last), len(wave))


def at_least_min(first: int, last: int, n_samples: int) -> tuple[int, int]:
    """Widens first:last to MIN_SAMPLES around its middle, within n_samples."""
    first = max(0, min(first, (first + last - MIN_SAMPLES) // 2, n_samples - MIN_SAMPLES))
    return first, min(n_samples, max(last, first + MIN_SAMPLES))


@dataclass(frozen=True)
class Audio:
    """What an audio file, or a segment of it, holds."""
    wave: np.ndarray  # float32 (n_samples,), mono
    rate: int  # samples per second
    format: str  # such as 'WAV 16000 Hz 1 channel'
    notes: tuple[str, ...]  # what is odd, though it can be used


def read_audio(utterance: Utterance) -> Audio:
    """The samples of an utterance. UserError names a file from which features cannot be extracted."""
    path, start, end = utterance.path, utterance.start or 0., utterance.end
    try:
        with soundfile.SoundFile(path) as f:
            rate = f.samplerate
            check_header(path, f)
            first = round(min(start * rate, f.frames))
            last = f.frames if end is None else round(min(end * rate, f.frames))
            if last - first > MAX_SECONDS * rate:
                raise UserError(f'{path}: {(last - first) / rate / 3600:,.1f} hours by its header; cut it into '
                                'utterances with start and end in a manifest')
            f.seek(first)
            wave = _mono(f, last - first)
            notes = _cut_short(f, end, len(wave) < last - first)
            if end is not None and end - f.frames / rate > BEYOND:
                notes.append(f'ends at {f.frames / rate:.2f} s, before its segment does, at {end:g} s')
            channels = f'{f.channels} channel{"s" * (f.channels > 1)}'
            format = f'{f.format} {rate} Hz {channels}'
    except (soundfile.SoundFileError, RuntimeError, OSError, TypeError, ValueError, OverflowError) as error:
        if not os.path.exists(path):  # libsndfile says 'System error'
            raise UserError(f'{path}: no such file') from None
        raise UserError(f'{path}: cannot be read as audio ({one_line(error, 200)})') from None
    n_samples = math.ceil(len(wave) * (SAMPLE_RATE / rate))  # after resampling
    if n_samples < MIN_SAMPLES:
        since = f' from {start} s' if start else ''
        raise UserError(f'{path}: {n_samples} samples of audio{since} at {SAMPLE_RATE} Hz, but '
                        f'features need {MIN_SAMPLES}; leave it out of the corpus')
    if not np.isfinite(wave).all():
        raise UserError(f'{path}: contains samples that are not finite numbers; leave it out of '
                        'the corpus')
    return Audio(wave, rate, format, (*notes, *odd_range(wave.min(), wave.max())))


def odd_range(low: float, high: float) -> list[str]:
    """Notes on a wave whose samples lie from low to high."""
    notes = ['is silent'] * bool(low == high)
    if (peak := max(-low, high)) > LOUD:
        notes.append(f'peaks at {peak:,.0f} times full scale: samples of a file of floats lie between -1 and 1')
    return notes


def check_header(path: str, f: soundfile.SoundFile) -> None:
    """UserError if a file has a rate that no recorder has, or does not say how long it is, as a FLAC from a pipe."""
    if not RATES[0] <= f.samplerate <= RATES[1]:
        raise UserError(f'{path}: {f.samplerate} samples per second; must be from {RATES[0]} to {RATES[1]}')
    if f.frames >= NO_LENGTH:
        raise UserError(f'{path}: its header does not say how long it is; write the file anew, such as with ffmpeg -i OLD NEW')


def _mono(f, n):
    """Up to n samples of an open SoundFile, as the mean of its channels: float32 (n_samples,)."""
    blocks, left = [], n
    while left:
        block = f.read(min(left, max(1, BLOCK // f.channels)), dtype='float32', always_2d=True)
        if not len(block):
            break
        blocks.append(block.mean(axis=1))
        left -= len(block)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _cut_short(f, end, stopped):
    """A list with a note if the file holds fewer samples than its header says. stopped: reading ended too early."""
    if found := CUT_SHORT.search(f.extra_info):
        promised, there = map(int, found.groups())
        stopped |= end is None and 0 < there < promised < UNKNOWN_SIZE
    return [SHORT] if stopped else []


def load_audio(utterance: Utterance) -> np.ndarray:
    """float32 (n_samples,), mono, at SAMPLE_RATE. UserError names a file that cannot be used."""
    return resampled(read_audio(utterance))


def resampled(audio: Audio) -> np.ndarray:
    """float32 (n_samples,) at SAMPLE_RATE."""
    if audio.rate == SAMPLE_RATE:
        return audio.wave
    return librosa.resample(audio.wave, orig_sr=audio.rate, target_sr=SAMPLE_RATE)


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


def extract_prosody(wave: np.ndarray, config: FeatureSettings) -> np.ndarray:
    """float32 wave (n_samples,) at SAMPLE_RATE -> float32 (n_prosody, n_frames), of the frames of `extract`."""
    wave = trim(wave, config.trim_db) if config.trim_db else wave
    wave = torch.from_numpy(np.ascontiguousarray(wave))
    return prosody_module.extract(wave, config.hop_length, config.time_pool, config.prosody_version).numpy()


def parameters(config: FeatureSettings, prosody: bool = False) -> tuple:
    """The settings that cached features depend on."""
    if prosody:
        return ('prosody', config.prosody_version, float(config.hop_ms), config.time_pool, float(config.trim_db))
    return (config.features, config.n_mels, float(config.hop_ms), config.time_pool,
            float(config.trim_db))


def constants() -> tuple:
    """The constants and versions that cached features depend on."""
    return (VERSION, SAMPLE_RATE, WIN_LENGTH, N_FFT, F_MIN, F_MAX, FLOOR, TRIM_FRAME, TRIM_HOP,
            torchaudio.__version__, librosa.__version__)


def cache_key(utterance: Utterance, config: FeatureSettings,
              digest_of: Callable = file_digest, prosody: bool = False) -> str:
    """Hex key of all that the features depend on: the bytes of the file, the segment, the parameters."""
    digest = digest_of(utterance.path).copy()
    digest.update(repr((constants(), parameters(config, prosody), utterance.start, utterance.end)).encode())
    return digest.hexdigest()


def open_index(cache_dir: str, config: FeatureSettings, prosody: bool = False) -> Index:
    """The Index of cache keys for these settings; a file of many segments is read once."""
    settings = hashlib.sha256(repr((constants(), parameters(config, prosody))).encode()).hexdigest()[:16]
    digest_of = cache(file_digest)
    return Index(os.path.join(cache_dir, f'index-{settings}.json'),
                 lambda utterance: cache_key(utterance, config, digest_of, prosody))


def index_of(cache_dir: str, made_by: tuple) -> Index:
    """The Index of keys of what `made_by` makes of a file's bytes and a segment; a file of many segments is read once."""
    digest_of = cache(file_digest)

    def key(u):
        digest = digest_of(u.path).copy()
        digest.update(repr((made_by, u.start, u.end)).encode())
        return digest.hexdigest()
    return Index(os.path.join(cache_dir, f'index-{utils.digest_of(made_by)}.json'), key)


class Cached(NamedTuple):
    """Features of utterances, and what was learned on the way."""
    features: list  # a float16 (rows, n_frames) for every utterance, in memory or Stored
    extracted: int  # how many of them were not in the cache
    files: list[str]  # for each utterance a digest of `made_by` and the bytes of its whole file
    notes: list[str]  # what is odd about recordings that were read now
    made_by: tuple  # versions, constants and settings that features depend on


def cached_features(utterances: list[Utterance], config: FeatureSettings, cache_dir: str,
                    workers: int = 0, quiet: bool = False, prosody: bool = False) -> Cached:
    """Features from the cache, or extracted and put there.

    prosody: those of extract_prosody instead, [(n_prosody, n_frames) float16, ...].

    Every utterance has its own file in the cache, so that an interrupted extraction continues where
    it stopped. workers: threads; 0: one per available core, up to THREADS. All faults of the
    recordings are raised together.
    """
    index, faults, notes, files = open_index(cache_dir, config, prosody), Faults(), [], []
    n_bands = config.inputs['n_prosody'] if prosody else config.n_mels
    paths, found, missing = [], {}, {}  # in the cache; {path: features}; {path: utterances}
    with utils.progress(len(utterances), f'features in {cache_dir}', quiet) as bar:
        for u in utterances:
            with faults.collect():
                key = index.key(u)
                path = os.path.join(cache_dir, key[:2], f'{key}.npy')
                paths.append(path)
                whole = u.start is None and u.end is None
                files.append(key if whole else index.key(replace(u, start=None, end=None)))
                if path not in found and path not in missing and (x := _read(path, n_bands)) is not None:
                    found[path] = x
                if path in found:
                    bar.update()
                else:
                    missing.setdefault(path, []).append(u)
        index.save()
        if missing:
            utils.remove_asides(cache_dir)
        for path, x in _extract_all(missing, config, workers, faults, notes, extract_prosody if prosody else extract):
            found[path] = x
            bar.update()
    faults.check()
    return Cached([found[path] for path in paths], len(missing), files, sorted(notes),
                  (constants(), parameters(config, prosody)))


def _extract_all(missing, config, workers, faults, notes, extract):
    """Yields (path, features) when they are in the cache; UserErrors go to `faults`, odd recordings to `notes`.

    missing: {path in the cache: utterances, which are the same audio}.
    """
    def job(path, utterance):
        audio = read_audio(utterance)
        x = extract(resampled(audio), config).astype(np.float16)
        notes.extend(f'{utterance.path} {note}' for note in audio.notes)
        if not _finite(x):
            raise UserError(f'{utterance.path}: its samples are so large that features overflow; leave it out '
                            'of the corpus')
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
        # Ctrl-C may interrupt the wait of a SimpleQueue, but no call of the pool, whose locks it would leave taken.
        ended, results = SimpleQueue(), {}
        for path, same in missing.items():
            with utils.signals_held():
                results[path] = pool.submit(job, path, same[0])
                results[path].add_done_callback(ended.put)
        seen = set()
        for path, result in results.items():
            while result not in seen:
                seen.add(ended.get())
            with utils.signals_held():
                error = result.exception()
                x = None if error else result.result()
            if isinstance(error, UserError):
                faults.messages.append(str(error))
                for copy in missing[path][1:]:
                    with faults.collect():
                        load_audio(copy)
            elif error:
                raise error
            else:
                yield path, x
    finally:
        with utils.signals_held():
            pool.shutdown(cancel_futures=True)  # on Ctrl-C only the utterances in hand are finished
        torch.set_num_threads(n_threads)


def _finite(x: np.ndarray) -> bool:
    """Whether a float16 array holds neither infinity nor NaN, whose exponents have all bits set."""
    return (x.view(np.uint16) & 0x7c00).max() < 0x7c00


def _read(path, expected):
    """The features in a file, or None if there are none or they are damaged. The header is matched, not interpreted."""
    try:
        with open(path, 'rb') as f:
            match = NPY_HEADER.match(f.read(NPY_HEADER_BYTES))
            if not match:
                return None
            n_bands, n_frames = int(match['bands']), int(match['frames'])
            n_bytes = n_bands * n_frames * 2
            if n_bands != expected or os.fstat(f.fileno()).st_size != NPY_HEADER_BYTES + n_bytes:
                return None
            x = np.fromfile(f, '<f2')
    except OSError:
        return None
    x = x.reshape(n_frames, n_bands).T if match['order'] == b'True' else x.reshape(n_bands, n_frames)
    return x if _finite(x) else None
