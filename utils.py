"""What both programs need around their loops: errors, seeds, and the folder of a run."""
import contextlib
import csv
import glob
import io
import json
import logging
import os
import random
import shutil
import sys
import traceback
from dataclasses import asdict

import numpy as np
import torch
import yaml
from tensorboardX import SummaryWriter

# What a resumed run may have otherwise: where and how it is made. That the data are the same is seen by Data.digest and mean.
CURRENT = {'device', 'resume', 'overwrite', 'config', 'workers', 'resident', 'threads', 'data_path', 'cache'}
# What runs did that are older than the setting.
YOUNGER = {'trim_db': 0., 'train_on_dev': False, 'normalise': 'corpus'}

_open = set()  # runs that are being written


class UserError(Exception):
    """A user's mistake. Its message is one line that names the file, flag or row, and what to do."""


def cli(main, speaks=lambda: True, leave=sys.exit):
    """Runs main() as a program: a user's mistake is one line on stderr and exit code 2, an interruption exit code 130.
    speaks() tells whether this process says so, where several end for one reason; leave(code) ends it.
    """
    def end(code, message=None):
        if message and speaks():
            print(f'{os.path.basename(sys.argv[0])}: {" ".join(message.split())}', file=sys.stderr, flush=True)
        for run in list(_open):  # a run that goes on draws nothing again that TensorBoard should have
            with contextlib.suppress(OSError):  # the disk may be full
                run.close()
        leave(code)
    try:
        main()
    except UserError as error:
        end(2, str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output went away
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            end(2)
        else:
            end(2, f'{error.filename}: {error.strerror or error}' if error.filename else str(error.strerror or error))
    except KeyboardInterrupt:
        end(130, 'interrupted; the same command with --resume goes on')
    except Exception:  # a mistake of ours
        traceback.print_exc()
        end(1)


def set_threads(n):
    """CPU threads of torch. 0: OMP_NUM_THREADS, or all cores but one.

    A cell is many small operations, at each of which threads wait for the last: the second of two cores gains a fifth, and
    costs many times the whole as soon as something else wants that core.
    """
    if n == 0 and 'OMP_NUM_THREADS' not in os.environ:
        n = max(1, torch.get_num_threads() - 1)
    if n:
        torch.set_num_threads(n)


def choose_device(name, number=None):
    """'auto' -> CUDA where there is one; otherwise the named device. Raises UserError where it cannot be used.
    number: of this process on its machine, where there are several; each takes the GPU of its number.
    """
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    if number is not None and name.startswith('cuda'):
        if name != 'cuda':
            raise UserError(f'--device {name}: under torchrun each process takes the GPU of its number; say --device cuda')
        name = f'cuda:{number}'
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f'--device {name}: {str(error).splitlines()[0]}') from None
    return device


def autocast(device, wanted):
    """bfloat16 autocast on a GPU that computes in it itself; elsewhere a context that does nothing."""
    able = device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and able)


def describe_device(device, n=1):
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'cpu, {torch.get_num_threads()} threads'
    return name if n == 1 else f'{n} processes, each on {name}'


def set_seed(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def count_parameters(parameters):
    return sum(p.numel() for p in parameters)


def write_aside(path, write):
    """write(file) to a temporary name beside `path`, then rename: the file is whole or not there."""
    with open(f'{path}.tmp', 'wb') as f:
        write(f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(f'{path}.tmp', path)


def write_json(path, tree):
    write_aside(path, lambda f: f.write((json.dumps(tree, indent=1) + '\n').encode()))


def write_torch(path, tree):
    write_aside(path, lambda f: torch.save(tree, f))


def write_csv(path, header, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([header, *rows])
    write_aside(path, lambda f: f.write(text.getvalue().encode()))


class Run:
    """The folder runs/PROGRAM/NAME: config.yaml, PROGRAM.log, metrics.jsonl, checkpoint.pt, tb/.

    Made in two steps, so that a mistake found while data are read leaves an earlier run as it was: the constructor looks
    whether this run may be made and raises UserError if not, `open` makes it. Of several processes one `writes`.
    """

    def __init__(self, program, config, writes=True):
        self.program, self.config, self.writes = program, config, writes
        self.path = os.path.join('runs', program, config.name)
        self.settings = {k: v for k, v in asdict(config).items() if k not in CURRENT}
        self.history, self.logger, self.writer = [], logging.getLogger('emodarts'), None  # silent until `open`
        if config.overwrite and config.resume:
            raise UserError('--overwrite and --resume exclude each other')
        if not writes or not os.path.exists(self.path):
            return
        others = glob.glob(os.path.join(glob.escape(self.path), '*', '**', 'config.yaml'), recursive=True)
        if others:
            raise UserError(f'--name {config.name}: {self.path} is a folder of other runs, as {os.path.dirname(others[0])}; '
                            'take another --name')
        if config.overwrite:
            return
        if not config.resume:
            raise UserError(f'{self.path} exists: --resume goes on with it, --overwrite begins anew, or take another --name')
        try:
            with open(self.file('config.yaml')) as f:
                before = yaml.safe_load(f)
        except FileNotFoundError:
            return
        except yaml.YAMLError:
            raise UserError(f'{self.file("config.yaml")} is damaged: begin anew with --overwrite') from None
        before = {key: value for key, value in (before or {}).items() if key not in CURRENT}
        for key in {**before, **self.settings}:
            then, now = recorded(before, key), self.settings.get(key)
            if then != now:
                raise UserError(f'--resume: {key} is {now}, but {self.path} began with {then}')

    def file(self, name):
        return os.path.join(self.path, name)

    def open(self, data):
        """Makes the folder, or opens it again. Returns the last checkpoint of a resumed run, or None.

        data: datasets.Data; its statistics and digest stand in every checkpoint, and a run does not go on with others.
        """
        self.data = {'mean': data.mean, 'std': data.std, 'digest': data.digest}
        if self.config.overwrite:
            shutil.rmtree(self.path, ignore_errors=True)
        os.makedirs(self.path, exist_ok=True)
        write_aside(self.file('config.yaml'), lambda f: f.write(yaml.safe_dump(self.settings, sort_keys=False).encode()))
        checkpoint = self._read_checkpoint()
        self.logger = self._make_logger()
        self.history = checkpoint['history'] if checkpoint else []
        # Rows after the checkpoint belong to an epoch that will be run again.
        write_aside(self.file('metrics.jsonl'), lambda f: f.write(''.join(map(_json_line, self.history)).encode()))
        self.writer = SummaryWriter(self.file('tb'), flush_secs=10, purge_step=len(self.history) + 1 if checkpoint else None)
        _open.add(self)
        if not checkpoint:
            table = '\n'.join(['|setting|value|', '|---|---|'] + [f'|{k}|{v}|' for k, v in self.settings.items()])
            self.writer.add_text('parameters', table, 0)
        return checkpoint

    def _read_checkpoint(self):
        path = self.file('checkpoint.pt')
        if not os.path.exists(path):
            return None
        try:
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise UserError(f'{path} cannot be read ({type(error).__name__}): begin anew with --overwrite') from None
        if 'digest' not in checkpoint:
            raise UserError(f'{path} was written by an earlier version: begin anew with --overwrite')
        if checkpoint['digest'] != self.data['digest']:
            raise UserError(f'--resume: utterances, labels or speakers are not what {self.path} began with: begin anew with '
                            '--overwrite')
        if any(not torch.equal(checkpoint[name], self.data[name]) for name in ('mean', 'std')):
            raise UserError(f'--resume: the training audio is not what {self.path} began with: begin anew with --overwrite')
        return checkpoint

    def _make_logger(self):
        logger = logging.getLogger(f'emodarts.{self.program}')
        logger.setLevel(logging.INFO)
        logger.propagate = False
        for handler in list(logger.handlers):
            handler.close()
            logger.removeHandler(handler)
        for handler in (logging.FileHandler(self.file(f'{self.program}.log')), logging.StreamHandler(sys.stdout)):
            handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%m/%d %H:%M:%S'))
            logger.addHandler(handler)
        return logger

    def end_epoch(self, row):
        """Appends a row to metrics.jsonl and draws its numbers, nested as {'train': {'ua': .7}}, in TensorBoard."""
        self.history.append(row)
        with open(self.file('metrics.jsonl'), 'a') as f:
            f.write(_json_line(row))
        for group, value in row.items():
            for name, number in (value.items() if isinstance(value, dict) else [(None, value)]):
                if isinstance(number, float):
                    self.writer.add_scalar(f'{group}/{name}' if name else group, number, row['epoch'])

    def save_checkpoint(self, state):
        write_torch(self.file('checkpoint.pt'), {**state, **self.data, 'history': self.history})

    def close(self):
        _open.discard(self)
        self.writer.close()


def recorded(settings, name):
    """A setting of an earlier run's config.yaml, or what runs did before there was one; None where neither is known."""
    return settings.get(name, YOUNGER.get(name))


def _json_line(row):
    return json.dumps(row) + '\n'
