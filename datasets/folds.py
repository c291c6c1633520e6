"""Speaker-disjoint folds: train, dev (for all choices) and test (scored once); and halves for a search.

Folds depend on names alone, not on the order of files: a fold has the same speakers on every
machine.
"""
from dataclasses import dataclass

import numpy as np

from config import UserError
from datasets.utterance import Utterance

N_FOLDS = 5
N_DRAWS = 500  # random partitions of the speakers, of which `halves` takes the most even one


@dataclass(frozen=True)
class Fold:
    train: tuple[str, ...]  # speakers
    dev: tuple[str, ...]
    test: tuple[str, ...]
    left_out: tuple[str, ...] = ()  # --folds loso: partners of the test speaker, who are in no set

    def split(self, utterances: list[Utterance], name: str) -> list[Utterance]:
        """Utterances of 'train', 'dev', 'test' or 'left_out'."""
        speakers = set(getattr(self, name))
        return [u for u in utterances if u.speaker in speakers]


def make_folds(utterances: list[Utterance], how: str = 'default',
               published: list[tuple[tuple[str, ...], tuple[str, ...]]] | None = None) -> list[Fold]:
    """Folds of the utterances.

    how: 'default' (the utterances' own split; else the published folds; else N_FOLDS, or one for
    each speaker if there are fewer), 'session' (leave one session out; the next one is dev),
    'speaker' (leave one speaker out; the others of the session are dev), 'official' (the
    utterances' own split), 'loso' (leave one speaker out; the next one or two speakers are dev,
    session partners of the test speaker do not train) or a number of folds. published: [(test
    speakers, dev speakers), ...], which apply if the corpus has exactly these speakers.
    """
    speakers = sorted({u.speaker for u in utterances})
    has_split = bool(utterances and utterances[0].split)
    if how.partition(':')[0] == 'official' or how == 'default' and has_split:
        return [_own_split(utterances)]
    if how == 'session':
        return [_fold(speakers, test, dev) for test, dev in _leave_one_session_out(utterances)]
    if how == 'speaker':
        return [_fold(speakers, test, dev) for test, dev in _leave_one_speaker_out(utterances)]
    known = {s for test, dev in published or () for s in test + dev}
    if how == 'default' and published and known == set(speakers):
        return [_fold(speakers, test, dev) for test, dev in published]
    if len(speakers) < 3:
        raise UserError(f'the corpus has {len(speakers)} speaker(s), but train, dev and test need different '
                        'speakers: 3 are needed')
    groups = _groups(utterances, _number(how, len(speakers)))
    # Dev is the next group; the next two if a group is one speaker, so that more than one voice
    # decides.
    n_dev = 2 if len(groups) == len(speakers) > 5 else 1
    folds = []
    for i, test in enumerate(groups):
        dev = sum((groups[(i + 1 + d) % len(groups)] for d in range(n_dev)), ())
        partners = _partners(utterances, test) if how == 'loso' else set()
        folds.append(_fold(speakers, test, dev, partners))
    return folds


def _number(how, n_speakers):
    """How many folds --folds `how` means: default, loso or a number."""
    if how == 'default':
        return min(N_FOLDS, n_speakers)
    if how == 'loso':
        return n_speakers
    try:
        n_folds = int(how)
    except ValueError:
        raise UserError(f'--folds {how}: must be default, session, speaker, official, loso or a '
                        'number') from None
    if not 3 <= n_folds <= n_speakers:
        raise UserError(f'--folds {how}: must be from 3 to {n_speakers}, the number of speakers')
    return n_folds


def _fold(speakers, test, dev, partners=frozenset()):
    """The Fold with these test and dev speakers. partners: speakers who must not train."""
    others = [s for s in speakers if s not in test and s not in dev]
    train = tuple(s for s in others if s not in partners)
    if others and not train:
        raise UserError('--folds loso: nobody is left to train: all other speakers share a session with '
                        f'{test[0]}; use --folds with a number, or correct the sessions')
    if not train or set(dev) & set(test):
        raise UserError('a fold needs train, dev and test speakers, none of them twice')
    left_out = tuple(s for s in others if s in partners)
    return Fold(train, tuple(sorted(dev)), tuple(sorted(test)), left_out)


def _partners(utterances, speakers):
    """Everyone who speaks in a session of these speakers, as far as sessions are known."""
    sessions = {u.session for u in utterances if u.speaker in speakers and u.session}
    return {u.speaker for u in utterances if u.session in sessions}


def _leave_one_session_out(utterances):
    """[(test speakers, dev speakers), ...]: one session, and the next."""
    members = list(_speakers_of_sessions(utterances, 'session').values())
    if len(members) < 3:
        raise UserError(f'--folds session: the corpus has {len(members)} session(s), but train, dev and '
                        'test need 3')
    return list(zip(members, members[1:] + members[:1]))


def _leave_one_speaker_out(utterances):
    """[(test speakers, dev speakers), ...]: one speaker, and the others of the session."""
    members = list(_speakers_of_sessions(utterances, 'speaker').values())
    if len(members) < 2 or min(map(len, members)) < 2:
        raise UserError('--folds speaker: needs two sessions with two speakers each; --folds loso leaves '
                        'one speaker out')
    return [((s,), tuple(other for other in session if other != s))
            for session in members for s in session]


def _speakers_of_sessions(utterances, how):
    """{session: speakers}, both in order. UserError unless every speaker has exactly one."""
    session_of = {}
    for u in utterances:
        if not u.session:
            raise UserError(f'--folds {how}: the session of {u.path} is not known; --folds default, loso or a '
                            'number needs no sessions (a manifest names them in its column session)')
        if session_of.setdefault(u.speaker, u.session) != u.session:
            raise UserError(f'--folds {how}: speaker {u.speaker} is in sessions {session_of[u.speaker]} and '
                            f'{u.session}')
    return {session: tuple(sorted(s for s in session_of if session_of[s] == session))
            for session in sorted(set(session_of.values()))}


def _groups(utterances, n_folds):
    """Speakers in n_folds groups with balanced genders.

    Each gender is dealt in turn, beginning where the last one stopped.
    """
    gender = _genders(utterances)
    ordered = sorted(gender, key=lambda s: (gender[s], s))
    if n_folds < len(ordered):
        return [tuple(sorted(ordered[i::n_folds])) for i in range(n_folds)]
    # One speaker each: genders alternate, so that the neighbours, who are dev, differ.
    kinds = [[s for s in ordered if gender[s] == g] for g in sorted(set(gender.values()))]
    ranked = sorted((i / len(kind), k, s) for k, kind in enumerate(kinds) for i, s in enumerate(kind))
    return [(s,) for _, _, s in ranked]


def _genders(utterances):
    """{speaker: gender}, '' if no utterance tells it. UserError if two utterances differ."""
    told = {}  # {speaker: the first utterance that tells it}
    for u in utterances:
        if u.gender and (first := told.setdefault(u.speaker, u)).gender != u.gender:
            raise UserError(f'{u.path}: speaker {u.speaker} has gender {u.gender} here, and {first.gender} in {first.path}')
    return {u.speaker: told[u.speaker].gender if u.speaker in told else '' for u in utterances}


def _own_split(utterances):
    """The Fold that the utterances' own split prescribes."""
    split_of, first = {}, {}
    for u in utterances:
        if split_of.setdefault(u.speaker, u.split) != u.split:
            raise UserError(f'{u.path}: column split puts speaker {u.speaker} into {u.split} here, and into '
                            f'{split_of[u.speaker]} with {first[u.speaker].path}')
        first.setdefault(u.speaker, u)
    speakers = {split: tuple(sorted(s for s in split_of if split_of[s] == split))
                for split in ('train', 'dev', 'test')}
    for split, found in speakers.items():
        if not found:
            raise UserError(f'column split: no row that is kept has {split}; train, dev and test are all needed')
    return Fold(**speakers)


def halves(labels: np.ndarray, speakers: np.ndarray, by: str,
           seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint halves of the training utterances, for w and for alpha, as sorted index arrays.

    labels: (n,) class indices. speakers: (n,) names. by: 'utterance' (each class is halved),
    'speaker' (no speaker is in both halves; of N_DRAWS partitions the one whose halves are most
    alike in size and classes), or 'none' (all utterances are for w).
    """
    labels, speakers = np.asarray(labels), np.asarray(speakers)
    if by == 'none':
        return np.arange(len(labels)), np.arange(0)
    rng = np.random.default_rng([seed, len(labels)])
    if by == 'utterance':
        in_first = _halve_classes(labels, rng)
    else:
        in_first = _halve_speakers(labels, speakers, rng)
    if not in_first.any() or in_first.all():
        raise UserError(f'{len(labels)} training utterance(s) cannot be halved for w and alpha')
    return np.flatnonzero(in_first), np.flatnonzero(~in_first)


def _halve_classes(labels, rng):
    """(n,) bool: whether an utterance is in the first half. Of an odd class either half gets one more."""
    in_first = np.zeros(len(labels), bool)
    for i, label in enumerate(np.unique(labels)):
        members = rng.permutation(np.flatnonzero(labels == label))
        in_first[members[:(len(members) + i % 2) // 2]] = True
    return in_first


def _halve_speakers(labels, speakers, rng):
    """(n,) bool: whether an utterance is in the first half."""
    names = np.unique(speakers)
    if len(names) < 2:
        raise UserError('--alpha_split speaker needs at least two training speakers')
    one_hot = np.eye(labels.max() + 1)[labels]  # (n, n_classes)
    counts = np.stack([one_hot[speakers == name].sum(axis=0) for name in names])  # (n_speakers, n_classes)
    fewest, chosen = np.inf, None
    for _ in range(N_DRAWS):
        first = rng.permutation(len(names)) < len(names) // 2
        difference = np.abs(counts[first].sum(axis=0) - counts[~first].sum(axis=0)).sum()
        if difference < fewest:
            fewest, chosen = difference, first
    return np.isin(speakers, names[chosen])
