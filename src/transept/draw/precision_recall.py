"""Precision and recall of classes as curves over all thresholds."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from transept.draw.legend import shorten
from transept.files import write_atomically

# Okabe and Ito's, which people with any colour vision tell apart; yellow is left out, for it is faint on white.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_GREY, _GRID = "#c4c4c4", "#dddddd"


class ClassCurve(NamedTuple):
    """A line of the picture."""

    name: str
    average_precision: float
    recall: np.ndarray
    precision: np.ndarray
    chosen: tuple[float, float]
    """Recall and precision at the threshold that is used; NaN where there is none."""


def draw_precision_recall(curves: Sequence[ClassCurve], path: Path) -> None:
    """The classes with the least average precision in colours, the others in grey; dots at the thresholds in use."""
    worst = sorted(curves, key=lambda curve: curve.average_precision)[: len(_COLORS)]
    named = {id(curve): color for curve, color in zip(worst, _COLORS, strict=False)}
    figure = Figure(figsize=(7.4, 4.6), dpi=144, layout="constrained")
    axes = figure.subplots()
    for curve in (*(each for each in curves if id(each) not in named), *worst):
        color = named.get(id(curve), _GREY)
        label = f"{shorten(curve.name, 24)}  {curve.average_precision:.1%}" if id(curve) in named else None
        axes.step(curve.recall, curve.precision, where="post", color=color, linewidth=1.6, label=label)
        axes.plot(*curve.chosen, "o", color=color, markersize=5, markeredgecolor="white", clip_on=False, zorder=3)
    if len(curves) > len(worst):
        axes.plot([], [], color=_GREY, label=f"{len(curves) - len(worst)} other classes")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(color=_GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        loc="outside right upper",
        frameon=False,
        fontsize=8,
        title="average precision\n(dots: thresholds in use)",
        title_fontsize=8,
        alignment="left",
    )
    write_atomically(path, figure.savefig)
