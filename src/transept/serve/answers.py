"""A model's answers about a picture file that somebody sends: one picture at a time, within limits, errors in words."""

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from transept.data.images import BadImageError, as_shown, read_image, size_of, stored_form
from transept.errors import UsageError
from transept.explain.explanation import Explanation
from transept.tasks.task import Item, Picture, Task

OVERVIEW = "overview"
"""The kind of explanation that shows a layer of each kind."""
_DENSE_PIXELS = 1333 * 800
"""Detectors and segmenters see larger pictures scaled down to so many pixels, the size of COCO's published tests: their
masks and probabilities take bytes for each pixel and each class, or object."""
_SLENDER = 20
"""Longest side of a picture in shorter sides: scaling the shorter one to the model's would make a slender one huge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of the files that are taken."""

    megabytes: float = 20.0
    megapixels: float = 40.0

    def __post_init__(self) -> None:
        for name in ("megabytes", "megapixels"):
            if not getattr(self, name) > 0:
                raise UsageError(f"the limit of {getattr(self, name):g} {name} lets no picture through")


class Answer(NamedTuple):
    items: list[Item]
    """The model's findings, most important first; boxes in pixels of the picture as it was sent, turned upright."""
    drawing: Image.Image | None
    """Objects or classes of pixels drawn over the picture; None where answers have no places in it."""
    seconds: float
    """From the picture to what the model says, preparation and decoding included."""


class Answerer:
    """A trained task that any number of threads may ask; it answers one after the other.

    The model is locked, since reading attention hooks into its layers; reading a picture too, since what Pillow warns
    of is turned into errors for the whole process.
    """

    def __init__(self, task: Task, limits: Limits | None = None, explained: Task | None = None) -> None:
        """`explained`: the task as it was trained, where `task` is a faster form, which does not show its attention."""
        self.task = task.eval()
        self._explained = explained or task
        self.limits = limits or Limits()
        self._lock = threading.Lock()

    def answer(self, path: Path, **options: Any) -> Answer:
        """Labels, objects or classes of pixels.

        Args:
            path: a picture file.
            options: of the task's inference, e.g. a detector's least `score`.

        Raises:
            BadImageError: it cannot be read, or is beyond the limits.
            UsageError: an option is out of its range.
        """
        task = self.task
        with self._lock:
            picture = self._read(path)
            inference = task.inference(**{**task.shown_defaults, **options})
            seen = _scaled_down(picture) if task.is_dense else picture
            start = time.perf_counter()
            (prediction,) = task.predict([seen], inference)
            items = task.items(prediction)
            seconds = time.perf_counter() - start
            drawing = _drawn(lambda file: task.draw(as_shown(seen), prediction, file)) if task.is_dense else None
            return Answer([_as_sent(item, picture, seen) for item in items], drawing, seconds)

    def explain(self, path: Path, kind: str = OVERVIEW) -> Image.Image:
        """The sheet of `transept explain`.

        Args:
            path: a picture file.
            kind: one of `attention_kinds`, whose last layers are shown head by head, or a layer of each.

        Raises:
            BadImageError: as `answer`.
            UsageError: another kind than the model has, or no classifier.
        """
        if not self.task.explains:
            raise UsageError(f"this model is a {self.task.kind}; attention is drawn of classifiers")
        with self._lock:
            explained = Explanation(self._explained, self._read(path))
            rows = explained.overview() if kind == OVERVIEW else explained.rows_of(kind)
            return _drawn(lambda file: explained.draw(rows, file))

    def _read(self, path: Path) -> Picture:
        name = Path(path.name)  # its folder is the server's affair
        try:
            if path.stat().st_size > self.limits.megabytes * 1e6:
                raise BadImageError(name, f"is larger than {self.limits.megabytes:g} MB; scale it down first")
            (width, height), _ = stored_form(path)
            if width * height > self.limits.megapixels * 1e6:
                size = f"{width} x {height} pixels, {width * height / 1e6:.1f} megapixels"
                raise BadImageError(name, f"has {size}; at most {self.limits.megapixels:g} are taken, scale it down")
            if max(width, height) > _SLENDER * min(width, height):
                raise BadImageError(name, f"has {width} x {height} pixels; at most {_SLENDER} : 1 is taken, crop it")
            return self.task.read(path, name=name)
        except BadImageError as error:
            raise BadImageError(name, error.reason) from error
        except OSError as error:
            raise BadImageError(name, f"cannot be read ({error.strerror or error})") from error


def _as_sent(item: Item, picture: Picture, seen: Picture) -> Item:
    """The box in pixels of the picture, where the model saw it scaled down."""
    if item.box is None:
        return item
    across, down = (whole / part for whole, part in zip(size_of(picture), size_of(seen), strict=True))
    x1, y1, x2, y2 = item.box
    return item._replace(box=(x1 * across, y1 * down, x2 * across, y2 * down))


def _scaled_down(picture: Picture) -> Picture:
    width, height = size_of(picture)
    ratio = sqrt(_DENSE_PIXELS / (width * height))
    if ratio >= 1:
        return picture
    size = max(round(width * ratio), 1), max(round(height * ratio), 1)
    if isinstance(picture, Image.Image):
        return picture.resize(size, Image.Resampling.BICUBIC)
    return resize(picture, [size[1], size[0]], InterpolationMode.BICUBIC)


def _drawn(draw: Callable[[Path], object]) -> Image.Image:
    """The picture that `draw` writes to a file."""
    with tempfile.TemporaryDirectory(prefix="transept-") as folder:
        file = Path(folder, "drawing.tif")  # not compressed: the page compresses what it sends
        draw(file)
        return read_image(file)
