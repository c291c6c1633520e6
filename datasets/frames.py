"""Frames of a speech encoder, or from files of one's own, in the cache."""
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

import utils
from config import WHATEVER, UserError, short
from datasets.faults import Faults
from datasets.features import Cached, file_digest
from datasets.index import Index
from datasets.readers import manifest
from datasets.stored import Stored, find, write
from datasets.utterance import Utterance

VERSION = 1  # part of every cache key; raise it when the arithmetic below changes
Missing = dict[str, Utterance]  # {path in the cache: utterance}


def found(config) -> dict:
    """The settings that the frames of `config` decide. UserError if there are none."""
    if config.dataset != 'manifest' or not config.data_path:
        raise UserError('--features frames needs --dataset manifest, whose column frames names the files')
    files = (u.frames for u in manifest.scan(config.data_path) if u.frames)
    if not (first := next(files, None)):
        raise UserError(f'--features frames: {config.data_path} has no column frames, or it is empty')
    return {'frame_shape': '{}x{}'.format(*_array(first).shape)}


def cached_frames(utterances: list[Utterance], config, cache_dir: str, quiet: bool = False) -> Cached:
    """Frames of utterances as Stored, from the cache, or made and put there; one UserError of all faults.

    Every utterance has its own file in the cache, so that an interrupted extraction continues where it stopped.
    """
    index, faults, notes = _index(config, cache_dir), Faults(), []
    paths, files, there, missing = [], [], {}, {}
    with utils.progress(len(utterances), f'frames in {cache_dir}', quiet) as bar:
        for u in utterances:
            with faults.collect():
                key = index.key(_source(u))
                path = os.path.join(cache_dir, key[:2], f'{key}.npy')
                paths.append(path)
                files.append(key)
                if path not in there and path not in missing and (x := find(path, config.n_rows)):
                    there[path] = x
                if path not in there:
                    missing.setdefault(path, u)
            bar.update()
    index.save()
    if missing:
        utils.remove_asides(cache_dir)
        there.update(_copied(missing, config, cache_dir, faults, quiet))
    faults.check()
    return Cached([there[path] for path in paths], len(missing), files, sorted(notes))


def _index(config, cache_dir):
    """The Index of keys: of the bytes of the file of frames."""
    settings = repr(('frames', VERSION))

    def key(u):
        digest = file_digest(u.path)
        digest.update(settings.encode())
        return digest.hexdigest()
    return Index(os.path.join(cache_dir, f'index-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json'), key)


def _source(u):
    """What is read for an utterance: the whole of its file of frames. UserError if there is none."""
    if not u.frames:
        raise UserError(f'{u.path}: column frames is empty; --features frames needs a file for every utterance')
    return replace(u, path=u.frames, start=None, end=None)


def _check_room(n_bytes, cache_dir, what, quiet):
    """Says what the files will take. UserError if the disk has not that much room."""
    os.makedirs(cache_dir, exist_ok=True)
    free = shutil.disk_usage(cache_dir).free
    if n_bytes > free:
        raise UserError(f'{cache_dir}: {what} take {n_bytes / 1e9:.1f} GB, but its disk has {free / 1e9:.1f} GB free: make '
                        'room, or name another folder with --cache')
    if not quiet:
        print(f'{what} will take {n_bytes / 1e9:.1f} GB in {os.path.abspath(cache_dir)}', file=sys.stderr)


# --- Files of one's own ---

def _array(path):
    """The array (L, D, T) in a .npy file of (D, T) or (L, D, T), as a memory map. UserError."""
    try:
        x = np.load(path, mmap_mode='r', allow_pickle=False)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror or error})') from None
    except (*WHATEVER, EOFError) as error:
        raise UserError(f'{path}: not a .npy file of numbers ({short(str(error), 120)})') from None
    if not isinstance(x, np.ndarray) or x.ndim not in (2, 3) or x.dtype.name not in ('float16', 'float32') or not x.size:
        what = f'{x.dtype} {x.shape}' if isinstance(x, np.ndarray) else 'an archive'
        raise UserError(f'{path}: holds {what}; frames are float16 or float32, (D, T) or (L, D, T)')
    return x.reshape(-1, *x.shape[-2:])


def _copied(missing: Missing, config, cache_dir, faults, quiet) -> Iterator[tuple[str, Stored]]:
    """Yields (path, Stored) of the files of frames, copied so that a frame is contiguous."""
    arrays = {}
    for path, u in missing.items():
        with faults.collect():
            L, D, T = _array(u.frames).shape
            if (L, D) != config.frames:
                raise UserError(f'{u.frames}: {L} layers of {D} channels, but the first file has {config.frames[0]} of '
                                f'{config.frames[1]}; all files must be alike')
            arrays[path] = u.frames, T
    faults.check()
    _check_room(2 * config.n_rows * sum(T for _, T in arrays.values()), cache_dir, f'{len(arrays)} files of frames', quiet)
    with utils.progress(len(arrays), f'frames to {cache_dir}', quiet) as bar:
        for path, (file, _) in arrays.items():
            with faults.collect(), np.errstate(over='ignore'):
                x = _array(file).reshape(config.n_rows, -1).T.astype(np.float16)
                if not np.isfinite(x).all():
                    raise UserError(f'{file}: holds numbers that are not finite, or beyond 65,504')
                yield path, write(path, x)
            bar.update()
