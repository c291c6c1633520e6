"""Two processes on one run, one cache, one experiment, again and again; and growth over many epochs.

    python tests/reliability/endurance.py --together 100 --epochs 1000 --to endurance
"""
import argparse
import collections
import os
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from forked import compare, contents, kill, make_corpus, reference, start, wait  # noqa: E402, I001

import torch  # noqa: E402

PAIRS = {'one --name': 'augment', 'one cache': 'extraction, then augment', 'one experiment': 'cross_validate'}


def together(folder: Path, what: str, whole: dict) -> tuple[str, list[str]]:
    """Starts two processes at once. Returns how they ended, and what was wrong."""
    program = PAIRS[what]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = ('x', 'y') if what == 'one cache' else ('x', 'x')
    pids = [start(folder, program, None, ('--name', name) if name != 'x' else ()) for name in names]
    codes = [wait(pid) for pid in pids]
    for pid, code in zip(pids, codes):
        if code is None:
            kill(pid, folder)
    said = (folder / 'log').read_text()
    refused = codes.count(2) == 1 and said.count('another process is writing') == 1
    wrong = [] if codes.count(0) == 2 or codes.count(0) == 1 and refused else [f'exit codes {codes}']
    if what == 'one cache':
        for path in (folder / 'runs').glob('*/y'):
            shutil.rmtree(path)
    return ('one was refused' if refused else 'both finished'), wrong + compare(contents(folder), whole['contents'])


def growth(folder: Path, program: str, epochs: int):
    """Prints memory, open files and time at every tenth of a long training; the first holds the start."""
    print(program)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pid = start(folder, program, None, ('--epochs', str(epochs)))
    rows, tenth, began = [], max(1, epochs // 10), time.monotonic()
    print('| epochs | resident memory, MiB | open files | CPU s an epoch |\n|---|---|---|---|')
    before = 0.
    while wait(pid, .05) is None:
        done = sum(path.read_bytes().count(b'\n') for path in folder.glob('runs/*/x/metrics.jsonl'))
        if done >= tenth * (len(rows) + 1):
            pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
            ticks = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[11:13]
            used = sum(map(int, ticks)) / os.sysconf('SC_CLK_TCK')
            rows.append((done, pages * os.sysconf('SC_PAGE_SIZE') / 2 ** 20, len(os.listdir(f'/proc/{pid}/fd'))))
            print(f'| {done} | {rows[-1][1]:.0f} | {rows[-1][2]} | {(used - before) / tenth:.3f} |', flush=True)
            before = used
    print(f'{time.monotonic() - began:.0f} s')


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--together', type=int, default=100, help='pairs of processes, in turn over the three kinds')
    parser.add_argument('--epochs', type=int, default=1000, help='epochs of the long training; 0: none')
    parser.add_argument('--to', type=Path, default=Path('endurance'), help='folder of the trials (default: endurance)')
    own = parser.parse_args(argv)
    torch.set_num_threads(1)
    to = own.to.resolve()
    make_corpus(to / 'corpus')
    if own.epochs:
        for program in ('augment', 'search, order 1'):
            growth(to / 'long', program, own.epochs)
    wholes = {what: reference(to / 'whole', program) for what, program in PAIRS.items()} if own.together else {}
    ended, n_wrong = collections.defaultdict(collections.Counter), 0
    for n in range(own.together):
        what = list(PAIRS)[n % len(PAIRS)]
        how, wrong = together(to / f'pair-{n}', what, wholes[what])
        ended[what][how] += 1
        if wrong:
            n_wrong += 1
            print(n, what, wrong, flush=True)
        else:
            shutil.rmtree(to / f'pair-{n}')
    print('| two processes on | pairs | one was refused | both finished |\n|---|---|---|---|')
    for what, found in ended.items():
        print(f'| {what} | {found.total()} | {found["one was refused"]} | {found["both finished"]} |')
    print(f'{n_wrong} pairs with a difference')
    return n_wrong


if __name__ == '__main__':
    sys.exit(bool(main()))
