"""What scripts/spread.py trains: its settings, the genotypes drawn from the space, the hand-designed networks, the folds."""
import re
import time
from dataclasses import dataclass, fields, replace
from itertools import islice
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch

import config as cf
import genotypes as gt
import utils
from datasets import frames
from datasets.dataset import Inputs
from models.candidates import drawn
from models.sources import window_shape
from models.training import make_net, n_parameters

UTTERANCE, WARM_UPS, PASSES = 3., 5, 30  # s; passes that are not timed, and those that are
MOST = 100  # architectures, and seeds: run_seed has two digits for each
COLUMNS = dict(architecture=str, genotype=str, parameters=int, seed=int, fold=int, run_seed=int, ua=float, loss=float,
               minutes=float, latency_ms=lambda text: float(text) if text else None)  # earlier versions did not measure it
OWNED = ('model', 'genotype', 'params', 'init', 'fold', 'patience', 'resume', 'overwrite')  # settings that the program chooses


@dataclass(frozen=True, kw_only=True)
class SpreadSettings:
    """spread"""
    architectures: int = cf.setting(12, 'genotypes to draw', low=2, high=MOST)
    seeds: int = cf.setting(3, 'trainings of each genotype on each fold', low=2, high=MOST)
    only_folds: str = cf.setting('1', 'folds to use, such as 1,3 or 1-3, or all')
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
        parser.add_settings(group, hidden=OWNED)
    flags = parser.known(argv)
    own = SpreadSettings(**{f.name: flags.pop(f.name) for f in fields(SpreadSettings) if f.name in flags})
    values = {**(cf.read_yaml(flags['config'], 'augment') if flags.get('config') else {}), **flags}
    if 'name' not in values:
        raise utils.UserError('--name is required: results go to runs/spread/NAME')
    if given := [name for name in OWNED if name in values]:
        raise utils.UserError(f'--{given[0]}: leave it out; this program draws genotypes, trains all epochs, and continues by '
                              'itself')
    return own, frames.complete(cf.build('augment', cf.Given({**values, 'genotype': cf.RANDOM}, frozenset(flags))))


def fold_numbers(text: str, n_folds: int) -> list[int]:
    """Fold numbers of --only_folds, in order. UserError."""
    return cf.parse_numbers('only_folds', f'1-{n_folds}' if text == 'all' else text, 1, n_folds)


def draw(own: SpreadSettings, config: cf.AugmentConfig, labels: list[str]) -> list[Network]:
    """Genotypes drawn uniformly from the space, or from those within --band. More of them begin with the same ones."""
    found = islice(drawn(config, np.random.default_rng(config.seed), labels), own.architectures)
    return [Network(str(i), genotype, config, n or n_parameters(config, labels, genotype))
            for i, (genotype, n) in enumerate(found)]


def latency_ms(config: cf.AugmentConfig, labels: list[str], genotype) -> float:
    """Median time in ms of a forward pass on one CPU thread, over one utterance of UTTERANCE seconds."""
    data = SimpleNamespace(n_frames=config.n_frames, recordings=torch.zeros(0), world_size=1, device=torch.device('cpu'),
                           batch_sizes=lambda batch_size: [batch_size])
    net = make_net(config, SimpleNamespace(labels=labels, sets={'train': data}), genotype).eval()
    n_frames, sizes = round(UTTERANCE * config.frame_rate), config.inputs
    X = Inputs(torch.zeros(1, *window_shape(config, n_frames)),
               prosody=torch.zeros(1, sizes['n_prosody'], n_frames) if sizes['n_prosody'] else None)
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    with torch.no_grad():
        for _ in range(WARM_UPS + PASSES):
            began = time.perf_counter()
            net(*X)
            times.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return 1000 * median(times[WARM_UPS:])


def baselines(own: SpreadSettings, config: cf.AugmentConfig, labels: list[str]) -> list[Network]:
    """The networks of --hand_made. UserError."""
    found = []
    texts = [text.strip() for text in own.hand_made.split(',')] if own.hand_made else []
    for text in dict.fromkeys(texts):
        name, _, size = text.partition(':')
        if name not in cf.BASELINES or not re.fullmatch(r'[0-9]{0,9}', size):
            raise utils.UserError(f'--hand_made {text}: must be NAME or NAME:PARAMETERS; names are '
                                  f'{", ".join(cf.BASELINES)}')
        its = replace(config, model=name, genotype=None, params=int(size or 0))
        found.append(Network(text, None, its, n_parameters(its, labels, None)))
    return found
