"""Puts experiments that ran apart into one folder, such as parts of one that ran on two machines, and makes its tables.

    python scripts/merge.py runs/cv/here copied/runs/cv/there --to results/emodb

Takes runs.csv, predictions.csv and plan.json of every folder, and config.yaml where there is one. Runs that cannot be compared
are refused: other utterances, other folds, other settings of a program that both used. `--to` may be one of the folders; it
then gains the runs of the others.
"""
import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]
import table  # noqa: E402
from experiment import COLUMNS, publish, rank, read_table, read_yaml  # noqa: E402
from jobs import PROGRAMS, RANDOM_SEARCH, SEARCHED, SVM, SVMS  # noqa: E402

import config as cf  # noqa: E402
from config import UserError  # noqa: E402

STATES = ('finished', 'failed', 'missing')  # the first that a run has in any folder
WHOLE = ('n_test', 'n_params', 'best_epoch')  # columns of whole numbers
SAME = {'digest': 'other utterances, labels or speakers', 'test_speakers': 'other folds', 'clean_folds': 'other clean folds'}


def main(argv=None):
    parser = argparse.ArgumentParser(prog='merge.py', description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('folders', type=Path, nargs='+', help='folders with runs.csv and predictions.csv, such as runs/cv/NAME')
    parser.add_argument('--to', type=Path, required=True, help='folder to write to')
    args = parser.parse_args(argv)
    check_target(args.folders, args.to)
    parts = {folder: table.read(folder) for folder in args.folders}
    plan = merge_plans({folder: part.plan for folder, part in parts.items()})
    settings = merge_settings({folder: programs(part.runs['model']) for folder, part in parts.items()})
    runs, predictions = merge_runs(args.folders)

    # In this order the folder can be read at any moment: predictions without a run are passed over.
    publish(args.to / 'predictions.csv', predictions.to_csv(index=False))
    publish(args.to / 'plan.json', json.dumps(plan) + '\n')
    if settings:
        publish(args.to / 'config.yaml', yaml.safe_dump(settings, sort_keys=False))
    publish(args.to / 'runs.csv', runs.to_csv(index=False))
    print(f'{len(runs)} runs of {len(parts)} folders; {args.to}/table.md: {table.make(args.to)}')


def check_target(folders: list[Path], to: Path):
    """UserError if the folder to write to is another experiment, or will be."""
    known = [folder.resolve() for folder in folders]
    if len({*known}) < len(known):
        raise UserError(f'{next(folder for folder in folders if known.count(folder.resolve()) > 1)}: named twice')
    if to.resolve().parent == Path('runs', 'cv').resolve():
        raise UserError(f'--to {to}: cross_validate.py keeps its experiments in runs/cv and would repeat all runs; take '
                        'another folder')
    if to.resolve() not in known and (to / 'runs.csv').exists():
        raise UserError(f'--to {to} has runs already: name it among the folders too, or take another')


def programs(models: Iterable[str]) -> set[str]:
    """The programs whose settings the runs of these models depend on."""
    found = {SVM if model in SVMS else 'augment' for model in models}
    return found | {'search' for model in models if model.startswith(SEARCHED) or model == RANDOM_SEARCH}


def merge_plans(plans: dict[Path, dict]) -> dict:
    """One plan.json of several. UserError if corpus or folds differ."""
    plans = {folder: plan for folder, plan in plans.items() if plan}
    merged = {}
    for name, what in SAME.items():
        found = {folder: plan[name] for folder, plan in plans.items() if plan.get(name)}
        for folder, value in found.items():
            if value != merged.setdefault(name, value):
                raise UserError(f'{folder} has {what} than {next(iter(found))}, so their runs cannot be compared: merge it '
                                'with others')
    runs = {(*run,) for plan in plans.values() for run in plan.get('runs', [])}
    commands = dict.fromkeys(line for plan in plans.values() for line in plan.get('command', '').splitlines())
    return {'runs': in_order(runs), 'clean_folds': [], **merged, **({'command': '\n'.join(commands)} if commands else {})}


def merge_settings(used: dict[Path, set[str]]) -> dict:
    """One config.yaml of several: of every program, the settings of the folders that used it. UserError if they differ."""
    merged, first = {}, {}
    for folder, sections in used.items():
        path = folder / 'config.yaml'
        its = read_yaml(path, 'leave its folder out') if path.exists() else {}
        for section in sorted(sections & its.keys()):
            with cf.contents_of(path, 'leave its folder out'):
                now = dict(its[section] or {})
            then = merged.setdefault(section, now)
            for name in sorted(then.keys() | now.keys()):
                a, b = (where.get(name, 'its default') for where in (then, now))
                if a != b:
                    raise UserError(f'{name} of {PROGRAMS[section]} is {b} in {folder}, but {a} in {first[section]}: their '
                                    'runs cannot be compared')
            first.setdefault(section, folder)
    return {section: merged[section] for section in PROGRAMS if section in merged}


def merge_runs(folders: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """runs.csv and predictions.csv of all folders as text. UserError if a run is finished in two of them and differs."""
    kinds = {'model': str, 'seed': int, 'fold': int}
    runs = pd.concat([read_table(folder / 'runs.csv', kinds, table.REMAKE).assign(folder=i)
                      for i, folder in enumerate(folders)]).reindex(columns=[*COLUMNS, 'folder'], fill_value='').fillna('')
    for name in WHOLE:  # 12.0 beside a run without one
        runs[name] = runs[name].str.removesuffix('.0')
    runs = runs.sort_values('state', key=lambda state: state.map({name: i for i, name in enumerate(STATES)}), kind='stable')
    predictions = pd.concat([read_table(folder / 'predictions.csv', kinds, table.REMAKE).assign(folder=i)
                             for i, folder in enumerate(folders) if (folder / 'predictions.csv').exists()]).fillna('')
    said = {(*key,): some.drop(columns=[*table.KEY, 'folder']).to_csv(index=False)
            for key, some in predictions.groupby([*table.KEY, 'folder'])}
    for (model, seed, fold), some in runs[runs['state'] == 'finished'].groupby(table.KEY):
        heard = {said.get((model, seed, fold, i)) for i in some['folder']}
        if len(some.drop(columns='folder').drop_duplicates()) > 1 or len(heard) > 1:
            a, b = (folders[i] for i in some['folder'][:2])
            raise UserError(f'{model}-f{fold}-s{seed} is finished in {a} and in {b}, and its rows differ: two trainings of one '
                            'run cannot both count; leave one folder out')
    runs = runs.drop_duplicates(table.KEY)
    kept = runs.loc[runs['state'] == 'finished', [*table.KEY, 'folder']]
    predictions = kept.merge(predictions, on=[*table.KEY, 'folder']).drop(columns='folder')
    places = {key: i for i, key in enumerate(in_order(runs[['model', 'fold', 'seed']].itertuples(index=False, name=None)))}
    order = [places[key] for key in runs[['model', 'fold', 'seed']].itertuples(index=False, name=None)]
    return runs.drop(columns='folder').iloc[pd.Series(order).argsort()], predictions


def in_order(runs: Iterable[tuple]) -> list[tuple]:
    """(model, fold, seed) in the order of the tables."""
    return sorted(runs, key=lambda run: (rank(run[0]), *run[1:]))


if __name__ == '__main__':
    if {'-h', '--help'} & {*sys.argv[1:]}:
        main()
    import utils
    utils.cli(main)
