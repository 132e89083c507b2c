"""Sheets of what detectors and segmenters got wrong, beside what is true."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from transept.draw.boxes import DASHES, add_objects
from transept.draw.legend import blank, entry, shorten
from transept.draw.overlay import overlay
from transept.draw.plain import plain_text
from transept.files import write_atomically
from transept.style import LEAST, MISSED, QUIET, RIGHT, WRONG, Color

_COLUMNS, _WIDE = 3, 3.2
"""Pictures of a row, and inches of each."""
_PANEL = 1.63
"""Inches of each of a segmenter's three."""
_NAMED = 30
"""Classes of a legend."""


class Judged(NamedTuple):
    """A picture with boxes `n 4`, x1 y1 x2 y2 in its pixels."""

    name: str
    picture: Image.Image
    right: np.ndarray
    """Boxes of a detector that are of an object."""
    false: np.ndarray
    said: Sequence[str]
    """What the false ones say."""
    missed: np.ndarray
    """True boxes that it did not find."""
    unseen: Sequence[str]
    """What these are."""


@plain_text
def draw_judged(items: Sequence[Judged], path: Path) -> None:
    """Each picture with the boxes that are right, the false ones, and, dashed, the objects that were missed."""
    columns = min(len(items), _COLUMNS)
    rows = math.ceil(len(items) / columns)
    # As high as the highest picture of the row needs, up to a square and a half.
    tall = [
        max(min(item.picture.height / item.picture.width, 1.5) for item in items[row * columns : (row + 1) * columns])
        for row in range(rows)
    ]
    heights = [_WIDE * each + 0.45 for each in tall]
    figure = Figure(figsize=(_WIDE * columns + 0.2, sum(heights) + 0.4), dpi=144, layout="constrained")
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    for i, item in enumerate(items):
        _draw_boxes(figure.add_subplot(grid[i // columns, i % columns]), item)
    handles = [
        Line2D([], [], color=RIGHT, label="right box"),
        Line2D([], [], color=WRONG, label="false box"),
        Line2D([], [], color=MISSED, linestyle=DASHES, label="object that was missed"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=LEAST)
    write_atomically(path, figure.savefig)


def _draw_boxes(axes: Axes, item: Judged) -> None:
    parts = (item.right, item.false, item.missed)
    counts = [len(part) for part in parts]
    texts = [*[""] * counts[0], *item.said, *item.unseen]
    colors = [_rgb(color) for color, count in zip((RIGHT, WRONG, MISSED), counts, strict=True) for _ in range(count)]
    inches = (_WIDE - 0.2) * max(1.0, min(item.picture.height / item.picture.width, 1.5))
    add_objects(
        axes,
        item.picture,
        np.concatenate(parts),
        np.arange(len(texts)),
        texts,
        colors,
        inches,
        dashed=np.repeat([False, False, True], counts),
    )
    title = f"{shorten(item.name, 60, _WIDE)}\n{counts[2]} missed, {counts[1]} false, {counts[0]} right"
    axes.set_title(title, fontsize=LEAST, color=QUIET, pad=3)


class Compared(NamedTuple):
    """A picture with class numbers `H W`; 255 is ignored."""

    name: str
    score: str
    """How good the prediction is."""
    picture: Image.Image
    true: np.ndarray
    predicted: np.ndarray


@plain_text
def draw_compared(items: Sequence[Compared], classes: Sequence[str], palette: Sequence[Color], path: Path) -> None:
    """Each picture beside its true and its predicted classes, and a legend of those that occur."""
    columns = min(len(items), 2)
    rows = math.ceil(len(items) / columns)
    heights = [
        max(_PANEL * min(item.picture.height / item.picture.width, 1.5) for item in items[row * columns :][:columns])
        + 0.3
        for row in range(rows)
    ]
    counts = np.zeros(256, np.int64)
    for item in items:
        counts += np.bincount(item.true.ravel(), minlength=256) + np.bincount(item.predicted.ravel(), minlength=256)
    shown = [int(number) for number in np.argsort(-counts[: len(classes)], kind="stable") if counts[number]]
    across = 4 if columns == 2 else 2
    legend = 0.23 * math.ceil(min(len(shown), _NAMED + 1) / across) + 0.2
    wide = 3 * _PANEL * columns + 0.2
    figure = Figure(figsize=(wide, sum(heights) + legend), dpi=144, layout="constrained")
    grid = figure.add_gridspec(rows, columns, height_ratios=heights, wspace=0.03)
    for i, item in enumerate(items):
        cells = grid[i // columns, i % columns].subgridspec(1, 3, wspace=0.01)
        panels = [
            (shorten(item.name, 60, _PANEL), item.picture),
            ("true", overlay(item.picture, item.true, palette)),
            (shorten(f"answer, {item.score}", inches=_PANEL), overlay(item.picture, item.predicted, palette)),
        ]
        for k, (title, picture) in enumerate(panels):
            axes = figure.add_subplot(cells[k])
            axes.imshow(picture, interpolation="antialiased")
            axes.set_anchor("W")  # below the beginning of its title, which is wider than a tall picture
            axes.set_axis_off()
            axes.set_title(title, fontsize=LEAST, color=QUIET, pad=2, loc="left")
    room = wide / across - 0.55
    names = [entry(palette[number], shorten(classes[number], inches=room)) for number in shown[:_NAMED]]
    if rest := len(shown) - len(names):
        names.append(blank(f"and {rest} more"))
    figure.legend(
        handles=names,
        loc="outside lower left",
        ncols=across,
        frameon=False,
        fontsize=LEAST,
        handlelength=1.2,
        columnspacing=1.2,
    )
    write_atomically(path, figure.savefig)


def _rgb(color: str) -> Color:
    red, green, blue = (round(255 * part) for part in to_rgb(color))
    return red, green, blue
