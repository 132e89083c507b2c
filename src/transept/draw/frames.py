"""What was found, drawn on frames of a video: quickly, and without changing their size."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from transept.draw.boxes import STRENGTH, TOO_MUCH, is_bright, place_label
from transept.draw.legend import shorten
from transept.draw.overlay import overlay, shares
from transept.style import LEAST_PIXELS, Color

_MOST = 8
"""Classes in a legend."""
_DARK = (0, 0, 0, 150)


def labelled_frame(picture: Image.Image, best: Sequence[tuple[str, float]]) -> Image.Image:
    """The best classes with their probabilities in the upper left corner."""
    return _with_legend(picture, [(None, f"{score:.0%}  {shorten(name)}") for name, score in best])


def tinted_frame(
    picture: Image.Image, labels: np.ndarray, classes: Sequence[str], palette: Sequence[Color]
) -> Image.Image:
    """Pixels in the colours of their classes `H W`, and in the upper left corner what these mean and their shares."""
    colors = dict(zip(classes, palette, strict=True))
    largest = list(shares(labels, classes).items())[:_MOST]
    entries = [(colors[name], f"{share:.0%}  {shorten(name)}") for name, share in largest]
    return _with_legend(overlay(picture, labels, palette), entries)


def boxed_frame(
    picture: Image.Image,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Color],
    *,
    masks: Sequence[np.ndarray] | None = None,
) -> Image.Image:
    """Boxes and labels of objects in the colours of their classes, and their masks; as `draw_objects`, but quick."""
    colors = [palette[label] for label in labels.tolist()]
    if masks is not None:
        picture = _with_masks(picture, masks, colors)
    frame = picture.convert("RGB").copy()
    pencil = ImageDraw.Draw(frame)
    size = _letters(frame)
    line = max(1, round(size / 8))
    for i in np.argsort(-_areas(boxes), kind="stable").tolist():  # what is small lies on top
        x1, y1, x2, y2 = boxes[i].round().astype(int).tolist()
        if x2 > x1 and y2 > y1:
            pencil.rectangle((x1, y1, x2, y2), outline=colors[i], width=line)
    texts = [
        f"{shorten(classes[int(label)])} {score:.2f}" for label, score in zip(labels.tolist(), scores, strict=True)
    ]
    _label(pencil, boxes, scores, texts, colors, frame.size, size)
    return frame


def _label(
    pencil: ImageDraw.ImageDraw,
    boxes: np.ndarray,
    scores: np.ndarray,
    texts: list[str],
    colors: list[Color],
    size: tuple[int, int],
    letters: int,
) -> None:
    """The labels that find room, those of the surest objects first."""
    font, areas = _font(letters), np.maximum(_areas(boxes), 1e-6)
    placed = np.zeros((0, 4))
    for i in np.argsort(-scores, kind="stable").tolist():
        chip = np.array([font.getlength(texts[i]) + 0.6 * letters, 1.3 * letters]).round()
        if chip[0] > size[0] or chip[1] > size[1]:
            continue
        corner, cost = place_label(i, chip, boxes, areas, placed, size)
        if cost > TOO_MUCH:
            continue
        placed = np.vstack((placed, [*corner, *(corner + chip)]))
        pencil.rectangle((*corner, *(corner + chip)), fill=colors[i])
        x, y = (corner + chip / 2).tolist()
        pencil.text((x, y), texts[i], "black" if is_bright(colors[i]) else "white", font, anchor="mm")


def _with_masks(picture: Image.Image, masks: Sequence[np.ndarray], colors: Sequence[Color]) -> Image.Image:
    pixels = np.array(picture.convert("RGB"))
    for i, color in enumerate(colors):
        inside = masks[i]
        pixels[inside] = (pixels[inside] * (1 - STRENGTH) + np.array(color) * STRENGTH).astype(np.uint8)
    return Image.fromarray(pixels)


def _with_legend(picture: Image.Image, entries: Sequence[tuple[Color | None, str]]) -> Image.Image:
    """Lines of text, some with a colour before them, on dark ground; as many as the frame has room for."""
    frame = picture.convert("RGB").copy()
    size = _letters(frame)
    height = round(1.4 * size)
    entries = entries[: max(1, (frame.height - size) // height)]
    font, pencil = _font(size), ImageDraw.Draw(frame, "RGBA")
    indent = size if any(color for color, _ in entries) else 0
    width = max((font.getlength(text) for _, text in entries), default=0) + 1.2 * size + indent
    pencil.rectangle((0, 0, width, height * len(entries) + 0.4 * size), fill=_DARK)
    for row, (color, text) in enumerate(entries):
        middle = 0.2 * size + height * (row + 0.5)
        if color is not None:
            pencil.rectangle((0.5 * size, middle - 0.35 * size, 1.2 * size, middle + 0.35 * size), fill=color)
        pencil.text((0.6 * size + indent, middle), text, "white", font, anchor="lm")
    return frame


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _letters(picture: Image.Image) -> int:
    """The size of letters in pixels."""
    return max(LEAST_PIXELS, round(min(picture.size) / 28))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own, which has the letters of more languages than Pillow's."""
    return ImageFont.truetype(findfont(FontProperties()), size)
