"""What a retraining leaves of its test speakers: predictions.csv, results.json, and the last lines of the log."""
import os
import sys
from pathlib import Path

from sklearn.metrics import confusion_matrix

import utils
from datasets import scoring
from models import parallel
from models.visualize import plot_confusion


def report(run, probabilities, config, data, facts, chosen):
    """Writes all of it, from probabilities (n_test, n_classes). facts: of the network and its training. chosen: how,
    in words.
    """
    held_out = data.sets['test']
    labels, predicted = held_out.labels.cpu().numpy(), probabilities.argmax(axis=1)
    found = scoring.scores(labels, predicted)
    root = Path(config.data_path or '').parent if config.dataset == 'manifest' else Path(config.data_path or '')
    timed = any(u.start is not None or u.end is not None for u in held_out.utterances)
    rows = []
    for u, p, k in zip(held_out.utterances, probabilities, predicted):
        path = u.path.removeprefix(os.path.join(root, ''))  # as a manifest names it; else from the corpus' folder on
        rows.append([path, u.speaker, u.label, data.labels[k], *(f'{value:.6f}' for value in p)]
                    + ([u.start, u.end] if timed else []))
    header = ['path', 'speaker', 'label', 'predicted', *(f'p_{label}' for label in data.labels)]
    utils.write_csv(run.file('predictions.csv'), header + (['start', 'end'] if timed else []), rows)
    matrix = confusion_matrix(labels, predicted, labels=range(len(data.labels)))
    chance = {'ua': 1 / len(set(labels.tolist())), 'wa': float(matrix.sum(axis=1).max() / matrix.sum())}
    utils.write_json(run.file('results.json'), {
        'ua': found['ua'], 'wa': found['wa'], 'macro_f1': found['macro_f1'], 'chance': chance,
        'confusion': matrix.tolist(), 'labels': data.labels, 'n_test': len(held_out), **facts,
        'dataset': config.dataset, 'protocol': data.protocol, 'folds': config.folds, 'fold': config.fold,
        'train_speakers': list(data.fold.train), 'dev_speakers': list(data.fold.dev),
        'test_speakers': list(data.fold.test), 'train_on_dev': config.train_on_dev,
        'normalise': config.normalise, 'seed': config.seed, 'command': command()})
    run.writer.add_figure('confusion/test', plot_confusion(labels, predicted, data.labels), facts['best_epoch'])
    for name in ('ua', 'wa', 'macro_f1'):
        run.writer.add_scalar(f'test/{name}', found[name], facts['best_epoch'])
    run.logger.info('network:     %s', config.genotype if facts['genotype'] else facts['model'])
    run.logger.info('test (%d utterances of held-out speakers %s), %s%s:', len(held_out), ' '.join(data.fold.test), chosen,
                    ', each speaker normalised by all they say' if config.normalise == 'speaker' else '')
    run.logger.info('  UA %.3f (chance %.3f)   WA %.3f (largest class %.3f)   macro F1 %.3f', found['ua'], chance['ua'],
                    found['wa'], chance['wa'], found['macro_f1'])
    run.logger.info('results:     %s', run.file('results.json'))
    tensorboard = os.path.join(os.path.dirname(sys.executable), 'tensorboard')  # of the environment that runs this
    tensorboard = os.path.relpath(tensorboard) if os.path.exists(tensorboard) else 'tensorboard'
    run.logger.info('TensorBoard: %s --logdir runs', tensorboard)


def command():
    return ' '.join([parallel.launcher(), os.path.basename(sys.argv[0]), *sys.argv[1:]])
