"""Runs every command that README.md and docs/*.md show, in a copy of the project, on made-up corpora with small presets.

    python tests/run_documented_commands.py [README.md docs/running.md ...]

Commands are the lines of indented blocks, and of blocks fenced as bash, sh or console. A block under a line
`<!-- skip: why -->` is left out, and so are the programs of SKIPPED. All else must end with exit code 0.
"""
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
import encoders_made_up  # noqa: E402
import made_up  # noqa: E402

from datasets.readers import synthetic  # noqa: E402
from datasets.readers.emodb import LABELS  # noqa: E402

PROGRAMS = ('python', 'cat', 'python3', 'pip', 'make', 'torchrun', 'tensorboard', 'dask', 'sbatch')
SKIPPED = {'make': 'run by .ci/run', 'pip': 'installs', 'python3': 'installs', 'tensorboard': 'a server',
           'torchrun': 'run by tests/test_torchrun.py', 'dask': 'run by tests/test_cluster.py', 'sbatch': 'needs a cluster'}
SLURM = {'SLURM_ARRAY_TASK_ID': '1', 'N': '1'}
NOT_RUN = {'docs/results.md': 'commands of finished experiments, days of work'}
ENCODER = 'encoder'  # folder of the encoder
N_SAMPLES = 12_000  # of a made-up recording
SMALL = dict(duration=.5, n_mels=16, hop_ms=32., time_pool=1, init_channels=2, rnn_channels=4, n_nodes=1, rnn_nodes=1,
             epochs=1, batch_size=16, train_on_dev=False)
SHORTER = {'scripts/cross_validate.py': '--only_folds 1 --seeds 0 --models searched,random,cnn_gru', 'search.py': '--epochs 1',
           'augment.py': '--epochs 1'}  # appended; of two equal flags the last one counts


def commands(text: str) -> list[tuple[str, str | None]]:
    """(command line, why it is skipped or None) of every command in a page; comments are off."""
    found, reason, fence = [], None, None
    text = re.sub(r'\\\n\s*', '', text)
    for line in text.splitlines():
        if match := re.fullmatch(r'<!-- skip: (.+) -->', line.strip()):
            reason = match[1]
            continue
        if line.startswith('```'):
            fence = None if fence is not None else line[3:].strip()
            reason = reason if fence is not None else None
            continue
        if fence is None and line and not line.startswith('    '):
            reason = None  # the block under the marker has ended
        shown = line.removeprefix('$ ') if fence in ('bash', 'sh', 'console') else line[4:] if line.startswith('    ') else ''
        if shown.split(' ')[0] in PROGRAMS and ' ' in shown and fence in (None, 'bash', 'sh', 'console'):
            found.append((re.sub(r'\s+#.*$', '', shown), reason or SKIPPED.get(shown.split(' ')[0])))
    return found


def prepare(folder: Path) -> None:
    """Copies the project, makes its presets small, and adds the files that the pages name."""
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split('\0')):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    import config as cf
    for path in (folder / 'configs').glob('*.yaml'):
        tree = {key: value for key, value in yaml.safe_load(path.read_text()).items() if key not in SMALL}
        tree |= {name: value for name, value in SMALL.items() if name in cf.SHARED}
        for section in ('search', 'augment', 'svm'):
            own = {name: value for name, value in SMALL.items() if name in cf.NAMES[section] - cf.SHARED}
            tree[section] = {**{k: v for k, v in (tree.get(section) or {}).items() if k not in cf.SHARED & SMALL.keys()}, **own}
        path.write_text(yaml.safe_dump(tree))
    rows = ['path,label,speaker']
    for speaker in range(6):
        for label in ('angry', 'happy', 'sad'):
            for take in range(3):
                path = folder / f'mine/{speaker}_{label}_{take}.wav'
                path.parent.mkdir(parents=True, exist_ok=True)
                wave = synthetic.synthesise(speaker, label, take)[:N_SAMPLES]
                soundfile.write(path, wave, synthetic.SAMPLE_RATE)
                rows.append(f'mine/{speaker}_{label}_{take}.wav,{label},s{speaker}')
    (folder / 'my.csv').write_text('\n'.join(rows) + '\n')
    (folder / 'recordings').mkdir()
    for name in ('a.wav', 'my.wav', 'hour.wav', 'recordings/a.wav'):
        shutil.copy(folder / 'mine/0_sad_0.wav', folder / name)
    for speaker in ('03', '08', '09', '10', '11', '12', '13', '14', '15', '16'):
        for letter, label in LABELS.items():
            made_up.spoken(folder / f'corpora/emodb/wav/{speaker}a01{letter}a.wav', int(speaker), label)
    make_frames(folder, rows)
    turns = [(f'Ses0{session}F_impro01_{gender}{i:03}', label) for session in range(1, 6) for gender in 'FM'
             for i, label in enumerate(('ang', 'hap', 'exc', 'neu', 'sad'))]
    made_up.iemocap(folder / 'corpora/iemocap', turns, made_up.spoken)


def make_frames(folder: Path, rows: list[str]) -> None:
    """A tiny encoder in place of that of the pages, and frames.csv, a manifest with files of frames."""
    encoders_made_up.save(folder / ENCODER, 'wav2vec2')
    (folder / 'frames').mkdir()
    for i, name in enumerate(['anna-001', *range(1, len(rows))]):
        np.save(folder / f'frames/{name}.npy', np.random.default_rng(i).standard_normal((2, 8, 40)).astype(np.float32))
    lines = [f'{row},frames/{i}.npy' for i, row in enumerate(rows)]
    (folder / 'frames.csv').write_text('\n'.join([f'{rows[0]},frames', *lines[1:]]) + '\n')


def fill_in(line: str) -> str:
    """The command with placeholders filled in and trainings shortened."""
    corpus = match[1] if (match := re.search(r'--dataset (\w+)', line)) else 'emodb'
    known = {'DIR': f'corpora/{corpus}', 'RUN': 'runs/augment/mine', 'FILE': 'a.wav', 'FOLDER': 'mine'}
    for word, meant in known.items():
        line = re.sub(rf'(?<!\S){word}(?!\S)', meant, line)
    line = line.replace('runs/augment/demo', 'runs/augment/mine').removesuffix(' &')  # what the pages before made
    line = re.sub(r'\S*/wav2vec2-base\S*', ENCODER, line)
    program = line.split(' ')[1]
    line = ' '.join([re.sub(r'\bNAME\b', 'mine', line), *([SHORTER[program]] if program in SHORTER else [])])
    return re.sub(r'(^|\| )python ', lambda match: f'{match[1]}{shlex.quote(sys.executable)} ', line)


def main(names: list[str]) -> int:
    pages = [ROOT / name for name in names] or [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'DATA': 'corpora/emodb', **SLURM}
    failed, began = 0, time.time()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for page in pages:
            name = str(page.relative_to(ROOT))
            for shown, reason in commands(page.read_text()):
                reason = NOT_RUN.get(name, reason)
                if reason:
                    print(f'{name}: skipped ({reason}): {shown[:90]}', flush=True)
                    continue
                line, start = fill_in(shown), time.time()
                done = subprocess.run(['bash', '-c', line], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
                print(f'{name}: exit code {done.returncode}, {time.time() - start:.0f} s: {shown[:90]}', flush=True)
                if done.returncode:
                    failed += 1
                    print(f'  as: {line}\n{done.stdout[-1500:]}{done.stderr[-3000:]}', flush=True)
    print(f'{failed} commands failed; {time.time() - began:.0f} s')
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
