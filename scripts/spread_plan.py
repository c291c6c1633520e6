"""What scripts/spread.py trains: its settings, the genotypes drawn from the space, the hand-designed networks, the folds."""
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace

import numpy as np
import torch

import augment
import config as cf
import genotypes as gt
import utils

MOST = 100  # architectures, and seeds: run_seed has two digits for each
MAX_DRAWS = 2_000  # for one genotype within --band
OWNED = ('model', 'genotype', 'params', 'fold', 'patience', 'resume', 'overwrite')  # settings that the program chooses


@dataclass(frozen=True, kw_only=True)
class SpreadSettings:
    """spread"""
    architectures: int = cf.setting(12, 'genotypes to draw', low=2, high=MOST)
    seeds: int = cf.setting(3, 'trainings of each genotype on each fold', low=2, high=MOST)
    only_folds: str = cf.setting('1', 'folds to use, separated by commas, or all')
    band: str | None = cf.setting(None, 'LOW-HIGH: draw genotypes whose network has this many parameters')
    hand_made: str | None = cf.setting(None, 'hand-designed networks to train as well, NAME or NAME:PARAMETERS, such as '
                                       'cnn_gru,cnn_gru:20000; they take no part in the estimates')
    dry_run: bool = cf.setting(False, 'train nothing: print the plan, and the report of the trainings that are finished')

    def __post_init__(self):
        for f in fields(self):
            cf.check(f, getattr(self, f.name))


@dataclass(frozen=True)
class Network:
    name: str  # number of a drawn genotype, or NAME:PARAMETERS of a hand-designed network
    genotype: gt.Genotype | None
    config: cf.AugmentConfig
    parameters: int

    def text(self) -> str:
        """The genotype as text, '' for a hand-designed network."""
        return gt.to_str(self.genotype) if self.genotype else ''

    def run_seed(self, fold: int, seed: int) -> int:
        """The seed of a training. No two genotypes share one, so that seeds are nested within architectures."""
        number = int(self.name) if self.genotype else 0
        return (fold * MOST + number) * MOST + seed


def configure(argv) -> tuple[SpreadSettings, cf.AugmentConfig]:
    """This program's settings, and those of the trainings. UserError."""
    parser = cf.Parser(prog='scripts/spread.py', description='Measure how far random networks of a search space differ.',
                       examples=['python scripts/spread.py --name nemo --config configs/nemo.yaml --data_path DIR'])
    for group in (SpreadSettings, *cf.AugmentConfig.GROUPS):
        parser.add_settings(group, hidden=group is cf.ModelSettings)
    flags = parser.known(argv)
    own = SpreadSettings(**{f.name: flags.pop(f.name) for f in fields(SpreadSettings) if f.name in flags})
    values = {**(cf.read_yaml(flags['config'], 'augment') if flags.get('config') else {}), **flags}
    if 'name' not in values:
        raise utils.UserError('--name is required: results go to runs/spread/NAME')
    if given := [name for name in OWNED if name in values]:
        raise utils.UserError(f'--{given[0]}: leave it out; this program draws genotypes, trains all epochs, and continues by '
                              'itself')
    return own, cf.build('augment', cf.Given({**values, 'genotype': cf.RANDOM}, frozenset(flags)))


def fold_numbers(text: str, n_folds: int) -> list[int]:
    """Fold numbers of --only_folds, in order. UserError."""
    if text == 'all':
        return list(range(1, n_folds + 1))
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(',')]
    if not all(1 <= number <= n_folds for number in numbers):
        raise utils.UserError(f'--only_folds {text}: use numbers from 1 to {n_folds}, separated by commas, or all')
    return sorted(set(numbers))


def draw(own: SpreadSettings, config: cf.AugmentConfig, labels: list[str]) -> list[Network]:
    """Genotypes drawn uniformly from the space, or from those within --band. More of them begin with the same ones."""
    low, high = band(own.band)
    rng, rnn_nodes = np.random.default_rng(config.seed), config.rnn_nodes if config.rnn_layers else 0
    networks, outside = [], []
    while len(networks) < own.architectures:
        try:
            genotype = gt.draw(rng, config.n_nodes, rnn_nodes, config.cnn_ops, config.rnn_ops)
        except ValueError as error:
            raise utils.UserError(str(error)) from None
        n = n_parameters(config, labels, genotype)
        if low <= n <= high:
            networks.append(Network(str(len(networks)), genotype, config, n))
            outside = []
            continue
        outside.append(n)
        if len(outside) == MAX_DRAWS:
            raise utils.UserError(f'--band {own.band}: {MAX_DRAWS} genotypes in a row had {min(outside):,} to '
                                  f'{max(outside):,} parameters; change --band, --init_channels or --rnn_channels')
    return networks


def band(text: str | None) -> tuple[float, float]:
    """Fewest and most parameters of --band. UserError."""
    low, _, high = (text or '0-').partition('-')
    try:
        found = int(low), int(high) if text else float('inf')
    except ValueError:
        found = 1, 0
    if found[0] > found[1]:
        raise utils.UserError(f'--band {text}: must be LOW-HIGH, such as 4000-7000')
    return found


def baselines(own: SpreadSettings, config: cf.AugmentConfig, labels: list[str]) -> list[Network]:
    """The networks of --hand_made. UserError."""
    found = []
    texts = [text.strip() for text in own.hand_made.split(',')] if own.hand_made else []
    for text in dict.fromkeys(texts):
        name, _, size = text.partition(':')
        if name not in cf.BASELINES or size and not size.isdecimal():
            raise utils.UserError(f'--hand_made {text}: must be NAME or NAME:PARAMETERS; names are '
                                  f'{", ".join(cf.BASELINES)}')
        its = replace(config, model=name, genotype=None, params=int(size or 0))
        found.append(Network(text, None, its, n_parameters(its, labels, None)))
    return found


def n_parameters(config, labels, genotype) -> int:
    """Parameters of a network without its auxiliary head; no memory is allocated for them."""
    train = SimpleNamespace(n_frames=config.n_frames, speakers=(), batch_sizes=lambda batch_size: [batch_size])
    with torch.device('meta'):
        net = augment.make_net(config, SimpleNamespace(labels=labels, sets={'train': train}), genotype)
    return utils.count_parameters(p for name, p in net.named_parameters() if not name.startswith('aux_head'))
