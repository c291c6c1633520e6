import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

import genotypes as gt
from config import UserError
from models.visualize import DIFFERENCES, TITLES, caption, plot, plot_alphas, plot_comparison

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'scripts'))
import draw_genotype  # noqa: E402

TEXTS = {0: '$c_{k-2}$', 1: '$c_{k-1}$'}
SIZES = ((3, 2), (4, 4), (1, 1), (4, 0), (2, 3))  # nodes of CNN and SeqNN cells
GENOTYPES = [gt.draw(np.random.default_rng(seed), *nodes) for seed, nodes in enumerate(SIZES)]


def rendered(figure):
    FigureCanvasAgg(figure).draw()
    return figure


def distance(point, corners):
    """From a point to the line through `corners`, (n, 2), in the same units."""
    begin, step = corners[:-1], np.diff(corners, axis=0)
    along = ((point - begin) * step).sum(axis=1) / np.maximum((step ** 2).sum(axis=1), 1e-12)
    return np.linalg.norm(begin + np.clip(along, 0, 1)[:, None] * step - point, axis=1).min()


def parts(axes):
    """(labels, arrows of operations as corners in pixels, {text: centre in pixels} of the states), in the order drawn."""
    labels = [text for text in axes.texts if text.get_gid() == 'label']
    arrows = [patch.get_path().transformed(axes.transData).to_polygons(closed_only=False)[0]
              for patch in axes.patches if to_hex(patch.get_edgecolor()) != '#cccccc']
    states = {text.get_text(): axes.transData.transform(text.get_position()) for text in axes.texts if text not in labels}
    return labels, arrows, states


@pytest.mark.parametrize('genotype', GENOTYPES)
def test_every_label_is_on_its_own_edge_which_joins_the_states_of_the_genotype(genotype):
    figure = rendered(plot(genotype, 'emodb, fold 1'))
    kinds = [kind for kind in gt.KINDS if getattr(genotype, kind)]
    assert [axes.get_title() for axes in figure.axes] == [TITLES[kind] for kind in kinds]
    for axes, kind in zip(figure.axes, kinds, strict=True):
        labels, arrows, states = parts(axes)
        gene = getattr(genotype, kind)
        assert set(states) == {'$c_{k-2}$', '$c_{k-1}$', '$c_k$', *(str(2 + i) for i in range(len(gene)))}
        edges = [(name, source, 2 + i) for i, node in enumerate(gene) for name, source in node]
        assert [label.get_text() for label in labels] == [name for name, _, _ in edges]
        for label, corners, (_, source, node) in zip(labels, arrows, edges, strict=True):
            box = label.get_window_extent()
            assert distance(np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]), corners) < 1.5  # pixels
            begin = states[TEXTS.get(source, str(source))]
            near = 30 * figure.dpi / 72  # arrows end 14 points from the centre of a state
            assert np.linalg.norm(corners[0] - begin) < near and np.linalg.norm(corners[-1] - states[str(node)]) < near
            others = [place for name, place in states.items() if name not in (str(node), str(source), TEXTS.get(source))]
            assert min(distance(place, corners) for place in others) > 14 * figure.dpi / 72  # no edge behind another state
            assert axes.get_window_extent().contains(*box.min) and axes.get_window_extent().contains(*box.max)


def test_labels_do_not_cover_each_other_or_a_state():
    for axes in rendered(plot(GENOTYPES[0])).axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_titles():
    record = {'search': {'dataset': 'emodb', 'fold': 2, 'seed': 0, 'epochs': 15}, 'network': {}}
    assert caption(record) == 'emodb, fold 2, seed 0'
    assert caption({'ua': .63353, 'dataset': 'ravdess', 'fold': 1, 'search': {'dataset': 'emodb', 'seed': 3}}) == \
        'ravdess, fold 1, seed 3, test UA 63.4'
    assert caption({}) == ''
    assert [text.get_text() for text in plot(GENOTYPES[0], 'emodb, fold 1').texts] == ['emodb, fold 1']
    assert not plot(GENOTYPES[0]).texts


def test_alphas_keep_their_colours_and_frame_what_is_chosen():
    ops = ('sep_conv_3x3', 'skip_connect', 'none')
    nodes = [[[.1, .2, .7], [.6, .3, .1]]]  # one node, two edges
    figures = [plot_alphas(nodes, ops), plot_alphas(nodes, ops, [[('skip_connect', 1)]])]
    for figure, chosen in zip(figures, ([(1, 0), (0, 1)], [(1, 1)])):
        axes = rendered(figure).axes[0]
        assert axes.images[0].get_clim() == (-2., 2.)
        assert np.allclose(2 ** axes.images[0].get_array() / 3, nodes[0])  # relative to the uniform weight
        assert [label.get_text() for label in axes.get_yticklabels()] == [f'{i} \N{RIGHTWARDS ARROW} 2' for i in (0, 1)]
        assert [label.get_text() for label in axes.get_xticklabels()] == [*ops]
        assert [text.get_text() for text in axes.texts] == ['10.0', '20.0', '70.0', '60.0', '30.0', '10.0']
        framed = {(round(x + .47), round(y + .45)) for x, y in (patch.get_xy() for patch in axes.patches)}
        assert framed == {*chosen} == {text.get_position() for text in axes.texts if text.get_gid() == 'chosen'}


def test_the_alphas_of_a_large_cell_are_drawn_for_its_chosen_edges_only():
    nodes = [[[.6, .4]] * (2 + i) for i in range(8)]  # 44 edges
    gene = [[('b', i), ('a', 0)] for i in range(1, 9)]
    assert len(plot_alphas(nodes, ('a', 'b'), gene).axes[0].get_yticks()) == 16


def test_a_comparison_has_a_colour_and_a_stroke_for_every_difference(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a, b = GENOTYPES[0], gt.draw(np.random.default_rng(9), 3, 2)
    figure = rendered(plot_comparison(a, b))
    assert len(figure.axes) == 6 and len({look[:2] for look in DIFFERENCES.values()}) == 4
    drawn = Counter(to_hex(patch.get_edgecolor()) for axes in figure.axes for patch in axes.patches)
    words = Counter(word for rows in gt.compare(a, b).values() for *_, word in rows)
    assert words['only'] and words['operation']
    assert {word: drawn[DIFFERENCES[word][0]] for word in words} == {
        word: n if word == 'only' else 2 * n for word, n in words.items()}
    gt.save('b.json', b, {})
    draw_genotype.main([gt.to_str(a), 'b.json', '-o', 'c.svg'])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == sum(words.values()) and lines[0].startswith('normal node 2:') and Path('c.svg').exists()


def test_draw_genotype_takes_every_form_and_writes_every_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gt.save('g.json', GENOTYPES[0], {'search': {'dataset': 'emodb', 'fold': 1}})
    for argv in (['g.json', '-o', 'a.svg'], ['g.json', 'b.pdf'], [gt.to_str(GENOTYPES[0]), '--output', 'c.png'], ['g.json']):
        draw_genotype.main(argv)
        assert capsys.readouterr().out == gt.to_str(GENOTYPES[0]) + '\n'
    for name, begin in {'a.svg': b'<?xml', 'b.pdf': b'%PDF', 'c.png': b'\x89PNG', 'genotype.png': b'\x89PNG'}.items():
        assert Path(name).read_bytes().startswith(begin)
    mistakes = [(['g.json', 'a.png', '-o', 'b.png'], 'once'), (['g.json', 'a.jpeg'], 'a.jpeg: .*must end in'),
                (['none.json'], 'none.json: no such file'), (['g.json', '-o', 'no/a.png'], 'no/a.png: No such')]
    for argv, wrong in mistakes:
        with pytest.raises(UserError, match=wrong):
            draw_genotype.main(argv)


def test_the_picture_of_the_readme_shows_a_row_of_the_results():
    genotype, record = gt.load(ROOT / 'docs' / 'genotype-emodb.json')
    rows = (ROOT / 'docs' / 'results' / 'emodb-paper' / 'runs.csv').read_text().splitlines()
    row = next(row for row in rows if row.startswith('searched,1,0,'))
    assert gt.to_str(genotype) in row and json.dumps(record['ua']) in row


def test_the_program_needs_no_display():
    out = subprocess.run([sys.executable, 'scripts/draw_genotype.py', '--help'], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0 and '--output' in out.stdout


def test_decisions_outside_the_cells_follow_the_title():
    genotype = gt.draw(np.random.default_rng(0), 2, 1, 'speech', 'speech', space='speech')
    figure = rendered(plot(genotype, 'nemo'))
    title, decisions = figure.get_suptitle().split('\n')
    assert title == 'nemo' and decisions.startswith(f'layers {genotype.network["layers"]}, C {genotype.network["C"]}, ')
    assert 'head' in rendered(plot(genotype)).get_suptitle() and rendered(plot(GENOTYPES[0])).get_suptitle() == ''
    assert caption({'search': None, 'dataset': 'nemo', 'genotype': 'x'}) == 'nemo'  # results.json of a random genotype
