"""Charts as matplotlib Figures: curves over epochs, leading operations, recalls, a tournament, weights of layers, features."""
import numpy as np
from matplotlib.figure import Figure

PALETTE = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00')  # Okabe and Ito: told apart by everyone
DASHES = ('-', '--', '-.', (0, (1, 1)))
CHANCE = 'chance'  # a series of this name is a dotted black line
LEADING = 3  # operations per edge that get a colour


def lines(panels: dict, epochs: list, width: float = 4.6, height: float = 3.2, columns: int = 2,
          font: int = 9) -> Figure:
    """A panel per title: {title: {name: a value per epoch, None where there is none}}. Panels without values are left out."""
    panels = {title: {name: values for name, values in series.items() if any(v is not None for v in values)}
              for title, series in panels.items()}
    panels = {title: series for title, series in panels.items() if {*series} - {CHANCE}}
    columns = min(columns, max(1, len(panels)))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(width * columns, height * max(1, rows)), layout='constrained')
    for i, (title, series) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, i)
        for k, (name, values) in enumerate(series.items()):
            look = dict(color='black', ls=':', lw=1) if name == CHANCE else dict(
                color=PALETTE[k % len(PALETTE)], ls=DASHES[k % len(DASHES)], marker='o', ms=font / 3)
            axes.plot(epochs, [np.nan if v is None else v for v in values], label=name, **look)
        axes.set_xlabel('epoch', fontsize=font)
        axes.set_ylabel(title, fontsize=font)
        axes.tick_params(labelsize=font)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=.3)
        axes.set_title(' ', fontsize=font)  # room for the legend, which may be wider than the panel
        axes.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=font, columnspacing=.8,
                    handletextpad=.3, borderpad=0, handlelength=1.2).set_in_layout(False)
    return figure


def curves(history: list[dict], chance: float | None = None) -> dict:
    """Panels for `lines` of a run's metrics.jsonl: UA in percent, loss, and of a search entropy, skips and time."""
    def column(*path, scale=1.):
        found = []
        for row in history:
            for key in path:
                row = row.get(key) if isinstance(row, dict) else None
            found.append(scale * row if isinstance(row, int | float) else None)
        return found
    parts = ('train', 'dev')
    kinds = [kind for kind in (history[-1].get('entropy') or {})] if history else []
    return {
        'UA, %': {**{part: column(part, 'ua', scale=100) for part in parts},
                  **({CHANCE: [100 * chance] * len(history)} if chance else {})},
        'loss': {**{part: column(part, 'loss') for part in parts}, 'alpha': column('alpha_loss')},
        'entropy of alpha, nats': {kind: column('entropy', kind) for kind in kinds},
        'chosen skip connections': {kind: [row['ops'][kind].get('skip_connect', 0) for row in history if 'ops' in row]
                                    for kind in kinds},
        'learning rate': {'lr': column('lr')},
        'time per epoch, s': {'seconds': column('seconds')}}


def leading(history: list, primitives, title: str | None = None) -> Figure:
    """softmax(alpha) of every edge over the epochs, a panel per edge; the operations that lead at the end are named.

    history: for each epoch a list over nodes of (n_inputs, n_ops) nested lists.
    """
    weights = np.stack([np.concatenate([*map(np.asarray, nodes)]) for nodes in history])  # (n_epochs, n_edges, n_ops)
    edges = [(source, 2 + i) for i, node in enumerate(history[0]) for source in range(len(node))]
    columns = min(3, len(edges))
    rows = -(-len(edges) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.1 * rows + .4), layout='constrained')
    if title:
        figure.suptitle(title)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    epochs = np.arange(1, len(history) + 1)
    for axes, (source, node), w in zip(grid.flat, edges, weights.transpose(1, 2, 0)):
        order = np.argsort(-w[:, -1], kind='stable')
        axes.plot(epochs, 100 * w[order[LEADING:]].T, color='#cccccc', lw=.8)
        for k, op in enumerate(order[:LEADING]):
            axes.plot(epochs, 100 * w[op], color=PALETTE[k], ls=DASHES[k], lw=1.8, label=primitives[op])
        axes.set_title(f'{source} \N{RIGHTWARDS ARROW} {node}', fontsize=9, loc='left')
        axes.legend(fontsize=7, loc='lower right', bbox_to_anchor=(1.02, .98), ncols=3, frameon=False, handlelength=1.4,
                    columnspacing=.6, handletextpad=.3, borderpad=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in [*grid.flat][len(edges):]:
        axes.axis('off')
    figure.supylabel('softmax(alpha), %', fontsize=9)
    figure.supxlabel('epoch', fontsize=9)
    return figure


def bars(groups: dict, chance: float | None = None, width: float = 4.8, font: int = 9) -> Figure:
    """A panel of horizontal bars per group: {title: {name: (share from 0 to 1, n)}}. The dotted line is chance."""
    longest = max(len(rows) for rows in groups.values())
    figure = Figure(figsize=(width * len(groups), (1.2 + .34 * longest) * font / 9), layout='constrained')
    for i, (title, rows) in enumerate(groups.items(), 1):
        axes = figure.add_subplot(1, len(groups), i)
        places = range(len(rows))
        axes.barh(places, [100 * share for share, _ in rows.values()], color=PALETTE[0], height=.7)
        for y, (share, n) in zip(places, rows.values()):
            axes.text(100 * share + 1, y, f'{100 * share:.0f}  (n = {n})', va='center', fontsize=font)
        axes.tick_params(labelsize=font)
        axes.set_yticks(places, [name.replace('$', r'\$') for name in rows])
        axes.set_title(title, fontsize=font + 1)
        axes.set(xlim=(0, 145), xticks=range(0, 101, 20))
        axes.invert_yaxis()
        if chance:
            axes.axvline(100 * chance, color='black', ls=':', lw=1)
    return figure


def tournament(rows: list[dict], winner: str | None) -> Figure | None:
    """Training loss of each epoch, and the dev loss after the last one as a cross. None if no training has a curve.

    rows: finalists of candidates.json, in the order of their numbers. Trainings shorter than the longest are the first rung:
    dashed, and grey if the network has no other.
    """
    trainings = [(place, row.get('genotype') == winner, one) for place, row in enumerate(rows, 1)
                 for one in row.get('trainings') or [] if one.get('train_losses')]
    if not trainings:
        return None
    longest = max(one['epochs'] for *_, one in trainings)
    last = list(dict.fromkeys(place for place, _, one in trainings if one['epochs'] == longest))
    if len(last) > len(PALETTE):  # too many to tell apart: the winner alone has a colour
        last = [place for place, chosen, _ in trainings if chosen][:1]
    figure = Figure(figsize=(6.4, 4.2), layout='constrained')
    axes = figure.add_subplot(xlabel='epoch', ylabel='log-loss: training (lines), dev (crosses)')
    for place, chosen, one in trainings:
        colour = PALETTE[last.index(place) % len(PALETTE)] if place in last else '#bbbbbb'
        final = one['epochs'] == longest
        name = f'candidate {place}' + ', chosen' * chosen if place in last and final else 'others' if final else 'first rung'
        axes.plot(range(1, len(one['train_losses']) + 1), one['train_losses'], '-' if final else '--', color=colour,
                  lw=1 + 1.5 * (final and chosen), label=name)
        if one.get('loss') is not None:
            axes.plot(one['epochs'], one['loss'], 'x', color=colour, ms=7 + 3 * (final and chosen),
                      label='dev, after the last epoch')
    axes.xaxis.get_major_locator().set_params(integer=True)
    labels = dict(zip(*reversed(axes.get_legend_handles_labels())))
    axes.legend(labels.values(), labels, fontsize=8)
    return figure


def layers(weights: dict[str, float]) -> Figure:
    """Bars of the weights of an encoder's layers, {number: weight}. The dotted line is where all are equal."""
    figure = Figure(figsize=(3.5, 2.15), layout='constrained')
    axes = figure.add_subplot()
    axes.bar(weights.keys(), [100 * weight for weight in weights.values()], color=PALETTE[0])
    axes.axhline(100 / len(weights), color='black', ls=':', lw=1)
    axes.set_xlabel('layer', fontsize=7)
    axes.set_ylabel('weight, %', fontsize=7)
    axes.tick_params(labelsize=7)
    return figure


def features(x: np.ndarray, seconds: float, title: str, row: str = 'band') -> Figure:
    """The features (F, T) of one utterance as the network sees them. seconds: its length. row: what a row is."""
    figure = Figure(figsize=(3.5, 2.15), layout='constrained')
    axes = figure.add_subplot()
    axes.imshow(x, origin='lower', aspect='auto', cmap='magma', extent=(0, seconds, 0, len(x)))
    axes.set_title(title.replace('$', r'\$'), fontsize=7)
    axes.set_xlabel('s', fontsize=7)
    axes.set_ylabel(row, fontsize=7)
    axes.tick_params(labelsize=7)
    return figure
