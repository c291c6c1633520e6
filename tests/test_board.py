"""models/board.py and what it stands on: failures become warnings, pictures have a schedule."""
import logging
import time
from types import SimpleNamespace

import numpy as np
import pytest

import config as cf
import genotypes as gt
import utils
from config import UserError
from datasets.utterance import Utterance
from models import board, charts, memory


def a_run(seconds=(10.,), epochs=9, **more):
    history = [{'epoch': i, 'seconds': took} for i, took in enumerate(seconds, 1)]
    return SimpleNamespace(history=history, config=SimpleNamespace(epochs=epochs), writes=True,
                           logger=logging.getLogger('x'), **more)


def test_a_failure_is_a_warning_and_takes_nothing_else_along(caplog):
    run = a_run()
    board.harmless(lambda run: 1 / 0)(run)
    assert 'ZeroDivisionError' in caplog.text
    run.writes = False
    board.harmless(lambda run: pytest.fail())(run)
    run.writes = True
    with pytest.raises(KeyboardInterrupt):
        board.harmless(interrupt)(run)


def interrupt(run):
    raise KeyboardInterrupt


def test_the_row_of_hparams_has_the_sizes_that_the_genotype_decides(monkeypatch):
    genotype = gt.draw(np.random.default_rng(0), 2, 1, 'speech', 'speech', space='speech')
    genotype = genotype._replace(network={**genotype.network, 'C': 6, 'layers': 4})
    config = cf.AugmentConfig(name='x', genotype=gt.to_str(genotype))
    assert (config.init_channels, config.layers) != (6, 4)
    rows, written = [], []
    monkeypatch.setattr(board, 'hparams', lambda row, _: rows.append(row) or [row])
    writer = SimpleNamespace(add_text=print, add_custom_scalars=written.append, _get_file_writer=lambda: SimpleNamespace(
        add_summary=written.append))
    run = SimpleNamespace(config=config, program='augment', resumed=False, writer=writer, writes=True, path='runs/augment/x')
    speakers = SimpleNamespace(train=['a'], dev=['b'], test=['c'])
    board.begin(run, SimpleNamespace(labels=['x', 'y'], fold=speakers), 77, memory.sized(config, genotype))
    row = {name.partition('_')[2]: value for name, value in rows[0].items()}
    assert row['init_channels'] == 6 and row['layers'] == 4 and row['parameters'] == 77
    assert row['model'] == 'searched network' and row['fold'] == '1' and rows[0] in written


def test_pictures_are_of_every_epoch_or_of_thirty_and_of_the_last():
    for epochs, wanted in ((9, range(1, 10)), (30, range(1, 31)), (61, [*range(3, 61, 3), 61])):
        found = [n for n in range(1, epochs + 1) if board.due(a_run([1.] * n, epochs=epochs))]
        assert found == list(wanted)


def test_time_left():
    assert utils.time_left(a_run((10., 20.), epochs=4)) == ', 30 s left' and utils.time_left(a_run(epochs=1)) == ''
    assert utils.time_left(a_run((60.,), epochs=13)) == ', 12 min left'


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(utils, 'LINE_EVERY', .05)
    with utils.progress(3, 'features') as bar:
        for _ in range(3):
            time.sleep(.1)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith('features: ') and ' of 3, ' in line for line in lines)
    with utils.progress(3, 'quick') as bar:
        bar.update(3)
    with utils.progress(3, 'quiet', quiet=True) as bar:
        time.sleep(.1)
        bar.update(3)
    assert capsys.readouterr().err == ''


def test_curves_leave_out_what_a_run_does_not_have():
    history = [{'epoch': 1, 'train': {'ua': .5, 'loss': 1.}, 'lr': .1, 'seconds': 3.}]
    figure = charts.lines(charts.curves(history, .25), [1])
    assert [axes.get_ylabel() for axes in figure.axes] == ['UA, %', 'loss', 'learning rate', 'time per epoch, s']
    lines = {line.get_label(): line.get_ydata()[0] for line in figure.axes[0].lines}
    assert lines == {'train': 50., 'chance': 25.}


def test_the_leading_operations_are_those_of_the_last_epoch():
    first, last = [[[.4, .3, .2, .1]] * 2], [[[.1, .2, .3, .4], [.7, .1, .1, .1]]]
    axes = charts.leading([first, last], 'abcd').axes
    assert [[text.get_text() for text in one.get_legend().texts] for one in axes] == [['d', 'c', 'b'], ['a', 'b', 'c']]
    named = {line.get_label(): line.get_ydata() for line in axes[0].lines if len(line.get_label()) == 1}
    assert np.allclose(named['d'], [10, 40])


def test_speakers():
    labels, predicted = np.array([0, 1, 0, 0, 1]), np.array([0, 0, 0, 0, 1])
    assert board.by_speaker(labels, predicted, ['b', 'b', 'a', 'a', 'a']) == {'a': (1., 3), 'b': (.5, 2)}


def test_audio_that_cannot_be_read_is_left_out_where_frames_stand_for_it(tmp_path):
    (tmp_path / 'a.m4a').write_bytes(b'ftyp')
    u = Utterance(str(tmp_path / 'a.m4a'), 'sad', 'ann')
    assert board.audible(u, cf.AugmentConfig(name='x', features='frames')) is None
    with pytest.raises(UserError, match='a.m4a: cannot be read as audio'):
        board.audible(u, cf.AugmentConfig(name='x'))
