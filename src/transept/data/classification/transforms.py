"""Pictures to model inputs, on torchvision's transforms."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, Literal

import torch
from PIL import Image, ImageFilter
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    rand_augment_transform,
    resolve_data_config,
    str_to_pil_interp,
)
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torchvision.transforms import ToTensor, v2

from transept.checks import check_not_negative, check_positive, check_range, check_share, check_within
from transept.data.channels import without_color
from transept.data.reading import Box
from transept.errors import UsageError

_RANDAUGMENT = r"rand(-(m\d{1,2}|n\d|p{0}|mstd{0}|mmax\d{1,2}|inc[01]))*".replace("{0}", r"\d{1,3}(\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Variations of training pictures."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of the random crop, as a share of the picture."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width to height of the crop, before it is resized to the model's size."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    rotation: float = 0.0
    """Largest rotation in degrees."""
    translation: float = 0.0
    """Largest shift, as a share of the picture's side."""
    randaugment: str | None = None
    """RandAugment as timm writes it, e.g. rand-m9-mstd0.5-inc1: magnitude 9, its noise 0.5, worse with magnitude."""
    three_augment: bool = False
    """3-Augment (DeiT III): a picture turns grey, or has its bright values inverted, or is blurred, each as often."""
    color_jitter: float = 0.0
    """Strength of changes of brightness, contrast and saturation."""
    erasing: float = 0.0
    """Probability that a random rectangle is erased."""
    erasing_mode: Literal["const", "pixel"] = "const"
    """const: to the mean colour; pixel: each of its values to normal noise."""
    repeats: int = 1
    """Repeated augmentation: how often a picture comes in a row, each time varied anew; an epoch stays as long."""

    def __post_init__(self) -> None:
        check_range("(0, 1]", crop_scale=self.crop_scale)
        check_range("[0.01, 100]", crop_ratio=self.crop_ratio)
        check_share(flip=self.flip, erasing=self.erasing, translation=self.translation)
        check_within("[0, 360]", rotation=self.rotation)
        check_not_negative(10, color_jitter=self.color_jitter)
        check_positive(1000, repeats=self.repeats)
        if self.randaugment is not None and not re.fullmatch(_RANDAUGMENT, self.randaugment):
            raise UsageError(
                f"randaugment={self.randaugment!r}; give e.g. rand-m9-mstd0.5-inc1: m magnitude, mstd its noise, mmax "
                "its limit, n operations, p their probability, inc 0 or 1"
            )


@dataclass(frozen=True, slots=True)
class Undecoded:
    """A picture that is still to be decoded."""

    read: Callable[[Callable[[int, int], float], Callable[[int, int], Box]], Any]
    """Decodes it, given `reduce` and `window` of `read_image`."""


class RandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's, which also takes an `Undecoded` picture: the crop is drawn for the size it has. A JPEG whose crop
    is many times larger than the result is decoded at 1/2, 1/4 or 1/8, but never so small that the crop is scaled up.
    Of files of more than 8 bits or of bands the crop alone is decoded, where that can be.
    """

    def forward(self, *inputs: Any) -> Any:
        if not isinstance(inputs[0], Undecoded):
            return super().forward(*inputs)
        full, crop = (0, 0), {}
        height, width = self.size  # pyright: ignore[reportGeneralTypeIssues]

        def reduce(full_width: int, full_height: int) -> float:
            nonlocal full, crop
            full = full_width, full_height
            crop = self.make_params([torch.empty(1, full_height, full_width, device="meta")])
            return min(crop["width"] / width, crop["height"] / height)

        def window(full_width: int, full_height: int) -> Box:
            nonlocal is_cut
            is_cut = True
            reduce(full_width, full_height)
            return crop["left"], crop["top"], crop["width"], crop["height"]

        is_cut = False
        picture = inputs[0].read(reduce, window)
        if is_cut:
            return self.transform(picture, {**crop, "left": 0, "top": 0})
        if picture.size == full:
            return self.transform(picture, crop)
        across, down = picture.width / full[0], picture.height / full[1]
        left, top = crop["left"] * across, crop["top"] * down
        box = (left, top, left + crop["width"] * across, top + crop["height"] * down)
        return picture.resize((width, height), Image.Resampling[v2.InterpolationMode(self.interpolation).name], box)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """Steps that bring pictures to the model in evaluation; kept with the weights."""

    img_size: tuple[int, int]
    """Height and width in pixels; with `crop_mode="fit"` the shorter and the longer side."""
    crop_pct: float = 1.0
    """Share of the resized picture that the centre crop keeps."""
    crop_mode: Literal["center", "squash", "fit"] = "center"
    """"center": the shorter side is resized to `img_size / crop_pct`, the other in proportion. "squash": each side is
    resized for itself, as always where height and width differ. "fit" (detection and segmentation): scaled in
    proportion until a side meets its limit, and not cropped."""
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    """The mean of each channel's pixels in 0..1, as `std` is their deviation."""
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD

    def as_dict(self) -> dict[str, Any]:
        """As plain data, with lists for tuples."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }


def eval_transform(preprocessing: Preprocessing) -> v2.Compose:
    """Resize to `img_size / crop_pct`, crop the centre, scale to 0..1, normalise: RGB picture to `3 H W` floats.

    Other channels come as bytes `c H W`.

    The steps and their rounding are those of the official evaluations, so the tensor equals theirs to the bit.

    Raises:
        UsageError: `crop_mode="fit"`, which leaves pictures in sizes of their own.
    """
    if preprocessing.crop_mode == "fit":
        short, long = preprocessing.img_size
        raise UsageError(
            f"these weights are a dense model's, whose pictures are scaled to fit {short}x{long} by its own task; "
            "for a classifier's transform give eval_transform a Preprocessing with crop_mode='center'"
        )
    height, width = preprocessing.img_size
    resized = [floor(height / preprocessing.crop_pct), floor(width / preprocessing.crop_pct)]
    mode = v2.InterpolationMode(preprocessing.interpolation)
    proportional = preprocessing.crop_mode == "center" and height == width
    size: Sequence[int] = resized[:1] if proportional else resized
    return v2.Compose(
        [v2.Resize(size, mode), v2.CenterCrop([height, width]), *to_normalised(preprocessing)],
    )


def transforms_for(model: nn.Module) -> Callable[[Image.Image], Tensor]:
    """The published evaluation transform of a model: RGB picture of any size to a normalised `3 H W` float tensor.

    Args:
        model: one of `create_model`, a task with a `preprocessing` of its own, or any with timm's `pretrained_cfg`.
            Loading published weights by name has set it to what these were scored with.

    Raises:
        UsageError: the model does not say how its pictures are prepared, or it does not take RGB pictures one by one.
    """
    return eval_transform(preprocessing_of(model))


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """The steps of `transforms_for`, as data.

    Raises:
        UsageError: as there.
    """
    preprocessing = getattr(model, "preprocessing", None)
    if isinstance(preprocessing, Preprocessing):
        return preprocessing
    title = type(model).__name__
    if not getattr(model, "pretrained_cfg", None):
        raise UsageError(
            f"{title} does not say how its pictures are prepared; it has neither preprocessing nor pretrained_cfg"
        )
    config = resolve_data_config(model=model)
    channels, height, width = config["input_size"]
    if channels != 3:
        raise UsageError(
            f"{title} takes images of {channels} channels; the published preprocessing is for RGB, which has 3"
        )
    modes = ("center", "squash", "fit")
    if config["crop_mode"] not in modes:
        raise UsageError(f"{title} wants crop_mode={config['crop_mode']!r}; known: {', '.join(modes)}")
    return Preprocessing(
        img_size=(height, width),
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def train_transform(preprocessing: Preprocessing, augmentation: Augmentation) -> v2.Compose:
    """A random variation of the picture, then as `eval_transform`. Draws from torch, numpy and Python."""
    if len(preprocessing.mean) != 3:
        augmentation = without_color(
            augmentation, len(preprocessing.mean), randaugment=None, three_augment=False, color_jitter=0.0
        )
    steps: list[Callable[..., Any]] = []
    mode = v2.InterpolationMode(preprocessing.interpolation)
    if augmentation.rotation or augmentation.translation:
        shift = (augmentation.translation, augmentation.translation)
        steps.append(
            v2.RandomAffine(
                [-augmentation.rotation, augmentation.rotation],
                translate=shift,
                interpolation=v2.InterpolationMode.BILINEAR,
            )
        )
    size = list(preprocessing.img_size)
    steps.append(RandomResizedCrop(size, augmentation.crop_scale, augmentation.crop_ratio, mode))
    if augmentation.flip:
        steps.append(v2.RandomHorizontalFlip(augmentation.flip))
    if augmentation.randaugment:
        # What timm's create_transform gives it, from which all published runs had it.
        looks = {
            "translate_const": int(min(size) * 0.45),
            "img_mean": tuple(min(255, round(255 * mean)) for mean in preprocessing.mean),
            "interpolation": str_to_pil_interp(preprocessing.interpolation),
        }
        steps.append(rand_augment_transform(augmentation.randaugment, looks))
    if augmentation.three_augment:
        steps.append(v2.RandomChoice([v2.Grayscale(3), v2.RandomSolarize(128, p=1.0), v2.Lambda(random_blur)]))
    if augmentation.color_jitter:
        steps.append(v2.ColorJitter(*(augmentation.color_jitter,) * 3))
    steps += to_normalised(preprocessing)
    if augmentation.erasing:
        steps.append(RandomErasing(augmentation.erasing, mode=augmentation.erasing_mode, device="cpu"))
    return v2.Compose(steps)


def random_blur(picture: Image.Image | Tensor) -> Image.Image | Tensor:
    """Blurred by a Gauss of 0.1 to 2 pixels, as in self-supervised training and in DeiT III."""
    radius = float(torch.empty(()).uniform_(0.1, 2.0))
    if isinstance(picture, Image.Image):
        return picture.filter(ImageFilter.GaussianBlur(radius))
    return v2.functional.gaussian_blur(picture, [2 * ceil(3 * radius) + 1] * 2, [radius])


def to_normalised(preprocessing: Preprocessing) -> list[Callable[..., Any]]:
    """The last steps of every transform: RGB picture, or bytes `c H W`, to normalised floats."""
    return [
        # Divides by 255 as the official evaluations do; v2.ToDtype multiplies by the inverse, which rounds otherwise.
        _to_floats,
        v2.Normalize(list(preprocessing.mean), list(preprocessing.std)),
    ]


def _to_floats(picture: Image.Image | Tensor) -> Tensor:
    return picture.as_subclass(Tensor).float() / 255 if isinstance(picture, Tensor) else ToTensor()(picture)
