"""--embedding speaker: what enters the classifier, normalised by the recordings of its speaker."""
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from test_networks import copy_weights, one_hot, supernet

import augment
import config as cf
import datasets
import genotypes as gt
import search
from config import ANY_INPUT
from datasets.dataset import ENOUGH, Inputs, SpeechDataset, by_speaker, shrunk
from models import predictor, speaker_norm, training
from models.augment_cnn import AugmentCNN
from models.baselines import make_baseline
from models.run import Run
from scripts import svm

ASKED = SimpleNamespace(embedding='speaker')
T = 12


def corpus(speakers='aaaaaaaaaaaabbbbbbbbbbbbccc', labels=None, shift=0.):
    """Random features (8, 6 to 30) of one speaker a letter; `shift` is added to those of speaker a."""
    rng = np.random.default_rng(0)
    features = [rng.normal(shift if s == 'a' else 0., 1., (8, rng.integers(6, 30))).astype(np.float32) for s in speakers]
    us = [SimpleNamespace(path=str(i), speaker=s) for i, s in enumerate(speakers)]
    labels = labels or [i % 3 for i in range(len(us))]
    return SpeechDataset(us, features, labels, torch.zeros(8, 1), torch.ones(8, 1), T)


def network(name='cnn_gru'):
    """A network in eval mode that was trained for two batches."""
    if name in ANY_INPUT:
        net = make_baseline(name, 8, T, 3, 0., 2_000)
    else:
        net = supernet(n_layers_rnn=1, rnn_primitives='skip_connect,gru_1,none')
        net = AugmentCNN(None, 1, 4, 3, 3, False, net.genotype(), n_layers_rnn=1, C_rnn=6) if name == 'discrete' else net
    speaker_norm.added(net.net if name == 'supernet' else net, ASKED, torch.full((3,), 99))
    for X, _ in corpus().batches(14, None, torch.Generator().manual_seed(0)):
        net(*X)
    return net.eval()


def norm_of(net):
    """The SpeakerNorm of a network, or of the network of a supernet."""
    return getattr(net, 'net', net).speaker_norm


def scores(net, data, batch_size=7):
    speaker_norm.adapt(net, data, batch_size)
    return data.score(lambda *X: net(*X) if hasattr(net, 'alphas') else net(*X)[0], batch_size)


@pytest.mark.parametrize('n, mean, variance', [(0, 0., 4.), (5, 1., .5 * 1 + .5 * 4 + .25 * 4), (9, 1.8, .9 + .4 + .09 * 4),
                                               (ENOUGH, 2., 1.), (60, 2., 1.)])
def test_below_ten_recordings_moments_are_shrunk_as_by_hand(n, mean, variance):
    own, prior = (torch.tensor([2.]), torch.tensor([1.])), (torch.tensor([0.]), torch.tensor([2.]))
    found = shrunk(own, n, prior)
    torch.testing.assert_close(torch.cat(found), torch.tensor([mean, variance ** .5]))
    if n >= ENOUGH:
        assert torch.equal(found[0], own[0]) and torch.equal(found[1], own[1])


def test_features_of_few_recordings_are_as_if_the_rest_were_the_corpus(tmp_path):
    """Five recordings of a speaker, and as many frames of the corpus' moments, scaled by scikit-learn."""
    rng = np.random.default_rng(0)
    own = [rng.normal(3., 2., (4, 20)).astype(np.float32) for _ in range(5)]
    fill = np.tile([-1., 3.], 50)[None] * np.ones((4, 1))  # mean 1, deviation 2
    us = [SimpleNamespace(speaker='a')] * 5
    found = by_speaker(us, own, (torch.full((4, 1), 1.), torch.full((4, 1), 2.)))
    scaler = StandardScaler().fit(np.concatenate([*own, fill], axis=1).T)
    np.testing.assert_allclose(np.concatenate(found, axis=1), scaler.transform(np.concatenate(own, axis=1).T).T, atol=1e-5)


def test_training_moments_are_those_of_the_latest_recordings():
    norm, keep = speaker_norm.SpeakerNorm(2, torch.full((3,), 99)).double(), 1 - 1 / speaker_norm.WINDOW
    first, second = (torch.randn(30, 2, dtype=torch.double) + 5. for _ in range(2))
    speaker = torch.arange(30) % 2  # the third speaker does not occur
    norm(first, speaker)
    found = norm(second, speaker)
    for s in range(2):
        x = torch.cat([first[speaker == s], second[speaker == s]])
        w = torch.tensor([keep ** 15] * 15 + [1.] * 15, dtype=torch.double)[:, None]
        mean = (w * x).sum(dim=0) / w.sum()
        var = (w * (x - mean).square()).sum(dim=0) / w.sum()
        own = second[speaker == s]
        torch.testing.assert_close(found[speaker == s], (own - mean) / (var + speaker_norm.VARIANCE_FLOOR).sqrt())
    assert norm.sums[2].abs().max() == 0
    unheard = norm(torch.zeros(1, 2, dtype=torch.double), torch.tensor([2]))
    assert unheard.isfinite().all()


def filled_up(x, n, corpus):
    """Mean and deviation of x (windows, C) of n recordings and of as many of the corpus' moments as make ten."""
    w, (mean, std), var = n / 10, corpus, x.var(dim=0, unbiased=False) + speaker_norm.VARIANCE_FLOOR
    both = w * x.mean(dim=0) + (1 - w) * mean
    return both, (w * (var + x.mean(dim=0) ** 2) + (1 - w) * (std ** 2 + mean ** 2) - both ** 2).sqrt()


def test_in_training_three_recordings_are_shrunk_towards_all():
    norm, x = speaker_norm.SpeakerNorm(2, torch.tensor([12, 3])).double(), torch.randn(15, 2, dtype=torch.double)
    speaker = (torch.arange(15) >= 12).long()
    x[12:] += 3.
    found = norm(x, speaker)
    mean, std = filled_up(x[12:], 3, norm.corpus())
    torch.testing.assert_close(found[12:], (x[12:] - mean) / std)
    torch.testing.assert_close(found[:12], (x[:12] - x[:12].mean(dim=0)) / (
        x[:12].var(dim=0, unbiased=False) + speaker_norm.VARIANCE_FLOOR).sqrt())


def test_recordings_that_are_heard_again_are_no_new_ones():
    """A speaker of one recording, heard for 60 epochs, is shrunk as at the beginning."""
    norm, x = speaker_norm.SpeakerNorm(2, torch.tensor([12, 1])).double(), torch.randn(13, 2, dtype=torch.double)
    x[12] += 3.
    for _ in range(60):
        found = norm(x, (torch.arange(13) >= 12).long())
    assert norm.sums[1, 0] > 10
    mean, std = filled_up(x[12:], 1, norm.corpus())
    torch.testing.assert_close(found[12:], (x[12:] - mean) / std)


@pytest.mark.parametrize('name', ['cnn_gru', 'discrete', 'supernet'])
def test_at_test_three_recordings_are_shrunk_whatever_their_windows(name):
    net, data, seen = network(name), corpus(), []
    scores(net, data)
    norm_of(net).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for X, _ in data.scoring_windows(7):
        net(*X)
    own = torch.cat(seen).detach()[data.speaker[data.window_owner] == 2]
    assert len(own) > 3 == int((data.speaker == 2).sum())
    for found, expected in zip(norm_of(net).adapted, filled_up(own, 3, norm_of(net).corpus()), strict=True):
        torch.testing.assert_close(found[2], expected, rtol=1e-3, atol=1e-5)


def test_the_batch_takes_part_in_the_gradient():
    norm, speaker = speaker_norm.SpeakerNorm(3, torch.full((2,), 99)).double(), torch.arange(8) % 2
    norm(torch.randn(20, 3, dtype=torch.double), torch.arange(20) % 2)
    before = norm.sums.clone()

    def forward(x):
        norm.sums.copy_(before)
        return norm(x, speaker)
    x = torch.randn(8, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(forward, x) and torch.autograd.gradgradcheck(forward, x)


@pytest.mark.parametrize('name', [*ANY_INPUT, 'discrete', 'supernet'])
def test_every_model_gets_each_speaker_with_mean_0_and_deviation_1(name):
    net, data, seen = network(name), corpus(), []
    scores(net, data)
    norm_of(net).register_forward_hook(lambda module, args, out: seen.append(out))
    for X, _ in data.scoring_windows(7):
        net(*X)
    h, owner = torch.cat(seen).detach(), data.speaker[data.window_owner]
    raw = norm_of(net).corpus()[1]
    alive = raw > .01  # the floor under the variance shows elsewhere
    assert alive.any()
    for s in range(2):
        mean, std = h[owner == s].mean(dim=0), h[owner == s].std(dim=0, unbiased=False)
        assert mean.abs().max() < 1e-3
        assert (std[alive] <= 1.001).all() and std[alive].median() > .9


@pytest.mark.parametrize('name', [*ANY_INPUT, 'discrete', 'supernet'])
def test_scores_from_remembered_vectors_are_those_of_the_network(name):
    """To the bit, and the network runs once for each batch."""
    net, data, calls = network(name), corpus(), []
    found = scores(net, data)
    net.register_forward_hook(lambda *_: calls.append(1))
    forward = speaker_norm.adapt(net, data, 7, lambda *X: net(*X) if hasattr(net, 'alphas') else net(*X)[0])
    assert torch.equal(data.score(forward, 7), found) and len(calls) == -(-len(data.window_owner) // 7)


def test_speakers_of_a_part_of_a_set_are_normalised_by_its_recordings_alone():
    net, data = network(), corpus()
    part = data.part(torch.arange(15, 24))  # of b alone, the second of three
    found = part.score(speaker_norm.adapt(net, part, 7, lambda *X: net(*X)[0]), 7)
    mean, std = net.speaker_norm.adapted
    whole = scores(net, data)
    assert (mean[1] - net.speaker_norm.adapted[0][1]).abs().max() > 1e-4 and (found - whole[15:24]).abs().max() > 1e-4
    prior = net.speaker_norm.corpus()
    assert torch.equal(mean[0], prior[0]) and torch.equal(std[2], prior[1])  # of voices without a recording


@pytest.mark.parametrize('name', ['cnn_gru', 'discrete'])
def test_neither_labels_nor_batches_nor_other_speakers_matter(name):
    net, data = network(name), corpus()
    found = scores(net, data)
    assert torch.equal(scores(net, corpus(labels=[2 - i % 3 for i in range(27)])), found)
    for batch_size in (1, 100):
        torch.testing.assert_close(scores(net, data, batch_size), found)
    other = scores(net, corpus(shift=1.))
    assert torch.equal(other[12:], found[12:]) and (other[:12] - found[:12]).abs().max() > 1e-4
    net.speaker_norm.adapted = None  # as for a voice of which nothing is known
    assert (data.score(lambda *X: net(*X)[0], 7) - found).abs().max() > 1e-4


def test_a_one_hot_supernet_is_the_discrete_network():
    net = supernet(3, n_layers_rnn=1, n_nodes_rnn=1, rnn_primitives='gru_1,skip_connect,none').double()
    genotype = net.genotype()
    one_hot(net, genotype)
    discrete = AugmentCNN(None, 1, 4, 3, 3, False, genotype, n_layers_rnn=1, C_rnn=6).double()
    copy_weights(net, discrete, genotype)
    for body in (net.net, discrete):
        speaker_norm.added(body, ASKED, torch.full((3,), 99)).double()
    plain = net(torch.ones(6, 1, 8, T, dtype=torch.double))
    for _ in range(2):
        X = Inputs(torch.randn(6, 1, 8, T, dtype=torch.double), speaker=torch.arange(6) % 3)
        torch.testing.assert_close(net(*X), discrete(*X)[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(norm_of(net).sums, discrete.speaker_norm.sums, rtol=0, atol=1e-9)
    assert (net(torch.ones(6, 1, 8, T, dtype=torch.double)) - plain).abs().max() > 1e-6


def test_the_programs_keep_it_and_resume(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ['--dataset', 'manifest', '--data_path', str(small_corpus), '--n_mels', '16', '--hop_ms', '32',
            '--normalise', 'speaker']
    asked = ['--embedding', 'speaker']
    short = ['--duration', '.8', '--device', 'cpu', '--batch_size', '10']
    net_argv = [*argv, *asked, *short, '--model', 'cnn_gru', '--params', '2000', '--epochs', '2']
    augment.main(['--name', 'whole', *net_argv])
    monkeypatch.setattr(Run, 'save_checkpoint', stop_after(1, Run.save_checkpoint))
    with pytest.raises(KeyboardInterrupt):
        augment.main(['--name', 'cut', *net_argv])
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    augment.main(['--name', 'cut', *net_argv, '--resume'])
    runs = tmp_path / 'runs/augment'
    assert (runs / 'whole/predictions.csv').read_text() == (runs / 'cut/predictions.csv').read_text()
    assert json.loads((runs / 'whole/results.json').read_text())['embedding'] == 'speaker'
    best = torch.load(runs / 'whole/best.pt')
    net, config = predictor.rebuild(best), cf.build('augment', cf.given('augment', ['--name', 'x', *net_argv]))
    data = datasets.load(config, ('train', 'test'))
    assert all(map(torch.equal, best['prior'], data.prior))
    written = np.loadtxt(runs / 'whole/predictions.csv', delimiter=',', skiprows=1, usecols=(4, 5))
    np.testing.assert_allclose(scores(net, data.sets['test']).numpy(), written, atol=1e-5)
    tiny = ['--init_channels', '2', '--rnn_channels', '4', '--n_nodes', '1', '--rnn_nodes', '1', '--epochs', '1',
            '--alpha_warmup', '0', '--order', '2']
    search.main(['--name', 's', *argv, *asked, *short, *tiny])
    with pytest.raises(cf.UserError, match='--alpha_split speaker: with --embedding speaker .* say --alpha_split utterance'):
        search.main(['--name', 't', *argv, *asked, *short, *tiny, '--alpha_split', 'speaker'])
    record = json.loads((tmp_path / 'runs/search/s/genotype.json').read_text())
    assert record['features']['embedding'] == 'speaker'
    monkeypatch.setattr(svm, 'PENALTIES', (1e-3,))
    for name, more in (('svm', asked), ('plain', [])):
        svm.main(['--name', name, *argv, *more])
    assert (runs / 'svm/predictions.csv').read_text() != (runs / 'plain/predictions.csv').read_text()
    with pytest.raises(cf.UserError, match='needs --normalise speaker'):
        svm.main(['--name', 'x', *argv, *asked, '--normalise', 'corpus'])


FLAGS = ('--name s --dataset manifest --n_mels 16 --hop_ms 32 --duration .8 --batch_size 10 --normalise speaker '
         '--embedding speaker --init_channels 2 --rnn_channels 4').split()


def test_a_search_counts_the_recordings_that_w_hears(small_corpus):
    config = cf.build('search', cf.given('search', [
        *FLAGS, '--data_path', str(small_corpus), '--n_nodes', '1', '--rnn_nodes', '1']))
    data = datasets.load(config, ('train',))
    train = data.sets['train']
    half = [i for i, u in enumerate(train.utterances) if u.speaker != train.speakers[0]] + [0]
    counts = [sum(u.speaker == name for u in train.utterances) for name in train.speakers]
    its = cf.build('augment', cf.given('augment', [*FLAGS, '--data_path', str(small_corpus), '--genotype', 'random']))
    genotype = gt.draw(np.random.default_rng(0), 1, 1)
    for config_, cells in ((its, genotype), (dataclasses.replace(its, model='cnn_gru', genotype=None, params=2000), None)):
        assert training.make_net(config_, data, cells).speaker_norm.recordings.tolist() == counts
    norm = search.make_net(config, data, (half, [])).net.speaker_norm
    assert train.utterances[0].speaker == train.speakers[0] and train.recordings[0] > 1
    assert norm.recordings.tolist() == [1, *train.recordings[1:].tolist()]


def stop_after(n, save):
    """run.save_checkpoint, interrupted when it has saved n."""
    saved = []

    def stopping(self, state):
        save(self, state)
        saved.append(1)
        if len(saved) == n:
            self.close()
            raise KeyboardInterrupt
    return stopping


def test_the_svm_scales_functionals_as_scikit_learn_does():
    data = corpus()
    x = svm.functionals(data)
    found = svm.by_speaker({'train': x}, {'train': data})['train']
    np.testing.assert_allclose(found[:12], StandardScaler().fit_transform(x[:12]), atol=1e-4)
    assert np.abs(found[24:].mean(axis=0)).max() > .01  # three recordings: shrunk towards the corpus
    test = corpus('ddd', shift=3.)
    y = svm.functionals(test) + 2.
    three = svm.by_speaker({'train': x, 'test': y}, {'train': data, 'test': test})['test']
    step, w = y.mean(axis=0) - x.mean(axis=0), .3  # the prior is that of the training speakers
    variance = w * y.var(axis=0) + (1 - w) * x.var(axis=0) + w * (1 - w) * step ** 2
    np.testing.assert_allclose(three, (y - x.mean(axis=0) - w * step) / np.sqrt(variance), atol=1e-2, rtol=1e-2)
