"""Kendall's tau between a supernet's ranking of networks and that of their retraining, both on dev speakers.

    python scripts/rank_correlation.py runs/search/cv/emodb/f1-s0 runs/augment/cv/emodb/*-f1-s* --data_path DIR

Every network of the search space that was retrained on the same fold is also scored with the weights of the supernet. There its
operations have weight 1 and all others 0, and batch norm gets the statistics of that network (Guo et al. 2020, arXiv
2002.04289). A tau near 0 means that the genotype a search ends with is no better than a random one.
"""
import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

import torch
import torch.nn as nn
from scipy.stats import kendalltau
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import config as cf  # noqa: E402
import datasets  # noqa: E402
import genotypes as gt  # noqa: E402
import search  # noqa: E402
import utils  # noqa: E402
from datasets import scoring  # noqa: E402
from models import speaker_norm  # noqa: E402

SAME = ('dataset', 'labels', 'turns', 'scenarios', 'folds', 'fold', *(f.name for f in fields(cf.FeatureSettings)))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('search', type=Path, help='folder of a finished search')
    parser.add_argument('runs', type=Path, nargs='+', help='folders of augment.py; runs of other networks or data, and '
                        'unfinished ones, are passed over and counted')
    parser.add_argument('--data_path', help='folder of the corpus')
    parser.add_argument('--cache', default='.cache', help='folder of extracted features (default: %(default)s)')
    args = parser.parse_args(argv)
    settings = read(args.search / 'config.yaml', utils.read_settings)
    known = {f.name: settings[f.name] for f in fields(cf.SearchConfig) if f.name in settings}
    config = cf.build('search', cf.Given({**known, 'resume': False, 'data_path': args.data_path, 'cache': args.cache}))
    networks, passed = retrained(args.runs, settings)
    check_number(networks, passed, args)
    utils.set_threads(config.threads)
    data = datasets.load(config, ('train', 'dev'))
    utils.set_seed(config.seed)
    net = search.make_net(config, data, [range(len(data.sets['train']))])
    net.pools_padding = settings['format'] < 2
    net.load_state_dict(read(args.search / 'checkpoint.pt', read_weights))
    fitting = []
    for name, genotype, dev_ua in networks:
        try:
            fitting.append((name, one_hot_weights(net, genotype), dev_ua))
        except utils.UserError as error:
            passed.setdefault(str(error), []).append(name)
    check_number(fitting, passed, args)
    rows = []
    for name, weights, dev_ua in tqdm(fitting, 'networks', disable=None, leave=False):
        scores = dev_scores(net, weights, data, config)
        rows.append((dev_ua, scores['ua'], scores['loss'], name))
    if passed:
        print(f'{counted(passed)}\n')
    print('| dev UA retrained | dev UA in the supernet | dev loss in the supernet | run |\n|---|---|---|---|')
    for dev_ua, ua, loss, name in sorted(rows, reverse=True):
        print(f'| {100 * dev_ua:.1f} | {100 * ua:.1f} | {loss:.3f} | {name} |')
    retrained_ua, ua, loss, _ = zip(*rows)
    for what, values in (('UA', ua), ('loss, from low to high', [-x for x in loss])):
        tau = kendalltau(retrained_ua, values)
        print(f'Kendall tau, {len(rows)} networks, by {what}: {tau.statistic:.2f} (p {tau.pvalue:.2f})')


def retrained(folders, settings):
    """The runs that retrained a genotype on the search's fold and features, each genotype once, and those passed over.

    Returns [(folder, Genotype, dev UA), ...] and {reason: folders}. UserError if a folder does not exist.
    """
    found, passed, seen = [], {}, set()
    for folder in folders:
        if folder.is_dir() and not (folder / 'results.json').exists():
            passed.setdefault('not finished', []).append(folder)
            continue
        results = read(folder / 'results.json', lambda path: json.loads(path.read_text()))
        its = read(folder / 'config.yaml', utils.read_settings)
        text = results.get('genotype')
        others = [name for name in SAME if utils.recorded(its, name) != utils.recorded(settings, name)]
        if not text:
            why = 'no genotype'
        elif others:
            why = f'other {" ".join(others)}'
        elif results['dev_ua'] is None:
            why = 'trained on dev (--no-train_on_dev leaves a dev UA)'
        elif text in seen:
            why = 'a genotype that another run has'
        else:
            seen.add(text)
            found.append((folder, gt.from_str(text), results['dev_ua']))
            continue
        passed.setdefault(why, []).append(folder)
    return found, passed


def check_number(networks, passed, args):
    """UserError if there are too few networks to rank."""
    if len(networks) < 2:
        raise utils.UserError(f'{len(networks)} of these runs retrained a genotype of the space and data of {args.search}: 2 '
                              f'are needed; {counted(passed) or "name more folders"}')


def counted(passed):
    """{reason: folders} as a line."""
    reasons = ', '.join(f'{why} {len(folders)} (first {folders[0]})' for why, folders in passed.items())
    return reasons and f'passed over {sum(map(len, passed.values()))} of the runs: {reasons}'


def read_weights(path):
    return torch.load(path, map_location='cpu', weights_only=True)['net']


def read(path, parse):
    """parse(path). UserError if the file cannot be read."""
    try:
        return parse(path)
    except (OSError, ValueError, KeyError) as error:
        raise utils.UserError(f'{path}: cannot be read ({error}); name folders of finished runs') from None


def one_hot_weights(net, genotype) -> dict:
    """{kind: one (n_inputs, n_ops) tensor per node}: 1 for the operations of the genotype, 0 elsewhere. UserError."""
    weights = {}
    for kind in net.kinds():
        names, gene = net.primitives_of(kind), getattr(genotype, kind)
        weights[kind] = [torch.zeros_like(w) for w in net.op_weights(kind)]
        if len(gene) != len(weights[kind]) or not {op for node in gene for op, _ in node} <= set(names):
            raise utils.UserError(f'a {kind} cell with other nodes or operations than the supernet')
        for node, weight in zip(gene, weights[kind]):
            for op, state in node:
                weight[state, names.index(op)] = 1.
    return weights


@torch.no_grad()
def dev_scores(net, weights, data, config) -> dict:
    """UA, WA, F1 and loss on dev of the supernet with these weights; batch norm's statistics come from the training set."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    net.train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    generator = torch.Generator().manual_seed(config.seed)

    def forward(x, valid, prosody, speaker):
        return net.net.forward_cells(x, weights, None, valid, prosody, speaker)[0]
    for i, (X, _) in enumerate(data.sets['train'].batches(config.batch_size, None, generator)):
        for norm in norms:
            norm.momentum = 1 / (i + 1)  # running statistics become the mean over batches
        forward(*X)
    net.eval()
    speaker_norm.adapt(net, data.sets['dev'], config.batch_size, forward)
    return scoring.evaluate(forward, data.sets['dev'], config.batch_size, data.class_weights)[0]


if __name__ == '__main__':
    utils.cli(main)
