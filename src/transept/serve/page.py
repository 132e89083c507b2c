"""The server of the page in the browser, which gradio makes."""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from transept.errors import TranseptError
from transept.files import files_below
from transept.serve.answers import Answerer, Limits
from transept.serve.examples import write_examples
from transept.serve.layout import CLEANING, CSS, KEPT, NAMES, build_page, copied
from transept.tasks.task import Task

_WAITING = 64
"""Questions that may wait at once; further ones are told so."""
_SESSIONS = 128
"""Visitors whose components gradio remembers, some 40 kB each; every call of a program is one. By its own 10,000 the
process would grow for hours, and this page needs none of it."""
_KEEP_ALIVE = 75
"""Seconds for which an idle connection stays open. By uvicorn's own five it is closed just when httpx, and so gradio's
client, uses it for the last time: where the two cross, a question is lost. Longer than proxies keep theirs (60)."""
_EXAMPLES = "examples"


@contextmanager
def serving(
    task: Task,
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: Limits | None = None,
    explained: Task | None = None,
    compared: tuple[str, Task] | None = None,
    report: Sequence[Path] = (),
) -> Iterator[str]:
    """A server of the page while the body of the `with` runs; gives the page's address.

    It calls nobody: no telemetry, no version check, no link from outside, no fonts or scripts of other servers.
    Pictures sent and drawn lie in a temporary folder of its own, and are deleted with it.

    Args:
        task: a trained one.
        name: the page's title.
        host: the address to listen at; the default is reached from this machine alone.
        port: None: the first free one from 7860 on.
        limits: of files that are taken.
        explained: the task as it was trained, where `task` is a faster form of it.
        compared: the name and the task of a second model, which answers beside the first.
        report: pictures of the run (curves, confusion), for a tab of their own.

    Raises:
        TranseptError: the address or port cannot be had.
    """
    _check_address(host, port)
    with tempfile.TemporaryDirectory(prefix="transept-serve-") as folder, _environment(folder), _swept(Path(folder)):
        answerer = Answerer(task, limits, explained)
        examples = Path(folder, _EXAMPLES)
        examples.mkdir()
        files = write_examples(task, examples)
        answerer.answer(files[0])  # the first call of a model takes longer than all others
        models = [(name, answerer)]
        if compared is not None:
            models.append((compared[0], Answerer(compared[1], limits)))
        page = build_page(models, files, [copied(file, Path(folder)) for file in report])
        page.queue(max_size=_WAITING, api_open=False)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                inbrowser=False,
                max_file_size=round(answerer.limits.megabytes * 1e6),
                footer_links=[],
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                enable_monitoring=False,
                state_session_capacity=_SESSIONS,
                app_kwargs={"exception_handlers": {ClientDisconnect: _gone}},
                css=CSS,
                js=NAMES,
            )
        except (OSError, ValueError) as error:
            raise _no_address(host, port, " ".join(str(error).split())) from error
        # gradio has no option for it; each connection reads it when it is made.
        page.server.config.timeout_keep_alive = _KEEP_ALIVE
        try:
            yield url
        finally:
            page.close(verbose=False)


@contextmanager
def _swept(folder: Path) -> Iterator[None]:
    """Deletes old files that gradio does not: those of visitors who left in the middle of an upload."""
    ended = threading.Event()

    def sweep() -> None:
        while not ended.wait(CLEANING):
            for file in files_below(folder):
                with suppress(OSError):  # deleted meanwhile
                    if file.parent.name != _EXAMPLES and time.time() - file.stat().st_mtime > KEPT + 2 * CLEANING:
                        file.unlink()

    sweeper = threading.Thread(target=sweep, daemon=True)
    sweeper.start()
    try:
        yield
    finally:
        ended.set()
        sweeper.join()


def _gone(request: Request, error: Exception) -> Response:
    """Nobody reads it; without it each visitor who leaves in the middle of an upload is a traceback in the log."""
    return Response(status_code=400)


def _check_address(host: str, port: int | None) -> None:
    """gradio would wait for ever at a host that is none."""
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port or 0))
    except OSError as error:
        raise _no_address(host, port, error.strerror or str(error)) from error


def _no_address(host: str, port: int | None, reason: str) -> TranseptError:
    where = f"{host}:{port}" if port else host
    return TranseptError(f"cannot serve at {where} ({reason}); give another --port or --host")


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    """gradio reads these where it has no argument."""
    settings = {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
