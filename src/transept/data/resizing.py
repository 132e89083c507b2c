"""Resizing of pictures together with their masks and boxes, for segmentation and detection."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from transept.data.images import Picture, as_bytes
from transept.ops.interpolation import Size


def fit_within(size: Size, scale: Size, *, multiple_of: int = 1) -> Size:
    """Height and width of a picture resized to fit a scale, aspect kept, each side rounded half up.

    Args:
        size: height and width.
        scale: the longest the long and the short side may become, such as (1333, 800).
        multiple_of: then each side is taken up to a multiple of it, which bends the aspect a little.
    """
    factor = min(max(scale) / max(size), min(scale) / min(size))
    height, width = (max(int(side * factor + 0.5), 1) for side in size)
    return -(-height // multiple_of) * multiple_of, -(-width // multiple_of) * multiple_of


def resize_jointly(sample: Any, size: Size, *, antialias: bool) -> Any:
    """Pictures bilinear, masks to the nearest pixel, boxes scaled; anything else as it is.

    The published systems shrink without antialiasing (OpenCV's bilinear): their scores depend on it.
    """
    if isinstance(sample, tv_tensors.Mask) and sample.numel() == 0:  # no objects; torch refuses to resize nothing
        return tv_tensors.Mask(sample.new_zeros(*sample.shape[:-2], *size))
    return F.resize(sample, list(size), v2.InterpolationMode.BILINEAR, antialias=antialias)


class FitWithin(v2.Transform):
    """Resize to a random one of several scales.

    Args:
        scales: each the longest long and short side.
        resize_masks: False leaves masks as they are, for evaluation at the picture's own size.
    """

    def __init__(
        self, scales: list[Size], *, multiple_of: int = 1, antialias: bool = False, resize_masks: bool = True
    ) -> None:
        super().__init__()
        self.scales = scales
        self.multiple_of = multiple_of
        self.antialias = antialias
        self.resize_masks = resize_masks

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        scale = self.scales[int(torch.randint(len(self.scales), ()))] if len(self.scales) > 1 else self.scales[0]
        return {"size": fit_within(picture_size(flat_inputs), scale, multiple_of=self.multiple_of)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask) and not self.resize_masks:
            return inpt
        return resize_jointly(inpt, params["size"], antialias=self.antialias)


def picture_size(flat_inputs: list[Any]) -> Size:
    """Height and width of the first picture of a sample."""
    picture = next(each for each in flat_inputs if isinstance(each, tv_tensors.Image))
    return picture.shape[-2], picture.shape[-1]


class Normalise(v2.Transform):
    """Pictures to floats of 0..1, then `(x - mean) / std`; optionally with blue first.

    With `per_picture`, mean and deviation are those of all values of the picture itself, so that one taken in little
    light looks like the others.
    """

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], *, bgr: bool = False, per_picture: bool = False
    ) -> None:
        super().__init__()
        self.bgr = bgr
        self.per_picture = per_picture
        self.to_float = v2.ToDtype(torch.float32, scale=True)
        self.by_channel = v2.Normalize(list(mean), list(std))

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        picture = self.to_float(tv_tensors.Image(inpt.flip(-3)) if self.bgr else inpt)
        if not self.per_picture:
            return self.by_channel(picture)
        # A picture of one colour has no deviation; one step of 8 bits bounds it.
        return tv_tensors.Image((picture - picture.mean()) / picture.std().clamp(min=1 / 255))


def pad_to(picture: Tensor, size: Size, fill: float = 0) -> Tensor:
    """Fill up `... h w` on the right and at the bottom."""
    height, width = picture.shape[-2:]
    return nn.functional.pad(picture, (0, size[1] - width, 0, size[0] - height), value=fill)


def three_views(image: Tensor) -> Tensor:
    """`3 H W` to a batch `3 3 H W`: the image, its mirror image, and the image upside down."""
    return torch.stack((image, image.flip(-1), image.flip(-2)))


def squashed(
    picture: Picture, size: Size, mean: Sequence[float], std: Sequence[float], *, antialias: bool = True
) -> Tensor:
    """A picture resized to `size` without regard to its proportions, and normalised: `c H W`."""
    pixels = tv_tensors.Image(as_bytes(picture, len(mean)))
    return Normalise(tuple(mean), tuple(std))(resize_jointly(pixels, size, antialias=antialias)).as_subclass(Tensor)
