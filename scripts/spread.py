"""What a search can win: how far random networks of a space differ, compared with seeds and folds.

    python scripts/spread.py --name nemo --config configs/nemo.yaml --data_path DIR --architectures 12 --seeds 3

The program draws genotypes from the search space and trains each with several seeds on each fold, as augment.py does.
It tests a network once, after its last epoch, on the fold's test speakers. Then it splits the variance of UA into
architecture, seed, fold and interaction (scripts/spread_statistics.py). Every training is one row of
runs/spread/NAME/trainings.csv, and the same command continues after an interruption. --seed chooses the genotypes;
every training has a seed of its own, which is in the column run_seed.
"""
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import datasets  # noqa: E402
import utils  # noqa: E402
from datasets.scoring import Diverged  # noqa: E402
from models.training import train  # noqa: E402
from scripts import spread_report, trainings  # noqa: E402
from scripts.spread_plan import COLUMNS, Network, baselines, configure, draw, fold_numbers, latency_ms  # noqa: E402
from scripts.trainings import check_settings, locked  # noqa: E402


def main(argv=None):
    own, config = configure(argv)
    utterances, folds, _ = datasets.select(config)
    numbers = fold_numbers(own.only_folds, len(folds))
    labels = sorted({u.label for u in utterances})
    networks = draw(own, config, labels)
    hand_made = baselines(own, config, labels)
    path = Path('runs', 'spread', config.name)
    # A dry run writes nothing.
    with nullcontext() if own.dry_run else locked(path):
        settings = {name: value for name, value in asdict(config).items() if name not in utils.MAY_CHANGE | {'fold'}}
        check_settings(path, {**settings, 'digest': datasets.digest(utterances)}, not own.dry_run)
        rows = read_rows(path / 'trainings.csv', networks)
        jobs = [(network, fold, seed) for fold in numbers for network in [*networks, *hand_made] for seed in range(own.seeds)]
        left = [job for job in jobs if key(*job) not in rows]
        sizes = [network.parameters for network in networks]
        print(f'{len(networks)} genotypes of {min(sizes):,} to {max(sizes):,} parameters, {len(hand_made)} hand-designed '
              f'networks; {len(jobs) - len(left)} of {len(jobs)} trainings finished', flush=True)
        if not own.dry_run:
            try:
                train_all(left, rows, path / 'trainings.csv', config)
            except KeyboardInterrupt:
                print('spread.py: interrupted; the same command continues', file=sys.stderr, flush=True)
                sys.exit(130)
        found = [rows[key(*job)] for job in jobs if key(*job) in rows]
        text = spread_report.report(found, own.architectures, own.seeds, numbers)
        print(text)
        if not own.dry_run:
            utils.write_aside(path / 'report.md', lambda f: f.write(text.encode()))
            spread_report.write(path / 'spread.png', found)
            print(f'report: {path / "report.md"}')


def train_all(jobs, rows: dict, path: Path, config, judged: str = 'test'):
    """Trains what is left, fold after fold, and writes every row as soon as it is known. judged: the set to score."""
    utils.set_threads(config.threads)
    device, data, loaded = utils.choose_device(config.device), None, None
    latency = {row['architecture']: row['latency_ms'] for row in rows.values() if row['latency_ms']}
    for i, (network, fold, seed) in enumerate(jobs, 1):
        if fold != loaded:
            data = datasets.load(replace(config, fold=fold), ('train', judged), device, train_on_dev=config.train_on_dev)
            loaded = fold
            print(f'fold {fold}: {len(data.sets["train"])} utterances to train, {len(data.sets[judged])} to {judged}, of '
                  f'{" ".join(getattr(data.fold, judged))}', flush=True)
        if network.name not in latency:
            latency[network.name] = round(latency_ms(network.config, data.labels, network.genotype), 3)
        began, run_seed = time.monotonic(), network.run_seed(fold, seed)
        try:
            scores, _ = train(replace(network.config, fold=fold, seed=run_seed), network.genotype, data, device, judged)
        except Diverged as error:
            print(f'NOTE: architecture {network.name}, seed {seed}, fold {fold}: {error}', flush=True)
            scores = trainings.DIVERGED
        rows[key(network, fold, seed)] = dict(zip(COLUMNS, (
            network.name, network.text(), network.parameters, seed, fold, run_seed, round(scores['ua'], 6),
            round(scores['loss'], 6), round((time.monotonic() - began) / 60, 3), latency[network.name]), strict=True))
        utils.write_csv(path, COLUMNS, [row.values() for row in rows.values()])
        print(f'{i}/{len(jobs)}: architecture {network.name}, seed {seed}, fold {fold}: UA {scores["ua"]:.3f}, '
              f'loss {scores["loss"]:.3f}, {(time.monotonic() - began) / 60:.2f} minutes', flush=True)


def key(network: Network, fold: int, seed: int) -> tuple:
    """What identifies a training."""
    return network.name, fold, seed


def read_rows(path: Path, networks: list[Network]) -> dict:
    """{key: row} of the finished trainings. UserError if one is of another genotype."""
    rows = trainings.read_rows(path, COLUMNS)
    texts = {network.name: network.text() for network in networks}
    for row in rows:
        if texts.get(row['architecture'], row['genotype']) != row['genotype']:
            raise utils.UserError(f'{path}: architecture {row["architecture"]} is another genotype than this version '
                                  'draws: take another --name')
    return {(row['architecture'], row['fold'], row['seed']): row for row in rows}


if __name__ == '__main__':
    utils.cli(main)
