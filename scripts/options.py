"""The command line of cross_validate.py: its own settings, and those of the programs that it runs."""
import dataclasses
import re
from dataclasses import dataclass, fields

from experiment import MODELS
from jobs import MATCHED, RANDOM_SEARCH, SEARCHED, TRANSFERRED, TRANSFERS

import config as cf
from config import UserError

# Settings that the experiment chooses for each run, and the flag that decides.
OWNED = {'name': '--name', 'config': '--config', 'seed': '--seeds', 'fold': '--only_folds', 'model': '--models',
         'genotype': '--models', 'params': '--models', 'functionals': '--models', 'resume': '--name', 'overwrite': '--name'}
EXAMPLES = ['python scripts/cross_validate.py --name emodb --config configs/emodb.yaml --data_path DIR --dry_run',
            'python scripts/cross_validate.py --name mine --dataset manifest --data_path my.csv --seeds 0-2 '
            '--models searched,random,cnn_gru --search.epochs 30 --augment.epochs 60']


@dataclass(frozen=True, kw_only=True)
class ExperimentSettings:
    """experiment"""
    name: str = cf.setting('', 'name of the experiment; results go to runs/cv/NAME')
    config: str | None = cf.setting(None, 'YAML file with settings of the programs; a flag overrides it')
    models: str = cf.setting('searched,random', 'models to compare, separated by commas: searched, random (a genotype drawn at '
                             f'random), {RANDOM_SEARCH} (the best of as many random genotypes as can be retrained '
                             f'in the minutes of the search, in the same way), {" and ".join(TRANSFERS)} (the '
                             'genotypes that the flags of these names give), searched_cnn and searched_seqnn (one part '
                             'searched, the other fixed), '
                             'searched_ordered (pooling only after convolution), svm, svm_egemaps and svm_compare '
                             '(an SVM on our functionals, or on those of openSMILE, which is free for research and '
                             'education only), '
                             f'{", ".join(cf.BASELINES)}; a baseline with {MATCHED} appended gets as many '
                             'parameters as the searched network of the same fold and seed, or as the transferred one')
    transferred: str | None = cf.setting(None, 'genotype.json of a search on another corpus; {seed} in it is the seed')
    random_transferred: str | None = cf.setting(None, 'the same, of a random search to compare it with')
    genotypes_of: str | None = cf.setting(None, 'folder of an earlier experiment on the same corpus and folds, such as '
                                          'runs/cv/NAME: nothing is searched, and the genotypes of its searches are '
                                          'retrained. Those of `random` are drawn as ever')
    seeds: str = cf.setting('0', 'seeds, such as 0,2 or 0-4')
    only_folds: str | None = cf.setting(None, 'run these folds only, such as 1,3 or 1-3')
    clean_folds: str | None = cf.setting(None, 'folds whose test speakers influenced no choice of the recipe; tables report '
                                         'them separately too')
    jobs: int = cf.setting(1, 'runs side by side on this machine; each uses one GPU if there are any', low=1, high=1024)
    shard: str = cf.setting('1/1', 'i/n: run part i of n, for job arrays')
    dask: str | None = cf.setting(None, 'address of a dask scheduler whose workers make the runs')
    dry_run: bool = cf.setting(False, 'list all jobs with their state, expected minutes and command line; run nothing')


def parse(argv: list[str]) -> tuple[ExperimentSettings, dict[str, dict]]:
    """The experiment's own settings, and those of each program: --SETTING for all, --search.SETTING for one. UserError."""
    parser = cf.Parser(
        prog='cross_validate.py', examples=EXAMPLES,
        description='Search, retrain and test on every fold with every seed, then make tables and figures.',
        usage='%(prog)s --name NAME [--config FILE] [--SETTING VALUE ...] [--search.SETTING VALUE ...] '
              '[--augment.SETTING VALUE ...]')
    parser.add_settings(ExperimentSettings)
    every = [group for cls in cf.SECTIONS.values() for group in cls.GROUPS]
    for group in dict.fromkeys(every):
        if every.count(group) > 1:
            parser.add_settings(without_owned(group))
    for section, cls in cf.SECTIONS.items():
        for group in cls.GROUPS:
            parser.add_settings(without_owned(group), f'{section}.', hidden=cf.names_of(group))
    for word in argv:
        explain(word.partition('=')[0], parser.flags)
    found = parser.known(argv)
    own = ExperimentSettings(**{f.name: found[f.name] for f in fields(ExperimentSettings) if f.name in found})
    for f in fields(own):
        cf.check(f, getattr(own, f.name))
    if not re.fullmatch(r'[\w-][\w.-]*', own.name):
        raise UserError(f'--name {own.name or "is required"}: use letters, digits, ".", "_" and "-"')
    return own, {section: settings_of(section, own.config, found) for section in cf.SECTIONS}


def without_owned(group):
    """A group of settings without those that the experiment chooses."""
    kept = [(f.name, f.type, dataclasses.field(default=f.default, metadata=f.metadata)) for f in fields(group)
            if f.name not in OWNED]
    return dataclasses.make_dataclass(group.__name__, kept, namespace={'__doc__': group.__doc__}, kw_only=True)


def explain(flag: str, flags: dict):
    """UserError for a flag of the programs that cannot be given to all of them."""
    name = flag.removeprefix('--').removeprefix('no-')
    homes = [section for section, cls in cf.SECTIONS.items() if name in {f.name for f in fields(cls)}]
    if not flag.startswith('--') or f'--{name}' in flags or not homes:
        return
    if name in OWNED:
        raise UserError(f'{flag} is chosen for each run by cross_validate.py; see {OWNED[name]}')
    why = 'differs between programs' if len(homes) > 1 else f'is a setting of {homes[0]}.py alone'
    raise UserError(f'{flag} {why}: say ' + ' or '.join(f'--{home}.{name}' for home in homes))


def settings_of(section: str, config: str | None, found: dict) -> dict:
    """The settings of one program: flags for it, flags for all, its YAML. UserError."""
    values = cf.read_yaml(config, section) if config else {}
    if chosen := sorted(values.keys() & OWNED.keys()):
        raise UserError(f'--config {config}: {chosen[0]} is chosen for each run by cross_validate.py: leave it out')
    names = [f.name for f in fields(cf.SECTIONS[section])]
    values |= {name: found[name] for name in names if name in found and name not in OWNED}
    values |= {name: found[f'{section}.{name}'] for name in names if f'{section}.{name}' in found}
    if section == 'augment':  # the searched network takes its size from the search, so all networks do
        search = settings_of('search', config, found)
        sizes = [f.name for group in (cf.NetworkSettings, cf.SpaceSettings) for f in fields(group) if f.name != 'dropout']
        values = {**{name: search[name] for name in sizes if name in search}, **values}
    if values.get('prosody'):  # on record, so that no later version continues with another one
        values.setdefault('prosody_version', cf.FeatureSettings.prosody_version)
    return values


def parse_models(text: str, searches: bool = True) -> list[str]:
    """'searched,cnn' -> ['searched', 'cnn']. UserError for an unknown model, or one that lacks what it needs.

    searches: False if genotypes come from an earlier experiment.
    """
    models = [name.strip() for name in text.split(',') if name.strip()]
    for name in models or ['']:
        if name not in MODELS:
            raise UserError(f'--models {name}: choose from {", ".join(MODELS)}')
        if models.count(name) > 1:
            raise UserError(f'--models {name}: named twice')
        givers = [SEARCHED, TRANSFERRED] if name.endswith(MATCHED) else [SEARCHED] * (name == RANDOM_SEARCH and searches)
        if givers and not set(givers) & set(models):
            what = 'minutes' if name == RANDOM_SEARCH else 'size'
            raise UserError(f'--models {name}: takes its {what} from the {givers[0]} network, so name {" or ".join(givers)} '
                            'too (finished runs are not repeated)')
    return models


def parse_shard(text: str) -> tuple[int, int]:
    """'2/4' -> (2, 4). UserError."""
    match = re.fullmatch(r'(\d{1,6})/(\d{1,6})', text, re.ASCII)
    i, n = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= i <= n:
        raise UserError(f'--shard {cf.plain(text)}: must be i/n with i from 1 to n, such as 2/4')
    return i, n
