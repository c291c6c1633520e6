"""Voices that are made: speed and vocal tract against resampled waves, noise against its SNR, seeds, shares, labels."""
import dataclasses
from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import torch
from conftest import FEATURES

import augment
import config as cf
import datasets
import search
from datasets import features as ft
from datasets.dataset import SpeechDataset, statistics, to_logmel
from datasets.readers import synthetic
from datasets.transforms import Recast, SpecAugment, Voices, n_frames_of, noise_bands, source_bands
from utils import UserError

F, WINDOW = 32, 40
CONFIG = cf.FeatureSettings(n_mels=F)
ALL = Voices(.1, .1, .5, 'emotion', .5)


def speech(lengths=(30, 55, 12, 90, 41, 70), dtype=np.float16, **kwargs):
    """Noise-like features of two speakers and two classes."""
    rng = np.random.default_rng(0)
    features = [rng.normal(-7., 3., (F, n)).astype(dtype) for n in lengths]
    us = [SimpleNamespace(speaker='ab'[i % 2], label=('neutral', 'sad')[i // 2 % 2]) for i in range(len(lengths))]
    return SpeechDataset(us, features, list(range(len(us))), *statistics(features), WINDOW, **kwargs)


def table(data, i=0, partner=0, start=0, pasted=0, speed=1., warp=1., snr=torch.inf, slope=0.):
    offsets = data.offsets.tolist()
    return torch.tensor([[start], [offsets[i]], [data.lengths[i]], [offsets[partner]], [pasted], [speed], [warp], [snr],
                         [slope]], dtype=torch.double)


def one(wave):
    """A set with the features of one wave."""
    x = ft.extract(wave, CONFIG)
    return x, SpeechDataset([SimpleNamespace(speaker='a')], [x], [0], torch.zeros(F, 1), torch.ones(F, 1), x.shape[1])


def opened(batches):
    """[(x, valid, y), ...] of batches (X, y)."""
    return [(X[0], X[1], y) for X, y in batches]


def epoch(data, voices, seed=3, masks=None, size=3):
    return opened(data.batches(size, None, torch.Generator().manual_seed(seed), masks, voices))


@pytest.mark.parametrize('speed', [.9, 1.1])
def test_speed_is_that_of_a_resampled_wave(speed):
    wave = synthetic.synthesise(1, 'angry', 0)
    x, data = one(wave)
    faster = ft.extract(librosa.resample(wave, orig_sr=10_000 * speed, target_sr=10_000), CONFIG)
    its = table(data, speed=speed)
    n = int(n_frames_of(its))
    assert abs(n - faster.shape[1]) <= 1
    n = min(n, faster.shape[1])
    y = Voices(speed=.1).cut(data.frames, n, its)
    found = Voices(speed=.1).change(y, torch.ones(1, n, dtype=torch.bool), its)[:, 0].numpy()
    inside = slice(0, F - 3)  # a slowed wave has nothing above 7,200 Hz
    found, faster, x = found[inside], faster[inside, :n], x[inside]
    as_recorded = np.array([np.interp(np.linspace(0, 1, n), np.linspace(0, 1, x.shape[1]), row) for row in x])
    error, before = np.abs(found - faster).mean(), np.abs(as_recorded - faster).mean()
    assert np.corrcoef(found.ravel(), faster.ravel())[0, 1] > .97
    assert error < .5 * before  # as if time alone had changed


@pytest.mark.parametrize('start, speed', [(13, 1.25), (7, .8), (-6, 1.25), (40, 1.)])
def test_a_window_begins_at_its_frame_of_the_changed_recording(start, speed):
    data = speech((90, 55))
    i = start + np.arange(WINDOW)
    found = Voices(speed=.25).cut(data.frames, WINDOW, table(data, start=start, speed=speed))[:, 0].numpy()
    inside = (i >= 0) & (i * speed <= 89)
    assert inside.sum() > 30
    recorded = data.frames[:, :90].float().numpy()
    for row, own in zip(found, recorded):
        np.testing.assert_allclose(row[inside], np.interp(i[inside] * speed, np.arange(90), own), rtol=1e-4, atol=1e-4)


def test_the_speed_multiplies_frequencies_after_the_warp():
    centres = librosa.mel_frequencies(F + 2, fmin=ft.F_MIN, fmax=ft.F_MAX, htk=True)[1:-1]
    speed, warp = 1.1, 1.2
    band = source_bands(F, torch.tensor([speed]).double(), torch.tensor([warp]).double()).numpy()[:, 0]
    sources = librosa.mel_to_hz(np.interp(band, np.arange(F), librosa.hz_to_mel(centres, htk=True)), htk=True)
    knee = 4_800 / warp
    warped = np.where(sources <= knee, warp * sources, 4_800 + (8_000 - 4_800) / (8_000 - knee) * (sources - knee))
    inside = (centres > 100) & (band < F - 1)
    np.testing.assert_allclose(speed * warped[inside], centres[inside], rtol=1e-6)


def test_bands_move_as_solved_by_hand():
    centres = librosa.mel_frequencies(F + 2, fmin=ft.F_MIN, fmax=ft.F_MAX, htk=True)[1:-1]
    speeds, warps = torch.tensor([1., 1.1, .9, 1., 1.], dtype=torch.double), torch.tensor([1., 1, 1, 1.1, .9]).double()
    bands = source_bands(F, speeds, warps).numpy()
    from_hz = np.interp(bands, np.arange(F), librosa.hz_to_mel(centres, htk=True))
    sources = librosa.mel_to_hz(from_hz, htk=True)
    np.testing.assert_allclose(bands[:, 0], np.arange(F), atol=1e-9)
    np.testing.assert_allclose(sources[1:, 1], centres[1:] / 1.1, rtol=1e-6)
    inside = (centres / .9 <= centres[-1]) & (centres > 100)
    np.testing.assert_allclose(sources[inside, 2], centres[inside] / .9, rtol=1e-6)
    low = (centres < 4_300) & (centres > 100)  # below the knee of both warps
    for column, warp in ((3, 1.1), (4, .9)):
        np.testing.assert_allclose(sources[low, column], centres[low] / warp, rtol=1e-6)
        assert (np.diff(bands[:, column]) >= 0).all()
        knee = 4_800 * min(warp, 1)
        high = (centres > knee) & (bands[:, column] < F - 1)
        slope = (8_000 - knee) / (8_000 - knee / warp)  # the line through the knee and the highest frequency
        np.testing.assert_allclose(knee + slope * (sources[high, column] - knee / warp), centres[high], rtol=1e-6)


def test_a_resonance_moves_by_the_warp():
    x = torch.zeros(F, 1, 5)
    x[16] = 1.
    centres = librosa.mel_frequencies(F + 2, fmin=ft.F_MIN, fmax=ft.F_MAX, htk=True)[1:-1]
    data = speech()
    for warp in (.9, 1.1):
        y = Voices(vtlp=.1).change(x, torch.ones(1, 5, dtype=torch.bool), table(data, warp=warp))
        peak = int(y[:, 0, 0].argmax())
        assert peak == np.abs(centres - centres[16] * warp).argmin() != 16 and torch.equal(y[:, 0, 0], y[:, 0, 4])


def test_noise_has_the_snr_that_was_drawn():
    torch.manual_seed(0)
    logmel, valid = torch.randn(F, 2, 9) - 3., torch.arange(9) < torch.tensor([[9], [4]])
    its = torch.cat([table(speech(), snr=snr, slope=slope) for snr, slope in ((7., 0.), (-3., 1.))], dim=1)
    noisy = Voices(noise=1.).change(logmel, valid, its)
    for i, (snr, n) in enumerate(((7., 9), (-3., 4))):
        clean, total = logmel[:, i, :n].double().exp().sum(), noisy[:, i, :n].double().exp().sum()
        assert 10 * torch.log10(clean / (total - clean)) == pytest.approx(snr, abs=1e-3)
    added = (noisy.double().exp() - logmel.double().exp()).mean(dim=2)  # (F, 2)
    torch.testing.assert_close(added / added.sum(dim=0), noise_bands(F, its[8]), atol=1e-5, rtol=1e-3)
    none = Voices(noise=1.).change(logmel, valid, table(speech(), snr=torch.inf).expand(-1, 2))
    assert torch.equal(none, logmel)
    scale, shift = torch.full((F, 2), 2.), torch.full((F, 2), -5.)  # features that are not log-mel
    x = Voices(noise=1.).change((logmel + 5.) / 2., valid, its, (scale, shift))
    torch.testing.assert_close(x * 2. - 5., noisy)


@pytest.mark.parametrize('slope', [0., 1.])
def test_noise_is_that_of_a_wave(slope):
    """White or pink noise, added to the wave at 10 dB, against noise added to the features."""
    rng, wave = np.random.default_rng(0), synthetic.synthesise(1, 'sad', 0)
    spectrum = np.fft.rfft(rng.normal(size=len(wave)))
    spectrum *= np.maximum(np.fft.rfftfreq(len(wave), 1 / 16_000), 20.) ** (-slope / 2)
    noise = np.fft.irfft(spectrum, len(wave))
    config = cf.FeatureSettings(n_mels=F, time_pool=1)  # the maximum of two frames of noise is more than its mean
    power = [np.exp(ft.extract(w.astype(np.float32), config)).sum(axis=0).mean() for w in (wave, noise)]
    noise *= np.sqrt(power[0] / power[1]) * 10 ** (-10 / 20)
    x = torch.from_numpy(ft.extract(wave, config))[:, None]
    found = Voices(noise=1.).change(x, torch.ones(1, x.shape[2], dtype=torch.bool), table(speech(), snr=10., slope=slope))
    wanted = ft.extract((wave + noise).astype(np.float32), config)
    bias = np.log(found[:, 0].exp().mean(dim=1).numpy()) - np.log(np.exp(wanted).mean(axis=1))  # of the power of each band
    assert np.abs(bias).max() < .15 and np.abs(bias).mean() < .04
    assert np.corrcoef(found.numpy().ravel(), wanted.ravel())[0, 1] > .95


def test_features_of_a_speaker_are_brought_back_to_log_mel():
    rng = np.random.default_rng(0)
    us = [SimpleNamespace(speaker='ab'[i % 2]) for i in range(6)]
    raw = [rng.normal(-4., 2. + i, (F, 30)).astype(np.float16) for i in range(6)]
    moments = {speaker: statistics(raw[i::2]) for i, speaker in enumerate('ab')}
    normalised = [((x - mean.numpy()) / std.numpy()).astype(np.float16)
                  for x, (mean, std) in ((x, moments[u.speaker]) for u, x in zip(us, raw))]
    scale, shift = to_logmel(us, raw, normalised)
    for i in range(6):
        np.testing.assert_allclose(normalised[i] * scale[:, i:i + 1].numpy() + shift[:, i:i + 1].numpy(), raw[i], atol=.03)


def test_pasting_keeps_the_label_the_speaker_and_half_of_the_window():
    data = speech()
    frames, offsets = data.frames.float(), data.offsets
    its = table(data, 1, 5, start=20, pasted=20)
    assert int(n_frames_of(its)) == 55 + 20
    x = Voices(copypaste=1.).cut(data.frames, WINDOW, its)[:, 0]
    assert torch.equal(x[:, :35], frames[:, offsets[1] + 20:offsets[2]])
    assert torch.equal(x[:, 35:], frames[:, offsets[5]:offsets[5] + 5])
    for way, label in (('emotion', None), ('neutral', 'neutral')):
        drawn = Voices(copypaste=1., copypaste_with=way).draw(torch.arange(6).repeat(50), data, torch.Generator())
        pasted, partners = drawn[4] > 0, {float(offset): i for i, offset in enumerate(offsets)}
        assert .2 < pasted.double().mean() < .8 and drawn[4].max() == WINDOW // 2  # some draw themselves
        for i, partner in zip(torch.arange(6).repeat(50)[pasted], drawn[3][pasted]):
            u, other = data.utterances[i], data.utterances[partners[float(partner)]]
            assert u is not other and u.speaker == other.speaker and other.label == (label or u.label)
    alone = Voices(copypaste=1.).draw(torch.tensor([0, 1, 2, 3]), data, torch.Generator())
    assert not alone[4].any()  # partners come from the same half


def test_shapes_labels_padding_and_seeds():
    data = speech()
    once, again, other = (epoch(data, ALL, seed) for seed in (3, 3, 4))
    for (x, valid, y), (x2, valid2, y2) in zip(once, again, strict=True):
        assert torch.equal(x, x2) and torch.equal(valid, valid2) and torch.equal(y, y2)
        assert x.shape == (3, 1, F, WINDOW) and torch.isfinite(x).all() and valid.any(dim=1).all()
        assert not x.transpose(1, 3)[~valid].any()  # padding stays padding
    assert sorted(torch.cat([y for *_, y in once]).tolist()) == list(range(6))
    assert any(not torch.equal(x, x2) for (x, *_), (x2, *_) in zip(once, other))
    fast = Voices(speed=.3).draw(torch.arange(6).repeat(9), data, torch.Generator().manual_seed(0))
    torch.testing.assert_close(n_frames_of(fast), (data.lengths.repeat(9) / fast[5]).floor().long())
    assert .7 <= fast[5].min() < .9 and 1.1 < fast[5].max() <= 1.3


def test_without_voices_nothing_changes_and_each_draw_is_its_own():
    data, generators = speech(), [torch.Generator().manual_seed(5) for _ in range(2)]
    assert Voices.of(cf.AugmentConfig(name='x'), ['sad']) is None
    order = torch.randperm(6, generator=generators[1])  # an epoch draws its order and its shifts, and nothing else
    shift, room = torch.rand(6, generator=generators[1]), data.lengths[order] - WINDOW
    starts = torch.where(room > 0, 1, -1) * (shift * (room.abs() + 1)).floor().long()
    for (X, _), (expected, _) in zip(data.batches(3, None, generators[0]), data.windows(order, starts, 3), strict=True):
        torch.testing.assert_close(X.x, expected.x)
    assert torch.equal(*(g.get_state() for g in generators))
    still = Voices(vtlp=1e-12, copypaste=1e-12, noise=1e-12)  # the same windows by the other way
    rng, rng_plain = generators
    order = torch.randperm(6, generator=rng_plain)
    torch.rand(7, 6, generator=rng_plain, dtype=torch.double)
    shift = torch.rand(6, generator=rng_plain)
    room = data.lengths[order] - WINDOW
    starts = torch.where(room > 0, 1, -1) * (shift * (room.abs() + 1)).floor().long()
    plain = [batch[0] for batch in data.windows(order, starts, 3)]
    for x, (x2, *_) in zip(plain, opened(data.batches(3, None, rng, None, still)), strict=True):
        torch.testing.assert_close(x2, x if torch.is_tensor(x) else x[0], atol=1e-5, rtol=1e-4)
    draws = [voices.draw(torch.arange(6), data, torch.Generator().manual_seed(0)) for voices in (ALL, Voices(speed=.1))]
    assert torch.equal(draws[0][5], draws[1][5])  # what one flag draws does not depend on the others


@pytest.mark.parametrize('resident', [True, False])
def test_ranks_share_the_voices_and_the_host_makes_the_same(resident):
    whole = epoch(speech(), ALL, masks=SpecAugment(1, .3, .3), size=6)
    for rank in range(2):
        own = epoch(speech(resident=resident, rank=rank, world_size=2), ALL, masks=SpecAugment(1, .3, .3), size=6)
        for (x, valid, y), (own_x, own_valid, own_y) in zip(whole, own, strict=True):
            torch.testing.assert_close(x[rank::2], own_x, rtol=1e-5, atol=1e-5)
            assert torch.equal(valid[rank::2], own_valid) and torch.equal(y[rank::2], own_y)


@pytest.mark.gpu
def test_a_gpu_makes_the_same_voices():
    for (x, valid, y), (x2, valid2, y2) in zip(epoch(speech(), ALL), epoch(speech(device='cuda'), ALL), strict=True):
        torch.testing.assert_close(x, x2.cpu(), rtol=1e-4, atol=1e-4)
        assert torch.equal(valid, valid2.cpu()) and torch.equal(y, y2.cpu())


def test_voices_are_drawn_within_their_bounds_and_up_to_them():
    data = speech(lengths=(12,) * 2000)
    drawn = Recast(*Voices(speed=.1, vtlp=.2, noise=.4, snr_low=5., snr_high=25.).draw(
        torch.arange(2000), data, torch.Generator().manual_seed(0)))
    noisy = drawn.snr.isfinite()
    for values, low, high in ((drawn.speed, .9, 1.1), (drawn.warp, .8, 1.2), (drawn.snr[noisy], 5., 25.),
                              (drawn.slope, 0., 1.)):
        margin = (high - low) / 50
        assert low <= values.min() < low + margin and high - margin < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < margin
    assert abs(noisy.double().mean() - .4) < .04
    pairs = torch.stack([drawn.speed, drawn.warp, drawn.slope])
    assert (torch.corrcoef(pairs) - torch.eye(3)).abs().max() < .1  # each by itself


def test_mistakes():
    for settings, message in ((dict(speed=.1, features='mfcc'), '--speed needs --features logmel'),
                              (dict(noise=.5, snr_low=9., snr_high=3.), '--snr_low 9.0: must not be above'),
                              (dict(vtlp=.5), '--vtlp 0.5: must be from')):
        with pytest.raises(UserError, match=message):
            cf.AugmentConfig(name='x', **settings)
    config = cf.SearchConfig(name='x', copypaste=.5, copypaste_with='neutral')
    assert Voices.of(config, ['angry', 'Neutral']).copypaste == .5
    with pytest.raises(UserError, match='no class begins with "neu"'):
        Voices.of(config, ['angry', 'sad'])


def test_noise_in_a_batch_is_added_before_normalisation():
    rng = np.random.default_rng(0)
    logmel = [rng.normal(-3., 2., (F, n)).astype(np.float32) for n in (30, 55, 12, 90)]
    us, plain = [SimpleNamespace(speaker='a')] * 4, (torch.zeros(F, 1), torch.ones(F, 1))
    scale, shift = torch.linspace(1, 4, 4).expand(F, 4), torch.linspace(-5, 5, 4).expand(F, 4)
    others = [(x - shift[0, i].item()) / scale[0, i].item() for i, x in enumerate(logmel)]
    one = SpeechDataset(us, logmel, range(4), *plain, WINDOW)
    two = SpeechDataset(us, others, range(4), *plain, WINDOW, to_logmel=(scale, shift))
    for (x, valid, y), (x2, _, _) in zip(epoch(one, Voices(noise=1.)), epoch(two, Voices(noise=1.)), strict=True):
        back = x2 * scale[0, y].view(-1, 1, 1, 1) + shift[0, y].view(-1, 1, 1, 1)
        torch.testing.assert_close(back * valid[:, None, None], x, atol=1e-4, rtol=1e-4)


def test_a_training_with_everything(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ['--dataset', 'manifest', '--data_path', str(small_corpus), *FEATURES, '--normalise', 'speaker', '--noise', '1',
            '--speed', '.1', '--vtlp', '.1', '--copypaste', '1', '--epochs', '1']
    drawn, draw = [], Voices.draw
    monkeypatch.setattr(Voices, 'draw', lambda self, order, *args: drawn.append(order) or draw(self, order, *args))
    augment.main(['--name', 'a', *argv, '--model', 'rnn', '--params', '300'])
    assert (tmp_path / 'runs/augment/a/results.json').exists()
    assert len(drawn) == 1 and len(drawn.pop()) == 24  # all of train
    search.main(['--name', 's', *argv, '--init_channels', '2', '--layers', '3', '--rnn_channels', '4', '--n_nodes', '1',
                 '--rnn_nodes', '1', '--alpha_warmup', '0'])
    assert len(drawn) == 1 and len(drawn[0]) == 12  # the half for w
    config = cf.AugmentConfig(name='x', dataset='manifest', data_path=str(small_corpus), normalise='speaker', noise=1.)
    train = datasets.load(config, ('train',)).sets['train']
    raw = datasets.load(dataclasses.replace(config, normalise='corpus'), ('train',)).sets['train']
    assert raw.to_logmel is None
    scale, shift = (part.repeat_interleave(train.lengths, dim=1) for part in train.to_logmel)
    torch.testing.assert_close(train.frames.float() * scale + shift, raw.frames.float(), atol=.03, rtol=0)
