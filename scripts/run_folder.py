"""The folder of a run as report.py and runs.py read it: settings, epochs, results, and the state of the run."""
import fcntl
import re
import time
from functools import cached_property
from pathlib import Path

import config as cf

PROGRAMS = ('search', 'augment')


class RunFolder:
    """runs/search/NAME or runs/augment/NAME. Files that are missing or damaged read as empty."""

    def __init__(self, path):
        self.path = Path(path)

    @cached_property
    def settings(self) -> dict:
        """config.yaml, settings without effect included."""
        try:
            tree = cf.read_yaml_file(self.path / 'config.yaml')
        except cf.UserError:
            return {}
        unused = tree.pop('not_used', {})
        return {**(unused if isinstance(unused, dict) else {}), **tree}

    @cached_property
    def program(self) -> str:
        """'search', 'augment' or 'svm'."""
        if str(self.results.get('model')).startswith('svm') or (self.path / 'svm.log').exists():
            return 'svm'
        return 'search' if (self.path / 'search.log').exists() or 'alpha_split' in self.settings else 'augment'

    @cached_property
    def name(self) -> str:
        """The --name of the run."""
        parts = self.path.resolve().parts
        places = [i for i, part in enumerate(parts[:-1]) if part in PROGRAMS and i and parts[i - 1] == 'runs']
        return '/'.join(parts[places[-1] + 1:]) if places else self.path.name

    @cached_property
    def history(self) -> list[dict]:
        """Rows of metrics.jsonl, up to the first that is damaged."""
        rows = []
        try:
            path = self.path / 'metrics.jsonl'
            for line in cf.read_text(path).splitlines():
                rows.append(cf.parse_json(line, path))
        except cf.UserError:
            pass
        return rows

    @cached_property
    def results(self) -> dict:
        return self.json('results.json')

    def json(self, name: str) -> dict:
        """A JSON file of the run; {} if there is none, or it is damaged."""
        try:
            return cf.read_json(self.path / name)
        except cf.UserError:
            return {}

    @cached_property
    def state(self) -> str:
        """'running', 'finished', 'failed' or 'interrupted'."""
        if self._locked():
            return 'running'
        if (self.path / ('genotype.json' if self.program == 'search' else 'results.json')).exists():
            return 'finished'
        return 'failed' if self.reason else 'interrupted'

    @cached_property
    def reason(self) -> str:
        """Why the run failed: the last line of its log, or what its experiment noted; '' if it did not fail."""
        parts = self.name.split('/')
        if len(parts) == 3 and parts[0] == 'cv':
            job = f'search-{parts[2]}' if re.match(r'f\d', parts[2]) else parts[2]  # as scripts/jobs.py names them
            note = self.path.resolve().parents[3] / 'cv' / parts[1] / 'failed' / f'{job}.txt'
            if note.exists():
                return next(iter(note.read_text(errors='replace').splitlines()), 'failed')
        log = self.path / f'{self.program}.log'
        lines = log.read_text(errors='replace').rstrip().splitlines() if log.exists() else []
        return lines[-1].removeprefix('FAILED: ') if lines and lines[-1].startswith('FAILED: ') else ''

    def _locked(self):
        try:
            with open(self.path / 'lock') as f:
                fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no lock, or a file system without locks
            pass
        return False

    @property
    def dev_ua(self) -> float | None:
        """UA on dev: of the last epoch of a search, of the chosen epoch of a network."""
        if 'dev_ua' in self.results:
            return self.results['dev_ua']
        found = [row['dev']['ua'] for row in self.history if isinstance(row.get('dev'), dict) and 'ua' in row['dev']]
        return (found[-1] if self.program == 'search' else max(found)) if found else None

    @property
    def age(self) -> float:
        """Seconds since a file of the run last changed."""
        return time.time() - max((path.stat().st_mtime for path in self.path.iterdir() if path.is_file()), default=time.time())


def find(root: Path) -> list[RunFolder]:
    """The runs below a folder, by path."""
    return [RunFolder(path.parent) for path in sorted(root.rglob('config.yaml'))
            if not any(part.startswith('.') for part in path.relative_to(root).parts)
            and (path.parent.parent.name != 'cv' or (path.parent / 'metrics.jsonl').exists())]
