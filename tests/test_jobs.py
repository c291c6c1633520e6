"""scripts/jobs.py and how cross_validate runs jobs: once each, in order, through kills, on GPUs and clusters."""
import collections
import itertools
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from desk import all_names, call, calls, cross_validate, jobs, launch, names, order, rows, table, times, wait_for
from desk import desk as desk

import config as cf


def finished(n):
    return f'{n} of {n} runs are finished.' in table()


def test_a_failing_run_is_a_row_and_the_rest_goes_on(desk, small_corpus):
    order(f1_s0='fail', cnn_f2_s1='vanish', searched_f3_s1='fail')
    assert call(desk, small_corpus) == 1
    state = {(row['model'], row['fold'], row['seed']): row['failed'] for row in rows() if row['state'] == 'failed'}
    why = 'exit code 1: search.py: --n_mels 3: must not be'
    assert state == {
        ('searched', '1', '0'): f'search-f1-s0 failed: {why}', ('cnn_gru_matched', '1', '0'): f'search-f1-s0 failed: {why}',
        ('cnn', '2', '1'): 'exit code 0, but runs/augment/cv/x/cnn-f2-s1/results.json does not exist',
        ('searched', '3', '1'): why, ('cnn_gru_matched', '3', '1'): f'searched-f3-s1 failed: {why}'}
    assert 'warning: nothing' in (desk / 'runs/cv/x/failed/search-f1-s0.txt').read_text()
    text = table()
    assert '19 of 24 runs are finished; 5 failed: searched (fold 1 seed 0, fold 3 seed 1), cnn (fold 2 seed 1), ' in text
    assert '| searched | partial: seed 0 folds 2 3; seed 1 folds 1 2 | 32 | 6 |' in text
    assert '| cnn | 0 (1 left out) | 48 | 6 |' in text  # seed 1 lacks a fold, seed 0 has all
    assert f'- searched-f3-s1: {why}' in text
    calls(desk)
    (desk / 'orders.json').unlink()
    assert call(desk, small_corpus, '--jobs', '2') == 0
    assert set(names(desk)) == {'cv/x/f1-s0', 'cv/x/searched-f1-s0', 'cv/x/cnn_gru_matched-f1-s0', 'cv/x/cnn-f2-s1',
                                'cv/x/searched-f3-s1', 'cv/x/cnn_gru_matched-f3-s1'}
    assert finished(24) and not any((desk / 'runs/cv/x/failed').iterdir())


@pytest.mark.parametrize('number, name', [(signal.SIGKILL, 'SIGKILL'), (signal.SIGRTMIN + 6, f'signal {signal.SIGRTMIN + 6}')])
def test_a_run_ended_by_a_signal_names_it(number, name, desk, small_corpus):
    (desk / 'augment.py').write_text(f'import os\nos.kill(os.getpid(), {int(number)})')
    assert call(desk, small_corpus, '--only_folds', '2', models='cnn', seeds='0') == 1
    assert [row['failed'] for row in rows()] == [f'ended by {name}']


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_runs_and_the_same_command_continues(number, desk, small_corpus):
    order(random_f1_s0='hang')
    process = launch(desk, small_corpus, '--only_folds', '1')
    wait_for(lambda: (desk / 'runs/augment/cv/x/random-f1-s0').exists())
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 130
    assert (desk / 'said.txt').read_text().endswith('cross_validate.py: interrupted; the same command continues\n')
    before = names(desk)
    assert before[-1] == 'cv/x/random-f1-s0' and not (desk / 'runs/cv/x/failed').exists()
    order()
    assert call(desk, small_corpus, '--only_folds', '1') == 0  # would wait if the run that hung were still at work
    after = names(desk)
    assert after[0] == 'cv/x/random-f1-s0'
    assert collections.Counter(before[:-1] + after) == all_names(folds=[1])


def test_a_kill_that_leaves_a_run_behind_repeats_nothing(desk, small_corpus, capsys):
    """kill -9: the run goes on alone. The same command waits for it and does not start it a second time."""
    order(cnn_f1_s0='1.5')
    process = launch(desk, small_corpus, '--only_folds', '1', seeds='0')
    wait_for(lambda: (desk / 'calls.txt').exists() and 'cnn-f1-s0' in (desk / 'calls.txt').read_text())
    process.kill()
    process.join()
    assert not (desk / 'runs/augment/cv/x/cnn-f1-s0/results.json').exists()
    assert call(desk, small_corpus, '--only_folds', '1', seeds='0') == 0
    assert 'cnn-f1-s0: another process is writing this run; waiting for it' in capsys.readouterr().out
    assert collections.Counter(names(desk)) == all_names(seeds=[0], folds=[1]) and finished(4)


def test_a_run_that_is_refused_is_waited_for(desk, small_corpus, monkeypatch, capsys):
    """Someone pasted the command line: the lock is taken between our look at it and the start of our process."""
    monkeypatch.setattr(jobs.Job, 'written_elsewhere', lambda job: False)
    order(cnn_f1_s0='1')
    pasted = [sys.executable, 'augment.py', *'--name cv/x/cnn-f1-s0 --fold 1 --seed 0 --model cnn --resume'.split()]
    with subprocess.Popen(pasted) as process:
        wait_for(lambda: (desk / 'calls.txt').exists())
        assert call(desk, small_corpus, '--only_folds', '1', models='cnn', seeds='0') == 0
    assert process.returncode == 0 and 'waiting for it' in capsys.readouterr().out and names(desk) == ['cv/x/cnn-f1-s0']


def test_what_is_finished_is_not_made_again(desk, small_corpus):
    """From every state that a kill can leave: each prefix of finished runs."""
    assert call(desk, small_corpus, '--only_folds', '1', seeds='0') == 0
    whole = calls(desk)
    every = [Path('runs', 'search' if program == 'search.py' else 'augment', found['--name'],
                  'genotype.json' if program == 'search.py' else 'results.json') for program, found in whole]
    assert len(every) == 5
    for n in range(len(every)):
        for product in every[n:]:
            product.unlink()
        assert call(desk, small_corpus, '--only_folds', '1', seeds='0') == 0
        assert sorted(names(desk)) == sorted(found['--name'] for _, found in whole[n:])


def test_jobs_side_by_side_wait_for_what_they_need(desk, small_corpus):
    order(f1_s0='.6', searched_f1_s0='.3')
    assert call(desk, small_corpus, '--jobs', '4', '--only_folds', '1,2', seeds='0') == 0
    assert collections.Counter(names(desk)) == all_names(seeds=[0], folds=[1, 2])
    found = times(desk)
    began, ended = ({name: row[i] for name, row in found.items()} for i in (0, 1))
    assert ended['cv/x/f1-s0'] < began['cv/x/searched-f1-s0'] and ended['cv/x/searched-f1-s0'] < began[
        'cv/x/cnn_gru_matched-f1-s0']
    assert began['cv/x/random-f1-s0'] < ended['cv/x/f1-s0']  # which needs nothing
    assert {row[3] for row in found.values()} == {str(max(1, cross_validate.joblib.cpu_count() // 4))}  # threads


@pytest.mark.parametrize('n_jobs, gpus', [(2, '4,7'), (3, '4,7'), (1, '4,7'), (2, '')])
def test_every_job_gets_a_gpu_of_its_own(n_jobs, gpus, desk, small_corpus, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', gpus)
    order(**{f'cnn_f{fold}_s{seed}': '.15' for fold in (1, 2, 3) for seed in (0, 1)})
    assert call(desk, small_corpus, '--jobs', str(n_jobs), models='cnn') == 0
    found = sorted(times(desk).values())
    assert {row[2] for row in found} == set(gpus.split(',')[:n_jobs])
    most = -(-n_jobs // len(gpus.split(',')))  # jobs on one GPU at a time
    for began, *_ in found:
        at_work = collections.Counter(row[2] for row in found if row[0] <= began < row[1])
        assert max(at_work.values()) <= most
    assert not any(jobs.busy.values())


def test_gpus_are_counted_by_the_driver(tmp_path, monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path))
    assert jobs.gpus() == []  # no driver
    program = tmp_path / 'nvidia-smi'
    program.write_text('#!/bin/sh\necho "GPU 0: A (UUID: x)"\necho "  MIG 1g: y"\necho "GPU 1: A (UUID: z)"\n')
    program.chmod(0o755)
    assert jobs.gpus() == ['0', '1']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    assert jobs.gpus() == []


@pytest.mark.parametrize('n', [1, 2, 3, 5, 7])
def test_shards_are_disjoint_whole_and_keep_groups_together(n):
    models, folds, seeds = ['cnn_matched', 'searched', 'cnn'], [1, 2, 3, 4], [0, 5]
    shards = [cross_validate.jobs_of('x', models, folds, seeds, (i, n)) for i in range(1, n + 1)]
    every = list(itertools.chain(*shards))
    assert len(every) == len(set(every)) == 4 * 2 * 4 and set(every) == set(cross_validate.jobs_of('x', models, folds, seeds))
    for shard in shards:
        for place, job in enumerate(shard):
            assert job.needs is None or job.needs in shard[:place]
    later = [cross_validate.jobs_of('x', models, folds, [*seeds, 9], (i, n)) for i in range(1, n + 1)]
    assert all(more[:len(shard)] == shard for shard, more in zip(shards, later))


def test_shards_share_the_work_and_the_table_names_what_is_missing(desk, small_corpus):
    assert call(desk, small_corpus, '--shard', '1/2') == 0
    first = names(desk)
    assert '12 of 24 runs are finished; 12 missing: searched (fold 1 seed 1, fold 2 seed 0, fold 3 seed 1), ' in table()
    assert call(desk, small_corpus, '--shard', '2/2') == 0
    assert collections.Counter(first + names(desk)) == all_names() and finished(24)


def test_dry_run_lists_command_lines_that_make_the_experiment(desk, small_corpus, capsys):
    """Pasted one after the other into a shell, they leave nothing for cross_validate to run."""
    models = 'searched,cnn,cnn_gru_matched'

    def listed():
        capsys.readouterr()
        assert call(desk, small_corpus, '--dry_run', '--only_folds', '1,2', models=models, seeds='0') == 0
        *lines, last = capsys.readouterr().out.splitlines()
        return lines[::2], lines[1::2], last
    states, commands, last = listed()
    assert states[0] == 'search-f1-s0: missing, no estimate' and len(states) == 8
    assert last == '0 of 8 jobs are done; no estimate for search, searched, cnn, cnn_gru_matched'
    assert not (desk / 'calls.txt').exists()
    for command in commands[:4]:
        subprocess.run(command.replace('python', shlex.quote(sys.executable)), shell=True, check=True)
    assert calls(desk)[3][1]['--params'] == '1001'  # the shell asked the searched network for its size
    order(searched_f2_s0='fail')
    assert call(desk, small_corpus, '--only_folds', '1,2', models=models, seeds='0') == 1
    calls(desk)
    states, commands, last = listed()
    assert states == ['search-f1-s0: done, 1.5 min', *(f'{model}-f1-s0: done, 2.0 min' for model in (
        'searched', 'cnn', 'cnn_gru_matched')), 'search-f2-s0: done, 1.5 min', 'searched-f2-s0: failed, 2.0 min',
        'cnn-f2-s0: done, 2.0 min', 'cnn_gru_matched-f2-s0: failed, 2.0 min']
    assert last == '6 of 8 jobs are done; about 4 min left' and calls(desk) == []


def test_a_dry_run_binds_to_nothing(desk, small_corpus):
    assert call(desk, small_corpus, '--dry_run', '--augment.epochs', '3', models='cnn', seeds='0') == 0
    assert call(desk, small_corpus, '--augment.epochs', '4', models='cnn', seeds='0') == 0 and len(names(desk)) == 3


def test_time_left_is_measured_or_unknown(desk, monkeypatch):
    every = cross_validate.jobs_of('x', ['searched', 'cnn'], [1, 2, 3], [0])
    known, left = {'search': 10., 'cnn': 50.}, cross_validate.time_left
    assert left({}, every, 1) == 'no estimate for search, searched, cnn'
    assert left({'search': 10.}, every[1:], 1) == 'about 20 min left, no estimate for searched, cnn'
    assert left(known, every[3:], 1) == 'about 2 h 00 min left, no estimate for searched'
    assert left(known, every[3:], 8) == 'about 50 min left, no estimate for searched'  # no run is shorter for company
    assert left(known, [], 1) == 'nothing is left to run'


def test_dask_is_an_option(desk, small_corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, 'dask.distributed', None)
    with pytest.raises(cf.UserError, match='pip install -r requirements-dask.txt'):
        call(desk, small_corpus, '--dask', 'tcp://127.0.0.1:1', models='cnn', seeds='0')


def test_a_cluster_loses_no_run_when_a_worker_is_killed(desk, small_corpus, monkeypatch):
    """Two workers on this machine; one is killed while it waits for a run."""
    distributed = pytest.importorskip('dask.distributed')
    monkeypatch.setenv('PYTHONPATH', '')
    order(**{f'cnn_f{fold}_s{seed}': '.4' for fold in (1, 2, 3) for seed in (0, 1)})
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, host='127.0.0.1', dashboard_address=None) as cluster:
        process = launch(desk, small_corpus, '--dask', cluster.scheduler_address, models='cnn,svm')
        wait_for(lambda: (desk / 'calls.txt').exists() and len((desk / 'calls.txt').read_text().splitlines()) >= 2)
        os.kill(cluster.workers[0].process.process.pid, signal.SIGKILL)
        process.join(60)
        assert process.exitcode == 0, (desk / 'said.txt').read_text()
    assert collections.Counter(names(desk)) == all_names('cnn,svm') and finished(12)
    with pytest.raises(cf.UserError, match='no scheduler answers'):
        monkeypatch.setattr(distributed.Client, '__init__', lambda *_, **__: (_ for _ in ()).throw(OSError('nobody')))
        call(desk, small_corpus, '--dask', 'tcp://127.0.0.1:1', models='cnn', seeds='5')
