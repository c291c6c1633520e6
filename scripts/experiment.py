"""The folder runs/cv/NAME: settings, plan, and what finished runs left. Refuses to mix runs that cannot be compared."""
import contextlib
import fcntl
import functools
import itertools
import json
from dataclasses import fields
from pathlib import Path

import pandas as pd
import yaml
from jobs import (
    DRAWS,
    FOUND,
    MATCHED,
    PARTS,
    PROGRAMS,
    RANDOM,
    RANDOM_SEARCH,
    SEARCH,
    SEARCHED,
    SVMS,
    TRANSFERS,
    Damaged,
    Job,
)

import config as cf
import genotypes as gt
from config import BASELINES, ONE_SIZE, UserError

MODELS = (SEARCHED, 'searched_cnn', 'searched_seqnn', 'searched_ordered', *TRANSFERS, RANDOM_SEARCH, RANDOM, *BASELINES,
          *(f'{name}{MATCHED}' for name in BASELINES if name != ONE_SIZE), *SVMS)  # in the order of the tables
MACHINE = ('device', 'threads', 'data_path', 'cache', 'workers', 'resident')  # may differ when the experiment continues
FROM_RESULTS = ['ua', 'wa', 'macro_f1', 'n_test', 'n_params', 'best_epoch', 'dev_ua', 'train_on_dev', 'normalise', 'embedding',
                'device', 'genotype']
SETTING = ('train_on_dev', 'normalise', 'embedding')  # columns of runs.csv that are alike in all runs of an experiment
COST = ('search_minutes', 'search_core_minutes', 'search_device')  # of the search that found the genotype of a run
COLUMNS = ['model', 'fold', 'seed', 'state', 'failed', *FROM_RESULTS, *COST, 'minutes', 'core_minutes', 'test_speakers',
           'search_heard_test_speakers', 'init_heard_test_speakers']  # of runs.csv
ORIGIN = ('sized_by', 'genotypes_of')  # of plan.json, where models need them
PLAN = {'test_speakers': list, 'digest': str, 'clean_folds': list}  # of plan.json, besides the runs
RESULTS = {**dict.fromkeys(('ua', 'wa', 'macro_f1', 'n_test', 'n_params', 'seconds', 'core_seconds'), int | float),
           'test_speakers': list}  # of results.json
UNKNOWN = 'not known'  # in runs.csv: whether the search, or the network of --init, heard test speakers
PREDICTION = {name: str for name in ('path', 'speaker', 'label', 'predicted')}  # of predictions.csv


class Experiment:
    """runs/cv/NAME."""

    def __init__(self, name: str):
        self.name, self.path = name, Path('runs', 'cv', name)

    def keep_settings(self, given: dict[str, dict]):
        """Writes config.yaml, which all runs read. UserError if the experiment began with other settings."""
        settings = {section: {k: v for k, v in values.items() if k not in MACHINE} for section, values in given.items()}
        path = self.path / 'config.yaml'
        with self.locked():
            begun = (self.path / 'plan.json', *(Path('runs', program, 'cv', self.name) for program in ('search', 'augment')))
            if not (path.exists() and any(one.exists() for one in begun)):
                return publish(path, yaml.safe_dump(settings, sort_keys=False))
        before = read_yaml(path, 'take another --name')
        for section, values in settings.items():
            old = cf.of_earlier(before.get(section) or {})
            for name in sorted(values.keys() | old.keys()):
                then, now = (where.get(name, 'its default') for where in (old, values))
                if then != now:
                    raise UserError(f'{name} of {PROGRAMS[section]} is {now}, but {self.path} began with {then}: take another '
                                    '--name')

    def plan(self) -> dict | None:
        """plan.json: runs ([model, fold, seed]), test_speakers of each fold, digest, clean_folds, command (a line each).

        If there are such models: sized_by, the model whose size matched baselines have; genotypes_of, the earlier experiment
        whose genotypes are retrained, or '' if this one searches.
        """
        path = self.path / 'plan.json'
        if not path.exists():
            return None
        try:
            plan = cf.read_json(path)
            for model, fold, seed in plan['runs']:
                if model not in MODELS or type(fold) is not int or type(seed) is not int:
                    raise ValueError(model)
            if all(isinstance(plan[name], kind) for name, kind in PLAN.items()):
                return plan
        except (UserError, KeyError, TypeError, ValueError):
            pass
        raise UserError(f'{path} is damaged: delete it, and name all models again')

    def add_to_plan(self, asked: list[Job], test_speakers: list, digest: str, clean_folds: list, command: str,
                    source: str = ''):
        """Adds runs to plan.json. UserError if the corpus, its folds, or the model that gives baselines their size differs.

        source: genotypes_of.
        """
        with self.locked():
            self._add_to_plan(asked, test_speakers, digest, clean_folds, command, source)

    @contextlib.contextmanager
    def locked(self):
        """Other processes, of any machine, wait where the file system has locks."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / 'lock', 'a') as lock:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _add_to_plan(self, asked, test_speakers, digest, clean_folds, command, source):
        before = self.plan() or {'runs': [], 'test_speakers': test_speakers, 'digest': digest, 'clean_folds': []}
        pairs = itertools.zip_longest(before['test_speakers'], test_speakers, fillvalue=['nobody'])
        for fold, (then, now) in enumerate(pairs, 1):
            if then != now:
                raise UserError(f'--data_path: fold {fold} now tests {" ".join(now)}, but in {self.path} it tests '
                                f'{" ".join(then)}: the corpus or its division differs; take another --name')
        if before['digest'] != digest:
            raise UserError(f'--data_path: the utterances, labels or speakers are not those {self.path} began with; take '
                            'another --name')
        matched = [job for job in asked if job.model.endswith(MATCHED)]
        origin = {'sized_by': matched[0].sized_by} if matched else {}
        if {job.model for job in asked} & {*FOUND} - {*TRANSFERS}:
            origin['genotypes_of'] = source
        if matched and origin['sized_by'] != before.get('sized_by', origin['sized_by']):
            raise UserError(f'{matched[0].model} has the size of {before["sized_by"]} in {self.path}, and would get that of '
                            f'{origin["sized_by"]} with these --models: leave it out, or take another --name')
        runs = {(*run,) for run in before['runs']} | {(job.model, job.fold, job.seed) for job in asked if job.program != SEARCH}
        commands = dict.fromkeys([*str(before.get('command', '')).splitlines(), command])
        plan = {'runs': sorted(runs, key=lambda run: (rank(run[0]), *run[1:])), 'test_speakers': test_speakers,
                'digest': digest, 'clean_folds': clean_folds or before['clean_folds'], 'command': '\n'.join(commands),
                **{name: before[name] for name in ORIGIN if name in before}, **origin}
        publish(self.path / 'plan.json', json.dumps(plan) + '\n')

    def jobs(self) -> list[Job]:
        """A job for every run of the plan."""
        return [Job(self.name, *run) for run in (self.plan() or {'runs': []})['runs']]

    def collect(self) -> set[Job]:
        """Writes runs.csv and predictions.csv from what is on disk. Returns the finished runs."""
        jobs, finished = self.jobs(), None
        while finished != {job for job in jobs if job.done()}:  # another shard may finish a run meanwhile
            finished = {job for job in jobs if job.done()}
            tables = [read_table(Path(job.folder, 'predictions.csv'), PREDICTION, 'delete results.json beside it, and the run '
                                 'will be repeated').assign(model=job.model, seed=job.seed, fold=job.fold)
                      for job in jobs if job in finished]
            if tables:
                table = pd.concat(tables)
                names = ['model', 'seed', 'fold', 'path', 'speaker', 'label', 'predicted', 'start', 'end']
                table = table[[name for name in names if name in table]]
                publish(self.path / 'predictions.csv', table.to_csv(index=False))
            # Last: a run that this file calls finished has predictions for whoever reads both meanwhile.
            rows = [row_of(job, job in finished) for job in jobs]
            publish(self.path / 'runs.csv', pd.DataFrame(rows).to_csv(index=False))
        return finished


def row_of(job: Job, done: bool) -> dict:
    """The row of a run in runs.csv."""
    found, reason = results(job) if done else {}, job.reason()
    heard = found.get('search_heard_test_speakers', None if found and job.model in FOUND else [])
    before = found.get('init_heard_test_speakers') if found.get('init') else []
    return {'model': job.model, 'fold': job.fold, 'seed': job.seed,
            'state': 'finished' if found else 'failed' if reason else 'missing', 'failed': None if found else reason,
            **{name: found.get(name) for name in FROM_RESULTS},
            **(search_cost(job) if found else dict.fromkeys(COST)), 'minutes': minutes(job) if found else None,
            'core_minutes': found['core_seconds'] / 60 if 'core_seconds' in found else None,
            'test_speakers': cf.csv_cell(' '.join(found.get('test_speakers', []))),
            'search_heard_test_speakers': _told(heard), 'init_heard_test_speakers': _told(before)}


def _told(speakers: list | None) -> str:
    return UNKNOWN if speakers is None else cf.csv_cell(' '.join(map(str, speakers)))


def results(job: Job) -> dict:
    """results.json of a finished run. UserError if it is damaged."""
    with cf.contents_of(job.product, 'delete it, and the run will be repeated'):
        try:
            found = cf.read_json(job.product)
        except UserError as error:
            raise ValueError(str(error).removeprefix(f'{job.product}: ')) from None
        for name, kind in RESULTS.items():
            if name in found and not isinstance(found[name], kind):
                raise ValueError(f'{name} is {cf.short(found[name])}')
        return found


def minutes(job: Job) -> float | None:
    """Minutes of search or training of a finished run, by the clock; None if the run did not record them."""
    try:
        return job.cost_of_search()['search_minutes'] if job.program == SEARCH else results(job)['seconds'] / 60
    except (OSError, ValueError, KeyError, UserError):
        return None


def search_cost(job: Job) -> dict:
    """COST of the search that found a run's genotype; None if there was none, or it is not known.

    Of a search on another corpus, which serves all folds, they are the whole search's.
    """
    found = dict.fromkeys(COST)
    with contextlib.suppress(ValueError):
        if job.model in FOUND and not job.needs:
            record = gt.load(Path(job.given))[1]
            found = {name: record.get(name) for name in found}
        elif job.needs and job.needs.program == SEARCH:
            with contextlib.suppress(Damaged):
                found |= job.needs.cost_of_search()
            found['search_device'] = device_of(gt.load(job.needs.folder)[1])
    return found


def device_of(record: dict) -> str | None:
    """The device of a search, from what it wrote beside its genotype."""
    provenance = record.get('provenance')
    return provenance.get('device') if isinstance(provenance, dict) else None


def check_finished(job: Job, values: dict):
    """UserError if a finished run was made with other settings than those given now for its program."""
    import utils  # these load torch
    from datasets import frames
    path = Path(job.folder, 'config.yaml')
    if not path.exists():
        return
    then = read_yaml(path, 'delete its folder, and the run will be repeated')
    then |= then.get('not_used') or {}
    if job.model.endswith(MATCHED) and job.needs.done() and 'params' in then:
        size = results(job.needs)['n_params']
        if then['params'] != size:
            raise UserError(f'{path.parent} was sized after a network of {then["params"]} parameters, but {job.needs} has '
                            f'{size}: leave {job.model} out, or take another --name')
    config = frames.complete(cf.build(job.program, cf.Given({**values, 'name': 'x', 'fold': job.fold, 'seed': job.seed})))
    chosen = {*MACHINE, 'name', 'config', 'resume', 'overwrite', 'model', 'genotype', 'params', 'functionals'}
    chosen |= {'relaxation', 'tournament_minutes', 'tournament_cores'} if job.model == DRAWS else set()
    chosen |= {flag[2:] for flag in PARTS.get(job.model, ())[:1]}
    for f in fields(config):
        before, now = utils.recorded(then, f.name), getattr(config, f.name)
        older = f.name not in then and before is None and now == f.default  # the run is older than the setting
        if f.name not in chosen and before != now and not older:
            raise UserError(f'{path.parent} was made with {f.name} {before}, not {now}: delete it, or take another --name')
    if init := getattr(config, 'init', None):
        then = results(job).get('init_digest')  # earlier versions did not record it
        if then not in (None, _digest_of_init(init)):
            raise UserError(f'{path.parent} began with another network than {init} now holds: delete it, or take another '
                            '--name')


@functools.lru_cache
def _digest_of_init(path: str) -> str:
    from models import predictor  # loads torch
    return predictor.digest(predictor.read_best(path))


def outdated(job: Job) -> bool:
    """Whether a finished run was made from a search that is gone, or that was repeated since. UserError."""
    source = job.needs.product if job.needs and job.needs.program == SEARCH else job.given if job.model in FOUND else None
    if not source:
        return False
    if not Path(source).exists():
        return True
    if job.model == DRAWS:
        settings = Path(job.folder, 'config.yaml')
        then = read_yaml(settings, 'delete its folder, and the run will be repeated') if settings.exists() else {}
        with contextlib.suppress(Damaged):  # which a job that needs it says
            known = {round(max(.01, x), 2) for x in job.needs.cost_of_search().values() if x}
            return then.get('tournament_minutes', min(known, default=0)) not in known
        return False
    try:
        return gt.from_str(str(results(job).get('genotype'))) != gt.load(source)[0]
    except ValueError as error:
        raise UserError(f'{job.product} or {source} is damaged ({cf.one_line(error, 150)}): delete {job.folder}, and the run '
                        'will be repeated') from None


def read_yaml(path: Path, advice: str) -> dict:
    """A YAML file of this program's own making. UserError."""
    try:
        return cf.read_yaml_file(path)
    except UserError as error:
        raise UserError(f'{error}: {advice}') from None


def read_table(path: Path, columns: dict, advice: str) -> pd.DataFrame:
    """A CSV file of this program's own making, with these columns and others as text. UserError."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if missing := [name for name in columns if name not in table]:
            raise ValueError(f'column {missing[0]} is missing')
        return table.astype(columns)
    except (OSError, ValueError, OverflowError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f'{path} is damaged ({cf.one_line(error, 150)}): {advice}') from None


def publish(path: Path, text: str):
    """Writes a file whole or not at all, even if several machines write the same one."""
    import utils  # loads torch
    path.parent.mkdir(parents=True, exist_ok=True)
    utils.write_aside(path, lambda f: f.write(text.encode()), shared=True)


def rank(model: str) -> int:
    """Place of a model in tables."""
    return MODELS.index(model) if model in MODELS else len(MODELS)
