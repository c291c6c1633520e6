"""Genotypes that an experiment did not search: of a search on another corpus, or those of an earlier experiment.

They are kept in the folder of the experiment, one file a seed or one a run, where jobs.Job.given finds them.
"""
import contextlib
from pathlib import Path

import pandas as pd
from experiment import COST, UNKNOWN, Experiment, device_of
from jobs import FOUND, Damaged, Job, cost_of_search

import genotypes as gt
from config import UserError

HEARD = ('dataset', 'corpus', 'train_speakers', 'dev_speakers')  # of a search's record: what augment.Origin.heard reads


def keep_transferred(experiment: Experiment, model: str, source: str, seeds: list[int]):
    """Writes MODEL-sSEED.json: the genotype, whom its search heard, its minutes. All settings are the experiment's.

    source: where the genotype of a seed is, with {seed} for the seed.
    """
    experiment.path.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        path, there = experiment.path / f'{model}-s{seed}.json', source.replace('{seed}', str(seed))
        try:
            genotype, record = gt.load(there)
        except ValueError as error:
            raise UserError(f'--{model} {error}') from None
        check_kept(path, genotype, f'--{model} {there}')
        cost = {'search_device': device_of(record)}
        with contextlib.suppress(Damaged):  # a file without the folder of its search
            cost |= cost_of_search(there.removesuffix('genotype.json'))
        of_search = record.get('search')
        heard = {name: of_search[name] for name in HEARD if name in of_search} if isinstance(of_search, dict) else {}
        kept = {'search': {'elsewhere': heard}} if heard else {}
        gt.save(path, genotype, {**kept, **{name: value for name, value in cost.items() if value is not None}})


def keep_earlier(experiment: Experiment, source: str | None, asked: list[Job], folds: list, digest: str, corpus: dict):
    """Writes MODEL-fFOLD-sSEED.json for each run whose genotype a search found: that of the same run of `source`.

    source: folder of an earlier experiment; None: this one searches. corpus: its `dataset`, and the digest `corpus`.
    UserError if this experiment began otherwise, or the earlier one has another corpus, other folds or lacks a run; then
    nothing is written.
    """
    asked, of_runs = [job for job in asked if job.model in FOUND], {*experiment.path.glob('*-f*-s*.json')}
    if not source:
        if asked and of_runs:
            raise UserError(f'{experiment.path} began with genotypes of an earlier experiment: say --genotypes_of again, or '
                            'take another --name')
        return
    import table  # loads SciPy
    its_own = [*Path('runs', 'search', 'cv', experiment.name).glob('*'), *{*experiment.path.glob('*-s*.json')} - of_runs]
    if its_own:
        raise UserError(f'--genotypes_of {source}: {experiment.path} began with genotypes of its own, such as {min(its_own)}: '
                        'take another --name')
    before, found = table.read(Path(source)), {}
    if not before.plan:
        raise UserError(f'--genotypes_of {source}: has no plan.json, so its corpus and folds are not known')
    if (before.plan.get('digest'), before.plan.get('test_speakers')) != (digest, [list(fold.test) for fold in folds]):
        raise UserError(f'--genotypes_of {source}: was made on other utterances, labels, speakers or folds')
    for job in asked:
        runs, path = before.finished(job.model), experiment.path / f'{job}.json'
        if (job.seed, job.fold) not in runs.index or pd.isna(runs.loc[(job.seed, job.fold), 'genotype']):
            has = ' '.join(f'{job.model}-f{fold}-s{seed}' for seed, fold in runs.index) or f'no {job.model}'
            raise UserError(f'--genotypes_of {source}: has no genotype of {job}; it has {has}')
        run = runs.loc[(job.seed, job.fold)]
        genotype, heard = gt.from_str(run['genotype']), run['search_heard_test_speakers']
        check_kept(path, genotype, f'--genotypes_of {source}')
        tested = {**corpus, 'speakers': list(folds[job.fold - 1].test)}
        if heard != UNKNOWN:
            tested['heard'] = heard.split() if isinstance(heard, str) else []
        cost = {name: run[name] for name in COST if not pd.isna(run[name])}
        found[path] = genotype, {'search': {'tested': tested}, **cost}
    experiment.path.mkdir(parents=True, exist_ok=True)
    for path, (genotype, record) in found.items():
        gt.save(path, genotype, record)


def check_kept(path: Path, genotype: gt.Genotype, flag: str):
    """UserError if the experiment began with another genotype in this file."""
    try:
        same = not path.exists() or gt.load(path)[0] == genotype
    except ValueError as error:
        raise UserError(f'{error}: delete it, and the genotype is copied again') from None
    if not same:
        raise UserError(f'{flag}: {path} is another genotype; take another --name')
