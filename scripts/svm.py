"""The floor: a linear support vector machine on functionals of the log-mel spectrogram, one fold; C is chosen on dev.

    python scripts/svm.py --name svm --dataset emodb --data_path DIR --fold 1

Takes settings of augment.py, those of corpus, fold and features and train_on_dev, and writes results.json and
predictions.csv to runs/augment/NAME as augment.py does. What stands there as probabilities is the softmax of decision values.
"""
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import config as cf  # noqa: E402
import datasets  # noqa: E402
import utils  # noqa: E402
from datasets import scoring  # noqa: E402
from models.report import report  # noqa: E402

PERCENTILES = (10, 50, 90)
PENALTIES = tuple(10. ** e for e in np.arange(-4., 1.1, .5))  # C, the smallest of equals is taken
MAX_ITER = 10_000


def main(argv=None):
    config = cf.build('svm', cf.given('svm', argv))
    utils.set_threads(config.threads)
    run = utils.Run('augment', config)
    data = datasets.load(config, ('train', 'dev', 'test'))
    if config.train_on_dev:
        datasets.check_sessions(*(data.sets[name].utterances for name in ('train', 'dev', 'test')))
    run.open(data)
    for line in datasets.describe(config, data):
        run.logger.info('%s', line)
    began = time.time()
    x = {name: functionals(part) for name, part in data.sets.items()}
    y = {name: part.labels.numpy() for name, part in data.sets.items()}
    best = {'ua': -1.}
    for C in PENALTIES:
        machine = fitted(C, x['train'], y['train'], run.logger)
        ua = scoring.scores(y['dev'], machine.predict(x['dev']))['ua']
        run.logger.info('C %.2g: dev UA %.3f', C, ua)
        if ua > best['ua']:
            best = {'ua': ua, 'machine': machine, 'C': C}
    if config.train_on_dev:
        best['machine'] = fitted(best['C'], *(np.concatenate([part['train'], part['dev']]) for part in (x, y)), run.logger)
    values = best['machine'].decision_function(x['test'])  # (n, n_classes), or (n,) of two classes
    values = np.stack([-values, values], axis=1) if values.ndim == 1 else values
    report(run, softmax(values, axis=1), config, data, dict(
        model='svm', n_params=len(data.labels) * (x['train'].shape[1] + 1), C=best['C'], dev_ua=best['ua'],
        genotype=None, search=None, search_heard_test_speakers=[], device='cpu', best_epoch=0, seconds=time.time() - began),
        f'C {best["C"]:.2g}, chosen on dev' + ', which is trained on too' * config.train_on_dev)
    run.close()


def fitted(C, x, y, logger):
    machine = make_pipeline(StandardScaler(), LinearSVC(C=C, class_weight='balanced', dual=False, max_iter=MAX_ITER))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)  # said in the log, with its C
        machine.fit(x, y)
    if machine[-1].n_iter_ >= MAX_ITER:
        logger.info('C %.2g: not converged after %d iterations', C, MAX_ITER)
    return machine


def functionals(dataset):
    """(n, 6 F): of every band over an utterance's frames its mean, deviation, percentiles and mean absolute difference."""
    rows = []
    for offset, length in zip(dataset.offsets.tolist(), dataset.lengths.tolist()):
        frames = dataset.frames[:, offset:offset + length].float().numpy()  # (F, T)
        steps = np.abs(np.diff(frames, axis=1)) if length > 1 else np.zeros_like(frames)
        rows.append(np.concatenate([frames.mean(axis=1), frames.std(axis=1), *np.percentile(frames, PERCENTILES, axis=1),
                                    steps.mean(axis=1)]))
    return np.stack(rows)


if __name__ == '__main__':
    utils.cli(main)
