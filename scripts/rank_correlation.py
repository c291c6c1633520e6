"""Kendall's tau between a supernet's ranking of networks and that of their retraining.

    python scripts/rank_correlation.py runs/search/nemo --networks 24 --seeds 2 --config configs/nemo.yaml --data_path DIR
    python scripts/rank_correlation.py runs/search/cv/emodb/f1-s0 runs/augment/cv/emodb/*-f1-s* --data_path DIR
    python scripts/rank_correlation.py runs/search/cv/nemo/f1-s0 runs/search/cv/nemo/draws-f1-s* --data_path DIR
    python scripts/rank_correlation.py runs/search/nemo --trainings runs/spread/nemo --data_path DIR
    python scripts/rank_correlation.py runs/search/nemo --other runs/search/nemo-seed1 --networks 60 --data_path DIR

The first form draws networks from the search's space and trains each with several seeds; name the --config of the search,
and they are trained as in its tournament. Every training is a row of runs/ranks/NAME/trainings.csv, and the same command
continues after an interruption. Another search of the same fold and space is compared with the same trainings if it is given
the same --name. The second form takes networks that were retrained before; the third, the random networks that searches with
--relaxation none trained to the end. The fourth takes the trainings of scripts/spread.py, which are scored on test speakers.
Every network is also scored with the weights of the supernet on dev speakers, as candidates are; cells that it lacks and the
supernet has are those of the alphas. A tau near 0 means that the genotype a search ends with is no better than a random one.

The last form trains nothing: it tells whether the supernet of another search, such as one with another seed, scores networks
alike. If the two disagree, at most one of them can be right. The interval is a bootstrap over networks. Scores and a figure go
to runs/ranks/NAME, as supernet.csv and supernet.png; under a --name other than the search's, as supernet-SEARCH.csv and .png.
"""
import argparse
import sys
from dataclasses import fields
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import config as cf  # noqa: E402
import datasets  # noqa: E402
import genotypes as gt  # noqa: E402
import search  # noqa: E402
import utils  # noqa: E402
from datasets import frames  # noqa: E402
from models.candidates import Scorer  # noqa: E402
from scripts import rank_report, spread_plan  # noqa: E402
from scripts.rank_networks import SAME, check_same, draw, heard_by, read, retrained, trained, trained_before  # noqa: E402

SIZES = tuple(f.name for f in fields(cf.NetworkSettings) if f.name != 'dropout')
NAMED = 10  # networks that are named where some are passed over


def main(argv=None):
    args = parse(argv)
    settings, config = settings_of(args.search, args)
    speakers = read(args.search / 'genotype.json', heard_by)
    networks, passed = trained_before(args, settings, config) if args.trainings else retrained(args.runs, settings, speakers)
    judged = 'test' if args.trainings else rank_report.OTHER if args.other else 'dev'
    if args.other:
        other, its_config = settings_of(args.other, args)
        check_same(args.other, other, args.search, settings, (*SAME, *SIZES), 'a search')
    if not args.networks:
        check_number(networks, passed, args)
    utils.set_threads(config.threads)
    data = datasets.load(config, ('train', 'dev'))
    net = supernet(args.search, settings, config, data)
    if args.other:
        networks = scored_by(supernet(args.other, other, its_config, data), args, config, data)
    elif args.networks:
        networks, passed = trained(args, config, data)
    scorer, rows = scorer_of(net, data, config), []
    for name, genotype, measured in tqdm(networks, 'networks', disable=None, leave=False):
        try:
            rows.append(rank_report.Row(str(name), bool(genotype.rnn), measured, scorer.score(with_all_cells(genotype, net))))
        except utils.UserError as error:
            passed.setdefault(str(error), []).append(name)
    check_number(rows, passed, args)
    if passed:
        print(f'{counted(passed)}\n')
    rank_report.report(rows, judged)
    default = f'{config.name}-{args.other.resolve().name}' if args.other else config.name
    folder = Path('runs', 'ranks', args.name or default)
    folder.mkdir(parents=True, exist_ok=True)
    # Several searches may be compared in a folder that --name names.
    stem = 'supernet' if args.name in (None, default) else f'supernet-{default.replace("/", "-")}'
    utils.write_csv(folder / f'{stem}.csv', rank_report.columns(judged), rank_report.csv_rows(rows))
    figure = rank_report.draw(rows, judged)
    utils.write_aside(folder / f'{stem}.png', lambda f: figure.savefig(f, dpi=110, format='png'))
    print(f'figure: {folder / stem}.png')


def settings_of(folder: Path, args) -> tuple[dict, cf.SearchConfig]:
    """The settings of a search as they are on record, and as this version reads them. UserError."""
    settings = read(folder / 'config.yaml', utils.read_settings)
    if settings.get('relaxation') == 'none':
        raise utils.UserError(f'{folder} is of a search with --relaxation none, which trains no supernet: name another')
    if not (folder / 'genotype.json').exists():
        raise utils.UserError(f'{folder} is not finished: it has no genotype.json; continue the search with --resume')
    known = {f.name: settings[f.name] for f in fields(cf.SearchConfig) if f.name in settings}
    return settings, frames.complete(cf.build('search', cf.Given({
        **known, 'resume': False, 'data_path': args.data_path, 'cache': args.cache, 'config': args.config})))


def supernet(folder: Path, settings: dict, config, data):
    """The supernet of a finished search. UserError."""
    utils.set_seed(config.seed)
    net = search.make_net(config, data, [range(len(data.sets['train']))], settings['format'])
    net.pools_padding = settings['format'] < 2
    checkpoint = read(folder / 'checkpoint.pt', utils.read_torch)
    with cf.contents_of(folder / 'checkpoint.pt', 'name the folder of a finished search'):
        net.load_state_dict(checkpoint['net'])
        if checkpoint.get('digest', data.digest) != data.digest:
            raise utils.UserError(f'utterances, labels or speakers of {config.data_path} are not those of {folder}: name the '
                                  'corpus of the search with --data_path')
    return net


def scorer_of(net, data, config) -> Scorer:
    return Scorer(net, data, config, utils.autocast(torch.device('cpu'), False))


def scored_by(net, args, config, data) -> list:
    """[(name, Genotype, [score])] of networks drawn from the space, scored with the weights of another supernet.

    config: of the first supernet, so that both are scored on the same utterances.
    """
    scorer, found = scorer_of(net, data, config), []
    for network in tqdm(draw(args, config, data), f'networks, {args.other}', disable=None, leave=False):
        score = scorer.score(with_all_cells(network.genotype, net))
        found.append((network.name, network.genotype, [{**score, 'parameters': network.parameters}]))
    return found


def with_all_cells(genotype: gt.Genotype, net) -> gt.Genotype:
    """The genotype with those cells of the supernet that a network of few layers lacks. Only the space `speech` has such."""
    lacking = [kind for kind in net.kinds() if not getattr(genotype, kind)] if genotype.network else []
    return genotype._replace(**{name: getattr(net.genotype(), name) for kind in lacking for name in (kind, f'{kind}_concat')})


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('search', type=Path, help='folder of a finished search')
    parser.add_argument('runs', type=Path, nargs='*', help='folders of augment.py, of which runs of other networks or data and '
                        'unfinished ones are passed over and counted; or of search.py --relaxation none')
    parser.add_argument('--trainings', type=Path, help='folder of scripts/spread.py, such as runs/spread/NAME: take its '
                        'genotypes, with their trainings on the fold of the search')
    parser.add_argument('--networks', type=int, default=0, help='draw and train this many networks instead; with --other, '
                        'draw and score them')
    parser.add_argument('--other', type=Path, help='folder of another finished search of the same fold and space: does its '
                        'supernet score networks alike?')
    parser.add_argument('--seeds', type=int, help='trainings of each network (default: 2)')
    parser.add_argument('--band', help='LOW-HIGH: draw networks that have this many parameters')
    parser.add_argument('--config', help='YAML file whose augment section says how to train (default: as augment.py alone '
                        'does)')
    parser.add_argument('--epochs', type=int, help='epochs of a training (default: --finalist_epochs of the '
                        'search, or as many as the file says)')
    parser.add_argument('--name', help='folder in runs/ranks for trainings, scores and figure (default: the name of '
                        'the search, with --other the names of both)')
    parser.add_argument('--data_path', help='folder of the corpus')
    parser.add_argument('--cache', default='.cache', help='folder of extracted features (default: %(default)s)')
    args = parser.parse_args(argv)
    if args.other and (args.runs or args.trainings):
        raise utils.UserError(f'--other {args.other} takes no networks that were trained: leave '
                              f'{args.trainings and "--trainings" or args.runs[0]} out')
    if args.other and not args.networks:
        raise utils.UserError(f'--other {args.other}: say how many networks to score with --networks')
    if sum(map(bool, (args.networks, args.runs, args.trainings))) != 1:
        raise utils.UserError('name folders of augment.py, or a folder of scripts/spread.py with --trainings, or say how many '
                              'networks to train with --networks')
    used = ('band',) if args.other else ('seeds', 'band', 'config', 'epochs') if args.networks else ()
    unused = [name for name in ('seeds', 'band', 'config', 'epochs') if getattr(args, name) is not None and name not in used]
    if unused and args.other:
        raise utils.UserError(f'--{unused[0]} has no effect with --other, which trains nothing: leave it out')
    if unused:
        raise utils.UserError(f'--{unused[0]} has an effect with --networks alone, which trains: leave it out')
    args.seeds, args.epochs = 2 if args.seeds is None else args.seeds, args.epochs or 0
    if args.networks and not (2 <= args.networks <= spread_plan.MOST and 1 <= args.seeds <= spread_plan.MOST):
        raise utils.UserError(f'--networks must be from 2 to {spread_plan.MOST}, --seeds from 1 to {spread_plan.MOST}')
    if args.epochs < 0:
        raise utils.UserError(f'--epochs {args.epochs}: must be 0 or more')
    return args


def check_number(networks, passed, args):
    """UserError if there are too few networks to rank."""
    if len(networks) < 2:
        raise utils.UserError(f'{len(networks)} of these runs retrained a genotype of the space and data of {args.search}: 2 '
                              f'are needed; {counted(passed) or "name more folders"}')


def counted(passed):
    """{reason: names} as a line."""
    def named(names):
        return ', '.join(map(str, names[:NAMED])) + f' and {len(names) - NAMED} more' * (len(names) > NAMED)
    reasons = ', '.join(f'{why} {len(names)} ({named(names)})' for why, names in passed.items())
    return reasons and f'passed over {sum(map(len, passed.values()))}: {reasons}'


if __name__ == '__main__':
    utils.cli(main)
