"""scripts/reproduce.py, and the record of what made a run."""
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import FEATURES, ROOT, SMALL

import augment
import config as cf
import search
import utils
from models import parallel

sys.path.insert(0, str(ROOT / 'scripts'))
import reproduce  # noqa: E402


def test_a_run_is_repeated_to_the_bit_or_what_differs_is_said(small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').symlink_to(small_corpus.parent)
    augment.main(['--name', 'a/x', '--model', 'rnn', '--params', '300', '--dataset', 'manifest', '--data_path',
                  'data/corpus.csv', *FEATURES, '--epochs', '2', '--no-amp'])
    path = tmp_path / 'runs/augment/a/x/results.json'
    record = json.loads(path.read_text())['provenance']
    assert record['torch'] == torch.__version__ and set(record['speakers']) == {'train', 'dev', 'test'}
    assert utils.read_torch(path.parent / 'checkpoint.pt')['provenance'] == record
    tree = json.loads(path.read_text())
    tree['protocol']['notes'] = ['data/spk0_sad_0.wav is silent']  # said when its features were extracted, and not again
    path.write_text(json.dumps(tree))
    assert reproduce.main(['runs/augment/a/x', '--device', 'cpu']) == 0
    assert capsys.readouterr().out.endswith('equal to the bit\n')
    augment.main(['--name', 'tuned', '--init', 'runs/augment/a/x', '--dataset', 'manifest', '--data_path', 'data/corpus.csv',
                  '--epochs', '1', '--no-amp'])
    assert reproduce.main(['runs/augment/tuned', '--device', 'cpu']) == 0  # --init is relative to the folder of the run
    assert capsys.readouterr().out.endswith('\nequal to the bit\n')
    path.write_text(path.read_text().replace('"wa": ', '"wa": 1').replace('"torch": "', '"torch": "1.'))
    assert reproduce.main(['runs/augment/a/x', '--device', 'cpu']) == 1
    said = capsys.readouterr().out
    assert f'made with torch: 1.{torch.__version__}, now {torch.__version__}' in said and 'results.json.wa: 1' in said
    with pytest.raises(cf.UserError, match='no finished run'):
        reproduce.main(['runs/augment/a'])
    shutil.copytree('runs/augment/a/x', 'copied/augment/x')
    with pytest.raises(cf.UserError, match='copied/augment/x: must be below a folder called runs'):
        reproduce.main(['copied/augment/x'])
    Path('runs/augment/a/x/svm.log').touch()
    with pytest.raises(cf.UserError, match='a run of scripts/svm.py'):
        reproduce.main(['runs/augment/a/x'])


def test_a_run_that_reads_files_is_repeated(small_corpus, tmp_path, monkeypatch, capsys):
    """A genotype, the network of --init, and the recipe of finalists, which is in --config alone."""
    monkeypatch.chdir(tmp_path)
    Path('recipe.yaml').write_text('augment:\n  epochs: 2\n  lr: 0.01\n  batch_size: 5\n')
    argv = ['--dataset', 'manifest', '--data_path', str(small_corpus)]
    search.main(['--name', 's', *argv, *SMALL, '--layers', '1', '--n_nodes', '1', '--rnn_nodes', '1', '--relaxation', 'none',
                 '--finalists', '2', '--config', 'recipe.yaml'])
    Path('recipe.yaml').unlink()
    argv += ['--device', 'cpu', '--epochs', '1']
    augment.main(['--name', 'x', *argv, '--genotype', 'runs/search/s'])
    augment.main(['--name', 'y', *argv, '--init', 'runs/augment/x'])
    search.main(['--name', 't', *argv[:4], *SMALL, *'--n_nodes 1 --rnn_nodes 1 --epochs 1 --relaxation sampled'.split(),
                 *'--finalists 2 --candidates 3 --finalist_epochs 1'.split()])
    argv = [*argv[:4], *FEATURES, '--epochs', '1', '--genotype']
    augment.main(['--name', 'w', *argv, 'random', '--space', 'speech'])
    Path('g.txt').write_text(json.loads(Path('runs/augment/w/results.json').read_text())['genotype'])
    augment.main(['--name', 'z', *argv, 'g.txt'])
    for run in ('search/s', 'search/t', 'augment/x', 'augment/y', 'augment/z'):
        capsys.readouterr()
        assert reproduce.main([f'runs/{run}', '--device', 'cpu']) == 0
        said = capsys.readouterr().out
        assert said.endswith('\nequal to the bit\n') and 'made with' not in said, said[-500:]


def test_the_corpus_is_named_from_where_the_user_is_and_an_encoder_from_the_run(finished, tmp_path, monkeypatch):
    flags = []

    def main(argv):
        flags.extend(argv)
        raise KeyboardInterrupt
    monkeypatch.setattr(augment, 'main', main)
    monkeypatch.chdir(tmp_path)
    for given, expected in ((['--data_path', 'my.csv'], tmp_path / 'my.csv'), ([], None)):
        flags.clear()
        with pytest.raises(KeyboardInterrupt):
            reproduce.main([str(finished / 'runs/augment/a'), *given])
        found = flags[flags.index('--data_path') + 1]
        assert found == str(expected) if expected else Path(found).is_absolute() and found.endswith('.csv')
    (tmp_path / 'tiny').mkdir()
    (tmp_path / 'config.yaml').write_text('features: encoder\nencoder: tiny\nname: x\n')
    assert reproduce.in_effect(tmp_path, 'augment', tmp_path)['encoder'] == str(tmp_path / 'tiny')


def test_what_an_earlier_version_did_not_record_is_no_difference():
    def made(**more):
        return {'checkpoint.pt': {'net': 1, **more}, 'genotype.json': {'search': {'seed': 1, **more}}, 'results.json': {**more}}
    before, now = reproduce.comparable(made(), made(genotype=2))
    assert [*reproduce.differences(before, now)] == ['results.json.genotype: None, now 2']


@pytest.mark.parametrize('now, differs', [
    (['m', 'f'], False), (['m', 'g'], True), (['another librosa', 'g'], False), (None, False)])
def test_recordings_are_compared_by_digests_of_the_same_kind(now, differs):
    made = ({'checkpoint.pt': {'net': 1, **({'audio': audio} if audio else {})}} for audio in (['m', 'f'], now))
    assert [*reproduce.differences(*reproduce.comparable(*made))] == ['checkpoint.pt.audio[1]: f, now g'] * differs


def test_deterministic_switches_every_switch(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, 'use_deterministic_algorithms', lambda mode, warn_only: calls.append((mode, warn_only)))
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':16:8')
    parallel.start(cf.SearchConfig(name='x', device='cpu', threads=1))
    assert not calls
    parallel.start(cf.SearchConfig(name='x', device='cpu', threads=1, deterministic=True))
    assert calls == [(True, True)] and torch.backends.cudnn.benchmark is False
