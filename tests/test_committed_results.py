"""The committed predictions of docs/results give the committed tables, and the scores first published."""
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_table import cells

sys.path.insert(0, str(ROOT / 'scripts'))
import contrast  # noqa: E402
import table as tables  # noqa: E402

# UA, WA and macro F1 of searched minus each model, as first published.
PUBLISHED = {
    'emodb-paper': {'random': '+1.4 +0.5 +0.8', 'cnn': '+13.0 +10.3 +12.7', 'cnn_lstm': '+11.3 +11.0 +11.9',
                    'cnn_lstm_att': '+10.0 +9.9 +10.3', 'cnn_gru': '-0.9 -0.7 -1.1', 'cnn_matched': '+9.3 +6.9 +8.9',
                    'cnn_lstm_matched': '+15.4 +13.6 +15.9', 'cnn_lstm_att_matched': '+13.8 +13.1 +14.5',
                    'cnn_gru_matched': '+0.6 +1.1 +0.9', 'svm': '+7.6 +6.9 +7.1'},
    'ravdess-paper': {'random': '-1.3 -0.7 -1.0', 'cnn': '+9.6 +11.2 +10.8', 'cnn_lstm': '+9.8 +10.6 +10.6',
                      'cnn_lstm_att': '+8.9 +9.0 +9.5', 'cnn_gru': '-3.9 -3.0 -3.5', 'cnn_matched': '+9.7 +11.9 +11.7',
                      'cnn_lstm_matched': '+9.8 +10.6 +10.7', 'cnn_lstm_att_matched': '+8.3 +8.5 +8.7',
                      'cnn_gru_matched': '-1.2 -0.9 -1.0', 'svm': '+12.4 +13.8 +14.3'}}


RESULTS = ROOT / 'docs' / 'results'


@pytest.mark.parametrize('corpus', sorted(path.parent.name for path in RESULTS.glob('*/table.csv')))
def test_committed_predictions_give_the_committed_tables(corpus, tmp_path):
    """Scores to the last digit; intervals are drawn anew."""
    kept = RESULTS / corpus
    assert all((RESULTS / name / 'table.csv').exists() for name in PUBLISHED)
    tables.make(kept, tmp_path, figures=False)
    now, then = pd.read_csv(tmp_path / 'table.csv'), pd.read_csv(kept / 'table.csv')
    drawn = [name for name in then if name.endswith(('_low', '_high'))]
    pd.testing.assert_frame_equal(now.drop(columns=drawn), then.drop(columns=drawn), rtol=1e-12, atol=0)
    np.testing.assert_allclose(now[drawn], then[drawn], atol=.005)
    for text in ((tmp_path / 'table.md').read_text(), (kept / 'table.md').read_text()):
        for model, said in PUBLISHED.get(corpus, {}).items():
            rest = cells(text, model, 'searched minus | WA')
            assert [cells(text, model, 'searched minus | seeds')[2], rest[0], rest[3]] == said.split()


PRIMARY = 'transferred', 'random_transferred,cnn_gru_matched'
RIVALS = 'random_transferred,transferred,cnn_gru_matched'


@pytest.mark.parametrize('name, setting, model, minus, seeds', [
    ('speaker', '-speaker', *PRIMARY, '1-4'), ('speaker-pitch-1', '-speaker-pitch-1', *PRIMARY, '1-4'),
    ('corpus', '', *PRIMARY, '1-3'), ('corpus-pitch-1', '-pitch-1', *PRIMARY, '1-3'),
    ('searched', '-speaker', 'searched', f'random_search,{RIVALS},random,cnn_gru,svm_compare', '1-3'),
    ('random-search', '-speaker', 'random_search', f'{RIVALS},random,cnn_gru,svm_compare', '1-3'),
    ('searched-pitch-1', '-speaker-pitch-1', 'searched', 'random_search,cnn_gru_matched', '1,2'),
    ('corpus-searched', '', 'searched', f'random_search,{RIVALS},cnn_gru', '1-3'),
    ('cnn-gru', '-speaker', 'cnn_gru', 'transferred,random_transferred,cnn_gru_matched,svm_compare', '1-3')])
def test_committed_predictions_give_the_committed_contrasts(name, setting, model, minus, seeds, tmp_path):
    """Differences and p to the last digit shown; ends of intervals to 0.2 points."""
    folders = [str(RESULTS / f'{corpus}{setting}') for corpus in ('emodb', 'ravdess')]
    contrast.main([*folders, '--model', model, '--minus', minus, '--seeds', seeds, '-o', str(tmp_path / 'rows.md')])
    paths = tmp_path / 'rows.md', RESULTS / f'{name}-contrasts.md'
    found, kept = (pd.read_csv(path, sep='|', dtype=str) for path in paths)
    interval = next(name for name in kept if 'interval' in name)
    pd.testing.assert_frame_equal(found.drop(columns=interval), kept.drop(columns=interval))
    ends = [[[float(end) for end in cell.split(' to ')] for cell in rows[interval][1:]] for rows in (found, kept)]
    np.testing.assert_allclose(*ends, atol=.2)


@pytest.mark.parametrize('corpus, model, score', [
    ('emodb-paper', 'searched', (0.7059948183378957, 0.705607476635514, 0.6934024601755788)),
    ('emodb-paper', 'cnn_gru', (0.7145394401683761, 0.7130841121495327, 0.7044900631479531)),
    ('ravdess-paper', 'searched', (0.5787760416666667, 0.5895833333333333, 0.581157773355335)),
    ('ravdess-paper', 'cnn_gru', (0.6178385416666667, 0.6194444444444445, 0.6159568831317133)),
])
def test_scores_are_those_first_published(corpus, model, score):
    row = pd.read_csv(RESULTS / corpus / 'table.csv').set_index('model').loc[model]
    assert tuple(row[['ua', 'wa', 'macro_f1']]) == score
