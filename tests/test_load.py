"""datasets.load: sets of one fold, normalised by the training speakers alone."""
import shutil
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from conftest import write_corpus
from test_dataset import check_same_batches

import config as cf
import datasets
from datasets.dataset import statistics


def load(csv, tmp_path, splits=('train', 'dev', 'test'), rank=0, world_size=1, **settings):
    config = cf.SearchConfig(name='x', dataset='manifest', data_path=str(csv), cache=str(tmp_path / 'cache'), duration=1.,
                             **settings)
    return datasets.load(config, splits, rank=rank, world_size=world_size)


def rows_of(csv):
    """The header, and the rows with absolute paths."""
    head, *rows = csv.read_text().splitlines()
    return head, [f'{csv.parent}/{row}' for row in rows]


def test_features_on_the_device_and_on_the_host_give_the_same_batches(small_corpus, tmp_path):
    one, other = (load(small_corpus, tmp_path, resident=how) for how in ('auto', 'never'))
    assert all(one.sets[name].resident and not other.sets[name].resident for name in one.sets)
    check_same_batches(one.sets['train'], other.sets['train'])


def test_every_set_knows_its_share(small_corpus, tmp_path):
    for part in load(small_corpus, tmp_path, rank=1, world_size=2).sets.values():
        assert (part.rank, part.world_size, part.n_frames) == (1, 2, 31)  # 1 s of 16 ms hops, pooled by 2
        assert [len(y) for _, y in part.batches(4)] == [2] * part.n_batches(4)


def test_statistics_are_numpys():
    parts = [np.random.randn(4, n).astype(np.float32) * 3 + 1 for n in (5, 9)]
    mean, std = statistics(parts)
    np.testing.assert_allclose(mean[:, 0], np.concatenate(parts, axis=1).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(std[:, 0], np.concatenate(parts, axis=1).std(axis=1), rtol=1e-5)


def test_statistics_of_a_large_corpus_neither_round_nor_copy_it():
    parts = [(np.random.randn(4, 1000) * .3 - 13.).astype(np.float16) for _ in range(500)]  # 4 MB, near silence
    whole = np.concatenate(parts, axis=1).astype(np.float64)
    tracemalloc.start()
    mean, std = statistics(parts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_max_ulp(mean[:, 0].numpy(), whole.mean(axis=1).astype(np.float32))
    np.testing.assert_array_max_ulp(std[:, 0].numpy(), whole.std(axis=1).astype(np.float32))
    assert peak < sum(x.nbytes for x in parts) / 10


def test_normalisation_uses_the_training_speakers_alone(tmp_path):
    csv = write_corpus(tmp_path / 'c')
    before = load(csv, tmp_path)
    train = before.sets['train']
    frames = (train.frames - train.mean[..., 0]) / train.std[..., 0]
    torch.testing.assert_close(frames.mean(dim=1), torch.zeros(32), atol=1e-3, rtol=0)
    torch.testing.assert_close(frames.std(dim=1), torch.ones(32), atol=1e-3, rtol=0)
    other = write_corpus(tmp_path / 'other', shift=7)
    for u in before.fold.split(datasets.scan('manifest', str(csv)), 'test'):
        (tmp_path / 'c' / u.path).write_bytes((other.parent / u.path.rsplit('/')[-1]).read_bytes())
    after = load(csv, tmp_path)
    assert torch.equal(before.mean, after.mean) and torch.equal(before.std, after.std)
    assert torch.equal(before.sets['train'].frames, after.sets['train'].frames)
    assert torch.equal(before.sets['dev'].frames, after.sets['dev'].frames)
    assert not torch.equal(before.sets['test'].frames[:, :20], after.sets['test'].frames[:, :20])


def test_sets_that_were_not_asked_for_are_not_read(tmp_path):
    csv = write_corpus(tmp_path / 'c')
    fold = load(csv, tmp_path).fold
    for u in fold.split(datasets.scan('manifest', str(csv)), 'test'):
        open(u.path, 'w').close()
    assert set(load(csv, tmp_path, ('train', 'dev')).sets) == {'train', 'dev'}
    with pytest.raises(cf.UserError, match='wav'):
        load(csv, tmp_path)


def test_class_weights_are_scikit_learns(tmp_path):
    from sklearn.utils.class_weight import compute_class_weight
    csv = write_corpus(tmp_path / 'c')
    lines = csv.read_text().splitlines()
    csv.write_text('\n'.join([*lines[:1], *[line for line in lines[1:] if 'sad_3' not in line and 'sad_2' not in line]]))
    data = load(csv, tmp_path)
    y = data.sets['train'].labels.numpy()
    np.testing.assert_allclose(data.class_weights, compute_class_weight('balanced', classes=np.array([0, 1]), y=y), rtol=1e-6)


@pytest.mark.parametrize('settings, named', [(dict(fold=9), '--fold 9: must be from 1 to 5'), (dict(folds='2'), '--folds 2'),
                                             (dict(labels='sad'), '--fold 1: there is only one class')])
def test_impossible_folds_are_named(settings, named, small_corpus, tmp_path):
    with pytest.raises(cf.UserError, match=named):
        load(small_corpus, tmp_path, **settings)


def test_a_class_without_training_speakers_is_named(small_corpus, tmp_path):
    head, rows = rows_of(small_corpus)
    (tmp_path / 'm.csv').write_text('\n'.join([head, *rows]).replace('angry,spk1', 'rare,spk1'))
    with pytest.raises(cf.UserError, match="'rare'"):
        load(tmp_path / 'm.csv', tmp_path)


def test_audio_is_known_by_its_bytes_wherever_it_lies(tmp_path):
    csv = write_corpus(tmp_path / 'a')
    found = [load(csv, tmp_path)]
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    found.append(load(tmp_path / 'b' / csv.name, tmp_path))
    assert found[0].audio == found[1].audio
    u = found[1].sets['test'].utterances[-1]
    wave, rate = soundfile.read(u.path)
    soundfile.write(u.path, wave[::-1], rate)
    other = load(tmp_path / 'b' / csv.name, tmp_path)
    assert other.audio[0] == found[0].audio[0] and other.audio[1] != found[0].audio[1]
    assert (other.digest, other.corpus) == (found[0].digest, found[0].corpus) and torch.equal(other.mean, found[0].mean)
    assert load(csv, tmp_path, ('train', 'dev')).audio != found[0].audio
    assert load(csv, tmp_path, n_mels=8).audio[0] != found[0].audio[0]


def test_recordings_that_are_read_for_their_prosody_alone_are_noted_too(tmp_path):
    csv = write_corpus(tmp_path / 'a')
    u = load(csv, tmp_path).sets['train'].utterances[0]
    soundfile.write(u.path, np.zeros(16_000), 16_000)
    silent = 'is silent'
    assert any(silent in note for note in load(csv, tmp_path).protocol['notes'])
    found = load(csv, tmp_path, prosody=True)  # log-mel is in the cache now, and prosody is not
    assert any(silent in note for note in found.protocol['notes'])


@pytest.mark.parametrize('flags, noted', [({}, False), ({'labels': 'angry,sad'}, True)])
def test_what_a_speaker_is_not_normalised_by_is_noted(flags, noted, tmp_path):
    csv = write_corpus(tmp_path, emotions=('angry', 'sad', 'happy'), n_takes=2)
    config = cf.SearchConfig(name='x', dataset='manifest', data_path=str(csv), cache=str(tmp_path / 'cache'), duration=1.,
                             normalise='speaker', **flags)
    lines = list(datasets.describe(config, datasets.load(config, ('train', 'dev'))))
    assert any('left out do not normalise their speakers' in line for line in lines) == noted


def test_the_digest_of_a_corpus_tells_whether_its_speakers_are_the_same(small_corpus, tmp_path):
    """Speakers of a search and of a retraining can only be compared if their names mean the same people."""
    head, rows = rows_of(small_corpus)

    def digests(lines, **settings):
        (tmp_path / 'm.csv').write_text('\n'.join([head, *lines]))
        data = load(tmp_path / 'm.csv', tmp_path, **settings)
        return data.corpus, data.digest
    corpus, part = digests(rows)
    assert digests(rows[::-1])[0] == corpus  # in any order of rows
    for settings in (dict(fold=2), dict(normalise='speaker'), dict(folds='3')):
        other_corpus, other_part = digests(rows, **settings)
        assert other_corpus == corpus and (other_part == part) == ('normalise' in settings)
    relabelled = [row.replace(',angry,', ',mad,') for row in rows]
    assert digests(relabelled)[0] == corpus  # the speakers are the same people
    renamed = [row.replace(',spk0,', ',spkX,').replace(',spk1,', ',spk0,').replace(',spkX,', ',spk1,') for row in rows]
    for changed in (renamed, rows[:-1]):
        assert digests(changed)[0] != corpus


def in_sessions(csv, folder, sessions):
    """The corpus with a column session; speaker number i is in sessions[i]."""
    head, rows = rows_of(csv)
    rows = [f'{row},{sessions[int(row.split(",")[2][3:])]}' for row in rows]
    (folder / 'm.csv').write_text('\n'.join([f'{head},session', *rows]))
    return folder / 'm.csv'


def described(csv, tmp_path, **settings):
    """(Data, lines of its description)"""
    config = cf.SearchConfig(name='x', dataset='manifest', data_path=str(csv), cache=str(tmp_path / 'cache'), **settings)
    data = datasets.load(config, ('train', 'dev', 'test'), quiet=True)
    return data, list(datasets.describe(config, data))


def test_partners_of_a_loso_speaker_do_not_train_and_are_counted(small_corpus, tmp_path):
    csv = in_sessions(small_corpus, tmp_path, 'ABCABC')  # spk1 and spk4 are partners; women and men take turns
    data, lines = described(csv, tmp_path, folds='loso')
    assert (data.fold.test, data.fold.dev, data.fold.left_out) == (('spk1',), ('spk0', 'spk3'), ('spk4',))
    assert [len(data.sets[name]) for name in ('train', 'dev', 'test')] == [16, 16, 8]
    assert data.protocol['kept'] == 48 and data.protocol['left_out_of_fold'] == [
        {'reason': '--folds loso: in a session with the test speaker', 'n': 8, 'first': 's4_angry_0.wav'}]
    assert 'left out of this fold: --folds loso: in a session with the test speaker 8 (first s4_angry_0.wav)' in lines
    assert not [line for line in lines if 'share sessions' in line]
    alone, lines = described(small_corpus, tmp_path, folds='loso')
    assert len(alone.sets['train']) == 24 and 'left_out_of_fold' not in alone.protocol
    assert not [line for line in lines if 'session' in line]


@pytest.mark.parametrize('folds, noted', [('6', True), ('session', False), ('speaker', False)])
def test_sessions_on_both_sides_are_noted(folds, noted, small_corpus, tmp_path):
    _, lines = described(in_sessions(small_corpus, tmp_path, 'ABCABC'), tmp_path, folds=folds)
    notes = [line for line in lines if line.startswith('NOTE: test and training speakers share sessions (B)')]
    assert len(notes) == noted


def test_the_log_tells_where_features_were_extracted_to(small_corpus, tmp_path):
    _, first = described(small_corpus, tmp_path)
    _, again = described(small_corpus, tmp_path)
    assert f'extracted the features of 48 utterances to {tmp_path}/cache/features' in first
    assert len(again) == len(first) - 1 and not [line for line in again if 'extracted' in line]
