"""A desk for tests of experiments: fake programs that leave what the real ones leave, and a way to call cross_validate."""
import collections
import csv
import json
import multiprocessing
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import config as cf
import datasets
import genotypes as gt
import utils

sys.path.insert(0, str(ROOT / 'scripts'))
import cross_validate  # noqa: E402
import experiment  # noqa: E402
import figures  # noqa: E402
import jobs  # noqa: E402
import significance  # noqa: E402

CELL = "[[('{}', 0), ('{}', 1)]]"
GENOTYPE = (f'Genotype(normal={CELL}, normal_concat=range(2, 3), reduce={CELL}, reduce_concat=range(2, 3), rnn={CELL}, '
            'rnn_concat=range(2, 3))')
MODELS = 'searched,random,cnn,cnn_gru_matched'
# Writes what search.py and augment.py write, notes its flags in calls.txt, and does what orders.json says of its --name.
FAKE = '''
import csv, fcntl, json, os, random, sys, time
words = [word for word in sys.argv[1:] if word != '--resume']
flags = dict(zip(words[::2], words[1::2]))
name, fold, seed = flags['--name'], flags['--fold'], int(flags['--seed'])
search = sys.argv[0].endswith('search.py')
folder = os.path.join('runs', 'search' if search else 'augment', name)
os.makedirs(folder, exist_ok=True)
locked = open(folder + '/lock', 'a')
try:
    fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print('augment.py: another process is writing ' + folder + ': wait for it', file=sys.stderr)
    sys.exit(2)
began = time.time()
order = json.load(open('orders.json')).get(name, '') if os.path.exists('orders.json') else ''
with open('calls.txt', 'a') as f:
    f.write(json.dumps(sys.argv) + chr(10))
if order == 'fail':
    sys.exit('warning: nothing' + chr(10) + 'search.py: --n_mels 3: must not be' + chr(10))
if order == 'vanish':
    sys.exit(0)
if order == 'hang':
    time.sleep(600)
if order:
    time.sleep(float(order))
random.seed(name)
given, fields = flags.get('--genotype', 'random'), json.load(open('trees.json'))[int(fold) % 2]
if given != 'random':
    fields = json.load(open(given))['genotype']
kinds = 'normal', 'reduce', 'rnn'
cells = {name: [[tuple(edge) for edge in node] for node in fields[name]] for name in kinds}
genotype = 'Genotype(' + ', '.join(f'{name}={cell}, {name}_concat=range(2, 3)' for name, cell in cells.items()) + ')'
if search:
    with open(folder + '/metrics.jsonl', 'w') as f:
        f.write('{"seconds": 60, "core_seconds": 48}' + chr(10) + '{"seconds": 30, "core_seconds": 24}' + chr(10))
    product, tree = 'genotype.json', {'genotype': fields}
else:
    rows, labels = json.load(open('speech.json'))[int(fold) - 1], ['angry', 'sad']
    rows = [row + [row[2] if random.random() < .8 else random.choice(labels)] for row in rows]
    with open(folder + '/predictions.csv', 'w', newline='') as f:
        csv.writer(f).writerows([['path', 'speaker', 'label', 'predicted', 'p_angry', 'p_sad']] + [r + [0, 0] for r in rows])
    searched = '--model' not in flags and sys.argv[0].endswith('augment.py')
    product, tree = 'results.json', {
        'ua': .5, 'wa': .5, 'macro_f1': .5, 'labels': labels, 'n_test': len(rows), 'n_params': 1000 + 10 * seed + int(fold),
        'best_epoch': 1, 'dev_ua': .5, 'genotype': genotype if searched else None, 'seconds': 120, 'device': 'fake',
        'test_speakers': sorted({row[1] for row in rows}), 'search_heard_test_speakers': []}
with open('times.txt', 'a') as f:
    gpu, threads = (os.environ.get(key, '') for key in ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS'))
    f.write(json.dumps([name, began, time.time(), gpu, threads]) + chr(10))
with open(folder + '/tmp', 'w') as f:
    json.dump(tree, f)
os.replace(folder + '/tmp', folder + '/' + product)
'''


@pytest.fixture
def desk(tmp_path, monkeypatch, small_corpus):
    """A folder with the fake programs, in which to call cross_validate on 6 speakers in 3 folds. No figures are drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(jobs, 'POLL', .05)
    monkeypatch.setattr(figures, 'draw', lambda *_: [])
    monkeypatch.setattr(significance, 'N_RESAMPLES', 400)
    utterances = datasets.scan('manifest', str(small_corpus))
    speech = [[[u.path, u.speaker, u.label] for u in fold.split(utterances, 'test')]
              for fold in datasets.folds_of('manifest', utterances, '3')]
    (tmp_path / 'speech.json').write_text(json.dumps(speech))
    names = [['skip_connect', 'max_pool_3x3'] * 2 + ['gru_1', 'gru_1'], ['max_pool_3x3'] * 4 + ['gru_1', 'skip_connect']]
    texts = [GENOTYPE.format(*some) for some in names]
    (tmp_path / 'genotypes.json').write_text(json.dumps(texts))
    for i, text in enumerate(texts):
        gt.save(tmp_path / f'{i}.json', gt.from_str(text), {})
    trees = [json.loads((tmp_path / f'{i}.json').read_text())['genotype'] for i in range(len(texts))]
    (tmp_path / 'trees.json').write_text(json.dumps(trees))
    (tmp_path / 'scripts').mkdir()
    for program in jobs.PROGRAMS.values():
        (tmp_path / program).write_text(FAKE)
    return tmp_path


def order(**orders):
    """What the runs named so are to do; 'f1_s0' is the search, others 'cnn_gru_matched_f1_s0'."""
    found = {'cv/x/' + '-'.join(name.rsplit('_', 2)): what for name, what in orders.items()}
    with open('orders.json', 'w') as f:
        json.dump(found, f)


def flags(corpus, *more, models=MODELS, seeds='0,1'):
    return ['--name', 'x', '--dataset', 'manifest', '--data_path', str(corpus), '--folds', '3', '--models', models, '--seeds',
            seeds, *more]


def call(desk, corpus, *more, **kwargs):
    """Exit code of cross_validate.main, 0 if it returns."""
    try:
        cross_validate.main(flags(corpus, *more, **kwargs), desk)
    except SystemExit as done:
        return 1 if isinstance(done.code, str) else done.code
    return 0


def launch(desk, corpus, *more, **kwargs):
    """cross_validate as a program in a process of its own; its stderr goes to said.txt."""
    def program():
        for number, name in enumerate(('said.out', 'said.txt'), 1):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')
        utils.cli(lambda: sys.exit(call(desk, corpus, *more, **kwargs)))
    process = multiprocessing.get_context('fork').Process(target=program)
    process.start()
    return process


def wait_for(condition):
    deadline = time.time() + 60
    while not condition():
        assert time.time() < deadline
        time.sleep(.01)


def calls(desk):
    """[(program, {flag: value})] in the order in which runs began; forgets them."""
    path = desk / 'calls.txt'
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    found = []
    for program, *words in lines:
        assert words.count('--resume') == 1
        words.remove('--resume')
        found.append((os.path.basename(program), dict(zip(words[::2], words[1::2]))))
    return found


def names(desk):
    return [flags['--name'] for _, flags in calls(desk)]


def times(desk):
    """{name: (began, ended, CUDA_VISIBLE_DEVICES, OMP_NUM_THREADS)} of finished runs."""
    path = desk / 'times.txt'
    return {row[0]: row[1:] for row in map(json.loads, path.read_text().splitlines())} if path.exists() else {}


def rows(name='runs.csv', of='x'):
    with open(f'runs/cv/{of}/{name}', newline='') as f:
        return list(csv.DictReader(f))


def table():
    with open('runs/cv/x/table.md') as f:
        return f.read()


def all_names(models=MODELS, seeds=(0, 1), folds=(1, 2, 3)):
    """Counter of the names of all runs, each once."""
    found = {f'cv/x/{model}-f{f}-s{s}' for model in models.split(',') for f in folds for s in seeds}
    return collections.Counter(found | {f'cv/x/f{f}-s{s}' for f in folds for s in seeds if 'searched' in models})


def record(program, made):
    """config.yaml as the program leaves it. made: its flags."""
    section = program.removesuffix('.py')
    config = cf.build(section, cf.given(section, [word for pair in made.items() for word in pair]))
    left_out = {*experiment.MACHINE, 'config', 'resume', 'overwrite'}
    kept = {name: value for name, value in asdict(config).items() if name not in left_out}
    Path('runs', section, config.name, 'config.yaml').write_text(yaml.safe_dump(kept))


def finished(n):
    return f'{n} of {n} runs are finished.' in table()
