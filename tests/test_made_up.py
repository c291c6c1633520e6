"""Both programs on a made-up IEMOCAP, from the trees of the release to the results; and the presets of the corpora."""
import json

import made_up
from conftest import ROOT
from test_protocol import left_out

import augment
import config as cf
import genotypes as gt
import search

SMALL = ('--device cpu --duration 0.5 --n_mels 16 --hop_ms 32 --time_pool 1 --init_channels 2 --layers 3 --rnn_channels 4 '
         '--n_nodes 1 --rnn_nodes 1 --alpha_warmup 0 --epochs 1').split()


def emotional_iemocap(root):
    """Speech of five sessions: both speakers, five classes and what has no majority, improvised and scripted."""
    turns = [(f'Ses0{s}F_{kind}_{g}{i:03d}', code) for s in range(1, 6) for g in 'FM' for kind in ('impro01', 'script01_1')
             for i, code in enumerate(('ang', 'hap', 'exc', 'neu', 'sad', 'xxx'))]
    return made_up.iemocap(root, turns, made_up.spoken, silent=['Ses04F_impro01_M000'])


def test_both_programs_on_a_made_up_iemocap(tmp_path, monkeypatch):
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
    augment.main(['--name', 'two', '--genotype', 'runs/search/x/genotype.json', '--data_path', str(root), '--epochs', '1',
                  '--device', 'cpu', '--labels', 'ang,neu'])  # a flag overrides what the genotype brings along
    found = json.loads((tmp_path / 'runs/augment/two/results.json').read_text())
    assert (found['dataset'], found['labels'], found['protocol']['turns'], found['fold']) == ('iemocap', ['ang', 'neu'],
                                                                                              'improvised', 4)


def test_presets_of_the_papers_corpora_have_the_papers_sizes():
    paper = cf.read_yaml(ROOT / 'configs/paper.yaml', 'search'), cf.read_yaml(ROOT / 'configs/paper.yaml', 'augment')
    for dataset in ('iemocap', 'msp_improv', 'msp_podcast'):
        for section, sizes in zip(('search', 'augment'), paper):
            found = cf.read_yaml(ROOT / f'configs/{dataset}.yaml', section)
            assert {k: v for k, v in found.items() if k in sizes} == sizes
            assert found['dataset'] == dataset and set(found) - set(sizes) <= {'dataset', 'labels', 'turns', 'scenarios'}
