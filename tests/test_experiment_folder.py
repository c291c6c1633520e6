"""scripts/cross_validate.py: what its folder holds while and after several processes write it."""
import contextlib
import csv
import json
import os
import shutil
import threading
from pathlib import Path

import pandas as pd
import pytest
from desk import call, calls, cross_validate, finished, jobs, record, table
from desk import desk as desk

import config as cf

import experiment as ex  # isort: skip  (scripts/, which desk made importable)
import table as tables  # isort: skip


def test_a_run_that_another_shard_finishes_meanwhile_is_in_the_tables(desk, small_corpus, monkeypatch):
    call(desk, small_corpus, models='cnn', seeds='0')
    product = Path(jobs.Job('x', 'cnn', 2, 0).product)
    product.rename('later.json')
    write = ex.publish

    def meanwhile(path, text):
        if path.name == 'runs.csv' and os.path.exists('later.json'):
            os.rename('later.json', product)
        write(path, text)
    monkeypatch.setattr(ex, 'publish', meanwhile)
    cross_validate.make_tables(ex.Experiment('x'))
    assert finished(3)


def test_a_table_that_cannot_be_made_stops_no_run(desk, small_corpus, monkeypatch, capsys):
    made, make = [], tables.make

    def fail_twice(*args, **kwargs):
        made.append(args)
        if len(made) < 3:
            raise KeyError('seconds')
        return make(*args, **kwargs)
    monkeypatch.setattr(tables, 'make', fail_twice)
    assert call(desk, small_corpus, models='cnn', seeds='0') == 0
    assert capsys.readouterr().out.count("the tables could not be made: KeyError('seconds')") == 2 and finished(3)


def test_a_run_without_recorded_seconds_stops_nothing(desk, small_corpus, capsys):
    call(desk, small_corpus, models='cnn', seeds='0')
    for fold in (1, 2):
        path = desk / f'runs/augment/cv/x/cnn-f{fold}-s0/results.json'
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != 'seconds'}))
    assert call(desk, small_corpus, models='cnn', seeds='0,1') == 0
    assert finished(6) and 'could not be made' not in capsys.readouterr().out


def test_who_was_heard_is_not_known_where_a_result_does_not_say(desk, small_corpus):
    call(desk, small_corpus, '--only_folds', '1', models='cnn,searched', seeds='0')
    for model in ('cnn', 'searched'):
        path = desk / f'runs/augment/cv/x/{model}-f1-s0/results.json'
        found = json.loads(path.read_text())
        del found['search_heard_test_speakers']
        path.write_text(json.dumps(found))
    assert call(desk, small_corpus, '--only_folds', '1', models='cnn,searched', seeds='0') == 0
    with open('runs/cv/x/runs.csv', newline='') as f:
        heard = {row['model']: row['search_heard_test_speakers'] for row in csv.DictReader(f)}
    assert heard == {'cnn': '', 'searched': 'not known'}


def test_whom_the_network_of_init_heard_is_told(desk, small_corpus):
    call(desk, small_corpus, models='cnn', seeds='0')
    for fold, more in enumerate(({'init': 'a'}, {'init': 'a', 'init_heard_test_speakers': ['=bo']}, {}), 1):
        path = desk / f'runs/augment/cv/x/cnn-f{fold}-s0/results.json'
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    call(desk, small_corpus, models='cnn', seeds='0')
    with open('runs/cv/x/runs.csv', newline='') as f:
        assert [row['init_heard_test_speakers'] for row in csv.DictReader(f)] == ['not known', "'=bo", '']
    assert 'trained on test speakers in cnn-f2-s0 (=bo)' in (desk / 'runs/cv/x/table.md').read_text()


def test_a_network_of_init_that_was_trained_anew_is_another(desk, small_corpus, monkeypatch):
    monkeypatch.setattr(ex, '_digest_of_init', lambda path: 'now')
    init = ['--augment.init', 'runs/augment/a']
    call(desk, small_corpus, *init, models='cnn', seeds='0')
    path = desk / 'runs/augment/cv/x/cnn-f2-s0/results.json'
    record('augment.py', {'--name': 'cv/x/cnn-f2-s0', '--dataset': 'manifest', '--folds': '3', '--fold': '2', '--model': 'cnn',
                          '--init': 'runs/augment/a'})
    for digest in ('now', 'then'):
        path.write_text(json.dumps({**json.loads(path.read_text()), 'init_digest': digest}))
        with contextlib.nullcontext() if digest == 'now' else pytest.raises(
                cf.UserError, match='cnn-f2-s0 began with another network than runs/augment/a now holds'):
            call(desk, small_corpus, *init, models='cnn', seeds='0')


def test_settings_are_kept_from_the_first_plan_on(desk, small_corpus):
    """Runs make their folders seconds after the plan; another command must not change what they read."""
    call(desk, small_corpus, '--dry_run', models='cnn', seeds='0')
    call(desk, small_corpus, '--dry_run', '--augment.epochs', '5', models='cnn', seeds='0')
    (desk / 'orders.json').write_text(json.dumps({f'cv/x/cnn-f{fold}-s0': 'fail' for fold in (1, 2, 3)}))
    assert call(desk, small_corpus, '--augment.epochs', '6', models='cnn', seeds='0') == 1
    shutil.rmtree('runs/augment')
    for more in ([], ['--dry_run', '--augment.epochs', '7']):
        with pytest.raises(cf.UserError, match='epochs of augment.py is .*, but runs/cv/x began with 6: take another --name'):
            call(desk, small_corpus, *more, models='cnn', seeds='0')


def test_a_damaged_result_of_another_model_ends_no_job(desk, small_corpus, capsys):
    assert call(desk, small_corpus, models='cnn', seeds='0') == 0
    (desk / 'runs/augment/cv/x/cnn-f1-s0/results.json').write_text('{"ua": ')
    with pytest.raises(cf.UserError, match='cnn-f1-s0/results.json: .*: delete it'):  # once all jobs have ended
        call(desk, small_corpus, models='rnn', seeds='0')
    assert '3 of 3 jobs have ended' in capsys.readouterr().out and len(calls(desk)) == 6


def test_a_damaged_result_names_its_file(desk, small_corpus):
    call(desk, small_corpus, models='cnn', seeds='0')
    (desk / 'runs/augment/cv/x/cnn-f1-s0/results.json').write_text('{"ua": ')
    with pytest.raises(cf.UserError, match='cnn-f1-s0/results.json: .*: delete it'):
        call(desk, small_corpus, models='cnn', seeds='0')


def test_the_plan_keeps_the_commands_of_all_parts(desk, small_corpus):
    for shard in ('1/2', '2/2'):
        assert call(desk, small_corpus, '--shard', shard, '--clean_folds', '1', models='cnn', seeds='0') == 0
    assert call(desk, small_corpus, '--only_folds', '1', models='rnn', seeds='0') == 0
    plan = json.loads(Path('runs/cv/x/plan.json').read_text())
    commands = plan['command'].splitlines()
    assert plan['clean_folds'] == [1]  # which the last command does not say again
    assert len(commands) == 2 and '--models cnn' in commands[0] and '--models rnn' in commands[1]
    assert '--shard' not in commands[0] and '--only_folds 1' in commands[1]
    assert 'Commands:' in table() and all(f'    {line}' in table() for line in commands)


def test_two_commands_that_begin_together_both_get_into_the_plan(desk, small_corpus, monkeypatch):
    """The second one comes between the first one's look at plan.json and its writing, and waits."""
    assert call(desk, small_corpus, '--only_folds', '1', models='svm', seeds='0') == 0
    plan = ex.Experiment.plan
    here, others = threading.current_thread(), []

    def disturbed(experiment):
        found = plan(experiment)
        if not others and threading.current_thread() is here:
            other = ex.Experiment('x')
            args = ([jobs.Job('x', 'rnn', 1, 0)], found['test_speakers'], found['digest'], [], 'python b')
            others.append(threading.Thread(target=other.add_to_plan, args=args))
            others[0].start()
            others[0].join(.5)
        return found
    monkeypatch.setattr(ex.Experiment, 'plan', disturbed)
    kept = plan(ex.Experiment('x'))
    ex.Experiment('x').add_to_plan([jobs.Job('x', 'cnn', 1, 0)], kept['test_speakers'], kept['digest'], [], 'python a')
    others[0].join()
    assert [run[0] for run in plan(ex.Experiment('x'))['runs']] == ['cnn', 'rnn', 'svm']


def test_tables_are_made_again_if_a_run_was_finished_meanwhile(desk, small_corpus, monkeypatch):
    """Its shard wrote the whole tables, and ours, which are older, over them."""
    call(desk, small_corpus, models='cnn', seeds='0')
    product = Path(jobs.Job('x', 'cnn', 2, 0).product)
    product.rename('later.json')
    make = tables.make

    def meanwhile(*args, **kwargs):
        if os.path.exists('later.json'):
            os.rename('later.json', product)
        return make(*args, **kwargs)
    monkeypatch.setattr(tables, 'make', meanwhile)
    cross_validate.make_tables(ex.Experiment('x'))
    assert finished(3)


def test_whoever_reads_meanwhile_finds_predictions_of_every_finished_run(desk, small_corpus, monkeypatch):
    call(desk, small_corpus, models='cnn', seeds='0')
    product = Path(jobs.Job('x', 'cnn', 2, 0).product)
    product.rename('later.json')
    cross_validate.make_tables(ex.Experiment('x'))
    write, read = ex.publish, []

    def publish(path, text):
        write(path, text)
        if os.path.exists('later.json'):  # finished after these predictions were collected
            os.rename('later.json', product)
        read.append((tables.read(Path('runs/cv/x')).runs['state'] == 'finished').sum())
    monkeypatch.setattr(ex, 'publish', publish)
    ex.Experiment('x').collect()
    assert read == [2, 2, 2, 3]  # twice predictions.csv and runs.csv


def test_parts_of_recordings_keep_their_times(desk, small_corpus):
    assert call(desk, small_corpus, '--only_folds', '1', models='cnn', seeds='0') == 0
    path = Path('runs/augment/cv/x/cnn-f1-s0/predictions.csv')
    pd.read_csv(path).assign(start=.5, end=1.25).to_csv(path, index=False)
    ex.Experiment('x').collect()
    found = pd.read_csv('runs/cv/x/predictions.csv')
    assert {*zip(found['start'], found['end'])} == {(.5, 1.25)}
