"""--normalise speaker: each speaker by all that they say, and by nothing else."""
import json

import numpy as np
import pytest
import soundfile
import torch
from conftest import write_corpus
from sklearn.preprocessing import StandardScaler

import augment
import config as cf
import datasets
import genotypes as gt
import utils
from datasets import features as ft
from datasets.dataset import SpeechDataset
from scripts import svm


def load(corpus, cache, splits=('train', 'dev', 'test'), normalise='speaker', **kwargs):
    config = cf.SvmConfig(name='x', dataset='manifest', data_path=str(corpus), n_mels=8, cache=str(cache), normalise=normalise)
    return datasets.load(config, splits, **kwargs)


def of_speaker(part, speaker):
    """Frames (F, T) of all that a speaker says."""
    chosen = [i for i, u in enumerate(part.utterances) if u.speaker == speaker]
    return np.concatenate([part.frames[:, part.offsets[i]:part.offsets[i] + part.lengths[i]].numpy() for i in chosen], axis=1)


@pytest.mark.parametrize('train_on_dev', [False, True])
def test_every_speaker_as_scikit_learn_scales_them(tmp_path, train_on_dev):
    small_corpus = write_corpus(tmp_path / 'c', n_takes=5)  # 10 recordings a speaker
    raw = load(small_corpus, tmp_path, normalise='corpus', train_on_dev=train_on_dev)
    data = load(small_corpus, tmp_path, train_on_dev=train_on_dev)
    assert data.digest == raw.digest and len(data.sets) == 3 - train_on_dev
    for name, part in data.sets.items():
        assert [u.path for u in part.utterances] == [u.path for u in raw.sets[name].utterances]
        for speaker in {u.speaker for u in part.utterances}:
            own = of_speaker(raw.sets[name], speaker).astype(np.float64)
            np.testing.assert_allclose(of_speaker(part, speaker), StandardScaler().fit_transform(own.T).T, atol=5e-3)
    torch.testing.assert_close(data.mean, torch.zeros(8, 1), atol=1e-3, rtol=0)
    torch.testing.assert_close(data.std, torch.ones(8, 1), atol=1e-3, rtol=0)


def test_neither_labels_nor_other_sets_nor_other_speakers_matter(tmp_path):
    csv = write_corpus(tmp_path / 'c')
    before = load(csv, tmp_path / 'cache')
    without = load(csv, tmp_path / 'cache', ('train', 'dev'))  # as in search.py
    other, test = write_corpus(tmp_path / 'other', shift=7), before.sets['test'].utterances
    changed = {u.path for u in test if u.speaker == test[0].speaker}
    for path in changed:
        (tmp_path / 'c' / path).write_bytes((other.parent / path.rsplit('/')[-1]).read_bytes())
    after = load(csv, tmp_path / 'cache')
    for name in ('train', 'dev'):
        assert torch.equal(before.sets[name].frames, without.sets[name].frames)
        assert torch.equal(before.sets[name].frames, after.sets[name].frames)
    for u in test:
        same = np.array_equal(of_speaker(before.sets['test'], u.speaker), of_speaker(after.sets['test'], u.speaker))
        assert same == (u.path not in changed)
    rows = csv.read_text().splitlines()
    rows[1::3] = [row.replace(',angry,', ',calm,').replace(',sad,', ',angry,').replace(',calm,', ',sad,') for row in rows[1::3]]
    csv.write_text('\n'.join(rows))
    swapped = load(csv, tmp_path / 'cache')
    assert swapped.digest != after.digest
    for name, part in swapped.sets.items():
        assert torch.equal(part.frames, after.sets[name].frames)


def test_a_microphone_of_ones_own_is_taken_off(tmp_path):
    """A fixed filter and gain, below which no band is silent, shift a speaker's log-mel by a constant a band."""
    csv = write_corpus(tmp_path / 'c', n_takes=5)
    before = {how: load(csv, tmp_path / 'cache', normalise=how) for how in ('speaker', 'corpus')}
    speaker = before['speaker'].fold.test[0]
    for u in before['speaker'].sets['test'].utterances:
        if u.speaker == speaker:
            wave, rate = soundfile.read(u.path)
            soundfile.write(u.path, .3 * wave, rate, subtype='FLOAT')
    change = {how: np.abs(of_speaker(data.sets['test'], speaker).astype(np.float64)
                          - of_speaker(load(csv, tmp_path / 'cache', normalise=how).sets['test'], speaker)).mean()
              for how, data in before.items()}
    assert change['speaker'] < .1 and change['corpus'] > 2  # log(.3^2) is -2.4


def test_a_speaker_who_is_silent_stays_finite():
    silent = [np.full((8, 20), np.log(ft.FLOOR), np.float16)]
    utterances = [type('Utterance', (), {'speaker': 'a'})]
    found = datasets.by_speaker(utterances, silent, (torch.zeros(8, 1), torch.ones(8, 1)))[0]
    assert found.dtype == np.float16 and np.abs(found).max() < 1e3
    assert SpeechDataset(utterances, [found], [0], torch.zeros(8, 1), torch.ones(8, 1), 20).frames.isfinite().all()


def test_results_and_log_say_it_and_a_run_keeps_it(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ['--dataset', 'manifest', '--data_path', str(small_corpus), '--n_mels', '16', '--hop_ms', '32']
    network = ['--duration', '0.8',
               '--device', 'cpu', '--model', 'rnn', '--params', '300', '--epochs', '1', '--batch_size', '10']
    scores = {}
    for how in ('speaker', 'corpus'):
        augment.main(['--name', how, *argv, *network, '--normalise', how])
        svm.main(['--name', f'svm-{how}', *argv, '--normalise', how])
        for run in (how, f'svm-{how}'):
            folder = tmp_path / 'runs/augment' / run
            results = json.loads((folder / 'results.json').read_text())
            assert results['normalise'] == how
            log = next(folder.glob('*.log')).read_text()
            assert ('each speaker normalised' in log) == ('the fewest are 8, of spk' in log) == (how == 'speaker')
            assert ('NOTE: 6 of 6 speakers have fewer than 10' in log) == (how == 'speaker')
            scores[run] = (folder / 'predictions.csv').read_text()
    assert len(set(scores.values())) == 4
    assert torch.load('runs/augment/speaker/best.pt')['settings']['normalise'] == 'speaker'
    with pytest.raises(utils.UserError, match='--resume: normalise is'):
        augment.main(['--name', 'speaker', *argv, *network, '--resume', '--normalise', 'corpus'])


def test_other_features_than_the_search_had_are_noted(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cell = [[('skip_connect', 0), ('max_pool_3x3', 1)]]
    genotype = gt.Genotype(cell, [2], cell, [2], [[('gru_1', 0), ('skip_connect', 1)]], [2])
    had = dict(features='logmel', n_mels=16, hop_ms=32., time_pool=1, duration=.8)  # older than trim_db and normalise
    gt.save(tmp_path / 'g.json', genotype, {'features': had, 'network': {'init_channels': 2, 'rnn_channels': 4}})
    argv = ['--genotype', 'g.json', '--dataset', 'manifest', '--data_path', str(small_corpus), '--epochs', '1',
            '--device', 'cpu']
    for name, flags, note in (('as', [], None), ('other', ['--normalise', 'speaker', '--duration', '1'],
                                                 'normalise speaker (there corpus), duration 1.0 (there 0.8)\n')):
        augment.main(['--name', name, *argv, *flags])
        notes = [line for line in open(f'runs/augment/{name}/augment.log') if 'differ from those of the search' in line]
        assert [line.split('search: ')[1] for line in notes] == ([note] if note else [])
