"""Audio to log-mel and MFCC, against librosa and SciPy."""
import librosa
import numpy as np
import pytest
import soundfile
import torch

import config as cf
from datasets import features as ft
from datasets.readers import synthetic
from datasets.utterance import Utterance

WAVE = synthetic.synthesise(0, 'happy', 0)


def settings(n_mels=40, time_pool=1, **kwargs):
    return cf.FeatureSettings(n_mels=n_mels, time_pool=time_pool, **kwargs)


CONFIG = settings()


def write(path, wave=WAVE, rate=16_000, **kwargs):
    soundfile.write(path, wave, rate, **kwargs)
    return Utterance(str(path), 'happy', 'a')


@pytest.mark.parametrize('n_mels', [32, 64, 128])
def test_log_mel_is_librosas(n_mels):
    mel = librosa.feature.melspectrogram(y=WAVE, sr=16_000, n_fft=ft.N_FFT, win_length=ft.WIN_LENGTH, hop_length=256,
                                         n_mels=n_mels, fmin=ft.F_MIN, fmax=ft.F_MAX, htk=True, norm=None, pad_mode='reflect')
    np.testing.assert_allclose(ft.extract(WAVE, settings(n_mels)), np.log(mel + ft.FLOOR), atol=2e-3)
    assert (ft.mel_spectrogram(n_mels, 256).mel_scale.fb.amax(dim=0) > 0).all()


def test_mfcc_is_scipys_cosine_transform():
    from scipy.fft import dct
    log_mel = ft.extract(WAVE, CONFIG)
    mfcc = ft.extract(WAVE, settings(features='mfcc'))
    np.testing.assert_allclose(mfcc, dct(log_mel, type=2, norm='ortho', axis=0), atol=1e-3)


def test_time_pool_keeps_every_frame():
    whole, pooled = ft.extract(WAVE, CONFIG), ft.extract(WAVE, settings(time_pool=4))
    assert pooled.shape[1] == -(-whole.shape[1] // 4)
    np.testing.assert_array_equal(pooled[:, -1], whole[:, 4 * (pooled.shape[1] - 1):].max(axis=1))


@pytest.mark.parametrize('hop_ms, time_pool', [(16., 1), (10., 1), (16., 4), (25., 2)])
def test_the_frame_rate_of_the_settings_is_that_of_the_features(hop_ms, time_pool):
    config = settings(hop_ms=hop_ms, time_pool=time_pool)
    assert config.frame_rate == 1000 / hop_ms / time_pool
    assert abs(ft.extract(WAVE, config).shape[1] - len(WAVE) / 16_000 * config.frame_rate) <= 1


def test_silence_is_trimmed_at_both_ends():
    rng = np.random.default_rng(0)
    wave = np.concatenate([1e-4 * rng.standard_normal(9000), WAVE, 1e-4 * rng.standard_normal(7000)]).astype(np.float32)
    trimmed = ft.trim(wave, 30.)
    np.testing.assert_array_equal(trimmed, librosa.effects.trim(wave, top_db=30.)[0])
    assert len(WAVE) - 4096 < len(trimmed) < len(WAVE) + 4096
    np.testing.assert_array_equal(ft.extract(wave, settings(trim_db=30.)), ft.extract(trimmed, CONFIG))
    assert np.array_equal(ft.trim(np.zeros(9000, np.float32), 30.), np.zeros(9000))  # nothing is louder than the rest


@pytest.mark.parametrize('click', [0, 300, 5000, 8999])
def test_a_click_keeps_as_many_samples_as_features_need(click):
    wave = np.zeros(9000, np.float32)
    wave[click] = 1.
    trimmed = ft.trim(wave, 60.)
    assert len(trimmed) >= ft.MIN_SAMPLES and trimmed.max() == 1. and ft.extract(wave, settings(trim_db=60.)).size


@pytest.mark.parametrize('wrong', [dict(n_mels=2000), dict(n_mels=0), dict(hop_ms=40.), dict(hop_ms=0.), dict(features='plp'),
                                   dict(trim_db=-1.)])
def test_impossible_parameters_name_their_flag(wrong):
    with pytest.raises(cf.UserError, match=next(iter(wrong))):
        ft.extract(WAVE, cf.SearchConfig(name='x', **wrong))


@pytest.mark.parametrize('rate, channels, suffix', [(16_000, 1, 'wav'), (48_000, 2, 'wav'), (44_100, 1, 'flac'),
                                                    (8_000, 1, 'wav')])
def test_any_rate_mono_or_stereo(rate, channels, suffix, tmp_path):
    tone = .3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    wave = ft.load_audio(write(tmp_path / f'x.{suffix}', np.stack([tone] * channels, axis=1), rate))
    assert wave.dtype == np.float32 and wave.ndim == 1 and abs(len(wave) - 16_000) <= 1
    assert np.abs(np.fft.rfft(wave)).argmax() == pytest.approx(440, abs=1)


def test_a_segment_is_the_file_cut(tmp_path):
    u = write(tmp_path / 'x.wav')
    part = ft.load_audio(Utterance(u.path, 'x', 'a', start=.5, end=1.))
    np.testing.assert_array_equal(part, ft.load_audio(u)[8000:16000])


@pytest.mark.parametrize('rate', [8_000, 16_000, 22_050, 48_000])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_named_at_any_rate(rate, value, tmp_path):
    wave = np.full(rate, .1, np.float32)
    wave[rate // 2] = value
    u = write(tmp_path / 'broken.wav', wave, rate, subtype='FLOAT')
    with pytest.raises(cf.UserError, match='broken.wav: contains samples that are not finite') as error:
        ft.load_audio(u)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('rate', [8_000, 16_000, 22_050, 44_100, 48_000])
def test_the_shortest_recording_is_the_same_before_and_after_resampling(rate, tmp_path):
    """The length is checked before resampling; what passes must have enough samples after it, and not one sample less does."""
    enough = next(n for n in range(1, rate) if len(librosa.resample(np.zeros(n, np.float32), orig_sr=rate, target_sr=16_000))
                  >= ft.MIN_SAMPLES)
    assert ft.extract(ft.load_audio(write(tmp_path / 'enough.wav', WAVE[:enough], rate)), CONFIG).size
    with pytest.raises(cf.UserError, match=f'short.wav: {ft.MIN_SAMPLES - 1} samples'):
        ft.load_audio(write(tmp_path / 'short.wav', WAVE[:enough - 1], rate))


def test_a_file_without_audio_is_named(tmp_path):
    (tmp_path / 'text.wav').write_text('no audio')
    (tmp_path / 'empty.wav').touch()
    write(tmp_path / 'silent.wav', WAVE[:0])
    for name in ('text', 'empty', 'silent', 'absent'):
        with pytest.raises(cf.UserError, match=f'{name}.wav'):
            ft.load_audio(Utterance(str(tmp_path / f'{name}.wav'), 'x', 'a'))
    with pytest.raises(cf.UserError, match='from 99.0 s'):
        ft.load_audio(Utterance(write(tmp_path / 'x.wav').path, 'x', 'a', start=99.))


def test_features_are_finite_on_silence():
    assert np.isfinite(ft.extract(np.zeros(16_000, np.float32), CONFIG)).all()
    assert torch.isfinite(torch.from_numpy(ft.extract(np.ones(ft.MIN_SAMPLES, np.float32), CONFIG))).all()


@pytest.mark.speech
def test_real_files_as_released(ser_data):
    from datasets import scan
    for u in scan('ravdess', str(ser_data / 'quirks')):
        wave = ft.load_audio(u)
        assert 2.9 < len(wave) / 16_000 < 5.3 and np.isfinite(ft.extract(wave, CONFIG)).all()
