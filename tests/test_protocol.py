"""What of a corpus takes part, by --labels, --turns, --scenarios and --folds official, and the programs on made-up corpora."""
import json

import made_up
import pytest
import soundfile
from conftest import ROOT
from test_readers import IMPROV, TURNS

import augment
import config as cf
import datasets
import genotypes as gt
import search
from config import UserError
from datasets import select
from scripts import corpus as corpus_script

SMALL = ('--device cpu --duration 0.5 --n_mels 16 --hop_ms 32 --time_pool 1 --init_channels 2 --layers 3 --rnn_channels 4 '
         '--n_nodes 1 --rnn_nodes 1 --alpha_warmup 0 --epochs 1').split()


def left_out(report):
    return {row['reason']: row['n'] for row in report['left_out']}


@pytest.mark.parametrize('said, kept, gone', [
    (dict(labels='ang,neu', turns='all'), dict(ang=1, neu=1), {'--labels: exc': 1, '--labels: fru': 1, '--labels: hap': 1}),
    (dict(labels='ang, hap+exc ,neu', turns='all'), {'ang': 1, 'hap+exc': 2, 'neu': 1}, {'--labels: fru': 1}),
    (dict(labels='ang,neu,exc', turns='improvised'), dict(ang=1, exc=1, neu=1), {'--turns: scripted': 1, '--labels: fru': 1}),
    (dict(labels='hap', turns='scripted'), dict(hap=1), {'--turns: improvised': 4}),
    (dict(labels='exc+fru,hap', turns='scripted,improvised'), {'exc+fru': 2, 'hap': 1},
     {'--labels: ang': 1, '--labels: neu': 1}),
])
def test_labels_and_turns_keep_what_they_name_and_count_the_rest(said, kept, gone, tmp_path):
    utterances, report = select_two_speakers(made_up.protocol('iemocap', made_up.iemocap(tmp_path, TURNS), **said))
    assert report['classes'] == kept and left_out(report) == {'no majority': 1, **gone}
    assert report['found'] == 6 == report['kept'] + sum(left_out(report).values()) and report['kept'] == len(utterances)
    shown = '\n'.join(datasets.protocol.lines(report))
    assert f'--labels {said["labels"]} --turns {said["turns"]}: {len(utterances)} of 6' in shown
    assert 'no majority 1 (first Ses03M_script01_1b_MXX0.wav)' in shown


def select_two_speakers(config):
    """select without the folds, for which the tree by hand is too small."""
    flags = {'turns': config.turns, 'scenarios': config.scenarios}
    return datasets.protocol.apply(config.dataset, datasets.CORPORA[config.dataset],
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
    ('iemocap', dict(labels='ang'), '--turns is needed with iemocap: all, or any of improvised .4 utterances., scripted .1 '),
    ('iemocap', dict(turns='all'), '--labels is needed with iemocap: .*ang,hap.exc,neu,sad; there are ang 1, exc 1, fru 1, '),
    ('iemocap', dict(turns='improvised'), 'there are ang 1, exc 1, fru 1, neu 1'),
    ('iemocap', dict(labels='ang,sad', turns='all'), "--labels ang,sad: no utterance of class 'sad'; there are ang 1"),
    ('iemocap', dict(labels='ang,xxx', turns='all'), "no utterance of class 'xxx'"),
    ('iemocap', dict(labels='ang,neu+ang', turns='all'), 'ang stands there twice'),
    ('iemocap', dict(labels='ang,', turns='all'), '--labels ang,: a class without a name, .*; there are ang 1'),
    ('iemocap', dict(labels='ang+,neu', turns='all'), 'a class without a name'),
    ('iemocap', dict(labels='ang,neu', turns='impro'), "--turns impro: 'impro' is none of iemocap; say all, or"),
    ('iemocap', dict(labels='ang,neu', turns='all', scenarios='P'), '--scenarios P: does not apply to iemocap'),
    ('iemocap', dict(labels='ang,neu', turns='all', folds='official'), '--folds official: iemocap has no official sets'),
    ('msp_improv', dict(labels='anger'), '--scenarios is needed with msp_improv: all, or any of P .2 utterances., R .1 '),
    ('msp_improv', dict(labels='anger', scenarios='Q'), "'Q' is none of msp_improv"),
    ('msp_improv', dict(labels='anger', scenarios='all', turns='all'), '--turns all: does not apply to msp_improv'),
    ('msp_improv', dict(scenarios='all'), '--labels anger,happiness,neutral,sadness; there are anger 1'),
    ('savee', dict(turns='all'), '--turns all: does not apply to savee'),
    ('savee', dict(labels='anger,joy'), "no utterance of class 'joy'; there are anger 1"),
])
def test_what_is_not_said_or_does_not_apply_is_named(dataset, said, named, tmp_path):
    root = {'iemocap': lambda: made_up.iemocap(tmp_path, TURNS), 'msp_improv': lambda: made_up.msp_improv(tmp_path, IMPROV),
            'savee': lambda: made_up.savee(tmp_path, ['DC_a01', 'JE_h01', 'KL_n01'])}[dataset]()
    with pytest.raises(UserError, match=named) as error:
        select(made_up.protocol(dataset, root, **said))
    assert '\n' not in str(error.value)


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
    with pytest.raises(UserError, match='of Test3 is left; there are official:Test1, official:Test2'):
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
    with pytest.raises(UserError, match=f'official: no utterance of class {gone.replace(",", ", ")} is left') as error:
        select(made_up.protocol('msp_podcast', root, labels=FOUR))
    assert '\n' not in str(error.value) and 'Test2' in str(error.value)
    rest = [name for name in FOUR.split(',') if name not in gone]
    assert set(select(made_up.protocol('msp_podcast', root, labels=','.join(rest)))[2]['classes']) == {*rest}
    merged = '+'.join(('anger', *gone.split(',')))  # of a class that others fill nothing vanishes
    _, _, report = select(made_up.protocol('msp_podcast', root, labels=f'{merged},neutral'))
    assert set(report['classes']) == {merged, 'neutral'}


def emotional_iemocap(root):
    """Speech of five sessions: both speakers, five classes and what has no majority, improvised and scripted."""
    turns = [(f'Ses0{s}F_{kind}_{g}{i:03d}', code) for s in range(1, 6) for g in 'FM' for kind in ('impro01', 'script01_1')
             for i, code in enumerate(('ang', 'hap', 'exc', 'neu', 'sad', 'xxx'))]
    return made_up.iemocap(root, turns, made_up.spoken, silent=['Ses04F_impro01_M000'])


def test_both_programs_on_a_made_up_iemocap(tmp_path, monkeypatch, capsys):
    root = emotional_iemocap(tmp_path / 'corpus')
    monkeypatch.chdir(tmp_path)
    search.main(['--name', 'x', '--dataset', 'iemocap', '--data_path', str(root), '--labels', 'ang,hap+exc,neu,sad', '--turns',
                 'improvised', '--fold', '4', '--batch_size', '16', *SMALL])
    record = gt.load('runs/search/x/genotype.json')[1]['search']
    assert (record['labels'], record['turns'], record['folds']) == ('ang,hap+exc,neu,sad', 'improvised', 'default')
    assert record['train_speakers'] == ['Ses01F', 'Ses01M', 'Ses02F', 'Ses02M', 'Ses03F', 'Ses03M']
    augment.main(['--name', 'x', '--genotype', 'runs/search/x/genotype.json', '--data_path', str(root), '--epochs', '1',
                  '--device', 'cpu'])
    found = json.loads((tmp_path / 'runs/augment/x/results.json').read_text())
    assert found['protocol'] == record['protocol'] and found['labels'] == ['ang', 'hap+exc', 'neu', 'sad']
    assert found['protocol']['classes'] == {'ang': 9, 'hap+exc': 20, 'neu': 10, 'sad': 10}
    assert left_out(found['protocol']) == {'no majority': 20, 'no audio file': 1, '--turns: scripted': 50}
    assert (found['test_speakers'], found['dev_speakers']) == (['Ses04F', 'Ses04M'], ['Ses05F', 'Ses05M'])
    assert found['search_heard_test_speakers'] == [] and found['n_test'] == 9
    for log in ('runs/search/x/search.log', 'runs/augment/x/augment.log'):
        assert '49 of 120 utterances kept: ang 9, hap+exc 20' in (tmp_path / log).read_text()
    given = {'name': 'x', 'genotype': 'g', 'labels': 'ang,neu'}  # what is said again beats what the genotype brings
    config = cf.build('augment', given, augment.recorded_settings({'search': record}, given))
    assert (config.dataset, config.labels, config.turns, config.fold) == ('iemocap', 'ang,neu', 'improvised', 4)
    capsys.readouterr()
    corpus_script.main(['--dataset', 'iemocap', '--data_path', str(root), '--labels', 'ang,neu', '--turns', 'all', '--folds',
                        'speaker'])
    shown = capsys.readouterr().out
    assert '39 of 120 utterances kept: ang 19, neu 20' in shown and 'no audio file 1 (first Ses04F_impro01_M000.wav)' in shown
    assert '  7: Ses04F | Ses04M   utterances to train 32, dev 3, test 4' in shown


@pytest.mark.parametrize('dataset, said, n_test', [
    ('msp_improv', dict(labels=FOUR, scenarios='P,S'), 8), ('msp_podcast', dict(labels=FOUR), 16), ('cremad', {}, 4),
    ('savee', {}, 2)])
def test_speech_of_the_others_is_read(dataset, said, n_test, tmp_path, capsys):
    if dataset == 'msp_improv':
        turns = [(f'S0{i + 1}A-F0{s}-{scenario}-{g}{g}01', e) for s in range(1, 4) for scenario in 'PR' for g in 'FM'
                 for i, e in enumerate('AHNS')]
        made_up.msp_improv(tmp_path, [*turns, ('S09A-F01-S-FM01', 'X')], made_up.spoken)
    elif dataset == 'msp_podcast':
        made_up.msp_podcast(tmp_path, podcast_rows(), made_up.spoken)
    elif dataset == 'cremad':
        made_up.cremad(tmp_path, [f'{s}_{text}_XX' for s in range(1001, 1006)
                                  for text in ('DFA_ANG', 'DFA_SAD', 'IEO_ANG', 'IEO_SAD')], made_up.spoken)
    else:
        made_up.savee(tmp_path, [f'{s}_{e}01' for s in ('DC', 'JE', 'JK', 'KL') for e in ('a', 'sa')], made_up.spoken)
    said = {'dataset': dataset, 'data_path': str(tmp_path), **said}
    config = cf.build('search', {'name': 'x', 'cache': str(tmp_path / 'cache'), 'n_mels': 16, **said})
    data = datasets.load(config, ('train', 'dev', 'test'), quiet=True)
    assert len(data.sets['test']) == n_test and len(data.labels) == (4 if 'labels' in said else 2)
    X, _ = next(data.sets['test'].batches(n_test))
    assert X.std() > .1  # speech, not silence
    speakers = [{u.speaker for u in part.utterances} for part in data.sets.values()]
    assert sum(map(len, speakers)) == len(set.union(*speakers))
    corpus_script.main([f'--{name}={value}' for name, value in said.items()])
    shown = capsys.readouterr().out
    assert f'{data.protocol["kept"]} of {data.protocol["found"]} utterances kept' in shown and 'WAV 16000 Hz' in shown
    assert soundfile.info(data.sets['test'].utterances[0].path).duration == pytest.approx(made_up.SECONDS)


def test_presets_of_the_papers_corpora_have_the_papers_sizes():
    paper = cf.read_yaml(ROOT / 'configs/paper.yaml', 'search'), cf.read_yaml(ROOT / 'configs/paper.yaml', 'augment')
    for dataset in ('iemocap', 'msp_improv', 'msp_podcast'):
        for section, sizes in zip(cf.SECTIONS, paper):
            found = cf.read_yaml(ROOT / f'configs/{dataset}.yaml', section)
            assert {k: v for k, v in found.items() if k in sizes} == sizes
            assert found['dataset'] == dataset and set(found) - set(sizes) <= {'dataset', 'labels', 'turns', 'scenarios'}
