"""Audio, cached features, checkpoints and results with anything in them: one line, or made anew."""
import json
import os
import struct

import numpy as np
import pytest
import soundfile
import torch
from conftest import FEATURES
from test_features import CONFIG, WAVE, write
from test_run import DATA, made, run

import augment
import config as cf
import utils
from config import UserError
from datasets import features as ft
from datasets import frames, recording
from datasets.scoring import plot_confusion
from datasets.utterance import Utterance
from models import parallel


def header(path, rate=16_000, n_bytes=None):
    """A WAV of one second whose header names another rate or size."""
    soundfile.write(path, WAVE[:16_000], 16_000)
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack('<I', rate)
    if n_bytes is not None:
        data[4:8], data[40:44] = struct.pack('<I', n_bytes + 36), struct.pack('<I', n_bytes)
    path.write_bytes(data)
    return Utterance(str(path), 'x', 'a')


@pytest.mark.parametrize('rate', [1, 10, 50, 999, 1_000_000, 10 ** 9])
def test_a_rate_that_no_recorder_has_is_refused_before_it_is_resampled(rate, tmp_path):
    with pytest.raises(UserError, match=f'x.wav: ({rate} samples per second|cannot be read as audio)'):
        ft.load_audio(header(tmp_path / 'x.wav', rate))
    with pytest.raises(UserError, match=f'x.wav: ({rate} samples per second|cannot be read as audio)'):
        next(recording.read(str(tmp_path / 'x.wav')))  # of a long one


@pytest.mark.parametrize('name', ['x.raw', 'x.RAW', 'x', 'x.txt', 'x.wav'])
def test_a_file_that_is_no_audio_is_named_whatever_its_suffix(name, tmp_path):
    (tmp_path / name).write_bytes(b'no audio' * 1_000)
    with pytest.raises(UserError, match=f'{name}: cannot be read as audio'):
        ft.load_audio(Utterance(str(tmp_path / name), 'x', 'a'))


def test_a_name_that_is_not_utf_8_is_told_of_like_any_file_that_cannot_be_used(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b'/m\xe4.wav')
    soundfile.write(str(tmp_path / 'x.wav'), np.zeros(16_000), 16_000)
    os.rename(tmp_path / 'x.wav', path)
    with pytest.raises(UserError, match='m.*wav'):
        recording.features(Utterance(path, 'sad', 'ann'), cf.SearchConfig(name='x'))


def test_times_beyond_the_file_are_cut(tmp_path):
    path = write(tmp_path / 'x.wav').path
    whole = ft.load_audio(Utterance(path, 'x', 'a'))
    np.testing.assert_array_equal(ft.load_audio(Utterance(path, 'x', 'a', end=1e308)), whole)
    seconds = len(whole) / 16_000
    for end, noted in ((seconds + 1., True), (seconds + .1, True), (seconds + .04, False), (seconds, False), (None, False)):
        notes = ft.read_audio(Utterance(path, 'x', 'a', start=.1, end=end)).notes
        assert notes == ((f'ends at {seconds:.2f} s, before its segment does, at {end:g} s',) if noted else ())
    with pytest.raises(UserError, match='0 samples of audio'):
        ft.load_audio(Utterance(path, 'x', 'a', start=1e308))


class Promising:
    """A SoundFile whose header promises more than there is, as a FLAC or MP3 file can."""

    def __init__(self, frames, there):
        self.frames, self.left, self.asked = frames, there, []
        self.samplerate, self.channels, self.format, self.extra_info = 16_000, 2, 'FLAC', ''

    __enter__, __exit__, seek = (lambda self: self), (lambda *_: None), (lambda *_: 0)

    def read(self, n, **_):
        self.asked.append(n)
        n = min(n, self.left)
        self.left -= n
        return np.ones((n, 2), np.float32) * np.arange(n)[:, None].astype(np.float32)


def test_a_header_that_promises_terabytes_is_not_believed(monkeypatch):
    for n_frames, said in ((2 ** 40, 'hours by its header'), (16_000 * 3_000, None)):
        f = Promising(n_frames, 20_000)
        monkeypatch.setattr(soundfile, 'SoundFile', lambda path, f=f: f)
        if said:
            with pytest.raises(UserError, match=said):
                ft.read_audio(Utterance('x', 'x', 'a'))
            assert not f.asked
        else:
            audio = ft.read_audio(Utterance('x', 'x', 'a'))
            assert len(audio.wave) == 20_000 and max(f.asked) * f.channels <= ft.BLOCK and 'cut short' in audio.notes[0]


def test_a_long_recording_that_was_cut_short_is_what_there_is_of_it(tmp_path, monkeypatch):
    """An MP3 promises as many samples as were written. libsndfile's blocks would go on with memory that nothing filled."""
    path = tmp_path / 'x.mp3'
    soundfile.write(path, np.random.default_rng(0).uniform(-.1, .1, 16_000 * 9), 16_000)
    path.write_bytes(path.read_bytes()[:20_000])
    u = Utterance(str(path), 'x', 'a')
    there = ft.load_audio(u)
    assert 2 < len(there) / 16_000 < 8 < soundfile.info(path).duration
    monkeypatch.setattr(recording, 'LONG', 1)
    np.testing.assert_allclose(np.concatenate([*recording.read(str(path))]), there, atol=1e-6)
    notes = []
    recording.features(u, cf.SearchConfig(name='x'), warn=notes.append)
    assert notes == [f'NOTE: {path} holds less audio than its header says: it was cut short']


def test_a_flac_from_a_pipe_does_not_say_how_long_it_is(tmp_path):
    path = tmp_path / 'x.flac'
    soundfile.write(path, WAVE, 16_000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xf0  # STREAMINFO: 36 bits of the number of samples
    data[22:26] = bytes(4)
    path.write_bytes(data)
    u = Utterance(str(path), 'x', 'a')
    for read in (ft.read_audio, lambda u: recording.features(u, cf.SearchConfig(name='x'))):
        with pytest.raises(UserError, match='x.flac: its header does not say how long it is'):
            read(u)
    assert frames._seconds(u) == 0.  # so that the room on the disk is judged by the others


@pytest.mark.parametrize('scale, said', [(32_767, 'peaks at '), (-32_767, 'peaks at '), (0, 'is silent'), (2, None)])
def test_silence_and_samples_of_16_bits_in_a_file_of_floats_are_noted(scale, said, tmp_path, monkeypatch):
    u, told = write(tmp_path / 'x.wav', np.abs(WAVE) * scale, subtype='FLOAT'), []  # of one sign
    notes = ft.read_audio(u).notes
    assert len(notes) == bool(said) and all(note.startswith(said) for note in notes)
    monkeypatch.setattr(recording, 'LONG', 1)
    assert len([*recording.read(u.path, told.append)]) > 1 and (*told,) == notes  # in blocks


def test_a_recording_read_in_blocks_is_the_one_read_at_once(tmp_path, monkeypatch):
    stereo = np.stack([WAVE, WAVE[::-1]], axis=1)
    u = write(tmp_path / 'x.wav', stereo)
    whole = ft.load_audio(u)
    monkeypatch.setattr(ft, 'BLOCK', 1_000)
    np.testing.assert_array_equal(ft.load_audio(u), whole)
    assert ft.read_audio(u).notes == () and ft.read_audio(u).format == 'WAV 16000 Hz 2 channels'


@pytest.mark.parametrize('n_bytes, noted', [(64_000, True), (0x7fff_ffff, False), (0xffff_ffff - 36, False), (32_000, False)])
def test_a_wave_cut_short_is_noted_but_not_one_of_a_pipe(n_bytes, noted, tmp_path):
    audio = ft.read_audio(header(tmp_path / 'x.wav', n_bytes=n_bytes))
    assert len(audio.wave) == 16_000 and bool(audio.notes) == noted


def test_features_are_never_infinite(tmp_path):
    wave = WAVE.copy()
    wave[1_000:1_020] = 1e20
    u = write(tmp_path / 'loud.wav', wave, subtype='FLOAT')
    with pytest.raises(UserError, match='loud.wav: its samples are so large that features overflow'):
        ft.cached_features([u], CONFIG, str(tmp_path / 'cache'), quiet=True)
    assert not list(tmp_path.glob('cache/*/*.npy'))


NAN = np.full((40, 9), np.nan, np.float16)
DAMAGED = {
    'shape': np.zeros((39, 9), np.float16), 'dtype': np.zeros((40, 9)), 'int': np.zeros((40, 9), int),
    'text': np.full((40, 9), 'x'), 'complex': np.zeros((40, 9), complex), 'date': np.zeros((40, 9), 'M8[s]'),
    'empty': np.zeros((40, 0), np.float16), 'nan': NAN, 'infinite': np.full((40, 9), np.inf, np.float16),
    'flat': np.zeros(360, np.float16), 'pickle': np.array([{}], object)}
HEADERS = ["'shape': (40, 10**9), }", "'shape': (40, 99999999999999999999), }", "'shape': (True, 160), }",
           "'shape': ((((", '', '[']


@pytest.mark.parametrize('how', [*DAMAGED, *HEADERS, 'zip', 'cut', 'longer'])
def test_a_damaged_file_of_the_cache_is_made_anew(how, tmp_path):
    u, cache = write(tmp_path / 'x.wav'), str(tmp_path / 'cache')
    expected = ft.cached_features([u], CONFIG, cache, quiet=True).features[0]
    path, = tmp_path.glob('cache/*/*.npy')
    good = path.read_bytes()
    np.testing.assert_array_equal(np.load(path), expected)  # the form of numpy.save
    assert ft.cached_features([u], CONFIG, cache, quiet=True).extracted == 0
    if how in DAMAGED:
        np.save(path, DAMAGED[how], allow_pickle=True)
    elif how in HEADERS:
        start = "{'descr': '<f2', 'fortran_order': True, "
        path.write_bytes(good[:10] + (start + how).encode().ljust(117) + b'\n' + good[128:])
    else:
        path.write_bytes({'zip': b'PK\x03\x04' + good, 'cut': good[:-2], 'longer': good + b'\0\0'}[how])
    found = ft.cached_features([u], CONFIG, cache, quiet=True)
    assert found.extracted == 1 and path.read_bytes() == good
    np.testing.assert_array_equal(found.features[0], expected)


def test_an_index_cannot_lead_out_of_the_cache(tmp_path):
    u, cache = write(tmp_path / 'x.wav'), tmp_path / 'cache'
    index = ft.open_index(str(cache), CONFIG)
    stamp = [(s := (tmp_path / 'x.wav').stat()).st_size, s.st_mtime_ns, s.st_ctime_ns]
    cache.mkdir()
    for key in ('/tmp/x', '../../x', 5, None, ['a']):
        open(index.path, 'w').write(json.dumps({u.path: [stamp, {'None None': key}]}))
        assert ft.open_index(str(cache), CONFIG).key(u) == ft.cache_key(u, CONFIG)


def state():
    net = torch.nn.Linear(2, 2)
    optim = torch.optim.SGD(net.parameters(), .1, momentum=.9)
    net(torch.ones(1, 2)).sum().backward()
    optim.step()
    return parallel.State(0, torch.device('cpu'), net=net, optim=optim,
                          scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optim, 3))


ROW = {'epoch': 1, 'train': {'ua': .5}, 'seconds': 1.}
CHANGES = [(name, None) for name in ('mean', 'std', 'history', 'rng', 'net', 'optim', 'scheduler')] + [
    ('mean', [0.]), ('std', 'x'), ('history', 5), ('history', [{}]), ('history', [ROW, ROW]), ('history', None), ('net', {}),
    ('net', {'weight': torch.ones(3, 3), 'bias': torch.ones(2)}), ('rng', {'shared': torch.zeros(3), 'ranks': []}), ('rng', 5),
    ('optim', {'state': {0: {'momentum_buffer': torch.ones(9)}, 1: {'momentum_buffer': torch.ones(2)}}, 'param_groups': None}),
    ('scheduler', {'last_epoch': 'x'}), ('optim groups', {'momentum': (.9, .9)}), ('optim groups', {'lr': 'x'})]


@pytest.mark.parametrize('name, value', CHANGES)
def test_a_checkpoint_with_another_content_is_named(name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = made()
    tree = {**state().state_dict(), 'mean': DATA.mean, 'std': DATA.std, 'digest': DATA.digest, 'history': [ROW]}
    torch.save(tree, first.file('checkpoint.pt'))
    again = run(resume=True)
    state().load(again.open(DATA), lambda *_: None)  # as it is, it is taken
    again.close()
    if isinstance(value, dict) and value.get('param_groups', 0) is None:
        value['param_groups'] = tree['optim']['param_groups']
    if name == 'optim groups':
        name, value = 'optim', {**tree['optim'], 'param_groups': [{**tree['optim']['param_groups'][0], **value}]}
    tree = {k: v for k, v in tree.items() if k != name} if value is None else {**tree, name: value}
    torch.save(tree, first.file('checkpoint.pt'))
    again = run(resume=True)
    with pytest.raises(UserError, match='checkpoint.pt: .*--overwrite') as error:
        checkpoint = again.open(DATA)
        with again.reading():
            state().load(checkpoint, lambda *_: None)
    assert len(str(error.value)) < 500
    again.lock and again.lock.close()


@pytest.mark.parametrize('text', ['[1]', 'x', '3', '', 'a: [', 'x: ' + '[' * 900, 'seed: ' + '1' * 5_000, 'format: x',
                                  'name: 2024-13-45'])
def test_damaged_settings_of_a_run_are_called_damaged(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / made().file('config.yaml')).write_text(text)
    with pytest.raises(UserError, match='config.yaml is damaged .*--overwrite'):
        run(resume=True)
    (tmp_path / run(overwrite=True).file('config.yaml')).write_bytes(b'\xff\xfe')
    with pytest.raises(UserError, match='config.yaml is damaged'):
        run(resume=True)


def test_labels_that_are_formulas_markup_or_bad_mathematics_do_no_harm(tmp_path, small_corpus, monkeypatch):
    """A label such as $\\bad$ once ended the training in a picture."""
    monkeypatch.chdir(tmp_path)
    text = small_corpus.read_text().replace('angry,', '$\\bad$,').replace('sad,', '=1+1,').replace('spk', '=HYPERLINK')
    lines = [f'{small_corpus.parent}/{line}' if i else line for i, line in enumerate(text.splitlines())]
    (tmp_path / 'm.csv').write_text('\n'.join(lines).replace('s0_$\\bad$', 's0_angry'))
    augment.main(['--name', 'x', '--dataset', 'manifest', '--data_path', 'm.csv', *FEATURES, '--model', 'rnn', '--params',
                  '300', '--epochs', '1'])
    rows = [line.split(',') for line in (tmp_path / 'runs/augment/x/predictions.csv').read_text().splitlines()[1:]]
    assert rows and all(cell[0] not in '=+-@' for row in rows for cell in row)
    assert {cf.from_csv_cell(row[2]) for row in rows} == {'$\\bad$', '=1+1'}


def test_a_confusion_matrix_of_bad_mathematics_is_drawn(tmp_path):
    plot_confusion(np.array([0, 1]), np.array([0, 1]), ['$\\bad$', '<b>'], '$\\bad$').savefig(tmp_path / 'x.png')


def test_out_of_memory_names_the_batch_and_what_to_lower(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one, codes = run(batch_size=7), []
    one.open(DATA)

    def fail():
        raise torch.OutOfMemoryError('CUDA out of memory')
    utils.cli(fail, leave=codes.append)
    said = capsys.readouterr().err
    assert codes == [2] and said.count('\n') == 1
    assert all(part in said for part in ('out of memory on the GPU', '--batch_size 7', 'lower', '--resume'))
    utils.cli(lambda: torch.empty(10 ** 15), leave=codes.append)
    assert codes == [2, 2] and 'out of memory on the host' in capsys.readouterr().err

