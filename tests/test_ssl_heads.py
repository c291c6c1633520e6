"""Hand-designed networks on frames of a speech encoder, and the programs that train, compare and show such networks."""
import json

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import shown
from test_sources import D, frames

import augment
import config as cf
import genotypes as gt
import search
import utils
from config import BASELINES, SSL, UserError
from models import baselines
from models.baselines import make_baseline
from models.predictor import start_from
from scripts import rank_correlation, recipe, report, spread
from scripts.experiment import MODELS

SIZES = dict(height=1, n_frames=12, n_classes=3, dropout=.2, C_in=D)


def padded(L):
    valid = torch.arange(12) < torch.tensor([[12], [6], [4], [1]])
    return frames(L, 4, 12) * valid[:, None, None], valid


@pytest.mark.parametrize('L', [1, 3])
@pytest.mark.parametrize('name', BASELINES)
def test_frames_are_scored_alone_as_in_a_batch_and_every_weight_learns(name, L):
    net = make_baseline(name, **SIZES, n_sources=L).double()
    logits, auxiliary = net(frames(L, 40, 12))
    nn.functional.cross_entropy(logits, torch.arange(40) % 3).backward()
    assert {m.kernel_size[0] for m in net.modules() if isinstance(m, nn.Conv2d)} <= {1}
    idle = {'pool.score.2.bias'}  # a shift of all scores, which the softmax over T takes away
    assert auxiliary is None and {key for key, p in net.named_parameters() if not p.grad.any()} <= idle
    assert len(net.layer_weights()) == (3 if L == 3 else 0)
    x, valid = padded(L)
    whole = net.eval()(x, valid)[0]
    torch.testing.assert_close(torch.cat([net(x[i:i + 1], valid[i:i + 1])[0] for i in range(4)]), whole, rtol=0, atol=1e-12)
    assert (net(x)[0][1:] - whole[1:]).abs().max() > 1e-6 or name == 'cnn'  # which reads every place of a window
    if name != 'cnn':
        assert net(frames(L, 2, 30))[0].shape == (2, 3)


@pytest.mark.parametrize('L', [1, 3])
def test_the_heads_are_what_their_description_says(L):
    """Layers by their weights, then frame by frame without padding, one utterance after another."""
    x, valid = padded(L)
    for name in SSL:
        net = make_baseline(name, **SIZES, n_sources=L).double().eval()
        weights = torch.ones(1).double()
        if L > 1:
            net.mix.scores.data.normal_()
            weights = net.mix.scores.data.exp() / net.mix.scores.data.exp().sum()
        found = net(x, valid)[0]
        for i, n in enumerate(valid.sum(dim=1).tolist()):
            layers = x[i] if L > 1 else x[i].transpose(0, 1)  # (L, D, T)
            h = sum(w * layer[:, :n] for w, layer in zip(weights, layers)).T  # (T, D)
            if name != 'ssl_linear':
                h = net.project(h)
            shares = torch.full((n, 1), 1 / n).double() if name != 'ssl_att' else torch.softmax(net.pool.score(h), dim=0)
            torch.testing.assert_close(found[i], net.linear((shares * h).sum(dim=0)))
    assert isinstance(net.linear[1], nn.ReLU) and len(net.linear) == 4


def test_their_sizes_are_counted_by_hand():
    def size(name, width, D, L):
        return baselines.count_parameters(getattr(baselines, name), 1, 150, 4, width, .1, D, 0, L)
    mlp = 13 + (768 * 256 + 256) + (256 * 256 + 256) + (256 * 4 + 4)
    assert size('ssl_linear', 0, 768, 13) == 13 + 768 * 4 + 4
    assert size('ssl_mlp', 256, 768, 13) == mlp
    assert size('ssl_att', 256, 768, 13) == mlp + (256 * 64 + 64) + (64 + 1)
    assert size('ssl_linear', 0, 768, 1) == 768 * 4 + 4
    gru = make_baseline('cnn_gru', **SIZES, n_sources=1).gru
    assert gru.input_size == gru.hidden_size == 64  # the channels of the last block: one band


@pytest.mark.parametrize('name', ['lstm', 'ssl_mlp', 'ssl_att'])
def test_the_matched_width_is_the_nearest_of_all(name):
    got = sum(p.numel() for p in make_baseline(name, **SIZES, n_params=3_000, n_sources=3).parameters())
    every = [baselines.count_parameters(getattr(baselines, name), 1, 12, 3, w, .2, D, 0, 3) for w in range(1, 200)]
    assert abs(got - 3_000) == min(abs(n - 3_000) for n in every)


def test_what_makes_no_network_is_refused():
    with pytest.raises(ValueError, match='ssl_linear has one size'):
        make_baseline('ssl_linear', **SIZES, n_params=500, n_sources=1)
    with pytest.raises(ValueError, match='reads no spectrogram'):
        make_baseline('ssl_mlp', **{**SIZES, 'height': 32, 'C_in': 1})
    for argv, said in ((['--model', 'ssl_att'], 'reads frames of a speech encoder: say --features encoder or frames'),
                       (['--model', 'ssl_linear', '--features', 'frames', '--params', '99'], 'ssl_linear has one size')):
        with pytest.raises(UserError, match=said):
            cf.build('augment', cf.given('augment', ['--name', 'x', *argv]))
    assert 'ssl_mlp_matched' in MODELS and 'ssl_linear' in MODELS and 'ssl_linear_matched' not in MODELS


# --- The programs, on files of frames ---

@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    """A manifest of frames (3, D, T); in channel 0 of the last layer the classes differ."""
    folder, rng = tmp_path_factory.mktemp('frames'), np.random.default_rng(0)
    rows = ['path,label,speaker,frames']
    for i in range(6 * 2 * 3):
        speaker, label = i // 6, ('angry', 'sad')[i % 2]
        x = rng.normal(size=(3, D, 25 + i)).astype(np.float32)
        x[2, 0] += 4 * (i % 2)
        np.save(folder / f'{i}.npy', x)
        rows.append(f'{i}.wav,{label},spk{speaker},{i}.npy')
    path = folder / 'corpus.csv'
    path.write_text('\n'.join(rows) + '\n')
    return ['--dataset', 'manifest', '--data_path', str(path), '--features', 'frames', '--device', 'cpu', '--duration', '.6',
            '--batch_size', '8']


def test_the_space_speech_has_its_own_operations_for_frames(corpus):
    def built(*argv):
        return cf.build('search', cf.given('search', ['--name', 'x', '--space', 'speech', *argv])).cnn_ops
    assert built() == 'speech' and built(*corpus) == 'frames' and built(*corpus, '--cnn_ops', 'pool') == 'pool'
    assert {*gt.CNN_OP_SETS['frames']} == {name for name in gt.CNN_OP_SETS['speech'] if not name.startswith('freq_')}


CELLS = '--init_channels 2 --rnn_channels 4 --n_nodes 1 --rnn_nodes 1'.split()
SPEAKER = '--normalise speaker --embedding speaker'.split()


@pytest.fixture
def few_pictures(monkeypatch):
    """TensorBoard's pictures are drawn once a run, since they take longer than the training."""
    monkeypatch.setattr('models.board.PICTURES', 1)


def test_a_search_with_finalists_and_a_retraining_show_the_layers(corpus, here, few_pictures):
    search.main(['--name', 's', *corpus, *CELLS, *SPEAKER, *'--epochs 2 --alpha_warmup 1 --relaxation sampled --finalists 2 '
                 '--candidates 3 --finalist_epochs 1'.split()])
    augment.main(['--name', 'a', *corpus, '--genotype', 'runs/search/s', '--epochs', '2', '--ema', '.5', *SPEAKER])
    for folder, log in (('runs/search/s', 'search.log'), ('runs/augment/a', 'augment.log')):
        rows = [json.loads(line) for line in (here / folder / 'metrics.jsonl').read_text().splitlines()]
        layers = rows[-1]['layers']
        assert [*layers] == ['0', '1', '2'] and sum(layers.values()) == pytest.approx(1) and len({*layers.values()}) == 3
        tags = {tag for tag, *_ in shown(here / folder)}
        assert {'9_layers/0', '0_now/6_layers'} <= tags
        said = (here / folder / log).read_text()
        assert 'weights of the layers: 0: ' in said and 'could not be' not in said
    report.main([folder])
    assert 'weights of the layers' in (here / 'report.html').read_text()
    assert sum(tag.startswith('4_hardest/') for tag in tags) == 8 and not any('audio' in tag for tag in tags)
    assert json.loads((here / 'runs/augment/a/results.json').read_text())['layers'].keys() == layers.keys()
    rank_correlation.main(['runs/search/s', '--networks', '2', '--seeds', '1', '--epochs', '1', '--data_path', corpus[3]])


def test_heads_learn_and_are_compared(corpus, here, capsys, few_pictures):
    augment.main(['--name', 'h', *corpus, '--model', 'ssl_mlp', '--params', '300', '--epochs', '6', '--lr', '.03',
                  '--optimizer', 'adamw'])
    found = json.loads((here / 'runs/augment/h/results.json').read_text())
    assert found['ua'] == 1 and found['layers']['2'] == max(found['layers'].values()) and abs(found['n_params'] - 300) < 20
    with pytest.raises(UserError, match='one mixes the layers of an encoder and one does not'):
        start_from(make_baseline('ssl_mlp', **SIZES, n_sources=1), utils.read_torch('runs/augment/h/best.pt'), ['angry', 'sad'],
                   None)
    spread.main(['--name', 'sp', *corpus, *CELLS, *'--epochs 1 --architectures 2 --seeds 2 --hand_made '
                 'ssl_att,ssl_linear,lstm:900'.split()])
    recipe.main(['--name', 'r', *corpus, *'--model ssl_att --epochs 1 --only_folds 1 --seeds 1 --variant a lr=.001'.split()])
    assert 'ssl_linear' in capsys.readouterr().out
    with pytest.raises(UserError, match='ssl_linear has one size'):
        spread.main(['--name', 'sp2', *corpus, '--hand_made', 'ssl_linear:500'])
