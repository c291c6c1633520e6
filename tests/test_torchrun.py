"""search.py and augment.py under torchrun: one run of two processes, which ends as one."""
import contextlib
import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from test_parallel import N_RANKS, free_port

import augment
import datasets
import search
from datasets import scoring
from datasets.dataset import SpeechDataset

SMALL = ('--device cpu --duration 0.8 --n_mels 16 --hop_ms 32 --time_pool 1 --init_channels 2 --layers 3 --rnn_channels 4 '
         '--batch_size 5 --n_nodes 1 --rnn_nodes 1 --alpha_warmup 1 --alpha_lr 0.05 --cnn_ops sep_conv_3x3,max_pool_3x3,none '
         '--rnn_ops gru_1,skip_connect,none --dropout 0 --epochs 4').split()


def double(program, setattr=setattr):
    """Makes search or augment work in float64: in float32 kinks of ReLU and pooling carry the last bit far."""
    load, finished, make_net, evaluate = datasets.load, SpeechDataset._finish, program.make_net, scoring.evaluate

    def load_double(*args, **kwargs):
        data = load(*args, **kwargs)
        return dataclasses.replace(data, class_weights=data.class_weights.double())
    setattr(datasets, 'load', load_double)
    setattr(SpeechDataset, '_finish', lambda self, *args: finished(self, *args).double())
    setattr(program, 'make_net', lambda *args: make_net(*args).double())
    setattr(scoring, 'evaluate', lambda forward, data, size, weights: evaluate(forward, data, size, weights.float()))


def launch(cwd, program, *argv):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    torchrun = ['-m', 'torch.distributed.run', '--master_addr', '127.0.0.1', '--master_port', free_port(), '--nproc_per_node',
                N_RANKS, program]
    return subprocess.Popen([sys.executable, *map(str, [*torchrun, *argv])], cwd=cwd, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def finish(process, program, ok=True):
    """stdout, and the lines of stderr that are the program's own. No process may have crashed."""
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert (process.returncode == 0) == ok and 'terminate called' not in err, out + err
    return out, [line for line in err.splitlines() if line.startswith(f'{program}: ')]


def rows(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def workers(pid):
    shown = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(pid)], capture_output=True, text=True).stdout
    return list(map(int, shown.split()))


def in_double(folder, name):
    """A program like search.py or augment.py that works in float64."""
    path = folder / f'{name}64.py'
    path.write_text(f'import sys\nsys.path[:0] = {[str(ROOT), str(ROOT / "tests")]}\n'
                    f'import test_torchrun, {name}, utils\nfrom models import parallel\n'
                    f'test_torchrun.double({name})\nutils.cli({name}.main, parallel.first_to_speak, parallel.leave)\n')
    return path


@pytest.fixture(scope='module')
def finished(tmp_path_factory, small_corpus):
    """A search of two processes of which one was killed and that went on, and what was said then."""
    cwd = tmp_path_factory.mktemp('torchrun')
    argv = ['--name', 'two', '--dataset', 'manifest', '--data_path', small_corpus, *SMALL]
    program = in_double(cwd, 'search')
    process, deadline = launch(cwd, program, *argv), time.time() + 120
    while not (cwd / 'runs/search/two/checkpoint.pt').exists():
        if process.poll() is not None or time.time() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(str(process.communicate()))
        time.sleep(.01)
    os.kill(max(workers(process.pid)), signal.SIGKILL)
    began = time.time()
    killed = *finish(process, program.name, ok=False), time.time() - began
    done = finish(launch(cwd, program, *argv, '--resume'), program.name)
    return SimpleNamespace(cwd=cwd, argv=argv, killed=killed, done=done)


def test_a_rank_that_dies_ends_the_run_and_says_what_to_do(finished):
    out, said, seconds = finished.killed
    assert '--resume' in out and len(said) <= 1 and all('--resume' in line for line in said) and seconds < 40
    assert rows(finished.cwd / 'runs/search/two')[0]['epoch'] == 1 and 'epoch 1/4:' not in finished.done[0]


def test_search_finds_with_two_processes_what_it_finds_with_one(finished, monkeypatch, small_corpus):
    monkeypatch.chdir(finished.cwd)
    double(search, monkeypatch.setattr)
    search.main(list(map(str, ['--name', 'one', *finished.argv[2:]])))
    one, two = (finished.cwd / f'runs/search/{name}' for name in ('one', 'two'))
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    assert len(rows(one)) == len(rows(two)) == 4
    for a, b in zip(rows(one), rows(two)):
        for kind in a['alpha']:
            for node, other in zip(a['alpha'][kind], b['alpha'][kind], strict=True):
                np.testing.assert_allclose(node, other, rtol=0, atol=1e-9)
        assert a['train'] == pytest.approx(b['train'], abs=1e-9) and a['dev'] == pytest.approx(b['dev'], abs=1e-5)
        assert a['alpha_loss'] == (b['alpha_loss'] and pytest.approx(b['alpha_loss'], abs=1e-9))
    assert np.ptp(rows(one)[-1]['alpha']['rnn'][0]) > .02  # alpha has moved
    log = (two / 'search.log').read_text()
    assert all(log.count(f'epoch {epoch}/4:') == 1 for epoch in (2, 3, 4)) and '2 processes share' in log
    assert rows(two)[-1]['genotype'] == rows(one)[-1]['genotype']


def test_augment_counts_every_utterance_once(finished, monkeypatch, small_corpus):
    monkeypatch.chdir(finished.cwd)
    genotype = 'runs/search/two/genotype.json'
    argv = ['--dataset', 'manifest', '--data_path', small_corpus, '--genotype', genotype, '--epochs', 2, '--batch_size', 9,
            '--device', 'cpu', '--dropout', 0, '--drop_path_prob', 0]
    program = in_double(finished.cwd, 'augment')
    _, said = finish(launch(finished.cwd, program, '--name', 'two', *argv), program.name)
    double(augment, monkeypatch.setattr)
    augment.main(list(map(str, ['--name', 'one', *argv])))
    tables, found = [], []
    for name in ('one', 'two'):
        folder = finished.cwd / 'runs/augment' / name
        found.append(json.loads((folder / 'results.json').read_text()))
        with open(folder / 'predictions.csv', newline='') as f:
            tables.append(list(csv.DictReader(f)))
    assert said == [] and [r['path'] for r in tables[0]] == [r['path'] for r in tables[1]]
    assert found[1]['n_test'] == len(tables[1]) == 16
    for a, b in zip(*tables):
        assert float(a['p_sad']) == pytest.approx(float(b['p_sad']), abs=1e-5)
    assert found[1]['ua'] == found[0]['ua'] and np.sum(found[1]['confusion']) == len(tables[1])
    assert 'torchrun --nproc_per_node 2' in found[1]['command'] and found[1]['device'].startswith('2 processes')


def test_a_mistake_under_torchrun_is_one_line(finished):
    before = rows(finished.cwd / 'runs/search/two')
    out, said = finish(launch(finished.cwd, ROOT / 'search.py', *finished.argv), 'search.py', ok=False)  # rank 0 alone looks
    assert len(said) == 1 and '--overwrite' in said[0] and out == '' and rows(finished.cwd / 'runs/search/two') == before


@pytest.mark.parametrize('error, code, said', [('utils.UserError("too late")', 2, ['late.py: too late']),
                                               ('KeyError(1)', 1, [])])
def test_a_process_that_fails_late_ends_at_once_with_its_own_exit_code(error, code, said, tmp_path):
    """Python's end would now and then abort it, while threads of gloo hold the tensors of the last sums."""
    program = tmp_path / 'late.py'
    program.write_text(f'import atexit, sys\nsys.path[:0] = [{str(ROOT)!r}]\nimport torch\nimport utils\n'
                       'from models import parallel\ndef main():\n    parallel.join(torch.device("cpu"))\n'
                       '    atexit.register(print, "Python ends")\n    parallel.gather(1)\n'
                       f'    raise {error}\nutils.cli(main, parallel.first_to_speak, parallel.leave)\n')
    process = launch(tmp_path, program)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and out == '' and f'exitcode  : {code} ' in err
    assert [line for line in err.splitlines() if line.startswith('late.py: ')] == said and ('KeyError: 1' in err) == (code == 1)
