"""What programs share that train many networks one after another: a locked folder, its settings, its rows."""
import csv
import fcntl
import math
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import yaml

import config as cf
import utils

CONTENTS = {'network': '--genotype', 'weights': '--init'}  # on record: what the files held, which may be written anew


@contextmanager
def locked(path: Path):
    """Makes the folder and keeps other processes out of it."""
    path.mkdir(parents=True, exist_ok=True)
    with open(path / 'lock', 'a') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise utils.UserError(f'another process is writing {path}: wait for it, or take another --name') from None
        except OSError:  # a file system without locks
            pass
        yield


def check_settings(folder: Path, settings: dict, write: bool):
    """UserError if the trainings in the folder began with other settings. write: keep the settings if there are none yet."""
    path = folder / 'settings.yaml'
    if not path.exists():
        if write:
            utils.write_aside(path, lambda f: f.write(yaml.safe_dump(settings, sort_keys=False).encode()))
        return
    try:
        before = cf.read_yaml_file(path)
    except utils.UserError as error:
        raise utils.UserError(f'{error}: take another --name') from None
    for name in settings.keys() & CONTENTS.keys() & before.keys():  # earlier versions did not record them
        if before[name] != settings[name]:
            raise utils.UserError(f'{CONTENTS[name]} is not the file that {folder} began with: take another --name')
    for name in {name: None for name in (*before, *settings) if name not in CONTENTS}:
        then, now = utils.recorded(before, name), settings.get(name)
        if name == 'digest' and then != now:
            raise utils.UserError(f'utterances, labels or speakers differ from those that {folder} began with: take '
                                  'another --name')
        if then != now:
            raise utils.UserError(f'{name} is {now}, but {folder} began with {then}: take another --name')


# Scores of a training that diverged. Repeating it would change nothing.
DIVERGED = dict.fromkeys(('ua', 'wa', 'loss'), math.nan)


def diverged(rows: list[dict], name: str = 'architecture') -> str:
    """'DIVERGED: 2 trainings (0 seed 1 fold 1, ...)'; '' if none did. name: the column that tells networks apart."""
    found = [f'{row[name]} seed {row["seed"]} fold {row["fold"]}' for row in rows if math.isnan(row['loss'])]
    return f'DIVERGED: {len(found)} training{"s" * (len(found) > 1)} ({", ".join(found)})' if found else ''


def read_rows(path: Path, columns: dict[str, Callable], advice: str = 'delete it, or take another --name') -> list[dict]:
    """The rows of a CSV file of trainings, {column: function of its text}. [] if there is no file; UserError if it is damaged.

    A column that the file lacks has the text ''.
    """
    if not path.exists():
        return []
    try:
        with open(path, newline='', encoding='utf-8') as f:
            return [{name: kind(row.get(name, '')) for name, kind in columns.items()} for row in csv.DictReader(f)]
    except (TypeError, ValueError, csv.Error):
        raise utils.UserError(f'{path} is damaged: {advice}') from None
