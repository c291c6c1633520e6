import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import genotypes as gt

CELL = [[('sep_conv_3x3', 0), ('skip_connect', 1)], [('max_pool_3x3', 2), ('dil_conv_5x5', 0)]]
SEQ = [[('lstm_1', 0), ('gru_att_2', 1)]]
GENOTYPE = gt.Genotype(CELL, range(2, 4), CELL[:1], range(2, 3), SEQ, range(2, 3))
CNN = gt.Genotype(CELL, range(2, 4), CELL, range(2, 4))
# As printed in cnn/genotypes.py of quark0/darts: two entries a node, edges of a node side by side.
DARTS_V2 = """DARTS_V2 = Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
    ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5],
    reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0),
    ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"""


def test_round_trip_in_both_forms(tmp_path):
    assert gt.from_str(gt.to_str(GENOTYPE)) == GENOTYPE
    gt.save(tmp_path / 'g.json', GENOTYPE, {'network': {'layers': 3}})
    assert gt.load(tmp_path / 'g.json') == (GENOTYPE, {'network': {'layers': 3}})
    assert gt.from_str((tmp_path / 'g.json').read_text()) == GENOTYPE
    assert [p.name for p in tmp_path.iterdir()] == ['g.json']
    (tmp_path / 'g.txt').write_text(gt.to_str(GENOTYPE))
    assert gt.load(tmp_path / 'g.txt') == (GENOTYPE, {})


def test_printed_form_is_pt_darts():
    assert gt.to_str(GENOTYPE).startswith("Genotype(normal=[[('sep_conv_3x3', 0), ('skip_connect', 1)], [")
    assert 'normal_concat=range(2, 4)' in gt.to_str(GENOTYPE)


def test_four_fields_of_pt_darts_are_a_pure_cnn():
    text = f'Genotype(normal={CELL}, normal_concat=range(2, 4), reduce={CELL}, reduce_concat=[2, 3])'
    assert gt.from_str(text) == gt.Genotype(CELL, range(2, 4), CELL, range(2, 4), [], [])
    assert gt.from_str(json.dumps({'normal': CELL, 'normal_concat': [2, 3], 'reduce': CELL, 'reduce_concat': [2, 3]})) == CNN


def test_the_text_itself_is_read_as_pt_darts_users_pass_it():
    text = gt.to_str(GENOTYPE)
    assert len(text) > 255  # longer than a file name may be
    assert gt.load(text) == gt.load(f'  {text}\n') == gt.load(f'genotype = {text}') == (GENOTYPE, {})
    assert gt.load(json.dumps({'genotype': GENOTYPE._asdict(), 'x': 1}, default=list)) == (GENOTYPE, {'x': 1})
    with pytest.raises(ValueError, match=r'^Genotype\(\.\.\.\): field normal_concat is missing$'):
        gt.load('Genotype(normal=[])')
    for twice in (text[:-1] + ', normal=[])', text.replace('normal=', '', 1)[:-1] + ', normal=[])'):
        with pytest.raises(ValueError, match="field 'normal' is there twice"):
            gt.load(twice)


def test_the_flat_form_of_darts_is_read(tmp_path):
    genotype = gt.from_str(DARTS_V2)
    assert genotype.normal == [[('sep_conv_3x3', 0), ('sep_conv_3x3', 1)], [('sep_conv_3x3', 0), ('sep_conv_3x3', 1)],
                               [('sep_conv_3x3', 1), ('skip_connect', 0)], [('skip_connect', 0), ('dil_conv_3x3', 2)]]
    assert genotype.reduce[1] == [('skip_connect', 2), ('max_pool_3x3', 1)] and genotype.reduce_concat == range(2, 6)
    assert not genotype.rnn
    (tmp_path / 'darts.txt').write_text(DARTS_V2)
    assert gt.load(tmp_path / 'darts.txt') == gt.load(DARTS_V2) == (genotype, {})
    assert gt.from_str(gt.to_str(genotype)) == genotype  # printed nested from then on
    with pytest.raises(ValueError, match='flat list'):
        gt.from_str(DARTS_V2.replace("('dil_conv_3x3', 2)]", ']'))
    with pytest.raises(ValueError, match=r'normal\[3\] reads state 6'):
        gt.from_str(DARTS_V2.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', 6"))


def test_a_folder_of_a_search_and_its_results_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path('runs/search/a/b')
    with pytest.raises(ValueError, match=r'^runs/search/a/b: no such file: run search.py --name a/b first$'):
        gt.load('runs/search/a/b')
    with pytest.raises(ValueError, match='run search.py --name a/b first'):
        gt.load(folder / 'genotype.json')
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match='no genotype.json in this folder; name one of the searches in it'):
        gt.load('runs/search/a')
    (folder / 'config.yaml').touch()
    for source in (folder, folder / 'genotype.json', f'{folder}/'):
        with pytest.raises(ValueError, match='not finished: continue it with search.py --name a/b --resume'):
            gt.load(source)
    gt.save(folder / 'genotype.json', GENOTYPE, {'search': {'fold': 1}})
    assert gt.load('runs/search/a/b') == gt.load('runs/search/a/b/') == gt.load(folder) == (GENOTYPE, {'search': {'fold': 1}})
    Path('results.json').write_text(json.dumps({'ua': .7, 'genotype': gt.to_str(GENOTYPE)}))
    assert gt.load('results.json') == (GENOTYPE, {'ua': .7})
    Path('results.json').write_text(json.dumps({'ua': .7, 'genotype': None}))
    with pytest.raises(ValueError, match='holds no genotype'):
        gt.load('results.json')
    with pytest.raises(ValueError, match='^nowhere.json: no such file$'):
        gt.load('nowhere.json')
    with pytest.raises(ValueError, match='no genotype.json in this folder'):
        gt.load(tmp_path)


def test_files_that_hold_something_else_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / 'weights', 'w') as f:  # what torch.save writes
        f.writestr('data.pkl', pickle.dumps({}))
    (tmp_path / 'best.pt').write_bytes(b'\x80\x02')
    (tmp_path / 'genotype.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    (tmp_path / 'genotype.svg').write_text('<?xml version="1.0"?><svg/>')
    (tmp_path / 'binary').write_bytes(b'\xff\xfe\x00')
    (tmp_path / 'huge').write_text(gt.to_str(GENOTYPE) + ' ' * gt.MAX_BYTES)
    for name, what in {'weights': 'trained network', 'best.pt': 'trained network', 'genotype.png': 'picture',
                       'genotype.svg': 'picture', 'binary': 'not a text file', 'huge': '1,000,000 bytes'}.items():
        with pytest.raises(ValueError, match=what) as error:
            gt.load(tmp_path / name)
        assert str(error.value).startswith(f'{tmp_path / name}: ')


@pytest.mark.parametrize('text', [
    '__import__("os").system("touch executed")',
    'Genotype(normal=__import__("os").system("touch executed"), normal_concat=range(2, 4), reduce=[], reduce_concat=[])',
    'Genotype(normal=[], normal_concat=range(0, 10**12), reduce=[], reduce_concat=[])',
    'Genotype(normal=[].append(1), normal_concat=[], reduce=[], reduce_concat=[])',
    '(lambda: 1)()', '', 'Genotype(', '[' * 5000, '{"genotype": 3}', '{"genotype"', 'Genotype()', 'Genotype(1, 2, 3, 4)',
    'Genotype([], [], [], [], [], [], [])', 'Genotype(**{"normal": []})', 'x.Genotype([], [], [], [])', 'Genotype(\0)',
    'Genotype([], [], [], ' + '1+' * 20000 + '1)', 'Genotype([], [], [], ' + '-' * 20000 + '1)', '{"a":' * 20000,
    '{"normal": ' + '1' * 5000 + '}', '{"genotype": "Genotype(1)"}', '{"genotype": []}', '{"Normal": []}',
])
def test_what_is_no_genotype_is_refused_and_never_executed(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        gt.from_str(text)
    assert len(str(error.value)) < 300
    (tmp_path / 'file').write_text(text)
    with pytest.raises(ValueError):
        gt.load('file')
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('gene, wrong', [
    ([[('none', 0)]], 'none'), ([[('lstm_1', 0)]], 'lstm_1'), ([[('skip_connect', 2)]], 'state 2'),
    ([[('skip_connect', -1)]], 'state -1'), ([[('skip_connect', True)]], 'True'), ([[]], r'normal\[0\]'),
    ([[('skip_connect', 0)] * 500], r'1 to 2 edges'), ([[('skip_connect', 0)]] * 33, 'at most 32 nodes'),
    ([[('skip_connect' * 500, 0)]], 'not an operation'), ([('skip_connect', 0)] * 66, 'at most 32 nodes'),
])
def test_impossible_genes_are_named(gene, wrong):
    with pytest.raises(ValueError, match=wrong) as error:
        gt.check(gt.Genotype(gene, [2], CELL, [2]))
    assert len(str(error.value)) < 200
    with pytest.raises(ValueError):
        gt.from_str(json.dumps({'normal': gene, 'normal_concat': [2], 'reduce': CELL, 'reduce_concat': [2]}))


@pytest.mark.parametrize('concat', [[4], [2, 2, 2], [-1], [True], [], [[2]], 'ab', None, range(0, 999), [2] * 10 ** 6])
def test_concat_must_name_states_once(concat):
    with pytest.raises(ValueError, match='normal_concat'):
        gt.check(GENOTYPE._replace(normal_concat=concat))


def test_an_empty_cell_has_no_states_to_concatenate():
    assert gt.check(gt.Genotype(CELL, [3, 2], [], [])) == gt.Genotype(CELL, [3, 2], [], [])
    with pytest.raises(ValueError, match='reduce_concat'):
        gt.check(gt.Genotype(CELL, [2], [], [0]))


def test_collapse_is_more_than_half_skips():
    skip, conv = ('skip_connect', 0), ('sep_conv_3x3', 1)
    assert gt.collapsed(gt.Genotype([[skip, skip], [skip, conv]], [2], [[skip, conv]], [2])) == ['normal']
    assert gt.collapsed(GENOTYPE) == []
    assert gt.op_counts(GENOTYPE)['normal'] == {'dil_conv_5x5': 1, 'max_pool_3x3': 1, 'sep_conv_3x3': 1, 'skip_connect': 1}


def test_sets():
    assert len(gt.op_set('paper')) == 8 and len(gt.op_set('paper', 'rnn')) == 14 and len(gt.op_set('all', 'rnn')) == 20
    assert gt.op_set('mixed', 'rnn') == ('lstm_1', 'lstm_2', 'gru_1', 'gru_2', 'rnn_1', 'rnn_2', 'skip_connect', 'none')
    for kind, sets in (('cnn', gt.CNN_OP_SETS), ('rnn', gt.RNN_OP_SETS)):
        for name in sets:
            assert gt.op_set(name, kind)[-1] == 'none'
    assert gt.op_set('none, gru_1', 'rnn') == ('gru_1', 'none')
    for wrong in ('lstm_9', 'none', 'gru_1,gru_1', ''):
        with pytest.raises(ValueError):
            gt.op_set(wrong, 'rnn')


def test_only_the_standard_library_and_yaml_are_imported():
    code = 'import sys; old = set(sys.modules); import genotypes; print(*{m.split(".")[0] for m in set(sys.modules) - old})'
    root = Path(gt.__file__).parent
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=root)
    others = {name for name in out.stdout.split() if 'cython' not in name} - set(sys.stdlib_module_names)
    assert others <= {'genotypes', 'config', 'yaml', '_yaml'}


def test_edges_of_two_genotypes_compared_by_hand():
    a = gt.Genotype([[('skip_connect', 0), ('sep_conv_3x3', 1)], [('max_pool_3x3', 0), ('dil_conv_3x3', 2)]], [2, 3], [], [])
    b = gt.Genotype([[('skip_connect', 0), ('dil_conv_5x5', 1)], [('max_pool_3x3', 1), ('avg_pool_3x3', 0)]], [2, 3], [], [])
    assert gt.compare(a, b) == {'normal': [
        (2, ('skip_connect', 0), ('skip_connect', 0), 'same'), (2, ('sep_conv_3x3', 1), ('dil_conv_5x5', 1), 'operation'),
        (3, ('max_pool_3x3', 0), ('avg_pool_3x3', 0), 'operation'), (3, ('dil_conv_3x3', 2), None, 'only'),
        (3, None, ('max_pool_3x3', 1), 'only')]}
    moved = b._replace(normal=[b.normal[0], [('max_pool_3x3', 1), ('avg_pool_3x3', 2)]])
    assert gt.compare(a, moved)['normal'][2:] == [
        (3, ('dil_conv_3x3', 2), ('avg_pool_3x3', 2), 'operation'), (3, ('max_pool_3x3', 0), ('max_pool_3x3', 1), 'moved')]
    assert {row[3] for rows in gt.compare(a, a).values() for row in rows} == {'same'}
