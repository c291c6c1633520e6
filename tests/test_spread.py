"""scripts/spread.py: its trainings against augment.py, its resumption, its draws, and the page of its results."""
import csv
import dataclasses
import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL

import augment
import config as cf
from datasets.scoring import Diverged
from models import candidates
from scripts import spread, spread_plan, spread_report
from utils import UserError

ARGS = ['--name', 's', '--dataset', 'manifest', '--epochs', '4', '--lr', '0.1', '--folds', '3', '--train_on_dev', *SMALL,
        '--n_nodes', '1', '--rnn_nodes', '1', '--architectures', '2', '--seeds', '2', '--workers', '1', '--threads', '1']
SEARCH = spread.Path(__file__).parent.parent / 'docs' / 'search'


@pytest.fixture(scope='module')
def whole(small_corpus, tmp_path_factory):
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp('spread')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        spread.main([*ARGS, '--data_path', str(small_corpus)])
    return folder


def trainings(folder):
    with open(folder / 'runs/spread/s/trainings.csv', newline='') as f:
        return [{name: value for name, value in row.items() if name not in ('minutes', 'latency_ms')}
                for row in csv.DictReader(f)]


def test_rows_are_those_of_augment(small_corpus, whole, here):
    row = trainings(whole)[3]
    assert (row['architecture'], row['seed'], row['fold'], row['run_seed']) == ('1', '1', '1', '10101')
    args = ARGS[2:ARGS.index('--n_nodes')]
    augment.main(['--name', 'a', '--genotype', row['genotype'], '--seed', row['run_seed'], '--data_path', str(small_corpus),
                  *args])
    results = json.loads((here / 'runs/augment/a/results.json').read_text())
    assert float(row['ua']) == pytest.approx(results['ua'], abs=1e-6)
    assert int(row['parameters']) == results['n_params']


def test_resumed_equals_uninterrupted(small_corpus, whole, here, monkeypatch, capsys):
    train, calls = spread.train, []

    def killed(*args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args)
        return train(*args)
    monkeypatch.setattr(spread, 'train', killed)
    argv = [*ARGS, '--data_path', str(small_corpus)]
    with pytest.raises(SystemExit) as ended:
        spread.main(argv)
    assert ended.value.code == 130 and trainings(here) == trainings(whole)[:3]
    spread.main([*argv, '--dry_run'])
    assert '3 of 4 trainings' in (said := capsys.readouterr().out) and 'INCOMPLETE: 1 of 2 genotypes lack' in said
    calls.clear()
    spread.main(argv)
    assert len(calls) == 1 and trainings(here) == trainings(whole)
    timed = re.compile(r'(On one CPU thread|Rank correlation .* latency).*')
    one, other = (timed.sub('', (folder / 'runs/spread/s/report.md').read_text()) for folder in (here, whole))
    assert one == other
    calls.clear()
    spread.main(argv)
    assert not calls
    more = [*argv, '--seeds', '3']
    spread.main(more)
    assert len(calls) == 2 and len(trainings(here)) == 6
    with pytest.raises(UserError, match='epochs is 3, but .* began with 4'):
        spread.main([*argv, '--epochs', '3'])


def test_dry_run_writes_nothing(small_corpus, here, capsys):
    spread.main([*ARGS, '--data_path', str(small_corpus), '--dry_run'])
    assert '0 of 4 trainings' in capsys.readouterr().out
    assert not (here / 'runs').exists() and not (here / '.cache').exists()


def test_one_process_at_a_time(here):
    with spread.locked(here / 'x'), pytest.raises(UserError, match='another process'), spread.locked(here / 'x'):
        pass


def networks(*argv, labels=('angry', 'sad')):
    own, config = spread_plan.configure(['--name', 's', *SMALL, *argv])
    return spread_plan.draw(own, config, list(labels))


def test_band_rejects():
    free = networks('--architectures', '30')
    sizes = sorted(network.parameters for network in free)
    low, high = sizes[10], sizes[20]
    inside = networks('--architectures', '8', '--band', f'{low}-{high}')
    assert all(low <= network.parameters <= high for network in inside)
    kept = [network.text() for network in free if low <= network.parameters <= high]
    assert [network.text() for network in inside[:len(kept)]] == kept[:8]  # those drawn without a band, less the rejected ones
    assert [network.text() for network in networks('--architectures', '3')] == [network.text() for network in free[:3]]
    assert networks('--architectures', '2', '--seed', '1')[0].text() != free[0].text()


@pytest.mark.parametrize('argv, message', [
    (['--band', '1-2'], r'--band 1-2: 50 genotypes in a row had [\d,]+ to [\d,]+ parameters'),
    (['--band', '9-2'], '--band 9-2: must be LOW-HIGH'),
    (['--band', 'small'], '--band small: must be LOW-HIGH'),
    (['--fold', '2'], '--fold: leave it out'),
    (['--model', 'cnn'], '--model: leave it out'),
    (['--init', 'runs/augment/a'], '--init: leave it out'),
    (['--seeds', '1'], '--seeds 1: must be from 2 to 100'),
    (['--cnn_ops', 'conv9'], 'unknown cnn operation')])
def test_mistakes(argv, message, monkeypatch):
    monkeypatch.setattr(candidates, 'MAX_DRAWS', 50)
    with pytest.raises(UserError, match=message):
        networks(*argv)


def test_the_gate_is_open_where_seeds_do_not_differ():
    y = np.random.default_rng(0).random((6, 1, 3))
    assert spread_report._verdict(y).startswith(('Gate: PASSED', 'Gate: NOT PASSED'))
    y[:3] = 2.
    assert spread_report._verdict(y).startswith('Gate: open. The seeds of some networks do not differ')


def test_folds_and_hand_made():
    assert spread_plan.fold_numbers('all', 3) == [1, 2, 3] and spread_plan.fold_numbers('3,1', 3) == [1, 3]
    for text in ('0', '4', '1,', 'x'):
        with pytest.raises(UserError, match='--only_folds'):
            spread_plan.fold_numbers(text, 3)
    own, config = spread_plan.configure(['--name', 's', *SMALL, '--hand_made', 'cnn_gru, cnn_gru:900,cnn_gru'])
    one, two = spread_plan.baselines(own, config, ['angry', 'sad'])
    assert (one.config.model, one.config.params, two.config.params) == ('cnn_gru', 0, 900)
    assert two.parameters < one.parameters and isinstance(two.config, cf.AugmentConfig)
    for text in ('gru', 'cnn_gru:big', ','):
        with pytest.raises(UserError, match='--hand_made'):
            spread_plan.baselines(spread_plan.configure(['--name', 's', '--hand_made', text])[0], config, ['angry', 'sad'])


@pytest.mark.parametrize('folder', sorted(path.parent for path in SEARCH.glob('nemo*/trainings.csv')
                                          if (path.parent / 'spread.png').exists()), ids=lambda path: path.name)
def test_committed_reports_are_those_of_the_committed_trainings(folder):
    rows = list(spread.read_rows(folder / 'trainings.csv', []).values())
    assert spread_report.report(rows, 12, 3, [2]) == (folder / 'report.md').read_text()


def test_committed_report_and_page_are_those_of_the_committed_trainings():
    rows = list(spread.read_rows(SEARCH / 'nemo' / 'trainings.csv', []).values())
    text = spread_report.report(rows, 12, 3, [2])
    page = (SEARCH.parent / 'spread.md').read_text()
    estimates = re.findall(r'^\| (.*?) \| (.*) \|$', text, re.M)[2:]
    assert len(estimates) > 12
    for name, numbers in estimates:
        if name.startswith(('sd', 'correlation', 'gain')):
            assert re.search(rf'^\| {re.escape(name)}.* \| {re.escape(numbers)} \|$', page, re.M), name
        elif name.startswith('cnn_gru:'):
            assert ' | '.join(numbers.split(' | ')[:3]) in page, name
    for found in ('0.40 (0.00 to 2.05)', '-0.66 (p 0.02', '0.30 (-0.04 to 0.68)', '0.66 (0.00 to 1.46)'):
        assert found in text
    assert 'NOT PASSED' in text and '| 0.40 | 0.00 to 2.05 |' in page and '-0.66 (p 0.02' in page


def test_latency_is_measured_on_one_thread(monkeypatch):
    own, config = spread_plan.configure(['--name', 's', *SMALL, '--deltas', '--prosody'])
    network, = spread_plan.draw(dataclasses.replace(own, architectures=2), config, ['angry', 'sad'])[:1]
    make_net, inside, shapes = spread_plan.make_net, [], []
    clock = itertools.accumulate(itertools.chain.from_iterable((0., .001 * (i - 4) if i > 4 else 9.) for i in range(35)))
    monkeypatch.setattr(spread_plan, 'time', SimpleNamespace(perf_counter=lambda: next(clock)))

    def made(*args):
        net = make_net(*args)
        net.register_forward_pre_hook(lambda *_: inside.append(torch.get_num_threads()))
        net.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[-1]))
        return net
    monkeypatch.setattr(spread_plan, 'make_net', made)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = spread_plan.latency_ms(config, ['angry', 'sad'], network.genotype)
        assert found == pytest.approx(15.5)  # the median of 1 to 30 ms, without the first five passes
        assert set(shapes) == {round(3 * config.frame_rate)} != {config.n_frames}
        assert set(inside) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_rows_of_earlier_versions_have_no_latency(whole, tmp_path):
    text = (whole / 'runs/spread/s/trainings.csv').read_text()
    with open(tmp_path / 'old.csv', 'w', newline='') as f:
        writer = csv.writer(f)
        writer.writerows(row[:-1] for row in csv.reader(text.splitlines()))
    rows = list(spread.read_rows(tmp_path / 'old.csv', []).values())
    assert len(rows) == 4 and {row['latency_ms'] for row in rows} == {None} and len(spread_report.draw(rows).axes) == 1
    assert 'CPU thread' not in spread_report.report(rows, 2, 2, [1])
    assert 'On one CPU thread' in (whole / 'runs/spread/s/report.md').read_text()


def test_the_figure_is_drawn_anew_from_committed_trainings(tmp_path, capsys):
    kept = SEARCH / 'nemo-speech-20k/trainings.csv'
    (tmp_path / 'trainings.csv').write_text(kept.read_text())
    spread_report.main([str(tmp_path)])
    assert f'figure: {tmp_path}/spread.png' in capsys.readouterr().out and (tmp_path / 'spread.png').stat().st_size > 1000
    with open(kept, newline='') as f:
        rows = list(csv.DictReader(f))
    figure = spread_report.draw(list(spread.read_rows(kept, []).values()))
    for axes, column in zip(figure.axes, ('parameters', 'latency_ms'), strict=True):
        drawn = [(x, ua) for line in axes.lines if line.get_linestyle() == '-' and line.get_marker() != '_'
                 for x, ua in zip(line.get_xdata(), line.get_ydata())]
        np.testing.assert_allclose(sorted(drawn), sorted((float(row[column]), 100 * float(row['ua'])) for row in rows))
        joined, = [line.get_xdata() for line in axes.lines if line.get_linestyle() == '--']
        assert [*joined] == sorted({float(row[column]) for row in rows if row['architecture'].startswith('cnn_gru')})
    assert [text.get_text() for text in figure.axes[1].texts] == ['5 k', '18 k', '76 k', '175 k']
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {'random genotypes', 'mean', 'cnn_gru, hand-made'}
    other = kept.parent.parent / 'nemo-recipe'  # of another program
    for folder, why in ((tmp_path / 'none', 'does not exist'), (other, 'is damaged: name a folder')):
        with pytest.raises(UserError, match=f'/trainings.csv {why}'):
            spread_report.main([str(folder)])


def test_bands_are_drawn_together_if_nothing_else_differs(tmp_path, capsys):
    kept = SEARCH / 'nemo-speech-20k'
    small, large, out = tmp_path / 'small', tmp_path / 'large', tmp_path / 'bands.png'
    settings = (kept / 'settings.yaml').read_text()
    for folder in (small, large):
        folder.mkdir()
        (folder / 'trainings.csv').write_text((kept / 'trainings.csv').read_text())
    (small / 'settings.yaml').write_text(settings)
    (large / 'settings.yaml').write_text(settings.replace('band: 15000-25000', 'band: 60000-100000'))
    with pytest.raises(UserError, match='bands.jpg: must end in .png'):
        spread_report.main([str(small), str(large), '-o', 'bands.jpg'])
    with pytest.raises(UserError, match='name the figure of several folders: -o FILE'):
        spread_report.main([str(small), str(large)])
    spread_report.main([str(small), str(large), '-o', str(out)])
    assert f'figure: {out}' in capsys.readouterr().out and out.stat().st_size > 1000
    rows = list(spread.read_rows(kept / 'trainings.csv', []).values())
    drawn, made = ([row for row in rows if bool(row['genotype']) is genotypes] for genotypes in (True, False))
    axes = spread_report.draw(drawn + made, drawn[:6] + made, names=['small', 'large']).axes[0]
    found = {label: [line for line in axes.lines if line.get_label() == label] for label in axes.get_legend_handles_labels()[1]}
    assert {label: sum(len(line.get_xdata()) for line in lines) for label, lines in found.items() if label != 'mean'} == {
        'random genotypes of small': len(drawn), 'random genotypes of large': 6, 'cnn_gru, hand-made': len(made)}
    assert len({line.get_color() for lines in found.values() for line in lines}) == 4
    (large / 'settings.yaml').write_text(settings.replace('prosody: true', 'prosody: false'))
    with pytest.raises(UserError, match='large: its prosody differs from that of .*small, so scores cannot be compared'):
        spread_report.main([str(small), str(large), '-o', str(out)])
    (large / 'settings.yaml').write_text(settings)
    (large / 'trainings.csv').write_text((kept / 'trainings.csv').read_text().replace(',2,2', ',1,2'))
    with pytest.raises(UserError, match=r'large has trainings of folds \[1, 2\], and .*small of \[2\], so scores'):
        spread_report.main([str(small), str(large), '-o', str(out)])
    (large / 'trainings.csv').write_text((kept / 'trainings.csv').read_text())
    (large / 'settings.yaml').unlink()
    with pytest.raises((UserError, FileNotFoundError), match='settings.yaml'):
        spread_report.main([str(small), str(large), '-o', str(out)])


def test_a_training_that_diverges_is_counted_and_the_rest_goes_on(small_corpus, here, monkeypatch, capsys):
    train, calls = spread.train, []

    def diverging(*args):
        calls.append(args)
        if len(calls) == 2:
            raise Diverged('training diverged: the loss is not finite')
        return train(*args)
    monkeypatch.setattr(spread, 'train', diverging)
    argv = [*ARGS, '--data_path', str(small_corpus)]
    spread.main(argv)
    assert len(calls) == 4 and [row['ua'] == 'nan' for row in trainings(here)] == [False, True, False, False]
    said = capsys.readouterr().out
    assert 'NOTE: architecture 0, seed 1, fold 1: training diverged: the loss is not finite' in said
    assert 'DIVERGED: 1 training (0 seed 1 fold 1). INCOMPLETE: 1 of 2 genotypes lack trainings' in said
    spread.main(argv)
    assert len(calls) == 4
