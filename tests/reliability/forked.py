"""Programs in forks of a process that has torch loaded, on a small corpus: what kills.py and endurance.py start and compare."""
import collections
import contextlib
import csv
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]

import cross_validate  # noqa: E402
import jobs  # noqa: E402
import soundfile  # noqa: E402
import svm  # noqa: E402
import table  # noqa: E402, F401  (so that a fork need not import it)
import torch  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import augment  # noqa: E402
import config as cf  # noqa: E402
import search  # noqa: E402
import utils  # noqa: E402
from datasets.readers import synthetic  # noqa: E402
from models import board, parallel  # noqa: E402

DATA = '--dataset manifest --data_path ../corpus/m.csv --device cpu --duration 0.5 --n_mels 8 --hop_ms 32 --time_pool 1'.split()
SIZES = '--batch_size 6 --layers 1 --init_channels 2 --rnn_channels 4'.split()
SEARCH = ['--name', 'x', *DATA, *SIZES, *'--n_nodes 1 --rnn_nodes 1 --alpha_warmup 1 --epochs 3 --cnn_ops'.split(),
          'skip_connect,sep_conv_3x3,none', '--rnn_ops', 'skip_connect,lstm_1,none', '--resume']
GENOTYPE = ("Genotype(normal=[[('sep_conv_3x3', 0), ('skip_connect', 1)]], normal_concat=[2], reduce=[[('sep_conv_3x3', 0), "
            "('skip_connect', 1)]], reduce_concat=[2], rnn=[[('lstm_1', 0), ('skip_connect', 1)]], rnn_concat=[2])")
AUGMENT = ['--name', 'x', *DATA, *SIZES, '--epochs', '3', '--genotype', GENOTYPE, '--resume']
CROSS = ['--name', 'x', *DATA[:-2], '--time_pool', '1', '--models', 'searched,svm', '--only_folds', '1', '--cache', '../cache',
         '--search.batch_size', '6', '--augment.batch_size', '6', '--search.epochs', '2', '--augment.epochs', '2',
         *SIZES[2:], '--n_nodes', '1', '--rnn_nodes', '1', '--search.alpha_warmup', '1', '--cnn_ops', SEARCH[-4],
         '--rnn_ops', SEARCH[-2]]
# What is killed: {name: (main, arguments, program)}. A new one is a line here. "extraction" has a cache of its own.
PROGRAMS = {
    'search, order 1': (search.main, [*SEARCH, '--cache', '../cache'], 'search.py'),
    'search, order 2': (search.main, [*SEARCH, '--order', '2', '--cache', '../cache'], 'search.py'),
    'augment': (augment.main, [*AUGMENT, '--cache', '../cache'], 'augment.py'),
    'augment, train_on_dev': (augment.main, [*AUGMENT, '--train_on_dev', '--cache', '../cache'], 'augment.py'),
    'search, sampled, with finalists': (search.main, [*SEARCH, *'--relaxation sampled --finalists 2 --candidates 4'.split(),
                                                      '--finalist_epochs', '2', '--cache', '../cache'], 'search.py'),
    'cross_validate': (cross_validate.main, CROSS, 'cross_validate.py'),
    'extraction, then augment': (augment.main, [*AUGMENT, '--epochs', '1', '--cache', 'cache', '--workers', '2'], 'augment.py'),
}
WRITES = ('write', 'fsync', 'replace', 'link', 'unlink', 'truncate', 'ftruncate', 'mkdir')
VARIES = {'seconds', 'core_seconds', 'command', 'provenance'}
TIMED = ('seconds', '2_progress', '0_about')  # in tags of TensorBoard: what shows a time or a command
SOFT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# What a program imports late, which takes longer than its work here.
torch.optim.SGD([torch.zeros(1)], 1.)
FigureCanvasAgg(Figure(layout='constrained')).draw()
board.PICTURES = 1  # of the last epoch alone: drawing would take most of the time
LIMIT = 300  # s: a program that has not ended by then is stuck


def make_corpus(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    rows = ['path,label,speaker,gender']
    for speaker, emotion, take in itertools.product(range(6), ('angry', 'sad'), range(3)):
        name = f's{speaker}_{emotion}_{take}.wav'
        soundfile.write(folder / name, synthetic.synthesise(speaker, emotion, take)[:9_000 + 700 * take], synthetic.SAMPLE_RATE)
        rows.append(f'{name},{emotion},spk{speaker},{"mf"[speaker % 2]}')
    (folder / 'm.csv').write_text('\n'.join(rows) + '\n')


class Forked:
    """Stands in for subprocess.Popen in jobs.py: a fork, which need not import torch."""

    def __init__(self, argv, cwd, env, stdin, stdout, stderr, start_new_session):
        self.returncode = None
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            os.chdir(cwd)
            os.environ.update(env)
            for fd, file in ((1, stdout), (2, stderr)):
                os.dup2(file.fileno(), fd)
            for number in (*SOFT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            utils.provenance.cache_clear()
            utils.open_runs.clear()
            sys.argv = argv[1:]
            main = {'search.py': search.main, 'augment.py': augment.main, 'svm.py': svm.main}[os.path.basename(argv[1])]
            utils.cli(main, leave=os._exit)
            os._exit(0)

    def poll(self):
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if done else None
        return self.returncode

    def wait(self, timeout):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired('a fork', timeout)
            time.sleep(.01)


def child(folder: Path, program: str, strike: int | None, more: tuple = ()):
    """Runs a program in this fork. strike: number of the call in WRITES at which it is killed; a write is half done then."""
    os.chdir(folder)
    os.setsid()
    log = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for fd in (1, 2):
        os.dup2(log, fd)
    sys.stdout, sys.stderr = (os.fdopen(fd, 'w', buffering=1) for fd in (1, 2))
    main, argv, name = PROGRAMS[program]
    sys.argv = [name, *argv, *more]
    calls = itertools.count()
    own, fork = os.getpid(), os.fork

    def killing(do, is_write):
        def call(*args, **kwargs):
            if os.getpid() == own and next(calls) == strike:
                if is_write:
                    do(args[0], memoryview(args[1])[:len(args[1]) // 2])
                os.kill(own, signal.SIGKILL)
            return do(*args, **kwargs)
        return call
    for write in WRITES:
        setattr(os, write, killing(getattr(os, write), write == 'write'))
    utils.set_threads, jobs.POLL = lambda n: None, .1
    jobs.subprocess = types.SimpleNamespace(Popen=Forked, DEVNULL=None, TimeoutExpired=subprocess.TimeoutExpired)
    os.environ['CUDA_VISIBLE_DEVICES'] = ''

    def remembered():  # who is to be killed with this process
        pid = fork()
        if pid:
            with open('pids', 'a') as f:
                f.write(f'{pid}\n')
        return pid
    os.fork = remembered
    signal.signal(signal.SIGINT, signal.default_int_handler)
    utils.cli(main, parallel.first_to_speak, os._exit, 'the same command with --resume continues')
    Path('calls').write_text(str(next(calls)))
    os._exit(0)


def start(folder, program, strike=None, more=()) -> int:
    """The process id of a program."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        try:
            for number in cf.SIGNALS:  # as cf.begin does in a program that is not forked
                signal.signal(number, cf.end_at_once)
            child(folder, program, strike, more)
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return pid


def wait(pid, until=LIMIT) -> int | None:
    """Its exit code, negative for a signal; None if it still runs after `until` seconds."""
    end = time.monotonic() + until
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(.005)
    return None


def kill(pid, folder: Path | None = None):
    """Kills a program, and what it has started if its folder is given."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if folder and (folder / 'pids').exists():
        for other in (folder / 'pids').read_text().split():
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                if f'/{folder.name}' in os.readlink(f'/proc/{other}/cwd'):
                    os.kill(int(other), signal.SIGKILL)


def plain(tree):
    """A tree without what differs from run to run; tensors as their bytes."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items() if key not in VARIES and key != 'events'}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    if torch.is_tensor(tree):
        return [str(tree.dtype), list(tree.shape), hashlib.sha256(tree.contiguous().view(-1).numpy().tobytes()).hexdigest()]
    return tree


def shown(folder: Path) -> list:
    """Every event on disk as (step, tag, digest), in the order of files; a time is not compared."""
    from tensorboardX.proto.event_pb2 import Event
    found = []
    for path in sorted(folder.glob('events*')):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], 'little')
            event, data = Event.FromString(data[12:12 + size]), data[16 + size:]
            for value in event.summary.value:
                body = b'' if any(word in value.tag for word in TIMED) else value.SerializeToString()
                found.append((event.step, value.tag, hashlib.sha256(body).hexdigest()))
    return sorted(found)


def contents(folder: Path) -> dict:
    """{file: what must be equal} of finished runs."""
    found, shows = {}, []
    for path in sorted((folder / 'runs').rglob('*')):
        name = str(path.relative_to(folder / 'runs'))
        if path.suffix == '.json':
            found[name] = plain(json.loads(path.read_text()))
        elif path.name == 'metrics.jsonl':
            found[name] = [plain(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == '.pt':
            tree = utils.read_torch(path)  # which must be whole
            # The one before the last may be of the middle of an epoch, if a signal stopped the run there.
            found[name] = 'whole' if 'previous' in name else plain(tree)
        elif path.suffix == '.csv':
            with open(path, newline='') as f:
                found[name] = [{key: cell for key, cell in row.items() if 'minutes' not in key} for row in csv.DictReader(f)]
        elif path.suffix in ('.png', '.yaml', '.md'):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == 'tb':
            shows += [[name, *row] for row in shown(path)]
    found['events'] = shows
    for path in folder.rglob('*.tmp'):
        os.utime(path, (0, 0))
    for shared in ('cache', 'runs/cv'):  # where a later start removes what a killed process left, after a minute
        utils.remove_asides(folder / shared)
    found['left over'] = sorted(str(path.relative_to(folder)) for path in folder.rglob('*.tmp'))
    return json.loads(json.dumps(found))


def uninterrupted(folder: Path, program: str) -> dict:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    code = wait(start(folder, program))
    if code:
        sys.exit(f'{program} fails without a kill: {(folder / "log").read_text()[-1000:]}')
    return {'contents': contents(folder), 'seconds': time.monotonic() - began, 'calls': int((folder / 'calls').read_text())}


def reference(folder: Path, program: str) -> dict:
    """What a run without kills ends with; what differs between two such runs is said and left out."""
    first = uninterrupted(folder, program)['contents']  # fills the cache too, whose extraction takes its own time
    found = uninterrupted(folder, program)
    if differ := [name for name in first if first[name] != found['contents'].get(name)]:
        print(f'{program}: not compared, since two runs that nobody kills differ in them: {", ".join(differ)}', flush=True)
    found['contents'] = {name: tree for name, tree in first.items() if name not in differ}
    return found


def compare(found: dict, expected: dict) -> list[str]:
    """What differs between the contents of two folders."""
    wrong = [name for name in expected if found.get(name) != expected[name]]
    mine, other = (collections.Counter(map(tuple, tree['events'])) for tree in (found, expected))
    lost, doubled = (other - mine).total(), (mine - other).total()
    return wrong + [f'{lost} events lost'] * bool(lost) + [f'{doubled} events too many'] * bool(doubled)
