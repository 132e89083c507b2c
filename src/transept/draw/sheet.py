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
from transept.style import GRID, LEAST, OURS, QUIET, TEXT, WIDEST

_WIDE, _LINE = 2.3, 0.2
"""Inches of a picture, and of a line below it."""
_COLUMNS = int((WIDEST - 0.1) / (_WIDE + 0.1))
_SHARE = 0.62
"""Inches of a percentage."""


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
    columns = min(len(items), max(3, math.ceil(math.sqrt(len(items) * 1.4))), _COLUMNS)
    rows = math.ceil(len(items) / columns)
    bars = max(1, *(len(item.best) for item in items))
    title = _LINE * (1 if all(item.truth is None for item in items) else 2)
    ratios = [_WIDE - 0.3 + title, _LINE * bars]
    figure = Figure(
        figsize=((_WIDE + 0.1) * columns + 0.1, (sum(ratios) + 0.2) * rows + 0.1), dpi=144, layout="constrained"
    )
    grid = figure.add_gridspec(rows, columns)
    for i, item in enumerate(items):
        cell = grid[i // columns, i % columns].subgridspec(2, 1, height_ratios=ratios, hspace=0.02)
        _draw_picture(figure.add_subplot(cell[0]), item)
        draw_bars(figure.add_subplot(cell[1]), item.best, bars, _WIDE)
    write_atomically(path, figure.savefig)


def _draw_picture(axes: Axes, item: Labelled) -> None:
    # Tiny pictures show their pixels, as they are.
    axes.imshow(item.picture, interpolation="nearest" if max(item.picture.size) < 64 else "antialiased")
    for (x1, y1, x2, y2), color, dashed in item.marks:
        box = (x1 - 0.5, y1 - 0.5, x2 - 0.5, y2 - 0.5)  # pixels lie around their numbers
        add_outline(axes, box, color, 1.2, 2, dashed=dashed)
    axes.set_axis_off()
    title = shorten(item.name, inches=_WIDE)
    if item.truth is not None:
        title += "\n" + shorten(f"is: {item.truth}", inches=_WIDE)
    axes.set_title(title, fontsize=LEAST, color=QUIET, pad=2)


def draw_bars(axes: Axes, best: Sequence[tuple[str, float]], bars: int, inches: float) -> None:
    """A bar for each class with its probability, with room for so many; the axes are so many inches wide."""
    axes.set_xlim(0, 1)
    axes.set_ylim(bars - 0.4, -0.6)
    axes.set_axis_off()
    if not best:
        axes.text(0.02, 0, "no label", va="center", fontsize=LEAST, color=QUIET, fontstyle="italic")
    for rank, (label, score) in enumerate(best):
        axes.barh(rank, score, height=0.86, color=OURS if rank == 0 else GRID, alpha=0.35 if rank == 0 else 1)
        weight = "bold" if rank == 0 else "normal"
        name = shorten(label, inches=0.96 * inches - _SHARE, weight=weight)
        axes.text(0.02, rank, name, va="center", fontsize=LEAST, color=TEXT, fontweight=weight)
        axes.text(0.98, rank, f"{score:.1%}", va="center", ha="right", fontsize=LEAST, color=TEXT)
