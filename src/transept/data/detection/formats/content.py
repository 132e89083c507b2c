"""What readers of other formats share: shapes, and pictures with objects as the content of COCO files."""

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from transept.data.images import EXTENSIONS, BadImageError, stored_form
from transept.data.splits import NAMES
from transept.errors import TranseptError, TranseptWarning
from transept.files import is_file, open_regular, read_text

SPLITS = {name: kind for kind, names in NAMES.items() for name in names if name != "trainval"}
"""Names of splits as they occur, in lower case; VOC's `trainval` is its train and val together."""
ROTATED = "rotated boxes, framed by upright ones"
_CORNERS = 64  # of a polygon that stands for an ellipse

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Annotated:
    """The annotations of a split."""

    content: dict[str, list[Any]]
    """As that of a COCO file."""
    folder: Path
    """From which the pictures' names lead."""
    file: Path
    """To name in errors."""


class Shape(NamedTuple):
    """Of an object, in pixels."""

    box: list[float]
    """x, y, width, height."""
    segmentation: Any = None
    """COCO's; None for a box, of which nobody knows the outline."""


class Contents:
    """Pictures with objects, put together split by split.

    Args:
        file: to name in errors.
        folder: from which the names of pictures lead.
        names: classes in the order of their ids, from 0; those that occur, in the order of the alphabet, where None.
    """

    def __init__(self, file: Path, folder: Path, names: Sequence[str] | None = None) -> None:
        self.file, self.folder = file, folder
        self._names = names
        self._images: dict[str, list[dict[str, Any]]] = {}
        self._objects: dict[str, list[dict[str, Any]]] = {}
        self.taken: Counter[str] = Counter()
        """What was read in another way than as it stands, by kind."""
        self.left_out: Counter[str] = Counter()
        """What no detector learns, by kind."""

    def add_image(self, split: str, name: str, size: tuple[int, int] | None = None) -> int:
        """The id of a picture; its size is height and width, read from the picture where None."""
        images = self._images.setdefault(split, [])
        self._objects.setdefault(split, [])
        image = {"id": len(images) + 1, "file_name": name}
        images.append(image | (dict(zip(("height", "width"), size, strict=True)) if size else {}))
        return len(images)

    def add_object(
        self, split: str, image: int, label: str | int, shape: Shape, place: str, *, crowd: bool = False
    ) -> None:
        """`label` is a class by name or, where the names are known, by number; `place` is what errors name."""
        entry = {"id": place, "image_id": image, "category_id": label, "bbox": shape.box, "iscrowd": int(crowd)}
        self._objects[split].append(entry | ({"segmentation": shape.segmentation} if shape.segmentation else {}))

    def finish(self) -> dict[str, Annotated]:
        labels = {each["category_id"] for entries in self._objects.values() for each in entries}
        names = sorted(map(str, labels)) if self._names is None else self._names
        numbers = {name: number for number, name in enumerate(names)}
        for entries in self._objects.values():
            for entry in entries:
                entry["category_id"] = numbers.get(entry["category_id"], entry["category_id"])
        categories = [{"id": number, "name": name} for number, name in enumerate(names)]
        for counts, what in ((self.taken, "taken for what they mean"), (self.left_out, "left out")):
            if counts:
                listing = ", ".join(f"{count} {kind}" for kind, count in counts.items())
                warnings.warn(f"{str(self.file)!r}: {listing}: {what}", TranseptWarning, stacklevel=4)
        return {
            split: Annotated(
                {"images": images, "annotations": self._objects[split], "categories": categories},
                self.folder,
                self.file,
            )
            for split, images in self._images.items()
        }


def polygon(points: Iterable[Point]) -> Shape:
    corners = list(points)
    return Shape(frame(corners), [[float(side) for corner in corners for side in corner]])


def filled(mask: np.ndarray, size: tuple[int, int], corner: tuple[int, int] = (0, 0)) -> Shape | None:
    """Painted pixels, as run lengths; None where there are none.

    Args:
        mask: `h w`, true where the object is.
        size: height and width of the picture.
        corner: column and row of the mask's first pixel in it.

    Raises:
        ValueError: the mask reaches beyond the picture.
        TranseptError: the picture has more pixels than one is opened with.
    """
    check_pixels(size)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    (left, top), (height, width) = corner, mask.shape
    if left < 0 or top < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError(f"its mask of {width} x {height} at {left}, {top} reaches beyond {size[1]} x {size[0]}")
    whole = np.zeros(size, bool)
    whole[top : top + height, left : left + width] = mask
    changes = np.flatnonzero(np.diff(whole.ravel(order="F"), prepend=False)).tolist()  # COCO counts down the columns
    counts = np.diff(changes, prepend=0, append=whole.size).tolist()
    box = [left + columns[0], top + rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
    return Shape([float(side) for side in box], {"size": list(size), "counts": counts})


def check_pixels(size: tuple[int, int]) -> None:
    """A mask takes as much memory as its picture is said to have pixels, and whoever says it may say anything.

    Raises:
        TranseptError: more than Pillow opens.
    """
    limit = Image.MAX_IMAGE_PIXELS or math.inf
    if size[0] * size[1] > limit:
        raise TranseptError(
            f"its picture is said to have {size[1]} x {size[0]} pixels, more than {limit / 1e6:.0f} megapixels; "
            "correct the size, or scale the picture down"
        )


def ellipse(center: Point, radii: Point, degrees: float = 0) -> Shape:
    """As a polygon, turned clockwise on the screen."""
    steps = (2 * math.pi * step / _CORNERS for step in range(_CORNERS))
    around = [(center[0] + radii[0] * math.cos(angle), center[1] + radii[1] * math.sin(angle)) for angle in steps]
    return polygon(turned(around, center, degrees))


def turned(points: Iterable[Point], center: Point, degrees: float) -> list[Point]:
    """Clockwise on the screen, where y points down."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    offsets = ((x - center[0], y - center[1]) for x, y in points)
    return [(center[0] + x * cos - y * sin, center[1] + x * sin + y * cos) for x, y in offsets]


def box_corners(x1: float, y1: float, x2: float, y2: float) -> list[Point]:
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def frame(points: Sequence[Point]) -> list[float]:
    """x, y, width and height of the upright box around points."""
    xs, ys = zip(*points, strict=True)
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def upright_size(path: Path) -> tuple[int, int] | None:
    """Height and width of a picture as it is seen; None where it cannot be read, which its set will say."""
    try:
        (width, height), orientation = stored_form(path)
    except BadImageError:
        return None
    return (width, height) if orientation >= 5 else (height, width)


def picture_beside(stem: Path) -> Path | None:
    """The picture of this path without its ending, whatever ending it has."""
    pictures = (stem.with_name(stem.name + end) for ending in EXTENSIONS for end in (ending, ending.upper()))
    return next((picture for picture in pictures if is_file(picture)), None)


def opened(file: Path) -> BinaryIO:
    """Raises `TranseptError` where it cannot be opened."""
    try:
        return open_regular(file)
    except OSError as error:
        raise TranseptError(f"cannot read {str(file)!r} ({error.strerror or error})") from error


def read_xml(file: Path) -> ElementTree.Element:
    """The root of an XML file. A file that declares entities is refused: they can grow without bound.

    Raises:
        TranseptError: the file is unreadable, not UTF-8, not XML, or declares a document type.
    """
    text = read_text(file)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise TranseptError(f"{str(file)!r} declares a document type or entities, which no annotation needs; remove it")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise TranseptError(f"{str(file)!r} is not XML ({error})") from error


def numbers_of(element: ElementTree.Element, names: Iterable[str], place: str) -> list[float]:
    """Attributes, or the text of the elements within, as numbers.

    Raises:
        TranseptError: one is missing or no number.
    """
    values = []
    for name in names:
        text = element.get(name, element.findtext(name))
        try:
            values.append(float(text if text is not None else ""))
            if not math.isfinite(values[-1]):
                raise ValueError(text)
        except ValueError:
            raise TranseptError(f"{place} has the {name} {text!r} in a {element.tag!r}; give a number") from None
    return values
