"""search.py and augment.py from the shell, on CPU."""
import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, augment_args, found_by, results, rows, run, search_args
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

import augment
import config as cf
import datasets
import genotypes as gt
import utils
from datasets import scoring
from models import predictor


def test_a_search_leaves_what_is_promised(finished):
    folder = finished / 'runs/search/a'
    assert {p.name for p in folder.iterdir()} == {'config.yaml', 'genotype.json', 'genotype.png', 'metrics.jsonl', 'search.log',
                                                  'checkpoint.pt', 'checkpoint.previous.pt', 'lock', 'tb'}
    genotype, record = gt.load(folder / 'genotype.json')
    assert gt.to_str(genotype) == rows(folder / 'metrics.jsonl')[-1]['genotype']
    assert record['network']['layers'] == 3
    assert record['features'] == dict(
        features='logmel', encoder=None, encoder_layers='all', frames_per_s=50., frame_shape='', encoder_revision='', n_mels=16,
        hop_ms=32., time_pool=1, trim_db=50., normalise='corpus', embedding='none', prosody=False, prosody_version=2,
        deltas=False, duration=.8)
    assert record['operations']['rnn'] == list(gt.RNN_OP_SETS['mixed'])
    assert yaml.safe_load((folder / 'config.yaml').read_text())['alpha_lr'] == .05
    first, last = rows(folder / 'metrics.jsonl')[0], rows(folder / 'metrics.jsonl')[-1]
    assert first['alpha_loss'] is None and last['alpha_loss'] > 0  # warm-up
    assert set(last['alpha']) == {'normal', 'reduce', 'rnn'}
    assert np.abs(np.subtract(first['alpha']['rnn'][0], .125)).max() < .01 < np.ptp(last['alpha']['rnn'][0])  # alpha has moved
    assert 'Genotype(' in (folder / 'search.log').read_text()


def test_results_agree_with_predictions(finished, small_corpus):
    folder = finished / 'runs/augment/a'
    assert {p.name for p in folder.iterdir()} == {'config.yaml', 'best.pt', 'checkpoint.pt', 'checkpoint.previous.pt',
                                                  'results.json', 'predictions.csv', 'metrics.jsonl', 'augment.log', 'lock',
                                                  'tb'}
    found = json.loads((folder / 'results.json').read_text())
    with open(folder / 'predictions.csv', newline='') as f:
        table = list(csv.DictReader(f))
    with open(small_corpus, newline='') as f:
        expected = [r for r in csv.DictReader(f) if r['speaker'] in found['test_speakers']]
    assert [(r['path'], r['speaker'], r['label']) for r in table] == [(r['path'], r['speaker'], r['label']) for r in expected]
    assert found['n_test'] == len(table) > 0 and found['n_test'] % 10  # the last batch is unequal
    y, p = [r['label'] for r in table], [r['predicted'] for r in table]
    assert found['ua'] == pytest.approx(balanced_accuracy_score(y, p))
    assert found['wa'] == pytest.approx(accuracy_score(y, p))
    assert found['macro_f1'] == pytest.approx(f1_score(y, p, average='macro'))
    assert found['confusion'] == confusion_matrix(y, p, labels=found['labels']).tolist()
    for r in table:
        probabilities = [float(r[f'p_{label}']) for label in found['labels']]
        assert sum(probabilities) == pytest.approx(1., abs=1e-4)
        assert found['labels'][int(np.argmax(probabilities))] == r['predicted']
    sets = [set(found[f'{part}_speakers']) for part in ('train', 'dev', 'test')]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 6 and found['search_heard_test_speakers'] == []


def test_the_best_epoch_is_devs(finished):
    folder = finished / 'runs/augment/a'
    dev = [(row['dev']['ua'], -row['dev']['loss']) for row in rows(folder / 'metrics.jsonl')]
    found = json.loads((folder / 'results.json').read_text())
    assert found['best_epoch'] == 1 + dev.index(max(dev)) and found['dev_ua'] == max(dev)[0]


def check_saved_network(folder, corpus):
    """best.pt alone, rebuilt, gives the probabilities of predictions.csv."""
    best = torch.load(folder / 'best.pt', weights_only=True)
    assert best['format'] == utils.FORMAT
    features = {name: best['settings'][name] for name in cf.FeatureSettings.__dataclass_fields__}
    config = cf.AugmentConfig(name='x', dataset='manifest', data_path=str(corpus), cache=str(folder / '../../../.cache'),
                              **features)
    data = datasets.load(config, ('train', 'test'))
    assert torch.equal(data.mean, best['mean']) and torch.equal(data.std, best['std'])
    net = predictor.rebuild(best)
    probabilities = data.sets['test'].score(lambda *X: net(*X)[0], 7)
    with open(folder / 'predictions.csv', newline='') as f:
        saved = [[float(v) for k, v in r.items() if k.startswith('p_')] for r in csv.DictReader(f)]
    np.testing.assert_allclose(probabilities, saved, atol=1e-5)


def test_the_saved_network_gives_the_saved_predictions(finished, small_corpus):
    check_saved_network(finished / 'runs/augment/a', small_corpus)


def test_the_best_network_reads_the_test_speakers_once_at_the_end(finished, small_corpus, monkeypatch, capsys):
    """With a dev UA made to fall from epoch to epoch the first network is the best, though the last is at hand."""
    read, evaluate = [], scoring.evaluate

    def falling(forward, dataset, *rest):
        found, probabilities = evaluate(forward, dataset, *rest)
        read.append({u.speaker for u in dataset.utterances})
        return {**found, 'ua': 1. / len(read)}, probabilities
    monkeypatch.setattr(scoring, 'evaluate', falling)
    monkeypatch.chdir(finished)
    augment.main(list(map(str, augment_args(small_corpus, 'falling', 'runs/search/a/genotype.json'))))
    found = results(finished / 'runs/augment/falling')
    assert found['best_epoch'] == 1
    assert read == [set(found['dev_speakers'])] * 4 + [set(found['test_speakers'])]
    check_saved_network(finished / 'runs/augment/falling', small_corpus)


def test_same_seed_same_numbers_and_another_seed_others(finished, small_corpus):
    run(finished, 'search.py', *search_args(small_corpus, 'again'))
    a, again = (finished / f'runs/search/{name}' for name in ('a', 'again'))
    assert found_by(a) == found_by(again)
    assert rows(a / 'metrics.jsonl') == rows(again / 'metrics.jsonl')
    run(finished, 'augment.py', *augment_args(small_corpus, 'again', 'runs/search/a/genotype.json'))
    run(finished, 'augment.py', *augment_args(small_corpus, 'other', 'runs/search/a/genotype.json', '--seed', 1))
    a, again, other = (finished / f'runs/augment/{name}' for name in ('a', 'again', 'other'))
    assert results(a) == results(again)
    assert (a / 'predictions.csv').read_bytes() == (again / 'predictions.csv').read_bytes()
    assert rows(a / 'metrics.jsonl') == rows(again / 'metrics.jsonl') != rows(other / 'metrics.jsonl')


def kill_after_an_epoch(cwd, program, argv, folder):
    """Starts a program and kills it, not to be caught, as soon as its first epoch is in metrics.jsonl."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    process = subprocess.Popen([sys.executable, str(ROOT / program), *map(str, argv)], cwd=cwd, env=env,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (folder / 'checkpoint.pt').exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(rows(folder / 'metrics.jsonl'))


def test_a_killed_run_goes_on_as_if_it_had_not_been(finished, small_corpus):
    whole, killed = (finished / f'runs/search/{name}' for name in ('whole', 'killed'))
    more = ('--order', 2, '--alpha_warmup', 0)
    run(finished, 'search.py', *search_args(small_corpus, 'whole', *more))
    argv = search_args(small_corpus, 'killed', *more)
    assert kill_after_an_epoch(finished, 'search.py', argv, killed) < 3
    assert not (killed / 'genotype.json').exists()
    assert '--resume' in run(finished, 'search.py', *argv, ok=False).stderr
    run(finished, 'search.py', *argv, '--resume', '--resident', 'never', '--workers', 1)  # neither of which changes a bit
    assert found_by(whole) == found_by(killed)
    assert rows(whole / 'metrics.jsonl') == rows(killed / 'metrics.jsonl')
    a, killed = finished / 'runs/augment/a', finished / 'runs/augment/killed'
    argv = augment_args(small_corpus, 'killed', 'runs/search/a/genotype.json')
    assert kill_after_an_epoch(finished, 'augment.py', argv, killed) < 4
    run(finished, 'augment.py', *argv, '--resume')
    assert results(a) == results(killed) and rows(a / 'metrics.jsonl') == rows(killed / 'metrics.jsonl')
    assert (a / 'predictions.csv').read_bytes() == (killed / 'predictions.csv').read_bytes()


def test_warm_up_leaves_alpha_an_epoch(small_corpus, tmp_path):
    done = run(tmp_path, 'search.py', *search_args(small_corpus, 'x', '--epochs', 2, '--alpha_warmup', 9))
    assert 'WARNING: alpha_warmup 9' in done.stdout
    assert [row['alpha_loss'] is None for row in rows(tmp_path / 'runs/search/x/metrics.jsonl')] == [True, False]


def test_scripts(finished, small_corpus):
    shown = run(finished, 'scripts/corpus.py', '--dataset', 'manifest', '--data_path', small_corpus).stdout
    assert 'manifest: 48 utterances' in shown and 'angry 24, sad 24' in shown and 'WAV 16000 Hz 1 channel (48)' in shown
    assert '1: spk1 spk4 | spk3   utterances: train 24, dev 8, test 16' in shown
    run(finished, 'scripts/draw_genotype.py', 'runs/search/a/genotype.json', 'g.png')
    assert (finished / 'g.png').stat().st_size > 10_000
    assert 'absent.json' in run(finished, 'scripts/draw_genotype.py', 'absent.json', 'g.png', ok=False).stderr


def test_importing_does_nothing(tmp_path):
    code = 'import search, augment, config, utils, genotypes, datasets, models.visualize, models.architect'
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)},
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '') and not list(tmp_path.iterdir())


def test_tensorboard_holds_what_is_promised(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def tags(folder):
        events = EventAccumulator(str(finished / folder / 'tb'), size_guidance={'images': 0, 'scalars': 0})
        events.Reload()
        return events
    search, augment = tags('runs/search/a'), tags('runs/augment/a')
    for events in (search, augment):
        scalars = {*events.Tags()['scalars']}
        assert {f'{group}/{part}' for group in ('1_UA', '2_loss', '6_WA', '6_macro_F1') for part in ('train', 'dev')} <= scalars
        assert {'7_summary/chance_UA', '7_summary/best_dev_UA', '5_progress/lr', '5_progress/seconds'} <= scalars
        assert {'0_now/1_UA', '0_now/2_progress', '4_cells/genotype'} <= {*events.Tags()['images']}
        assert {'0_about/text_summary', '0_result/text_summary', 'custom_scalars__config__'} <= {*events.Tags()['tensors']}
        assert [event.value for event in events.Scalars('7_summary/chance_UA')] == [.5] * len(events.Scalars('1_UA/dev'))
    scalars = {*search.Tags()['scalars']}
    assert {'2_loss/alpha', '3_alpha/entropy_normal', '3_alpha/skips_rnn', '8_operations_rnn/lstm_1'} <= scalars
    assert not [tag for tag in scalars if tag.startswith('8_operations') and ('skip' in tag or 'none' in tag)]
    assert {'0_now/3_alpha_normal', '0_now/4_alpha_reduce', '0_now/5_alpha_rnn'} <= {*search.Tags()['images']}
    assert search.Images('4_cells/genotype')[-1].step == 3
    last = rows(finished / 'runs/search/a/metrics.jsonl')[-1]
    assert search.Scalars('9_edges_normal/1-2/skip_connect')[-1].value == pytest.approx(last['alpha']['normal'][0][1][2])
    found = json.loads((finished / 'runs/augment/a/results.json').read_text())
    assert augment.Scalars('7_summary/test_UA')[-1].value == pytest.approx(found['ua'])
    assert augment.Scalars('7_summary/best_dev_UA')[-1].value == pytest.approx(found['dev_ua'])
    recall = [row[i] / sum(row) for i, row in enumerate(found['confusion'])]
    assert [augment.Scalars(f'3_recall/test_{name}')[-1].value for name in found['labels']] == pytest.approx(recall)
    assert {'2_confusion/dev', '2_confusion/test', '3_recall/test'} <= {*augment.Tags()['images']}
    heard = [tag for tag in augment.Tags()['audio'] if tag.startswith('4_hardest_audio/')]
    assert len(heard) == min(8, found['n_test'])
    assert {tag.replace('_audio', '') for tag in heard} <= {*augment.Tags()['images']}
    first = min(heard)
    with open(finished / 'runs/augment/a/predictions.csv', newline='') as f:
        predicted = [*csv.DictReader(f)]
    worst = min(predicted, key=lambda row: float(row[f'p_{row["label"]}']))
    assert first == f'4_hardest_audio/1_{worst["label"]}_as_{worst["predicted"]}'
    for log in ('search/a/search.log', 'augment/a/augment.log'):
        assert 'could not be' not in (finished / 'runs' / log).read_text()
