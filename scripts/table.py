"""Prints retrained networks as a Markdown table: mean +- standard deviation over seeds, of runs alike in all else.

    python scripts/table.py runs/augment/emodb-f1-s*
"""
import argparse
import json
import sys
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils  # noqa: E402

HEADER = ['corpus', 'fold', 'n test', 'seeds', 'test UA', 'test WA', 'chance UA / WA', 'parameters',
          'minutes search + retraining', 'hardware']

OWN = ('name', 'seed', 'genotype', 'data_path', 'cache')  # settings in which runs of one row may differ


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('runs', nargs='+', help='folders that hold results.json')
    args = parser.parse_args(argv)
    groups = {}
    for folder in map(Path, args.runs):
        found, settings = read(folder / 'results.json', json.loads), read(folder / 'config.yaml', yaml.safe_load)
        found['search_seconds'] = search_seconds(folder, settings['genotype'])
        alike = json.dumps({k: v for k, v in settings.items() if k not in OWN}, sort_keys=True)
        group = groups.setdefault((found['dataset'], found['fold'], found['n_test'], found['device'], alike), [])
        if found['seed'] in [other['seed'] for other in group]:
            raise utils.UserError(f'{folder}: a second run of seed {found["seed"]} with the same settings; leave one out')
        group.append(found)
    print('| ' + ' | '.join(HEADER) + ' |')
    print('|' + '---|' * len(HEADER))
    for (dataset, fold, n_test, device, _), runs in sorted(groups.items()):
        searched = [r['search_seconds'] / 60 for r in runs if r['search_seconds'] is not None]
        minutes = spread(searched) if len(searched) == len(runs) else 'not measured'
        row = [dataset, fold, n_test, ' '.join(str(r['seed']) for r in runs),
               spread([100 * r['ua'] for r in runs]), spread([100 * r['wa'] for r in runs]),
               '{ua:.1f} / {wa:.1f}'.format(**{name: 100 * chance for name, chance in runs[0]['chance'].items()}),
               spread([r['n_params'] for r in runs], ',.0f'),
               f'{minutes} + {spread([r["seconds"] / 60 for r in runs])}', device]
        print('| ' + ' | '.join(map(str, row)) + ' |')


def read(path, parse):
    try:
        return parse(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise utils.UserError(f'{path}: cannot be read ({error}); name folders of finished runs') from None


def search_seconds(folder, genotype):
    """Seconds of the search whose genotype the run retrained, from metrics.jsonl beside it; None where there is none."""
    metrics = (folder.resolve().parents[2] / genotype).with_name('metrics.jsonl')  # genotype: relative to where runs/ lies
    if not metrics.exists():
        return None
    return sum(json.loads(line)['seconds'] for line in metrics.read_text().splitlines())


def spread(values, form='.1f'):
    """'mean +- sd' with the sample standard deviation; the value alone where there is one."""
    if len(values) == 1:
        return f'{values[0]:{form}}'
    return f'{np.mean(values):{form}} +- {np.std(values, ddof=1):{form}}'


if __name__ == '__main__':
    utils.cli(main)
