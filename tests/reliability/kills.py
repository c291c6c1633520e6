"""Kills the programs at random moments and inside their writes, resumes them, and compares with a run that was left alone.

    python tests/reliability/kills.py --trials 180 --kills 6 --to kills

Nothing may differ: not a bit of the results, of TensorBoard's events, of the networks. Every trial is one line of
TO/trials.jsonl; the same command continues. Programs run in forks of this process, which has torch loaded, on a corpus of a
few synthetic files.
"""
import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from forked import LIMIT, PROGRAMS, SOFT, compare, contents, kill, make_corpus, reference, start, wait  # noqa: E402, I001

import torch  # noqa: E402

import config as cf  # noqa: E402


def trial(folder: Path, program: str, whole: dict, n_kills: int, rng: random.Random) -> dict:
    """Kills a run n_kills times, then lets it end; what differs from `whole`, and what else went wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    killed, wrong = collections.Counter(), []
    for _ in range(n_kills):
        way = rng.choice(('write', 'write', 'moment', 'moment', 'soft'))
        strike = int(rng.random() ** 2 * whole['calls']) if way == 'write' else None
        pid = start(folder, program, strike)
        code = wait(pid, LIMIT if way == 'write' else .6 * rng.random() * whole['seconds'])
        if code is None and way == 'soft':
            number = rng.choice(SOFT)
            os.kill(pid, number)
            code = wait(pid, 30)
            if code is None:
                wrong.append(f'{number.name}: no end within 30 s')
            elif code not in (0, cf.INTERRUPTED if number == signal.SIGINT else cf.AGAIN):
                wrong.append(f'{number.name}: exit code {code}')
            killed[number.name] += code != 0
        elif code is None and way == 'moment':
            killed['SIGKILL'] += 1
        elif code == -signal.SIGKILL:
            killed['SIGKILL inside a write'] += 1
        elif code:
            wrong.append(f'exit code {code}')
        if code is None:
            kill(pid, folder if rng.random() < .5 else None)
    pid = start(folder, program)
    code = wait(pid)
    if code is None:
        kill(pid, folder)
        wrong.append('stuck')
    elif code:
        wrong.append(f'exit code {code} at the end')
    else:
        wrong += compare(contents(folder), whole['contents'])
    if not wrong:
        shutil.rmtree(folder)
    return {'program': program, 'kills': dict(killed), 'wrong': wrong}


def table(trials: list[dict]) -> str:
    rows = ['| program | trials | SIGKILL at a moment | inside a write | SIGTERM, SIGUSR1, SIGINT | wrong |',
            '|---|---|---|---|---|---|']
    for program in dict.fromkeys(t['program'] for t in trials):
        own = [t for t in trials if t['program'] == program]
        kills = sum((collections.Counter(t['kills']) for t in own), collections.Counter())
        soft = [str(kills[number.name]) for number in SOFT]
        rows.append(f'| {program} | {len(own)} | {kills["SIGKILL"]} | {kills["SIGKILL inside a write"]} | '
                    f'{", ".join(soft)} | '
                    f'{sum(bool(t["wrong"]) for t in own)} |')
    return '\n'.join([*rows, f'{sum(sum(t["kills"].values()) for t in trials)} kills'])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--trials', type=int, default=250, help='in all, in turn over the programs (default: 250)')
    parser.add_argument('--kills', type=int, default=4, help='kills in a trial (default: 4)')
    parser.add_argument('--to', type=Path, default=Path('kills'), help='folder of the trials (default: kills)')
    parser.add_argument('--only', help='one of the programs')
    parser.add_argument('--seed', type=int, default=0, help='of the moments; two folders take two (default: 0)')
    own = parser.parse_args(argv)
    torch.set_num_threads(1)
    to = own.to.resolve()
    make_corpus(to / 'corpus')
    names = [own.only] if own.only else list(PROGRAMS)
    references, done = {}, []
    record = to / 'trials.jsonl'
    with contextlib.suppress(FileNotFoundError):
        done = [json.loads(line) for line in record.read_text().splitlines()]
    for n in range(len(done), own.trials):
        program = names[n % len(names)]
        if program not in references:
            references[program] = reference(to / 'whole', program)
        done.append(trial(to / f'trial-{n}', program, references[program], own.kills, random.Random(f'{own.seed} {n}')))
        with open(record, 'a') as f:
            f.write(json.dumps(done[-1]) + '\n')
        if done[-1]['wrong']:
            print(n, done[-1], flush=True)
    print(table(done))
    return sum(bool(t['wrong']) for t in done)


if __name__ == '__main__':
    sys.exit(bool(main()))
