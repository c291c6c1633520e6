"""Everything that search.py and augment.py show in TensorBoard. Nothing here can end a run.

Groups of tags carry numbers, so that what matters comes first. Numbers are drawn after every epoch, pictures at most PICTURES
times. What is drawn depends on the run alone, not on the clock: a run that was killed and resumed shows the same.
"""
import functools
import math
import re
import shlex
import sys

import numpy as np
import torch
from tensorboardX.summary import hparams

import genotypes as gt
from config import SAMPLE_RATE, UserError, escape_markdown
from datasets import features, scoring
from datasets.stored import columns
from models import charts
from models.visualize import TITLES, plot, plot_alphas

PICTURES = 30  # of one kind in a run
HARDEST = 8  # test utterances that can be heard
SECONDS = 10  # at most this much of them
NOW, UA, LOSS, CONFUSION, RECALL, ALPHA, CELLS, PROGRESS, SUMMARY = (
    '0_now', '1_UA', '2_loss', '2_confusion', '3_recall', '3_alpha', '4_cells', '5_progress', '7_summary')
GROUPS = {'ua': UA, 'loss': LOSS, 'wa': '6_WA', 'macro_f1': '6_macro_F1'}  # of the scores of a set
LAYERS = '9_layers'
NAMES = {'alpha_loss': f'{LOSS}/alpha', 'lr': f'{PROGRESS}/lr', 'seconds': f'{PROGRESS}/seconds',
         'core_seconds': f'{PROGRESS}/core_seconds'}
SIZES = ('epochs', 'batch_size', 'init_channels', 'layers', 'n_nodes', 'rnn_layers', 'rnn_nodes', 'rnn_channels')
TESTED, BEST, CHANCE = f'{SUMMARY}/test_UA', f'{SUMMARY}/best_dev_UA', f'{SUMMARY}/chance_UA'


def tag(group: str, name: str | None) -> str:
    """The tag of a number of a row of metrics.jsonl."""
    if group == 'entropy':
        return f'{ALPHA}/entropy_{name}'
    if group == 'layers':
        return f'{LAYERS}/{name}'
    return f'{GROUPS[name]}/{group}' if name in GROUPS else NAMES.get(group, f'8_{group}/{name}' if name else f'8_{group}')


def harmless(function):
    """Only the process that writes calls the function, and an exception becomes a line in the log."""
    @functools.wraps(function)
    def call(run, *args, **kwargs):
        if not run.writes:
            return
        try:
            function(run, *args, **kwargs)
        except Exception as error:
            run.logger.warning('WARNING: a part of TensorBoard, %s, could not be written (%s: %s)', function.__name__,
                               type(error).__name__, error)
    return call


def due(run) -> bool:
    """Whether pictures are drawn of the last epoch."""
    epoch, epochs = run.history[-1]['epoch'], run.config.epochs
    return epoch == epochs or epoch % math.ceil(epochs / PICTURES) == 0


@harmless
def begin(run, data, n_params: int, sizes=None):
    """What the run is, its row in the HParams tab, and the layout of the Custom Scalars tab.

    sizes: has those of the network as attributes, if a genotype decides them instead of the settings.
    """
    run.tag = tag
    run.chance = 1 / len(data.labels)
    config = run.config
    if run.resumed:
        return  # all this is there
    model = 'search' if run.program == 'search' else getattr(config, 'model', 'svm')
    if model == 'genotype':
        model = 'random genotype' if config.genotype == 'random' else 'searched network'
    what = 'Search for an architecture' if model == 'search' else f'Training of a {model}'
    classes = ', '.join(data.labels)
    run.writer.add_text('0_about', '\n\n'.join([
        f'## {what}', f'**{config.dataset}**, fold {config.fold}, seed {config.seed}, {n_params:,} parameters; '
        f'classes: {escape_markdown(classes)} (chance of UA: {100 * run.chance:.1f}%)',
        *(f'{part} speakers: {escape_markdown(" ".join(getattr(data.fold, part)))}' for part in ('train', 'dev', 'test')),
        'Command:', '    ' + shlex.join(['python', *sys.argv]).replace(' --', ' \\\n        --'), f'Folder: `{run.path}`']), 0)
    # The first five columns are those that the tab shows; fold and seed are texts, so that they can be chosen there.
    session = {'model': model, 'corpus': config.dataset, 'fold': str(config.fold), 'seed': str(config.seed),
               'parameters': n_params, **{name: getattr(sizes or config, name) for name in SIZES if hasattr(config, name)}}
    session = {f'{i:02}_{name}': value for i, (name, value) in enumerate(session.items(), 1)}
    for summary in hparams(session, {TESTED: 0., BEST: 0.}):
        run.writer._get_file_writer().add_summary(summary)  # its own add_hparams would make a second run
    layout = {'UA': {'UA': ['Multiline', [f'{UA}/.*', CHANCE]]},
              'loss': {'loss': ['Multiline', [f'{LOSS}/.*']]}}
    if run.program == 'search':
        layout['alpha'] = {name: ['Multiline', [f'{ALPHA}/{name}_.*']] for name in ('entropy', 'skips')}
    else:
        layout['recall'] = {'recall of dev': ['Multiline', [f'{RECALL}/dev_.*']]}
    layout['progress'] = {'lr': ['Multiline', [f'{PROGRESS}/lr$']],
                          'seconds': ['Multiline', [f'{PROGRESS}/(core_)?seconds$']]}
    if run.program == 'search':
        for kind, n_nodes in (('normal', config.n_nodes), ('reduce', config.n_nodes),
                              ('rnn', config.rnn_nodes if config.rnn_layers else 0)):
            layout[f'operations of each edge, {TITLES[kind]}'] = {
                f'{source} to {2 + i}': ['Multiline', [f'9_edges_{kind}/{source}-{2 + i}/.*']]
                for i in range(n_nodes) for source in range(2 + i)}
    run.writer.add_custom_scalars({title: panels for title, panels in layout.items() if panels})


@harmless
def search_epoch(run, net, genotype):
    """The last epoch of a search: operation counts, alphas, cells."""
    row, writer, epoch = run.history[-1], run.writer, run.history[-1]['epoch']
    best = max(past['dev']['ua'] for past in run.history)
    writer.add_scalar(CHANCE, run.chance, epoch)
    writer.add_scalar(BEST, best, epoch)
    for kind in net.kinds():
        counts, primitives = row['ops'][kind], net.primitives_of(kind)
        writer.add_scalar(f'{ALPHA}/skips_{kind}', counts.get(gt.SKIP, 0), epoch)
        for name in primitives:
            if name not in (gt.NONE, gt.SKIP):
                writer.add_scalar(f'8_operations_{kind}/{name}', counts.get(name, 0), epoch)
        for i, node in enumerate(row['alpha'][kind]):
            for source, weights in enumerate(node):
                for name, weight in zip(primitives, weights):
                    writer.add_scalar(f'9_edges_{kind}/{source}-{2 + i}/{name}', weight, epoch)
    if not due(run):
        return
    draw_curves(run)
    run.draw(f'{CELLS}/genotype', lambda: plot(genotype, title(run)), epoch)
    for place, kind in enumerate(net.kinds(), 3):
        run.draw(f'{NOW}/{place}_alpha_{kind}', functools.partial(
            plot_alphas, row['alpha'][kind], net.primitives_of(kind), getattr(genotype, kind),
            f'{TITLES[kind]}, epoch {epoch}', True), epoch)


def draw_curves(run):
    """Two pictures that tell how it goes, as small as TensorBoard shows them, since it shrinks larger ones badly."""
    panels, epochs = charts.curves(run.history, run.chance), [row['epoch'] for row in run.history]
    search = run.program == 'search'
    for name, titles in (('1_UA', ('UA, %', 'entropy of alpha, nats' if search else 'loss')),
                         ('2_progress', ('chosen skip connections', 'learning rate', 'time per epoch, s')[not search:])):
        shown = {title: panels[title] for title in titles}
        run.draw(f'{NOW}/{name}', functools.partial(charts.lines, shown, epochs, 4.5 / len(shown), 2.15, 3, font=7), epochs[-1])
    if layers := run.history[-1].get('layers'):
        run.draw(f'{NOW}/6_layers', functools.partial(charts.layers, layers), epochs[-1])


def title(run) -> str:
    """What a picture of the current genotype is of."""
    where = f'{run.config.dataset}, fold {run.config.fold}'
    if not run.history:
        return where
    row = run.history[-1]
    return f'{where}, epoch {row["epoch"]}: dev UA {100 * row["dev"]["ua"]:.1f} of the supernet'


@harmless
def search_result(run, genotype):
    """The last words of a search."""
    best = max(run.history, key=lambda row: row['dev']['ua'], default=None)
    run.writer.add_text('0_result', '\n\n'.join([
        f'{len(run.history)} epochs' + (f'; dev UA {100 * run.history[-1]["dev"]["ua"]:.1f}% after the last one, at best '
                                        f'{100 * best["dev"]["ua"]:.1f}% (epoch {best["epoch"]})' if best else ''),
        *(f'The {TITLES[kind]} has collapsed: most of its edges are skip connections.' for kind in gt.collapsed(genotype)),
        'Genotype:', f'    {gt.to_str(genotype)}']), len(run.history))


@harmless
def network(run, genotype):
    """The cells that are retrained."""
    if genotype and not run.resumed:
        run.draw(f'{CELLS}/genotype', lambda: plot(genotype, f'{run.config.dataset}, fold {run.config.fold}'), 0)


@harmless
def retraining(run, data, probabilities, best: dict):
    """The last epoch of a retraining. probabilities: (n_dev, n_classes), or None without dev. best: epoch and UA."""
    epoch = run.history[-1]['epoch']
    run.writer.add_scalar(CHANCE, run.chance, epoch)
    if probabilities is not None:
        labels, predicted = data.sets['dev'].labels.cpu().numpy(), probabilities.argmax(axis=1)
        run.writer.add_scalar(BEST, best['ua'], epoch)
        for name, (recall, _) in scoring.recalls(labels, predicted, data.labels).items():
            run.writer.add_scalar(f'{RECALL}/dev_{name}', recall, epoch)
        if best['epoch'] == epoch:
            said = f'dev, epoch {epoch}: UA {100 * best["ua"]:.1f}, n = {len(labels)}'
            run.draw(f'{CONFUSION}/dev', functools.partial(scoring.plot_confusion, labels, predicted, data.labels, said, True),
                     epoch)
    if due(run):
        draw_curves(run)


def by_speaker(labels: np.ndarray, predicted: np.ndarray, speakers: list[str]) -> dict:
    """{speaker: (UA, n)}"""
    speakers = np.array(speakers)
    return {name: (scoring.scores(labels[own], predicted[own])['ua'], int(own.sum()))
            for name in sorted({*speakers}) if (own := speakers == name).any()}


@harmless
def test(run, data, probabilities, found: dict, step: int):
    """The scores of the test, in numbers and pictures, and the utterances it was most wrong about.

    probabilities: (n_test, n_classes). found: scores. step: epoch of the network that was tested.
    """
    part = data.sets['test']
    labels, predicted = part.labels.cpu().numpy(), probabilities.argmax(axis=1)
    for name, value in found.items():
        run.writer.add_scalar(f'{SUMMARY}/test_{GROUPS[name][2:]}', value, step)
    if run.history:  # the SVM has no epochs
        draw_curves(run)  # it may have stopped early
    what = f'{run.config.dataset}, fold {run.config.fold}: test UA {100 * found["ua"]:.1f}, n = {len(labels)}'
    run.draw(f'{CONFUSION}/test', lambda: scoring.plot_confusion(labels, predicted, data.labels, what, True), step)
    of_class = scoring.recalls(labels, predicted, data.labels)
    of_speaker = by_speaker(labels, predicted, [u.speaker for u in part.utterances])
    for name, (recall, _) in of_class.items():
        run.writer.add_scalar(f'{RECALL}/test_{name}', recall, step)
    panels = {'recall of each class, %': of_class, 'UA of each test speaker, %': of_speaker}
    run.draw(f'{RECALL}/test', lambda: charts.bars(panels, 1 / len(of_class), 1.75, 6), step)
    rows = [f'|{escape_markdown(name)}|{100 * recall:.1f}|{n}|' for name, (recall, n) in {**of_class, **of_speaker}.items()]
    run.writer.add_text('0_result', '\n'.join([
        f'test UA **{100 * found["ua"]:.1f}%** (chance {100 / len(of_class):.1f}), WA {100 * found["wa"]:.1f}%, macro F1 '
        f'{100 * found["macro_f1"]:.1f}%', '', '|class or speaker|recall or UA, %|utterances|', '|---|---|---|', *rows]), step)
    hardest(run, data, probabilities, step)


def hardest(run, data, probabilities, step: int):
    """The test utterances whose own class got the least probability, as audio and features."""
    part = data.sets['test']
    labels = part.labels.cpu().numpy()
    own = probabilities[np.arange(len(labels)), labels]
    rows = ['|rank|file|speaker|class|taken for|probability of its class|', '|---|---|---|---|---|---|']
    for rank, i in enumerate(np.argsort(own, kind='stable')[:HARDEST], 1):
        u, guess = part.utterances[i], data.labels[probabilities[i].argmax()]
        name = f'4_hardest/{rank}_{re.sub(r"[^-.0-9A-Za-z]", "_", u.label)}_as_{re.sub(r"[^-.0-9A-Za-z]", "_", guess)}'
        cells = rank, u.path, u.speaker, u.label, guess, f'{own[i]:.3f}'
        rows.append('|' + '|'.join(map(escape_markdown, cells)) + '|')
        if (wave := audible(u, run.config)) is not None:
            run.writer.add_audio(name.replace('/', '_audio/'), wave, step, SAMPLE_RATE)
        x, length = picture(part, i, run.config), int(part.lengths[i])
        said = f'{u.label} taken for {guess}; probability of {u.label}: {own[i]:.2f}'
        row = 'channel' if run.config.frames else 'band'
        run.draw(name, functools.partial(charts.features, x, length / run.config.frame_rate, said, row), step)
    run.writer.add_text('0_hardest', '\n'.join(rows), step)


def audible(u, config) -> np.ndarray | None:
    """The first SECONDS of an utterance, at SAMPLE_RATE; None where frames stand for audio that cannot be read."""
    try:
        return np.clip(features.load_audio(u)[:SECONDS * SAMPLE_RATE], -1, 1)
    except UserError:
        if config.features == 'frames':
            return None
        raise


def picture(part, i: int, config) -> np.ndarray:
    """Features (F, T) of an utterance of a set; of frames (D, T), the mean over layers after normalisation."""
    begin, length = int(part.offsets[i]), int(part.lengths[i])
    if not config.frames:
        return part.frames[:, begin:begin + length].float().cpu().numpy()
    t = torch.arange(begin, begin + length, device=part.device if part.resident else 'cpu')
    x = (columns(part.frames, t).to(part.device).float() - part.mean[:, 0]) / part.std[:, 0]  # (L * D, T)
    return x.unflatten(0, config.frames).mean(dim=0).cpu().numpy()
