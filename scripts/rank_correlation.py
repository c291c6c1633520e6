"""Kendall's tau between a supernet's ranking of networks and that of their retraining.

    python scripts/rank_correlation.py runs/search/nemo --networks 24 --seeds 2 --config configs/nemo.yaml --data_path DIR
    python scripts/rank_correlation.py runs/search/cv/emodb/f1-s0 runs/augment/cv/emodb/*-f1-s* --data_path DIR
    python scripts/rank_correlation.py runs/search/cv/nemo/f1-s0 runs/search/cv/nemo/draws-f1-s* --data_path DIR
    python scripts/rank_correlation.py runs/search/nemo --trainings runs/spread/nemo --data_path DIR
    python scripts/rank_correlation.py runs/search/nemo --other runs/search/nemo-seed1 --networks 60 --data_path DIR

The first form draws networks from the search's space and trains each with several seeds, as the tournament of search.py does;
every training is a row of runs/ranks/NAME/trainings.csv, and the same command continues after an interruption. Another search
of the same fold and space is compared with the same trainings if it is given the same --name. The second form takes networks
that were retrained before; the third, the random networks that searches with --relaxation none trained to the end. The fourth
takes the trainings of scripts/spread.py, which are scored on test speakers. Every network is also scored with the weights of
the supernet on dev speakers, as candidates are; cells that it lacks and the supernet has are those of the alphas. A tau near 0
means that the genotype a search ends with is no better than a random one.

The last form trains nothing: it asks whether another search, such as one with another seed, scores networks alike. Where two
supernets do not agree, neither can rank what is retrained. The interval is a bootstrap over networks. Scores and a figure go to
runs/ranks/NAME, as supernet.csv and supernet.png.
"""
import argparse
import pickle
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

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
from scripts import rank_report, spread, spread_plan, trainings  # noqa: E402

SAME = ('dataset', 'labels', 'turns', 'scenarios', 'folds', 'fold', *(f.name for f in fields(cf.FeatureSettings)))
SPACE = tuple(f.name for f in fields(cf.SpaceSettings) if f.name != 'band')
NAMED = 10  # networks that are named where some are passed over


def main(argv=None):
    args = parse(argv)
    settings, config = settings_of(args.search, args)
    networks, passed = trained_before(args, settings, config) if args.trainings else retrained(args.runs, settings)
    judged = 'test' if args.trainings else rank_report.OTHER if args.other else 'dev'
    if args.other:
        other, its_config = settings_of(args.other, args)
        check_same(args.other, other, args.search, settings, SAME, 'a search')
    if not args.networks:
        check_number(networks, passed, args)
    utils.set_threads(config.threads)
    data = datasets.load(config, ('train', 'dev'))
    net = supernet(args.search, settings, config, data)
    if args.other:
        networks = scored_by(supernet(args.other, other, its_config, data), args, config, data)
    elif args.networks:
        networks = trained(args, config, data)
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
    folder = Path('runs', 'ranks', args.name or config.name)
    folder.mkdir(parents=True, exist_ok=True)
    utils.write_csv(folder / 'supernet.csv', rank_report.columns(judged), rank_report.csv_rows(rows))
    figure = rank_report.draw(rows, judged)
    utils.write_aside(folder / 'supernet.png', lambda f: figure.savefig(f, dpi=110, format='png'))
    print(f'figure: {folder / "supernet.png"}')


def settings_of(folder: Path, args) -> tuple[dict, cf.SearchConfig]:
    """The settings of a search as they are on record, and as this version reads them. UserError."""
    settings = read(folder / 'config.yaml', utils.read_settings)
    if settings.get('relaxation') == 'none':
        raise utils.UserError(f'{folder} is of a search with --relaxation none, which trains no supernet: name another')
    if not (folder / 'genotype.json').exists():
        raise utils.UserError(f'{folder} is not finished, for it has no genotype.json: continue the search with --resume')
    known = {f.name: settings[f.name] for f in fields(cf.SearchConfig) if f.name in settings}
    return settings, cf.build('search', cf.Given({**known, 'resume': False, 'data_path': args.data_path, 'cache': args.cache,
                                                  'config': args.config}))


def supernet(folder: Path, settings: dict, config, data):
    """The supernet of a finished search. UserError."""
    utils.set_seed(config.seed)
    net = search.make_net(config, data, [range(len(data.sets['train']))], settings['format'])
    net.pools_padding = settings['format'] < 2
    with cf.contents_of(folder / 'checkpoint.pt', 'name the folder of a finished search'):
        net.load_state_dict(read(folder / 'checkpoint.pt', read_weights))
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
    parser.add_argument('--config', help='YAML file whose augment section says how to train')
    parser.add_argument('--epochs', type=int, help='epochs of a training (default: as many as the file says)')
    parser.add_argument('--name', help='folder in runs/ranks for trainings, scores and figure (default: the name of '
                        'the search)')
    parser.add_argument('--data_path', help='folder of the corpus')
    parser.add_argument('--cache', default='.cache', help='folder of extracted features (default: %(default)s)')
    args = parser.parse_args(argv)
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


def training_of(args, config) -> cf.AugmentConfig:
    """How networks are trained. Its seed is 0: other searches, with other seeds, are compared with the same networks."""
    training = replace(recipe(config), seed=0)
    return replace(training, epochs=args.epochs or training.epochs, name='ranks', band=args.band or training.band)


def draw(args, config, data) -> list[spread_plan.Network]:
    """Networks drawn from the space of the search and the band, the same for every search of that space."""
    return spread_plan.draw(SimpleNamespace(architectures=args.networks), training_of(args, config), data.labels)


def trained(args, config, data) -> list:
    """[(name, Genotype, [scores of every seed])] of networks drawn from the space and trained, those on disk not again."""
    training, networks = training_of(args, config), draw(args, config, data)
    path = Path('runs', 'ranks', args.name or config.name)
    with trainings.locked(path):
        kept = {name: value for name, value in asdict(training).items() if name not in utils.MAY_CHANGE}
        trainings.check_settings(path, {**kept, 'digest': data.digest}, True)
        rows = spread.read_rows(path / 'trainings.csv', networks)
        jobs = [(network, config.fold, seed) for network in networks for seed in range(args.seeds)]
        left = [job for job in jobs if spread.key(*job) not in rows]
        print(f'{len(jobs) - len(left)} of {len(jobs)} trainings finished', flush=True)
        spread.train_all(left, rows, path / 'trainings.csv', training, 'dev')
    return [(network.name, network.genotype, [rows[spread.key(network, config.fold, seed)] for seed in range(args.seeds)])
            for network in networks]


def check_same(folder: Path, its: dict, search: Path, settings: dict, names: Iterable[str], what: str):
    """UserError if what is in `folder`, with its settings, has another corpus, space or other `names` than the search."""
    pairs = {name: (utils.recorded(its, name), utils.recorded(settings, name)) for name in (*names, *SPACE)}
    if others := [f'{name} {there}, not {here}' for name, (there, here) in pairs.items() if there != here]:
        raise utils.UserError(f'{folder} has other settings than {search} ({"; ".join(others)}): name {what} of the '
                              'same corpus, features and space')


def trained_before(args, settings, config):
    """The genotypes that scripts/spread.py trained on the search's fold, and the networks that are passed over.

    Returns [(name, Genotype, [scores of every seed])] and {reason: names}. UserError if corpus, features or space are not those
    of the search.
    """
    folder, advice, fold = args.trainings, 'name a folder of scripts/spread.py', config.fold
    its = read(folder / 'settings.yaml', cf.read_yaml_file, advice)
    if 'fold' in its:
        raise utils.UserError(f'{folder} has trainings of this program: repeat its command, with this search, --networks and '
                              '--name')
    check_same(folder, its, args.search, settings, [name for name in SAME if name != 'fold'], 'trainings')
    if its.get('digest') != datasets.digest(datasets.select(config)[0]):
        raise utils.UserError(f'utterances, labels or speakers of {config.data_path} are not those of {folder}: name the '
                              'corpus of its trainings with --data_path')
    every = trainings.read_rows(folder / 'trainings.csv', spread_plan.COLUMNS, advice)
    rows = [row for row in every if row['fold'] == fold]
    if not rows:
        folds = ' '.join(map(str, sorted({row['fold'] for row in every}))) or 'none'
        raise utils.UserError(f'{folder}/trainings.csv has no training on fold {fold} of {args.search}; it has folds {folds}')
    found, passed = [], {}
    counts = Counter(row['architecture'] for row in rows)
    for name, n in counts.items():
        measured = [row for row in rows if row['architecture'] == name]
        if not measured[0]['genotype']:
            passed.setdefault('no genotype', []).append(name)
        elif n < max(counts.values()):
            passed.setdefault('some seeds not trained', []).append(name)
        else:
            with cf.contents_of(folder / 'trainings.csv', advice):
                found.append((name, gt.from_str(measured[0]['genotype']), measured))
    too = ', with dev speakers among those they trained on' * bool(its.get('train_on_dev'))
    print(f'fold {fold}: the retrained networks are scored on test speakers{too}; the supernet is scored on dev speakers')
    return found, passed


def retrained(folders, settings):
    """The runs that retrained a genotype on the search's fold and features, each genotype once, and those passed over.

    Returns [(folder, Genotype, [{'ua': on dev}]), ...] and {reason: folders}. UserError if a folder does not exist.
    """
    found, passed, seen, recipe = [], {}, set(), None
    for folder in folders:
        if (folder / 'candidates.json').exists():
            its_recipe, some = drawn(folder, settings)
            if recipe not in (None, its_recipe):
                raise utils.UserError(f'{folder} has networks of another recipe than the folder before it: leave it out')
            recipe = its_recipe
            for name, genotype, measured in some:
                if gt.to_str(genotype) not in seen:
                    found.append((name, genotype, measured))
                seen.add(gt.to_str(genotype))
            continue
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


def drawn(folder, settings):
    """Recipe and [(name, Genotype, [scores on dev])] of what search.py --relaxation none trained to the end. UserError."""
    its, tree = read(folder / 'config.yaml', utils.read_settings), read(folder / 'candidates.json', cf.read_json)
    others = [name for name in (*SAME, *SPACE) if utils.recorded(its, name) != utils.recorded(settings, name)]
    if others or its.get('relaxation') != 'none':
        raise utils.UserError(f'{folder} is no search with --relaxation none of the same space and data' + (
            f': it has another {" ".join(others)}' if others else '') + '; leave it out')
    with cf.contents_of(folder / 'candidates.json', 'leave its folder out'):
        return tree['recipe'], [(f'{folder.name}-{i}', gt.from_str(row['genotype']), [{**one, 'parameters': row['parameters']}])
                                for i, row in enumerate(tree['finalists'], 1) for one in row['trainings']
                                if one['epochs'] == tree['recipe']['epochs'] and one['loss'] is not None]


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


def read_weights(path):
    return torch.load(path, map_location='cpu', weights_only=True)['net']


def read(path, parse, advice='name folders of finished runs'):
    """parse(path). UserError if the file cannot be read."""
    try:
        return parse(path)
    except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError, utils.UserError) as error:
        why = str(error).removeprefix(f'{path}: ')
        raise utils.UserError(f'{path}: cannot be read ({cf.one_line(why, 200)}); {advice}') from None


if __name__ == '__main__':
    utils.cli(main)
