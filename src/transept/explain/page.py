"""A sheet of attention maps over their picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from transept.draw.legend import shorten
from transept.draw.legend import width as letters_width
from transept.draw.plain import plain_text
from transept.draw.sheet import draw_bars
from transept.files import write_atomically
from transept.style import HEAT, LEAST, QUIET, TEXT

_COLORS = matplotlib.colormaps[HEAT]
_PANEL, _PICTURE = 1.35, 2.1
"""Inches of the longest side."""
_NARROWEST = 0.95
"""Inches from one panel of a row to the next, for what is written above it."""
_GAP, _BETWEEN, _MARGIN, _LINE = 0.1, 0.16, 0.14, 0.18
_ABOVE = 3.1 * _LINE
"""A row's title, and two lines for each of its panels."""
_DETAIL = 448
"""Longest side in pixels to which a picture is brought before it is tinted."""


class Panel(NamedTuple):
    """One map."""

    title: str
    note: str
    """The value of its brightest colour, or another figure; may be empty."""
    values: np.ndarray
    """`h w`, not negative."""
    smooth: bool = False
    """Interpolated between the centres of the cells; off, the cells show."""
    over_image: bool = True


class Row(NamedTuple):
    title: str
    panels: list[Panel]


@plain_text
def draw_attention(
    picture: Image.Image,
    rows: Sequence[Row],
    path: Path,
    *,
    best: Sequence[tuple[str, float]] = (),
    token: tuple[float, float] | None = None,
) -> None:
    """The picture with its most probable classes on the left, and rows of maps, each over the picture in grey.

    Colours run from 0 to the maximum of each panel.

    Args:
        picture: what the model saw of it.
        rows: of panels with a title each.
        path: to write to; the suffix decides the format (.png, .jpg, .pdf, .svg).
        best: classes with their probabilities.
        token: the place `(x, y)`, as shares of width and height, that maps of one token are of.
    """
    times = _DETAIL / max(picture.size)
    picture = picture.convert("RGB").resize(
        (max(round(picture.width * times), 1), max(round(picture.height * times), 1)), Image.Resampling.BICUBIC
    )
    wide, tall = (side / _DETAIL for side in picture.size)
    step = max(wide * _PANEL, _NARROWEST) + _GAP
    row_height = tall * _PANEL + _ABOVE + _BETWEEN
    beside = max(wide * _PICTURE, 1.6)  # room for names of classes
    left = 2 * _MARGIN + beside + 0.12
    titles = max(letters_width(row.title, weight="bold") for row in rows)
    width = left + max(step * max(len(row.panels) for row in rows), titles, 3.2) + _MARGIN
    below = _ABOVE + 0.5 * _LINE + tall * _PICTURE
    bottom = _MARGIN + len(rows) * row_height
    height = max(bottom + 1.4 * _LINE, _MARGIN + below + 0.2 * len(best) + _MARGIN)
    figure = Figure(figsize=(width, height), dpi=200)

    def place(x: float, y: float, w: float, h: float) -> Axes:
        """Axes with their upper left corner at x and y inches from that of the figure."""
        axes = figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))
        axes.set_axis_off()
        return axes

    axes = place(_MARGIN, _MARGIN + _ABOVE, wide * _PICTURE, tall * _PICTURE)
    axes.imshow(picture, extent=(0, 1, 1, 0), aspect="auto")
    if token is not None:
        _mark(axes, token)
    if best:
        draw_bars(place(_MARGIN, _MARGIN + below, beside, 0.2 * len(best)), best, len(best), beside)
    for i, row in enumerate(rows):
        top = _MARGIN + i * row_height
        figure.text(left / width, 1 - top / height, row.title, fontsize=LEAST, fontweight="bold", va="top")
        for j, panel in enumerate(row.panels):
            x = left + j * step
            axes = place(x, top + _ABOVE, wide * _PANEL, tall * _PANEL)
            _draw_panel(axes, panel, picture, token if panel.over_image and not panel.smooth else None)
            for line, text, color in ((1.1, panel.title, TEXT), (2.05, panel.note, QUIET)):
                y = 1 - (top + line * _LINE) / height
                text = shorten(text, inches=step - _GAP)
                figure.text(x / width, y, text, fontsize=LEAST, va="top", color=color)
    _draw_scale(figure, left / width, 1 - (bottom + 0.6 * _LINE) / height, 0.9 / width, 0.4 * _LINE / height)
    write_atomically(path, figure.savefig)


def _draw_panel(axes: Axes, panel: Panel, picture: Image.Image, token: tuple[float, float] | None) -> None:
    values = panel.values / max(float(panel.values.max()), 1e-12)
    if not panel.over_image:
        axes.imshow(values, cmap=_COLORS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        return
    mode = Image.Resampling.BICUBIC if panel.smooth else Image.Resampling.NEAREST
    large = Image.fromarray(values.astype(np.float32)).resize(picture.size, mode)
    share = np.asarray(large).clip(0, 1)[..., None]
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    strength = 0.35 + 0.45 * share
    axes.imshow(grey * (1 - strength) + _COLORS(share[..., 0])[..., :3] * strength, extent=(0, 1, 1, 0), aspect="auto")
    if token is not None:
        h, w = values.shape
        column, row = min(int(token[0] * w), w - 1), min(int(token[1] * h), h - 1)
        axes.add_patch(Rectangle((column / w, row / h), 1 / w, 1 / h, fill=False, edgecolor="white", linewidth=0.7))


def _mark(axes: Axes, token: tuple[float, float]) -> None:
    dark = withStroke(linewidth=2.4, foreground="black")
    axes.plot(*token, "+", color="white", markersize=9, markeredgewidth=1.3, path_effects=[dark])


def _draw_scale(figure: Figure, x: float, y: float, w: float, h: float) -> None:
    axes = figure.add_axes((x, y, w, h))
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=_COLORS, aspect="auto")
    axes.set_axis_off()
    text = "0 to the maximum of each panel"
    figure.text(x + 1.08 * w, y + h / 2, text, fontsize=LEAST, va="center", color=QUIET)
