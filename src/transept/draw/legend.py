"""Classes and their colours, written beside a picture."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from transept.words import visible

RGB = tuple[int, int, int]
LONGEST = 28
"""Letters of a class's name."""


def draw_legend(figure: Figure, entries: Sequence[Patch], left: float, tall: float) -> None:
    """Entries in one column from `left` (share of the figure's width) on, as large as `tall` inches permit."""
    figure.legend(
        handles=entries,
        loc="center left",
        bbox_to_anchor=(left, 0.5),
        frameon=False,
        fontsize=min(8.0, 72 * (tall - 0.1) / (1.65 * max(len(entries), 1))),
        handlelength=1.2,
        handleheight=1.1,
        borderaxespad=0.6,
    )


def entry(color: RGB, text: str) -> Patch:
    return Patch(facecolor="#{:02x}{:02x}{:02x}".format(*color), label=text)


def shorten(text: str, length: int = LONGEST) -> str:
    """As much of a name as there is room for, without characters that do not show."""
    text = visible(text)
    return text if len(text) <= length else text[: length - 1] + "…"
