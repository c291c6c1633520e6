"""What a report says of a search, of a retraining and of an experiment, as blocks of html_page.py."""
import csv
import json
import math
from pathlib import Path

import numpy as np
import significance as sig
from html_page import from_markdown
from run_folder import RunFolder

import genotypes as gt
from config import RANDOM, UserError, from_csv_cell
from datasets.scoring import plot_confusion, recalls
from models import charts
from models.board import by_speaker
from models.visualize import TITLES, plot, plot_alphas

SIDE_BY_SIDE = 3  # finalists whose cells are drawn
HIDDEN = {'not_used', 'resume', 'overwrite'}


def blocks_of(path: Path) -> list:
    """UserError if the folder is neither a run nor an experiment."""
    if (path / 'runs.csv').exists() or (path / 'plan.json').exists():
        return experiment(path)
    run = RunFolder(path)
    if not (run.settings or run.results or (path / 'genotype.json').exists()):
        raise UserError(f'{path}: no run and no experiment; name a folder such as runs/search/NAME, runs/augment/NAME or '
                        'runs/cv/NAME')
    try:
        return search(run) if run.program == 'search' else retraining(run)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f'{path}: a file of this run is damaged or was not written by these programs ({error!r})') from None


def search(run: RunFolder) -> list:
    history, record = run.history, run.json('genotype.json')
    chance = chance_of(record)
    genotype = genotype_of(record.get('genotype') or (history[-1].get('genotype') if history else None))
    tree = run.json('candidates.json')
    blocks = [('title', f'Search {run.name}'), ('verdict', search_verdict(run, chance, tree)), *warnings_of(run)]
    blocks += [('note', f'The {TITLES[kind]} has collapsed: most of its edges are skip connections.')
               for kind in (gt.collapsed(genotype) if genotype else ())]
    blocks += curves(history, chance)
    if genotype:
        blocks += [('h', 'Cells'), ('figure', 'cells', plot(genotype)), ('pre', gt.to_str(genotype))]
    blocks += candidates(tree)
    operations = record.get('operations') or {}
    for kind, nodes in (history[-1].get('alpha') or {}).items() if history else ():
        names = operations.get('rnn' if kind == 'rnn' else 'cnn')
        if not names or len(names) != len(nodes[0][0]):
            continue
        gene = getattr(genotype, kind) if genotype and not tree else None
        blocks += [('h', f'Alphas of the {TITLES[kind]}'), ('figure', f'alphas of {kind}', plot_alphas(nodes, names, gene)),
                   ('figure', f'operations of {kind}', charts.leading([row['alpha'][kind] for row in history], names))]
    return blocks + about(run, record)


def search_verdict(run, chance, tree) -> str:
    epochs, total = len(run.history), run.settings.get('epochs', '?')
    where = f'{run.settings.get("dataset")}, fold {run.settings.get("fold")}, seed {run.settings.get("seed")}'
    if tree.get('winner'):
        return f'The search on {where} chose the best of {len(tree.get("finalists", []))} retrained candidates.'
    if not run.history:
        return f'The search on {where} has no complete epoch yet.'
    ua, level = 100 * run.history[-1]['dev']['ua'], f' (chance {100 * chance:.1f})' if chance else ''
    done = f'after {epochs} epochs' if run.state == 'finished' else f'{run.state} after {epochs} of {total} epochs'
    return f'The search on {where}, {done}, has a supernet with dev UA {ua:.1f}%{level}.'


def candidates(tree: dict) -> list:
    """The tournament, from what candidates.json holds."""
    rows = [row for row in tree.get('finalists', []) if isinstance(row, dict)]
    if not rows:
        return []

    def last(row):
        found = [one for one in row.get('trainings') or row.get('rungs') or [] if isinstance(one, dict)]
        return max(found, key=lambda one: one.get('epochs') or 0, default={})
    def above(loss):
        return math.inf if loss is None else loss  # that of a training that diverged
    rows.sort(key=lambda row: (-(last(row).get('epochs') or 0), above(last(row).get('loss')), above(row.get('score'))))
    scored = tree.get('scores') or []
    lines = [[place, 'yes' if row.get('genotype') == tree.get('winner') else '', number(row.get('score')),
              '; '.join(f'{one.get("epochs")} epochs: loss {number(one.get("loss"))}, UA {percent(one.get("ua"))}'
                        for one in row.get('trainings') or row.get('rungs') or [] if isinstance(one, dict)),
              f'{row["parameters"]:,}' if isinstance(row.get('parameters'), int) else '', operations_of(row)]
             for place, row in enumerate(rows, 1)]
    many = f'{len(scored)} candidates were scored in the supernet; ' if scored else ''
    blocks = [('h', 'Candidates and tournament'),
              ('p', f'{many}{len(rows)} were retrained. Scores and losses are on the dev speakers; lower is better.'),
              ('table', ['', 'chosen', 'score in the supernet', 'retrained', 'parameters', 'operations'], lines)]
    if figure := charts.tournament(rows, tree.get('winner')):
        blocks.append(('figure', 'learning curves of the candidates', figure))
    for place, row in enumerate(rows[:SIDE_BY_SIDE], 1):
        if genotype := genotype_of(row.get('genotype')):
            blocks.append(('figure', f'candidate {place}', plot(genotype, f'candidate {place}')))
    return blocks


def operations_of(row) -> str:
    genotype, counts = genotype_of(row.get('genotype')), row.get('operations') or row.get('ops')
    counts = gt.op_counts(genotype) if genotype else counts if isinstance(counts, dict) else {}
    texts = {kind: ', '.join(f'{n} {name}' for name, n in some.items()) for kind, some in counts.items() if some}
    return '; '.join(f'{kind}: {text}' for kind, text in texts.items())


def retraining(run: RunFolder) -> list:
    found = run.results
    what = found.get('model') or run.settings.get('model')
    blocks = [('title', f'Network {run.name}')]
    if not found:
        blocks += [('verdict', f'The training is {run.state} after {len(run.history)} of {run.settings.get("epochs")} epochs.')]
        return blocks + warnings_of(run) + curves(run.history, None) + about(run, {})
    predictions = read_predictions(run.path / 'predictions.csv')
    chance, labels = chance_of(found), found['labels']
    drawn = run.settings.get('genotype') == RANDOM
    name = f'The {what}' if not found.get('genotype') else 'The random network' if drawn else \
        'The searched network' if found.get('search') else 'The network of a genotype'
    interval, n = interval_of(predictions, labels), len(found.get('test_speakers', []))
    unseen = '' if any(found.get(f'{what}_heard_test_speakers') for what in ('search', 'init')) else 'unseen '
    blocks += [('verdict', f'{name} ({found.get("n_params", 0):,} parameters) reaches UA {percent(found["ua"])}% (chance '
                f'{percent(chance)}{interval}) on {found["n_test"]} utterances of {n} {unseen}speaker{"s" * (n != 1)} of '
                f'{found.get("dataset")}.'), *warnings_of(run)]
    blocks += [('table', ['', 'test', 'chance'], [
        ['UA, %', percent(found['ua']), percent(chance)],
        ['WA, %', percent(found['wa']), percent((found.get('chance') or {}).get('wa'))],
        ['macro F1, %', percent(found.get('macro_f1')), '']]), *curves(run.history, chance), ('h', 'Test')]
    if predictions:
        y, guess = (np.array([labels.index(row[c]) for row in predictions]) for c in ('label', 'predicted'))
        of_class, of_speaker = recalls(y, guess, labels), by_speaker(y, guess, [row['speaker'] for row in predictions])
        panels = {'recall of each class, %': of_class, 'UA of each test speaker, %': of_speaker}
        blocks += [('figure', 'confusion', plot_confusion(y, guess, labels)),
                   ('figure', 'recalls', charts.bars(panels, chance)),
                   ('table', ['class', 'recall, %', 'utterances'], [[a, percent(b), n] for a, (b, n) in of_class.items()]),
                   ('table', ['speaker', 'UA, %', 'utterances'], [[a, percent(b), n] for a, (b, n) in of_speaker.items()]),
                   *hardest(predictions)]
    if genotype := genotype_of(found.get('genotype')):
        blocks += [('h', 'Cells'), ('figure', 'cells', plot(genotype)), ('pre', gt.to_str(genotype))]
    return blocks + about(run, found)


def hardest(predictions) -> list:
    rows = [(float(row[f'p_{row["label"]}']), row) for row in predictions if f'p_{row["label"]}' in row]
    rows = sorted(rows, key=lambda pair: pair[0])[:10]
    return [('h', 'Hardest utterances'), ('table', ['file', 'speaker', 'class', 'taken for', 'probability of its class'], [
        [row['path'], row['speaker'], row['label'], row['predicted'], f'{p:.3f}'] for p, row in rows])] if rows else []


def interval_of(predictions, labels) -> str:
    """', 95% interval over speakers 58.1 to 70.2'; of fewer than FEW speakers an interval would say nothing."""
    classes = ([labels.index(row[name]) for row in predictions] for name in ('label', 'predicted'))
    _, ((low, *_), (high, *_)) = sig.of_predictions([row['speaker'] for row in predictions], *classes, len(labels))
    return ', too few speakers for an interval' if np.isnan(low) else \
        f', 95% interval over speakers {percent(low)} to {percent(high)}'


def experiment(path: Path) -> list:
    import figures
    import table
    import table_text
    results, parts, clean = table.analyse(path)
    pictures = figures.make(results, parts[0][1]) if parts[0][1] else {}
    verdict, *rest = from_markdown(table_text.page(results, parts, clean, [*pictures]), pictures)
    return [('title', f'Experiment {results.name}'), ('verdict', verdict[1]), *rest[1:]]


def curves(history, chance) -> list:
    if not history:
        return []
    figure = charts.lines(charts.curves(history, chance), [row.get('epoch', i) for i, row in enumerate(history, 1)])
    layers = history[-1].get('layers')
    return [('h', 'Curves'), ('figure', 'curves', figure),
            *([('figure', 'weights of the layers', charts.layers(layers))] if layers else [])]


def warnings_of(run) -> list:
    found = []
    for what, did, there in (('search', 'the search used test speakers', run.results.get('genotype')),
                             ('init', 'the network of --init was trained on test speakers', run.results.get('init'))):
        heard = run.results.get(f'{what}_heard_test_speakers')
        if heard:
            found.append(('note', f'**{did.capitalize()}: {" ".join(map(str, heard))}.** The scores are not '
                          'speaker-independent.'))
        elif heard is None and there:
            found.append(('note', f'**It is not known whether {did}.**'))
    if run.results.get('normalise') == 'speaker':
        found.append(('note', 'Every speaker was normalised by all of their recordings, test speakers too. No label was used.'))
    return found + ([('note', f'The run failed: {run.reason}')] if run.state == 'failed' else [])


def about(run, record) -> list:
    """Speakers, settings, versions, command."""
    origin = {**(record.get('search') or {}), **record}
    speakers = [[part, ' '.join(map(str, origin[f'{part}_speakers']))] for part in ('train', 'dev', 'test')
                if origin.get(f'{part}_speakers')]
    blocks = [('h', 'Speakers'), ('table', ['set', 'speakers'], speakers)] if speakers else []
    blocks += [('h', 'Settings'), ('table', ['setting', 'value'], [
        [name, value] for name, value in run.settings.items() if name not in HIDDEN])]
    made = record.get('provenance') if isinstance(record.get('provenance'), dict) else {}
    made = {**{'device': record.get('device')}, **{name: value for name, value in made.items() if name != 'command'}}
    rows = [[name, value] for name, value in made.items() if value is not None]
    blocks += [('h', 'Made with'), ('table', ['', ''], rows)] if rows else []
    command = record.get('command') or (record.get('provenance') or {}).get('command')
    command = command if isinstance(command, str) or not command else ' '.join(command)
    command = f'python {command}' if command and command.startswith(('search.py', 'augment.py')) else command
    return blocks + ([('h', 'Command'), ('pre', command)] if command else [])


def chance_of(record: dict) -> float | None:
    chance = record.get('chance')
    if isinstance(chance, dict):
        return chance.get('ua')
    protocol = (record.get('search') or {}).get('protocol')
    classes = protocol.get('classes') if isinstance(protocol, dict) else None
    return 1 / len(classes) if classes else None


def genotype_of(written) -> gt.Genotype | None:
    """A genotype in any written form; None if it cannot be read."""
    try:
        return gt.load(written if isinstance(written, str) else json.dumps(written))[0] if written else None
    except (ValueError, TypeError):
        return None


def read_predictions(path: Path) -> list[dict]:
    try:
        with open(path, newline='', encoding='utf-8') as f:
            return [{name: from_csv_cell(cell or '') for name, cell in row.items()} for row in csv.DictReader(f)]
    except OSError:
        return []


def percent(x) -> str:
    return '' if x is None else f'{100 * x:.1f}'


def number(x) -> str:
    return f'{x:.3f}' if isinstance(x, float) else '' if x is None else str(x)
