"""Colours that people with any colour vision tell apart, and the one place that states them."""

import re
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from transept import style

SOURCES = Path(style.__file__).parent
# Machado, Oliveira and Fernandes 2009, full severity, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(axis=1)


def lab(colors: np.ndarray, vision: str = "normal") -> np.ndarray:
    """CIELAB of sRGB in 0..1, `n 3`, as somebody of this vision sees it: 2 is a just noticeable distance."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt((linear @ np.array(VISION[vision]).T).clip(0, 1) @ TO_XYZ.T / WHITE).T
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=1)


def distances(colors: list, vision: str) -> list[float]:
    seen = lab(np.array([to_rgb(color) for color in colors]), vision)
    return [float(np.linalg.norm(seen[i] - seen[j])) for i, j in combinations(range(len(seen)), 2)]


@pytest.mark.parametrize("vision", VISION)
def test_every_eye_tells_the_colours_apart(vision: str):
    classes = [tuple(part / 255 for part in color) for color in style.drawing_palette(7)]
    assert min(distances(classes, vision)) > 12
    assert min(distances([style.RIGHT, style.WRONG, style.MISSED], vision)) > 30
    assert min(distances([style.OURS, style.OTHERS], vision)) > 30
    assert min(distances([*style.LINES, style.BLACK, style.FAINT], vision)) > 10


@pytest.mark.parametrize("name", [style.SHARES, style.HEAT])
def test_scales_go_one_way_in_lightness(name: str):
    steps = np.diff(lab(matplotlib.colormaps[name](np.linspace(0, 1, 64))[:, :3])[:, 0])
    assert (steps > 0).all() or (steps < 0).all()


def test_letters_on_white():
    lightness = {color: lab(np.array([to_rgb(color)]))[0, 0] for color in (style.TEXT, style.QUIET)}
    assert max(lightness.values()) < 40


def test_sizes_and_colours_are_stated_once():
    for file in SOURCES.rglob("*.py"):
        if file.name == "style.py" or file.parent.name == "serve":  # a page's colours are of its own theme
            continue
        text = file.read_text(encoding="utf-8")
        assert not re.findall(r"[\"']#[0-9a-fA-F]{6}[\"']", text), file
        assert all(float(size) >= style.LEAST for size in re.findall(r"(?:fontsize|labelsize)=([0-9.]+)", text)), file
