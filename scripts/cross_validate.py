"""Cross-validates models: searches, retrains and tests on every fold with every seed, then makes tables and figures.

    python scripts/cross_validate.py --name emodb --config configs/emodb.yaml --data_path DIR \
        --models searched,random,cnn_gru --seeds 0-2 --jobs 2

Every job is a command line of search.py, augment.py or scripts/svm.py; `--dry_run` lists them. The same command continues
after an interruption and never repeats a finished run. Results: runs/cv/NAME/table.md.
"""
import contextlib
import itertools
import os
import re
import shlex
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

import joblib

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]
import genotypes_given  # noqa: E402
import jobs  # noqa: E402
from experiment import MACHINE, Experiment, check_finished, minutes, outdated  # noqa: E402
from jobs import FOUND, MATCHED, NEEDS, SEARCH, SEARCHED, SVM, SVMS, TRANSFERRED, TRANSFERS, Job  # noqa: E402
from options import parse, parse_models, parse_shard  # noqa: E402

import config as cf  # noqa: E402
from config import UserError  # noqa: E402


def main(argv=None, code: Path = ROOT):
    """code: folder of the programs."""
    argv = sys.argv[1:] if argv is None else argv
    own, given = parse(argv)
    import utils  # loads torch
    models = parse_models(own.models, not own.genotypes_of)
    seeds, shard = cf.parse_numbers('seeds', own.seeds), parse_shard(own.shard)
    if own.genotypes_of and not {*models} & {*FOUND}:
        raise UserError(f'--genotypes_of has no effect on {own.models}: name a model whose genotype a search found')
    folds, digest, corpus = corpus_of(given, models)
    numbers = cf.parse_numbers('only_folds', own.only_folds or f'1-{len(folds)}', 1, len(folds))
    clean = cf.parse_numbers('clean_folds', own.clean_folds, 1, len(folds)) if own.clean_folds else []

    experiment = Experiment(own.name)
    sources = {model: getattr(own, model) for model in TRANSFERS}
    for model, source in sources.items():
        if source and own.genotypes_of:
            raise UserError(f'--{model}: --genotypes_of names the genotypes of all models; leave one of them out')
        if (model in models and not own.genotypes_of) != bool(source):
            raise UserError(f'--{model} names the genotype of the model {model}: give both, or neither')
    utils.remove_asides(experiment.path)
    experiment.keep_settings(given)
    for model, source in sources.items():
        if source:
            genotypes_given.keep_transferred(experiment, model, source, seeds)
    asked = jobs_of(own.name, models, numbers, seeds, searches=not own.genotypes_of)
    genotypes_given.keep_earlier(experiment, own.genotypes_of, asked, folds, digest, corpus)
    every = [replace(job, code=os.path.relpath(code), cwd=os.getcwd(), machine=flags_of(given[job.program]))
             for job in jobs_of(own.name, models, numbers, seeds, shard, searches=not own.genotypes_of)]
    done = [job for job in every if job.done()]
    for job in done:
        check_finished(job, given[job.program])
    if old := [job.folder for job in done if outdated(job)]:
        raise UserError(f'made from a search that is gone or was repeated since: {", ".join(old)}; delete them too, and they '
                        'are made again')
    if own.dry_run:
        return list_jobs(experiment, every, own.jobs)
    command = re.sub(r' --shard[= ]\S+', '', shlex.join(['python', 'scripts/cross_validate.py', *argv]))  # one for all shards
    experiment.add_to_plan(asked, [list(fold.test) for fold in folds], digest, clean, command, own.genotypes_of or '')
    try:
        failed = run(experiment, [job for job in every if not job.done()], own)
    except (KeyboardInterrupt, utils.Stopped) as error:
        said, code = (str(error), cf.AGAIN) if str(error) else ('interrupted', cf.INTERRUPTED)
        print(f'cross_validate.py: {said}; the same command continues', file=sys.stderr, flush=True)
        sys.exit(code)
    print(f'{experiment.path}/table.md: {make_tables(experiment)}')
    if failed:
        sys.exit(f'cross_validate.py: {len(failed)} of {len(every)} jobs failed: {", ".join(map(str, failed))}. Reasons are in '
                 f'{experiment.path}/table.md and {experiment.path}/failed. The same command tries them again.')


def corpus_of(given: dict, models: list[str]) -> tuple[list, str, dict]:
    """(folds, digest, what a search records) of the corpus that all models read; no audio is opened.

    UserError if settings disagree.
    """
    import datasets  # loads torch
    from datasets import frames
    configs = {section: frames.complete(cf.build(section, cf.Given({**values, 'name': 'x'})))
               for section, values in given.items() if section != SVM or SVMS.keys() & models}
    for model in {name.removesuffix(MATCHED) for name in models} & {*cf.SSL}:
        replace(configs['augment'], model=model)  # a UserError if the features are none that it reads
    same = {'data': (cf.DataSettings, cf.FeatureSettings, cf.DevSettings), 'search space': (cf.SpaceSettings,)}
    for what, name in ((what, f.name) for what, groups in same.items() for group in groups for f in fields(group)):
        values = {section: getattr(config, name) for section, config in configs.items() if hasattr(config, name)}
        if len(set(values.values())) > 1:
            said = ', '.join(f'{value} for {section}' for section, value in values.items())
            raise UserError(f'{name} is {said}: all models must use the same {what}')
    if configs['search'].device.startswith('cuda:'):
        raise UserError(f'--device {configs["search"].device}: every job gets a GPU of its own. Say --device cuda, and choose '
                        'GPUs with the environment variable CUDA_VISIBLE_DEVICES')
    config = configs['search']
    corpus = datasets.scan(config.dataset, config.data_path, config.cache)
    utterances, folds = datasets.select(config, corpus)[:2]
    return folds, datasets.digest(utterances), {'dataset': config.dataset, 'corpus': datasets.corpus_digest(corpus)}


def flags_of(values: dict) -> tuple[str, ...]:
    """Flags of the settings that depend on the machine."""
    return tuple(part for name in MACHINE if values.get(name) is not None for part in (f'--{name}', str(values[name])))


def jobs_of(name: str, models: list[str], folds: Iterable[int], seeds: list[int], shard: tuple = (1, 1),
            searches: bool = True) -> list[Job]:
    """The jobs of shard i of n. searches: False if all genotypes come from an earlier experiment.

    All jobs of one fold and seed are in the same shard, since some read what others write. Seeds added later leave the
    shards of earlier seeds unchanged.
    """
    found, (i, n) = [], shard
    ordered = [SEARCH] * (SEARCHED in models and searches)
    ordered += [NEEDS[model] for model in models if NEEDS.get(model, SEARCH) != SEARCH and searches]
    ordered += sorted(models, key=lambda model: (model.endswith(MATCHED), model != SEARCHED))
    for k, (seed, fold) in enumerate(itertools.product(seeds, folds)):
        if k % n == i - 1:
            found += [Job(name, model, fold, seed, sized_by=SEARCHED if SEARCHED in models else TRANSFERRED)
                      for model in ordered]
    return found


def list_jobs(experiment: Experiment, every: list[Job], n_parallel: int):
    """Prints all jobs with their state, expected minutes and command line."""
    known = minutes_by_model(experiment)
    for job in every:
        state = 'done' if job.done() else 'failed' if job.reason() else 'missing'
        expected = f'{known[job.model]:.1f} min' if job.model in known else 'no estimate'
        try:
            print(f'{job}: {state}, {expected}\n    {job.command()}')
        except jobs.Damaged as error:
            raise UserError(str(error)) from None
    waiting = [job for job in every if not job.done()]
    print(f'{len(every) - len(waiting)} of {len(every)} jobs are done; {time_left(known, waiting, n_parallel)}')


def minutes_by_model(experiment: Experiment) -> dict[str, float]:
    """Mean minutes of the finished runs."""
    found = defaultdict(list)
    for job in experiment.jobs():
        for one in (job, job.needs):
            if one and one.done() and (took := minutes(one)) is not None:
                found[one.model].append(took)
    return {model: sum(some) / len(some) for model, some in found.items()}


def time_left(known: dict[str, float], waiting: list[Job], n_parallel: int) -> str:
    """'about 12 min left, no estimate for cnn': from what finished runs of the same models took."""
    expected = [known[job.model] for job in waiting if job.model in known]
    unknown = dict.fromkeys(job.model for job in waiting if job.model not in known)
    total = round(max([sum(expected) / n_parallel, *expected], default=0))
    about = f'about {total} min' if total < 120 else f'about {total // 60} h {total % 60:02} min'
    parts = [f'{about} left'] * bool(expected) + [f'no estimate for {", ".join(unknown)}'] * bool(unknown)
    return ', '.join(parts) or 'nothing is left to run'


def run(experiment: Experiment, waiting: list[Job], own) -> list[Job]:
    """Runs the jobs, and remakes the tables as they end. Returns the failed ones."""
    chains = defaultdict(list)  # jobs that need each other run one after the other
    for job in waiting:
        linked = job.needs or job.program == SEARCH or job.model in (SEARCHED, TRANSFERRED)
        chains[(job.fold, job.seed) if linked else job].append(job)
    env = {}
    if own.jobs > 1 and 'OMP_NUM_THREADS' not in os.environ:
        env['OMP_NUM_THREADS'] = str(max(1, joblib.cpu_count() // own.jobs))
    failed, n_ended = [], 0
    jobs.stopping.clear()
    for number in (*cf.SIGNALS, signal.SIGHUP):  # of the keyboard, a cluster, a closed terminal
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_all)
    with workers(own) as n_jobs, ending_all():
        calls = [joblib.delayed(jobs.run_chain)(chain, sys.executable, env) for chain in chains.values()]
        parallel = joblib.Parallel(n_jobs, batch_size=1, pre_dispatch='all', return_as='generator_unordered')
        at_once = joblib.effective_n_jobs(n_jobs)  # of all workers
        for reasons in parallel(calls):
            failed += [job for job, reason in reasons.items() if reason]
            n_ended += len(reasons)
            left = time_left(minutes_by_model(experiment), [job for job in waiting if not job.done() and job not in failed],
                             at_once)
            print(f'{n_ended} of {len(waiting)} jobs have ended; {left}', flush=True)
            try:
                make_tables(experiment, figures=False)
            except Exception as error:  # the runs are worth more than a table, which is made again at the end
                print(f'the tables could not be made: {error!r}', flush=True)
    return failed


@contextlib.contextmanager
def ending_all():
    """No process that was started here outlives an error."""
    try:
        yield
    except BaseException:
        jobs.stop()
        raise


def end_all(number, _):
    """Signal handler: ends all processes that were started here, which write checkpoints."""
    if jobs.postponed(number):
        return
    import utils
    jobs.stop()
    raise utils.Stopped(number) if number in (signal.SIGTERM, signal.SIGUSR1) else KeyboardInterrupt


@contextlib.contextmanager
def workers(own):
    """Tells joblib where to run jobs: in threads that start processes here, or on a dask cluster. Gives n_jobs."""
    if not own.dask:
        with joblib.parallel_config('threading'):
            yield own.jobs
        return
    try:
        from dask.distributed import Client, KilledWorker
    except ImportError:
        raise UserError('--dask needs dask: pip install -r requirements-dask.txt') from None
    try:
        client = Client(own.dask, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(f'--dask {own.dask}: no scheduler answers ({error})') from None
    with client:
        client.upload_file(jobs.__file__)  # workers import it
        try:
            with joblib.parallel_config('dask', client=client):
                yield -1
        except (KilledWorker, TimeoutError) as error:  # every worker that took a job died, or there is none
            raise UserError(f'--dask {own.dask}: {error}; the same command continues') from None


def make_tables(experiment: Experiment, figures: bool = True) -> str:
    """Writes all tables from what is on disk. Returns the verdict.

    Again if a run was finished meanwhile: its shard may have written the tables first, and this one older ones over them.
    """
    import table
    with experiment.locked():  # another shard may write its tables now
        while True:
            collected = experiment.collect()
            verdict = table.make(experiment.path, figures=figures)
            if collected == {job for job in experiment.jobs() if job.done()}:
                return verdict


if __name__ == '__main__':
    if {'-h', '--help'} & {*sys.argv[1:]}:
        parse(sys.argv[1:])
    import utils
    utils.cli(main)
