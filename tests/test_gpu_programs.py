"""Both programs from end to end on a GPU."""
import json

import pytest
import torch
from conftest import SMALL

import augment
import search

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize('more', [
    (), ('--no-amp',), ('--order', 2, '--hessian', 'exact'), ('--order', 2, '--hessian', 'difference'), ('--no-fast',),
    ('--partial_channels', 2), ('--resident', 'never')])
def test_a_search_and_its_retraining(more, small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [*SMALL[2:], '--device', 'cuda', '--dataset', 'manifest', '--data_path', small_corpus, '--n_nodes', 1,
             '--rnn_nodes', 1, '--rnn_ops', 'all', '--alpha_warmup', 0]
    search.main(list(map(str, ['--name', 'g', '--epochs', 2, *small, *more])))
    argv = ['--name', 'g', '--genotype', 'runs/search/g', '--data_path', small_corpus, '--epochs', 2, '--batch_size', 10,
            '--device', 'cuda']
    augment.main(list(map(str, argv)))
    found = json.loads((tmp_path / 'runs/augment/g/results.json').read_text())
    assert found['n_test'] == 16 and torch.cuda.get_device_name() in found['device']


def test_a_baseline_and_a_resumed_run(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ['--name', 'b', '--model', 'cnn_lstm', '--params', '3000', '--dataset', 'manifest', '--data_path', str(small_corpus),
            '--epochs', '2', '--batch_size', '10', '--device', 'cuda']
    augment.main(argv)
    augment.main([*argv, '--resume'])
    assert (tmp_path / 'runs/augment/b/predictions.csv').exists()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='one CUDA device or none')
def test_the_second_gpu_is_used_when_named(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.cuda.memory_allocated(0)
    augment.main(['--name', 'b', '--model', 'cnn', '--dataset', 'manifest', '--data_path', str(small_corpus), '--epochs', '1',
                  '--batch_size', '10', '--device', 'cuda:1'])
    assert torch.cuda.current_device() == 1 and torch.cuda.memory_allocated(0) == before
