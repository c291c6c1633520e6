"""table.md: the results of an experiment for readers, the verdict first."""
from collections import defaultdict

import numpy as np
import pandas as pd
import significance as sig
from experiment import UNKNOWN
from jobs import RANDOM, RANDOM_SEARCH, SEARCHED, SVMS, TRANSFERS

import genotypes as gt
from config import escape_markdown

PLANNED = (TRANSFERS, (SEARCHED, RANDOM_SEARCH), (SEARCHED, RANDOM))  # what is compared with what; the first that has run
OF_SCORES = '''In percent, from the predictions of all folds together; ± is the standard deviation over seeds. The 95% interval
covers variation between speakers: they are resampled with all their utterances and seeds. With few speakers it is too narrow.
"Over folds" is the mean ± standard deviation of the folds, each first averaged over seeds. If a complete seed exists, seeds
with missing folds are left out; leaving out failed seeds biases the result. The seeds of a partial row have different folds,
so it has no deviation over seeds. Parameters and minutes are means and standard deviations of runs, minutes by the clock; a
random search ends as near as it can to the time of the cores that its search took, where that was recorded. Chance of WA: the
share of the largest class.'''
OF_SVM = 'An SVM does not depend on its seed: its deviation over seeds is 0.'
OF_DIFFERENCES = '''Differences in points, on the seeds and folds that both models have. p: two-sided randomization test that
swaps the predictions of the two models speaker by speaker. Holm's method corrects the p of UA for the number of rows; the p
of WA and macro F1 are not corrected. Seeds are averaged first: intervals and tests cover variation between speakers, not
between seeds.'''
OF_OPERATIONS = '''Percent of the edges of all cells of a kind that hold the operation. Last row: percent of edges whose
operations two cells of different folds or seeds share, on average.'''


def page(results, parts: list, clean: list[int], pictures: list[str]) -> str:
    """The text. parts: (folds, summaries, comparisons) of all folds, then of the clean ones."""
    folds, summaries, compared = parts[0]
    lines = [verdict(summaries, compared), f'# {results.name}', *state(results.runs), *warnings(results)]
    if not summaries:
        return '\n\n'.join(lines) + '\n'
    n_folds = len(results.plan.get('test_speakers', folds))
    lines += [f'## All {n_folds} folds' if len(folds) == n_folds else f'## {named(folds)} of {n_folds}',
              *scores(results, *parts[0])]
    if clean:
        lines += [f'## {named(clean)} only: test speakers that influenced no choice of the recipe']
        lines += [verdict(*parts[1][1:]), *scores(results, *parts[1])] if len(parts) > 1 else ['These folds were not run.']
    speakers = results.runs.dropna(subset='test_speakers').groupby('fold')['test_speakers'].first()
    heads = [f'fold {fold}: {escape_markdown(speakers.get(fold, ""))}' for fold in folds]
    lines += ['## UA of each fold', 'The heads name the test speakers; ± is the standard deviation over seeds.', table(
        ['model', *heads], [[row['model'], *(spread(row['by_fold'].get(fold)) for fold in folds)] for row in summaries])]
    lines += [f'![{name}](figures/{name}.png)' for name in pictures]
    found = [f'- fold {fold}, seed {seed}: `{text}`' for (seed, fold), text in results.finished(SEARCHED)['genotype'].items()]
    lines += ['## Genotypes found', '\n'.join(found), *operations(results)] if found else []
    lines += ['## Made by', f'Hardware: {"; ".join(sorted({*results.runs["device"].dropna()}))}.']
    commands = str(results.plan.get('command', '')).splitlines()  # merge.py puts several together
    lines += [f'Command{"s" * (len(commands) > 1)}:', '\n'.join(f'    {line}' for line in commands)] if commands else []
    return '\n\n'.join(lines) + '\n'


def planned(compared: list[dict]) -> dict | None:
    """The comparison that answers the question of the experiment: is what was searched better than what chance found?"""
    rows = {(row['of'], row['model']): row for row in compared}
    return next((rows[pair] for pair in PLANNED if pair in rows), None)


def verdict(summaries: list[dict], compared: list[dict]) -> str:
    """One sentence: is the searched network better than a random one?"""
    row = planned(compared)
    if row is None:
        best = max(summaries, key=lambda row: row['ua'], default=None)
        return f'{best["model"]} has the highest UA: {percent(best["ua"])} ({between(best["ua_low"], best["ua_high"])}).' \
            if best else 'No run is finished yet.'
    difference, low, high, p = row['ua']
    numbers = f'{signed(difference)} UA ({between(low, high)}), p {"" if p < .001 else "= "}{p_value(p)}'
    if p < .05 <= row['holm']:
        numbers += f' ({p_value(row["holm"])} if corrected for all rows of its table)'
    if row['of'] in TRANSFERS:  # one genotype for all folds of a seed
        n = row['n_genotypes']
        numbers += f'; {n} search{"es" * (n > 1)}, and interval and p cover speakers alone'
    elif len({seed for seed, _ in row['pairs']}) == 1:
        numbers += '; one seed'
    if sig.smallest_p(row['n_speakers']) >= .05:
        return f'{count(row["n_speakers"])} cannot show whether {row["of"]} is better than {row["model"]}: {numbers}.'
    direction = 'better' if difference > 0 else 'worse'
    said = 'was not shown to be better or worse' if p >= .05 else \
        f'may be {direction}' if row['holm'] >= .05 else f'is {direction}'
    return f'{row["of"]} {said} than {row["model"]}: {numbers}.'


def state(runs):
    """How many runs are finished, which are not, and why runs failed."""
    parts = [f'{(runs["state"] == "finished").sum()} of {len(runs)} runs are finished']
    for name in ('failed', 'missing'):
        rows = runs[runs['state'] == name]
        where = [f'{model} ({pairs(zip(part["seed"], part["fold"]))})' for model, part in rows.groupby('model', sort=False)]
        parts += [f'{len(rows)} {name}: {", ".join(where)}'] * bool(where)
    yield '; '.join(parts) + '.'
    failed = runs[runs['state'] == 'failed'].itertuples()
    if lines := [f'- {row.model}-f{row.fold}-s{row.seed}: {escape_markdown(row.failed)}' for row in failed]:
        yield '\n'.join(['Failed:', '', *lines])


def warnings(results):
    """What a reader must know before any score."""
    runs = results.runs[results.runs['state'] == 'finished']
    for column, did in (('search_heard_test_speakers', 'the search used test speakers'),
                        ('init_heard_test_speakers', 'the network of --init was trained on test speakers')):
        heard = {f'{row.model}-f{row.fold}-s{row.seed}': getattr(row, column)
                 for row in runs.dropna(subset=column).itertuples()}
        if names := [name for name, who in heard.items() if who == UNKNOWN]:
            yield f'**WARNING: it is not known whether {did} in {", ".join(names)}.**'
        if names := [f'{name} ({escape_markdown(who)})' for name, who in heard.items() if who != UNKNOWN]:
            yield f'**WARNING: {did} in {", ".join(names)}. These scores are not speaker-independent.**'
    tested = defaultdict(set)
    for (_, _, fold), part in results.predictions.groupby(['model', 'seed', 'fold']):
        tested[fold].add((*sorted(zip(part['path'], part['speaker'], part['label'])),))
    for fold in (fold for fold, some in tested.items() if len(some) > 1):
        yield f'**WARNING: in fold {fold} runs were tested on different utterances, so they cannot be compared.**'
    for name in results.added:
        yield (f'**{escape_markdown(name)} is another system**: its predictions were read from a file. How it was trained, and '
               'whether it heard test speakers, is not known here.')
    if (runs['train_on_dev'].astype(str) == 'True').any():
        yield 'Networks were trained on the dev speakers too and tested after their last epoch, so they have no UA on dev.'
    if (runs['normalise'] == 'speaker').any():
        what = ', both in the features and in what enters the classifier' * bool((runs['embedding'] == 'speaker').any())
        yield (f'**Every speaker was normalised by all of their recordings, test speakers too{what}.** No label was used, but '
               'a single recording of a stranger cannot be scored like this.')


def scores(results, folds: list[int], summaries: list[dict], compared: list[dict]):
    """Tables of scores and differences."""
    tested = results.predictions[results.predictions['fold'].isin(folds)]
    shares = tested.drop_duplicates(['fold', 'path', *{'start', 'end'} & {*tested}])['label'].value_counts(normalize=True)
    yield table(['model', 'seeds', 'utterances', 'speakers', 'UA', '95% interval', 'UA over folds', 'parameters', 'minutes'], [
        [row['model'], seeds(row), row['n_test'], row['n_speakers'], cell(row, 'ua'), between(row['ua_low'], row['ua_high']),
         cell(row, 'ua_folds'), cell(row, 'params', ',.0f', 1), minutes(row)] for row in summaries
    ] + [['chance', '', '', '', percent(1 / len(shares)), '', '', '', '']])
    yield table(['model', 'WA', 'macro F1', 'WA over folds', 'macro F1 over folds'], [
        [row['model'], *(cell(row, name) for name in ('wa', 'macro_f1', 'wa_folds', 'macro_f1_folds'))] for row in summaries
    ] + [['chance', percent(shares.max()), '', '', '']])
    svm = any(row['model'] in SVMS and not np.isnan(row['ua_sd']) for row in summaries)
    yield f'{OF_SCORES} {OF_SVM}' if svm else OF_SCORES
    if not compared:
        return
    for ours in dict.fromkeys(row['of'] for row in compared):
        rows = [row for row in compared if row['of'] == ours]
        yield table([f'{ours} minus', 'seeds', 'speakers', 'UA', '95% interval', 'p', 'p (Holm)'], [
            [row['model'], seeds(row), row['n_speakers'], *difference(row, 'ua'), p_value(row['holm'])] for row in rows])
        yield table([f'{ours} minus', 'WA', '95% interval', 'p', 'macro F1', '95% interval', 'p'], [
            [row['model'], *difference(row, 'wa'), *difference(row, 'macro_f1')] for row in rows])
    least = [f'{sig.smallest_p(n):.2g} with {count(n)}' for n in sorted({row['n_speakers'] for row in compared})]
    row = planned(compared)
    of_first_line = (f'The first line compares {row["of"]} with {row["model"]}: *may be* means a p below 0.05, *is* a '
                     'corrected p below 0.05. ') if row else ''
    yield f'{OF_DIFFERENCES} {of_first_line}The smallest possible p: {", ".join(least)}.'


def operations(results):
    """Which operations the searched and the random cells hold."""
    yield '## Operations: what do searches agree on?'
    counted = {model: [gt.op_counts(gt.from_str(text)) for text in results.finished(model)['genotype']]
               for model in (SEARCHED, RANDOM)}
    for kind in ('normal', 'reduce', 'rnn'):
        cells = {model: pd.DataFrame([one[kind] for one in some if one[kind]]).fillna(0) for model, some in counted.items()}
        cells = {model: edges for model, edges in cells.items() if len(edges)}
        shares = pd.DataFrame({model: edges.sum() / edges.to_numpy().sum() for model, edges in cells.items()}).fillna(0)
        rows = [[name, *map(percent, row)] for name, *row in shares.sort_values([*cells][:1], ascending=False).itertuples()]
        yield table([f'{kind} cell', *cells], [*rows, ['*shared by two cells*', *(overlap(x) for x in cells.values())]])
    yield OF_OPERATIONS


def overlap(edges: pd.DataFrame) -> str:
    """Mean over pairs of cells of the share of edges that both have; edges: a row per cell, a column per operation."""
    rows = edges.to_numpy()
    shares = [np.minimum(a, b).sum() / max(1, a.sum(), b.sum()) for i, a in enumerate(rows) for b in rows[:i]]
    return percent(np.mean(shares)) if shares else 'one cell only'


def pairs(some) -> str:
    """(seed, fold) pairs -> 'seed 0 folds 1 3; seed 1 fold 2'"""
    folds = defaultdict(list)
    for seed, fold in some:
        folds[seed].append(fold)
    return '; '.join(f'seed {seed} fold{"s" * (len(there) > 1)} {" ".join(map(str, there))}' for seed, there in folds.items())


def table(header: list, rows: list) -> str:
    return '\n'.join('| ' + ' | '.join(map(str, row)) + ' |' for row in [header, ['---'] * len(header), *rows])


def spread(mean_sd, form: str = '.1f', scale: float = 100.) -> str:
    """(mean, sd) -> '71.2 ± 1.3'; '' for None or nan."""
    mean, sd = mean_sd or (np.nan, np.nan)
    return '' if np.isnan(mean) else f'{scale * mean:{form}}' + ('' if np.isnan(sd) else f' ± {scale * sd:{form}}')


def cell(row, name: str, form: str = '.1f', scale: float = 100.) -> str:
    return spread((row[name], row[f'{name}_sd']), form, scale)


def minutes(row) -> str:
    """'2.7 ± 0.6 search + 1.9 ± 0.4'"""
    search = cell(row, 'search_minutes', '.1f', 1)
    return f'{search} search + ' * bool(search) + cell(row, 'minutes', '.1f', 1)


def difference(row, name: str) -> list[str]:
    """Cells of (difference, low, high, p)."""
    return [signed(row[name][0]), between(*row[name][1:3]), p_value(row[name][3])]


def seeds(row) -> str:
    return row['seeds'] + (f' ({row["seeds_left_out"]} left out)' if row['seeds_left_out'] else '')


def count(n: int) -> str:
    return f'{n} speaker{"s" * (n > 1)}'


def named(folds: list[int]) -> str:
    return f'Fold{"s" * (len(folds) > 1)} {", ".join(map(str, folds))}'


def percent(x: float) -> str:
    return f'{round(100 * x, 1) + 0.:.1f}'  # no -0.0


def signed(x: float) -> str:
    return f'{round(100 * x, 1) + 0.:+.1f}'


def between(low: float, high: float) -> str:
    return 'too few speakers' if np.isnan(low) else f'{percent(low)} to {percent(high)}'


def p_value(p: float) -> str:
    return '< 0.001' if p < .001 else f'{p:.3f}'
