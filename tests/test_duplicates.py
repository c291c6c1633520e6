"""One recording is one recording, whatever its files are called; and what is odd about a recording is said."""
import contextlib
import os
import re
import shutil

import numpy as np
import pytest
import soundfile
from conftest import write_corpus

import config as cf
import datasets
from config import UserError
from datasets import duplicates
from datasets.utterance import Utterance
from scripts import corpus as corpus_script


def config(csv, cache, **more):
    return cf.SearchConfig(name='x', dataset='manifest', data_path=str(csv), cache=str(cache), n_mels=16, duration=.8, **more)


def add(csv, *rows):
    csv.write_text(csv.read_text() + '\n'.join(rows) + '\n')


@pytest.fixture
def csv(tmp_path):
    return write_corpus(tmp_path / 'c', n_takes=2)


@pytest.mark.parametrize('how', ['link', 'hard link', 'copy', 'other path', 'absolute path'])
@pytest.mark.parametrize('row', ['angry,spk2', 'sad,spk0'], ids=['other speaker', 'other label'])
def test_one_recording_of_two_speakers_or_labels_is_refused(how, row, csv, tmp_path):
    first, other = csv.parent / 's0_angry_0.wav', csv.parent / 'other.wav'
    {'link': lambda: other.symlink_to(first), 'hard link': lambda: os.link(first, other),
     'copy': lambda: shutil.copy(first, other)}.get(how, lambda: None)()
    name = {'other path': f'../c/{first.name}', 'absolute path': f'{first.parent}/../c/{first.name}'}.get(how, other.name)
    add(csv, f'{name},{row},m')
    with pytest.raises(UserError, match=r's0_angry_0.wav \(.*\).* are the same recording') as error:
        datasets.load(config(csv, tmp_path / 'cache'), ('train', 'dev', 'test'), quiet=True)
    assert 'spk0, angry' in str(error.value) and ', '.join(reversed(row.split(','))) in str(error.value)
    with pytest.raises(UserError, match='are the same recording'):
        corpus_script.main(['--dataset', 'manifest', '--data_path', str(csv)])


def test_a_copy_of_one_speaker_and_label_is_only_said(csv, tmp_path, capsys):
    shutil.copy(csv.parent / 's0_angry_0.wav', csv.parent / 'copy.wav')
    add(csv, 'copy.wav,angry,spk0,m')
    data = datasets.load(config(csv, tmp_path / 'cache'), ('train', 'dev', 'test'), quiet=True)
    assert 'NOTE: 1 recordings are there twice' in '\n'.join(datasets.describe(config(csv, tmp_path), data))
    corpus_script.main(['--dataset', 'manifest', '--data_path', str(csv)])
    assert 'copy.wav' in capsys.readouterr().out.partition('durations')[0]


def test_search_refuses_a_test_recording_among_its_own_without_opening_it(csv, tmp_path):
    """Links are seen by their inode: the audio of test speakers is not read."""
    fold = datasets.select(config(csv, tmp_path))[1][0]
    add(csv, f'../c/s{fold.test[0][3:]}_sad_0.wav,sad,{fold.train[0]},{"mf"[int(fold.train[0][3:]) % 2]}')
    with pytest.raises(UserError, match='are the same recording'):
        datasets.load(config(csv, tmp_path / 'cache'), ('train', 'dev'), quiet=True)


def spans(*rows):
    us = [Utterance('x.wav', label, speaker, start=start, end=end) for speaker, label, start, end in rows]
    return duplicates.check(us, ['x'] * len(us))


@pytest.mark.parametrize('rows', [
    [('a', 'x', 0, None), ('b', 'x', None, None)], [('a', 'x', 0., 2.), ('b', 'x', .5, 1.)],
    [('a', 'x', 0., 2.), ('a', 'y', .9, 3.)], [('a', 'x', None, None), ('b', 'x', 3., 4.)],
    [('a', 'x', 5., None), ('b', 'x', 0., None)], [('a', 'x', 0., 2.), ('b', 'x', .98, 4.)],
    [('a', 'x', 0., 9.), ('a', 'x', 5., 8.), ('b', 'x', 6., 20.)],
    [('a', 'x', 0., 9.), ('a', 'x', 5., 7.), ('b', 'x', 5.5, 20.)]])
def test_segments_that_are_mostly_the_same_are_refused(rows):
    with pytest.raises(UserError, match='the same recording'):
        spans(*rows)


def test_no_pair_of_segments_is_overlooked():
    """Against all pairs, of random segments."""
    rng = np.random.default_rng(0)

    def length(start, end):
        return max(0., end - start)
    refused = 0
    for _ in range(1_000):
        n = rng.integers(2, 8)
        starts, whos = rng.integers(0, 12, n).astype(float), rng.choice(['a', 'b'], n)
        ends = np.where(rng.random(n) < .1, np.inf, starts + rng.integers(1, 20, n) / 2)
        shared = [length(max(starts[[i, j]]), min(ends[[i, j]])) / min(ends[i] - starts[i], ends[j] - starts[j])
                  if np.isfinite(ends[[i, j]]).any() else 1. for j in range(n) for i in range(j) if whos[i] != whos[j]]
        rows = [(who, 'x', start, None if end == np.inf else end) for who, start, end in zip(whos, starts, ends)]
        expected = max(shared, default=0.) > duplicates.SAME
        refused += expected
        with pytest.raises(UserError, match='the same recording') if expected else contextlib.nullcontext():
            spans(*rows)
    assert 300 < refused < 900


@pytest.mark.parametrize('ends', [(.5, 1.), (.5, '')])
def test_segments_of_two_copies_are_compared_though_each_has_features_of_its_own(ends, tmp_path):
    csv = write_corpus(tmp_path / 'c', n_takes=2)
    header, *lines = csv.read_text().splitlines()
    shutil.copy(csv.parent / lines[0].partition(',')[0], csv.parent / 'copy.wav')
    rows = [f'{header},start,end', *(f'{line},,' for line in lines[1:]), f'{lines[0]},0,{ends[0]}']
    other = lines[-1].split(',')
    rows.append(','.join(['copy.wav', *other[1:], '0.1', str(ends[1])]))
    csv.write_text('\n'.join(rows) + '\n')
    with pytest.raises(UserError, match='the same recording'):
        datasets.load(config(csv, tmp_path / 'cache'), ('train', 'dev', 'test'), quiet=True)


def test_other_segments_of_a_file_are_taken():
    assert spans(('a', 'x', 0., 2.), ('b', 'x', 2., 4.), ('a', 'x', 4., None)) == []
    assert 'overlap by less than half' in spans(('a', 'x', 0., 2.), ('b', 'x', 1., 4.))[0]  # by half
    assert spans(('a', 'x', 0., 2.), ('a', 'x', 1., 3.)) == []  # sliding windows of one speaker and label
    assert 'overlap by less than half' in spans(('a', 'x', 0., 2.), ('b', 'x', 1.8, 4.))[0]  # an interruption
    many = [('a', 'x', i / 10, i / 10 + 50.) for i in range(5_000)]
    assert spans(*many) == []  # and quickly


def test_silent_and_shortened_recordings_are_said(csv, tmp_path, capsys):
    names = ['s0_angry_0.wav', 's1_sad_1.wav']
    soundfile.write(csv.parent / names[0], np.zeros(9_000), 16_000)
    whole = (csv.parent / names[1]).read_bytes()
    (csv.parent / names[1]).write_bytes(whole[:len(whole) // 2])
    data = datasets.load(config(csv, tmp_path / 'cache'), ('train', 'dev', 'test'), quiet=True)
    lines = '\n'.join(datasets.describe(config(csv, tmp_path), data))
    assert 's0_angry_0.wav is silent' in lines and '1 more recordings are silent or shorter than they should be' in lines
    corpus_script.main(['--dataset', 'manifest', '--data_path', str(csv)])
    said = capsys.readouterr().out
    assert 's0_angry_0.wav is silent' in said and 's1_sad_1.wav holds less audio than its header says' in said
    assert said.count('NOTE') == 2  # and nothing of the whole ones


@pytest.mark.parametrize('one, other, how', [
    ('ANN', 'ann', 'case alone'), ('ann', 'ann\u200b', r'ann\\u200b'), ('é', 'e\u0301', r'e\\u0301'),
    ('a b', 'a\u00a0b', r'a\\xa0b')])
def test_speakers_and_labels_that_look_alike_are_said(one, other, how, csv, tmp_path):
    text = csv.read_text().replace('spk4', one).replace('spk5', other)
    csv.write_text(text)
    _, _, report = datasets.select(config(csv, tmp_path))
    assert re.search(f'speakers .*{how}', ' '.join(report['notes']))
    csv.write_text(text.replace(f'angry,{one},', f'{one},{one},').replace(f'angry,{other},', f'{other},{other},'))
    _, _, report = datasets.select(config(csv, tmp_path))
    assert re.search(f'labels .*{how}', ' '.join(report['notes']))
