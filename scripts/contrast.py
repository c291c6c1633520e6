"""Differences between models over several corpora: each corpus alone, and their mean.

    python scripts/contrast.py docs/results/emodb-speaker docs/results/ravdess-speaker \\
        --model transferred --minus random_transferred,cnn_gru_matched --seeds 0-3

Reads runs.csv and predictions.csv of experiments, such as runs/cv/NAME. `--earlier` subtracts the same model in earlier
experiments on the same corpora, to see what another recipe or input changed. Runs are paired by fold and seed. The interval
and p cover variation between speakers: the speakers of each corpus are resampled, or the predictions of each speaker swapped
between the models. The differences of single seeds stand beside them. Holm's method corrects the p of the mean for the number
of models that are subtracted.
"""
import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]
import significance as sig  # noqa: E402
import table  # noqa: E402
import table_text as text  # noqa: E402
from experiment import SETTING, publish, rank  # noqa: E402

import config as cf  # noqa: E402
from config import UserError  # noqa: E402


def counts_of(results: table.Results, ours: str, theirs: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Seeds, and the counts of both models on the runs that both have, as significance.py takes them. UserError."""
    folds = sorted({*results.runs['fold']})
    pairs = table.shared_pairs(results, ours, theirs, folds)
    seeds = sorted({seed for seed, _ in pairs})
    if not pairs:
        raise UserError(f'{results.name} has no fold and seed that {ours} and {theirs} have both finished')
    if len(pairs) < len(seeds) * len(folds):
        raise UserError(f'{results.name}: no seed of {ours} and {theirs} has all folds; finish the experiment, or choose folds '
                        'with --only_folds')
    return seeds, *table.stack(results, pairs, ours, theirs)


def check_corpora(experiments: list[table.Results]):
    """UserError if two experiments share utterances, which a mean would count twice."""
    seen = {}
    for results in experiments:
        for its in sorted({*zip(results.predictions['path'], results.predictions['speaker'])}):
            if (first := seen.setdefault(its, results)) is not results:
                raise UserError(f'{first.name} and {results.name} have the same recordings, such as {its[0]} of speaker '
                                f'{its[1]}: name one of them')


def check_settings(experiments: list[table.Results], models: list[str]):
    """UserError if a model was trained or normalised in one way here and in another there."""
    for model in models:
        for name in SETTING:
            found = {results.name: sorted({*results.finished(model)[name].dropna().map(str)}) for results in experiments}
            if len({*map(tuple, found.values())}) > 1:
                said = '; '.join(f'{where} {" and ".join(values) or "not recorded"}' for where, values in found.items())
                raise UserError(f'{model} has another {name} in each experiment ({said}), so a mean would say nothing')


def with_earlier(results: table.Results, earlier: table.Results, model: str) -> table.Results:
    """The results, with the model's runs in an earlier experiment as those of a model `earlier MODEL`.

    UserError if the two tested other utterances.
    """
    now, then = (its.predictions[its.predictions['model'] == model] for its in (results, earlier))
    folds = [sorted({*part['fold']}) for part in (now, then)]
    if folds[0] != folds[1]:
        raise UserError(f'{model} has finished folds {" ".join(map(str, folds[0]))} of {results.name}, and of the earlier '
                        f'{earlier.name} {" ".join(map(str, folds[1])) or "none"}: choose common ones with --only_folds')
    tested = [part.groupby('fold')[['speaker', 'label']].value_counts() // part.groupby('fold')['seed'].nunique()
              for part in (now, then)]
    if not tested[0].sort_index().equals(tested[1].sort_index()):
        raise UserError(f'{results.name} and {earlier.name} tested other utterances, speakers or labels')
    runs, predictions = (
        pd.concat([ours, theirs[theirs['model'] == model].assign(model=f'earlier {model}')])
        for ours, theirs in ((results.runs, earlier.runs), (results.predictions, earlier.predictions)))
    labels, counts = table.counted(predictions)
    return replace(results, runs=runs, predictions=predictions, labels=labels, counts=counts)


def contrast(experiments: list[table.Results], ours: str, theirs: str) -> list[dict]:
    """A row for each corpus, and one of their mean: 'ua' (difference, low, high, p), and 'by_seed' [difference, ...]."""
    found = [counts_of(results, ours, theirs) for results in experiments]
    seeds = [its for its, *_ in found]
    if len({*map(tuple, seeds)}) > 1:
        said = '; '.join(f'{results.name} {" ".join(map(str, its))}' for results, its in zip(experiments, seeds))
        raise UserError(f'{ours} and {theirs} have other seeds in each experiment ({said}); choose common ones with --seeds')
    rows = [row_of(results.name, seeds[0], [(a, b)]) for results, (_, a, b) in zip(experiments, found)]
    if len(rows) > 1:
        rows.append(row_of('mean', seeds[0], [(a, b) for _, a, b in found]))
    return [{**row, 'of': ours, 'minus': theirs} for row in rows]


def row_of(corpus: str, seeds: list[int], pairs: list) -> dict:
    """pairs: the counts of two models on each corpus."""
    def difference(which):
        return np.mean([sig.point(a[which]) - sig.point(b[which]) for a, b in pairs], axis=0)[0]
    low, high = sig.pooled_interval(pairs)[:, 0]
    return {'corpus': corpus, 'seeds': seeds, 'n_speakers': sum(a.shape[1] for a, _ in pairs),
            'ua': (difference(slice(None)), low, high, sig.pooled_p_values(pairs)[0]),
            'by_seed': [difference(slice(i, i + 1)) for i in range(len(seeds))]}


def doubts(results: table.Results, models: list[str]):
    """The warnings of table.md on the runs of these models."""
    runs, predictions = (frame[frame['model'].isin(models)] for frame in (results.runs, results.predictions))
    its = replace(results, runs=runs, predictions=predictions)
    yield from (line.strip('*') for line in text.warnings(its) if 'WARNING' in line)


def page(rows: list[dict]) -> str:
    """A Markdown table."""
    last = [row for i, row in enumerate(rows) if i + 1 == len(rows) or rows[i + 1]['minus'] != row['minus']]
    for row, p in zip(last, sig.holm([row['ua'][3] for row in last])):
        row['holm'] = p
    head = [f'{rows[0]["of"]} minus', 'corpus', 'seeds', 'speakers', 'UA', '95% interval', 'p', 'p (Holm)', 'single seeds']
    lines = [[row['minus'], row['corpus'], ' '.join(map(str, row['seeds'])), row['n_speakers'], *text.difference(row, 'ua'),
              text.p_value(row['holm']) if 'holm' in row else '', ' '.join(map(text.signed, row['by_seed']))] for row in rows]
    return text.table(head, lines) + '\n'


def main(argv=None):
    parser = argparse.ArgumentParser(prog='contrast.py', description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('folders', nargs='+', type=Path, help='folders of experiments, one for each corpus')
    parser.add_argument('--model', required=True, help='the model to subtract others from')
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--minus', help='models to subtract, separated by commas')
    what.add_argument('--earlier', nargs='+', type=Path, metavar='DIR',
                      help='folders of earlier experiments, in the same order, whose runs of the same model are subtracted')
    parser.add_argument('--seeds', help='these seeds only, such as 0,2 or 0-4 (default: all)')
    parser.add_argument('--only_folds', help='these folds only (default: all)')
    parser.add_argument('-o', '--out', type=Path, help='write the table to this file too')
    args = parser.parse_args(argv)
    seeds, folds = (given and cf.parse_numbers(name, given) for name, given in (
        ('seeds', args.seeds), ('only_folds', args.only_folds)))
    if args.out and args.out.is_dir():
        raise UserError(f'--out {args.out} is a folder: name a file')
    experiments = [table.read(folder, seed=seeds, fold=folds) for folder in args.folders]
    check_corpora(experiments)
    if args.earlier:
        if len(args.earlier) != len(args.folders):
            raise UserError(f'--earlier names {len(args.earlier)} folders, but there are {len(args.folders)} experiments')
        before = [table.read(folder, seed=seeds, fold=folds) for folder in args.earlier]
        for folder, results in zip([*args.folders, *args.earlier], [*experiments, *before]):
            if args.model not in results.models():
                raise UserError(f'--model {args.model}: {folder} has {", ".join(results.models()) or "no finished run"}')
        experiments = [with_earlier(*both, args.model) for both in zip(experiments, before)]
        args.minus = f'earlier {args.model}'
    minus = [name.strip() for name in args.minus.split(',')]
    for flag, name in (('model', args.model), *(('minus', name) for name in minus)):
        known = set.intersection(*(set(results.models()) for results in experiments)) - {args.model if flag == 'minus' else ''}
        if name not in known:
            raise UserError(f'--{flag} {name or "has an empty name"}: choose among {", ".join(sorted(known, key=rank))}')
    check_settings(experiments, [args.model, *minus])
    rows = [row for theirs in minus for row in contrast(experiments, args.model, theirs)]
    for results in experiments:
        for line in doubts(results, [args.model, *minus]):
            print(f'contrast.py: {results.name}: {line}', file=sys.stderr)
    found = page(rows)
    if lacking := sorted({*(seeds or ())} - {seed for row in rows for seed in row['seeds']}):
        print(f'contrast.py: no run of all folds has seed {" ".join(map(str, lacking))}', file=sys.stderr)
    if args.out:
        publish(args.out, found)
    print(found, end='')


if __name__ == '__main__':
    if {'-h', '--help'} & {*sys.argv[1:]}:
        main()
    import utils
    utils.cli(main)
