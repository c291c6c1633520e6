"""Where cross_validate runs its jobs: GPUs, parts of job arrays, dask."""
import collections
import itertools
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from desk import all_names, call, cross_validate, jobs, launch, names, order, table, times, wait_for
from desk import desk as desk

import config as cf

import options  # isort: skip  (scripts/, which desk made importable)


def finished(n):
    return f'{n} of {n} runs are finished.' in table()


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
    assert '12 of 24 runs are finished; 12 missing: searched (seed 1 folds 1 3; seed 0 fold 2), ' in table()
    assert call(desk, small_corpus, '--shard', '2/2') == 0
    assert collections.Counter(first + names(desk)) == all_names() and finished(24)


def test_the_script_for_job_arrays(tmp_path):
    """The one in docs/cluster.md, run as SLURM runs it; the program it calls prints its arguments."""
    script = (ROOT / 'docs' / 'cluster.md').read_text().split('```bash\n')[1].split('```')[0]
    (tmp_path / 'python').write_text('#!/bin/sh\necho "$OMP_NUM_THREADS" "$@"\n')
    (tmp_path / 'python').chmod(0o755)
    said = set()
    for i in range(1, 6):
        env = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'DATA': 'a b', 'SLURM_SUBMIT_DIR': str(tmp_path),
               'SLURM_CPUS_PER_TASK': '4', 'SLURM_ARRAY_TASK_ID': str(i), 'SLURM_ARRAY_TASK_COUNT': '5'}
        done = subprocess.run(['bash'], input=script, env=env, capture_output=True, text=True, check=True)
        threads, program, *words = done.stdout.split()
        assert (threads, program) == ('4', 'scripts/cross_validate.py') and not done.stderr
        own, given = options.parse([word for word in words if word != 'b'])
        assert given['search']['data_path'] == 'a' and given['augment']['epochs'] == 40
        said.add(options.parse_shard(own.shard))
    assert said == {(i, 5) for i in range(1, 6)}


def test_dask_is_an_option(desk, small_corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, 'dask.distributed', None)
    with pytest.raises(cf.UserError, match='pip install -r requirements-dask.txt'):
        call(desk, small_corpus, '--dask', 'tcp://127.0.0.1:1', models='cnn', seeds='0')


def test_a_cluster_loses_no_run_when_a_worker_is_killed(desk, small_corpus, monkeypatch):
    """A scheduler and two workers on this machine; one worker is killed while it waits for a run."""
    distributed = pytest.importorskip('dask.distributed')
    order(**{f'cnn_f{fold}_s{seed}': '.6' for fold in (1, 2, 3) for seed in (0, 1)})
    with distributed.LocalCluster(n_workers=0, host='127.0.0.1', dashboard_address=None) as cluster:
        argv = [sys.executable, '-m', 'distributed.cli.dask_worker', cluster.scheduler_address, '--nthreads', '1', '--no-nanny',
                '--no-dashboard']
        (desk / 'elsewhere').mkdir()
        with open('workers.txt', 'w') as said:
            workers = [subprocess.Popen(argv, cwd=desk / 'elsewhere', stdout=said, stderr=said) for _ in range(2)]
        try:
            with distributed.Client(cluster, set_as_default=False) as client:
                client.wait_for_workers(2, timeout=60)
            process = launch(desk, small_corpus, '--dask', cluster.scheduler_address, models='cnn,svm')
            wait_for(lambda: (desk / 'calls.txt').exists() and len((desk / 'calls.txt').read_text().splitlines()) >= 2)
            workers[0].kill()
            process.join(60)
            assert process.exitcode == 0, (desk / 'said.txt').read_text()
            assert 'svm-f1-s0: finished' in (desk / 'workers.txt').read_text()  # the workers made the runs
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    assert collections.Counter(names(desk)) == all_names('cnn,svm') and finished(12)


def test_a_scheduler_that_does_not_answer(desk, small_corpus, monkeypatch):
    distributed = pytest.importorskip('dask.distributed')

    def refuse(*_, **__):
        raise OSError('connection refused')
    monkeypatch.setattr(distributed, 'Client', refuse)
    with pytest.raises(cf.UserError, match='--dask tcp://127.0.0.1:1: no scheduler answers'):
        call(desk, small_corpus, '--dask', 'tcp://127.0.0.1:1', models='cnn', seeds='0')
