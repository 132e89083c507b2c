"""The page's components that show an answer, and how pictures and errors pass between browser and model."""

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from pathlib import Path
from typing import Any

import gradio as gr

from transept.errors import TranseptError, UsageError, say
from transept.serve.answers import Answer
from transept.tasks.task import Task
from transept.words import visible

_SHOWN_SHARE = 0.005
"""Classes of less of the picture would be listed with 0 %."""


def results_of(task: Task, which: str = "") -> tuple[list[Any], list[Any]]:
    """Components to set options with, and those that show the answer; `which` tells two models' apart."""
    if not task.is_dense:
        return [], [gr.Label(label="Classes", elem_id=f"labels{which}")]
    drawing = drawing_of(f"drawing{which}")
    if not lists_objects(task):
        shares = gr.Label(label="Shares of the picture", show_heading=False, elem_id=f"labels{which}")
        return [], [drawing, shares]
    score = gr.Slider(0, 0.95, value=task.shown_defaults["score"], step=0.05, label="Least score")
    headers = ["object", "score", "x1", "y1", "x2", "y2"]
    table = gr.Dataframe(headers=headers, interactive=False, max_height=320, elem_id=f"objects{which}")
    return [score], [drawing, table]


def lists_objects(task: Task) -> bool:
    """Whether its items are objects with boxes, of which those with a low score can be left out."""
    return "score" in task.options


def drawing_of(elem_id: str) -> gr.Image:
    """Without gradio's button that shares pictures at a public site."""
    return gr.Image(
        show_label=False, format="png", interactive=False, buttons=["fullscreen", "download"], elem_id=elem_id
    )


def shown(task: Task, answer: Answer) -> list[Any]:
    """The answer as the components of `_results` take it, and the time."""
    device = next(task.parameters()).device.type
    line = f"{readable(answer.seconds)} on the {_DEVICES.get(device, device)}"
    if lists_objects(task):
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


def readable(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.{0 if seconds >= 0.1 else 1}f} ms"


def uploaded(sent: Any, folder: Path) -> Path | None:
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


def refuse_addresses(picture: gr.Image | gr.File) -> None:
    """A description may name an address in place of a file: gradio would fetch it, and this page calls nobody."""
    keep = picture.async_move_resource_to_block_cache

    async def keep_files(url_or_file_path: str | Path | None) -> str | None:
        if isinstance(url_or_file_path, str) and "://" in url_or_file_path:
            raise no_answer("send the picture as a file, not its address")
        return await keep(url_or_file_path)

    picture.async_move_resource_to_block_cache = keep_files


def no_answer(text: str) -> gr.Error:
    """Shown until it is closed; gradio takes the text for HTML."""
    return gr.Error(html.escape(visible(text), quote=False), duration=None, print_exception=False)


def in_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """Errors become a sentence on the page, and none a traceback."""

    @wraps(function)
    def ask(*inputs: Any) -> Any:
        with _worded():
            return function(*inputs)

    @wraps(function)
    def ask_in_steps(*inputs: Any) -> Iterator[Any]:
        with _worded():
            yield from function(*inputs)

    return ask_in_steps if isgeneratorfunction(function) else ask


@contextmanager
def _worded() -> Iterator[None]:
    try:
        yield
    except TranseptError as error:
        raise no_answer(str(error)) from None
    except Exception as error:  # of the model or its libraries: out of memory, for one
        text = f"the model failed ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        say(text)
        raise no_answer(text) from None


def plain(text: str) -> str:
    """Not Markdown."""
    return html.escape(
        "".join(f"\\{letter}" if letter in "\\`*_[]#" else letter for letter in visible(text)), quote=False
    )
