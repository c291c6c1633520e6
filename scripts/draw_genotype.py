"""Draw the cells of a genotype as graphs.

    python scripts/draw_genotype.py runs/search/NAME -o cells.svg
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import genotypes as gt  # noqa: E402
import utils  # noqa: E402
from config import UserError  # noqa: E402
from models.visualize import caption, plot  # noqa: E402

ENDINGS = ('.png', '.svg', '.pdf')


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('genotype', help='genotype.json, results.json, a folder of search.py, a text "Genotype(...)" or a file '
                        'with one')
    parser.add_argument('picture', nargs='?', help='file to write, the same as --output')
    parser.add_argument('-o', '--output', metavar='FILE', help='file to write: .png, .svg or .pdf (default: genotype.png)')
    parser.add_argument('--title', help='title; by default the corpus, fold, seed and UA, if the file names them')
    args = parser.parse_args(argv)
    if args.picture and args.output:
        raise UserError(f'{args.picture} and --output {args.output}: name the picture once')
    picture = Path(args.output or args.picture or 'genotype.png')
    if picture.suffix.lower() not in ENDINGS:
        raise UserError(f'{picture}: the name of the picture must end in {", ".join(ENDINGS)}')
    try:
        genotype, record = gt.load(args.genotype)
        plot(genotype, caption(record) if args.title is None else args.title).savefig(picture, dpi=110)
    except ValueError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f'{picture}: {error.strerror}') from None
    print(gt.to_str(genotype))


if __name__ == '__main__':
    utils.cli(main)
