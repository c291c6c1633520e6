"""Frames outside the programs that train: exported encoders and heads, files of one's own frames."""
import csv
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, results
from encoders_made_up import FAMILIES, save

import augment
import config as cf
from datasets import frames, recording
from models import predictor, waveform
from scripts import evaluate, export, predict

pytest.importorskip('transformers')
BASE = '--dataset manifest --device cpu --duration 0.8 --batch_size 10 --epochs 1'.split()


def trained(corpus, *argv):
    augment.main([*BASE, '--data_path', str(corpus), *argv])


@pytest.mark.parametrize('layers', ['all', 'mean', '1'])
@pytest.mark.parametrize('family', FAMILIES)
@torch.no_grad()
def test_the_module_of_an_encoder_computes_its_frames(family, layers, tmp_path):
    save(tmp_path, family)
    config = cf.FeatureSettings(features='encoder', encoder=str(tmp_path), encoder_layers=layers)
    config = predictor.with_encoder(replace(config, **frames.found(SimpleNamespace(**vars(config), cache=None))), None, print)
    if family == 'whisper':
        with pytest.raises(cf.UserError, match='reads a spectrogram'):
            waveform.EncoderFrames(config)
        return
    wave = np.random.default_rng(0).standard_normal(9_000).astype(np.float32) + .2
    found = waveform.EncoderFrames(config)(torch.from_numpy(wave)[None])[0].numpy()
    assert found.shape[:-1] == waveform.frames_shape(config)
    expected = recording.of_wave(wave, config)[0].astype(np.float32)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=2 ** -10, atol=1e-5)  # which are rounded


def test_own_frames(small_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'in').mkdir()
    rng, lines = np.random.default_rng(0), small_corpus.read_text().splitlines()
    for i, line in enumerate(lines[1:], 1):
        path = line.split(',')[0]
        np.save(tmp_path / f'in/{path}.npy', rng.standard_normal((2, 5, 60 + i)).astype(np.float32))
        lines[i] = f'{small_corpus.parent / path},{line.split(",", 1)[1]},in/{path}.npy'
    (tmp_path / 'corpus.csv').write_text('\n'.join([f'{lines[0]},frames', *lines[1:]]) + '\n')
    trained('corpus.csv', *'--name own --features frames --frames_per_s 100 --model ssl_att'.split())
    capsys.readouterr()
    with open('runs/augment/own/predictions.csv', newline='') as f:
        expected = {row['path'].rsplit('/', 1)[1]: [float(row['p_angry']), float(row['p_sad'])] for row in csv.DictReader(f)}
    predict.main(['runs/augment/own', '--json', 'in'])
    found = {row['path'].rsplit('/', 1)[1]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert len(found) == len(lines) - 1
    for name, p in expected.items():
        assert [*found[f'{name}.npy']['probabilities'].values()] == pytest.approx(p, abs=1e-5)
    evaluate.main(['runs/augment/own', *BASE[:2], '--data_path', 'corpus.csv', '--fold', '1', '--json'])
    assert json.loads(capsys.readouterr().out)['confusion'] == results(tmp_path / 'runs/augment/own')['confusion']
    export.main(['runs/augment/own', '--torch_export', '--out', 'own.pt2'])
    assert 'its input is frames; docs/encoders.md says' in capsys.readouterr().out
    x = torch.from_numpy(np.load('in/s1_sad_0.wav.npy'))[None]
    p = torch.export.load('own.pt2').module()(x)[0].tolist()
    assert p == pytest.approx(list(found['s1_sad_0.wav.npy']['probabilities'].values()), abs=1e-4)
    assert '`frames`, float32 (1, 2, 5, n_frames), 100 in a second' in (tmp_path / 'own.md').read_text()
    with pytest.raises(cf.UserError, match='1 of 1 recordings'):
        predict.main(['runs/augment/own', str(small_corpus.parent / 's1_sad_0.wav')])
    assert 's1_sad_0.wav' in capsys.readouterr().err
    with pytest.raises(cf.UserError, match='--encoder has no effect'):
        predict.main(['runs/augment/own', '--encoder', 'x', 'in'])


def test_an_export_is_two_files(small_corpus, tmp_path, monkeypatch, capsys):
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    import onnxruntime
    monkeypatch.chdir(tmp_path)
    save('tiny', 'wav2vec2')
    trained(small_corpus, *'--name head --features encoder --encoder tiny --encoder_layers 1-2 --model ssl_mlp --params 900 '
            '--normalise speaker'.split())
    export.main(['runs/augment/head', '--out', 'w2v.onnx'])
    assert 'w2v.encoder.onnx' in capsys.readouterr().out
    assert 'frames of the encoder tiny' in (tmp_path / 'w2v.md').read_text()
    encoder, network = (onnxruntime.InferenceSession(tmp_path / file) for file in ('w2v.encoder.onnx', 'w2v.onnx'))
    judge = predictor.load('runs/augment/head').of_speaker(small_corpus.parent.glob('s1_*.wav'), warn=str)
    mean, std = (moment.numpy() for moment in judge.moments)
    for path in sorted(small_corpus.parent.glob('*.wav'))[::9]:
        wave = soundfile.read(path, dtype='float32')[0]
        frames, = encoder.run(None, {'waveform': wave[None]})
        found = network.run(None, {'frames': frames, 'speaker_mean': mean, 'speaker_std': std})[0][0]
        np.testing.assert_allclose(found, list(judge(path).probabilities.values()), atol=1e-4)
    shutil.copy(path, tmp_path / 'my.wav')
    exec(re.search(r'```python\n(.*?)```', (ROOT / 'docs/encoders.md').read_text(), re.S)[1], {})
    assert 'angry' in capsys.readouterr().out
