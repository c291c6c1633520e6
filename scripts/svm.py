"""Linear SVM baseline on functionals of each utterance, of our features or openSMILE's, for one fold. C is chosen on dev.

    python scripts/svm.py --name svm --dataset emodb --data_path DIR --fold 1

Writes results.json and predictions.csv to runs/augment/NAME, as augment.py does. Its "probabilities" are the softmax of the
decision values.
"""
import os
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import config as cf  # noqa: E402

if __name__ == '__main__':
    cf.answer_help('svm')  # before the slow imports below

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.special import softmax  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.impute import SimpleImputer  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.svm import LinearSVC  # noqa: E402

import datasets  # noqa: E402
import utils  # noqa: E402
from augment import report  # noqa: E402
from datasets import dataset, frames, scoring  # noqa: E402
from datasets.functionals import Smile, cached_functionals  # noqa: E402
from models import board  # noqa: E402
from models.run import Run  # noqa: E402
from models.stopwatch import Stopwatch  # noqa: E402

PERCENTILES = (10, 50, 90)
PENALTIES = tuple(10. ** e for e in np.arange(-4., 1.1, .5))  # C; the smallest of equals wins
WIDE = tuple(10. ** e for e in np.arange(-6., -1.9, .5))  # the same for ComParE, whose many functionals give larger products
MAX_ITER = 10_000


def main(argv: list[str] | None = None):
    config = frames.complete(cf.build('svm', cf.given('svm', argv)))
    own = config.functionals == 'own'
    smile = None if own else Smile(config.functionals)
    utils.set_threads(config.threads)
    run = Run('augment', config)
    data = datasets.load(config, ('train', 'dev', 'test'))
    if config.train_on_dev:
        datasets.check_sessions(*(data.sets[name].utterances for name in ('train', 'dev', 'test')))
    run.open(data)
    for line in datasets.describe(config, data):
        run.logger.info('%s', line)
    x = None if own else of_opensmile(smile, config, data, run.logger)
    watch = Stopwatch(torch.device('cpu'))
    if own:
        x = {name: functionals(part) for name, part in data.sets.items()}
    if (config.embedding if own else config.normalise) == 'speaker':
        x = by_speaker(x, data.sets)
    y = {name: part.labels.numpy() for name, part in data.sets.items()}
    best_ua, best_C, machine = -1., None, None
    train, dev, test = standardised(not own, *(x[name] for name in ('train', 'dev', 'test')))
    for C in WIDE if config.functionals == 'compare' else PENALTIES:
        fitted = fit(C, train, y['train'], run.logger)
        ua = scoring.scores(y['dev'], fitted.predict(dev))['ua']
        run.logger.info('C %.2g: dev UA %.3f', C, ua)
        if ua > best_ua:
            best_ua, best_C, machine = ua, C, fitted
    chosen = f'C {best_C:.2g}, chosen on dev'
    if config.train_on_dev:
        train, test = standardised(not own, np.concatenate([x['train'], x['dev']]), x['test'])
        machine = fit(best_C, train, np.concatenate([y['train'], y['dev']]), run.logger)
        chosen += ', then trained on dev too'
    values = machine.decision_function(test)  # (n, n_classes), or (n,) for two classes
    values = np.stack([-values, values], axis=1) if values.ndim == 1 else values
    n_params = len(data.labels) * (x['train'].shape[1] + 1)
    board.begin(run, data, n_params)
    report(run, softmax(values, axis=1), config, data, dict(
        model=config.model, n_params=n_params, C=best_C, dev_ua=best_ua, genotype=None, search=None,
        search_heard_test_speakers=[], device='cpu', best_epoch=0, **watch.read(),
        **({} if own else {'opensmile': smile.version})), chosen)
    run.close()


def standardised(rotate: bool, *x: np.ndarray) -> list[np.ndarray]:
    """Functionals [(n, D), ...], standardised by the first of them, those of the training utterances.

    rotate: if D > n, project them onto the span of the training utterances, which has n dimensions. The machine is the same,
    since it lies in this span, but LinearSVC finds it some D / n times as fast.
    """
    scaler = StandardScaler().fit(x[0])
    x = [scaler.transform(part) for part in x]
    if not rotate or x[0].shape[1] <= len(x[0]):
        return x
    directions = np.linalg.qr(x[0].T)[0]  # (D, n)
    return [part @ directions for part in x]


def fit(C: float, x: np.ndarray, y: np.ndarray, logger) -> LinearSVC:
    """A trained machine."""
    machine = LinearSVC(C=C, class_weight='balanced', dual=False, max_iter=MAX_ITER)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)  # the log names its C
        machine.fit(x, y)
    if machine.n_iter_ >= MAX_ITER:
        logger.info('C %.2g: not converged after %d iterations', C, MAX_ITER)
    return machine


def of_opensmile(smile: Smile, config, data: datasets.Data, logger) -> dict:
    """{set: functionals (n, D) float64}, standardised by the training utterances, since their sizes are far apart.

    What is not finite becomes the mean of the training utterances.
    """
    began, cache_dir = time.monotonic(), os.path.join(config.cache, 'functionals')
    every = [u for part in data.sets.values() for u in part.utterances]
    rows = cached_functionals(every, smile, config.trim_db, cache_dir, config.workers).astype(np.float64)
    logger.info('%d functionals of %s by opensmile %s, in %.0f s', smile.n, smile.set, smile.version, time.monotonic() - began)
    if (faulty := ~np.isfinite(rows)).any():
        n, first = faulty.any(axis=1), every[faulty.any(axis=1).argmax()].path
        logger.info('NOTE: %d functionals of %d recordings, such as %s, are not finite: the mean of the training recordings '
                    'stands for them', faulty.sum(), n.sum(), first)
        rows[faulty] = np.nan
    ends = np.cumsum([len(part) for part in data.sets.values()])[:-1]
    x = dict(zip(data.sets, np.split(rows, ends)))
    steps = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()).fit(x['train'])
    return {name: steps.transform(part) for name, part in x.items()}


def by_speaker(x: dict, sets: dict) -> dict:
    """{set: functionals (n, D)}, normalised by all recordings of the same speaker, as SpeakerNorm does in a network."""
    columns = {name: list(rows[:, :, None]) for name, rows in x.items()}  # [(D, 1), ...]
    prior = dataset.statistics(columns['train'])
    return {name: np.stack(dataset.by_speaker(sets[name].utterances, rows, prior))[:, :, 0] for name, rows in columns.items()}


def functionals(dataset) -> np.ndarray:
    """(n, 6 F): mean, deviation, percentiles and mean absolute difference of each band over the frames of an utterance."""
    rows = []
    for i in range(len(dataset)):
        frames = dataset.features_of(i)  # (F, T)
        steps = np.abs(np.diff(frames, axis=1)) if frames.shape[1] > 1 else np.zeros_like(frames)
        rows.append(np.concatenate([frames.mean(axis=1), frames.std(axis=1), *np.percentile(frames, PERCENTILES, axis=1),
                                    steps.mean(axis=1)]))
    return np.stack(rows)


if __name__ == '__main__':
    utils.cli(main)
