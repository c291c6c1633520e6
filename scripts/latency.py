"""Times the networks of an experiment on one CPU thread, so that its figure can show UA against latency.

    python scripts/latency.py runs/cv/emodb
    python scripts/latency.py docs/results/emodb-speaker --config configs/speech.yaml

Settings are those of FOLDER/config.yaml, or flags of augment.py; they must be those of the experiment. Builds the network of
every finished run, with new weights, and writes FOLDER/latency.csv: a row a run, the median time in ms of a forward pass over
an utterance of 3 s. Features are left out, so an SVM, which spends its time on them, has no row. Then scripts/table.py draws
the figure.
"""
import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]
import table as tables  # noqa: E402
from experiment import publish  # noqa: E402
from jobs import MATCHED, SVMS  # noqa: E402

import config as cf  # noqa: E402
import genotypes as gt  # noqa: E402
from config import UserError  # noqa: E402


def main(argv=None):
    parser = argparse.ArgumentParser(prog='latency.py', description=__doc__.partition('\n')[0], allow_abbrev=False,
                                     epilog='Other flags are those of augment.py.')
    parser.add_argument('folder', type=Path, help='folder with runs.csv and predictions.csv, such as runs/cv/NAME')
    args, flags = parser.parse_known_args(argv)
    own = args.folder / 'config.yaml'
    given = cf.given('augment', ['--name', 'x', *(['--config', str(own)] if own.exists() else []), *flags])
    results = tables.read(args.folder)
    rows = measure(results, given.values)
    if rows.empty:
        raise UserError(f'{args.folder}/runs.csv has no finished run of a network')
    publish(args.folder / 'latency.csv', rows.to_csv(index=False))
    print(rows.groupby('model', sort=False)['latency_ms'].median().to_string(float_format='%.1f ms', header=False))


def measure(results: tables.Results, values: dict):
    """A DataFrame with a row for each finished run of a network. values: settings of augment.py.

    UserError if a network has not as many parameters as its run, because the settings are not those of the experiment. What
    changes no parameter, such as hop_ms, cannot be checked.
    """
    import pandas as pd

    from datasets import frames
    from models.training import n_parameters
    from scripts.spread_plan import latency_ms
    rows = []
    for model in results.models():
        for run in results.finished(model).itertuples():
            if model in SVMS:
                continue
            genotype = None if pd.isna(run.genotype) else gt.from_str(run.genotype)
            what = {'genotype': run.genotype} if genotype else {'model': model.removesuffix(MATCHED)}
            if model.endswith(MATCHED):
                what['params'] = int(run.n_params)
            config = frames.complete(cf.build('augment', cf.Given({**values, **what})))
            if (found := n_parameters(config, results.labels, genotype)) != run.n_params:
                raise UserError(f'{model}-f{run.fold}-s{run.seed} has {run.n_params:,.0f} parameters, but {found:,} with these '
                                'settings: give those of the experiment, such as --config FILE')
            rows.append({'model': model, 'seed': run.seed, 'fold': run.fold, 'n_params': found,
                         'latency_ms': round(latency_ms(config, results.labels, genotype), 3)})
    return pd.DataFrame(rows, columns=['model', 'seed', 'fold', 'n_params', 'latency_ms'])


if __name__ == '__main__':
    if {'-h', '--help'} & {*sys.argv[1:]}:
        main()
    import utils
    utils.cli(main)
