"""Readers of corpora that are not at hand, on made-up trees of their shape whose contents are counted by hand."""
from collections import Counter

import made_up
import pytest
from made_up import touch

from config import UserError
from datasets import scan, select
from datasets.readers import cremad, iemocap, msp_improv, msp_podcast, savee

# emotion: (improvised, scripted). Sums, and the improvised ang hap neu sad, are the published ones.
PUBLISHED = dict(ang=(289, 814), hap=(284, 311), exc=(663, 378), neu=(1099, 609), sad=(608, 476), fru=(900, 949), fea=(15, 25),
                 sur=(60, 47), dis=(1, 1), oth=(2, 1), xxx=(863, 1644))


def the_full_release():
    """10,039 turns: every session, its man and its woman, dialogues that only the letter after Ses01 tells apart."""
    turns, i = [], 0
    for emotion, sizes in PUBLISHED.items():
        for kind, size in zip(('impro0', 'script01_'), sizes):
            for _ in range(size):
                dialog = f'Ses0{i % 5 + 1}{"FM"[i // 5 % 2]}_{kind}{i // 10 % 3 + 1}'
                turns.append((f'{dialog}_{"FM"[i // 30 % 2]}{i // 60:03d}', emotion))
                i += 1
    return turns


def test_iemocap_gives_the_published_counts(tmp_path):
    root = made_up.iemocap(tmp_path, the_full_release())
    found = iemocap.scan(root)
    assert len(found) == len({u.path for u in found}) == 10_039 and len({u.speaker for u in found}) == 10
    four = made_up.protocol('iemocap', root, labels='ang,hap+exc,neu,sad', turns='all')
    kept, folds, report = select(four)
    assert len(kept) == report['kept'] == 5531 and len(folds) == 5
    assert report['classes'] == {'ang': 1103, 'hap+exc': 1636, 'neu': 1708, 'sad': 1084}
    assert report['found'] == 10_039 == report['kept'] + sum(row['n'] for row in report['left_out'])
    assert {row['reason']: row['n'] for row in report['left_out']} == {
        'no majority': 2507, '--labels: fru': 1849, '--labels: sur': 107, '--labels: fea': 40, '--labels: oth': 3,
        '--labels: dis': 2}
    four.labels, four.turns = 'ang,hap,neu,sad', 'improvised'
    kept, _, report = select(four)
    assert report['classes'] == {'ang': 289, 'hap': 284, 'neu': 1099, 'sad': 608} and len(kept) == 2280
    assert {u.part for u in kept} == {'improvised'}


TURNS = [('Ses01F_impro01_F000', 'neu'), ('Ses01F_impro01_M000', 'ang'), ('Ses01M_impro01_M000', 'exc'),
         ('Ses03M_script01_1b_F012', 'hap'), ('Ses03M_script01_1b_MXX0', 'xxx'), ('Ses03F_impro05a_F001', 'fru')]


def test_iemocap_by_hand(tmp_path):
    release = made_up.iemocap(tmp_path, TURNS, silent=['Ses03F_impro05a_F001'])
    made_up.empty(release / 'Session3/sentences/wav/Ses03F_impro05a/Ses03F_impro05a_M007.wav')
    (release / 'Session1/dialog/EmoEvaluation/.DS_Store').touch()
    for root in (tmp_path, release):
        found = {u.path.rpartition('/')[2].removesuffix('.wav'): u for u in scan('iemocap', str(root))}
        told = {name: (u.label, u.speaker, u.gender, u.session, u.part, u.left_out) for name, u in found.items()}
        assert told == {
            'Ses01F_impro01_F000': ('neu', 'Ses01F', 'f', 'Ses01', 'improvised', None),
            'Ses01F_impro01_M000': ('ang', 'Ses01M', 'm', 'Ses01', 'improvised', None),
            'Ses01M_impro01_M000': ('exc', 'Ses01M', 'm', 'Ses01', 'improvised', None),
            'Ses03M_script01_1b_F012': ('hap', 'Ses03F', 'f', 'Ses03', 'scripted', None),
            'Ses03M_script01_1b_MXX0': ('xxx', 'Ses03M', 'm', 'Ses03', 'scripted', 'no majority'),
            'Ses03F_impro05a_F001': ('fru', 'Ses03F', 'f', 'Ses03', 'improvised', 'no audio file'),
            'Ses03F_impro05a_M007': ('', '', None, None, None, 'no label')}
        assert found['Ses01M_impro01_M000'].path == str(
            release / 'Session1/sentences/wav/Ses01M_impro01/Ses01M_impro01_M000.wav')


@pytest.mark.parametrize('old, new, named', [
    ('\tneu\t', '\tNeutral\t', "line 3: 'Neutral' is none of ang"), ('\tneu\t', ' neu ', 'line 3: not "'),
    ('Ses01F_impro01_F000', 'Ses02F_impro01_F000', 'line 3.*not a turn of Session1'),
    ('Ses01F_impro01_F000', 'Ses01F_impro01_F', 'line 3.*not a turn'),
    ('Ses01F_impro01_M000', 'Ses01F_impro01_F000', 'line 8: Ses01F_impro01_F000 is already in .*line 3'),
    ('\n[2.5', '[2.5', None), ('[0.0000 - 1.9455]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]\n', '', 'line 3: not "'),
])
def test_iemocap_mistakes_name_file_and_line(old, new, named, tmp_path):
    path = made_up.iemocap(tmp_path, TURNS) / 'Session1/dialog/EmoEvaluation/Ses01F_impro01.txt'
    before = path.read_text('latin-1')
    path.write_text(before.replace(old, new, 1), 'latin-1')
    assert path.read_text('latin-1') != before
    if named is None:  # a blank line that is missing hides no turn
        assert [u.left_out for u in iemocap.scan(tmp_path)].count('no label') == 0
    else:
        with pytest.raises(UserError, match=f'Ses01F_impro01.txt, {named}'):
            iemocap.scan(tmp_path)


def test_a_session_without_its_folders_is_named(tmp_path):
    release = made_up.iemocap(tmp_path, TURNS)
    (release / 'Session3/dialog').rename(release / 'Session3/elsewhere')
    with pytest.raises(UserError, match='Session3/dialog/EmoEvaluation: no such folder'):
        iemocap.scan(release)


IMPROV = [('S01A-F01-S-FM01', 'A'), ('S01A-F01-S-MF01', 'H'), ('S03S-M02-T-MF01', 'S'), ('S05N-F02-R-FF01', 'N'),
          ('S02H-M06-P-FM02', 'O'), ('S02H-M06-P-MF02', 'X'), ('S07N-F01-P-FM03', 'N')]


@pytest.mark.parametrize('audio, labels', [('', 'Evalution.txt'), ('Audio', 'Evalution.txt'), ('Audio', 'Evaluation.txt')])
def test_msp_improv_by_hand(audio, labels, tmp_path):
    made_up.msp_improv(tmp_path, IMPROV, audio=audio, labels=labels, silent=['S07N-F01-P-FM03'])
    for quirk in ('._MSP-IMPROV-S01A-F01-S-FM01.wav', 'MSP-IMPROV-S01A-F01-S-FM01.avi', 'MSP-IMPROV-S01A-F01-S-FM09.wav'):
        made_up.empty(tmp_path / audio / 'session1/S01A/S' / quirk)
    told = {u.path.rpartition('/')[2]: (u.label, u.speaker, u.gender, u.session, u.part, u.left_out)
            for u in msp_improv.scan(tmp_path)}
    assert told == {  # the label is the raters', never the sentence's letter; the speaker speaks, whosever the dialogue is
        'MSP-IMPROV-S01A-F01-S-FM01.wav': ('anger', 'F01', 'f', '1', 'S', None),
        'MSP-IMPROV-S01A-F01-S-MF01.wav': ('happiness', 'M01', 'm', '1', 'S', None),
        'MSP-IMPROV-S03S-M02-T-MF01.wav': ('sadness', 'M02', 'm', '2', 'T', None),
        'MSP-IMPROV-S05N-F02-R-FF01.wav': ('neutral', 'F02', 'f', '2', 'R', None),
        'MSP-IMPROV-S02H-M06-P-FM02.wav': ('other', 'F06', 'f', '6', 'P', None),
        'MSP-IMPROV-S02H-M06-P-MF02.wav': ('', 'M06', 'm', '6', 'P', 'no agreement'),
        'MSP-IMPROV-S07N-F01-P-FM03.wav': ('neutral', 'F01', 'f', '1', 'P', 'no audio file'),
        'MSP-IMPROV-S01A-F01-S-FM09.wav': ('', '', None, None, None, 'no label')}


@pytest.mark.parametrize('beside', [True, False])
@pytest.mark.parametrize('audio', ['', 'Audio'])
def test_msp_improv_below_the_folder_that_is_named(beside, audio, tmp_path):
    """Its label file in a folder of its own, the sessions beside the file or beside that folder."""
    release = made_up.msp_improv(tmp_path / 'release', IMPROV, audio=audio, silent=[IMPROV[0][0]])
    if not beside:
        for folder in [path for path in release.iterdir() if path.is_dir()]:
            folder.rename(tmp_path / folder.name)
    found = msp_improv.scan(tmp_path)
    assert Counter(u.left_out for u in found) == {None: 5, 'no agreement': 1, 'no audio file': 1}
    assert found[0].path == str(release / 'session1/S01A/S/MSP-IMPROV-S01A-F01-S-FM01.wav')  # where it should be


@pytest.mark.parametrize('old, new, named', [
    ('.avi; A;', '.avi; Z;', "Evalution.txt, line 1: 'Z' is none of A"), ('.avi; A;', ' A', 'line 1: a block must begin'),
    ('S01A-F01-S-FM01', 'S01A-F07-S-FM01', 'line 1: .*is not a turn'),
    ('S01A-F01-S-MF01', 'S01A-F01-S-FM01', 'line 4: MSP-IMPROV-S01A-F01-S-FM01 is already in .*line 1'),
])
def test_msp_improv_mistakes_name_file_and_line(old, new, named, tmp_path):
    path = made_up.msp_improv(tmp_path, IMPROV) / 'Evalution.txt'
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=named):
        msp_improv.scan(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match='no Evalution.txt'):
        msp_improv.scan(tmp_path)


PODCAST = [('MSP-PODCAST_0001_0001.wav', 'A', '12', 'Male', 'Train'), ('MSP-PODCAST_0001_0002.wav', 'X', '12', 'Male', 'Train'),
           ('MSP-PODCAST_0002_0001.wav', 'U', 'Unknown', 'Unknown', 'Train'),
           ('MSP-PODCAST_0003_0001.wav', 'C', '7', 'Female', 'Validation'),
           ('MSP-PODCAST_0004_0001.wav', 'D', '8', 'Female', 'Development'),
           ('MSP-PODCAST_0005_0001.wav', 'N', '9', 'Unknown', 'Test1'),
           ('MSP-PODCAST_0006_0001.wav', 'O', '10', 'Male', 'Test2')]


@pytest.mark.parametrize('table', ['labels_consensus.csv', 'labels_concensus.csv'])
def test_msp_podcast_by_hand(table, tmp_path):
    made_up.msp_podcast(tmp_path, PODCAST, table=table, silent=['MSP-PODCAST_0004_0001.wav'])
    touch(tmp_path / 'Audios', 'MSP-PODCAST_test3_0001.wav', '._MSP-PODCAST_0001_0001.wav')
    assert [(u.label, u.speaker, u.gender, u.split, u.left_out) for u in msp_podcast.scan(tmp_path)] == [
        ('anger', '12', 'm', 'train', None), ('', '12', 'm', 'train', 'no agreement'),
        ('surprise', 'Unknown', None, 'train', 'unknown speaker'), ('contempt', '7', 'f', 'dev', None),
        ('disgust', '8', 'f', 'dev', 'no audio file'), ('neutral', '9', None, 'Test1', None),
        ('other', '10', 'm', 'Test2', None), ('', '', None, None, 'no label')]


@pytest.mark.parametrize('old, new, named', [
    (',U,', ',Q,', "line 4: EmoClass 'Q' is none of A"), ('Validation', 'Valid', "line 5: Split_Set 'Valid'"),
    ('9,Unknown', '9,Divers', "line 7: Gender 'Divers'"), ('12,Male,Train\n', '12\n', 'line 2: the number of fields'),
    ('_0001_0002.wav', '_0001_0001.wav', 'line 3: MSP-PODCAST_0001_0001 is already in .*line 2'),
    ('MSP-PODCAST_0001_0001.wav', 'Audios/a.wav', "line 2: FileName 'Audios/a.wav'"), ('SpkrID', 'Speaker', 'column SpkrID'),
])
def test_msp_podcast_mistakes_name_file_and_line(old, new, named, tmp_path):
    path = made_up.msp_podcast(tmp_path, PODCAST) / 'Labels/labels_consensus.csv'
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=f'labels_consensus.csv[,:] {named}'):
        msp_podcast.scan(tmp_path)
    path.rename(tmp_path / 'labels.csv')
    with pytest.raises(UserError, match='there are 0'):
        msp_podcast.scan(tmp_path)


def test_cremad_by_hand(tmp_path):
    made_up.cremad(tmp_path, ['1001_DFA_ANG_XX', '1001_IEO_HAP_LO', '1002_ITH_SAD_X', '1091_WSI_NEU_XX'])
    made_up.empty(tmp_path / 'AudioWAV/._1001_DFA_ANG_XX.wav')
    for root in (tmp_path, tmp_path / 'AudioWAV'):
        assert [(u.label, u.speaker, u.gender) for u in cremad.scan(root)] == [
            ('anger', '1001', 'm'), ('happiness', '1001', 'm'), ('sadness', '1002', 'f'), ('neutral', '1091', 'm')]
    table = tmp_path / 'VideoDemographics.csv'
    table.write_text(table.read_text().replace('1002,30,Female', '1003,30,Female'))
    with pytest.raises(UserError, match='1002_ITH_SAD_X.wav: VideoDemographics.csv has no row for actor 1002'):
        cremad.scan(tmp_path)
    table.write_text(table.read_text().replace('1003,30,Female', '1003,30,F'))
    with pytest.raises(UserError, match='line 3: needs'):
        cremad.scan(tmp_path)
    table.unlink()
    with pytest.raises(UserError, match='VideoDemographics.csv: no such file'):
        cremad.scan(tmp_path)


@pytest.mark.parametrize('flat', [False, True])
def test_savee_by_hand(flat, tmp_path):
    made_up.savee(tmp_path, ['DC_a01', 'DC_sa02', 'JE_su03', 'KL_n30', 'JK_f01'], flat=flat)
    found = savee.scan(tmp_path)
    assert [(u.label, u.speaker, u.gender) for u in found] == [
        ('anger', 'DC', 'm'), ('sadness', 'DC', 'm'), ('surprise', 'JE', 'm'), ('fear', 'JK', 'm'), ('neutral', 'KL', 'm')]


@pytest.mark.parametrize('dataset, name', [
    ('cremad', 'AudioWAV/1001_DFA_JOY_XX.wav'), ('savee', 'AudioData/DC/x01.wav'), ('savee', 'AudioData/XY/a01.wav'),
    ('savee', 'DC_a1.wav')])
def test_a_foreign_file_is_named(dataset, name, tmp_path):
    made_up.cremad(tmp_path, [])
    with pytest.raises(UserError, match=f'{name}: not a'):
        scan(dataset, str(touch(tmp_path, name)))


def test_the_same_name_twice_is_named(tmp_path):
    with pytest.raises(UserError, match='DC_a01.wav; keep one of them'):
        savee.scan(touch(tmp_path / 'AudioData', 'DC/a01.wav', 'DC_a01.wav'))
    release = made_up.iemocap(tmp_path / 'i', TURNS)
    made_up.empty(release / 'Session1/sentences/wav/Copy/Ses01F_impro01_F000.wav')
    with pytest.raises(UserError, match='Ses01F_impro01_F000.wav: the same name as'):
        iemocap.scan(release)


def test_a_corpus_with_nothing_of_use_says_why(tmp_path):
    made_up.msp_improv(tmp_path, IMPROV, silent=[turn for turn, _ in IMPROV])
    with pytest.raises(UserError, match='nothing is left: no audio file 7 .first MSP-IMPROV-S01A'):
        select(made_up.protocol('msp_improv', tmp_path, scenarios='all'))
    assert Counter(u.left_out for u in msp_improv.scan(tmp_path)) == {'no audio file': 7}
