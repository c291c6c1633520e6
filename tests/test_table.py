"""scripts/table.py: the numbers and words of tables, against scikit-learn, all swaps, and the committed tables."""
import itertools
import json
import random
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from sklearn.metrics import accuracy_score, f1_score, recall_score

from config import UserError

sys.path.insert(0, str(ROOT / 'scripts'))
import figures  # noqa: E402
import significance  # noqa: E402
import table as tables  # noqa: E402

CELL = "[[('skip_connect', 0), ('{}', 1)]]"
GENOTYPE = (f'Genotype(normal={CELL}, normal_concat=range(2, 3), reduce={CELL}, reduce_concat=range(2, 3), rnn={CELL}, '
            'rnn_concat=range(2, 3))')
SPEAKERS = [['ann', 'bob'], ['cem', 'dot'], ['eve', 'fay']]  # of each fold
SCORES = {'UA': lambda y, p: recall_score(y, p, labels=np.unique(y), average='macro'), 'WA': accuracy_score,
          'macro F1': lambda y, p: f1_score(y, p, average='macro', zero_division=0)}
X = Path('x')


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    X.mkdir()


def asked(*models, seeds=(0, 1), folds=(1, 2, 3)):
    return list(itertools.product(models, folds, seeds))


def speech(fold):
    """[(path, speaker, label)]: five angry and two or three sad utterances a speaker; nobody is calm, a class as well."""
    return [(f'{speaker}-{label}-{i}', speaker, label) for speaker in SPEAKERS[fold - 1]
            for label, n in (('angry', 5), ('sad', 2 + (speaker > 'cem'))) for i in range(n)]


def predict(model, label, rng):
    """cnn knows one class; random is a little worse than searched; svm does not depend on its seed."""
    if model == 'cnn':
        return 'angry'
    rng = random.Random(model) if model == 'svm' else rng
    return label if rng.random() < {'searched': .8, 'random': .75}.get(model, .7) else rng.choice(['angry', 'sad', 'calm'])


def make(runs, missing=(), failed=(), clean=(), draw=False, rename=str, **more):
    """table.md. missing: runs that are not there; failed: {run: reason}; more: values of columns of runs.csv."""
    lines, predictions = [], []
    for model, fold, seed in runs:
        run, reasons = (model, fold, seed), dict(failed)
        state = 'failed' if run in reasons else 'missing' if run in missing else 'finished'
        row = {'model': model, 'fold': fold, 'seed': seed, 'state': state, 'failed': reasons.get(run)}
        if state == 'finished':
            rng = random.Random(f'{model} {fold} {seed}')
            op = ['skip_connect', 'max_pool_3x3', 'gru_1'][fold - 1]
            row |= {'n_params': 1000 + 10 * seed + fold, 'minutes': 2., 'search_minutes': 1.5 if model == 'searched' else None,
                    'device': 'none', 'test_speakers': ' '.join(map(rename, SPEAKERS[fold - 1])),
                    'search_heard_test_speakers': None,
                    'genotype': GENOTYPE.format('max_pool_3x3', op.replace('gru_1', 'skip_connect'), 'gru_1')
                    if model in ('searched', 'random', 'transferred') else None, **more}
            predictions += [(model, seed, fold, path, rename(who), label, predict(model, label, rng))
                            for path, who, label in speech(fold)]
        lines.append(row)
    pd.DataFrame(lines).to_csv(X / 'runs.csv', index=False)
    pd.DataFrame(predictions, columns=['model', 'seed', 'fold', 'path', 'speaker', 'label', 'predicted']).to_csv(
        X / 'predictions.csv', index=False)
    plan = {'test_speakers': SPEAKERS, 'clean_folds': [*clean], 'command': 'python scripts/cross_validate.py --name x'}
    (X / 'plan.json').write_text(json.dumps(plan))
    tables.make(X, figures=draw)
    return (X / 'table.md').read_text()


def cells(text, first, begins):
    """Cells behind the first one, of the row that begins with it, in the first table whose head begins so."""
    head = text[text.index(f'| {begins} |'):].split('\n\n')[0].splitlines()
    return next([cell.strip() for cell in line.split('|')[2:-1]] for line in head if line.startswith(f'| {first} |'))


def of(predictions, model, seed):
    """Speakers, labels and predicted classes of a model's seed."""
    part = predictions[(predictions['model'] == model) & (predictions['seed'] == seed)]
    return part[['speaker', 'label', 'predicted']].to_numpy(str).T


def test_scores_are_those_of_scikit_learn():
    text = make(asked('searched', 'cnn'), clean=[3])
    predictions, found = pd.read_csv(X / 'predictions.csv'), pd.read_csv(X / 'table.csv').set_index('model')
    assert [*found.index] == ['searched', 'cnn']
    for model, row in found.iterrows():
        for name, (title, score) in zip(significance.MEASURES, SCORES.items()):
            by_seed = [score(*of(predictions, model, seed)[1:]) for seed in (0, 1)]
            by_fold = [np.mean([score(*of(predictions[predictions['fold'] == fold], model, seed)[1:]) for seed in (0, 1)])
                       for fold in (1, 2, 3)]
            expected = np.mean(by_seed), np.std(by_seed, ddof=1), np.mean(by_fold), np.std(by_fold, ddof=1)
            assert [*row[[name, f'{name}_sd', f'{name}_folds', f'{name}_folds_sd']]] == pytest.approx(expected, abs=1e-12)
            assert row[f'{name}_low'] < row[name] < row[f'{name}_high'] or model == 'cnn'
            place = {'UA': ('seeds', 3), 'WA': ('WA', 0), 'macro F1': ('WA', 1)}[title]
            said = cells(text, model, f'model | {place[0]}')[place[1]]
            assert said == f'{100 * expected[0]:.1f} ± {100 * expected[1]:.1f}'
        assert (row['seeds'], row['n_folds'], row['n_test'], row['n_speakers']) == ('0 1', 3, 45, 6)
        assert row['params'] == 1007 and row['minutes'] == 2
    assert found.loc['searched', 'search_minutes'] == 1.5 and np.isnan(found.loc['cnn', 'search_minutes'])
    label = of(predictions, 'cnn', 0)[1]
    assert cells(text, 'chance', 'model | seeds')[3] == '50.0'
    assert cells(text, 'chance', 'model | WA')[0] == f'{100 * np.mean(label == "angry"):.1f}'
    only = text[text.index('## Fold 3 only: test speakers that influenced no choice of the recipe'):]
    alone = [recall_score(*of(predictions[predictions['fold'] == 3], 'searched', seed)[1:], average='macro', labels=[
        'angry', 'sad']) for seed in (0, 1)]
    assert cells(only, 'searched', 'model | seeds')[1:4] == ['16', '2', f'{100 * np.mean(alone):.1f} ± '
                                                             f'{100 * np.std(alone, ddof=1):.1f}']
    assert text.index('## All 3 folds') < len(text) - len(only) < text.index('## UA of each fold')
    assert text.count('| searched minus | seeds |') == 2 and 'python scripts/cross_validate.py --name x' in text
    assert 'WARNING' not in text


def test_differences_and_p_are_those_of_all_swaps():
    """Of all 64 ways to swap six speakers, each scored by scikit-learn; half of them are the other half mirrored."""
    text = make(asked('searched', 'random', 'cnn', 'lstm'))
    predictions, found = pd.read_csv(X / 'predictions.csv'), {}
    speaker, label, _ = of(predictions, 'cnn', 0)
    names = sorted(set(speaker))
    for model in ('random', 'cnn', 'lstm'):
        differences = {name: [] for name in SCORES}
        for swap in itertools.product([False], *[[False, True]] * 5):
            swapped = np.isin(speaker, [name for name, turned in zip(names, swap) if turned])
            pairs = [(of(predictions, 'searched', seed)[2], of(predictions, model, seed)[2]) for seed in (0, 1)]
            pairs = [(np.where(swapped, b, a), np.where(swapped, a, b)) for a, b in pairs]
            for name, score in SCORES.items():
                differences[name].append(np.mean([score(label, a) - score(label, b) for a, b in pairs]))
        found[model] = {name: (some[0], np.mean(np.abs(some) >= abs(some[0]) - 1e-12)) for name, some in differences.items()}
    ps = [one['UA'][1] for one in found.values()]
    for model, one in found.items():
        ua, rest = cells(text, model, 'searched minus | seeds'), cells(text, model, 'searched minus | WA')
        assert ua[:2] == ['0 1', '6']
        for name, got in (('UA', ua[2:5]), ('WA', rest[:3]), ('macro F1', rest[3:])):
            difference, p = one[name]
            assert (got[0], got[2]) == (f'{100 * difference:+.1f}', f'{p:.3f}')
            low, high = (float(x) for x in got[1].split(' to '))
            assert low < 100 * difference < high
        p = one['UA'][1]  # Holm: of each p that is not larger, as often as there are others that are not smaller
        assert ua[5] == f'{max(min(1, q * sum(other >= q for other in ps)) for q in ps if q <= p):.3f}'
    assert found['cnn']['UA'][0] > .1 and found['cnn']['UA'][1] < .05 < found['cnn']['WA'][1]  # else WA might stand for UA
    assert len({*ps}) == 3
    difference, p = found['random']['UA']
    said = f'searched was not shown to be better or worse than random: {100 * difference:+.1f} UA ('
    assert text.startswith(said) and f', p = {p:.3f}.\n' in text
    assert 'The smallest possible p: 0.031 with 6 speakers.' in text


def test_seeds_with_missing_folds():
    runs = asked('searched', 'cnn', seeds=[0, 1, 2]) + asked('lstm', seeds=[0])
    text = make(runs, missing=[('cnn', 2, 1), ('searched', 3, 2), ('searched', 1, 2)])
    assert cells(text, 'searched', 'model | seeds')[0] == '0 1 (1 left out)'
    assert cells(text, 'cnn', 'model | seeds')[0] == '0 2 (1 left out)'
    assert cells(text, 'cnn', 'searched minus | seeds')[0] == '0 (2 left out)'
    assert cells(text, 'lstm', 'model | seeds')[0] == '0' == cells(text, 'lstm', 'searched minus | seeds')[0]
    assert [*pd.read_csv(X / 'table.csv')['seeds_left_out']] == [1, 1, 0]


def test_a_partial_row_has_no_deviation_over_seeds():
    text = make(asked('searched', 'cnn_gru'), missing=[('cnn_gru', 2, 1), ('cnn_gru', 3, 0)])
    found = pd.read_csv(X / 'table.csv').set_index('model')
    assert cells(text, 'cnn_gru', 'model | seeds')[0] == 'partial: seed 0 folds 1 2; seed 1 folds 1 3'
    assert found.loc['searched', 'ua_sd'] > 0 and found.loc['cnn_gru', ['ua_sd', 'wa_sd', 'macro_f1_sd']].isna().all()
    assert '±' in cells(text, 'searched', 'model | seeds')[3]
    assert cells(text, 'cnn_gru', 'model | seeds')[3] == f'{100 * found.loc["cnn_gru", "ua"]:.1f}'
    assert '±' in cells(text, 'cnn_gru', 'model | seeds')[5]  # over folds there is one
    assert 'The smallest possible p: 0.031 with 6 speakers.' in text


def test_the_smallest_p_is_that_of_the_speakers_compared():
    text = make(asked('searched', 'random', 'cnn', seeds=[0]), missing=[('cnn', 2, 0), ('cnn', 3, 0)])
    assert cells(text, 'cnn', 'searched minus | seeds')[:2] == ['partial: seed 0 fold 1', '2']
    assert 'The smallest possible p: 0.5 with 2 speakers, 0.031 with 6 speakers.' in text


def test_speakers_and_labels_are_names_even_if_they_look_like_numbers_or_nothing():
    text = make(asked('cnn', seeds=[0]), rename=lambda name: {'ann': '01', 'bob': 'NA', 'cem': '1'}.get(name, name))
    assert cells(text, 'cnn', 'model | seeds')[2] == '6' and '| fold 1: 01 NA |' in text


def test_the_spread_of_the_runs():
    """UA of every run minus the mean of its fold over the models that have all folds; `cnn_gru` has one fold."""
    make(asked('searched', 'random') + asked('cnn_gru', folds=(2,)))
    results, parts, _ = tables.analyse(X)
    axes, = figures.of_spread(parts[0][1], results).axes
    predictions = pd.read_csv(X / 'predictions.csv')
    ua = {key: recall_score(part['label'], part['predicted'], average='macro', labels=['angry', 'sad'])
          for key, part in predictions.groupby(['model', 'seed', 'fold'])}
    level = {fold: np.mean([ua[model, seed, fold] for model in ('searched', 'random') for seed in (0, 1)])
             for fold in (1, 2, 3)}
    labels = [label.get_text().removesuffix(' (partial)') for label in axes.get_yticklabels()]
    drawn = dict(zip(labels, [line.get_xdata() for line in axes.lines[::2]], strict=True))
    of_runs = {model: [100 * (ua[key] - level[key[2]]) for key in ua if key[0] == model] for model in drawn}
    assert {*drawn} == {'searched', 'random', 'cnn_gru'} and max(map(abs, of_runs['searched'])) > 1
    for model, points in of_runs.items():
        assert sorted(drawn[model]) == pytest.approx(sorted(points))
    band, = axes.patches
    mean, sd = np.mean(of_runs['random']), np.std(of_runs['random'], ddof=1)
    assert (band.get_x(), band.get_width()) == pytest.approx((mean - sd, 2 * sd))
    assert [np.mean(points) for points in drawn.values()] == sorted(map(np.mean, drawn.values()))


@pytest.mark.parametrize('device, unit, factor', [
    ('cpu, 3 threads', 'core-minutes (at most)', 3), ('cpu (AVX2), 3 threads', 'core-minutes (at most)', 3),
    ('cpu', 'core-minutes (at most)', 1), ('H100', 'minutes', 1)])
def test_ua_against_parameters_and_minutes(device, unit, factor):
    make(asked('searched', 'cnn', 'transferred'), device=device)
    results, parts, _ = tables.analyse(X)
    sizes, costs = figures.against_costs(parts[0][1], results).axes
    found = {}
    for axes in (sizes, costs):
        points = [(box.get_label(), box[0].get_xdata()[0], box[0].get_ydata()[0]) for box in axes.containers]
        for model, x, y in points:
            found.setdefault(model, []).append((x, y))
    rows = pd.read_csv(X / 'table.csv').set_index('model')
    assert {*found} == {*rows.index}
    for model, ((params, ua), (minutes, same)) in found.items():
        assert ua == same == pytest.approx(100 * rows.loc[model, 'ua'])
        assert params == pytest.approx(rows.loc[model, 'params'], rel=.11)
        assert minutes == pytest.approx(factor * (3.5 if model == 'searched' else 2), rel=.06)  # side by side
    assert costs.get_xlabel() == f'{unit} of a run, without the search on another corpus'
    next(row for row in parts[0][1] if row['model'] == 'transferred')['search_minutes'] = 3.
    assert figures.against_costs(parts[0][1], results).axes[1].get_xlabel() == f'{unit} of a run'


def test_ua_against_latency_is_drawn_where_all_of_it_was_measured(capsys):
    make(asked('searched', 'cnn', 'svm'))
    pairs = list(itertools.product((0, 1), (1, 2, 3)))
    ms = {('searched', *pair): 2. + i for i, pair in enumerate(pairs)} | {('cnn', *pair): 1. for pair in pairs}
    lines = [{**dict(zip(('model', 'seed', 'fold'), key)), 'n_params': 1000 + 10 * key[1] + key[2], 'latency_ms': value}
             for key, value in ms.items()]
    pd.DataFrame(lines).to_csv(X / 'latency.csv', index=False)
    results, parts, _ = tables.analyse(X)
    assert results.latency == ms
    axes = figures.against_costs(parts[0][1], results).axes[2]
    found = {box.get_label(): box[0].get_xdata()[0] for box in axes.containers}
    assert found == {'cnn': 1., 'searched': pytest.approx(4.5)} and 'one CPU thread' in axes.get_xlabel()
    for wrong in (lines[:-1], [{**lines[0], 'n_params': 7}, *lines[1:]]):
        pd.DataFrame(wrong).to_csv(X / 'latency.csv', index=False)
        results, parts, _ = tables.analyse(X)
        assert len(figures.against_costs(parts[0][1], results).axes) == 2
        assert 'latency.csv lacks 1 of 12 runs, such as' in capsys.readouterr().err
    pd.DataFrame([*lines, lines[0]]).to_csv(X / 'latency.csv', index=False)
    with pytest.raises(UserError, match='x/latency.csv is damaged .a run is there twice'):
        tables.analyse(X)
    (X / 'latency.csv').write_text('model,seed,fold\nsearched,0,1\n')
    with pytest.raises(UserError, match='x/latency.csv is damaged .*n_params is missing.*: scripts/latency.py makes it anew'):
        tables.analyse(X)


def test_a_partial_row_counts_the_utterances_of_all_its_folds():
    make([('cnn', 1, 0), ('cnn', 2, 1), ('cnn', 3, 1), ('cnn', 3, 0)])
    row = pd.read_csv(X / 'table.csv').iloc[0]
    assert str(row['seeds']).startswith('partial') and row['n_test'] == sum(len(speech(fold)) for fold in (1, 2, 3))


def test_selection_on_the_command_line(capsys):
    make(asked('searched', 'cnn'))
    tables.main(['x', '--models', 'cnn', '--seeds', '1', '--only_folds', '2-3', '--clean_folds', '2', '--to', 'y'])
    assert [*pd.read_csv('y/table.csv')[['model', 'seeds', 'n_folds']].iloc[0]] == ['cnn', 1, 2]
    assert '## Fold 2 only' in Path('y/table.md').read_text() and 'y/table.md: cnn has' in capsys.readouterr().out
    for words, said in ((['x', '--models', 'svm', '--to', 'y'], '--models svm: there are only cnn'),
                        (['z'], 'z/runs.csv does not exist')):
        with pytest.raises(UserError, match=said):
            tables.main(words)


def mine(rows, name='mine.csv', **more):
    """A file of another system's predictions."""
    pd.DataFrame(rows, columns=['path', 'predicted']).assign(**more).to_csv(name, index=False)
    return [name]


def test_another_system_is_compared_as_a_model_is():
    """The predictions of `cnn` and of `lstm`'s seeds, given as files, make the rows that these models have."""
    make(asked('searched', 'cnn', 'lstm'))
    predictions = pd.read_csv(X / 'predictions.csv')
    rows = {model: part for model, part in predictions.groupby('model')}
    files = mine(rows['cnn'][['path', 'predicted']].drop_duplicates().to_numpy(), 'one.csv')
    rows['lstm'][['path', 'predicted', 'seed']].to_csv('two.csv', index=False)
    tables.make(X, Path('y'), figures=True, add=[*files, 'two.csv'], model=['searched', 'cnn', 'lstm'])
    text, found = Path('y/table.md').read_text(), pd.read_csv('y/table.csv').set_index('model')
    scores = [name for name in found if name.startswith(significance.MEASURES)]
    for own, other in (('cnn', 'one'), ('lstm', 'two')):
        pd.testing.assert_series_equal(found.loc[own, scores], found.loc[other, scores], check_names=False)
        assert cells(text, own, 'searched minus')[:5] == cells(text, other, 'searched minus')[:5]
        assert cells(text, 'searched', f'{other} minus')[0] == '0 1'
        assert f'**{other} is another system**' in text
    assert np.isnan(found.loc['one', 'params']) and found.loc['one', 'seeds'] == '0 1'
    assert not (X / 'figures').exists() and Path('y/figures/parameters.png').exists()


def test_times_of_another_system_are_numbers():
    make(asked('cnn', seeds=[0]))
    predictions = pd.read_csv(X / 'predictions.csv').assign(end='')
    predictions['start'] = [f'{i}.0' for i in range(len(predictions))]
    predictions.to_csv(X / 'predictions.csv', index=False)
    rows = predictions[['path', 'start', 'end', 'predicted']]
    rows.assign(start=range(len(rows))).to_csv('mine.csv', index=False)
    tables.make(X, Path('y'), figures=False, add=['mine.csv'])
    assert [*pd.read_csv('y/table.csv')['ua'].round(9)] == [pd.read_csv('y/table.csv')['ua'][0].round(9)] * 2
    rows.assign(start=[7.5, *range(1, len(rows))]).to_csv('mine.csv', index=False)
    with pytest.raises(UserError, match="row 2: 'ann-angry-0', '7.5', '' is no test utterance .* has 'ann-angry-0', '0.0', ''"):
        tables.make(X, Path('y'), figures=False, add=['mine.csv'])


@pytest.mark.parametrize('wrong, said', [
    (lambda rows: rows[1:], 'mine.csv: seed 0 has 13 of the 14 test utterances of fold 1'),
    (lambda rows: [*rows, rows[0]], "'ann-angry-0' is there twice"),
    (lambda rows: [*rows, ('zoe.wav', 'sad')], "row 16: 'zoe.wav' is no test utterance of the experiment; its predictions.csv "
                                               "has 'ann-angry-0', for example"),
    (lambda rows: [(rows[0][0], 'Sad'), *rows[1:]], "row 2: 'Sad' is none of the classes angry, calm, sad"),
    (lambda rows: [], 'mine.csv has no rows: it needs a row for each test utterance')])
def test_predictions_of_another_system_that_do_not_fit_are_refused(wrong, said):
    make(asked('searched', 'svm'))
    rows = [(path, 'sad') for path, _, _ in speech(1)]
    with pytest.raises(UserError, match=said):
        tables.make(X, Path('y'), figures=False, add=mine(wrong(rows)))
    assert not Path('y').exists()


def test_the_name_of_another_system_must_be_new():
    make(asked('searched', 'random'))
    rows = [(path, 'sad') for path, _, _ in speech(1)]
    with pytest.raises(UserError, match='--add random.csv: a model is called random already; rename the file'):
        tables.read(X, mine(rows, 'random.csv'))
    with pytest.raises(UserError, match='column predicted is missing.*it needs a row for each test utterance'):
        pd.DataFrame({'path': ['a']}).to_csv('b.csv', index=False)
        tables.read(X, ['b.csv'])
    with pytest.raises(UserError, match='seed must be a whole number'):
        tables.read(X, mine(rows, seed='x'))
    for flag, value in (('add', 'b.csv'), ('models', 'cnn'), ('seeds', '0'), ('only_folds', '1')):
        with pytest.raises(UserError, match=f'--{flag} needs --to DIR: the folder of the experiment keeps its own tables'):
            tables.main([str(X), f'--{flag}', value])


@pytest.mark.parametrize('argv, said', [
    (['--models', 'searched,cnnn'], '--models cnnn: there are only cnn, searched'), (['--only_folds', '1,9'], '--only_folds 9'),
    (['--seeds', '0,7'], '--seeds 7: there are only runs of seeds 0')])
def test_a_selection_that_is_not_there_is_refused(argv, said):
    make(asked('searched', 'cnn'))
    tables.main([str(X), '--models', 'searched, cnn', '--to', 'y'])
    assert [*pd.read_csv('y/table.csv')['model']] == ['searched', 'cnn']
    with pytest.raises(UserError, match=said):
        tables.main([str(X), *argv, '--to', 'y'])


def test_lost_predictions_are_refused():
    make(asked('searched', 'cnn'))
    runs = pd.read_csv(X / 'runs.csv')
    runs.assign(n_test=runs['fold'].map({1: 14, 2: 15, 3: 16})).to_csv(X / 'runs.csv', index=False)
    tables.read(X)
    lines = (X / 'predictions.csv').read_text().splitlines()
    (X / 'predictions.csv').write_text('\n'.join(lines[:-2]))
    with pytest.raises(UserError, match='predictions.csv has 14 predictions of the run cnn-f3-s1, which tested 16'):
        tables.read(X)


@pytest.mark.parametrize('name', ['anna', 'NA', 'None', 'null'])
def test_a_speaker_may_have_any_name(name):
    assert f'the search used test speakers in searched-f1-s0 ({name})' in make(
        asked('searched', seeds=[0], folds=[1]), search_heard_test_speakers=name)


def test_minutes_of_a_search_that_are_not_known_are_not_none():
    make(asked('searched', 'cnn'), device='cpu, 1 thread')
    results, parts, _ = tables.analyse(X)
    assert figures.minutes(parts[0][1], results)[1] == {'searched': 3.5, 'cnn': 2.}
    make(asked('searched', 'cnn'), device='cpu, 1 thread', search_minutes=None)
    results, parts, _ = tables.analyse(X)
    found = figures.minutes(parts[0][1], results)[1]
    assert np.isnan(found['searched']) and found['cnn'] == 2.


@pytest.mark.parametrize('device, minutes', [
    ('cpu, 4 threads', ('core-minutes (at most) of a run', 2 + 4 * 1.5)), ('H100', ('minutes of a run', 3.5)),
    (None, ('core-minutes (at most) of a run', 3.5))])
def test_minutes_of_the_search_are_those_of_its_own_device(device, minutes):
    make(asked('searched', 'cnn'), device='cpu, 1 thread', search_device=device)
    results, parts, _ = tables.analyse(X)
    label, found = figures.minutes(parts[0][1], results)
    assert (label, found['searched']) == minutes and found['cnn'] == 2


@pytest.mark.parametrize('device, more, minutes', [
    ('cpu, 4 threads', {'core_minutes': 5.}, ('core-minutes (at most) of a run', 5. + 4 * 1.5)),
    ('cpu, 4 threads', {'search_core_minutes': 3.}, ('core-minutes (at most) of a run', 4 * 2. + 3)),
    ('cpu, 4 threads', {'core_minutes': 5., 'search_core_minutes': 3.}, ('core-minutes of a run', 8.)),
    ('H100', {'core_minutes': 5., 'search_core_minutes': 3.}, ('minutes of a run', 3.5))])
def test_time_of_the_cores_counts_where_runs_recorded_it(device, more, minutes):
    make(asked('searched'), device=device, **more)
    results, parts, _ = tables.analyse(X)
    label, found = figures.minutes(parts[0][1], results)
    assert (label, found['searched']) == minutes


def test_few_speakers_have_no_interval():
    text = make(asked('searched', 'cnn'), clean=[3])
    part = text[text.index('## Fold 3'):]
    assert 'too few speakers' in cells(part, 'cnn', 'model | seeds')
    assert 'too few speakers' not in text.partition('## Fold 3')[0]


def test_predictions_of_seeds_that_are_not_compared_are_refused():
    make(asked('searched', 'random'))
    rows = [(path, 'sad') for path, _, _ in speech(1)]
    with pytest.raises(UserError, match=r'--add mine.csv: no row has a seed that is compared \(0 1\)'):
        tables.read(X, mine(rows, seed='7'))
    with pytest.raises(UserError, match=r'no row has a seed that is compared \(0\)'):
        tables.read(X, mine(rows, seed='1'), seed=[0])
    assert 'mine' in tables.read(X, mine(rows, seed='1')).models()
