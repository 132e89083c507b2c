"""Stopping a run from outside, so that it can go on."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from transept.errors import TranseptError


class RunInterruptedError(TranseptError):
    """Ctrl-C: the run is saved and can go on."""

    exit_code = 130


class Interruptible(Protocol):
    """A run that stops between two steps when it is asked to."""

    handle_signals: Callable[[], None] | None
    """To be called once Lightning has set handlers of its own."""

    def interrupt(self) -> None: ...


@contextmanager
def graceful_interrupt(run: Interruptible) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) asks to stop between two batches; a second Ctrl-C stops at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        run.interrupt()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def install() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    install()
    run.handle_signals = install
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
