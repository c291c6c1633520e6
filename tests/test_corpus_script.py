"""scripts/corpus.py: what it prints, and that it finds all faults before a search does."""
import dataclasses

import made_up
import numpy as np
import pytest
import soundfile
from conftest import write_corpus
from test_protocol import FOUR, podcast_rows

import config as cf
import datasets
from datasets.faults import CorpusError
from datasets.utterance import Utterance
from scripts import corpus as corpus_script


@pytest.mark.parametrize('dataset, said, n_test', [
    ('msp_improv', dict(labels=FOUR, scenarios='P,S'), 8), ('msp_podcast', dict(labels=FOUR), 16), ('cremad', {}, 4),
    ('savee', {}, 2)])
def test_speech_of_the_others_is_read(dataset, said, n_test, tmp_path, capsys):
    if dataset == 'msp_improv':
        turns = [(f'S0{i + 1}A-F0{s}-{scenario}-{g}{g}01', e) for s in range(1, 4) for scenario in 'PR' for g in 'FM'
                 for i, e in enumerate('AHNS')]
        made_up.msp_improv(tmp_path, [*turns, ('S09A-F01-S-FM01', 'X')], made_up.spoken)
    elif dataset == 'msp_podcast':
        made_up.msp_podcast(tmp_path, podcast_rows(), made_up.spoken)
    elif dataset == 'cremad':
        made_up.cremad(tmp_path, [f'{s}_{text}_XX' for s in range(1001, 1006)
                                  for text in ('DFA_ANG', 'DFA_SAD', 'IEO_ANG', 'IEO_SAD')], made_up.spoken)
    else:
        made_up.savee(tmp_path, [f'{s}_{e}01' for s in ('DC', 'JE', 'JK', 'KL') for e in ('a', 'sa')], made_up.spoken)
    said = {'dataset': dataset, 'data_path': str(tmp_path), **said}
    config = cf.SearchConfig(name='x', cache=str(tmp_path / 'cache'), n_mels=16, **said)
    data = datasets.load(config, ('train', 'dev', 'test'), quiet=True)
    assert len(data.sets['test']) == n_test and len(data.labels) == (4 if 'labels' in said else 2)
    (x, valid, *_), _ = next(data.sets['test'].batches(n_test))
    assert x.std() > .1 and valid.any() and not valid.all()  # speech, not silence
    speakers = [{u.speaker for u in part.utterances} for part in data.sets.values()]
    assert sum(map(len, speakers)) == len(set.union(*speakers))
    corpus_script.main([f'--{name}={value}' for name, value in said.items()])
    shown = capsys.readouterr().out
    assert f'{data.protocol["kept"]} of {data.protocol["found"]} utterances kept' in shown and 'WAV 16000 Hz' in shown
    assert soundfile.info(data.sets['test'].utterances[0].path).duration == pytest.approx(made_up.SECONDS)


def test_protocol_speakers_and_folds_are_printed(tmp_path, capsys):
    turns = [(f'Ses0{s}F_{kind}_{g}{i:03d}', code) for s in range(1, 6) for g in 'FM' for kind in ('impro01', 'script01_1')
             for i, code in enumerate(('ang', 'neu', 'xxx'))]
    root = made_up.iemocap(tmp_path, turns, made_up.spoken, silent=['Ses04F_impro01_M000'])
    argv = ['--dataset', 'iemocap', '--data_path', str(root), '--labels', 'ang,neu', '--turns', 'all']
    corpus_script.main([*argv, '--folds', 'speaker'])
    shown = capsys.readouterr().out
    assert '39 of 60 utterances kept: ang 19, neu 20' in shown and 'no audio file 1 (first Ses04F_impro01_M000.wav)' in shown
    assert '  7: Ses04F | Ses04M   utterances: train 32, dev 3, test 4\n' in shown
    corpus_script.main([*argv, '--folds', 'loso'])
    folds = capsys.readouterr().out.splitlines()[-10:]
    assert folds[6] == '  7: Ses04F | Ses04M Ses05F   utterances: train 28, dev 7, test 4'
    assert folds[7] == '  8: Ses04M | Ses05F Ses05M   utterances: train 24, dev 8, test 3, left out 4 of Ses04F'


def test_a_speaker_whose_gender_some_rows_tell_is_one_row(capsys):
    anna, ben = Utterance('a', 'x', 'anna'), Utterance('c', 'x', 'ben')
    corpus_script.print_speakers([anna, dataclasses.replace(anna, label='y', gender='f'), ben])
    head, *found = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert head[0] == 'speaker' and found == [['anna', 'f', '1', '1', '2'], ['ben', '?', '1', '0', '1']]


def test_a_fold_whose_training_speakers_lack_a_class_is_named(tmp_path, capsys):
    path = write_corpus(tmp_path, n_takes=2)
    argv = ['--dataset', 'manifest', '--data_path', str(path), '--folds', '3']
    corpus_script.main(argv)
    assert 'NOTE' not in capsys.readouterr().out
    path.write_text(''.join(line for line in path.open() if ',sad,' not in line or ',spk3,' in line))
    corpus_script.main(argv)
    folds = datasets.folds_of('manifest', datasets.scan('manifest', str(path)), '3')
    refused = [i for i, fold in enumerate(folds, 1) if 'spk3' not in fold.train]
    assert 0 < len(refused) < 3
    named = [f'NOTE: fold {i}: no training speaker has sad, so search.py refuses this fold' for i in refused]
    assert [line for line in capsys.readouterr().out.splitlines() if 'NOTE' in line] == named
    for i in range(1, 4):
        config = cf.SearchConfig(name='x', dataset='manifest', data_path=str(path), folds='3', fold=i, cache=str(tmp_path))
        if i not in refused:
            datasets.load(config, ('train', 'dev'), quiet=True)
            continue
        with pytest.raises(cf.UserError, match=f'--fold {i}: no training speaker has class .sad.'):
            datasets.load(config, ('train', 'dev'), quiet=True)


def test_all_faults_are_found_with_or_without_faulty_rows(tmp_path, capsys):
    csv = write_corpus(tmp_path)
    names = [line.partition(',')[0] for line in csv.read_text().splitlines()[1:]]
    soundfile.write(tmp_path / names[3], np.zeros(0), 16_000)
    soundfile.write(tmp_path / names[8], np.full(9000, np.nan, np.float32), 44_100, subtype='FLOAT')
    (tmp_path / names[20]).write_bytes(b'RIFF')
    argv = ['--dataset', 'manifest', '--data_path', str(csv)]
    with pytest.raises(cf.UserError, match=f'^3 faults: .*{names[3]}: 0 samples.*{names[8]}: contains.*{names[20]}: cannot'):
        corpus_script.main(argv)
    assert 'durations: ' in capsys.readouterr().out  # of the others
    csv.write_text(csv.read_text().replace('spk5', ''))
    (tmp_path / names[30]).unlink()
    with pytest.raises(cf.UserError, match=f'^12 faults: .*no file .*{names[30]}.*speaker is empty.*{names[3]}: 0') as error:
        corpus_script.main(argv)
    assert '\n' not in str(error.value)


def test_a_corpus_without_usable_audio_is_described_all_the_same(tmp_path, capsys):
    made_up.savee(tmp_path, ['DC_a01', 'JE_h01', 'KL_n01'])
    with pytest.raises(cf.UserError, match='^3 faults: .*cannot be read as audio'):
        corpus_script.main(['--dataset', 'savee', '--data_path', str(tmp_path)])
    assert 'classes:   anger 1, happiness 1, neutral 1' in capsys.readouterr().out


def test_what_was_left_out_or_has_frames_need_not_be_audio(tmp_path, monkeypatch, capsys):
    left, absent = (Utterance(str(tmp_path / f'{name}.wav'), 'sad', 'ann') for name in ('left', 'absent'))
    left = dataclasses.replace(left, left_out='no audio file')
    framed = dataclasses.replace(absent, frames=str(tmp_path / 'absent.npy'))
    assert corpus_script.listen([framed])[1].messages == []

    def select(args):
        error = CorpusError('1 fault')
        error.messages, error.found = ['row 3: no emotion'], [left, framed, absent]
        raise error
    monkeypatch.setattr(datasets, 'select', select)
    with pytest.raises(cf.UserError, match='^2 faults') as error:
        corpus_script.main(['--dataset', 'manifest', '--data_path', 'x.csv'])
    assert 'row 3: no emotion' in str(error.value) and 'absent.wav: no such file' in str(error.value)
