import itertools
import random

import numpy as np
import pytest
from made_up import touch

from config import UserError
from datasets import folds_of, scan
from datasets.folds import halves, make_folds
from datasets.readers import emodb, ravdess, synthetic
from datasets.utterance import Utterance


def made_up(rng):
    """A random corpus: 3 to 30 speakers, genders known, partly known or not, 1 to 20 utterances each, in random order."""
    utterances = []
    genders = rng.choice([['m', 'f'], ['m', 'f', None], [None], ['m', 'm', 'm', 'f']])
    for s in range(rng.randint(3, 30)):
        gender = rng.choice(genders)
        utterances += [Utterance(f'{s}-{i}', rng.choice('abc'), f'spk{s}', gender=gender) for i in range(rng.randint(1, 20))]
    rng.shuffle(utterances)
    return utterances


def check(folds, utterances, each_tested_once=True):
    speakers = {u.speaker for u in utterances}
    for fold in folds:
        parts = [set(fold.train), set(fold.dev), set(fold.test)]
        assert all(parts) and sum(map(len, parts)) == len(set.union(*parts)) and set.union(*parts) == speakers
        found = [u for name in ('train', 'dev', 'test') for u in fold.split(utterances, name)]
        assert sorted(u.path for u in found) == sorted(u.path for u in utterances)  # every utterance in exactly one
    if each_tested_once:
        assert sorted(s for fold in folds for s in fold.test) == sorted(speakers)


@pytest.mark.parametrize('seed', range(60))
def test_no_speaker_in_two_sets_and_every_utterance_in_one(seed):
    rng = random.Random(seed)
    utterances = made_up(rng)
    n = len({u.speaker for u in utterances})
    for how in ('default', 'loso', str(rng.randint(3, n))):
        folds = make_folds(utterances, how)
        check(folds, utterances)
        shuffled = rng.sample(utterances, len(utterances))
        assert make_folds(shuffled, how) == folds  # the order of a directory does not matter
    assert len(make_folds(utterances, 'loso')) == n


@pytest.mark.parametrize('seed', range(20))
def test_genders_are_balanced(seed):
    rng = random.Random(seed)
    utterances = [Utterance(f'{s}', 'a', f'{s:02d}', gender=rng.choice('mf')) for s in range(rng.randint(10, 40))]
    gender = {u.speaker: u.gender for u in utterances}
    for k in ('mf'):
        counts = [sum(gender[s] == k for s in fold.test) for fold in make_folds(utterances)]
        assert max(counts) - min(counts) <= 1


def test_a_gender_given_once_is_known():
    rows = [Utterance(f'{s}-{i}', 'a', f'{s:02d}', gender='mf'[s % 2] if i == s % 3 else None)
            for s in range(12) for i in range(3)]
    folds = make_folds(rows)
    assert all(make_folds(random.Random(seed).sample(rows, len(rows))) == folds for seed in range(20))
    with pytest.raises(UserError, match='speaker 00'):
        make_folds([*rows, Utterance('x', 'a', '00', gender='f')])


def test_published_folds():
    utterances = [Utterance(f'{s}', 'a', s) for s in '03 08 09 10 11 12 13 14 15 16'.split()]
    folds = make_folds(utterances, 'default', emodb.FOLDS)
    check(folds, utterances)
    assert [f.test for f in folds] == [('03', '08'), ('09', '10'), ('11', '13'), ('12', '14'), ('15', '16')]
    assert [f.dev for f in folds] == [('09', '10'), ('11', '13'), ('12', '14'), ('15', '16'), ('03', '08')]
    actors = [Utterance(f'{s}', 'a', f'{s:02d}') for s in range(1, 25)]
    folds = make_folds(actors, 'default', ravdess.FOLDS)
    check(folds, actors)
    assert [(' '.join(f.test), ' '.join(f.dev)) for f in folds] == [  # arXiv 2606.03359
        ('02 05 14 15 16', '03 06'), ('03 06 07 13 18', '10 11'), ('10 11 12 19 20', '08 17'), ('08 17 21 23 24', '01 14'),
        ('01 04 09 22', '02 05')]
    part = [u for u in actors if u.speaker != '07']  # an incomplete corpus gets folds of its own
    check(make_folds(part, 'default', ravdess.FOLDS), part)


@pytest.mark.parametrize('n_speakers, n_dev', [(4, 1), (5, 1), (6, 2), (7, 2)])
def test_two_voices_are_dev_if_a_group_is_one_speaker_and_enough_are_left(n_speakers, n_dev):
    utterances = [Utterance(f'{s}', 'a', f'{s}') for s in range(n_speakers)]
    assert {len(fold.dev) for fold in make_folds(utterances, 'loso')} == {n_dev}
    assert {len(fold.dev) for fold in make_folds(utterances, str(n_speakers))} == {n_dev}


def in_sessions(rng):
    """A random corpus of 3 to 8 sessions with 2 or 3 speakers each, in random order."""
    utterances = [Utterance(f'{n}-{s}-{i}', rng.choice('abc'), f'spk{n}{s}', session=f'Ses{n}')
                  for n in range(rng.randint(3, 8)) for s in range(rng.randint(2, 3)) for i in range(rng.randint(1, 9))]
    rng.shuffle(utterances)
    return utterances


@pytest.mark.parametrize('seed', range(30))
def test_no_session_in_two_sets_and_no_partner_in_training(seed):
    rng = random.Random(seed)
    utterances = in_sessions(rng)
    session = {u.speaker: u.session for u in utterances}
    names = sorted(set(session.values()))

    def of(speakers):
        return {session[s] for s in speakers}
    folds = make_folds(utterances, 'session')
    check(folds, utterances)
    for i, fold in enumerate(folds):
        assert of(fold.test) == {names[i]} and of(fold.dev) == {names[(i + 1) % len(names)]}
        assert not of(fold.train) & (of(fold.test) | of(fold.dev))
    folds = make_folds(utterances, 'speaker')
    check(folds, utterances)
    assert len(folds) == len(session)
    for fold in folds:
        assert len(fold.test) == 1 and of(fold.test) == of(fold.dev) and not of(fold.train) & of(fold.test)
    for how in ('session', 'speaker'):
        assert make_folds(rng.sample(utterances, len(utterances)), how) == make_folds(utterances, how)


@pytest.mark.parametrize('how, change, named', [
    ('session', lambda us: us[:-1] + [Utterance('x', 'a', 'new')], 'the session of x is not known'),
    ('speaker', lambda us: us + [Utterance('x', 'a', us[0].speaker, session='other')], 'is in sessions'),
    ('session', lambda us: [u for u in us if u.session in ('Ses0', 'Ses1')], 'the corpus has 2 session'),
    ('speaker', lambda us: [u for u in us if u.speaker != 'spk00' and u.speaker != 'spk02'], 'two speakers each'),
    ('speaker', lambda us: [u for u in us if u.session == 'Ses0'], 'needs two sessions'),
])
def test_what_has_no_sessions_is_refused(how, change, named):
    with pytest.raises(UserError, match=named):
        make_folds(change(in_sessions(random.Random(1))), how)


def test_corpora_in_sessions_leave_one_out_unless_told_otherwise():
    utterances = in_sessions(random.Random(0))
    for dataset in ('iemocap', 'msp_improv', 'manifest'):
        by_session = folds_of(dataset, utterances, 'session')
        assert (folds_of(dataset, utterances, 'default') == by_session) == (dataset != 'manifest')
        check(by_session, utterances)
        assert len(folds_of(dataset, utterances, 'loso')) == len({u.speaker for u in utterances})


@pytest.mark.parametrize('seed', range(30))
def test_loso_trains_nobody_of_the_test_speakers_session(seed):
    rng = random.Random(seed)
    utterances = in_sessions(rng)
    session = {u.speaker: u.session for u in utterances}
    folds = make_folds(utterances, 'loso')
    assert sorted(s for fold in folds for s in fold.test) == sorted(session)
    for fold in folds:
        (tested,) = fold.test
        assert session[tested] not in {session[s] for s in fold.train} and tested not in fold.dev
        assert {session[s] for s in fold.left_out} <= {session[tested]}
        assert sorted((*fold.train, *fold.dev, *fold.test, *fold.left_out)) == sorted(session)  # each in one place
    assert any(fold.left_out for fold in folds)
    assert make_folds(rng.sample(utterances, len(utterances)), 'loso') == folds
    bare = [Utterance(u.path, u.label, u.speaker) for u in utterances]  # without sessions nobody has to go
    check(make_folds(bare, 'loso'), bare)
    assert [(fold.test, fold.dev) for fold in make_folds(bare, 'loso')] == [(fold.test, fold.dev) for fold in folds]


def test_loso_knows_every_session_of_a_speaker_and_says_if_nobody_is_left():
    rows = [('a', '1'), ('a', '2'), ('b', '1'), ('c', '2'), ('d', '3'), ('e', None), ('f', '3'), ('g', None)]
    fold = make_folds([Utterance(f'{i}', 'x', s, session=session) for i, (s, session) in enumerate(rows)], 'loso')[0]
    assert (fold.test, fold.dev, fold.train, fold.left_out) == (('a',), ('b', 'c'), ('d', 'e', 'f', 'g'), ())
    fold = make_folds([Utterance(f'{i}', 'x', s, session=session) for i, (s, session) in enumerate(rows)], 'loso')[6]
    assert (fold.test, fold.left_out) == (('g',), ())
    with pytest.raises(UserError, match='--folds loso: nobody is left to train.* session with 0'):
        make_folds([Utterance(f'{s}', 'x', f'{s}', session='studio') for s in range(6)], 'loso')


def test_prescribed_splits_are_kept_and_checked():
    rows = [('a', 'train'), ('b', 'dev'), ('c', 'test')]
    utterances = [Utterance(s, 'x', s, split=split) for s, split in rows]
    (fold,) = make_folds(utterances)
    assert (fold.train, fold.dev, fold.test) == (('a',), ('b',), ('c',))
    with pytest.raises(UserError, match='a2: column split puts speaker a into test here, and into train with a'):
        make_folds([*utterances, Utterance('a2', 'x', 'a', split='test')])
    with pytest.raises(UserError, match='column split: no row that is kept has dev'):
        make_folds([u for u in utterances if u.split != 'dev'])


@pytest.mark.parametrize('how', ['2', '99', 'many', '3.5'])
def test_impossible_folds_are_refused(how):
    with pytest.raises(UserError, match='--folds'):
        make_folds([Utterance(f'{s}', 'a', f'{s}') for s in range(6)], how)


def test_two_speakers_are_too_few():
    with pytest.raises(UserError, match='3 are needed'):
        make_folds([Utterance(f'{s}', 'a', f'{s}') for s in range(2)])


@pytest.mark.parametrize('seed', range(25))
@pytest.mark.parametrize('by', ['utterance', 'speaker'])
def test_halves_are_disjoint_complete_and_even(by, seed):
    rng = np.random.default_rng(seed)
    n_speakers = rng.integers(2, 20)
    speakers = np.array([f's{i}' for i in range(n_speakers) for _ in range(12)])
    labels = rng.integers(0, 4, len(speakers))
    first, second = halves(labels, speakers, by, seed)
    assert sorted([*first, *second]) == list(range(len(labels)))
    if by == 'utterance':
        counts = np.stack([np.bincount(labels[half], minlength=4) for half in (first, second)])
        assert (np.abs(counts[0] - counts[1]) <= 1).all() and abs(len(first) - len(second)) <= 4
    else:
        assert not set(speakers[first]) & set(speakers[second])
        assert abs(len(set(speakers[first])) - len(set(speakers[second]))) <= 1
    again = halves(labels, speakers, by, seed)
    assert all(map(np.array_equal, again, (first, second)))
    if by == 'utterance':
        assert not np.array_equal(halves(labels, speakers, by, seed + 1)[0], first)


def test_of_odd_classes_the_halves_take_turns_with_one_more():
    """Else one half would have an utterance more of every class."""
    labels = np.repeat(range(6), 3)
    first, second = halves(labels, ['a'] * len(labels), 'utterance', 0)
    assert np.bincount(labels[first]).tolist() == [1, 2, 1, 2, 1, 2] and len(first) == len(second)


def test_halves_by_speaker_are_as_alike_as_any():
    speakers = np.repeat(list('abcdef'), [3, 9, 4, 17, 8, 5])
    labels = np.random.default_rng(0).integers(0, 3, len(speakers))

    def difference(names):
        counts = [np.bincount(labels[np.isin(speakers, names) == inside], minlength=3) for inside in (True, False)]
        return np.abs(counts[0] - counts[1]).sum()
    every = [difference(names) for names in itertools.combinations('abcdef', 3)]
    first, _ = halves(labels, speakers, 'speaker', 0)
    assert difference(sorted(set(speakers[first]))) == min(every) < sorted(every)[2]
    alike = [halves([0, 1] * 6, np.repeat(list('abcdef'), 2), 'speaker', seed)[0].tolist() for seed in range(4)]
    assert len(set(map(str, alike))) > 1  # all partitions are as good: the seed decides


def test_without_a_split_all_utterances_are_for_w():
    first, second = halves([0, 1, 0], ['a'] * 3, 'none', 0)
    assert first.tolist() == [0, 1, 2] and not len(second)


def test_what_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match='two training speakers'):
        halves([0, 1, 0, 1], ['a'] * 4, 'speaker', 0)
    with pytest.raises(UserError, match='halved'):
        halves([0], ['a'], 'utterance', 0)


@pytest.mark.speech
@pytest.mark.parametrize('dataset', ['emodb', 'ravdess', 'nemo'])
def test_real_corpora_have_disjoint_folds(dataset, ser_data):
    utterances = scan(dataset, str(ser_data / dataset))
    for how in ('default', 'loso', '4'):
        check(folds_of(dataset, utterances, how), utterances)
    gender = {u.speaker: u.gender for u in utterances}
    if dataset == 'emodb':
        for fold in folds_of(dataset, utterances, 'default'):
            assert sorted(gender[s] for s in fold.test) == sorted(gender[s] for s in fold.dev) == ['f', 'm']


def test_the_synthetic_corpus_has_disjoint_folds(tmp_path):
    touch(tmp_path, *(f'{speaker:02d}_{emotion}_{take:02d}.wav' for speaker, emotion, take in synthetic.TAKES))
    utterances = scan('synthetic', str(tmp_path))
    for how in ('default', 'loso', '7'):
        check(folds_of('synthetic', utterances, how), utterances)
