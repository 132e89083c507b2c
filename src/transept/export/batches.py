"""Graphs that take images `b 3 H W`: any number at once and, where the architecture permits, of any size."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from transept.data.resizing import Size
from transept.errors import TranseptError, UsageError
from transept.export.onnx import FILES, Axis, Exported, Format, Run, write_graphs
from transept.inference.compile import BFLOAT16_LIMIT, Precision, at_size, best_precision
from transept.inference.package import weights_digest
from transept.models.backbone import Backbone
from transept.models.registry import family_of

TOLERANCE = 1e-4
"""The largest difference of an output in float32, in its standard deviations."""


def write_batch_graphs(
    model: nn.Module,
    batches: Sequence[Tensor],
    outputs: Sequence[str],
    folder: Path,
    formats: Sequence[str],
    metadata: Mapping[str, Any],
    *,
    step: int | None = None,
    dtype: Precision = "float32",
    opset: int | None = None,
) -> Exported:
    """Write the files of `write_graphs` once they agree with eager in float32 on every batch.

    `model` is left as it is, on its device and in its mode. The differences of a batch that has not the size of the
    first are called after the output and the size.

    Args:
        step: the graph takes all images whose sides are multiples of this, and is traced at a size that is none of the
            batches'; None: those of the first batch's size.
        dtype: of a package and for OpenVINO; "auto": bfloat16 where this processor multiplies it faster.
        opset: of ONNX; default: the exporter's.

    Raises:
        UsageError: the model does not take images of a batch's size; and as `write_graphs`.
        TranseptError: a graph differs by more than `TOLERANCE`, or the folder cannot be written to.
    """
    precision, _ = best_precision(dtype, torch.device("cpu"))
    model = copy.deepcopy(model).cpu().float().eval()
    expected = [_run(model, images) for images in batches]
    first = _size(batches[0])

    def compare(kind: Format, run: Run) -> dict[str, float]:
        errors = {}
        limit = BFLOAT16_LIMIT if precision == "bfloat16" and kind in ("package", "openvino") else TOLERANCE
        for images, answers in zip(batches, expected, strict=True):
            size = _size(images)
            at = "" if size == first else f" at {size[0]} x {size[1]}"
            for name, a, b in zip(outputs, run([images]), answers, strict=True):
                error = float((a - b).abs().max() / b.std()) if a.shape == b.shape else torch.inf
                if not error <= limit:
                    raise TranseptError(
                        f"{FILES[kind]} differs from the model on the picture{at}: {name} by {error:.2g} of their "
                        f"standard deviation, where {limit:g} is allowed; nothing was written"
                    )
                errors[name + at] = error
        return errors

    example, dynamic = batches[0][:2], {0: Dim("batch", min=1)}
    if step is not None:
        # Neither side equals the other or the native one, lest the graph be for where they do.
        example = torch.zeros(2, batches[0].shape[1], *(side + n * step for side, n in zip(first, (3, 4), strict=True)))
        dynamic |= {2: step * Dim("rows", min=1), 3: step * Dim("columns", min=1)}
    metadata = {**metadata, "img_size": list(first), "size_step": step, "in_chans": example.shape[1]}
    if "package" in formats:
        metadata["weights"] = weights_digest(model)
    axes = [Axis(name, "batch") for name in outputs]
    inputs = {"images": example}
    return write_graphs(
        model, inputs, axes, folder, formats, metadata, compare, dynamic=dynamic, dtype=precision, opset=opset
    )


def dynamic_step(model: Backbone, size: Size) -> int:
    """The number that the sides of images must be multiples of where one graph takes them all; those of `size` must be.

    Raises:
        UsageError: the family's graphs are for one size, or `size` is no such one.
    """
    step = model.dynamic_step
    if step is None:
        family = family_of(model)
        raise UsageError(
            f"{family.name if family else type(model).__name__} groups its tokens differently at every size, which one "
            f"graph of {model.pretrained_cfg['architecture']} cannot hold; export one file for each size with "
            "--img-size, without --dynamic-size"
        )
    if any(side % step for side in size):
        height, width = (-(-side // step) * step for side in size)
        raise UsageError(
            f"img_size={size[0]} x {size[1]}: with any size, sides are multiples of {step}; give {height} x {width}"
        )
    return step


def check_sizes(native: Size, step: int | None) -> list[Size]:
    """The sizes to compare at: the native one and, of a graph for any size, one that is not square."""
    return [native] if step is None else [native, (native[0] + 2 * step, native[1] + step)]


@torch.no_grad()
def _run(model: nn.Module, images: Tensor) -> list[Tensor]:
    outputs = at_size(model, images)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _size(images: Tensor) -> Size:
    return images.shape[-2], images.shape[-1]
