"""scripts/cross_validate.py: where each model takes its genotype, size and minutes from."""
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from desk import GENOTYPE, call, calls, finished, jobs, record, rows
from desk import desk as desk

import augment
import config as cf
import genotypes as gt

import experiment as ex  # isort: skip  (scripts/, which desk made importable)


def test_random_search_gets_the_minutes_of_the_search_and_transferred_its_genotype(desk, small_corpus, tmp_path):
    cell, text = [[('gru_1', 0), ('gru_1', 1)]], json.loads((desk / 'genotypes.json').read_text())[0]
    given = gt.from_str(text)._replace(rnn=cell)
    of_search = {'dataset': 'manifest', 'labels': 'angry', 'folds': '6', 'train_speakers': ['eve']}
    gt.save(tmp_path / 'other.json', given, {'network': {'layers': 9}, 'search': of_search})
    more = ['--only_folds', '1,2', '--transferred', str(tmp_path / 'other.json')]
    models = 'random_search,searched,transferred'
    assert call(desk, small_corpus, *more, models=models, seeds='0') == 0
    made = {found['--name']: (program, found) for program, found in calls(desk)}
    assert len(made) == 10 and list(made)[:4] == [f'cv/x/{name}' for name in (
        'f1-s0', 'draws-f1-s0', 'searched-f1-s0', 'random_search-f1-s0')]
    program, found = made['cv/x/draws-f1-s0']
    assert program == 'search.py' and (found['--relaxation'], found['--tournament_minutes']) == ('none', '1.20')
    words = [word for pair in found.items() for word in pair]
    assert cf.build('search', cf.given('search', words)).tournament_minutes == 1.2
    assert made['cv/x/random_search-f2-s0'][1]['--genotype'] == 'runs/search/cv/x/draws-f2-s0/genotype.json'
    assert made['cv/x/transferred-f2-s0'][1]['--genotype'] == 'runs/cv/x/transferred-s0.json'
    kept = {'search': {'elsewhere': {'dataset': 'manifest', 'train_speakers': ['eve']}}}
    assert gt.load('runs/cv/x/transferred-s0.json') == (given, kept)
    assert augment.Origin(kept, 'transferred-s0.json').settings({'dataset': 'manifest'}) == {}
    record(*made['cv/x/draws-f1-s0'])
    assert finished(6) and {row['model']: row['search_minutes'] for row in rows()} == {
        'searched': '1.5', 'random_search': '1.5', 'transferred': ''}
    assert {row['model']: row['search_core_minutes'] for row in rows()} == {
        'searched': '1.2', 'random_search': '1.2', 'transferred': ''}
    assert call(desk, small_corpus, *more, models=models, seeds='0') == 0 and calls(desk) == []
    gt.save(tmp_path / 'other.json', given._replace(rnn=[cell[0][::-1]]), {})
    with pytest.raises(cf.UserError, match='other.json: .*transferred-s0.json is another genotype; take another --name'):
        call(desk, small_corpus, *more, models=models, seeds='0')
    for models in ('transferred', 'searched,random_search'):
        with pytest.raises(cf.UserError, match='--transferred names'):
            call(desk, small_corpus, *(more if models != 'transferred' else more[:2]), models=models, seeds='0')
    with pytest.raises(cf.UserError, match='takes its minutes from the searched network'):
        call(desk, small_corpus, models='random_search', seeds='0')


def test_every_seed_has_transferred_genotypes_of_its_own_and_a_baseline_their_size(desk, small_corpus, tmp_path):
    genotype = gt.from_str(json.loads((desk / 'genotypes.json').read_text())[0])
    for name, op in (('s0', 'gru_1'), ('s1', 'gru_2'), ('r0', 'rnn_1'), ('r1', 'rnn_2')):
        gt.save(tmp_path / f'{name}.json', genotype._replace(rnn=[[(op, 0), (op, 1)]]), {})
    for seed in '01':  # folders of search.py, which know their minutes
        (tmp_path / f's{seed}').mkdir()
        (tmp_path / f's{seed}.json').rename(tmp_path / f's{seed}' / 'genotype.json')
        (tmp_path / f's{seed}' / 'metrics.jsonl').write_text('{"seconds": 90}\n')
    more = ['--only_folds', '1', '--transferred', str(tmp_path / 's{seed}'), '--random_transferred',
            str(tmp_path / 'r{seed}.json'), '--jobs', '2']
    models = 'cnn_gru_matched,random_transferred,transferred'
    assert call(desk, small_corpus, *more, models=models, seeds='0,1') == 0
    made = {found['--name'].removeprefix('cv/x/'): found for _, found in calls(desk)}
    assert len(made) == 6 and {(row['model'], row['seed']) for row in rows()} == {
        (model, seed) for model in models.split(',') for seed in '01'}
    for model, there, known in (('transferred', 's{}', {'search_minutes': 1.5}), ('random_transferred', 'r{}.json', {})):
        for seed in '01':
            path = made[f'{model}-f1-s{seed}']['--genotype']
            assert gt.load(path) == (gt.load(str(tmp_path / there.format(seed)))[0], known)
    assert {(row['model'], row['search_minutes']) for row in rows()} == {
        ('transferred', '1.5'), ('random_transferred', ''), ('cnn_gru_matched', '')}
    sizes = {row['seed']: row['n_params'] for row in rows() if row['model'] == 'transferred'}
    assert {seed: made[f'cnn_gru_matched-f1-s{seed}']['--params'] for seed in '01'} == sizes
    with pytest.raises(cf.UserError, match='--random_transferred names the genotype'):
        call(desk, small_corpus, *more, models='transferred', seeds='0')
    with pytest.raises(cf.UserError, match='takes its size from the searched network, so name searched or transferred too'):
        call(desk, small_corpus, models='cnn_gru_matched', seeds='0')


def test_genotypes_of_an_earlier_experiment_are_retrained_and_nothing_is_searched(desk, small_corpus, tmp_path):
    other = gt.from_str(GENOTYPE.format(*['skip_connect', 'max_pool_3x3'] * 2, 'rnn_1', 'rnn_1'))
    gt.save(tmp_path / 'other.json', other, {'search': {'dataset': 'nemo'}})
    models = 'searched,random_search,transferred,cnn_gru_matched'
    assert call(desk, small_corpus, '--transferred', str(tmp_path / 'other.json'), models=models, seeds='0') == 0
    before = {(row['model'], row['fold']): row for row in rows()}
    assert before['searched', '1']['genotype'] != before['searched', '2']['genotype']
    calls(desk)
    more = ['--name', 'y', '--genotypes_of', 'runs/cv/x', '--augment.epochs', '7']
    (desk / 'orders.json').write_text(json.dumps({f'cv/y/searched-f{fold}-s0': .5 for fold in (1, 2)}))  # they take so long
    assert call(desk, small_corpus, *more, '--only_folds', '1,2', '--jobs', '8', models=models, seeds='0') == 0
    made = {found['--name'].removeprefix('cv/y/'): found for _, found in calls(desk)}
    assert sorted(made) == sorted(f'{model}-f{fold}-s0' for model in models.split(',') for fold in (1, 2))
    for name, found in made.items():
        assert found.get('--genotype') == (None if 'matched' in name else f'runs/cv/y/{name}.json')
    assert [made[f'cnn_gru_matched-f{fold}-s0']['--params'] for fold in (1, 2)] == ['1001', '1002']
    after = {(row['model'], row['fold']): row for row in rows(of='y')}
    for run, row in after.items():
        assert (row['state'], row['search_minutes']) == ('finished', before[run]['search_minutes'])
    for fold in (1, 2):
        genotype, record = gt.load(f'runs/cv/y/searched-f{fold}-s0.json')
        assert gt.to_str(genotype) == before['searched', str(fold)]['genotype']
        test = before['searched', str(fold)]['test_speakers'].split()
        tested = record['search']['tested']
        assert (tested['dataset'], tested['speakers'], tested['heard'], record['search_minutes']) == ('manifest', test, [], 1.5)
    assert gt.load('runs/cv/y/transferred-f1-s0.json')[0] == gt.from_str(before['transferred', '1']['genotype'])
    assert call(desk, small_corpus, *more, '--only_folds', '1,2', models=models, seeds='0') == 0 and calls(desk) == []
    for words, named in (
            ([*more[:2], *more[4:]], 'y began with genotypes of an earlier experiment: say --genotypes_of again'),
            ([*more[:2], *more[4:], '--seeds', '1'], 'y began with genotypes of an earlier experiment'),
            ([*more, '--seeds', '0,1'], 'has no genotype of searched-f1-s1; it has searched-f1-s0 searched-f2-s0 searched-f3'),
            (['--genotypes_of', 'runs/cv/y', '--seeds', '1'], 'x began with genotypes of its own, such as runs/cv/x/transf'),
            ([*more[:2], *more[4:], '--genotypes_of', 'nowhere'], 'nowhere/runs.csv does not exist'),
            ([*more, '--name', 'z', '--folds', '4'], 'other utterances, labels, speakers or folds'),
            ([*more, '--models', 'cnn'], '--genotypes_of has no effect on cnn')):
        with pytest.raises(cf.UserError, match=named):
            call(desk, small_corpus, *words, models='searched', seeds='0')
    with pytest.raises(cf.UserError, match='--transferred: --genotypes_of names the genotypes of all models'):
        call(desk, small_corpus, *more, '--transferred', 'other.json', models='transferred', seeds='0')
    assert sorted(path.name for path in Path('runs/cv/y').glob('searched*')) == ['searched-f1-s0.json', 'searched-f2-s0.json']
    assert call(desk, small_corpus, *more, '--name', 'alone', models='random_search', seeds='0') == 0  # needs no minutes
    path = tmp_path / 'runs/cv/x/runs.csv'
    path.write_text(path.read_text().replace("'gru_1'", "'gru_2'"))
    with pytest.raises(cf.UserError, match='searched-f1-s0.json is another genotype; take another --name'):
        call(desk, small_corpus, *more, models='searched', seeds='0')
    Path('runs/cv/y/searched-f1-s0.json').write_text('{"genotype')
    with pytest.raises(cf.UserError, match='searched-f1-s0.json: .*: delete it, and the genotype is copied again'):
        call(desk, small_corpus, *more, models='searched', seeds='0')


def test_one_part_is_searched_and_the_other_fixed(desk, small_corpus):
    assert call(desk, small_corpus, '--only_folds', '1', '--jobs', '2', models='searched_seqnn,searched_cnn', seeds='0') == 0
    made = {found['--name'].removeprefix('cv/x/'): found for _, found in calls(desk)}
    assert len(made) == 4
    for part, flag, op in (('cnn', '--rnn_ops', 'lstm_att_1'), ('seqnn', '--cnn_ops', 'sep_conv_3x3')):
        found, names = made[f'search_{part}-f1-s0'], list(made)
        config = cf.build('search', cf.given('search', [word for pair in found.items() for word in pair]))
        assert found[flag] == op and getattr(config, flag[2:]) == op and not {'--rnn_ops', '--cnn_ops'} - {flag} & set(found)
        assert made[f'searched_{part}-f1-s0']['--genotype'] == f'runs/search/cv/x/search_{part}-f1-s0/genotype.json'
        assert names.index(f'search_{part}-f1-s0') < names.index(f'searched_{part}-f1-s0')
    record('search.py', made['search_cnn-f1-s0'])
    assert finished(2) and {row['search_minutes'] for row in rows()} == {'1.5'}
    assert call(desk, small_corpus, '--only_folds', '1', models='searched_cnn', seeds='0') == 0 and not calls(desk)


def test_the_order_of_operations_is_imposed_in_the_search_alone(desk, small_corpus):
    assert call(desk, small_corpus, '--only_folds', '1', models='searched_ordered', seeds='0') == 0
    made = {found['--name'].removeprefix('cv/x/'): found for _, found in calls(desk)}
    found, retrained = made['search_ordered-f1-s0'], made['searched_ordered-f1-s0']
    config = cf.build('search', cf.given('search', [word for pair in found.items() for word in pair]))
    assert config.cnn_order == 'imposed' and '--cnn_order' not in retrained
    assert retrained['--genotype'] == 'runs/search/cv/x/search_ordered-f1-s0/genotype.json'


def test_minutes_of_a_search_include_the_choice_among_candidates(tmp_path):
    job = jobs.Job('x', 'search', 1, 0, cwd=str(tmp_path))
    folder = tmp_path / job.folder
    folder.mkdir(parents=True)
    (folder / 'metrics.jsonl').write_text('{"seconds": 60}\n{"seconds": 30}\n')
    assert job.cost_of_search() == {'search_minutes': 1.5, 'search_core_minutes': None}  # an earlier version, or a GPU
    (folder / 'candidates.json').write_text(json.dumps({'scores': [{'seconds': 6}, {'seconds': 6}], 'finalists': [
        {'trainings': [{'seconds': 18}, {'seconds': 30}]}, {'trainings': []}]}))
    assert job.cost_of_search()['search_minutes'] == 2.5
    tree = json.loads((folder / 'candidates.json').read_text())
    (folder / 'candidates.json').write_text(json.dumps({**tree, 'drawing': {'seconds': 30.}}))
    assert job.cost_of_search()['search_minutes'] == 3.
    (folder / 'metrics.jsonl').write_text('{"seconds": 60, "core_seconds": 30}\n{"seconds": 30, "core_seconds": 6}\n')
    assert job.cost_of_search() == {'search_minutes': 3., 'search_core_minutes': None}  # begun by an earlier version
    (folder / 'candidates.json').write_text(json.dumps({'drawing': {'seconds': 0}, 'scores': [
        {'seconds': 6, 'core_seconds': 3}], 'finalists': [{'trainings': [{'seconds': 18, 'core_seconds': 9}]}]}))
    assert job.cost_of_search() == {'search_minutes': 114 / 60, 'search_core_minutes': 48 / 60}


@pytest.mark.parametrize('times, flags', [
    ('{"seconds": 600, "core_seconds": 150}', ['--tournament_minutes', '2.50', '--tournament_cores']),
    ('{"seconds": 600}', ['--tournament_minutes', '10.00'])])
def test_random_search_gets_the_minutes_that_the_search_recorded(times, flags, tmp_path):
    search, draws = (jobs.Job('x', model, 1, 0, cwd=str(tmp_path)) for model in ('search', 'draws'))
    (tmp_path / search.folder).mkdir(parents=True)
    (tmp_path / search.folder / 'metrics.jsonl').write_text(f'{times}\n')
    assert draws.argv()[-1] == 'MINUTES_OF_THE_SEARCH'
    (tmp_path / search.product).write_text('{}')
    assert draws.argv()[-len(flags):] == flags
    config = cf.build('search', cf.given('search', ['--name', 'x', *draws.argv()[-len(flags) - 2:]]))
    assert config.tournament_cores == (len(flags) == 3)


@pytest.mark.parametrize('name, text', [('metrics.jsonl', None), *((name, text) for name in ('metrics.jsonl', 'candidates.json')
                                        for text in ('[1]', '7', '{', '{"seconds": "1"}', '{"seconds": NaN}', '{"seconds": -1}',
                                                     '{"seconds": 1, "core_seconds": "x"}'))])
def test_damaged_times_of_a_search_are_one_line(name, text, tmp_path):
    search, draws = (jobs.Job('x', model, 1, 0, cwd=str(tmp_path)) for model in ('search', 'draws'))
    (tmp_path / search.folder).mkdir(parents=True)
    (tmp_path / search.folder / 'metrics.jsonl').write_text('{"seconds": 1}\n')
    (tmp_path / search.product).write_text('{}')
    if text is None:
        (tmp_path / search.folder / name).unlink()
    else:
        of_candidates = text if text in ('[1]', '7', '{') else f'{{"scores": [{text}], "finalists": []}}'
        (tmp_path / search.folder / name).write_text(f'{text}\n' if name == 'metrics.jsonl' else of_candidates)
    said = jobs.run_chain([draws], 'python', {})[draws]
    assert said.startswith(f'{tmp_path / search.folder / name} is damaged (') and '\n' not in said
    assert said.endswith(f'delete {tmp_path / search.folder}, and the search will be repeated')


def test_a_baseline_that_was_sized_after_another_network_is_refused(desk, small_corpus, tmp_path):
    gt.save(tmp_path / 'g.json', gt.from_str(json.loads((desk / 'genotypes.json').read_text())[0]), {})
    more = ['--only_folds', '1', '--transferred', str(tmp_path / 'g.json')]
    models = 'transferred,cnn_gru_matched'
    assert call(desk, small_corpus, *more, models=models, seeds='0') == 0
    folder = Path('runs/augment/cv/x/cnn_gru_matched-f1-s0')
    made = asdict(cf.AugmentConfig(name='x', dataset='manifest', folds='3', model='cnn_gru', params=1001))
    (folder / 'config.yaml').write_text(yaml.safe_dump({k: v for k, v in made.items() if k not in ex.MACHINE}))
    assert call(desk, small_corpus, *more, models=models, seeds='0') == 0
    searched = Path('runs/augment/cv/x/searched-f1-s0/results.json')
    assert call(desk, small_corpus, '--only_folds', '1', models='searched', seeds='0') == 0
    searched.write_text(searched.read_text().replace('"n_params": 1001', '"n_params": 1500'))
    with pytest.raises(cf.UserError, match='cnn_gru_matched-f1-s0 was sized after a network of 1001 parameters, but '
                                           'searched-f1-s0 has 1500: leave cnn_gru_matched out'):
        call(desk, small_corpus, *more, models=f'searched,{models}', seeds='0')


def test_the_device_of_a_search_is_kept_beside_its_minutes(desk, small_corpus, tmp_path):
    genotype = gt.from_str(json.loads((desk / 'genotypes.json').read_text())[0])
    gt.save(tmp_path / 'g.json', genotype, {'provenance': {'device': 'cpu, 4 threads'}})
    more = ['--only_folds', '1', '--transferred', str(tmp_path / 'g.json')]
    assert call(desk, small_corpus, *more, models='searched,transferred', seeds='0') == 0
    gt.save('runs/search/cv/x/f1-s0/genotype.json', genotype, {'provenance': {'device': 'H100'}})
    ex.Experiment('x').collect()
    assert {row['model']: row['search_device'] for row in rows()} == {'searched': 'H100', 'transferred': 'cpu, 4 threads'}


def test_a_repeated_search_leaves_nothing_behind_that_was_made_from_the_first(desk, small_corpus):
    models, made = 'searched,random_search,cnn_gru_matched', ['runs/search/cv/x/draws-f1-s0', *(
        f'runs/augment/cv/x/{model}-f1-s0' for model in ('searched', 'random_search'))]
    assert call(desk, small_corpus, '--only_folds', '1', models=models, seeds='0') == 0
    for program, found in calls(desk):
        if program == 'search.py':
            record(program, found)
    assert call(desk, small_corpus, '--only_folds', '1', models=models, seeds='0') == 0 and calls(desk) == []
    again, product = Path('runs/search/cv/x/f1-s0'), Path('runs/search/cv/x/f1-s0/genotype.json')
    tree, metrics = json.loads(product.read_text()), (again / 'metrics.jsonl').read_text()
    product.unlink()
    with pytest.raises(cf.UserError, match=f'gone or was repeated since: {made[0]}, {made[1]}; delete them too'):
        call(desk, small_corpus, '--only_folds', '1', models=models, seeds='0')
    product.write_text(json.dumps(tree).replace('gru_1', 'gru_2'))
    with pytest.raises(cf.UserError, match=f'repeated since: {made[1]}; delete'):
        call(desk, small_corpus, '--only_folds', '1', models=models, seeds='0')
    product.write_text(json.dumps(tree))
    (again / 'metrics.jsonl').write_text(metrics.replace('48', '54'))
    with pytest.raises(cf.UserError, match=f'repeated since: {made[0]}; delete'):
        call(desk, small_corpus, '--only_folds', '1', models=models, seeds='0')
    (again / 'metrics.jsonl').write_text(metrics)
    for folder in made:
        shutil.rmtree(folder)
    assert call(desk, small_corpus, '--only_folds', '1', models=models, seeds='0') == 0
    assert [found['--name'] for _, found in calls(desk)] == [f'cv/x/{name}-f1-s0' for name in (
        'draws', 'searched', 'random_search')]


@pytest.mark.parametrize('first, second', [('searched', 'transferred'), ('transferred', 'searched'),
                                           ('transferred', 'searched,transferred')])
def test_matched_baselines_of_an_experiment_have_the_size_of_one_model(first, second, desk, small_corpus, tmp_path):
    gt.save(tmp_path / 'other.json', gt.from_str(json.loads((desk / 'genotypes.json').read_text())[0]), {})

    def run(models, fold):
        other = ['--transferred', str(tmp_path / 'other.json')] * ('transferred' in models)
        return call(desk, small_corpus, '--only_folds', fold, *other, models=models, seeds='0')
    assert run(f'{first},cnn_gru_matched', '1') == 0
    assert json.loads(Path('runs/cv/x/plan.json').read_text())['sized_by'] == first
    sized = second.partition(',')[0]
    for fold in '12':
        with pytest.raises(cf.UserError, match=f'cnn_gru_matched has the size of {first} in runs/cv/x, and .* of {sized} with'):
            run(f'{second},cnn_gru_matched', fold)
    assert run(second, '1') == run(f'{first},cnn_gru_matched', '2') == 0
    plan = json.loads(Path('runs/cv/x/plan.json').read_text())
    assert (plan['sized_by'], plan['genotypes_of']) == (first, '')
