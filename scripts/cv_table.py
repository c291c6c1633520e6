"""Tables of an experiment: runs.csv, predictions.csv, table.csv, and table.md, which a reader is to trust."""
import csv
import io

import cv_figures
import cv_results as cr
import cv_statistics as st
from cv_plan import RANDOM, SEARCHED, SVM

NAMES = {'ua': 'UA', 'wa': 'WA', 'macro_f1': 'macro F1'}
FROM_RESULTS = ('ua', 'wa', 'macro_f1', 'n_test', 'n_params', 'best_epoch', 'dev_ua', 'train_on_dev', 'normalise', 'device',
                'genotype')
OF_SCORES = '''In percent. UA, WA and macro F1: of the predictions of all folds at once, mean ± standard deviation over
seeds; the interval is of UA, by resampling speakers with all their utterances and seeds: of few speakers it is too narrow.
Over folds: mean ± standard deviation, each fold first averaged over seeds. A seed that lacks folds is left out where another
has them all, in brackets how many are: where their runs failed, that is a choice among seeds. A partial row has no deviation
over seeds, for its seeds have different folds. Minutes are of one run. Chance of WA is the share of the largest class.'''
OF_SVM = 'The SVM draws nothing by its seed: its standard deviation over seeds is 0 by construction.'
OF_DIFFERENCES = '''Differences in points, of the seeds and folds that both have. p: two-sided randomization test that swaps the
two models' predictions speaker by speaker; Holm corrects that of UA for the number of rows; those of WA and macro F1 are not
corrected. Seeds are averaged within a model first: interval and test are about other speakers, not about other seeds.'''
OF_OPERATIONS = '''Percent of the edges of all cells of a kind, in brackets in how many cells the operation is; last, the
percent of edges whose operations two cells of different folds or seeds share, on average.'''


def make(experiment, plan, figures=False):
    """Writes all tables from what is on disk, and the figures where they are wanted."""
    while True:
        results = cr.read(experiment, plan)
        experiment.publish('runs.csv', runs_csv(results))
        experiment.publish('predictions.csv', predictions_csv(results))
        experiment.publish('table.csv', table_csv(results, folds_of(results)))
        experiment.publish('table.md', markdown(experiment.name, plan, results).encode())
        if sum(experiment.done(run.job) for run in results.runs) == len(results.finished()):
            break  # else another shard finished a run in between, and its table may have come before this one
    if figures:
        cv_figures.draw(experiment, results, folds_of(results))


def first_line(experiment):
    return (experiment.path / 'table.md').read_text().partition('\n')[0]


def folds_of(results, only=None):
    """Folds that were asked for."""
    return sorted({run.job.fold for run in results.runs if not only or run.job.fold in only})


def to_csv(header, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([header, *rows])
    return text.getvalue().encode()


def runs_csv(results):
    header = ['model', 'fold', 'seed', 'state', 'failed', *FROM_RESULTS, 'search_minutes', 'minutes', 'test_speakers',
              'search_heard_test_speakers']
    rows = []
    for run in results.runs:
        row = [run.job.model, run.job.fold, run.job.seed, run.state, run.failed]
        if run.found:
            row += [*(run.found.get(name) for name in FROM_RESULTS), run.search_minutes, run.minutes,
                    *(' '.join(run.found.get(name) or []) for name in header[-2:])]
        rows.append(row + [None] * (len(header) - len(row)))
    return to_csv(header, rows)


def predictions_csv(results):
    """The predictions of all runs, so that others can check the statistics."""
    columns = ['path', 'speaker', 'label', 'predicted']
    if any('start' in row for run in results.finished() for row in run.predictions[:1]):
        columns += ['start', 'end']
    return to_csv(['model', 'seed', 'fold', *columns], [
        [run.job.model, run.job.seed, run.job.fold, *(row.get(name) for name in columns)]
        for run in results.finished() for row in run.predictions])


def table_csv(results, folds):
    """A row a model, in plain numbers."""
    ends = ('', '_sd', '_low', '_high', '_folds', '_folds_sd')
    header = ['model', 'seeds', 'seeds_left_out', 'n_folds', 'n_test', 'n_speakers',
              *(name + end for name in st.MEASURES for end in ends),
              'params', 'params_sd', 'search_minutes', 'search_minutes_sd', 'minutes', 'minutes_sd']
    rows = []
    for found in results.summaries(folds):
        row = [found['model'], cr.describe(found['pairs'], folds), found['left_out'], len({fold for _, fold in found['pairs']}),
               found['n_test'], found['n_speakers']]
        for name in st.MEASURES:
            row += [*found[name]['seeds'], *(found[name]['interval'] or (None, None)), *found[name]['folds']]
        rows.append(row + [x for name in ('params', 'search_minutes', 'minutes') for x in found[name] or (None, None)])
    return to_csv(header, rows)


def markdown(name, plan, results):
    parts = [standing(results), f'# {name}', *warnings(results), *notes(results)]
    if not results.finished():
        return '\n\n'.join(parts) + '\n'
    folds, clean = folds_of(results), folds_of(results, plan['clean_folds'] or [0])
    n_folds = len(plan['test_speakers'])
    which = 'all folds' if len(folds) == n_folds else f'fold{"s" * (len(folds) > 1)} {listed(folds)} of {n_folds}'
    parts += scores(results, folds, which[0].upper() + which[1:])
    if plan['clean_folds']:
        left_out = [fold for fold in folds if fold not in clean]
        named = clean or plan['clean_folds']
        heading = f'Only fold{"s" * (len(named) > 1)} {listed(named)}, whose test speakers took part in no choice'
        if left_out:
            heading += f' (those of fold{"s" * (len(left_out) > 1)} {listed(left_out)} did take part in choices of the recipe)'
        parts += scores(results, clean, heading) if clean else [f'## {heading}', 'Nothing was asked for in these folds.']
    parts += [*per_fold(results, folds, plan), *genotypes(results), *operations(results)]
    devices = sorted({run.found['device'] for run in results.finished()})
    parts += ['## Made by', f'Hardware: {"; ".join(devices)}. Command:', f'    {plan["command"]}']
    return '\n\n'.join(parts) + '\n'


def standing(results):
    """How many runs of how many are there, and which are not."""
    parts = [f'{len(results.finished())} of {len(results.runs)} runs are there']
    for state in ('failed', 'missing'):
        jobs = [run.job for run in results.runs if run.state == state]
        by_model = {job.model: [other for other in jobs if other.model == job.model] for job in jobs}
        where = [f'{model} ({", ".join(f"fold {job.fold} seed {job.seed}" for job in some)})'
                 for model, some in by_model.items()]
        if jobs:
            parts.append(f'{len(jobs)} {state}: ' + ', '.join(where))
    return '; '.join(parts) + '.'


def warnings(results):
    heard = [f'{run.job} ({" ".join(names)})' for run in results.finished()
             if (names := run.found.get('search_heard_test_speakers'))]
    unknown = [str(run.job) for run in results.finished(SEARCHED) if run.found.get('search_heard_test_speakers', []) is None]
    lines = [f'**WARNING: the search heard test speakers in {", ".join(heard)}. These scores are not speaker-independent.**']
    lines = lines if heard else []
    if unknown:
        lines.append(f'**WARNING: whether the search heard test speakers is not known of {", ".join(unknown)}.**')
    for fold in cr.test_sets_differ(results):
        lines.append(f'**WARNING: in fold {fold} not all runs were tested on the same utterances: they are not comparable.**')
    failed = [f'- {run.job}: {run.failed}' for run in results.runs if run.state == 'failed']
    return lines + ['\n'.join(['Failed:', '', *failed])] * bool(failed)


def notes(results):
    """What of the protocol a reader of any table must know."""
    if any(run.found.get('train_on_dev') for run in results.finished()):
        yield 'Dev speakers were trained on too: of networks the last epoch was tested, and none has a UA on dev.'
    if any(run.found.get('normalise') == 'speaker' for run in results.finished()):
        yield ('**Every speaker was normalised by all that they say here, test speakers too**: without their labels, but one '
               'recording of a stranger cannot be scored like this.')


def scores(results, folds, heading):
    """The main table and the paired differences over these folds."""
    parts, found = [f'## {heading}'], results.summaries(folds)
    if not found:
        return [*parts, 'No run of these folds is there.']
    rows = []
    for one in found:
        ua = one['ua']
        rows.append([one['model'], seeds(one, folds), one['n_test'], one['n_speakers'],
                     spread(ua['seeds']), between(ua['interval']), *(spread(one[name]['seeds']) for name in ('wa', 'macro_f1')),
                     *(spread(one[name]['folds']) for name in st.MEASURES), spread(one['params'], ',.0f', 1),
                     ' + '.join(spread(one[name], '.1f', 1) for name in ('search_minutes', 'minutes') if one[name])])
    support = max(found, key=lambda one: one['n_test'])['confusion'].sum(axis=1)
    chance = [percent(1 / (support > 0).sum()), percent(support.max() / support.sum())]
    rows.append(['chance', '', '', '', chance[0], '', chance[1], *[''] * 6])
    parts.append(table(['model', 'seeds', 'n test', 'speakers', 'UA', '95% interval', 'WA', 'macro F1', 'UA over folds',
                        'WA over folds', 'macro F1 over folds', 'parameters', 'minutes search + training'], rows))
    by_construction = any(one['model'] == SVM and one['ua']['seeds'][1] is not None for one in found)
    parts.append(f'{OF_SCORES} {OF_SVM}' if by_construction else OF_SCORES)
    rows, compared = [], cr.compare(results, folds)
    for one in compared:
        cells = [cell for name in st.MEASURES for cell in (signed(one[name][0]), between(one[name][1]), p_value(one[name][2]))]
        rows.append([one['model'], seeds(one, folds), one['n_speakers'], *cells[:3], p_value(one['holm']), *cells[3:]])
    if rows:
        header = ['searched minus', 'seeds', 'speakers', 'UA', '95% interval', 'p', 'p (Holm)', 'WA', '95% interval', 'p',
                  'macro F1', '95% interval', 'p']
        parts += [table(header, rows), f'{OF_DIFFERENCES} {least_p(compared)}']
    return parts


def seeds(one, folds):
    """Which are scored, and how many of those asked for are not."""
    return cr.describe(one['pairs'], folds) + (f' ({one["left_out"]} left out)' if one['left_out'] else '')


def least_p(compared):
    """What the speakers of the rows allow."""
    numbers = sorted({one['n_speakers'] for one in compared})
    allowed = ', '.join(f'{st.smallest_p(n):.2g} with {n} speaker{"s" * (n > 1)}' for n in numbers)
    return f'The smallest p there can be: {allowed}.'


def per_fold(results, folds, plan):
    rows = []
    for one in results.summaries(folds):
        rows.append([one['model'], *(spread(one['ua']['by_fold'].get(fold)) for fold in folds)])
    heads = [f'fold {fold}: {" ".join(plan["test_speakers"][fold - 1])}' for fold in folds]
    return ['## UA of each fold', table(['model', *heads], rows), 'Mean ± standard deviation over the same seeds as above; '
            'after the fold its test speakers.']


def genotypes(results):
    rows = [[run.job.fold, run.job.seed, f'`{run.found["genotype"]}`'] for run in results.finished(SEARCHED)]
    return ['## Genotypes found', table(['fold', 'seed', 'genotype'], rows)] if rows else []


def operations(results):
    parts = []
    for kind, found in cr.operations(results).items():
        models, rows = [model for model in (SEARCHED, RANDOM) if model in found['overlap']], []
        for name, shares in found['ops']:
            cells = [f'{percent(shares[model][0])} ({shares[model][1]} of {shares[model][2]})' for model in models]
            rows.append([name, *cells, percent(found['uniform'])])
        shared = [found['overlap'][model] for model in models]
        alike = ['one cell only' if share is None else percent(share) for share in shared]
        rows.append(['*two cells have in common*', *alike, ''])
        parts.append(table([f'{kind} cell', *models, 'drawn evenly'], rows))
    if parts:
        parts = ['## Operations: what does the search agree on?', *parts,
                 OF_OPERATIONS]
    return parts


def table(header, rows):
    return '\n'.join('| ' + ' | '.join(map(str, row)) + ' |' for row in [header, ['---'] * len(header), *rows])


def listed(numbers):
    return ', '.join(map(str, numbers))


def percent(x):
    return f'{100 * x:.1f}'


def spread(mean_sd, form='.1f', scale=100):
    if mean_sd is None:
        return ''
    mean, sd = mean_sd
    return f'{scale * mean:{form}}' + ('' if sd is None else f' ± {scale * sd:{form}}')


def signed(x):
    return f'{round(100 * x, 1) + 0.:+.1f}'  # no -0.0


def between(low_high):
    return 'one speaker' if low_high is None else f'{percent(low_high[0])} to {percent(low_high[1])}'


def p_value(p):
    return '< 0.001' if p < .001 else f'{p:.3f}'
