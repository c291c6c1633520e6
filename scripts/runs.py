"""List the runs: what each is, whether it is finished, how it scored.

    python scripts/runs.py
    python scripts/runs.py runs/augment --sort ua
    python scripts/runs.py --json
"""
import argparse
import json
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]
from run_folder import RunFolder, find  # noqa: E402

from config import UserError  # noqa: E402

COLUMNS = ('name', 'program', 'model', 'corpus', 'fold', 'seed', 'state', 'epoch', 'dev_ua', 'test_ua', 'parameters', 'age')
SORTS = {'ua': 'test_ua', 'dev': 'dev_ua', 'age': 'age', 'name': 'name'}


def row_of(run: RunFolder) -> dict:
    """The row of a run. UA from 0 to 1, age in seconds; None where nothing is known."""
    settings, results = run.settings, run.results
    epochs = settings.get('epochs')
    model = results.get('model') or settings.get('model') or run.program
    if model == 'genotype':
        model = 'random' if settings.get('genotype') == 'random' else 'genotype'
    return {'name': run.name, 'program': run.program, 'model': model, 'corpus': settings.get('dataset'),
            'fold': settings.get('fold'), 'seed': settings.get('seed'), 'state': run.state,
            'epoch': f'{len(run.history)}/{epochs}' if epochs else '', 'dev_ua': run.dev_ua, 'test_ua': results.get('ua'),
            'parameters': results.get('n_params'), 'age': round(run.age)}


def sort(rows: list[dict], by: str) -> list[dict]:
    """The best UA first, the youngest run first, or by name; runs without a score last."""
    column = SORTS[by]
    if column == 'name':
        return sorted(rows, key=lambda row: row['name'])
    sign = 1 if by == 'age' else -1
    return sorted(rows, key=lambda row: (row[column] is None, sign * (row[column] or 0), row['name']))


def shown(column: str, value) -> str:
    """A cell of the table."""
    if value is None:
        return ''
    if column in ('dev_ua', 'test_ua'):
        return f'{100 * value:.1f}'
    if column == 'age':
        return age(value)
    return f'{value:,}' if column == 'parameters' else ' '.join(str(value).split())


def age(seconds: float) -> str:
    """'40 s', '12 min', '5 h', '3 d'"""
    for size, unit in ((86_400, 'd'), (3_600, 'h'), (60, 'min')):
        if seconds >= size:
            return f'{math.floor(seconds / size)} {unit}'
    return f'{seconds:.0f} s'


def table(rows: list[dict]) -> str:
    """Aligned columns."""
    cells = [[column.replace('_ua', ' UA') for column in COLUMNS], *([shown(c, row[c]) for c in COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    left = {'name', 'program', 'model', 'corpus', 'state'}
    return '\n'.join('  '.join(cell.ljust(width) if column in left else cell.rjust(width)
                               for column, cell, width in zip(COLUMNS, line, widths)).rstrip() for line in cells)


def main(argv=None):
    parser = argparse.ArgumentParser(prog='runs.py', description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('folder', nargs='?', type=Path, default=Path('runs'), help='folder with runs (default: runs)')
    parser.add_argument('--sort', choices=SORTS, default='age', help='by test UA, dev UA, age or name (default: age)')
    parser.add_argument('--json', action='store_true', help='one JSON object per run')
    args = parser.parse_args(argv)
    runs = find(args.folder)
    rows = sort([row_of(run) for run in runs], args.sort)
    if not rows:
        raise UserError(f'{args.folder}: no run here; runs are made by search.py and augment.py')
    if args.json:
        print('\n'.join(map(json.dumps, rows)))
        return
    print(table(rows))
    for run in runs:
        if run.state == 'failed':
            print(f'{run.path} failed: {run.reason}')


if __name__ == '__main__':
    import utils
    utils.cli(main)
