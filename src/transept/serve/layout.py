"""What stands where on the page: a tab for one picture, one for several, and one for the run's own figures."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from transept.data.images import BadImageError
from transept.errors import UsageError
from transept.explain.attention import attention_kinds
from transept.explain.explanation import title_of
from transept.serve.answers import OVERVIEW, Answer, Answerer
from transept.serve.parts import drawing_of, in_words, plain, refuse_addresses, results_of, shown, uploaded
from transept.tasks.table_results import table_writer
from transept.words import visible

CLEANING, KEPT = 600, 3600
"""Every so many seconds pictures are deleted that are older than so many seconds."""
CSS = """
.gradio-container {width: 100%; max-width: 1180px !important; margin: 0 auto !important}
.gradio-container, .gradio-container * {min-width: 0}
#picture img {width: 100%; height: 100%; object-fit: contain}
#time, #time-1 {opacity: 0.85}
#history .grid-wrap {min-height: 0 !important}
.report .image-container {padding-top: 36px}
#history .grid-container {grid-template-columns: repeat(auto-fill, 96px) !important}
#files .icon-button:has(button) {display: none}
button[role=tab].selected {color: #a13d05 !important}
.dark button[role=tab].selected {color: #ffb27d !important}
@media (max-width: 720px) {
  #attention .image-container {overflow-x: auto}
  #attention .image-container > button {width: 860px}
}
"""
"""On a telephone a sheet of attention is scrolled sideways: its words would be too small to read. A button within a
button, gradio's for further files, is none to a screen reader."""
NAMES = """
() => {
  const name = () => {
    for (const button of document.querySelectorAll("[aria-label^='common.']")) {
      button.setAttribute("aria-label", button.getAttribute("aria-label").slice("common.".length));
    }
    for (const button of document.querySelectorAll("button:not([aria-label])")) {
      if (button.innerText.trim() || button.title) continue;
      const image = button.querySelector("img");
      const place = [...(button.parentElement?.children ?? [])].indexOf(button) + 1;
      button.setAttribute("aria-label", image?.alt || (image ? `picture ${place}` : "open"));
    }
  };
  name();
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
}
"""
"""gradio's buttons that hold a picture alone have no name, and a screen reader would read their address."""
_WORDS = {
    "curves": "Training",
    "confusion": "What is taken for what",
    "calibration": "Calibration",
    "worst": "The worst pictures",
    "confident": "The most confidently wrong",
}
"""What the pictures of a run and of `eval --report` show."""
_REMEMBERED = 24
_SEVERAL = 200
"""Pictures in one table; more are for `transept predict`."""


def build_page(models: Sequence[tuple[str, Answerer]], examples: Sequence[Path], report: Sequence[Path]) -> gr.Blocks:
    """The page of one model, or of two that answer side by side.

    Args:
        models: names and what answers.
        examples: picture files in a folder of the page's own, whose parent holds all that is sent.
        report: pictures of the run.
    """
    (name, answerer), *_ = models
    title = " and ".join(name for name, _ in models)
    with gr.Blocks(title=f"{title} · transept", analytics_enabled=False, delete_cache=(CLEANING, KEPT)) as page:
        gr.Markdown(f"# {plain(title)}\n{_describe(answerer)}")
        folder = examples[0].parent.parent
        with gr.Tab("One picture"):
            _one_picture(models, examples, folder)
        with gr.Tab("Several pictures"):
            _several_pictures(answerer, folder)
        with gr.Tab("The run"):
            _of_the_run(name, report)
    return page


def copied(file: Path, folder: Path) -> Path:
    """A copy in the page's own folder, beside which it serves nothing."""
    place = Path(tempfile.mkdtemp(dir=folder)) / file.name
    shutil.copyfile(file, place)
    return place


def _one_picture(models: Sequence[tuple[str, Answerer]], examples: Sequence[Path], folder: Path) -> None:
    """A picture on the left, what the model says on the right, a classifier's attention below."""
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
            refuse_addresses(picture)
            gr.Examples(
                [[str(file)] for file in examples], picture, cache_examples=False, label="Examples", preload=False
            )
        settings: list[Any] = []
        outputs: list[Any] = []
        counts = []
        for i, (name, answerer) in enumerate(models):
            with gr.Column(scale=3, min_width=300 if len(models) > 1 else 360):
                if len(models) > 1:
                    gr.Markdown(f"## {plain(name)}")
                own, components = results_of(answerer.task, f"-{i}" if i else "")
                settings += own if not settings else []
                components.append(gr.Markdown(elem_id=f"time-{i}" if i else "time"))
                outputs += components
                counts.append(len(components))

    def look(sent: Any, score: float | None = None) -> list[Any]:
        path = uploaded(sent, folder)
        if path is None:
            return [None] * sum(counts)
        said = []
        for _, answerer in models:
            options = {"score": score} if score is not None and "score" in answerer.task.options else {}
            said += shown(answerer.task, answerer.answer(path, **options))
        return said

    # The model takes one question after the other anyway: a line in front of it shows everybody their place.
    line: dict[str, Any] = dict(preprocess=False, concurrency_limit=1, concurrency_id="model")
    inputs = [picture, *settings]
    asked = picture.change(in_words(look), inputs, outputs, api_name="look", **line)
    for setting in settings:
        setting.release(in_words(look), inputs, outputs, api_visibility="private", **line)
    answerer = models[0][1]
    if answerer.task.explains:
        titles = [("A layer of each kind", OVERVIEW)]
        titles += [(title_of(kind), kind) for kind in attention_kinds(answerer.task)]
        kind = gr.Dropdown(titles, value=OVERVIEW, label="Where it looks", elem_id="kind")
        sheet = drawing_of("attention")

        def explain(sent: Any, kind: str = OVERVIEW) -> Any:
            path = uploaded(sent, folder)
            return None if path is None else answerer.explain(path, kind)

        asked.success(in_words(explain), [picture, kind], sheet, api_name="explain", **line)
        kind.input(in_words(explain), [picture, kind], sheet, api_visibility="private", **line)
        outputs = [*outputs, sheet]
    # Nobody shall take the answer to the picture before for the answer to a bad file.
    asked.failure(lambda: [None] * len(outputs), None, outputs, api_visibility="private", queue=False)
    _history(picture, asked, folder)


def _history(picture: gr.Image, asked: Any, folder: Path) -> None:
    """The visitor's pictures, newest first; one that is chosen is looked at again."""
    seen = gr.State([])
    with gr.Accordion("Pictures of this visit", open=False):
        gallery = gr.Gallery(
            show_label=False, columns=8, height="auto", interactive=False, allow_preview=False, elem_id="history"
        )

    def remember(sent: Any, before: list[str]) -> tuple[list[str], list[str]]:
        path = uploaded(sent, folder)
        if path is None:
            return before, before
        now = [str(path), *(each for each in before if each != str(path) and Path(each).is_file())][:_REMEMBERED]
        return now, now

    def chosen(before: list[str], event: gr.SelectData) -> str | None:
        place = event.index if isinstance(event.index, int) else 0
        return before[place] if place < len(before) and Path(before[place]).is_file() else None

    quiet: dict[str, Any] = dict(api_visibility="private", queue=False)
    asked.success(remember, [picture, seen], [seen, gallery], preprocess=False, **quiet)
    gallery.select(chosen, seen, picture, **quiet)


def _several_pictures(answerer: Answerer, folder: Path) -> None:
    """Files on the left; a table of what the model says of each, which can be taken away as CSV."""
    heads = _heads(answerer)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            files = gr.File(label="Pictures", file_count="multiple", height=240, elem_id="files")
            refuse_addresses(files)
        with gr.Column(scale=3, min_width=360):
            table = gr.Dataframe(headers=heads, interactive=False, max_height=420, elem_id="table")
            download = gr.DownloadButton("Download the table", interactive=False, elem_id="download")

    def label(sent: Any) -> Iterator[tuple[Any, Any]]:
        paths = [path for each in sent or [] if (path := uploaded(each, folder))]
        if len(paths) > _SEVERAL:
            raise UsageError(f"{len(paths)} pictures are more than {_SEVERAL}; label them with 'transept predict'")
        rows: list[list[Any]] = []
        for path in paths:
            try:
                found = _rows(path, answerer.answer(path))
            except BadImageError as error:
                found = [[visible(path.name), f"not read: {visible(error.reason)}"]]
            rows += [row + [""] * (len(heads) - len(row)) for row in found]
            yield rows, gr.DownloadButton(interactive=False)
        if rows:
            file = _written(heads, rows, folder)
            yield rows, gr.DownloadButton(value=str(file), interactive=True)
        else:
            yield None, gr.DownloadButton(interactive=False)

    files.change(
        in_words(label), files, [table, download], api_visibility="private", preprocess=False, concurrency_limit=1
    )


def _written(heads: Sequence[str], rows: Sequence[Sequence[Any]], folder: Path) -> Path:
    """`labels.csv` in a folder of its own below the page's."""
    file = Path(tempfile.mkdtemp(dir=folder)) / "labels.csv"
    table = table_writer(file, dict.fromkeys(heads, str))
    table.add(rows)
    table.finish()
    return file


def _heads(answerer: Answerer) -> list[str]:
    if not answerer.task.is_dense:
        return ["file", "label", "score"]
    places = ["x1", "y1", "x2", "y2"] if "score" in answerer.task.options else []
    return ["file", "class", "score" if places else "share", *places]


def _rows(path: Path, answer: Answer) -> list[list[Any]]:
    """The best label of a classifier, each object of a detector, each class of a segmenter."""
    items = answer.items if answer.drawing is not None else answer.items[:1]
    return [
        [visible(path.name), visible(item.label), round(item.score, 4), *(round(side, 1) for side in item.box or ())]
        for item in items
    ] or [[visible(path.name), "nothing"]]


def _of_the_run(name: str, report: Sequence[Path]) -> None:
    """Pictures that training and `eval` have drawn: curves first, the worst pictures last."""
    order = list(_WORDS)
    for file in sorted(report, key=lambda file: order.index(file.stem) if file.stem in order else len(order)):
        gr.Markdown(f"## {plain(_WORDS.get(file.stem, file.stem.replace('_', ' ')))}")
        # Its buttons lie above the picture (CSS), not on what is written in its corner.
        gr.Image(
            str(file),
            show_label=False,
            interactive=False,
            format="png",
            buttons=["fullscreen", "download"],
            elem_classes="report",
        )
    if not any(file.stem == "confusion" for file in report):
        command = f"transept eval {name} --report {name}/report"
        gr.Markdown(f"Confusion matrix, calibration and the worst pictures appear here after `{plain(command)}`.")


def _describe(answerer: Answerer) -> str:
    task, limits = answerer.task, answerer.limits
    parameters = sum(parameter.numel() for parameter in task.parameters()) / 1e6
    size = f"{parameters:.{1 if parameters >= 1 else 2}f} M parameters"
    most = f"{limits.megabytes:g} MB and {limits.megapixels:g} megapixels"
    classes = "one class" if len(task.classes) == 1 else f"{len(task.classes)} classes"
    return f"A {task.kind} of {classes} with {size}. Drop a picture of at most {most}, or take an example."
