"""Speaker-disjoint folds: train, dev (every choice) and test (read once); and the halves a search needs.

Everything depends on names alone, never on the order of a directory: the same fold has the same speakers on every machine.
"""
from dataclasses import dataclass

import numpy as np

from config import UserError

N_FOLDS = 5
N_DRAWS = 500  # random partitions of speakers among which `halves` takes the most even


@dataclass(frozen=True)
class Fold:
    train: tuple[str, ...]  # speakers
    dev: tuple[str, ...]
    test: tuple[str, ...]

    def split(self, utterances, name):
        """Utterances of 'train', 'dev' or 'test'."""
        speakers = set(getattr(self, name))
        return [u for u in utterances if u.speaker in speakers]


def make_folds(utterances, how='default', published=None):
    """List of Folds.

    how: 'default' (the utterances' own split column, else the published folds, else N_FOLDS or as many as there are
    speakers), 'session' (leave one session out, the next one is dev), 'speaker' (leave one speaker out, the others of the
    session are dev), 'official' (the utterances' split), 'loso' (leave one speaker out) or a number of folds. published:
    [(test speakers, dev speakers), ...], used where the corpus has all these speakers. Raises UserError.
    """
    speakers = sorted({u.speaker for u in utterances})
    if how.partition(':')[0] == 'official':
        return [_prescribed(utterances)]
    if how in ('session', 'speaker'):
        return [_fold(speakers, test, dev) for test, dev in _by_session(utterances, how)]
    if how == 'default' and utterances and utterances[0].split:
        return [_prescribed(utterances)]
    if how == 'default' and published and {s for test, dev in published for s in test + dev} == set(speakers):
        return [_fold(speakers, test, dev) for test, dev in published]
    if len(speakers) < 3:
        raise UserError(f'{len(speakers)} speaker(s) cannot make train, dev and test of different speakers: 3 are needed')
    if how == 'default':
        n_folds = min(N_FOLDS, len(speakers))
    elif how == 'loso':
        n_folds = len(speakers)
    else:
        try:
            n_folds = int(how)
        except ValueError:
            raise UserError(f'--folds {how}: must be default, session, speaker, official, loso or a number') from None
        if not 3 <= n_folds <= len(speakers):
            raise UserError(f'--folds {how}: must be from 3 to {len(speakers)}, the number of speakers')
    groups = _groups(utterances, n_folds)
    # dev: the next group; in leave-one-speaker-out the next two, so that more than one voice makes the choices
    n_dev = 2 if n_folds == len(speakers) > 5 else 1
    return [_fold(speakers, test, sum((groups[(i + 1 + d) % n_folds] for d in range(n_dev)), ()))
            for i, test in enumerate(groups)]


def _fold(speakers, test, dev):
    fold = Fold(tuple(s for s in speakers if s not in test and s not in dev), tuple(sorted(dev)), tuple(sorted(test)))
    if not fold.train or set(fold.dev) & set(fold.test):
        raise UserError('a fold needs train, dev and test speakers, none of them twice')
    return fold


def _by_session(utterances, how):
    """(test speakers, dev speakers) of each fold, in which a session is never on both sides of train and the rest."""
    session_of = {}
    for u in utterances:
        if not u.session:
            raise UserError(f'--folds {how}: no session is known of {u.path}')
        if session_of.setdefault(u.speaker, u.session) != u.session:
            raise UserError(f'--folds {how}: speaker {u.speaker} stands in sessions {session_of[u.speaker]} and {u.session}')
    members = {name: tuple(sorted(s for s in session_of if session_of[s] == name)) for name in sorted(set(session_of.values()))}
    names = list(members)
    if how == 'session':
        if len(names) < 3:
            raise UserError(f'--folds session: {len(names)} session(s) cannot make train, dev and test: 3 are needed')
        return [(members[name], members[names[(i + 1) % len(names)]]) for i, name in enumerate(names)]
    if len(names) < 2 or min(map(len, members.values())) < 2:
        raise UserError('--folds speaker: needs two sessions, and two speakers in each; --folds loso leaves one speaker out')
    return [((s,), tuple(other for other in members[name] if other != s)) for name in names for s in members[name]]


def _groups(utterances, n_folds):
    """Speakers in n_folds groups, genders balanced: each gender is dealt in turn, the next goes on where the last stopped."""
    gender = _genders(utterances)
    ordered = sorted(gender, key=lambda s: (gender[s], s))
    groups = [tuple(sorted(ordered[i::n_folds])) for i in range(n_folds)]
    if n_folds == len(ordered):  # one speaker each: alternate genders, so that neighbours, who are dev, differ
        kinds = [[s for s in ordered if gender[s] == g] for g in sorted(set(gender.values()))]
        ranked = sorted((i / len(kind), k, s) for k, kind in enumerate(kinds) for i, s in enumerate(kind))
        groups = [(s,) for _, _, s in ranked]
    return groups


def _genders(utterances):
    """{speaker: gender}, '' where no utterance tells it. UserError where two utterances differ."""
    gender = {u.speaker: '' for u in utterances}
    for u in utterances:
        if u.gender and gender[u.speaker] not in ('', u.gender):
            raise UserError(f'speaker {u.speaker} stands there as {gender[u.speaker]} and as {u.gender}: gender must be one')
        gender[u.speaker] = u.gender or gender[u.speaker]
    return gender


def _prescribed(utterances):
    where = {}
    for u in utterances:
        if where.setdefault(u.speaker, u.split) != u.split:
            raise UserError(f'speaker {u.speaker} stands in both {where[u.speaker]} and {u.split} (column split)')
    names = {split: tuple(sorted(s for s in where if where[s] == split)) for split in ('train', 'dev', 'test')}
    for split, speakers in names.items():
        if not speakers:
            raise UserError(f'no utterance has split {split}: train, dev and test are all needed')
    return Fold(**names)


def halves(labels, speakers, by, seed):
    """Two disjoint halves of the training utterances, for w and for alpha.

    labels: (n,) class indices. speakers: (n,) names. by: 'utterance' (stratified: each class is halved) or 'speaker' (no
    speaker in both; of N_DRAWS partitions the one whose halves are most alike in size and classes). Returns two sorted index
    arrays. Raises UserError where a half would be empty.
    """
    labels, speakers = np.asarray(labels), np.asarray(speakers)
    rng = np.random.default_rng([seed, len(labels)])
    if by == 'utterance':
        in_first = np.zeros(len(labels), bool)
        for i, label in enumerate(np.unique(labels)):
            members = rng.permutation(np.flatnonzero(labels == label))
            in_first[members[:(len(members) + i % 2) // 2]] = True  # odd ones go by turns to the one and the other half
    else:
        names = np.unique(speakers)
        one_hot = np.eye(labels.max() + 1)[labels]  # (n, n_classes)
        counts = np.stack([one_hot[speakers == name].sum(axis=0) for name in names])  # (n_speakers, n_classes)
        best, chosen = np.inf, None
        for _ in range(N_DRAWS if len(names) > 1 else 0):
            first = rng.permutation(len(names)) < len(names) // 2
            unevenness = np.abs(counts[first].sum(axis=0) - counts[~first].sum(axis=0)).sum()
            if unevenness < best:
                best, chosen = unevenness, first
        if chosen is None:
            raise UserError('--alpha_split speaker needs two training speakers or more')
        in_first = np.isin(speakers, names[chosen])
    if not in_first.any() or in_first.all():
        raise UserError(f'{len(labels)} training utterance(s) cannot be halved for w and alpha')
    return np.flatnonzero(in_first), np.flatnonzero(~in_first)
