"""Which utterances an experiment uses, by --labels, --turns, --scenarios and --folds official.

Everything that is left out is counted.

A reader may define PARTS = (flag, kinds), if the flag must be given, and EXAMPLE, if --labels must.
Without them the flag does not apply, and all classes are used unless --labels says otherwise.
"""
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from config import UserError
from datasets.utterance import Utterance

ALL = 'all'
OFFICIAL, TEST_SET = 'official', 'Test1'  # --folds official means official:Test1


class Selection:
    """The utterances that are still kept, and {reason: utterances} of those left out."""

    def __init__(self, dataset: str, utterances: list[Utterance]):
        self.dataset, self.kept, self.left_out = dataset, utterances, {}

    def drop(self, reason_of: Callable[[Utterance], str | None]) -> None:
        """Leaves out each utterance that reason_of gives a reason for. UserError if none remains."""
        kept = []
        for u in self.kept:
            reason = reason_of(u)
            (self.left_out.setdefault(reason, []) if reason else kept).append(u)
        self.kept = kept
        if not kept:
            raise UserError(f'{self.dataset}: nothing is left: {_as_text(*self.rows())}')

    def rows(self) -> list[dict]:
        """[{'reason', 'n', 'first' file}, ...]"""
        return [row(reason, utterances) for reason, utterances in sorted(self.left_out.items())]


def apply(dataset: str, corpus: ModuleType, utterances: list[Utterance], folds: str,
          labels: str | None, flags: dict[str, str | None]) -> tuple[list[Utterance], dict]:
    """(utterances that take part, with the classes of `labels`; report: plain values, see `lines`).

    corpus: its reader. folds: as in make_folds. flags: {'turns': ..., 'scenarios': ...}, None if
    not given.
    """
    selection = Selection(dataset, utterances)
    selection.drop(lambda u: u.left_out)
    if parts := _parts(dataset, getattr(corpus, 'PARTS', None), flags, selection.kept):
        flag, chosen = parts
        selection.drop(lambda u: None if u.part in chosen else f'--{flag}: {u.part}')
    counts = Counter(u.label for u in selection.kept)
    class_of = _classes(dataset, labels, getattr(corpus, 'EXAMPLE', None), counts)
    selection.drop(lambda u: None if u.label in class_of else f'--labels: {u.label}')
    if folds.partition(':')[0] == OFFICIAL:
        _drop_unofficial(selection, corpus, folds)
        if gone := sorted({*class_of.values()} - {class_of[u.label] for u in selection.kept}):
            raise UserError(f'--folds {folds}: these sets have no utterance of class {", ".join(gone)}; leave '
                            f'it out of --labels, or use other sets; left out: {_as_text(*selection.rows())}')
    kept = [replace(u, label=class_of[u.label]) for u in selection.kept]
    report = {'labels': labels, **flags, 'found': len(utterances), 'kept': len(kept),
              'classes': dict(sorted(Counter(u.label for u in kept).items())),
              'left_out': selection.rows()}
    if notes := [*_same_but_for_case(counts, class_of), *_similar_speakers(kept)]:
        report['notes'] = notes
    return kept, report


def row(reason: str, utterances: list[Utterance]) -> dict:
    """An entry of the report's 'left_out'."""
    return {'reason': reason, 'n': len(utterances), 'first': Path(utterances[0].path).name}


def lines(report: dict) -> Iterator[str]:
    """The report as lines of a log."""
    names = [name for name in ('labels', 'turns', 'scenarios') if report[name]]
    given = ''.join(f' --{name} {report[name]}' for name in names)
    yield (f'protocol{given}: {report["kept"]} of {report["found"]} utterances kept: '
           + ', '.join(f'{label} {n}' for label, n in report['classes'].items()))
    if report['left_out']:
        yield f'left out {report["found"] - report["kept"]}: {_as_text(*report["left_out"])}'
    if 'left_out_of_fold' in report:
        yield f'left out of this fold: {_as_text(*report["left_out_of_fold"])}'
    for note in report.get('notes', ()):
        yield f'NOTE: {note}'


def _as_text(*rows):
    return ', '.join(f'{entry["reason"]} {entry["n"]} (first {entry["first"]})' for entry in rows)


def _parts(dataset, parts, flags, utterances):
    """(flag, chosen kinds), or None if the corpus has no parts."""
    for flag, value in flags.items():
        if value is not None and (parts is None or flag != parts[0]):
            raise UserError(f'--{flag} {value}: does not apply to {dataset}; leave it out, also in a settings file')
    if parts is None:
        return None
    flag, kinds = parts
    counts = Counter(u.part for u in utterances)
    counted = ', '.join(f'{kind} ({counts[kind]} utterances)' for kind in kinds)
    choice = f'{ALL}, or a list with commas of {counted}'
    if flags[flag] is None:
        raise UserError(f'--{flag} is required with {dataset}: {choice}')
    chosen = kinds if flags[flag] == ALL else [kind.strip() for kind in flags[flag].split(',')]
    for kind in chosen:
        if kind not in kinds:
            raise UserError(f'--{flag} {flags[flag]}: {dataset} has no {kind!r}; use {choice}')
    return flag, chosen


def _classes(dataset, labels, example, counts):
    """{label of the corpus: class of the experiment}. counts: {label: utterances}."""
    available = ', '.join(f'{_escape(label)} {n}' for label, n in sorted(counts.items()))
    if labels is None:
        if example:
            raise UserError(f'--labels is required with {dataset}: classes with commas, merged with +, such '
                            f'as --labels {example}; the corpus has {available}')
        return {label: label for label in counts}
    class_of = {}
    for name in _split(',', labels):
        name, others = '+'.join(_split('+', name)), {*class_of.values()}
        for label in map(_unescape, _split('+', name)):
            if not label:
                raise UserError(f'--labels {labels}: a name is empty, at a comma or + too many; the corpus '
                                f'has {available}')
            if label not in counts:
                raise UserError(f'--labels {labels}: the corpus has no class {label!r}; it has {available}')
            if label in class_of:
                raise UserError(f'--labels {labels}: {label} is named twice')
            class_of[label] = _unescape(name)
        if _unescape(name) in others:
            raise UserError(f'--labels {labels}: two classes would both be called {_unescape(name)}')
    return class_of


def _split(separator, text):
    r"""Parts between separators, of which those after a backslash do not count: 'a\, b,c' has two."""
    return [part.strip() for part in re.split(rf'(?<!\\){re.escape(separator)}', text)]


def _unescape(name):
    return re.sub(r'\\([,+])', r'\1', name)


def _escape(label):
    return re.sub(r'([,+])', r'\\\1', label)


def _same_but_for_case(counts, class_of):
    """Notes on labels that differ by case alone and are not of one class. counts: {label: utterances}."""
    for labels, how in _groups_that_look_alike(counts):
        if len({class_of.get(label) for label in labels}) > 1:
            counted = ', '.join(f'{_visible(label)} ({counts[label]})' for label in labels)
            merged = '+'.join(map(_escape, labels))
            yield f'labels {counted} differ by {how} alone; merge them with --labels {merged},...'


def _similar_speakers(utterances):
    for names, how in _groups_that_look_alike({u.speaker for u in utterances}):
        yield f'speakers {", ".join(map(_visible, names))} differ by {how} alone, and count as different people'


def _groups_that_look_alike(names):
    """[(names that a reader would take for one, what they differ by), ...]"""
    groups = {}
    for name in sorted(names):
        seen = ''.join(c for c in unicodedata.normalize('NFKC', name) if unicodedata.category(c) != 'Cf')
        groups.setdefault(' '.join(seen.casefold().split()), []).append(name)
    return [(group, 'case' if len({name.casefold() for name in group}) == 1 else 'case, spaces or the form of letters')
            for group in groups.values() if len(group) > 1]


def _visible(name):
    """The name; letters that are written in an unusual form, or not seen at all, as numbers."""
    return name if name.isprintable() and unicodedata.is_normalized('NFC', name) else ascii(name)[1:-1]


def _drop_unofficial(selection, corpus, folds):
    """Keeps train, dev and one test set of the corpus, which becomes 'test', and no speaker in two."""
    if getattr(corpus, 'DEFAULT_FOLDS', None) != OFFICIAL:
        own = '; --folds default takes its column split' if any(u.split for u in selection.kept) else ''
        raise UserError(f'--folds {folds}: {selection.dataset} has no official sets{own}')
    wanted = folds.partition(':')[2] or TEST_SET
    tests = sorted({u.split for u in selection.kept} - {'train', 'dev'})
    if wanted not in tests:
        raise UserError(f'--folds {folds}: no utterance of {wanted} is left; available: '
                        + (', '.join(f'{OFFICIAL}:{split}' for split in tests) or 'no test sets'))
    sets = ('train', 'dev', wanted)  # a speaker of two sets stays in the later one: test stays whole
    selection.drop(lambda u: None if u.split in sets else f'--folds {folds}: {u.split}')
    set_of = {}
    for u in selection.kept:
        set_of[u.speaker] = max(u.split, set_of.get(u.speaker, 'train'), key=sets.index)
    selection.drop(lambda u: None if u.split == set_of[u.speaker] else
                   f'--folds {folds}: {u.split}, by a speaker of {set_of[u.speaker]}')
    selection.kept = [replace(u, split='test') if u.split == wanted else u
                      for u in selection.kept]
