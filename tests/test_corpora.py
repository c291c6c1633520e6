"""The registry, and readers of the corpora at hand: EMO-DB, RAVDESS, nEMO and the synthetic one."""
from collections import Counter

import made_up
import numpy as np
import pytest
import soundfile
from conftest import ROOT, write_corpus
from made_up import touch

from config import CORPORA, UserError
from datasets import reader, scan
from datasets.readers import emodb, nemo, ravdess, synthetic


def test_the_list_of_corpora_is_the_folder_of_readers():
    files = {path.stem for path in (ROOT / 'datasets/readers').glob('[!_]*.py')}
    assert files == set(CORPORA) and all(callable(reader(name).scan) for name in CORPORA)
    with pytest.raises(UserError, match='--dataset tess: must be one of cremad, emodb'):
        scan('tess', 'x')


def test_emodb_names(tmp_path):
    found = emodb.scan(touch(tmp_path, 'wav/03a01Fa.wav', 'wav/08b10Wc.wav', 'wav/16a02Lb.wav'))
    assert [(u.speaker, u.label, u.gender) for u in found] == [('03', 'happiness', 'm'), ('08', 'anger', 'f'),
                                                               ('16', 'boredom', 'f')]


CODES = {  # each corpus' own documentation: a file, and the label of each code that stands in its place
    'emodb': ('wav/03a01{}a.wav', dict(W='anger', L='boredom', E='disgust', A='fear', F='happiness', T='sadness', N='neutral')),
    'ravdess': ('Actor_01/03-01-{}-01-01-01-01.wav', {
        '01': 'neutral', '02': 'calm', '03': 'happy', '04': 'sad', '05': 'angry', '06': 'fearful', '07': 'disgust',
        '08': 'surprised'}),
    'cremad': ('AudioWAV/1001_DFA_{}_XX.wav', dict(
        ANG='anger', DIS='disgust', FEA='fear', HAP='happiness', NEU='neutral', SAD='sadness')),
    'savee': ('DC/{}01.wav', dict(a='anger', d='disgust', f='fear', h='happiness', n='neutral', sa='sadness', su='surprise'))}


@pytest.mark.parametrize('dataset, code', [(name, code) for name, (_, codes) in CODES.items() for code in codes])
def test_every_code_means_its_emotion(dataset, code, tmp_path):
    name, codes = CODES[dataset]
    if dataset == 'cremad':  # with a table of its actors
        made_up.cremad(tmp_path, [f'1001_DFA_{code}_XX'])
    [found] = scan(dataset, str(touch(tmp_path, name.format(code))))
    assert found.label == codes[code]


def test_savee_in_one_folder_of_any_name(tmp_path):
    [found] = scan('savee', str(touch(tmp_path, 'ALL/DC_a01.wav')))
    assert (found.speaker, found.label) == ('DC', 'anger')
    with pytest.raises(UserError, match='no utterance|manifest'):
        scan('savee', str(touch(tmp_path, 'm.csv') / 'm.csv'))


@pytest.mark.parametrize('dataset, name', [('emodb', 'wav/03a01Fa.WAV'), ('emodb', '03a01Fa.wav'),
                                           ('ravdess', 'Actor_01/03-01-05-01-01-01-01.WAV')])
def test_hidden_files_are_not_read_and_capitals_are(dataset, name, tmp_path):
    folder, _, file = name.rpartition('/')
    [found] = scan(dataset, str(touch(tmp_path, name, f'{folder or "."}/._{file}')))
    assert found.path == str(tmp_path / name)


def test_ravdess_names_and_both_endings(tmp_path):
    names = ('Actor_01/03-01-05-01-01-01-01.wav', 'Actor_02/03-01-01-01-02-01-02.flac', 'Actor_02/03-01-01-01-02-01-02.wav')
    found = ravdess.scan(touch(tmp_path, *names))
    assert [(u.speaker, u.label, u.gender) for u in found] == [('02', 'neutral', 'f'), ('01', 'angry', 'm')]
    assert found[0].path.endswith('.wav')


@pytest.mark.parametrize('dataset, name', [('emodb', 'wav/holiday.wav'), ('ravdess', 'Actor_01/holiday.wav'),
                                           ('ravdess', 'Actor_01/03-02-05-01-01-01-01.wav')])
def test_a_foreign_file_is_named(dataset, name, tmp_path):
    with pytest.raises(UserError, match=name.split('/')[1]):
        scan(dataset, str(touch(tmp_path, name)))


NEMO = [('EB0_neutral_13', 'neutral', 'EB0', 'female'), ('WR0_surprised_7', 'surprised', 'WR0', 'male'),
        ('WR0_anger_2', 'anger', 'WR0', 'male')]


@pytest.mark.parametrize('suffix', ['.wav', '.flac'])
def test_nemo_by_hand(suffix, tmp_path):
    made_up.nemo(tmp_path, NEMO, suffix=suffix, silent=['WR0_anger_2'])
    touch(tmp_path / 'samples', f'KS0_fear_1{suffix}', f'._KS0_fear_1{suffix}')
    told = {u.path.rpartition('/')[2]: (u.label, u.speaker, u.gender, u.left_out) for u in scan('nemo', str(tmp_path))}
    assert told == {f'EB0_neutral_13{suffix}': ('neutral', 'EB0', 'f', None),
                    f'WR0_surprised_7{suffix}': ('surprised', 'WR0', 'm', None),
                    'WR0_anger_2.wav': ('anger', 'WR0', 'm', 'no audio file'),
                    f'KS0_fear_1{suffix}': ('', '', None, 'no label')}


@pytest.mark.parametrize('old, new, named', [
    ('\tneutral\t', '\tcalm\t', "line 2: emotion 'calm' is none of anger"),
    ('\tfemale\t', '\tF\t', "line 2: gender 'F' is none of female"),
    ('EB0_neutral_13.wav', 'KS0_neutral_13.wav', "line 2: file_id 'KS0_neutral_13.wav' does not begin"),
    ('\t27\n', '\n', 'line 2: the number of fields'), ('speaker_id', 'speaker', 'column speaker_id'),
    ('WR0_anger_2.wav', 'WR0_anger_2.wav\textra', 'line 4: the number of fields'),
    ('WR0_surprised_7.wav\tsurprised', 'EB0_neutral_13.wav\tneutral', 'line 3: file_id')])
def test_nemo_mistakes_name_file_and_line(old, new, named, tmp_path):
    table = made_up.nemo(tmp_path, NEMO) / 'data.tsv'
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=f'data.tsv[,:] {named}'):
        nemo.scan(tmp_path)
    table.unlink()
    with pytest.raises(UserError, match='needs data.tsv'):
        nemo.scan(tmp_path)


def test_an_empty_or_missing_corpus_is_named(tmp_path):
    for path in (tmp_path, tmp_path / 'nowhere'):
        with pytest.raises(UserError, match='data_path'):
            scan('emodb', str(path))
    with pytest.raises(UserError, match='data_path'):
        scan('ravdess', None)


def corpus_of(dataset, root):
    if dataset == 'manifest':
        return write_corpus(root, n_speakers=1, n_takes=1)
    if dataset == 'nemo':
        return made_up.nemo(root, NEMO)
    if dataset == 'savee':
        return made_up.savee(root, ['DC_a01', 'JE_h01'])
    return touch(root, {'emodb': 'wav/03a01Fa.wav', 'ravdess': 'Actor_01/03-01-05-01-01-01-01.wav'}[dataset])


@pytest.mark.parametrize('dataset', ['emodb', 'ravdess', 'nemo', 'savee', 'manifest'])
def test_a_forgotten_dataset_is_suggested(dataset, tmp_path):
    path = corpus_of(dataset, tmp_path / 'mine')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UserError, match=f'not the synthetic corpus, .*--dataset; did you mean --dataset {dataset}.$') as error:
        scan('synthetic', str(path))
    assert not {'remove', 'delete', 'move', 'rename'} & set(str(error.value).split())
    assert sorted(tmp_path.rglob('*')) == before
    if dataset != 'manifest':  # a corpus with a stray file is still known
        touch(path, 'wav/03a99.wav' if dataset == 'emodb' else 'stray.wav')
        with pytest.raises(UserError, match=f'did you mean --dataset {dataset}.$'):
            scan('synthetic', str(path))
        with pytest.raises(UserError, match=f'no utterance of iemocap; did you mean --dataset {dataset}.$'):
            scan('iemocap', str(path))


@pytest.mark.parametrize('names', [(), ('thesis.tex',)])
def test_a_folder_that_nobody_knows_is_left_as_it_is(names, tmp_path):
    folder = touch(tmp_path / 'mine', *names)
    folder.mkdir(exist_ok=True)
    with pytest.raises(UserError, match='not the synthetic corpus.*name the corpus with --dataset: cremad, emodb'):
        scan('synthetic', str(folder))
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)


def test_synthetic_is_complete_and_deterministic(tmp_path):
    found = synthetic.scan(tmp_path / 'made')
    assert len(found) == synthetic.N_SPEAKERS * len(synthetic.MANNERS) * synthetic.N_TAKES == 480
    assert set(Counter((u.speaker, u.label) for u in found).values()) == {12} and len({u.speaker for u in found}) == 10
    for u in found[::60]:
        wave, rate = soundfile.read(u.path)
        assert rate == 16_000 and 1.4 < len(wave) / rate < 2.6 and .01 < np.abs(wave).max() <= 1.
    wave, _ = soundfile.read(found[100].path)
    np.testing.assert_allclose(wave, synthetic.synthesise(2, 'neutral', 4), atol=1 / 32768)
    assert [u.path for u in scan('synthetic', str(tmp_path / 'made'))] == [u.path for u in found]
    assert [p.name for p in tmp_path.iterdir()] == ['made']  # no temporary folder is left
    (tmp_path / 'made/05_sad_03.wav').unlink()
    with pytest.raises(UserError, match='05_sad_03.wav is missing; choose another folder with --cache'):
        synthetic.scan(tmp_path / 'made')


@pytest.mark.parametrize('take, length, samples', [
    ((0, 'neutral', 0), 34191, [-4081, 841, 1857, 815, -15, -17, 2220, 2300, 2083]),
    ((5, 'angry', 3), 39766, [78, 1207, 38, -198, 5320, 3217, -1247, 1030, 7, -423]),
    ((9, 'sad', 11), 37295, [-2287, -47, 998, 533, -950, 5, -85, 2051, -84, 7]),
    ((2, 'happy', 7), 33828, [1414, 2015, 616, 1581, 549, -431, 717, -1349, -1638]),
])
def test_samples_of_the_synthetic_corpus_stay_what_they_are(take, length, samples):
    """Scores on it can only be compared if nobody changes it. Every 4,000th sample, in 16 bits; libraries may differ by one."""
    wave = synthetic.synthesise(*take)
    assert len(wave) == length
    np.testing.assert_allclose(np.round(wave[1_000::4_000] * 32_768), samples, atol=1)


def test_emotion_is_in_the_synthetic_corpus_but_not_in_absolute_pitch_alone():
    """Logistic regression on speakers it did not see: functionals of the log-mel tell far more than the median pitch."""
    import librosa
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from config import FeatureSettings
    from datasets.features import extract
    pitch, functionals, y, speakers = [], [], [], []
    for speaker in range(10):
        for k, emotion in enumerate(synthetic.MANNERS):
            for take in range(4):
                wave = synthetic.synthesise(speaker, emotion, take)
                pitch.append([np.log(np.median(librosa.yin(wave, fmin=60, fmax=450, sr=16_000)))])
                x = extract(wave, FeatureSettings(n_mels=32, time_pool=1))
                functionals.append(np.concatenate([x.mean(axis=1), x.std(axis=1), np.abs(np.diff(x)).mean(axis=1)]))
                y.append(k)
                speakers.append(speaker)

    def accuracy(X):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        return cross_val_score(model, np.array(X), y, groups=speakers, cv=LeaveOneGroupOut()).mean()
    assert accuracy(pitch) < .45
    assert accuracy(functionals) > .5


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
    found = scan('nemo', str(ser_data / 'nemo'))
    assert len(found) == 2253 and not any(u.left_out for u in found)
    assert Counter(u.label for u in found) == dict(neutral=405, sadness=386, anger=378, happiness=375, fear=373, surprised=336)
    assert {u.speaker for u in found if u.gender == 'f'} == {'EB0', 'IC0', 'KD0', 'MK0'}
    assert {u.speaker for u in found if u.gender == 'm'} == {'KS0', 'MP0', 'SM0', 'TP0', 'WR0'}
    assert Counter(u.speaker for u in found)['MP0'] == 140 and ('MK0', 'surprised') not in {(u.speaker, u.label) for u in found}
