"""The built-in `digits-scenes`: handwritten digits lying on photographs, with exact boxes and masks.

scikit-learn's 8 x 8 scans of digits are enlarged, tinted and laid over crops of its two photographs, later digits over
earlier ones. Training and validation share neither a scan nor a pixel of the photographs. A scene depends on the
split, the seed and its index alone; everything is drawn and composed in integers, so every machine makes the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

Split = Literal["train", "val"]

DIGITS = [str(digit) for digit in range(10)]

# The last 360 scans are held out, as in the set `digits`: they are of other writers than most of the rest.
_HELD_OUT_SCANS = 360
# Rows and columns of the photographs, which are 427 x 640. Each half has bright and dark ground, smooth and rough.
_REGIONS = {
    "train": {"china.jpg": (0, 427, 0, 432), "flower.jpg": (0, 283, 0, 640)},
    "val": {"china.jpg": (0, 427, 432, 640), "flower.jpg": (283, 427, 0, 640)},
}
_SPLIT_NUMBERS = {"train": 0, "val": 1}
# Hues that stand out from stone, sky and leaves, each as ink for a dark and for a bright ground.
_INKS = (
    ((255, 214, 64), (128, 76, 0)),
    ((255, 146, 58), (158, 56, 0)),
    ((255, 120, 120), (160, 14, 26)),
    ((255, 140, 214), (142, 8, 92)),
    ((206, 164, 255), (84, 24, 152)),
    ((136, 180, 255), (18, 52, 152)),
    ((104, 226, 255), (0, 78, 112)),
    ((112, 244, 206), (0, 88, 70)),
    ((178, 246, 106), (44, 92, 0)),
    ((255, 255, 248), (24, 24, 30)),
)
_ATTEMPTS = 12
# Brightness, of 255, of an enlarged scan at which the ink begins: lower fills the holes of a 9, higher breaks strokes.
_EDGE = 122


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneOptions:
    """What a scene looks like. Lengths are in pixels, both ends of a range are included."""

    sides: tuple[int, int] = (96, 160)
    """Height and width, each drawn for itself, in steps of 8."""
    digits: tuple[int, int] = (2, 6)
    """How many digits are laid down; one that finds no room is left out, never the first."""
    heights: tuple[int, int] = (28, 64)
    """Height of a digit."""
    min_visible: float = 0.6
    """Share of each digit that neither the border nor another digit may hide."""

    def __post_init__(self) -> None:
        for name, least in (("sides", 32), ("digits", 1), ("heights", 8)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ValueError(f"{name}={(low, high)}; give (low, high) with {least} <= low <= high")
        if self.sides[0] % 8 or self.sides[1] % 8:
            raise ValueError(f"sides={self.sides}; both must be multiples of 8")
        if self.heights[1] > self.sides[0]:
            raise ValueError(f"heights={self.heights} do not fit into pictures of {self.sides[0]} pixels a side")
        if not 0 < self.min_visible <= 1:
            raise ValueError(f"min_visible={self.min_visible} is not in (0, 1]")


class Scene(NamedTuple):
    """A picture and what is on it; digits in the order they were laid down."""

    image: np.ndarray
    """`H W 3`, 8 bit."""
    labels: np.ndarray
    """`n`, the digits."""
    boxes: np.ndarray
    """`n 4`, x1 y1 x2 y2 of the visible part; a box of one pixel is 1 wide."""
    masks: np.ndarray
    """`n H W`, true where the digit is seen."""
    semantic: np.ndarray
    """`H W`, 0 for the ground, 1 + digit elsewhere; 8 bit."""


class DigitScenes(Sequence[Scene]):
    """Scenes, made anew at each access, a few milliseconds each."""

    def __init__(self, split: Split, length: int, *, seed: int = 0, options: SceneOptions | None = None) -> None:
        self.split: Split = split
        self.length = length
        self.seed = seed
        self.options = options or SceneOptions()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        return make_scene(self.split, self.seed, index, self.options)


def make_scene(split: Split, seed: int, index: int, options: SceneOptions | None = None) -> Scene:
    """The scene of a split, seed and index: always the same one."""
    options = options or SceneOptions()
    draw = _generator(split, seed, index)
    height, width = _draw_size(draw, options)
    image = _ground(draw, split, height, width)
    labels: list[int] = []
    masks: list[np.ndarray] = []
    areas: list[int] = []
    first_ink = int(draw.integers(len(_INKS)))
    for number in range(_between(draw, *options.digits)):
        placed = _place(draw, split, height, width, masks, areas, options)
        if placed is None:
            continue
        label, alpha, area, window = placed
        _paint(draw, image, alpha, window, (first_ink + 3 * number) % len(_INKS))  # neighbours differ
        mask = np.zeros((height, width), bool)
        mask[window.rows, window.columns] = alpha >= 128
        for lower in masks:
            lower &= ~mask
        labels.append(label)
        masks.append(mask)
        areas.append(area)
    stacked = np.stack(masks)
    semantic = np.zeros((height, width), np.uint8)
    for label, mask in zip(labels, masks, strict=True):
        semantic[mask] = label + 1
    return Scene(image, np.array(labels), boxes_of(stacked), stacked, semantic)


def scene_size(split: Split, seed: int, index: int, options: SceneOptions) -> tuple[int, int]:
    """Height and width of a scene that need not be made for it."""
    return _draw_size(_generator(split, seed, index), options)


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """The smallest boxes `n 4` (x1 y1 x2 y2) around masks `n H W`, none of them empty."""
    _, height, width = masks.shape
    columns, rows = np.any(masks, axis=1), np.any(masks, axis=2)
    x1, y1 = columns.argmax(axis=1), rows.argmax(axis=1)
    x2, y2 = width - np.flip(columns, 1).argmax(axis=1), height - np.flip(rows, 1).argmax(axis=1)
    return np.stack([x1, y1, x2, y2], axis=1).astype(np.float32)


def _generator(split: Split, seed: int, index: int) -> np.random.Generator:
    # Only `integers` is drawn from it: no rounding enters.
    return np.random.Generator(np.random.PCG64([_SPLIT_NUMBERS[split], seed, index]))


def _draw_size(draw: np.random.Generator, options: SceneOptions) -> tuple[int, int]:
    height = 8 * _between(draw, options.sides[0] // 8, options.sides[1] // 8)
    return height, 8 * _between(draw, options.sides[0] // 8, options.sides[1] // 8)


class _Window(NamedTuple):
    """Where a digit lies in the picture, cut at the border."""

    rows: slice
    columns: slice


def _place(
    draw: np.random.Generator,
    split: Split,
    height: int,
    width: int,
    masks: list[np.ndarray],
    areas: list[int],
    options: SceneOptions,
) -> tuple[int, np.ndarray, int, _Window] | None:
    """A digit, its opacity in the window, its whole area and its window; none where no try keeps all digits seen."""
    scans, labels = _scans(split)
    number = int(draw.integers(len(labels)))
    size = _between(draw, *options.heights)
    alpha = _enlarge(scans[number], size, _between(draw, 85, 120))[:, : options.sides[0]]
    area = int((alpha >= 128).sum())
    for attempt in range(_ATTEMPTS):
        # Up to a sixth may lie outside. The first digit ends within the picture, so that no scene is empty.
        margin = 0 if attempt == _ATTEMPTS - 1 and not masks else 6
        top, left = (
            _between(draw, -(side // margin) if margin else 0, room - side + (side // margin if margin else 0))
            for side, room in zip(alpha.shape, (height, width), strict=True)
        )
        window = _Window(
            slice(max(top, 0), min(top + alpha.shape[0], height)),
            slice(max(left, 0), min(left + alpha.shape[1], width)),
        )
        seen = alpha[max(-top, 0) : height - top, max(-left, 0) : width - left]
        solid = seen >= 128
        if solid.sum() < options.min_visible * area:
            continue
        remaining = (int(mask.sum()) - int((mask[window.rows, window.columns] & solid).sum()) for mask in masks)
        if all(rest >= options.min_visible * whole for rest, whole in zip(remaining, areas, strict=True)):
            return int(labels[number]), seen, area, window
    return None


def _paint(draw: np.random.Generator, image: np.ndarray, alpha: np.ndarray, window: _Window, ink_number: int) -> None:
    """Lay ink of this opacity onto the picture, over a soft shadow that lifts it off the ground."""
    ground = image[window.rows, window.columns].astype(np.int32)
    brightness = int((ground @ (299, 587, 114)).mean()) // 1000
    ink = np.array(_INKS[ink_number][int(brightness > 116)])
    ink = np.clip(ink + draw.integers(-16, 17, size=3), 0, 255)
    shadow = np.asarray(Image.fromarray(alpha).filter(ImageFilter.BoxBlur(2)), np.int32)
    shadow = np.pad(shadow, ((2, 0), (1, 0)))[: alpha.shape[0], : alpha.shape[1], None] * 2 // 5
    ground = (ground * (255 - shadow) + 127) // 255
    opacity = alpha.astype(np.int32)[..., None]
    image[window.rows, window.columns] = (ground * (255 - opacity) + ink * opacity + 127) // 255


def _ground(draw: np.random.Generator, split: Split, height: int, width: int) -> np.ndarray:
    """A crop of one of the photographs, enlarged up to twice, perhaps mirrored, a little darker or brighter."""
    photos = _photos(split)
    photo = photos[int(draw.integers(len(photos)))]
    zoom = _between(draw, 50, 100)
    # Where the crop would be larger than the region, it is the largest one of its shape.
    rows, columns = height * zoom // 100, width * zoom // 100
    if rows > photo.shape[0] or columns > photo.shape[1]:
        rows, columns = min(
            (photo.shape[0], max(photo.shape[0] * width // height, 1)),
            (max(photo.shape[1] * height // width, 1), photo.shape[1]),
        )
    top, left = _between(draw, 0, photo.shape[0] - rows), _between(draw, 0, photo.shape[1] - columns)
    crop = photo[top : top + rows, left : left + columns]
    if draw.integers(2):
        crop = crop[:, ::-1]
    resized = Image.fromarray(np.ascontiguousarray(crop)).resize((width, height), Image.Resampling.BICUBIC)
    gains = draw.integers(80, 111, size=3) * 3 // 4 + 22  # parts of 100, drawn in toward the neutral
    return np.minimum(np.asarray(resized, np.int32) * gains // 100, 255).astype(np.uint8)


def _enlarge(scan: np.ndarray, height: int, stretch: int) -> np.ndarray:
    """A scan `8 8` in 0..16 as opacity in 0..255, cut to its ink: of this height, its width `stretch` % of natural."""
    # The rim of two empty cells lets strokes at the scan's border end round instead of flat.
    cells = Image.fromarray(np.pad(scan * 255 // 16, 2).astype(np.uint8))
    big = cells.resize((96, 96), Image.Resampling.LANCZOS)
    ink = big.point([255 * (value >= _EDGE) for value in range(256)]).getbbox() or (0, 0, 96, 96)
    width = max(height * (ink[2] - ink[0]) * stretch // (100 * (ink[3] - ink[1])), 6)
    # Where the brightness of the blurred scan crosses the edge the digit ends, over about two pixels.
    smooth = big.crop(ink).resize((width, height), Image.Resampling.BICUBIC)
    gain = max(height // 6, 3)
    return np.asarray(smooth.point([min(max(128 + (value - _EDGE) * gain, 0), 255) for value in range(256)]))


def _between(draw: np.random.Generator, low: int, high: int) -> int:
    return int(draw.integers(low, high + 1))


@cache
def _scans(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Scans `n 8 8` in 0..16 and their digits."""
    # Takes seconds, and only drawing a scene needs it.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    scans = np.asarray(pixels).reshape(-1, 8, 8).astype(np.int64)
    cut = len(scans) - _HELD_OUT_SCANS
    half = slice(0, cut) if split == "train" else slice(cut, None)
    return scans[half], np.asarray(labels)[half]


@cache
def _photos(split: Split) -> list[np.ndarray]:
    """The split's part of each photograph, `H W 3`."""
    # Takes seconds, and only drawing a scene needs it.
    from sklearn.datasets import load_sample_image

    regions = _REGIONS[split].items()
    return [np.asarray(load_sample_image(name))[y1:y2, x1:x2] for name, (y1, y2, x1, x2) in regions]
