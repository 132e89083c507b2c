"""Pictures to model inputs, on torchvision's transforms."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms import v2


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training pictures are varied."""

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
    color_jitter: float = 0.0
    """Strength of changes of brightness, contrast and saturation."""
    erasing: float = 0.0
    """Probability that a random rectangle is blanked."""

    def __post_init__(self) -> None:
        for name in ("flip", "erasing", "translation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation.{name}={getattr(self, name)} is not in [0, 1]")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"augmentation.crop_scale={list(self.crop_scale)}; give [low, high] with 0 < low <= high <= 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How pictures are brought to the model in evaluation; kept with the weights."""

    img_size: tuple[int, int]
    """Height and width in pixels."""
    crop_pct: float = 1.0
    """Share of the resized picture that the centre crop keeps."""
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD


def eval_transform(preprocessing: Preprocessing) -> v2.Compose:
    """Resize the shorter side to `img_size / crop_pct`, crop the centre, scale to 0..1, normalise: `3 H W` floats."""
    height, width = preprocessing.img_size
    resized = (round(height / preprocessing.crop_pct), round(width / preprocessing.crop_pct))
    mode = v2.InterpolationMode(preprocessing.interpolation)
    # For a square input the short side is resized and the aspect ratio kept, as all published scores were taken.
    size: Sequence[int] = [resized[0]] if height == width else resized
    return v2.Compose(
        [v2.Resize(size, mode), v2.CenterCrop([height, width]), *_to_normalised(preprocessing)],
    )


def train_transform(preprocessing: Preprocessing, augmentation: Augmentation) -> v2.Compose:
    """A random variation of the picture, then as `eval_transform`. All randomness is torch's."""
    steps: list[torch.nn.Module] = []
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
    steps.append(v2.RandomResizedCrop(size, augmentation.crop_scale, augmentation.crop_ratio, mode))
    if augmentation.flip:
        steps.append(v2.RandomHorizontalFlip(augmentation.flip))
    if augmentation.color_jitter:
        steps.append(v2.ColorJitter(*(augmentation.color_jitter,) * 3))
    steps += _to_normalised(preprocessing)
    if augmentation.erasing:
        steps.append(v2.RandomErasing(augmentation.erasing))
    return v2.Compose(steps)


def _to_normalised(preprocessing: Preprocessing) -> list[torch.nn.Module]:
    return [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(preprocessing.mean), list(preprocessing.std)),
    ]
