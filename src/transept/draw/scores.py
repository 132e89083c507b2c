"""Pictures of scores: which classes are taken for which, how far probabilities can be believed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from transept.draw.legend import shorten, width
from transept.draw.plain import plain_text
from transept.files import write_atomically
from transept.metrics.calibration import Calibration
from transept.style import GRID, LEAST, QUIET, RIGHT, SHARES, TEXT, WRONG

_NUMBERED = 15
"""Classes up to which each cell has its share written in it."""
_NAMED = 201
"""Rows up to which each row and column has its name: 200 classes and the background."""


@plain_text
def draw_confusion(matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], unit: str, path: Path) -> None:
    """Counts `r c` as shares of their rows: `rows` are true, `columns` predicted. Rows without samples stay empty."""
    support = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, support, out=np.full(matrix.shape, np.nan), where=support > 0)
    number = max(matrix.shape)
    cell = 0.55 if number <= _NUMBERED else max(0.15, 12 / number) if number <= _NAMED else 24 / number
    named = [f"{shorten(name)} ({_short(count)})" for name, count in zip(rows, support[:, 0], strict=True)]
    below = [shorten(name) for name in columns]
    margin = (max(map(width, (*named, *below))) if number <= _NAMED else 0.5) + 0.6
    size = cell * matrix.shape[1] + margin + 0.9, cell * matrix.shape[0] + margin
    figure = Figure(figsize=size, dpi=144, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    if number <= _NAMED:
        axes.set_yticks(range(len(rows)), named, fontsize=LEAST)
        axes.set_xticks(range(len(columns)), below, fontsize=LEAST, rotation=90)
    if number <= _NUMBERED:
        _write_shares(axes, shares)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted", fontsize=LEAST)
    axes.set_ylabel(f"true ({unit})" if number <= _NAMED else "true, by number of class", fontsize=LEAST)
    axes.spines[:].set_color(GRID)
    bar = figure.colorbar(image, ax=axes, shrink=min(1, 4 / size[1]), format=PercentFormatter(1.0), pad=0.02)
    bar.set_label("of the row", fontsize=LEAST)
    bar.ax.tick_params(labelsize=LEAST)
    write_atomically(path, figure.savefig)


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
    upper.plot(curve.confidence, curve.accuracy, "o", color=WRONG, markersize=4, label="at the bin's mean probability")
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
