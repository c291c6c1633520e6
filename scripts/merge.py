"""Combines experiments that ran apart, such as parts of one that ran on two machines, and makes their tables.

    python scripts/merge.py runs/cv/here copied/runs/cv/there --to results/emodb

Takes runs.csv, predictions.csv and plan.json of every folder, and config.yaml if all have one. Runs that cannot be compared are
refused: their test utterances, corpora or folds differ, or the settings of a program that made them. `--to` may be one of the
folders, which then gains the runs of the others. latency.csv is not taken: scripts/latency.py makes it anew.
"""
import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]
import table  # noqa: E402
from experiment import COLUMNS, ORIGIN, SETTING, publish, rank, read_table, read_yaml  # noqa: E402
from jobs import PROGRAMS, RANDOM_SEARCH, SEARCHED, SVM, SVMS, TRANSFERS  # noqa: E402

import config as cf  # noqa: E402
from config import UserError  # noqa: E402

STATES = ('finished', 'failed', 'missing')  # the first that a run has in any folder
WHOLE = ('n_test', 'n_params', 'best_epoch')  # columns of whole numbers
PLAN = {'runs': list, 'test_speakers': list, 'digest': str, 'clean_folds': list, 'command': str, **dict.fromkeys(ORIGIN, str)}
SAME = {'digest': 'other utterances, labels or speakers', 'test_speakers': 'other folds', 'clean_folds': 'other clean folds',
        'sized_by': 'matched baselines with the size of another model'}
SHARED = {f.name for group in (cf.DataSettings, cf.FeatureSettings, cf.DevSettings) for f in fields(group)}  # by all programs
LEAVE = 'leave its folder out'


def main(argv=None):
    parser = argparse.ArgumentParser(prog='merge.py', description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('folders', type=Path, nargs='+', help='folders with runs.csv and predictions.csv, such as runs/cv/NAME')
    parser.add_argument('--to', type=Path, required=True, help='folder to write to')
    args = parser.parse_args(argv)
    check_folders(args.folders, args.to)
    parts = {folder: table.read(folder) for folder in args.folders}
    check_alike(parts)
    plan = merge_plans({folder: part.plan for folder, part in parts.items()})
    settings = merge_settings({folder: programs(part.runs[part.runs['state'] == STATES[0]]['model'])
                               for folder, part in parts.items()})
    runs, predictions = merge_runs(args.folders)

    # In this order the folder can be read at any moment: predictions without a run are passed over.
    publish(args.to / 'predictions.csv', predictions.to_csv(index=False))
    publish(args.to / 'plan.json', json.dumps(plan) + '\n')
    if settings:
        publish(args.to / 'config.yaml', yaml.safe_dump(settings, sort_keys=False))
    publish(args.to / 'runs.csv', runs.to_csv(index=False))
    print(f'{len(runs)} runs of {len(parts)} folders; {args.to}/table.md: {table.make(args.to)}')


def check_folders(folders: list[Path], to: Path):
    """UserError if a folder is named twice, or the one to write to is something else or will be."""
    known = [folder.resolve() for folder in folders]
    if len({*known}) < len(known):
        raise UserError(f'{next(folder for folder in folders if known.count(folder.resolve()) > 1)}: named twice')
    if len(known) < 2:
        raise UserError(f'{folders[0]}: name two folders or more')
    if to.resolve().parent == Path('runs', 'cv').resolve():
        raise UserError(f'--to {to}: cross_validate.py keeps its experiments in runs/cv and would repeat all runs; take '
                        'another folder')
    if to.resolve() not in known and to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f'--to {to} exists and is not an empty folder: name it among the folders too, or take another')


def check_alike(parts: dict[Path, table.Results]):
    """UserError unless all finished runs have one setting, and those of a fold were tested on the same utterances."""
    first = {}  # what: (its value, the folder that has it)
    for folder, part in parts.items():
        finished = part.runs[part.runs['state'] == STATES[0]]
        found = [(name, value) for name in SETTING for value in finished[name].dropna().astype(str).unique()]
        found += [(f'test utterances of fold {fold}', frozenset(zip(some['path'], some['speaker'], some['label'])))
                  for fold, some in part.predictions.groupby('fold')]
        for what, value in found:
            then, other = first.setdefault(what, (value, folder))
            if value != then:
                differ = f'{what} is {value} in {folder} and {then} in {other}' if isinstance(value, str) else \
                    f'the {what} differ between {folder} and {other}'
                raise UserError(f'{differ}, so these runs cannot be compared: leave one of the folders out')
    for model in TRANSFERS:  # one genotype serves all folds of a seed
        runs = pd.concat([part.finished(model).assign(folder=str(folder)) for folder, part in parts.items()])
        for seed, some in runs.groupby(runs['seed'].to_numpy()):
            if some['genotype'].nunique() > 1:
                where = ', '.join(some['folder'].unique())
                raise UserError(f'{model} has several genotypes for seed {seed} ({where}): one serves all folds of a seed; '
                                'leave one of the folders out')


def programs(models: Iterable[str]) -> set[str]:
    """The programs whose settings the runs of these models depend on."""
    found = {SVM if model in SVMS else 'augment' for model in models}
    return found | {'search' for model in models if model.startswith(SEARCHED) or model == RANDOM_SEARCH}


def merge_plans(plans: dict[Path, dict]) -> dict:
    """One plan.json of several. UserError if corpus or folds differ."""
    merged, first, runs, commands = {}, {}, set(), {}
    for folder, plan in plans.items():
        with cf.contents_of(folder / 'plan.json', LEAVE):
            for name, kind in PLAN.items():
                if not isinstance(plan.get(name, kind()), kind):
                    raise ValueError(f'{name} is {cf.short(plan[name])}')
            runs |= {(str(model), int(fold), int(seed)) for model, fold, seed in plan.get('runs', [])}
        commands |= dict.fromkeys(plan.get('command', '').splitlines())
        for name in SAME:
            if value := plan.get(name):
                if value != merged.setdefault(name, value):
                    raise UserError(f'{folder} has {SAME[name]} than {first[name]}, so these runs cannot be compared: leave '
                                    'one of the folders out')
                first.setdefault(name, folder)
    merged |= merge_sources({folder: plan['genotypes_of'] for folder, plan in plans.items() if 'genotypes_of' in plan})
    return {'runs': in_order(runs), 'clean_folds': [], **merged, **({'command': '\n'.join(commands)} if commands else {})}


def merge_sources(found: dict[Path, str]) -> dict:
    """genotypes_of of several plans. UserError if some searched and others took genotypes of an earlier experiment."""
    searched, given = ([folder for folder, source in found.items() if bool(source) == has] for has in (False, True))
    if searched and given:
        raise UserError(f'{searched[0]} searched, and {given[0]} has genotypes of {found[given[0]]}, so these runs cannot be '
                        'compared: leave one of the folders out')
    if len({*found.values()}) > 1:
        print(f'NOTE: genotypes are those of {" and ".join(sorted({*found.values()}))}, which must be the same experiment',
              file=sys.stderr)
    return {'genotypes_of': min(found.values())} if found else {}


def merge_settings(used: dict[Path, set[str]]) -> dict:
    """One config.yaml of several: of every program, the settings of the folders that used it. UserError if they differ.

    {} if a folder has none, which is said on stderr.
    """
    merged, shared, complete = {}, {}, True
    for folder, sections in used.items():
        path = folder / 'config.yaml'
        if not path.exists():
            complete = False
            print(f'NOTE: {folder} has no config.yaml, so its settings were not compared', file=sys.stderr)
            continue
        its = read_yaml(path, LEAVE)
        for section in [section for section in PROGRAMS if section in sections]:
            with cf.contents_of(path, LEAVE):
                now = cf.of_earlier({str(name): value for name, value in (its.get(section) or {}).items()})
            known = {f.name for f in fields(cf.SECTIONS[section])}
            then, there = merged.setdefault(section, (now, folder))
            for name in sorted(then.keys() | now.keys()):
                check_setting(name, f'{PROGRAMS[section]} in {folder}', now, f'{PROGRAMS[section]} in {there}', then)
            for name in sorted(SHARED & known):
                before, where = shared.setdefault(name, (now, f'{PROGRAMS[section]} in {folder}'))
                check_setting(name, f'{PROGRAMS[section]} in {folder}', now, where, before)
    return {section: merged[section][0] for section in PROGRAMS if section in merged} if complete else {}


def check_setting(name: str, where: str, now: dict, there: str, then: dict):
    """UserError if two programs, or one in two folders, were given different values."""
    a, b = (values.get(name, 'its default') for values in (now, then))
    if a != b:
        raise UserError(f'{name} is {a} for {where} and {b} for {there}, so these runs cannot be compared: leave one of the '
                        'folders out')


def merge_runs(folders: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """runs.csv and predictions.csv of all folders as text. UserError if a run is finished in two of them and differs."""
    kinds = {'model': str, 'seed': int, 'fold': int}
    every = []
    for i, folder in enumerate(folders):
        runs = read_table(folder / 'runs.csv', {**kinds, 'state': str}, table.REMAKE).assign(folder=i)
        if unknown := {*runs['state']} - {*STATES}:
            raise UserError(f'{folder}/runs.csv is damaged (a state is {cf.short(min(unknown))}): {table.REMAKE}')
        every.append(table.with_heard(runs))
    runs = pd.concat(every).reindex(columns=[*COLUMNS, 'folder'], fill_value='').fillna('')
    for name in WHOLE:  # 12.0 beside a run without one
        runs[name] = runs[name].str.removesuffix('.0')
    runs = runs.sort_values('state', key=lambda state: state.map(STATES.index), kind='stable')
    finished = runs[runs['state'] == STATES[0]]
    if finished.empty:
        raise UserError(f'no run is finished in {" and ".join(map(str, folders))}')
    predictions = pd.concat([read_table(folder / 'predictions.csv', kinds, table.REMAKE).assign(folder=i)
                             for i, folder in enumerate(folders) if i in {*finished['folder']}]).fillna('')
    said = {key: some.drop(columns=[*table.KEY, 'folder']).to_csv(index=False)
            for key, some in predictions.groupby([*table.KEY, 'folder'])}
    for key, some in finished.groupby(table.KEY):
        rows = [(tuple(row.drop('folder')), said.get((*key, row['folder']))) for _, row in some.iterrows()]
        for row, i in zip(rows, some['folder']):
            if row != rows[0]:
                (model, seed, fold), a, b = key, folders[some['folder'].iloc[0]], folders[i]
                raise UserError(f'{model}-f{fold}-s{seed} is finished in {a} and in {b}, and its rows differ: two trainings of '
                                'one run cannot both count; leave one of the folders out')
    runs = runs.drop_duplicates(table.KEY)
    predictions = runs.loc[runs['state'] == STATES[0], [*table.KEY, 'folder']].merge(predictions, on=[*table.KEY, 'folder'])
    keys = [*runs[['model', 'fold', 'seed']].itertuples(index=False, name=None)]
    places = {key: i for i, key in enumerate(in_order(keys))}
    order = sorted(range(len(keys)), key=lambda i: places[keys[i]])
    return runs.drop(columns='folder').iloc[order], predictions.drop(columns='folder')


def in_order(runs: Iterable[tuple]) -> list[tuple]:
    """(model, fold, seed) in the order of the tables."""
    return sorted(runs, key=lambda run: (rank(run[0]), *run[1:]))


if __name__ == '__main__':
    if {'-h', '--help'} & {*sys.argv[1:]}:
        main()
    import utils
    utils.cli(main)
