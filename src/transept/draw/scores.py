"""Pictures of scores: which classes are taken for which, how far probabilities can be believed."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from transept.draw.legend import LONGEST, shorten, width
from transept.draw.plain import plain_text
from transept.files import write_atomically
from transept.metrics.calibration import Calibration
from transept.style import GRID, LEAST, QUIET, RIGHT, SHARES, TEXT, WRONG
from transept.words import visible

_NUMBERED = 15
"""Classes up to which each cell has its share written in it."""
_SMALLEST = 1.8
"""Inches of the whole matrix, however few its classes are."""
_TITLE, _BAR = 0.2, 0.15
"""Inches that the name of an axis takes, and the bar of the scale."""
_NAMED = 201
"""Rows up to which each row and column has its name: 200 classes and the background."""


@plain_text
def draw_confusion(matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], unit: str, path: Path) -> None:
    """Counts `r c` as shares of their rows: `rows` are true, `columns` predicted. Rows without samples stay empty."""
    support = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, support, out=np.full(matrix.shape, np.nan), where=support > 0)
    number = max(matrix.shape)
    if number <= _NUMBERED:
        cell, lines = max(0.55, _SMALLEST / number), 3
    else:
        cell, lines = (max(0.15, 12 / number) if number <= _NAMED else 24 / number), 1
    named = [f"{_folded(name, lines)} ({_short(count)})" for name, count in zip(rows, support[:, 0], strict=True)]
    below = [_folded(name, lines) for name in columns]
    # Short names lie, for what lies is read without turning one's head.
    lies = number <= _NAMED and max(map(_wide, below)) <= cell - 0.06
    beside = max(map(_wide, named)) if number <= _NAMED else _wide(str(number))
    under = 1.3 * LEAST / 72 if lies or number > _NAMED else max(map(_wide, below))
    # Laid out by hand: the rooms of names are known, and an automatic layout cuts letters of a matrix of two classes.
    left, bottom = beside + _TITLE + 0.15, under + _TITLE + 0.15
    across, high = cell * matrix.shape[1], cell * matrix.shape[0]
    size = left + across + 0.1 + _BAR + 0.55 + _TITLE, bottom + high + 0.15
    figure = Figure(figsize=size, dpi=144)
    axes = figure.add_axes(_share((left, bottom, across, high), size))
    image = axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    if number <= _NAMED:
        axes.set_yticks(range(len(rows)), named, fontsize=LEAST)
        axes.set_xticks(range(len(columns)), below, fontsize=LEAST, rotation=0 if lies else 90)
    if number <= _NUMBERED:
        _write_shares(axes, shares)
    axes.tick_params(length=0)
    middle = left + across / 2, bottom + high / 2
    true = f"true ({unit})" if number <= _NAMED else "true, by number of class"
    around: dict[str, Any] = dict(fontsize=LEAST, ha="center", va="center")
    figure.text(middle[0] / size[0], (0.05 + _TITLE / 2) / size[1], "predicted", **around)
    figure.text((0.05 + _TITLE / 2) / size[0], middle[1] / size[1], true, rotation=90, **around)
    axes.spines[:].set_color(GRID)
    tall = min(high, 4)
    place = left + across + 0.1, middle[1] - tall / 2, _BAR, tall
    bar = figure.colorbar(image, cax=figure.add_axes(_share(place, size)), format=PercentFormatter(1.0))
    bar.set_label("of the row", fontsize=LEAST)
    bar.ax.tick_params(labelsize=LEAST)
    write_atomically(path, figure.savefig)


def _share(place: Sequence[float], size: tuple[float, float]) -> tuple[float, float, float, float]:
    """Left, bottom, width and height in inches as shares of a figure of such a size."""
    left, bottom, across, high = place
    return left / size[0], bottom / size[1], across / size[0], high / size[1]


def _folded(name: str, lines: int) -> str:
    """A name in so many lines at most, so that names that differ at their ends do."""
    return "\n".join(wrap(visible(name), LONGEST, max_lines=lines, placeholder="…")) if lines > 1 else shorten(name)


def _wide(text: str) -> float:
    """Inches of the longest line."""
    return max(map(width, text.split("\n")))


def _write_shares(axes: Axes, shares: np.ndarray) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share > 0:  # and known
            text = f"{share:.0%}" if share >= 0.005 else "<1%"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=LEAST, color="white" if share > 0.6 else TEXT
            )


def _short(count: float) -> str:
    """At most four characters and a letter."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            return f"{count / (1e3 if letter == 'k' else size):.3g} {letter}"
    return f"{count:.0f}"


@plain_text
def draw_calibration(
    curve: Calibration, path: Path, *, of: str = "the best class", right: str = "that is right", unit: str = "pictures"
) -> None:
    """Above, the share that is right of the pictures of each bin of probability; below, how many they are.

    Args:
        curve: what to draw.
        path: the file to write.
        of: what has the probability.
        right: what is counted, behind the word "share".
        unit: what is in the bins.
    """
    figure = Figure(figsize=(5, 6.2), dpi=144, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = len(curve.pictures)
    middle, width = (np.arange(bins) + 0.5) / bins, 0.92 / bins
    shares, label = np.nan_to_num(curve.accuracy), right.removeprefix("that is ")
    upper.bar(middle, shares, width, color=RIGHT, alpha=0.75, label=label)
    upper.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle="--", label="if probabilities were exact")
    upper.plot(
        curve.confidence,
        curve.accuracy,
        "o",
        color=WRONG,
        markersize=4,
        clip_on=False,
        label="at the bin's mean probability",
    )
    upper.set(ylabel=f"share {right}", xlim=(0, 1), ylim=(0, 1))
    figure.legend(frameon=False, fontsize=LEAST, loc="outside lower left")
    upper.set_title(f"expected calibration error {curve.ece:.2%}", loc="right", fontsize=LEAST, color=QUIET)
    lower.bar(middle, curve.pictures, width, color=QUIET)
    lower.set(ylabel=unit, xlabel=f"probability of {of}")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    upper.yaxis.set_major_formatter(PercentFormatter(1.0))
    lower.xaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (upper, lower):
        tidy(axes)
    write_atomically(path, figure.savefig)


def tidy(axes: Axes) -> None:
    """A faint grid, and no frame."""
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
