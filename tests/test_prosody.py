"""--prosody against librosa and a voice of known pitch, --deltas by hand, and both in every network."""
import random
from pathlib import Path
from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from test_export import best_of
from test_networks import copy_weights, one_hot, supernet

import augment
import config as cf
import datasets
import search
import utils
from config import ANY_INPUT
from datasets import features as ft
from datasets import prosody
from datasets.dataset import Inputs, SpeechDataset, statistics, with_differences
from datasets.readers import synthetic
from datasets.utterance import Utterance
from models import predictor
from models.augment_cnn import AugmentCNN
from models.baselines import make_baseline
from scripts import svm

RATE, HOP = 16_000, 256
SECONDS = np.arange(RATE) / RATE  # one second
P = len(cf.PROSODY)


def voice(f0):
    """One second of a glottal buzz through three formants; f0 in Hz, a number or (RATE,)."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(f0, SECONDS.shape)) / RATE
    x = sum(np.sin(k * phase) / k for k in range(1, int(7_000 / np.max(f0))))
    for formant, width in ((700, 100), (1_200, 120), (2_600, 160)):
        r = np.exp(-np.pi * width / RATE)
        x = lfilter([1], [1, -2 * r * np.cos(2 * np.pi * formant / RATE), r * r], x)
    return (.3 * x / np.abs(x).max()).astype(np.float32)


def rows_of(wave, time_pool=1, version=2):
    found = prosody.extract(torch.from_numpy(wave), HOP, time_pool, version).numpy()
    return dict(zip(cf.PROSODY, found, strict=True))


@pytest.mark.parametrize('f0', [80., 130., 220., 400., 100 * 2 ** SECONDS, 200 * 2 ** (.1 * np.sin(8 * np.pi * SECONDS))])
@pytest.mark.parametrize('noise', [0., .01])
def test_pitch_of_a_voice_is_known_and_as_near_as_librosas(f0, noise):
    wave = voice(f0) + noise * np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    found = np.exp(rows_of(wave)['pitch'])
    true = np.broadcast_to(f0, SECONDS.shape)[np.minimum(np.arange(len(found)) * HOP, RATE - 1)]
    error = np.abs(found / true - 1)[2:-2]  # frames at the ends are half a reflection
    theirs = librosa.yin(wave, fmin=60, fmax=500, sr=RATE, frame_length=2_048, hop_length=HOP)
    assert np.median(error) < .004 and error.max() < .03
    assert np.median(error) <= np.median(np.abs(theirs / true - 1)[2:-2]) + 2e-4


def test_voicing_and_harmonicity_tell_voice_from_noise_and_silence():
    noise = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    voiced, hiss, nothing = rows_of(voice(150.)), rows_of(.1 * noise), rows_of(np.zeros(RATE, np.float32))
    assert np.median(voiced['voicing']) > .98 and hiss['voicing'].max() < .1 and nothing['voicing'].max() < .01
    assert np.isfinite(list(nothing.values())).all()
    for decibels in (5., 10.):  # Boersma 1993: the height of the peak is the share of the harmonic energy
        wave = voice(150.)
        mixed = rows_of(wave + wave.std() * 10 ** (-decibels / 20) * noise)
        assert np.median(mixed['harmonicity']) * 10 / np.log(10) == pytest.approx(decibels, abs=1.)
    both = rows_of(np.concatenate([voice(150.), .05 * noise]))
    found = np.exp(both['pitch'])[-20:]  # deep in the noise: the pitch of the voiced frames
    assert np.abs(found / 150 - 1).max() < .25 and both['voicing'][-20:].max() < .1


def noise_of(seed=0):
    return np.random.default_rng(seed).normal(size=RATE)


def lowpassed(exponent):
    """Noise whose power falls with the frequency to the power of -exponent above 20 Hz; root mean square .02."""
    x = np.fft.irfft(np.fft.rfft(noise_of()) * np.maximum(np.fft.rfftfreq(RATE, 1 / RATE), 20.) ** (-exponent / 2))
    return .02 * x / x.std()


RUMBLE = {
    'hum of 50 Hz': .01 * np.sin(100 * np.pi * SECONDS),
    'hum and noise': .01 * np.sin(100 * np.pi * SECONDS) + 1e-3 * noise_of(),
    'rumble of 30 Hz': .01 * np.sin(60 * np.pi * SECONDS),
    'rumble and noise': .01 * np.sin(60 * np.pi * SECONDS) + 1e-3 * noise_of(),
    'noise, 9 dB an octave': lowpassed(3),
    'brown noise': lowpassed(2),
    'pink noise': lowpassed(1),
    'faint pulses': 3e-5 * (np.arange(RATE) % 100 == 0),
    'an offset': np.full(RATE, .3)}


@pytest.mark.parametrize('name', RUMBLE)
def test_rumble_is_not_voiced_and_lends_a_pause_no_pitch(name):
    """The slope of the autocorrelation at lag 0, and ripples on it, are no peaks."""
    wave = RUMBLE[name].astype(np.float32)
    alone = rows_of(wave)
    assert np.median(alone['voicing']) < .2 and (alone['voicing'][3:-3] > .5).mean() < .05
    if 'hum' in name or 'rumble' in name:
        assert np.median(rows_of(wave, version=1)['voicing']) > .9
    pause = rows_of(np.concatenate([voice(150.), wave]))  # .5 s of it are far from the voice
    assert np.median(np.abs(np.exp(pause['pitch'][66:-3]) / 150 - 1)) < .3


def test_a_constant_offset_changes_nothing():
    quiet, offset = rows_of(voice(150.)), rows_of(voice(150.) + .3)
    for row in ('pitch', 'voicing', 'loudness', 'harmonicity'):
        np.testing.assert_allclose(offset[row], quiet[row], atol=1e-2)


def test_a_pause_takes_the_pitch_of_the_voice_beside_it():
    wave = np.concatenate([voice(120.), np.zeros(RATE // 2, np.float32), voice(240.)])
    found, t = np.exp(rows_of(wave)['pitch']), np.arange((2 * RATE + RATE // 2) // HOP + 1) * HOP / RATE
    for side, f0 in ((1.1, 120), (1.4, 240)):  # within NEAR of one voice
        assert found[np.abs(t - side).argmin()] == pytest.approx(f0, rel=.03)
    assert 150 < found[np.abs(t - 1.25).argmin()] < 200  # beyond: the mean of the recording


def by_hand(r, version):
    """ln F0 and height of the best peak of r (lags,), one lag after the other; nan and .01 if there is none."""
    low, high = prosody.LAGS

    def score(lag):
        return r[lag] - prosody.OCTAVE_COST * np.log2(lag / RATE * prosody.F0_MAX)
    peaks = [lag for lag in range(low, high + 1) if r[lag] >= max(r[lag - 1], r[lag + 1])
             and (score(lag) > -1 if version == 1 else r[lag] - r[:lag + 1].min() >= prosody.RISE)]
    if not peaks:
        return np.nan, .01
    lag = max(peaks, key=score)
    a, b, c = np.polyfit([-1, 0, 1], r[lag - 1:lag + 2], 2)
    top = np.clip(-b / (2 * a), -.5, .5)
    return np.log(RATE / (lag + top)), np.clip(a * top ** 2 + b * top + c, .01, .99)


@pytest.mark.parametrize('version', [1, 2])
def test_pitch_is_the_best_peak_by_hand(version):
    window, of_window, _ = (part.double() for part in prosody.constants())
    waves = [*RUMBLE.values(), voice(110.) + .01 * noise_of(), voice(330.), .1 * noise_of(1)]
    frames = torch.from_numpy(np.stack([wave[:6_000] for wave in waves])).double().unfold(1, prosody.FRAME, 500).flatten(0, 1)
    frames = frames - frames.mean(dim=1, keepdim=True)
    found = torch.fft.irfft(torch.fft.rfft(frames * window, prosody.N_FFT).abs().square())[:, :prosody.FRAME]
    pitch, height = prosody.pitch_of(found, of_window, version)
    r = found / (found[:, :1] + prosody.SILENCE ** 2 * prosody.FRAME) / of_window
    expected = np.array([by_hand(one, version) for one in r.numpy()])
    some = ~np.isnan(expected[:, 0])
    assert 20 < some.sum() < len(some) - 20
    np.testing.assert_allclose(height[some], expected[some, 1], atol=1e-6)
    high = some & (expected[:, 1] > .1)  # others are flat, and their vertex is only rounding
    np.testing.assert_allclose(pitch[high], expected[high, 0], atol=1e-4)
    without = height[~some].numpy()
    assert (without > .5).sum() > 10 if version == 1 else (without == .01).all()


@pytest.mark.parametrize('version', [1, 2])
def test_a_peak_an_octave_lower_must_be_higher_by_more_than_its_cost(version):
    """The autocorrelation of a periodic signal has peaks of one height at all multiples of its period."""
    of_window, r = torch.ones(prosody.FRAME), torch.full((1, prosody.LAGS[1] + 2), -.5)
    r[0, 0], r[0, 80], r[0, 160] = 1., .80, .81
    energy = 1. / (prosody.SILENCE ** 2 * prosody.FRAME)  # large enough that SILENCE is nothing
    pitch, _ = prosody.pitch_of(r * energy, of_window, version)
    assert RATE / pitch.exp().item() == pytest.approx(80, abs=.6)
    r[0, 160] = .83
    pitch, height = prosody.pitch_of(r * energy, of_window, version)
    assert RATE / pitch.exp().item() == pytest.approx(160, abs=.6) and height.item() > .8


def test_a_peak_below_minus_one_is_not_the_slope_of_lag_0():
    r = torch.cat([torch.linspace(1., -1.6, 151), torch.full((prosody.LAGS[1] + 2 - 151,), -1.6)])[None]
    r[0, 200] = -1.3  # possible where the autocorrelation of the window is small
    pitch, height = prosody.pitch_of(r / (prosody.SILENCE ** 2 * prosody.FRAME), torch.ones(prosody.FRAME), 2)
    assert height.item() == pytest.approx(.01) and RATE / pitch.exp().item() == pytest.approx(200, abs=.6)


@pytest.mark.speech
@pytest.mark.parametrize('corpus', ['nemo', 'emodb', 'ravdess'])
def test_pitch_of_real_speech_agrees_with_pyin(corpus, ser_data):
    """pyin (Mauch and Dixon 2014) tracks over time, which ours does not. `pytest -s` prints the figures of docs/search.md."""
    paths = sorted(u.path for u in datasets.scan(corpus, str(ser_data / corpus)))
    waves = [ft.load_audio(Utterance(path, '', '')) for path in random.Random(0).sample(paths, 40)]
    theirs = [librosa.pyin(wave, fmin=60, fmax=500, sr=RATE, frame_length=prosody.FRAME, hop_length=HOP)[:2] for wave in waves]
    f0, voiced = map(np.concatenate, zip(*theirs, strict=True))
    found = {}
    for version in (1, 2):
        rows = [rows_of(wave, version=version) for wave in waves]
        pitch, voicing = (np.concatenate([one[name] for one in rows]) for name in ('pitch', 'voicing'))
        ours = voicing > .5
        wrong = np.abs(pitch - np.log(f0))[ours & voiced] > np.log(1.2)
        shares = wrong, ours[voiced], ours[~voiced], pitch[ours] > np.log(480)
        found[version] = [100 * share.mean() for share in shares]
        print(f'{corpus}, version {version}: %.1f%% of the frames that both call voiced are wrong by more than a fifth; of its '
              'voiced frames %.1f%% are voiced here, of its others %.1f%%; above 480 Hz: %.1f%% of ours' % (*found[version],))
    assert found[2][0] < 5 and found[2][1] > 70 and found[2][3] < 1
    assert all(found[2][i] <= found[1][i] for i in (0, 2, 3))


def test_loudness_and_flux_are_librosas():
    wave = voice(150.) * np.where(SECONDS < .5, .02, 1.).astype(np.float32)
    found = rows_of(wave)
    frames = librosa.util.frame(np.pad(wave, prosody.FRAME // 2, 'reflect'), frame_length=prosody.FRAME, hop_length=HOP)
    np.testing.assert_allclose(found['loudness'], np.log(frames.var(axis=0) + prosody.FLOOR), atol=1e-3)
    rms = librosa.feature.rms(y=wave, frame_length=prosody.FRAME, hop_length=HOP, pad_mode='reflect')[0]
    np.testing.assert_allclose(rows_of(wave, version=1)['loudness'], np.log(rms ** 2 + prosody.FLOOR), atol=1e-3)
    power = librosa.feature.melspectrogram(
        y=wave, sr=RATE, n_fft=prosody.N_FFT, win_length=prosody.FRAME, hop_length=HOP, n_mels=prosody.N_MELS, fmin=20,
        htk=True, norm=None, pad_mode='reflect')
    theirs = librosa.onset.onset_strength(S=np.log(power + prosody.FLOOR), sr=RATE, hop_length=HOP, center=False)
    np.testing.assert_allclose(found['flux'][3:-3], theirs[3:-3], atol=.02 * theirs.max())
    assert abs(found['flux'].argmax() * HOP / RATE - .5) < .05


@pytest.mark.parametrize('version', [1, 2])
def test_the_numbers_of_a_version_are_fixed(version):
    """Networks were trained with them, and caches hold them: other numbers are another version."""
    rumble = (.01 * np.sin(2 * np.pi * 25 * SECONDS[:RATE // 2]) + 1e-3).astype(np.float32)
    wave = torch.from_numpy(np.concatenate([rumble, synthetic.synthesise(1, 'happy', 0)]))
    found = prosody.extract(wave, HOP, 2, version)[:, ::4].numpy()
    assert (prosody.OCTAVE_COST, prosody.RISE) == (.02, .2)  # which decide where peaks are almost equal
    path = Path(__file__).parent / 'data' / f'prosody-{version}.csv'
    np.testing.assert_allclose(found, np.loadtxt(path, delimiter=','), atol=2e-4)


def test_frames_are_those_of_the_spectrum_and_differences_are_central():
    for n in (ft.MIN_SAMPLES, 5_000, 5_119, 5_120):
        for config in (cf.FeatureSettings(), cf.FeatureSettings(hop_ms=10., time_pool=3), cf.FeatureSettings(trim_db=30.)):
            wave = voice(150.)[:n]
            assert ft.extract_prosody(wave, config).shape == (P, ft.extract(wave, config).shape[1])
    fine, coarse = rows_of(voice(100 * 2 ** SECONDS)), rows_of(voice(100 * 2 ** SECONDS), 2)
    np.testing.assert_allclose(coarse['loudness'][:31], fine['loudness'][:62].reshape(-1, 2).mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(fine['difference of pitch'], np.gradient(np.pad(fine['pitch'], 1, 'edge'))[1:-1], atol=1e-5)


def test_differences_by_hand_and_none_across_padding():
    x = torch.tensor([0., 0., 1., 4., 9., 16., 0.])[None, None, None]
    valid = torch.tensor([[False, False, True, True, True, True, False]])
    expected = torch.tensor([[0, 0, 1, 4, 9, 16, 0], [0, 0, 0, 4, 6, 0, 0], [0, 0, 0, 2, 2, 0, 0]]).float()
    assert torch.equal(with_differences(x, valid)[0, :, 0], expected)
    assert with_differences(x[..., :1], valid[:, :1]).abs().sum() == 0


def test_a_dataset_gives_both_and_masks_neither_order_nor_x():
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(8 + P, n)).astype(np.float16) for n in rng.integers(5, 40, 9)]
    us, where = [SimpleNamespace(path=str(i), speaker='a') for i in range(9)], statistics(features)
    whole = SpeechDataset(us, features, [0] * 9, *where, 12, C_in=3, n_prosody=P)
    plain = SpeechDataset(us, [x[:8] for x in features], [0] * 9, *(part[:8] for part in where), 12)
    epochs = [data.batches(4, None, torch.Generator().manual_seed(0)) for data in (whole, plain)]
    for (X, _), (own, _) in zip(*epochs, strict=True):
        assert X.x.shape[1:] == (3, 8, 12) and X.prosody.shape[1:] == (P, 12) and own.prosody is None
        assert torch.equal(X.x[:, :1], own.x) and torch.equal(X.valid, own.valid)
        assert X.prosody[~X.valid[:, None].expand_as(X.prosody)].abs().sum() == 0
        assert torch.equal(X.x, with_differences(own.x, own.valid))


def made(name, C_in=3, n_prosody=P):
    if name in ANY_INPUT:
        return make_baseline(name, 8, 12, 3, 0., 3_000, C_in=C_in, n_prosody=n_prosody)
    net = supernet(n_layers_rnn=1, rnn_primitives='gru_1,skip_connect,none')
    layers = 0 if name == 'pure CNN' else 1
    return AugmentCNN(None, C_in, 4, 3, 3, False, net.genotype(), n_layers_rnn=layers, C_rnn=6, n_prosody=n_prosody)


@pytest.mark.parametrize('name', [*ANY_INPUT, 'discrete', 'pure CNN'])
def test_every_network_reads_it_and_padding_changes_nothing(name):
    net = made(name).double()
    n = torch.tensor([12, 12, 8, 4])
    valid = torch.arange(12) < n[:, None]
    x, p = (torch.randn(4, *shape, dtype=torch.double) for shape in ((3, 8, 12), (P, 12)))
    X = Inputs(x * valid[:, None, None], valid, p * valid[:, None])
    net(*X)  # batch norm's statistics
    net.eval()
    found = net(*X)[0]
    alone = torch.cat([net(*(None if part is None else part[i:i + 1] for part in X))[0] for i in range(4)])
    torch.testing.assert_close(alone, found, rtol=0, atol=1e-10)
    for field in ('x', 'prosody'):
        other = net(*X._replace(**{field: getattr(X, field).roll(1, 0)}))[0]
        assert (other - found).abs().min() > 1e-9
    pooled, linear = [], next(m for m in net.linear.modules() if isinstance(m, torch.nn.Linear))
    linear.register_forward_pre_hook(lambda module, args: pooled.append(args[0]))
    net(*X)
    rows = torch.cat([p[2, :, :8].mean(dim=1), (p[2, :, :8].var(dim=1, unbiased=False) + 1e-5).sqrt()])
    torch.testing.assert_close(pooled[0][2, -2 * P:], rows)


def test_a_one_hot_supernet_with_prosody_and_differences_is_the_discrete_network():
    inputs = dict(n_layers_rnn=1, n_prosody=P)
    net = search.SearchCNNController(3, 4, 3, 3, torch.nn.CrossEntropyLoss(), 2, n_nodes_rnn=1, C_rnn=6,
                                     rnn_primitives='gru_1,skip_connect,none', **inputs).double()
    genotype = net.genotype()
    one_hot(net, genotype)
    discrete = AugmentCNN(None, 3, 4, 3, 3, False, genotype, C_rnn=6, **inputs).double()
    copy_weights(net, discrete, genotype)
    X = Inputs(*(torch.randn(5, *shape, dtype=torch.double) for shape in ((3, 8, 12),)), None,
               torch.randn(5, P, 12, dtype=torch.double))
    torch.testing.assert_close(net(*X), discrete(*X)[0], rtol=0, atol=1e-9)


def test_the_cache_has_a_key_for_every_setting_that_prosody_depends_on(tmp_path):
    """And none for others, so that prosody is not extracted twice."""
    path = tmp_path / 'a.wav'
    path.write_bytes(b'x')
    u = SimpleNamespace(path=str(path), start=None, end=None)
    settings = [{}, {'prosody_version': 1}, {'trim_db': 30.}, {'hop_ms': 10.}, {'time_pool': 3}]
    keys = [ft.cache_key(u, cf.FeatureSettings(prosody=True, **some), prosody=True) for some in settings]
    assert len({*keys, ft.cache_key(u, cf.FeatureSettings(prosody=True))}) == 6
    for some in ({'n_mels': 8}, {'duration': 5.}, {'features': 'mfcc'}, {'deltas': True}, {'normalise': 'speaker'}):
        assert ft.cache_key(u, cf.FeatureSettings(prosody=True, **some), prosody=True) == keys[0]


def test_networks_of_earlier_formats_read_version_1(tmp_path):
    best = best_of('cnn_gru', prosody=True)
    wave = .3 * RUMBLE['rumble of 30 Hz'].astype(np.float32)
    now = predictor.Predictor(best)
    assert best['settings'].pop('prosody_version') == 2
    torch.save({**best, 'format': 3}, tmp_path / 'best.pt')
    then = predictor.load(tmp_path)
    assert (now.config.prosody_version, then.config.prosody_version) == (2, 1)
    voicing = {network: np.median(network.features(wave)[0][-P + cf.PROSODY.index('voicing')]) for network in (now, then)}
    assert voicing[now] < .02 and voicing[then] > .9
    assert predictor.settings_of(best)['prosody_version'] == 1  # what --init goes on with
    for settings, version in (({}, 2), ({'prosody': False}, 2), ({'prosody': True}, 1),
                              ({'prosody': True, 'prosody_version': 2}, 2)):
        assert utils.recorded(settings, 'prosody_version') == version


def test_the_programs_read_it_and_its_cache_has_keys_of_its_own(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(svm, 'PENALTIES', (1e-3,))
    argv = ['--dataset', 'manifest', '--data_path', str(small_corpus), '--n_mels', '16', '--hop_ms', '32']
    asked, short = ['--prosody'], ['--duration', '.8', '--device', 'cpu', '--batch_size', '10', '--deltas']
    svm.main(['--name', 'plain', *argv])
    before = set(tmp_path.glob('.cache/features/*/*.npy'))
    svm.main(['--name', 'svm', *argv, *asked])
    new = set(tmp_path.glob('.cache/features/*/*.npy')) - before
    assert len(new) == len(before) and {np.load(path).shape[0] for path in new} == {P}
    tiny = ['--init_channels', '2', '--rnn_channels', '4', '--n_nodes', '1', '--rnn_nodes', '1', '--epochs', '1',
            '--alpha_warmup', '0']
    search.main(['--name', 's', *argv, *asked, *short, *tiny])
    augment.main(['--name', 'a', '--genotype', 'runs/search/s', '--epochs', '1', '--dataset', 'manifest', '--data_path',
                  str(small_corpus), '--device', 'cpu'])
    assert set(tmp_path.glob('.cache/features/*/*.npy')) == before | new
    best = torch.load('runs/augment/a/best.pt')
    assert best['settings']['prosody'] and best['settings']['deltas'] and best['mean'].shape == (16 + P, 1)
    net = predictor.rebuild(best)
    config = cf.build('augment', cf.given('augment', ['--name', 'x', '--model', 'rnn', *argv, *asked, *short]))
    test = datasets.load(config, ('train', 'test')).sets['test']
    written = np.loadtxt('runs/augment/a/predictions.csv', delimiter=',', skiprows=1, usecols=(4, 5))
    np.testing.assert_allclose(test.score(lambda *X: net(*X)[0], 7).numpy(), written, atol=1e-5)
