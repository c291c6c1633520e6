"""The cache of features: keyed by content, made whole after any interruption, and all faults of a corpus reported at once."""
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import librosa
import numpy as np
import pytest
import torch
import torchaudio
from conftest import ROOT
from test_features import CONFIG, WAVE, settings, write

import config as cf
from datasets import features as ft
from datasets import index as index_module
from datasets.utterance import Utterance


@pytest.fixture
def extracted(monkeypatch):
    """A list that grows by one with every extraction."""
    calls, extract = [], ft.extract
    monkeypatch.setattr(ft, 'extract', lambda wave, config: calls.append(1) or extract(wave, config))
    return calls


@pytest.fixture
def hashed(monkeypatch):
    """The paths whose bytes are read to make a key. Files count as settled however young they are."""
    paths, file_digest = [], ft.file_digest
    monkeypatch.setattr(ft, 'file_digest', lambda path: paths.append(path) or file_digest(path))
    monkeypatch.setattr(index_module, 'SETTLED_NS', -10 ** 18)
    return paths


def features(utterances, cache, config=CONFIG, **kwargs):
    return ft.cached_features(utterances, config, str(cache), **kwargs)[0]


def test_keys_are_those_of_earlier_versions(tmp_path):
    """SHA-256 of the file, then of constants and settings, written out: features that were cached before stay in use."""
    u = write(tmp_path / 'x.wav')
    segment = Utterance(u.path, 'x', 'a', start=.5, end=1.)
    versions = f"'{torchaudio.__version__}', '{librosa.__version__}'"
    for config, written in ((settings(64), "('logmel', 64, 16.0, 1, 0.0)"),
                            (cf.SearchConfig(name='x', features='mfcc', n_mels=13, hop_ms=10, time_pool=4, trim_db=30, seed=7),
                             "('mfcc', 13, 10.0, 4, 30.0)")):
        for utterance, times in ((u, 'None, None'), (segment, '0.5, 1.0')):
            tail = f'((1, 16000, 512, 2048, 20.0, 8000.0, 1e-06, 2048, 512, {versions}), {written}, {times})'
            expected = hashlib.sha256((tmp_path / 'x.wav').read_bytes() + tail.encode()).hexdigest()
            assert ft.cache_key(utterance, config) == ft.open_index(str(tmp_path), config).key(utterance) == expected


def test_cache_is_keyed_by_content_and_parameters(tmp_path, extracted):
    u, cache = write(tmp_path / 'x.wav'), tmp_path / 'cache'
    first = features([u], cache)[0]
    assert np.array_equal(features([u], cache)[0], first) and len(extracted) == 1
    moved = Utterance(str(tmp_path / 'y.wav'), 'sad', 'b')
    (tmp_path / 'y.wav').write_bytes((tmp_path / 'x.wav').read_bytes())
    assert np.array_equal(features([moved], cache)[0], first) and len(extracted) == 1
    write(tmp_path / 'x.wav', WAVE * .5)
    assert not np.array_equal(features([u], cache)[0], first) and len(extracted) == 2
    for config in (settings(41), settings(hop_ms=10.), settings(features='mfcc'), settings(time_pool=2), settings(trim_db=30.)):
        features([u], cache, config)
    features([Utterance(u.path, 'x', 'a', start=.5)], cache)
    assert len(extracted) == 8


def test_it_is_told_how_many_were_extracted(tmp_path):
    us = [write(tmp_path / f'{i}.wav', WAVE * (i + 1) / 4) for i in range(3)]
    assert [ft.cached_features(us[:n], CONFIG, str(tmp_path / 'cache'))[1] for n in (1, 3, 3)] == [1, 2, 0]


def test_an_interrupted_or_damaged_cache_is_made_whole(tmp_path, monkeypatch):
    us = [write(tmp_path / f'{i}.wav', WAVE * (i + 1) / 4) for i in range(3)]
    cache, calls, extract = tmp_path / 'cache', [], ft.extract

    def interrupted(wave, config):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return extract(wave, config)
    monkeypatch.setattr(ft, 'extract', interrupted)
    with pytest.raises(KeyboardInterrupt):
        features(us, cache, workers=1)
    assert len(list(cache.glob('*/*'))) == 2
    monkeypatch.setattr(ft, 'extract', lambda wave, config: calls.append(1) or extract(wave, config))
    whole = features(us, cache)
    assert len(calls) == 3  # continues where it stopped
    path = next(cache.glob('*/*.npy'))
    path.write_bytes(path.read_bytes()[:200])
    again = features(us, cache)
    assert len(calls) == 4 and all(map(np.array_equal, whole, again))


def test_audio_that_did_not_change_is_not_read_again(tmp_path, hashed, extracted):
    us = [write(tmp_path / f'{i}.wav', WAVE * (i + 1) / 4) for i in range(3)]
    first = features(us, tmp_path / 'cache')
    assert hashed == [u.path for u in us]
    assert all(map(np.array_equal, features(us, tmp_path / 'cache'), first)) and len(hashed) == 3
    features(us, tmp_path / 'cache', settings(41))  # the extraction reads it anyway
    assert len(hashed) == 6
    write(tmp_path / '1.wav', WAVE[::-1])  # as long as before
    changed = features(us, tmp_path / 'cache')
    assert hashed[6:] == [us[1].path] and len(extracted) == 7 and not np.array_equal(changed[1], first[1])
    before = os.stat(us[1].path)
    write(tmp_path / '1.wav', WAVE * .5)
    os.utime(us[1].path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps time stamps
    assert np.array_equal(features(us, tmp_path / 'cache')[1], first[1])
    shutil.move(us[0].path, tmp_path / 'elsewhere.wav')
    features([Utterance(str(tmp_path / 'elsewhere.wav'), 'x', 'a')], tmp_path / 'cache')
    assert len(hashed) == 9 and len(extracted) == 7  # known by its content


def test_a_file_that_has_just_changed_is_not_trusted(tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(index_module, 'SETTLED_NS', 60 * 10 ** 9)
    u = write(tmp_path / 'x.wav')
    features([u], tmp_path / 'cache')
    features([u], tmp_path / 'cache')
    assert len(hashed) == 2 and not list(tmp_path.glob('cache/index*'))


@pytest.mark.parametrize('text', ['', '{"a": ', '[]', '{"PATH": 3}', '{"PATH": [[1, 2], {"None None": "0"}]}',
                                  '{"PATH": [[1, 2, 3], []]}', '{"PATH": [STAMP, {"None None": 7}]}'])
def test_a_damaged_index_is_made_anew(text, tmp_path, hashed):
    u = write(tmp_path / 'x.wav')
    first = features([u], tmp_path / 'cache')
    (index,) = tmp_path.glob('cache/index*.json')
    whole = index.read_text()
    index.write_text(text.replace('PATH', u.path).replace('STAMP', json.dumps(json.loads(whole)[u.path][0])))
    assert np.array_equal(features([u], tmp_path / 'cache'), first) and len(hashed) == 2
    assert json.loads(index.read_text()) == json.loads(whole)


def test_processes_that_write_an_index_keep_what_others_wrote(tmp_path, hashed):
    us = [write(tmp_path / f'{i}.wav', WAVE * (i + 1) / 4) for i in range(2)]
    one, other = (ft.open_index(str(tmp_path / 'cache'), CONFIG) for _ in range(2))  # both begin with an empty cache
    one.key(us[0])
    other.key(us[1])
    one.save()
    other.save()
    assert [ft.open_index(str(tmp_path / 'cache'), CONFIG).key(u) for u in us] == [ft.cache_key(u, CONFIG) for u in us]
    assert len(hashed) == 2 + 0 and set(ft.open_index(str(tmp_path / 'cache'), CONFIG).entries) == {u.path for u in us}


def test_a_file_of_many_segments_is_read_once(tmp_path, hashed):
    path = write(tmp_path / 'x.wav').path
    us = [Utterance(path, 'x', 'a', start=i / 10) for i in range(5)]
    found = features(us, tmp_path / 'cache')
    assert hashed == [path] and all(map(np.array_equal, features(us, tmp_path / 'cache'), found)) and hashed == [path]
    assert {p.stem for p in tmp_path.glob('cache/*/*.npy')} == {ft.cache_key(u, CONFIG) for u in us}
    assert [x.shape[1] for x in found] == [ft.extract(ft.load_audio(u), CONFIG).shape[1] for u in us]


def test_any_number_of_threads_gives_the_same_bits(tmp_path, extracted):
    us = [write(tmp_path / f'{i}.wav', WAVE[:8000 + 100 * i] * (i + 1) / 40, 16_000 if i % 2 else 22_050) for i in range(40)]
    us += us[:5]  # a recording that is in the corpus twice is extracted once
    torch.set_num_threads(2)
    try:
        one, four, auto = (features(us, tmp_path / f'cache{n}', workers=n) for n in (1, 4, 0))
        with ThreadPoolExecutor(1) as pool:  # what torch starts later works with as many threads as before
            assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert len(extracted) == 3 * 40 and len(one) == 45 and {x.dtype for x in one} == {np.dtype(np.float16)}
    assert all(map(np.array_equal, one, four)) and all(map(np.array_equal, one, auto))
    assert not [t for t in threading.enumerate() if 'ThreadPool' in t.name]


@pytest.mark.parametrize('workers, cores, threads', [(0, 3, 3), (0, 64, ft.THREADS), (5, 3, 5)])
def test_threads_are_as_many_as_the_cores_that_may_be_used(workers, cores, threads, tmp_path, monkeypatch):
    """joblib knows the affinity of the process and the quota of its container."""
    seen = []
    monkeypatch.setattr(ft.joblib, 'cpu_count', lambda: cores)
    monkeypatch.setattr(ft, 'ThreadPoolExecutor', lambda n, **kwargs: seen.append(n) or ThreadPoolExecutor(n, **kwargs))
    features([write(tmp_path / 'x.wav')], tmp_path / 'cache', workers=workers)
    assert seen == [threads]


def test_all_faults_are_reported_at_once_and_the_rest_is_kept(tmp_path, extracted):
    us = [write(tmp_path / f'{i:02d}.wav', WAVE * (i + 1) / 40) for i in range(40)]
    (tmp_path / '05.wav').unlink()
    (tmp_path / '10.wav').write_text('no audio')
    write(tmp_path / '20.wav', np.full(48_000, np.nan, np.float32), 48_000, subtype='FLOAT')
    write(tmp_path / '30.wav', WAVE[:100])
    with pytest.raises(cf.UserError) as error:
        features(us, tmp_path / 'cache')
    said = str(error.value)
    assert said.startswith('4 faults: ') and '\n' not in said
    for part in ('05.wav: cannot be read (No such', '10.wav: cannot be read as audio', '20.wav: contains', '30.wav: 100 '):
        assert said.count(part) == 1
    assert len(extracted) == len(list(tmp_path.glob('cache/*/*.npy'))) == 36
    for u in us[:7]:
        open(u.path, 'w').close()  # seven times the same bytes, and yet seven faults
    with pytest.raises(cf.UserError, match='^10 faults: .*00.wav.*06.wav.*10.wav'):
        features(us, tmp_path / 'cache')
    with pytest.raises(cf.UserError, match='^--n_mels 2000: some mel filters would be empty; use fewer$'):
        features(us[31:], tmp_path / 'cache', settings(2000))


def test_the_first_twenty_faults_are_listed(tmp_path):
    us = [Utterance(str(tmp_path / f'{i:02d}.wav'), 'x', 'a') for i in range(33)]
    with pytest.raises(cf.UserError, match='^33 faults: .*00.wav.*19.wav.*; and 13 more$') as error:
        features(us, tmp_path / 'cache')
    assert '20.wav' not in str(error.value)
    segments = [Utterance(us[0].path, 'x', 'a', start=float(i)) for i in range(9)]
    with pytest.raises(cf.UserError) as error:
        features(segments, tmp_path / 'cache')
    assert str(error.value).count('00.wav') == 1  # one file, one fault


PROGRAM = '''
import sys
import config as cf
import utils
from datasets import features as ft
from datasets import index as index_module
from datasets.utterance import Utterance
us = [Utterance(sys.argv[1], 'x', 'a', start=i / 100_000) for i in range(8_000)]
utils.cli(lambda: ft.cached_features(us, cf.FeatureSettings(), sys.argv[2]))
'''


def test_an_interruption_ends_at_once_with_one_line(tmp_path):
    path, cache = write(tmp_path / 'x.wav').path, tmp_path / 'cache'
    process = subprocess.Popen([sys.executable, '-c', PROGRAM, path, str(cache)], text=True, stderr=subprocess.PIPE,
                               start_new_session=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    deadline = time.time() + 120
    while len(list(cache.glob('*/*.npy'))) < 20:
        assert process.poll() is None and time.time() < deadline
        time.sleep(.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said.count('\n') == 1 and 'interrupted' in said
    assert not list(cache.glob('*/*.tmp')) and len(list(cache.glob('*/*.npy'))) < 4_000  # of 8,000: it did not go on
