"""Objects drawn on a picture: boxes, translucent masks, and labels with their scores."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image, ImageFilter

from transept.draw.legend import draw_legend, entry, legend_width, shorten, width
from transept.draw.plain import plain_text
from transept.errors import TranseptError
from transept.files import write_atomically
from transept.style import LEAST, Color

_LONGEST, _CROWDED = 7.0, 10.0
"""Inches of the picture's longest side, and where there are many objects: as wide as a page, upright and lying."""
_MANY = 25
LARGEST = 2800
"""Pixels of the longest side of a drawn figure; more of the picture's own are not seen."""
_CLEAR = 1000
"""Longest side in pixels below which a picture is enlarged, so that outlines of masks stay thin and smooth."""
STRENGTH = 0.42
"""Opacity of the classes' colours inside masks; less inside those that take much of the picture."""
TOO_MUCH = 0.75
"""Cost (see `place_label`) above which a label is left out; a legend then says what its colour means."""
DASHES = (0, (3, 1.5))
"""Line of objects that were missed."""


class _Label(NamedTuple):
    text: str
    color: Color
    x: float
    y: float
    """Column and row of the upper left corner."""
    width: float
    height: float


@plain_text
def draw_objects(
    picture: Image.Image,
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Color],
    path: Path,
    *,
    scores: np.ndarray | None = None,
    masks: Sequence[np.ndarray] | np.ndarray | None = None,
) -> None:
    """The picture with its objects in the colours of their classes.

    A label stands where it hides least, and always inside the picture. One that would hide a small object or another
    label is left out; then a legend names the colours.

    Args:
        picture: any size; a small one is enlarged.
        boxes: `n 4`, x1 y1 x2 y2 in pixels.
        labels: `n` class numbers.
        classes: names.
        palette: a colour for each class.
        path: to write to; the suffix decides the format (.png, .jpg, .pdf, .svg). In .pdf and .svg lines and letters
            can be enlarged at will.
        scores: `n`, in 0..1.
        masks: `n H W`, bool, or what gives `H W` for each number, one at a time.

    Raises:
        TranseptError: masks of another size than the picture's; a file that cannot be written.
    """
    width, height = picture.size
    if masks is not None and (len(masks) != len(boxes) or (len(masks) and masks[0].shape != (height, width))):
        shape = (len(masks), *(masks[0].shape if len(masks) else ()))
        raise TranseptError(f"masks are {shape} for {len(boxes)} objects on a picture of {height} x {width}")
    longest = _LONGEST if len(boxes) <= _MANY else _CROWDED
    unit = max(width, height) / (longest * 72)  # pixels of the picture in a typographic point
    chips = list(_place_labels(boxes, labels, scores, classes, palette, (width, height), unit))
    counts: Counter[int] = Counter(map(int, labels))
    legend = len(chips) < len(boxes)
    wide, tall = width / unit / 72, height / unit / 72
    texts = [f"{shorten(classes[label])} ({count})" for label, count in counts.most_common()]
    room = legend_width(texts) if legend else 0.0
    figure = Figure(figsize=(wide + room, tall), dpi=max(200, min(max(width, height) / longest, 400)))
    axes = figure.add_axes((0.0, 0.0, wide / (wide + room), 1.0))
    _add_objects(axes, picture, boxes, [palette[label] for label in labels], chips, unit, masks)
    if legend:
        names = [entry(palette[label], text) for (label, _), text in zip(counts.most_common(), texts, strict=True)]
        draw_legend(figure, names, wide / (wide + room), tall)
    write_atomically(path, figure.savefig)


def add_objects(
    axes: Axes,
    picture: Image.Image,
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Color],
    inches: float,
    *,
    masks: Sequence[np.ndarray] | np.ndarray | None = None,
    dashed: np.ndarray | None = None,
) -> None:
    """As `draw_objects`, without scores and legend, into axes whose longest side is so many inches.

    Boxes where `dashed` is true have dashed lines, and those of a class without a name no label.
    """
    unit = max(picture.size) / (inches * 72)
    chips = list(_place_labels(boxes, labels, None, classes, palette, picture.size, unit))
    _add_objects(axes, picture, boxes, [palette[label] for label in labels], chips, unit, masks, dashed)


def _add_objects(
    axes: Axes,
    picture: Image.Image,
    boxes: np.ndarray,
    colors: Sequence[Color],
    chips: Sequence[_Label],
    unit: float,
    masks: Sequence[np.ndarray] | np.ndarray | None,
    dashed: np.ndarray | None = None,
) -> None:
    width, height = picture.size
    shown = picture.convert("RGB") if masks is None else _tinted(picture, masks, colors)
    axes.imshow(shown, extent=(0, width, height, 0), interpolation="antialiased")
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    _draw_boxes(axes, boxes, colors, unit, np.zeros(len(boxes), bool) if dashed is None else dashed, masks is not None)
    for chip in chips:
        _draw_label(axes, chip, unit)


def _tinted(picture: Image.Image, masks: Sequence[np.ndarray] | np.ndarray, colors: Sequence[Color]) -> Image.Image:
    """The picture, enlarged where it is small, with the insides and outlines of masks in their colours."""
    times = -(-_CLEAR // max(picture.size))
    enlarged = picture.convert("RGB").resize(
        (picture.width * times, picture.height * times), Image.Resampling.BICUBIC if times > 1 else None
    )
    canvas = np.asarray(enlarged, dtype=np.float32).copy()
    line = 2 * max(1, round(max(enlarged.size) / 1400)) + 1
    order = np.argsort([-int(masks[i].sum()) for i in range(len(masks))], kind="stable")  # what is small lies on top
    outlines: list[tuple[tuple[slice, slice], np.ndarray, Color]] = []
    for i in order:
        mask = masks[i]
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            continue
        # A rim of one pixel, so that smoothing and outlines end inside the window.
        y1, y2 = max(rows[0] - 1, 0), min(rows[-1] + 2, picture.height)
        x1, x2 = max(columns[0] - 1, 0), min(columns[-1] + 2, picture.width)
        part = Image.fromarray(mask[y1:y2, x1:x2].astype(np.uint8) * 255)
        part = part.resize((part.width * times, part.height * times), Image.Resampling.BICUBIC)
        if times > 1:  # no steps where there were pixels
            part = part.filter(ImageFilter.GaussianBlur(0.6 * times))
        part = part.point([255 * (value >= 128) for value in range(256)])
        inside = np.asarray(part) > 0
        window = (slice(y1 * times, y2 * times), slice(x1 * times, x2 * times))
        strength = STRENGTH * (1 - 0.5 * (inside.sum() / canvas[..., 0].size) ** 0.5)
        canvas[window][inside] = canvas[window][inside] * (1 - strength) + np.array(colors[i]) * strength
        outline = inside & (np.asarray(part.filter(ImageFilter.MinFilter(line))) == 0)
        outlines.append((window, outline, colors[i]))
    for window, outline, color in outlines:
        canvas[window][outline] = color
    return Image.fromarray(canvas.round().astype(np.uint8))


def _draw_boxes(
    axes: Axes, boxes: np.ndarray, colors: Sequence[Color], unit: float, dashed: np.ndarray, thin: bool
) -> None:
    sides = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]) / unit if len(boxes) else np.zeros(0)
    for i in np.argsort(-sides, kind="stable"):  # what is small lies on top
        x1, y1, x2, y2 = boxes[i]
        line = min(0.7 if thin else 1.0, max(0.4, 0.06 * float(sides[i])))
        add_outline(axes, (x1, y1, x2, y2), _unit(colors[i]), line, line + 0.6, dashed=bool(dashed[i]))


def add_outline(
    axes: Axes, box: tuple[float, float, float, float], color: Any, line: float, around: float, *, dashed: bool
) -> None:
    """A box x1 y1 x2 y2. The line is dark `around` it, which keeps it visible on its own colour; both in points."""
    x1, y1, x2, y2 = box
    axes.add_patch(
        Rectangle(
            (x1, y1),
            x2 - x1,
            y2 - y1,
            fill=False,
            edgecolor=color,
            linewidth=line,
            linestyle=DASHES if dashed else "solid",
            path_effects=[withStroke(linewidth=around, foreground=(0, 0, 0, 0.45))],
        )
    )


def is_bright(color: Color) -> bool:
    """Whether black letters have more contrast on it than white ones, as WCAG counts it."""
    red, green, blue = (((part / 255 + 0.055) / 1.055) ** 2.4 for part in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179


def _draw_label(axes: Axes, chip: _Label, unit: float) -> None:
    axes.add_patch(
        Rectangle((chip.x, chip.y), chip.width, chip.height, facecolor=_unit(chip.color), alpha=0.88, linewidth=0)
    )
    axes.text(
        chip.x + chip.width / 2,
        chip.y + chip.height / 2,
        chip.text,
        color="black" if is_bright(chip.color) else "white",
        fontsize=LEAST,
        ha="center",
        va="center_baseline",
    )


def _place_labels(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    classes: Sequence[str],
    palette: Sequence[Color],
    size: tuple[int, int],
    unit: float,
) -> Iterator[_Label]:
    """Those that find room: the best objects choose first, without scores the smallest."""
    if scores is None and len(set(labels.tolist())) == 1 and len(boxes) > 1:
        return  # they would all say the same, which the legend says once
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-6) if len(boxes) else np.zeros(0)
    placed = np.zeros((0, 4))
    for i in np.argsort(areas if scores is None else -scores, kind="stable"):
        if not classes[int(labels[i])]:
            continue
        text = shorten(classes[int(labels[i])]) + ("" if scores is None else f" {scores[i]:.2f}")
        chip = np.array([(72 * width(text) + 0.6 * LEAST) * unit, 1.36 * LEAST * unit])
        if chip[0] > size[0] or chip[1] > size[1]:
            continue
        corner, cost = place_label(i, chip, boxes, areas, placed, size)
        if cost <= TOO_MUCH:
            placed = np.vstack((placed, [*corner, *(corner + chip)]))
            yield _Label(text, palette[int(labels[i])], *corner, *chip)


def place_label(
    i: int, chip: np.ndarray, boxes: np.ndarray, areas: np.ndarray, placed: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, float]:
    """The best corner for a label of object i, and what it costs: shares of objects and of other labels hidden."""
    x1, y1, x2, y2 = boxes[i]
    w, h = chip
    places = np.array(
        [
            (x1, y1 - h),  # on top of the box, then under it, then inside, then beside it
            (x2 - w, y1 - h),
            (x1, y2),
            (x2 - w, y2),
            (x1, y1),
            (x1, y2 - h),
            (x2 - w, y1),
            (x2 - w, y2 - h),
            (x2, y1),
            (x2, y2 - h),
            (x1 - w, y1),
            (x1 - w, y2 - h),
        ]
    )
    corners = np.clip(places, 0, np.array(size) - chip)
    chips = np.hstack((corners, corners + chip))
    overlap = _overlap(chips, boxes)
    hidden = overlap / areas
    hidden[:, i] *= 0.6  # an object's own label may rather lie on it than on another
    overlap[:, i] = 0  # on another it may also be taken for that one's
    cost = hidden.sum(axis=1) + (0.15 * overlap.sum(axis=1) + 20 * _overlap(chips, placed).sum(axis=1)) / (w * h)
    cost -= 0.15 * overlap.min(axis=0).sum() / (w * h)  # of objects around all places none can be said to be better
    cost += 0.3 * np.abs(corners - places).max(axis=1) / h + 0.005 * np.arange(len(places))
    best = int(cost.argmin())
    return corners[best], float(cost[best])


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas `n m` that boxes `n 4` and `m 4` have in common."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.maximum(high - low, 0).prod(axis=2)


def _unit(color: Color) -> tuple[float, float, float]:
    return color[0] / 255, color[1] / 255, color[2] / 255
