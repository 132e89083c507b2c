"""Classifiers and segmenters as graphs: normalised images to logits, any number of images at once."""

import dataclasses
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from transept.data.images import Picture, sample_picture
from transept.data.resizing import Size, three_views
from transept.errors import UsageError
from transept.export.batches import check_sizes, dynamic_step, write_batch_graphs
from transept.export.onnx import DEFAULT_FORMATS, Exported
from transept.inference.compile import Precision
from transept.models.backbone import Backbone


class _Task(Protocol):
    """The part of `tasks.classify.Classifier` and `tasks.segment.Segmenter` that the export needs."""

    name: str
    classes: list[str]
    preprocessing: Any

    @property
    def read_as(self) -> dict[str, Any]: ...

    @property
    def backbone(self) -> Backbone: ...

    def graph_size(self, img_size: Size | None) -> Size: ...

    def prepare(self, picture: Picture, img_size: Size) -> Tensor: ...


def export_logits(
    task: _Task,
    folder: str | PathLike[str],
    *,
    img_size: Size | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    picture: Picture | None = None,
    dynamic_size: bool = False,
    dtype: Precision = "auto",
    opset: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> Exported:
    """Write files of the formats to `folder`, once they agree with eager in float32 on a picture.

    The graph takes `images` `b 3 H W` and gives `logits`, `b k` of a classifier and `b k H W` of a segmenter. It is
    made with two images and compared on three: the picture, its mirror image, and the picture upside down.

    Args:
        img_size: height and width; default: a classifier's own, and of a segmenter the short side of its
            preprocessing's scale, for both.
        formats: some of `FILES`.
        picture: what to compare on; default: `sample_picture`.
        dynamic_size: the graph takes all images whose sides are multiples of `size_step` (see the metadata), and is
            compared at `img_size` and at a size that is not square; it was traced at neither.
        dtype: of a package and for OpenVINO; "auto": bfloat16 where this processor multiplies it faster.
        opset: of ONNX, 18 or more; default: the exporter's.
        about: what else the metadata say.

    Returns:
        Files and differences: the largest of the `logits`, in their standard deviations.

    Raises:
        UsageError: a size that cannot be, a model whose graph is for one size where any was asked for, an unknown
            format, or packages that are not installed.
        TranseptError: a graph differs from eager by more than 1e-4 standard deviations (in bfloat16: 0.1), or the
            folder cannot be written to.
    """
    size = task.graph_size(img_size)
    if min(size) < 1:
        raise UsageError(f"img_size={size[0]} x {size[1]}: give a positive height and width")
    step = dynamic_step(task.backbone, size) if dynamic_size else None
    picture = sample_picture(len(task.preprocessing.mean)) if picture is None else picture
    batches = [three_views(task.prepare(picture, each)) for each in check_sizes(size, step)]
    metadata = {
        "task": task.name,
        "architecture": task.backbone.pretrained_cfg["architecture"],
        "classes": task.classes,
        **dataclasses.asdict(task.preprocessing),
        **task.read_as,
        **(about or {}),
    }
    assert isinstance(task, nn.Module)
    return write_batch_graphs(
        task, batches, ["logits"], Path(folder), formats, metadata, step=step, dtype=dtype, opset=opset
    )
