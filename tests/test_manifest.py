"""A user's own corpus: the CSV file as spreadsheets and other projects write it, and all its faults at once."""
import pytest
from conftest import write_corpus
from made_up import touch

from config import UserError
from datasets import scan
from datasets.faults import CorpusError
from datasets.readers import manifest


def manifest_of(folder, text, encoding='utf-8'):
    (folder / 'm.csv').write_text(text, encoding=encoding)
    return folder / 'm.csv'


def test_every_column_is_read(tmp_path):
    touch(tmp_path, 'a/b.wav')
    first, second = manifest.scan(manifest_of(tmp_path, 'path,label,speaker,session,gender,split,start,end\n'
                                              'a/b.wav,happy,ann,s1,Female,train,0.5,2\na/b.wav,sad,bob,,,dev,2,\n'))
    assert (first.label, first.speaker, first.session, first.gender, first.split) == ('happy', 'ann', 's1', 'f', 'train')
    assert (first.start, first.end, second.start, second.end) == (.5, 2., 2., None)
    assert first.path == str(tmp_path / 'a/b.wav') and second.gender is None


@pytest.mark.parametrize('text', [
    'path;label;speaker;start\na.wav;happy, very;ann;0,5\n', 'path\tlabel\tspeaker\tstart\na.wav\thappy, very\tann\t0.5\n',
    'Path,LABEL,Speaker,Start\na.wav,"happy, very",ann,0.5\n',
    ' path , label,speaker ,start\r\n a.wav ,"happy, very", ann,.5\r\n',
    '\ufeffpath;"label";speaker;start\na.wav;"happy, very";ann;"0,5"\n'])
def test_separators_case_and_spaces_of_the_header(text, tmp_path):
    touch(tmp_path, 'a.wav')
    (u,) = manifest.scan(manifest_of(tmp_path, text))
    assert (u.path, u.label, u.speaker, u.start) == (str(tmp_path / 'a.wav'), 'happy, very', 'ann', .5)


@pytest.mark.parametrize('text, named', [
    ('path,label\na.wav,x\n', 'column speaker'), ('path,label,speaker,age\na.wav,x,y,3\n', "unknown column 'age'"),
    ('path,label,speaker\na.wav,x\n', 'line 2'), ('path,label,speaker\na.wav,x,y,z\n', 'line 2'),
    ('path,label,speaker\na.wav,x,y\nb.wav,x,y\n', 'line 3.*b.wav'), ('path,label,speaker\na.wav,,y\n', 'line 2: label'),
    ('path,label,speaker,start\na.wav,x,y,soon\n', "start 'soon'"),
    ('path,label,speaker,start,end\na.wav,x,y,2,1\n', 'end 1.0'),
    ('path,label,speaker,split\na.wav,x,y,valid\n', "'valid'"), ('path,label,speaker,gender\na.wav,x,y,q\n', "'q'"),
    ('path,label,speaker\n', 'has a header and no rows'),
    ('path,label,speaker\na.wav,"x"y,z\n', 'line 2: not a CSV file'),
    ('path,label,speaker\na.wav,x,y\nb/c.wav,"x,z\n', 'line 3: not a CSV file'),
    ('path,label,speaker\na.wav,x,y\na.wav,x,z\n', 'line 3.*line 2'), ('', 'column path is missing; the file has no columns'),
    ('path,label,speaker,start\na.wav,x,y,nan\n', 'nan'), ('path,label,speaker,start\na.wav,x,y,-1\n', "'-1'"),
    ('path,label,speaker,Path\na.wav,x,y,a.wav\n', 'column path is there twice'),
    ('path,label,speaker,split\na.wav,x,y,train\nb/c.wav,x,z,\n', 'column split is filled in some rows'),
    ('file;emotion;Speaker\na.wav;x;y\n',
     'column path is missing; the file has file, emotion, speaker; rename file to path and emotion to label'),
    ('filename,label,actor,sex\na.wav,x,y,m\n', 'rename filename to path and actor to speaker and sex to gender'),
])
def test_mistakes_name_the_row_or_the_column(text, named, tmp_path):
    touch(tmp_path, 'a.wav', 'b/c.wav')
    with pytest.raises(UserError, match=named) as error:
        scan('manifest', str(manifest_of(tmp_path, text)))
    assert 'm.csv' in str(error.value) and '\n' not in str(error.value)


def test_all_faulty_rows_are_reported_at_once(tmp_path):
    rows = [f'{i:02d}.wav,x,s{i}' for i in range(40)]
    touch(tmp_path, *(row.partition(',')[0] for row in rows[25:]))
    rows[30] = '30.wav,,s30'
    with pytest.raises(CorpusError, match='^26 faults: .*line 2: no file .*line 21: no file .*; and 6 more$') as error:
        manifest.scan(manifest_of(tmp_path, '\n'.join(['path,label,speaker', *rows])))
    assert 'line 22' not in str(error.value) and '\n' not in str(error.value)
    assert len(error.value.messages) == 26 and 'line 32: label is empty' in error.value.messages[-1]
    assert [u.speaker for u in error.value.found] == [f's{i}' for i in range(25, 40) if i != 30]


def test_text_that_is_not_utf8_is_named(tmp_path):
    path = manifest_of(tmp_path, 'path,label,speaker\na.wav,fr\xf6hlich,y\n', 'latin-1')
    with pytest.raises(UserError, match='m.csv: not UTF-8'):
        manifest.scan(path)
    with pytest.raises(UserError, match='must be a CSV file'):
        manifest.scan(tmp_path)


def test_small_corpus_reads(tmp_path):
    assert len(scan('manifest', str(write_corpus(tmp_path / 'c')))) == 48
