"""Describe a corpus, and check all its files: what the protocol keeps, speakers, folds, faults.

    python scripts/corpus.py --dataset emodb --data_path DIR --folds loso
    python scripts/corpus.py --dataset iemocap --data_path DIR --labels ang,hap+exc,neu,sad --turns all
"""
import argparse
import os
import sys
from collections import Counter
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import datasets  # noqa: E402
import utils  # noqa: E402
from config import DataSettings  # noqa: E402
from datasets import duplicates, protocol  # noqa: E402
from datasets.faults import CorpusError, Faults  # noqa: E402
from datasets.features import file_digest, read_audio  # noqa: E402
from datasets.utterance import Utterance  # noqa: E402

FLAGS = ('dataset', 'data_path', 'labels', 'turns', 'scenarios', 'folds', 'cache')


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    try:
        utterances, folds, report = datasets.select(args)
    except CorpusError as error:  # what is in order may still hold audio that is not
        _, faults = listen([u for u in error.found if not u.left_out])
        Faults([*error.messages, *faults.messages]).check()
    print('\n'.join(protocol.lines(report)))
    audio, faults = listen(utterances)
    for line in notes_on(audio, faults):
        print(f'NOTE: {line}')
    if audio:
        print_audio(args.dataset, utterances, audio)
    print_speakers(utterances)
    print(f'\nfolds ({args.folds}): test speakers | dev speakers; the others train')
    for i, fold in enumerate(folds, 1):
        sizes = {name: len(fold.split(utterances, name)) for name in ('train', 'dev', 'test', 'left_out')}
        partners = f', left out {sizes["left_out"]} of {" ".join(fold.left_out)}' if fold.left_out else ''
        print(f'{i:3}: {" ".join(fold.test)} | {" ".join(fold.dev)}   utterances: train {sizes["train"]}, '
              f'dev {sizes["dev"]}, test {sizes["test"]}{partners}')
        if missing := {u.label for u in utterances} - {u.label for u in fold.split(utterances, 'train')}:
            print(f'NOTE: fold {i}: no training speaker has {" ".join(sorted(missing))}, so search.py refuses this fold')
    faults.check()


def parse(argv: list[str] | None) -> argparse.Namespace:
    first, _, *examples = __doc__.splitlines()
    parser = argparse.ArgumentParser(description=first, epilog='\n'.join(['examples:', *examples]),
                                     formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    for f in fields(DataSettings):  # as the programs take them
        if f.name in FLAGS:
            default = f' (default: {f.default})' if f.default else ''
            parser.add_argument(f'--{f.name}', default=f.default, choices=f.metadata['choices'],
                                help=f.metadata['help'] + default)
    return parser.parse_args(argv)


class Heard(NamedTuple):
    """What is known of a recording that can be used."""
    utterance: Utterance
    seconds: float
    format: str
    notes: tuple[str, ...]


def listen(utterances: list[Utterance]) -> tuple[list[Heard], Faults]:
    """The recordings that can be used, and Faults of the others. Reads every sample. Audio may lack where there are frames."""
    audio, faults = [], Faults()
    for u in tqdm(utterances, 'reading', disable=None, leave=False):
        if u.frames and not os.path.exists(u.path):  # frames take the place of audio
            continue
        with faults.collect():
            found = read_audio(u)
            audio.append(Heard(u, len(found.wave) / found.rate, found.format, found.notes))
    return audio, faults


def notes_on(audio: list[Heard], faults: Faults) -> list[str]:
    """Odd recordings, and those that are there twice; those with two speakers or labels go to `faults`."""
    notes = [f'{heard.utterance.path} {note}' for heard in audio for note in heard.notes]
    digest = cache(lambda path: file_digest(path).hexdigest())
    utterances = [heard.utterance for heard in audio]
    try:
        notes += duplicates.check(utterances, [digest(u.path) for u in utterances])
    except CorpusError as error:
        faults.messages += error.messages
    return notes


def print_audio(dataset: str, utterances: list[Utterance], audio: list[Heard]) -> None:
    seconds = np.array([heard.seconds for heard in audio])
    print(f'{dataset}: {len(utterances)} utterances, {seconds.sum() / 60:.1f} minutes')
    print(f'durations: {seconds.min():.2f} to {seconds.max():.2f} s, mean {seconds.mean():.2f}, '
          f'median {np.median(seconds):.2f}, 90% are up to {np.quantile(seconds, .9):.2f}')
    formats = Counter(heard.format for heard in audio).most_common()
    print('formats:   ' + ', '.join(f'{name} ({n})' for name, n in formats))


def print_speakers(utterances: list[Utterance]) -> None:
    """Utterances of each class, and a table of speakers and classes."""
    of_class = Counter(u.label for u in utterances)
    labels = sorted(of_class)
    print('\nclasses:   ' + ', '.join(f'{label} {of_class[label]}' for label in labels))
    genders = {u.speaker: u.gender for u in utterances if u.gender}  # a manifest may tell it in some rows only
    speakers = sorted({(u.speaker, genders.get(u.speaker, '?')) for u in utterances})
    counts = Counter((u.speaker, u.label) for u in utterances)
    width = max(7, *(len(s) for s, _ in speakers))
    print(f'\n{"speaker":{width}} gender ' + ' '.join(f'{label[:9]:>9}' for label in labels) + '     all')
    for speaker, gender in speakers:
        row = [counts[speaker, label] for label in labels]
        print(f'{speaker:{width}} {gender:6} ' + ' '.join(f'{n:9}' for n in row) + f' {sum(row):7}')


if __name__ == '__main__':
    utils.cli(main)
