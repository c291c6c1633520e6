"""What the runs of an experiment left, read and summed up: the numbers behind cv_table.py and cv_figures.py."""
import csv
from collections import Counter
from dataclasses import dataclass, field

import cv_statistics as st
import numpy as np
from cv_plan import RANDOM, SEARCH, SEARCHED, Job, rank

import genotypes as gt

KINDS = {'normal': 'cnn', 'reduce': 'cnn', 'rnn': 'rnn'}  # kind of cell: of operations


@dataclass
class Run:
    """A run that was asked for, with results.json and what else is known of it."""
    job: Job
    state: str  # finished, failed, missing
    failed: str | None = None
    found: dict = field(default_factory=dict)  # results.json
    search_minutes: float | None = None
    predictions: list = field(default_factory=list)  # rows of predictions.csv
    counts: np.ndarray | None = None  # (n_speakers, n_classes, n_classes)

    @property
    def pair(self):
        return self.job.seed, self.job.fold

    @property
    def minutes(self):
        """None where nobody took the time."""
        seconds = self.found.get('seconds')
        return None if seconds is None else seconds / 60


@dataclass
class Results:
    runs: list
    labels: list
    speakers: list
    operations: dict  # {'cnn': names that a search may choose from, 'rnn': ...}, empty where no search is there
    summed: dict = field(default_factory=dict)

    def finished(self, model=None):
        return [run for run in self.runs if run.state == 'finished' and model in (None, run.job.model)]

    def models(self):
        """Those with a finished run."""
        return sorted({run.job.model for run in self.finished()}, key=lambda name: (rank(name), name))

    def summaries(self, folds):
        """`summarise` of every model of which something is there, computed once."""
        key = tuple(folds)
        if key not in self.summed:
            self.summed[key] = [found for model in self.models() if (found := summarise(self, model, folds))]
        return self.summed[key]


def read(experiment, plan):
    """Results of all runs that the plan names."""
    runs, operations = [], {}
    for job in (Job(*run) for run in plan['runs']):
        if not experiment.done(job):
            reason = experiment.reason(job)
            runs.append(Run(job, 'failed' if reason else 'missing', reason))
            continue
        run = Run(job, 'finished', None, experiment.results(job))
        with open(experiment.folder(job) / 'predictions.csv', newline='') as f:
            run.predictions = list(csv.DictReader(f))
        if job.model == SEARCHED:
            search = Job(SEARCH, job.fold, job.seed)
            if experiment.done(search):
                seconds = experiment.seconds(search)
                run.search_minutes = None if seconds is None else seconds / 60
                operations = operations or experiment.results(search).get('operations', {})
        runs.append(run)
    labels = sorted({label for run in runs for label in run.found.get('labels', [])})
    speakers = sorted({row['speaker'] for run in runs for row in run.predictions})
    place, index = {name: i for i, name in enumerate(speakers)}, {name: i for i, name in enumerate(labels)}
    for run in runs:
        if run.state == 'finished':
            columns = [[place[row['speaker']], index[row['label']], index[row['predicted']]] for row in run.predictions]
            run.counts = st.count(*np.array(columns).T, len(speakers), len(labels))
    return Results(runs, labels, speakers, operations)


def choose(pairs, folds):
    """(seed, fold) pairs that are scored: those of the seeds that have every fold; where none has, all."""
    pairs = sorted(pair for pair in pairs if pair[1] in folds)
    n = Counter(seed for seed, _ in pairs)
    return [pair for pair in pairs if n[pair[0]] == len(folds)] or pairs


def describe(pairs, folds):
    """'0 1 2', or which folds each seed has where they are not all."""
    by_seed = {seed: [fold for other, fold in pairs if other == seed] for seed, _ in pairs}
    if all(len(there) == len(folds) for there in by_seed.values()):
        return ' '.join(map(str, by_seed))
    return 'partial: ' + '; '.join(f'seed {seed} fold{"s" * (len(there) > 1)} {" ".join(map(str, there))}'
                                   for seed, there in by_seed.items())


def left_out(results, pairs, folds, *models):
    """How many seeds that these models were all asked for in these folds are in none of the scored pairs."""
    asked = [{run.job.seed for run in results.runs if run.job.model == model and run.job.fold in folds} for model in models]
    return len(set.intersection(*asked) - {seed for seed, _ in pairs})


def stack(pairs, *models):
    """For each model, a list of runs: the counts (n_seeds, n_speakers, n_classes, n_classes) of these pairs, folds added; only
    of speakers whom the first model was tested on.
    """
    seeds, arrays = sorted({seed for seed, _ in pairs}), []
    for runs in models:
        of = {run.pair: run.counts for run in runs}
        arrays.append(np.stack([sum(of[pair] for pair in pairs if pair[0] == seed) for seed in seeds]))
    tested = arrays[0].sum(axis=(0, 2, 3)) > 0
    return [array[:, tested] for array in arrays]


def summarise(results, model, folds):
    """A model over these folds as a dict, or None where nothing of it is there.

    pairs: those scored; left_out: seeds that are not; 'ua', 'wa', 'macro_f1': {'seeds': (mean, sd), 'interval', 'folds': (mean,
    sd), 'by_fold': {fold: (mean, sd)}}; 'params', 'search_minutes', 'minutes': (mean, sd) or None; 'confusion', over all seeds.
    A partial model has no sd over seeds: its seeds have different folds.
    """
    runs = results.finished(model)
    pairs = choose([run.pair for run in runs], folds)
    if not pairs:
        return None
    runs = [run for run in runs if run.pair in pairs]
    counts, = stack(pairs, runs)
    pooled, spread = st.measures(counts.sum(axis=1)), st.bootstrap(counts)
    alone = {run.pair: st.measures(run.counts.sum(axis=0)) for run in runs}
    partial = describe(pairs, folds).startswith('partial')
    found = {'model': model, 'pairs': pairs, 'partial': partial, 'left_out': left_out(results, pairs, folds, model),
             'confusion': counts.sum(axis=(0, 1)), 'n_test': int(counts[0].sum()), 'n_speakers': counts.shape[1],
             'params': _spread(run.found.get('n_params') for run in runs), 'minutes': _spread(run.minutes for run in runs),
             'search_minutes': _spread(run.search_minutes for run in runs)}
    for name in st.MEASURES:
        by_fold = {fold: st.mean_sd([alone[pair][name] for pair in pairs if pair[1] == fold])
                   for fold in sorted({fold for _, fold in pairs})}
        mean, sd = st.mean_sd(pooled[name])
        found[name] = {'seeds': (mean, None if partial else sd), 'interval': spread[name], 'by_fold': by_fold,
                       'folds': st.mean_sd([mean for mean, _ in by_fold.values()])}
    return found


def compare(results, folds):
    """searched - X for every other model: [{'model', 'pairs', 'left_out', 'n_speakers', 'ua': (difference, interval, p), ...,
    'holm'}]
    """
    searched, rows = results.finished(SEARCHED), []
    for model in results.models():
        runs = results.finished(model)
        pairs = choose({run.pair for run in searched} & {run.pair for run in runs}, folds)
        if model != SEARCHED and pairs:
            ours, theirs = stack(pairs, searched, runs)
            rows.append({'model': model, 'pairs': pairs, 'left_out': left_out(results, pairs, folds, SEARCHED, model),
                         'n_speakers': ours.shape[1], **st.paired(ours, theirs)})
    for row, p in zip(rows, st.holm([row['ua'][2] for row in rows])):
        row['holm'] = p
    return rows


def operations(results):
    """{kind of cell: {'uniform': share, 'ops': [(name, {model: (share of edges, cells that have it, cells)})],
    'overlap': {model: ...}}} of searched and random."""
    found = {}
    for kind, family in KINDS.items():
        cells = {}
        for model in (SEARCHED, RANDOM):
            counted = [gt.op_counts(gt.from_str(run.found['genotype']))[kind] for run in results.finished(model)]
            if counted := [cell for cell in counted if cell]:
                cells[model] = counted
        if not cells.get(SEARCHED):
            continue
        allowed = [name for name in results.operations.get(family, []) if name != gt.NONE]
        names = allowed + sorted({name for some in cells.values() for cell in some for name in cell} - {*allowed})

        def share(name, some):
            return (sum(cell.get(name, 0) for cell in some) / sum(sum(cell.values()) for cell in some),
                    sum(name in cell for cell in some), len(some))
        ops = [(name, {model: share(name, some) for model, some in cells.items()}) for name in names]
        found[kind] = {'uniform': 1 / len(names), 'ops': sorted(ops, key=lambda op: -op[1][SEARCHED][0]),
                       'overlap': {model: st.overlap(some) for model, some in cells.items()}}
    return found


def test_sets_differ(results):
    """Folds in which two runs were not tested on the same utterances, as far as speakers and classes tell."""
    seen = {}
    for run in results.finished():
        seen.setdefault(run.job.fold, set()).add(run.counts.sum(axis=2).tobytes())
    return sorted(fold for fold, some in seen.items() if len(some) > 1)


def _spread(values):
    values = list(values)
    return None if None in values else st.mean_sd(values)
