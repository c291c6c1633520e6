"""The programs on frames of a tiny encoder with random weights, from search to export."""
import csv
import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import found_by, results, rows
from encoders_made_up import save
from test_stops import stopped_at

import augment
import config as cf
import datasets
import search
import utils
from datasets import encoders, recording
from datasets.dataset import scaled
from models import predictor
from scripts import evaluate, export, predict, recipe

transformers = pytest.importorskip('transformers')
SIZES = '--init_channels 2 --layers 1 --rnn_channels 4 --cnn_ops skip_connect,sep_conv_3x3,none --rnn_ops gru_1,none'.split()
BASE = '--dataset manifest --device cpu --duration 0.8 --batch_size 10'.split()


@pytest.fixture(autouse=True)
def _afresh(monkeypatch):
    """No network, and encoders of one name in several folders."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    for kept in (encoders._folder, encoders._described, encoders._encoder):
        kept.cache_clear()


@pytest.fixture(scope='module')
def folder(tmp_path_factory, small_corpus):
    """A folder in which a search, its retraining and a baseline have read frames of the encoder `tiny`."""
    cwd = tmp_path_factory.mktemp('programs')
    save(cwd / 'tiny', 'wav2vec2')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        run(search, small_corpus, *SEARCH, '--name', 'a')
        run(augment, small_corpus, *AUGMENT, '--name', 'a')
        run(augment, small_corpus, *HEAD, '--name', 'head')
    return cwd


def test_a_variant_of_a_recipe_has_the_frames_of_its_own_encoder(folder, small_corpus, monkeypatch):
    monkeypatch.chdir(folder)
    save('other', 'wav2vec2', seed=1)
    _, config, _, variants = recipe.configure([
        '--name', 'r', *BASE, '--data_path', str(small_corpus), *HEAD, '--variant', 'other', 'encoder=other',
        '--variant', 'mean', 'encoder_layers=mean'])
    base, other, mean = (recipe.variant(config, variants[name]) for name in ('base', 'other', 'mean'))
    assert base.frame_shape == other.frame_shape == '2x16' and mean.frame_shape == '1x16'
    assert base.encoder_revision == mean.encoder_revision != other.encoder_revision
    sums = [datasets.load(its, ('train',), quiet=True).mean for its in (base, other)]
    assert not torch.equal(*sums)


ENCODER = '--features encoder --encoder tiny'.split()
AUGMENT = '--genotype runs/search/a --epochs 1'.split()
HEAD = [*ENCODER, *'--encoder_layers 1-2 --model ssl_mlp --params 900 --epochs 1 --normalise speaker'.split()]
SEARCH = [*ENCODER, *SIZES, *'--epochs 1 --n_nodes 1 --rnn_nodes 1 --alpha_warmup 0'.split()]


def run(program, corpus, *argv):
    program.main(list(map(str, [*BASE, '--data_path', corpus, *argv])))


def saved(folder):
    """{file: (speaker, predicted, probabilities)} of predictions.csv."""
    with open(folder / 'predictions.csv', newline='') as f:
        return {row['path']: (row['speaker'], row['predicted'], {k[2:]: float(v) for k, v in row.items() if k[:2] == 'p_'})
                for row in csv.DictReader(f)}


def test_a_run_records_its_encoder(folder):
    record = json.loads((folder / 'runs/search/a/genotype.json').read_text())['features']
    best = torch.load(folder / 'runs/augment/a/best.pt', weights_only=True)['settings']
    for settings in (record, best):
        assert (settings['features'], settings['encoder_layers'], settings['frame_shape']) == ('encoder', 'all', '3x16')
        assert settings['frames_per_s'] == 50 and settings['encoder_revision']
    log = (folder / 'runs/search/a/search.log').read_text()
    assert 'frames of tiny (' in log and '3 layers of 16 channels, 50 per second' in log


@pytest.mark.parametrize('batch_size', [1, 32])
@pytest.mark.parametrize('name', ['a', 'head'])
def test_a_recording_gets_what_the_test_gave_it(name, batch_size, folder, small_corpus, monkeypatch):
    monkeypatch.chdir(folder)
    expected = saved(folder / 'runs/augment' / name)
    for speaker in {row[0] for row in expected.values()}:
        its = {str(small_corpus.parent / path): row for path, row in expected.items() if row[0] == speaker}
        judge = predictor.load(f'runs/augment/{name}', batch_size=batch_size)
        judge = judge.of_speaker(its) if judge.needs_speaker else judge
        for path, (label, probabilities) in judge.many(its):
            assert label == its[path][1] and probabilities == pytest.approx(its[path][2], abs=1e-5)
        assert judge(path).probabilities == pytest.approx(probabilities, abs=1e-6)  # alone
        wave, rate = soundfile.read(path)
        assert judge(wave, rate).probabilities == pytest.approx(probabilities, abs=1e-6)


def test_the_command_line_and_evaluate(folder, small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    expected = saved(folder / 'runs/augment/a')
    path = next(iter(expected))
    predict.main(['runs/augment/a', str(small_corpus.parent / path), '--json', '--timeline', str(tmp_path / 'a.png')])
    row = json.loads(capsys.readouterr().out)
    assert row['probabilities'] == pytest.approx(expected[path][2], abs=1e-5)
    assert len((tmp_path / 'a.csv').read_text().splitlines()) > 2  # of several windows
    for name in ('a', 'head'):
        evaluate.main([f'runs/augment/{name}', *BASE[:2], '--data_path', str(small_corpus), '--fold', '1', '--json'])
        assert json.loads(capsys.readouterr().out)['confusion'] == results(folder / 'runs/augment' / name)['confusion']


@pytest.mark.parametrize('name', ['a', 'head'])
def test_frames_of_a_long_recording_lie_in_a_file_and_give_the_same(name, folder, small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    wave = np.concatenate([soundfile.read(path)[0] for path in sorted(small_corpus.parent.glob('*.wav'))])  # 50 s
    path, short = tmp_path / 'a.wav', small_corpus.parent / 's1_sad_0.wav'
    soundfile.write(path, wave, 16_000)
    judge = predictor.load(f'runs/augment/{name}')
    judge = judge.of_speaker(small_corpus.parent.glob('s1_*.wav')) if judge.needs_speaker else judge
    x = recording.of_wave(soundfile.read(path, dtype='float32')[0], judge.config)[0]
    whole = judge.probabilities([scaled(x, judge.moments) if judge.needs_speaker else x])[0]
    assert [*judge(path).probabilities.values()] == pytest.approx(whole, abs=1e-6)
    monkeypatch.setattr(recording, 'HELD', 10_000)
    assert isinstance(judge.features(path)[0], np.memmap)
    other = [*judge(short).probabilities.values()]
    for (_, found), expected in zip(judge.many([path, short, path]), (whole, other, whole), strict=True):
        assert [*found.probabilities.values()] == pytest.approx(expected, abs=1e-6)
    assert judge.timeline(path).end[-1] == pytest.approx(len(wave) / 16_000, abs=.05)


def test_an_encoder_that_has_moved_or_changed(folder, small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wav = str(small_corpus.parent / 's1_sad_0.wav')
    run_folder = str(folder / 'runs/augment/a')
    with pytest.raises(cf.UserError, match='tiny.*--encoder FOLDER'):
        predict.main([run_folder, wav])
    shutil.copytree(folder / 'tiny', tmp_path / 'there')
    predict.main([run_folder, wav, '--encoder', 'there'])
    save(tmp_path / 'tiny', 'wav2vec2', seed=1)
    with pytest.raises(cf.UserError, match='was trained with revision'):
        predict.main([run_folder, wav])
    with pytest.raises(cf.UserError, match='was trained with revision'):
        export.main([run_folder, '--out', 'a.onnx'])


def test_a_folder_and_the_hub_name_revisions_in_different_ways(folder, small_corpus, tmp_path, capsys):
    commit = 'c0ffee' * 6 + 'c0de'
    best = torch.load(folder / 'runs/augment/a/best.pt', weights_only=True)
    best['settings'] |= {'encoder': 'somebody/tiny', 'encoder_revision': commit}
    torch.save(best, tmp_path / 'best.pt')
    argv = [str(tmp_path), str(small_corpus.parent / 's1_sad_0.wav'), '--encoder']
    predict.main([*argv, str(folder / 'tiny')])
    assert 'be sure that they are the same encoder' in capsys.readouterr().err
    shutil.copytree(folder / 'tiny', tmp_path / commit)  # as the hub's cache names the snapshot of a commit
    predict.main([*argv, str(tmp_path / commit)])
    assert not capsys.readouterr().err
    save(tmp_path / 'wide', 'whisper')
    best['settings'] |= {'encoder_layers': 'mean'}
    torch.save(best, tmp_path / 'best.pt')
    with pytest.raises(cf.UserError, match='gives frames of 1x16, and the network was trained on 3x16'):
        predict.main([*argv, str(tmp_path / 'wide')])


def test_an_interrupted_run_goes_on_to_the_same_bits(folder, small_corpus, monkeypatch):
    monkeypatch.chdir(folder)
    for program, name, argv in ((search, 'search', SEARCH), (augment, 'augment', AUGMENT)):
        argv = [*argv, '--name', 'b', '--resume', '--resident', 'never']
        with monkeypatch.context() as m, pytest.raises(utils.Stopped):
            stopped_at(m, 2)
            run(program, small_corpus, *argv)
        for left in [*utils.open_runs]:
            left.lock.close()
            utils.open_runs.discard(left)
        run(program, small_corpus, *argv)
        whole, stopped = (folder / 'runs' / name / which for which in 'ab')
        assert rows(whole / 'metrics.jsonl') == rows(stopped / 'metrics.jsonl')
    assert found_by(folder / 'runs/search/a') == found_by(folder / 'runs/search/b')
    assert (whole / 'predictions.csv').read_bytes() == (stopped / 'predictions.csv').read_bytes()


def test_a_training_goes_on_with_its_encoder(folder, small_corpus, monkeypatch):
    monkeypatch.chdir(folder)
    run(augment, small_corpus, '--name', 'tuned', '--init', 'runs/augment/head', '--epochs', 1)
    kept = [torch.load(folder / f'runs/augment/{name}/best.pt', weights_only=True)['settings'] for name in ('head', 'tuned')]
    assert kept[0] == kept[1]


WRONG = {'no folder': ('nowhere/at/all', 'nowhere/at/all'), 'a name without a network': ('nobody/nothing', 'nobody/nothing'),
         'a file is missing': ('half', 'half'), 'a model of images': ('images', 'images')}


@pytest.mark.parametrize('case', WRONG)
def test_a_wrong_encoder_is_one_line(case, folder, small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    encoder, said = WRONG[case]
    save(tmp_path / 'half', 'wav2vec2')
    (tmp_path / 'half/model.safetensors').unlink()
    transformers.ViTModel(transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8,
                                                 patch_size=4, intermediate_size=8)).save_pretrained('images')
    transformers.ViTImageProcessor().save_pretrained('images')
    for program, more in ((search, []), (augment, ['--model', 'ssl_mlp'])):
        argv = [*ENCODER, '--name', 'x', '--encoder', encoder, *more]
        assert code_of(lambda program=program, argv=argv: run(program, small_corpus, *argv)) == 2
        line, = capsys.readouterr().err.splitlines()
        assert said in line
    assert not (tmp_path / 'runs').exists()


def code_of(main):
    """Exit code of a program."""
    with pytest.raises(SystemExit) as left:
        utils.cli(main)
    return left.value.code


def test_without_transformers_there_is_one_line(folder, small_corpus, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, 'transformers', None)
    assert code_of(lambda: run(search, small_corpus, *SEARCH, '--name', 'without')) == 2
    assert 'pip install -r requirements-encoders.txt' in capsys.readouterr().err
