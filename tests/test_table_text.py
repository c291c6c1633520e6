"""scripts/table_text.py and figures.py: what table.md says, and what the figures show."""
import pandas as pd
import pytest
from test_table import X, asked, cells, make, tables
from test_table import folder as folder

import figures  # isort: skip  (scripts/, which test_table made importable)
import table_text  # isort: skip


@pytest.mark.parametrize('difference, p, n_speakers, said', [
    (.014, .379, 10, 'searched was not shown to be better or worse than random: +1.4 UA (-0.9 to 3.8), p = 0.379.'),
    (.014, .03, 10, 'searched is better than random: +1.4 UA (-0.9 to 3.8), p = 0.030.'),
    (-.014, .0002, 24, 'searched is worse than random: -1.4 UA (-0.9 to 3.8), p < 0.001.'),
    (.014, .5, 2, '2 speakers cannot show whether searched is better than random: +1.4 UA (-0.9 to 3.8), p = 0.500.'),
])
def test_the_verdict_is_one_sentence(difference, p, n_speakers, said):
    row = {'of': 'searched', 'model': 'random', 'ua': (difference, -.009, .038, p), 'n_speakers': n_speakers,
           'pairs': [(0, 1), (1, 1)], 'holm': p}
    assert table_text.verdict([], [{**row, 'model': 'cnn', 'ua': (1., 1., 1., 1.)}, row]) == said


def test_the_verdict_names_the_corrected_p_if_that_is_not_significant():
    row = {'of': 'searched', 'model': 'random', 'ua': (.02, .001, .04, .045), 'n_speakers': 24, 'pairs': [(0, 1), (1, 1)]}
    corrected = ' (0.273 if corrected for all rows of its table)'
    assert table_text.verdict([], [{**row, 'holm': .273}]) == (
        f'searched may be better than random: +2.0 UA (0.1 to 4.0), p = 0.045{corrected}.')
    assert table_text.verdict([], [{**row, 'holm': .049}]) == 'searched is better than random: +2.0 UA (0.1 to 4.0), p = 0.045.'


def test_the_verdict_of_one_seed_says_so():
    row = {'of': 'searched', 'model': 'random', 'ua': (.06, .03, .09, .0002), 'n_speakers': 24, 'pairs': [(1, 1), (1, 2)],
           'holm': .0004}
    assert table_text.verdict([], [row]) == 'searched is better than random: +6.0 UA (3.0 to 9.0), p < 0.001; one seed.'


@pytest.mark.parametrize('n, said', [(1, '1 search'), (3, '3 searches')])
def test_the_verdict_on_transferred_genotypes_counts_searches(n, said):
    row = {'of': 'transferred', 'model': 'random_transferred', 'ua': (.06, .03, .09, .0002), 'n_speakers': 24,
           'pairs': [(1, 1), (2, 1), (3, 1)], 'n_genotypes': n, 'holm': .0004}
    assert table_text.verdict([], [row]).endswith(f'p < 0.001; {said}, and interval and p cover speakers alone.')


def test_the_verdict_on_transferred_genotypes():
    """Chance is the random search of the other corpus; each model that was searched for has a table of differences."""
    text = make(asked('transferred', 'random_transferred', 'searched', 'random', 'random_search', 'cnn'))
    assert text.partition('\n')[0].startswith('transferred ') and ' random_transferred: ' in text.partition('\n')[0]
    genotypes = pd.read_csv(X / 'runs.csv').query("model == 'transferred'")['genotype']
    assert f'; {genotypes.nunique()} search' in text.partition('\n')[0] and genotypes.nunique() < len(genotypes)
    assert 'The first line compares transferred with random_transferred: ' in text
    assert cells(text, 'cnn', 'transferred minus')[0] == '0 1' and cells(text, 'transferred', 'searched minus')[0] == '0 1'
    text = make(asked('searched', 'random', 'random_search'))
    assert ' than random_search: ' in text.partition('\n')[0] or ' whether searched is better than random_search: ' in text


def test_the_verdict_without_a_random_network():
    text = make(asked('cnn', 'lstm'))
    ua = pd.read_csv(X / 'table.csv').set_index('model')['ua']
    assert text.startswith(f'lstm has the highest UA: {100 * ua["lstm"]:.1f} (') and ua['lstm'] > ua['cnn']
    assert make(asked('cnn'), missing=asked('cnn')).startswith('No run is finished yet.\n\n# x\n\n0 of 6 runs are finished; ')


def test_failed_and_missing_runs_are_named():
    text = make(asked('searched', 'cnn', seeds=[0]), missing=[('cnn', 1, 0)], failed={('cnn', 2, 0): 'ended by SIGKILL'})
    assert '4 of 6 runs are finished; 1 failed: cnn (seed 0 fold 2); 1 missing: cnn (seed 0 fold 1).' in text
    assert '- cnn-f2-s0: ended by SIGKILL' in text


@pytest.mark.parametrize('models, seeds, said', [(['svm'], [0, 1], True), (['svm'], [0], False), (['cnn'], [0, 1], False)])
def test_no_seed_changes_the_svm(models, seeds, said):
    text = make(asked('searched', *models, seeds=seeds))
    assert ('its deviation over seeds is 0' in text) == said
    assert ('± 0.0' in cells(text, 'svm', 'model | seeds')[3]) == said if 'svm' in models else True


@pytest.mark.parametrize('more, said', [
    ({'train_on_dev': True}, 'trained on the dev speakers too'), ({'normalise': 'speaker'}, 'test speakers too.**'),
    ({'normalise': 'speaker', 'embedding': 'speaker'}, 'and in what enters the classifier.**'),
    ({'search_heard_test_speakers': 'ann'}, 'the search used test speakers in cnn-f1-s0 (ann)'),
    ({'search_heard_test_speakers': 'not known'}, 'not known whether the search used test speakers in cnn-f1-s0'),
    ({'init_heard_test_speakers': 'ann'}, 'WARNING: the network of --init was trained on test speakers in cnn-f1-s0 (ann)'),
    ({'init_heard_test_speakers': 'not known'}, 'whether the network of --init was trained on test speakers in cnn-f1-s0'),
])
def test_what_a_reader_must_know_comes_before_any_score(more, said):
    text = make(asked('cnn', seeds=[0]), **more)
    assert 0 < text.find(said) < text.find('| model |')
    assert said not in make(asked('cnn', seeds=[0]), normalise='corpus', embedding='none', train_on_dev=False)


def test_who_was_heard_is_not_known_where_the_column_is_missing():
    make(asked('searched', 'cnn', seeds=[0]), missing=[('searched', 3, 0)])
    pd.read_csv(X / 'runs.csv').drop(columns='search_heard_test_speakers').to_csv(X / 'runs.csv', index=False)
    tables.make(X, figures=False)
    assert 'whether the search used test speakers in searched-f1-s0, searched-f2-s0.**' in (X / 'table.md').read_text()


def test_runs_that_were_tested_on_different_utterances_are_not_comparable():
    make(asked('searched', 'cnn', seeds=[0]))
    predictions = pd.read_csv(X / 'predictions.csv')
    last = predictions[(predictions['model'] == 'cnn') & (predictions['fold'] == 2)].index[-1]
    predictions.drop(last).to_csv(X / 'predictions.csv', index=False)
    tables.make(X, figures=False)
    assert 'WARNING: in fold 2 runs were tested on different utterances' in (X / 'table.md').read_text()
    assert 'WARNING: in fold 1' not in (X / 'table.md').read_text()


def test_clean_folds_that_were_not_run():
    assert '## Folds 2, 3 only' in (text := make(asked('cnn', seeds=[0], folds=[1]), clean=[2, 3]))
    assert 'These folds were not run.' in text and '## Fold 1 of 3' in text


def test_minutes_that_were_not_recorded():
    text = make(asked('searched', 'cnn', seeds=[0]), minutes=None)
    assert cells(text, 'cnn', 'model | seeds')[-1] == '' and 'Hardware: none.' in text


def test_operations_by_hand():
    """max_pool once in every normal cell beside skip_connect; in reduce cells skip_connect alone, in fold 2 max_pool once."""
    text = make(asked('searched', 'random', seeds=[0]))
    assert cells(text, 'max_pool_3x3', 'normal cell') == ['50.0', '50.0']
    assert cells(text, 'skip_connect', 'reduce cell') == ['83.3', '83.3']  # 5 of 6 edges
    assert cells(text, '*shared by two cells*', 'reduce cell') == ['66.7', '66.7']  # pairs share 1, 2 and 1 of 2 edges
    assert '- fold 2, seed 0: `Genotype(normal=' in text
    assert '| *shared by two cells* | one cell only |' in make(asked('searched', seeds=[0], folds=[1]))


def test_figures(monkeypatch):
    """Every model has a colour and marker of its own, and a point for every fold; nothing of other models stays."""
    drawn = []
    monkeypatch.setattr(figures.Figure, 'savefig', lambda self, f, **_: (f.write(b'png'), drawn.append(self)))
    (X / 'figures').mkdir()
    for name in ('mine', 'confusion-old'):
        (X / 'figures' / f'{name}.png').touch()
    text = make(asked('searched', 'cnn', 'cnn_matched', seeds=[0]), draw=True)
    expected = ['folds', 'spread', 'parameters', *(f'confusion-{model}' for model in ('searched', 'cnn', 'cnn_matched'))]
    assert sorted(path.stem for path in (X / 'figures').iterdir()) == sorted([*expected, 'mine'])
    assert all(f'![{name}](figures/{name}.png)' in text for name in expected)
    styles = [tuple(figures.style(model).values()) for model in figures.MODELS]
    assert len({*styles}) == len(styles)
    folds, _, parameters, *_ = drawn
    texts = [(text.get_text(), *text.get_position()) for text in folds.axes[0].texts]
    ua = pd.read_csv(X / 'table.csv')
    assert len([text for text, *_ in texts if text in '123']) == 9 and ('chance', 1, 50) in texts
    points = [bar[0].get_ydata()[0] for bar in parameters.axes[0].containers]
    assert sorted(points) == pytest.approx(sorted(100 * ua['ua'])) and parameters.legends and (
        parameters.axes[0].get_legend() is None)  # the legend is outside
