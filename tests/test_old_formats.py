"""Files of earlier versions are read, and networks are what they were."""
import csv

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, SMALL
from desk import call
from desk import desk as desk

import config as cf
import datasets
import search
import utils
from models import predictor

OLD = ROOT / 'tests/data/format-1'  # made on the corpus of conftest.py, with windows longer than its utterances


@pytest.mark.parametrize('kind', ['genotype', 'cnn_gru'])
def test_a_network_of_format_1_scores_as_it_did(kind, small_corpus, tmp_path):
    best = torch.load(OLD / kind / 'best.pt', weights_only=True)
    assert 'format' not in best
    settings = {name: utils.recorded(best['settings'], name) for name in cf.FeatureSettings.__dataclass_fields__}
    config = cf.AugmentConfig(name='x', dataset='manifest', data_path=str(small_corpus), cache=str(tmp_path), **settings)
    data = datasets.load(config, ('train', 'test'))
    torch.testing.assert_close(data.mean, best['mean'], atol=1e-3, rtol=0)
    net = predictor.rebuild(best)

    def score(net):
        return data.sets['test'].score(lambda *X: net(*X)[0], 7).numpy()
    with open(OLD / kind / 'predictions.csv', newline='') as f:
        saved = np.array([[float(v) for k, v in row.items() if k.startswith('p_')] for row in csv.DictReader(f)])
    np.testing.assert_allclose(score(net), saved, atol=1e-4)
    net.pools_padding = False
    assert np.abs(score(net) - saved).max() > 1e-3


def test_a_run_with_prosody_of_an_earlier_format_goes_on_with_its_version_alone(small_corpus, here):
    argv = ['--name', 's', '--dataset', 'manifest', '--data_path', str(small_corpus), *SMALL, '--epochs', '1', '--prosody']
    search.main([*argv, '--prosody_version', '1'])
    path = here / 'runs/search/s/config.yaml'
    tree = yaml.safe_load(path.read_text())
    assert (tree.pop('format'), tree.pop('prosody_version')) == (4, 1)
    path.write_text(yaml.safe_dump({'format': 3, **tree}))  # as an earlier version wrote it
    assert utils.read_settings(path)['prosody_version'] == 1
    with pytest.raises(cf.UserError, match='prosody_version is 2, but runs/search/s began with 1; add --prosody_version 1'):
        search.main([*argv, '--resume'])
    search.main([*argv, '--prosody_version', '1', '--resume'])


def test_an_experiment_with_prosody_of_an_earlier_version_goes_on_with_that_alone(desk, small_corpus):
    assert call(desk, small_corpus, '--prosody', models='cnn', seeds='0') == 0
    path = desk / 'runs/cv/x/config.yaml'
    tree = yaml.safe_load(path.read_text())
    assert {values.pop('prosody_version') for values in tree.values()} == {2}
    path.write_text(yaml.safe_dump(tree))  # as earlier versions wrote it
    with pytest.raises(cf.UserError, match='prosody_version of search.py is 2, but runs/cv/x began with 1'):
        call(desk, small_corpus, '--prosody', models='cnn', seeds='0')
    assert call(desk, small_corpus, '--prosody', '--prosody_version', '1', models='cnn', seeds='0') == 0


def test_a_search_of_format_2_goes_on_without_decisions_in_its_supernet(small_corpus, here, monkeypatch):
    argv = ['--name', 's', '--dataset', 'manifest', '--data_path', str(small_corpus), *SMALL, '--space', 'speech',
            '--relaxation', 'sampled', '--epochs', '1']
    with monkeypatch.context() as patch:
        patch.setattr(utils, 'FORMAT', 2)
        patch.setattr(search, 'log_epoch', lambda run: 1 / 0)  # after the epoch
        with pytest.raises(ZeroDivisionError):
            search.main(argv)
    for run in [*utils.open_runs]:
        run.close()
    search.main([*argv, '--resume'])
    net = torch.load('runs/search/s/checkpoint.pt', weights_only=True)['net']
    assert 'net.linear.weight' in net and not any('classifiers' in name for name in net)
