"""What the programs need around their loops: errors, devices, seeds, signals, whole files."""
import contextlib
import csv
import errno
import functools
import hashlib
import io
import json
import os
import platform
import random
import re
import resource
import secrets
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config import AGAIN, SIGNALS, UserError, end_at_once, of_earlier, read_yaml_file

# Format of a run's folder and of best.pt. 1: pooling over time included padding. 2: it does not. 3: a sampled supernet of the
# space speech has decisions outside its cells. 4: --prosody has a version.
FORMAT = 4
ASIDE = re.compile(r'.+\.(.+)-(\d+)-[0-9a-f]{8}\.tmp')  # file that is not yet at its place: host and process
# Settings that may change on --resume; the data are compared by digest and normalisation instead.
MAY_CHANGE = {'device', 'resume', 'overwrite', 'config', 'workers', 'resident', 'threads', 'data_path', 'cache'}
# Values that these settings had, in effect, in runs made before they existed; config.of_earlier has that of runs with prosody.
BEFORE_THE_SETTING = {
    'trim_db': 0., 'train_on_dev': False, 'normalise': 'corpus', 'embedding': 'none', 'fast': True, 'deterministic': False,
    'prosody': False, 'prosody_version': 2, 'deltas': False, 'speed': 0., 'vtlp': 0., 'copypaste': 0.,
    'copypaste_with': 'emotion', 'noise': 0., 'snr_low': 10., 'snr_high': 30., 'ema': 0., 'space': 'paper',
    'relaxation': 'softmax', 'sampling': 'gumbel', 'finalists': 0, 'candidates': 300, 'scored_utterances': 0, 'last_rung': 3,
    'finalist_epochs': 0, 'tournament_minutes': 0., 'tournament_cores': False, 'cnn_order': 'free', 'encoder': None,
    'encoder_layers': 'all', 'frames_per_s': 50., 'frame_shape': '', 'encoder_revision': '', 'functionals': 'own'}
# Errors of the operating system that the user can mend; others are mistakes in this code.
USERS_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EEXIST,
               errno.EMFILE, errno.ENAMETOOLONG}

LINE_EVERY = 30  # s between lines about a long task

open_runs = set()  # of models/run.py, which `cli` closes at the end
_writing, _training, _caught = 0, False, None  # state of the signals below


def cli(main: Callable, speaks: Callable = lambda: True, leave: Callable = sys.exit, advice: str = ''):
    """Runs main() as a program. A user's mistake is one line on stderr and exit code 2, an interruption exit code 130,
    SIGTERM or SIGUSR1 exit code 75.

    speaks() tells whether this process prints the line, since several may end for one reason. leave(code) ends it.
    advice: what to do after an interruption.
    """
    def end(code, message=None, why=None):
        if message and speaks():
            print(f'{os.path.basename(sys.argv[0])}: {" ".join(message.split())}', file=sys.stderr, flush=True)
        for run in list(open_runs) if code in (1, 2) else ():
            with contextlib.suppress(OSError), open(run.file(f'{run.program}.log'), 'a') as f:  # scripts/runs.py reads this
                f.write(f'FAILED: {" ".join((message or why or "see the output of the program").split())}\n')
        for run in list(open_runs):  # flush TensorBoard: a resumed run does not draw old epochs again
            with contextlib.suppress(OSError):  # the disk may be full
                run.close(failed=True)
        leave(code)
    try:
        with listening():
            main()
    except UserError as error:
        end(2, str(error))
    except Stopped as stopped:
        end(AGAIN, f'{stopped}; {advice}' if advice else str(stopped))
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        end(2)
    except KeyboardInterrupt:
        end(130, f'interrupted; {advice}' if advice else 'interrupted')
    except (torch.OutOfMemoryError, MemoryError) as error:
        end(2, out_of_memory(error))
    except Exception as error:
        if isinstance(error, RuntimeError) and 'DefaultCPUAllocator' in str(error):  # how torch says it of the host
            end(2, out_of_memory(error))
        elif isinstance(error, OSError) and error.errno in USERS_ERRNO:
            end(2, explain(error))
        else:
            traceback.print_exc()
            end(1, why=repr(error))


def out_of_memory(error) -> str:
    """What to do when the memory of a device, or of this machine, is full."""
    gpu = isinstance(error, torch.OutOfMemoryError)
    used = f' after {torch.cuda.max_memory_allocated() / 1e9:.1f} GB' if gpu and torch.cuda.is_available() else ''
    sizes = [f' with --batch_size {run.config.batch_size}' for run in open_runs if hasattr(run.config, 'batch_size')]
    return (f'out of memory on the {"GPU" if gpu else "host"}{used}{"".join(sizes)}: lower --batch_size, --duration or '
            '--init_channels in a run of another --name; the same command with --resume continues on a larger machine')


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
    saved = [run.path for run in open_runs if os.path.exists(run.file('checkpoint.pt'))]
    kept = f' The last checkpoint in {saved[0]} is whole: continue with --resume.' if saved else ''
    return f'{line} (disk {disk}{free}). Files written before are whole; make room or mend the disk, and start again.{kept}'


class Stopped(BaseException):
    """SIGTERM or SIGUSR1 has arrived. Like KeyboardInterrupt it is no Exception."""

    def __str__(self):
        return f'stopped by {signal.Signals(self.args[0]).name}'


def _handle_by(handler):
    """Returns the handlers before. Signals that are ignored, as by nohup, stay so."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    return before


@contextlib.contextmanager
def listening():
    """Inside, SIGINT raises KeyboardInterrupt, and SIGTERM and SIGUSR1 raise Stopped, unless they are held."""
    global _caught, _training
    _caught, _training = None, False
    before = _handle_by(_handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler not in (None, end_at_once):
                signal.signal(number, handler)


def _handle(number, _):
    global _caught
    _caught = number
    _deliver()


def _deliver():
    global _caught
    if _caught is None or _writing or _training and _caught != signal.SIGINT:
        return
    number, _caught = _caught, None
    raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)


@contextlib.contextmanager
def signals_held():
    """Signals that arrive inside take effect at the end."""
    global _writing
    if threading.current_thread() is not threading.main_thread():  # no signal is handled there
        yield
        return
    _writing += 1
    try:
        yield
    finally:
        _writing -= 1
    _deliver()


def hold_signals(training: bool):
    """While `training` SIGTERM and SIGUSR1 wait: the loop asks `signal_waiting` after every step."""
    global _training
    _training = training
    _deliver()


def signal_waiting() -> int:
    """Number of the signal that waits; 0 if none does."""
    return _caught or 0


def stop(number: int):
    """Ends the program as if the signal had arrived now."""
    global _caught
    _caught = None
    raise Stopped(number)


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


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still have on a device. What is in use is not subtracted from the limits of a host."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [limit for limit in (resource.getrlimit(resource.RLIMIT_AS)[0],) if limit > 0]
    for path, name in (('/proc/meminfo', 'MemAvailable:'), ('/sys/fs/cgroup/memory.max', '')):
        try:
            words = Path(path).read_text().split()
            found.append(int(words[words.index(name) + 1]) * 1024 if name else int(words[0]))
        except (OSError, ValueError, IndexError):  # another system, or no limit
            pass
    return min(found, default=2 ** 62)


def autocast(device: torch.device, wanted: bool):
    """bfloat16 autocast on a GPU that computes in bfloat16 natively; elsewhere a context that does nothing."""
    able = device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and able)


def describe_device(device: torch.device, n_processes: int = 1) -> str:
    """'NVIDIA H100', or 'cpu (AVX2), 2 threads'."""
    n_threads = torch.get_num_threads()
    cpu = f'cpu ({torch.backends.cpu.get_cpu_capability()}), {n_threads} thread{"s" * (n_threads > 1)}'
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu
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
    return {'commit': commit if known else None,
            'dirty': bool(git('status', '--porcelain', '--untracked-files=no')) if known else None,
            'python': platform.python_version(), 'torch': str(torch.__version__), 'numpy': np.__version__,
            'device': torch.cuda.get_device_name() if torch.cuda.is_initialized() else describe_device(torch.device('cpu')),
            'command': shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])}


def digest_of_tensors(tensors: Iterable[torch.Tensor]) -> str:
    """Hex digest of all their elements, to the bit; shapes and dtypes do not count."""
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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
    with signals_held():
        whole = io.BytesIO()  # torch.save, for example, hides the error of a full disk behind one of its own
        try:
            write(whole)
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                write_all(fd, whole.getbuffer())
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


def write_all(fd: int, data: bytes):
    """os.write until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


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
    """The dict that `write_torch` wrote, on the CPU: tensors and plain values. UserError if it is damaged; executes nothing."""
    with open(path, 'rb') as f:
        data = f.read()
    if data and not data.startswith(b'PK'):
        raise UserError(f'{path} is damaged, or no file of torch.save')
    try:
        size = len(_checksum(b''))
        if data[-22:-18] != b'PK\5\6' or data[-2:] != bytes(2):  # else an earlier version wrote it, without a checksum
            archive = data[:-size - 2] + bytes(2)
            if data[-size:] != _checksum(archive) or data[-size - 2:-size] != struct.pack('<H', size):
                raise ValueError('checksum')
        tree = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
        if not isinstance(tree, dict):
            raise TypeError
        return tree
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
        tree = read_yaml_file(path)
        tree = of_earlier({'format': 1, **tree.pop('not_used', {}), **tree})
        if 'name' in tree and isinstance(tree['format'], int):
            return tree
        why = 'it lacks settings'
    except (UserError, TypeError) as error:
        why = str(error).removeprefix(f'{path}: ')
    raise UserError(f'{path} is damaged ({why}): delete its folder, or begin anew with --overwrite')


def check_history(history) -> None:
    """ValueError, TypeError or KeyError if these are not the rows of metrics.jsonl, from epoch 1 on."""
    if [row['epoch'] for row in history] != list(range(1, len(history) + 1)):
        raise ValueError('the rows of the epochs are not in order')
    if not all(row.get(name, 0) >= 0 for row in history for name in ('seconds', 'core_seconds')):
        raise ValueError('an epoch has no time')


def recorded(settings: dict, name: str):
    """A setting of an earlier run, or what runs did before the setting existed; None if neither is known."""
    return of_earlier(settings).get(name, BEFORE_THE_SETTING.get(name))


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
