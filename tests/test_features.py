import hashlib
import os
import signal
import subprocess
import sys
import time

import librosa
import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT

import config as cf
from config import UserError
from datasets import features as ft
from datasets.readers import synthetic
from datasets.utterance import Utterance


def settings(n_mels=40, time_pool=1, **kwargs):
    return cf.FeatureSettings(n_mels=n_mels, time_pool=time_pool, **kwargs)


CONFIG = settings()
WAVE = synthetic.synthesise(0, 'happy', 0)


def write(path, wave=WAVE, rate=16_000):
    soundfile.write(path, wave, rate)
    return Utterance(str(path), 'happy', 'a')


@pytest.mark.parametrize('n_mels', [32, 64, 128])
def test_log_mel_is_librosas(n_mels):
    config = settings(n_mels=n_mels)
    mel = librosa.feature.melspectrogram(y=WAVE, sr=16_000, n_fft=ft.N_FFT, win_length=ft.WIN_LENGTH, hop_length=256,
                                         n_mels=n_mels, fmin=ft.F_MIN, fmax=ft.F_MAX, htk=True, norm=None, pad_mode='reflect')
    np.testing.assert_allclose(ft.extract(WAVE, config), np.log(mel + ft.FLOOR), atol=2e-3)
    assert (ft.mel_spectrogram(n_mels, 256).mel_scale.fb.amax(dim=0) > 0).all()


def test_mfcc_is_scipys_cosine_transform():
    from scipy.fft import dct
    log_mel = ft.extract(WAVE, CONFIG)
    mfcc = ft.extract(WAVE, settings(features='mfcc', n_mels=40))
    np.testing.assert_allclose(mfcc, dct(log_mel, type=2, norm='ortho', axis=0), atol=1e-3)


def test_time_pool_keeps_every_frame():
    whole, pooled = ft.extract(WAVE, CONFIG), ft.extract(WAVE, settings(n_mels=40, time_pool=4))
    assert pooled.shape[1] == -(-whole.shape[1] // 4)
    np.testing.assert_array_equal(pooled[:, -1], whole[:, 4 * (pooled.shape[1] - 1):].max(axis=1))
    assert settings(hop_ms=16, time_pool=4).frame_rate == 15.625


def test_silence_is_cut_from_both_ends():
    rng = np.random.default_rng(0)
    wave = np.concatenate([1e-4 * rng.standard_normal(9000), WAVE, 1e-4 * rng.standard_normal(7000)]).astype(np.float32)
    cut = ft.trim(wave, 30.)
    np.testing.assert_array_equal(cut, librosa.effects.trim(wave, top_db=30.)[0])
    assert len(WAVE) - 4096 < len(cut) < len(WAVE) + 4096
    np.testing.assert_array_equal(ft.extract(wave, settings(n_mels=40, trim_db=30.)), ft.extract(cut, CONFIG))
    assert np.array_equal(ft.trim(np.zeros(9000, np.float32), 30.), np.zeros(9000))  # nothing is louder than the rest


@pytest.mark.parametrize('click', [0, 300, 5000, 8999])
def test_a_click_keeps_as_many_samples_as_features_need(click):
    wave = np.zeros(9000, np.float32)
    wave[click] = 1.
    cut = ft.trim(wave, 60.)
    assert len(cut) >= ft.MIN_SAMPLES and cut.max() == 1. and ft.extract(wave, settings(n_mels=40, trim_db=60.)).size


@pytest.mark.parametrize('wrong', [dict(n_mels=2000), dict(n_mels=0), dict(hop_ms=40.), dict(hop_ms=0.), dict(features='plp'),
                                   dict(trim_db=-1.)])
def test_impossible_parameters_name_their_flag(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        ft.extract(WAVE, cf.SearchConfig(name='x', **wrong))


@pytest.mark.parametrize('rate, channels, suffix', [(16_000, 1, 'wav'), (48_000, 2, 'wav'), (44_100, 1, 'flac'),
                                                    (8_000, 1, 'wav')])
def test_any_rate_mono_or_stereo(rate, channels, suffix, tmp_path):
    tone = .3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    u = write(tmp_path / f'x.{suffix}', np.stack([tone] * channels, axis=1), rate)
    wave = ft.load_audio(u)
    assert wave.dtype == np.float32 and wave.ndim == 1 and abs(len(wave) - 16_000) <= 1
    assert np.abs(np.fft.rfft(wave)).argmax() == pytest.approx(440, abs=1)


def test_a_segment_is_the_file_cut(tmp_path):
    u = write(tmp_path / 'x.wav')
    part = ft.load_audio(Utterance(u.path, 'x', 'a', start=.5, end=1.))
    np.testing.assert_array_equal(part, ft.load_audio(u)[8000:16000])


def test_what_is_no_audio_is_named(tmp_path):
    (tmp_path / 'text.wav').write_text('no audio')
    (tmp_path / 'empty.wav').touch()
    write(tmp_path / 'short.wav', WAVE[:ft.MIN_SAMPLES - 1])
    write(tmp_path / 'nan.wav')
    soundfile.write(tmp_path / 'nan.wav', np.full(16_000, np.nan, np.float32), 16_000, subtype='FLOAT')
    for name in ('text', 'empty', 'short', 'nan', 'absent'):
        with pytest.raises(UserError, match=f'{name}.wav'):
            ft.load_audio(Utterance(str(tmp_path / f'{name}.wav'), 'x', 'a'))
    with pytest.raises(UserError, match='from 99.0 s'):
        ft.load_audio(Utterance(write(tmp_path / 'x.wav').path, 'x', 'a', start=99.))


def count_extractions(monkeypatch):
    calls, extract = [], ft.extract
    monkeypatch.setattr(ft, 'extract', lambda wave, config: calls.append(1) or extract(wave, config))
    return calls


def test_cache_is_keyed_by_content_and_parameters(tmp_path, monkeypatch):
    u, cache = write(tmp_path / 'x.wav'), str(tmp_path / 'cache')
    calls = count_extractions(monkeypatch)
    first = ft.cached_features([u], CONFIG, cache)[0]
    assert np.array_equal(ft.cached_features([u], CONFIG, cache)[0], first) and len(calls) == 1
    moved = Utterance(str(tmp_path / 'y.wav'), 'sad', 'b')
    (tmp_path / 'y.wav').write_bytes((tmp_path / 'x.wav').read_bytes())
    assert np.array_equal(ft.cached_features([moved], CONFIG, cache)[0], first) and len(calls) == 1
    write(tmp_path / 'x.wav', WAVE * .5)
    assert not np.array_equal(ft.cached_features([u], CONFIG, cache)[0], first) and len(calls) == 2
    for config in (settings(n_mels=41), settings(n_mels=40, hop_ms=10.), settings(features='mfcc'),
                   settings(n_mels=40, time_pool=2), settings(n_mels=40, trim_db=30.)):
        ft.cached_features([u], config, cache)
    ft.cached_features([Utterance(u.path, 'x', 'a', start=.5)], CONFIG, cache)
    assert len(calls) == 8


def test_keys_are_those_of_earlier_versions(tmp_path):
    """SHA-256 of the file, then of the constants and the settings as floats and integers: caches of 2025 stay in use."""
    import torchaudio
    u = write(tmp_path / 'x.wav')
    segment = Utterance(u.path, 'x', 'a', start=.5, end=1.)
    versions = f"'{torchaudio.__version__}', '{librosa.__version__}'"
    for config, said in ((settings(64), "('logmel', 64, 16.0, 1, 0.0)"),
                         (cf.SearchConfig(name='x', features='mfcc', n_mels=13, hop_ms=10, time_pool=4, trim_db=30, seed=7),
                          "('mfcc', 13, 10.0, 4, 30.0)")):
        for utterance, times in ((u, 'None, None'), (segment, '0.5, 1.0')):
            tail = f'((1, 16000, 512, 2048, 20.0, 8000.0, 1e-06, 2048, 512, {versions}), {said}, {times})'
            expected = hashlib.sha256((tmp_path / 'x.wav').read_bytes() + tail.encode()).hexdigest()
            assert ft.cache_key(utterance, config) == expected


def test_an_interrupted_or_damaged_cache_is_made_whole(tmp_path, monkeypatch):
    us = [write(tmp_path / f'{i}.wav', WAVE * (i + 1) / 4) for i in range(3)]
    cache = str(tmp_path / 'cache')
    calls, extract = [], ft.extract

    def interrupted(wave, config):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return extract(wave, config)
    monkeypatch.setattr(ft, 'extract', interrupted)
    with pytest.raises(KeyboardInterrupt):
        ft.cached_features(us, CONFIG, cache)
    assert len(list(tmp_path.glob('cache/*/*'))) == 2
    monkeypatch.setattr(ft, 'extract', lambda wave, config: calls.append(1) or extract(wave, config))
    whole = ft.cached_features(us, CONFIG, cache)
    assert len(calls) == 3  # goes on where it stopped
    path = next(tmp_path.glob('cache/*/*.npy'))
    path.write_bytes(path.read_bytes()[:200])
    again = ft.cached_features(us, CONFIG, cache)
    assert len(calls) == 4 and all(map(np.array_equal, whole, again))


def test_a_file_of_many_segments_is_read_once(tmp_path, monkeypatch):
    path = write(tmp_path / 'x.wav').path
    us = [Utterance(path, 'x', 'a', start=i / 10) for i in range(5)]
    read, file_digest = [], ft.file_digest
    monkeypatch.setattr(ft, 'file_digest', lambda path: read.append(path) or file_digest(path))
    found = ft.cached_features(us, CONFIG, str(tmp_path / 'cache'))
    assert read == [path]
    assert {p.stem for p in tmp_path.glob('cache/*/*.npy')} == {ft.cache_key(u, CONFIG) for u in us}
    assert [x.shape[1] for x in found] == [ft.extract(ft.load_audio(u), CONFIG).shape[1] for u in us]


def test_workers_give_the_bits_and_the_mistakes_of_one_process(tmp_path, monkeypatch):
    us = [write(tmp_path / f'{i}.wav', WAVE[:8000 + 100 * i] * (i + 1) / 90, 16_000 if i % 2 else 22_050) for i in range(90)]
    us += us[:5]  # what stands in the corpus twice is extracted once
    (tmp_path / '80.wav').unlink()  # found wanting before anything is extracted, and yet not the first mistake
    (tmp_path / '70.wav').write_text('no audio')
    (tmp_path / '40.wav').write_text('no audio either')
    monkeypatch.setattr(ft, 'WORKER_START', 0.)
    calls = count_extractions(monkeypatch)
    with pytest.raises(UserError, match='/40.wav'):
        ft.cached_features(us, CONFIG, str(tmp_path / 'cache'), workers=2)
    kept = len(list(tmp_path.glob('cache/*/*.npy')))
    assert kept >= 40 and len(calls) == 1  # all before the mistake, by workers but for the first
    for i in (40, 70, 80):
        write(tmp_path / f'{i}.wav')
    found = ft.cached_features(us, CONFIG, str(tmp_path / 'cache'))
    assert len(calls) == 1 + 88 - kept  # three mistakes became one and the same file
    alone = ft.cached_features(us, CONFIG, str(tmp_path / 'alone'))
    assert len(found) == 95 and all(map(np.array_equal, found, alone)) and {x.dtype for x in found} == {np.dtype(np.float16)}


WITH_WORKERS = '''
import signal
import sys
import config as cf
import utils
from datasets import features as ft
from datasets.utterance import Utterance
ft.WORKER_START = 0.
if sys.argv[3:] == ['deaf']:
    signal.signal(signal.SIGINT, lambda *_: None)
us = [Utterance(sys.argv[1], 'x', 'a', start=i / 10_000) for i in range(4000)]
utils.cli(lambda: ft.cached_features(us, cf.FeatureSettings(), sys.argv[2], workers=2))
'''


def start_with_workers(tmp_path, *argv):
    """The program, in a process group of its own, and a function that waits until so many utterances are extracted."""
    path, cache = write(tmp_path / 'x.wav').path, tmp_path / 'cache'
    process = subprocess.Popen([sys.executable, '-c', WITH_WORKERS, path, str(cache), *argv], text=True, start_new_session=True,
                               env={**os.environ, 'PYTHONPATH': str(ROOT)}, stderr=subprocess.PIPE)

    def wait_for(n):
        deadline = time.time() + 120
        while len(list(cache.glob('*/*.npy'))) < n:
            assert process.poll() is None and time.time() < deadline
            time.sleep(.005)
    return process, wait_for


def test_an_interruption_while_workers_start_is_one_line(tmp_path):
    process, wait_for = start_with_workers(tmp_path)
    wait_for(1)
    time.sleep(1.)  # they are importing torch
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]  # ends when the last process that holds stderr has ended
    assert process.returncode == 130 and said.count('\n') == 1 and 'interrupted' in said
    assert not list(tmp_path.glob('cache/*/*.npy'))[1:]


def test_workers_leave_an_interruption_to_the_program_and_end_with_it(tmp_path):
    process, wait_for = start_with_workers(tmp_path, 'deaf')
    wait_for(20)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    wait_for(200)
    process.kill()
    assert 'KeyboardInterrupt' not in process.communicate(timeout=60)[1]


def test_features_are_finite_on_silence():
    assert np.isfinite(ft.extract(np.zeros(16_000, np.float32), CONFIG)).all()
    assert torch.isfinite(torch.from_numpy(ft.extract(np.ones(ft.MIN_SAMPLES, np.float32), CONFIG))).all()


@pytest.mark.speech
def test_real_files_as_released(ser_data):
    from datasets import scan
    for u in scan('ravdess', str(ser_data / 'quirks')):
        wave = ft.load_audio(u)
        assert 2.9 < len(wave) / 16_000 < 5.3 and np.isfinite(ft.extract(wave, CONFIG)).all()
