"""Runs jobs as processes, some side by side, with one progress bar and what is known of the time left."""
import fcntl
import os
import signal
import subprocess
import time
from collections import defaultdict

from cv_plan import SEARCH, SEARCHED
from tqdm import tqdm

TICK, GRACE = .1, 10.  # s between looks at the processes; s that they have to end
TAIL = 40  # lines of stderr that are kept of a failed run
NAMES = {SEARCH: 'its search', SEARCHED: 'its searched network'}


class Runner:
    """Runs `jobs` of an experiment in their order, each as soon as what it needs is there.

    argv_of: job -> program and flags. changed(): called after each run that ended. failed: {job: why}, of this call.
    """

    def __init__(self, experiment, jobs, argv_of, n_parallel, changed):
        self.experiment, self.argv_of, self.n_parallel, self.changed = experiment, argv_of, n_parallel, changed
        self.finished = [job for job in jobs if experiment.done(job)]
        self.pending = [job for job in jobs if job not in set(self.finished)]
        self.elsewhere = set()  # jobs that another process was found at work on
        self.n_jobs, self.failed, self.running = len(jobs), {}, {}  # running: {job: (process, began, goes on?)}
        self.seconds = defaultdict(list)  # by model, of runs that are on disk
        self.whole = defaultdict(list)  # by model, of whole processes from begin to end, seen here: these say more
        for job in self.finished:
            self.learn(job)

    def learn(self, job):
        seconds = self.experiment.seconds(job)
        if seconds is not None:
            self.seconds[job.model].append(seconds)

    def run(self):
        """Until nothing is left that can be run. On KeyboardInterrupt the processes are ended; they keep their checkpoints."""
        self.bar = tqdm(total=self.n_jobs, initial=len(self.finished), disable=None,
                        bar_format='{n_fmt}/{total_fmt} runs |{bar:20}| {elapsed}{postfix}')
        try:
            while self.pending or self.running:
                self.start_some()
                self.bar.set_postfix_str(self.time_left())
                time.sleep(TICK)
                for job, (process, *_) in list(self.running.items()):
                    if process.poll() is not None:
                        self.end(job, process.returncode)
        finally:
            self.stop()
            self.bar.close()

    def start_some(self):
        for job in list(self.pending):
            if len(self.running) == self.n_parallel:
                return
            need = job.needs()
            if need in self.failed:
                reason = self.failed[need]
                self.conclude(job, reason if reason.startswith('its ') else f'{NAMES[need.model]} failed: {reason}')
            elif need not in self.pending and need not in self.running:
                self.start(job)

    def start(self, job):
        """Begins the job, unless another process is at work on it: one that a killed call left, or the same command."""
        if self.experiment.done(job):
            return self.conclude(job)
        path = self.experiment.log(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, 'ab') as log:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by the run itself, for it inherits this file
            except BlockingIOError:
                if job not in self.elsewhere:
                    self.elsewhere.add(job)
                    self.bar.write(f'{job}: another process is at work on it, and is waited for')
                return None
            except OSError:
                pass  # a file system without locks
            if self.experiment.done(job):
                return self.conclude(job)
            env = {'OMP_NUM_THREADS': str(max(1, (os.cpu_count() or 1) // self.n_parallel)), **os.environ} \
                if self.n_parallel > 1 else None
            goes_on = self.experiment.folder(job).exists()
            with open(path.with_suffix('.err'), 'wb') as errors:
                process = subprocess.Popen(self.argv_of(job), stdin=subprocess.DEVNULL, stdout=log, stderr=errors, env=env,
                                           start_new_session=True)  # Ctrl-C is ours alone: we end them
        self.pending.remove(job)
        self.running[job] = process, time.monotonic(), goes_on

    def end(self, job, code):
        _, began, goes_on = self.running.pop(job)
        if self.experiment.done(job):  # written last: whatever came after, the run is whole
            if not goes_on:
                self.whole[job.model].append(time.monotonic() - began)
            return self.conclude(job)
        lines = self.experiment.log(job).with_suffix('.err').read_text(errors='replace').splitlines()
        said = next((line.strip() for line in reversed(lines) if line.strip()), 'it said nothing')
        if code < 0:
            reason = f'ended by {name_of(-code)}'
        elif code == 0:
            reason = f'exit code 0, but {self.experiment.product(job)} is not there'
        else:
            reason = f'exit code {code}: {said}'
        return self.conclude(job, reason, lines[-TAIL:])

    def conclude(self, job, reason=None, lines=()):
        """The job is over: reason says why it failed, None that it is finished."""
        if job in self.pending:
            self.pending.remove(job)
        failure = self.experiment.failure(job)
        if reason is None:
            self.learn(job)
            failure.unlink(missing_ok=True)
        else:
            self.failed[job] = reason
            text = '\n'.join([reason, '', *lines]).rstrip() + '\n'
            self.experiment.publish(os.path.join(failure.parent.name, failure.name), text.encode())
        self.bar.update()
        n = self.n_jobs - len(self.pending) - len(self.running)
        self.bar.write(f'{n}/{self.n_jobs} {job}: {f"failed: {reason}" if reason else "finished"}; {self.time_left()}')
        try:
            self.changed()
        except Exception as error:  # a table that cannot be made is no reason to stop the runs: at the end it is made again
            self.bar.write(f'the table could not be made: {error!r}')

    def time_left(self):
        """What is known of it, and of which models nothing is."""
        if not self.pending and not self.running:
            return 'all have ended'
        now, left, unknown = time.monotonic(), [], []
        waits = [(job, 0.) for job in self.pending] + [(job, now - began) for job, (_, began, _) in self.running.items()]
        for job, elapsed in waits:
            seen = self.whole[job.model] or self.seconds[job.model]
            if seen:
                left.append(max(0., sum(seen) / len(seen) - elapsed))
            elif job.model not in unknown:
                unknown.append(job.model)
        parts = [f'{duration(max([sum(left) / self.n_parallel, *left]))} left'] if left or not unknown else []
        if unknown:
            models = [job for job in unknown if job != SEARCH]
            names = [f'{len(models)} model{"s" * (len(models) > 1)}'] * bool(models) + ['the search'] * (SEARCH in unknown)
            parts.append(f'no estimate yet for {" and ".join(names)}')
        return ' + '.join(parts)

    def stop(self):
        """Ends the processes that still run, with theirs."""
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
            for process, *_ in self.running.values():
                if process.poll() is None:
                    os.killpg(process.pid, number)
            deadline = time.monotonic() + (patience or 0)
            for job, (process, *_) in list(self.running.items()):
                try:
                    process.wait(None if patience is None else max(0., deadline - time.monotonic()))
                    del self.running[job]
                except subprocess.TimeoutExpired:
                    pass


def name_of(number):
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f'signal {number}'


def duration(seconds):
    minutes = round(seconds / 60)
    if minutes < 1:
        return 'less than a minute'
    return f'about {minutes} min' if minutes < 120 else f'about {minutes // 60} h {minutes % 60:02} min'
