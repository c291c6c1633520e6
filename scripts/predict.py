"""Emotion of recordings, by a network that augment.py trained.

    python scripts/predict.py runs/augment/demo my.wav recordings/
    sox my.wav -t wav - | python scripts/predict.py runs/augment/demo - --json
"""
import argparse
import csv
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import config as cf  # noqa: E402
import utils  # noqa: E402
from config import UserError  # noqa: E402
from models.predictor import Predictor, load  # noqa: E402

STDIN = '-'
SUFFIXES = ({f'.{name.lower()}' for name in soundfile.available_formats()} | {'.opus', '.aif', '.oga', '.mp3'}) - {'.raw'}
OF_FRAMES = {'.npy'}  # of a network that was trained with --features frames


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('run', metavar='RUN', help='folder of augment.py, or its best.pt')
    parser.add_argument('audio', metavar='FILE_OR_FOLDER', nargs='+', help='recordings of any length, rate and format; folders '
                        'are searched at every depth; - reads one from standard input. A network trained with --features '
                        'frames reads .npy files of them instead')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--json', action='store_true', help='print one JSON object a line')
    form.add_argument('--csv', action='store_true', help='print a CSV table')
    parser.add_argument('--timeline', metavar='OUT.png', help='of one recording: draw the probabilities over time, and write '
                        'them to OUT.csv; .svg and .pdf are possible too')
    parser.add_argument('--speaker_files', metavar='FOLDER', help='recordings of the one speaker who is heard in all of '
                        'FILE_OR_FOLDER; only for a network trained with --normalise speaker, which needs it')
    parser.add_argument('--encoder', metavar='FOLDER', help='the encoder that the network was trained with, if it is no longer '
                        'where the training found it')
    parser.add_argument('--device', default='cpu', help='cpu (default), cuda or cuda:1')
    parser.add_argument('--batch_size', type=int, default=32, help='windows scored at once (default: 32); any number gives '
                        'the same result')
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UserError(f'--batch_size {args.batch_size}: must be 1 or more')
    if args.timeline and Path(args.timeline).suffix not in ('.png', '.svg', '.pdf'):
        raise UserError(f'--timeline {args.timeline}: must end in .png, .svg or .pdf')
    cf.check_target('timeline', args.timeline)
    predictor = load(args.run, utils.choose_device(args.device), args.batch_size, args.encoder, complain)
    suffixes = OF_FRAMES if predictor.config.features == 'frames' else SUFFIXES
    if args.speaker_files:
        predictor = predictor.of_speaker(recordings([args.speaker_files], suffixes), warn=complain)
    predictor.check_speaker()
    with tempfile.TemporaryDirectory() as folder:
        names = {}  # {file: as it is called in the output}
        for path in recordings(args.audio, suffixes):
            names[_copy_of_stdin(folder) if path == STDIN else path] = path
        predictor.warn = lambda line: complain(as_called(line, names))
        if args.timeline and len(names) > 1:
            raise UserError(f'--timeline draws one recording, and there are {len(names)}: name one')
        n_bad = predict(predictor, names, 'json' if args.json else 'csv' if args.csv else 'text')
        if args.timeline and not n_bad:
            draw(predictor, *names, args.timeline, next(iter(names.values())))
    if n_bad:
        raise UserError(f'{n_bad} of {len(names)} recordings could not be used; see the lines above')


def recordings(paths: list[str], suffixes: set[str] = SUFFIXES) -> list[str]:
    """The files among paths, those below folders included, each once; '-' stays. UserError if a folder has none."""
    found = {}
    for path in paths:
        if not os.path.isdir(path):  # a missing file is reported in its turn
            found[path] = None
            continue
        inside = [os.path.join(folder, name) for folder, folders, names in os.walk(path) for name in names
                  if not name.startswith('.') and os.path.splitext(name)[1].lower() in suffixes]
        if not inside:
            what = 'file of frames (.npy)' if suffixes == OF_FRAMES else 'audio file'
            raise UserError(f'{path}: there is no {what} in this folder')
        found.update(dict.fromkeys(sorted(inside)))
    return list(found)


def _copy_of_stdin(folder):
    path = os.path.join(folder, 'stdin')
    with open(path, 'wb') as f:
        shutil.copyfileobj(sys.stdin.buffer, f)
    return path


def as_called(message: str, names: dict) -> str:
    """The message with standard input under its name."""
    for file, name in names.items():
        message = message.replace(file, name) if name == STDIN else message
    return message


def complain(message: str):
    """A line on stderr."""
    tqdm.write(' '.join(message.split()), file=sys.stderr)


def predict(predictor: Predictor, names: dict, form: str) -> int:
    """Prints one row for each recording {file: its name}, and a line on stderr for each that cannot be used; counts those."""
    labels, n_bad = predictor.labels, 0
    width = max(map(len, labels))
    table = csv.writer(sys.stdout, lineterminator='\n')
    if form == 'csv':
        table.writerow(['path', 'label', *(f'p_{label}' for label in labels)])

    with tqdm(total=len(names), desc='recordings', unit='file', leave=False,
              disable=None if len(names) > 1 and not sys.stdout.isatty() else True) as bar:
        def failed(error):
            nonlocal n_bad
            n_bad += 1
            bar.update()
            complain(as_called(str(error), names))
        for file, (label, probabilities) in predictor.many(names, failed):
            bar.update()
            p = list(probabilities.values())
            if form == 'json':
                print(json.dumps({'path': names[file], 'label': label, 'probabilities': probabilities}))
            elif form == 'csv':
                table.writerow([names[file], label, *(f'{value:.6f}' for value in p)])
            else:
                listed = (f'{name} {value:.3f}' for name, value in zip(labels, p))
                print(names[file], f'{label:<{width}}', *listed, sep='  ')
    sys.stdout.flush()
    return n_bad


def draw(predictor: Predictor, file: str, picture: str, title: str):
    """Draws the probabilities of each window of a recording over time, and writes them beside the picture as CSV."""
    from matplotlib.figure import Figure  # slow to import
    begin, end, probabilities = predictor.timeline(file)
    utils.write_csv(Path(picture).with_suffix('.csv'), ['begin', 'end', *(f'p_{label}' for label in predictor.labels)],
                    [[f'{a:.3f}', f'{b:.3f}', *(f'{p:.6f}' for p in row)] for a, b, row in zip(begin, end, probabilities)])
    figure = Figure(figsize=(10, 3.5), layout='constrained')
    axes = figure.add_subplot()
    middle = (begin + end) / 2
    for k, label in enumerate(predictor.labels):
        axes.plot(np.r_[begin[0], middle, end[-1]], np.r_[probabilities[0, k], probabilities[:, k], probabilities[-1, k]],
                  marker='o' if len(middle) < 60 else None, markevery=slice(1, -1), color=f'C{k}', label=label)
    axes.set(xlabel='s', ylabel='probability', ylim=(0, 1), xlim=(begin[0], end[-1]), title=os.path.basename(title))
    axes.axhline(1 / len(predictor.labels), color='.6', linestyle=':', label='chance')
    axes.legend(loc='center left', bbox_to_anchor=(1., .5), frameon=False)
    try:
        figure.savefig(picture, dpi=120)
    except OSError as error:
        raise UserError(f'{picture}: {error.strerror}') from None


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    utils.cli(main)
