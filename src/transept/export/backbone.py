"""Backbones as graphs: normalised images to the maps of the pyramid, any number of images at once."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from transept.data.channels import repeated
from transept.data.images import Picture, sample_picture
from transept.data.resizing import Size, squashed, three_views
from transept.errors import UsageError
from transept.export.batches import check_sizes, dynamic_step, write_batch_graphs
from transept.export.onnx import DEFAULT_FORMATS, Exported
from transept.inference.compile import Precision
from transept.models.backbone import Backbone


def export_backbone(
    model: Backbone,
    folder: str | PathLike[str],
    *,
    img_size: Size | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    picture: Picture | None = None,
    dynamic_size: bool = False,
    dtype: Precision = "auto",
    opset: int | None = None,
) -> Exported:
    """Write files of the formats to `folder`, once they agree with eager in float32 on a picture.

    The graph takes `images` `b 3 H W` and gives a map `b c h w` for each level, called after its stride: `map_4`,
    `map_8`, `map_16`, `map_32`.

    Args:
        model: of `create_model(..., features_only=True)`, or the `backbone` of a detector or segmenter.
        img_size: height and width; default: the model's native size.
        formats: some of `FILES`.
        picture: what to compare on, in three views; default: `sample_picture`.
        dynamic_size: the graph takes all images whose sides are multiples of `size_step` (see the metadata), and is
            compared at `img_size` and at a size that is not square; it was traced at neither.
        dtype: of a package and for OpenVINO; "auto": bfloat16 where this processor multiplies it faster.
        opset: of ONNX, 18 or more; default: the exporter's.

    Returns:
        Files and differences: the largest of each map, in its standard deviations.

    Raises:
        UsageError: a classifier, a size that cannot be, a model whose graph is for one size where any was asked for, an
            unknown format, or packages that are not installed.
        TranseptError: a graph differs from eager by more than 1e-4 standard deviations (in bfloat16: 0.1), or the
            folder cannot be written to.
    """
    if not model.is_pyramid:
        raise UsageError("a backbone is exported with its pyramid; build it with features_only=True")
    size = img_size or model.config.img_size
    if min(size) < 1:
        raise UsageError(f"img_size={size[0]} x {size[1]}: give a positive height and width")
    step = dynamic_step(model, size) if dynamic_size else None
    config = model.pretrained_cfg
    channels = config["input_size"][0]
    picture = sample_picture(channels) if picture is None else picture
    mean, std = (repeated(config[name], channels) for name in ("mean", "std"))
    batches = [three_views(squashed(picture, each, mean, std)) for each in check_sizes(size, step)]
    names = [f"map_{stride}" for stride in model.feature_info.reduction()]
    metadata = {
        "task": "features",
        "architecture": config["architecture"],
        "channels": model.feature_info.channels(),
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }
    return write_batch_graphs(
        model, batches, names, Path(folder), formats, metadata, step=step, dtype=dtype, opset=opset
    )
