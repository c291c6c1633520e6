"""What of a corpus an experiment uses: --labels, --turns or --scenarios, --folds official. Everything left out is counted.

A reader says what must be said of its corpus: PARTS = (flag, kinds) and EXAMPLE, of --labels; where these are missing the flag
does not apply, or every class is taken.
"""
from collections import Counter
from dataclasses import replace
from pathlib import Path

from config import UserError

ALL = 'all'
OFFICIAL, TEST_SET = 'official', 'Test1'  # --folds official is official:Test1


def apply(dataset, corpus, utterances, folds, labels, flags):
    """Utterances that take part, with the classes of `labels`, and the report: plain values, see `lines`.

    corpus: its reader. folds: as make_folds takes it. flags: {'turns': ..., 'scenarios': ...}, None where not said. Raises
    UserError.
    """
    left_out = {}  # reason: utterances

    def keep(utterances, reason_of):
        kept = []
        for u in utterances:
            reason = reason_of(u)
            (left_out.setdefault(reason, []) if reason else kept).append(u)
        if not kept:
            raise UserError(f'{dataset}: nothing is left: ' + ', '.join(_counted(_rows(left_out))))
        return kept
    kept = keep(utterances, lambda u: u.left_out)
    parts = _parts(dataset, getattr(corpus, 'PARTS', None), flags, kept)
    if parts:
        flag, chosen = parts
        kept = keep(kept, lambda u: None if u.part in chosen else f'--{flag}: {u.part}')
    class_of = _classes(dataset, labels, getattr(corpus, 'EXAMPLE', None), Counter(u.label for u in kept))
    kept = keep(kept, lambda u: None if u.label in class_of else f'--labels: {u.label}')
    if folds.partition(':')[0] == OFFICIAL:
        kept = _official(dataset, corpus, kept, folds, keep)
        if gone := sorted({*class_of.values()} - {class_of[u.label] for u in kept}):
            raise UserError(f'--folds {folds}: no utterance of class {", ".join(gone)} is left in its sets: leave it out of '
                            '--labels, or take other sets; left out: ' + ', '.join(_counted(_rows(left_out))))
    kept = [u if u.label == class_of[u.label] else replace(u, label=class_of[u.label]) for u in kept]
    return kept, {'labels': labels, **flags, 'found': len(utterances), 'kept': len(kept),
                  'classes': dict(sorted(Counter(u.label for u in kept).items())), 'left_out': _rows(left_out)}


def lines(report):
    """The report as lines for a reader."""
    said = ''.join(f' --{name} {report[name]}' for name in ('labels', 'turns', 'scenarios') if report[name])
    yield (f'protocol{said}: {report["kept"]} of {report["found"]} utterances kept: '
           + ', '.join(f'{label} {n}' for label, n in report['classes'].items()))
    if report['left_out']:
        yield f'left out {report["found"] - report["kept"]}: ' + ', '.join(_counted(report['left_out']))


def _rows(left_out):
    return [{'reason': reason, 'n': len(us), 'first': Path(us[0].path).name} for reason, us in sorted(left_out.items())]


def _counted(rows):
    return [f'{row["reason"]} {row["n"]} (first {row["first"]})' for row in rows]


def _parts(dataset, parts, flags, utterances):
    """(flag, chosen kinds), or None where the corpus has no parts."""
    for flag, value in flags.items():
        if value is not None and (parts is None or flag != parts[0]):
            raise UserError(f'--{flag} {value}: does not apply to {dataset}; leave it out')
    if parts is None:
        return None
    flag, kinds = parts
    counts = Counter(u.part for u in utterances)
    choice = f'{ALL}, or any of {", ".join(f"{kind} ({counts[kind]} utterances)" for kind in kinds)} with commas'
    if flags[flag] is None:
        raise UserError(f'--{flag} is needed with {dataset}: {choice}')
    chosen = kinds if flags[flag] == ALL else [kind.strip() for kind in flags[flag].split(',')]
    for kind in chosen:
        if kind not in kinds:
            raise UserError(f'--{flag} {flags[flag]}: {kind!r} is none of {dataset}; say {choice}')
    return flag, chosen


def _classes(dataset, labels, example, counts):
    """{label of the corpus: class of the experiment}. counts: {label: utterances}."""
    there = ', '.join(f'{label} {n}' for label, n in sorted(counts.items()))
    if labels is None:
        if example:
            raise UserError(f'--labels is needed with {dataset}: classes with commas, merged ones with +, such as --labels '
                            f'{example}; there are {there}')
        return {label: label for label in counts}
    class_of = {}
    for name in (part.strip() for part in labels.split(',')):
        for label in (part.strip() for part in name.split('+')):
            if not label:
                raise UserError(f'--labels {labels}: a class without a name, at a comma or + too many; there are {there}')
            if label not in counts:
                raise UserError(f'--labels {labels}: no utterance of class {label!r}; there are {there}')
            if label in class_of:
                raise UserError(f'--labels {labels}: {label} stands there twice')
            class_of[label] = name
    return class_of


def _official(dataset, corpus, utterances, folds, keep):
    """Those of the train, dev and one test set that the corpus prescribes, its split named 'test'; no speaker in two sets."""
    if getattr(corpus, 'DEFAULT_FOLDS', None) != OFFICIAL:
        raise UserError(f'--folds {folds}: {dataset} has no official sets')
    wanted = folds.partition(':')[2] or TEST_SET
    counts = Counter(u.split for u in utterances)
    tests = sorted(set(counts) - {'train', 'dev'})
    if wanted not in tests:
        raise UserError(f'--folds {folds}: no utterance of {wanted} is left; there are '
                        + (', '.join(f'{OFFICIAL}:{split}' for split in tests) or 'no test sets'))
    utterances = keep(utterances, lambda u: None if u.split in ('train', 'dev', wanted) else f'--folds {folds}: {u.split}')
    rank = {wanted: 2, 'dev': 1, 'train': 0}  # a speaker of two sets stays in the higher one: what is tested stays whole
    place = {}
    for u in utterances:
        place[u.speaker] = max(u.split, place.get(u.speaker, 'train'), key=rank.get)
    utterances = keep(utterances, lambda u: None if u.split == place[u.speaker] else
                      f'--folds {folds}: {u.split}, by a speaker of {place[u.speaker]}')
    return [replace(u, split='test') if u.split == wanted else u for u in utterances]
