"""Gives damaged and hostile input to everything that reads files or flags, and counts what goes wrong.

    python tests/reliability/fuzz.py --inputs 100000 --to runs/fuzz

An input is wrong if it ends in an exception that is not a UserError, or in a message of several lines or of 500 characters
and more; if it takes 2 s of CPU time, or 1 GB of memory; if it starts a process, opens a connection or writes outside its
folder. The inputs are numbered and every number gives the same one. The counts are kept in TO/fuzz.json, and the same
command continues there. The readers and their valid inputs are in tests/reliability/fuzz_readers.py and fuzz_binary.py.
"""
import argparse
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]
import fuzz_binary  # noqa: E402
import fuzz_readers  # noqa: E402

import utils  # noqa: E402
from config import UserError  # noqa: E402
from datasets.faults import CorpusError  # noqa: E402

READERS = {**fuzz_readers.READERS, **fuzz_binary.READERS}
CPU, MEMORY, MESSAGE = 2., 1 << 30, 500  # limits: s, bytes, characters
END = 20  # s of CPU time after which an input is given up
ADDRESSES = 8 << 30  # bytes of address space that this process may have
KEPT = 20  # violations that are kept of each reader
COLUMNS = ('inputs', 'refused', 'other exceptions', 'message too long', 'over 2 s', 'over 1 GB', 'executed or written')
STARTS = {'os.system', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.fork', 'subprocess.Popen', 'socket.connect',
          'ctypes.dlopen', 'pty.spawn'}
CHANGES = {'os.remove', 'os.rename', 'os.mkdir', 'os.rmdir', 'os.symlink', 'os.link', 'os.truncate', 'os.chmod',
           'shutil.rmtree'}


class TooLong(BaseException):
    """An input took END seconds."""


class Watch:
    """Notes what a process must not do while it reads: see STARTS and CHANGES, and files opened to be written."""

    def __init__(self, folder: Path):
        self.folder, self.on, self.seen = str(folder), False, []
        sys.addaudithook(self._hook)

    def _hook(self, event, args):
        if not self.on:
            return
        if event in STARTS:
            self.seen.append(f'{event} {args!r:.80}')
        elif event in CHANGES or event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
            if isinstance(args[0], int):  # a file that is open already
                return
            path = os.path.abspath(os.fsdecode(args[0]))
            if not path.startswith((self.folder, '/dev/')):
                self.seen.append(f'{event} {path}')


def peak() -> int:
    """Largest resident memory since `reset_peak`, in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmHWM:'):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak():
    Path('/proc/self/clear_refs').write_text('5')


def judge(reader, rng: random.Random, watch: Watch) -> dict:
    """{column: 1 or 0} of one input, and 'what' went wrong."""
    data = reader.make(rng)  # writes the input to its folder
    found, what = dict.fromkeys(COLUMNS, 0) | {'inputs': 1}, []
    reset_peak()
    before, began = peak(), time.process_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, END)
    watch.seen, watch.on = [], True
    try:
        reader.read(data)
    except CorpusError as error:
        messages = error.messages
    except UserError as error:
        messages = [str(error)]
    except (Exception, TooLong) as error:
        messages = []
        place = traceback.extract_tb(error.__traceback__)[-1]
        what.append(('other exceptions', f'{type(error).__name__} {place.filename}:{place.lineno} {str(error)[:200]}'))
    else:
        messages = None
    watch.on = False
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    seconds, memory = time.process_time() - began, peak() - before
    found['refused'] = int(messages is not None)
    for message in messages or ():
        if len(message) >= MESSAGE or '\n' in message:
            what.append(('message too long', message[:300]))
    if seconds > CPU:
        what.append(('over 2 s', f'{seconds:.1f} s'))
    if memory > MEMORY + reader.size(data):
        what.append(('over 1 GB', f'{memory / 1e9:.1f} GB'))
    what += [('executed or written', event) for event in watch.seen]
    for column, _ in what:
        found[column] = 1
    return {**found, 'what': what, 'seconds': seconds, 'memory': memory}


def run(names: list[str], total: int, to: Path, seed: int) -> dict:
    """Judges `total` inputs, shared by the readers; continues counts that are there. Returns them."""
    state = json.loads((to / 'fuzz.json').read_text()) if (to / 'fuzz.json').exists() else {}
    weights = {name: getattr(READERS[name], 'weight', 1.) for name in names}
    folder = Path(tempfile.mkdtemp(prefix='fuzz-', dir=to)).resolve()
    watch = Watch(folder)
    os.chdir(folder)
    for name in names:
        reader = READERS[name](folder / name)
        counts = state.setdefault(name, {**dict.fromkeys(COLUMNS, 0), 'slowest': 0., 'largest': 0, 'violations': []})
        for _ in range(3):  # lazy imports are not the input's
            reader.read(reader.valid())
        saved, share = time.time(), math.ceil(total * weights[name] / sum(weights.values()))
        for number in range(counts['inputs'], share):
            found = judge(reader, random.Random(f'{seed}-{name}-{number}'), watch)
            for column in COLUMNS:
                counts[column] += found[column]
            counts['slowest'] = max(counts['slowest'], found['seconds'])
            counts['largest'] = max(counts['largest'], found['memory'])
            if found['what'] and len(counts['violations']) < KEPT:
                counts['violations'].append({'number': number, 'what': found['what']})
            if time.time() - saved > 5 or number == share - 1:
                utils.write_json(to / 'fuzz.json', state)
                saved = time.time()
    return state


def table(state: dict) -> str:
    """The counts as Markdown."""
    heads = ['reader', *COLUMNS, 'slowest', 'most memory']
    rows = [[name, *(f'{counts[column]:,}' for column in COLUMNS), f'{counts["slowest"]:.2f} s',
             f'{counts["largest"] / 1e6:.0f} MB'] for name, counts in state.items()]
    total = ['all', *(f'{sum(counts[column] for counts in state.values()):,}' for column in COLUMNS), '', '']
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in [heads, ['---'] * len(heads), *rows, total])


def give_up(*_):
    raise TooLong


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--inputs', type=int, default=100_000, help='how many, over all readers (default: %(default)s)')
    parser.add_argument('--readers', help=f'these only, separated by commas: {",".join(READERS)}')
    parser.add_argument('--seed', type=int, default=0, help='other inputs (default: %(default)s)')
    parser.add_argument('--to', type=Path, required=True, help='folder for the counts and the inputs')
    args = parser.parse_args(argv)
    names = args.readers.split(',') if args.readers else list(READERS)
    if unknown := set(names) - READERS.keys():
        raise UserError(f'--readers {min(unknown)}: choose from {", ".join(READERS)}')
    if not 1 <= args.inputs <= 10 ** 9:
        raise UserError('--inputs must be from 1 to 1000000000')
    args.to.mkdir(parents=True, exist_ok=True)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, resource.RLIM_INFINITY))
    signal.signal(signal.SIGVTALRM, give_up)
    state = run(names, args.inputs, args.to.resolve(), args.seed)
    print(table(state))
    for name, counts in state.items():
        for violation in counts['violations']:
            print(name, violation['number'], violation['what'])


if __name__ == '__main__':
    utils.cli(main)
