"""Makes the tables and figures of an experiment from its runs.csv and predictions.csv alone.

    python scripts/table.py runs/cv/emodb
    python scripts/table.py runs/cv/emodb --models searched,random --seeds 0-2 --to two-models

Writes table.csv (a row per model), table.md (for readers) and figures/. plan.json adds clean folds and the command.
--add mine.csv --to DIR compares the predictions of another system with the models of the experiment.
"""
import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]
import others  # noqa: E402
import significance as sig  # noqa: E402
import table_text  # noqa: E402
from experiment import COLUMNS, PREDICTION, UNKNOWN, publish, rank, read_table  # noqa: E402
from jobs import FOUND, SEARCHED, SVMS, TRANSFERRED  # noqa: E402

import config as cf  # noqa: E402
import genotypes as gt  # noqa: E402
from config import UserError  # noqa: E402

KEY = ['model', 'seed', 'fold']
SPEAKERS = ('test_speakers', 'search_heard_test_speakers', 'init_heard_test_speakers')  # columns of names
NUMBERS = ('ua', 'wa', 'macro_f1', 'n_test', 'n_params', 'search_minutes', 'search_core_minutes', 'minutes', 'core_minutes')
FLAGS = {'model': 'models', 'fold': 'only_folds'}  # that choose runs
REMAKE = 'the commands in plan.json make it anew'
SIZES = {'params': 'n_params', 'search_minutes': 'search_minutes', 'minutes': 'minutes'}  # column of table.csv: of runs.csv


@dataclass
class Results:
    """What the runs of an experiment left."""
    name: str
    runs: pd.DataFrame  # runs.csv
    predictions: pd.DataFrame  # predictions.csv
    labels: list[str]
    counts: dict  # {(model, seed, fold): the speakers' confusion matrices (n_speakers, n_classes, n_classes)}
    plan: dict  # plan.json, or {}
    added: list[str] = field(default_factory=list)  # models that are other systems
    latency: dict = field(default_factory=dict)  # {(model, seed, fold): ms}, of latency.csv; `analyse` reads it

    def finished(self, model: str) -> pd.DataFrame:
        """The finished runs of a model, by seed and fold."""
        runs = self.runs[(self.runs['state'] == 'finished') & (self.runs['model'] == model)]
        return runs.set_index(['seed', 'fold'], drop=False)

    def models(self) -> list[str]:
        """Models with a finished run, in the order of the tables."""
        found = set(self.runs.loc[self.runs['state'] == 'finished', 'model'])
        return sorted(found, key=lambda model: (rank(model), model))


def with_heard(runs: pd.DataFrame) -> pd.DataFrame:
    """runs.csv with the column that tells whom the searches heard: without it, nobody knows."""
    if 'search_heard_test_speakers' in runs:
        return runs
    return runs.assign(search_heard_test_speakers=[UNKNOWN if model in FOUND else None for model in runs['model']])


def read(folder: Path, add: Iterable[Path] = (), **only: list | None) -> Results:
    """Results in a folder. only: the values of model, seed and fold to keep. UserError if nothing is there.

    add: files of other systems' predictions. `only` does not leave out these models.
    """
    try:
        runs = pd.read_csv(folder / 'runs.csv', dtype=dict.fromkeys(SPEAKERS, str),
                           keep_default_na=False, na_values=[''])  # a speaker may be called NA
    except FileNotFoundError:
        raise UserError(f'{folder}/runs.csv does not exist: name the folder of an experiment, such as runs/cv/NAME') from None
    except ValueError as error:  # pandas' own errors are ValueErrors
        raise UserError(f'{folder}/runs.csv is damaged ({cf.one_line(error, 150)}): {REMAKE}') from None
    with cf.contents_of(folder / 'runs.csv', REMAKE):
        runs = with_heard(runs).reindex(columns=COLUMNS)  # older ones lack some
    with cf.contents_of(folder / 'runs.csv', REMAKE):
        runs = runs.astype({'seed': int, 'fold': int, 'model': str, 'state': str, **dict.fromkeys(NUMBERS, float)})
        if runs.duplicated(KEY).any():
            raise ValueError('a run is there twice')
        for name in SPEAKERS:
            runs[name] = runs[name].map(cf.from_csv_cell, na_action='ignore')
        for text in runs['genotype'].dropna():
            gt.from_str(text)
    wanted = chosen(runs, only)
    if wanted.empty:
        raise UserError(f'{folder}/runs.csv has no such runs')
    plan = folder / 'plan.json'
    plan = cf.read_json(plan) if plan.exists() else {}
    if not (wanted['state'] == 'finished').any():
        return Results(folder.name, wanted, pd.DataFrame(columns=[*KEY, *PREDICTION]), [], {}, plan)
    predictions = read_table(folder / 'predictions.csv', {**PREDICTION, **dict.fromkeys(KEY[1:], int), 'model': str}, REMAKE)
    for name in PREDICTION:
        predictions[name] = predictions[name].map(cf.from_csv_cell)
    names = [Path(file).stem for file in add]
    if names:
        compared = predictions[predictions['seed'].isin(only['seed'])] if only.get('seed') else predictions
        runs, predictions = others.added(map(Path, add), runs, compared)
        wanted = chosen(runs, {**only, 'model': only.get('model') and [*only['model'], *names]})
    runs = wanted
    predictions = predictions.merge(runs[KEY], on=KEY)
    labels, counts = counted(predictions)
    finished = runs.loc[runs['state'] == 'finished', KEY]
    if lacking := [key for key in finished.itertuples(index=False, name=None) if key not in counts]:
        model, seed, fold = lacking[0]
        raise UserError(f'{folder}/predictions.csv lacks the run {model}-f{fold}-s{seed}: {REMAKE}')
    for model, seed, fold, n in runs[[*KEY, 'n_test']].dropna(subset='n_test').itertuples(index=False, name=None):
        if (model, seed, fold) in counts and counts[model, seed, fold].sum() != n:
            raise UserError(f'{folder}/predictions.csv has {counts[model, seed, fold].sum()} predictions of the run '
                            f'{model}-f{fold}-s{seed}, which tested {n:.0f} utterances: {REMAKE}')
    return Results(folder.name, runs, predictions, labels, counts, plan, names)


def counted(predictions: pd.DataFrame) -> tuple[list[str], dict]:
    """The labels, true or predicted, in order, and the counts of Results."""
    speakers, labels = ({*predictions['speaker']}, {*predictions['label'], *predictions['predicted']})
    places = {'speaker': pd.Index(sorted(speakers)), 'label': pd.Index(sorted(labels)), 'predicted': pd.Index(sorted(labels))}
    return sorted(labels), {
        key: sig.count(*(index.get_indexer(part[name]) for name, index in places.items()), len(speakers), len(labels))
        for key, part in predictions.groupby(KEY)}


def chosen(runs: pd.DataFrame, only: dict) -> pd.DataFrame:
    """The runs with these values of columns; None: any. UserError if no run has one of the models or folds."""
    for column, values in only.items():
        if column != 'seed' and (lacking := sorted({*(values or ())} - {*runs[column]})):
            raise UserError(f'--{FLAGS[column]} {lacking[0]}: there are only {", ".join(map(str, sorted({*runs[column]})))}')
        runs = runs[runs[column].isin(values)] if values else runs
    return runs


def read_latency(path: Path, results: Results) -> dict[tuple[str, int, int], float]:
    """{(model, seed, fold): ms} of all runs of networks, as scripts/latency.py measured them. UserError if it is damaged.

    {} without the file, or if it lacks a run or is of another network; the latter is said on stderr.
    """
    if not path.exists():
        return {}
    columns = {**dict.fromkeys(KEY[1:], int), 'model': str, 'n_params': int, 'latency_ms': float}
    found = read_table(path, columns, 'scripts/latency.py makes it anew').set_index(KEY)
    if found.index.has_duplicates:
        raise UserError(f'{path} is damaged (a run is there twice): scripts/latency.py makes it anew')
    without = [*SVMS, *results.added]
    finished = results.runs[(results.runs['state'] == 'finished') & ~results.runs['model'].isin(without)].set_index(KEY)
    sizes = found['n_params'].reindex(finished.index)
    if lacking := [key for key, size in sizes.items() if size != finished.loc[key, 'n_params']]:
        model, seed, fold = lacking[0]
        print(f'NOTE: {path} lacks {len(lacking)} of {len(finished)} runs, such as {model}-f{fold}-s{seed}, so UA against '
              'latency is not drawn: scripts/latency.py measures it anew', file=sys.stderr)
        return {}
    return found['latency_ms'].to_dict()


def choose(pairs: Iterable, folds: list[int]) -> list[tuple[int, int]]:
    """The (seed, fold) pairs to score: those of the seeds that have every fold; all pairs if no seed has."""
    pairs = sorted((int(seed), int(fold)) for seed, fold in pairs if fold in folds)
    n = Counter(seed for seed, _ in pairs)
    return [pair for pair in pairs if n[pair[0]] == len(folds)] or pairs


def describe(results: Results, pairs: list, folds: list[int], *models: str) -> dict:
    """Which seeds are scored, and how many more all the models were asked for; 'partial': seeds with different folds."""
    scored = dict.fromkeys(seed for seed, _ in pairs)
    partial = len(pairs) < len(scored) * len(folds)
    runs = results.runs[results.runs['fold'].isin(folds)]
    asked = set.intersection(*({*runs.loc[runs['model'] == model, 'seed']} for model in models))
    return {'seeds': f'partial: {table_text.pairs(pairs)}' if partial else ' '.join(map(str, scored)),
            'seeds_left_out': len(asked - scored.keys()), 'partial': partial}


def stack(results: Results, pairs: list, *models: str) -> list[np.ndarray]:
    """For each model, counts (n_seeds, n_speakers, n_classes, n_classes) of these pairs and the speakers tested in them."""
    seeds = sorted({seed for seed, _ in pairs})
    arrays = [np.stack([sum(results.counts[(model, *pair)] for pair in pairs if pair[0] == seed) for seed in seeds])
              for model in models]
    tested = arrays[0].sum(axis=(0, 2, 3)) > 0
    return [array[:, tested] for array in arrays]


def mean_sd(values: Iterable) -> tuple[float, float]:
    """Mean and sample standard deviation, which is nan for one value."""
    values = np.asarray(values, float)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else np.nan


def summarise(results: Results, model: str, folds: list[int]) -> dict | None:
    """The row of a model in table.csv. Also 'pairs' that are scored, and 'by_fold': {fold: (mean UA, sd)}.

    None without a finished run. A partial row has no deviation over seeds, because its seeds have different folds.
    """
    runs = results.finished(model)
    pairs = choose(runs.index, folds)
    if not pairs:
        return None
    counts, = stack(results, pairs, model)
    tested = {fold: int(results.counts[model, seed, fold].sum()) for seed, fold in pairs}
    row = {'model': model, **describe(results, pairs, folds, model), 'n_folds': len(tested), 'n_test': sum(tested.values()),
           'n_speakers': counts.shape[1], 'pairs': pairs}
    by_seed, (low, high) = sig.scores(counts.sum(axis=1)), sig.interval(counts)
    alone = {pair: sig.scores(results.counts[(model, *pair)].sum(axis=0)) for pair in pairs}
    for i, name in reversed([*enumerate(sig.MEASURES)]):
        by_fold = {fold: mean_sd([alone[pair][i] for pair in pairs if pair[1] == fold])
                   for fold in sorted({fold for _, fold in pairs})}
        row[name], sd = mean_sd(by_seed[i])
        row |= {f'{name}_sd': np.nan if row['partial'] else sd, f'{name}_low': low[i], f'{name}_high': high[i]}
        row[f'{name}_folds'], row[f'{name}_folds_sd'] = mean_sd([mean for mean, _ in by_fold.values()])
    for name, column in SIZES.items():
        row[name], row[f'{name}_sd'] = mean_sd(runs.loc[pairs, column])
    return {**row, 'by_fold': by_fold}


def shared_pairs(results: Results, a: str, b: str, folds: list[int]) -> list[tuple[int, int]]:
    """The (seed, fold) pairs that both models have."""
    return choose(results.finished(a).index.intersection(results.finished(b).index), folds)


def compare(results: Results, folds: list[int], ours: str) -> list[dict]:
    """`ours` minus every other model: for each measure (difference, low, high, p); 'holm' corrects the p of UA."""
    rows = []
    for model in results.models():
        pairs = shared_pairs(results, ours, model, folds)
        if model == ours or not pairs:
            continue
        a, b = stack(results, pairs, ours, model)
        columns = sig.point(a) - sig.point(b), *sig.interval(a, b), sig.p_values(a, b)
        rows.append({'of': ours, 'model': model, 'pairs': pairs, **describe(results, pairs, folds, ours, model),
                     'n_speakers': a.shape[1], 'n_genotypes': results.finished(ours).loc[pairs, 'genotype'].nunique(),
                     **dict(zip(sig.MEASURES, zip(*columns)))})
    for row, p in zip(rows, sig.holm([row['ua'][3] for row in rows])):
        row['holm'] = p
    return rows


def analyse(folder: Path, clean: list[int] | None = None, add: Iterable[Path] = (),
            **only: list | None) -> tuple[Results, list, list[int]]:
    """(results, parts, clean folds); parts as table_text.page takes them."""
    results = read(Path(folder), add, **only)
    if lacking := sorted({*(only.get('seed') or ())} - {*results.runs['seed']}):
        there = ' '.join(map(str, sorted({*results.runs['seed']})))
        raise UserError(f'--seeds {lacking[0]}: there are only runs of seeds {there}')
    results.latency = read_latency(Path(folder, 'latency.csv'), results)
    folds, clean = sorted({*results.runs['fold']}), clean or results.plan.get('clean_folds', [])
    parts = [(some, [row for model in results.models() if (row := summarise(results, model, some))],
              [row for ours in (TRANSFERRED, SEARCHED, *results.added) for row in compare(results, some, ours)])
             for some in (folds, [fold for fold in folds if fold in clean]) if some]
    return results, parts, clean


def make(folder: Path, target: Path | None = None, figures: bool = True, clean: list[int] | None = None,
         add: Iterable[Path] = (), **only: list | None) -> str:
    """Writes table.csv, table.md and figures. clean: folds reported separately too; add: as in `read`. Returns the verdict."""
    target = Path(target or folder)
    results, parts, clean = analyse(folder, clean, add, **only)
    columns = ['model', 'seeds', 'seeds_left_out', 'n_folds', 'n_test', 'n_speakers',
               *(name + end for name in sig.MEASURES for end in ('', '_sd', '_low', '_high', '_folds', '_folds_sd')),
               *(name + end for name in SIZES for end in ('', '_sd'))]
    publish(target / 'table.csv', pd.DataFrame(parts[0][1], columns=columns).to_csv(index=False))
    pictures = []
    if figures and parts[0][1]:
        import figures as drawing  # loads matplotlib and torch
        pictures = drawing.draw(target / 'figures', results, parts[0][1])
    text = table_text.page(results, parts, clean, pictures)
    publish(target / 'table.md', text)
    return text.partition('\n')[0]


def main(argv=None):
    parser = argparse.ArgumentParser(prog='table.py', description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('folder', type=Path, help='folder with runs.csv and predictions.csv, such as runs/cv/NAME')
    parser.add_argument('--models', help='these models only, separated by commas (default: all)')
    parser.add_argument('--seeds', help='these seeds only, such as 0,2 or 0-4 (default: all)')
    parser.add_argument('--only_folds', help='these folds only (default: all)')
    parser.add_argument('--clean_folds', help='folds to report separately too')
    parser.add_argument('--add', type=Path, action='append', default=[], metavar='FILE',
                        help='CSV file with path,predicted of all test utterances, by another system')
    parser.add_argument('--to', type=Path, help='folder to write to (default: the same); needed for tables of some runs or of '
                        'other systems')
    args = parser.parse_args(argv)
    for name in ('add', 'models', 'seeds', 'only_folds'):
        if getattr(args, name) and not args.to:
            raise UserError(f'--{name} needs --to DIR: the folder of the experiment keeps its own tables')
    seeds, folds, clean = (text and cf.parse_numbers(name, text) for name, text in (
        ('seeds', args.seeds), ('only_folds', args.only_folds), ('clean_folds', args.clean_folds)))
    models = args.models and [name.strip() for name in args.models.split(',')]
    verdict = make(args.folder, args.to, clean=clean, add=args.add, model=models, seed=seeds, fold=folds)
    print(f'{args.to or args.folder}/table.md: {verdict}')


if __name__ == '__main__':
    if {'-h', '--help'} & {*sys.argv[1:]}:
        main()
    import utils
    utils.cli(main)
