"""What the programs need around their loops: errors, devices, seeds, whole files, and the folder of a run."""
import contextlib
import csv
import difflib
import errno
import fcntl
import io
import json
import logging
import os
import random
import re
import shutil
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
import yaml
from tensorboardX import SummaryWriter
from tqdm import tqdm

from config import UserError, contents_of, escape_markdown, plain, read_yaml_file

# Format of a run's folder and of best.pt. 1: pooling over time included padding. 2: it does not.
FORMAT = 2
# Settings that may change on --resume; the data are compared by digest and normalisation instead.
MAY_CHANGE = {'device', 'resume', 'overwrite', 'config', 'workers', 'resident', 'threads', 'data_path', 'cache'}
# Values that these settings had, in effect, in runs made before they existed.
BEFORE_THE_SETTING = {
    'trim_db': 0., 'train_on_dev': False, 'normalise': 'corpus', 'embedding': 'none', 'fast': True, 'prosody': False,
    'deltas': False, 'speed': 0., 'vtlp': 0., 'copypaste': 0., 'copypaste_with': 'emotion', 'noise': 0., 'snr_low': 10.,
    'snr_high': 30., 'ema': 0., 'space': 'paper', 'relaxation': 'softmax', 'sampling': 'gumbel', 'finalists': 0,
    'candidates': 300, 'finalist_epochs': 0, 'tournament_minutes': 0.}
# Errors of the operating system that the user can mend; others are mistakes in this code.
USERS_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EEXIST,
               errno.EMFILE, errno.ENAMETOOLONG}

LINE_EVERY = 30  # s between lines about a long task

_open_runs = set()


def cli(main: Callable, speaks: Callable = lambda: True, leave: Callable = sys.exit, advice: str = ''):
    """Runs main() as a program. A user's mistake is one line on stderr and exit code 2, an interruption exit code 130.

    speaks() tells whether this process prints the line, since several may end for one reason. leave(code) ends it.
    advice: what to do after an interruption.
    """
    def end(code, message=None, why=None):
        if message and speaks():
            print(f'{os.path.basename(sys.argv[0])}: {" ".join(message.split())}', file=sys.stderr, flush=True)
        for run in list(_open_runs) if code in (1, 2) else ():
            with contextlib.suppress(OSError), open(run.file(f'{run.program}.log'), 'a') as f:  # scripts/runs.py reads this
                f.write(f'FAILED: {" ".join((message or why or "see the output of the program").split())}\n')
        for run in list(_open_runs):  # flush TensorBoard: a resumed run does not draw old epochs again
            with contextlib.suppress(OSError):  # the disk may be full
                run.close()
        leave(code)
    try:
        main()
    except UserError as error:
        end(2, str(error))
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        end(2)
    except KeyboardInterrupt:
        end(130, f'interrupted; {advice}' if advice else 'interrupted')
    except (torch.OutOfMemoryError, MemoryError) as error:
        end(2, out_of_memory(error))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in USERS_ERRNO:
            end(2, f'{error.filename or "the disk"}: {error.strerror}')
        else:
            traceback.print_exc()
            end(1, why=repr(error))


def out_of_memory(error) -> str:
    """What to do when the memory of a device, or of this machine, is full."""
    gpu = isinstance(error, torch.OutOfMemoryError)
    used = f' after {torch.cuda.max_memory_allocated() / 1e9:.1f} GB' if gpu and torch.cuda.is_available() else ''
    sizes = [f' with --batch_size {run.config.batch_size}' for run in _open_runs if hasattr(run.config, 'batch_size')]
    return (f'out of memory on the {"GPU" if gpu else "host"}{used}{"".join(sizes)}: lower --batch_size, --duration or '
            '--init_channels in a run of another --name; the same command with --resume continues on a larger machine')


def set_threads(n: int):
    """Sets the CPU threads of torch. 0: OMP_NUM_THREADS, or all cores but one.

    A cell is many small operations, and threads wait for each other at every one. On two cores the second thread saves
    a fifth of the time, but slows a step many times over when another program needs that core.
    """
    if n == 0 and 'OMP_NUM_THREADS' not in os.environ:
        n = max(1, torch.get_num_threads() - 1)
    if n:
        torch.set_num_threads(n)


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """'auto' -> CUDA if there is a GPU, else the CPU. A GPU becomes the current one. UserError if it cannot be used.

    local_rank: number of this process on its machine under torchrun; each process takes the GPU of its number.
    """
    if not re.fullmatch(r'auto|cpu|cuda(:(0|[1-9]\d{0,3}))?', name):
        hint = '; did you mean cuda?' if name.lower().startswith(('gpu', 'cuda', 'nvidia')) else ''
        raise UserError(f'--device {name}: must be auto, cpu, cuda or cuda:N{hint}')
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    if local_rank is not None and name.startswith('cuda'):
        if name != 'cuda':
            raise UserError(f'--device {name}: under torchrun each process takes the GPU of its number; say --device cuda')
        name = f'cuda:{local_rank}'
    device = torch.device(name)
    try:
        if device.type == 'cuda':
            torch.cuda.set_device(device.index or 0)  # pinned memory and bfloat16 support concern the current GPU
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {name}: {str(error).splitlines()[0]}; use --device cpu or auto') from None
    return device


def autocast(device: torch.device, wanted: bool):
    """bfloat16 autocast on a GPU that computes in bfloat16 natively; elsewhere a context that does nothing."""
    able = device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and able)


def describe_device(device: torch.device, n_processes: int = 1) -> str:
    """'NVIDIA H100', or 'cpu, 2 threads'."""
    n_threads = torch.get_num_threads()
    threads = f'{n_threads} thread{"s" * (n_threads > 1)}'
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'cpu, {threads}'
    return name if n_processes == 1 else f'{n_processes} processes, each on {name}'


def set_seed(seed: int):
    """Seeds Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def count_parameters(parameters: Iterable) -> int:
    """Number of scalars in `parameters`."""
    return sum(p.numel() for p in parameters)


def write_aside(path, write: Callable, shared: bool = False):
    """Calls write(file) on a temporary file and renames it to `path`: the file is whole or absent.

    shared: several processes may write this file, which can be made again; so each has a temporary file of its own, and
    nothing waits for the disk.
    """
    aside = f'{path}.{socket.gethostname()}-{os.getpid()}.tmp' if shared else f'{path}.tmp'
    try:
        with open(aside, 'wb') as f:
            write(f)
            if not shared:
                f.flush()
                os.fsync(f.fileno())
        os.replace(aside, path)
    except OSError as error:  # a full disk, for example; the error of a write does not name the file
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_json(path, tree):
    """Writes `tree` as JSON, whole or not at all."""
    write_aside(path, lambda f: f.write((json.dumps(tree, indent=1) + '\n').encode()))


def write_torch(path, tree):
    """torch.save, whole or not at all."""
    write_aside(path, lambda f: torch.save(tree, f))


def write_csv(path, header, rows):
    """Writes a CSV file, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([header, *rows])
    write_aside(path, lambda f: f.write(text.getvalue().encode()))


def read_settings(path) -> dict:
    """Settings of a run from its config.yaml, those without effect included, and its `format`. UserError if it is damaged."""
    try:
        tree = read_yaml_file(path)
        tree = {'format': 1, **tree.pop('not_used', {}), **tree}
        if 'name' in tree and isinstance(tree['format'], int):
            return tree
        why = 'it lacks settings'
    except (UserError, TypeError) as error:
        why = str(error).removeprefix(f'{path}: ')
    raise UserError(f'{path} is damaged ({why}): delete its folder, or begin anew with --overwrite')


def read_torch(path, advice: str) -> dict:
    """A dict that write_torch wrote, on the CPU. Only tensors and plain values are read. UserError, with what to do."""
    try:
        tree = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f'{path} cannot be read ({type(error).__name__}): {advice}') from None
    if not isinstance(tree, dict):
        raise UserError(f'{path}: holds no dict, so it is not of this program: {advice}')
    return tree


def check_history(history) -> None:
    """ValueError, TypeError or KeyError if these are not the rows of metrics.jsonl, from epoch 1 on."""
    if [row['epoch'] for row in history] != list(range(1, len(history) + 1)):
        raise ValueError('the rows of the epochs are not in order')
    if not all(row.get('seconds', 0) >= 0 for row in history):
        raise ValueError('an epoch has no time')


def recorded(settings: dict, name: str):
    """A setting of an earlier run, or what runs did before the setting existed; None if neither is known."""
    return settings.get(name, BEFORE_THE_SETTING.get(name))


def progress(total: int, what: str, quiet: bool = False) -> tqdm:
    """A progress bar; without a terminal, a line on stderr every LINE_EVERY seconds."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=what, disable=quiet, leave=False)
    return tqdm(total=total, desc=what, disable=quiet, leave=False, file=_Lines(), ncols=100, delay=LINE_EVERY,
                mininterval=LINE_EVERY, maxinterval=LINE_EVERY, bar_format='{desc}: {n_fmt} of {total_fmt}, {remaining} left')


class _Lines:
    """Writes what tqdm draws as lines on stderr."""

    def write(self, text):
        if text := text.strip('\r\n '):
            print(text, file=sys.stderr, flush=True)

    def flush(self):
        pass


def time_left(run) -> str:
    """', 12 min left', from the mean time of the epochs so far; '' after the last one."""
    seconds = [row['seconds'] for row in run.history]
    left = sum(seconds) / len(seconds) * (run.config.epochs - len(seconds))
    if not left:
        return ''
    return f', {left:.0f} s left' if left < 90 else f', {left / 60:.0f} min left'


class Run:
    """The folder runs/PROGRAM/NAME: config.yaml, PROGRAM.log, metrics.jsonl, checkpoint.pt, tb/.

    The constructor checks whether the run may be made, `open` creates or resumes it, `close` ends it. The data are loaded
    between the first two, so a mistake in them does not touch an earlier run. Of several processes only one `writes`: the
    others call neither `open` nor `file`, and the other methods do nothing there.
    """

    def __init__(self, program: str, config, writes: bool = True):
        self.program, self.config, self.writes = program, config, writes
        self.root = os.path.join('runs', program)
        self.path = os.path.join(self.root, config.name)
        self.settings = {name: value for name, value in asdict(config).items() if name not in MAY_CHANGE}
        self.format, self.history, self.lock = FORMAT, [], None
        self.tag = lambda group, name: f'{group}/{name}' if name else group  # of a number of a row, in TensorBoard
        self.logger, self.writer = logging.getLogger('emodarts.silent'), _Nothing()
        self._check()

    def _check(self):
        """UserError if this run must not be made: it would lose, mix or hide another."""
        name, path = self.config.name, self.path
        inside = [found for found in self._runs(path) if found != path]
        if inside:
            raise UserError(f'--name {name}: {path} contains other runs, such as {inside[0]}; take another --name')
        for parent in list(Path(path).parents)[:-2]:  # without runs/PROGRAM and above
            if (parent / 'config.yaml').exists():
                raise UserError(f'--name {name}: {parent} is a run; take a --name outside it')
        if self.config.overwrite and os.path.islink(path):
            raise UserError(f'--overwrite: {path} is a link to another folder: remove the link, or take another --name')
        self.exists = os.path.exists(self.file('config.yaml'))
        if not self.exists and os.path.lexists(path) and not (os.path.isdir(path) and set(os.listdir(path)) <= {'lock'}):
            raise UserError(f'{path} exists and is not a run: take another --name')
        if not self.exists or self.config.overwrite:
            return
        if not self.config.resume:
            raise UserError(f'{path} exists: continue it with --resume, replace it with --overwrite, or take another --name')
        before = read_settings(self.file('config.yaml'))
        self.format = before.pop('format')
        if self.format > FORMAT:
            raise UserError(f'{path} was made by a newer version of emoDARTS: update, or take another --name')
        for key in {**before, **self.settings}:
            then, now = recorded(before, key), self.settings.get(key)
            if key not in MAY_CHANGE and then != now:
                raise UserError(f'--resume: {plain(key)} is {plain(now)}, but {path} began with {plain(then)}; take another '
                                '--name')

    @staticmethod
    def _runs(folder):
        """Folders of runs at and below `folder`, sorted."""
        return sorted(above for above, _, files in os.walk(folder) if 'config.yaml' in files)

    def file(self, name: str) -> str:
        """Path of a file of this run."""
        return os.path.join(self.path, name)

    def open(self, data):
        """Creates the folder, or opens it again. Returns the last checkpoint of a resumed run, else None.

        data: datasets.Data. Its normalisation and digest are in every checkpoint; a run does not continue with others.
        """
        self.data = {'mean': data.mean, 'std': data.std, 'digest': data.digest}
        os.makedirs(self.path, exist_ok=True)
        self._lock()
        try:
            self._check()  # again: another process may have made this run meanwhile
        except UserError:
            self.lock.close()
            raise
        if self.config.overwrite:
            self._clear()
        checkpoint = self._read_checkpoint() if self.config.resume else None
        self._write_settings()
        self.logger = self._make_logger()
        self.history = checkpoint['history'] if checkpoint else []
        # Rows after the checkpoint belong to an epoch that will be run again.
        write_aside(self.file('metrics.jsonl'), lambda f: f.write(''.join(map(_json_line, self.history)).encode()))
        done = len(self.history)
        self.writer = SummaryWriter(self.file('tb'), flush_secs=10, purge_step=done + 1 if checkpoint else None,
                                    filename_suffix=f'.{done:06}')  # or files of the same second overwrite each other
        _open_runs.add(self)
        if self.config.resume and not self.exists:
            self._announce_new()
        elif self.config.resume and not checkpoint:
            self.logger.info('no complete epoch in %s: it begins again', self.path)
        if checkpoint:
            self.logger.info('resumed after epoch %d of %s', len(self.history), self.path)
        else:
            rows = [f'|{name}|{escape_markdown(value)}|' for name, value in self.settings.items()]
            self.writer.add_text('parameters', '\n'.join(['|setting|value|', '|---|---|', *rows]), 0)
        defaults = {f.name: f.default for f in fields(self.config)}
        unused = [f'{name} {self.settings[name]} (with {why})' for name, why in self.config.unused().items()
                  if self.settings[name] != defaults[name]]
        if unused:
            self.logger.info('NOTE: settings without effect: %s', ', '.join(unused))
        return checkpoint

    def _lock(self):
        """Refuses a second process with the same --name. The lock goes with the process, however it ends."""
        self.lock = open(self.file('lock'), 'a')
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f'another process is writing {self.path}: wait for it, or take another --name') from None
        except OSError:
            pass  # a file system without locks

    def _clear(self):
        """Deletes everything but the lock that this process holds."""
        for entry in os.scandir(self.path):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != 'lock':
                os.unlink(entry.path)

    def _write_settings(self):
        unused = self.config.unused()
        tree = {'format': self.format, **{name: value for name, value in self.settings.items() if name not in unused}}
        if unused:
            tree['not_used'] = {name: self.settings[name] for name in unused}
        write_aside(self.file('config.yaml'), lambda f: f.write(yaml.safe_dump(tree, sort_keys=False).encode()))

    def _announce_new(self):
        others = [os.path.relpath(path, self.root) for path in self._runs(self.root) if path != self.path]
        near = difflib.get_close_matches(self.config.name, others, 3)
        self.logger.warning('WARNING: --resume: there was no run %s, so a NEW run begins.%s', self.path,
                            f' Runs with similar names: {", ".join(near)}' if near else '')

    def _read_checkpoint(self):
        path = self.file('checkpoint.pt')
        if not os.path.exists(path):
            return None
        checkpoint = read_torch(path, 'begin anew with --overwrite')
        if 'digest' not in checkpoint:
            raise UserError(f'{path} was written by an earlier version: begin anew with --overwrite')
        if checkpoint['digest'] != self.data['digest']:
            raise UserError(f'--resume: utterances, labels or speakers differ from those {self.path} began with: begin anew '
                            'with --overwrite')
        with self.reading():
            check_history(checkpoint['history'])
            same = all(torch.equal(checkpoint[name], self.data[name]) for name in ('mean', 'std'))
        if not same:
            raise UserError(f'--resume: the training audio differs from that which {self.path} began with: begin anew with '
                            '--overwrite')
        return checkpoint

    def reading(self):
        """Inside, what is wrong with the contents of the checkpoint becomes a UserError."""
        return contents_of(self.file('checkpoint.pt'), 'begin anew with --overwrite')

    def _make_logger(self):
        logger = logging.getLogger(f'emodarts.{self.program}')
        logger.setLevel(logging.INFO)
        logger.propagate = False
        for handler in list(logger.handlers):
            handler.close()
            logger.removeHandler(handler)
        for handler in (logging.FileHandler(self.file(f'{self.program}.log')), _Stdout(sys.stdout)):
            handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%m/%d %H:%M:%S'))
            logger.addHandler(handler)
        return logger

    def end_epoch(self, row: dict):
        """Appends a row to metrics.jsonl and plots its numbers, nested as {'train': {'ua': .7}}, in TensorBoard."""
        self.history.append(row)
        if not self.writes:
            return
        with open(self.file('metrics.jsonl'), 'a') as f:
            f.write(_json_line(row))
        for group, value in row.items():
            for name, number in (value.items() if isinstance(value, dict) else [(None, value)]):
                if isinstance(number, float):
                    self.writer.add_scalar(self.tag(group, name), number, row['epoch'])

    def draw(self, tag: str, make_figure: Callable, step: int):
        """Adds the figure that make_figure() returns to TensorBoard. If it cannot be drawn, the log says so."""
        if not self.writes:
            return
        try:
            self.writer.add_figure(tag, make_figure(), step)
        except Exception as error:
            self.logger.warning('WARNING: the picture %s could not be drawn (%s: %s)', tag, type(error).__name__, error)

    def save(self, name: str, tree: dict):
        """torch.save to a file of this run."""
        if self.writes:
            write_torch(self.file(name), tree)

    def save_checkpoint(self, state: dict):
        """Writes what --resume needs."""
        self.save('checkpoint.pt', {**state, **self.data, 'history': self.history} if self.writes else {})

    def close(self):
        """Flushes TensorBoard and releases the lock."""
        _open_runs.discard(self)
        self.writer.close()
        if self.lock:
            self.lock.close()


class _Stdout(logging.StreamHandler):
    """Raises what logging would print as a traceback and forget, such as a broken pipe."""

    def handleError(self, record):
        raise


class _Nothing:
    """A SummaryWriter of a process that does not write."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def _json_line(row):
    return json.dumps(row) + '\n'
