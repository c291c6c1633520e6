"""Prints a corpus: what the protocol keeps and leaves out, files, classes, speakers, durations, folds.

    python scripts/corpus.py --dataset emodb --data_path DIR [--folds loso]
    python scripts/corpus.py --dataset iemocap --data_path DIR --labels ang,hap+exc,neu,sad --turns all
"""
import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import datasets  # noqa: E402
import utils  # noqa: E402
from config import Common  # noqa: E402


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--dataset', choices=sorted(datasets.CORPORA), default='synthetic')
    parser.add_argument('--data_path', help='folder of the corpus, or the CSV of a manifest')
    for name in ('labels', 'turns', 'scenarios', 'folds'):  # as the two programs say them
        row = Common.__dataclass_fields__[name]
        parser.add_argument(f'--{name}', default=row.default, help=f'{row.metadata["help"]} (default: {row.default})')
    parser.add_argument('--cache', default='.cache', help='where the synthetic corpus is made (default: %(default)s)')
    args = parser.parse_args(argv)
    utterances, folds, report = datasets.select(args)
    print('\n'.join(datasets.protocol.lines(report)))

    audio = [describe(u) for u in utterances]
    seconds = np.array([s for s, _ in audio])
    print(f'{args.dataset}: {len(utterances)} utterances, {seconds.sum() / 60:.1f} minutes')
    print(f'durations: {seconds.min():.2f} to {seconds.max():.2f} s, mean {seconds.mean():.2f}, '
          f'median {np.median(seconds):.2f}, 90% within {np.quantile(seconds, .9):.2f}')
    print('formats:   ' + ', '.join(f'{name} ({n})' for name, n in Counter(f for _, f in audio).most_common()))

    labels = sorted({u.label for u in utterances})
    print('\nclasses:   ' + ', '.join(f'{label} {n}' for label, n in sorted(Counter(u.label for u in utterances).items())))
    speakers = sorted({(u.speaker, u.gender or '?') for u in utterances})
    counts = Counter((u.speaker, u.label) for u in utterances)
    width = max(7, *(len(s) for s, _ in speakers))
    print(f'\n{"speaker":{width}} gender ' + ' '.join(f'{label[:9]:>9}' for label in labels) + '     all')
    for speaker, gender in speakers:
        row = [counts[speaker, label] for label in labels]
        print(f'{speaker:{width}} {gender:6} ' + ' '.join(f'{n:9}' for n in row) + f' {sum(row):7}')

    print(f'\nfolds ({args.folds}): speakers of test | dev; the others train')
    for i, fold in enumerate(folds, 1):
        sizes = [len(fold.split(utterances, name)) for name in ('train', 'dev', 'test')]
        print(f'{i:3}: {" ".join(fold.test)} | {" ".join(fold.dev)}   '
              f'utterances to train {sizes[0]}, dev {sizes[1]}, test {sizes[2]}')


def describe(utterance):
    """(seconds, 'WAV 16000 Hz 1 channel') from the file's header."""
    try:
        info = soundfile.info(utterance.path)
    except (soundfile.LibsndfileError, OSError) as error:
        raise utils.UserError(f'{utterance.path}: cannot be read as audio ({error})') from None
    end = info.duration if utterance.end is None else min(utterance.end, info.duration)
    return (max(0., end - (utterance.start or 0.)),
            f'{info.format} {info.samplerate} Hz {info.channels} channel{"s" * (info.channels > 1)}')


if __name__ == '__main__':
    utils.cli(main)
