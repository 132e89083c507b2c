"""A detector's targets and its answers, image by image."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from transept.ops.interpolation import Size
from transept.ops.masks import paste_masks


class Target(NamedTuple):
    """The objects of one image, in the pixels of the resized image.

    Crowd regions are no objects: the published models neither learn from them nor spare them as background.
    """

    boxes: Tensor
    """`n 4`, x1 y1 x2 y2, with a width and a height above 0."""
    labels: Tensor
    """` n`, from 0; there is no number for the background."""
    size: Size
    """Height and width of the resized image, without padding."""
    masks: Tensor | None = None
    """`n H W`, bool; H and W may be those of the image or of the padded batch."""
    original_size: Size | None = None
    """Height and width of the image as it was. Evaluation reads this and the next; losses do not."""
    image_id: int | str | None = None
    """The data set's own."""


class Detections(NamedTuple):
    """The objects of one image as a detector sees them, best first."""

    boxes: Tensor
    """`n 4`, x1 y1 x2 y2, in pixels of the original image where its size was given, else of the resized one."""
    scores: Tensor
    """` n`, in 0..1."""
    labels: Tensor
    """` n`, from 0."""
    masks: Tensor | None = None
    """`n m m`: probabilities on a grid over each box. `image_masks` draws them into the image; once drawn they are
    `n H W` and bool."""

    def image_masks(self, size: Size, threshold: float = 0.5) -> Bool[Tensor, "n H W"]:
        """The masks as `n H W` bool, in an image of this height and width."""
        if self.masks is None:
            raise ValueError("these detections have no masks; the detector has no mask head")
        if self.masks.dtype != torch.bool:
            return paste_masks(self.masks, self.boxes, size, threshold)
        if self.masks.shape[1:] != size:
            drawn = " x ".join(map(str, self.masks.shape[1:]))
            raise ValueError(
                f"these masks are drawn already, at {drawn}; they cannot be drawn at {size[0]} x {size[1]}"
            )
        return self.masks

    def take(self, index: Shaped[Tensor, " k"]) -> "Detections":
        """Those at the indices ` k`, or where a bool ` n` is true."""
        masks = None if self.masks is None else self.masks[index]
        return Detections(self.boxes[index], self.scores[index], self.labels[index], masks)


def size_tensor(sizes: Sequence[Size] | Shaped[Tensor, "b 2"], device: torch.device) -> Float[Tensor, "b 2"]:
    """Heights and widths as float32 `b 2`."""
    return torch.as_tensor(sizes, dtype=torch.float32, device=device)


def resize_factors(
    sizes: Float[Tensor, "b 2"], original_sizes: Sequence[Size] | Shaped[Tensor, "b 2"] | None
) -> Float[Tensor, "b 1 4"]:
    """The factors of the originals' boxes `b n 4`: horizontal, vertical, and these again."""
    if original_sizes is None:
        return sizes.new_ones((len(sizes), 1, 4))
    return (sizes / size_tensor(original_sizes, sizes.device)).flip(-1).repeat(1, 2)[:, None]
