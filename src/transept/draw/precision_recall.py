"""Precision and recall as curves: of classifiers of several labels over all thresholds, of detectors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from transept.draw.legend import legend_width, shorten
from transept.draw.plain import plain_text
from transept.draw.scores import tidy
from transept.files import write_atomically
from transept.style import BLACK, FAINT, LEAST, LINES, QUIET

_COLORS = (*LINES, BLACK)
"""Of classes that are drawn beside grey ones."""
_CURVES = 2 * len(LINES)
"""Of more classes of a detector the worst and the best half as many are drawn, the second half dashed."""


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
    figure = Figure(figsize=(8.2, 4.6), dpi=144, layout="constrained")
    axes = figure.subplots()
    for curve in (*(each for each in curves if id(each) not in named), *worst):
        color = named.get(id(curve), FAINT)
        label = f"{shorten(curve.name, 24)}  {curve.average_precision:.1%}" if id(curve) in named else None
        axes.step(curve.recall, curve.precision, where="post", color=color, linewidth=1.6, label=label)
        axes.plot(*curve.chosen, "o", color=color, markersize=5, markeredgecolor="white", clip_on=False, zorder=3)
    if len(curves) > len(worst):
        axes.plot([], [], color=FAINT, label=f"{len(curves) - len(worst)} other classes")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    _finish(figure, axes, "average precision\n(dots: thresholds in use)", path)


@plain_text
def draw_precision_recall(curves: Mapping[str, np.ndarray], path: Path) -> None:
    """Precision at evenly spaced recalls from 0 to 1 of each class, and the mean; of many the worst and the best."""
    known = {name: curve for name, curve in curves.items() if not np.isnan(curve).any()}
    ranked = sorted(known, key=lambda name: -float(known[name].mean()))
    half = _CURVES // 2
    chosen = ranked if len(ranked) <= _CURVES else ranked[:half] + ranked[-half:]
    figure = Figure(
        figsize=(5.6 + legend_width([f"99.9%  {shorten(name)}" for name in chosen]), 4), dpi=144, layout="constrained"
    )
    axes = figure.subplots()
    for i, name in enumerate(chosen):
        style = "solid" if i < half else "dashed"
        _draw_curve(axes, known[name], name, color=LINES[i % len(LINES)], linestyle=style, linewidth=1.2)
    if known:
        mean = np.mean(list(known.values()), axis=0)
        number = "1 class" if len(known) == 1 else f"{len(known)} classes"
        _draw_curve(axes, mean, f"mean of {number}", color="black", linewidth=2.2)
    axes.set(xlabel="recall: share of the objects that is found", ylabel="precision: share of the boxes that is right")
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    title = "at an overlap of 0.5" + (
        "" if len(chosen) == len(known) else f"; the {half} best classes and the {half} worst"
    )
    axes.set_title(title, loc="left", fontsize=LEAST, color=QUIET)
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
            loc="outside right upper",
            frameon=False,
            fontsize=LEAST,
            title=title,
            title_fontsize=LEAST,
            alignment="left",
        )
    write_atomically(path, figure.savefig)
