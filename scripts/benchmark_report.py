"""What benchmark.py measured as Markdown and as a picture. As a program, README's table of runs:

    python scripts/benchmark_report.py docs/benchmarks/*.json
"""
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

SUMMARY = {'weight_step': 'weight step', 'alpha_step_1': 'alpha step, order 1', 'alpha_step_2': 'order 2, difference',
           'alpha_step_2 exact': 'order 2, exact', 'augment_step': 'retraining step'}


def markdown(found):
    """Tables: every step in both forms, memory and first step, growth."""
    versions = ', '.join(f'{name} {v}' for name, v in found['versions'].items() if v)
    lines = [f'`{found["command"]}`', '', f'{found["device"]} ({found["machine"]}), {versions}; preset {found["preset"]}. '
             f'Its own ceilings in this run: copy {found["ceilings"]["copy_gb_per_s"]:.1f} GB/s (read and write), float32 '
             f'matrix product {found["ceilings"]["matrix_gflop_per_s"]:.0f} GFLOP/s.', '',
             '| step | form | ms | utterances a second | of copy bandwidth | of matrix rate | ratio |',
             '|---|---|---|---|---|---|---|']
    for row in found['rows']:
        ratio = f'**{found["ratios"][row["step"]]:.2f}**' if row['form'] == 'fast' else ''
        lines.append(f'| {row["step"]} | {row["form"]} | {row["ms"]:.1f} | {row["utterances_per_s"]:.1f} | '
                     f'{row["share_of_copy_bandwidth"]:.0%} | {row["share_of_matrix_rate"]:.0%} | {ratio} |')
    memory, first = found['peak_memory_mib'], found['first_step_s']
    lines += ['', 'Bandwidth counts the bytes that operations read and write, as if caches kept none.', '',
              '| in a process of its own | fast | textbook | ratio |', '|---|---|---|---|',
              f'| peak memory of an order-1 search, MiB | {memory["fast"]:.0f} | {memory["textbook"]:.0f} | '
              f'**{found["ratios"]["peak_memory"]:.2f}** |',
              f'| building and first weight step, s | {first["fast"]:.1f} | {first["textbook"]:.1f} | |', '']
    if found['growth']:
        lines += ['| weight step, default preset but for | | fast, ms | textbook, ms | ratio |', '|---|---|---|---|---|']
        for fast, book in zip(found['growth'][::2], found['growth'][1::2]):
            lines.append(f'| {fast["setting"]} | {fast["value"]} | {fast["ms"]:.0f} | {book["ms"]:.0f} | '
                         f'{book["ms"] / fast["ms"]:.2f} |')
        lines.append('')
    return '\n'.join(lines)


def plot(growth):
    """ms of a weight step against each setting, both forms."""
    names = list(dict.fromkeys(row['setting'] for row in growth))
    figure = Figure(figsize=(3 * len(names), 3.2), layout='constrained')
    for i, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), i + 1)
        for form, marker in (('textbook', 's'), ('fast', 'o')):
            rows = [row for row in growth if row['setting'] == name and row['form'] == form]
            axes.plot([str(row['value']) for row in rows], [row['ms'] for row in rows], marker=marker, label=form)
        axes.set(xlabel=name, ylim=(0, None), ylabel='ms a weight step' if i == 0 else None)
    figure.axes[0].legend()
    return figure


def summary(runs):
    """One table of several runs: ms of the fast form and how many times as long, or as large, the textbook's is."""
    head = ['device', 'preset', *SUMMARY.values(), 'peak memory']
    lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    for found in runs:
        ms = {row['step']: row['ms'] for row in found['rows'] if row['form'] == 'fast'}
        cells = [found['device'], found['preset'], *(f'{ms[s]:.0f} ms, {found["ratios"][s]:.1f}x' for s in SUMMARY),
                 f'{found["peak_memory_mib"]["fast"]:.0f} MiB, {found["ratios"]["peak_memory"]:.1f}x']
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    print(summary([json.loads(Path(name).read_text()) for name in sys.argv[1:]]))
