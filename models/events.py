"""TensorBoard's event files, written at once: what a checkpoint follows is on disk, and a full disk ends no training.

tensorboardX writes from a thread, behind a queue. A kill loses what is in the queue, and when a full disk has ended the thread,
the program waits for ever. Here an event is one write of this process.
"""
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable

from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.writer import FileWriter

import utils

PREFIX = 'events.out.tfevents.'


def sizes(folder: str) -> dict[str, int]:
    """{name: bytes} of the event files in `folder`."""
    if not os.path.isdir(folder):
        return {}
    return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.name.startswith(PREFIX)}


def cut(folder: str, kept: dict[str, int]) -> list[str]:
    """Removes what is not in `kept`, an earlier result of `sizes`. Returns the files that have lost events since."""
    for name, size in sizes(folder).items():
        path = os.path.join(folder, name)
        if name not in kept:
            os.unlink(path)
        elif size > kept[name]:
            os.truncate(path, kept[name])
    now = sizes(folder)
    return [name for name, size in kept.items() if now.get(name, 0) < size]


class _Records:
    """An event file; takes the place of tensorboardX's EventFileWriter."""

    def __init__(self, folder: str, suffix: str):
        os.makedirs(folder, exist_ok=True)
        name = f'{PREFIX}{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}{suffix}'
        self.folder = folder
        self.fd = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.size = os.fstat(self.fd).st_size
        self.add_event(Event(wall_time=time.time(), file_version='brain.Event:2'))

    def get_logdir(self):
        return self.folder

    def add_event(self, event):
        """Appends a record: length, its checksum, the event, its checksum. A part of one would hide all that follow."""
        data = event.SerializeToString()
        length = struct.pack('<Q', len(data))
        record = length + struct.pack('<I', masked_crc32c(length)) + data + struct.pack('<I', masked_crc32c(data))
        try:
            utils.write_all(self.fd, record)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self.size)
            raise
        self.size += len(record)

    def flush(self):
        if self.fd is not None:
            os.fsync(self.fd)

    def close(self):
        if self.fd is not None:
            self.flush()
            os.close(self.fd)
            self.fd = None


class _Writer(SummaryWriter):

    def _get_file_writer(self):
        if self.file_writer is None:
            self.file_writer = FileWriter.__new__(FileWriter)  # its constructor starts the thread
            self.file_writer.event_writer = _Records(self.logdir, self._filename_suffix)
            self.file_writer._default_metadata = {}
            self.all_writers = {self.logdir: self.file_writer}
            if self.purge_step is not None:  # for a TensorBoard that watches: it has read what is cut off now
                self.file_writer.add_event(Event(step=self.purge_step, session_log=SessionLog(status=SessionLog.START)))
        return self.file_writer


class Board:
    """A SummaryWriter whose methods never raise: a failure is one warning, and no more of its kind are said."""

    def __init__(self, folder: str, warn: Callable, checkpoint: dict | None = None, suffix: str = ''):
        """checkpoint: what came after it in `folder` is removed; None: everything. suffix: of the name of the new file."""
        self._warn, self._said, self._writer = warn, set(), None
        kept = checkpoint.get('events') if checkpoint else {}
        if kept is not None and (lost := self.guard(lambda: cut(folder, kept))):  # else an earlier version wrote it
            warn('WARNING: %s has lost events', os.path.join(folder, lost[0]))
        step = len(checkpoint['history']) + 1 if checkpoint else None
        self._writer = self.guard(lambda: _Writer(folder, purge_step=step, filename_suffix=suffix))

    def __getattr__(self, name):
        return lambda *args, **kwargs: self._writer and self.guard(lambda: getattr(self._writer, name)(*args, **kwargs))

    def draw(self, tag: str, make_figure: Callable, step: int):
        """Adds the figure that make_figure() returns."""
        self.guard(lambda: self._writer and self._writer.add_figure(tag, make_figure(), step), f'the picture {tag}')

    def guard(self, do: Callable, what: str = 'TensorBoard\'s events'):
        """do(), or None if it fails."""
        try:
            return do()
        except Exception as error:
            why = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
            if (what, why) not in self._said:
                self._said.add((what, why))
                self._warn('WARNING: %s could not be written (%s); the numbers go on', what, why)
