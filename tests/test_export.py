"""Exported networks give the probabilities of the predictor, which test_predictor.py compares with those of the test."""
import json

import numpy as np
import pytest
import soundfile
import torch

import config as cf
import genotypes as gt
import utils
from datasets.dataset import Inputs
from datasets.readers import synthetic
from models import speaker_norm
from models.augment_cnn import AugmentCNN
from models.baselines import make_baseline
from models.predictor import Predictor, load
from models.sources import window_shape
from models.waveform import Frames, Waveform
from scripts import export

LABELS = ['angry', 'happy', 'sad']
EVERY_KIND = gt.Genotype(
    [[('max_pool_3x3', 0), ('sep_conv_3x3', 1)], [('avg_pool_3x3', 2), ('dil_conv_5x5', 0)]], [2, 3],
    [[('skip_connect', 0), ('dil_conv_3x3', 1)], [('max_pool_3x3', 0), ('sep_conv_5x5', 2)]], [2, 3],
    [[('lstm_2', 0), ('gru_att_1', 1)], [('rnn_1', 0), ('skip_connect', 2)]], [2, 3])


SMALLER = gt.Genotype([[('avg_pool_3x3', 0), ('dil_conv_5x5', 1)]], [2], [[('skip_connect', 0), ('max_pool_3x3', 1)]], [2],
                      [[('lstm_1', 0), ('gru_att_1', 1)]], [2])  # ONNX takes seconds for every operation


def of_speech(cnn, seq, **network):
    """A genotype of the space `speech` whose edges have these operations, two a node."""
    def cell(ops):
        return [[(one, 0), (other, 1)] for one, other in zip(ops[::2], ops[1::2], strict=True)]
    normal, reduce = cnn[:len(cnn) // 4 * 2], cnn[len(cnn) // 4 * 2:]
    return gt.Genotype(cell(normal), range(2, 2 + len(normal) // 2), cell(reduce), range(2, 2 + len(reduce) // 2), cell(seq),
                       range(2, 2 + len(seq) // 2), {'layers': 3, 'C': 2, 'rnn_layers': 1, 'C_rnn': 4, **network})


def best_of(model, genotype=EVERY_KIND, **settings):
    """The contents of a best.pt with random weights, the same at every call."""
    torch.manual_seed(0)
    settings = dict(n_mels=16, hop_ms=16., time_pool=2, prosody_version=2, duration=.8, init_channels=2, layers=3,
                    rnn_channels=4, params=600, model=model) | settings
    config = cf.AugmentConfig(name='x', **settings)
    n_rows = config.n_rows + config.inputs.get('n_prosody', 0)
    if model == 'genotype':
        net = AugmentCNN(None, C=2, n_classes=3, n_layers=3, auxiliary=True, genotype=genotype, C_rnn=4, n_layers_rnn=1,
                         stem_multiplier=config.stem_multiplier, **config.inputs)
    else:
        net = make_baseline(model, config.height, config.n_frames, 3, 0., config.params, **config.inputs)
    speaker_norm.added(net, config, torch.full((2,), 99))
    with torch.no_grad():
        for _ in range(15):  # batch norm of a network that was trained
            rows = torch.randn(6, n_rows - config.n_rows, config.n_frames) if config.prosody else None
            net(*Inputs(.5 + 2 * torch.randn(6, *window_shape(config, config.n_frames)), prosody=rows,
                        speaker=torch.arange(6) % 2))
    if net.speaker_norm is not None:  # of two speakers with ten recordings each
        mean = .1 * torch.randn(2, net.speaker_norm.sums.shape[1] // 2)
        net.speaker_norm.sums = torch.cat([torch.ones(2, 1), mean, mean.square() + 25.], dim=1) * 10
    for x in net.linear.parameters():
        x.data *= 8 if x.ndim == 2 else 0  # classes depend on the recording
    return dict(settings=settings, weights=net.state_dict(), labels=LABELS, mean=torch.full((n_rows, 1), -5.),
                std=torch.full((n_rows, 1), 3.), prior=[torch.full((n_rows, 1), x) for x in (-5., 2.)],
                genotype=gt.to_str(genotype) if model == 'genotype' else None, auxiliary=model == 'genotype',
                format=utils.FORMAT)


def waves():
    """Of a fraction of a window, of several, the shortest, with silence around, and silent."""
    speech = np.concatenate([synthetic.synthesise(s, 'angry', 0) for s in range(3)])
    silence = np.zeros(7_000, np.float32)
    yield from (speech[:1_025], speech[3_000:9_777], speech, np.concatenate([silence, speech[:20_000], silence]), silence)
    yield np.concatenate([silence, speech[5_000:5_100], silence])  # of which trimming keeps the least


def expected(predictor, wave):
    return np.array(list(predictor(wave).probabilities.values()))


ALL = dict(normalise='speaker', embedding='speaker', prosody=True, deltas=True)
CASES = [*[(name, {}) for name in cf.ANY_INPUT], ('genotype', {'trim_db': 30.}), ('cnn_gru', {'features': 'mfcc'}),
         ('lstm', {'time_pool': 1, 'hop_ms': 10., 'trim_db': 40.}), ('cnn', {'time_pool': 3, 'trim_db': 40.}),
         ('genotype', {'prosody': True, 'trim_db': 30.}), ('cnn_gru', {'prosody': True, 'time_pool': 3, 'trim_db': 40.}),
         ('genotype', {'deltas': True}), ('cnn_gru', {'normalise': 'speaker', 'prosody': True}),
         ('cnn_gru', {'prosody': True, 'prosody_version': 1}), ('cnn_gru', {**ALL, 'trim_db': 30.}),
         ('genotype', {**ALL, 'time_pool': 1})]


@pytest.mark.parametrize('model, settings', CASES)
@torch.no_grad()
def test_the_module_computes_what_the_predictor_does(model, settings):
    best = best_of(model, **settings)
    predictor = Predictor(best)
    if predictor.needs_speaker:  # mean and std of features that are normalised already
        predictor = export.of_nobody(Predictor({**best, 'mean': 0 * best['mean'], 'std': 1 + 0 * best['std']}))
    module, spread = Waveform(predictor, fixed=True), []
    for wave in waves():
        found = module(torch.from_numpy(wave)[None])[0].numpy()
        np.testing.assert_allclose(found, expected(predictor, wave), atol=1e-4)
        spread.append(found)
    assert np.ptp(spread, axis=0).max() > .01  # the probabilities do depend on the wave


@pytest.mark.parametrize('time_pool', [1, 2, 3])
@torch.no_grad()
def test_features_are_those_of_the_cache(time_pool):
    """Prosody too, whose frames beyond the end of the trimmed wave lend no pitch."""
    predictor = Predictor(best_of('cnn_gru', prosody=True, trim_db=30., time_pool=time_pool))
    module = Waveform(predictor)
    for wave in waves():
        found, n_frames = module.features(torch.from_numpy(wave))
        expected = predictor.features(wave)[0].astype(np.float32)
        assert expected.shape == (len(predictor.mean), n_frames)
        np.testing.assert_allclose(found[:, :n_frames], expected, rtol=2e-3, atol=2e-3)  # float16


@pytest.mark.parametrize('shape', ['1x16', '3x4'])
@pytest.mark.parametrize('embedding', ['none', 'speaker'])
@pytest.mark.parametrize('model', ['genotype', *cf.BASELINES])
@torch.no_grad()
def test_of_frames(model, embedding, shape):
    settings = dict(features='frames', frame_shape=shape, normalise='speaker', embedding=embedding,
                    params=0 if model == cf.ONE_SIZE else 600)
    best = best_of(model, **settings)
    predictor = export.of_nobody(Predictor({**best, 'mean': .1 + 0 * best['mean'], 'std': 2 + 0 * best['std']}))
    module, found = Frames(predictor), []
    for x, expected in export.of_frames(predictor):
        found.append(module(torch.from_numpy(x)[None], *(predictor.moments if embedding == 'none' else ()))[0].numpy())
        np.testing.assert_allclose(found[-1], expected, atol=1e-5)
    assert len(found) == 3 and np.ptp(found, axis=0).max() > 1e-3


@pytest.mark.parametrize('normalise', ['corpus', 'speaker'])
@torch.no_grad()
def test_a_program_of_torch_export(normalise, tmp_path):
    torch.save(best_of('lstm', trim_db=30., normalise=normalise), tmp_path / 'best.pt')
    export.main([str(tmp_path), '--out', str(tmp_path / 'a.pt2'), '--torch_export'])
    extra = {'metadata.json': ''}
    module = torch.export.load(tmp_path / 'a.pt2', extra_files=extra).module()
    assert json.loads(json.loads(extra['metadata.json'])['classes']) == LABELS
    for wave in waves():
        predictor = load(tmp_path)
        predictor = export.of_nobody(predictor) if predictor.needs_speaker else predictor
        np.testing.assert_allclose(module(torch.from_numpy(wave)[None])[0].numpy(), expected(predictor, wave), atol=1e-4)


EVERY_OP = [[op for op in gt.op_set('speech', kind) if op not in (*gt.op_set(of, kind), gt.NONE)] for of, kind in (
    ('paper', 'cnn'), ('mixed', 'rnn'))]  # that only the space `speech` has
FEW = (['freq_attention', 'se_conv_3x3', 'broadcast_conv', 'gated_conv_3x3'], ['res_bilstm', 'self_attention'])


@pytest.mark.parametrize('ops, suffix, network', [
    (EVERY_OP, '.pt2', dict(reduce_1='frequency', reduce_2='both', bands=8, head='max')),
    (FEW, '.onnx', dict(reduce_1='time', reduce_2='frequency', bands='attended', head='attention')),
    (FEW, '.pt2', dict(reduce_1='both', reduce_2='time', bands=1, head='mean')),
    ((FEW[0], []), '.pt2', dict(reduce_1='time', reduce_2='time', bands=2, rnn_layers=0, head='mean_std'))],
    ids=lambda x: x if isinstance(x, str) else '')
@torch.no_grad()
def test_networks_of_the_speech_space(ops, suffix, network, tmp_path):
    if suffix == '.onnx':
        for name in ('onnx', 'onnxscript', 'onnxruntime'):
            pytest.importorskip(name)
    torch.save(best_of('genotype', of_speech(*ops, **network), prosody=True, duration=.4), tmp_path / 'best.pt')
    file = tmp_path / f'net{suffix}'
    export.main([str(tmp_path), '--out', str(file), *['--torch_export'] * (suffix == '.pt2')])
    module, predictor, found = suffix == '.pt2' and torch.export.load(file).module(), load(tmp_path), []
    for wave in waves():
        found.append(module(torch.from_numpy(wave)[None])[0].numpy() if module else run(file, wave))
        np.testing.assert_allclose(found[-1], expected(predictor, wave), atol=1e-4)
    assert np.ptp(found, axis=0).max() > .01


@pytest.fixture(scope='module')
def onnx_file(tmp_path_factory):
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp('onnx')
    torch.save(best_of('genotype', SMALLER, trim_db=30., normalise='speaker', duration=.4), folder / 'best.pt')
    export.main([str(folder / 'best.pt'), '--out', str(folder / 'net.onnx')])
    return folder / 'net.onnx'


def run(file, wave, **inputs):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options)
    return session.run(None, {'waveform': wave[None], **inputs})[0][0]


def of_speaker(file, moments):
    predictor = load(file.parent)
    predictor.moments = moments
    return predictor


def test_an_onnx_file_takes_any_wave_and_perhaps_a_speaker(onnx_file):
    import onnxruntime
    session = onnxruntime.InferenceSession(onnx_file)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts['classes']) == LABELS and (facts['sample_rate'], facts['normalise']) == ('16000', 'speaker')
    assert [(x.name, x.type) for x in session.get_inputs()] == [('waveform', 'tensor(float)')]
    assert [(x.name, x.shape) for x in session.get_outputs()] == [('probabilities', [1, 3])]
    prior, other = load(onnx_file.parent).prior, (torch.full((16, 1), -2.), torch.full((16, 1), 1.))
    (mean, std), differ = (x.numpy() for x in other), []
    for wave in waves():
        nobody, somebody = run(onnx_file, wave), run(onnx_file, wave, speaker_mean=mean, speaker_std=std)
        np.testing.assert_allclose(nobody, expected(of_speaker(onnx_file, prior), wave), atol=1e-4)
        np.testing.assert_allclose(somebody, expected(of_speaker(onnx_file, other), wave), atol=1e-4)
        differ.append(np.abs(nobody - somebody).max())
    assert max(differ) > .02  # of silence they are equal


@pytest.mark.parametrize('suffix', ['.pt2', '.onnx'])
@torch.no_grad()
def test_of_one_speaker_with_prosody_and_a_normalised_embedding(suffix, tmp_path):
    """The file is for the speaker of --speaker_files; without that, for the average of the training speakers."""
    if suffix == '.onnx':
        for name in ('onnx', 'onnxscript', 'onnxruntime'):
            pytest.importorskip(name)
    best = best_of('genotype', SMALLER, trim_db=30., duration=.4, **ALL)
    torch.save({**best, 'mean': 0 * best['mean'], 'std': 1 + 0 * best['std']}, tmp_path / 'best.pt')
    (tmp_path / 'voice').mkdir()
    for i in range(10):
        soundfile.write(tmp_path / f'voice/{i}.wav', synthetic.synthesise(i % 4, LABELS[i % 3], i), 16_000)
    argv, found = [str(tmp_path), *['--torch_export'] * (suffix == '.pt2'), '--out'], {}
    cases = [('voice', ['--speaker_files', str(tmp_path / 'voice')]), ('nobody', [])][:2 if suffix == '.pt2' else 1]
    for name, more in cases:  # ONNX takes long
        file = tmp_path / f'{name}{suffix}'
        export.main([*argv, str(file), *more])
        predictor = load(tmp_path)
        predictor = predictor.of_speaker(sorted((tmp_path / 'voice').iterdir())) if more else export.of_nobody(predictor)
        compute = export.run_onnx(file.read_bytes(), 'waveform') if suffix == '.onnx' else export.run_program(
            torch.export.load(file))
        found[name] = [compute(wave) for wave in waves()]
        np.testing.assert_allclose(found[name], [expected(predictor, wave) for wave in waves()], atol=2e-4)
        page = file.with_suffix('.md').read_text()
        assert 'speaker_mean' not in page and '16 bands, differences, prosody' in page
        assert ('the one whose recordings were given' in page) is bool(more)
    assert len(found) == 1 or np.abs(np.subtract(*found.values())).max() > .02


@pytest.mark.speech
def test_an_onnx_file_on_real_speech(onnx_file, ser_data):
    predictor = of_speaker(onnx_file, load(onnx_file.parent).prior)
    for path in sorted((ser_data / 'emodb/wav').glob('*.wav'))[::40]:
        np.testing.assert_allclose(run(onnx_file, soundfile.read(path, dtype='float32')[0]),
                                   list(predictor(path).probabilities.values()), atol=1e-4)


def test_the_card_stands_beside_it(onnx_file):
    text = onnx_file.with_suffix('.md').read_text()
    assert all(word in text for word in ('# net.onnx', 'speaker_mean', 'logmel, 16 bands', 'no results.json', '## Licence'))
    net = load(onnx_file.parent).net
    size = sum(x.numel() for name, x in net.named_parameters() if 'aux' not in name)
    assert f'| parameters | {size:,} |' in text


def test_what_cannot_be_exported_is_said(tmp_path, monkeypatch):
    torch.save(best_of('rnn'), tmp_path / 'best.pt')
    argv = [str(tmp_path), '--torch_export', '--out']
    with pytest.raises(cf.UserError, match=r'must end in \.pt2'):
        export.main([*argv, str(tmp_path / 'a.onnx')])
    soundfile.write(tmp_path / 'a.wav', np.zeros(9_000), 16_000)
    with pytest.raises(cf.UserError, match='does not normalise speakers'):
        export.main([*argv, str(tmp_path / 'a.pt2'), '--speaker_files', str(tmp_path)])
    monkeypatch.setattr(export, 'exported', lambda predictor, fixed: None)
    monkeypatch.setattr(export, 'run_program', lambda program: lambda wave: np.array([.2, .3, .5]))
    with pytest.raises(cf.UserError, match='would not give the probabilities'):
        export.main([*argv, str(tmp_path / 'a.pt2')])
    assert not (tmp_path / 'a.pt2').exists()
