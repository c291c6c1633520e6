"""README and docs: links, flags, files, commands, diffs and numbers are those of the project."""
import ast
import csv
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from sklearn.metrics import recall_score

import config as cf

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'CHANGELOG.md', *sorted((ROOT / 'docs').rglob('*.md'))]
MADE_BY_PROGRAMS = ROOT / 'docs' / 'results', ROOT / 'docs' / 'benchmarks'  # and the pages beside them: other flags, old files
WRITTEN = [page for page in PAGES if not any(folder in page.parents for folder in MADE_BY_PROGRAMS)
           and page.name not in ('results.md', 'CHANGELOG.md')]
OTHERS_FLAGS = {'nproc_per_node', 'logdir', 'index-url', 'help'}  # of torchrun, tensorboard, pip
FILES_OF_RUNS = {'config.yaml', 'table.md'}
PROGRAMS = {'search.py': 'search', 'augment.py': 'augment', 'scripts/svm.py': 'svm'}


def name_of(page):
    return str(page.relative_to(ROOT))


def anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(), re.M)
    return {re.sub(r'[^\w\- ]', '', re.sub(r'[`*]', '', heading).lower()).replace(' ', '-') for heading in headings}


def commands(page):
    """Command lines of the indented blocks, continuation lines joined, comments off."""
    text = re.sub(r'\\\n\s*', '', page.read_text())
    lines = re.findall(r'^    ((?:python|pip|make|torchrun|tensorboard) .*)$', text, re.M)
    return [shlex.split(line, comments=True) for line in lines]


def known_flags():
    """Flags of the programs and scripts, without the dashes."""
    settings = {section: {f.name for f in fields(cls)} for section, cls in cf.SECTIONS.items()}
    flags = set.union(OTHERS_FLAGS, *settings.values())
    flags |= {f'no-{f.name}' for cls in cf.SECTIONS.values() for f in fields(cls) if f.type is bool}
    flags |= {f'{section}.{name}' for section, names in settings.items() for name in names}
    for script in [*(ROOT / 'scripts').glob('*.py'), *(ROOT / 'tests' / 'reliability').glob('*.py')]:
        text = script.read_text()
        flags |= set(re.findall(r'''['"]--([\w-]+)['"]''', text))
        flags |= set(re.findall(r'^    (\w+): .*? = (?:cf\.)?setting\(', text, re.M))
    return flags


def test_the_readme_is_short_and_begins_with_what_a_newcomer_needs():
    text = (ROOT / 'README.md').read_text()
    assert text.count('\n') <= 150
    order = ['emoDARTS searches', 'docs/genotype-emodb.png', '**What to expect.**', 'make demo', 'make test',
             'python search.py', 'python augment.py', '    tensorboard --logdir', '| searched on nEMO ', 'docs/method.md',
             '@article', 'LICENSE']
    places = [text.index(word) for word in order]
    assert places == sorted(places)
    assert len(text[:text.index('make demo')].splitlines()) < 25  # the first screen


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.S)
    links = re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'<img src="([^"]+)"', text)
    for link in links:
        if re.match(r'https?:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize('page', WRITTEN, ids=name_of)
def test_flags_and_files_exist(page):
    text = re.sub(r'^#SBATCH.*$|dask (scheduler|worker) .*$', '', page.read_text(), flags=re.M)
    unknown = set(re.findall(r'(?<![\w-])--([a-z][\w.-]*\w)', text)) - known_flags()
    assert not unknown
    folders = 'models|datasets|scripts|configs|tests|docs'
    for file in re.findall(rf'`((?:(?:{folders})/[\w/.-]*|\w+)\.(?:py|yaml|md))`', text):
        places = [ROOT / file, ROOT / 'datasets' / 'readers' / file]
        assert any(place.exists() for place in places) or file in FILES_OF_RUNS, file
    for folder in re.findall(rf'`((?:{folders})/(?:\w+/)*)`', text):
        assert (ROOT / folder).is_dir(), folder


@pytest.mark.parametrize('page', WRITTEN, ids=name_of)
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        words = words[words.index('2') + 1:] if words[0] == 'torchrun' else words[1:]
        if words[0] in PROGRAMS and 'lab' not in words:  # the corpus that extending.md adds
            cf.build(PROGRAMS[words[0]], cf.given(PROGRAMS[words[0]], words[1:]))
        elif words[0].endswith('.py'):
            assert Path(words[0]).exists()
            flags = {word[2:] for word in words if word.startswith('--')}
            assert flags <= known_flags(), flags
            if '--config' in words:
                assert Path(words[words.index('--config') + 1]).exists()


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_code_blocks_parse_and_no_path_of_a_machine_is_named(page):
    text = page.read_text()
    for block in re.findall(r'```python\n(.*?)```', text, re.S):
        ast.parse(block)
    for block in re.findall(r'```ya?ml\n(.*?)```', text, re.S):
        yaml.safe_load(block)
    assert not re.search(r'/(tmp|work|home|root)/', text)


def test_the_yaml_of_the_settings_page_is_read(tmp_path):
    text = (ROOT / 'docs' / 'running.md').read_text()
    block = re.search(r'^    extends:.*?\n\n', text, re.M | re.S)[0]
    shutil.copy(ROOT / 'configs' / 'emodb.yaml', tmp_path)
    (tmp_path / 'mine.yaml').write_text(re.sub(r'^    ', '', block, flags=re.M))
    config = cf.build('augment', cf.given('augment', ['--name', 'x', '--config', str(tmp_path / 'mine.yaml')]))
    assert (config.dataset, config.epochs, config.lr) == ('manifest', 40, .003)
    assert cf.build('search', cf.given('search', ['--name', 'x', '--config', str(tmp_path / 'mine.yaml')])).epochs == 12


@pytest.mark.skipif(not shutil.which('git'), reason='git applies the diffs')
def test_the_diffs_of_the_extending_page_work(tmp_path):
    for folder in ('models', 'datasets'):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('genotypes.py', 'config.py', 'utils.py'):
        shutil.copy(ROOT / name, tmp_path)
    for diff in re.findall(r'```diff\n(.*?)```', (ROOT / 'docs' / 'extending.md').read_text(), re.S):
        subprocess.run(['git', 'apply', '-'], input=diff, text=True, cwd=tmp_path, check=True,
                       env={**os.environ, 'GIT_CEILING_DIRECTORIES': str(tmp_path.parent)})
    for name in ('F1/anger_01', 'F1/sadness_02', 'M1/neutral_01', 'M2/anger_01'):
        (tmp_path / 'lab' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'lab' / f'{name}.wav').touch()
    code = '''
import torch, config, datasets, genotypes as gt
from models.augment_cnn import AugmentCNN
from models.search_cnn import SearchCNNController
from models.visualize import plot
losses = []
for fast in (True, False):
    torch.manual_seed(0)
    net = SearchCNNController(1, 4, 3, 3, torch.nn.CrossEntropyLoss(), n_nodes=1, primitives='time', rnn_primitives='gru_1',
                              fast=fast).double()
    losses.append(net.loss(torch.randn(2, 1, 8, 12).double(), torch.tensor([0, 1])))
assert abs(losses[0] - losses[1]) < 1e-9
cell = [[('time_conv_1x7', 0), ('time_conv_1x7', 1)]]
genotype = gt.from_str(gt.to_str(gt.Genotype(cell, [2], cell, [2])))
AugmentCNN(None, 1, 4, 3, 3, False, genotype)(torch.randn(2, 1, 8, 12))
plot(genotype)
assert 'lab' in config.CORPORA
print([(u.label, u.speaker, u.gender) for u in datasets.scan('lab', 'lab')])
'''
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    found = [('anger', 'F1', 'f'), ('sadness', 'F1', 'f'), ('neutral', 'M1', 'm'), ('anger', 'M2', 'm')]
    assert ast.literal_eval(out.stdout) == found


def test_the_numbers_of_the_readme_are_those_of_the_committed_predictions():
    models = 'searched', 'random_search', 'transferred', 'random_transferred', 'cnn_gru', 'cnn_gru_matched', 'svm_compare'
    text = (ROOT / 'README.md').read_text()
    for i, corpus in enumerate(('emodb', 'ravdess', 'emodb-speaker', 'ravdess-speaker')):
        scores = uas(corpus)
        for model in models:
            cells = [cell.strip() for cell in re.search(rf'^\| [^|]*\(`{model}`\) \|(.*)\|$', text, re.M)[1].split('|')]
            found = scores.get(model, [])
            deviation = f' ± {statistics.stdev(found):.1f}' if len(set(found)) > 1 else ''
            assert cells[i] == (f'{statistics.mean(found):.1f}{deviation}' if found else ''), (model, corpus)
            if corpus == 'emodb-speaker':
                assert cells[4] == minutes('emodb-speaker-pitch-1', model)  # of one machine


@pytest.mark.parametrize('row, minus, files', [
    ('nEMO - random search', 'random_transferred', 'speaker speaker-pitch-1 corpus'),
    ('nEMO - CNN-GRU', 'cnn_gru_matched', 'speaker speaker-pitch-1 corpus'),
    ('each fold - random search', 'random_search', 'searched searched-pitch-1 corpus-searched'),
    ('each fold - CNN-GRU', 'cnn_gru_matched', 'searched searched-pitch-1 corpus-searched')])
def test_the_differences_of_the_readme_are_those_of_the_committed_contrasts(row, minus, files):
    """Of both corpora together; bold if the interval is without 0."""
    expected = []
    for file in files.split():
        text = (ROOT / 'docs' / 'results' / f'{file}-contrasts.md').read_text()
        ua, low, high = re.search(rf'^\| {minus} \| mean \|.*?\| ([+-][\d.]+) \| (\S+) to (\S+) \|', text, re.M).groups()
        expected.append(f'**{ua} ({low} to {high})**' if float(low) * float(high) > 0 else f'{ua} ({low} to {high})')
    found = re.search(rf'^\| searched on {row}[^|]*\| (.*) \|$', (ROOT / 'README.md').read_text(), re.M)[1]
    assert found.split(' | ') == expected


def minutes(corpus, model):
    """Minutes of search and training, means of the runs of seed 1, which had one thread each."""
    with open(ROOT / 'docs' / 'results' / corpus / 'runs.csv', newline='') as f:
        rows = [row for row in csv.DictReader(f) if (row['model'], row['seed']) == (model, '1')]
    search, training = (statistics.mean(float(row[name] or 0) for row in rows) for name in ('search_minutes', 'minutes'))
    once = ' once' * (model in ('transferred', 'random_transferred'))
    return (f'{search:.1f}{once} + ' if search else '') + ('< 0.1' if training < .05 else f'{training:.1f}')


def uas(corpus):
    """{model: [UA of a seed in percent, ...]} of the committed predictions of seeds that have all folds."""
    rows, found = defaultdict(lambda: ([], [])), defaultdict(list)
    with open(ROOT / 'docs' / 'results' / corpus / 'predictions.csv', newline='') as f:
        for row in csv.DictReader(f):
            for values, column in zip(rows[row['model'], row['seed']], ('label', 'predicted')):
                values.append(row[column])
    whole = max(len(labels) for labels, _ in rows.values())
    for (model, _), (labels, predicted) in rows.items():
        if len(labels) == whole:
            found[model].append(100 * recall_score(labels, predicted, average='macro', labels=sorted(set(labels))))
    return found


def test_citation_licence_and_workflow():
    cff = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    paper, readme = cff['preferred-citation'], (ROOT / 'README.md').read_text()
    assert f'doi     = {{{paper["doi"]}}}' in readme and f'{{{paper["start"]}--{paper["end"]}}}' in readme
    assert all(author['family-names'] in readme for author in paper['authors']) and len(paper['authors']) == 6
    assert 'MIT License' in (ROOT / 'LICENSE').read_text()
    job = yaml.safe_load((ROOT / '.github' / 'workflows' / 'ci.yml').read_text())['jobs']['demo-and-test']
    assert {'make demo', 'make test'} <= {step.get('run') for step in job['steps']}
    assert len(job['strategy']['matrix']['python']) >= 2
