"""What all pictures of the package keep to: the least size of letters, and colours that every eye tells apart."""

import colorsys

LEAST = 9.0
"""Points of the smallest letters, in a figure that is printed at its own size in inches."""
WIDEST = 10.0
"""Inches of a sheet of many pictures: scaled to a page of 700 pixels its smallest letters are still 9 pixels high."""
LEAST_PIXELS = 12
"""The same on frames of a video, which have no inches: at the 96 pixels in an inch of a screen."""

Color = tuple[int, int, int]
"""Red, green and blue, 0..255."""

# Okabe and Ito's colours (jfly.uni-koeln.de/color), which people with any colour vision tell apart.
BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
YELLOW, BLUE, VERMILLION, PURPLE = "#f0e442", "#0072b2", "#d55e00", "#cc79a7"
LINES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
"""Of curves on white, where yellow is too faint, and black is the mean."""
RIGHT, WRONG, MISSED = BLUE, VERMILLION, YELLOW
OURS, OTHERS = VERMILLION, SKY
"""What a picture is about, and what stands beside it."""

TEXT, QUIET = "#222222", "#595959"
"""Letters; the second is as light as letters on white may be (a contrast of 7)."""
GRID, FAINT = "#dddddd", "#c4c4c4"

SHARES, HEAT = "Blues", "inferno"
"""Matplotlib's scales of one quantity. Their lightness only falls, or only rises, which every colour vision sees."""


def drawing_color(label: int) -> Color:
    """A colour to draw a class with. The first seven are Okabe and Ito's; of all, neighbours in number differ most."""
    if label < len(_FIRST):
        return _FIRST[label]
    saturation, value = ((0.62, 0.95), (0.85, 0.70), (0.40, 0.85))[label % 3]
    red, green, blue = colorsys.hsv_to_rgb((0.58 + 0.618034 * label) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def drawing_palette(number: int) -> list[Color]:
    """Colours of that many classes."""
    return [drawing_color(label) for label in range(number)]


def _bytes(color: str) -> Color:
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue


_FIRST = [_bytes(color) for color in (SKY, VERMILLION, GREEN, YELLOW, BLUE, ORANGE, PURPLE)]
