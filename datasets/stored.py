"""Frames in files, one file per utterance, which is read whole or window by window.

A file is what numpy.save writes of float16 (T, F), so that a window is contiguous, and behind it the mean and variance of each
row, float64 (2, F), which numpy.load ignores.
"""
import os
import re
from dataclasses import dataclass, replace

import numpy as np
import torch

import utils
from config import UserError

HEADER_BYTES = 128
HEADER = re.compile(rb"\x93NUMPY\x01\x00\x76\x00\{'descr': '<f2', 'fortran_order': False, "
                    rb"'shape': \((?P<frames>[1-9]\d{0,8}), (?P<rows>[1-9]\d{0,6})\), \} *\n\Z")  # as numpy.save writes it


@dataclass(frozen=True)
class Stored:
    """Features (F, T) of an utterance in a file; `by` normalises them when they are read, as dataset.scaled does."""
    path: str
    shape: tuple[int, int]  # (F, T)
    by: tuple[torch.Tensor, torch.Tensor] | None = None  # mean and deviation of the speaker, (F, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the features."""
        return 2 * self.shape[0] * self.shape[1]

    def read(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Frames first:last, float16 (n, F)."""
        rows, n_frames = self.shape
        n = (n_frames if last is None else last) - first
        x = self._values('<f2', n * rows, HEADER_BYTES + 2 * rows * first).reshape(n, rows)
        if self.by:
            mean, std = (part[:, 0].numpy() for part in self.by)
            x = ((x - mean) / std).astype(x.dtype)
        return x

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each row over the frames, float64 (F, 1)."""
        mean, variance = self._values('<f8', 2 * self.shape[0], HEADER_BYTES + self.nbytes).reshape(2, -1, 1)
        if self.by:
            own_mean, own_std = (part.double().numpy() for part in self.by)
            mean, variance = (mean - own_mean) / own_std, variance / own_std ** 2
        return mean, variance

    def _values(self, dtype, n, offset):
        """n numbers of the file from a byte on. It is not kept open: a corpus may have more files than may be open."""
        try:
            x = np.fromfile(self.path, dtype, n, offset=offset)
        except FileNotFoundError:
            x = ()
        if len(x) != n:
            raise UserError(f'{self.path}: is gone or damaged since the program began; start it again, with --resume if it had '
                            'begun to train')
        return x

    def normalised(self, by: tuple[torch.Tensor, torch.Tensor]) -> 'Stored':
        """These features, normalised by moments (F, 1) when they are read."""
        return replace(self, by=by)


def write(path: str, x: np.ndarray) -> Stored:
    """Stores float16 (T, F) at `path`, whole or not at all."""
    moments = np.stack([x.mean(axis=0, dtype=np.float64), x.astype(np.float64).var(axis=0)])

    def both(f):
        np.save(f, np.ascontiguousarray(x))
        f.write(moments.tobytes())
    os.makedirs(os.path.dirname(path), exist_ok=True)
    utils.write_aside(path, both, shared=True)
    return Stored(path, x.shape[::-1])


def find(path: str, rows: int) -> Stored | None:
    """What `write` stored at `path`; None if there is nothing, or a damaged file."""
    try:
        with open(path, 'rb') as f:
            match = HEADER.match(f.read(HEADER_BYTES))
            size = os.fstat(f.fileno()).st_size
    except OSError:
        return None
    if not match or int(match['rows']) != rows:
        return None
    found = Stored(path, (rows, int(match['frames'])))
    return found if size == HEADER_BYTES + found.nbytes + 16 * rows else None


class OnDisk:
    """Features of utterances in files, in place of a tensor (F, sum of T_i) of all of them."""

    def __init__(self, features: list[Stored], pin: bool = False):
        """pin: results lie in memory that a GPU reads while the host goes on, unless frames are repeated."""
        self.features, self.pin = features, pin
        lengths = [x.shape[1] for x in features]
        self.ends = np.cumsum(lengths)
        self.shape = features[0].shape[0], int(self.ends[-1])
        self.dtype = torch.float16

    def __len__(self) -> int:
        return self.shape[0]

    def load(self) -> torch.Tensor:
        """All of it, (F, sum of T_i); a frame is contiguous in memory."""
        x = np.empty(self.shape[::-1], np.float16)
        for part, end in zip(self.features, self.ends):
            x[end - part.shape[1]:end] = part.read()
        return torch.from_numpy(x).T

    def index_select(self, _, columns: torch.Tensor) -> torch.Tensor:
        """Columns (n,), in any order, as a tensor (F, n). Frames side by side are read together, and repeated ones once."""
        wanted, where = columns.unique_consecutive(return_inverse=True)
        wanted = wanted.numpy()
        files = np.searchsorted(self.ends, wanted, side='right')
        breaks = np.flatnonzero((np.diff(wanted) != 1) | (np.diff(files) != 0)) + 1
        x = torch.empty(len(wanted), len(self), dtype=self.dtype, pin_memory=self.pin)
        for first, last in zip([0, *breaks], [*breaks, len(wanted)]):
            part = self.features[files[first]]
            begin = wanted[first] - self.ends[files[first]] + part.shape[1]
            x.numpy()[first:last] = part.read(begin, begin + last - first)
        return (x if len(x) == len(columns) else x[where]).T


def columns(frames: torch.Tensor | OnDisk, t: torch.Tensor) -> torch.Tensor:
    """Columns t (n,) of frames (F, T): (F, n)."""
    if isinstance(frames, torch.Tensor) and frames.stride(0) == 1:  # a column is contiguous
        return frames.T.index_select(0, t).T
    return frames.index_select(1, t)
