"""Names beside marks of a plot, as many as do not lie on each other."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transept.draw.legend import width
from transept.style import LEAST

_BESIDE = ((6, 0), (3, 9), (3, -9))
"""Points from the middle of a mark to that of the left end of its name: behind it, above, below."""


class Named(NamedTuple):
    x: float
    y: float
    """Where its mark is."""
    name: str
    color: str


def name_marks(figure: Figure, axes: Axes, marks: Sequence[Named]) -> list[str]:
    """Writes each name behind its mark, or, where that would hide another mark or name, above or below, or not at all.

    The axes have their final scales and limits. The first choose first. Returns the names that are left out.
    """
    figure.draw_without_rendering()  # now marks have their places
    point = figure.dpi / 72
    hidden = [_dots(axes)]
    left_out = []
    for mark in marks:
        size = np.array([figure.dpi * width(mark.name), 1.2 * LEAST * point])
        (dot,) = axes.transData.transform([(mark.x, mark.y)])
        for shift in _BESIDE:
            low = dot + np.array(shift) * point - (0, size[1] / 2)
            place = np.hstack((low, low + size))
            if place[2] <= axes.bbox.x1 and not any(_meets(place, others) for others in hidden):
                break
        else:
            left_out.append(mark.name)
            continue
        hidden.append(place[None])
        axes.annotate(
            mark.name,
            (mark.x, mark.y),
            shift,
            textcoords="offset points",
            va="center",
            fontsize=LEAST,
            color=mark.color,
        ).set_in_layout(False)
    return left_out


def _dots(axes: Axes) -> np.ndarray:
    """The middles of all marks, as boxes without extent `n 4`, in pixels of the figure."""
    marked = [line for line in axes.lines if line.get_marker() not in (None, "None", "", " ")]
    middles = [np.asarray(line.get_xydata(), dtype=float).reshape(-1, 2) for line in marked]
    inside = axes.transData.transform(np.vstack([np.zeros((0, 2)), *middles]))
    return np.hstack((inside, inside))


def _meets(place: np.ndarray, others: np.ndarray) -> bool:
    """Whether a box lies on one of others `n 4`."""
    return bool(((place[:2] < others[:, 2:]) & (others[:, :2] < place[2:])).all(axis=1).any())
