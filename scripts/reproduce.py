"""Runs a finished run again, elsewhere, and compares the two to the bit.

    python scripts/reproduce.py runs/augment/NAME

Exit code 0: equal. 1: it prints what differs, first what was different when it was made: code, versions, device, corpus.
"""
import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import yaml  # noqa: E402

import augment  # noqa: E402
import config as cf  # noqa: E402
import search  # noqa: E402
import utils  # noqa: E402
from config import UserError  # noqa: E402

PRODUCTS = {'search': 'genotype.json', 'augment': 'results.json'}
# Of every run, or said apart. Notes on recordings are made when features are extracted, and name paths as they were typed.
VARIES = {'seconds', 'core_seconds', 'command', 'data_path', 'init', 'init_digest', 'provenance', 'device', 'events', 'steps',
          'scheduler', 'notes'}
SHOWN = VARIES - {'command', 'data_path'}  # of what the run was made with
MAX_LINES = 20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('run', type=Path, help='folder of a run, runs/search/NAME or runs/augment/NAME')
    parser.add_argument('--data_path', help='the corpus, if it is no longer where it was')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:1')
    own = parser.parse_args(argv)
    run = own.run.resolve()
    program = next((name for name in PRODUCTS if name in run.parts and (run / PRODUCTS[name]).exists()), None)
    if not program:
        raise UserError(f'{own.run}: no finished run of search.py or augment.py')
    if (run / 'svm.log').exists():
        raise UserError(f'{own.run}: a run of scripts/svm.py, which this program does not repeat: run its command again')
    if 'runs' not in run.parts:
        raise UserError(f'{own.run}: must be below a folder called runs, beside which its paths are relative')
    before = cf.read_json(run / PRODUCTS[program]).get('provenance')
    if not before:
        raise UserError(f'{own.run} was made by an earlier version, which did not record how: run its command again')
    home = Path(*run.parts[:len(run.parts) - run.parts[::-1].index('runs') - 1])  # where the run was started
    with tempfile.TemporaryDirectory() as folder:
        # In a file: a flag that is typed is refused where a genotype decides its value.
        config, settings = Path(folder, 'again.yaml'), {program: in_effect(run, program, home)}
        if (run / 'candidates.json').exists():  # the finalists were trained by a --config, which may have changed since
            settings['augment'] = cf.read_json(run / 'candidates.json')['recipe']
        config.write_text(yaml.safe_dump(settings))
        flags = ['--name', 'again', '--cache', str(home / '.cache'), '--config', str(config), '--device', own.device]
        if data_path := own.data_path and os.path.abspath(own.data_path) or before['data_path']:
            flags += ['--data_path', str(home / data_path)]
        print(f'python {program}.py {" ".join(cf.to_flags(settings[program]))}', flush=True)
        with contextlib.chdir(folder) if hasattr(contextlib, 'chdir') else _chdir(folder):
            {'search': search, 'augment': augment}[program].main(flags)
        again = Path(folder, 'runs', program, 'again')
        now = cf.read_json(again / PRODUCTS[program])['provenance']
        keys = [key for key in now if key not in ('command', 'data_path', 'settings')]  # settings: a hash of paths too
        lines = [*differences({key: before.get(key) for key in keys}, {key: now[key] for key in keys}, 'made with '),
                 *differences(in_effect(run, program, home), in_effect(again, program, home), 'settings.'),
                 *differences(*comparable(contents(run, home), contents(again, home)))]
    equal = not [line for line in lines if not line.startswith('made with')]
    if [line for line in lines if line.startswith('settings.')]:
        lines.append('settings differ in effect: the code has other defaults now')
    print('\n'.join(lines[:MAX_LINES]) or 'equal to the bit')
    if equal and lines:
        print('all the same, the results are equal to the bit')
    return int(not equal)


def in_effect(run: Path, program: str, home: Path) -> dict:
    """The settings that have an effect on a run, without its name; files are relative to `home`."""
    settings = utils.read_settings(run / 'config.yaml')
    settings = {name: value for name, value in settings.items() if name in cf.NAMES[program]}
    without = {*cf.SECTIONS[program](**settings).unused(), 'name', *utils.MAY_CHANGE}
    found = {name: value for name, value in settings.items() if name not in without}
    for name in ('genotype', 'init', 'encoder'):
        if found.get(name) and os.path.exists(path := os.path.join(home, found[name])):  # or a text
            found[name] = path
    return found


@contextlib.contextmanager
def _chdir(folder):  # contextlib.chdir of Python 3.11
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def contents(run: Path, home: Path) -> dict:
    """{file: tree} of all that a run found. The recordings of the built-in corpus are below `home`, in the cache."""
    found = {}
    for name in ('genotype.json', 'candidates.json', 'results.json'):
        if (run / name).exists():
            found[name] = cf.read_json(run / name)
    if (found.get('results.json') or {}).get('init'):
        found['results.json']['init'] = os.path.join(home, found['results.json']['init'])
    path = run / 'metrics.jsonl'
    found[path.name] = [cf.parse_json(line, path) for line in cf.read_text(path).splitlines()]
    if (run / 'predictions.csv').exists():
        found['predictions.csv'] = (run / 'predictions.csv').read_text().replace(f'{home}/.cache/', '.cache/').splitlines()
    for name in ('checkpoint.pt', 'best.pt'):
        if (run / name).exists():
            found[name] = utils.read_torch(run / name)
    return found


def comparable(before: dict, now: dict) -> tuple[dict, dict]:
    """Two `contents` without what one version records and another does not: other files have it too."""
    for tree in (before, now):
        for name in ('genotype', 'recipe'):
            tree.get('checkpoint.pt', {}).pop(name, None)
    checkpoints = [tree['checkpoint.pt'] for tree in (before, now) if 'checkpoint.pt' in tree]
    if len({(checkpoint.get('audio') or [None])[0] for checkpoint in checkpoints}) > 1:  # digests of two kinds
        for checkpoint in checkpoints:
            checkpoint.pop('audio', None)
    records = [tree['genotype.json']['search'] for tree in (before, now) if 'genotype.json' in tree]
    for name in set().union(*records) - set.intersection(*map(set, records)) if records else ():
        for record in records:
            record.pop(name, None)
    return before, now


def differences(before, now, where: str = ''):
    """Lines 'where: before, now' of what differs between two trees."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            if key not in VARIES or where == 'made with ' and key in SHOWN:
                yield from differences(before.get(key), now.get(key), f'{where}{key}' if where[-1:] in ('', ' ')
                                       else f'{where}.{key}')
    elif isinstance(before, list | tuple) and isinstance(now, list | tuple) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now)):
            yield from differences(*pair, f'{where}[{i}]')
    elif torch.is_tensor(before) and torch.is_tensor(now):
        if before.shape != now.shape or not torch.equal(before, now):
            yield f'{where}: {before.flatten()[:3].tolist()} ..., now {now.flatten()[:3].tolist()} ...'
    elif type(before) is not type(now) or before != now:
        yield f'{where}: {str(before)[:80]}, now {str(now)[:80]}'


if __name__ == '__main__':
    utils.cli(lambda: sys.exit(main()))
