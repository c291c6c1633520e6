"""Frozen speech models of Hugging Face: the only file that imports `transformers`, and only when it is called.

A model is named by its folder, or by its name on the hub; the hub's cache on this machine is asked first. Weights are read from
safetensors alone: a pickle may execute what its author likes. No code of a model is executed.
"""
import functools
import glob
import hashlib
import logging
import os
import re
import threading
import warnings
from dataclasses import dataclass

import librosa
import numpy as np
import torch

from config import SAMPLE_RATE, UserError, contents_of, one_line
from datasets.features import file_digest
from datasets.index import Index
from datasets.utterance import Utterance

PIECE = 30  # s; a longer recording goes through in equal pieces of at most this, since attention is quadratic
BATCH = {'cpu': 0, 'cuda': 120}  # s that go through at once; on a CPU one piece, so that its bits never depend on others
# Models whose frames do not depend on padding, if their extractor gives a mask. In Data2Vec padding leaks into the last
# frames of a recording, through its five convolutions of positions.
MASKED = ('wav2vec2', 'hubert', 'wavlm')
FILES = ('config.json', 'preprocessor_config.json', 'processor_config.json', 'model.safetensors',
         'model.safetensors.index.json', 'model-*-of-*.safetensors')  # a repository may hold other weights too
FAMILIES = 'wav2vec 2.0, HuBERT, WavLM, Data2Vec for audio, or Whisper'
_loading = threading.Lock()  # several threads call `of`


@dataclass(frozen=True)
class Facts:
    """What is known of an encoder before its weights are loaded."""
    revision: str  # commit of the hub, or digest of the folder's files
    n_layers: int  # with layer 0, what enters the first transformer layer
    channels: int
    rate: int  # Hz
    stride: int  # samples at this rate between frames
    overlap: int  # samples that a frame sees of the next stride
    piece: int  # frames of the longest piece
    whisper: bool

    def count(self, n_samples: int) -> int:
        """Frames of a wave of n_samples at `rate`; 0 if it is too short for one."""
        if self.whisper:  # frame i is centred on sample i * stride
            return -(-n_samples // self.stride)
        return max(0, (n_samples - self.overlap) // self.stride)

    def pieces(self, wave: np.ndarray) -> list[np.ndarray]:
        """A wave at `rate` in pieces whose frames, side by side, are as many and as far apart as those of the whole."""
        n_frames = self.count(len(wave))
        n_pieces = -(-n_frames // self.piece)
        bounds = [n_frames * i // n_pieces * self.stride for i in range(n_pieces)]
        ends = [*(end + self.overlap for end in bounds[1:]), len(wave)]
        return [wave[begin:end] for begin, end in zip(bounds, ends)]


def layers_of(choice: str, n_layers: int) -> list[int]:
    """Layers that --encoder_layers names; all of them for their mean. UserError if the encoder lacks one."""
    if choice in ('all', 'mean'):
        return list(range(n_layers))
    first, _, last = choice.partition('-')
    first, last = int(first), int(last or first)
    if first > last:
        raise UserError(f'--encoder_layers {choice}: say {last}-{first}')
    if last >= n_layers:
        raise UserError(f'--encoder_layers {choice}: this encoder has layers 0 to {n_layers - 1}')
    return list(range(first, last + 1))


def facts(name: str, cache: str | None = None) -> Facts:
    """The Facts of an encoder. cache: folder that remembers digests of weights. UserError."""
    folder = _folder(name)
    config, extractor = _described(folder)
    with contents_of(f'--encoder {name}', f'take {FAMILIES}, or a model with the same interface'):
        whisper, rate = config.model_type == 'whisper', extractor.sampling_rate
        if whisper:
            stride, overlap, longest = 2 * extractor.hop_length, 0, config.max_source_positions
        else:
            stride, field = 1, 1  # samples
            for kernel, step in zip(config.conv_kernel, config.conv_stride, strict=True):
                field += (kernel - 1) * stride
                stride *= step
            overlap, longest = field - stride, (PIECE * rate - field) // stride + 1
        sizes = config.num_hidden_layers + 1, config.hidden_size, rate, stride, overlap, min(longest, PIECE * rate // stride)
        if not all(isinstance(size, int) and 0 <= size < 1_000_000 for size in sizes) or min(sizes[:4] + sizes[5:]) < 1:
            raise ValueError(f'sizes {sizes}')
    return Facts(_digest(folder, cache) if folder == name else os.path.basename(folder), *sizes, whisper)


@functools.lru_cache(maxsize=4)
def _folder(name):
    """The folder of a model: `name`, or one in the hub's cache that has the name of the commit. UserError."""
    hub = _transformers()[1]
    why, found = 'its name is empty', name if os.path.isdir(name) else None
    for offline in () if found or not name else (True, False):
        try:
            found = hub.snapshot_download(name, allow_patterns=FILES, local_files_only=offline)
        except Exception as error:  # the hub and its requirements raise many kinds
            why = _first(error)
        if found and _complete(found):
            break
    if not found:
        raise UserError(f'--encoder {name}: there is no such folder, nor can it be had from the Hugging Face hub or its cache '
                        f'({why})')
    if not os.path.isfile(os.path.join(found, 'config.json')):
        raise UserError(f'--encoder {name}: there is no config.json in it: it is no model that transformers saved')
    if not _weights(found):
        raise UserError(f'--encoder {name}: there is no model.safetensors, and other files of weights are not read, since a '
                        'pickle may execute anything. If you trust it: python -c "from transformers import AutoModel as M, '
                        f"AutoFeatureExtractor as F; [A.from_pretrained('{name}').save_pretrained('FOLDER') for A in (M, F)]"
                        '", and --encoder FOLDER')
    return found


def _weights(folder):
    return sorted(glob.glob(os.path.join(glob.escape(folder), 'model*.safetensors')))


def _complete(folder):
    """Whether a snapshot of the hub holds a speech model; one that another program fetched may lack files."""
    config, *extractors = (os.path.isfile(os.path.join(folder, name)) for name in FILES[:3])
    weights = _weights(folder)
    parts = re.search(r'-of-(\d+)\.', ' '.join(weights[-1:]))
    return config and any(extractors) and len(weights) >= int(parts[1] if parts else 1)


def _first(error):
    """The first sentence of an error."""
    if 'ignore_mismatched_sizes' in str(error):  # a flag of transformers, which is no help here
        return 'config.json says other sizes'
    return one_line(re.split(r'\.\s|\n', str(error))[0], 150)


@functools.lru_cache(maxsize=4)
def _described(folder):
    """Configuration and feature extractor of a speech model. UserError."""
    transformers, _ = _transformers()
    config = _read(transformers.AutoConfig, folder, 'its configuration')
    if not any(os.path.isfile(os.path.join(folder, name)) for name in FILES[1:3]):
        raise UserError(f'--encoder {folder}: there is no preprocessor_config.json in it: save the feature extractor too')
    extractor = _read(transformers.AutoFeatureExtractor, folder, 'the feature extractor of a speech model')
    if not hasattr(extractor, 'sampling_rate') or config.model_type != 'whisper' and not hasattr(config, 'conv_kernel'):
        raise UserError(f'--encoder {folder}: a model of type {config.model_type} is none that can be used: take {FAMILIES}')
    return config, extractor


def _transformers():
    """The packages transformers and huggingface_hub. UserError."""
    try:
        import huggingface_hub
        import transformers
    except ImportError:
        raise UserError('--features encoder needs the package transformers: pip install -r requirements-encoders.txt') from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger('huggingface_hub').setLevel(logging.ERROR)  # it tells of every attempt to reach the hub
    warnings.filterwarnings('ignore', 'Support for mismatched key_padding_mask', UserWarning)  # of WavLM
    return transformers, huggingface_hub


def _read(auto, folder, what, **how):
    """auto.from_pretrained of a folder. UserError."""
    try:
        return auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **how)
    except Exception as error:  # transformers and its requirements raise many kinds
        raise UserError(f'--encoder {folder}: {what} cannot be loaded from this folder ({_first(error)})') from None


def _digest(folder, cache):
    """A digest of all files of a folder that frames depend on."""
    texts = (os.path.join(folder, name) for name in FILES if not name.startswith('model'))
    index = Index(os.path.join(cache, 'index-encoders.json') if cache else os.devnull,
                  lambda u: file_digest(u.path).hexdigest())
    keys = [index.key(Utterance(path, '', '')) for path in [*filter(os.path.isfile, texts), *_weights(folder)]]
    if cache:
        index.save()
    return hashlib.sha256(''.join(keys).encode()).hexdigest()[:16]


class Encoder:
    """A frozen encoder. encoder(waves) -> [(T, L D) float16, ...], the frames that each wave has alone."""

    def __init__(self, name: str, choice: str = 'all', device: str = 'cpu', cache: str | None = None):
        """choice: as in --encoder_layers. cache: as in `facts`. UserError."""
        self.facts, self.device = facts(name, cache), torch.device(device)
        self.layers, self.mean = layers_of(choice, self.facts.n_layers), choice == 'mean'
        config, self.extractor = _described(_folder(name))
        model, info = _read(_transformers()[0].AutoModel, _folder(name), 'its weights', use_safetensors=True,
                            dtype=torch.float32, output_loading_info=True)
        if missing := sorted(set(info['missing_keys']) - {'masked_spec_embed'}):  # that one is of training
            raise UserError(f'--encoder {name}: its weights lack {len(missing)} tensors, such as {missing[0]}: they are of '
                            'another model')
        self.model = (model.get_encoder() if self.facts.whisper else model).to(self.device).eval()
        self.padded = (config.model_type in MASKED and config.feat_extract_norm == 'layer'
                       and self.extractor.return_attention_mask)
        try:
            shape = self([np.zeros(self.facts.rate, np.float32)])[0].shape
        except Exception as error:
            shape = one_line(error, 150)
        if shape != (self.facts.count(self.facts.rate), len(self.layers[:1 if self.mean else None]) * self.facts.channels):
            raise UserError(f'--encoder {name}: does not give frames as wav2vec 2.0 does ({shape}); take {FAMILIES}')

    def wave(self, wave: np.ndarray, where: str) -> np.ndarray:
        """A wave at SAMPLE_RATE, at the rate of the encoder. UserError, which begins with `where`, if it is too short."""
        if self.facts.rate != SAMPLE_RATE:
            wave = librosa.resample(wave, orig_sr=SAMPLE_RATE, target_sr=self.facts.rate)
        if not self.facts.count(len(wave)):
            raise UserError(f'{where}: {len(wave)} samples of audio at {self.facts.rate} Hz, but the encoder needs '
                            f'{self.facts.stride + self.facts.overlap} for a frame; leave it out')
        return wave

    def __call__(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """waves: results of `wave`."""
        pieces = [self.facts.pieces(wave) for wave in waves]
        flat, found = sum(pieces, []), {}
        for group in self._groups([len(piece) for piece in flat]):
            found.update(zip(group, self._frames([flat[j] for j in group])))
        in_order = (found[j] for j in range(len(flat)))
        return [np.concatenate([next(in_order) for _ in own]) for own in pieces]

    def _groups(self, lengths):
        """Yields indices of pieces that go through together."""
        group, whisper = [], self.facts.whisper
        for j in sorted(range(len(lengths)), key=lambda j: -lengths[j]):
            first = lengths[group[0]] if group else lengths[j]  # the longest
            n_samples = (len(group) + 1) * (self.facts.piece * self.facts.stride if whisper else first)
            fits = n_samples <= BATCH[self.device.type] * self.facts.rate
            if group and not (fits and (self.padded or whisper or lengths[j] == first)):
                yield group
                group = []
            group.append(j)
        if group:
            yield group

    @torch.inference_mode()
    def _frames(self, pieces, dtype=torch.float16):
        """[(T, L D), ...] of pieces that go through together."""
        padding = {} if self.facts.whisper else dict(padding=True)
        inputs = self.extractor(pieces, sampling_rate=self.facts.rate, return_tensors='pt', **padding).to(self.device)
        if self.facts.whisper:
            inputs = {'input_features': inputs['input_features']}
        states = self.model(**inputs, output_hidden_states=True).hidden_states  # (N, T, D) each
        x = torch.stack([states[layer] for layer in self.layers], dim=2)  # (N, T, L, D)
        x = (x.mean(dim=2) if self.mean else x.flatten(2)).to(dtype).cpu().numpy()
        return [own[:self.facts.count(len(piece))] for own, piece in zip(x, pieces)]


_encoder = functools.lru_cache(maxsize=1)(Encoder)


def of(config, device: str | torch.device = 'cpu') -> Encoder:
    """The Encoder of a configuration, loaded once. UserError, also if it is not the one that the configuration was made for."""
    with _loading:
        found = _encoder(config.encoder, config.encoder_layers, str(device), getattr(config, 'cache', None))
    if config.encoder_revision not in ('', found.facts.revision):
        raise UserError(f'--encoder {config.encoder}: this is revision {found.facts.revision}, not {config.encoder_revision}, '
                        'whose frames were used before: its weights or settings have changed')
    return found
