"""Other ways to run search.py and augment.py, and their answers to mistakes."""
import csv
import json

import pytest
import torch
import yaml
from conftest import FEATURES, SMALL, augment_args, results, run, search_args, write_corpus

import augment
import search
import utils
from models import parallel


def call(program, argv):
    """Runs a program's main in this process."""
    program.main(list(map(str, argv)))


def cnn_args(corpus, name, *more):
    """search_args without the sizes of SeqNN cells, which have no effect where there are none."""
    argv = list(map(str, search_args(corpus, name, *more)))
    for flag in ('--rnn_channels', '--rnn_nodes'):
        i = argv.index(flag)
        del argv[i:i + 2]
    return argv


def test_other_ways_to_search(small_corpus, here, tmp_path):
    call(search, cnn_args(small_corpus, 'cnn', '--epochs', 2, '--rnn_layers', 0, '--alpha_split', 'speaker',
                                            '--features', 'mfcc', '--folds', 'loso', '--fold', 2))
    call(augment, augment_args(small_corpus, 'cnn', 'runs/search/cnn/genotype.json', '--epochs', 3,
                                              '--aux_weight', 0, '--patience', 1))
    found = results(tmp_path / 'runs/augment/cnn')
    assert (found['folds'], found['fold']) == ('loso', 2)  # the genotype brought its fold along
    assert yaml.safe_load((tmp_path / 'runs/augment/cnn/config.yaml').read_text())['features'] == 'mfcc'


def test_a_genotype_of_pt_darts_form_by_hand(small_corpus, here, tmp_path):
    cell = "[[('sep_conv_3x3', 0), ('skip_connect', 1)]]"
    (tmp_path / 'g.txt').write_text(f"Genotype(normal={cell}, normal_concat=range(2, 3), reduce={cell}, "
                                    "reduce_concat=range(2, 3), rnn=[[('gru_2', 0), ('lstm_att_1', 1)]], rnn_concat=[2])")
    (tmp_path / 'lists').mkdir()
    rows = small_corpus.read_text().splitlines()
    (tmp_path / 'm.csv').write_text('\n'.join([rows[0]] + [f'{small_corpus.parent}/{row}' for row in rows[1:]]))
    call(augment, augment_args('lists/../m.csv', 'hand', 'g.txt', '--epochs', 1, *SMALL))
    with open(tmp_path / 'runs/augment/hand/predictions.csv', newline='') as f:
        assert {r['path'] for r in csv.DictReader(f)} <= {f'{small_corpus.parent}/{row}'.split(',')[0] for row in rows[1:]}
    (tmp_path / 'g.txt').write_text((tmp_path / 'g.txt').read_text().replace('gru_2', 'gru_1'))
    with pytest.raises(utils.UserError, match='another genotype'):
        call(augment, augment_args('lists/../m.csv', 'hand', 'g.txt', '--epochs', 1, *SMALL, '--resume'))


def test_clipping_by_0_is_no_clipping(small_corpus, here):
    """A largest norm of 0 switches clipping off. Were it taken at its word, no weight would move."""
    p = torch.nn.Parameter(torch.zeros(2))
    for largest, left in ((0., 5.), (1., 1.), (9., 5.)):
        p.grad = torch.tensor([3., 4.])
        parallel.clip_gradients([p], largest)
        assert p.grad.norm().item() == pytest.approx(left, abs=1e-4)
    nets = []
    for epochs in (2, 3):
        call(search, search_args(small_corpus, f's{epochs}', '--epochs', epochs, '--w_grad_clip', 0))
        call(augment, ['--name', f'a{epochs}', '--model', 'rnn', '--params', 300, '--dataset', 'manifest', '--data_path',
                       small_corpus, '--epochs', epochs, '--grad_clip', 0, *FEATURES])
        paths = [f'runs/{path}{epochs}/checkpoint.pt' for path in ('search/s', 'augment/a')]
        nets.append([torch.load(path, weights_only=True)['net'] for path in paths])
    for one, other in zip(*nets):
        name = next(name for name in one if 'linear' in name)
        assert not torch.equal(one[name], other[name])


def test_hearing_test_speakers_in_the_search_is_said(finished, small_corpus):
    genotype = 'runs/search/a/genotype.json'
    done = run(finished, 'augment.py', *augment_args(small_corpus, 'leak', genotype, '--epochs', 1, '--fold', 2))
    found = results(finished / 'runs/augment/leak')
    assert found['search_heard_test_speakers'] == found['test_speakers'] and 'WARNING' in done.stdout


def test_a_run_does_not_go_on_with_other_data(small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fewer, other = small_corpus.with_name('fewer.csv'), write_corpus(tmp_path / 'other', shift=4)
    fewer.write_text('\n'.join(row for row in small_corpus.read_text().splitlines() if 'sad_3' not in row))
    search.main(list(map(str, search_args(small_corpus, 'x', '--epochs', 1))))
    for corpus, said in ((fewer, 'labels or speakers'), (other, 'recordings differ')):
        with pytest.raises(utils.UserError, match=said):
            search.main(list(map(str, search_args(corpus, 'x', '--epochs', 1, '--resume'))))


@pytest.mark.parametrize('program, argv, named', [
    ('search.py', ['--epoch', '3'], '--epochs'), ('search.py', ['--fold', '77'], '--fold 77'),
    ('search.py', ['--data_path', 'nowhere.csv'], 'nowhere.csv'), ('search.py', ['--cnn_ops', 'conv9'], 'conv9'),
    ('search.py', ['--rnn_ops', 'lstm_5'], 'lstm_5'), ('search.py', ['--n_mels', '3000'], '--n_mels'),
    ('augment.py', [], '--genotype'), ('augment.py', ['--genotype', 'absent.json'], 'absent.json'),
    ('augment.py', ['--genotype', 'evil.json'], 'evil.json'), ('augment.py', ['--genotype', 'odd.json'], 'odd.json'),
    ('search.py', ['--dataset', 'synthetic'], 'did you mean --dataset manifest'),
    ('search.py', ['--cache', 'evil.json'], 'evil.json'),
    ('search.py', ['--rnn_channels', '1'], 'C_rnn 1'),
    ('search.py', ['--batch_size', '1', '--n_mels', '4', '--duration', '.1'], '--batch_size'),
    ('augment.py', ['--genotype', 'runs/search/a/genotype.json', '--fold', '99'], '--fold 99'),
])
def test_a_mistake_is_one_line_and_leaves_nothing(program, argv, named, finished, small_corpus):
    (finished / 'evil.json').write_text('Genotype(normal=open("evil", "w"))')
    odd = json.loads((finished / 'runs/search/a/genotype.json').read_text())
    (finished / 'odd.json').write_text(json.dumps({**odd, 'network': [1]}))
    before = sorted(finished.glob('runs/*/*'))
    done = run(finished, program, '--name', 'wrong', '--dataset', 'manifest', '--data_path', small_corpus, *argv, ok=False)
    assert done.returncode == 2 and named in done.stderr
    assert done.stderr.count('\n') == 1 and done.stdout == '' and 'Traceback' not in done.stderr
    assert sorted(finished.glob('runs/*/*')) == before and not (finished / 'evil').exists()


