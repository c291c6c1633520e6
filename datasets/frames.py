"""Frames of a speech encoder, or from files of one's own, in the cache."""
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import joblib
import librosa
import numpy as np
import soundfile
import torch

import utils
from config import FRAMES, SAMPLE_RATE, WHATEVER, UserError
from datasets import encoders
from datasets.dataset import ahead
from datasets.faults import Faults
from datasets.features import MAX_SECONDS, THREADS, Cached, index_of, read_audio, resampled
from datasets.readers import manifest
from datasets.stored import Stored, find, write
from datasets.utterance import Utterance

VERSION = 1  # part of every cache key; raise it when the arithmetic below or in encoders.py changes, PIECE included
MEASURED = 10.  # s after which the time to go is told
Missing = dict[str, Utterance]  # {path in the cache: utterance}


def complete(config):
    """A configuration with the settings that its frames decide; with other features it is left as it is. UserError."""
    return replace(config, **found(config)) if config.features in FRAMES else config


def found(config) -> dict:
    """The settings that the frames of `config` decide. UserError if there are none."""
    if config.features == 'encoder':
        facts = encoders.facts(config.encoder, config.cache)
        layers = encoders.layers_of(config.encoder_layers, facts.n_layers)
        return {'frame_shape': f'{1 if config.encoder_layers == "mean" else len(layers)}x{facts.channels}',
                'encoder_revision': facts.revision, 'frames_per_s': facts.rate / facts.stride}
    if config.dataset != 'manifest' or not config.data_path:
        raise UserError('--features frames needs --dataset manifest, whose column frames names the files')
    files = (u.frames for u in manifest.scan(config.data_path) if u.frames)
    if not (first := next(files, None)):
        raise UserError(f'--features frames: {config.data_path} has no column frames, or it is empty')
    return {'frame_shape': '{}x{}'.format(*_array(first).shape)}


def cached_frames(utterances: list[Utterance], config, cache_dir: str, device: str | torch.device = 'cpu',
                  quiet: bool = False) -> Cached:
    """Frames of utterances as Stored, from the cache, or made and put there; one UserError of all faults.

    Every utterance has its own file in the cache, so that an interrupted extraction continues where it stopped.
    """
    index, faults, notes = index_of(cache_dir, _made_by(config)), Faults(), []
    paths, files, there, missing = [], [], {}, {}
    with utils.progress(len(utterances), f'frames in {cache_dir}', quiet) as bar:
        for u in utterances:
            with faults.collect():
                source = u if config.features == 'encoder' else _file_of(u)
                key = index.key(source)
                path = os.path.join(cache_dir, key[:2], f'{key}.npy')
                paths.append(path)
                files.append(index.key(replace(source, start=None, end=None)))
                if path not in there and path not in missing and (x := find(path, config.n_rows)):
                    there[path] = x
                if path not in there:
                    missing.setdefault(path, u)
            bar.update()
    index.save()
    if missing:
        utils.remove_asides(cache_dir)
        make = _extracted if config.features == 'encoder' else _copied
        there.update(make(missing, config, cache_dir, device, faults, notes, quiet))
    faults.messages.sort()  # threads report theirs in any order
    faults.check()
    return Cached([there[path] for path in paths], len(missing), files, sorted(notes), _made_by(config))


def _made_by(config):
    """What makes frames of a recording or a file."""
    if config.features == 'encoder':
        return 'frames', VERSION, SAMPLE_RATE, librosa.__version__, config.encoder_revision, config.encoder_layers
    # A file in the cache has L D rows, whatever L is.
    return ('frames', VERSION) if config.frames[0] == 1 else ('frames', VERSION, config.frame_shape)


def _check_room(n_bytes, cache_dir, what, quiet):
    """Says what the files will take. UserError if the disk has not that much room."""
    os.makedirs(cache_dir, exist_ok=True)
    free = shutil.disk_usage(cache_dir).free
    if n_bytes > free:
        raise UserError(f'{cache_dir}: {what} will take {n_bytes / 1e9:.2g} GB, but its disk has {free / 1e9:.2g} GB free: '
                        'make room, or name another folder with --cache')
    if not quiet:
        size = f'{n_bytes / 1e9:.2g}' if n_bytes > 1e7 else 'less than 0.01'
        print(f'{what} will take {size} GB in {os.path.abspath(cache_dir)}', file=sys.stderr)


# --- An encoder ---

def _extracted(missing: Missing, config, cache_dir, device, faults, notes, quiet) -> Iterator[tuple[str, Stored]]:
    """Yields (path, Stored) of frames of an encoder; the longest recordings are the first."""
    encoder = encoders.Encoder(config.encoder, config.encoder_layers, str(device), config.cache)  # freed when all is extracted
    seconds = {path: _seconds(u) for path, u in missing.items()}
    n_frames = sum(encoder.facts.count(round(s * encoder.facts.rate)) for s in seconds.values())
    whole = sum(seconds.values())
    what = f'frames of {len(missing)} recording{"s" * (len(missing) > 1)}, {whole / 3600:.2g} hours,'
    _check_room(2 * config.n_rows * n_frames, cache_dir, what, quiet)

    def read(path):
        """The wave of a recording; None if it cannot be used."""
        with faults.collect():
            audio = read_audio(missing[path])
            notes.extend(f'{missing[path].path} {note}' for note in audio.notes)
            return encoder.wave(resampled(audio), missing[path].path)
    began, done, told = time.monotonic(), 0., quiet
    order = sorted(missing, key=seconds.get, reverse=True)
    batches = list(_batches(order, seconds, encoders.BATCH[encoder.device.type]))
    pool = ThreadPoolExecutor(config.workers or min(THREADS, joblib.cpu_count()))
    with pool, utils.progress(math.ceil(whole), 's of audio through the encoder', quiet) as bar:
        for batch, waves in zip(batches, ahead(lambda batch: list(pool.map(read, batch)), batches)):
            heard = {path: wave for path, wave in zip(batch, waves) if wave is not None}
            for path, x in zip(heard, encoder([*heard.values()])):
                with faults.collect():
                    if not np.isfinite(x).all():
                        raise UserError(f'{missing[path].path}: its frames are beyond what float16 holds, 65,504: choose other '
                                        '--encoder_layers')
                    yield path, write(path, x)
            done += sum(seconds[path] for path in batch)
            bar.update(int(done) - bar.n)
            if not told and done and (past := time.monotonic() - began) > MEASURED:
                told = True
                left = past * (whole / done - 1) / 60
                bar.write(f'about {left:.1f} min to go, as the first {past:.0f} s went', file=sys.stderr)


def _seconds(u):
    """Length of a recording by its header; 0 if it has none or one beyond belief, which read_audio will report."""
    try:
        info = soundfile.info(u.path)
    except (soundfile.SoundFileError, OSError, RuntimeError, TypeError, ValueError):
        return 0.
    end = info.duration if u.end is None else min(u.end, info.duration)
    seconds = max(0., end - (u.start or 0.))
    return seconds if seconds <= MAX_SECONDS else 0.


def _batches(paths, seconds, most):
    """Lists of recordings that are read at once: as many as have `most` seconds together, or one."""
    batch, total = [], 0.
    for path in paths:
        if batch and total + seconds[path] > most:
            yield batch
            batch, total = [], 0.
        batch.append(path)
        total += seconds[path]
    yield batch


# --- Files of one's own ---

def _file_of(u):
    """The file of frames as an utterance, which is the whole of it. UserError if there is none."""
    if not u.frames:
        raise UserError(f'{u.path}: column frames is empty; --features frames needs a file for every utterance')
    return replace(u, path=u.frames, start=None, end=None)


def _array(path):
    """The array (L, D, T) in a .npy file of (D, T) or (L, D, T), as a memory map. UserError."""
    try:
        x = np.load(path, mmap_mode='r', allow_pickle=False)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror or error})') from None
    except (*WHATEVER, EOFError):  # what numpy says of other files is that they may be pickles
        raise UserError(f'{path}: not a .npy file of numbers, or cut short') from None
    if not isinstance(x, np.ndarray) or x.ndim not in (2, 3) or x.dtype.name not in ('float16', 'float32') or not x.size:
        what = f'{x.dtype} {x.shape}' if isinstance(x, np.ndarray) else 'an archive'
        raise UserError(f'{path}: holds {what}; frames are float16 or float32, (D, T) or (L, D, T)')
    return x.reshape(-1, *x.shape[-2:])


def of_file(path: str, config) -> np.ndarray:
    """The frames (T, L D) in a file of one's own, float16. UserError."""
    x = _checked(path, config)
    with np.errstate(over='ignore'):
        x = x.reshape(config.n_rows, -1).T.astype(np.float16)
    if not np.isfinite(x).all():
        raise UserError(f'{path}: holds numbers that are not finite, or beyond 65,504')
    return x


def _checked(path, config, why=''):
    """`_array`, which must have the layers and channels of all files. why: these, for the message."""
    x = _array(path)
    L, D = x.shape[:2]
    if (L, D) != config.frames:
        raise UserError(f'{path}: {L} layer{"s" * (L > 1)} of {D} channels, where {config.frames[0]} of {config.frames[1]} are '
                        f'wanted{why}; files hold (D, T) or (L, D, T), time last, and all have the same D and L')
    return x


def _copied(missing: Missing, config, cache_dir, _, faults, notes, quiet) -> Iterator[tuple[str, Stored]]:
    """Yields (path, Stored) of the files of frames, copied so that a frame is contiguous."""
    sizes = {}
    for path, u in missing.items():
        with faults.collect():
            sizes[path] = _checked(u.frames, config, ', as the first file of the manifest has').size
    faults.check()
    _check_room(2 * sum(sizes.values()), cache_dir, f'{len(sizes)} file{"s" * (len(sizes) > 1)} of frames', quiet)
    with utils.progress(len(sizes), f'frames to {cache_dir}', quiet) as bar:
        for path in sizes:
            with faults.collect():
                yield path, write(path, of_file(missing[path].frames, config))
            bar.update()
