"""The model card of an exported network: what it was trained on, how well it does, and what it must not be used for."""
import csv
import os
import time
from pathlib import Path

import numpy as np
import torch

import config as cf
import utils
from config import SAMPLE_RATE, UserError, from_csv_cell
from models.predictor import Predictor, best_file
from models.training import tested_parameters
from models.waveform import MIN_FRAMES, bands, frames_shape, takes_speaker, whose
from scripts.significance import of_predictions

LICENCES = {  # of the corpora, as their authors state them; a network made from one may be bound by it
    'synthetic': 'made by this project, MIT', 'emodb': 'free for research', 'ravdess': 'CC BY-NC-SA 4.0',
    'nemo': 'CC BY-NC-SA 4.0', 'cremad': 'Open Database License', 'savee': 'free for research, on registration',
    'iemocap': 'by agreement with USC, for research', 'msp_improv': 'by agreement with UT Dallas, for research',
    'msp_podcast': 'by agreement with UT Dallas, for research'}
SECONDS = 3  # of the recording whose latency is measured
RUNS = 7


def card(run: str, best: dict, predictor: Predictor, file: Path) -> str:
    """Markdown. What is in the results.json and predictions.csv of the run is told; without them the card says so."""
    folder = Path(best_file(run)).parent
    results = _read(folder / 'results.json')
    config = predictor.config
    lines = [
        f'# {file.name}', '',
        f'Emotion of speech: {", ".join(predictor.labels)}. Made with emoDARTS from `{_short(run)}`, epoch '
        f'{best.get("epoch")}.',
        '', '## Use', '',
        '| | |', '|---|---|',
        f'| input | {_input(config)} |',
        f'| output | `probabilities`, float32 (1, {len(predictor.labels)}), of the classes in this order: '
        f'{", ".join(predictor.labels)} |']
    if takes_speaker(predictor) and file.suffix == '.onnx':
        lines.append(f'| optional inputs | `speaker_mean`, `speaker_std`, ({len(predictor.mean)}, 1): statistics of the '
                     f'speaker\'s features. Without them: {whose(predictor)} |')
    elif predictor.needs_speaker:
        lines.append(f'| speaker | {whose(predictor)} |')
    lines += [f'| features | {_features(config)}; normalised by {config.normalise} |',
              f'| windows | {config.duration:g} s; a longer recording is scored on several, whose probabilities are averaged |',
              f'| parameters | {tested_parameters(predictor.net):,} |',
              f'| size of the file | {os.path.getsize(file) / 1e6:.2f} MB |',
              f'| latency | {latency(predictor):.0f} ms for {SECONDS} s of audio, features '
              f'{"left out" if config.features == "frames" else "included"}, in PyTorch on this '
              f'machine ({utils.describe_device(torch.device("cpu"))}) |', '', '## Training and test', '']
    lines += _results(results, folder) if results else ['The run has no results.json: it is not known how well it does.']
    lines += ['', '## Intended use', '',
              'Research on speech emotion recognition, with speech like that of the corpus: its language, its recording '
              'conditions and, if it was acted, acted emotions.', '', '## Limits', '',
              '- Probabilities are not calibrated.', '- A recording that holds none of the classes still gets one of them.',
              '- Spontaneous speech, other languages, noise and other microphones were not tested, unless the corpus has them. '
              '`scripts/evaluate.py` measures it.',
              '- Do not decide about people with it: what a voice expresses is not what a person feels. In the European Union '
              'the AI Act forbids emotion recognition at work and in education, but for medical or safety reasons.', '',
              '## Licence', '',
              f'The corpus {results.get("dataset", "")}: '.replace(' :', ':')
              + LICENCES.get(results.get('dataset'), 'not known to emoDARTS; ask who gave it to you')
              + '. The network may be bound by it. The code that made it: MIT.'
              + (' The encoder has a licence of its own.' if config.features == 'encoder' else ''), '']
    return '\n'.join(lines)


def latency(predictor: Predictor) -> float:
    """Median ms for a recording of SECONDS, or its frames."""
    rng, config = np.random.default_rng(0), predictor.config
    wave = rng.standard_normal(SECONDS * SAMPLE_RATE).astype(np.float32) * .1
    frames = rng.standard_normal((config.n_rows, round(SECONDS * config.frame_rate))).astype(np.float16)
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        predictor.probabilities([frames]) if config.features == 'frames' else predictor(wave)
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


def _input(config):
    if config.frames:
        shape = ', '.join(map(str, frames_shape(config)))
        return f'`frames`, float32 (1, {shape}, n_frames), {config.frame_rate:g} in a second, {MIN_FRAMES} or more'
    return f'`waveform`, float32 (1, n_samples), mono, {SAMPLE_RATE} Hz, between -1 and 1, of any length from 65 ms'


def _features(config):
    if config.features == 'encoder':
        return (f'frames of the encoder {cf.escape_markdown(config.encoder)}, revision {config.encoder_revision}, layers '
                f'{config.encoder_layers}')
    return 'frames' if config.frames else bands(config)


def _results(results, folder):
    """Lines on corpus, speakers and scores."""
    labels, matrix = results['labels'], np.array(results['confusion'])
    if results.get('normalise') == 'speaker':
        yield ('NOTE: in the test each speaker was normalised by all of their recordings. These scores do not hold for a voice '
               'of which fewer recordings are known, or none.\n')
    rows = [('corpus', results.get('dataset')), ('folds', f'{results.get("folds")}, fold {results.get("fold")}'),
            *((f'{part} speakers', ' '.join(results.get(f'{part}_speakers', []))) for part in ('train', 'dev', 'test')),
            ('trained on dev speakers too', 'yes' if results.get('train_on_dev') else 'no'),
            ('test utterances', results['n_test']),
            ('UA', f'{results["ua"]:.3f}{_between(folder / "predictions.csv", labels)} (chance {results["chance"]["ua"]:.3f})'),
            ('WA', f'{results["wa"]:.3f} (largest class {results["chance"]["wa"]:.3f})'),
            ('macro F1', f'{results["macro_f1"]:.3f}')]
    yield from ['| | |', '|---|---|', *(f'| {name} | {value} |' for name, value in rows), '']
    yield from ['| class | recall | test utterances |', '|---|---|---|']
    for k, label in enumerate(labels):
        n = matrix[k].sum()
        yield f'| {label} | {f"{matrix[k, k] / n:.3f}" if n else "-"} | {n} |'
    for what, there in (('search', results.get('genotype')), ('init', 'init' in results)):
        heard, name = results.get(f'{what}_heard_test_speakers'), {'init': 'network it began with'}.get(what, what)
        if heard:
            yield f'\nWARNING: the {name} heard test speakers: {" ".join(heard)}. The scores are not speaker-independent.'
        elif heard is None and there:
            yield f'\nWARNING: it is not known whether the {name} heard test speakers.'


def _between(path, labels):
    """The 95% interval of the UA over the test speakers, in words; '' if it cannot be computed."""
    if not path.is_file():
        return ''
    with cf.contents_of(path, 'delete it, and the card has no interval'), open(path, newline='', encoding='utf-8') as f:
        rows = [{name: from_csv_cell(row[name]) for name in ('speaker', 'label', 'predicted')} for row in csv.DictReader(f)]
        y, predicted = (np.array([labels.index(row[name]) for row in rows]) for name in ('label', 'predicted'))
        if not rows:
            raise ValueError('it has no rows')
    n, (low, high) = of_predictions([row['speaker'] for row in rows], y, predicted, len(labels))
    if np.isnan(low[0]):
        return f', of {n} test speaker{"s" * (n > 1)}, too few for an interval'
    return f', 95% interval over the {n} test speakers {low[0]:.3f} to {high[0]:.3f}'


def _short(run):
    return os.path.join(*Path(run).parts[-3:])


def _read(path):
    """The results of a run, {} if it has none. UserError if they are damaged."""
    if not os.path.exists(path):
        return {}
    found = cf.read_json(path)
    if not {'labels', 'confusion', 'ua', 'wa', 'macro_f1', 'n_test', 'chance'} <= found.keys():
        raise UserError(f'{path}: damaged; delete it, or train again')
    return found
