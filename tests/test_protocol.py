"""What --labels, --turns, --scenarios and --folds official keep of a corpus, and that the rest is counted."""
from dataclasses import replace

import made_up
import pytest
from made_up import touch
from test_readers import IMPROV, TURNS

import config as cf
import datasets
from config import UserError
from datasets import protocol, select


def left_out(report):
    return {row['reason']: row['n'] for row in report['left_out']}


@pytest.mark.parametrize('said, kept, gone', [
    (dict(labels='ang,neu', turns='all'), dict(ang=1, neu=1), {'--labels: exc': 1, '--labels: fru': 1, '--labels: hap': 1}),
    (dict(labels='ang, hap + exc ,neu', turns='all'), {'ang': 1, 'hap+exc': 2, 'neu': 1}, {'--labels: fru': 1}),
    (dict(labels='ang,neu,exc', turns='improvised'), dict(ang=1, exc=1, neu=1), {'--turns: scripted': 1, '--labels: fru': 1}),
    (dict(labels='hap', turns='scripted'), dict(hap=1), {'--turns: improvised': 4}),
    (dict(labels='exc+fru,hap', turns='scripted,improvised'), {'exc+fru': 2, 'hap': 1},
     {'--labels: ang': 1, '--labels: neu': 1}),
])
def test_labels_and_turns_keep_what_they_name_and_count_the_rest(said, kept, gone, tmp_path):
    utterances, report = select_two_speakers(made_up.protocol('iemocap', made_up.iemocap(tmp_path, TURNS), **said))
    assert report['classes'] == kept and left_out(report) == {'no majority': 1, **gone}
    assert report['found'] == 6 == report['kept'] + sum(left_out(report).values()) and report['kept'] == len(utterances)
    shown = '\n'.join(protocol.lines(report))
    assert f'--labels {said["labels"]} --turns {said["turns"]}: {len(utterances)} of 6' in shown
    assert 'no majority 1 (first Ses03M_script01_1b_MXX0.wav)' in shown


def select_two_speakers(config):
    """select without the folds, for which the tree by hand is too small."""
    flags = {'turns': config.turns, 'scenarios': config.scenarios}
    return protocol.apply(config.dataset, datasets.reader(config.dataset),
                                   datasets.scan(config.dataset, config.data_path), 'session', config.labels, flags)


@pytest.mark.parametrize('scenarios, kept, n_other', [
    ('P,S,T', dict(anger=1, happiness=1, sadness=1, neutral=1), 1), ('S', dict(anger=1, happiness=1), 4),
    ('all', dict(anger=1, happiness=1, sadness=1, neutral=2), 0)])
def test_scenarios(scenarios, kept, n_other, tmp_path):
    made_up.msp_improv(tmp_path, IMPROV)
    config = made_up.protocol('msp_improv', tmp_path, labels=','.join(kept), scenarios=scenarios)
    _, report = select_two_speakers(config)
    assert report['classes'] == kept and report['scenarios'] == scenarios
    assert sum(n for reason, n in left_out(report).items() if reason.startswith('--scenarios: ')) == n_other


@pytest.mark.parametrize('dataset, said, named', [
    ('iemocap', dict(labels='ang'), '--turns is required with iemocap: all, or .* improvised .4 utterances., scripted .1 '),
    ('iemocap', dict(turns='all'), '--labels is required with iemocap: .*ang,hap.exc,neu,sad; the corpus has ang 1, exc 1, '),
    ('iemocap', dict(turns='improvised'), 'the corpus has ang 1, exc 1, fru 1, neu 1'),
    ('iemocap', dict(labels='ang,sad', turns='all'), "--labels ang,sad: the corpus has no class 'sad'; it has ang 1"),
    ('iemocap', dict(labels='ang,xxx', turns='all'), "the corpus has no class 'xxx'"),
    ('iemocap', dict(labels='ang,neu+ang', turns='all'), 'ang is named twice'),
    ('iemocap', dict(labels='ang,', turns='all'), '--labels ang,: a name is empty, .*; the corpus has ang 1'),
    ('iemocap', dict(labels='ang+,neu', turns='all'), 'a name is empty'),
    ('iemocap', dict(labels='ang,neu', turns='impro'), "--turns impro: iemocap has no 'impro'; use all, or"),
    ('iemocap', dict(labels='ang,neu', turns='all', scenarios='P'), '--scenarios P: does not apply to iemocap'),
    ('iemocap', dict(labels='ang,neu', turns='all', folds='official'), '--folds official: iemocap has no official sets'),
    ('msp_improv', dict(labels='anger'), '--scenarios is required with msp_improv: all, or .* P .2 utterances., R .1 '),
    ('msp_improv', dict(labels='anger', scenarios='Q'), "msp_improv has no 'Q'"),
    ('msp_improv', dict(labels='anger', scenarios='all', turns='all'), '--turns all: does not apply to msp_improv'),
    ('msp_improv', dict(scenarios='all'), '--labels anger,happiness,neutral,sadness; the corpus has anger 1'),
    ('savee', dict(turns='all'), '--turns all: does not apply to savee'),
    ('savee', dict(labels='anger,joy'), "the corpus has no class 'joy'; it has anger 1"),
])
def test_flags_that_are_missing_or_do_not_apply_are_named(dataset, said, named, tmp_path):
    root = {'iemocap': lambda: made_up.iemocap(tmp_path, TURNS), 'msp_improv': lambda: made_up.msp_improv(tmp_path, IMPROV),
            'savee': lambda: made_up.savee(tmp_path, ['DC_a01', 'JE_h01', 'KL_n01'])}[dataset]()
    with pytest.raises(UserError, match=named) as error:
        select(made_up.protocol(dataset, root, **said))
    assert '\n' not in str(error.value)


def test_two_classes_of_one_name_are_refused_and_a_split_is_no_official_set(tmp_path):
    rows = ['path,label,speaker,split', *(f'{s}{i}.wav,{label},{s},{split}' for s, split in zip('abc', ('train', 'dev', 'test'))
                                          for i, label in enumerate(('a', 'b', 'a+b')))]
    for row in rows[1:]:
        (tmp_path / row.partition(',')[0]).touch()
    (tmp_path / 'm.csv').write_text('\n'.join(rows) + '\n')
    config = cf.SearchConfig(name='x', dataset='manifest', data_path=str(tmp_path / 'm.csv'))
    with pytest.raises(UserError, match='two classes would both be called a[+]b'):
        select(replace(config, labels=r'a+b,a\+b'))
    assert select(replace(config, labels=r'a+b'))[2]['classes'] == {'a+b': 6}
    with pytest.raises(UserError, match='manifest has no official sets; --folds default takes its column split'):
        select(replace(config, folds='official'))


def podcast_rows():
    """Four speakers a set, each with an A, an H, an N and an S; 31 is in Train and Test1, 21 in Train and Validation."""
    rows, sets = [], {'Train': range(10, 14), 'Validation': range(20, 24), 'Test1': range(30, 34), 'Test2': range(40, 44)}
    for split, speakers in sets.items():
        rows += [(f'P_{s}_{e}.wav', e, str(s), ('Male', 'Female')[s % 2], split) for s in speakers for e in 'AHNS']
    return rows + [('P_31_x.wav', 'A', '31', 'Female', 'Train'), ('P_31_y.wav', 'A', '31', 'Female', 'Validation'),
                   ('P_21_x.wav', 'H', '21', 'Female', 'Train'), ('P_u.wav', 'H', 'Unknown', 'Unknown', 'Train'),
                   ('P_o.wav', 'O', '10', 'Male', 'Train')]


FOUR = 'anger,happiness,neutral,sadness'


def test_official_sets_of_msp_podcast(tmp_path):
    root = made_up.msp_podcast(tmp_path, podcast_rows())
    kept, (fold,), report = select(made_up.protocol('msp_podcast', root, labels=FOUR))
    assert (fold.train, fold.dev, fold.test) == (tuple('10 11 12 13'.split()), tuple('20 21 22 23'.split()),
                                                 tuple('30 31 32 33'.split()))
    assert [len(fold.split(kept, name)) for name in ('train', 'dev', 'test')] == [16, 16, 16]
    assert left_out(report) == {'unknown speaker': 1, '--labels: other': 1, '--folds official: Test2': 16,
                                '--folds official: train, by a speaker of Test1': 1,
                                '--folds official: dev, by a speaker of Test1': 1,
                                '--folds official: train, by a speaker of dev': 1}
    _, (fold,), _ = select(made_up.protocol('msp_podcast', root, labels=FOUR, folds='official:Test2'))
    assert fold.test == tuple('40 41 42 43'.split()) and '31' in fold.dev
    with pytest.raises(UserError, match='of Test3 is left; available: official:Test1, official:Test2'):
        select(made_up.protocol('msp_podcast', root, labels=FOUR, folds='official:Test3'))
    kept, folds, _ = select(made_up.protocol('msp_podcast', root, labels=FOUR, folds='4'))
    assert len(kept) == 67 and sorted(s for fold in folds for s in fold.test) == sorted({u.speaker for u in kept})


@pytest.mark.parametrize('gone', ['sadness', 'happiness', 'happiness,sadness'])
def test_a_class_that_the_official_sets_lack_is_named(gone, tmp_path):
    """Of Test2 alone, or of a training speaker who is tested too."""
    codes = {name[0].upper() for name in gone.split(',')}
    rows = [row for row in podcast_rows() if row[1] not in codes or row[4] == 'Test2' or row[0] == 'P_31_x.wav']
    rows += [(f'P_31_{code}.wav', code, '31', 'Female', 'Train') for code in codes]
    root = made_up.msp_podcast(tmp_path, rows)
    with pytest.raises(UserError, match=f'official: these sets have no utterance of class {gone.replace(",", ", ")};') as error:
        select(made_up.protocol('msp_podcast', root, labels=FOUR))
    assert '\n' not in str(error.value) and 'Test2' in str(error.value)
    rest = [name for name in FOUR.split(',') if name not in gone]
    assert set(select(made_up.protocol('msp_podcast', root, labels=','.join(rest)))[2]['classes']) == {*rest}
    merged = '+'.join(('anger', *gone.split(',')))  # of a class that others fill nothing vanishes
    _, _, report = select(made_up.protocol('msp_podcast', root, labels=f'{merged},neutral'))
    assert set(report['classes']) == {merged, 'neutral'}


def manifest(folder, rows):
    """rows: [(label, speaker), ...]. Returns the CSV file."""
    touch(folder, *(f'{i}.wav' for i in range(len(rows))))
    lines = [f'{i}.wav;{label};{speaker}' for i, (label, speaker) in enumerate(rows)]
    (folder / 'm.csv').write_text('\n'.join(['path;label;speaker', *lines]))
    return folder / 'm.csv'


@pytest.mark.parametrize('labels, kept', [
    (r'angry\, mad,sad', {'angry, mad': 2, 'sad': 2}), (r'angry\, mad+sad,a\+b', {'angry, mad+sad': 4, 'a+b': 1}),
    (r'sad, a\+b', {'sad': 2, 'a+b': 1}), (None, {'angry, mad': 2, 'sad': 2, 'a+b': 1})])
def test_a_label_with_a_comma_or_plus_is_named_with_a_backslash(labels, kept, tmp_path):
    path = manifest(tmp_path, [('angry, mad', 'a'), ('angry, mad', 'b'), ('sad', 'c'), ('sad', 'd'), ('a+b', 'e')])
    assert select(made_up.protocol('manifest', path, labels=labels))[2]['classes'] == kept
    with pytest.raises(UserError, match=r"no class 'angry'; it has a\\\+b 1, angry\\, mad 2, sad 2"):
        select(made_up.protocol('manifest', path, labels='angry, mad,sad'))


def test_labels_and_speakers_that_differ_by_case_alone_are_noted(tmp_path):
    path = manifest(tmp_path, [('Anger', 'ann'), ('anger', 'Ann'), ('ANGER', 'bob'), ('sad', 'cem'), ('sad', 'dan')])

    def notes(**said):
        report = select(made_up.protocol('manifest', path, **said))[2]
        return [line for line in protocol.lines(report) if line.startswith('NOTE')]
    case = 'labels ANGER (1), Anger (1), anger (1) differ by case alone; merge them with --labels ANGER+Anger+anger,...'
    people = 'speakers Ann, ann differ by case alone, and count as different people'
    assert notes() == [f'NOTE: {case}', f'NOTE: {people}']
    assert notes(labels='Anger,sad,ANGER')[0] == f'NOTE: {case}'  # anger is left out
    assert notes(labels='Anger+anger+ANGER,sad') == [f'NOTE: {people}']
    path = manifest(tmp_path, [('anger', 'ann'), ('sad', 'bob'), ('sad', 'cem')])
    assert notes() == [] and 'notes' not in select(made_up.protocol('manifest', path))[2]
