"""A training run without the training: its size, the memory it needs, and its first batch as a picture."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from transept.data.classification.image_set import label_words
from transept.data.images import as_shown
from transept.data.reading import Reading
from transept.draw.boxes import add_objects
from transept.draw.legend import shorten
from transept.draw.overlay import overlay
from transept.draw.plain import plain_text
from transept.files import write_atomically
from transept.heads.instances import Target
from transept.style import LEAST, drawing_color
from transept.training.jobs.job import Job
from transept.training.options.recipe import Recipe
from transept.training.processes.world import World

_SHOWN = 16
_ROWS = 8
_BYTES = 4
_INCHES = 2.4
"""Width of a picture."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a recipe's run on its data."""

    pictures: int
    """To train on."""
    found: str
    """What the data has, as a sentence."""
    batch: int
    """Samples of one step of the optimiser."""
    part: int
    """Samples in memory at a time, in one process."""
    processes: int
    accumulate: int
    image: tuple[int, int]
    """Height and width of the first batch in pixels."""
    reading: Reading
    """How files become pictures, with what was measured of it."""
    mean: tuple[float, ...]
    """Of each channel, in 0..1, by which pictures are normalised."""
    std: tuple[float, ...]
    steps_per_epoch: int
    """Or from one evaluation to the next, where the length is in iterations."""
    steps: int
    parameters: int
    learning: int
    """Parameters that are not frozen."""
    weights_bytes: int
    """Bytes of weights, gradients, Adam's two numbers for each, and the moving average if there is one."""
    kept_bytes: int
    """Bytes that the forward pass of one part keeps for the backward pass, without the losses and, of two-stage
    detectors, the box heads. In float32: half precision takes less."""


def make_plan(
    recipe: Recipe, job: Job, task: Any, images: Tensor | Sequence[Tensor], *, steps_per_epoch: int, world: World
) -> Plan:
    """`images` are the first part of a batch, `b c h w`, or so many crops of its pictures, the largest first."""
    shape = (images if isinstance(images, Tensor) else images[0]).shape
    parameters = sum(p.numel() for p in task.parameters())
    learning = sum(p.numel() for p in task.parameters() if p.requires_grad)
    average = parameters if recipe.ema.decay is not None else 0
    return Plan(
        pictures=len(job.splits.train),
        found=job.found,
        batch=recipe.batch_size,
        part=shape[0],
        processes=world.size,
        accumulate=recipe.accumulate,
        image=(shape[-2], shape[-1]),
        reading=job.reading,
        mean=tuple(task.preprocessing.mean),
        std=tuple(task.preprocessing.std),
        steps_per_epoch=steps_per_epoch,
        steps=recipe.schedule.iterations or steps_per_epoch * recipe.schedule.epochs,
        parameters=parameters,
        learning=learning,
        weights_bytes=_BYTES * (parameters + 3 * learning + average),
        kept_bytes=kept_bytes(task, images),
    )


def kept_bytes(task: nn.Module, images: Tensor | Sequence[Tensor]) -> int:
    """Bytes that the forward pass of these images keeps for the backward pass, weights not counted.

    They are read off a forward pass on the meta device, which computes nothing.
    """
    skeleton = copy.deepcopy(task).to("meta").train()
    weights = {p.untyped_storage()._cdata for p in skeleton.state_dict(keep_vars=True).values()}
    kept: dict[int, Tensor] = {}  # the tensors themselves, so that no storage's address is used again

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = skeleton(tree_map(partial(torch.empty_like, device="meta"), images))  # noqa: F841  what is kept lives as long as they do
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@plain_text
def draw_batch(images: Tensor | Sequence[Tensor], targets: Any, task: Any, path: Path) -> None:
    """The first pictures of a batch as the model sees them, normalisation undone, with what is to be learnt of them.

    Args:
        images: `b 3 h w`, normalised, or so many crops of each picture: then each picture is a row of crops.
        targets: class numbers `b`, 0 or 1 of each class `b k`, class numbers of pixels `b h w`, or a `Target` for each
            picture.
        task: its `classes` and `preprocessing` are read.
        path: a PNG file to write.
    """
    if not isinstance(images, Tensor):
        _draw_crops(images, task.preprocessing, path)
        return
    count = min(len(images), _SHOWN)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    height, width = images.shape[-2:]
    figure = Figure(
        figsize=(_INCHES * columns, _INCHES * rows * height / width + 0.27 * rows), dpi=144, layout="constrained"
    )
    for i in range(count):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.set_axis_off()
        picture = _as_taken(images[i], task.preprocessing)
        if isinstance(targets, Tensor) and targets.ndim <= 2:
            axes.set_title(shorten(label_words(targets[i].numpy(), task.classes), inches=_INCHES), fontsize=LEAST)
        elif isinstance(targets, Tensor):
            marked = overlay(to_pil_image(picture), targets[i].cpu().numpy().astype(np.int64), task.palette)
            picture = torch.from_numpy(np.array(marked)).permute(2, 0, 1)
        else:
            _show_objects(picture, targets[i], task.classes, axes)
            continue
        _show(picture, axes)
    write_atomically(path, figure.savefig)


@plain_text
def _draw_crops(crops: Sequence[Tensor], preprocessing: Any, path: Path) -> None:
    rows, columns = min(len(crops[0]), _ROWS), len(crops)
    figure = Figure(figsize=(1.2 * columns, 1.2 * rows + 0.25), dpi=144, layout="constrained")
    for i in range(rows):
        for j, crop in enumerate(crops):
            axes = figure.add_subplot(rows, columns, i * columns + j + 1)
            axes.set_axis_off()
            if i == 0:
                axes.set_title(f"{crop.shape[-2]} x {crop.shape[-1]}", fontsize=LEAST)
            _show(_as_taken(crop[i], preprocessing), axes)
    write_atomically(path, figure.savefig)


def _show(picture: Tensor, axes: Any) -> None:
    """8 bits, `3 h w`."""
    axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest" if max(picture.shape) < 64 else None)


def _as_taken(image: Tensor, preprocessing: Any) -> Tensor:
    """A normalised picture `c h w` to 8 bits `3 h w`, red first, or its bands as colours."""
    if getattr(preprocessing, "per_picture", False):
        low, high = image.min(), image.max()
        picture = ((image - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8)
    else:
        mean, std = (torch.tensor(getattr(preprocessing, name))[:, None, None] for name in ("mean", "std"))
        picture = ((image.cpu().float() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
        picture = picture.flip(0) if getattr(preprocessing, "bgr", False) else picture
    return pil_to_tensor(as_shown(picture))


def _show_objects(picture: Tensor, target: Target, classes: Sequence[str], axes: Any) -> None:
    """8 bits, `3 h w`, with what is to be learnt of it."""
    height, width = picture.shape[-2:]
    masks = None
    if target.masks is not None and len(target.masks):
        masks = np.zeros((len(target.masks), height, width), dtype=bool)  # padded as the picture is
        masks[:, : target.size[0], : target.size[1]] = target.masks.bool().cpu().numpy()
    palette = [drawing_color(number) for number in range(len(classes))]
    boxes, labels = target.boxes.cpu().numpy(), target.labels.cpu().numpy()
    inches = (_INCHES - 0.15) * max(1.0, height / width)
    add_objects(axes, to_pil_image(picture), boxes, labels, classes, palette, inches, masks=masks)
