"""Detectors as graphs, decoding and non-maximum suppression included.

ExportedDetector    a padded picture and its sizes to boxes, scores, labels and masks, all plain tensors
prepare             a picture to what the graph takes
export_detector     the files, each compared with eager on a photograph

A graph takes one picture at a time: how many objects are found differs from picture to picture, and neither
torchvision's `nms` nor what follows ONNX's NonMaxSuppression gives a batch of such lists. Its height and width are
fixed when it is made; smaller and differently shaped pictures are padded.
"""

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from transept.data.detection.transforms import DetectionPreprocessing
from transept.data.images import Picture, as_bytes, sample_picture
from transept.data.resizing import Normalise, Size, fit_within, pad_to, resize_jointly
from transept.errors import TranseptError, TranseptWarning, UsageError
from transept.export.onnx import DEFAULT_FORMATS, FILES, Axis, Exported, Format, Run, write_graphs
from transept.heads.instances import Detections
from transept.inference.compile import Precision

BOX_TOLERANCE = 1e-2
"""In pixels of the picture."""
SCORE_TOLERANCE = 1e-4
MASK_TOLERANCE = 1e-3
FLIPPED = 50
"""Among so many objects one may differ."""


class _Detector(Protocol):
    """The part of `tasks.detect.Detector` that the export needs."""

    method: str
    classes: list[str]
    preprocessing: DetectionPreprocessing
    has_masks: bool

    @property
    def read_as(self) -> dict[str, Any]: ...

    @property
    def pretrained_cfg(self) -> dict[str, Any]: ...

    @property
    def max_detections(self) -> int: ...

    def __call__(self, images: Tensor, /) -> Any: ...

    def cpu(self) -> Any: ...

    def decode(self, outputs: Any, image_sizes: Tensor, original_sizes: Tensor | None = None) -> list[Detections]: ...


class DetectorInputs(NamedTuple):
    """The inputs of the graph, under these names."""

    images: Tensor
    """`1 3 H W`: normalised, zero on the right and at the bottom where the picture is smaller."""
    sizes: Tensor
    """`1 2` int64: height and width of the resized picture, without padding."""
    original_sizes: Tensor
    """`1 2` int64: those of the picture as it was, in whose pixels boxes come back."""


class ExportedDetector(nn.Module):
    """A detector with its decoding, one picture at a time; what is written by `export_detector`."""

    def __init__(self, detector: _Detector) -> None:
        super().__init__()
        self.detector = detector

    @property
    def outputs(self) -> list[str]:
        return ["boxes", "scores", "labels"] + (["masks"] if self.detector.has_masks else [])

    def forward(self, images: Tensor, sizes: Tensor, original_sizes: Tensor) -> tuple[Tensor, ...]:
        """`DetectorInputs` to boxes `n 4`, scores ` n`, labels ` n` (int64) and, where the method has them, masks.

        Best first, n up to 100. Masks are probabilities `n 28 28` on a grid over each box, not drawn into the
        picture, whose size the graph does not fix: `transept.ops.masks.paste_masks` draws them.
        """
        (detections,) = self.detector.decode(self.detector(images), sizes, original_sizes)
        return tuple(part for part in detections if part is not None)


def prepare(picture: Picture, preprocessing: DetectionPreprocessing, img_size: Size) -> DetectorInputs:
    """A picture, resized to the preprocessing's scale and to fit `img_size` (height, width), normalised and padded."""
    pixels = tv_tensors.Image(as_bytes(picture, len(preprocessing.mean)))
    original = (pixels.shape[-2], pixels.shape[-1])
    size = fit_within(original, preprocessing.scale)
    if any(side > limit for side, limit in zip(size, img_size, strict=True)):
        factor = min(limit / side for side, limit in zip(original, img_size, strict=True))
        size = (max(int(original[0] * factor + 0.5), 1), max(int(original[1] * factor + 0.5), 1))
    resized = resize_jointly(pixels, size, antialias=preprocessing.antialias)
    normalise = Normalise(
        preprocessing.mean, preprocessing.std, bgr=preprocessing.bgr, per_picture=preprocessing.per_picture
    )
    image = normalise(resized).as_subclass(Tensor)
    return DetectorInputs(pad_to(image, img_size)[None], torch.tensor([size]), torch.tensor([original]))


def default_size(preprocessing: DetectionPreprocessing) -> Size:
    """Height and width that hold every wide picture of the preprocessing's scale; 800 x 1344 for the published one."""
    multiple = preprocessing.multiple_of
    height, width = (-(-side // multiple) * multiple for side in sorted(preprocessing.scale))
    return height, width


def export_detector(
    detector: _Detector,
    folder: str | PathLike[str],
    *,
    img_size: Size | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    picture: Picture | None = None,
    dtype: Precision = "auto",
    opset: int | None = None,
) -> Exported:
    """Write files of the formats to `folder`, in float32, once they agree with eager on a picture.

    The detector is left as it is, on its device and in its mode.

    Args:
        img_size: height and width of the graph's pictures, padding included; default: `default_size`.
        formats: some of `FILES`, but no package.
        picture: what to compare on, best one with objects that the detector knows; default: `sample_picture`.
        opset: of ONNX, 18 or more; default: the exporter's.

    Returns:
        Files and differences: the number of `detections` compared, and largest differences of `boxes` (pixels of the
        picture), `scores` and `masks` (probabilities).

    Raises:
        UsageError: a size that is no multiple of what the preprocessing pads to, an unknown format, or packages that
            are not installed.
        TranseptError: a graph differs from eager by more than 0.01 pixels, a score of 1e-4, or a mask's probability of
            1e-3; or the folder cannot be written to.
    """
    if "package" in formats:
        raise UsageError(
            "what makes objects of a detector's outputs is not compiled ahead of time; leave out --format package and"
            " take --form compiled where it is used, or export the backbone with --backbone"
        )
    if dtype == "bfloat16":
        raise UsageError("a detector's files are in float32: half precision moves boxes; leave out --dtype")
    img_size = img_size or default_size(detector.preprocessing)
    _check_size(img_size, detector.preprocessing.multiple_of)
    whole = ExportedDetector(copy.deepcopy(detector).cpu().float().eval())
    picture = sample_picture(len(detector.preprocessing.mean)) if picture is None else picture
    inputs = prepare(picture, detector.preprocessing, img_size)
    most = detector.max_detections
    with torch.no_grad():
        expected = Detections(*whole(*inputs))
    if not len(expected.boxes):
        warnings.warn(
            "the detector finds nothing in the picture, so the check compares nothing; give a picture with objects",
            TranseptWarning,
            stacklevel=2,
        )

    def compare(kind: Format, run: Run) -> dict[str, float]:
        return compare_detections(expected, Detections(*run(inputs)), FILES[kind], most)

    metadata = {
        "task": "detect",
        "method": detector.method,
        "architecture": detector.pretrained_cfg["architecture"],
        "classes": detector.classes,
        "img_size": list(img_size),
        **dataclasses.asdict(detector.preprocessing),
        **detector.read_as,
    }
    outputs = [Axis(name, "detections") for name in whole.outputs]
    return write_graphs(whole, inputs._asdict(), outputs, Path(folder), formats, metadata, compare, opset=opset)


def compare_detections(expected: Detections, actual: Detections, name: str, most: int) -> dict[str, float]:
    """The largest differences between the same objects in two lists, whose order may differ where scores tie.

    Where the lists hold `most` objects, as many as they can, either may end with others of the same score: an object
    without its like is then passed over if its score is within the tolerance of the lowest. Of every 50 objects one may
    be another, and `flipped` counts them: suppression and the choice of proposals compare numbers, and where two are
    all but equal rounding decides.

    Raises:
        TranseptError: the numbers differ, an object lacks its like, or its mask differs; `name` is what it is found in.
    """
    number, others = len(expected.boxes), len(actual.boxes)
    allowed = max(number, others) // FLIPPED
    if abs(number - others) > allowed:
        raise TranseptError(
            f"{name} finds {others} objects in the picture and the detector {number}; nothing was written"
        )
    if not number or not others:
        return dict.fromkeys(("detections", "flipped", "boxes", "scores"), 0.0)
    boxes = (expected.boxes[:, None] - actual.boxes).abs().amax(dim=2)
    scores = (expected.scores[:, None] - actual.scores).abs()
    apart = (boxes / BOX_TOLERANCE).maximum(scores / SCORE_TOLERANCE).nan_to_num(nan=torch.inf)
    apart[expected.labels[:, None] != actual.labels] = torch.inf
    alike = apart <= 1
    from scipy.optimize import linear_sum_assignment  # half a second, which every verb would wait for

    ours, theirs = (
        torch.from_numpy(index) for index in linear_sum_assignment(apart.where(alike, number + 1.0).numpy())
    )
    same = alike[ours, theirs]
    lowest = expected.scores.min() + (SCORE_TOLERANCE if max(number, others) == most else -torch.inf)
    flipped = 0
    for objects, index, what, other in (
        (expected, ours[same], "the detector", name),
        (actual, theirs[same], name, "the detector"),
    ):
        cut = (objects.scores <= lowest) & (objects.scores >= lowest - 2 * SCORE_TOLERANCE)
        cut[index] = True
        alone = (~cut).nonzero()[:, 0]
        if len(alone) > allowed or not same.any():
            first = int(alone[0]) if len(alone) else 0
            corners = ", ".join(f"{side:.2f}" for side in objects.boxes[first].tolist())
            raise TranseptError(
                f"{name} differs from the detector on the picture: what {what} finds as object {first + 1} of"
                f" {len(objects.boxes)} at ({corners}), class {int(objects.labels[first])}, score"
                f" {float(objects.scores[first]):.5f}, has no like within {BOX_TOLERANCE} pixels and a score of"
                f" {SCORE_TOLERANCE} in what {other} finds; nothing was written"
            )
        flipped = max(flipped, len(alone))
    pairs = ours[same], theirs[same]
    errors = {
        "detections": float(same.sum()),
        "flipped": float(flipped),
        "boxes": float(boxes[pairs].max()),
        "scores": float(scores[pairs].max()),
    }
    if expected.masks is not None and actual.masks is not None:
        errors["masks"] = float((expected.masks[pairs[0]] - actual.masks[pairs[1]]).abs().max())
        if not errors["masks"] <= MASK_TOLERANCE:
            raise TranseptError(
                f"{name} differs from the detector on the picture: a mask by {errors['masks']:.2g}, where"
                f" {MASK_TOLERANCE} is allowed; nothing was written"
            )
    return errors


def _check_size(img_size: Size, multiple_of: int) -> None:
    if min(img_size) < 1 or any(side % multiple_of for side in img_size):
        height, width = (max(-(-side // multiple_of), 1) * multiple_of for side in img_size)
        raise UsageError(
            f"img_size={img_size[0]} x {img_size[1]}: this detector pads to multiples of {multiple_of}; "
            f"give {height} x {width}"
        )
