"""One recording is one recording: the same audio must not count as two people, two classes or two sets."""
import math
import os
from collections.abc import Hashable, Iterable, Iterator

from datasets.faults import Faults
from datasets.utterance import Utterance

SAME = .5  # two segments are the same speech if they share more than this part of the shorter one


def check(utterances: Iterable[Utterance], files: Iterable[Hashable]) -> list[str]:
    """Notes on audio that is there twice. UserError of all pairs with two speakers, classes or sets.

    files: what identifies the file of each utterance, such as a digest of its bytes. Two segments of
    a file that touch, as when people interrupt each other, are only noted.
    """
    of_file = {}
    for u, file in zip(utterances, files, strict=True):
        of_file.setdefault(file, []).append(u)
    faults, twice, touching = Faults(), [], []
    for group in of_file.values():
        for one, other, share in _overlapping(group) if len(group) > 1 else ():
            if _who(one) == _who(other):
                twice += [(one, other)] * (_span(one) == _span(other))
            elif share > SAME:
                faults.messages.append(f'{describe(one)} and {describe(other)} are the same recording; keep one of them')
            else:
                touching.append((one, other))
    faults.check()
    notes = []
    if twice:
        notes.append(f'{len(twice)} recordings are there twice, with the same speaker and label, such as '
                     f'{twice[0][0].path} and {twice[0][1].path}')
    if touching:
        notes.append(f'{len(touching)} pairs of segments with two speakers, labels or sets overlap by less than half, '
                     f'such as {describe(touching[0][0])} and {describe(touching[0][1])}')
    return notes


def inode(path: str) -> tuple:
    """What identifies a file without reading it, whatever links lead there; the path itself if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return (path,)
    return status.st_dev, status.st_ino


def describe(u: Utterance) -> str:
    """Path, segment, speaker and label."""
    start, end = _span(u)
    span = '' if (start, end) == (0., math.inf) else f' from {start:g} s' + ('' if end == math.inf else f' to {end:g} s')
    return f'{u.path}{span} ({", ".join(filter(None, (u.speaker, u.label, u.split)))})'


def _who(u):
    return u.speaker, u.label, u.split


def _span(u):
    return u.start or 0., math.inf if u.end is None else u.end


def _overlapping(group: list[Utterance]) -> Iterator[tuple[Utterance, Utterance, float]]:
    """(earlier, later, shared part of the shorter one) of overlapping segments of one file.

    Once another of the same speaker, label and set begins, one that ends no later is left out: it would share no more.
    """
    before = []
    for u in sorted(group, key=_span):
        start, end = _span(u)
        before = [v for v in before if _span(v)[1] > start]
        for v in before:
            overlap, shorter = min(end, _span(v)[1]) - start, min(end - start, _span(v)[1] - _span(v)[0])
            yield v, u, 1. if overlap == math.inf else overlap / shorter
        before = [v for v in before if _who(v) != _who(u) or _span(v)[1] > end] + [u]
