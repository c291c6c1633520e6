"""Speed, memory and operations of search and retraining, in the fast and the plain form of the same networks, in one run.

    python scripts/benchmark.py [--preset paper] [--device cuda] [--steps weight_step,augment_step] [--json FILE]
    python scripts/benchmark.py --counts --preset paper [--json FILE]
    python scripts/benchmark.py --sampled --preset paper [--json FILE]

The plain form is what DARTS' code does: eager, contiguous, float32, a loop over edges and operations, and for order 2 a second
network. The fast form is what search.py and augment.py do on this device. The forms take turns after a warm-up; times are
medians. alpha_step_2 is DARTS' finite difference. DARTS' code has no exact product, so that "alpha_step_2 exact" has the same
Architect in both forms. --counts needs no GPU: it counts the operations that one is sent. --sampled compares the two
relaxations instead.
"""
import argparse
import os
import platform
import shlex
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import genotypes as gt  # noqa: E402
import utils  # noqa: E402
from scripts import benchmark_report, benchmark_sampled  # noqa: E402
from scripts import benchmark_steps as bs  # noqa: E402
from scripts.benchmark_counts import as_on_a_gpu, count  # noqa: E402

FORMS = ('fast', 'plain')
GROWTH = {'batch_size': (8, 16, 32), 'layers': (3, 4, 6), 'n_nodes': (2, 3, 4), 'duration': (1.5, 3., 6.),
          'cnn_ops': ('pool', 'conv', 'paper')}  # of the default preset
SPACES = [*(('cnn_ops', name) for name in gt.CNN_OP_SETS if name not in ('speech', 'frames')),  # few of those have a fast form
          *(('rnn_ops', name) for name in gt.RNN_OP_SETS if name != 'speech')]


def measure(preset, device, warmup, repeats, steps=tuple(benchmark_report.STEPS)):
    """{'step', 'fast', 'plain': ms, 'ratio'} of each of these steps, as soon as it is known."""
    search, augment = bs.settings('search', preset), bs.settings('augment', preset)
    genotype = bs.make_net(search, True).genotype()
    for name, config, more in (('weight_step', search, {}), ('alpha_step_1', search, {}), ('alpha_step_2', search, {}),
                               ('alpha_step_2 exact', search, {'hessian': 'exact'}),
                               ('augment_step', augment, {'genotype': genotype})):
        if name not in steps:
            continue
        forms = bs.pair(config, device, **more)
        yield row({'step': name}, bs.take_turns(forms, name.split()[0], device, warmup, repeats))
        del forms
        bs.free()


def growth(device, repeats):
    """{'setting', 'value', 'fast', 'plain': ms, 'ratio'} of a weight step, default preset, one setting changed at a time."""
    for name, value in ((name, value) for name, values in GROWTH.items() for value in values):
        forms = bs.pair(bs.settings('search', 'default', **{name: value}), device)
        yield row({'setting': name, 'value': value}, bs.take_turns(forms, 'weight_step', device, 2, repeats))
        del forms
        bs.free()  # before the next pair is built


def row(names, times):
    """A row of times in ms, None where memory was too small; then there is no ratio either."""
    found = {**names, **{form: t and 1e3 * t for form, t in times.items()}}
    found['ratio'] = benchmark_report.ratio(found['plain'], found['fast'])
    fast, plain, ratio = (benchmark_report.number(found[name], digits) for name, digits in
                          (('fast', 1), ('plain', 1), ('ratio', 2)))
    print(*names.values(), f'fast {fast} ms, plain {plain} ms, ratio {ratio}', flush=True)
    return found


def counts(preset, spaces=SPACES) -> list:
    """[{'space', 'step', 'fast', 'plain': operations, 'ratio'}] for the preset and for every set of operations.

    Other settings are the preset's, but sets of CNN operations are counted without SeqNN cells.
    """
    augment, rows = bs.settings('augment', preset), []
    torch.manual_seed(0)  # one genotype in every run
    genotype = bs.make_net(bs.settings('search', preset), True).genotype()
    rows += count_rows('preset', augment, ['augment_step'], genotype=genotype)
    for name, value in [(None, 'preset'), *spaces]:
        changes = ({name: value} if name else {}) | ({'rnn_layers': 0} if name == 'cnn_ops' else {})
        config = bs.settings('search', preset, **changes)
        rows += count_rows(f'{name} {value}' if name else value, config, ['weight_step', 'alpha_step_1', 'alpha_step_2'])
    return rows


def count_rows(space, config, steps, **kwargs) -> list:
    """One row per step, the first of which is run once before, so that the optimizer has its states."""
    rows = [{'space': space, 'step': step} for step in steps]
    for form in FORMS:
        with as_on_a_gpu():
            net = bs.Steps(form, config, None, textbook=False, **kwargs)
            getattr(net, steps[0])()
            for row in rows:
                row[form] = count(getattr(net, row['step']))
    for row in rows:
        row['ratio'] = row['plain'] / row['fast']
        print(space, row['step'], f'fast {row["fast"]:,}, plain {row["plain"]:,}, ratio {row["ratio"]:.2f}', flush=True)
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--preset', choices=('default', 'paper'), default='default', help='sizes (default: %(default)s)')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads; 0: as search.py')
    parser.add_argument('--warmup', type=int, default=4, help='steps before those that count (default: %(default)s)')
    parser.add_argument('--repeats', type=int, default=9, help='steps that count (default: %(default)s)')
    parser.add_argument('--steps', default=','.join(benchmark_report.STEPS), help='steps to measure (default: %(default)s)')
    parser.add_argument('--no_growth', action='store_true', help='leave out how time grows with each size')
    parser.add_argument('--counts', action='store_true', help='only count operations, without a GPU')
    parser.add_argument('--sampled', action='store_true', help='only compare the sampled relaxation with softmax')
    parser.add_argument('--batch_size', type=int, default=0, help='of --sampled; 0: that of the preset')
    parser.add_argument('--json', type=Path, help='write the figures to this file, and a table to .md beside it')
    args = parser.parse_args(argv)
    for name, low, high in (('warmup', 1, 10_000), ('repeats', 1, 10_000), ('threads', 0, 1024)):
        if not low <= getattr(args, name) <= high:
            raise utils.UserError(f'--{name} must be from {low} to {high}')
    if unknown := set(steps := args.steps.split(',')) - set(benchmark_report.STEPS):
        raise utils.UserError(f'--steps: {", ".join(sorted(unknown))} is none of {", ".join(benchmark_report.STEPS)}')
    if args.steps != parser.get_default('steps') and (args.counts or args.sampled):
        raise utils.UserError('--steps has no effect with --counts and --sampled: leave it out')
    if args.json and not args.json.parent.is_dir():
        raise utils.UserError(f'--json {args.json}: {args.json.parent} is not a folder')
    found = {'command': shlex.join(['python', 'scripts/benchmark.py', *(sys.argv[1:] if argv is None else argv)]),
             'machine': f'{platform.machine()}, {os.cpu_count()} cores',
             'versions': f'python {platform.python_version()}, torch {torch.__version__}', 'preset': args.preset}
    if args.counts:
        found |= {'device': 'no device: operations counted on tensors without numbers', 'counts': counts(args.preset)}
        return write(found, args.json)
    utils.set_threads(args.threads)
    device = utils.choose_device(args.device)
    found['device'] = utils.describe_device(device)
    if args.sampled:
        changes = {'batch_size': args.batch_size} if args.batch_size else {}
        for figures in benchmark_sampled.compare(args.preset, device, args.warmup, args.repeats, args.threads, **changes):
            found['sampled'] = figures
            keep(found, args.json)
        return write(found, args.json)
    parts = {'rows': measure(args.preset, device, args.warmup, args.repeats, steps),
             'memory': (bs.memory(form, args.preset, device, args.threads) for form in FORMS),
             'growth': () if args.no_growth else growth(device, max(3, args.repeats // 2))}
    found |= {name: [] for name in parts}
    for name, rows in parts.items():
        for figures in rows:
            found[name].append(figures)
            keep(found, args.json)
    write(found, args.json)


def write(found: dict, path: Path | None):
    """Prints the tables, and keeps them."""
    print(benchmark_report.markdown(found))
    keep(found, path)


def keep(found: dict, path: Path | None):
    """Writes the figures to path and their tables to .md beside it: at once, so that a run that is stopped keeps them."""
    if path:
        utils.write_json(path, found)
        path.with_suffix('.md').write_text(benchmark_report.markdown(found))


if __name__ == '__main__':
    utils.cli(main)
