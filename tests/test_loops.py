"""The loops of both programs against loops that are written out: what is trained, on which utterances, how and how fast."""
import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import FEATURES, SIZES, write_corpus
from test_architect import exact_gradient
from test_stops import GENOTYPE

import augment
import search
import utils
from datasets.dataset import SpeechDataset
from datasets.transforms import SpecAugment

COMMON = ['--dataset', 'manifest', *FEATURES, *SIZES,
          *'--batch_size 4 --epochs 3 --dropout .2 --n_masks 2 --max_time .3 --no-channels_last'.split()]
SEARCH = ['--n_nodes', '1', '--rnn_nodes', '1', '--alpha_warmup', '1', '--alpha_lr', '.03', '--alpha_weight_decay', '.2',
          '--w_lr', '.05', '--w_lr_min', '.01', '--w_momentum', '.8', '--w_weight_decay', '.1', '--w_grad_clip', '.5']
AUGMENT = ['--genotype', GENOTYPE, '--lr', '.02', '--warmup', '1', '--momentum', '.8', '--weight_decay', '.05',
           '--grad_clip', '.5', '--aux_weight', '.4', '--drop_path_prob', '.3']


@pytest.fixture(scope='module')
def unbalanced(tmp_path_factory):
    path = write_corpus(tmp_path_factory.mktemp('unbalanced'))
    rows = path.read_text().splitlines()
    path.write_text('\n'.join(row for row in rows if not row.startswith(('s0_sad', 's2_sad', 's4_sad'))) + '\n')
    return str(path)


@pytest.fixture
def seen(monkeypatch):
    """[(training set, indices, masks, (X, y), state of the generator)] of every batch that is drawn, in this order."""
    found, batches = [], SpeechDataset.batches

    def spied(data, batch_size, indices=None, draws=None, masks=None, voices=None):
        for X, y in batches(data, batch_size, indices, draws, masks, voices):
            batch = X._replace(x=X.x.double()), y  # else rounding grows from step to step
            found.append((data, indices, masks, batch, torch.get_rng_state()))
            yield batch
    monkeypatch.setattr(SpeechDataset, 'batches', spied)
    return found


def class_weights(data):
    counts = torch.bincount(data.labels)
    assert counts[0] != counts[1]
    return len(data.labels) / (2 * counts.double())


def in_double(monkeypatch, program):
    """Networks in double precision, copies of those that training begins with, and whether they were in training on dev."""
    begun, modes, make_net, evaluate = [], [], program.make_net, program.evaluate

    def made(*args):
        net = make_net(*args).double()
        begun.append(copy.deepcopy(net))
        return net

    def in_float(net, dev, *args):
        twin, *args = (copy.deepcopy(one).float() if isinstance(one, torch.nn.Module) else one for one in (net, *args))
        twin.register_forward_pre_hook(lambda module, _: modes.append(module.training))
        return evaluate(twin, dev, *args)
    monkeypatch.setattr(program, 'make_net', made)
    monkeypatch.setattr(program, 'evaluate', in_float)
    return begun, modes


def assert_trained_alike(path, net):
    found, expected = utils.read_torch(path)['net'], net.state_dict()
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.allclose(found[name], x, rtol=1e-5, atol=1e-7), (name, (found[name] - x).abs().max())


@pytest.mark.parametrize('order', [1, 2])
def test_a_search_is_the_loop_of_darts(order, unbalanced, seen, tmp_path, monkeypatch):
    """Equations 3 to 7 of the paper of DARTS, with exact second derivatives, torch's optimizers and the settings' numbers."""
    monkeypatch.chdir(tmp_path)
    nets, modes = in_double(monkeypatch, search)
    argv = ['--name', 's', '--data_path', unbalanced, *COMMON, *SEARCH, '--seed', '3', '--order', str(order)]
    search.main(argv)
    net, = nets
    assert modes and not any(modes)
    rows = [json.loads(line) for line in Path('runs/search/s/metrics.jsonl').read_text().splitlines()]

    halves = {masks is not None: set(indices.tolist()) for _, indices, masks, *_ in seen}
    data, n = seen[0][0], len(seen[0][0])
    assert not halves[True] & halves[False] and halves[True] | halves[False] == set(range(n)) and len(halves) == 2
    assert {masks for *_, masks, _, _ in seen} == {None, SpecAugment(2, .15, .3)}

    weights, alphas, balance = list(net.weights()), list(net.alphas()), class_weights(data)
    net.criterion = torch.nn.CrossEntropyLoss(balance)
    w_optim = torch.optim.SGD(weights, .05, momentum=.8, weight_decay=.1)
    alpha_optim = torch.optim.Adam(alphas, .03, betas=(.5, .999), weight_decay=.2)
    steps = [i for i, (_, _, masks, *_) in enumerate(seen) if masks]
    an_epoch = len(steps) // 3
    for step, i in enumerate(steps):
        epoch = step // an_epoch
        lr = .01 + .04 * (1 + math.cos(math.pi * epoch / 3)) / 2
        assert rows[epoch]['lr'] == pytest.approx(lr)
        w_optim.param_groups[0]['lr'] = lr
        (X, y), rng = seen[i][3:]
        if epoch > 0:  # the first trains w alone
            buffers = [b.clone() for b in net.buffers()]
            val = seen[i + 1][3]
            assert seen[i + 1][2] is None
            torch.set_rng_state(rng)
            grads = (torch.autograd.grad(F.cross_entropy(net(*val[0]), val[1], balance), alphas) if order == 1 else
                     exact_gradient(net, (X, y), val, lr, w_optim, .8, .1))
            for b, before in zip(net.buffers(), buffers):
                b.copy_(before)
            for alpha, g in zip(alphas, grads):
                alpha.grad = g
            alpha_optim.step()
        torch.set_rng_state(rng)
        w_optim.zero_grad()
        F.cross_entropy(net(*X), y, balance).backward()
        torch.nn.utils.clip_grad_norm_(weights, .5)
        w_optim.step()
    assert len(seen) == len(steps) + 2 * an_epoch
    assert_trained_alike('runs/search/s/checkpoint.pt', net)

    def stop(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(search, 'Architect', stop)
    for seed in ('3', '4'):
        with pytest.raises(KeyboardInterrupt):
            search.main([*argv, '--name', 'again', '--seed', seed])
    same, other = (next(iter(some.weights())) for some in nets[1:])
    assert not torch.equal(same, other)


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw'])
def test_a_retraining_is_a_loop_over_the_training_speakers(optimizer, unbalanced, seen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (nets, modes), setup = in_double(monkeypatch, augment), augment.setup
    monkeypatch.setattr(augment, 'setup', lambda *args: (found := setup(*args)).criterion.double() and found)
    flags = [flag for flag in AUGMENT if optimizer == 'sgd' or flag not in ('--momentum', '.8')]
    augment.main(['--name', 'a', '--data_path', unbalanced, *COMMON, *flags, '--optimizer', optimizer])
    net, = nets
    assert modes and not any(modes)
    assert all(indices is None and masks == SpecAugment(2, .15, .3) for _, indices, masks, *_ in seen)
    parameters, balance = list(net.parameters()), class_weights(seen[0][0])
    optim = (torch.optim.SGD(parameters, momentum=.8, weight_decay=.05) if optimizer == 'sgd' else
             torch.optim.AdamW(parameters, weight_decay=.05))
    an_epoch = len(seen) // 3
    for step, (_, _, _, (X, y), rng) in enumerate(seen):
        optim.param_groups[0]['lr'] = .02 * (.5, 1, .5)[step // an_epoch]  # the warm-up, then half a cosine
        net.drop_path_prob(.3 * (step // an_epoch) / 2)
        torch.set_rng_state(rng)
        optim.zero_grad()
        logits, aux_logits = net(*X)
        (F.cross_entropy(logits, y, balance) + .4 * F.cross_entropy(aux_logits, y, balance)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, .5)
        optim.step()
    assert_trained_alike('runs/augment/a/checkpoint.pt', net)


def test_a_retraining_stops_when_dev_does_not_get_better(unbalanced, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    evaluate, found = augment.evaluate, iter([(.5, .1), (.6, 1.), (.6, .9), (.6, .9), (.5, .1), (.4, .1), (.3, .1)])

    def falling(*args):
        scores, probabilities = evaluate(*args)
        return {**scores, **dict(zip(('ua', 'loss'), next(found)))}, probabilities
    monkeypatch.setattr(augment, 'evaluate', falling)
    augment.main(['--name', 'a', '--data_path', unbalanced, '--dataset', 'manifest', *FEATURES,
                  *'--model cnn --params 300 --epochs 9 --patience 2'.split()])
    assert len(Path('runs/augment/a/metrics.jsonl').read_text().splitlines()) == 5  # no better since the third
    # The lower loss decides between equal UAs, then the earlier epoch.
    assert json.loads(Path('runs/augment/a/results.json').read_text())['best_epoch'] == 3


def test_alpha_is_judged_by_speakers_whom_w_does_not_hear(unbalanced, seen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    in_double(monkeypatch, search)
    search.main(['--name', 's', '--data_path', unbalanced, *COMMON, *SEARCH, '--alpha_split', 'speaker'])
    speakers = {masks is not None: {data.utterances[i].speaker for i in indices.tolist()}
                for data, indices, masks, *_ in seen}
    assert len(speakers) == 2 and speakers[True] and speakers[False] and not speakers[True] & speakers[False]


def test_every_step_has_a_path_of_its_own(unbalanced, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = []
    for name in ('before_alphas', 'before_weights'):
        before = getattr(search.Sampler, name)
        monkeypatch.setattr(search.Sampler, name, lambda self, *args, name=name, before=before: (
            drawn.append(name), before(self, *args)))
    score, whole = search.Scorer.score, []
    monkeypatch.setattr(search.Scorer, 'score', lambda self, genotype, **how: whole.append(how) or score(self, genotype, **how))
    sampled = ['--relaxation', 'sampled', '--sampling', 'uniform']
    search.main(['--name', 's', '--data_path', unbalanced, *COMMON, *SEARCH, *sampled])
    alone = drawn.index('before_alphas')  # steps of the first epoch, which trains w alone
    assert drawn == ['before_weights'] * alone + ['before_alphas', 'before_weights'] * 2 * alone
    assert whole == [{'whole': True}] * 3  # an epoch is scored on all of dev


class Enough(Exception):
    """What was to be seen has been seen."""


@pytest.mark.parametrize('order', [1, 2])
def test_second_derivatives_are_computed_in_float32(order, unbalanced, tmp_path, monkeypatch):
    def seen(*args):
        raise Enough(torch.is_autocast_enabled('cpu'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search.utils, 'autocast', lambda *args: torch.autocast('cpu', torch.bfloat16))
    monkeypatch.setattr(search.Architect, 'backward' if order == 1 else 'unrolled_backward', seen)
    argv = [*COMMON, *SEARCH, '--no-fast', '--alpha_warmup', '0', '--order', str(order)]
    with pytest.raises(Enough, match='True' if order == 1 else 'False'):
        search.main(['--name', 's', '--data_path', unbalanced, *argv])


def test_a_step_of_w_computes_no_gradient_of_alpha(unbalanced, tmp_path, monkeypatch):
    nets, make_net = [], search.make_net

    def seen(*args):
        raise Enough([alpha.grad for alpha in nets[0].alphas()], [alpha.requires_grad for alpha in nets[0].alphas()])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, 'make_net', lambda *args: nets.append(make_net(*args)) or nets[0])
    monkeypatch.setattr(search.parallel, 'clip_gradients', seen)
    with pytest.raises(Enough) as found:
        search.main(['--name', 's', '--data_path', unbalanced, *COMMON, *SEARCH])
    grads, learning = found.value.args
    assert set(grads) == {None} and all(learning)


def test_a_sampled_search_moves_alpha_at_the_temperature_of_the_epoch(unbalanced, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    epochs, before = [], search.Sampler.before_alphas
    monkeypatch.setattr(search.Sampler, 'before_alphas', lambda self, epoch: epochs.append(epoch) or before(self, epoch))
    search.main(['--name', 's', '--data_path', unbalanced, *COMMON, *SEARCH, '--relaxation', 'sampled'])
    rows = [json.loads(line) for line in Path('runs/search/s/metrics.jsonl').read_text().splitlines()]
    assert sorted(set(epochs)) == [2, 3] and epochs == sorted(epochs)
    first, _, last = (torch.tensor(row['alpha']['rnn'][0]) for row in rows)
    assert (last - first).abs().max() > .002, "alpha was not trained"
