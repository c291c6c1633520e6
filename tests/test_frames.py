"""Frames from files: the cache, the batches from memory and from disk, statistics without reading the corpus, bad files."""
import shutil
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch

import config as cf
import datasets
import utils
from datasets import frames, stored
from datasets.dataset import by_speaker, statistics
from datasets.transforms import SpecAugment, Voices
from scripts import svm

D, RATE = 5, 50.


def corpus(folder, L=3, n_takes=2, dtype='f4'):
    """A manifest of random frames (L, D, T) of six speakers, without audio; returns the CSV and {file: array}."""
    draw, arrays = np.random.default_rng(0), {}
    folder.mkdir(parents=True, exist_ok=True)
    rows = ['path,label,speaker,frames']
    for i in range(12 * n_takes):
        name = f'u{i}.npy'
        shape = (L, D, int(draw.integers(10, 60)))
        arrays[name] = (draw.normal(size=shape) * 3 + i % 6).astype(dtype)
        np.save(folder / name, arrays[name] if L > 1 else arrays[name][0])
        rows.append(f'u{i}.wav,{("angry", "sad")[i // 6 % 2]},s{i % 6},{name}')
    (folder / 'm.csv').write_text('\n'.join(rows) + '\n')
    return folder / 'm.csv', arrays


def built(csv, *more, section='augment'):
    argv = ['--name', 'x', '--dataset', 'manifest', '--data_path', str(csv), '--features', 'frames', '--cache',
            str(csv.parent / 'cache'), *more]
    argv += ['--model', 'rnn', '--duration', '.5'] if section == 'augment' else []
    return frames.complete(cf.build(section, cf.given(section, argv)))


def loaded(csv, *more):
    return datasets.load(built(csv, *more), ('train', 'dev', 'test'), quiet=True)


@pytest.mark.parametrize('L', [1, 3])
@pytest.mark.parametrize('normalise', ['corpus', 'speaker'])
def test_batches_are_the_same_from_memory_and_from_disk(L, normalise, tmp_path):
    csv, _ = corpus(tmp_path, L)
    found = []
    for resident in ('always', 'never'):
        data = loaded(csv, '--resident', resident, '--normalise', normalise)
        assert isinstance(data.sets['train'].frames, stored.OnDisk) == (resident == 'never')
        draws = torch.Generator().manual_seed(0)
        changes = dict(augment=SpecAugment(1, .5, .5), voices=Voices(copypaste=.8))
        found.append([*data.sets['train'].batches(4, generator=draws, **changes),
                      *data.sets['dev'].batches(4, generator=draws), *data.sets['test'].scoring_windows(3)])
    assert len(found[0]) > 8
    for (one, y), (other, z) in zip(*found, strict=True):
        assert torch.equal(one.x, other.x) and torch.equal(one.valid, other.valid) and torch.equal(y, z)
    assert one.x.shape[1:] == ((D, 1, 25) if L == 1 else (L, D, 25))


def test_a_window_holds_the_layers_of_its_file(tmp_path):
    csv, arrays = corpus(tmp_path)
    data = loaded(csv, '--resident', 'never')
    part = data.sets['test']
    for X, owner in part.scoring_windows(1):
        array = arrays[part.utterances[owner].frames.rpartition('/')[2]].astype(np.float16).astype(np.float32)
        n = int(X.valid.sum())
        wanted = (array - data.mean.view(3, D, 1).numpy()) / data.std.view(3, D, 1).numpy()
        windows = np.lib.stride_tricks.sliding_window_view(wanted, n, axis=2)  # (L, D, T - n + 1, n)
        errors = np.abs(windows - X.x[0, :, :, X.valid[0]].numpy()[:, :, None]).max(axis=(0, 1, 3))
        assert errors.min() < 1e-5 and (X.x[0, :, :, ~X.valid[0]] == 0).all()


def test_masks_are_the_same_in_all_layers(tmp_path):
    train = loaded(corpus(tmp_path)[0]).sets['train']
    (plain, _), (masked, _) = (next(train.batches(8, generator=torch.Generator().manual_seed(1), augment=augment))
                               for augment in (None, SpecAugment(1, .9, 0.)))
    hidden = (masked.x == 0) & (plain.x != 0)  # (N, L, D, T)
    rows = hidden.any(dim=3)
    assert rows.any() and not rows.all() and (rows == rows[:, :1]).all()


@pytest.mark.parametrize('per_speaker', [False, True])
def test_statistics_come_from_what_lies_beside_the_frames(per_speaker, tmp_path):
    csv, arrays = corpus(tmp_path, n_takes=3)
    config = built(csv)
    utterances = datasets.scan('manifest', str(csv))
    there = frames.cached_frames(utterances, config, str(tmp_path / 'cache' / 'frames'), quiet=True).features
    whole = [x.reshape(3 * D, -1).astype(np.float16) for x in arrays.values()]
    if per_speaker:
        there, whole = (by_speaker(utterances, part, statistics(part)) for part in (there, whole))
        assert all(np.array_equal(one.read().T, other) for one, other in zip(there, whole))
    for one, other in zip(statistics(there), statistics(whole)):  # by_speaker rounds to float16 in `whole` alone
        torch.testing.assert_close(one, other, atol=1e-4 if per_speaker else 1e-6, rtol=1e-6)


def test_what_is_in_the_cache_is_not_made_again_and_what_is_damaged_is(tmp_path, monkeypatch):
    csv, arrays = corpus(tmp_path)
    made = []

    def counted(path, x):
        if len(made) == 7:
            made.clear()
            raise KeyboardInterrupt  # as a kill after seven files
        made.append(path)
        return write(path, x)
    write = frames.write
    monkeypatch.setattr(frames, 'write', counted)
    with pytest.raises(KeyboardInterrupt):
        loaded(csv)
    monkeypatch.setattr(frames, 'write', write)
    assert loaded(csv).extracted == len(arrays) - 7
    assert loaded(csv).extracted == 0
    first, second, *_ = sorted((tmp_path / 'cache' / 'frames').glob('*/*.npy'))
    first.write_bytes(first.read_bytes()[:-1])
    second.write_bytes(b'\x93NUMPY\x03' + second.read_bytes()[7:])
    assert loaded(csv).extracted == 2
    assert np.load(first).shape[1] == 3 * D  # any program reads it
    np.save(tmp_path / 'u0.npy', np.zeros((3, D, 9), 'f4'))
    assert loaded(csv).extracted == 1


def test_a_file_that_goes_while_it_is_needed_is_named(tmp_path):
    csv, _ = corpus(tmp_path)
    data = loaded(csv, '--resident', 'never')
    shutil.rmtree(tmp_path / 'cache')
    with pytest.raises(cf.UserError, match=r'\.npy: is gone or damaged'):
        list(data.sets['test'].scoring_windows(4))


@pytest.mark.parametrize('content, message', [
    (np.zeros((4, D, 9), 'f4'), 'u3.npy: 4 layers of 5 channels, '),
    (np.zeros((9, D), 'f4'), 'u3.npy: 1 layer of 9 channels, where 3 of 5 are wanted, .* time last'),
    (np.full((3, D, 9), 1e6, 'f4'), 'u3.npy: .*not finite, or beyond 65,504'),
    (np.zeros((3, D, 9)), 'u3.npy: holds float64'),
    (np.zeros(9, 'f4'), r'u3.npy: holds float32 \(9,\)'), (np.zeros((3, D, 0), 'f4'), 'u3.npy: holds'),
    (np.array([{}], dtype=object), 'u3.npy: not a .npy file'), (b'', 'u3.npy: not a .npy file'), (b'PK', 'u3.npy: not a .npy'),
    (b'hello', 'u3.npy: not a .npy file of numbers, or cut short$')])
def test_bad_files_are_named(content, message, tmp_path):
    csv, _ = corpus(tmp_path)
    (tmp_path / 'u3.npy').write_bytes(content) if isinstance(content, bytes) else np.save(tmp_path / 'u3.npy', content)
    with pytest.raises(cf.UserError, match=message):
        loaded(csv)
    np.save(tmp_path / 'u5.npy', np.zeros((3, 6, 9), 'f2'))
    with pytest.raises(cf.UserError, match='u5.npy: 3 layers of 6 channels'):  # said together with the other
        loaded(csv)


@pytest.mark.parametrize('rows, message', [
    ('path,label,speaker\nu0.npy,a,s\n', 'has no column frames'),
    ('path,label,speaker,frames\nu0.npy,a,s,\n', 'has no column frames'),
    ('path,label,speaker,frames\nu0.wav,a,s,v.npy\n', 'line 2: no file .*v.npy')])
def test_a_manifest_without_frames_is_refused(rows, message, tmp_path):
    csv, _ = corpus(tmp_path)
    csv.write_text(rows)
    with pytest.raises(cf.UserError, match=message):
        built(csv)


def test_files_in_the_cache_must_have_the_layers_of_the_first_too(tmp_path):
    csv, _ = corpus(tmp_path)
    loaded(csv)
    np.save(tmp_path / 'odd.npy', np.zeros((D, 3, 20), np.float32))  # as many rows, in other layers
    head, *rows = csv.read_text().splitlines()
    csv.write_text('\n'.join([head, 'odd.wav,sad,s0,odd.npy', *rows]) + '\n')
    with pytest.raises(cf.UserError, match=rf'u0.npy: 3 layers of {D} channels, where {D} of 3 are wanted, as the first file'):
        loaded(csv)


def test_an_empty_cell_names_its_row_and_other_corpora_have_no_frames(tmp_path):
    csv, _ = corpus(tmp_path)
    (tmp_path / 'u3.wav').touch()
    csv.write_text(csv.read_text().replace('s3,u3.npy', 's3,'))
    with pytest.raises(cf.UserError, match='u3.wav: column frames is empty'):
        loaded(csv)
    with pytest.raises(cf.UserError, match='--features frames needs --dataset manifest'):
        frames.complete(cf.build('svm', cf.given('svm', ['--name', 'x', '--features', 'frames'])))


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    csv, _ = corpus(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: namedtuple('Usage', 'free')(1000))
    with pytest.raises(cf.UserError, match='24 files of frames will take .* GB, but its disk has .* GB free'):
        loaded(csv)
    assert not list(tmp_path.glob('cache/**/*.npy'))


def test_frames_stay_in_memory_where_they_take_a_quarter_of_it(tmp_path, monkeypatch):
    csv, arrays = corpus(tmp_path)
    n_bytes = 2 * sum(x.size for x in arrays.values())
    for free, held in ((4 * n_bytes, True), (4 * n_bytes - 4, False)):
        monkeypatch.setattr(utils, 'free_memory', lambda device: free)  # noqa: B023
        data = loaded(csv)
        assert {part.resident for part in data.sets.values()} == {held}
        line = next(line for line in datasets.describe(built(csv), data) if 'frames of' in line)
        assert ('3 layers of 5 channels, 50 per second' in line) and ('held in memory' in line) == held


def test_one_file_for_two_speakers_is_refused(tmp_path):
    csv, _ = corpus(tmp_path)
    shutil.copy(tmp_path / 'u0.npy', tmp_path / 'u1.npy')
    with pytest.raises(cf.UserError, match='u[01].npy .* and .*u[01].npy .* are the same recording'):
        loaded(csv)


@pytest.mark.parametrize('resident', ['always', 'never'])
def test_the_svm_reads_frames(resident, tmp_path):
    csv, arrays = corpus(tmp_path)
    part = datasets.load(built(csv, '--resident', resident, section='svm'), ('train', 'test'), quiet=True).sets['test']
    x = svm.functionals(part)
    array = arrays[part.utterances[1].frames.rpartition('/')[2]].reshape(3 * D, -1)
    assert x.shape == (len(part), 6 * 3 * D)
    assert np.allclose(x[1, :3 * D], array.mean(axis=1), atol=5e-3)


def test_without_transformers_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(cf.UserError, match='pip install -r requirements-encoders.txt'):
        frames.complete(cf.build('svm', cf.given('svm', ['--name', 'x', '--features', 'encoder', '--encoder', 'some/model'])))
