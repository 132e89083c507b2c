"""The picture of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from transept.draw.legend import shorten
from transept.draw.plain import plain_text
from transept.files import write_atomically
from transept.style import GRID, OTHERS, OURS
from transept.training.jobs.job import Score

_WIDE = 10
"""Inches."""


@plain_text
def draw_curves(
    rows: Sequence[Mapping[str, float]], best: Mapping[str, float], score: Score, title: str, path: Path
) -> None:
    """Loss and score over the epochs, training and validation, the best epoch marked."""
    best_score = best[f"val_{score.key}"]
    figure = Figure(figsize=(_WIDE, 4), dpi=144, layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    _plot(left, epochs, rows, "loss")
    left.set_ylabel("loss")
    left.legend(frameon=False)
    _plot(right, epochs, rows, score.key)
    right.set_ylabel(score.axis)
    right.plot(best["epoch"], best_score, "o", color=OURS, markersize=6)
    right.axhline(best_score, color=OURS, linewidth=0.8, linestyle=":")
    right.set_title(
        f"best {score.text(best_score, 2)} in epoch {best['epoch']:.0f}", loc="right", fontsize=10, color=OURS
    )
    if score.percent:
        right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        right.set_ylim(top=min(right.get_ylim()[1], 1.005) if best_score < 0.9 else 1.005)
    title = shorten(title, 100, _WIDE - 0.4, size=12, weight="bold")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    write_atomically(path, figure.savefig)


def _plot(axes: Axes, epochs: Sequence[float], rows: Sequence[Mapping[str, float]], metric: str) -> None:
    marker = "o" if len(rows) == 1 else None  # one point draws no line
    for half, color, label in (("train", OTHERS, "training"), ("val", OURS, "validation")):
        if f"{half}_{metric}" not in rows[0]:  # some scores are too slow to take while training
            continue
        values = [row[f"{half}_{metric}"] for row in rows]
        axes.plot(epochs, values, color=color, linewidth=2, label=label, marker=marker)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
