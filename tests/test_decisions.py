"""Decisions outside the cells within a sampled supernet: what is computed, drawn, trained, scored and chosen."""
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, rows
from test_finalists import close_all, killed, read
from test_networks import CRITERION, copy_weights
from test_rank_correlation import Config, data_of

import genotypes as gt
import search
from models import candidates, finalists, speaker_norm
from models.architect import Architect
from models.augment_cnn import AugmentCNN
from models.decisions import Chosen
from models.sampled import Sampler
from models.search_cnn import SearchCNNController

CELL = [[('sep_conv_3x3', 0), ('max_pool_3x3', 1)], [('skip_connect', 0), ('sep_conv_3x3', 2)]]
GENOTYPE = gt.Genotype(CELL, range(2, 4), [CELL[0][::-1], [('sep_conv_3x3', 1), ('max_pool_3x3', 2)]], range(2, 4),
                       [[('gru_1', 0), ('skip_connect', 1)]], [2])
FIRST = {'reduce_1': 'time', 'reduce_2': 'both', 'bands': 2, 'rnn_layers': 2, 'head': 'mean'}
FRAMES = dict(C_in=5, n_sources=2)


def supernet(layers=3, fast=True, C_in=1, **kwargs):
    kwargs = {'n_layers_rnn': 1, **kwargs}
    return SearchCNNController(C_in, 4, 3, layers, torch.nn.CrossEntropyLoss(), n_nodes=2, n_nodes_rnn=1, C_rnn=6, fast=fast,
                               decisions=True, primitives='sep_conv_3x3,max_pool_3x3,skip_connect,none',
                               rnn_primitives='gru_1,skip_connect,none', **kwargs)


def sampler(net, sampling='uniform', seed=0):
    return Sampler(net, SimpleNamespace(cnn_order='free', relaxation='sampled', sampling=sampling, epochs=2, seed=seed))


def with_its_weights(net, network, layers, **kwargs):
    """The discrete network of these decisions, whose weights and buffers are the supernet's."""
    source = f'{"rnn" if network["rnn_layers"] else network.get("bands", 1)}_{network["head"]}'
    state = {}
    for key, value in net.net.state_dict().items():
        first, number, *rest = key.split('.')
        if first.endswith('cells'):
            part, *rest = rest  # cell, fit0 or fit1
            module = getattr(net.net.get_submodule(f'{first}.{number}'), part)
            if isinstance(module, Chosen):
                choice, *rest = rest
                if choice != str(network.get(module.decision, 1)):
                    continue
            key = '.'.join([first, number, *[part.replace('fit', 'preproc')] * (part != 'cell'), *rest])
        elif first == 'classifiers':
            key = '.'.join(rest) if number == source else None
        state[key] = value
    discrete = AugmentCNN(None, kwargs.pop('C_in', 1), 4, 3, layers, False, GENOTYPE._replace(network=network), C_rnn=6,
                          **kwargs).double()
    renamed = SimpleNamespace(state_dict=lambda: state, get_submodule=net.net.get_submodule)
    copy_weights(SimpleNamespace(net=renamed, primitives_of=net.primitives_of), discrete, GENOTYPE)
    return discrete


def every_choice(net):
    """Decisions, among which every choice occurs."""
    yield {**FIRST, 'rnn_layers': 0, 'bands': 'attended'}
    for name, choices in net.decisions.items():
        for i, choice in enumerate(choices):
            yield {**FIRST, 'rnn_layers': i % 3, name: choice}


@pytest.mark.parametrize('layers, fast, n_prosody', [(1, True, 0), (2, True, 3), (3, False, 0), (4, True, 0)])
def test_every_decision_gives_the_output_of_its_discrete_network(layers, fast, n_prosody):
    net = supernet(layers, fast, n_prosody=n_prosody).double()
    x, y = torch.randn(3, 1, 12, 17, dtype=torch.double), torch.tensor([0, 1, 2])
    prosody = torch.randn(3, n_prosody, 17, dtype=torch.double) if n_prosody else None
    valid, outputs = torch.arange(17) < torch.tensor([[17], [9], [4]]), []
    for network in every_choice(net):
        discrete = with_its_weights(net, network, layers, n_prosody=n_prosody)
        net.paths = net.path_of(GENOTYPE._replace(network=network))
        outputs.append(net(x, valid, prosody))
        expected = discrete(x, valid, prosody)[0]
        torch.testing.assert_close(outputs[-1], expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(*(torch.autograd.grad(CRITERION(logits, y), body.stem[0].weight)[0] for logits, body in (
            (outputs[-1], net.net), (expected, discrete))), rtol=0, atol=1e-10)
    assert len({round(output[0, 0].item(), 6) for output in outputs}) >= 9  # decisions do something


def test_decisions_of_frames_give_the_output_of_their_discrete_networks():
    net, x = supernet(4, **FRAMES).double(), torch.randn(3, 2, 5, 17, dtype=torch.double)
    assert net.decisions['reduce_1'] == ('time', 'frequency') and net.decisions['bands'] == (1,)
    for network in every_choice(net):
        network = {name: 'time' if value == 'both' else value for name, value in network.items() if name != 'bands'}
        net.paths = net.path_of(GENOTYPE._replace(network=network))
        torch.testing.assert_close(net(x), with_its_weights(net, network, 4, **FRAMES)(x)[0], rtol=0, atol=1e-10)
    both = net.path_of(GENOTYPE._replace(network={**network, 'reduce_1': 'both', 'bands': 8}))
    assert both['network'] == net.path_of(GENOTYPE._replace(network={**network, 'reduce_1': 'time'}))['network']


def test_without_decisions_the_settings_decide():
    net, x = supernet(4, n_layers_rnn=2).double(), torch.randn(3, 1, 12, 17, dtype=torch.double)
    network = {'reduce_1': 'both', 'reduce_2': 'both', 'bands': 4, 'rnn_layers': 2, 'head': 'mean_std'}
    net.paths = net.path_of(GENOTYPE)
    assert net.paths['network'] == network and net.genotype().network is None
    found = net(x)
    torch.testing.assert_close(found, with_its_weights(net, network, 4)(x)[0], rtol=0, atol=1e-10)
    del net.paths['network']
    assert torch.equal(net(x), found)


@pytest.mark.parametrize('step', ['weights', 'gumbel weights', 'alphas'])
def test_every_choice_is_drawn_equally_often_and_alike_on_all_ranks(step):
    net, other, counts, n = supernet(4, n_layers_rnn=3), supernet(4, n_layers_rnn=3), Counter(), 600
    draws = [sampler(one, 'gumbel' if step == 'gumbel weights' else 'uniform') for one in (net, other)]
    other.load_state_dict(net.state_dict())
    for _ in range(n):
        for draw in draws:
            draw.before_alphas(1) if step == 'alphas' else draw.before_weights()
        assert net.paths['network'] == other.paths['network']
        counts.update(net.paths['network'].items())
    assert net.decisions['rnn_layers'] == (0, 1, 2, 3) and len(counts) == 3 + 3 + 5 + 4 + 4
    for name, choices in net.decisions.items():
        p = 1 / len(choices)
        for choice in choices:
            assert counts[name, choice] / n == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** .5)


def test_a_pure_cnn_stays_one_and_a_supernet_without_choices_draws_nothing():
    net = supernet(n_layers_rnn=0)
    assert net.decisions['rnn_layers'] == (0,) and net.kinds() == ['normal', 'reduce']
    fixed = SearchCNNController(1, 4, 3, 3, CRITERION, n_nodes=2)
    sampler(fixed).before_weights()
    assert set(fixed.paths) == {'normal', 'reduce', 'rnn'} == set(fixed.path_of(fixed.genotype()))


def test_what_was_not_drawn_has_no_gradient():
    net, x, y = supernet(4), torch.randn(3, 1, 12, 17), torch.tensor([0, 1, 2])
    draw, seen = sampler(net, 'gumbel'), set()
    for _ in range(12):
        net.zero_grad()
        draw.before_weights()
        net.loss(x, y).backward()
        network = net.paths['network']
        for module in net.net.modules():
            for choice, one in module.items() if isinstance(module, Chosen) else ():
                if choice != str(network[module.decision]):
                    assert all(p.grad is None for p in one.parameters())
        learn = [key for key, part in net.net.classifiers.items() if any(p.grad is not None for p in part.parameters())]
        assert learn == [f'{"rnn" if network["rnn_layers"] else network["bands"]}_{network["head"]}']
        assert all(p.grad is None for p in net.net.seq_cells[network['rnn_layers']:].parameters())
        seen.add(network['rnn_layers'])
    assert seen == {0, 1, 2}


def test_the_architect_differentiates_networks_with_decisions():
    net = supernet(4).double()
    batch = torch.randn(3, 1, 12, 17, dtype=torch.double), torch.tensor([0, 1, 2])
    w_optim, architect = torch.optim.SGD(net.weights(), .05, momentum=.9), Architect(net, .9, 0., 'exact')
    draw, found = sampler(net), set()
    for i in range(12):
        draw.before_alphas(1)
        architect.backward(*batch) if i % 2 else architect.unrolled_backward(*batch, *batch, .05, w_optim)
        layers, rnn, reduce = net.paths['network']['rnn_layers'], *(bool(alpha[0].grad.abs().max() > 0)
                                                                    for alpha in (net.alpha_rnn, net.alpha_reduce))
        found.add((layers > 0, rnn, reduce))
    assert found >= {(False, False, True), (True, True, True)} and not found & {(False, True, True), (False, True, False)}


def gene_of(path, names):
    return [sorted((names[choice.op], state) for state, choice in enumerate(node) if choice is not None) for node in path]


def test_paths_of_genotypes_are_their_networks_and_others_are_refused():
    net, rng = supernet(4), np.random.default_rng(0)
    for _ in range(20):
        genotype = gt.draw(rng, 2, 1, net.primitives, net.rnn_primitives, space='speech')
        if genotype.network['layers'] == 2:
            with pytest.raises(ValueError, match='a normal cell with other nodes'):
                net.path_of(genotype)
            continue
        path = net.path_of(genotype)
        assert path['network'] == {name: genotype.network[name] for name in net.decisions}
        for kind in net.kinds():
            if kind == 'rnn' and not genotype.rnn:
                assert 'rnn' not in path and genotype.network['rnn_layers'] == 0
            else:
                assert gene_of(path[kind], net.primitives_of(kind)) == [sorted(node) for node in getattr(genotype, kind)]
    lacks = GENOTYPE._replace(rnn=[], rnn_concat=[])
    assert net.path_of(lacks._replace(network={'rnn_layers': 0}))['network']['rnn_layers'] == 0
    for refused, message in ((lacks, 'a rnn cell'), (lacks._replace(network={'rnn_layers': 1}), 'a rnn cell'),
                             (GENOTYPE._replace(normal=[[('sep_conv_3x3', 1), ('skip_connect', 1)], *GENOTYPE.normal[1:]]),
                              'a normal cell with two edges from one state'),
                             (GENOTYPE._replace(reduce_concat=[3]), 'a reduce cell whose output is not that of all'),
                             (GENOTYPE._replace(network={'bands': 16}), 'no bands 16; it has 1, 2, 4, 8, attended')):
        with pytest.raises(ValueError, match=message):
            net.path_of(refused)


def test_networks_that_differ_in_one_decision_have_different_scores():
    net, data = supernet(), data_of('train', 'dev')
    net.criterion.weight = data.class_weights
    scorer, losses = candidates.Scorer(net, data, Config, torch.autocast('cpu', enabled=False)), {}
    for name, choices in net.decisions.items():
        losses[name] = [scorer.score(GENOTYPE._replace(network={**FIRST, name: choice}))['loss'] for choice in choices]
        assert len(set(losses[name])) == len(choices)
    assert scorer.score(GENOTYPE._replace(network=FIRST))['loss'] == losses['head'][0]


def test_every_classifier_normalises_speakers_by_moments_of_its_own():
    """Oracle: the discrete network with the moments of training that belong to its classifier."""
    net, data, asked = supernet(), data_of('train', 'dev'), SimpleNamespace(embedding='speaker')
    speaker_norm.added(net.net, asked, torch.tensor([99]))
    for network in ({**FIRST, 'rnn_layers': 0}, FIRST, {**FIRST, 'head': 'mean_std'}):
        net.paths = net.path_of(GENOTYPE._replace(network=network))
        for X, _ in data.sets['train'].batches(6):
            net.train()(*X)
        discrete = with_its_weights(net, network, 3).float()
        part = net.net.classifiers[f'{"rnn" if network["rnn_layers"] else 2}_{network["head"]}']
        speaker_norm.added(discrete, asked, torch.tensor([99])).speaker_norm.load_state_dict(part.speaker_norm.state_dict())
        dev = data.sets['dev']
        remembered = [dev.score(speaker_norm.adapt(one, dev, 12, forward), 12) for one, forward in (
            (net.eval(), None), (discrete.eval(), lambda *X: discrete(*X)[0]))]  # noqa: B023
        torch.testing.assert_close(*remembered, rtol=0, atol=1e-5)
        X = torch.randn(3, 1, 8, 14), None, None, torch.zeros(3, dtype=torch.long)
        torch.testing.assert_close(net(*X), discrete(*X)[0], rtol=0, atol=1e-5)
        assert [one for one in net.net.classifiers.values() if one.speaker_norm.adapted is not None] == [part]


def test_a_search_with_decisions_interrupted_and_resumed_is_one_that_was_not(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ['--dataset', 'manifest', '--data_path', str(small_corpus), *SMALL, '--space', 'speech', '--relaxation', 'sampled',
            *'--normalise speaker --embedding speaker --finalists 2 --candidates 5'.split(),
            *'--epochs 2 --finalist_epochs 1 --alpha_warmup 0'.split()]
    search.main(['--name', 'whole', *argv])
    tree, genotype = read('whole')
    epochs = rows(Path('runs/search/whole/metrics.jsonl'))
    assert any('classifiers' in name for name in torch.load('runs/search/whole/checkpoint.pt', weights_only=True)['net'])
    scored = [gt.from_str(row['genotype']) for row in tree['scores']]
    assert len(scored) == len(set(map(gt.to_str, scored))) == 5
    assert all(set(one.network) | {'C_rnn'} == set(gt.NETWORK_CHOICES) for one in scored)
    assert scored[0].reduce == gt.from_str(epochs[-1]['genotype']).reduce
    best = sorted(tree['scores'], key=lambda row: row['loss'])[:2]
    assert [(row['genotype'], row['score']) for row in tree['finalists']] == [(row['genotype'], row['loss']) for row in best]

    argv = ['--name', 'stopped', *argv]
    for target, name, limit in ((Architect, 'backward', 3), (finalists.Scorer, 'score', 4)):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, killed(getattr(target, name), limit, []))
            with pytest.raises(KeyboardInterrupt):
                search.main([*argv, *['--resume'] * Path('runs/search/stopped').exists()])
        close_all()
    search.main([*argv, '--resume'])
    assert read('stopped') == (tree, genotype) and rows(Path('runs/search/stopped/metrics.jsonl')) == epochs
