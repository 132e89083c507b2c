"""A sheet of pictures with what a classifier says about them, or about a box in them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from transept.draw.boxes import add_outline
from transept.draw.legend import shorten
from transept.draw.plain import plain_text
from transept.files import write_atomically

_BEST, _OTHER, _TEXT, _QUIET = "#c8452d", "#c9d2de", "#222222", "#777777"


class Mark(NamedTuple):
    """A box drawn on a picture."""

    box: tuple[float, float, float, float]
    """x1 y1 x2 y2 in its pixels."""
    color: str
    dashed: bool = False


class Labelled(NamedTuple):
    """A picture and its best classes with their probabilities, best first."""

    name: str
    picture: Image.Image
    best: list[tuple[str, float]]
    truth: str | None = None
    """The class that it is of, where that is known and to be shown."""
    marks: Sequence[Mark] = ()


@plain_text
def draw_sheet(items: Sequence[Labelled], path: Path) -> None:
    """Each picture above its file name and a bar for each of its best classes."""
    columns = min(len(items), max(3, math.ceil(math.sqrt(len(items) * 1.4))))
    rows = math.ceil(len(items) / columns)
    bars = max(1, *(len(item.best) for item in items))
    height = 1.8 + 0.2 * (bars + 1)
    figure = Figure(figsize=(1.9 * columns + 0.2, height * rows + 0.2), dpi=144, layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    for i, item in enumerate(items):
        cell = grid[i // columns, i % columns].subgridspec(2, 1, height_ratios=[1.8, 0.2 * (bars + 1)], hspace=0.02)
        _draw_picture(figure.add_subplot(cell[0]), item)
        draw_bars(figure.add_subplot(cell[1]), item.best, bars)
    write_atomically(path, figure.savefig)


def _draw_picture(axes: Axes, item: Labelled) -> None:
    # Tiny pictures show their pixels, as they are.
    axes.imshow(item.picture, interpolation="nearest" if max(item.picture.size) < 64 else "antialiased")
    for (x1, y1, x2, y2), color, dashed in item.marks:
        box = (x1 - 0.5, y1 - 0.5, x2 - 0.5, y2 - 0.5)  # pixels lie around their numbers
        add_outline(axes, box, color, 1.2, 2, dashed=dashed)
    axes.set_axis_off()
    title = shorten(item.name, 26) if item.truth is None else f"{shorten(item.name, 26)}\nis: {shorten(item.truth, 22)}"
    axes.set_title(title, fontsize=6.5, color=_QUIET, pad=2)


def draw_bars(axes: Axes, best: Sequence[tuple[str, float]], bars: int) -> None:
    """A bar for each class with its probability, with room for so many."""
    axes.set_xlim(0, 1)
    axes.set_ylim(bars - 0.4, -0.6)
    axes.set_axis_off()
    if not best:
        axes.text(0.02, 0, "no label", va="center", fontsize=7.5, color=_QUIET, fontstyle="italic")
    for rank, (label, score) in enumerate(best):
        axes.barh(rank, score, height=0.86, color=_BEST if rank == 0 else _OTHER, alpha=0.35 if rank == 0 else 0.8)
        weight = "bold" if rank == 0 else "normal"
        axes.text(0.02, rank, shorten(label, 20), va="center", fontsize=7.5, color=_TEXT, fontweight=weight)
        axes.text(0.98, rank, f"{score:.1%}", va="center", ha="right", fontsize=7, color=_TEXT)
