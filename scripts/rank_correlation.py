"""Does a supernet rank networks as their retraining does? Kendall's tau between the two, on dev speakers alone.

    python scripts/rank_correlation.py runs/search/cv/emodb/f1-s0 runs/augment/cv/emodb/*-f1-s* --data_path DIR

Each network of the search's space that was retrained on the same fold is scored with the weights of the supernet too: its edges
pass their operation whole, all others nothing, and batch norm gets the statistics of that network, without which such scores
say little (Guo et al. 2020, arXiv 2002.04289). A tau near 0 means that the search's end is no better than a draw.
"""
import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn as nn
import yaml
from scipy.stats import kendalltau
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import config as cf  # noqa: E402
import datasets  # noqa: E402
import genotypes as gt  # noqa: E402
import search  # noqa: E402
import utils  # noqa: E402
from datasets import features, scoring  # noqa: E402

SAME = ('dataset', 'labels', 'turns', 'scenarios', 'folds', 'fold', *features.NAMES)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('search', type=Path, help='folder of a finished search')
    parser.add_argument('runs', type=Path, nargs='+', help='folders of augment.py; those of other networks or data, and '
                        'those not finished, are passed over and counted')
    parser.add_argument('--data_path', help='folder of the corpus')
    parser.add_argument('--cache', default='.cache', help='folder of extracted features (default: %(default)s)')
    args = parser.parse_args(argv)
    settings = read(args.search / 'config.yaml', yaml.safe_load)
    config = cf.build('search', {**settings, 'data_path': args.data_path, 'cache': args.cache})
    networks, passed = retrained(args.runs, settings)
    check_number(networks, passed, args)
    utils.set_threads(config.threads)
    data = datasets.load(config, ('train', 'dev'))
    utils.set_seed(config.seed)
    net = search.make_net(config, data, [config.batch_size])
    path = args.search / 'checkpoint.pt'
    net.load_state_dict(read(path, lambda _: torch.load(path, map_location='cpu', weights_only=True)['net']))
    fitting = []
    for name, genotype, dev_ua in networks:
        try:
            fitting.append((name, mixtures(net, genotype), dev_ua))
        except utils.UserError as error:
            passed.setdefault(str(error), []).append(name)
    check_number(fitting, passed, args)
    rows = []
    for name, weights, dev_ua in tqdm(fitting, 'networks', disable=None, leave=False):
        found = score(net, weights, data, config)
        rows.append((dev_ua, found['ua'], found['loss'], name))
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
    """[(folder, Genotype, dev UA), ...] of the runs that retrained a genotype on the search's fold and features, each once, and
    {why: folders} of those that are passed over. A folder that is not there is a UserError.
    """
    found, passed, seen = [], {}, set()
    for folder in folders:
        if folder.is_dir() and not (folder / 'results.json').exists():
            passed.setdefault('not finished', []).append(folder)
            continue
        results, its = read(folder / 'results.json', json.loads), read(folder / 'config.yaml', yaml.safe_load)
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
    """UserError where there are too few to rank."""
    if len(networks) < 2:
        raise utils.UserError(f'{len(networks)} of these runs retrained a genotype of the space and data of {args.search}: 2 '
                              f'are needed; {counted(passed) or "name more folders"}')


def counted(passed):
    """{why: folders} as a line."""
    reasons = ', '.join(f'{why} {len(folders)} (first {folders[0]})' for why, folders in passed.items())
    return reasons and f'passed over {sum(map(len, passed.values()))} of the runs: {reasons}'


def read(path, parse):
    try:
        return parse(path.read_text() if path.suffix != '.pt' else path)
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise utils.UserError(f'{path}: cannot be read ({error}); name folders of finished runs') from None


def mixtures(net, genotype):
    """{kind: one (n_inputs, n_ops) tensor a node}: 1 for the operations of the genotype, 0 elsewhere. UserError."""
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
def score(net, weights, data, config):
    """Dev scores of the supernet with these weights, batch norm's statistics taken anew over the training set."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    net.train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    generator = torch.Generator().manual_seed(config.seed)
    for i, (X, _) in enumerate(data.sets['train'].batches(config.batch_size, None, generator)):
        for norm in norms:
            norm.momentum = 1 / (i + 1)  # running statistics become the mean over batches
        net.net.forward_cells(X, weights)
    net.eval()
    return scoring.evaluate(lambda X: net.net.forward_cells(X, weights)[0], data.sets['dev'], config.batch_size,
                          data.class_weights)[0]


if __name__ == '__main__':
    utils.cli(main)
