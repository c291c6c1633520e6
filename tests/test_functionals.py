"""openSMILE's functionals for the SVM, against the package's own call, and a made-up package where it is not installed."""
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'scripts'))
from jobs import SVMS, Job  # noqa: E402

import config as cf  # noqa: E402
import datasets  # noqa: E402
from datasets import features, functionals  # noqa: E402
from scripts import svm  # noqa: E402

CALLS = []  # waves that the made-up package was given


def summary(wave):
    """(30,) functionals: those of thirty lags, and of sizes far apart."""
    return np.array([np.mean(np.abs(wave[lag:] - wave[:len(wave) - lag])) * 10. ** (lag % 9 - 5) for lag in range(1, 31)])


class MadeUp:
    num_features = 30

    def __init__(self, feature_set, feature_level):
        assert feature_level == 'functionals'
        self.scale = {'compare': 1., 'egemaps': 2.}[feature_set]

    def process_signal(self, wave, rate):
        assert rate == 16_000 and wave.dtype == np.float32
        CALLS.append(wave)
        return pd.DataFrame(self.scale * summary(wave)[None], dtype='float32')


@pytest.fixture
def package(monkeypatch):
    """A made-up package opensmile."""
    CALLS.clear()
    sets = SimpleNamespace(ComParE_2016='compare', eGeMAPSv02='egemaps')
    made_up = SimpleNamespace(Smile=MadeUp, FeatureSet=sets, FeatureLevel=SimpleNamespace(Functionals='functionals'),
                              __version__='0')
    monkeypatch.setitem(sys.modules, 'opensmile', made_up)
    return made_up


def flags(corpus, *more):
    return ['--dataset', 'manifest', '--data_path', str(corpus), *more]


def loaded(corpus, *more):
    return datasets.load(cf.build('svm', cf.given('svm', ['--name', 'x', *flags(corpus, *more)])), ('train', 'dev', 'test'))


def test_without_the_package_one_line_says_what_to_install(small_corpus, here, monkeypatch):
    monkeypatch.setitem(sys.modules, 'opensmile', None)
    with pytest.raises(cf.UserError, match='research and education only: pip install -r requirements-opensmile.txt$'):
        svm.main(['--name', 'x', *flags(small_corpus), '--functionals', 'compare'])
    assert not (here / 'runs').exists()


def test_every_recording_is_read_once_trimmed_and_at_its_rate(small_corpus, here, package):
    utterances = datasets.scan('manifest', str(small_corpus))
    smile = functionals.Smile('egemaps')
    found = functionals.cached_functionals(utterances, smile, 20., 'cache', workers=3, quiet=True)
    waves = [features.trim(features.load_audio(u), 20.) for u in utterances]
    np.testing.assert_array_equal(found, np.float32([2 * summary(np.clip(wave, -1, 1)) for wave in waves]))
    assert any(len(wave) < len(features.load_audio(u)) for wave, u in zip(waves, utterances))
    assert len(CALLS) == len(utterances)
    again = functionals.cached_functionals(utterances, smile, 20., 'cache', quiet=True)
    assert len(CALLS) == len(utterances) and np.array_equal(found, again)
    damaged, *_ = Path('cache').rglob('*.f4')
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert np.array_equal(found, functionals.cached_functionals(utterances, smile, 20., 'cache', quiet=True))
    assert len(CALLS) == len(utterances) + 1
    functionals.cached_functionals(utterances[:2], functionals.Smile('compare'), 20., 'cache', quiet=True)
    functionals.cached_functionals(utterances[:2], smile, 0., 'cache', quiet=True)
    assert len(CALLS) == len(utterances) + 5  # another set, another trimming


def test_an_interrupted_extraction_goes_on_and_all_faults_are_named(small_corpus, here, package, monkeypatch):
    utterances = datasets.scan('manifest', str(small_corpus))[:6]
    smile, process = functionals.Smile('compare'), MadeUp.process_signal

    def interrupted(self, wave, rate):
        if len(CALLS) == 4:
            raise KeyboardInterrupt
        return process(self, wave, rate)
    monkeypatch.setattr(MadeUp, 'process_signal', interrupted)
    with pytest.raises(KeyboardInterrupt):
        functionals.cached_functionals(utterances, smile, 0., 'cache', workers=1, quiet=True)
    monkeypatch.setattr(MadeUp, 'process_signal', process)
    functionals.cached_functionals(utterances, smile, 0., 'cache', workers=1, quiet=True)
    assert len(CALLS) == 6
    for name in ('a.wav', 'b.wav'):
        Path(name).write_text('no audio')
    bad = [datasets.Utterance(name, 'sad', 's') for name in ('a.wav', 'b.wav', 'c.wav')]
    with pytest.raises(cf.UserError, match='3 faults: a.wav: cannot.*b.wav: cannot.*c.wav: cannot'):
        functionals.cached_functionals([*bad, *utterances], smile, 0., 'cache', workers=1, quiet=True)


@pytest.mark.parametrize('how', ['corpus', 'speaker'])
def test_the_machine_is_scikit_learns_on_standardised_functionals(how, small_corpus, here, package, monkeypatch):
    monkeypatch.setattr(svm, 'WIDE', (1e-2,))
    monkeypatch.setattr(svm.dataset, 'ENOUGH', 8)  # recordings of a speaker
    argv = flags(small_corpus, '--functionals', 'compare', '--normalise', how)
    svm.main(['--name', 'run', *argv])
    found = json.loads(Path('runs/augment/run/results.json').read_text())
    data = loaded(small_corpus)
    x = {name: np.stack([summary(np.clip(features.load_audio(u), -1, 1)) for u in part.utterances])
         for name, part in data.sets.items()}
    if how == 'speaker':
        for name, part in data.sets.items():
            for speaker in part.speakers:
                rows = [u.speaker == speaker for u in part.utterances]
                x[name][rows] = StandardScaler().fit_transform(x[name][rows])
    scaler = StandardScaler().fit(x['train'])
    machine = LinearSVC(C=1e-2, class_weight='balanced', dual=False, max_iter=100_000)
    machine.fit(scaler.transform(x['train']), data.sets['train'].labels)
    values = machine.decision_function(scaler.transform(x['test']))
    written = pd.read_csv('runs/augment/run/predictions.csv').iloc[:, 4:6].to_numpy()
    np.testing.assert_allclose(np.log(written[:, 1] / written[:, 0]) / 2, values, atol=2e-3)
    assert (found['model'], found['n_params'], found['C'], found['opensmile']) == ('svm_compare', 2 * 31, 1e-2, '0')


def test_turned_data_give_the_same_machine():
    random = np.random.default_rng(0)
    x, other = random.standard_normal((30, 200)) * 10. ** random.integers(-4, 5, 200), random.standard_normal((9, 200))
    y = random.integers(0, 3, 30)
    values = []
    for rotate in (False, True):
        train, test = svm.standardised(rotate, x, other)
        machine = LinearSVC(C=1e-3, dual=False, tol=1e-10, max_iter=100_000).fit(train, y)
        values.append(machine.decision_function(test))
        assert train.shape == (30, 30 if rotate else 200)
    np.testing.assert_allclose(*values, rtol=1e-4)


def test_what_is_not_finite_is_the_mean_of_the_training_recordings(small_corpus, here, package, monkeypatch):
    process = MadeUp.process_signal

    def faulty(self, wave, rate):
        found = process(self, wave, rate)
        if len(CALLS) in (1, 48):  # the first and the last recording, of training and of test
            found.iloc[0, 3] = (np.nan, np.inf)[len(CALLS) == 48]
        return found
    monkeypatch.setattr(MadeUp, 'process_signal', faulty)
    config, said = cf.build('svm', cf.given('svm', ['--name', 'x', *flags(small_corpus), '--workers', '1'])), []
    data, log = loaded(small_corpus), SimpleNamespace(info=lambda text, *parts: said.append(text % parts))
    x = svm.of_opensmile(functionals.Smile('compare'), config, data, log)
    assert all(np.isfinite(part).all() for part in x.values())
    assert abs(x['train'][0, 3]) < 1e-12 and abs(x['test'][-1, 3]) < 1e-12 < abs(x['test'][-2, 3])
    np.testing.assert_allclose(x['train'][1:, 3].mean(), 0, atol=1e-12)
    assert data.sets['train'].utterances[0].path in said[1] and '2 functionals of 2 recordings' in said[1]


def test_each_model_has_its_flag_and_settings_without_effect_are_refused(small_corpus):
    for model, more in SVMS.items():
        argv = Job('x', model, 1, 0).argv()
        assert argv[0] == 'scripts/svm.py' and argv[argv.index('--resume') + 1:] == [*more]
    with pytest.raises(cf.UserError, match='--n_mels has no effect with --functionals egemaps'):
        cf.build('svm', cf.given('svm', ['--name', 'x', '--n_mels', '8', '--functionals', 'egemaps']))


@pytest.mark.parametrize('chosen, n', [('egemaps', 88), ('compare', 6373)])
def test_functionals_are_those_of_the_packages_own_call(chosen, n, small_corpus, here):
    opensmile = pytest.importorskip('opensmile')
    utterances = datasets.scan('manifest', str(small_corpus))[:3]
    smile = functionals.Smile(chosen)
    found = functionals.cached_functionals(utterances, smile, 0., 'cache', workers=2, quiet=True)
    alone = opensmile.Smile(opensmile.FeatureSet[{'egemaps': 'eGeMAPSv02', 'compare': 'ComParE_2016'}[chosen]],
                            opensmile.FeatureLevel.Functionals)
    for u, row in zip(utterances, found, strict=True):
        wave, rate = soundfile.read(u.path, dtype='float32')
        np.testing.assert_array_equal(row, alone.process_signal(wave, rate).to_numpy()[0])
    assert found.shape == (3, n)


def test_samples_beyond_16_bits_are_clipped(package):
    functionals.Smile('compare')(np.float32([2., 1., .5, -1., -2.] * 10))
    assert CALLS[-1][:5].tolist() == [functionals.LOUDEST, functionals.LOUDEST, .5, -1., -1.]
    samples = np.round(CALLS[-1][:5] * 2. ** 15)
    assert (samples == samples.astype(np.int16)).all()  # none changes its sign
