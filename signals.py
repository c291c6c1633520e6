"""Signals of a keyboard or a scheduler. They end a program in one line, and never in the middle of a write.

Only the standard library is imported: a program calls `begin` before its slow imports.
"""
import contextlib
import os
import signal
import sys
import threading

AGAIN = 75  # exit code after SIGTERM and SIGUSR1: the same command with --resume continues (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_writing, _training, _caught = 0, False, None


class Stopped(BaseException):
    """SIGTERM or SIGUSR1 has arrived. Like KeyboardInterrupt it is no Exception."""

    def __str__(self):
        return f'stopped by {signal.Signals(self.args[0]).name}'


def begin():
    """Until `listening` nothing needs to be saved: a signal ends the process at once."""
    _handle_by(_leave)


def _leave(number, _):
    os.write(2, f'{os.path.basename(sys.argv[0])}: ended by {signal.Signals(number).name} before it began\n'.encode())
    os._exit(INTERRUPTED if number == signal.SIGINT else AGAIN)


def _handle_by(handler):
    """Returns the handlers before. Signals that are ignored, as by nohup, stay so."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    return before


@contextlib.contextmanager
def listening():
    """Inside, SIGINT raises KeyboardInterrupt, and SIGTERM and SIGUSR1 raise Stopped, unless they are held."""
    global _caught, _training
    _caught, _training = None, False
    before = _handle_by(_handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler not in (None, _leave):
                signal.signal(number, handler)


def _handle(number, _):
    global _caught
    _caught = number
    _deliver()


def _deliver():
    global _caught
    if _caught is None or _writing or _training and _caught != signal.SIGINT:
        return
    number, _caught = _caught, None
    raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)


@contextlib.contextmanager
def held():
    """Signals that arrive inside take effect at the end."""
    global _writing
    if threading.current_thread() is not threading.main_thread():  # no signal is handled there
        yield
        return
    _writing += 1
    try:
        yield
    finally:
        _writing -= 1
    _deliver()


def hold(training: bool):
    """While `training` SIGTERM and SIGUSR1 wait: the loop asks `pending` after every step."""
    global _training
    _training = training
    _deliver()


def pending() -> int:
    """Number of the signal that waits; 0 if none does."""
    return _caught or 0


def stop(number: int):
    """Ends the program as if the signal had arrived now."""
    global _caught
    _caught = None
    raise Stopped(number)
