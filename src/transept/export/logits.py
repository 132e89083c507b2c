"""Classifiers and segmenters as graphs: normalised images to logits, any number of images at once, of one size."""

import copy
import dataclasses
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from transept.data.resizing import Normalise, Size, resize_jointly
from transept.data.transforms import eval_transform
from transept.errors import TranseptError, UsageError
from transept.export.onnx import FILES, Axis, Exported, Format, Run, sample_picture, write_graphs
from transept.tasks.classify import Classifier
from transept.tasks.segment import Segmenter

TOLERANCE = 1e-4
"""Of the logits, in their standard deviations."""


def export_logits(
    task: Classifier | Segmenter,
    folder: str | PathLike[str],
    *,
    img_size: Size | None = None,
    formats: Sequence[str] = tuple(FILES),
    picture: Image.Image | None = None,
) -> Exported:
    """Write `model.onnx` and `model.pt2` to `folder`, in float32, once they agree with eager on a picture.

    The graph takes `images` `b 3 H W` and gives `logits`, `b k` of a classifier and `b k H W` of a segmenter. It is
    made with two images and compared on three: the picture, its mirror image, and the picture upside down.

    Args:
        img_size: height and width. A classifier has its own, which is the only one taken; a segmenter's default is the
            short side of its preprocessing's scale, for both.
        formats: which of the two files.
        picture: what to compare on; default: `sample_picture`.

    Returns:
        Files and differences: the largest of the `logits`, in their standard deviations.

    Raises:
        UsageError: a size that cannot be, an unknown format, or packages that are not installed.
        TranseptError: a graph differs from eager by more than 1e-4 standard deviations, or the folder cannot be written
            to.
    """
    size = _size(task, img_size)
    image = _prepare(task, picture or sample_picture(), size)
    images = torch.stack((image, image.flip(-1), image.flip(-2)))
    model = copy.deepcopy(task).cpu().float().eval()
    with torch.no_grad():
        expected = model(images)

    def compare(kind: Format, run: Run) -> dict[str, float]:
        (logits,) = run([images])
        error = float((logits - expected).abs().max() / expected.std()) if logits.shape == expected.shape else torch.inf
        if not error <= TOLERANCE:
            raise TranseptError(
                f"{FILES[kind]} differs from the model on the picture: logits by {error:.2g} of their standard "
                f"deviation, where {TOLERANCE} is allowed; nothing was written"
            )
        return {"logits": error}

    about = {
        "task": "segment" if isinstance(task, Segmenter) else "classify",
        "architecture": (task if isinstance(task, Segmenter) else task.model).pretrained_cfg["architecture"],
        "classes": task.classes,
        **dataclasses.asdict(task.preprocessing),
        "img_size": list(size),
    }
    return write_graphs(
        model,
        {"images": images[:2]},
        [Axis("logits", "batch")],
        Path(folder),
        formats,
        about,
        compare,
        any_batch=True,
    )


def _size(task: Classifier | Segmenter, img_size: Size | None) -> Size:
    if isinstance(task, Classifier):
        own = task.preprocessing.img_size
        if img_size is not None and img_size != own:
            raise UsageError(
                f"img_size={img_size[0]} x {img_size[1]}: a classifier is exported at the size it was made for, "
                f"{own[0]} x {own[1]}"
            )
        return own
    if img_size is None:
        if task.preprocessing.scale is None:
            raise UsageError("this segmenter leaves pictures as large as they are; give the size of the exported graph")
        side = min(task.preprocessing.scale)
        img_size = (side, side)
    if min(img_size) < 1:
        raise UsageError(f"img_size={img_size[0]} x {img_size[1]}: give a positive height and width")
    return img_size


def _prepare(task: Classifier | Segmenter, picture: Image.Image, size: Size) -> Tensor:
    if isinstance(task, Classifier):
        return eval_transform(task.preprocessing)(picture)
    about = task.preprocessing
    pixels = v2.functional.to_image(picture.convert("RGB"))
    resized = resize_jointly(pixels, size, antialias=about.antialias)
    return Normalise(about.mean, about.std)(resized).as_subclass(Tensor)
