"""A report as blocks, and the blocks as one self-contained HTML page or as LaTeX tables.

Blocks are tuples: ('h', text), ('p', text), ('note', text), ('pre', text), ('table', header, rows), ('figure', name, Figure).
"""
import base64
import html
import io
import re

from config import from_markdown_cell

LIMIT = 5_000_000  # bytes of a page
STYLE = '''body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.6rem; margin-top: 3rem; border-top: 2px solid #ccc; padding-top: 1rem }
h2 { font-size: 1.2rem; margin-top: 2rem }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem }
td, th { border: 1px solid #ccc; padding: .2rem .6rem }
th { background: #f2f4f7; text-align: left }
pre { background: #f6f6f6; padding: .7rem; overflow-x: auto }
img { max-width: 100%; height: auto }
.verdict { font-size: 1.2rem; font-weight: 600 }
.note { background: #fff4d6; padding: .6rem }
.wide { overflow-x: auto }'''
SPECIAL = {'\\': r'\textbackslash{}', **{c: f'\\{c}' for c in '&%$#_{}'}, '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
           '\N{PLUS-MINUS SIGN}': r'$\pm$', '<': r'$<$', '>': r'$>$'}


def page(title: str, blocks: list) -> str:
    """One HTML page. Every text is escaped."""
    body = '\n'.join(render(block) for block in blocks)
    return (f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
            f'<title>{html.escape(title)}</title>\n<style>\n{STYLE}\n</style>\n{body}\n</html>\n')


def render(block: tuple) -> str:
    kind, *rest = block
    if kind == 'table':
        header, rows = rest
        head = ''.join(f'<th>{inline(cell)}</th>' for cell in header)
        lines = [f'<tr>{"".join(f"<td>{inline(cell)}</td>" for cell in row)}</tr>' for row in rows]
        return f'<div class="wide"><table>\n<tr>{head}</tr>\n' + '\n'.join(lines) + '\n</table></div>'
    if kind == 'figure':
        name, figure = rest
        data = base64.b64encode(svg(figure)).decode()
        return f'<p><img alt="{html.escape(name)}" src="data:image/svg+xml;base64,{data}"></p>'
    tags = {'title': 'h1', 'h': 'h2', 'pre': 'pre'}
    text = html.escape(rest[0]) if kind == 'pre' else inline(rest[0])
    if kind in tags:
        return f'<{tags[kind]}>{text}</{tags[kind]}>'
    return f'<p class="{kind}">{text}</p>' if kind in ('verdict', 'note') else f'<p>{text}</p>'


def inline(text) -> str:
    """Escaped text; **bold** and `code` of Markdown are kept."""
    text = html.escape(str(text))
    text = re.sub(r'\*\*(.+?)\*\*', r'<b>\1</b>', text, flags=re.S)
    return re.sub(r'`([^`]+)`', r'<code>\1</code>', text)


def svg(figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format='svg', bbox_inches='tight', metadata={'Date': None})
    return out.getvalue()


def latex(blocks: list) -> str:
    """The tables as LaTeX (booktabs), each under a comment with the heading above it."""
    parts, heading = [], ''
    for kind, *rest in blocks:
        if kind in ('title', 'h'):
            heading = rest[0]
        elif kind == 'table':
            header, rows = rest
            lines = [' & '.join(map(tex, row)) + r' \\' for row in (header, *rows)]
            columns = 'l' + 'r' * (len(header) - 1)
            parts.append('\n'.join([
                f'% {" ".join(heading.split())}', rf'\begin{{tabular}}{{{columns}}}', r'\toprule', lines[0], r'\midrule',
                *lines[1:], r'\bottomrule', r'\end{tabular}']))
    return '\n\n'.join(parts) + '\n'


def tex(text) -> str:
    """Text that LaTeX shows as it is."""
    text = re.sub(r'\*+(.+?)\*+', r'\1', str(text)).replace('`', '')
    return ''.join(SPECIAL.get(c, c) for c in text)


def from_markdown(text: str, figures: dict) -> list:
    """Blocks of a table.md. figures: {name: Figure} of its pictures."""
    blocks = []
    for part in re.split(r'\n\n+', text.strip('\n')):
        lines = part.splitlines()
        if part.startswith('#'):
            blocks.append(('h', part.lstrip('# ')))
        elif part.startswith('| '):
            rows = [[from_markdown_cell(cell.strip()) for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in lines]
            blocks.append(('table', rows[0], rows[2:]))
        elif match := re.fullmatch(r'!\[(.*)\]\(.*\)', part):
            if match[1] in figures:
                blocks.append(('figure', match[1], figures[match[1]]))
        elif part.startswith('    '):
            blocks.append(('pre', '\n'.join(line.removeprefix('    ') for line in lines)))
        elif part.startswith('**'):
            blocks.append(('note', part))
        else:
            blocks += [('p', from_markdown_cell(line)) for line in lines] if part.startswith('- ') else [('p', part)]
    return blocks
