"""The figures of benchmark.py as Markdown. As a program it prints the table of docs/benchmarks/README.md:

    python scripts/benchmark_report.py docs/benchmarks/*.json
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import config as cf  # noqa: E402
import utils  # noqa: E402

STEPS = {'weight_step': 'weight step', 'alpha_step_1': 'alpha step, order 1', 'alpha_step_2': 'order 2, difference',
         'alpha_step_2 exact': 'order 2, exact', 'augment_step': 'retraining step'}


def table(head: list, rows) -> list:
    """Lines of a Markdown table."""
    return [f'| {" | ".join(map(str, cells))} |' for cells in (head, ['---'] * len(head), *rows)]


def number(value, digits: int) -> str:
    """A figure as text; None is a step that did not fit into memory."""
    return 'out of memory' if value is None else f'{value:.{digits}f}'


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b; None if one of them did not fit into memory."""
    return a / b if a and b else None


def markdown(found: dict) -> str:
    """All tables of one run."""
    lines = [f'`{found["command"]}`', '',
             f'{found["device"]} ({found["machine"]}), {found["versions"]}; preset {found["preset"]}.', '']
    if 'rows' in found:
        lines += table(['step', 'fast, ms', 'plain, ms', 'ratio'],
                       [[STEPS[r['step']], number(r['fast'], 1), number(r['plain'], 1), f'**{number(r["ratio"], 2)}**']
                        for r in found['rows']])
        lines += ['', *table(['in a process of its own', 'peak memory of an order-1 search, MiB', 'building and first step, s'],
                             [[m['form'], number(m['peak_mib'], 0), number(m['first_step_s'], 1)]
                              for m in found['memory']]), '']
    if 'sampled' in found:
        forms = ['softmax', 'gumbel', 'uniform']
        rows = [(f'{STEPS[row["step"]]}, ms', [row[form] for form in forms], 1) for row in found['sampled']['steps']]
        if len(found['sampled']['memory']) == len(forms):
            rows.append(('peak memory of a search, MiB', [m['peak_mib'] for m in found['sampled']['memory']], 0))
        lines += [*table(['', 'softmax', 'sampled: gumbel', 'sampled: uniform', 'softmax / gumbel', 'softmax / uniform'],
                         [[what, *(number(v, digits) for v in values),
                           *(f'**{number(ratio(values[0], v), 2)}**' for v in values[1:])]
                          for what, values, digits in rows]), '']
    if found.get('growth'):
        lines += [*table(['weight step, default preset but for', '', 'fast, ms', 'plain, ms', 'ratio'],
                         [[r['setting'], r['value'], number(r['fast'], 0), number(r['plain'], 0), number(r['ratio'], 2)]
                          for r in found['growth']]), '']
    if 'counts' in found:
        lines += [*table(['operations', 'step', 'fast', 'plain', 'ratio'],
                         [[r['space'], STEPS[r['step']], f'{r["fast"]:,}', f'{r["plain"]:,}', f'**{r["ratio"]:.2f}**']
                          for r in found['counts']]), '']
    return '\n'.join(lines)


def summary(runs: list) -> str:
    """One table of several runs: ms of the fast form, and how many times as long, or as large, the plain form is."""
    def cell(fast, plain, unit):
        return f'{number(fast, 0)} {unit}, {number(ratio(plain, fast), 1)}x' if fast and plain else 'out of memory'
    rows = []
    for found in runs:
        by_step, memory = {r['step']: r for r in found['rows']}, [m['peak_mib'] for m in found['memory']]
        rows.append([found['device'], found['preset'],
                     *(cell(by_step[s]['fast'], by_step[s]['plain'], 'ms') if s in by_step else 'not measured' for s in STEPS),
                     cell(*memory, 'MiB') if len(memory) == 2 else 'not measured'])
    return '\n'.join(table(['device', 'preset', *STEPS.values(), 'peak memory'], rows))


def main():
    print(summary([run for name in sys.argv[1:] if 'rows' in (run := cf.read_json(name))]))


if __name__ == '__main__':
    utils.cli(main)
