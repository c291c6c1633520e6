"""Which settings train one network best, judged by the dev speakers of every fold.

    python scripts/recipe.py --name speed --config configs/nemo.yaml --data_path DIR --folds 3 --model cnn_gru --params 20000 \\
        --variant slow lr=0.001 --variant voices speed=0.1,vtlp=0.1

A variant is the settings of augment.py that the command line names, with some of them changed; `base` changes none. With --init
all begin with the weights of a trained network, which must not have heard the dev speakers. Each is trained on each fold with
each seed and scored after its last epoch on the fold's dev speakers. The fold's test speakers are not read; but they are dev
speakers of another fold, so a choice over all folds has seen the whole corpus.

Every training is one row of runs/recipe/NAME/trainings.csv, and the same command continues after an interruption. Seeds and
variants may be added later.
"""
import hashlib
import json
import math
import re
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import augment  # noqa: E402
import config as cf  # noqa: E402
import datasets  # noqa: E402
import genotypes as gt  # noqa: E402
import utils  # noqa: E402
from datasets import frames  # noqa: E402
from datasets.scoring import Diverged  # noqa: E402
from models import memory  # noqa: E402
from models.predictor import best_file, of_same_width, read_best, start_from  # noqa: E402
from models.training import train  # noqa: E402
from scripts import trainings  # noqa: E402
from scripts.recipe_report import report  # noqa: E402
from scripts.spread_plan import fold_numbers  # noqa: E402

SWITCH = {'true': True, 'false': False}  # as in YAML
COLUMNS = dict(variant=str, settings=lambda text: as_text(json.loads(text)), seed=int, fold=int, dev_speakers=str, n=int,
               loss=float, ua=float, wa=float, minutes=float, core_minutes=float)
BASE = 'base'
GROUPS = (cf.FeatureSettings, cf.NetworkSettings, cf.RetrainingSettings, cf.AugmentationSettings)
OWNED = ('fold', 'patience', 'resume', 'overwrite', 'train_on_dev')  # settings that the program chooses


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """recipe"""
    seeds: int = cf.setting(3, 'trainings of each variant on each fold', low=1, high=100)
    only_folds: str = cf.setting('all', 'folds to use, such as 1,3 or 1-3, or all')
    variants: str | None = cf.setting(None, 'YAML file of variants, {name: {setting: value}}')
    dry_run: bool = cf.setting(False, 'train nothing: print the plan, and the report of the trainings that are finished')

    def __post_init__(self):
        for f in fields(self):
            cf.check(f, getattr(self, f.name))


def main(argv=None):
    own, config, genotype, variants = configure(argv)
    corpus = datasets.scan(config.dataset, config.data_path, config.cache)
    utterances, folds, _ = datasets.select(config, corpus)
    numbers = fold_numbers(own.only_folds, len(folds))
    start = read_best(config.init) if config.init else None
    path = Path('runs', 'recipe', config.name)
    settings = {name: value for name, value in asdict(config).items() if name not in utils.MAY_CHANGE | {'fold'}}
    settings['digest'] = datasets.digest(utterances)
    if genotype:
        settings['network'] = gt.to_str(genotype)
    if start:
        settings['weights'] = hashlib.sha256(Path(best_file(config.init)).read_bytes()).hexdigest()
        check_start(start, config, datasets.corpus_digest(corpus), {number: folds[number - 1] for number in numbers})
    if own.dry_run:
        trainings.check_settings(path, settings, False)
        print(tell(own, variants, numbers, read(path, variants))[1])
        return
    with trainings.locked(path):
        trainings.check_settings(path, settings, True)
        rows = read(path, variants)
        left, text = tell(own, variants, numbers, rows)
        print(text, flush=True)
        try:
            train_all(left, variants, rows, path / 'trainings.csv', config, genotype, start)
        except KeyboardInterrupt:
            print('recipe.py: interrupted; the same command continues', file=sys.stderr, flush=True)
            sys.exit(130)
        text = tell(own, variants, numbers, rows)[1]
        utils.write_aside(path / 'report.md', lambda f: f.write(text.encode()))
        print(f'{text}\nreport: {path / "report.md"}')


def configure(argv) -> tuple[RecipeSettings, cf.AugmentConfig, object, dict[str, dict]]:
    """This program's settings, those of the trainings, the genotype if there is one, and {variant: settings}. UserError."""
    texts = cf.Parser(add_help=False)
    texts.add_argument('--variant', nargs=2, action='append', default=[])
    found, argv = texts.parse_known_args(argv)
    parser = cf.Parser(
        prog='scripts/recipe.py', description='Compare settings for one network on the dev speakers of every fold.',
        examples=['python scripts/recipe.py --name lr --config configs/nemo.yaml --data_path DIR --model cnn_gru '
                  '--variant slow lr=0.001'])
    for group in (RecipeSettings, *cf.AugmentConfig.GROUPS):
        parser.add_settings(group, hidden=OWNED)
    parser.add_argument('--variant', nargs=2, metavar=('NAME', 'SETTING=VALUE,...'), help='a variant; may be repeated')
    flags = parser.known(argv)
    own = RecipeSettings(**{f.name: flags.pop(f.name) for f in fields(RecipeSettings) if f.name in flags})
    if 'name' not in flags:
        raise utils.UserError('--name is required: results go to runs/recipe/NAME')
    if given := [name for name in OWNED if name in flags]:
        raise utils.UserError(f'--{given[0]}: leave it out; this program trains all epochs without the dev speakers, on every '
                              'fold, and continues by itself')
    values = cf.read_yaml(flags['config'], 'augment') if flags.get('config') else {}
    values = {**{name: value for name, value in values.items() if name not in OWNED}, **flags}
    values['fold'] = 1  # every job has its own
    config, genotype, _ = augment.configure(cf.Given(values, frozenset(flags)))
    return own, config, genotype, read_variants(own.variants, found.variant, config, genotype)


def check_start(start: dict, config: cf.AugmentConfig, corpus: str, folds: dict):
    """UserError if the network of --init was trained on dev speakers of one of the folds {number: Fold}. corpus: its digest."""
    for number, fold in folds.items():
        heard = augment.heard_before(config, SimpleNamespace(corpus=corpus, fold=fold), start, 'dev')
        if heard:
            raise utils.UserError(f'--init {config.init}: this network was trained on dev speakers of fold {number}, '
                                  f'{" ".join(heard)}, who judge the variants; leave the fold out with --only_folds')
        if heard is None:
            print(f'NOTE: it is not known whether the network of --init was trained on dev speakers of fold {number}',
                  file=sys.stderr)


def variant(config: cf.AugmentConfig, values: dict) -> cf.AugmentConfig:
    """The settings of a variant, with those that its own frames decide. UserError."""
    return frames.complete(replace(config, **values))


def read_variants(path: str | None, texts: list, config: cf.AugmentConfig, genotype=None) -> dict[str, dict]:
    """{name: settings} of the file and of the command line, `base` first. UserError."""
    found, allowed = {BASE: {}}, set(cf.names_of(*GROUPS)) & cf.NAMES['augment'] - {'patience'}
    fixed = memory.decided(genotype) if genotype else {}
    try:
        tree = cf.read_yaml_file(path) if path else {}
        given = [(name, dict(values or {})) for name, values in tree.items()]
    except utils.UserError as error:
        raise utils.UserError(f'--variants {error}') from None
    except (TypeError, ValueError):
        raise utils.UserError(f'--variants {path}: must be a YAML file with lines "name: {{setting: value}}"') from None
    for name, text in texts:
        pairs = (part.partition('=')[::2] for part in text.split(','))
        given.append((name, {key: SWITCH.get(value, value) for key, value in pairs}))
    for name, values in given:
        if not isinstance(name, str) or not re.fullmatch(r'[\w.+-]+', name) or name in found:
            raise utils.UserError(f'--variant {name}: must be a new name of letters, digits, ".", "_", "+" and "-"')
        for key in values:
            if key not in allowed:
                raise utils.UserError(f'--variant {name}: {key} is no setting that a variant may change; it may change '
                                      'those of features, network, retraining and augmentation')
            if key in fixed:
                raise utils.UserError(f'--variant {name}: {key} has no effect with this --genotype, which decides it itself')
        try:
            values = {key: cf.checked(cf.AugmentConfig, key, value) for key, value in values.items()}
            unused = variant(config, values).unused()
        except utils.UserError as error:
            raise utils.UserError(f'--variant {name}: {error}') from None
        if dead := [key for key in values if key in unused]:
            raise utils.UserError(f'--variant {name}: {dead[0]} has no effect with {unused[dead[0]]}')
        if values.get('prosody'):
            values.setdefault('prosody_version', cf.FeatureSettings.prosody_version)
        found[name] = values
    return found


def read(path: Path, variants: dict) -> dict:
    """{(variant, seed, fold): row} of the finished trainings. UserError if a variant was another."""
    rows = trainings.read_rows(path / 'trainings.csv', COLUMNS)
    for row in rows:
        now = variants.get(row['variant'])
        if now is not None and cf.of_earlier(now) != cf.of_earlier(json.loads(row['settings'])):
            raise utils.UserError(f'--variant {row["variant"]}: is {as_text(now)}, but {path} has trainings with '
                                  f'{row["settings"]}: give it another name')
    return {(row['variant'], row['seed'], row['fold']): row for row in rows}


def as_text(settings: dict) -> str:
    """The settings of a variant in the column `settings`."""
    return json.dumps(settings, sort_keys=True)


def tell(own: RecipeSettings, variants: dict, numbers: list[int], rows: dict) -> tuple[list, str]:
    """Trainings that are left, and the report on the others. A seed is finished for all variants before the next begins."""
    jobs = [(name, seed, fold) for seed in range(own.seeds) for fold in numbers for name in variants]
    left = [job for job in jobs if job not in rows]
    head = f'{len(jobs) - len(left)} of {len(jobs)} trainings finished: folds {", ".join(map(str, numbers))}, dev speakers.'
    found = [rows[job] for job in jobs if job in rows]
    lost = trainings.diverged(found, 'variant')
    head += f' {lost}; their seeds do not count for these variants.' if lost else ''
    return left, f'{head}\n\n{report(found, variants, own.seeds, numbers)}'


def train_all(jobs: list, variants: dict, rows: dict, path: Path, config: cf.AugmentConfig, genotype, start: dict | None):
    """Trains what is left, and writes every row as soon as it is known. start: contents of the best.pt of --init."""
    def begin(net):
        if start:
            with cf.contents_of(config.init, 'name a whole best.pt, or its run'):
                start_from(net, start, data.labels, genotype)
    utils.set_threads(config.threads)
    device, data, loaded = utils.choose_device(config.device), None, None
    for i, (name, seed, fold) in enumerate(jobs, 1):
        its = replace(variant(config, variants[name]), seed=config.seed + seed, fold=fold)
        needs = {**cf.pick(its, cf.DataSettings, cf.FeatureSettings), 'noise': its.noise}
        if needs != loaded:
            data, loaded = datasets.load(its, ('train', 'dev'), device), needs
        its = of_same_width(its, start, len(data.labels)) if start else its
        began, cpu = time.monotonic(), time.process_time()
        labels = data.sets['dev'].labels.cpu().numpy()
        try:
            scores, p = train(its, genotype, data, device, 'dev', begin)
            loss = -np.log(np.clip(p[np.arange(len(p)), labels], 1e-12, 1)).mean()
        except Diverged as error:
            print(f'NOTE: {name}, seed {seed}, fold {fold}: {error}', flush=True)
            scores, loss = trainings.DIVERGED, math.nan
        spent = time.monotonic() - began, time.process_time() - cpu
        rows[name, seed, fold] = dict(zip(COLUMNS, (
            name, as_text(variants[name]), seed, fold, ' '.join(data.fold.dev), len(labels), round(float(loss), 6),
            round(scores['ua'], 6), round(scores['wa'], 6), *(round(s / 60, 3) for s in spent)), strict=True))
        utils.write_csv(path, COLUMNS, [row.values() for row in rows.values()])
        print(f'{i}/{len(jobs)}: {name}, seed {seed}, fold {fold}: log-loss {loss:.4f}, UA {scores["ua"]:.3f}, '
              f'{spent[0] / 60:.2f} minutes', flush=True)


if __name__ == '__main__':
    utils.cli(main)
