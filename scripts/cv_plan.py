"""What an experiment of cross_validate.py consists of, and what of it is on disk."""
import itertools
import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

import utils
from config import BASELINES

SEARCH = 'search'  # the job of search.py; the others are models
SEARCHED, RANDOM, MATCHED, SVM = 'searched', 'random', '_matched', 'svm'
MODELS = (SEARCHED, RANDOM, *BASELINES, *(f'{name}{MATCHED}' for name in BASELINES), SVM)


@dataclass(frozen=True)
class Job:
    """One run of search.py (model SEARCH) or augment.py."""
    model: str
    fold: int
    seed: int

    def __str__(self):
        return f'{self.model}-f{self.fold}-s{self.seed}'

    def needs(self):
        """The job whose output this one reads, or None."""
        if self.model == SEARCHED:
            return Job(SEARCH, self.fold, self.seed)
        return Job(SEARCHED, self.fold, self.seed) if self.model.endswith(MATCHED) else None


class Experiment:
    """Folders and files of runs/cv/NAME and of the runs that belong to it."""

    def __init__(self, name):
        self.name, self.path = name, Path('runs', 'cv', name)

    def run_name(self, job):
        """--name of the run."""
        return f'cv/{self.name}/f{job.fold}-s{job.seed}' if job.model == SEARCH else f'cv/{self.name}/{job}'

    def folder(self, job):
        return Path('runs', 'search' if job.model == SEARCH else 'augment', self.run_name(job))

    def product(self, job):
        """The file that a run writes last."""
        return self.folder(job) / ('genotype.json' if job.model == SEARCH else 'results.json')

    def done(self, job):
        return self.product(job).exists()

    def log(self, job):
        return self.path / 'log' / f'{job}.log'

    def failure(self, job):
        return self.path / 'failed' / f'{job}.txt'

    def reason(self, job):
        """Why the job failed last time, or None: the first line of its file in failed/."""
        try:
            return self.failure(job).read_text().partition('\n')[0]
        except FileNotFoundError:
            return None

    def results(self, job):
        """results.json of a finished run."""
        try:
            return json.loads(self.product(job).read_text())
        except ValueError as error:
            raise utils.UserError(f'{self.product(job)} is damaged ({error}): delete it, and the run is made again') from None

    def seconds(self, job):
        """Training (or search) seconds of a finished run; None where it does not say."""
        if job.model != SEARCH:
            return self.results(job).get('seconds')
        try:
            with open(self.folder(job) / 'metrics.jsonl') as f:
                return sum(json.loads(line)['seconds'] for line in f)
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def plan(self):
        """plan.json, or None: {'runs': [[model, fold, seed], ...], 'test_speakers': a list a fold, 'digest', 'clean_folds',
        'command'}"""
        try:
            return json.loads((self.path / 'plan.json').read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise utils.UserError(f'{self.path / "plan.json"} is damaged ({error}): delete it, name all models again') from None

    def add_to_plan(self, jobs, test_speakers, digest, clean_folds, command):
        """Adds model jobs to plan.json and returns it. UserError where the corpus or its division was another before."""
        before = self.plan() or {'runs': [], 'test_speakers': test_speakers, 'digest': digest, 'clean_folds': []}
        for fold, (then, now) in enumerate(itertools.zip_longest(before['test_speakers'], test_speakers), 1):
            if then != now:
                then, now = ('nobody' if names is None else ' '.join(names) for names in (then, now))
                raise utils.UserError(f'--data_path: fold {fold} now tests {now}, but in {self.path} it tests {then}: that is '
                                      'another corpus or another division; take another --name')
        if before['digest'] != digest:
            raise utils.UserError(f'--data_path: the utterances, labels or speakers are not those that {self.path} began with; '
                                  'take another --name')
        runs = {tuple(run) for run in before['runs']} | {(job.model, job.fold, job.seed) for job in jobs if job.model != SEARCH}
        plan = {'runs': sorted(runs, key=lambda run: (rank(run[0]), *run[1:])), 'test_speakers': test_speakers,
                'digest': digest, 'clean_folds': clean_folds or before['clean_folds'], 'command': command}
        self.publish('plan.json', (json.dumps(plan) + '\n').encode())
        return plan

    def publish(self, name, content):
        """Writes a file whole or not at all, though other shards may write the same one. content: bytes, or write(path)."""
        path = self.path / name
        aside = path.with_name(f'.{socket.gethostname()}-{os.getpid()}-{path.name}')
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            content(aside) if callable(content) else aside.write_bytes(content)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def rank(model):
    """Place of a model in tables."""
    return MODELS.index(model) if model in MODELS else len(MODELS)


def jobs_of(models, folds, seeds, shard=(1, 1)):
    """Jobs of a shard (i, n) in the order in which they are begun.

    The runs of one fold and seed form a group and lie in one shard, for some read what others write. Groups of one seed come
    first: its table is whole early, and seeds added later leave the shards of the earlier ones as they are.
    """
    jobs, (i, n) = [], shard
    for k, (seed, fold) in enumerate(itertools.product(seeds, folds)):
        if k % n == i - 1:
            jobs += [Job(SEARCH, fold, seed)] * (SEARCHED in models)
            jobs += [Job(model, fold, seed) for model in sorted(models, key=lambda name: name.endswith(MATCHED))]
    return jobs


def parse_models(text):
    """'searched,cnn' -> ['searched', 'cnn']. UserError on a model that is not there, twice there, or lacks what it needs."""
    models = [name.strip() for name in text.split(',') if name.strip()]
    for name in models:
        if name not in MODELS:
            raise utils.UserError(f'--models {name}: must be of {", ".join(MODELS)}')
        if models.count(name) > 1:
            raise utils.UserError(f'--models {name}: named twice')
        if name.endswith(MATCHED) and SEARCHED not in models:
            raise utils.UserError(f'--models {name}: takes its size from the searched network; name {SEARCHED} too (what is '
                                  'finished is not run again)')
    if not models:
        raise utils.UserError(f'--models: name some of {", ".join(MODELS)}')
    return models


def parse_numbers(flag, text, low=0, high=None):
    """'0,1,4-6' -> [0, 1, 4, 5, 6], sorted, each once. UserError."""
    numbers = set()
    for part in text.split(','):
        match = re.fullmatch(r'\s*(\d+)(?:-(\d+))?\s*', part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or first < low or (high is not None and last > high):
            bounds = f'from {low}' + (f' to {high}' if high is not None else '')
            raise utils.UserError(f'--{flag} {text}: must be whole numbers {bounds} with commas, as 1,3')
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def parse_shard(text):
    """'2/4' -> (2, 4). UserError."""
    match = re.fullmatch(r'(\d+)/(\d+)', text)
    i, n = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= i <= n:
        raise utils.UserError(f'--shard {text}: must be i/n with i from 1 to n, as 2/4')
    return i, n
