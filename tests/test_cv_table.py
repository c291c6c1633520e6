"""scripts/cv_table.py: what the tables say of runs made by hand, against scikit-learn and all swaps."""
import csv
import itertools
import json
import random
import sys

import numpy as np
import pytest
from conftest import ROOT
from sklearn.metrics import accuracy_score, f1_score, recall_score

sys.path.insert(0, str(ROOT / 'scripts'))
import cv_figures  # noqa: E402
import cv_plan  # noqa: E402
import cv_statistics  # noqa: E402
import cv_table  # noqa: E402

CELL = "[[('skip_connect', 0), ('{}', 1)]]"
GENOTYPE = (f'Genotype(normal={CELL.format("skip_connect")}, normal_concat=range(2, 3), reduce={CELL.format("max_pool_3x3")}, '
            f'reduce_concat=range(2, 3), rnn={CELL.format("gru_1")}, rnn_concat=range(2, 3))')
SPEAKERS = [['ann', 'bob'], ['cem', 'dot'], ['eve', 'fay']]  # of each fold
SCORES = {'UA': lambda y, p: recall_score(y, p, labels=np.unique(y), average='macro'), 'WA': accuracy_score,
          'macro F1': lambda y, p: f1_score(y, p, average='macro', zero_division=0)}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cv_statistics, 'N_RESAMPLES', 400)
    return tmp_path


def runs(*models, seeds=(0, 1), folds=(1, 2, 3)):
    return list(itertools.product(models, folds, seeds))


def speech(fold):
    """[(path, speaker, label)]: five angry and two or three sad utterances a speaker; nobody is calm, a class as well."""
    return [(f'{speaker}-{label}-{i}', speaker, label) for speaker in SPEAKERS[fold - 1]
            for label, n in (('angry', 5), ('sad', 2 + (speaker > 'cem'))) for i in range(n)]


def predict(model, seed, label, rng):
    """cnn knows one class, random is a little worse than searched, svm hears no seed."""
    if model == 'cnn':
        return 'angry'
    rng = random.Random(model) if model == 'svm' else rng
    return label if rng.random() < {'searched': .8, 'random': .75}.get(model, .7) else rng.choice(['angry', 'sad', 'calm'])


def make(asked, missing=(), clean=(), unsaid=(), figures=False, **more):
    """table.md of the runs `asked`, all there but the missing ones. unsaid: what results.json lacks; more: what it has."""
    experiment = cv_plan.Experiment('x')
    for model, fold, seed in asked:
        if (model, fold, seed) in missing:
            continue
        job, rng = cv_plan.Job(model, fold, seed), random.Random(f'{model} {fold} {seed}')
        folder = experiment.folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / 'predictions.csv', 'w', newline='') as f:
            csv.writer(f).writerows([['path', 'speaker', 'label', 'predicted']] + [
                [*row, predict(model, seed, row[2], rng)] for row in speech(fold)])
        found = {'labels': ['angry', 'calm', 'sad'], 'n_params': 1000, 'seconds': 120, 'device': 'none',
                 'genotype': GENOTYPE if model in ('searched', 'random') else None, 'search_heard_test_speakers': [], **more}
        (folder / 'results.json').write_text(json.dumps({k: v for k, v in found.items() if k not in unsaid}))
    plan = {'runs': asked, 'test_speakers': SPEAKERS, 'clean_folds': list(clean), 'command': 'python scripts/cross_validate.py'}
    cv_table.make(experiment, plan, figures)
    return (experiment.path / 'table.md').read_text()


def cells(text, first, begins='| '):
    """Cells behind the first one of the rows that begin with it, in the table whose head begins so."""
    head = text[text.index(begins):].split('\n\n')[0].splitlines()
    return next([cell.strip() for cell in line.split('|')[2:-1]] for line in head if line.startswith(f'| {first} |'))


def rows(name):
    with open(f'runs/cv/x/{name}', newline='') as f:
        return list(csv.DictReader(f))


def test_differences_p_holm_and_chance(desk):
    """Of all 64 ways to swap six speakers, each scored by scikit-learn; half of them are the other half mirrored."""
    text = make(runs('searched', 'random', 'cnn', 'lstm'))
    pooled = rows('predictions.csv')
    of = {(model, seed): np.array([[row[key] for key in ('speaker', 'label', 'predicted')] for row in pooled
                                   if (row['model'], row['seed']) == (model, str(seed))]).T
          for model in ('searched', 'random', 'cnn', 'lstm') for seed in (0, 1)}
    speaker, label, _ = of['cnn', 0]
    names, found = sorted(set(speaker)), {}
    for model in ('random', 'cnn', 'lstm'):
        differences = {name: [] for name in SCORES}
        for swap in itertools.product([False], *[[False, True]] * 5):
            swapped = np.isin(speaker, [name for name, turned in zip(names, swap) if turned])
            pairs = [(of['searched', seed][2], of[model, seed][2]) for seed in (0, 1)]
            pairs = [(np.where(swapped, b, a), np.where(swapped, a, b)) for a, b in pairs]
            for name, score in SCORES.items():
                differences[name].append(np.mean([score(label, a) - score(label, b) for a, b in pairs]))
        found[model] = {name: (some[0], np.mean(np.abs(some) >= abs(some[0]) - 1e-12)) for name, some in differences.items()}
    ps = [one['UA'][1] for one in found.values()]
    for model, one in found.items():
        got = cells(text, model, '| searched minus |')
        assert got[:2] == ['0 1', '6']
        for name, place in (('UA', 2), ('WA', 6), ('macro F1', 9)):
            difference, p = one[name]
            assert (got[place], got[place + 2]) == (f'{100 * difference:+.1f}', f'{p:.3f}')
            low, high = (float(x) for x in got[place + 1].split(' to '))
            assert low < 100 * difference < high
        p = one['UA'][1]  # Holm: of each p that is not larger, as often as there are others that are not smaller
        assert got[5] == f'{max(min(1, q * sum(other >= q for other in ps)) for q in ps if q <= p):.3f}'
    assert found['cnn']['UA'][0] > .1 and found['cnn']['UA'][1] < .05 < found['cnn']['WA'][1]  # else WA might stand for UA
    assert len({*ps}) == 3
    assert cells(text, 'chance') == ['', '', '', '50.0', '', f'{100 * np.mean(label == "angry"):.1f}', *[''] * 6]
    assert 'those of WA and macro F1 are not\ncorrected' in text


def test_the_smallest_p_is_that_of_the_speakers_compared(desk):
    asked = runs('searched', 'random', 'cnn', seeds=[0])
    text = make(asked, missing=[('cnn', 2, 0), ('cnn', 3, 0)])
    assert cells(text, 'cnn', '| searched minus |')[:2] == ['partial: seed 0 fold 1', '2']
    assert cells(text, 'random', '| searched minus |')[:2] == ['0', '6']
    assert 'The smallest p there can be: 0.5 with 2 speakers, 0.031 with 6 speakers.' in text


def test_seeds_left_out_are_counted(desk):
    asked = runs('searched', 'cnn', seeds=[0, 1, 2]) + runs('lstm', seeds=[0])
    text = make(asked, missing=[('cnn', 2, 1), ('searched', 3, 2), ('searched', 1, 2)])
    assert cells(text, 'searched')[0] == '0 1 (1 left out)' and cells(text, 'cnn')[0] == '0 2 (1 left out)'
    assert cells(text, 'cnn', '| searched minus |')[0] == '0 (2 left out)'
    assert cells(text, 'lstm', '| searched minus |')[0] == '0' == cells(text, 'lstm')[0]  # asked for with one seed alone
    assert {row['model']: row['seeds_left_out'] for row in rows('table.csv')} == {'searched': '1', 'cnn': '1', 'lstm': '0'}


def test_a_partial_row_has_no_deviation_over_seeds(desk):
    asked = runs('searched', 'cnn_gru')
    text = make(asked, missing=[('cnn_gru', 2, 1), ('cnn_gru', 3, 0)])
    found = {row['model']: row for row in rows('table.csv')}
    for key, place in (('ua', 3), ('wa', 5), ('macro_f1', 6)):
        assert float(found['searched'][f'{key}_sd']) > 0 and found['cnn_gru'][f'{key}_sd'] == ''
        assert '±' in cells(text, 'searched')[place]
        assert cells(text, 'cnn_gru')[place] == f'{100 * float(found["cnn_gru"][key]):.1f}'
    assert '±' in cells(text, 'cnn_gru')[7]  # over folds there is one


@pytest.mark.parametrize('models, seeds, said', [(['svm'], [0, 1], True), (['svm'], [0], False), (['cnn'], [0, 1], False)])
def test_of_the_svm_it_is_said_that_no_seed_changes_it(models, seeds, said, desk):
    text = make(runs('searched', *models, seeds=seeds))
    assert ('deviation over seeds is 0 by construction' in text) == said
    assert ('± 0.0' in cells(text, 'svm')[3]) == said if 'svm' in models else True


@pytest.mark.parametrize('more, said', [({'train_on_dev': True}, 'none has a UA on dev'),
                                        ({'normalise': 'speaker'}, 'test speakers too**')])
def test_how_the_speakers_were_used_stands_before_any_score(more, said, desk):
    text = make(runs('cnn', seeds=[0]), **more)
    assert 0 < text.find(said) < text.find('| model |')
    assert said not in make(runs('cnn', seeds=[0]), normalise='corpus', train_on_dev=False)


def test_clean_folds_that_were_not_asked_for_are_named(desk):
    text = make(runs('cnn', seeds=[0], folds=[1]), clean=[2, 3])
    assert '## Only folds 2, 3, whose test speakers took part in no choice (those of fold 1 did take part' in text
    assert 'Nothing was asked for in these folds.' in text
    assert '## Only fold 2, whose' in make(runs('cnn', seeds=[0], folds=[1, 2]), clean=[2, 3])


def test_a_run_that_does_not_say_how_long_it_took(desk):
    text = make(runs('searched', 'cnn', seeds=[0]), unsaid=['seconds'])
    assert cells(text, 'cnn')[-1] == '' and {row['minutes'] for row in rows('runs.csv')} == {''}


def test_figures_are_of_the_models_that_were_asked_for(desk, monkeypatch):
    monkeypatch.setattr(cv_figures.Figure, 'savefig', lambda self, path, **_: path.touch())
    folder = desk / 'runs/cv/x/figures'

    def there():
        return sorted(path.name for path in folder.iterdir())
    make(runs('searched', 'cnn', seeds=[0]), figures=True)
    (folder / 'mine.png').touch()
    assert there() == ['confusion-cnn.png', 'confusion-searched.png', 'folds.png', 'mine.png', 'parameters.png']
    make(runs('cnn', seeds=[0]), figures=True)
    assert there() == ['confusion-cnn.png', 'folds.png', 'mine.png', 'parameters.png']
