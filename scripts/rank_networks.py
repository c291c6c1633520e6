"""Networks whose ranking scripts/rank_correlation.py asks a supernet for, with the scores they have without it.

They are trained here, or were: by scripts/spread.py, augment.py, or search.py --relaxation none.
"""
import pickle
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import config as cf  # noqa: E402
import datasets  # noqa: E402
import genotypes as gt  # noqa: E402
import utils  # noqa: E402
from models import finalists  # noqa: E402
from scripts import spread, spread_plan, trainings  # noqa: E402

SAME = ('dataset', 'labels', 'turns', 'scenarios', 'folds', 'fold', *(f.name for f in fields(cf.FeatureSettings)))
RECIPE = cf.names_of(*finalists.RECIPE)
SPACE = tuple(f.name for f in fields(cf.SpaceSettings) if f.name != 'band')


def training_of(args, config) -> cf.AugmentConfig:
    """How networks are trained. Its seed is 0: other searches, with other seeds, are compared with the same networks."""
    training = replace(finalists.recipe_of(config), seed=0, name='ranks', band=args.band or config.band)
    if not args.epochs:
        return training
    warmup = round(training.warmup * min(1, args.epochs / training.epochs))  # as of a tournament with other epochs
    return replace(training, epochs=args.epochs, warmup=warmup)


def draw(args, config, data) -> list[spread_plan.Network]:
    """Networks drawn from the space of the search and the band, the same for every search of that space."""
    return spread_plan.draw(SimpleNamespace(architectures=args.networks), training_of(args, config), data.labels)


def trained(args, config, data) -> tuple[list, dict]:
    """Networks drawn from the space and trained, those on disk not again.

    Returns [(name, Genotype, [scores of every seed])] and the networks that are passed over, {reason: names}.
    """
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
    found, passed = [], {}
    for network in networks:
        measured = [rows[spread.key(network, config.fold, seed)] for seed in range(args.seeds)]
        if trainings.diverged(measured):
            passed.setdefault('a training diverged', []).append(network.name)
        else:
            found.append((network.name, network.genotype, measured))
    return found, passed


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
        elif trainings.diverged(measured):
            passed.setdefault('a training diverged', []).append(name)
        else:
            with cf.contents_of(folder / 'trainings.csv', advice):
                found.append((name, gt.from_str(measured[0]['genotype']), measured))
    too = ', with dev speakers among those they trained on' * bool(its.get('train_on_dev'))
    print(f'fold {fold}: the retrained networks are scored on test speakers{too}; the supernet is scored on dev speakers')
    return found, passed


def speakers_of(record: dict) -> list:
    """Training and dev speakers, from results.json or the record of a search."""
    return [sorted(record[f'{part}_speakers']) for part in ('train', 'dev')]


def heard_by(path: Path) -> list:
    """Those of the search that wrote this genotype.json."""
    return speakers_of(cf.read_json(path)['search'])


def retrained(folders, settings, speakers: list):
    """The runs that retrained a genotype on the search's fold and features, each genotype once, and those passed over.

    speakers: of the search, as `heard_by` tells them.
    Returns [(folder, Genotype, [{'ua': on dev}]), ...] and {reason: folders}. UserError if a folder does not exist.
    """
    found, passed, seen, recipe = [], {}, set(), None
    for folder in folders:
        if (folder / 'candidates.json').exists():
            its_recipe, some = drawn(folder, settings, speakers)
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
            elif speakers_of(results) != speakers:
                why = 'other speakers to train or for dev'
            elif results['dev_ua'] is None:
                why = 'trained on dev (--no-train_on_dev leaves a dev UA)'
            elif text in seen:
                why = 'a genotype that another run has'
            elif recipe and (other := [name for name in RECIPE if utils.recorded(its, name) != utils.recorded(recipe, name)]):
                why = f'trained with other {" ".join(other)} than {found[0][0]}'
            else:
                recipe = its
                seen.add(text)
                found.append((folder, gt.from_str(text), [{'ua': results['dev_ua']}]))
                continue
        passed.setdefault(why, []).append(folder)
    return found, passed


def drawn(folder, settings, speakers):
    """Recipe and [(name, Genotype, [scores on dev])] of what search.py --relaxation none trained to the end. UserError."""
    its, tree = read(folder / 'config.yaml', utils.read_settings), read(folder / 'candidates.json', cf.read_json)
    others = [name for name in (*SAME, *SPACE) if utils.recorded(its, name) != utils.recorded(settings, name)]
    if others or its.get('relaxation') != 'none':
        raise utils.UserError(f'{folder} is no search with --relaxation none of the same space and data' + (
            f': it has another {" ".join(others)}' if others else '') + '; leave it out')
    if read(folder / 'genotype.json', heard_by) != speakers:
        raise utils.UserError(f'{folder} has other speakers to train or for dev than the search: leave it out')
    with cf.contents_of(folder / 'candidates.json', 'leave its folder out'):
        return tree['recipe'], [(f'{folder.name}-{i}', gt.from_str(row['genotype']), [{**one, 'parameters': row['parameters']}])
                                for i, row in enumerate(tree['finalists'], 1) for one in row['trainings']
                                if one['epochs'] == tree['recipe']['epochs'] and one['loss'] is not None]


def check_same(folder: Path, its: dict, search: Path, settings: dict, names: Iterable[str], what: str):
    """UserError if what is in `folder`, with its settings, has another corpus, space or other `names` than the search."""
    pairs = {name: (utils.recorded(its, name), utils.recorded(settings, name)) for name in (*names, *SPACE)}
    if others := [f'{name} {there}, not {here}' for name, (there, here) in pairs.items() if there != here]:
        raise utils.UserError(f'{folder} has other settings than {search} ({"; ".join(others)}): name {what} of the '
                              'same corpus, features and space')


def read(path, parse, advice='name folders of finished runs'):
    """parse(path). UserError if the file cannot be read."""
    try:
        return parse(path)
    except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError, utils.UserError) as error:
        why = str(error).removeprefix(f'{path}: ')
        raise utils.UserError(f'{path}: cannot be read ({cf.one_line(why, 200)}); {advice}') from None
