"""Mistakes in a corpus, collected so that one run reports all of them."""
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from config import UserError, one_line
from datasets.utterance import Utterance

LISTED = 20  # faults that a message lists; it counts the others


class CorpusError(UserError):
    """The faults of a corpus, in one line, which may be as long as LISTED messages."""
    messages: list[str]  # all of them
    found: list[Utterance]  # those without a fault

    def __init__(self, message: str):
        Exception.__init__(self, message)


class Faults:
    """Collects UserErrors.

        for row in rows:
            with faults.collect():
                utterances.append(read(row))
        faults.check(utterances)
    """

    def __init__(self, messages: Iterable[str] = ()):
        self.messages = list(messages)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Records a UserError that is raised inside, and goes on."""
        try:
            yield
        except UserError as error:
            self.messages.append(str(error))

    def check(self, found: Iterable[Utterance] = ()) -> None:
        """Raises a CorpusError if there were faults."""
        messages = list(dict.fromkeys(map(one_line, self.messages)))  # a file of many segments is at fault once
        if not messages:
            return
        n, listed = len(messages), '; '.join(messages[:LISTED])
        more = f'; and {n - LISTED} more' if n > LISTED else ''
        error = CorpusError(listed if n == 1 else f'{n} faults: {listed}{more}')
        error.messages, error.found = messages, list(found)
        raise error
