"""scripts/report.py, runs.py: what they say of finished, running and broken runs."""
import base64
import fcntl
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_table import X, asked, make
from test_table import folder as folder

import genotypes as gt
import utils
from config import UserError, csv_cell
from models import charts
from scripts import card

import html_page  # isort: skip  (scripts/, which test_table made importable)
import report  # isort: skip
import report_parts  # isort: skip
import runs  # isort: skip
from run_folder import RunFolder  # isort: skip


class Reader(HTMLParser):
    """Collects tags, texts and where pictures come from."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.sources = [], '', []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ('src', 'href')]

    def handle_data(self, data):
        self.text += data


def read(path):
    return Reader(Path(path).read_text())


def test_a_page_of_a_search_and_a_retraining(finished, tmp_path, capsys):
    report.main([str(finished / 'runs/search/a'), str(finished / 'runs/augment/a'), '-o', str(tmp_path / 'r.html'), '--latex',
                 str(tmp_path / 'r.tex'), '--pdf', str(tmp_path / 'pdf')])
    page, found = read(tmp_path / 'r.html'), json.loads((finished / 'runs/augment/a/results.json').read_text())
    assert all(source.startswith('data:image/svg+xml;base64,') for source in page.sources) and len(page.sources) >= 12
    assert base64.b64decode(page.sources[0].partition(',')[2]).startswith(b'<?xml')
    assert f'reaches UA {100 * found["ua"]:.1f}% (chance 50.0' in page.text and found['command'] in page.text
    assert found['genotype'] in page.text and 'best of' not in page.text
    recall = found['confusion'][0][0] / sum(found['confusion'][0])
    assert f'{found["labels"][0]} & {100 * recall:.1f} & {sum(found["confusion"][0])}' in (tmp_path / 'r.tex').read_text()
    assert {'search-a-curves.pdf', 'search-a-cells.pdf', 'augment-a-curves.pdf', 'augment-a-cells.pdf',
            'augment-a-confusion.pdf'} <= {path.name for path in (tmp_path / 'pdf').iterdir()}
    assert capsys.readouterr().out.count('UA') >= 2


def test_a_class_that_a_spreadsheet_would_compute_is_told_of(tmp_path):
    """augment.py writes such a cell with ' in front."""
    labels, path = ['+up', '-down'], tmp_path / 'predictions.csv'
    rows = [(f'=s{i % 3}', labels[i % 2], labels[i // 6]) for i in range(12)]
    utils.write_csv(path, ['path', 'speaker', 'label', 'predicted'], [['x', *map(csv_cell, row)] for row in rows])
    assert [(row['speaker'], row['label'], row['predicted']) for row in report_parts.read_predictions(path)] == rows
    assert '3 test speakers' in card._between(path, labels)


def test_a_page_of_an_experiment_says_what_its_table_says(tmp_path):
    text = make(asked('searched', 'random', seeds=[0]), draw=True)
    report.main([str(X), '-o', str(tmp_path / 'r.html')])
    page = read(tmp_path / 'r.html')
    assert text.partition('\n')[0] in page.text and page.tags.count('img') == text.count('![')
    cells = [cell.strip() for line in text.splitlines() if line.startswith('| searched |') for cell in line.split('|')[1:-1]]
    assert cells and all(cell in page.text for cell in cells)


def test_names_and_reasons_in_a_table_are_shown_as_they_are(tmp_path):
    make(asked('searched', 'random', seeds=[0]), rename=lambda who: f'{who}|<b>', failed={('random', 1, 0): 'loss <nan> [3]_x'})
    report.main([str(X), '-o', str(tmp_path / 'r.html')])
    page = read(tmp_path / 'r.html')
    assert 'random-f1-s0: loss <nan> [3]_x' in page.text and 'fold 1: ann|<b> bob|<b>' in page.text


def test_no_label_or_name_becomes_markup():
    evil = '<script>alert(1)</script>"&'
    page = html_page.page(evil, [('title', evil), ('verdict', evil), ('p', evil), ('pre', evil), ('table', [evil], [[evil]])])
    assert 'script' not in Reader(page).tags and page.count(html_page.html.escape(evil)) == 7
    assert html_page.tex('a_b & 50% ± 1 {x}') == r'a\_b \& 50\% $\pm$ 1 \{x\}'


HEARD, INIT_HEARD = 'search_heard_test_speakers', 'init_heard_test_speakers'


@pytest.mark.parametrize('results, said', [
    ({HEARD: ['ann']}, '**The search used test speakers: ann.**'), ({HEARD: []}, None), ({'genotype': None}, None),
    ({HEARD: None}, '**It is not known whether the search used test speakers.**'), ({}, '**It is not known whether'),
    ({HEARD: [], 'init': 'x', INIT_HEARD: ['bo']}, '**The network of --init was trained on test speakers: bo.**'),
    ({HEARD: [], 'init': 'x', INIT_HEARD: None}, '**It is not known whether the network of --init'),
    ({HEARD: [], 'init': 'x', INIT_HEARD: []}, None)])
def test_whom_a_search_heard_is_said_or_that_it_is_not_known(results, said):
    found = report_parts.warnings_of(SimpleNamespace(results={'genotype': 'g', **results}, state='finished', reason=None))
    assert not found if said is None else len(found) == 1 and found[0][1].startswith(said)


@pytest.mark.parametrize('results, said', [
    ({HEARD: ['ann']}, 'the search heard test speakers: ann.'), ({HEARD: []}, None), ({'genotype': None}, None),
    ({HEARD: None}, 'it is not known whether the search heard'), ({}, 'it is not known whether the search heard'),
    ({HEARD: [], 'init': 'x', INIT_HEARD: []}, None), ({HEARD: [], 'init': 'x', INIT_HEARD: ['bo']}, 'it began with heard'),
    ({'genotype': None, 'init': 'x', INIT_HEARD: None}, 'not known whether the network it began with heard')])
def test_the_card_of_an_export_says_so_too(results, said, tmp_path):
    scores = {'labels': ['a', 'b'], 'confusion': [[1, 0], [0, 1]], 'n_test': 2, 'chance': {'ua': .5, 'wa': .5}, 'genotype': 'g'}
    lines = [*card._results({**scores, 'ua': 1., 'wa': 1., 'macro_f1': 1., **results}, tmp_path)]
    found = [line for line in lines if 'WARNING' in line]
    assert not found if said is None else len(found) == 1 and said in found[0]


def test_the_card_says_what_the_test_knew_of_its_speakers(tmp_path):
    results = {'labels': ['a', 'b'], 'confusion': [[1, 0], [0, 1]], 'n_test': 2, 'chance': {'ua': .5, 'wa': .5}, 'ua': 1.,
               'wa': 1., 'macro_f1': 1., 'normalise': 'speaker'}
    said = 'each speaker was normalised by all of their recordings'
    assert said in ''.join(card._results(results, tmp_path))
    assert said not in ''.join(card._results({**results, 'normalise': 'corpus'}, tmp_path))


@pytest.mark.parametrize('genotype, more, said', [
    ('g.json', {'search': {}}, 'The network of a genotype ('), ('g.json', {'search': {'fold': 1}}, 'The searched network'),
    ('random', {}, 'The random network'), ('g.txt', {HEARD: None}, ' of 2 unseen speakers'),
    ('g.txt', {HEARD: ['ann']}, ' of 2 speakers'), ('g.txt', {'init': 'x', INIT_HEARD: ['bo']}, ' of 2 speakers')])
def test_a_network_is_called_what_it_is(genotype, more, said, finished):
    run = report_parts.RunFolder(finished / 'runs/augment/a')
    run.settings['genotype'] = genotype
    run.results.update({'search': None, HEARD: [], 'test_speakers': ['ann', 'bo'], **more})
    assert said in next(text for kind, text, *_ in report_parts.retraining(run) if kind == 'verdict')


def test_the_candidates_of_a_search():
    cell = [[('skip_connect', 0), ('sep_conv_3x3', 1)]]
    texts = [gt.to_str(gt.Genotype([[(name, 0), ('skip_connect', 1)]], [2], cell, [2]))
             for name in ('max_pool_3x3', 'sep_conv_5x5')]
    tree = {'scores': [{}] * 9, 'winner': texts[1], 'finalists': [
        {'genotype': text, 'score': 1.5 + i, 'parameters': 1000 + i,
         'trainings': [{'epochs': 10, 'loss': .9 - .1 * i, 'ua': .5}]}
        for i, text in enumerate(texts)]}
    blocks = report_parts.candidates(tree)
    assert [block[0] for block in blocks] == ['h', 'p', 'table', 'figure', 'figure'] and blocks[1][1].startswith('9 candidates')
    first, second = blocks[2][2]
    assert first[1:5] == ['yes', '2.500', '10 epochs: loss 0.800, UA 50.0', '1,001'] and 'sep_conv_5x5' in first[5]
    assert second[1] == '' and report_parts.candidates({}) == [] and report_parts.candidates({'finalists': [3]}) == []
    assert len(report_parts.candidates({'finalists': [{'genotype': 'nonsense'}]})) == 3


def test_the_learning_curves_of_a_tournament():
    curves = {'a': ([3., 2.], 2.5), 'b': ([3.1, 2.1], 2.6), 'c': ([3.2, 2.4], 2.9)}  # of the first rung, and the dev loss
    rows = [{'genotype': name, 'trainings': [{'epochs': 2, 'loss': dev, 'train_losses': losses}]}
            for name, (losses, dev) in curves.items()]
    for row, longer in zip(rows, (.1, 0.)):
        row['trainings'].append({'epochs': 4, 'loss': 2 + longer, 'train_losses': [3., 2., 1., .5 + longer]})
    axes, = charts.tournament(rows, 'b').axes
    curves = [line for line in axes.lines if line.get_marker() != 'x']
    drawn = [([*line.get_ydata()], line.get_linestyle(), line.get_linewidth() > 2) for line in curves]
    assert sorted(drawn) == sorted([([3., 2.], '--', False), ([3.1, 2.1], '--', False), ([3.2, 2.4], '--', False),
                                    ([3., 2., 1., .6], '-', False), ([3., 2., 1., .5], '-', True)])
    crosses = [(*line.get_xdata(), *line.get_ydata()) for line in axes.lines if line.get_marker() == 'x']
    assert sorted(crosses) == [(2, 2.5), (2, 2.6), (2, 2.9), (4, 2.), (4, 2.1)]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        'first rung', 'dev, after the last epoch', 'candidate 1', 'candidate 2, chosen']
    grey = [line.get_color() for line in curves if [*line.get_ydata()] == [3.2, 2.4]]
    assert grey == ['#bbbbbb'] and sum(line.get_color() == '#bbbbbb' for line in axes.lines) == 2
    rows.append({'genotype': 'd', 'trainings': [{'epochs': 2, 'loss': None, 'ua': 0.}]})  # diverged
    blocks = report_parts.candidates({'finalists': rows, 'winner': 'b'})
    assert [block[1] for block in blocks if block[0] == 'figure'] == ['learning curves of the candidates']
    table = next(block[2] for block in blocks if block[0] == 'table')
    assert [row[1] for row in table] == ['yes', '', '', ''] and 'loss ,' in table[3][3].replace('loss -', 'loss ')
    assert charts.tournament(rows[3:], 'b') is None


def test_folders_that_are_no_runs(tmp_path):
    for name, said in ((tmp_path / 'none', 'no such folder'), (tmp_path, 'no run and no experiment')):
        with pytest.raises(UserError, match=said):
            report.main([str(name)])
    for flag in ('--output', '--latex'):
        with pytest.raises(UserError, match=f'{flag} .*none/x: there is no folder .*none'):
            report.main([str(tmp_path), flag, str(tmp_path / 'none/x')])
        with pytest.raises(UserError, match=f'{flag} .* is a folder: name a file'):
            report.main([str(tmp_path), flag, str(tmp_path)])
    with pytest.raises(UserError, match='no run here'):
        runs.main([str(tmp_path)])


def test_damaged_files_are_one_line(finished, tmp_path):
    shutil.copytree(finished / 'runs/augment/a', tmp_path / 'a')
    (tmp_path / 'a/results.json').write_text('{"labels": ["x"], "ua": []}')
    with pytest.raises(UserError, match='damaged'):
        report_parts.blocks_of(tmp_path / 'a')
    (tmp_path / 'a/results.json').write_text('{"labels"')
    (tmp_path / 'a/metrics.jsonl').write_text('nonsense')
    assert report_parts.blocks_of(tmp_path / 'a')[1][0] == 'verdict'


def test_the_list_of_runs_names_every_state(finished, tmp_path, capsys):
    for name in ('finished', 'interrupted', 'failed', 'running'):
        shutil.copytree(finished / 'runs/augment/a', tmp_path / 'runs/augment' / name)
        if name != 'finished':
            (tmp_path / 'runs/augment' / name / 'results.json').unlink()
    shutil.copytree(finished / 'runs/search/a', tmp_path / 'runs/search/a')
    with open(tmp_path / 'runs/augment/failed/augment.log', 'a') as f:
        f.write('FAILED: training diverged\n')
    with open(tmp_path / 'runs/augment/interrupted/metrics.jsonl', 'a') as f:
        f.write('{"epoch": 5, "dev')  # killed while it wrote
    with open(tmp_path / 'runs/augment/running/lock', 'a') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs.main([str(tmp_path / 'runs'), '--json', '--sort', 'ua'])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row['name']: row['state'] for row in rows} == {
        'a': 'finished', **{name: name for name in ('finished', 'interrupted', 'failed', 'running')}}
    found = json.loads((finished / 'runs/augment/a/results.json').read_text())
    assert rows[0]['name'] == 'finished' and rows[0]['test_ua'] == found['ua'] and rows[0]['parameters'] == found['n_params']
    by_name = {row['name']: row for row in rows}
    assert by_name['interrupted']['epoch'] == '4/4' and by_name['a']['program'] == 'search'
    assert by_name['finished']['dev_ua'] == found['dev_ua'] == pytest.approx(by_name['interrupted']['dev_ua'])
    runs.main([str(tmp_path / 'runs')])
    shown = capsys.readouterr().out
    assert re.search(r'^finished +augment +genotype +manifest +1 +0 +finished +4/4 ', shown, re.M)
    assert 'failed: training diverged' in shown


def test_reasons_of_an_experiment_are_found(tmp_path):
    folder = tmp_path / 'runs/augment/cv/x/cnn-f1-s0'
    folder.mkdir(parents=True)
    (folder / 'config.yaml').write_text('format: 2\nepochs: 3\nlr: 0.1\n')
    (tmp_path / 'runs/cv/x/failed').mkdir(parents=True)
    (tmp_path / 'runs/cv/x/failed/cnn-f1-s0.txt').write_text('ended by SIGKILL\nmore\n')
    run = RunFolder(folder)
    assert (run.name, run.program, run.state, run.reason) == ('cv/x/cnn-f1-s0', 'augment', 'failed', 'ended by SIGKILL')
    for name, note in (('f1-s0', 'search-f1-s0'), ('draws-f1-s0', 'draws-f1-s0'), ('search_cnn-f1-s0', 'search_cnn-f1-s0')):
        folder = tmp_path / 'runs/search/cv/x' / name
        folder.mkdir(parents=True)
        (folder / 'config.yaml').write_text('format: 2\nepochs: 3\n')
        (tmp_path / f'runs/cv/x/failed/{note}.txt').write_text(f'{note} was killed\n')
        assert (RunFolder(folder).state, RunFolder(folder).reason) == ('failed', f'{note} was killed')
