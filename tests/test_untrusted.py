"""Text that somebody else may have written: every mistake is one short line, nothing is executed, nothing takes long."""
import csv
import io
import time
from dataclasses import fields

import pytest
import yaml

import config as cf
from config import UserError

BOMB = 'seed: [&k0 [x, x, x], ' + ', '.join(f'&k{i} [{", ".join([f"*k{i - 1}"] * 9)}]' for i in range(1, 10)) + ']\n'
MERGES = 'a: &k0 {x: 1}\n' + ''.join(f'b{i}: &k{i} {{<<: [{", ".join([f"*k{i - 1}"] * 9)}]}}\n' for i in range(1, 12))


@pytest.mark.parametrize('text', [
    'x: !!int x', 'seed: 2024-13-45', 'seed: ' + '1' * 5_000, 'x: ' + '[' * 900 + ']' * 900, 'x: !!timestamp y',
    'x: !!int ""', 'x: !!bool x', 'seed: 2024-01-01', 'seed: !!set {a}', 'hop_ms: ' + '1' * 320,
    'seed: 0x' + 'f' * 5_000, BOMB, MERGES,
    'n_mels: 3\nn_mels: 4', 'x' * 5_000 + ': 1', f'labels: [[{"x" * 5_000}], 3]', 'data_path: "a\\0b"',
    'seed: !!python/object/apply:os.system ["touch executed"]', 'n_mels: 1\n' * 20_000, 'seed: !!binary x',
    'data_path: "\\ud800"', 'a: 1e999\n? [b]\n: 1', 'seed: .nan', 'amp: ~', 'w_lr: !!float x', '%TAG ! x\n---\n!y z'])
def test_a_hostile_settings_file_is_refused_in_one_line(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'c.yaml').write_text(text)
    began = time.process_time()
    with pytest.raises(UserError) as error:
        cf.build('search', cf.given('search', ['--name', 'x', '--config', 'c.yaml']))
    assert time.process_time() - began < 2 and not (tmp_path / 'executed').exists()
    assert 'c.yaml' in str(error.value) and len(str(error.value)) < 500 and '\n' not in str(error.value)


def test_every_message_is_one_line_of_less_than_500_characters():
    assert str(UserError('a.wav: broken')) == 'a.wav: broken'
    said = str(UserError('begin ' + 'x\n\x1b[31m\u202e' * 10_000 + ' end'))
    assert len(said) <= cf.MAX_MESSAGE and said.startswith('begin ') and said.endswith(' end') and said.isprintable()
    assert cf.short(10 ** 5_000) == 'a number of 16610 bits' and cf.short([10 ** 5_000]) == 'a list'
    assert len(cf.short('a' * 99)) <= 60 and cf.short('a\n') == repr('a\n')
    nested = []
    for _ in range(50):
        nested = [nested] * 9
    assert len(cf.short(nested)) <= 60


NUMERIC = [(cls, f) for cls in cf.SECTIONS.values() for f in fields(cls)
           if f.type in (int, float) and not f.metadata['choices']]


@pytest.mark.parametrize('cls, f', NUMERIC, ids=lambda x: getattr(x, 'name', getattr(x, '__name__', '')))
def test_every_number_has_two_bounds_and_is_refused_beyond_them(cls, f):
    section = next(name for name, other in cf.SECTIONS.items() if other is cls)
    low, high = f.metadata['low'], f.metadata['high']
    for value in (low, high):
        cf.check(f, f.type(value))
    below = [] if f.metadata['off'] else [low - 1]
    for text in (*below, high + 1, high * 1e9, 10 ** 20, '1e308', 'nan', 'inf', '-1', '1' * 5_000):
        with pytest.raises(UserError, match=f'^--{f.name}') as error:
            cf.build(section, cf.given(section, ['--name', 'x', f'--{f.name}', str(text)]))
        assert len(str(error.value)) < 200


def test_numbers_that_contradict_each_other_are_named():
    with pytest.raises(UserError, match='--w_lr_min 0.2 is above --w_lr 0.1'):
        cf.SearchConfig(name='x', w_lr=.1, w_lr_min=.2)
    assert 'patience' in cf.AugmentConfig(name='x', epochs=5, patience=9).unused()
    with pytest.raises(UserError, match='--patience has no effect with --epochs 5'):
        cf.build('augment', cf.given('augment', ['--name', 'x', '--model', 'cnn', '--epochs', '5', '--patience', '4']))
    assert 'patience' not in cf.AugmentConfig(name='x', epochs=6, patience=4).unused()
    with pytest.raises(UserError, match='--trim_db 1e-08: must be 0, or from 1.0'):  # which would leave 64 ms of everything
        cf.SearchConfig(name='x', trim_db=1e-8)


@pytest.mark.parametrize('name', ['x' * 300, '../x', '/x', 'a/../../x', 'a\nb', 'a;b', '', 'é' * 150, 'a/' * 500 + 'b', 'a\0b'])
def test_names_that_no_folder_can_have_are_refused(name):
    with pytest.raises(UserError, match='^--name') as error:
        cf.SearchConfig(name=name)
    assert len(str(error.value)) < 500


def test_files_are_read_up_to_a_limit(tmp_path):
    (tmp_path / 'a.json').write_text('{"a": ' + '[' * 5_000 + '}')
    (tmp_path / 'b.json').write_bytes(b'\xff\xfe')
    (tmp_path / 'c.json').write_text('[1]')
    for name, said in (('a', 'not JSON'), ('b', 'not a text file'), ('c', r'holds \[1\] instead of a dict'),
                       ('d', 'No such file')):
        with pytest.raises(UserError, match=f'{name}.json: .*{said}'):
            cf.read_json(tmp_path / f'{name}.json')
    (tmp_path / 'e.json').write_text('{}' + ' ' * 100)
    with pytest.raises(UserError, match='larger than 50 bytes'):
        cf.read_json(tmp_path / 'e.json', limit=50)
    with pytest.raises(UserError, match='null'):
        cf.read_text('a\0b')


HOSTILE = ['=cmd|x', '+1', '-2', '@a', '\tx', "'=x", "''=x", "'hello", 'plain', '', "'", '$\\bad$', '<img src=x>',
           'a|b', '`x`', '*']


def test_a_cell_of_a_csv_file_is_no_formula_and_is_read_back_exactly():
    cells = [cf.csv_cell(text) for text in HOSTILE]
    assert not any(cell.startswith(('=', '+', '-', '@', '\t')) for cell in cells)
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    row, = csv.reader(io.StringIO(out.getvalue()))
    assert [cf.from_csv_cell(cell) for cell in row] == HOSTILE
    assert [cf.csv_cell(text) for text in ('angry', "'hello")] == ['angry', "'hello"]  # what is no formula stays as it is


def test_markup_is_escaped():
    assert cf.escape_markdown('a|b <img> `x` [l](u) *e*') == 'a\\|b &lt;img&gt; \\`x\\` \\[l\\](u) \\*e\\*'
    assert cf.escape_markdown('two\nlines, n_mels, _e_') == 'two lines, n_mels, \\_e\\_'


def test_settings_that_a_program_wrote_are_read_back():
    text = yaml.safe_dump({'a': 1, 'b': None, 'c': [1, 2]})
    assert yaml.load(text, cf._YamlLoader) == yaml.safe_load(text)
