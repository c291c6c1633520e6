"""Score a trained network on another corpus: UA, WA, macro F1, and the recall of each class.

    python scripts/evaluate.py runs/augment/emodb --dataset ravdess --data_path DIR \\
        --map angry=anger,calm=,surprised=,sad=sadness,fearful=fear,happy=happiness,disgust=disgust,neutral=neutral
"""
import json
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np  # noqa: E402
from sklearn.metrics import confusion_matrix  # noqa: E402
from tqdm import tqdm  # noqa: E402

import config as cf  # noqa: E402
import datasets  # noqa: E402
import utils  # noqa: E402
from config import UserError  # noqa: E402
from datasets import scoring  # noqa: E402
from models.predictor import Predictor, load, read_best, tells_all  # noqa: E402
from scripts.predict import complain  # noqa: E402
from scripts.significance import of_predictions  # noqa: E402

OF_A_RUN = ('config.yaml', 'checkpoint.pt', 'best.pt')
FLAGS = ('dataset', 'data_path', 'labels', 'turns', 'scenarios', 'folds', 'fold', 'cache')


def main(argv: list[str] | None = None):
    parser = cf.Parser(prog='evaluate.py', description=__doc__.splitlines()[0], usage='%(prog)s RUN --dataset D --data_path P '
                       '[--map CORPUS=NETWORK,...]')
    parser.add_argument('run', metavar='RUN', help='folder of augment.py, or its best.pt')
    for f in fields(cf.DataSettings):
        if f.name in FLAGS:
            parser.add_argument(f'--{f.name}', help=f.metadata['help'])
    parser.add_argument('--map', metavar='A=B,...', default='', help='class A of the corpus is class B of the network; A= '
                        'leaves A out')
    parser.add_argument('--encoder', metavar='FOLDER', default=None, help='the encoder that the network was trained with, if '
                        'it is no longer where the training found it')
    parser.add_argument('--device', default='cpu', help='cpu (default), cuda or cuda:1')
    parser.add_argument('--output', metavar='FOLDER', default=None, help='write results.json and predictions.csv there')
    parser.add_argument('--json', action='store_true', default=False, help='print the result as JSON')
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(f'unknown argument {unknown[0]}; --help lists all flags')
    flags = {name: cf.convert(cf.AugmentConfig, name, value) for name, value in vars(args).items()
             if name in FLAGS}
    config = cf.AugmentConfig(name='evaluate', **flags)
    if args.output and any(Path(args.output, name).exists() for name in OF_A_RUN):
        raise UserError(f'--output {args.output}: is the folder of a run, whose results.json would be replaced; name another')
    predictor = load(args.run, utils.choose_device(args.device), encoder=args.encoder, warn=complain)
    utterances, folds, report = datasets.select(config)
    if 'fold' in flags:
        if config.fold > len(folds):
            raise UserError(f'--fold {config.fold}: must be from 1 to {len(folds)}')
        utterances = folds[config.fold - 1].split(utterances, 'test')
    utterances = mapped(utterances, args.map, predictor.labels)
    best = read_best(args.run)
    for line in seen_before(best.get('heard', []), config, utterances):
        complain(line)
    if not tells_all(best):
        complain('NOTE: this network does not tell all corpora and speakers that it was trained on')
    probabilities = score(predictor, utterances)
    result = evaluated(utterances, probabilities, predictor.labels)
    result.update(run=args.run, dataset=config.dataset, map=args.map, protocol=report)
    if args.output:
        folder = Path(args.output)
        folder.mkdir(parents=True, exist_ok=True)
        utils.write_json(folder / 'results.json', result)
        rows = [[*map(cf.csv_cell, (u.path, u.speaker, u.label, predictor.labels[p.argmax()])),
                 *(f'{value:.6f}' for value in p)] for u, p in zip(utterances, probabilities)]
        utils.write_csv(folder / 'predictions.csv', ['path', 'speaker', 'label', 'predicted',
                                                     *(f'p_{label}' for label in predictor.labels)], rows)
    print(json.dumps(result) if args.json else '\n'.join(lines(result)))


def mapped(utterances: list, text: str, labels: list[str]) -> list:
    """The utterances under the classes of the network. text: --map. UserError if a class is left without one."""
    names = {}
    for pair in filter(None, text.split(',')):
        there, equals, here = (part.strip() for part in pair.partition('='))
        if not equals or here and here not in labels:
            raise UserError(f'--map {pair}: must be CORPUS=NETWORK, with a class of the network: {", ".join(labels)}')
        names[there] = here
    counts = Counter(u.label for u in utterances)
    if unknown := sorted(names.keys() - counts.keys()):
        raise UserError(f'--map: the corpus has no class {unknown[0]!r}; it has {", ".join(sorted(counts))}')
    names = {label: names.get(label, label) for label in counts}
    if strange := sorted(label for label, name in names.items() if name and name not in labels):
        example = ','.join(f'{label}=' for label in strange)
        raise UserError(f'the network has no class {", ".join(strange)}; it has {", ".join(labels)}: name one for each with '
                        f'--map, or leave them out: --map {example}')
    kept = [replace(u, label=names[u.label]) for u in utterances if names[u.label]]
    if not kept:
        raise UserError(f'--map {text}: no utterance is left')
    return kept


def seen_before(heard: list, config, utterances: list):
    """Warnings if the network was trained on speakers of this corpus."""
    for entry in heard:
        if entry['dataset'] == config.dataset and (shared := {u.speaker for u in utterances} & set(entry['speakers'])):
            yield (f'WARNING: the network was trained on {config.dataset}, with speakers of these names: '
                   f'{" ".join(sorted(shared))}. If they are the same people, the scores are not speaker-independent.')


def score(predictor: Predictor, utterances: list) -> np.ndarray:
    """(n, n_classes). Each speaker is normalised by their recordings here, if the network was trained so."""
    found = np.zeros((len(utterances), len(predictor.labels)))
    groups = {}  # {speaker: indices}, of all if speakers do not matter
    for i, u in enumerate(utterances):
        groups.setdefault(u.speaker if predictor.needs_speaker else None, []).append(i)
    with tqdm(total=len(utterances), desc='recordings', unit='file', leave=False, disable=None) as bar:
        for chosen in groups.values():
            part = [utterances[i] for i in chosen]
            judge = predictor.of_speaker(part) if predictor.needs_speaker else predictor
            for i, (_, prediction) in zip(chosen, judge.many(part)):
                found[i] = list(prediction.probabilities.values())
                bar.update()
    return found


def evaluated(utterances: list, probabilities: np.ndarray, labels: list[str]) -> dict:
    """Scores with 95% intervals over speakers, chance, recalls and confusion matrix; plain values."""
    y, predicted = np.array([labels.index(u.label) for u in utterances]), probabilities.argmax(axis=1)
    n, (low, high) = of_predictions([u.speaker for u in utterances], y, predicted, len(labels))
    matrix = confusion_matrix(y, predicted, labels=range(len(labels)))
    found = scoring.scores(y, predicted)
    return {**found, 'interval': {name: None if np.isnan(low[i]) else [float(low[i]), float(high[i])]
                                  for i, name in enumerate(found)},
            'chance': {'ua': 1 / len(set(y.tolist())), 'wa': float(matrix.sum(axis=1).max() / len(y))},
            'recall': {label: float(row[k] / row.sum()) for k, (label, row) in enumerate(zip(labels, matrix)) if row.sum()},
            'labels': labels, 'confusion': matrix.tolist(), 'n_test': len(y), 'n_speakers': n}


def lines(result: dict):
    """The result in words."""
    yield f'{result["run"]} on {result["dataset"]}: {result["n_test"]} utterances of {result["n_speakers"]} speakers'
    between = result['interval']['ua']
    between = f', 95% interval over speakers {between[0]:.3f} to {between[1]:.3f}' if between else ''
    yield (f'UA {result["ua"]:.3f} (chance {result["chance"]["ua"]:.3f}{between})   WA {result["wa"]:.3f} (largest class '
           f'{result["chance"]["wa"]:.3f})   macro F1 {result["macro_f1"]:.3f}')
    yield 'recall: ' + ', '.join(f'{label} {value:.3f}' for label, value in result['recall'].items())
    if absent := [label for label in result['labels'] if label not in result['recall']]:
        yield f'classes of the network that the corpus lacks, and whose prediction is an error: {", ".join(absent)}'
    width = max(map(len, result['labels']))
    yield f'confusion, true classes in rows: {" ".join(result["labels"])}'
    for label, row in zip(result['labels'], result['confusion']):
        yield f'{label:>{width}} ' + ' '.join(f'{n:>{max(4, len(name))}}' for n, name in zip(row, result['labels']))


if __name__ == '__main__':
    utils.cli(main)
