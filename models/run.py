"""The folder of a run: settings, log, checkpoints, TensorBoard. One process writes it, and any moment may be its last."""
import contextlib
import difflib
import fcntl
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import torch
import yaml

import utils
from config import UserError, contents_of, escape_markdown, plain
from models import events

PREVIOUS = 'checkpoint.previous.pt'
BEFORE, MOVING = '.before', '.before.moving'  # in a run's folder: the run that it replaces; the same while it is moved
KEPT = {'lock', BEFORE, MOVING}


class Run:
    """The folder runs/PROGRAM/NAME: config.yaml, PROGRAM.log, metrics.jsonl, checkpoint.pt and the one before it, tb/.

    The constructor checks whether the run may be made, `open` creates or resumes it, `close` ends it. The data are loaded
    between the first two, so a mistake in them does not touch an earlier run. Of several processes only one `writes`: the
    others call neither `open` nor `file`, and the other methods do nothing there.
    """

    def __init__(self, program: str, config, writes: bool = True):
        self.program, self.config, self.writes = program, config, writes
        self.root = os.path.join('runs', program)
        self.path = os.path.join(self.root, config.name)
        self.settings = {name: value for name, value in asdict(config).items() if name not in utils.MAY_CHANGE}
        self.format, self.history, self.lock = utils.FORMAT, [], None
        self.tag = lambda group, name: f'{group}/{name}' if name else group  # of a number of a row, in TensorBoard
        self.logger, self.writer = logging.getLogger('emodarts.silent'), _Nothing()
        self._check()

    def _check(self):
        """UserError if this run must not be made: it would lose, mix or hide another."""
        name, path = self.config.name, self.path
        inside = [found for found in self._runs(path) if found != path]
        if inside:
            raise UserError(f'--name {name}: {path} contains other runs, such as {inside[0]}; take another --name')
        for parent in list(Path(path).parents)[:-2]:  # without runs and the folder it is in
            if (parent / 'config.yaml').exists():
                raise UserError(f'--name {name}: {parent} is a run; take a --name outside it')
        if self.config.overwrite and os.path.islink(path):
            raise UserError(f'--overwrite: {path} is a link to another folder: remove the link, or take another --name')
        self.exists = os.path.exists(self.file('config.yaml'))
        if not self.exists and os.path.lexists(path) and not self._only_begun():
            raise UserError(f'{path} exists and is not a run: take another --name')
        if not self.exists or self.config.overwrite:
            return
        if not self.config.resume:
            raise UserError(f'{path} exists: continue it with --resume, replace it with --overwrite, or take another --name')
        before = utils.read_settings(self.file('config.yaml'))
        self.format = before.pop('format')
        if self.format > utils.FORMAT:
            raise UserError(f'{path} was made by a newer version of emoDARTS: update, or take another --name')
        unused = self.config.unused()
        for key in {**before, **self.settings}:
            then, now = utils.recorded(before, key), self.settings.get(key)
            if key not in utils.MAY_CHANGE and key not in unused and then != now:
                again = f'add --prosody_version {then}, or ' if key == 'prosody_version' else ''
                raise UserError(f'--resume: {plain(key)} is {plain(now)}, but {path} began with {plain(then)}; {again}take '
                                'another --name')

    def _only_begun(self):
        """Whether a process was killed here before it wrote config.yaml, or while it moved the run."""
        return os.path.isdir(self.path) and (os.path.isdir(self.file(MOVING)) or all(
            name in KEPT or utils.ASIDE.fullmatch(name) for name in os.listdir(self.path)))

    @staticmethod
    def _runs(folder):
        """Folders of runs at and below `folder`, sorted."""
        return sorted(above for above, _, files in os.walk(folder) if 'config.yaml' in files
                      and not os.path.basename(above).startswith('.'))

    def file(self, name: str) -> str:
        """Path of a file of this run."""
        return os.path.join(self.path, name)

    def open(self, data):
        """Creates the folder, or opens it again. Returns the last checkpoint of a resumed run, else None.

        data: datasets.Data. Its normalisation and digests are in every checkpoint; a run does not continue with others.
        """
        self.data = {'mean': data.mean, 'std': data.std, 'digest': data.digest, 'audio': data.audio}
        os.makedirs(self.path, exist_ok=True)
        self._lock()
        self._finish_moving()
        try:
            self._check()  # again: another process may have made this run meanwhile
        except UserError:
            self.lock.close()
            raise
        utils.open_runs.add(self)
        try:
            return self._begin(data)
        except Exception:
            self.close(failed=True)
            raise

    def _begin(self, data):
        """What `open` does under the lock."""
        if self.config.overwrite:
            self._set_aside()
        utils.remove_asides(self.path, ours=True)
        names = dict.fromkeys(('name', 'genotype', 'init'))  # of files: what is in them shows elsewhere
        self.provenance = {**utils.provenance(), 'settings': utils.digest_of({**self.settings, **names}),
                           'digest': data.digest,
                           'speakers': {part: list(getattr(data.fold, part)) for part in ('train', 'dev', 'test')},
                           'data_path': self.config.data_path}
        self._write_settings()  # first, since they tell that the folder is a run
        self.logger = self._make_logger()
        checkpoint = self._read_checkpoint() if self.config.resume else None
        self.history, self.resumed = checkpoint['history'] if checkpoint else [], bool(checkpoint)
        # Rows after the checkpoint belong to an epoch that will be run again, and so do events.
        utils.write_text(self.file('metrics.jsonl'), ''.join(map(_json_line, self.history)))
        done = len(self.history)
        self.writer = events.Board(self.file('tb'), self.logger.warning, checkpoint, f'.{done:06}')
        if self.config.resume and not self.exists:
            self._announce_new()
        elif self.config.resume and not checkpoint:
            self.logger.info('no complete epoch in %s: it begins again', self.path)
        if checkpoint:
            inside = (checkpoint.get('steps') or {}).get('done')
            after = f'step {inside} of epoch {len(self.history) + 1}' if inside else f'epoch {len(self.history)}'
            self.logger.info('resumed after %s of %s', after, self.path)
            before = checkpoint.get('provenance') or {}
            changed = [f'{name} {now} (there {before[name]})' for name in ('commit', 'torch', 'numpy', 'device')
                       if before.get(name) not in (None, now := self.provenance[name])]
            if changed:
                self.logger.info('NOTE: the checkpoint was written by another %s', ', '.join(changed))
        else:
            rows = [f'|{name}|{escape_markdown(value)}|' for name, value in self.settings.items()]
            self.writer.add_text('parameters', '\n'.join(['|setting|value|', '|---|---|', *rows]), 0)
        defaults = {f.name: f.default for f in fields(self.config)}
        unused = [f'{name} {self.settings[name]} (with {why})' for name, why in self.config.unused().items()
                  if self.settings[name] != defaults[name]]
        if unused:
            self.logger.info('NOTE: settings without effect: %s', ', '.join(unused))
        return checkpoint

    def _lock(self):
        """Refuses a second process with the same --name. The lock goes with the process, however it ends."""
        self.lock = open(self.file('lock'), 'a')
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f'another process is writing {self.path}: wait for it, or take another --name') from None
        except OSError:
            pass  # a file system without locks

    def _set_aside(self):
        """Moves the run that is to be overwritten to BEFORE, where it stays until the new one has a checkpoint.

        If it is there already, what is in the folder is a new run that never had one; or one that was killed between its first
        checkpoint and the end of what it replaced.
        """
        if os.path.isdir(self.file(BEFORE)) and self._has_checkpoint():
            shutil.rmtree(self.file(BEFORE))
        if os.path.isdir(self.file(BEFORE)):
            self._clear()
        elif names := self._entries():
            os.mkdir(self.file(MOVING))
            for name in names:
                os.rename(self.file(name), self.file(os.path.join(MOVING, name)))
            os.rename(self.file(MOVING), self.file(BEFORE))

    def _give_back(self):
        """Undoes `_set_aside`, if the new run has no checkpoint."""
        if os.path.isdir(self.file(BEFORE)) and not self._has_checkpoint():
            self._clear()
            os.rename(self.file(BEFORE), self.file(MOVING))
            self._finish_moving()
            print(f'{self.path} is again the run that was to be overwritten', file=sys.stderr)

    def _has_checkpoint(self):
        return any(os.path.exists(self.file(name)) for name in ('checkpoint.pt', PREVIOUS))

    def _finish_moving(self):
        """Puts back what a killed process was moving."""
        if os.path.isdir(self.file(MOVING)):
            for name in os.listdir(self.file(MOVING)):
                os.rename(self.file(os.path.join(MOVING, name)), self.file(name))
            os.rmdir(self.file(MOVING))

    def _entries(self):
        return [name for name in os.listdir(self.path) if name not in KEPT]

    def _clear(self):
        """Deletes the new run, but neither the lock that this process holds nor the run that was moved."""
        for path in map(self.file, self._entries()):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    def _write_settings(self):
        unused = self.config.unused()
        tree = {'format': self.format, **{name: value for name, value in self.settings.items() if name not in unused}}
        if unused:
            tree['not_used'] = {name: self.settings[name] for name in unused}
        utils.write_aside(self.file('config.yaml'), lambda f: f.write(yaml.safe_dump(tree, sort_keys=False).encode()))

    def _announce_new(self):
        others = [os.path.relpath(path, self.root) for path in self._runs(self.root) if path != self.path]
        near = difflib.get_close_matches(self.config.name, others, 3)
        self.logger.warning('WARNING: --resume: there was no run %s, so a NEW run begins.%s', self.path,
                            f' Runs with similar names: {", ".join(near)}' if near else '')

    def _read_checkpoint(self):
        """The newest checkpoint that is whole and of these data, or None if there is none. UserError."""
        path, previous = self.file('checkpoint.pt'), self.file(PREVIOUS)
        try:
            checkpoint = utils.read_torch(path)
        except FileNotFoundError:
            if not os.path.exists(previous):
                return None
            checkpoint = self._fall_back(f'{path} is missing')
        except UserError as error:
            checkpoint = self._fall_back(str(error))
        if 'digest' not in checkpoint:
            raise UserError(f'{path} was written by an earlier version: begin anew with --overwrite')
        if checkpoint['digest'] != self.data['digest']:
            raise UserError(f'--resume: utterances, labels or speakers differ from those {self.path} began with: begin anew '
                            'with --overwrite')
        with self.reading():
            utils.check_history(checkpoint['history'])
            same = all(torch.equal(checkpoint[name], self.data[name]) for name in ('mean', 'std'))
            made_by, files = checkpoint.get('audio', self.data['audio'])  # earlier versions have none
        # With other versions of a library the digests of the same files differ.
        if not same or (made_by == self.data['audio'][0] and files != self.data['audio'][1]):
            raise UserError(f'--resume: recordings differ from those {self.path} began with: begin anew with --overwrite')
        return checkpoint

    def reading(self):
        """Inside, what is wrong with the contents of the checkpoint becomes a UserError."""
        return contents_of(self.file('checkpoint.pt'), 'begin anew with --overwrite')

    def _fall_back(self, why):
        """The checkpoint before the last one, which takes its place: the next one must not replace the only good one."""
        try:
            checkpoint = utils.read_torch(self.file(PREVIOUS))
        except (FileNotFoundError, UserError):
            raise UserError(f'{why}, and there is no whole one before it: begin anew with --overwrite') from None
        os.replace(self.file(PREVIOUS), self.file('checkpoint.pt'))
        self.logger.warning('WARNING: %s: continuing from the checkpoint before it', why)
        return checkpoint

    def _make_logger(self):
        logger = logging.getLogger(f'emodarts.{self.program}')
        logger.setLevel(logging.INFO)
        logger.propagate = False
        for handler in list(logger.handlers):
            handler.close()
            logger.removeHandler(handler)
        for handler in (_File(self.file(f'{self.program}.log')), _Stdout(sys.stdout)):
            handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%m/%d %H:%M:%S'))
            logger.addHandler(handler)
        return logger

    def end_epoch(self, row: dict):
        """Appends a row to metrics.jsonl and plots its numbers, nested as {'train': {'ua': .7}}, in TensorBoard."""
        self.history.append(row)
        if not self.writes:
            return
        if n := row.get('train', {}).get('skipped'):
            self.logger.warning('WARNING: epoch %d: %d steps were skipped, whose gradients were not finite', row['epoch'], n)
        self._append('metrics.jsonl', _json_line(row))
        for group, value in row.items():
            for name, number in (value.items() if isinstance(value, dict) else [(None, value)]):
                if isinstance(number, float):
                    self.writer.add_scalar(self.tag(group, name), number, row['epoch'])

    def _append(self, name, text):
        """Appends to a file that the next start cuts back to the checkpoint."""
        try:
            fd = os.open(self.file(name), os.O_WRONLY | os.O_APPEND)
            try:
                utils.write_all(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.file(name)) from None

    def draw(self, tag: str, make_figure: Callable, step: int):
        """Adds make_figure() to TensorBoard. If that fails, the log has one warning, and the run goes on."""
        self.writer.draw(tag, make_figure, step)

    def write_figure(self, name: str, make_figure: Callable):
        """Writes make_figure() to a PNG file of this run; a failure is a warning, as in `draw`."""
        def write(f):
            make_figure().savefig(f, dpi=110, format='png')
        self.writer.guard(lambda: utils.write_aside(self.file(name), write), name)

    def save(self, name: str, tree: dict):
        """torch.save to a file of this run."""
        if self.writes:
            utils.write_torch(self.file(name), tree)

    def save_checkpoint(self, state: dict):
        """Writes what --resume needs, and keeps the checkpoint before it. What has been drawn is on disk first."""
        if not self.writes:
            return
        self.writer.flush()
        tree = {**state, **self.data, 'history': self.history, 'events': events.sizes(self.file('tb')),
                'provenance': self.provenance}
        with utils.signals_held():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.file(PREVIOUS))
            try:
                os.link(self.file('checkpoint.pt'), self.file(PREVIOUS))
            except OSError:  # there is none yet, or the file system has no links
                with contextlib.suppress(FileNotFoundError):
                    os.replace(self.file('checkpoint.pt'), self.file(PREVIOUS))
            self.save('checkpoint.pt', tree)
        shutil.rmtree(self.file(BEFORE), ignore_errors=True)

    def close(self, failed: bool = False):
        """Flushes TensorBoard and releases the lock. failed: before its first checkpoint, --overwrite has changed nothing."""
        utils.open_runs.discard(self)
        self.writer.close()
        if self.lock:
            if failed:
                self._give_back()
            elif self.writes:
                shutil.rmtree(self.file(BEFORE), ignore_errors=True)
            self.lock.close()


class _Stdout(logging.StreamHandler):
    """Raises what logging would print as a traceback and forget, such as a broken pipe."""

    def handleError(self, record):
        raise


class _File(logging.FileHandler):
    """Forgets lines that cannot be written: the disk is full, say, which the next checkpoint will report."""

    def handleError(self, record):
        pass


class _Nothing:
    """A SummaryWriter of a process that does not write."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def _json_line(row):
    return json.dumps(row) + '\n'
