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


@pytest.mark.parametrize('a, b, said', [
    ({'sized_by': 'searched'}, {'sized_by': 'transferred'}, 'b has matched baselines with the size of another model than a'),
    ({'genotypes_of': ''}, {'genotypes_of': 'runs/cv/old'}, 'a searched, and b has genotypes of runs/cv/old'),
    ({'genotypes_of': 'old'}, {'genotypes_of': ''}, 'b searched, and a has genotypes of old')])
def test_other_sizes_or_origins_of_genotypes_are_refused(a, b, said):
    part('a', [run for run in WHOLE if run[2] == 0], plan=a)
    part('b', [run for run in WHOLE if run[2] == 1], plan=b)
    with pytest.raises(UserError, match=said):
        merge.main(['a', 'b', '--to', 'c'])
    assert not Path('c').exists()


def test_what_plans_know_of_genotypes_and_sizes_is_kept(capsys):
    part('a', [run for run in WHOLE if run[2] == 0], plan={'genotypes_of': 'old', 'sized_by': 'searched'})
    part('b', [run for run in WHOLE if run[2] == 1], plan={'genotypes_of': '/there/old'})
    merge.main(['a', 'b', '--to', 'c'])
    assert 'NOTE: genotypes are those of /there/old and old, which must be the same' in capsys.readouterr().err
    plan = json.loads(Path('c/plan.json').read_text())
    assert (plan['genotypes_of'], plan['sized_by']) == ('/there/old', 'searched')


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


def test_what_is_not_known_of_a_search_stays_unknown():
    part('a', asked('searched', seeds=[0]))
    part('b', asked('cnn', seeds=[0]))
    old = pd.read_csv('a/runs.csv').drop(columns='search_heard_test_speakers')
    old.to_csv('a/runs.csv', index=False)
    merge.main(['a', 'b', '--to', 'c'])
    assert 'not known whether the search used test speakers in searched-f1-s0, ' in Path('c/table.md').read_text()
    assert {*pd.read_csv('c/runs.csv').set_index('model')['search_heard_test_speakers'].dropna()} == {'not known'}


def test_prosody_of_two_versions_is_not_mixed():
    text = 'augment:\n  prosody: true\n'
    part('old', asked('cnn'), config=text)
    part('new', asked('random'), config=f'{text}  prosody_version: 2\n')
    with pytest.raises(UserError, match='^prosody_version is 2 for augment.py in new and 1 for augment.py in old'):
        merge.main(['old', 'new', '--to', 'z'])
    part('same', asked('random'), config=f'{text}  prosody_version: 1\n')
    merge.main(['old', 'same', '--to', 'z'])


def test_settings_count_for_the_programs_that_made_runs(capsys):
    """Two hand-designed networks may come from experiments whose searches, which they do not need, are set differently."""
    text = 'search:\n  epochs: {}\naugment:\n  epochs: {}\nsvm: {{}}\n'
    part('a', asked('cnn'), config=text.format(1, 40))
    part('b', asked('searched'), config=text.format(2, 40))
    part('c', asked('random_search'), config=text.format(3, 40))
    part('d', asked('random'), config='augment: {}\n')
    part('e', asked('random', 'random_search'), config=text.format(4, 40), missing=asked('random_search'))
    merge.main(['a', 'b', 'e', '--to', 'abe'])
    assert Path('abe/config.yaml').read_text() == 'search:\n  epochs: 2\naugment:\n  epochs: 40\n'
    with pytest.raises(UserError, match='^epochs is 3 for search.py in c and 2 for search.py in b, so these runs cannot be'):
        merge.main(['a', 'b', 'c', '--to', 'z'])
    with pytest.raises(UserError, match='^epochs is its default for augment.py in d and 40 for augment.py in a'):
        merge.main(['a', 'd', '--to', 'z'])
    for wrong in ('augment: 3\n', 'augment: {1: 2, a: 3}\n', '- 1\n'):
        Path('d/config.yaml').write_text(wrong)
        with pytest.raises(UserError, match='^d/config.yaml|for augment.py in d'):
            merge.main(['a', 'd', '--to', 'z'])
    assert not Path('z').exists() and not capsys.readouterr().err
    Path('d/config.yaml').unlink()
    merge.main(['a', 'd', '--to', 'ad'])
    assert capsys.readouterr().err.startswith('NOTE: d has no config.yaml, so its settings were not compared\n')
    assert not Path('ad/config.yaml').exists()


def test_all_programs_share_corpus_and_features():
    part('a', asked('cnn'), config='augment: {n_mels: 32}\n')
    part('b', asked('svm'), config='svm: {n_mels: 80}\n')
    with pytest.raises(UserError, match='^n_mels is 80 for scripts/svm.py in b and 32 for augment.py in a, so these runs'):
        merge.main(['a', 'b', '--to', 'z'])


def test_one_transferred_genotype_serves_all_folds():
    part('a', asked('transferred', folds=[1]))
    part('b', asked('transferred', folds=[2]))
    with pytest.raises(UserError, match=r'^transferred has several genotypes for seed 0 \(a, b\): one serves all folds of a'):
        merge.main(['a', 'b', '--to', 'z'])


def test_what_cannot_be_compared_is_refused():
    part('a', asked('cnn'))
    part('b', asked('random'), plan={'digest': 'def'})
    part('c', asked('random'), plan={'test_speakers': SPEAKERS[::-1]})
    part('d', asked('cnn'), n_params=7)
    part('j', asked('random'), plan={'clean_folds': [1]})
    part('k', asked('svm'), plan={'clean_folds': [2]})
    part('e', asked('cnn'))
    part('g', asked('random'), normalise='speaker')
    part('h', asked('svm'), normalise='corpus')
    part('i', asked('random'), rename=lambda who: who + '2', plan={'digest': '', 'test_speakers': []})
    table = Path('e/predictions.csv')
    table.write_text(table.read_text()[::-1].replace('yrgna', 'das', 1)[::-1])
    for folders, said in (('ab', 'b has other utterances, labels or speakers than a, so'),
                          ('ac', 'c has other folds than a, so'), ('ajk', 'k has other clean folds than j, so'),
                          ('ad', 'cnn-f1-s0 is finished in a and in d, and its rows differ'),
                          ('ae', 'cnn-f3-s1 is finished in a and in e'), ('af', 'f/runs.csv does not exist'),
                          ('agh', 'normalise is corpus in h and speaker in g, so'), ('aa', 'a: named twice'),
                          ('ai', 'the test utterances of fold 1 differ between i and a, so'), ('a', 'a: name two folders')):
        with pytest.raises(UserError, match=f'^{said}'):
            merge.main([*folders, '--to', 'z'])
    assert not Path('z').exists()
    merge.main(['a', 'g', '--to', 'ag'])
    with pytest.raises(UserError, match='^cnn-f1-s0 is finished in ag and in d'):  # the folder that differs is named
        merge.main(['ag', 'a', 'd', '--to', 'z'])
    for to, said in (('d', 'd exists and is not an empty folder: name it among the folders too, or take another'),
                     ('a/runs.csv', 'a/runs.csv exists and is not'),
                     ('runs/cv/z', 'runs/cv/z: cross_validate.py keeps its experiments in runs/cv')):
        with pytest.raises(UserError, match=f'^--to {to[:1]}.*{said[1:]}'):
            merge.main(['a', 'g', '--to', to])


def test_damaged_files_are_named():
    part('a', asked('cnn'))
    part('b', asked('random'))
    kept = {name: Path('b', name).read_text() for name in ('runs.csv', 'plan.json', 'predictions.csv')}
    for wrong in ({'runs': 3}, {'runs': [3]}, {'runs': [[]]}, {'runs': [['cnn', 'x', 0]]}, {'command': 5}, {'digest': 7}):
        Path('b/plan.json').write_text(json.dumps({**json.loads(kept['plan.json']), **wrong}))
        with pytest.raises(UserError, match='^b/plan.json: not what it should hold .*: leave its folder out$'):
            merge.main(['a', 'b', '--to', 'z'])
    Path('b/plan.json').unlink()
    rows = pd.read_csv('b/runs.csv', dtype=str)
    for wrong, said in ((rows.drop(columns='state'), 'column state is missing'),
                        (rows.assign(state='done'), "a state is 'done'")):
        wrong.to_csv('b/runs.csv', index=False)
        with pytest.raises(UserError, match=rf'^b/runs.csv is damaged \({said}'):
            merge.main(['a', 'b', '--to', 'z'])
    for name in 'ab':
        pd.read_csv(f'{name}/runs.csv', dtype=str).assign(state='missing').to_csv(f'{name}/runs.csv', index=False)
        Path(name, 'predictions.csv').unlink()
    with pytest.raises(UserError, match='^no run is finished in a and b$'):
        merge.main(['a', 'b', '--to', 'z'])
    assert not Path('z').exists()
