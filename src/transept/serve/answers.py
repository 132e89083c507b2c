"""What a model says about a picture file that somebody sends: one picture at a time, within limits, errors in words."""

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from transept.data.images import BadImageError, read_image, stored_form
from transept.data.labels import drawing_color
from transept.draw.boxes import draw_objects
from transept.draw.overlay import draw_overlay, shares
from transept.errors import UsageError
from transept.explain.explanation import Explanation
from transept.tasks.classify import Classifier
from transept.tasks.detect import Detector
from transept.tasks.detect_pictures import DetectionInference
from transept.tasks.segment import Segmenter

OVERVIEW = "overview"
"""The kind of explanation that shows a layer of each kind."""
SHOWN_SCORE = 0.3
"""Least score of an object, where none is asked for."""
_TOP = 5
_DENSE_PIXELS = 1333 * 800
"""Detectors and segmenters see larger pictures scaled down to so many pixels, the size of COCO's published tests: their
masks and probabilities take bytes for each pixel and each class, or object."""
_SLENDER = 20
"""Longest side of a picture in shorter sides: scaling the shorter one to the model's would make a slender one huge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Of the files that are taken."""

    megabytes: float = 20.0
    megapixels: float = 40.0

    def __post_init__(self) -> None:
        for name in ("megabytes", "megapixels"):
            if not getattr(self, name) > 0:
                raise UsageError(f"the limit of {getattr(self, name):g} {name} lets no picture through")


class Found(NamedTuple):
    """An object."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    """x1 y1 x2 y2, in pixels of the picture as it was sent, turned upright."""


class Answer(NamedTuple):
    best: list[tuple[str, float]]
    """A classifier's most probable classes, or the shares of a segmenter's classes; largest first."""
    objects: list[Found]
    """A detector's, best first."""
    drawing: Image.Image | None
    """Objects or classes of pixels drawn over the picture; None of classifiers."""
    seconds: float
    """From the picture to what the model says, preparation and decoding included."""


class Answerer:
    """A trained task that any number of threads may ask; it answers one after the other.

    The model is locked, since reading attention hooks into its layers; reading a picture too, since what Pillow warns
    of is turned into errors for the whole process.
    """

    def __init__(self, task: Classifier | Detector | Segmenter, limits: Limits | None = None) -> None:
        self.task = task.eval()
        self.limits = limits or Limits()
        self._lock = threading.Lock()

    def answer(self, path: Path, score: float = SHOWN_SCORE) -> Answer:
        """Labels, objects or classes of pixels.

        Args:
            path: a picture file.
            score: least score of a detector's objects, in 0..1.

        Raises:
            BadImageError: it cannot be read, or is beyond the limits.
            UsageError: the score is not in 0..1.
        """
        with self._lock:
            picture = self._read(path)
            if isinstance(self.task, Detector):
                return _detect(self.task, picture, score)
            if isinstance(self.task, Segmenter):
                return _segment(self.task, picture)
            started = time.perf_counter()
            labels, scores = self.task.predict([picture], _TOP)
            best = zip(labels[0].tolist(), scores[0].tolist(), strict=True)
            named = [(self.task.classes[label], score) for label, score in best]
            return Answer(named, [], None, time.perf_counter() - started)

    def explain(self, path: Path, kind: str = OVERVIEW) -> Image.Image:
        """The sheet of `transept explain`.

        Args:
            path: a picture file.
            kind: one of `attention_kinds`, whose last layers are shown head by head, or a layer of each.

        Raises:
            BadImageError: as `answer`.
            UsageError: another kind than the model has, or no classifier.
        """
        if not isinstance(self.task, Classifier):
            raise UsageError(f"this model is a {type(self.task).__name__.lower()}; attention is drawn of classifiers")
        with self._lock:
            explained = Explanation(self.task, self._read(path))
            rows = explained.overview() if kind == OVERVIEW else explained.rows_of(kind)
            return _drawn(lambda file: explained.draw(rows, file))

    def _read(self, path: Path) -> Image.Image:
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
            return read_image(path)
        except BadImageError as error:
            raise BadImageError(name, error.reason) from error
        except OSError as error:
            raise BadImageError(name, f"cannot be read ({error.strerror or error})") from error


def _detect(task: Detector, picture: Image.Image, score: float) -> Answer:
    seen = _dense(picture)
    inference = DetectionInference(score_threshold=score)
    started = time.perf_counter()
    (found,) = task.predict([seen], inference)
    boxes, labels = found.boxes.float().cpu().numpy(), found.labels.cpu().numpy()
    scores = found.scores.float().cpu().numpy()
    masks = None if found.masks is None else found.masks.cpu().numpy()
    seconds = time.perf_counter() - started
    palette = [drawing_color(i) for i in range(len(task.classes))]
    drawing = _drawn(
        lambda file: draw_objects(seen, boxes, labels, task.classes, palette, file, scores=scores, masks=masks)
    )
    across, down = picture.width / seen.width, picture.height / seen.height
    objects = [
        Found(task.classes[label], share, (x1 * across, y1 * down, x2 * across, y2 * down))
        for label, share, (x1, y1, x2, y2) in zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
    ]
    return Answer([], objects, drawing, seconds)


def _segment(task: Segmenter, picture: Image.Image) -> Answer:
    seen = _dense(picture)
    started = time.perf_counter()
    (prediction,) = task.predict([seen])
    labels = prediction.labels.cpu().numpy()
    seconds = time.perf_counter() - started
    drawing = _drawn(lambda file: draw_overlay(seen, labels, task.classes, task.palette, file))
    return Answer(list(shares(labels, task.classes).items()), [], drawing, seconds)


def _dense(picture: Image.Image) -> Image.Image:
    ratio = sqrt(_DENSE_PIXELS / (picture.width * picture.height))
    if ratio >= 1:
        return picture
    size = max(round(picture.width * ratio), 1), max(round(picture.height * ratio), 1)
    return picture.resize(size, Image.Resampling.BICUBIC)


def _drawn(draw: Callable[[Path], object]) -> Image.Image:
    """The picture that `draw` writes to a file."""
    with tempfile.TemporaryDirectory(prefix="transept-") as folder:
        file = Path(folder, "drawing.tif")  # not compressed: the page compresses what it sends
        draw(file)
        return read_image(file)
