"""A whole experiment: on every fold, with every seed, searches, retrains, tests, and makes the tables and figures.

    python scripts/cross_validate.py --name emodb --config configs/emodb.yaml --data_path DIR --models searched,random,cnn_gru \
        --seeds 0,1,2

The same command goes on where it was interrupted; a finished run is never repeated. Tables and figures: runs/cv/NAME.
"""
import re
import shlex
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import cv_table  # noqa: E402
from cv_plan import (  # noqa: E402
    MATCHED,
    RANDOM,
    SEARCH,
    SEARCHED,
    SVM,
    Experiment,
    jobs_of,
    parse_models,
    parse_numbers,
    parse_shard,
)
from cv_runner import Runner  # noqa: E402

import augment  # noqa: E402
import config as cf  # noqa: E402
import datasets  # noqa: E402
import utils  # noqa: E402
from datasets import features  # noqa: E402

PROGRAMS = {'search': ROOT / 'search.py', 'augment': ROOT / 'augment.py', 'svm': ROOT / 'scripts' / 'svm.py'}
OWNED = {'name', 'config', 'seed', 'fold', 'resume', 'overwrite', 'genotype', 'model', 'params'}
MACHINE = ('device', 'threads', 'data_path', 'cache', 'workers', 'resident')  # where and how, not what: may differ later
NETWORK = ('init_channels', 'layers', 'stem_multiplier', 'rnn_layers', 'rnn_channels')
SPACE = ('n_nodes', 'rnn_nodes', 'cnn_ops', 'rnn_ops')
SHARED = ('dataset', 'data_path', 'labels', 'turns', 'scenarios', 'folds', 'cache',
          *features.NAMES, 'train_on_dev')


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str | None = cf.setting(None, 'name of the experiment: runs/cv/NAME')
    config: str | None = cf.setting(None, 'YAML file with settings of search.py and augment.py; a flag beats it')
    models: str = cf.setting('searched,random', 'what is compared, with commas: searched, random (a genotype drawn at random), '
                             'svm, cnn rnn lstm cnn_lstm cnn_lstm_att cnn_gru, and these six with _matched behind the name: '
                             'as many parameters as the searched network of the same fold and seed')
    seeds: str = cf.setting('0', 'with commas, or 0-4')
    only_folds: str | None = cf.setting(None, 'these folds only, with commas')
    clean_folds: str | None = cf.setting(None, 'folds whose test speakers took part in no choice of the recipe: the tables are '
                                         'made a second time of these alone')
    shard: str = cf.setting('1/1', 'i/n: the i-th part of n, for n machines or a job array')
    jobs: int = cf.setting(1, 'runs side by side on this machine')
    table: bool = cf.setting(False, 'run nothing: tables and figures of what is there; --models, --seeds, --only_folds choose')


def main(argv=None, programs=PROGRAMS):
    """programs: the files that are run as search.py, augment.py and svm.py."""
    argv = sys.argv[1:] if argv is None else argv
    own, given = cf.given_to_all(Settings, argv, OWNED)
    for name in NETWORK + SPACE:  # a genotype's own record would bring these to the searched network alone
        if name in given['search']:
            given['augment'].setdefault(name, given['search'][name])
    if not own.name or not re.fullmatch(r'[\w.-]*\w[\w.-]*', own.name):
        raise utils.UserError(f'--name {own.name or "is needed"}: letters, digits, ".", "_" and "-" only')
    experiment = Experiment(own.name)
    chosen = {flag.split('=')[0] for flag in argv} & {'--models', '--seeds', '--only_folds'}
    if own.table:
        return only_table(experiment, own, chosen)
    if own.jobs < 1:
        raise utils.UserError(f'--jobs {own.jobs}: must be 1 or more')
    models, seeds, shard = parse_models(own.models), parse_numbers('seeds', own.seeds), parse_shard(own.shard)
    utterances, folds = corpus_of(given, models)
    numbers = parse_numbers('only_folds', own.only_folds, 1, len(folds)) if own.only_folds else range(1, len(folds) + 1)
    clean = parse_numbers('clean_folds', own.clean_folds, 1, len(folds)) if own.clean_folds else []
    keep_settings(experiment, given)
    command = shlex.join(['python', 'scripts/cross_validate.py', *argv])
    asked = jobs_of(models, numbers, seeds), [list(fold.test) for fold in folds], datasets.digest(utterances), clean, command
    experiment.add_to_plan(*asked)

    def argv_of(job):
        return [sys.executable, *arguments(experiment, job, programs, given)]
    jobs = jobs_of(models, numbers, seeds, shard)
    for job in jobs:
        if all(experiment.done(one) for one in (job, job.needs()) if one):
            check_finished(experiment, job, arguments(experiment, job, programs, given))
    for number in (signal.SIGTERM, signal.SIGHUP):  # how a cluster and a closed terminal interrupt
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        runner = Runner(experiment, jobs, argv_of, own.jobs, lambda: cv_table.make(experiment, experiment.add_to_plan(*asked)))
        runner.run()
        cv_table.make(experiment, experiment.add_to_plan(*asked), figures=True)
    except KeyboardInterrupt:
        print('cross_validate.py: interrupted; the same command goes on', file=sys.stderr, flush=True)
        sys.exit(130)
    print(f'{experiment.path / "table.md"}: {cv_table.first_line(experiment)}')
    if runner.failed:
        sys.exit(f'cross_validate.py: {len(runner.failed)} of {len(jobs)} runs failed; why: {experiment.path / "failed"} and '
                 f'{experiment.path / "runs.csv"}. The same command tries them again.')


def only_table(experiment, own, chosen):
    plan = experiment.plan()
    if plan is None:
        raise utils.UserError(f'--table: there is no {experiment.path / "plan.json"}: make the runs first')
    n_folds = len(plan['test_speakers'])
    if own.clean_folds:
        plan['clean_folds'] = parse_numbers('clean_folds', own.clean_folds, 1, n_folds)
    allowed = [set(parse_models(own.models)) if '--models' in chosen else None,
               set(parse_numbers('only_folds', own.only_folds, 1, n_folds)) if '--only_folds' in chosen else None,
               set(parse_numbers('seeds', own.seeds)) if '--seeds' in chosen else None]
    plan['runs'] = [run for run in plan['runs'] if all(some is None or x in some for x, some in zip(run, allowed))]
    if not plan['runs']:
        raise utils.UserError(f'--table: {experiment.path} has no such runs')
    cv_table.make(experiment, plan, figures=True)
    print(f'{experiment.path / "table.md"}: {cv_table.first_line(experiment)}')


def corpus_of(given, models):
    """(utterances, folds) that the programs of these models are to read; no audio is opened. UserError where they differ."""
    configs = {section: cf.build(section, {'name': 'x', **values}) for section, values in given.items()
               if section != SVM or SVM in models}
    for name in SHARED + SPACE:
        values = {section: getattr(config, name) for section, config in configs.items() if hasattr(config, name)}
        if len(set(values.values())) > 1:
            said = ', '.join(f'{value} for {section}' for section, value in values.items())
            must = 'be of one space' if name in SPACE else 'read the same'
            raise utils.UserError(f'{name} is {said}: all models must {must}')
    return datasets.select(configs['search'])[:2]


def check_finished(experiment, job, argv):
    """UserError where a finished job was made with other settings than those of `argv`, which arguments() gave."""
    path = experiment.folder(job) / 'config.yaml'
    if not path.exists():
        return
    try:
        then = dict(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, TypeError, ValueError):
        raise utils.UserError(f'{path} is damaged: delete its folder, and the run is made again') from None
    if program_of(job) == 'augment':
        config = augment.settings_and_genotype(cf.given('augment', argv[1:]))[0]
    else:
        config = cf.build(program_of(job), cf.given(program_of(job), argv[1:]))
    for name, now in asdict(config).items():
        before = utils.recorded(then, name)
        if name not in utils.CURRENT and before != now:
            raise utils.UserError(f'{path.parent} was made with {name} {before}, not {now}: delete it, or take another --name')


def keep_settings(experiment, given):
    """Writes config.yaml, which the runs read, or compares with it. UserError where they differ."""
    settings = {section: {k: v for k, v in values.items() if k not in MACHINE} for section, values in given.items()}
    path = experiment.path / 'config.yaml'
    if not path.exists():
        experiment.publish(path.name, yaml.safe_dump(settings, sort_keys=False).encode())
    try:
        before = yaml.safe_load(path.read_text())
        before = {section: dict(before[section]) for section in settings}
    except (yaml.YAMLError, TypeError, KeyError, ValueError):
        raise utils.UserError(f'{path} is damaged: take another --name') from None
    for section, values in settings.items():
        for name in sorted(values.keys() | before[section].keys()):
            then, now = (where.get(name, 'its default') for where in (before[section], values))
            if then != now:
                raise utils.UserError(f'{name} of {section}.py is {now}, but {experiment.path} began with {then}: take another '
                                      '--name')


def program_of(job):
    return job.model if job.model in (SEARCH, SVM) else 'augment'


def arguments(experiment, job, programs, given):
    """Program and flags of a job, as text; given: settings of the programs, of which those of the machine are flags."""
    program = program_of(job)
    flags = {'name': experiment.run_name(job), 'config': experiment.path / 'config.yaml', 'fold': job.fold, 'seed': job.seed}
    if job.model == SEARCHED:
        flags['genotype'] = experiment.product(job.needs())
    elif job.model == RANDOM:
        flags['genotype'] = RANDOM
    elif program == 'augment':
        flags['model'] = job.model.removesuffix(MATCHED)
    if job.model.endswith(MATCHED):
        flags['params'] = experiment.results(job.needs())['n_params']
    flags.update({name: given[program][name] for name in MACHINE if given[program].get(name) is not None})
    return [str(programs[program]), *(str(part) for name, value in flags.items() for part in (f'--{name}', value)), '--resume']


if __name__ == '__main__':
    utils.cli(main)
