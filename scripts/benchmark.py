"""How fast search and retraining are, next to the textbook form of the same networks, in one run.

    python scripts/benchmark.py [--preset paper] [--device cuda] [--json FILE]

The textbook form (tests/textbook.py) is what DARTS' code does: eager, contiguous, float32, a loop over edges and operations, a
second network for order 2. The fast form is what search.py and augment.py do on this device. Forms take turns after a warm-up;
times are medians. alpha_step_2 is DARTS' finite difference in both; DARTS' code has no exact product, so that in
"alpha_step_2 exact" the textbook is the plain network under the same Architect.
"""
import argparse
import copy
import gc
import multiprocessing
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
import benchmark_report  # noqa: E402
from benchmark_tools import ceilings, resident, seconds, work  # noqa: E402
from textbook import TextbookArchitect, textbook  # noqa: E402

import config as cf  # noqa: E402
import utils  # noqa: E402
from datasets.features import FeatureConfig  # noqa: E402
from models.architect import Architect  # noqa: E402
from models.augment_cnn import AugmentCNN  # noqa: E402
from models.search_cnn import SearchCNNController  # noqa: E402
from models.sync import CrossEntropyLoss  # noqa: E402

N_CLASSES = 8  # RAVDESS
FORMS = ('fast', 'textbook')
GROWTH = {'batch_size': (8, 16, 32), 'layers': (3, 4, 6), 'n_nodes': (2, 3, 4), 'duration': (1.5, 3., 6.),
          'cnn_ops': ('pool', 'conv', 'paper')}  # of the default preset


class Bench:
    """A supernet in one form, with the steps of a search on random input."""

    def __init__(self, form, config, device, hessian='difference', net=None):
        torch.manual_seed(0)
        self.form, self.device, self.config = form, device, config
        self.net = (net or make_net(config)).to(device)
        dress(self.net, form, config)
        frames = FeatureConfig(config.features, config.n_mels, config.hop_ms, config.time_pool).frame_rate * config.duration
        self.batches = [(torch.randn(config.batch_size, 1, config.n_mels, round(frames), device=device),
                         torch.randint(N_CLASSES, (config.batch_size,), device=device)) for _ in range(2)]
        self.autocast = utils.autocast(device, config.amp and form == 'fast')
        self.optim = torch.optim.SGD(self.net.parameters(), .025, momentum=.9, weight_decay=3e-4)
        if isinstance(self.net, SearchCNNController):
            self.optim = torch.optim.SGD(self.net.weights(), .025, momentum=.9, weight_decay=3e-4)
            own = form == 'textbook' and hessian == 'difference'
            self.architect = TextbookArchitect(self.net, .9, 3e-4) if own else Architect(self.net, .9, 3e-4, hessian)

    def weight_step(self):
        X, y = self.batches[0]
        self.optim.zero_grad()
        with self.autocast:
            loss = self.net.loss(X, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.weights(), 5.)
        self.optim.step()

    def alpha_step_1(self):
        with self.autocast:
            self.architect.backward(*self.batches[1])

    def alpha_step_2(self):
        self.architect.unrolled_backward(*self.batches[0], *self.batches[1], .025, self.optim)

    def augment_step(self):
        X, y = self.batches[0]
        self.optim.zero_grad()
        with self.autocast:
            logits, aux = self.net(X)
            loss = torch.nn.functional.cross_entropy(logits, y)
            loss = loss if aux is None else loss + .4 * torch.nn.functional.cross_entropy(aux, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.)
        self.optim.step()


def dress(net, form, config):
    if form == 'textbook':
        textbook(net)
    elif config.channels_last:
        net.to(memory_format=torch.channels_last)


def make_net(config):
    return SearchCNNController(1, config.init_channels, N_CLASSES, config.layers, CrossEntropyLoss(), config.n_nodes,
                               config.stem_multiplier, config.rnn_layers, config.rnn_nodes, config.rnn_channels, config.cnn_ops,
                               config.rnn_ops, config.dropout)


def make_augment_net(config, genotype):
    return AugmentCNN(None, 1, config.init_channels, N_CLASSES, config.layers, config.aux_weight > 0, genotype,
                      config.stem_multiplier, config.rnn_layers, config.rnn_channels, config.dropout)


def alternate(benches, name, device, warmup, repeats):
    """{form: median seconds}: the forms take turns."""
    found = {bench.form: [] for bench in benches}
    for _ in range(warmup + repeats):
        for bench in benches:
            found[bench.form].append(seconds(getattr(bench, name), device))
    return {form: statistics.median(times[warmup:]) for form, times in found.items()}


def fresh(queue, form, config, device, threads):
    """In a process of its own: seconds of building and of the first step, and peak bytes of an order-1 search step."""
    utils.set_threads(threads)
    device = torch.device(device)
    began = time.perf_counter()
    if device.type == 'cuda':
        torch.empty(1, device=device)
    start = resident()
    bench = Bench(form, config, device)
    first = time.perf_counter() - began + seconds(bench.weight_step, device)
    for _ in range(2):
        bench.weight_step()
        bench.alpha_step_1()
    peak = torch.cuda.max_memory_allocated(device) if device.type == 'cuda' else resident('VmHWM') - start
    queue.put((first, peak))


def in_fresh_process(*args):
    context = multiprocessing.get_context('spawn')
    queue = context.SimpleQueue()
    process = context.Process(target=fresh, args=(queue, *args))
    process.start()
    process.join()
    if process.exitcode:
        raise utils.UserError(f'the process that measures memory ended with code {process.exitcode}')
    return queue.get()


def settings(section, preset, **changes):
    values = {} if preset == 'default' else cf.read_yaml(ROOT / 'configs' / f'{preset}.yaml', section)
    return cf.build(section, {'name': 'benchmark', **values, **changes})


def measure(preset, device, threads, warmup, repeats):
    config = settings('search', preset)
    limit, rows = ceilings(device), []
    base = make_net(config)
    benches = [Bench(form, config, device, net=copy.deepcopy(base)) for form in FORMS]
    exact = [Bench(form, config, device, 'exact', copy.deepcopy(base)) for form in FORMS]
    augment_config = settings('augment', preset)
    discrete = make_augment_net(augment_config, base.genotype())
    discrete = [Bench(form, augment_config, device, net=copy.deepcopy(discrete)) for form in FORMS]
    for name, pair in {'weight_step': benches, 'alpha_step_1': benches, 'alpha_step_2': benches, 'alpha_step_2 exact': exact,
                       'augment_step': discrete}.items():
        step = name.split()[0]
        times = alternate(pair, step, device, warmup, repeats)
        for bench in pair:
            moved, flop = work(getattr(bench, step))
            rows.append({'step': name, 'form': bench.form, 'ms': 1e3 * times[bench.form],
                         'utterances_per_s': bench.config.batch_size / times[bench.form],
                         'share_of_copy_bandwidth': moved / times[bench.form] / limit['copy'],
                         'share_of_matrix_rate': flop / times[bench.form] / limit['matrix']})
        print(f'{name:22}' + ''.join(f'{form} {1e3 * t:9.1f} ms   ' for form, t in times.items())
              + f'ratio {times["textbook"] / times["fast"]:.2f}', flush=True)
    del benches, exact, discrete
    gc.collect()
    once = {form: in_fresh_process(form, config, str(device), threads) for form in FORMS}
    ratios = {row['step']: other['ms'] / row['ms'] for row, other in zip(rows[::2], rows[1::2])}
    ratios['peak_memory'] = once['textbook'][1] / once['fast'][1]
    return {'rows': rows, 'ratios': ratios, 'first_step_s': {form: once[form][0] for form in FORMS},
            'peak_memory_mib': {form: once[form][1] / 2 ** 20 for form in FORMS},
            'ceilings': {'copy_gb_per_s': limit['copy'] / 1e9, 'matrix_gflop_per_s': limit['matrix'] / 1e9}}


def growth(device, repeats):
    """[{'setting', 'value', 'form', 'ms'}]: a weight step of the default preset with one setting changed."""
    rows = []
    for name, values in GROWTH.items():
        for value in values:
            config = settings('search', 'default', **{name: value})
            base = make_net(config)
            benches = [Bench(form, config, device, net=copy.deepcopy(base)) for form in FORMS]
            times = alternate(benches, 'weight_step', device, 2, repeats)
            rows += [{'setting': name, 'value': value, 'form': form, 'ms': 1e3 * t} for form, t in times.items()]
            print(f'{name:12}{value!s:>6}   ' + '   '.join(f'{form} {1e3 * t:8.1f} ms' for form, t in times.items()),
                  flush=True)
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--preset', choices=('default', 'paper'), default='default', help='sizes (default: %(default)s)')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads; 0: all cores but one, as search.py')
    parser.add_argument('--warmup', type=int, default=4, help='steps before those that count (default: %(default)s)')
    parser.add_argument('--repeats', type=int, default=9, help='steps that count (default: %(default)s)')
    parser.add_argument('--no_growth', action='store_true', help='leave out how time grows with each size')
    parser.add_argument('--json', type=Path, help='write the figures there, and .md and .png beside it')
    args = parser.parse_args(argv)
    if args.warmup < 1 or args.repeats < 1:
        raise utils.UserError('--warmup and --repeats must be 1 or more')
    if args.json and not args.json.parent.is_dir():
        raise utils.UserError(f'--json {args.json}: {args.json.parent} is not a folder')
    utils.set_threads(args.threads)
    device = utils.choose_device(args.device)
    found = {'command': ' '.join(['python', 'scripts/benchmark.py', *(sys.argv[1:] if argv is None else argv)]),
             'device': utils.describe_device(device), 'machine': f'{platform.machine()}, {os.cpu_count()} cores',
             'versions': {'python': platform.python_version(), 'torch': torch.__version__,
                          'cuda': torch.version.cuda if device.type == 'cuda' else None},
             'preset': args.preset}
    print(f'{found["device"]}, torch {torch.__version__}, preset {args.preset}', flush=True)
    found.update(measure(args.preset, device, args.threads, args.warmup, args.repeats))
    found['growth'] = [] if args.no_growth else growth(device, max(3, args.repeats // 2))
    print(benchmark_report.markdown(found))
    if args.json:
        utils.write_json(args.json, found)
        args.json.with_suffix('.md').write_text(benchmark_report.markdown(found))
        if found['growth']:
            benchmark_report.plot(found['growth']).savefig(args.json.with_suffix('.png'), dpi=110)


if __name__ == '__main__':
    utils.cli(main)
