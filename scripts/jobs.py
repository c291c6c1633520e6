"""Jobs of an experiment. A job is a command line of search.py, augment.py or scripts/svm.py, run as a process of its own.

Only the standard library is imported here, so that the workers of a dask cluster can load this file.
"""
import contextlib
import fcntl
import json
import math
import os
import secrets
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

PROGRAMS = {'search': 'search.py', 'augment': 'augment.py', 'svm': 'scripts/svm.py'}
SEARCH, DRAWS = 'search', 'draws'  # the models of jobs of search.py: a search, and random candidates in as many minutes
SEARCHED, RANDOM, MATCHED, SVM = 'searched', 'random', '_matched', 'svm'
SVMS = {SVM: (), 'svm_egemaps': ('--functionals', 'egemaps'), 'svm_compare': ('--functionals', 'compare')}
RANDOM_SEARCH, TRANSFERRED = 'random_search', 'transferred'
TRANSFERS = (TRANSFERRED, 'random_transferred')  # models whose genotype comes from elsewhere
# Searches of a part of the space: the operations of the other part of the network are fixed, or their order.
PARTS = {'search_cnn': ('--rnn_ops', 'lstm_att_1'), 'search_seqnn': ('--cnn_ops', 'sep_conv_3x3'),
         'search_ordered': ('--cnn_order', 'imposed')}
NEEDS = {SEARCHED: SEARCH, RANDOM_SEARCH: DRAWS, DRAWS: SEARCH, 'searched_cnn': 'search_cnn', 'searched_seqnn': 'search_seqnn',
         'searched_ordered': 'search_ordered'}
FOUND = (*(model for model in NEEDS if model != DRAWS), *TRANSFERS)  # models whose genotype some search found
N_PARAMS = "import json, sys; print(json.load(open(sys.argv[1]))['n_params'])"

POLL = 5.  # s between two looks at a run that another process is writing
GRACE = 30.  # s that all processes together have to write checkpoints and end after SIGTERM
AGAIN = 75  # exit code of a program that wrote one
TAIL = 40  # lines of stderr kept of a failed run


class Damaged(ValueError):
    """A file of a finished run is not what it should hold. The message is a line that names it and says what to do."""


stopping = threading.Event()
running = set()  # processes started here
busy = Counter()  # {GPU: jobs on it}
lock = threading.Lock()
_undisturbed, _postponed = 0, []  # how deep the main thread is in `undisturbed`; signals that came there


@dataclass(frozen=True)
class Job:
    """One run. Paths are relative to `cwd`, so that the command line can be pasted there."""
    experiment: str
    model: str  # SEARCH, or a model of the tables
    fold: int
    seed: int
    code: str = field(default='', compare=False)  # folder of the programs, relative to cwd
    cwd: str = field(default='', compare=False)
    machine: tuple = field(default=(), compare=False)  # flags that say where to run, such as --device
    sized_by: str = field(default=SEARCHED, compare=False)  # the model whose size a matched baseline has

    def __str__(self):
        return f'{self.model}-f{self.fold}-s{self.seed}'

    @property
    def program(self) -> str:
        return SEARCH if self.model in (SEARCH, DRAWS, *PARTS) else SVM if self.model in SVMS else 'augment'

    @property
    def needs(self) -> 'Job | None':
        """The job whose output this one reads."""
        model = self.sized_by if self.model.endswith(MATCHED) else NEEDS.get(self.model)
        if model and self.model in FOUND and os.path.exists(self.at(self.given)):
            return None
        return model and Job(self.experiment, model, self.fold, self.seed, self.code, self.cwd)

    @property
    def given(self) -> str:
        """The file of a genotype that comes from elsewhere: this run's own, or the one that serves all folds."""
        path = f'runs/cv/{self.experiment}/{self}.json'
        if self.model in TRANSFERS and not os.path.exists(self.at(path)):
            return f'runs/cv/{self.experiment}/{self.model}-s{self.seed}.json'
        return path

    @property
    def name(self) -> str:
        """--name of the run."""
        return f'cv/{self.experiment}/' + (f'f{self.fold}-s{self.seed}' if self.model == SEARCH else str(self))

    @property
    def folder(self) -> str:
        """Folder of the run."""
        return os.path.join('runs', 'search' if self.program == SEARCH else 'augment', self.name)

    @property
    def product(self) -> str:
        """The file that the run writes last."""
        return os.path.join(self.folder, 'genotype.json' if self.program == SEARCH else 'results.json')

    def at(self, *parts: str) -> str:
        """A path that does not depend on the current folder."""
        return os.path.join(self.cwd, *parts)

    def note(self, kind: str, ending: str) -> str:
        """A file about this job in the experiment's folder."""
        return self.at('runs', 'cv', self.experiment, kind, f'{self}.{ending}')

    def done(self) -> bool:
        return os.path.exists(self.at(self.product))

    def reason(self) -> str | None:
        """Why the job failed last time, in one line."""
        with contextlib.suppress(FileNotFoundError), open(self.note('failed', 'txt')) as f:
            return f.readline().rstrip('\n')

    def argv(self) -> list[str]:
        """Program and flags. Settings come from the experiment's config.yaml."""
        flags = ['--name', self.name, '--config', f'runs/cv/{self.experiment}/config.yaml', '--fold', str(self.fold),
                 '--seed', str(self.seed), *self.machine, '--resume']
        flags += PARTS.get(self.model, SVMS.get(self.model, ()))
        if self.needs and self.needs.program == SEARCH and self.program != SEARCH or self.model == RANDOM:
            flags += ['--genotype', self.needs.product if self.needs else RANDOM]
        elif self.model in FOUND:
            flags += ['--genotype', self.given]
        elif self.model == DRAWS:
            cost = self.needs.cost_of_search() if self.needs.done() else {}
            by_cores = cost.get('search_core_minutes')
            minutes = f'{max(.01, by_cores or cost["search_minutes"]):.2f}' if cost else 'MINUTES_OF_THE_SEARCH'
            flags += ['--relaxation', 'none', '--tournament_minutes', minutes, *['--tournament_cores'] * bool(by_cores)]
        elif self.program == 'augment':
            flags += ['--model', self.model.removesuffix(MATCHED)]
        if self.model.endswith(MATCHED) and self.needs.done():
            with damaged(self.needs.product), open(self.at(self.needs.product)) as f:
                flags += ['--params', str(json.load(f)['n_params'])]
        return [os.path.normpath(os.path.join(self.code, PROGRAMS[self.program])), *flags]

    def command(self) -> str:
        """The command line for a shell. It finds out the size of a searched network that does not exist yet."""
        text = shlex.join(['python', *self.argv()])
        if self.model.endswith(MATCHED) and not self.needs.done():
            text += f' --params "$(python -c {shlex.quote(N_PARAMS)} {self.needs.product})"'
        return text

    def cost_of_search(self) -> dict[str, float | None]:
        return cost_of_search(self.at(self.folder))

    def written_elsewhere(self) -> bool:
        """Whether a process holds the lock of the run's folder."""
        with contextlib.suppress(FileNotFoundError), open(self.at(self.folder, 'lock')) as f:
            try:
                fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:  # a file system without locks
                pass
        return False


@contextlib.contextmanager
def damaged(path: str, advice: str = 'delete it, and the run will be repeated'):
    """Inside, what is wrong with the contents of a file of a finished run becomes Damaged."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else f'{type(error).__name__}: {str(error)[:100]}'
        raise Damaged(f'{path} is damaged ({why}): {advice}') from None


def cost_of_search(folder: str) -> dict[str, float | None]:
    """search_minutes of a finished run of search.py, with the choice among candidates, and its search_core_minutes.

    The latter are None if a part of the search recorded none: on a GPU, in several processes, by an earlier version. Damaged.
    """
    rows, again = [], f'delete {folder}, and the search will be repeated'
    with damaged(os.path.join(folder, 'metrics.jsonl'), again), open(os.path.join(folder, 'metrics.jsonl')) as f:
        rows += [_time(json.loads(line)) for line in f]
    path = os.path.join(folder, 'candidates.json')
    if os.path.exists(path):
        with damaged(path, again), open(path) as f:
            tree = json.load(f)
            trainings = [training for row in tree['finalists'] for training in row['trainings']]
            rows += [_time(row) for row in [tree.get('drawing', {'seconds': 0}), *tree['scores'], *trainings]]
    cores = [of_cores for seconds, of_cores in rows if seconds]
    return {'search_minutes': sum(seconds for seconds, _ in rows) / 60,
            'search_core_minutes': sum(cores) / 60 if cores and None not in cores else None}


def _time(row: dict) -> tuple[float, float | None]:
    """Seconds by the clock, and of the cores if they are known."""
    found = row['seconds'], row.get('core_seconds')
    if not all(0 <= time < math.inf for time in found if time is not None):
        raise ValueError('a time is no number')
    return found


def run_chain(jobs: list[Job], python: str, env: dict) -> dict[Job, str | None]:
    """Runs jobs in order. Returns {job: reason of its failure, or None}; jobs that `stop` interrupted are absent.

    A job whose predecessor failed fails for the same reason.
    """
    reasons = {}
    for job in jobs:
        reason = reasons.get(job.needs)
        if reason is None:
            reason = _run(job, python, env)
        elif ' failed: ' not in reason:
            reason = f'{job.needs} failed: {reason}'
        if stopping.is_set() and not job.done():
            break
        _record(job, reason)
        reasons[job] = reason and reason.partition('\n')[0]
        print(f'{job}: {f"failed: {reasons[job]}" if reason else "finished"}', flush=True)
    return reasons


def _run(job, python, env):
    """Why the job failed, above the end of its stderr; or None."""
    announced = False
    while not stopping.is_set():
        if job.written_elsewhere():
            if not announced:
                print(f'{job}: another process is writing this run; waiting for it', flush=True)
            announced = True
            stopping.wait(POLL)
            continue
        if job.done():  # after the lock was found free, which a run releases last
            return None
        try:
            argv = job.argv()
        except Damaged as error:  # of the run that this one takes its size or its minutes from
            return str(error)
        try:
            code, lines = _call(job, [python, *argv], env)
        except OSError as error:
            return f'could not be started: {error.strerror or error}'
        said = next((line.strip() for line in reversed(lines) if line.strip()), 'no message')
        if job.done():
            return None
        if code == AGAIN:
            stopping.wait(1.)  # the signal may have come to all processes, and to this one last
        if code != 2 or 'another process is writing' not in said:  # else it began between our look and our start
            why = f'exit code {code}: {said}' if code else f'exit code 0, but {job.product} does not exist'
            return '\n'.join([why if code >= 0 else f'ended by {_signal(-code)}', '', *lines[-TAIL:]])


def _call(job, argv, env):
    """(exit code, lines of stderr) of the job's process."""
    errors = job.note('log', 'err')
    os.makedirs(os.path.dirname(errors), exist_ok=True)
    with open(job.note('log', 'log'), 'ab') as out, open(errors, 'wb') as err, _one_gpu() as gpu:
        with undisturbed(), lock:
            if stopping.is_set():
                return 130, []
            process = subprocess.Popen(argv, cwd=job.cwd, env={**os.environ, **env, **gpu},
                                       stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
            running.add(process)
        while True:
            with undisturbed():
                ended = process.poll() is not None  # not wait(): `stop` may come between two polls, and waits itself
            if ended:
                break
            time.sleep(.05)
        running.discard(process)
    with open(errors, errors='replace') as f:
        return process.returncode, f.read().splitlines()


def _signal(number):
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f'signal {number}'


def _record(job, reason):
    """Writes failed/JOB.txt, or deletes it."""
    path = job.note('failed', 'txt')
    if reason is None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    aside = f'{path}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.tmp'  # as utils.write_aside, which loads torch
    with open(aside, 'w') as f:
        f.write(reason.rstrip() + '\n')
    os.replace(aside, path)


def gpus() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    if 'CUDA_VISIBLE_DEVICES' in os.environ:
        names = [name.strip() for name in os.environ['CUDA_VISIBLE_DEVICES'].split(',')]
        return [name for name in names if name and name != '-1']
    try:
        listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True).stdout.splitlines()
    except OSError:
        return []
    return [str(i) for i in range(sum(line.startswith('GPU ') for line in listed))]


@contextlib.contextmanager
def _one_gpu():
    """Environment that shows a process the GPU with the fewest jobs of this worker; empty without GPUs."""
    names = gpus()
    with undisturbed(), lock:
        gpu = min(names, key=lambda name: busy[name], default=None)
        busy[gpu] += 1
    try:
        yield {} if gpu is None else {'CUDA_VISIBLE_DEVICES': gpu}
    finally:
        with undisturbed(), lock:
            busy[gpu] -= 1


@contextlib.contextmanager
def undisturbed():
    """Inside, in the main thread, signals wait: their handler calls `stop`, which needs the locks that are held here."""
    global _undisturbed
    if threading.current_thread() is not threading.main_thread():  # no signal is handled there
        yield
        return
    _undisturbed += 1
    try:
        yield
    finally:
        _undisturbed -= 1
    if not _undisturbed and _postponed:
        signal.raise_signal(_postponed.pop())


def postponed(number: int) -> bool:
    """Whether the handler of a signal must return at once, since the signal will be raised again."""
    if _undisturbed:
        _postponed[:] = [number]
    return bool(_undisturbed)


def stop():
    """Ends all processes started here, with their children. They keep their checkpoints."""
    with lock:
        stopping.set()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in [*running]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        until = time.monotonic() + GRACE
        for process in [*running]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0., until - time.monotonic()))
                running.discard(process)
