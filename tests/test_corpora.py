import time
from collections import Counter

import numpy as np
import pytest
import soundfile
from conftest import write_corpus

from config import UserError
from datasets import CORPORA, scan
from datasets.readers import emodb, manifest, ravdess, synthetic


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_emodb_names(tmp_path):
    found = emodb.scan(touch(tmp_path, 'wav/03a01Fa.wav', 'wav/08b10Wc.wav', 'wav/16a02Lb.wav'))
    assert [(u.speaker, u.label, u.gender) for u in found] == [('03', 'happiness', 'm'), ('08', 'anger', 'f'),
                                                               ('16', 'boredom', 'f')]


def test_ravdess_names_and_both_endings(tmp_path):
    names = ('Actor_01/03-01-05-01-01-01-01.wav', 'Actor_02/03-01-01-01-02-01-02.flac', 'Actor_02/03-01-01-01-02-01-02.wav')
    found = ravdess.scan(touch(tmp_path, *names))
    assert [(u.speaker, u.label, u.gender) for u in found] == [('02', 'neutral', 'f'), ('01', 'angry', 'm')]
    assert found[0].path.endswith('.wav')


@pytest.mark.parametrize('reader, name', [(emodb, 'wav/holiday.wav'), (ravdess, 'Actor_01/holiday.wav'),
                                          (ravdess, 'Actor_01/03-02-05-01-01-01-01.wav')])
def test_a_foreign_file_is_named(reader, name, tmp_path):
    with pytest.raises(UserError, match=name.split('/')[1]):
        reader.scan(touch(tmp_path, name))


def test_an_empty_or_missing_corpus_is_named(tmp_path):
    for path in (tmp_path, tmp_path / 'nowhere'):
        with pytest.raises(UserError, match='data_path'):
            scan('emodb', str(path))
    with pytest.raises(UserError, match='data_path'):
        scan('ravdess', None)


def test_manifest_reads_every_column(tmp_path):
    touch(tmp_path, 'a/b.wav')
    (tmp_path / 'm.csv').write_text('path,label,speaker,session,gender,split,start,end\n'
                                    'a/b.wav,happy,ann,s1,Female,train,0.5,2\na/b.wav,sad,bob,,,dev,2,\n')
    first, second = manifest.scan(tmp_path / 'm.csv')
    assert (first.label, first.speaker, first.session, first.gender, first.split) == ('happy', 'ann', 's1', 'f', 'train')
    assert (first.start, first.end, second.start, second.end) == (.5, 2., 2., None)
    assert first.path == str(tmp_path / 'a/b.wav') and second.gender is None


@pytest.mark.parametrize('text, named', [
    ('path,label\na.wav,x\n', 'column speaker'), ('path,label,speaker,age\na.wav,x,y,3\n', "'age'"),
    ('path,label,speaker\na.wav,x\n', 'line 2'), ('path,label,speaker\na.wav,x,y,z\n', 'line 2'),
    ('path,label,speaker\na.wav,x,y\nb.wav,x,y\n', 'line 3.*b.wav'), ('path,label,speaker\na.wav,,y\n', 'line 2: label'),
    ('path,label,speaker,start\na.wav,x,y,soon\n', "start 'soon'"),
    ('path,label,speaker,start,end\na.wav,x,y,2,1\n', 'end 1.0'),
    ('path,label,speaker,split\na.wav,x,y,valid\n', "'valid'"), ('path,label,speaker,gender\na.wav,x,y,q\n', "'q'"),
    ('path,label,speaker\na.wav,x,y\na.wav,x,z\n', 'line 3.*line 2'), ('', 'column path'),
    ('path,label,speaker,start\na.wav,x,y,nan\n', 'nan'),
])
def test_manifest_mistakes_name_the_row(text, named, tmp_path):
    touch(tmp_path, 'a.wav')
    (tmp_path / 'm.csv').write_text(text)
    with pytest.raises(UserError, match=named) as error:
        scan('manifest', str(tmp_path / 'm.csv'))
    assert 'm.csv' in str(error.value)


def test_synthetic_is_complete_deterministic_and_quick(tmp_path):
    began = time.time()
    found = synthetic.scan(tmp_path / 'made')
    assert time.time() - began < 30
    assert len(found) == synthetic.N_SPEAKERS * len(synthetic.MANNERS) * synthetic.N_TAKES == 480
    assert set(Counter((u.speaker, u.label) for u in found).values()) == {12} and len({u.speaker for u in found}) == 10
    for u in found[::60]:
        wave, rate = soundfile.read(u.path)
        assert rate == 16_000 and 1.4 < len(wave) / rate < 2.6 and .01 < np.abs(wave).max() <= 1.
    wave, _ = soundfile.read(found[100].path)
    np.testing.assert_allclose(wave, synthetic.synthesise(2, 'neutral', 4), atol=1 / 32768)
    assert [u.path for u in scan('synthetic', str(tmp_path / 'made'))] == [u.path for u in found]
    assert [p.name for p in tmp_path.iterdir()] == ['made']  # nothing aside is left


def test_synthetic_does_not_fill_a_folder_of_other_things(tmp_path):
    touch(tmp_path, 'thesis.tex')
    with pytest.raises(UserError, match='not a synthetic corpus'):
        scan('synthetic', str(tmp_path))


def test_emotion_is_in_the_synthetic_corpus_but_not_in_absolute_pitch_alone():
    """Logistic regression on speakers it did not see: functionals of the log-mel tell far more than the median pitch."""
    import librosa
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from datasets.features import FeatureConfig, extract
    pitch, functionals, y, speakers = [], [], [], []
    for speaker in range(10):
        for k, emotion in enumerate(synthetic.MANNERS):
            for take in range(4):
                wave = synthetic.synthesise(speaker, emotion, take)
                pitch.append([np.log(np.median(librosa.yin(wave, fmin=60, fmax=450, sr=16_000)))])
                x = extract(wave, FeatureConfig(n_mels=32))
                functionals.append(np.concatenate([x.mean(axis=1), x.std(axis=1), np.abs(np.diff(x)).mean(axis=1)]))
                y.append(k)
                speakers.append(speaker)

    def accuracy(X):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        return cross_val_score(model, np.array(X), y, groups=speakers, cv=LeaveOneGroupOut()).mean()
    assert accuracy(pitch) < .45
    assert accuracy(functionals) > .5


def test_small_corpus_reads(tmp_path):
    assert len(scan('manifest', str(write_corpus(tmp_path / 'c')))) == 48


@pytest.mark.speech
def test_real_corpora(ser_data):
    found = scan('emodb', str(ser_data / 'emodb'))
    assert len(found) == 535 and Counter(u.speaker for u in found)['13'] == 61
    counts = Counter(u.label for u in found)
    assert counts == dict(anger=127, boredom=81, disgust=46, fear=69, happiness=71, neutral=79, sadness=62)
    assert {u.speaker for u in found if u.gender == 'f'} == {'08', '09', '13', '14', '16'}
    found = scan('ravdess', str(ser_data / 'ravdess'))
    assert len(found) == 1440 and set(Counter(u.speaker for u in found).values()) == {60}
    assert Counter(u.label for u in found)['neutral'] == 96 and Counter(u.label for u in found)['calm'] == 192


def test_every_corpus_is_offered_on_the_command_line():
    from config import Reading
    assert set(Reading.__dataclass_fields__['dataset'].metadata['choices']) == set(CORPORA)
