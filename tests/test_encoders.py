"""Frozen encoders against transformers' own calls, on tiny models with random weights; no hub is reached."""
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from encoders_made_up import FAMILIES, save

import config as cf
import datasets
from datasets import encoders, frames, recording

transformers = pytest.importorskip('transformers')
WAVES = [np.random.default_rng(n).normal(size=n).astype(np.float32) * .1 for n in (16_000, 9_000, 12_345, 9_000, 5_001)]


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """{family: folder of a tiny model}"""
    root = tmp_path_factory.mktemp('models')
    return {family: save(root / family, family) for family in FAMILIES}


def own_states(folder, wave):
    """Hidden states (L, T, D) by transformers' own calls, and the T of them that are of audio."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = transformers.AutoFeatureExtractor.from_pretrained(folder)(wave, sampling_rate=16_000, return_tensors='pt')
    whisper = model.config.model_type == 'whisper'
    with torch.no_grad():
        states = (model.get_encoder() if whisper else model)(**inputs, output_hidden_states=True).hidden_states
    n = -(-len(wave) // 320) if whisper else int(model._get_feat_extract_output_lengths(torch.tensor(len(wave))))
    return torch.cat(states).numpy(), n


@pytest.mark.parametrize('family', FAMILIES)
def test_frames_are_those_of_transformers_alone_and_in_a_batch(family, folders):
    encoder = encoders.Encoder(folders[family])
    assert encoder.padded == family.endswith('_layer')
    groups = list(encoder._groups([len(wave) for wave in WAVES]))
    assert max(map(len, groups)) == 1  # on a CPU
    encoder.device = torch.device('cuda')  # groups as on a GPU
    groups = list(encoder._groups([len(wave) for wave in WAVES]))
    encoder.device = torch.device('cpu')
    assert len(groups) == (1 if encoder.padded or family == 'whisper' else 4)
    for group in groups + [[i] for i in range(len(WAVES))]:
        for i, x in zip(group, encoder._frames([WAVES[i] for i in group], torch.float32), strict=True):
            expected, n = own_states(folders[family], WAVES[i])
            assert x.shape == (n, 3 * 16)
            atol = 1e-6 if len(group) == 1 else 1e-5  # a batch multiplies other shapes of matrices
            np.testing.assert_allclose(x.reshape(n, 3, 16).swapaxes(0, 1), expected[:, :n], atol=atol)


def test_what_comes_out_is_the_same_in_any_company(folders):
    encoder = encoders.Encoder(folders['wav2vec2_layer'])
    together = encoder(WAVES)
    assert all(np.array_equal(one, encoder([wave])[0]) for one, wave in zip(together, WAVES, strict=True))
    assert together[0].dtype == np.float16


@pytest.mark.parametrize('choice, layers', [('all', [0, 1, 2]), ('2', [2]), ('0', [0]), ('1-2', [1, 2]), ('mean', None)])
def test_layers(choice, layers, folders):
    x, = encoders.Encoder(folders['hubert'], choice)(WAVES[:1])
    expected, n = own_states(folders['hubert'], WAVES[0])
    expected = expected.mean(axis=0, keepdims=True) if layers is None else expected[layers]
    np.testing.assert_allclose(x.reshape(n, -1, 16).swapaxes(0, 1), expected, atol=2e-3)


@pytest.mark.parametrize('choice', ['3', '2-3'])
def test_layers_that_are_not_there_are_refused(choice, folders):
    with pytest.raises(cf.UserError, match=f'--encoder_layers {choice}: this encoder has layers 0 to 2'):
        encoders.Encoder(folders['hubert'], choice)


def test_layers_in_reverse_order_are_refused(folders):
    with pytest.raises(cf.UserError, match='--encoder_layers 2-1: say 1-2'):
        encoders.Encoder(folders['hubert'], '2-1')


@pytest.mark.parametrize('family', ['wav2vec2', 'whisper'])
def test_a_long_recording_goes_through_in_pieces_whose_frames_keep_their_distance(family, folders, monkeypatch):
    monkeypatch.setattr(encoders, 'PIECE', 1)
    encoder = encoders.Encoder(folders[family])
    wave = np.concatenate([*WAVES, WAVES[0][:777]])  # 3.3 s
    x, = encoder([wave])
    pieces = encoder.facts.pieces(wave)
    assert len(x) == encoder.facts.count(len(wave)) and len(pieces) == 4 and max(map(len, pieces)) <= 16_000
    begin = 0
    for piece in pieces:
        expected, n = own_states(folders[family], piece)
        part = x[begin:begin + n].reshape(n, 3, 16).swapaxes(0, 1)
        np.testing.assert_allclose(part, expected[:, :n], atol=2e-3)
        assert np.array_equal(piece, wave[begin * 320:begin * 320 + len(piece)])
        begin += n
    assert begin == len(x)


def copy_of(folder, to, **settings):
    """A copy of a model's folder whose config.json has other settings."""
    shutil.copytree(folder, to)
    config = json.loads((to / 'config.json').read_text())
    (to / 'config.json').write_text(json.dumps({**config, **settings}))
    return to


def test_folders_that_are_no_speech_model_are_refused_in_a_line(folders, tmp_path):
    good = folders['wav2vec2']
    image = transformers.ViTModel(transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                                         intermediate_size=16, image_size=8, patch_size=4))
    image.save_pretrained(tmp_path / 'image')
    (tmp_path / 'image' / 'preprocessor_config.json').write_text('{"image_processor_type": "ViTImageProcessor"}')
    (tmp_path / 'empty').mkdir()
    cases = {'image': 'the feature extractor of a speech model cannot be loaded', 'empty': 'there is no config.json'}
    for name, damage, message in (
            ('pickled', lambda f: (f / 'model.safetensors').rename(f / 'pytorch_model.bin'), 'there is no model.safetensors'),
            ('cut', lambda f: (f / 'model.safetensors').write_bytes(b'12345678'), 'its weights cannot be loaded'),
            ('other', lambda f: shutil.copy(tmp_path / 'image' / 'model.safetensors', f), 'its weights lack 4. tensors'),
            ('text', lambda f: (f / 'config.json').write_text('{'), 'its configuration cannot be loaded'),
            ('silent', lambda f: (f / 'preprocessor_config.json').unlink(), 'there is no preprocessor_config.json in it')):
        damage(copy_of(good, tmp_path / name))
        cases[name] = message
    copy_of(good, tmp_path / 'sizes', conv_stride=[0, 8])
    cases['sizes'] = 'not what it should hold'
    copy_of(good, tmp_path / 'wider', hidden_size=32)
    cases['wider'] = 'its weights cannot be loaded from this folder .config.json says other sizes'
    for name, message in cases.items():
        with pytest.raises(cf.UserError, match=f'--encoder {tmp_path / name}: .*{message}') as error:
            encoders.Encoder(str(tmp_path / name))
        assert '\n' not in str(error.value)


def hub_cache(folder, hub, name, commit='c0ffee' * 6 + 'c0de'):
    """The cache of the hub as it is after a download of `name`."""
    place = hub / f'models--{name.replace("/", "--")}'
    shutil.copytree(folder, place / 'snapshots' / commit)
    (place / 'refs').mkdir()
    (place / 'refs' / 'main').write_text(commit)
    return commit


def test_a_model_of_the_hub_is_used_offline_where_it_is_there(folders, tmp_path, monkeypatch):
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)  # any attempt to reach it fails at once
    commit, asked = hub_cache(folders['wav2vec2'], tmp_path, 'someone/tiny'), []
    download = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda name, **how: asked.append(how) or download(name, **how))
    encoder = encoders.Encoder('someone/tiny')
    assert [how['local_files_only'] for how in asked] == [True]
    assert encoder.facts.revision == commit
    assert np.array_equal(encoder(WAVES[:1])[0], encoders.Encoder(folders['wav2vec2'])(WAVES[:1])[0])
    for name in ('someone/else', '../no/name', ''):
        with pytest.raises(cf.UserError, match=f'--encoder {name}: there is no such folder, nor can it be had'):
            encoders.Encoder(name)
    next(tmp_path.glob('*/snapshots/*/model.safetensors')).rename(tmp_path / 'gone')
    encoders._folder.cache_clear()
    with pytest.raises(cf.UserError, match=r"If you trust it: python -c .*from_pretrained\('someone/tiny'\)"):
        encoders.Encoder('someone/tiny')


@pytest.mark.parametrize('lacks', ['preprocessor_config.json', 'model.safetensors'])
def test_a_model_of_which_another_program_fetched_a_part_is_completed_from_the_hub(lacks, folders, tmp_path, monkeypatch):
    import huggingface_hub
    commit, whole = 'c0ffee', Path(folders['wav2vec2'])
    part = tmp_path / commit
    shutil.copytree(whole, part)
    (part / lacks).unlink()

    def download(name, local_files_only, **_):
        if not local_files_only:
            shutil.copy(whole / lacks, part)
        return str(part)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    assert encoders.Encoder(f'someone/partly-{lacks}').facts.revision == commit


def test_shards_of_weights_are_complete_when_all_are_there(folders, tmp_path):
    folder = copy_of(folders['wav2vec2'], tmp_path / 'model')
    assert encoders._complete(str(folder))
    (folder / 'model.safetensors').rename(folder / 'model-00001-of-00002.safetensors')
    assert not encoders._complete(str(folder))
    (folder / 'model-00002-of-00002.safetensors').touch()
    assert encoders._complete(str(folder))


def test_the_revision_is_of_the_weights_and_they_are_read_once(folders, tmp_path, monkeypatch):
    folder, read = copy_of(folders['wav2vec2'], tmp_path / 'model'), []
    digest = encoders.file_digest
    monkeypatch.setattr(encoders, 'file_digest', lambda path: read.append(path) or digest(path))
    monkeypatch.setattr('datasets.index.SETTLED_NS', -10 ** 18)
    first, again = (encoders.facts(str(folder), str(tmp_path)).revision for _ in range(2))
    assert first == again and len(read) == 3  # two files of settings, one of weights
    save(folder, 'wav2vec2', seed=1)
    assert encoders.facts(str(folder), str(tmp_path)).revision != first


def test_transformers_works_beside_our_datasets():
    assert Path(datasets.__file__) == ROOT / 'datasets' / '__init__.py'
    transformers.utils.is_datasets_available()  # looks for a package of this name
    assert not hasattr(datasets, 'load_dataset')


# --- In a corpus ---

def built(folder, corpus, tmp_path, *more):
    return frames.complete(cf.build('augment', cf.given('augment', [
        '--name', 'x', '--dataset', 'manifest', '--data_path', str(corpus), '--features', 'encoder', '--encoder', folder,
        '--model', 'rnn', '--duration', '.8', '--cache', str(tmp_path / 'cache'), *more])))


@pytest.mark.parametrize('family, layers, shape', [('wav2vec2_layer', 'all', (3, 16, 40)), ('whisper', 'mean', (16, 1, 40))])
def test_a_corpus_is_extracted_once_and_a_recording_alone_has_the_same_frames(family, layers, shape, folders, small_corpus,
                                                                            tmp_path, monkeypatch, capsys):
    config = built(folders[family], small_corpus, tmp_path, '--encoder_layers', layers)
    assert (config.n_frames, config.frame_rate, len(config.encoder_revision)) == (40, 50., 16)
    write, made = frames.write, []

    def stops(path, x):
        made.append(path)
        if len(made) == 9:
            raise KeyboardInterrupt
        return write(path, x)
    monkeypatch.setattr(frames, 'write', stops)
    with pytest.raises(KeyboardInterrupt):
        datasets.load(config, ('train', 'test'))
    assert 'hours, will take ' in capsys.readouterr().err
    monkeypatch.setattr(frames, 'write', write)
    data = datasets.load(config, ('train', 'dev', 'test'), quiet=True)
    assert data.extracted == 48 - 8
    assert datasets.load(config, ('train', 'dev', 'test'), quiet=True).extracted == 0
    X, _ = next(data.sets['train'].batches(4))
    assert X.x.shape[1:] == shape
    for i in (0, 5):
        x, skipped = recording.features(data.sets['test'].utterances[i], config)
        assert np.array_equal(data.sets['test'].features_of(i), x.astype(np.float32)) and skipped == 0
    other = built(folders[family], small_corpus, tmp_path, '--encoder_layers', '1')
    assert datasets.load(other, ('train',), quiet=True).extracted > 0  # layers are part of the key


def test_another_encoder_than_that_of_the_frames_is_refused(folders, small_corpus, tmp_path):
    config = built(folders['wav2vec2'], small_corpus, tmp_path)
    other = replace(config, encoder=folders['hubert'])
    with pytest.raises(cf.UserError, match='this is revision .*, not .*, whose frames were used before'):
        encoders.of(other)


def test_faults_of_recordings_are_told_together(folders, small_corpus, tmp_path):
    shutil.copytree(small_corpus.parent, tmp_path / 'corpus')
    for name in ('s0_angry_0.wav', 's1_sad_1.wav'):
        (tmp_path / 'corpus' / name).write_text(name)
    with pytest.raises(cf.UserError, match='2 faults: .*s0_angry_0.wav: .*s1_sad_1.wav: '):
        datasets.load(built(folders['wav2vec2'], tmp_path / 'corpus' / 'corpus.csv', tmp_path), ('train', 'dev', 'test'))


def test_a_wave_too_short_for_a_frame_is_named(folders, small_corpus, tmp_path):
    with pytest.raises(cf.UserError, match='a.wav: 459 samples of audio at 16000 Hz, but the encoder needs 460 for a frame'):
        encoders.Encoder(folders['wav2vec2']).wave(np.zeros(459, np.float32), 'a.wav')
