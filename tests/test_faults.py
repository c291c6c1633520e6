"""All faults of a corpus in one message, whatever reader finds them."""
import pickle

import made_up
import pytest
from made_up import touch
from test_readers import IMPROV, PODCAST, TURNS

from config import UserError
from datasets import scan
from datasets.faults import LISTED, CorpusError, Faults


@pytest.mark.parametrize('dataset, names', [
    ('emodb', ['wav/03a01Fa.wav', 'wav/03a01Xa.wav', 'wav/x.wav', 'wav/y.wav']),
    ('ravdess', ['Actor_01/03-01-05-01-01-01-01.wav', 'Actor_01/x.wav', 'Actor_02/y.wav', 'z.flac']),
    ('savee', ['AudioData/DC/a01.wav', 'AudioData/DC/b01.wav', 'AudioData/XY/a01.wav', 'AudioData/x.wav']),
    ('cremad', ['AudioWAV/1001_DFA_ANG_XX.wav', 'AudioWAV/1002_DFA_ANG_XX.wav', 'AudioWAV/a.wav', 'AudioWAV/b.wav']),
    ('iemocap', 'Ses01F_impro01.txt'), ('msp_improv', 'Evalution.txt'), ('msp_podcast', 'labels_consensus.csv'),
])
def test_all_faults_of_names_and_label_files_are_reported_at_once(dataset, names, tmp_path):
    if isinstance(names, list):
        made_up.cremad(tmp_path, ['1001_DFA_ANG_XX'] if dataset == 'cremad' else [])
        touch(tmp_path, *names)
    else:
        {'iemocap': lambda: made_up.iemocap(tmp_path, TURNS), 'msp_improv': lambda: made_up.msp_improv(tmp_path, IMPROV),
         'msp_podcast': lambda: made_up.msp_podcast(tmp_path / 'p', PODCAST)}[dataset]()
        (path,) = tmp_path.rglob(names)
        changes = {'iemocap': [('\tneu\t', '\tN\t'), ('\tang\t', '\tA\t')],
                   'msp_improv': [('; A;', '; a;'), ('; S;', '; s;')], 'msp_podcast': [(',A,', ',a,'), (',U,', ',u,')]}
        for old, new in changes[dataset]:
            path.write_text(path.read_text('latin-1').replace(old, new), 'latin-1')
    with pytest.raises(CorpusError) as error:
        scan(dataset, str(tmp_path / 'p' if dataset == 'msp_podcast' else tmp_path))
    assert len(error.value.messages) == (3 if isinstance(names, list) else 2) and error.value.found
    assert str(error.value).startswith(f'{len(error.value.messages)} faults: ') and '\n' not in str(error.value)


def raised(messages, found=()):
    faults = Faults()
    for message in messages:
        with faults.collect():
            raise UserError(message)
    with pytest.raises(CorpusError) as error:
        faults.check(found)
    return error.value


def test_one_fault_is_its_own_message_and_many_are_counted():
    Faults().check()  # nothing to report
    assert str(raised(['a.wav: broken'])) == str(raised(['a.wav: broken'] * 3)) == 'a.wav: broken'
    assert str(raised(['a', 'b'])) == '2 faults: a; b'
    many = raised([f'fault {i}' for i in range(LISTED + 5)])
    assert str(many).endswith(f'; fault {LISTED - 1}; and 5 more') and str(many).startswith('25 faults: fault 0; fault 1; ')
    assert many.messages == [f'fault {i}' for i in range(LISTED + 5)]


def test_other_errors_are_not_collected():
    faults = Faults()
    with pytest.raises(ZeroDivisionError), faults.collect():
        _ = 1 // 0
    assert not faults.messages


def test_faults_travel_between_processes():
    """Under torchrun all processes learn of an error that one of them found."""
    error = pickle.loads(pickle.dumps(raised(['a', 'b'], found=[1, 2])))
    assert (str(error), error.messages, error.found) == ('2 faults: a; b', ['a', 'b'], [1, 2])
