"""What tests/reliability/fuzz.py feeds: readers of text that somebody else may have written, with valid input of each."""
import json
import os
import random
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]
import options  # noqa: E402
import table  # noqa: E402
from experiment import results  # noqa: E402
from fuzz_mutations import NUMBERS, WORDS, damaged_json, damaged_text  # noqa: E402

import augment  # noqa: E402
import config as cf  # noqa: E402
import datasets  # noqa: E402
import genotypes as gt  # noqa: E402
import utils  # noqa: E402
from datasets import frames  # noqa: E402
from models import memory  # noqa: E402
from models.run import Run  # noqa: E402

GENOTYPE = gt.draw(np.random.default_rng(0), 2, 1)
NETWORK = {name: choices[0] for name, choices in gt.NETWORK_CHOICES.items()}
RECORD = {'network': {'init_channels': 4, 'layers': 3, 'stem_multiplier': 2, 'rnn_layers': 1, 'rnn_channels': 8},
          'features': {'features': 'logmel', 'n_mels': 16, 'hop_ms': 16., 'time_pool': 2, 'trim_db': 0., 'duration': 3.},
          'search': {'dataset': 'manifest', 'labels': None, 'folds': 'default', 'fold': 1, 'corpus': 'x', 'seed': 0,
                     'train_speakers': ['a', 'b'], 'dev_speakers': ['c']}}


class Reader:
    """Writes a damaged copy of a valid file, and reads it. Subclasses have `data` (valid bytes), `damage` and `read`."""
    file, weight = 'input', 1.  # its share of all inputs, relative to the others

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / self.file
        self.prepare()

    def prepare(self):
        pass

    def valid(self):
        self.path.write_bytes(self.data(random.Random(0)))
        return self.path

    def make(self, rng):
        self.path.write_bytes(self.damage(rng))
        return self.path

    def size(self, data) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def damage(self, rng) -> bytes:
        return damaged_text(self.data(rng).decode(), rng)


class Genotypes(Reader):
    """Genotypes in all forms, with the record of their search."""
    fold = SimpleNamespace(fold=SimpleNamespace(test=('a', 'z')), corpus='x')

    def data(self, rng):
        genotype = GENOTYPE._replace(network=rng.choice([None, NETWORK]))
        printed = gt.to_str(genotype)
        genes = {name: value if name == 'network' else list(value) for name, value in genotype._asdict().items()
                 if value is not None}
        tree = {'genotype': genes, **RECORD}
        return rng.choice([printed, f'X = {printed}', json.dumps(tree), json.dumps({'genotype': printed})]).encode()

    def damage(self, rng):
        data = self.data(rng)
        return damaged_json(json.loads(data), rng) if data.startswith(b'{') else damaged_text(data.decode(), rng)

    def read(self, path):
        given = cf.Given({'name': 'x', 'genotype': str(path), 'dataset': 'manifest'})
        config, _, origin = augment.configure(given)
        list(origin.describe(config, self.fold))


class Yaml(Reader):
    """Settings files."""

    def data(self, rng):
        return rng.choice(['n_mels: 40\nduration: 2\nlabels: [ang, sad]\nsearch:\n  epochs: 7\n  w_lr: 1e-2\n',
                           'extends: input\nsearch:\n  layers: 4\naugment:\n  lr: 0.1\n  patience: 3\n',
                           'amp: false\nseed: 1\n', 'a: &a [x, x]\nseed: [*a, *a]\n',
                           'hop_ms: 16.0\ntrim_db: 30\nfolds: official:Test2\n']).encode()

    def valid(self):
        self.path.write_text('n_mels: 40\n')
        return self.path

    def read(self, path):
        for section in ('search', 'augment'):
            cf.build(section, cf.given(section, ['--name', 'x', '--config', str(path)]))


class RunSettings(Yaml):
    """config.yaml of a run that is resumed."""
    file = 'runs/search/x/config.yaml'

    def prepare(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def data(self, rng):
        config = cf.SearchConfig(name='x')
        tree = {'format': utils.FORMAT, **{f.name: getattr(config, f.name) for f in fields(config) if f.name != 'config'}}
        return yaml.safe_dump(tree, sort_keys=False).encode()

    valid = Reader.valid

    def read(self, path):
        os.chdir(self.folder)
        Run('search', cf.SearchConfig(name='x', resume=True))


class Manifest(Reader):
    """CSV files of a corpus of one's own, up to its protocol and folds."""
    HEAD = 'path,label,speaker,session,gender,split,start,end\n'

    def prepare(self):
        for i in range(6):
            soundfile.write(self.folder / f'{i}.wav', np.zeros(100), 16_000)
        (self.folder / 'x.raw').write_bytes(b'x')

    def data(self, rng):
        rows = [f'{i}.wav,{"sad" if i % 2 else "happy"},s{i},t{i // 2},{"mf"[i % 2]},,{i / 2},{i + 1.5}\n' for i in range(6)]
        return (self.HEAD + ''.join(rows)).encode()

    def read(self, path):
        config = cf.SearchConfig(name='x', dataset='manifest', data_path=str(path))
        utterances, _, _ = datasets.select(config)
        datasets.duplicates.check(utterances, [datasets.duplicates.inode(u.path) for u in utterances])


class Tables(Reader):
    """Label files of nEMO, CREMA-D, MSP-Podcast, MSP-IMPROV and IEMOCAP."""

    def prepare(self):
        self.files = {
            'nemo': ('data.tsv', 'file_id\temotion\tspeaker_id\tgender\nAB_anger_1.wav\tanger\tAB\tfemale\n', 'samples'),
            'cremad': ('VideoDemographics.csv', 'ActorID,Age,Sex\n1001,51,Male\n1002,21,Female\n', 'AudioWAV'),
            'msp_podcast': ('Labels/labels_consensus.csv', 'FileName,EmoClass,SpkrID,Gender,Split_Set\n'
                            'MSP-PODCAST_0001_0008.wav,A,7,Male,Train\n', 'Audios'),
            'msp_improv': ('Evalution.txt', 'UTD-IMPROV-S01A-F01-P-FM01.avi; A; A:3.0; V:2.0\n 1; Angry\n\n', 'session1'),
            'iemocap': ('Session1/dialog/EmoEvaluation/Ses01F_impro01.txt', '% [START_TIME - END_TIME] TURN_NAME EMOTION\n\n'
                        '[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5, 2.5, 2.5]\nC-E2:\tNeutral;\t()\n\n',
                        'Session1/sentences/wav/Ses01F_impro01')}
        for name, (file, text, audio) in self.files.items():
            (self.folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name / audio).mkdir(parents=True, exist_ok=True)
            (self.folder / name / file).write_text(text)

    def valid(self):
        return 'nemo'

    def make(self, rng):
        name = rng.choice(list(self.files))
        (self.folder / name / self.files[name][0]).write_bytes(damaged_text(self.files[name][1], rng))
        return name

    def read(self, name):
        datasets.scan(name, str(self.folder / name))


class Results(Reader):
    """results.json of a run in an experiment."""
    def data(self, rng):
        return json.dumps({
            'ua': .5, 'wa': .5, 'macro_f1': .4, 'chance': {'ua': .5, 'wa': .5}, 'confusion': [[1, 1], [0, 2]],
            'labels': ['a', 'b'], 'n_test': 4, 'model': 'cnn', 'n_params': 100, 'best_epoch': 1, 'dev_ua': .5,
            'genotype': None, 'seconds': 3.,
            'search_heard_test_speakers': [], 'device': 'cpu', 'test_speakers': ['x', 'y'], 'train_on_dev': False,
            'normalise': 'corpus'}).encode()

    def damage(self, rng):
        return damaged_json(json.loads(self.data(rng)), rng)

    def read(self, path):
        results(SimpleNamespace(product=str(path)))


class Experiment(Reader):
    """runs.csv, predictions.csv and plan.json of an experiment, up to its table."""
    weight = .5
    FILES = {'runs.csv': 'model,fold,seed,state,failed,ua,wa,macro_f1,n_test,n_params,minutes,test_speakers,genotype\n'
                         'cnn,1,0,finished,,.5,.5,.5,4,100,1.5,ann bob,\ncnn,2,0,missing,,,,,,,,,\n',
             'predictions.csv': 'model,seed,fold,path,speaker,label,predicted\n' + ''.join(
                 f'cnn,0,1,{i}.wav,{"ann" if i < 2 else "bob"},{"ab"[i % 2]},a\n' for i in range(4)),
             'plan.json': json.dumps({'runs': [['cnn', 1, 0], ['cnn', 2, 0]], 'test_speakers': [['ann', 'bob'], ['c']],
                                      'digest': 'x', 'clean_folds': [], 'command': 'x'})}

    def valid(self):
        for name, text in self.FILES.items():
            (self.folder / name).write_text(text)
        return self.folder

    def make(self, rng):
        self.valid()
        name = rng.choice(list(self.FILES))
        (self.folder / name).write_bytes(damaged_text(self.FILES[name], rng))
        return self.folder

    def read(self, folder):
        table.make(folder, figures=False)


class Flags(Reader):
    """Flags of all programs at their edges, up to the estimate of memory. Nothing is built."""
    EDGES = [*NUMBERS, '1', '1e9', '1000000000', '1' + '0' * 20, '2147483648', '100', '0.5']

    def valid(self):
        return ['search', '--name', 'x']

    def size(self, data):
        return sum(map(len, data))

    def make(self, rng):
        section = rng.choice([*cf.SECTIONS, 'cross_validate'])
        cls = options.ExperimentSettings if section == 'cross_validate' else cf.SECTIONS[section]
        argv = [section, *(['--name', 'x'] if rng.random() < .9 else [])]
        if section == 'augment':
            argv += rng.choice([['--genotype', 'random'], ['--model', rng.choice(cf.BASELINES)]])
        for f in rng.sample(fields(cls), rng.choice((1, 1, 2, 3))):
            if f.name not in ('config', 'resume', 'overwrite', 'device'):
                value = rng.choice([*(() if f.type is str else self.EDGES), *WORDS, *map(str, self._bounds(f))])
                argv.append(f'--{f.name}' if f.type is bool else f'--{f.name}={value}')
        return argv

    @staticmethod
    def _bounds(f):
        bounds = [f.metadata[key] for key in ('low', 'high') if f.metadata.get(key) is not None]
        return [x + step for x in bounds for step in (-1, 0, 1)]

    def read(self, argv):
        section, *argv = argv
        if section == 'cross_validate':
            own, _ = options.parse(argv)
            cf.parse_numbers('seeds', own.seeds)
            options.parse_shard(own.shard)
            options.parse_models(own.models)
            return
        config = frames.complete(cf.build(section, cf.given(section, argv)))
        if section == 'search':
            try:
                cells = memory.of_space(config)
            except ValueError as error:  # as search.py does
                raise cf.UserError(str(error)) from None
            memory.check(config, cells, config.n_frames, config.batch_size, utils.torch.device('cpu'))


READERS = {'genotypes and records': Genotypes, 'settings files': Yaml, "a run's settings": RunSettings, 'manifests': Manifest,
           'label files': Tables, 'results': Results, 'tables of an experiment': Experiment, 'flags': Flags}
