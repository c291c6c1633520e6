"""What a genotype's file may set, and what is said of the speakers its search heard."""
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import search_args

import augment
import config as cf
import datasets
import genotypes as gt
import search
from config import UserError
from datasets.folds import Fold

CELL = [[('skip_connect', 0), ('max_pool_3x3', 1)]]
GENOTYPE = gt.Genotype(CELL, [2], CELL, [2], [[('gru_1', 0), ('skip_connect', 1)]], [2])
FOLD = Fold(('a', 'b'), ('c',), ('d', 'e'))


def configured(tmp_path, record, *argv):
    gt.save(tmp_path / 'g.json', GENOTYPE, record)
    return augment.configure(cf.given('augment', ['--name', 'mine', '--genotype', str(tmp_path / 'g.json'), *argv]))


def test_a_record_sets_only_what_a_search_records(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs('runs/augment/mine')
    evil = dict(overwrite=True, cache='/anywhere', epochs=1, train_on_dev=True, lr=9., device='cuda', name='other', resume=True,
                data_path='/etc', dropout=.9, workers=99)
    for part in ('network', 'features', 'search'):
        config, *_ = configured(tmp_path, {part: {**evil, 'dataset': 'synthetic'}})
        assert config == cf.AugmentConfig(name='mine', genotype=str(tmp_path / 'g.json'))
    record = {'network': dict(init_channels=6, layers=4, n_nodes=9), 'features': dict(n_mels=40, trim_db=20.),
              'search': dict(dataset='emodb', fold=3, folds='loso')}
    config, *_ = configured(tmp_path, record)
    assert (config.init_channels, config.layers, config.n_mels, config.trim_db) == (6, 4, 40, 20.)
    assert (config.dataset, config.fold, config.folds, config.n_nodes) == ('emodb', 3, 'loso', cf.AugmentConfig.n_nodes)
    assert configured(tmp_path, record, '--folds', 'loso')[0].fold == 3  # the same division, said again
    config, *_ = configured(tmp_path, record, '--layers', '5', '--folds', 'default')
    assert (config.layers, config.folds, config.fold) == (5, 'default', 1)  # another division: its fold number means nothing
    config, *_ = configured(tmp_path, record, '--dataset', 'ravdess')
    assert (config.dataset, config.folds, config.fold) == ('ravdess', 'default', 1)


def test_classes_and_fold_are_not_taken_to_another_manifest_without_a_word(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = datasets.corpus_digest(datasets.scan('manifest', str(small_corpus)))
    record = {'search': dict(dataset='manifest', corpus=corpus, fold=2, labels='angry,sad', folds='default')}
    assert configured(tmp_path, record, '--data_path', str(small_corpus))[0].fold == 2
    other = small_corpus.with_name('fewer.csv')
    other.write_text(''.join(small_corpus.read_text().splitlines(keepends=True)[:-1]))
    argv = ['--data_path', str(other)]
    with pytest.raises(UserError, match='other rows than .*fewer.csv, and labels angry,sad, fold 2: say --labels and --fold'):
        configured(tmp_path, record, *argv)
    with pytest.raises(UserError, match='and labels angry,sad: say --labels for'):
        configured(tmp_path, record, *argv, '--fold', '2')
    config, *_ = configured(tmp_path, record, *argv, '--fold', '3', '--labels', 'sad,angry')
    assert (config.fold, config.labels, config.dataset) == (3, 'sad,angry', 'manifest')
    with pytest.raises(UserError, match='say --labels and --fold'):  # a job that may be requeued
        configured(tmp_path, record, *argv, '--resume')
    os.makedirs('runs/augment/mine')
    Path('runs/augment/mine/config.yaml').touch()
    assert configured(tmp_path, record, *argv, '--resume')[0].fold == 2  # as an earlier version began it
    os.unlink('runs/augment/mine/config.yaml')
    unknown = {'search': {**record['search'], 'corpus': None}}
    assert configured(tmp_path, unknown, *argv)[0].fold == 2
    plain = {'search': {**record['search'], 'fold': 1, 'labels': None}}
    assert configured(tmp_path, plain, *argv)[0].fold == 1


@pytest.mark.parametrize('record, named', [
    ({'network': [1]}, 'must be tables'), ({'features': {'n_mels': 'many'}}, "g.json: --n_mels: 'many'"),
    ({'features': {'n_mels': -1}}, 'g.json: --n_mels -1'), ({'search': {'dataset': 'odd'}}, 'g.json: --dataset odd')])
def test_a_record_that_is_wrong_is_refused(record, named, tmp_path):
    with pytest.raises(UserError, match=named):
        configured(tmp_path, record)


def test_features_that_differ_are_noted():
    origin = augment.Origin({'features': {'n_mels': 40, 'duration': 2.}}, 'g.json')
    data = SimpleNamespace(corpus='c', fold=FOLD)
    lines = list(origin.describe(cf.AugmentConfig(name='x', n_mels=40), data))
    assert lines[-1] == 'NOTE: features differ from those of the search: duration 3.0 (there 2.0)'
    assert len(list(origin.describe(cf.AugmentConfig(name='x', n_mels=40, duration=2.), data))) == 1  # not known who was heard
    assert augment.Origin({'search': None}).search == {}  # results.json of a random genotype


def heard(retrained_on, data_corpus, **search):
    origin = augment.Origin({'search': {'train_speakers': ['a', 'd'], 'dev_speakers': ['x'], **search}}, 'g.json')
    return origin.heard(SimpleNamespace(dataset=retrained_on), SimpleNamespace(corpus=data_corpus, fold=FOLD))


@pytest.mark.parametrize('entries, known', [
    ([('manifest', 'c1', ['a', 'd'])], ['d']), ([('manifest', 'c1', ['a'])], []), ([('emodb', 'c9', ['d'])], None),
    ([('manifest', 'c2', ['d'])], None), ([('manifest', 'c1', ['a']), ('manifest', 'c2', ['d'])], None),
    ([('manifest', 'c2', ['a']), ('manifest', 'c1', ['d'])], ['d'])])
def test_what_cannot_be_known_of_the_network_of_init_is_not_called_unheard(entries, known):
    heard = [{'dataset': dataset, 'corpus': corpus, 'speakers': speakers} for dataset, corpus, speakers in entries]
    start = {'heard': heard, 'settings': {}}
    config, data = SimpleNamespace(init='runs/x', dataset='manifest'), SimpleNamespace(corpus='c1', fold=FOLD)
    assert augment.heard_before(config, data, start) == known
    said = list(augment.describe_start(config, data, start, 'taken'))[1:]
    assert [line.partition(':')[0] for line in said] == (['NOTE'] if known is None else ['WARNING'] * bool(known))


def test_heard_speakers_are_known_only_of_the_same_corpus():
    """Speakers are names; in another file a name may mean another person, and a person may have another name."""
    assert heard('manifest', 'c1', dataset='manifest', corpus='c1') == ['d']
    assert heard('manifest', 'c2', dataset='manifest', corpus='c1') is None
    assert heard('manifest', 'c1', dataset='manifest') is None  # an earlier version's record
    assert heard('emodb', 'c1', dataset='emodb') == ['d']  # names are the corpus' own,
    assert heard('emodb', 'c2', dataset='emodb', corpus='c1') == ['d']  # also if a file is missing
    assert heard('emodb', 'c1', dataset='ravdess', corpus='c1') == []  # corpora of other actors
    for other in ('manifest', 'msp_podcast', 'synthetic', None):
        assert heard('emodb', 'c1', dataset=other, corpus='c1') is None
    assert heard('manifest', 'c1', dataset='emodb', corpus='c1') is None
    assert heard('emodb', 'c1', dataset='emodb', train_speakers=3) is None
    assert heard('manifest', 'c1', dataset='emodb', elsewhere={
        'dataset': 'manifest', 'corpus': 'c1', 'train_speakers': ['e'], 'dev_speakers': []}) == ['e']  # an experiment's copy
    assert heard('emodb', 'c1', dataset='emodb', elsewhere=3) == ['d']
    assert augment.Origin({}).heard(None, None) == []  # drawn by chance or designed by hand: no search
    assert augment.Origin({}, 'g.json').heard(SimpleNamespace(dataset='emodb'), SimpleNamespace(corpus='c', fold=FOLD)) is None


@pytest.mark.parametrize('tested, heard', [
    ({'speakers': ['d', 'e'], 'heard': []}, []), ({'speakers': ['d', 'e'], 'heard': ['d']}, ['d']),
    ({'speakers': ['d'], 'heard': []}, None), ({'speakers': ['d', 'e']}, None), ('d e', None)])
def test_what_an_earlier_experiment_knew_holds_for_its_test_speakers_alone(tested, heard):
    data = SimpleNamespace(corpus='c', fold=FOLD)
    for dataset, corpus, expected in (('emodb', 'c', heard), ('emodb', 'other', heard), ('manifest', 'c', heard),
                                      ('manifest', 'other', None)):
        its = {'dataset': dataset, 'corpus': corpus, **tested} if isinstance(tested, dict) else tested
        origin = augment.Origin({'search': {'tested': its}}, 'g.json')
        assert origin.heard(SimpleNamespace(dataset=dataset), data) == expected
        assert origin.heard(SimpleNamespace(dataset='ravdess'), data) is None


def test_a_manifest_with_renamed_speakers_is_another_corpus(small_corpus, tmp_path, monkeypatch):
    """The same recordings under other names: nothing may be claimed of who was heard."""
    monkeypatch.chdir(tmp_path)

    search.main(list(map(str, search_args(small_corpus, 's', '--epochs', 1, '--alpha_warmup', 0))))
    renamed = small_corpus.with_name('renamed.csv')
    renamed.write_text(small_corpus.read_text().replace('spk', 'voice'))
    same = small_corpus.with_name('copy.csv')
    same.write_text(small_corpus.read_text())
    found = {}
    for name, corpus in (('renamed', renamed), ('same', same)):
        argv = ['--name', name, '--genotype', 'runs/search/s', '--dataset', 'manifest', '--data_path', corpus, '--fold', 2,
                '--epochs', 1, '--device', 'cpu']
        augment.main(list(map(str, argv)))
        found[name] = json.loads((tmp_path / f'runs/augment/{name}/results.json').read_text())
    assert found['renamed']['search_heard_test_speakers'] is None
    assert found['same']['search_heard_test_speakers'] == found['same']['test_speakers']
