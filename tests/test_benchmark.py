"""The benchmark program on networks so small that its figures mean nothing: what it counts, and what it writes."""
import copy
import json
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / 'scripts'))
import benchmark  # noqa: E402
import benchmark_report  # noqa: E402
import benchmark_tools  # noqa: E402

TINY = dict(n_mels=8, duration=.3, batch_size=2, init_channels=2, rnn_channels=4, layers=1)
TINY_SEARCH = dict(n_nodes=1, rnn_nodes=1, cnn_ops='sep_conv_3x3,max_pool_3x3,none', rnn_ops='gru_1,skip_connect,none')


def test_work_of_a_product_is_known():
    a, b = torch.ones(8, 16), torch.ones(16, 4)
    moved, flop = benchmark_tools.work(lambda: a.view(8, 16) @ b)
    assert moved == 4 * (8 * 16 + 16 * 4 + 8 * 4) and flop == 2 * 8 * 16 * 4


def test_forms_take_turns_and_the_median_is_after_the_warm_up(monkeypatch):
    calls, clock = [], iter([9., 9., 1., 4., 3., 5., 2., 9.])
    monkeypatch.setattr(benchmark, 'seconds', lambda step, device: (step(), next(clock))[1])

    class Fake:
        def __init__(self, form):
            self.form = form

        def weight_step(self):
            calls.append(self.form)
    found = benchmark.alternate([Fake('fast'), Fake('textbook')], 'weight_step', torch.device('cpu'), 1, 3)
    assert calls == ['fast', 'textbook'] * 4 and found == {'fast': 2., 'textbook': 5.}


def test_both_forms_begin_with_the_same_network_and_are_what_they_say():
    config = benchmark.settings('search', 'default', **TINY, **TINY_SEARCH)
    base = benchmark.make_net(config)
    fast, book = (benchmark.Bench(form, config, torch.device('cpu'), net=copy.deepcopy(base)) for form in benchmark.FORMS)
    for a, b in zip(fast.net.parameters(), book.net.parameters()):
        assert torch.equal(a, b)
    assert {type(cell).__name__ for cell in fast.net.net.cells} == {'SearchCell'}
    assert {type(cell).__name__ for cell in book.net.net.cells} == {'TextbookCell'}
    assert type(book.architect).__name__ == 'TextbookArchitect'
    fast.net.eval(), book.net.eval()
    X, _ = fast.batches[0]
    torch.testing.assert_close(fast.net(X), book.net(X), rtol=0, atol=1e-5)


def test_a_run_writes_its_figures(tmp_path, monkeypatch, capsys):
    settings = benchmark.settings
    monkeypatch.setattr(benchmark, 'settings', lambda section, preset, **more: settings(
        section, preset, **{**TINY, **(TINY_SEARCH if section == 'search' else {}), **more}))
    monkeypatch.setattr(benchmark, 'GROWTH', {'n_nodes': (1, 2)})
    path = tmp_path / 'run.json'
    benchmark.main(['--device', 'cpu', '--threads', '1', '--warmup', '1', '--repeats', '1', '--json', str(path)])
    found = json.loads(path.read_text())
    assert {'weight_step', 'alpha_step_1', 'alpha_step_2', 'augment_step', 'peak_memory'} <= set(found['ratios'])
    for fast, book in zip(found['rows'][::2], found['rows'][1::2]):
        assert (fast['step'], fast['form'], book['form']) == (book['step'], 'fast', 'textbook')
        assert found['ratios'][fast['step']] == pytest.approx(book['ms'] / fast['ms'])
        assert fast['utterances_per_s'] == pytest.approx(2e3 / fast['ms'])
    assert found['peak_memory_mib']['fast'] > 0 and found['first_step_s']['textbook'] > 0
    assert path.with_suffix('.md').read_text() in capsys.readouterr().out and path.with_suffix('.png').stat().st_size > 1000
    assert benchmark_report.summary([found]).count('\n') == 2


def test_a_folder_that_is_not_there_is_said_before_an_hour_is_spent(tmp_path):
    with pytest.raises(benchmark.utils.UserError, match='--json'):
        benchmark.main(['--json', str(tmp_path / 'none' / 'run.json')])
