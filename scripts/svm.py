"""Linear SVM baseline on functionals of the features of each utterance, for one fold. C is chosen on dev.

    python scripts/svm.py --name svm --dataset emodb --data_path DIR --fold 1

Writes results.json and predictions.csv to runs/augment/NAME, as augment.py does. Its "probabilities" are the softmax of the
decision values.
"""
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import config as cf  # noqa: E402

if __name__ == '__main__':
    cf.answer_help('svm')  # before the slow imports below

import numpy as np  # noqa: E402
from scipy.special import softmax  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.pipeline import Pipeline, make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.svm import LinearSVC  # noqa: E402

import datasets  # noqa: E402
import utils  # noqa: E402
from augment import report  # noqa: E402
from datasets import dataset, scoring  # noqa: E402
from models import board  # noqa: E402
from models.run import Run  # noqa: E402

PERCENTILES = (10, 50, 90)
PENALTIES = tuple(10. ** e for e in np.arange(-4., 1.1, .5))  # C; the smallest of equals wins
MAX_ITER = 10_000


def main(argv: list[str] | None = None):
    config = cf.build('svm', cf.given('svm', argv))
    utils.set_threads(config.threads)
    run = Run('augment', config)
    data = datasets.load(config, ('train', 'dev', 'test'))
    if config.train_on_dev:
        datasets.check_sessions(*(data.sets[name].utterances for name in ('train', 'dev', 'test')))
    run.open(data)
    for line in datasets.describe(config, data):
        run.logger.info('%s', line)
    began = time.time()
    x = {name: functionals(part) for name, part in data.sets.items()}
    if config.embedding == 'speaker':
        x = by_speaker(x, data.sets)
    y = {name: part.labels.numpy() for name, part in data.sets.items()}
    best_ua, best_C, machine = -1., None, None
    for C in PENALTIES:
        fitted = fit(C, x['train'], y['train'], run.logger)
        ua = scoring.scores(y['dev'], fitted.predict(x['dev']))['ua']
        run.logger.info('C %.2g: dev UA %.3f', C, ua)
        if ua > best_ua:
            best_ua, best_C, machine = ua, C, fitted
    chosen = f'C {best_C:.2g}, chosen on dev'
    if config.train_on_dev:
        machine = fit(best_C, *(np.concatenate([part['train'], part['dev']]) for part in (x, y)), run.logger)
        chosen += ', then trained on dev too'
    values = machine.decision_function(x['test'])  # (n, n_classes), or (n,) for two classes
    values = np.stack([-values, values], axis=1) if values.ndim == 1 else values
    n_params = len(data.labels) * (x['train'].shape[1] + 1)
    board.begin(run, data, n_params)
    report(run, softmax(values, axis=1), config, data, dict(
        model='svm', n_params=n_params, C=best_C, dev_ua=best_ua, genotype=None, search=None, search_heard_test_speakers=[],
        device='cpu', best_epoch=0, seconds=time.time() - began), chosen)
    run.close()


def fit(C: float, x: np.ndarray, y: np.ndarray, logger) -> Pipeline:
    """A trained machine on standardised functionals."""
    machine = make_pipeline(StandardScaler(), LinearSVC(C=C, class_weight='balanced', dual=False, max_iter=MAX_ITER))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)  # the log names its C
        machine.fit(x, y)
    if machine[-1].n_iter_ >= MAX_ITER:
        logger.info('C %.2g: not converged after %d iterations', C, MAX_ITER)
    return machine


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
