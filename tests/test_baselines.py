"""Hand-designed networks, genotypes by chance, the linear floor: baselines must be sound, and of the size they claim."""
import collections
import json
import random

import numpy as np
import pytest
import torch
from conftest import FEATURES
from scipy.stats import chisquare
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import augment
import config as cf
import datasets
import genotypes as gt
from config import ANY_INPUT
from models import baselines
from models.augment_cnn import AugmentCNN
from models.baselines import AttentionPool, make_baseline
from scripts import svm

SIZES = dict(height=8, n_frames=12, n_classes=3, dropout=.2)


@pytest.mark.parametrize('name', ANY_INPUT)
def test_an_utterance_is_scored_alone_as_in_a_batch(name):
    net = make_baseline(name, **SIZES).double().eval()
    x = torch.randn(3, 1, 8, 12, dtype=torch.float64)
    logits, auxiliary = net(x)
    assert logits.shape == (3, 3) and auxiliary is None
    assert torch.allclose(logits[:1], net(x[:1])[0], atol=1e-12)
    assert torch.allclose(logits.flip(0), net(x.flip(0))[0], atol=1e-12)
    assert not torch.allclose(logits, net(x.flip(3))[0], atol=1e-6)  # the order of time is heard


@pytest.mark.parametrize('name', [name for name in ANY_INPUT if name != 'cnn'])
def test_any_length_will_do_but_for_the_cnn(name):
    net = make_baseline(name, **SIZES).eval()
    assert net(torch.randn(2, 1, 8, 40))[0].shape == (2, 3)


@pytest.mark.parametrize('name', ANY_INPUT)
@pytest.mark.parametrize('n_mels, n_frames', [(1, 1), (1, 3), (5, 7)])
def test_any_map_will_do(name, n_mels, n_frames):
    make_baseline(name, n_mels, n_frames, 2, .1)(torch.randn(2, 1, n_mels, n_frames))[0].sum().backward()


@pytest.mark.parametrize('name', ANY_INPUT)
@pytest.mark.parametrize('n_params', [1, 3_000, 20_011])
def test_the_matched_width_is_the_nearest_of_all(name, n_params):
    network = getattr(baselines, name)
    got = sum(p.numel() for p in make_baseline(name, **SIZES, n_params=n_params).parameters())
    widths = range(1, 300 if name == 'cnn' else 90)
    every = [sum(p.numel() for p in network(8, 12, 3, width, .2).parameters()) for width in widths]
    assert every[-1] > n_params or n_params == 1
    assert abs(got - n_params) == min(abs(n - n_params) for n in every)


def test_the_papers_sizes_are_counted_by_hand():
    def linear(n, m):
        return n * m + m
    head = linear(32, 3)
    lstm = 4 * (8 * 512 + 512 * 512 + 2 * 512)
    assert baselines.count_parameters(baselines.lstm, 8, 12, 3, 512, .2) == lstm + linear(512, 32) + head
    conv, places = 5 * (2 * 2) + 5, 3 * 4  # of 8 x 12: 5 x 7, then 3 x 4
    assert baselines.count_parameters(baselines.cnn, 8, 12, 3, 5, .2) == conv + linear(5 * places, 32) + head


def test_a_name_that_is_no_baseline_is_refused():
    assert all(callable(getattr(baselines, name)) for name in ANY_INPUT)
    with pytest.raises(ValueError, match='is not one of cnn, rnn'):
        make_baseline('masked_mean', **SIZES)


@pytest.mark.parametrize('name', ANY_INPUT)
def test_padding_takes_no_part_in_the_pooling(name):
    """What the pooling is given for a padded window is cut where the padding begins, and pooled by hand."""
    net, (x, valid) = make_baseline(name, **SIZES).double().eval(), padded()
    plain = net(x)[0]
    masked = net(x, valid)[0]
    net.pools_padding = True
    assert torch.equal(net(x, valid)[0], plain)
    if name == 'cnn':
        assert torch.equal(masked, plain)
        return
    net.pools_padding = False
    sequences, family = [], next(m for m in net.modules() if isinstance(m, torch.nn.RNNBase))
    family.register_forward_hook(lambda module, args, out: sequences.append(out[0]))
    net(x, valid)
    h, = sequences
    for i, n_valid in enumerate(valid.sum(dim=1).tolist()):
        steps = -(-n_valid * h.shape[1] // 12)  # a step counts where any frame under it is audio; 12 frames, 12 or 3 or 4 steps
        cut = h[i:i + 1, :steps]
        pooled = net.pool(cut) if getattr(net, 'pool', None) else cut.mean(dim=1)
        torch.testing.assert_close(net.linear(pooled), masked[i:i + 1])
    assert (masked[1:] - plain[1:]).abs().max() > 1e-6
    torch.testing.assert_close(masked[:1], plain[:1])  # all audio


def padded():
    valid = torch.arange(12) < torch.tensor([[12], [6], [4], [1]])
    return torch.randn(4, 1, 8, 12, dtype=torch.double) * valid[:, None, None], valid


def test_drawn_genotypes_are_uniform_over_the_space():
    rng, n = np.random.default_rng(0), 6_000
    drawn = [gt.draw(rng, 2, 1, 'sep_conv', 'lstm_1,skip_connect,none') for _ in range(n)]
    assert all(gt.check(g) == g for g in drawn)

    def nodes(kind, i):
        return collections.Counter(frozenset((state, op) for op, state in getattr(g, kind)[i]) for g in drawn)
    for kind, i, n_ops, n_pairs in (('normal', 0, 3, 1), ('normal', 1, 3, 3), ('reduce', 1, 3, 3), ('rnn', 0, 2, 1)):
        counts = nodes(kind, i)
        assert len(counts) == n_pairs * n_ops ** 2
        assert chisquare(list(counts.values())).pvalue > 1e-3


def test_a_drawn_genotype_hangs_on_seed_and_fold_alone():
    def drawn(**more):
        return augment.configure(cf.Given({'name': 'r', 'genotype': 'random', **more}))[1]
    assert drawn() == drawn() == drawn(epochs=3)
    assert len({gt.to_str(drawn(seed=s, fold=f)) for s in range(3) for f in (1, 2)}) == 6
    assert {op for node in drawn(cnn_ops='pool', n_nodes=4).normal for op, _ in node} <= set(gt.CNN_OP_SETS['pool'])
    assert drawn(rnn_layers=0).rnn == []
    assert drawn(layers=2).normal == drawn(layers=1).normal == [] != drawn(layers=3).normal
    assert drawn(layers=2).reduce == drawn(layers=3).reduce
    assert AugmentCNN(None, 1, 4, 3, 2, False, drawn(layers=2))(torch.randn(2, 1, 16, 20))[0].shape == (2, 3)


@pytest.mark.parametrize('argv, said', [
    (['--model', 'cnn_gru', '--genotype', 'x.json'], '--genotype does not apply to --model cnn_gru'),
    (['--model', 'cn_gru'], 'cnn_gru'),
    (['--params', '500', '--genotype', 'random'], '--params'), (['--genotype', 'random', '--cnn_ops', 'sep'], "'sep'"),
    ([], '--genotype is required')])
def test_what_does_not_go_together_is_said(argv, said):
    with pytest.raises(cf.UserError, match=said):
        augment.configure(cf.given('augment', ['--name', 'x', *argv]))


def test_the_trainer_takes_them_all(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, argv in (('net', '--model cnn_lstm_att --params 700'),
                       ('luck', '--genotype random --n_nodes 1 --rnn_nodes 1 --init_channels 2')):
        augment.main(['--name', f'cv/{name}', '--dataset', 'manifest', '--data_path', str(small_corpus), *FEATURES,
                      '--epochs', '1', *argv.split()])
    net, luck = (json.loads((tmp_path / f'runs/augment/cv/{name}/results.json').read_text()) for name in ('net', 'luck'))
    assert net['model'] == 'cnn_lstm_att' and abs(net['n_params'] - 700) < 100 and net['genotype'] is None
    assert luck['model'] == 'genotype' and gt.from_str(luck['genotype']).rnn
    assert all(found['search_heard_test_speakers'] == [] and found['search'] is None for found in (net, luck))


@pytest.fixture
def noisy_corpus(small_corpus, tmp_path):
    """small_corpus with half of its labels drawn anew: what is best on dev is not what is best on test."""
    rng = random.Random(20)
    header, *rows = small_corpus.read_text().splitlines()
    rows = [row.split(',') for row in rows]
    path = tmp_path / 'noisy.csv'
    path.write_text('\n'.join([header] + [
        ','.join([str(small_corpus.parent / name), rng.choice(['angry', 'sad']) if rng.random() < .5 else label, *rest])
        for name, label, *rest in rows]) + '\n')
    return path


def test_the_linear_floor_is_scikit_learns(noisy_corpus, tmp_path, monkeypatch):
    """Its C is the smallest of those that are best on dev, and another one than test would choose."""
    monkeypatch.chdir(tmp_path)
    argv = ['--name', 'svm', '--dataset', 'manifest', '--data_path', str(noisy_corpus), '--n_mels', '8']
    svm.main(argv)
    found = json.loads((tmp_path / 'runs/augment/svm/results.json').read_text())
    data = datasets.load(cf.build('svm', cf.given('svm', argv)), ('train', 'dev', 'test'))
    x = {name: np.stack([functionals_by_hand(part, i) for i in range(len(part))]) for name, part in data.sets.items()}
    assert np.allclose(svm.functionals(data.sets['test']), x['test'], atol=1e-4)
    scaler, ua, machines = StandardScaler().fit(x['train']), {'dev': [], 'test': []}, []
    for C in svm.PENALTIES:
        machine = LinearSVC(C=C, class_weight='balanced', dual=False, max_iter=100_000)
        machines.append(machine.fit(scaler.transform(x['train']), data.sets['train'].labels))
        for name in ua:
            ua[name].append(balanced_accuracy_score(data.sets[name].labels, machine.predict(scaler.transform(x[name]))))
    best = ua['dev'].index(max(ua['dev']))
    assert (found['C'], found['dev_ua']) == (svm.PENALTIES[best], pytest.approx(ua['dev'][best]))
    assert 0 < best < len(machines) - 1 and best != ua['test'].index(max(ua['test'])) and ua['dev'].count(max(ua['dev'])) > 1
    assert found['wa'] == pytest.approx(machines[best].score(scaler.transform(x['test']), data.sets['test'].labels))
    assert found['n_params'] == 2 * (6 * 8 + 1) and found['model'] == 'svm'


def test_a_floor_that_does_not_converge_says_so(small_corpus, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(svm, 'PENALTIES', (1e-4, 10.))
    argv = ['--dataset', 'manifest', '--data_path', str(small_corpus), '--n_mels', '8']
    svm.main(['--name', 'whole', *argv])
    assert svm.MAX_ITER > LinearSVC().max_iter and 'converged' not in (tmp_path / 'runs/augment/whole/augment.log').read_text()
    monkeypatch.setattr(svm, 'MAX_ITER', 10)
    allowed = []
    monkeypatch.setattr(svm, 'LinearSVC', lambda **kwargs: allowed.append(kwargs['max_iter']) or LinearSVC(**kwargs))
    svm.main(['--name', 'cut', *argv])
    said = (tmp_path / 'runs/augment/cut/augment.log').read_text()
    assert f'C 10: not converged after {svm.MAX_ITER} iterations' in said and 'C 0.0001: not' not in said
    assert allowed == [10, 10] and not [one for one in recwarn if 'converge' in str(one.message)]


def functionals_by_hand(part, i):
    frames = part.frames[:, part.offsets[i]:part.offsets[i] + part.lengths[i]].double().numpy()

    def steps(band):
        return np.mean([abs(band[t + 1] - band[t]) for t in range(len(band) - 1)])
    every = np.mean, np.std, lambda b: np.quantile(b, .1), np.median, lambda b: np.quantile(b, .9), steps
    return np.array([f(band) for f in every for band in frames])


@pytest.mark.parametrize('name, attends', [
    ('cnn', False), ('rnn', False), ('lstm', False), ('cnn_lstm', False), ('cnn_lstm_att', True), ('cnn_gru', True)])
def test_those_pool_by_attention_that_say_so(name, attends):
    net = make_baseline(name, **SIZES)
    assert any(isinstance(module, AttentionPool) for module in net.modules()) == attends
