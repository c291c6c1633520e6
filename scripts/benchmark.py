"""Speed, memory and operations of search and retraining, in the fast and the plain form of the same networks, in one run.

    python scripts/benchmark.py [--preset paper] [--device cuda] [--json FILE]
    python scripts/benchmark.py --counts --preset paper [--json FILE]
    python scripts/benchmark.py --sampled --preset paper [--json FILE]

The plain form is what DARTS' code does: eager, contiguous, float32, a loop over edges and operations, and for order 2 a second
network. The fast form is what search.py and augment.py do on this device. The forms take turns after a warm-up; times are
medians. alpha_step_2 is DARTS' finite difference. DARTS' code has no exact product, so that "alpha_step_2 exact" has the same
Architect in both forms. --counts needs no GPU, and counts what a GPU waits for. --sampled compares the two relaxations instead.
"""
import argparse
import gc
import multiprocessing
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import config as cf  # noqa: E402
import genotypes as gt  # noqa: E402
import utils  # noqa: E402
from models.architect import Architect  # noqa: E402
from models.augment_cnn import AugmentCNN  # noqa: E402
from models.search_cnn import SearchCNNController  # noqa: E402
from models.sync import CrossEntropyLoss  # noqa: E402
from scripts import benchmark_report  # noqa: E402
from scripts.benchmark_counts import as_on_a_gpu, count  # noqa: E402
from scripts.textbook_architect import TextbookArchitect  # noqa: E402

N_CLASSES = 8  # RAVDESS
FORMS = ('fast', 'plain')
GROWTH = {'batch_size': (8, 16, 32), 'layers': (3, 4, 6), 'n_nodes': (2, 3, 4), 'duration': (1.5, 3., 6.),
          'cnn_ops': ('pool', 'conv', 'paper')}  # of the default preset
SPACES = [*(('cnn_ops', name) for name in gt.CNN_OP_SETS if name not in ('speech', 'frames')),  # few of those have a fast form
          *(('rnn_ops', name) for name in gt.RNN_OP_SETS if name != 'speech')]


class Steps:
    """A network in one form, with the steps of search or retraining on random input.

    device: None leaves fake tensors where they are. net: the weights are copied from there.
    """

    def __init__(self, form: str, config, device, hessian='difference', genotype=None, textbook=True, net=None):
        torch.manual_seed(0)
        self.form, self.config = form, config
        self.net = (make_net if genotype is None else make_discrete)(config, form == 'fast', genotype)
        if net is not None:
            self.net.load_state_dict(net.state_dict())
        if device is not None:
            self.net.to(device)
            if form == 'fast' and config.channels_last:
                self.net.to(memory_format=torch.channels_last)
        sizes = config.batch_size, 1, config.n_mels, config.n_frames
        self.batches = [(torch.randn(sizes, device=device), torch.randint(N_CLASSES, sizes[:1], device=device))
                        for _ in range(2)]
        self.autocast = utils.autocast(device or torch.device('cpu'), config.amp and form == 'fast')
        self.weights = list(self.net.parameters() if genotype else self.net.weights())
        self.optim = torch.optim.SGD(self.weights, .025, momentum=.9, weight_decay=3e-4, foreach=True)
        if genotype is None:
            textbook = textbook and form == 'plain' and hessian == 'difference'
            self.architect = TextbookArchitect(self.net, .9, 3e-4) if textbook else Architect(self.net, .9, 3e-4, hessian)

    def weight_step(self):
        with self.autocast:
            loss = self.net.loss(*self.batches[0])
        self._descend(loss)

    def alpha_step_1(self):
        with self.autocast:
            self.architect.backward(*self.batches[1])

    def alpha_step_2(self):
        self.architect.unrolled_backward(*self.batches[0], *self.batches[1], .025, self.optim)

    def augment_step(self):
        X, y = self.batches[0]
        with self.autocast:
            logits, aux = self.net(X)
            loss = nn.functional.cross_entropy(logits, y)
            loss = loss if aux is None else loss + self.config.aux_weight * nn.functional.cross_entropy(aux, y)
        self._descend(loss)

    def _descend(self, loss):
        self.optim.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 5., foreach=True)
        self.optim.step()


def make_net(config, fast, _=None):
    return SearchCNNController(
        1, config.init_channels, N_CLASSES, config.layers, CrossEntropyLoss(), config.n_nodes, config.stem_multiplier,
        config.rnn_layers, config.rnn_nodes, config.rnn_channels, config.cnn_ops, config.rnn_ops, config.dropout, fast=fast)


def make_discrete(config, fast, genotype):
    return AugmentCNN(
        None, 1, config.init_channels, N_CLASSES, config.layers, config.aux_weight > 0, genotype, config.stem_multiplier,
        config.rnn_layers, config.rnn_channels, config.dropout, fast=fast)


def settings(section: str, preset: str, **changes):
    """The configuration of a program: its defaults, or a file of configs/, with some changes."""
    values = {} if preset == 'default' else cf.read_yaml(ROOT / 'configs' / f'{preset}.yaml', section)
    return cf.build(section, cf.Given({'name': 'benchmark', **values, **changes}))


def pair(*args, **kwargs) -> list:
    """Steps in both forms, with the same weights."""
    fast = Steps('fast', *args, **kwargs)
    return [fast, Steps('plain', *args, **kwargs, net=fast.net)]


def seconds(step, device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def take_turns(forms: list, step: str, device, warmup: int, repeats: int) -> dict:
    """{form: median seconds of the step}"""
    found = {steps.form: [] for steps in forms}
    for _ in range(warmup + repeats):
        for steps in forms:
            found[steps.form].append(seconds(getattr(steps, step), device))
    return {form: statistics.median(times[warmup:]) for form, times in found.items()}


def measure(preset, device, warmup, repeats) -> list:
    """[{'step', 'fast', 'plain': ms, 'ratio'}]"""
    search, augment, rows = settings('search', preset), settings('augment', preset), []
    genotype = make_net(search, True).genotype()
    for name, config, more in (('weight_step', search, {}), ('alpha_step_1', search, {}), ('alpha_step_2', search, {}),
                               ('alpha_step_2 exact', search, {'hessian': 'exact'}),
                               ('augment_step', augment, {'genotype': genotype})):
        rows.append(row({'step': name}, take_turns(pair(config, device, **more), name.split()[0], device, warmup, repeats)))
        gc.collect()
    return rows


def growth(device, repeats) -> list:
    """[{'setting', 'value', 'fast', 'plain': ms, 'ratio'}]: a weight step of the default preset with one setting changed."""
    return [row({'setting': name, 'value': value},
                take_turns(pair(settings('search', 'default', **{name: value}), device), 'weight_step', device, 2, repeats))
            for name, values in GROWTH.items() for value in values]


def row(names, times):
    found = {**names, **{form: 1e3 * t for form, t in times.items()}, 'ratio': times['plain'] / times['fast']}
    print(*names.values(), f'fast {found["fast"]:.1f} ms, plain {found["plain"]:.1f} ms, ratio {found["ratio"]:.2f}',
          flush=True)
    return found


def memory(form, preset, device, threads, steps=Steps, **changes) -> dict:
    """In a process of its own: seconds of building and first step, and peak MiB of an order-1 search step.

    steps: class of the steps. changes: of the preset's settings.
    """
    context = multiprocessing.get_context('spawn')
    queue = context.SimpleQueue()
    process = context.Process(target=_memory, args=(queue, form, preset, str(device), threads, steps, changes))
    process.start()
    process.join()
    if process.exitcode:
        raise utils.UserError(f'the process that measures memory ended with code {process.exitcode}')
    return queue.get()


def _memory(queue, form, preset, device, threads, steps, changes):
    utils.set_threads(threads)
    device, began = torch.device(device), time.perf_counter()
    if device.type == 'cuda':
        torch.empty(1, device=device)
    start = resident('VmRSS')
    steps = steps(form, settings('search', preset, **changes), device)
    first = time.perf_counter() - began + seconds(steps.weight_step, device)
    for _ in range(2):
        steps.weight_step()
        steps.alpha_step_1()
    peak = torch.cuda.max_memory_allocated(device) if device.type == 'cuda' else resident('VmHWM') - start
    queue.put({'form': form, 'peak_mib': peak / 2 ** 20, 'first_step_s': first})


def resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS) or at most (VmHWM)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def counts(preset, spaces=SPACES) -> list:
    """[{'space', 'step', 'fast', 'plain': operations, 'ratio'}] for the preset and for every set of operations.

    Other settings are the preset's, but sets of CNN operations are counted without SeqNN cells.
    """
    augment, rows = settings('augment', preset), []
    torch.manual_seed(0)  # one genotype in every run
    genotype = make_net(settings('search', preset), True).genotype()
    rows += count_rows('preset', augment, ['augment_step'], genotype=genotype)
    for name, value in [(None, 'preset'), *spaces]:
        changes = ({name: value} if name else {}) | ({'rnn_layers': 0} if name == 'cnn_ops' else {})
        config = settings('search', preset, **changes)
        rows += count_rows(f'{name} {value}' if name else value, config, ['weight_step', 'alpha_step_1', 'alpha_step_2'])
    return rows


def count_rows(space, config, steps, **kwargs) -> list:
    """One row per step, the first of which is run once before, so that the optimizer has its states."""
    rows = [{'space': space, 'step': step} for step in steps]
    for form in FORMS:
        with as_on_a_gpu():
            net = Steps(form, config, None, textbook=False, **kwargs)
            getattr(net, steps[0])()
            for row in rows:
                row[form] = count(getattr(net, row['step']))
    for row in rows:
        row['ratio'] = row['plain'] / row['fast']
        print(space, row['step'], f'fast {row["fast"]:,}, plain {row["plain"]:,}, ratio {row["ratio"]:.2f}', flush=True)
    return rows


def main(argv=None):
    from scripts import benchmark_sampled  # which imports this file
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--preset', choices=('default', 'paper'), default='default', help='sizes (default: %(default)s)')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads; 0: as search.py')
    parser.add_argument('--warmup', type=int, default=4, help='steps before those that count (default: %(default)s)')
    parser.add_argument('--repeats', type=int, default=9, help='steps that count (default: %(default)s)')
    parser.add_argument('--no_growth', action='store_true', help='leave out how time grows with each size')
    parser.add_argument('--counts', action='store_true', help='only count operations, without a GPU')
    parser.add_argument('--sampled', action='store_true', help='only compare the sampled relaxation with softmax')
    parser.add_argument('--batch_size', type=int, default=0, help='of --sampled; 0: that of the preset')
    parser.add_argument('--json', type=Path, help='write the figures to this file, and a table to .md beside it')
    args = parser.parse_args(argv)
    for name, low, high in (('warmup', 1, 10_000), ('repeats', 1, 10_000), ('threads', 0, 1024)):
        if not low <= getattr(args, name) <= high:
            raise utils.UserError(f'--{name} must be from {low} to {high}')
    if args.json and not args.json.parent.is_dir():
        raise utils.UserError(f'--json {args.json}: {args.json.parent} is not a folder')
    found = {'command': ' '.join(['python', 'scripts/benchmark.py', *(sys.argv[1:] if argv is None else argv)]),
             'machine': f'{platform.machine()}, {os.cpu_count()} cores',
             'versions': f'python {platform.python_version()}, torch {torch.__version__}', 'preset': args.preset}
    if args.counts:
        found |= {'device': 'no device: operations counted on tensors without numbers', 'counts': counts(args.preset)}
    elif args.sampled:
        utils.set_threads(args.threads)
        device = utils.choose_device(args.device)
        changes = {'batch_size': args.batch_size} if args.batch_size else {}
        found |= {'device': utils.describe_device(device), 'sampled': benchmark_sampled.compare(
            args.preset, device, args.warmup, args.repeats, args.threads, **changes)}
    else:
        utils.set_threads(args.threads)
        device = utils.choose_device(args.device)
        found |= {'device': utils.describe_device(device), 'rows': measure(args.preset, device, args.warmup, args.repeats),
                  'memory': [memory(form, args.preset, device, args.threads) for form in FORMS],
                  'growth': [] if args.no_growth else growth(device, max(3, args.repeats // 2))}
    print(benchmark_report.markdown(found))
    if args.json:
        utils.write_json(args.json, found)
        args.json.with_suffix('.md').write_text(benchmark_report.markdown(found))


if __name__ == '__main__':
    utils.cli(main)
