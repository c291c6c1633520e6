"""Draw the cells of a genotype as graphs, or compare two genotypes edge by edge.

    python scripts/draw_genotype.py runs/search/NAME -o cells.svg
    python scripts/draw_genotype.py A.json B.json -o differences.svg
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import genotypes as gt  # noqa: E402
import utils  # noqa: E402
from config import UserError  # noqa: E402
from models.visualize import DIFFERENCES, caption, plot, plot_comparison  # noqa: E402

ENDINGS = ('.png', '.svg', '.pdf')
PICTURES = (*ENDINGS, '.jpg', '.jpeg', '.eps', '.gif')  # no genotype has such a name


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('genotype', help='genotype.json, results.json, a folder of search.py, a text "Genotype(...)" or a file '
                        'with one')
    parser.add_argument('other', nargs='?', metavar='genotype2', help='a second one, to compare; or the file to write')
    parser.add_argument('-o', '--output', metavar='FILE', help='file to write: .png, .svg or .pdf (default: genotype.png)')
    parser.add_argument('--title', help='title; by default the corpus, fold, seed and UA, if the file names them')
    args = parser.parse_args(argv)
    is_picture = args.other and Path(args.other).suffix.lower() in PICTURES
    if is_picture and args.output:
        raise UserError(f'{args.other} and --output {args.output}: name the picture once')
    picture = Path(args.output or (args.other if is_picture else 'genotype.png'))
    if picture.suffix.lower() not in ENDINGS:
        raise UserError(f'{picture}: the name of the picture must end in {", ".join(ENDINGS)}')
    try:
        genotype, record = gt.load(args.genotype)
        if args.other and not is_picture:
            other, _ = gt.load(args.other)
            names = [where if len(where) < 40 else letter for where, letter in ((args.genotype, 'A'), (args.other, 'B'))]
            figure = plot_comparison(genotype, other, names)
        else:
            other, figure = None, plot(genotype, caption(record) if args.title is None else args.title)
        figure.savefig(picture, dpi=110)
    except ValueError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f'{picture}: {error.strerror}') from None
    print(gt.to_str(genotype) if other is None else differences(genotype, other))


def differences(a: gt.Genotype, b: gt.Genotype) -> str:
    """A line per edge: 'normal node 2:  sep_conv_3x3 from 0 | skip_connect from 0   another operation'."""
    def edge(pair):
        return f'{pair[0]} from {pair[1]}' if pair else '-'
    rows = [(f'{kind} node {node}:', edge(x), edge(y), DIFFERENCES[word][2])
            for kind, found in gt.compare(a, b).items() for node, x, y, word in found]
    return '\n'.join(f'{where:<15} {x:<22} | {y:<22} {word}' for where, x, y, word in rows)


if __name__ == '__main__':
    utils.cli(main)
