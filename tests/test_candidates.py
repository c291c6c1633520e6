"""models/candidates.py: genotypes drawn from alpha, their scores in the supernet, bands of size."""
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL
from test_networks import copy_weights, supernet
from test_rank_correlation import GENOTYPE, Config, data_of

import config as cf
import genotypes as gt
import utils
from datasets import scoring
from datasets.dataset import SpeechDataset
from models import candidates, finalists, speaker_norm
from models.augment_cnn import AugmentCNN
from models.training import n_parameters


def test_candidates_are_drawn_as_alpha_says():
    weights = np.array([[.5, .2, .3], [.1, .1, .8]])  # the last operation is `none`
    rng, n, counts = np.random.default_rng(0), 4000, {}
    for _ in range(n):
        first, second = candidates.draw_node(weights, ('a', 'b', gt.NONE), rng)
        assert {first[1], second[1]} == {0, 1}
        counts[first] = counts.get(first, 0) + 1
    for key, share in {('a', 0): .5, ('b', 0): .2, ('a', 1): .1, ('b', 1): .1}.items():
        assert counts[key] / n == pytest.approx(share / .9, abs=.03)


def test_drawn_genotypes_are_of_the_space_and_distinct():
    net = supernet(3, n_nodes=1, n_nodes_rnn=1, primitives='max_pool_3x3,none', rnn_primitives='gru_1,rnn_1')
    found = list(candidates.distinct(candidates.genotypes_from_alpha(net, np.random.default_rng(0))))
    assert len(found) == 4  # two operations on two edges of the SeqNN cell; nothing else to choose. And it ends
    for genotype in found:
        assert gt.check(genotype) == genotype and net.path_of(genotype)
    swapped = found[0]._replace(rnn=[found[0].rnn[0][::-1]])
    assert list(candidates.distinct([found[0], swapped])) == found[:1]


def test_candidates_are_drawn_as_the_weights_of_edges_say():
    net = supernet(3, n_nodes=2, n_nodes_rnn=1, partial_channels=2)
    with torch.no_grad():
        net.beta_normal[1].copy_(torch.tensor([-20., 0., 0.]))
    drawn = list(islice(candidates.genotypes_from_alpha(net, np.random.default_rng(0)), 30))
    assert {tuple(sorted(state for _, state in genotype.normal[1])) for genotype in drawn} == {(1, 2)}
    assert {state for genotype in drawn for _, state in genotype.reduce[1]} == {0, 1, 2}


@pytest.mark.parametrize('size', [12, 5])
def test_a_score_is_that_of_the_discrete_network(size, monkeypatch):
    monkeypatch.setattr(candidates, 'REFIT_BATCH', size)  # statistics of all batches count alike
    net, data = supernet(4, n_nodes=2, n_nodes_rnn=2, dropout=.5), data_of('train', 'dev')
    for p in net.buffers():
        p.fill_(7.) if p.is_floating_point() else None
    balance = net.criterion.weight = data.class_weights = torch.tensor([1., 3., .2])
    scorer = candidates.Scorer(net, data, Config, torch.autocast('cpu', enabled=False))
    found = scorer.score(GENOTYPE)
    assert scorer.score(GENOTYPE) == pytest.approx(found)  # no dropout, nothing left of the statistics before
    with pytest.raises(utils.UserError, match='normal cell'):
        scorer.score(GENOTYPE._replace(normal=GENOTYPE.normal[:1]))
    discrete = AugmentCNN(None, 1, 4, 3, 4, False, GENOTYPE, C_rnn=6)
    copy_weights(net, discrete, GENOTYPE)
    for module in discrete.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        assert sum(len(X.x) for X in scorer.batches) == len(data.sets['train']) and len(scorer.batches[0].x) == min(
            size, len(data.sets['train']))
        refitted = torch.cat([X.x for X in scorer.batches]).sum(dim=(1, 2, 3)).sort().values
        windows = torch.cat([X.x for X, _ in data.sets['train'].scoring_windows(12)]).sum(dim=(1, 2, 3)).sort().values
        torch.testing.assert_close(refitted, windows)  # of training speakers
        for X in scorer.batches:
            discrete(*X)
        p = data.sets['dev'].score(lambda *X: discrete.eval()(*X)[0], 4)
    labels = data.sets['dev'].labels
    assert found['loss'] == pytest.approx(torch.nn.functional.nll_loss(p.log(), labels, balance).item(), rel=1e-4)
    config = SimpleNamespace(batch_size=4, seed=0, finalists=1, scored_utterances=5)
    scorer = candidates.Scorer(net, data, config, torch.autocast('cpu', enabled=False))
    of_files = {u: i for i, u in enumerate(map(id, data.sets['dev'].utterances))}
    chosen = torch.tensor([of_files[id(u)] for u in scorer.part.utterances])
    assert scorer.score(GENOTYPE, whole=True)['loss'] == pytest.approx(found['loss'])
    loss = torch.nn.functional.nll_loss(p[chosen].log(), labels[chosen], balance)
    assert len(set(chosen.tolist())) == 5 and scorer.score(GENOTYPE)['loss'] == pytest.approx(loss.item(), rel=1e-4)


def test_statistics_of_batch_norm_are_of_256_training_utterances():
    data = data_of('dev')
    us, features = ([x] * 300 for x in (SimpleNamespace(speaker='a'), torch.randn(8, 14).half().numpy()))
    data.sets['train'] = SpeechDataset(us, features, [0, 1, 2] * 100, torch.zeros(8, 1), torch.ones(8, 1), 14)
    scorer = candidates.Scorer(supernet(4, n_nodes=2, n_nodes_rnn=2), data, Config, torch.autocast('cpu', enabled=False))
    assert sum(len(X.x) for X in scorer.batches) == 256


def test_genotypes_follow_alpha():
    net = supernet(3, n_nodes=1, n_nodes_rnn=1)
    with torch.no_grad():
        for alphas in (net.alpha_normal, net.alpha_reduce, net.alpha_rnn):
            alphas[0][0, 1], alphas[0][1, 2] = 6., 4.  # operation 1 from state 0, operation 2 from state 1
    drawn = list(islice(candidates.genotypes_from_alpha(net, np.random.default_rng(0)), 100))
    for kind in gt.KINDS:
        names = net.primitives_of(kind)
        both = [{*getattr(genotype, kind)[0]} == {(names[1], 0), (names[2], 1)} for genotype in drawn]
        assert sum(both) > 60


def test_a_candidate_that_overflows_leaves_no_trace():
    net, data = supernet(4, n_nodes=2, n_nodes_rnn=2), data_of('train', 'dev')
    net.criterion.weight = data.class_weights
    for u in data.sets['dev'].utterances:
        u.path = 'a.wav'
    scorer = candidates.Scorer(net, data, Config, torch.autocast('cpu', enabled=False))
    before = scorer.score(GENOTYPE)
    stem = next(p for p in net.net.stem.parameters() if p.ndim == 4)
    kept = stem.detach().clone()
    for bad in (float('nan'), 1e38):  # of all candidates here, as an operation would be of some
        stem.data.fill_(bad)
        with pytest.raises(scoring.Diverged):
            scorer.score(GENOTYPE)
        assert net.paths is None and net.training
        stem.data.copy_(kept)
        assert scorer.score(GENOTYPE) == before


def test_training_speakers_are_not_looked_up_among_those_of_dev():
    net, data = supernet(3, n_nodes=2, n_nodes_rnn=2), data_of('train', 'dev')
    data.sets['train'].speaker[::2] = 1  # one more than dev has
    speaker_norm.added(net.net, SimpleNamespace(embedding='speaker'), torch.full((2,), 99))
    net.criterion.weight = data.class_weights
    net(*next(data.sets['train'].batches(12))[0])
    scorer = candidates.Scorer(net, data, Config, torch.autocast('cpu', enabled=False))
    assert scorer.score(GENOTYPE) == scorer.score(GENOTYPE)  # the second time the network knows the speakers of dev


def test_a_band_rejects(small_corpus):
    config = finalists.recipe_of(cf.build('search', cf.given('search', ['--name', 'x', '--dataset', 'manifest', *SMALL])))
    drawn = list(islice(candidates.random_genotypes(config, np.random.default_rng(0)), 30))
    sizes = [n_parameters(config, ['a', 'b'], genotype) for genotype in drawn]
    low, high = sorted(sizes)[10], sorted(sizes)[20]
    kept = list(candidates.in_band(drawn, replace(config, band=f'{low}-{high}'), ['a', 'b']))
    assert kept == [(g, n) for g, n in zip(drawn, sizes) if low <= n <= high]
