"""One HTML page about searches, retrainings and experiments, with all pictures inside.

    python scripts/report.py runs/search/NAME runs/augment/NAME -o report.html
    python scripts/report.py runs/cv/NAME -o report.html --latex tables.tex --pdf figures
"""
import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]

import config as cf  # noqa: E402
from config import UserError  # noqa: E402


def main(argv=None):
    parser = argparse.ArgumentParser(prog='report.py', description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('folders', nargs='+', type=Path, metavar='FOLDER',
                        help='runs/search/NAME, runs/augment/NAME or runs/cv/NAME')
    parser.add_argument('-o', '--output', type=Path, default=Path('report.html'), help='page to write (default: report.html)')
    parser.add_argument('--latex', type=Path, metavar='FILE', help='also write the tables as LaTeX (needs booktabs)')
    parser.add_argument('--pdf', type=Path, metavar='FOLDER', help='also write every figure as PDF')
    args = parser.parse_args(argv)
    cf.check_target('output', args.output)
    cf.check_target('latex', args.latex)
    import html_page  # these load torch and matplotlib
    import report_parts

    from utils import write_aside
    blocks = []
    for folder in args.folders:
        if not folder.is_dir():
            raise UserError(f'{folder}: no such folder')
        found = report_parts.blocks_of(folder)
        blocks += found
        if args.pdf:
            args.pdf.mkdir(parents=True, exist_ok=True)
            for figure in (block for block in found if block[0] == 'figure'):
                parts = folder.resolve().parts
                whose = parts[len(parts) - parts[::-1].index('runs'):] if 'runs' in parts else parts[-1:]
                name = '-'.join([*whose, figure[1]]).replace(' ', '-').replace('/', '-')
                figure[2].savefig(args.pdf / f'{name}.pdf', bbox_inches='tight')
    title = ', '.join(dict.fromkeys(folder.resolve().name for folder in args.folders))
    text = html_page.page(title, blocks).encode(errors='replace')
    if len(text) > html_page.LIMIT:
        raise UserError(f'the page would have {len(text):,} bytes: name fewer folders')
    write_aside(args.output, lambda f: f.write(text))
    if args.latex:
        write_aside(args.latex, lambda f: f.write(html_page.latex(blocks).encode(errors='replace')))
    for verdict in (block for block in blocks if block[0] == 'verdict'):
        print(verdict[1])
    print(f'report: {args.output} ({len(text) / 1e6:.1f} MB)')


if __name__ == '__main__':
    if {'-h', '--help'} & {*sys.argv[1:]}:
        main()
    import utils
    utils.cli(main)
