"""What tests/reliability/fuzz.py feeds: readers of audio, cached features, checkpoints and trained networks."""
import io
import itertools
import os
import random
import shutil
from types import SimpleNamespace

import numpy as np
import soundfile
import torch
from fuzz_mutations import damaged_bytes, damaged_json, damaged_tree
from fuzz_readers import GENOTYPE, RECORD, Reader

import augment
import config as cf
from datasets.features import cached_features
from datasets.readers import synthetic
from datasets.utterance import Utterance
from models import parallel, predictor
from models.augment_cnn import AugmentCNN
from models.run import Run

SETTINGS = cf.SearchConfig(name='x', n_mels=16)
SHAPES = ['(16, 10**9)', '(16, 99999999999999999999)', '(16, 999999999)', '(True, 160)', '(-1, 3)', '((((', '(16,)', '']


class AudioFiles(Reader):
    """Recordings, up to their features, which must be finite."""
    FORMATS = [('WAV', 'PCM_16'), ('WAV', 'FLOAT'), ('WAV', 'PCM_U8'), ('FLAC', 'PCM_16'), ('OGG', 'VORBIS'),
               ('AIFF', 'PCM_16'), ('MP3', 'MPEG_LAYER_III'), ('WAV', 'ULAW'), ('AU', 'PCM_16'), ('CAF', 'FLOAT')]

    def prepare(self):
        self.files, wave = [], synthetic.synthesise(0, 'sad', 0)[:4_000]
        for (format, subtype), rate in itertools.product(self.FORMATS, (16_000, 44_100)):
            out = io.BytesIO()
            soundfile.write(out, wave, rate, format=format, subtype=subtype)
            self.files.append(out.getvalue())

    def data(self, rng):
        return rng.choice(self.files)

    def valid(self):
        self.path.write_bytes(self.files[1])  # to be resampled, which imports much
        return self.path

    def damage(self, rng):
        data = self.data(rng)
        if rng.random() < .6:  # the header is where the promises are
            return damaged_bytes(data[:64], rng) + data[64:]
        return damaged_bytes(data, rng)

    def make(self, rng):
        self.path = self.folder / rng.choice(['x.wav', 'x.flac', 'x', 'x.raw', 'x.mp3'])
        return super().make(rng)

    def read(self, path):
        end = random.Random(path.stat().st_size).choice([None, None, .2, 1e308, 5.])
        cached_features([Utterance(str(path), 'x', 'a', end=end)], SETTINGS, str(self.folder / 'cache'), workers=1, quiet=True)
        shutil.rmtree(self.folder / 'cache', ignore_errors=True)


class Cache(Reader):
    """Cached features and the index: whatever is in them, the features are those of the recording."""

    def prepare(self):
        self.utterance, self.cache = Utterance(str(self.folder / 'x.wav'), 'x', 'a'), self.folder / 'cache'
        soundfile.write(self.utterance.path, synthetic.synthesise(0, 'sad', 0)[:4_000], 16_000)
        os.utime(self.utterance.path, (1e9, 1e9))
        self.expected = self.features()
        (npy,), (index,) = self.cache.glob('*/*.npy'), [*self.cache.glob('index-*')] or [None]
        self.npy, self.index = npy, index or self.cache / 'index-x.json'
        self.good, self.x = npy.read_bytes(), np.load(npy)

    def features(self):
        return cached_features([self.utterance], SETTINGS, str(self.cache), workers=1, quiet=True).features[0]

    def valid(self):
        return self.npy

    def make(self, rng):
        how = rng.random()
        if how < .3:
            shapes = [self.x.T, self.x[:8], self.x.astype(float), self.x.astype(complex), self.x.astype('U8'), self.x[:, :0],
                      self.x * np.nan, self.x[None], np.zeros(()), self.x.astype('>f2'), self.x > 0, np.float16([1] * 7)]
            np.save(self.npy, rng.choice(shapes))
        elif how < .35:
            np.savez(self.npy.open('wb'), x=self.x)
        elif how < .45:
            order, shape = rng.choice(['True', 'False']), rng.choice(SHAPES)
            header = f"{{'descr': '<f2', 'fortran_order': {order}, 'shape': {shape}, }}"
            self.npy.write_bytes(b'\x93NUMPY\x01\x00\x76\x00' + header.encode().ljust(117) + b'\n' + self.good[128:])
        elif how < .8:
            self.npy.write_bytes(damaged_bytes(self.good[:128], rng) + self.good[128:])
        else:
            self.npy.write_bytes(damaged_bytes(self.good, rng))
        if rng.random() < .3:
            self.index.write_bytes(damaged_json({self.utterance.path: [[1, 2, 3], {'None None': '../' * 9 + 'x'}]}, rng))
        return self.npy

    def size(self, data):
        return len(self.good)

    def read(self, path):
        x = self.features()
        if x.shape != self.expected.shape or not np.isfinite(x).all():
            raise AssertionError('damaged features were used')


class Checkpoints(Reader):
    """checkpoint.pt of a run that is resumed: another file, or another content."""
    file = 'runs/search/x/checkpoint.pt'

    def prepare(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        os.chdir(self.folder)
        self.run = Run('search', cf.SearchConfig(name='x', resume=True))
        self.run.data = {'mean': torch.zeros(2, 1), 'std': torch.ones(2, 1), 'digest': 'x', 'audio': ['m', 'f']}
        history = [{'epoch': 1, 'train': {'ua': .5}, 'dev': {'ua': .5}, 'seconds': 1.}]
        self.tree = {**self.state().state_dict(), **self.run.data, 'history': history}
        out = io.BytesIO()
        torch.save(self.tree, out)
        self.bytes = out.getvalue()

    def state(self):
        net = torch.nn.Linear(2, 2)
        w, alpha = torch.optim.SGD(net.parameters(), .1, momentum=.9), torch.optim.Adam(net.parameters(), .1)
        net(torch.ones(1, 2)).sum().backward()
        w.step()
        alpha.step()
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(w, 3)
        return parallel.State(0, torch.device('cpu'), net=net, w_optim=w, alpha_optim=alpha, scheduler=scheduler)

    def data(self, rng):
        return self.bytes

    def damage(self, rng):
        if rng.random() < .3:
            return damaged_bytes(self.bytes, rng)
        out = io.BytesIO()
        torch.save(damaged_tree(self.tree, rng, tensors=True), out)
        return out.getvalue()

    def read(self, path):
        os.chdir(self.folder)
        checkpoint, state = self.run._read_checkpoint(), self.state()
        with self.run.reading():
            state.load(checkpoint, lambda *_: None)
        for part in state.parts.values():  # what was taken can be used
            part.zero_grad() if isinstance(part, torch.nn.Module) else part.step()


class Networks(Checkpoints):
    """best.pt: the network and all that is around it."""
    file, weight = 'best.pt', .25

    def prepare(self):
        config = cf.AugmentConfig(name='x', genotype='x', **RECORD['network'], **RECORD['features'])
        net = AugmentCNN(None, 1, config.init_channels, 3, config.layers, True, GENOTYPE, config.stem_multiplier,
                         config.rnn_layers, config.rnn_channels)
        moments = torch.zeros(16, 1), torch.ones(16, 1)
        data = SimpleNamespace(labels=['a', 'b', 'c'], mean=moments[0], std=moments[1], prior=moments, corpus='x',
                               fold=SimpleNamespace(train=('a', 'b'), dev=('c',)))
        self.tree = augment.portable(net, GENOTYPE, data, config, 3)
        out = io.BytesIO()
        torch.save(self.tree, out)
        self.bytes = out.getvalue()

    def read(self, path):
        judge = predictor.load(path)
        if not judge.needs_speaker:
            judge(np.zeros(4_000, np.float32))


READERS = {'audio': AudioFiles, 'cached features': Cache, 'checkpoints': Checkpoints, 'trained networks': Networks}
