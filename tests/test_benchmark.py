"""The benchmark on networks so small that its times mean nothing: what it compares, counts and writes."""
import json

import pytest
import torch

from config import UserError
from models.architect import Architect
from models.search_cells import SearchCell
from scripts import benchmark, benchmark_report, benchmark_sampled, benchmark_steps
from scripts.benchmark_counts import Operations, as_on_a_gpu
from scripts.textbook_architect import TextbookArchitect

TINY = dict(n_mels=8, duration=.3, batch_size=2, init_channels=2, rnn_channels=4, layers=1)
TINY_SEARCH = dict(n_nodes=1, rnn_nodes=1, cnn_ops='sep_conv_3x3,max_pool_3x3,none', rnn_ops='gru_1,skip_connect,none')


@pytest.fixture
def tiny(monkeypatch):
    settings = benchmark_steps.settings
    monkeypatch.setattr(benchmark_steps, 'settings', lambda section, preset, **more: settings(
        section, preset, **{**TINY, **(TINY_SEARCH if section == 'search' else {}), **more}))


def test_forms_take_turns_and_the_median_is_after_the_warm_up(monkeypatch):
    calls, clock = [], iter([9., 9., 1., 4., 3., 5., 2., 9.])
    monkeypatch.setattr(benchmark_steps, 'seconds', lambda step, device: (step(), next(clock))[1])

    class Fake:
        def __init__(self, form):
            self.form = form

        def weight_step(self):
            calls.append(self.form)
    found = benchmark_steps.take_turns([Fake('fast'), Fake('plain')], 'weight_step', torch.device('cpu'), 1, 3)
    assert calls == ['fast', 'plain'] * 4 and found == {'fast': 2., 'plain': 5.}


def test_both_forms_begin_with_the_same_network_and_are_what_they_say(tiny):
    fast, plain = benchmark_steps.pair(benchmark_steps.settings('search', 'default'), torch.device('cpu'))
    for a, b in zip(fast.net.parameters(), plain.net.parameters()):
        assert torch.equal(a, b)
    assert {type(cell) for cell in fast.net.net.cells} != {type(cell) for cell in plain.net.net.cells} == {SearchCell}
    assert type(fast.architect) is Architect and type(plain.architect) is TextbookArchitect
    fast.net.eval(), plain.net.eval()
    X, _ = fast.batches[0]
    torch.testing.assert_close(fast.net(X), plain.net(X), rtol=0, atol=1e-5)


def test_a_run_writes_its_figures(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, 'GROWTH', {'n_nodes': (1, 2)})
    path = tmp_path / 'run.json'
    benchmark.main(['--device', 'cpu', '--threads', '1', '--warmup', '1', '--repeats', '1', '--json', str(path)])
    found = json.loads(path.read_text())
    assert [row['step'] for row in found['rows']] == list(benchmark_report.STEPS)
    for row in found['rows'] + found['growth']:
        assert row['ratio'] == pytest.approx(row['plain'] / row['fast'])
    assert [m['form'] for m in found['memory']] == ['fast', 'plain'] and all(m['peak_mib'] > 0 for m in found['memory'])
    assert path.with_suffix('.md').read_text() in capsys.readouterr().out
    assert benchmark_report.summary([found]).count('\n') == 2


def test_the_relaxations_are_compared_on_one_supernet(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_steps, 'memory', lambda form, *_, **__: {'form': form, 'peak_mib': 1.})
    path = tmp_path / 'run.json'
    benchmark.main(['--sampled', '--device', 'cpu', '--threads', '1', '--warmup', '1', '--repeats', '1', '--json', str(path)])
    found = json.loads(path.read_text())['sampled']
    assert [row['step'] for row in found['steps']] == ['weight_step', 'alpha_step_1'] and len(found['memory']) == 3
    times = [found['steps'][0][form] for form in benchmark_sampled.FORMS]
    assert f'| {times[0]:.1f} | {times[1]:.1f} | {times[2]:.1f} | **{times[0] / times[1]:.2f}** |' in capsys.readouterr().out
    steps = benchmark_sampled.SampledSteps('uniform', benchmark_steps.settings('search', 'default'), torch.device('cpu'))
    steps.weight_step()
    assert 'reduce' in steps.net.paths or 'normal' in steps.net.paths


def test_only_the_steps_that_are_named_are_measured(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_steps, 'memory', lambda form, *_, **__: {'form': form, 'peak_mib': 1., 'first_step_s': 1.})
    path = tmp_path / 'run.json'
    benchmark.main(['--device', 'cpu', '--threads', '1', '--warmup', '1', '--repeats', '1', '--no_growth', '--json', str(path),
                    '--steps', 'augment_step,alpha_step_2 exact'])
    found = json.loads(path.read_text())
    assert [row['step'] for row in found['rows']] == ['alpha_step_2 exact', 'augment_step']
    assert benchmark_report.summary([found]).splitlines()[2].count('not measured') == 3
    with pytest.raises(benchmark.utils.UserError, match='--steps: weight is none of weight_step'):
        benchmark.main(['--steps', 'weight'])


def test_a_run_that_is_stopped_keeps_what_it_has_measured(tiny, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr(benchmark_steps, 'memory', stopped)
    path = tmp_path / 'run.json'
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(['--device', 'cpu', '--threads', '1', '--warmup', '1', '--repeats', '1', '--json', str(path),
                        '--steps', 'weight_step'])
    found = json.loads(path.read_text())
    assert [row['step'] for row in found['rows']] == ['weight_step'] and found['memory'] == []
    assert path.with_suffix('.md').read_text() == benchmark_report.markdown(found)
    assert benchmark_report.summary([found]).splitlines()[2].count('not measured') == 5
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(['--sampled', '--device', 'cpu', '--threads', '1', '--warmup', '1', '--repeats', '1',
                        '--json', str(path)])
    assert [row['step'] for row in json.loads(path.read_text())['sampled']['steps']] == ['weight_step', 'alpha_step_1']


def test_a_folder_that_is_not_there_is_said_before_an_hour_is_spent(tmp_path):
    with pytest.raises(benchmark.utils.UserError, match='--json'):
        benchmark.main(['--json', str(tmp_path / 'none' / 'run.json')])


def test_the_table_of_a_file_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr('sys.argv', ['benchmark_report.py', 'absent.json'])
    with pytest.raises(UserError, match='absent.json'):
        benchmark_report.main()


def test_operations_are_counted_without_views_and_with_backward():
    x = torch.ones(2, 3, requires_grad=True)
    with Operations() as operations:
        (x.t() * 2.).sum().backward()  # product, sum; ones, product, and two for x.grad in the layout of x
    assert operations.n == 6
    with as_on_a_gpu():
        for family, n_zeros in ((torch.nn.LSTM, 2), (torch.nn.GRU, 1), (torch.nn.RNN, 1)):
            rnn = family(3, 5, 2, batch_first=True, bidirectional=True)
            with Operations() as operations:
                y = rnn(torch.empty(2, 7, 3, requires_grad=True))[0]
            assert operations.n == n_zeros + 2 and y.shape == (2, 7, 10)  # and the input


@pytest.mark.parametrize('name, value', [(None, 'preset'), *benchmark.SPACES])
def test_the_fast_form_sends_fewer_operations_in_every_space(name, value, tiny, capsys):
    sizes = dict(n_nodes=2)
    if name:
        sizes.update({'cnn_ops': 'skip_connect', 'rnn_ops': 'skip_connect', name: value})
    config = benchmark_steps.settings('search', 'default', **sizes)
    steps = ['weight_step', 'alpha_step_1', 'alpha_step_2'][:3 if value in ('preset', 'lstm', 'conv') else 2]
    rows = benchmark.count_rows(value, config, steps)
    assert len(rows) == len(steps) and all(row['fast'] < row['plain'] for row in rows)


def test_a_step_that_does_not_fit_into_memory_has_no_time_and_the_others_go_on(capsys):
    class Fake:
        net = torch.nn.Linear(1, 1)

        def __init__(self, form):
            self.form = form

        def weight_step(self):
            if self.form == 'plain':
                raise torch.OutOfMemoryError
    times = benchmark_steps.take_turns([Fake('fast'), Fake('plain')], 'weight_step', torch.device('cpu'), 1, 2)
    row = benchmark.row({'step': 'weight_step'}, times)
    assert row['fast'] > 0 and row['plain'] is None and row['ratio'] is None
    found = {'command': 'c', 'device': 'd', 'machine': 'm', 'versions': 'v', 'preset': 'p', 'rows': [row], 'memory': []}
    assert 'plain out of memory ms' in capsys.readouterr().out
    assert f'| weight step | {row["fast"]:.1f} | out of memory | **out of memory** |' in benchmark_report.markdown(found)
    assert '| p | out of memory | not measured |' in benchmark_report.summary([found])
    sampled = {'steps': [{'step': 'weight_step', 'softmax': None, 'gumbel': 2., 'uniform': 1.}], 'memory': []}
    text = benchmark_report.markdown({**found, 'sampled': sampled, 'rows': []})
    assert '| weight step, ms | out of memory | 2.0 | 1.0 | **out of memory** | **out of memory** |' in text


class Large(benchmark_steps.Steps):
    """Steps of a network that never fits."""

    def alpha_step_1(self):
        raise torch.OutOfMemoryError


def test_a_search_that_does_not_fit_into_memory_has_no_peak_and_the_others_go_on():
    found = [benchmark_steps.memory('plain', 'default', torch.device('cpu'), 1, steps, **TINY, **TINY_SEARCH)
             for steps in (Large, benchmark_steps.Steps)]
    assert found[0] == {'form': 'plain', 'peak_mib': None, 'first_step_s': None} and found[1]['peak_mib'] > 0
    text = benchmark_report.markdown({'command': 'c', 'device': 'd', 'machine': 'm', 'versions': 'v', 'preset': 'p',
                                      'rows': [], 'memory': found})
    assert '| plain | out of memory | out of memory |' in text
