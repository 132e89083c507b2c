"""Precision and recall as curves: of classifiers of several labels over all thresholds, of detectors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from transept.draw.legend import shorten
from transept.draw.plain import plain_text
from transept.draw.scores import QUIET, tidy
from transept.files import write_atomically

# Okabe and Ito's, which people with any colour vision tell apart; yellow is left out, for it is faint on white.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_CLASS_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#b8a800")
"""Beside black, which is the mean."""
_CURVES = 8
"""Of more classes of a detector the worst and the best half as many are drawn."""
_GREY = "#c4c4c4"


class ClassCurve(NamedTuple):
    """A line of the picture."""

    name: str
    average_precision: float
    recall: np.ndarray
    precision: np.ndarray
    chosen: tuple[float, float]
    """Recall and precision at the threshold that is used; NaN where there is none."""


@plain_text
def draw_threshold_curves(curves: Sequence[ClassCurve], path: Path) -> None:
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
    _finish(figure, axes, "average precision\n(dots: thresholds in use)", path)


@plain_text
def draw_precision_recall(curves: Mapping[str, np.ndarray], path: Path) -> None:
    """Precision at evenly spaced recalls from 0 to 1 of each class, and the mean; of many the worst and the best."""
    known = {name: curve for name, curve in curves.items() if not np.isnan(curve).any()}
    ranked = sorted(known, key=lambda name: -float(known[name].mean()))
    half = _CURVES // 2
    chosen = ranked if len(ranked) <= _CURVES else ranked[:half] + ranked[-half:]
    longest = max((len(shorten(name)) for name in chosen), default=0)
    figure = Figure(figsize=(6 + 0.068 * max(longest, 18), 4), dpi=144, layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(chosen):
        style = "solid" if len(ranked) <= _CURVES or i < half else "dashed"
        _draw_curve(
            axes, known[name], name, color=_CLASS_COLORS[i % len(_CLASS_COLORS)], linestyle=style, linewidth=1.2
        )
    if known:
        mean = np.mean(list(known.values()), axis=0)
        number = "1 class" if len(known) == 1 else f"{len(known)} classes"
        _draw_curve(axes, mean, f"mean of {number}", color="black", linewidth=2.2)
    axes.set(xlabel="recall: share of the objects that is found", ylabel="precision: share of the boxes that is right")
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    title = "at an overlap of 0.5" + (
        "" if len(chosen) == len(known) else f"; the {half} best classes and the {half} worst"
    )
    axes.set_title(title, loc="left", fontsize=9, color=QUIET)
    _finish(figure, axes, "AP50" if known else None, path)


def _draw_curve(axes: Axes, curve: np.ndarray, name: str, **style: Any) -> None:
    label = f"{curve.mean():.1%}  {shorten(name)}"
    axes.plot(np.linspace(0, 1, len(curve)), curve, label=label, clip_on=False, **style)


def _finish(figure: Figure, axes: Axes, title: str | None, path: Path) -> None:
    """Axes in per cent, a legend of this title, and the file."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    tidy(axes)
    if title is not None:
        figure.legend(
            loc="outside right upper", frameon=False, fontsize=8, title=title, title_fontsize=8, alignment="left"
        )
    write_atomically(path, figure.savefig)
