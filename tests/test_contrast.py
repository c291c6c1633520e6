"""scripts/contrast.py: differences over several experiments, against those of the tables and by hand."""
from pathlib import Path

import pandas as pd
import pytest
from test_table import asked, cells, make
from test_table import folder as folder

from config import UserError

import contrast  # isort: skip  (scripts/, which test_table made importable)
import significance as sig  # isort: skip
import table as tables  # isort: skip


def two(*models, seeds=(0, 1)):
    """Experiments a and b, of other speakers' mistakes."""
    texts = []
    for name in 'ab':
        texts.append(make(asked(*models, seeds=seeds if name == 'b' else (0, 1)), rename=lambda who: name + who))  # noqa: B023
        Path('x').rename(name)
        Path('x').mkdir()
    return texts


def test_one_corpus_as_in_its_table_and_the_mean_by_hand(capsys):
    texts = two('transferred', 'random_transferred', 'cnn')
    contrast.main(['a', 'b', '--model', 'transferred', '--minus', 'random_transferred,cnn', '--seeds', '0-1', '-o', 'c/d.md'])
    out = capsys.readouterr().out
    assert Path('c/d.md').read_text() == out
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in out.splitlines()[2:]]
    assert [row[:3] for row in rows] == [[minus, corpus, '0 1'] for minus in ('random_transferred', 'cnn')
                                         for corpus in ('a', 'b', 'mean')]
    for row in rows:
        if row[1] != 'mean':
            found = cells(texts['ab'.index(row[1])], row[0], 'transferred minus')
            assert row[3:7] == found[1:5] and row[7] == ''
    every = [contrast.contrast([tables.read(Path(name)) for name in 'ab'], 'transferred', 'cnn')][0]
    assert every[2]['ua'][0] == pytest.approx((every[0]['ua'][0] + every[1]['ua'][0]) / 2)
    for row in every:
        assert sum(row['by_seed']) / 2 == pytest.approx(row['ua'][0]) and row['by_seed'][0] != row['by_seed'][1]
    alone = [tables.read(Path(name), seed=[1]) for name in 'ab']
    assert contrast.contrast(alone, 'transferred', 'cnn')[2]['ua'][0] == pytest.approx(every[2]['by_seed'][1])
    p = [float(row[6].lstrip('< ')) for row in (rows[2], rows[5])]
    assert [float(row[7].lstrip('< ')) for row in (rows[2], rows[5])] == pytest.approx(sig.holm(p), abs=.002)


def test_what_cannot_be_compared_is_said_in_a_line():
    two('transferred', 'cnn', seeds=(0,))
    with pytest.raises(UserError, match=r'transferred and cnn have other seeds in each experiment \(a 0 1; b 0\); choose'):
        contrast.main(['a', 'b', '--model', 'transferred', '--minus', 'cnn'])
    for flags, said in ((['--model', 'svm', '--minus', 'cnn'], '--model svm: choose among transferred, cnn'),
                        (['--model', 'cnn', '--minus', 'cnn, transferred'], '--minus cnn: choose among transferred'),
                        (['--model', 'cnn', '--minus', 'transferred,'], '--minus has an empty name: choose among transferred'),
                        (['--model', 'cnn', '--minus', 'transferred', '-o', 'b'], '--out b is a folder: name a file')):
        with pytest.raises(UserError, match=f'^{said}$'):
            contrast.main(['a', *flags])
    with pytest.raises(UserError, match='^a and a have the same recordings, such as ann-angry-0 of .* aann: name one of them$'):
        contrast.main(['a', 'a', '--model', 'transferred', '--minus', 'cnn'])
    make(asked('transferred', 'cnn'), missing=[('cnn', 1, 0), ('cnn', 2, 1)])
    with pytest.raises(UserError, match='x: no seed of transferred and cnn has all folds; finish the experiment'):
        contrast.main(['x', '--model', 'transferred', '--minus', 'cnn'])
    contrast.main(['x', '--model', 'transferred', '--minus', 'cnn', '--only_folds', '3'])


def test_a_model_against_itself_in_an_earlier_experiment(capsys):
    """It is the difference of two models of one experiment, if one of them is renamed in a copy."""
    two('transferred', 'cnn')
    for name in 'ab':
        for part in ('runs', 'predictions'):
            text = Path(name, f'{part}.csv').read_text()
            lines = text.splitlines(keepends=True)
            Path(f'{name}-old').mkdir(exist_ok=True)
            Path(f'{name}-old', f'{part}.csv').write_text(lines[0] + ''.join(
                line.replace('cnn', 'transferred', 1) for line in lines[1:] if line.startswith('cnn')))
    contrast.main(['a', 'b', '--model', 'transferred', '--minus', 'cnn', '--seeds', '0,1'])
    expected = capsys.readouterr().out
    contrast.main(['a', 'b', '--model', 'transferred', '--earlier', 'a-old', 'b-old', '--seeds', '0,1'])
    assert capsys.readouterr().out == expected.replace('| cnn |', '| earlier transferred |')
    for flags, said in ((['--earlier', 'a-old', 'b-old'], '--earlier names 2 folders, but there are 1 experiments'),
                        (['--earlier', 'b-old'], 'a and b-old tested other utterances, speakers or labels'),
                        (['--earlier', 'c'], 'c/runs.csv does not exist.*'),
                        (['--earlier', 'a-old', '--model', 'cnn'], '--model cnn: a-old has transferred'),
                        (['--earlier', 'a-old', '--model', 'svm'], '--model svm: a has transferred, cnn')):
        with pytest.raises(UserError, match=f'^{said}$'):
            contrast.main(['a', '--model', 'transferred', *flags])
    make(asked('transferred'), missing=[('transferred', 2, seed) for seed in (0, 1)], rename=lambda who: 'a' + who)
    with pytest.raises(UserError, match='transferred has finished folds 1 3 of x, and of the earlier a-old 1 2 3: choose'):
        contrast.main(['x', '--model', 'transferred', '--earlier', 'a-old'])
    contrast.main(['x', '--model', 'transferred', '--earlier', 'a-old', '--only_folds', '1,3'])
    assert '| 0 1 | 4 |' in capsys.readouterr().out


def test_warnings_of_the_tables_stand_beside_a_contrast(capsys):
    two('transferred', 'random_transferred', 'cnn')
    runs = pd.read_csv('b/runs.csv').astype({'search_heard_test_speakers': object})
    runs.loc[runs['model'] == 'cnn', 'search_heard_test_speakers'] = 'ann'
    runs.to_csv('b/runs.csv', index=False)
    for minus, said in (('cnn', True), ('random_transferred', False)):
        contrast.main(['a', 'b', '--model', 'transferred', '--minus', minus])
        err = capsys.readouterr().err
        assert ('contrast.py: b: WARNING: the search used test speakers in cnn-f1-s0 (ann), ' in err) == said and '*' not in err


def test_parts_of_one_experiment_are_no_two_corpora():
    two('transferred', 'cnn')
    tables.make(Path('a'), Path('c'), figures=False)
    for name in ('runs.csv', 'predictions.csv'):
        lines = Path('a', name).read_text().splitlines()
        kept = [line for line in lines[1:] if line.split(',')[1 if name == 'runs.csv' else 2] in '12']
        Path('c', name).write_text('\n'.join([lines[0], *kept]))
    with pytest.raises(UserError, match='^a and c have the same recordings, such as ann-angry-0 of speaker aann'):
        contrast.main(['a', 'c', '--model', 'transferred', '--minus', 'cnn'])


def test_experiments_with_other_settings_are_not_averaged():
    two('transferred', 'cnn')
    runs = Path('b/runs.csv').read_text()
    for name, value in (('normalise', 'speaker'), ('train_on_dev', True)):
        tables.pd.read_csv('b/runs.csv').assign(**{name: value}).to_csv('b/runs.csv', index=False)
        with pytest.raises(UserError, match=f'^transferred has another {name} in each experiment .a not recorded; b {value}.'):
            contrast.main(['a', 'b', '--model', 'transferred', '--minus', 'cnn'])
        Path('b/runs.csv').write_text(runs)
