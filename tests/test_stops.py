"""A run that a scheduler stops in the middle of an epoch, and steps whose gradients are not finite."""
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FEATURES, ROOT, augment_args, found_by, results, rows, search_args, shown

import augment
import config as cf
import search
import utils
from datasets import scoring
from datasets.dataset import SpeechDataset
from models import parallel, steps, training

CELL = "[[('sep_conv_3x3', 0), ('skip_connect', 1)]]"
GENOTYPE = (f"Genotype(normal={CELL}, normal_concat=[2], reduce={CELL}, reduce_concat=[2], "
            "rnn=[[('gru_1', 0), ('skip_connect', 1)]], rnn_concat=[2])")
# In tags of TensorBoard: what shows a time, a name or a command.
TIMED = ('seconds', 'progress', '0_about', 'parameters')
SIZES = '--init_channels 2 --layers 1 --rnn_channels 4'.split()


def call(program, argv):
    program.main(list(map(str, argv)))


def leave():
    """What the end of a process releases."""
    for run in [*utils.open_runs]:
        run.lock.close()
        utils.open_runs.discard(run)


def stopped_at(monkeypatch, n):
    """SIGTERM arrives in the n-th step of w of this process."""
    sound, calls = steps.Steps.sound, []

    def count(self, norm, what='w'):
        calls.append(what)
        if calls.count('w') == n:
            utils._handle(signal.SIGTERM, None)
        return sound(self, norm, what)
    monkeypatch.setattr(steps.Steps, 'sound', count)


@pytest.mark.parametrize('more', [['--order', 1], ['--order', 2, '--alpha_warmup', 0, '--resident', 'never']])
def test_a_search_stopped_between_two_steps_goes_on_there(more, small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [*search_args(small_corpus, 'x'), *SIZES, '--batch_size', 5, '--dropout', .3, '--cnn_ops',
            'skip_connect,sep_conv_3x3,none', '--rnn_ops', 'skip_connect,gru_1,none', *more]
    call(search, ['--epochs', 2, '--name', 'whole', *argv[2:], '--epochs', 2])
    killed = [*argv, '--epochs', 2, '--resume']
    for n in (1, 4):
        with monkeypatch.context() as m, pytest.raises(utils.Stopped):
            stopped_at(m, n)
            call(search, killed)
        leave()
    assert utils.read_torch('runs/search/x/checkpoint.pt')['steps']['done']
    call(search, killed)
    whole, stopped = (tmp_path / f'runs/search/{name}' for name in ('whole', 'x'))
    assert rows(whole / 'metrics.jsonl') == rows(stopped / 'metrics.jsonl') and found_by(whole) == found_by(stopped)
    drawn = [[row for row in shown(folder) if not any(word in row[0] for word in TIMED)]
             for folder in (whole, stopped)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize('space', ['paper', 'speech'])  # in `speech` with decisions outside the cells
def test_a_sampled_search_stopped_in_a_step_and_in_a_score_goes_on_there(space, small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [*search_args(small_corpus, 'x'), *SIZES, '--batch_size', 5, '--dropout', .3, '--cnn_ops',
            'skip_connect,sep_conv_3x3,none', '--rnn_ops', 'skip_connect,gru_1,none', '--alpha_warmup', 0, '--relaxation',
            'sampled', '--normalise', 'speaker', '--embedding', 'speaker', '--deltas', '--speed', .1, '--noise', .5, '--epochs',
            2, '--space', space, '--resume']
    call(search, ['--name', 'whole', *argv[2:]])
    with monkeypatch.context() as m, pytest.raises(utils.Stopped):
        stopped_at(m, 2)
        call(search, argv)
    leave()
    score = SpeechDataset.score

    def arrives(*args):
        utils._handle(signal.SIGUSR1, None)
        return score(*args)
    with monkeypatch.context() as m, pytest.raises(utils.Stopped):
        m.setattr(SpeechDataset, 'score', arrives)
        call(search, argv)
    leave()
    call(search, argv)
    whole, stopped = (tmp_path / f'runs/search/{name}' for name in ('whole', 'x'))
    assert rows(whole / 'metrics.jsonl') == rows(stopped / 'metrics.jsonl') and found_by(whole) == found_by(stopped)
    kept = [utils.read_torch(folder / 'checkpoint.pt')['net'] for folder in (whole, stopped)]
    assert all(torch.equal(kept[1][name], x) for name, x in kept[0].items())


def test_augment_stopped_in_a_step_and_in_an_evaluation_goes_on_there(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'g.txt').write_text(GENOTYPE)
    argv = [*augment_args(small_corpus, 'x', 'g.txt'), *FEATURES, *SIZES, '--epochs', 2, '--batch_size', 5, '--resume']
    call(augment, ['--name', 'whole', *argv[2:]])
    for n in (2, 1):
        with monkeypatch.context() as m, pytest.raises(utils.Stopped):
            stopped_at(m, n)
            call(augment, argv)
        leave()
    assert utils.read_torch('runs/augment/x/checkpoint.pt')['best']['file'] is None  # in the first epoch
    (tmp_path / 'g.txt').write_text(GENOTYPE.replace('sep_conv', 'dil_conv'))
    with pytest.raises(utils.UserError, match='g.txt is another genotype than runs/augment/x began with'):
        call(augment, argv)
    leave()
    (tmp_path / 'g.txt').write_text(GENOTYPE)
    evaluate = augment.evaluate

    def arrives(*args):
        utils._handle(signal.SIGUSR1, None)
        return evaluate(*args)
    with monkeypatch.context() as m, pytest.raises(utils.Stopped):
        m.setattr(augment, 'evaluate', arrives)
        call(augment, argv)
    leave()
    kept = utils.read_torch('runs/augment/x/checkpoint.pt')
    assert kept['history'] == [] and kept['steps']['done'] == len(kept['steps']['tally']['steps']) > 2
    call(augment, argv)
    whole, stopped = (tmp_path / f'runs/augment/{name}' for name in ('whole', 'x'))
    assert rows(whole / 'metrics.jsonl') == rows(stopped / 'metrics.jsonl') and results(whole) == results(stopped)
    assert (whole / 'predictions.csv').read_bytes() == (stopped / 'predictions.csv').read_bytes()


def spoilt(monkeypatch, which):
    """The gradients of the steps that which(n) names, from 0, are not finite, and neither are the sums of batch norm."""
    clip, calls = parallel.clip_gradients, []

    def spoil(parameters, max_norm):
        calls.append(1)
        norm = clip(parameters, max_norm)
        return norm * float('nan') if which(len(calls) - 1) else norm
    monkeypatch.setattr(parallel, 'clip_gradients', spoil)


def test_a_step_that_is_not_finite_is_skipped_and_counted(small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ['--model', 'cnn', '--params', 300, '--dataset', 'manifest', '--data_path', small_corpus, *FEATURES, '--epochs', 2]
    spoilt(monkeypatch, lambda n: n == 1)
    call(augment, ['--name', 'x', *argv])
    assert [row['train'].get('skipped') for row in rows(tmp_path / 'runs/augment/x/metrics.jsonl')] == [1, None]
    assert 'epoch 1: 1 steps were skipped' in capsys.readouterr().out


def test_a_skipped_step_leaves_weights_momentum_and_batch_norm_as_they_were():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optim = torch.optim.SGD(net.parameters(), .1, momentum=.9)
    each = steps.Steps(None)
    state = parallel.State(0, torch.device('cpu'), net=net, optim=optim, steps=each)
    each.begin(1, state, optim, lambda step, draws: ['a.wav'])
    seen = []
    for n, x in enumerate(each.each([torch.randn(4, 2), torch.full((4, 2), float('inf')), torch.randn(4, 2)])):
        before = [t.clone() for t in (*net.state_dict().values(), *(s['momentum_buffer'] for s in optim.state.values()))]
        optim.zero_grad()
        net(x).square().sum().backward()
        if each.sound(parallel.clip_gradients(net.parameters(), 5.)):
            optim.step()
        after = [*net.state_dict().values(), *(s['momentum_buffer'] for s in optim.state.values())]
        seen.append(len(before) == len(after) and all(map(torch.equal, before, after)))
        assert all(t.isfinite().all() for t in after), n
    assert seen == [False, True, False] and each.tally.skipped == 1
    utils.hold_signals(False)


def made_up(bad):
    """24 utterances for training, `bad` of them without finite features, and 4 for dev."""
    features = [np.full((8, 12), np.inf if i in bad else i % 5, np.float32) for i in range(24)]
    utterances = [SimpleNamespace(path=f'{i}.wav', speaker='ab'[i % 2]) for i in range(24)]
    made = SpeechDataset(utterances, features, [i % 2 for i in range(24)], torch.zeros(8, 1), torch.ones(8, 1), 12)
    ones = [np.ones((8, 12), np.float32)] * 4
    fine = SpeechDataset(utterances[:4], ones, [0, 1] * 2, torch.zeros(8, 1), torch.ones(8, 1), 12)
    return SimpleNamespace(labels=['x', 'y'], class_weights=torch.ones(2), sets={'train': made, 'dev': fine})


def test_a_finalist_too_skips_a_step_and_forgets_its_batch():
    config = cf.AugmentConfig(name='x', model='cnn_gru', params=2_000, epochs=2, batch_size=8, n_mels=8, n_masks=0,
                              duration=.384)
    found, probabilities = training.train(config, None, made_up({5}), torch.device('cpu'), 'dev')
    assert np.isfinite(probabilities).all() and np.isfinite(found['loss']) and len(found['train_losses']) == 2


@pytest.mark.parametrize('what', ['all steps', 'the weights'])
def test_a_finalist_that_cannot_be_scored_has_diverged(what, monkeypatch):
    """Not any other error, which would end its tournament."""
    config = cf.AugmentConfig(name='x', model='cnn', params=300, epochs=1, batch_size=8, n_mels=8, n_masks=0, duration=.384)
    if what == 'the weights':
        train_epoch = training.train_epoch
        monkeypatch.setattr(training, 'train_epoch', lambda net, *args: (
            train_epoch(net, *args), [p.data.fill_(np.nan) for p in net.parameters()])[0])
    with pytest.raises(scoring.Diverged):
        training.train(config, None, made_up(range(24) if what == 'all steps' else ()), torch.device('cpu'), 'dev')


def test_an_epoch_that_was_stopped_counts_its_skipped_steps_and_its_seconds(monkeypatch):
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optim, clock = torch.optim.SGD(net.parameters(), .1), [0.]
    monkeypatch.setattr(steps.Stopwatch, '_now', lambda watch: {'seconds': clock[0], 'core_seconds': clock[0] / 2})
    first, second = steps.Steps(lambda: None), steps.Steps(lambda: None)
    state = parallel.State(0, torch.device('cpu'), net=net, optim=optim, steps=first)
    first.begin(3, state, optim, lambda step, draws: ['a.wav'])
    batches = iter(first.each([1, 2]))
    for clock[0] in (10., 20.):
        next(batches)
        assert not first.sound(torch.tensor(float('nan')))
    second.load_state_dict(first.state_dict())
    clock[0] = 100.
    second.begin(3, state, optim, lambda step, draws: ['a.wav'])
    clock[0] = 103.
    assert second.in_a_row['w'] == 2 and second.end() == {'seconds': 23., 'core_seconds': 11.5}
    second.begin(4, state, optim, lambda step, draws: ['a.wav'])
    assert not second.in_a_row and second.end() == {'seconds': 0., 'core_seconds': 0.}
    for missing, took in ((['core_seconds'], {'seconds': 104.}), (['core_seconds', 'seconds', 'in_a_row'], {'seconds': 1.})):
        second.load_state_dict({k: v for k, v in first.state_dict().items() if k not in missing})  # of earlier versions
        second.begin(3, state, optim, lambda step, draws: ['a.wav'])
        clock[0] += 1.
        assert second.end() == took  # cores are not known of the whole epoch
    utils.hold_signals(False)


@pytest.mark.parametrize('patience, how_often', [(2, '2 times in a row'), (99, 'in a whole epoch')])
def test_a_run_that_diverges_names_the_step_and_keeps_its_checkpoint(patience, how_often, small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steps, 'PATIENCE', patience)
    spoilt(monkeypatch, lambda n: n >= 3)  # three steps an epoch
    argv = ['--model', 'cnn', '--params', 300, '--dataset', 'manifest', '--data_path', small_corpus, *FEATURES, '--epochs', 9]
    with pytest.raises(utils.UserError) as error:
        call(augment, ['--name', 'x', *argv])
    said = str(error.value)
    assert f'not finite {how_often}, last in epoch 2, step {2 if patience == 2 else 3}, at learning rate 0.0242, on ' in said
    assert f'.wav and {7 if patience == 2 else 1} more; ' in said
    assert len(utils.read_torch(tmp_path / 'runs/augment/x/checkpoint.pt')['history']) == 1
    leave()


def test_a_gradient_of_alpha_that_is_not_finite_is_not_blamed_on_the_batch_of_w(monkeypatch):
    monkeypatch.setattr(steps, 'PATIENCE', 1)
    net = torch.nn.Linear(2, 3)
    optim, each = torch.optim.SGD(net.parameters(), .1), steps.Steps()
    state = parallel.State(0, torch.device('cpu'), net=net, optim=optim, steps=each)
    each.begin(1, state, optim, lambda step, draws: ['a.wav'])
    for what, said in (('alpha', 'the gradient of alpha was not finite .*, step 1; take a new --name and a lower --w_lr or '),
                       ('w', 'the gradient was not finite .* at learning rate 0.1, on a.wav; '),
                       ('alpha', 'the gradient was not finite .* at learning rate 0.1, on a.wav; ')):  # both are not finite
        with pytest.raises(scoring.Diverged, match=said):
            each.sound(torch.tensor(float('nan')), what)
    utils.hold_signals(False)


def test_the_files_of_a_batch_are_those_that_were_in_it():
    utterances = [SimpleNamespace(path=f'{i}.wav', speaker='a') for i in range(9)]
    data = SpeechDataset(utterances, [np.zeros((1, 5), np.float32)] * 9, range(9), torch.zeros(1, 1), torch.ones(1, 1), 4)
    draws = torch.Generator().manual_seed(3)
    start = draws.get_state()
    for step, (_, y) in enumerate(data.batches(4, [8, 1, 2, 3, 4, 6], draws)):
        again = torch.Generator()
        again.set_state(start)
        assert data.files_of(step, again, 4, [8, 1, 2, 3, 4, 6]) == [f'{i}.wav' for i in y.tolist()]


@pytest.mark.parametrize('argv, said', [
    (['--w_lr', 1e9], 'no probabilities|not finite'), (['--alpha_weight_decay', 1e30, '--alpha_warmup', 0], 'not finite')])
def test_a_search_that_diverges_writes_no_genotype(argv, said, small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cf, 'check', lambda f, value: None)  # the bounds of settings would refuse this first
    with pytest.raises(utils.UserError, match=said):
        call(search, [*search_args(small_corpus, 'x'), *SIZES, '--epochs', 3, *argv])
    assert not (tmp_path / 'runs/search/x/genotype.json').exists()
    leave()


def test_a_network_without_probabilities_is_no_result(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cf, 'check', lambda f, value: None)
    with pytest.raises(utils.UserError, match='no probabilities|not finite'):
        call(augment, ['--name', 'x', '--model', 'rnn', '--params', 300, '--dataset', 'manifest', '--data_path', small_corpus,
                       *FEATURES, '--epochs', 1, '--batch_size', 100, '--lr', 1e38, '--grad_clip', 1e38])
    assert not (tmp_path / 'runs/augment/x/results.json').exists()
    leave()


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_during_a_write_waits_for_its_end(number, code, tmp_path):
    codes = []

    def main():
        def write(f):
            os.kill(os.getpid(), number)
            time.sleep(.01)
            f.write(b'whole')
        utils.write_aside(tmp_path / 'a', write)
        pytest.fail('went on')
    before = signal.getsignal(number)
    utils.cli(main, leave=codes.append)
    assert codes == [code] and (tmp_path / 'a').read_bytes() == b'whole' and signal.getsignal(number) == before


def test_a_signal_while_a_program_is_imported_is_one_line():
    code = f'import os, sys\n' \
           f'sys.path.insert(0, {str(ROOT)!r})\nimport config\nconfig.begin("search")\nos.kill(os.getpid(), {{}})\n1/0'
    for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        done = subprocess.run([sys.executable, '-c', code.format(int(number))], capture_output=True, text=True)
        assert done.returncode == expected and done.stderr.count('\n') == 1 and number.name in done.stderr
