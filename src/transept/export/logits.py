"""Classifiers and segmenters as graphs: normalised images to logits, any number of images at once."""

import dataclasses
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from PIL import Image
from torch import Tensor

from transept.data.classification.transforms import eval_transform
from transept.data.resizing import Size
from transept.errors import UsageError
from transept.export.batches import check_sizes, dynamic_step, squashed, three_views, write_batch_graphs
from transept.export.onnx import FILES, Exported, sample_picture
from transept.tasks.classify import Classifier
from transept.tasks.segment import Segmenter


def export_logits(
    task: Classifier | Segmenter,
    folder: str | PathLike[str],
    *,
    img_size: Size | None = None,
    formats: Sequence[str] = tuple(FILES),
    picture: Image.Image | None = None,
    dynamic_size: bool = False,
) -> Exported:
    """Write `model.onnx` and `model.pt2` to `folder`, in float32, once they agree with eager on a picture.

    The graph takes `images` `b 3 H W` and gives `logits`, `b k` of a classifier and `b k H W` of a segmenter. It is
    made with two images and compared on three: the picture, its mirror image, and the picture upside down.

    Args:
        img_size: height and width; default: a classifier's own, and of a segmenter the short side of its
            preprocessing's scale, for both.
        formats: which of the two files.
        picture: what to compare on; default: `sample_picture`.
        dynamic_size: the graph takes all images whose sides are multiples of `size_step` (see the metadata), and is
            compared at `img_size` and at a size that is not square; it was traced at neither.

    Returns:
        Files and differences: the largest of the `logits`, in their standard deviations.

    Raises:
        UsageError: a size that cannot be, a model whose graph is for one size where any was asked for, an unknown
            format, or packages that are not installed.
        TranseptError: a graph differs from eager by more than 1e-4 standard deviations, or the folder cannot be written
            to.
    """
    size = _size(task, img_size)
    if dynamic_size and isinstance(task, Segmenter) and task.method == "upernet":
        raise UsageError(
            "UPerNet pools maps to grids of its own, which ONNX does not compute for any size; export one file for "
            "each size with --img-size, without --dynamic-size"
        )
    model = task.backbone if isinstance(task, Segmenter) else task.model
    step = dynamic_step(model, size) if dynamic_size else None
    picture = picture or sample_picture()
    batches = [three_views(_prepare(task, picture, each)) for each in check_sizes(size, step)]
    about = {
        "task": "segment" if isinstance(task, Segmenter) else "classify",
        "architecture": model.pretrained_cfg["architecture"],
        "classes": task.classes,
        **dataclasses.asdict(task.preprocessing),
    }
    return write_batch_graphs(task, batches, ["logits"], Path(folder), formats, about, step=step)


def _size(task: Classifier | Segmenter, img_size: Size | None) -> Size:
    if img_size is None:
        if isinstance(task, Classifier):
            return task.preprocessing.img_size
        if task.preprocessing.scale is None:
            raise UsageError("this segmenter leaves pictures as large as they are; give the size of the exported graph")
        side = min(task.preprocessing.scale)
        img_size = (side, side)
    if min(img_size) < 1:
        raise UsageError(f"img_size={img_size[0]} x {img_size[1]}: give a positive height and width")
    return img_size


def _prepare(task: Classifier | Segmenter, picture: Image.Image, size: Size) -> Tensor:
    about = task.preprocessing
    if isinstance(task, Segmenter):
        return squashed(picture, size, about.mean, about.std, antialias=task.preprocessing.antialias)
    return eval_transform(dataclasses.replace(task.preprocessing, img_size=size))(picture)
