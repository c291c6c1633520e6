"""What a Stopwatch counts, and what is not known of earlier versions, GPUs and several processes."""
import time
from types import SimpleNamespace

import pytest
import torch

from models import parallel, stopwatch
from models.stopwatch import Stopwatch

CPU, GPU = torch.device('cpu'), torch.device('cuda')


@pytest.mark.parametrize('device, processes, before, found', [
    (CPU, 1, None, {'seconds': 10., 'core_seconds': 3.}),
    (CPU, 1, {'seconds': 60., 'core_seconds': 30.}, {'seconds': 70., 'core_seconds': 33.}),
    (CPU, 1, {'seconds': 60.}, {'seconds': 70.}),  # begun by an earlier version, or on a GPU
    (GPU, 1, None, {'seconds': 10.}), (GPU, 1, {'seconds': 60., 'core_seconds': 30.}, {'seconds': 70.}),
    (CPU, 2, None, {'seconds': 10.})])
def test_a_stopwatch_tells_waiting_from_computing_where_that_is_known(device, processes, before, found, monkeypatch):
    clock = {'wall': 100., 'cores': 40.}
    times = SimpleNamespace(monotonic=lambda: clock['wall'], process_time=lambda: clock['cores'])
    monkeypatch.setattr(stopwatch, 'time', times)
    monkeypatch.setattr(parallel, 'world_size', lambda: processes)
    watch = Stopwatch(device, before)
    clock |= {'wall': 110., 'cores': 43.}  # 7 of 10 s were spent waiting
    assert watch.read() == found


def test_a_clock_that_is_set_back_takes_no_time_away(monkeypatch):
    watch = Stopwatch(CPU, {'seconds': 5.})
    monkeypatch.setattr(time, 'time', lambda: 0.)
    assert watch.read()['seconds'] >= 5.


def test_a_total_has_core_seconds_only_if_all_that_took_time_has_them():
    rows = [{'seconds': 60., 'core_seconds': 30.}, {'seconds': 60., 'core_seconds': 45.}]
    assert stopwatch.total([*rows, {'seconds': 0.}]) == {'seconds': 120., 'core_seconds': 75.}
    assert stopwatch.in_minutes(stopwatch.total(rows)) == '2.0 minutes, 1.2 of cores'
    assert stopwatch.total([*rows, {'seconds': 30.}]) == {'seconds': 150.}
    assert stopwatch.in_minutes({'seconds': 150.}) == '2.5 minutes'
