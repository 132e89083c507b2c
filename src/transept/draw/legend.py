"""Classes and their colours, written beside a picture, and names cut to the room that there is."""

from collections.abc import Sequence
from functools import lru_cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch

from transept.style import LEAST, Color
from transept.words import visible

LONGEST = 28
"""Letters of a class's name."""
_LINE = 1.65 * LEAST / 72
"""Inches from one entry to the next."""


def draw_legend(figure: Figure, entries: Sequence[Patch], left: float, tall: float) -> None:
    """Entries in one column from `left` (share of the figure's width) on; the first that `tall` inches hold."""
    room = max(1, int((tall - 0.1) / _LINE))
    if (rest := len(entries) - room) > 0:
        entries = [*entries[: room - 1], blank(f"and {rest + 1} more")]
    figure.legend(
        handles=entries,
        loc="center left",
        bbox_to_anchor=(left, 0.5),
        frameon=False,
        fontsize=LEAST,
        handlelength=1.2,
        handleheight=1.1,
        borderaxespad=0.6,
    )


def legend_width(texts: Sequence[str]) -> float:
    """Inches that a column of such entries takes."""
    return 0.5 + max((width(text) for text in texts), default=0.0)


def entry(color: Color, text: str) -> Patch:
    return Patch(facecolor="#{:02x}{:02x}{:02x}".format(*color), label=text)


def blank(text: str) -> Patch:
    """An entry without a colour."""
    return Patch(facecolor="none", label=text)


def shorten(
    text: str, length: int = LONGEST, inches: float | None = None, *, size: float = LEAST, weight: str = "normal"
) -> str:
    """As much of a name as there is room for, without characters that do not show.

    Args:
        text: the name.
        length: letters.
        inches: of a line in which it must end, whatever its letters are.
        size: of the letters, in points.
        weight: of the letters.
    """
    text = visible(text)
    short = text if len(text) <= length else text[: length - 1] + "…"
    while inches is not None and len(short) > 1 and width(short, size, weight=weight) > inches:
        short = short[: -2 if short.endswith("…") else -1].rstrip() + "…"
    return short


@lru_cache(maxsize=4096)  # names come again in every panel and batch, and letters are laid out anew for each
def width(text: str, size: float = LEAST, *, weight: str = "normal") -> float:
    """Inches of a line of letters of so many points; some are wider on the screen, so there is a little more."""
    font = get_font(findfont(FontProperties(weight=weight)))
    font.set_size(size, 72)
    font.set_text(text)
    return 1.03 * font.get_width_height()[0] / 64 / 72
