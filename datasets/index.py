"""An index of the cache, which saves reading audio again."""
import contextlib
import json
import os
import re
import time
from collections.abc import Callable

import utils
from config import UserError, read_json
from datasets.utterance import Utterance

SETTLED_NS = 2_000_000_000  # a file changed less than 2 s ago is not indexed: another change might leave the same time stamp

KEY = re.compile(r'[0-9a-f]{64}\Z')  # becomes the name of a file


class Index:
    """Keys of utterances by path and segment: a recording that has not changed is not read again.

    The file holds {path: [[size, mtime, ctime], {segment: key}]}. If it is damaged or lost, it is
    made anew. Processes that write it at the same time may lose each other's entries, which only
    costs time.
    """

    def __init__(self, path: str, make_key: Callable[[Utterance], str]):
        self.path, self.make_key = path, make_key
        self.entries, self.new = self._read(), {}

    def key(self, utterance: Utterance) -> str:
        """make_key(utterance), known or made. UserError if there is no such file."""
        path, segment = os.path.abspath(utterance.path), f'{utterance.start} {utterance.end}'
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(f'{utterance.path}: cannot be read ({error.strerror})') from None
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        known, keys = self.entries.get(path, (None, {}))
        if known == stamp and segment in keys:
            return keys[segment]
        key = self.make_key(utterance)
        if time.time_ns() - max(stamp[1:]) > SETTLED_NS:
            keys = {**keys, segment: key} if known == stamp else {segment: key}
            self.entries[path] = self.new[path] = [stamp, keys]
        return key

    def save(self) -> None:
        """Writes the new entries, with those that others wrote meanwhile."""
        if self.new:
            text = json.dumps({**self._read(), **self.new})
            with contextlib.suppress(OSError):  # a read-only cache can still be used
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
                utils.write_aside(self.path, lambda f: f.write(text.encode()), shared=True)

    def _read(self):
        try:
            entries = read_json(self.path, limit=1 << 30)
            if all(KEY.match(key) for _, keys in entries.values() for key in keys.values()):
                return entries
        except (UserError, ValueError, TypeError, AttributeError):
            pass
        return {}
