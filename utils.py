"""What the programs need around their loops: errors, devices, seeds, whole files, and the folder of a run."""
import contextlib
import csv
import difflib
import errno
import fcntl
import functools
import hashlib
import io
import json
import logging
import os
import platform
import random
import re
import secrets
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
import yaml

import events
import signals
from config import UserError

# Format of a run's folder and of best.pt. 1: pooling over time included padding. 2: it does not.
FORMAT = 2
PREVIOUS = 'checkpoint.previous.pt'
BEFORE, MOVING = '.before', '.before.moving'  # in a run's folder: the run that it replaces; the same while it is moved
KEPT = {'lock', BEFORE, MOVING}
ASIDE = re.compile(r'.+\.(.+)-(\d+)-[0-9a-f]{8}\.tmp')  # file that is not yet at its place: host and process
# Settings that may change on --resume; the data are compared by digest and normalisation instead.
MAY_CHANGE = {'device', 'resume', 'overwrite', 'config', 'workers', 'resident', 'threads', 'data_path', 'cache'}
# Values that these settings had, in effect, in runs made before they existed.
BEFORE_THE_SETTING = {'deterministic': False, 'trim_db': 0., 'train_on_dev': False, 'normalise': 'corpus', 'fast': True}
# Errors of the operating system that the user can mend; others are mistakes in this code.
USERS_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EEXIST,
               errno.EMFILE, errno.ENAMETOOLONG}

_open_runs = set()


def cli(main: Callable, speaks: Callable = lambda: True, leave: Callable = sys.exit, advice: str = ''):
    """Runs main() as a program. A user's mistake is one line on stderr and exit code 2, an interruption exit code 130,
    SIGTERM or SIGUSR1 exit code 75.

    speaks() tells whether this process prints the line, since several may end for one reason. leave(code) ends it.
    advice: what to do after an interruption.
    """
    def end(code, message=None):
        if message and speaks():
            print(f'{os.path.basename(sys.argv[0])}: {" ".join(message.split())}', file=sys.stderr, flush=True)
        for run in list(_open_runs):  # flush TensorBoard: a resumed run does not draw old epochs again
            with contextlib.suppress(OSError):  # the disk may be full
                run.close(failed=True)
        leave(code)
    try:
        with signals.listening():
            main()
    except UserError as error:
        end(2, str(error))
    except signals.Stopped as stopped:
        end(signals.AGAIN, f'{stopped}; {advice}' if advice else str(stopped))
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        end(2)
    except KeyboardInterrupt:
        end(130, f'interrupted; {advice}' if advice else 'interrupted')
    except Exception as error:
        if isinstance(error, OSError) and error.errno in USERS_ERRNO:
            end(2, explain(error))
        else:
            traceback.print_exc()
            end(1)


def explain(error: OSError) -> str:
    """One line: the file, what is wrong, the disk it is on, what is safe and what to do."""
    where = error.filename or 'the disk'
    line = f'{where}: {error.strerror}'
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO) or not error.filename:
        return line
    disk = os.path.abspath(where)
    while not os.path.ismount(disk):
        disk = os.path.dirname(disk)
    free = ''
    with contextlib.suppress(OSError):
        free = f', {shutil.disk_usage(disk).free / 1e6:.1f} MB free'
    saved = [run.path for run in _open_runs if os.path.exists(run.file('checkpoint.pt'))]
    kept = f' The last checkpoint in {saved[0]} is whole: continue with --resume.' if saved else ''
    return f'{line} (disk {disk}{free}). Files written before are whole; make room or mend the disk, and start again.{kept}'


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


@functools.cache
def provenance() -> dict:
    """What made a file: git commit and whether the code differs from it, versions, device, command."""
    root = os.path.dirname(os.path.abspath(__file__))

    def git(*words):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(['git', '-C', root, *words], capture_output=True, text=True, timeout=10).stdout
        return ''
    top, _, commit = git('rev-parse', '--show-toplevel', 'HEAD').strip().partition('\n')
    known = bool(commit) and os.path.realpath(top) == os.path.realpath(root)  # this folder may lie in another repository
    cpu = f'cpu ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads'
    return {'commit': commit if known else None,
            'dirty': bool(git('status', '--porcelain', '--untracked-files=no')) if known else None,
            'python': platform.python_version(), 'torch': str(torch.__version__), 'numpy': np.__version__,
            'device': torch.cuda.get_device_name() if torch.cuda.is_initialized() else cpu,
            'command': shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])}


def digest_of(tree) -> str:
    """Hex digest of a tree that JSON can hold."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def set_deterministic():
    """Takes operations whose bits are the same each time. One that has no such form is named in a warning."""
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # read when CUDA begins
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def count_parameters(parameters: Iterable) -> int:
    """Number of scalars in `parameters`."""
    return sum(p.numel() for p in parameters)


def write_aside(path, write: Callable, shared: bool = False):
    """Calls write(file) and puts what it wrote at `path`, which is whole or absent at any moment, also if power fails.

    shared: the file can be made again, so nothing waits for the disk. Any number of processes may write one file.
    """
    aside = f'{path}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.tmp'
    with signals.held():
        whole = io.BytesIO()  # torch.save, for example, hides the error of a full disk behind one of its own
        try:
            write(whole)
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                events.write_all(fd, whole.getbuffer())
                if not shared:
                    os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(aside, path)
            if not shared:
                _sync_folder(os.path.dirname(path) or '.')
        except OSError as error:  # the error of a write does not name the file
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise OSError(error.errno, error.strerror, str(path)) from None


def _sync_folder(folder):
    """Makes new names in a folder outlast a power cut."""
    with contextlib.suppress(OSError):  # some file systems cannot
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def remove_asides(folder, ours: bool = False):
    """Deletes what killed processes left of `write_aside` in and below `folder`.

    ours: no other process writes there. Otherwise those stay that may be at work: of living processes of this machine, and of
    the last day on other machines.
    """
    for above, _, files in os.walk(folder):
        for name in files:
            if found := ASIDE.fullmatch(name):
                path = os.path.join(above, name)
                with contextlib.suppress(OSError):
                    age = time.time() - os.path.getmtime(path)
                    gone = found[1] == socket.gethostname() and not os.path.exists(f'/proc/{found[2]}')
                    if ours or age > (60. if gone else 86_400.):  # a container may share our name but not our processes
                        os.unlink(path)


def write_json(path, tree):
    """Writes `tree` as JSON, whole or not at all."""
    write_text(path, json.dumps(tree, indent=1) + '\n')


def write_text(path, text: str):
    """Writes text in UTF-8, whole or not at all."""
    write_aside(path, lambda f: f.write(text.encode()))


def write_torch(path, tree):
    """torch.save, whole or not at all, with a checksum in the place of the ZIP file's comment: any torch.load reads it."""
    def write(f):
        torch.save(tree, f)
        comment = _checksum(f.getvalue())
        f.seek(-2, os.SEEK_END)  # the length of the comment
        f.write(struct.pack('<H', len(comment)) + comment)
    write_aside(path, write)


def _checksum(archive):
    return b'sha256:' + hashlib.sha256(archive).hexdigest().encode()


def read_torch(path) -> dict:
    """What `write_torch` wrote: tensors, on the CPU, and plain values. UserError if the file is damaged; executes nothing."""
    with open(path, 'rb') as f:
        data = f.read()
    try:
        size = len(_checksum(b''))
        if data[-22:-18] != b'PK\5\6' or data[-2:] != bytes(2):  # else an earlier version wrote it, without a checksum
            archive = data[:-size - 2] + bytes(2)
            if data[-size:] != _checksum(archive) or data[-size - 2:-size] != struct.pack('<H', size):
                raise ValueError('checksum')
        return torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f'{path} is damaged ({error if str(error) == "checksum" else type(error).__name__})') from None


def write_csv(path, header, rows):
    """Writes a CSV file, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([header, *rows])
    write_text(path, text.getvalue())


def read_settings(path) -> dict:
    """Settings of a run from its config.yaml, those without effect included, and its `format`. UserError if it is damaged."""
    try:
        with open(path, encoding='utf-8') as f:
            tree = dict(yaml.safe_load(f))
        return {'format': 1, **tree.pop('not_used', {}), **tree}
    except (yaml.YAMLError, TypeError, ValueError):
        raise UserError(f'{path} is damaged: delete its folder, or begin anew with --overwrite') from None


def recorded(settings: dict, name: str):
    """A setting of an earlier run, or what runs did before the setting existed; None if neither is known."""
    return settings.get(name, BEFORE_THE_SETTING.get(name))


class Run:
    """The folder runs/PROGRAM/NAME: config.yaml, PROGRAM.log, metrics.jsonl, checkpoint.pt and the one before it, tb/.

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
        if not self.exists and os.path.lexists(path) and not self._only_begun():
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
                raise UserError(f'--resume: {key} is {now}, but {path} began with {then}; take another --name')

    def _only_begun(self):
        """Whether a process was killed here before it wrote config.yaml, or while it moved the run."""
        return os.path.isdir(self.path) and (os.path.isdir(self.file(MOVING)) or all(
            name in KEPT or ASIDE.fullmatch(name) for name in os.listdir(self.path)))

    @staticmethod
    def _runs(folder):
        """Folders of runs at and below `folder`, sorted."""
        return sorted(above for above, _, files in os.walk(folder) if 'config.yaml' in files
                      and not os.path.basename(above).startswith('.'))

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
        self._finish_moving()
        try:
            self._check()  # again: another process may have made this run meanwhile
        except UserError:
            self.lock.close()
            raise
        _open_runs.add(self)
        try:
            return self._begin(data)
        except Exception:
            self.close(failed=True)
            raise

    def _begin(self, data):
        """What `open` does under the lock."""
        if self.config.overwrite:
            self._set_aside()
        remove_asides(self.path, ours=True)
        self.provenance = {**provenance(), 'settings': digest_of({**self.settings, 'name': None}), 'digest': data.digest,
                           'speakers': {part: list(getattr(data.fold, part)) for part in ('train', 'dev', 'test')},
                           'data_path': self.config.data_path}
        self._write_settings()  # first, since they tell that the folder is a run
        self.logger = self._make_logger()
        checkpoint = self._read_checkpoint() if self.config.resume else None
        self.history = checkpoint['history'] if checkpoint else []
        # Rows after the checkpoint belong to an epoch that will be run again, and so do events.
        write_text(self.file('metrics.jsonl'), ''.join(map(_json_line, self.history)))
        done = len(self.history)
        self.writer = events.Board(self.file('tb'), self.logger.warning, checkpoint, f'.{done:06}')
        if self.config.resume and not self.exists:
            self._announce_new()
        elif self.config.resume and not checkpoint:
            self.logger.info('no complete epoch in %s: it begins again', self.path)
        if checkpoint:
            inside = (checkpoint.get('steps') or {}).get('done')
            after = f'step {inside} of epoch {len(self.history) + 1}' if inside else f'epoch {len(self.history)}'
            self.logger.info('resumed after %s of %s', after, self.path)
        else:
            rows = [f'|{name}|{value}|' for name, value in self.settings.items()]
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

    def _set_aside(self):
        """Moves the run that is to be overwritten to BEFORE, where it stays until the new one has a checkpoint.

        If it is there already, what is in the folder is a new run that never had one.
        """
        if os.path.isdir(self.file(BEFORE)):
            self._clear()
        elif names := self._entries():
            os.mkdir(self.file(MOVING))
            for name in names:
                os.rename(self.file(name), self.file(os.path.join(MOVING, name)))
            os.rename(self.file(MOVING), self.file(BEFORE))

    def _give_back(self):
        """Undoes `_set_aside`, if the new run has no checkpoint."""
        if os.path.isdir(self.file(BEFORE)) and not os.path.exists(self.file('checkpoint.pt')):
            self._clear()
            os.rename(self.file(BEFORE), self.file(MOVING))
            self._finish_moving()
            print(f'{self.path} is again the run that was to be overwritten', file=sys.stderr)

    def _finish_moving(self):
        """Puts back what a killed process was moving."""
        if os.path.isdir(self.file(MOVING)):
            for name in os.listdir(self.file(MOVING)):
                os.rename(self.file(os.path.join(MOVING, name)), self.file(name))
            os.rmdir(self.file(MOVING))

    def _entries(self):
        return [name for name in os.listdir(self.path) if name not in KEPT]

    def _clear(self):
        """Deletes the new run, but neither the lock that this process holds nor the run that was moved."""
        for path in map(self.file, self._entries()):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)

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
        """The newest checkpoint that is whole and of these data, or None if there is none. UserError."""
        path, previous = self.file('checkpoint.pt'), self.file(PREVIOUS)
        try:
            checkpoint = read_torch(path)
        except FileNotFoundError:
            if not os.path.exists(previous):
                return None
            checkpoint = self._fall_back(f'{path} is missing')
        except UserError as error:
            checkpoint = self._fall_back(str(error))
        if 'digest' not in checkpoint:
            raise UserError(f'{path} was written by an earlier version: begin anew with --overwrite')
        if checkpoint['digest'] != self.data['digest']:
            raise UserError(f'--resume: utterances, labels or speakers differ from those {self.path} began with: begin anew '
                            'with --overwrite')
        if any(not torch.equal(checkpoint[name], self.data[name]) for name in ('mean', 'std')):
            raise UserError(f'--resume: the training audio differs from that which {self.path} began with: begin anew with '
                            '--overwrite')
        return checkpoint

    def _fall_back(self, why):
        """The checkpoint before the last one, which takes its place: the next one must not replace the only good one."""
        try:
            checkpoint = read_torch(self.file(PREVIOUS))
        except (FileNotFoundError, UserError):
            raise UserError(f'{why}, and there is no whole one before it: begin anew with --overwrite') from None
        os.replace(self.file(PREVIOUS), self.file('checkpoint.pt'))
        self.logger.warning('WARNING: %s: continuing from the checkpoint before it', why)
        return checkpoint

    def _make_logger(self):
        logger = logging.getLogger(f'emodarts.{self.program}')
        logger.setLevel(logging.INFO)
        logger.propagate = False
        for handler in list(logger.handlers):
            handler.close()
            logger.removeHandler(handler)
        for handler in (_File(self.file(f'{self.program}.log')), _Stdout(sys.stdout)):
            handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%m/%d %H:%M:%S'))
            logger.addHandler(handler)
        return logger

    def end_epoch(self, row: dict):
        """Appends a row to metrics.jsonl and plots its numbers, nested as {'train': {'ua': .7}}, in TensorBoard."""
        self.history.append(row)
        if not self.writes:
            return
        if n := row.get('train', {}).get('skipped'):
            self.logger.warning('WARNING: epoch %d: %d steps were skipped, whose gradients were not finite', row['epoch'], n)
        self._append('metrics.jsonl', _json_line(row))
        for group, value in row.items():
            for name, number in (value.items() if isinstance(value, dict) else [(None, value)]):
                if isinstance(number, float):
                    self.writer.add_scalar(f'{group}/{name}' if name else group, number, row['epoch'])

    def _append(self, name, text):
        """Appends to a file that the next start cuts back to the checkpoint."""
        try:
            fd = os.open(self.file(name), os.O_WRONLY | os.O_APPEND)
            try:
                events.write_all(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.file(name)) from None

    def draw(self, tag: str, make_figure: Callable, step: int):
        """Adds make_figure() to TensorBoard. If that fails, the log has one warning, and the run goes on."""
        self.writer.draw(tag, make_figure, step)

    def write_figure(self, name: str, make_figure: Callable):
        """Writes make_figure() to a PNG file of this run; a failure is a warning, as in `draw`."""
        self.writer.guard(lambda: write_aside(self.file(name), lambda f: make_figure().savefig(f, dpi=110, format='png')), name)

    def save(self, name: str, tree: dict):
        """torch.save to a file of this run."""
        if self.writes:
            write_torch(self.file(name), tree)

    def save_checkpoint(self, state: dict):
        """Writes what --resume needs, and keeps the checkpoint before it. What has been drawn is on disk first."""
        if not self.writes:
            return
        self.writer.flush()
        tree = {**state, **self.data, 'history': self.history, 'events': events.sizes(self.file('tb')),
                'provenance': self.provenance}
        with signals.held():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.file(PREVIOUS))
            try:
                os.link(self.file('checkpoint.pt'), self.file(PREVIOUS))
            except OSError:  # there is none yet, or the file system has no links
                with contextlib.suppress(FileNotFoundError):
                    os.replace(self.file('checkpoint.pt'), self.file(PREVIOUS))
            self.save('checkpoint.pt', tree)
        shutil.rmtree(self.file(BEFORE), ignore_errors=True)

    def close(self, failed: bool = False):
        """Flushes TensorBoard and releases the lock. failed: before its first checkpoint, --overwrite has changed nothing."""
        _open_runs.discard(self)
        self.writer.close()
        if self.lock:
            if failed:
                self._give_back()
            elif self.writes:
                shutil.rmtree(self.file(BEFORE), ignore_errors=True)
            self.lock.close()


class _Stdout(logging.StreamHandler):
    """Raises what logging would print as a traceback and forget, such as a broken pipe."""

    def handleError(self, record):
        raise


class _File(logging.FileHandler):
    """Forgets lines that cannot be written: the disk is full, say, which the next checkpoint will report."""

    def handleError(self, record):
        pass


class _Nothing:
    """A SummaryWriter of a process that does not write."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def _json_line(row):
    return json.dumps(row) + '\n'
