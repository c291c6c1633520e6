"""A trained network on recordings: the oracle is what augment.py's test wrote to predictions.csv."""
import csv
import io
import json
import re
import shutil
import types

import numpy as np
import pytest
import soundfile
import torch
from conftest import FEATURES, ROOT, write_corpus

import augment
import config as cf
from datasets import frames, recording
from datasets.features import load_audio, trimmed
from datasets.utterance import Utterance
from models import predictor
from models.predictor import UserError, load
from scripts import evaluate, predict

RUNS = {'genotype': '--genotype random --init_channels 2 --layers 3 --rnn_channels 4 --n_nodes 2 --trim_db 30 --duration 0.4',
        'cnn_lstm_att': '--model cnn_lstm_att --params 1060 --features mfcc --time_pool 2',
        'speaker': '--model cnn_gru --params 900 --normalise speaker --embedding speaker'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory, small_corpus):
    """A folder with one trained network of each kind."""
    folder = tmp_path_factory.mktemp('trained')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, argv in RUNS.items():
            argv = ['--name', name, '--dataset', 'manifest', '--data_path', str(small_corpus), *FEATURES, *argv.split()]
            augment.main([*argv, '--epochs', '1'])
    return folder / 'runs/augment'


def saved(run):
    """{name of the file: (speaker, predicted, probabilities)} of predictions.csv."""
    with open(run / 'predictions.csv', newline='') as f:
        return {row['path']: (row['speaker'], row['predicted'], {k[2:]: float(v) for k, v in row.items() if k[:2] == 'p_'})
                for row in csv.DictReader(f)}


@pytest.mark.parametrize('batch_size', [1, 5])
@pytest.mark.parametrize('name', RUNS)
def test_a_recording_gets_what_the_test_gave_it(name, batch_size, folder, small_corpus):
    expected, found = saved(folder / name), {}
    for speaker in {row[0] for row in expected.values()}:
        paths = [str(small_corpus.parent / path) for path, row in expected.items() if row[0] == speaker]
        judge = load(folder / name / ('best.pt' if batch_size == 1 else ''), batch_size=batch_size)
        if judge.needs_speaker:
            with pytest.raises(cf.UserError, match='--speaker_files'):
                judge(paths[0])
            judge = judge.of_speaker(paths)
        together = dict(judge.many(paths))
        assert judge(paths[-1]).probabilities == pytest.approx(together[paths[-1]].probabilities, abs=1e-6)  # alone
        wave, rate = soundfile.read(paths[0])
        assert judge(np.stack([wave, wave], axis=1), rate).probabilities == pytest.approx(
            together[paths[0]].probabilities, abs=1e-6)
        found.update({path.rsplit('/')[-1]: prediction for path, prediction in together.items()})
    assert found.keys() == expected.keys()
    for path, (_, label, probabilities) in expected.items():
        assert found[path].label == label
        assert found[path].probabilities == pytest.approx(probabilities, abs=1e-5)


@pytest.mark.parametrize('rate', [16_000, 44_100])
@pytest.mark.parametrize('trim_db', [0., 40.])
def test_a_long_recording_is_read_in_blocks_with_the_same_result(rate, trim_db, tmp_path, monkeypatch, small_corpus):
    path, rng = str(tmp_path / 'a.wav'), np.random.default_rng(0)
    wave = np.concatenate([np.zeros(rate // 3), .1 * rng.standard_normal(int(2.7 * rate)), np.zeros(rate // 2)])
    soundfile.write(path, np.stack([wave, wave / 2], axis=1), rate)
    config, whole = cf.FeatureSettings(trim_db=trim_db), Utterance(path, '', '')
    expected, skipped = recording.features(whole, config)
    monkeypatch.setattr(recording, 'LONG', 1)
    assert np.array_equal(np.concatenate(list(recording.read(path))), load_audio(whole))
    if trim_db:
        assert recording.kept(recording.read(path), trim_db) == trimmed(load_audio(whole), trim_db)
        assert .2 < skipped < .4
    found, again = recording.features(whole, config)
    assert again == skipped and found.dtype == np.float16
    np.testing.assert_allclose(found, expected, atol=.02)  # a unit in the last place of float16 is up to 0.0156
    assert (found != expected).mean() < 1e-3


def test_few_recordings_of_a_speaker_are_shrunk(folder, small_corpus):
    judge, paths = load(folder / 'speaker'), sorted(map(str, small_corpus.parent.glob('s1_*.wav')))
    notes = []
    few = judge.of_speaker(paths[:2], notes.append)
    own = predictor.statistics([recording.features(Utterance(p, '', ''), judge.config)[0] for p in paths[:2]])
    torch.testing.assert_close(few.moments[0], .2 * own[0] + .8 * judge.prior[0])
    assert '2 recordings' in notes[0]
    with pytest.raises(cf.UserError, match='does not normalise'):
        load(folder / 'genotype').of_speaker(paths)


def test_the_command_line(folder, small_corpus, tmp_path, capsys, monkeypatch):
    expected = saved(folder / 'genotype')
    good = tmp_path / 'in/deep'
    good.mkdir(parents=True)
    for path in expected:
        shutil.copy(small_corpus.parent / path, good)
    (good / 'headless.raw').write_bytes(b'0123')  # which no program can tell from noise
    run = str(folder / 'genotype')
    predict.main([run, '--json', str(tmp_path / 'in')])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row['path'] for row in rows] == sorted(str(good / path) for path in expected)
    for row in rows:
        _, label, probabilities = expected[row['path'].rsplit('/')[-1]]
        assert row['label'] == label and row['probabilities'] == pytest.approx(probabilities, abs=1e-5)

    with pytest.raises(cf.UserError, match='--timeline .*line.png: there is no folder .*none'):
        predict.main([run, str(good / 's1_sad_3.wav'), '--timeline', str(tmp_path / 'none/line.png')])
    (tmp_path / 'in/bad.wav').write_bytes(b'RIFF')
    with pytest.raises(cf.UserError, match='1 of 17 recordings'):
        predict.main([run, '--csv', str(tmp_path / 'in'), '--batch_size', '3'])
    said = capsys.readouterr()
    table = list(csv.DictReader(said.out.splitlines()))
    assert len(table) == 16 and table[0]['label'] == rows[0]['label']
    assert float(table[0]['p_sad']) == pytest.approx(rows[0]['probabilities']['sad'], abs=1e-5)
    assert len(said.err.splitlines()) == 1 and 'bad.wav' in said.err

    monkeypatch.setattr('sys.stdin', types.SimpleNamespace(buffer=io.BytesIO((good / 's1_sad_3.wav').read_bytes())))
    predict.main([run, '-', '--timeline', str(tmp_path / 'line.png')])
    out = capsys.readouterr().out
    assert out.startswith('-  ') and expected['s1_sad_3.wav'][1] in out
    with open(tmp_path / 'line.csv', newline='') as f:
        windows = list(csv.DictReader(f))
    assert len(windows) > 1 and (tmp_path / 'line.png').stat().st_size > 5_000
    for label, p in expected['s1_sad_3.wav'][2].items():
        assert np.mean([float(row[f'p_{label}']) for row in windows]) == pytest.approx(p, abs=1e-5)
    assert all(float(row['end']) - float(row['begin']) == pytest.approx(.384, abs=.01) for row in windows)
    assert float(windows[-1]['end']) <= soundfile.info(good / 's1_sad_3.wav').duration + .05


def test_what_is_odd_about_a_recording_is_said(folder, tmp_path, capsys, monkeypatch):
    soundfile.write(tmp_path / 'silent.wav', np.zeros(16_000), 16_000)
    predict.main([str(folder / 'genotype'), str(tmp_path / 'silent.wav')])
    assert capsys.readouterr().err == f'NOTE: {tmp_path}/silent.wav is silent\n'
    monkeypatch.setattr('sys.stdin', types.SimpleNamespace(buffer=io.BytesIO((tmp_path / 'silent.wav').read_bytes())))
    predict.main([str(folder / 'genotype'), '-'])
    assert capsys.readouterr().err == 'NOTE: - is silent\n'


def test_no_label_is_given_where_the_network_overflows(folder, small_corpus):
    judge, failed = load(folder / 'genotype'), []
    good, bad = sorted(map(str, small_corpus.parent.glob('s1_*.wav')))[:2]
    own = judge.features
    judge.features = lambda audio, *rest: (own(audio)[0] * (np.float16('inf') if audio == bad else np.float16(1)), 0.)
    assert [audio for audio, _ in judge.many([bad, good], failed.append)] == [good]
    assert str(failed[0]).startswith(f'{bad}: the network overflows')
    for call in (lambda: judge(bad), lambda: [*judge.many([bad, good])]):
        with pytest.raises(UserError, match='the network overflows'):
            call()


def test_evaluate_gives_the_results_of_the_test(folder, small_corpus, capsys, tmp_path):
    for name in ('genotype', 'speaker'):
        expected = json.loads((folder / name / 'results.json').read_text())
        argv = [str(folder / name), '--dataset', 'manifest', '--data_path', str(small_corpus), '--json']
        evaluate.main([*argv, '--fold', '1', '--output', str(tmp_path / name)])
        said = capsys.readouterr()
        found = json.loads(said.out)
        assert found['confusion'] == expected['confusion'] and found['ua'] == pytest.approx(expected['ua'])
        assert (tmp_path / name / 'predictions.csv').exists() and not said.err
        assert found['n_speakers'] == 2 and found['interval']['ua'] is None  # too few
    before = (folder / name / 'results.json').read_bytes()
    with pytest.raises(UserError, match=f'--output {folder / name}: is the folder of a run'):
        evaluate.main([*argv, '--output', str(folder / name)])
    assert (folder / name / 'results.json').read_bytes() == before
    evaluate.main(argv[:-1])
    assert 'WARNING: the network was trained on manifest, with speakers of these names: spk' in capsys.readouterr().err


def test_classes_of_another_corpus_are_mapped(folder, tmp_path, capsys):
    other = write_corpus(tmp_path, n_speakers=3, emotions=('angry', 'happy', 'neutral'), n_takes=2)
    argv = [str(folder / 'genotype'), '--dataset', 'manifest', '--data_path', str(other)]
    with pytest.raises(cf.UserError, match='no class happy, neutral; it has angry, sad: .*--map happy=,neutral='):
        evaluate.main(argv)
    with pytest.raises(cf.UserError, match="no class 'mad'"):
        evaluate.main([*argv, '--map', 'mad=angry'])
    with pytest.raises(cf.UserError, match='with a class of the network'):
        evaluate.main([*argv, '--map', 'happy=joy'])
    evaluate.main([*argv, '--map', 'happy=angry, neutral=', '--json'])
    found = json.loads(capsys.readouterr().out)
    assert found['n_test'] == 12 and sum(found['confusion'][0]) == 12 and found['chance']['ua'] == 1.



def test_a_file_that_is_not_ours_is_one_line(folder, tmp_path):
    best = torch.load(folder / 'genotype/best.pt', weights_only=True)
    name, x = next((name, x) for name, x in best['weights'].items() if x.ndim == 4)
    wrong = [{'labels': ['a']}, {'labels': [1, 2]}, {'settings': 3}, {'settings': {**best['settings'], 'n_mels': 17}},
             {'settings': {**best['settings'], 'layers': 'x'}}, {'mean': best['mean'] * float('nan')}, {'std': best['std'] * 0},
             {'weights': {}}, {'weights': {**best['weights'], name: x.double()}}, {'weights': {**best['weights'], name: x[:1]}},
             {'weights': {**best['weights'], name: x * float('inf')}}, {'genotype': 'Genotype(x)'}, {'format': 99},
             *({'settings': {**best['settings'], 'features': 'encoder', 'encoder': 'nobody/nothing', 'frame_shape': shape}}
               for shape in ('', '3x', '0x16', '9' * 99 + 'x1', '1x16')),
             {'auxiliary': torch.zeros(2)}, {'heard': [1]}, {'heard_all': 1}, {'mean': best['mean'].to(torch.complex64)},
             {'mean': best['mean'].int()}, {'mean': best['mean'].to_sparse()}, {'std': best['std'].to('meta')},
             {'std': best['std'].double()},
             {'std': torch.quantize_per_tensor(best['std'], .1, 0, torch.qint8)},
             {'weights': {**best['weights'], name: x.to_sparse()}}, {'weights': {**best['weights'], name: x.to('meta')}},
             {'weights': {**best['weights'], 'speaker_norm.sums': 3}},
             {'weights': {**best['weights'], 'speaker_norm.sums': torch.tensor(3.)}}]
    for changes in wrong:
        torch.save({**best, **changes}, tmp_path / 'best.pt')
        with pytest.raises(cf.UserError, match='best.pt: ') as caught:
            load(tmp_path)
        assert '\n' not in str(caught.value), changes
    torch.save({**best}, tmp_path / 'best.pt')
    load(tmp_path)
    torch.save(print, tmp_path / 'best.pt')
    with pytest.raises(cf.UserError, match='best.pt is damaged'):
        load(tmp_path)
    with pytest.raises(cf.UserError, match='no such file'):
        load(tmp_path / 'nothing')
    (tmp_path / 'best.pt').write_text('path,label,speaker\n')
    with pytest.raises(cf.UserError, match='best.pt is damaged, or no file of torch.save'):
        load(tmp_path)


def init(folder, corpus, name, *argv):
    argv = ['--name', name, '--dataset', 'manifest', '--data_path', str(corpus), '--batch_size', '10', '--device', 'cpu', *argv]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(cf, 'check', lambda f, value: None)  # a learning rate of 0 is refused
        augment.main([*argv, '--epochs', '1', '--lr', '0'])
    return torch.load(folder.parent.parent / 'runs/augment' / name / 'best.pt', weights_only=True)


@pytest.mark.parametrize('name', ['genotype', 'speaker'])
def test_a_trained_network_goes_on(name, folder, small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent.parent)
    before = torch.load(folder / name / 'best.pt', weights_only=True)
    same = init(folder, small_corpus, f'same-{name}', '--init', f'runs/augment/{name}')
    assert same['settings'] == before['settings'] and same['genotype'] == before['genotype']
    said = capsys.readouterr().out
    assert 'WARNING' not in said and len(same['heard']) == 2
    parameters = dict(predictor.rebuild(before).named_parameters())
    for key in parameters:  # the learning rate is 0
        assert torch.equal(same['weights'][key], before['weights'][key]), key

    other = write_corpus(tmp_path, emotions=('happy', 'angry', 'neutral'), n_takes=2, n_speakers=5)
    anew = init(folder, other, f'anew-{name}', '--init', f'runs/augment/{name}/best.pt')
    assert 'because the classes were angry, sad' in capsys.readouterr().out and anew['labels'] == ['angry', 'happy', 'neutral']
    differ = {key for key in parameters if not torch.equal(anew['weights'][key], before['weights'][key])
              } if anew['weights'].keys() == before['weights'].keys() else None
    assert {key for key in differ if not key.startswith('aux_head')} == {'linear.weight', 'linear.bias'}


def test_a_trained_network_keeps_its_width_if_the_classes_are_others(folder, small_corpus, tmp_path, monkeypatch):
    """cnn_lstm_att of 1060 parameters is 6 wide with 2 classes, 5 wide with 3."""
    monkeypatch.chdir(folder.parent.parent)
    first = torch.load(folder / 'cnn_lstm_att/best.pt', weights_only=True)
    other = write_corpus(tmp_path, emotions=('happy', 'angry', 'neutral'), n_takes=2, n_speakers=5)
    anew = init(folder, other, 'three', '--init', 'runs/augment/cnn_lstm_att')
    again = init(folder, small_corpus, 'two', '--init', 'runs/augment/three')
    for kept, before in ((anew, first), (again, anew)):
        predictor.rebuild(kept)
        differ = {key for key, x in kept['weights'].items() if not torch.equal(x, before['weights'][key])}
        assert differ == {'linear.3.weight', 'linear.3.bias'}
    with pytest.raises(cf.UserError, match='--init: .* is not in the trained one'):
        init(folder, other, 'wider', '--init', 'runs/augment/cnn_lstm_att', '--params', '1500')


@pytest.mark.parametrize('part', ['heard', 'weights'])
def test_the_network_that_a_run_began_with_must_be_the_same_when_it_goes_on(part, folder, small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    before = torch.load(folder / 'cnn_lstm_att/best.pt', weights_only=True)
    path = tmp_path / 'best.pt'
    torch.save(before, path)
    argv = [f'on-{part}', '--init', str(path), '--fold', '2']
    init(folder, small_corpus, *argv)
    results = (folder / argv[0] / 'results.json').read_text()
    torch.save({**before, 'mean': before['mean'] + 1}, path)  # the same weights, of a network that heard the same
    init(folder, small_corpus, *argv, '--resume')
    again = json.loads((folder / argv[0] / 'results.json').read_text())
    assert again['init_heard_test_speakers'] == json.loads(results)['init_heard_test_speakers'] != []
    name = next(iter(before['weights']))
    changed = {'heard': [], 'weights': {**before['weights'], name: before['weights'][name] + 1}}
    torch.save({**before, part: changed[part]}, path)
    with pytest.raises(cf.UserError, match=f'--resume: .*best.pt is another network than .*on-{part} began with'):
        init(folder, small_corpus, *argv, '--resume')


def test_whom_a_network_heard_is_not_told_if_that_of_init_does_not_tell(folder, small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent.parent)
    before = torch.load(folder / 'cnn_lstm_att/best.pt', weights_only=True)
    torch.save({key: value for key, value in before.items() if key != 'heard'}, tmp_path / 'best.pt')
    second = init(folder, small_corpus, 'second', '--init', str(tmp_path / 'best.pt'))
    assert not second['heard_all'] and [entry['speakers'] for entry in second['heard']] == [before['heard'][0]['speakers']]
    capsys.readouterr()
    third = init(folder, small_corpus, 'third', '--init', 'runs/augment/second')
    assert not third['heard_all'] and len(third['heard']) == 2
    said = capsys.readouterr().out
    assert 'not known whether the network of --init was trained on test speakers' in said and 'utterances of speakers' in said
    init(folder, small_corpus, 'another-fold', '--init', 'runs/augment/second', '--fold', '2')
    assert 'WARNING: the network of --init was trained on test speakers of this fold' in capsys.readouterr().out
    assert before.get('heard_all') and init(folder, small_corpus, 'whole', '--init', 'runs/augment/cnn_lstm_att')['heard_all']
    evaluate.main(['runs/augment/second', '--dataset', 'manifest', '--data_path', str(small_corpus)])
    said = capsys.readouterr().err
    assert 'does not tell all corpora and speakers' in said and 'was trained on manifest, with speakers' in said
    evaluate.main(['runs/augment/whole', '--dataset', 'manifest', '--data_path', str(small_corpus)])
    assert 'does not tell all' not in capsys.readouterr().err


def test_a_network_that_heard_the_test_speakers_or_is_another_is_named(folder, small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent.parent)
    init(folder, small_corpus, 'heard', '--init', 'runs/augment/genotype', '--fold', '2')
    said = capsys.readouterr().out
    assert 'WARNING: the network of --init was trained on test speakers of this fold: spk' in said and 'unseen' not in said
    found = json.loads((folder / 'heard/results.json').read_text())
    assert found['init_heard_test_speakers'] and set(found['init_heard_test_speakers']) <= set(found['test_speakers'])
    with pytest.raises(cf.UserError, match='--init: .* is not in the trained one'):
        init(folder, small_corpus, 'wide', '--init', 'runs/augment/genotype', '--init_channels', '4')
    before = torch.load(folder / 'genotype/best.pt', weights_only=True)
    argv = RUNS['genotype'].replace(' --n_nodes 2', '').split()
    other = before['genotype'].replace('_5x5', '_3x3').replace('avg_', 'max_')
    assert other != before['genotype']
    with pytest.raises(cf.UserError, match='--init: the trained network has another genotype'):
        init(folder, small_corpus, 'cells', '--init', 'runs/augment/genotype', *argv, '--genotype', other)
    name = next(iter(before['weights']))
    for changes in ({name: before['weights'][name] * float('nan')}, {name: 3}):
        torch.save({**before, 'weights': {**before['weights'], **changes}}, tmp_path / 'best.pt')
        with pytest.raises(cf.UserError, match='best.pt: not what it should hold'):
            init(folder, small_corpus, 'bad', '--init', str(tmp_path / 'best.pt'))
    capsys.readouterr()
    init(folder, small_corpus, 'trimmed', '--init', 'runs/augment/genotype', '--trim_db', '40')
    assert 'NOTE: features differ from those of the network of --init: trim_db 40.0 (there 30.0)' in capsys.readouterr().out


def test_the_lines_of_the_page(folder, small_corpus, tmp_path, monkeypatch, capsys):
    page = (ROOT / 'docs/using.md').read_text()
    lines = re.search(r'```python\n(from models.predictor.*?)```', page, re.S)[1]
    (tmp_path / 'runs/augment').mkdir(parents=True)
    shutil.copytree(folder / 'genotype', tmp_path / 'runs/augment/demo')
    shutil.copy(small_corpus.parent / 's1_sad_0.wav', tmp_path / 'my.wav')
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    label, p = capsys.readouterr().out.split()
    _, expected, probabilities = saved(folder / 'genotype')['s1_sad_0.wav']
    assert label == expected and float(p) == pytest.approx(probabilities[label], abs=1e-5)


def test_mistakes_in_python_are_user_errors(folder):
    predict, wave = load(folder / 'genotype'), np.zeros(16_000, np.float32)
    for rate in (0, -1, None, float('nan'), True, '16000'):
        with pytest.raises(cf.UserError, match='^rate .* must be a positive number of Hz$'):
            predict(wave, rate)
    assert predict(wave, np.int64(16_000)) == predict(wave, 16_000.)
    with pytest.raises(cf.UserError, match='batch_size 0 must be 1 or more'):
        load(folder / 'genotype', batch_size=0)
    with pytest.raises(cf.UserError, match='--device gpu: must be auto, cpu, cuda or cuda:N; did you mean cuda'):
        load(folder / 'genotype', 'gpu')


@pytest.mark.parametrize('seconds', [2, 70])
def test_a_recording_beyond_all_bounds_is_one_line(seconds, folder, tmp_path, capsys):
    wave = np.random.default_rng(0).standard_normal(seconds * 16_000).astype(np.float32)
    soundfile.write(tmp_path / 'loud.wav', 1e30 * wave, 16_000, subtype='FLOAT')
    with pytest.raises(cf.UserError, match='loud.wav: its samples are so large that features overflow'):
        load(folder / 'genotype')(tmp_path / 'loud.wav')
    with pytest.raises(cf.UserError, match='the wave: its samples are so large'):
        load(folder / 'genotype')(1e30 * wave[:32_000])


def test_a_file_without_a_header_is_one_line(folder, tmp_path):
    (tmp_path / 'x.raw').write_bytes(b'0' * 64_000)
    with pytest.raises(cf.UserError, match='x.raw: cannot be read as audio'):
        load(folder / 'genotype')(tmp_path / 'x.raw')
    assert frames._seconds(Utterance(str(tmp_path / 'x.raw'), 'a', 'b')) == 0
