"""Classes of pixels drawn over a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from transept.draw.legend import blank, draw_legend, entry, legend_width, shorten
from transept.draw.plain import plain_text
from transept.files import write_atomically
from transept.style import Color

_STRENGTH = 0.55
"""Opacity of the classes' colours over the picture."""
_LARGEST = 2600
"""Pixels of the longest side of a picture that a figure can show; larger pictures are scaled down for drawing."""
_CLEAR = 480
"""Longest side in pixels below which a picture is enlarged for drawing."""
_SMALLEST = 0.001
"""Classes with a smaller share of the picture are summed up in the legend."""


def shares(labels: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """The share of the picture that each class of `labels` `H W` takes, in 0..1, the largest first."""
    counts = np.bincount(labels.ravel(), minlength=len(classes))[: len(classes)]
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda i: -counts[i])
    return {classes[i]: float(counts[i] / labels.size) for i in order}


def overlay(picture: Image.Image, labels: np.ndarray, palette: Sequence[Color]) -> Image.Image:
    """The picture with each pixel of `labels` `H W` tinted in its class's colour, and the borders between classes.

    Values beyond the palette (pixels to ignore) stay as they are.
    """
    base = np.asarray(picture.convert("RGB"), dtype=np.float32)
    table = np.zeros((256, 4), dtype=np.float32)
    table[: len(palette), :3] = palette
    table[: len(palette), 3] = _STRENGTH
    tint = table[labels]
    mixed = base * (1 - tint[..., 3:]) + tint[..., :3] * tint[..., 3:]
    border = np.zeros(labels.shape, dtype=bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    mixed[border] = mixed[border] * 0.3 + 255 * 0.7
    return Image.fromarray(mixed.round().astype(np.uint8))


def label_image(labels: np.ndarray, palette: Sequence[Color]) -> Image.Image:
    """A palette picture whose pixel values are the class numbers, 255 where there is none."""
    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    colors = [*palette, *[(0, 0, 0)] * (256 - len(palette))]
    image.putpalette([value for color in colors for value in color])
    return image


@plain_text
def draw_overlay(
    picture: Image.Image, labels: np.ndarray, classes: Sequence[str], palette: Sequence[Color], path: Path
) -> None:
    """The tinted picture, and beside it the classes that occur with their shares."""
    occurring = shares(labels, classes)
    if (step := max(picture.size) // _LARGEST) > 1:
        picture, labels = picture.reduce(step), labels[::step, ::step]
    named = {name: share for name, share in occurring.items() if share >= _SMALLEST}
    width, height = picture.size
    tall = min(max(4.5 * height / width, 2.2), 9.0)
    wide = tall * width / height
    texts = [f"{shorten(name)}  {share:.1%}" for name, share in named.items()]
    legend = legend_width([*texts, "and 99 below 0.1%"])
    figure = Figure(figsize=(wide + legend, tall), dpi=144)
    axes = figure.add_axes((0.0, 0.0, wide / (wide + legend), 1.0))
    times = -(-_CLEAR // max(picture.size))  # small pictures are enlarged first, so that borders stay thin
    enlarged = picture.resize((width * times, height * times), Image.Resampling.BICUBIC)
    axes.imshow(overlay(enlarged, labels.repeat(times, axis=0).repeat(times, axis=1), palette))
    axes.set_axis_off()
    colors = dict(zip(classes, palette, strict=True))
    handles = [entry(colors[name], text) for name, text in zip(named, texts, strict=True)]
    if rest := len(occurring) - len(named):
        handles.append(blank(f"and {rest} below {_SMALLEST:.1%}"))
    draw_legend(figure, handles, wide / (wide + legend), tall)
    write_atomically(path, figure.savefig)
