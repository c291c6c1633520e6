"""How long something took: by the clock, and in time of the cores, which other programs on a CPU hardly lengthen."""
import time
from collections.abc import Iterable

import torch

from models import parallel

NAMES = ('seconds', 'core_seconds')


class Stopwatch:
    """Reads {'seconds': by the clock, 'core_seconds': all threads together}.

    A GPU and several processes have no core_seconds. Threads that wait for each other may count as if they worked, so that only
    `--threads 1` makes core_seconds independent of other programs.
    """

    def __init__(self, device: torch.device, before: dict | None = None):
        """before: what earlier processes read, which counts too; what they did not read stays unknown."""
        known = NAMES if device.type == 'cpu' and parallel.world_size() == 1 else NAMES[:1]
        self.before = {name: (before or {}).get(name, 0.) for name in known if before is None or name in before}
        self.began = self._now()

    @staticmethod
    def _now() -> dict[str, float]:
        return {'seconds': time.monotonic(), 'core_seconds': time.process_time()}

    def read(self) -> dict[str, float]:
        now = self._now()
        return {name: spent + now[name] - self.began[name] for name, spent in self.before.items()}


def total(rows: Iterable[dict]) -> dict[str, float]:
    """The sum of what was read; without core_seconds if a row that took time has none."""
    rows = [row for row in rows if row['seconds']]
    return {name: sum(row[name] for row in rows) for name in NAMES if name == 'seconds' or all(name in row for row in rows)}


def in_minutes(took: dict[str, float]) -> str:
    """'16.0 minutes, 15.2 of cores'."""
    of_cores = f', {took["core_seconds"] / 60:.1f} of cores' if 'core_seconds' in took else ''
    return f'{took["seconds"] / 60:.1f} minutes{of_cores}'
