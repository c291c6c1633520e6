"""How cross_validate runs its jobs: once each, in order, through failures and kills; what it lists beforehand."""
import collections
import errno
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
    assert '19 of 24 runs are finished; 5 failed: searched (seed 0 fold 1; seed 1 fold 3), cnn (seed 1 fold 2), ' in text
    assert '| searched | partial: seed 0 folds 2 3; seed 1 folds 1 2 | 48 | 6 |' in text
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


@pytest.mark.parametrize('number, n_jobs', [(signal.SIGINT, '1'), (signal.SIGTERM, '1'), (signal.SIGUSR1, '2')])
def test_an_interruption_ends_the_runs_and_the_same_command_continues(number, n_jobs, desk, small_corpus):
    order(random_f1_s0='hang')
    process = launch(desk, small_corpus, '--only_folds', '1', '--jobs', n_jobs)
    wait_for(lambda: (desk / 'calls.txt').exists() and 'random-f1-s0' in (desk / 'calls.txt').read_text())
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == (130 if number == signal.SIGINT else 75)
    why = 'interrupted' if number == signal.SIGINT else f'stopped by {number.name}'
    assert (desk / 'said.txt').read_text().endswith(f'cross_validate.py: {why}; the same command continues\n')
    before, ended = names(desk), set(times(desk))
    assert 'cv/x/random-f1-s0' in set(before) - ended and not (desk / 'runs/cv/x/failed').exists()
    order()
    assert call(desk, small_corpus, '--only_folds', '1') == 0  # would wait if the run that hung were still at work
    after = names(desk)
    assert len(before) < 10 and collections.Counter(after) == all_names(folds=[1]) - collections.Counter(ended)


@pytest.mark.parametrize('where', ['start', 'poll'])
def test_a_signal_that_finds_the_main_thread_with_a_lock_ends_the_runs_all_the_same(where, desk, small_corpus, monkeypatch):
    class Interrupted(subprocess.Popen):
        struck = False

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            if where == 'start' and 'augment' in str(args):
                self.strike()

        def poll(self):
            if where == 'poll' and 'augment' in str(self.args):
                with self._waitpid_lock:  # as in the middle of poll
                    self.strike()
            return super().poll()

        def strike(self):
            if not Interrupted.struck:
                Interrupted.struck = True
                signal.raise_signal(signal.SIGTERM)

    def stuck(*_):
        raise TimeoutError
    before = {number: signal.getsignal(number) for number in (*cf.SIGNALS, signal.SIGHUP, signal.SIGALRM)}
    signal.signal(signal.SIGALRM, stuck)
    monkeypatch.setattr(jobs.subprocess, 'Popen', Interrupted)
    signal.alarm(20)
    try:
        assert call(desk, small_corpus, '--only_folds', '1') == cf.AGAIN
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert Interrupted.struck and not jobs.running


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


def test_a_run_that_refuses_a_second_process_has_not_failed(desk, small_corpus, monkeypatch):
    """Someone pasted the command line, and that process took the lock between our look at it and our start."""
    look, answers = jobs.Job.written_elsewhere, iter([False])
    monkeypatch.setattr(jobs.Job, 'written_elsewhere', lambda job: next(answers, None) is None and look(job))
    order(cnn_f1_s0='1')
    pasted = [sys.executable, 'augment.py', *'--name cv/x/cnn-f1-s0 --fold 1 --seed 0 --model cnn --resume'.split()]
    with subprocess.Popen(pasted) as process:
        wait_for(lambda: (desk / 'calls.txt').exists())
        assert call(desk, small_corpus, '--only_folds', '1', models='cnn', seeds='0') == 0
    assert next(answers, None) is None and (desk / 'runs/cv/x/log/cnn-f1-s0.err').read_text().startswith('augment.py: another')
    assert process.returncode == 0 and names(desk) == ['cv/x/cnn-f1-s0'] and finished(1)


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


def test_jobs_side_by_side_wait_for_what_they_need(desk, small_corpus, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(cross_validate.joblib, 'cpu_count', lambda: 9)
    order(f1_s0='.6', searched_f1_s0='.3')
    assert call(desk, small_corpus, '--jobs', '4', '--only_folds', '1,2', seeds='0') == 0
    assert collections.Counter(names(desk)) == all_names(seeds=[0], folds=[1, 2])
    found = times(desk)
    began, ended = ({name: row[i] for name, row in found.items()} for i in (0, 1))
    assert ended['cv/x/f1-s0'] < began['cv/x/searched-f1-s0'] and ended['cv/x/searched-f1-s0'] < began[
        'cv/x/cnn_gru_matched-f1-s0']
    assert began['cv/x/random-f1-s0'] < ended['cv/x/f1-s0']  # which needs nothing
    assert {row[3] for row in found.values()} == {'2'}  # threads: 9 // 4


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


@pytest.mark.parametrize('model', ['cnn', 'cnn_gru_matched'])
def test_a_job_that_cannot_be_started_says_so_and_blames_no_file(model, desk, small_corpus, monkeypatch):
    assert call(desk, small_corpus, '--only_folds', '1', models='searched', seeds='0') == 0
    start = subprocess.Popen

    def refused(argv, *args, **kwargs):
        if any(model in word for word in argv):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return start(argv, *args, **kwargs)
    monkeypatch.setattr(jobs.subprocess, 'Popen', refused)
    assert call(desk, small_corpus, '--only_folds', '1', models=f'searched,{model}', seeds='0') == 1
    assert {row['model']: row['failed'] for row in rows()}[model] == 'could not be started: Cannot allocate memory'


def test_no_process_outlives_an_error(desk, small_corpus, monkeypatch):
    order(cnn_f1_s0='hang')
    called = jobs._call

    def broken(job, *args):
        if job.model == 'rnn':
            wait_for(lambda: jobs.running)
            raise AssertionError('a fault of the program')
        return called(job, *args)
    monkeypatch.setattr(jobs, '_call', broken)
    with pytest.raises(AssertionError, match='a fault of the program'):
        call(desk, small_corpus, '--only_folds', '1', '--jobs', '2', models='cnn,rnn', seeds='0')
    assert not jobs.running


def test_all_processes_together_have_the_time_to_end(monkeypatch):
    """Three that ignore SIGTERM."""
    monkeypatch.setattr(jobs, 'GRACE', 1.)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    processes = [subprocess.Popen([sys.executable, '-c', deaf], stdout=subprocess.PIPE, start_new_session=True)
                 for _ in range(3)]
    for process in processes:
        process.stdout.readline()
    waits = []
    for process in processes:
        wait = process.wait
        monkeypatch.setattr(process, 'wait', lambda timeout, wait=wait: waits.append(timeout) or wait(timeout))
    jobs.running.update(processes)
    try:
        jobs.stop()
    finally:
        jobs.stopping.clear()
    assert not jobs.running and [process.returncode for process in processes] == [-signal.SIGKILL] * 3
    assert sum(waits[:3]) < 1.5  # not GRACE for each
