"""Stopping a run from outside, so that it can go on."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from transept.errors import TranseptError
from transept.tasks.run_folder import STATE


class RunInterruptedError(TranseptError):
    """Ctrl-C: the run is saved and can go on."""

    exit_code = 130


class Interruptible(Protocol):
    """A run that stops between two steps when it is asked to."""

    folder: Path
    interrupted: bool
    saving: bool
    """It writes what it will resume from, which a signal must not stop."""
    handle_signals: Callable[[], None] | None
    """To be called once Lightning has set handlers of its own."""

    def interrupt(self) -> None: ...


def _kept(folder: Path) -> str:
    if not (folder / STATE).exists():
        return "nothing was saved yet"
    return f"what was saved before is whole; go on with: transept train --resume {folder}"


@contextmanager
def graceful_interrupt(run: Interruptible) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) asks to stop between two batches; a second Ctrl-C stops at once, but for what is
    being saved, and further ones change nothing.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if not run.interrupted:
            run.interrupt()
        elif number == signal.SIGINT and not run.saving:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise RunInterruptedError(f"stopped at once; {_kept(run.folder)}")

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
