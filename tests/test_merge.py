"""scripts/merge.py: parts of an experiment, put together, are the whole; what cannot be compared is refused."""
import json
from pathlib import Path

import pandas as pd
import pytest
from test_table import SPEAKERS, asked, make
from test_table import folder as folder

from config import UserError

import figures  # isort: skip  (scripts/, which test_table made importable)
import merge  # isort: skip

WHOLE = asked('searched', 'random', 'svm')


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr(figures, 'draw', lambda *_: [])


def part(name, runs=WHOLE, config=None, command='', plan=(), **more):
    """An experiment in the folder `name`, as cross_validate.py leaves it. plan: changes of plan.json."""
    make(runs, **more)
    rows = {'runs': [*map(list, runs)], 'test_speakers': SPEAKERS, 'digest': 'abc', 'clean_folds': []}
    Path('x/plan.json').write_text(json.dumps({**rows, 'command': f'python {command or name}', **dict(plan)}))
    if config:
        Path('x/config.yaml').write_text(config)
    Path('x').rename(name)
    Path('x').mkdir()


def rows(name):
    """runs.csv and predictions.csv as sets of rows."""
    found = [pd.read_csv(Path(name, file), keep_default_na=False) for file in ('runs.csv', 'predictions.csv')]
    columns = ['model', 'fold', 'seed', 'state', 'n_params', 'minutes', 'genotype', 'test_speakers']
    return [{*table.itertuples(index=False, name=None)} for table in (found[0][columns], found[1])]


def scores(name):
    """table.md between its title and the commands."""
    return Path(name, 'table.md').read_text().partition(' runs are finished')[2].partition('Command')[0]


def test_parts_together_are_the_whole(capsys):
    part('whole')
    part('a', [run for run in WHOLE if run[2] == 0])
    part('b', [run for run in WHOLE if run[2] == 1 and run[1] < 3])
    part('c', [run for run in WHOLE if run[2] == 1], missing=[run for run in WHOLE if run[1] < 2], command='b')  # fold 2 twice
    merge.main(['a', 'b', 'c', '--to', 'd'])
    assert rows('d') == rows('whole') and len(rows('d')[0]) == len(WHOLE) and scores('d') == scores('whole') != ''
    assert f'{len(WHOLE)} runs of 3 folders; d/table.md: ' in capsys.readouterr().out
    assert Path('d/table.md').read_text().endswith('Commands:\n\n    python a\n    python b\n')
    assert json.loads(Path('d/plan.json').read_text()) == {
        'runs': [[*run] for run in merge.in_order(WHOLE)], 'digest': 'abc', 'test_speakers': SPEAKERS, 'clean_folds': [],
        'command': 'python a\npython b'}
    merge.main(['d', 'b', '--to', 'd'])  # the same run twice is one run
    assert rows('d') == rows('whole') and scores('d') == scores('whole')


def test_a_folder_gains_runs_of_another():
    part('whole')
    part('a', [run for run in WHOLE if run[2] == 0])
    part('b', [run for run in WHOLE if run[2] == 1])
    merge.main(['a', 'b', '--to', 'a'])
    assert rows('a') == rows('whole') and scores('a') == scores('whole')


def test_finished_before_failed_before_missing():
    runs = asked('cnn', 'random', seeds=[0])
    part('a', runs, missing=runs[:1], failed={runs[1]: 'ended by SIGKILL'})
    part('b', runs, missing=runs[1:])
    merge.main(['a', 'b', '--to', 'c'])
    found = pd.read_csv('c/runs.csv').set_index(['model', 'fold'])
    assert {*found['state']} == {'finished', 'failed'} and found['state']['cnn', 2] == 'failed'
    assert found['failed']['cnn', 2] == 'ended by SIGKILL' and found['failed'].count() == 1


def test_settings_count_for_the_programs_that_were_used():
    """Two hand-designed networks may come from experiments whose searches, which they do not need, are set differently."""
    text = 'search:\n  epochs: {}\naugment:\n  epochs: {}\nsvm: {{}}\n'
    part('a', asked('cnn'), config=text.format(1, 40))
    part('b', asked('searched'), config=text.format(2, 40))
    part('c', asked('random_search'), config=text.format(3, 40))
    part('d', asked('random'), config='augment: {}\n')
    merge.main(['a', 'b', '--to', 'ab'])
    assert Path('ab/config.yaml').read_text() == 'search:\n  epochs: 2\naugment:\n  epochs: 40\n'
    with pytest.raises(UserError, match='^epochs of search.py is 3 in c, but 2 in b: their runs cannot be compared$'):
        merge.main(['a', 'b', 'c', '--to', 'e'])
    with pytest.raises(UserError, match='^epochs of augment.py is its default in d, but 40 in a'):
        merge.main(['a', 'd', '--to', 'e'])
    Path('d/config.yaml').write_text('augment: 3\n')
    with pytest.raises(UserError, match='^d/config.yaml'):
        merge.main(['a', 'd', '--to', 'e'])
    assert not Path('e').exists()


def test_what_cannot_be_compared_is_refused():
    part('a', asked('cnn'))
    part('b', asked('random'), plan={'digest': 'def'})
    part('c', asked('random'), plan={'test_speakers': SPEAKERS[::-1]})
    part('d', asked('cnn'), n_params=7)
    part('e', asked('cnn'))
    table = Path('e/predictions.csv')
    table.write_text(table.read_text()[::-1].replace('yrgna', 'das', 1)[::-1])
    for other, said in (('b', 'b has other utterances, labels or speakers than a, so'), ('c', 'c has other folds than a, so'),
                        ('d', 'cnn-f1-s0 is finished in a and in d, and its rows differ'),
                        ('e', 'cnn-f3-s1 is finished in a and in e'), ('f', 'f/runs.csv does not exist'),
                        ('a', 'a: named twice')):
        with pytest.raises(UserError, match=f'^{said}'):
            merge.main(['a', other, '--to', 'z'])
    with pytest.raises(UserError, match='^--to d has runs already: name it among the folders too, or take another$'):
        merge.main(['a', '--to', 'd'])
    with pytest.raises(UserError, match='^--to runs/cv/z: cross_validate.py keeps its experiments in runs/cv'):
        merge.main(['a', '--to', 'runs/cv/z'])
    assert not Path('z').exists()
