"""The page in the browser, made with gradio, and its server."""

import html
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from transept.errors import TranseptError, UsageError, say
from transept.explain.attention import attention_kinds
from transept.explain.explanation import title_of
from transept.files import files_below
from transept.serve.answers import OVERVIEW, Answer, Answerer, Limits
from transept.serve.examples import write_examples
from transept.tasks.task import Task
from transept.words import visible

_WAITING = 64
"""Questions that may wait at once; further ones are told so."""
_SESSIONS = 128
"""Visitors whose components gradio remembers, some 40 kB each; every call of a program is one. By its own 10,000 the
process would grow for hours, and this page needs none of it."""
_SHOWN_SHARE = 0.005
"""Classes of less of the picture would be listed with 0 %."""
_EXAMPLES = "examples"
_CLEANING, _KEPT = 600, 3600
"""Every so many seconds pictures are deleted that are older than so many seconds."""
_CSS = """
.gradio-container {width: 100%; max-width: 1180px !important; margin: 0 auto !important}
.gradio-container, .gradio-container * {min-width: 0}
#picture img {width: 100%; height: 100%; object-fit: contain}
#time {opacity: 0.7}
@media (max-width: 720px) {
  #attention .image-container {overflow-x: auto}
  #attention .image-container > button {width: 860px}
}
"""
"""On a telephone a sheet of attention is scrolled sideways: its words would be too small to read."""


@contextmanager
def serving(
    task: Task,
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: Limits | None = None,
    explained: Task | None = None,
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
        page = build_page(answerer, name, files)
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
                css=_CSS,
            )
        except (OSError, ValueError) as error:
            raise _no_address(host, port, " ".join(str(error).split())) from error
        try:
            yield url
        finally:
            page.close(verbose=False)


@contextmanager
def _swept(folder: Path) -> Iterator[None]:
    """Deletes old files that gradio does not: those of visitors who left in the middle of an upload."""
    ended = threading.Event()

    def sweep() -> None:
        while not ended.wait(_CLEANING):
            for file in files_below(folder):
                with suppress(OSError):  # deleted meanwhile
                    if file.parent.name != _EXAMPLES and time.time() - file.stat().st_mtime > _KEPT + 2 * _CLEANING:
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


def build_page(answerer: Answerer, name: str, examples: Sequence[Path]) -> gr.Blocks:
    """The page: a picture on the left, what the model says on the right, a classifier's attention below."""
    task = answerer.task
    folder = examples[0].parent.parent
    with gr.Blocks(title=f"{name} · transept", analytics_enabled=False, delete_cache=(_CLEANING, _KEPT)) as page:
        gr.Markdown(f"# {_plain(name)}\n{_describe(answerer)}")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(
                    label="Picture",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=300,
                    elem_id="picture",
                )
                _refuse_addresses(picture)
                gr.Examples(
                    [[str(file)] for file in examples], picture, cache_examples=False, label="Examples", preload=False
                )
            with gr.Column(scale=3, min_width=360):
                settings, outputs = _results(task)
                outputs.append(gr.Markdown(elem_id="time"))

        answers = len(outputs)

        def look(sent: Any, score: float | None = None) -> list[Any]:
            path = _uploaded(sent, folder)
            if path is None:
                return [None] * answers
            return _shown(task, answerer.answer(path, **({} if score is None else {"score": score})))

        # The model takes one question after the other anyway: a line in front of it shows everybody their place.
        line: dict[str, Any] = dict(preprocess=False, concurrency_limit=1, concurrency_id="model")
        inputs = [picture, *settings]
        asked = picture.change(_in_words(look), inputs, outputs, api_name="look", **line)
        for setting in settings:
            setting.release(_in_words(look), inputs, outputs, api_visibility="private", **line)
        if task.explains:
            titles = [("A layer of each kind", OVERVIEW)]
            titles += [(title_of(kind), kind) for kind in attention_kinds(task)]
            kind = gr.Dropdown(titles, value=OVERVIEW, label="Where it looks", elem_id="kind")
            sheet = _drawing("attention")

            def explain(sent: Any, kind: str = OVERVIEW) -> Any:
                path = _uploaded(sent, folder)
                return None if path is None else answerer.explain(path, kind)

            asked.success(_in_words(explain), [picture, kind], sheet, api_name="explain", **line)
            kind.input(_in_words(explain), [picture, kind], sheet, api_visibility="private", **line)
            outputs = [*outputs, sheet]
        # Nobody shall take the answer to the picture before for the answer to a bad file.
        asked.failure(lambda: [None] * len(outputs), None, outputs, api_visibility="private", queue=False)
    return page.queue(max_size=_WAITING, api_open=False)


def _results(task: Task) -> tuple[list[Any], list[Any]]:
    """Components to set options with, and those that show the answer."""
    if not task.is_dense:
        return [], [gr.Label(label="Classes", elem_id="labels")]
    drawing = _drawing("drawing")
    if not _lists_objects(task):
        return [], [drawing, gr.Label(label="Shares of the picture", show_heading=False, elem_id="labels")]
    score = gr.Slider(0, 0.95, value=task.shown_defaults["score"], step=0.05, label="Least score")
    headers = ["object", "score", "x1", "y1", "x2", "y2"]
    table = gr.Dataframe(headers=headers, interactive=False, max_height=320, elem_id="objects")
    return [score], [drawing, table]


def _lists_objects(task: Task) -> bool:
    """Whether its items are objects with boxes, of which those with a low score can be left out."""
    return "score" in task.options


def _drawing(elem_id: str) -> gr.Image:
    """Without gradio's button that shares pictures at a public site."""
    return gr.Image(
        show_label=False, format="png", interactive=False, buttons=["fullscreen", "download"], elem_id=elem_id
    )


def _shown(task: Task, answer: Answer) -> list[Any]:
    """The answer as the components of `_results` take it, and the time."""
    device = next(task.parameters()).device.type
    line = f"{_readable(answer.seconds)} on the {_DEVICES.get(device, device)}"
    if _lists_objects(task):
        rows = [
            [visible(item.label), round(item.score, 3), *(round(side, 1) for side in item.box or ())]
            for item in answer.items
        ]
        return [answer.drawing, rows, line]
    best: dict[str, float] = {}
    for item in answer.items:
        best.setdefault(
            visible(item.label), item.score
        )  # ImageNet has two classes called crane; the more probable one counts
    if answer.drawing is None:
        return [best or "no label", line]  # where a picture may have none
    return [answer.drawing, {label: share for label, share in best.items() if share >= _SHOWN_SHARE}, line]


_DEVICES = {"cpu": "CPU", "cuda": "GPU"}


def _readable(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.{0 if seconds >= 0.1 else 1}f} ms"


def _describe(answerer: Answerer) -> str:
    task, limits = answerer.task, answerer.limits
    parameters = sum(parameter.numel() for parameter in task.parameters()) / 1e6
    size = f"{parameters:.{1 if parameters >= 1 else 2}f} M parameters"
    most = f"{limits.megabytes:g} MB and {limits.megapixels:g} megapixels"
    classes = "one class" if len(task.classes) == 1 else f"{len(task.classes)} classes"
    return f"A {task.kind} of {classes} with {size}. Drop a picture of at most {most}, or take an example."


def _uploaded(sent: Any, folder: Path) -> Path | None:
    """The file that the browser sent before, as gradio describes it.

    Descriptions come as they are (`preprocess=False`), since gradio itself would open the picture first.
    """
    if sent is None:
        return None
    path = sent.get("path") if isinstance(sent, dict) else None
    if not isinstance(path, str):
        raise UsageError("send the picture as a file")
    if not Path(path).resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{path!r} was not sent to this page")
    return Path(path)


def _refuse_addresses(picture: gr.Image) -> None:
    """A description may name an address in place of a file: gradio would fetch it, and this page calls nobody."""
    keep = picture.async_move_resource_to_block_cache

    async def keep_files(url_or_file_path: str | Path | None) -> str | None:
        if isinstance(url_or_file_path, str) and "://" in url_or_file_path:
            raise _no_answer("send the picture as a file, not its address")
        return await keep(url_or_file_path)

    picture.async_move_resource_to_block_cache = keep_files


def _no_answer(text: str) -> gr.Error:
    """Shown until it is closed; gradio takes the text for HTML."""
    return gr.Error(html.escape(visible(text), quote=False), duration=None, print_exception=False)


def _in_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """Errors become a sentence on the page, and none a traceback."""

    @wraps(function)
    def ask(*inputs: Any) -> Any:
        try:
            return function(*inputs)
        except TranseptError as error:
            text = str(error)
        except Exception as error:  # of the model or its libraries: out of memory, for one
            text = f"the model failed ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
            say(text)
        raise _no_answer(text)

    return ask


def _plain(text: str) -> str:
    """Not Markdown."""
    return html.escape(
        "".join(f"\\{letter}" if letter in "\\`*_[]#" else letter for letter in visible(text)), quote=False
    )


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
