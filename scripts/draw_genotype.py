"""Draws a genotype as a graph.

    python scripts/draw_genotype.py runs/search/NAME/genotype.json genotype.png
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import genotypes as gt  # noqa: E402
import utils  # noqa: E402
from models.visualize import plot  # noqa: E402


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('genotype', help='genotype.json, or a file with Genotype(...)')
    parser.add_argument('picture', help='file to write: .png, .svg or .pdf')
    args = parser.parse_args(argv)
    try:
        genotype, _ = gt.load(args.genotype)
        plot(genotype).savefig(args.picture, dpi=110)
    except (ValueError, OSError) as error:
        raise utils.UserError(str(error)) from None
    print(gt.to_str(genotype))


if __name__ == '__main__':
    utils.cli(main)
