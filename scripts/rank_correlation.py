"""Kendall's tau between a supernet's ranking of networks and that of their retraining, both on dev speakers.

    python scripts/rank_correlation.py runs/search/nemo --networks 24 --seeds 2 --config configs/nemo.yaml --data_path DIR
    python scripts/rank_correlation.py runs/search/cv/emodb/f1-s0 runs/augment/cv/emodb/*-f1-s* --data_path DIR

The first form draws networks from the search's space and trains each with several seeds, as the tournament of search.py does;
every training is a row of runs/ranks/NAME/trainings.csv, and the same command continues after an interruption. Another search
of the same fold and space is compared with the same trainings if it is given the same --name. The second form takes networks
that were retrained before. Every network is also scored with the weights of the supernet, as candidates are. A tau near 0 means
that the genotype a search ends with is no better than a random one. The interval is a bootstrap over networks.
"""
import argparse
import itertools
import pickle
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import config as cf  # noqa: E402
import datasets  # noqa: E402
import genotypes as gt  # noqa: E402
import search  # noqa: E402
import utils  # noqa: E402
from models.candidates import Scorer  # noqa: E402
from models.finalists import recipe  # noqa: E402
from scripts import spread, spread_plan, trainings  # noqa: E402

SAME = ('dataset', 'labels', 'turns', 'scenarios', 'folds', 'fold', *(f.name for f in fields(cf.FeatureSettings)))
BOOTSTRAP = 2000


def main(argv=None):
    args = parse(argv)
    settings = read(args.search / 'config.yaml', utils.read_settings)
    known = {f.name: settings[f.name] for f in fields(cf.SearchConfig) if f.name in settings}
    config = cf.build('search', cf.Given({**known, 'resume': False, 'data_path': args.data_path, 'cache': args.cache,
                                          'config': args.config}))
    networks, passed = retrained(args.runs, settings)
    if not args.networks:
        check_number(networks, passed, args)
    utils.set_threads(config.threads)
    data = datasets.load(config, ('train', 'dev'))
    utils.set_seed(config.seed)
    net = search.make_net(config, data, [range(len(data.sets['train']))], settings['format'])
    net.pools_padding = settings['format'] < 2
    with cf.contents_of(args.search / 'checkpoint.pt', 'name the folder of a finished search'):
        net.load_state_dict(read(args.search / 'checkpoint.pt', read_weights))
    if args.networks:
        networks = trained(args, config, data)
    scorer, rows = Scorer(net, data, config, utils.autocast(torch.device('cpu'), False)), []
    for name, genotype, measured in tqdm(networks, 'networks', disable=None, leave=False):
        try:
            rows.append((measured, scorer.score(genotype), name))
        except utils.UserError as error:
            passed.setdefault(str(error), []).append(name)
    check_number(rows, passed, args)
    if passed:
        print(f'{counted(passed)}\n')
    report(rows)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('search', type=Path, help='folder of a finished search')
    parser.add_argument('runs', type=Path, nargs='*', help='folders of augment.py; runs of other networks or data, and '
                        'unfinished ones, are passed over and counted')
    parser.add_argument('--networks', type=int, default=0, help='draw and train this many networks instead')
    parser.add_argument('--seeds', type=int, default=2, help='trainings of each network (default: %(default)s)')
    parser.add_argument('--band', help='LOW-HIGH: draw networks that have this many parameters')
    parser.add_argument('--config', help='YAML file whose augment section says how to train')
    parser.add_argument('--epochs', type=int, default=0, help='epochs of a training; 0: as many as the file says')
    parser.add_argument('--name', help='folder of the trainings in runs/ranks (default: the name of the search)')
    parser.add_argument('--data_path', help='folder of the corpus')
    parser.add_argument('--cache', default='.cache', help='folder of extracted features (default: %(default)s)')
    args = parser.parse_args(argv)
    if bool(args.networks) == bool(args.runs):
        raise utils.UserError('name folders of augment.py, or say how many networks to train with --networks')
    if args.networks and not (2 <= args.networks <= spread_plan.MOST and 1 <= args.seeds <= spread_plan.MOST):
        raise utils.UserError(f'--networks must be from 2 to {spread_plan.MOST}, --seeds from 1 to {spread_plan.MOST}')
    if args.epochs < 0:
        raise utils.UserError(f'--epochs {args.epochs}: must be 0 or more')
    return args


def trained(args, config, data) -> list:
    """[(name, Genotype, [scores of every seed])] of networks drawn from the space and trained, those on disk not again."""
    training = replace(recipe(config), seed=0)  # other searches, with other seeds, are compared with the same networks
    training = replace(training, epochs=args.epochs or training.epochs, name='ranks', band=args.band or training.band)
    own = SimpleNamespace(architectures=args.networks)
    networks = spread_plan.draw(own, training, data.labels)
    path = Path('runs', 'ranks', args.name or config.name)
    with trainings.locked(path):
        kept = {name: value for name, value in asdict(training).items() if name not in utils.MAY_CHANGE}
        trainings.check_settings(path, {**kept, 'digest': data.digest}, True)
        rows = spread.read_rows(path / 'trainings.csv', networks)
        jobs = [(network, config.fold, seed) for network in networks for seed in range(args.seeds)]
        left = [job for job in jobs if spread.key(*job) not in rows]
        print(f'{len(jobs) - len(left)} of {len(jobs)} trainings finished', flush=True)
        spread.train_all(left, rows, path / 'trainings.csv', training, 'dev')
    return [(f'network {network.name}, {network.parameters:,} parameters', network.genotype,
             [rows[spread.key(network, config.fold, seed)] for seed in range(args.seeds)]) for network in networks]


def report(rows: list):
    """Prints a table and the correlations. rows: (scores of the trainings, scores in the supernet, name)."""
    with_loss = all('loss' in row for measured, *_ in rows for row in measured)
    rows = sorted(rows, key=lambda row: -np.mean([one['ua'] for one in row[0]]))
    head = ['UA retrained', *['loss retrained'] * with_loss, 'UA in the supernet', 'loss in the supernet',
            'network; all on dev']
    print(f'| {" | ".join(head)} |\n{"|---" * len(head)}|')
    for measured, scores, name in rows:
        means = [f'{100 * np.mean([row["ua"] for row in measured]):.1f}']
        if with_loss:
            means.append(f'{np.mean([row["loss"] for row in measured]):.3f}')
        print(f'| {" | ".join(means)} | {100 * scores["ua"]:.1f} | {scores["loss"]:.3f} | {name} |')
    ua, loss = ([scores[name] for _, scores, _ in rows] for name in ('ua', 'loss'))
    measured_ua = [np.mean([row['ua'] for row in measured]) for measured, *_ in rows]
    print_tau(len(rows), 'UA', measured_ua, ua)
    print_tau(len(rows), 'UA retrained and loss in the supernet, from low to high', measured_ua, [-x for x in loss])
    if with_loss:
        print_tau(len(rows), 'loss', [np.mean([row['loss'] for row in measured]) for measured, *_ in rows], loss)
        seeds = np.array([[row['loss'] for row in measured] for measured, *_ in rows]).T
        taus = [kendall(a, b) for a, b in itertools.combinations(seeds, 2)]
        if taus:
            print(f'two seeds of the retraining, by loss: {np.mean(taus):.2f}')


def print_tau(n: int, what: str, x, y):
    low, high = interval(x, y)
    print(f'Kendall tau, {n} networks, by {what}: {kendall(x, y):.2f} ({low:.2f} to {high:.2f})')


def kendall(x, y, counts=None):
    """Kendall's tau-b, or one for each row of counts, (n_samples, n): how often a sample has each network.

    Pairs of a network with itself do not count.
    """
    x, y = (np.sign(np.subtract.outer(v, v)) for v in (x, y))
    counts = np.ones((1, len(x))) if counts is None else counts

    def total(pairs):
        return (counts @ pairs * counts).sum(axis=1)
    with np.errstate(invalid='ignore'):
        tau = total(x * y) / np.sqrt(total(np.abs(x)) * total(np.abs(y)))
    return tau if len(tau) > 1 else float(tau[0])


def interval(x, y) -> tuple[float, float]:
    """95% bootstrap interval of tau over networks."""
    n = len(x)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), BOOTSTRAP).astype(float)
    taus = kendall(x, y, counts)
    return tuple(np.nanpercentile(taus, [2.5, 97.5])) if np.isfinite(taus).any() else (np.nan, np.nan)


def retrained(folders, settings):
    """The runs that retrained a genotype on the search's fold and features, each genotype once, and those passed over.

    Returns [(folder, Genotype, [{'ua': on dev}]), ...] and {reason: folders}. UserError if a folder does not exist.
    """
    found, passed, seen = [], {}, set()
    for folder in folders:
        if folder.is_dir() and not (folder / 'results.json').exists():
            passed.setdefault('not finished', []).append(folder)
            continue
        results = read(folder / 'results.json', cf.read_json)
        its = read(folder / 'config.yaml', utils.read_settings)
        with cf.contents_of(folder / 'results.json', 'name folders of finished runs'):
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
                found.append((folder, gt.from_str(text), [{'ua': results['dev_ua']}]))
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
    except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError, utils.UserError) as error:
        why = str(error).removeprefix(f'{path}: ')
        raise utils.UserError(f'{path}: cannot be read ({cf.one_line(why, 200)}); name folders of finished runs') from None


if __name__ == '__main__':
    utils.cli(main)
