"""Pictures with masks to what a segmenter is trained and tested on, on torchvision's transforms.

The training steps and their order are those of the published systems: resize, crop, flip, photometric distortion,
normalise, pad.
"""

from dataclasses import dataclass
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from transept.checks import check_positive, check_range, check_share, shown
from transept.data.channels import without_color
from transept.data.resizing import Normalise, Size, fit_within, pad_to, picture_size, resize_jointly
from transept.errors import UsageError
from transept.ops.masks import IGNORE_LABEL

_REDRAWS = 10


@dataclass(frozen=True, kw_only=True)
class SegmentationPreprocessing:
    """Steps that bring pictures to a segmenter in evaluation; kept with the weights."""

    scale: Size | None = (2048, 512)
    """Longest long and short side that a picture is resized to fit, aspect kept; None: it keeps its size."""
    multiple_of: int = 1
    """Sides are then resized up to a multiple of this (CrossFormer: 32)."""
    antialias: bool = False
    """Whether pictures are smoothed when they shrink; the published systems do not."""
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    """Of each channel, in 0..1. Where `bands` give other channels than three, default: those of the training set."""
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD

    def __post_init__(self) -> None:
        check_positive(16_384, scale=self.scale, multiple_of=self.multiple_of, std=self.std)
        check_share(mean=self.mean)
        if self.scale is not None and len(self.scale) != 2:
            raise UsageError(f"scale={shown(self.scale)}; give the longest long and short side, or None")

    def fitted_size(self, size: Size, ratio: float = 1.0) -> Size:
        """Height and width of a picture of `size` at `ratio` times the scale, aspect kept; `multiple_of` left out."""
        if self.scale is None:
            height, width = (max(int(side * ratio + 0.5), 1) for side in size)
            return height, width
        long, short = max(self.scale), min(self.scale)
        return fit_within(size, (max(int(long * ratio), 1), max(int(short * ratio), 1)))


@dataclass(frozen=True, kw_only=True)
class SegmentationAugmentation:
    """Variations of training pictures."""

    crop: Size = (512, 512)
    """Height and width of the training crop; what is smaller is padded with pixels to ignore."""
    resize_ratio: tuple[float, float] = (0.5, 2.0)
    """Range of the factor by which the scale of the preprocessing is multiplied."""
    category_max_ratio: float = 0.75
    """A crop of which one class covers this share or more is drawn again, up to ten times; 1: never."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    photometric: float = 0.5
    """Probability of each change of brightness, contrast, saturation and hue."""

    def __post_init__(self) -> None:
        check_share(flip=self.flip, photometric=self.photometric, category_max_ratio=self.category_max_ratio)
        check_range("[0.01, 100]", resize_ratio=self.resize_ratio)
        check_positive(16_384, crop=self.crop)


def segmentation_train_transform(
    preprocessing: SegmentationPreprocessing, augmentation: SegmentationAugmentation
) -> v2.Compose:
    """Picture `3 H W` (8 bit) and mask `H W` to floats and classes of the crop's size. All randomness is torch's."""
    if len(preprocessing.mean) != 3:
        augmentation = without_color(augmentation, len(preprocessing.mean), photometric=0.0)
    color = [PhotometricDistortion(augmentation.photometric)] if len(preprocessing.mean) == 3 else []
    return v2.Compose(
        [
            RandomScale(preprocessing, augmentation.resize_ratio),
            CategoryCrop(augmentation.crop, augmentation.category_max_ratio),
            v2.RandomHorizontalFlip(augmentation.flip),
            *color,
            Normalise(preprocessing.mean, preprocessing.std),
            PadTo(augmentation.crop),
            v2.ToPureTensor(),
        ]
    )


def segmentation_eval_transform(preprocessing: SegmentationPreprocessing, ratio: float = 1.0) -> v2.Compose:
    """Picture to floats at the test scale, times `ratio` for multi-scale testing; a mask keeps the original size."""
    return v2.Compose(
        [TestScale(preprocessing, ratio), Normalise(preprocessing.mean, preprocessing.std), v2.ToPureTensor()]
    )


class RandomScale(v2.Transform):
    """Resize picture and mask to fit the scale times a uniform ratio, aspect kept."""

    def __init__(self, preprocessing: SegmentationPreprocessing, ratio: tuple[float, float]) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.ratio = ratio

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        ratio = float(torch.empty(()).uniform_(*self.ratio))
        return {"size": self.preprocessing.fitted_size(picture_size(flat_inputs), ratio)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return resize_jointly(inpt, params["size"], antialias=self.preprocessing.antialias)


class TestScale(v2.Transform):
    """Resize a picture, not its mask, to fit the scale times `ratio`, then stretch it to the multiple.

    These are two steps in the published systems, and bilinear resizing twice is not resizing once.
    """

    def __init__(self, preprocessing: SegmentationPreprocessing, ratio: float) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.ratio = ratio

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        fitted = self.preprocessing.fitted_size((inpt.shape[-2], inpt.shape[-1]), self.ratio)
        multiple = self.preprocessing.multiple_of
        height, width = (-(-side // multiple) * multiple for side in fitted)
        for size in (fitted, (height, width)):
            inpt = resize_jointly(inpt, size, antialias=self.preprocessing.antialias)
        return inpt


class CategoryCrop(v2.Transform):
    """A random crop in which two classes or more occur and the commonest covers less than a share of what is labelled.

    After ten draws in vain the eleventh is taken. A side that is shorter than the crop's is kept whole.
    """

    def __init__(self, size: Size, max_ratio: float) -> None:
        super().__init__()
        self.size = size
        self.max_ratio = max_ratio

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        mask = next((each for each in flat_inputs if isinstance(each, tv_tensors.Mask)), None)
        window = self._draw(picture_size(flat_inputs))
        for _ in range(_REDRAWS if self.max_ratio < 1 else 0):
            if mask is None or self._is_mixed(F.crop(mask, *window)):
                break
            window = self._draw(picture_size(flat_inputs))
        return {"window": window}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, *params["window"])

    def _draw(self, size: Size) -> tuple[int, int, int, int]:
        """Top, left, height, width."""
        height, width = min(self.size[0], size[0]), min(self.size[1], size[1])
        top, left = (int(torch.randint(room + 1, ())) for room in (size[0] - height, size[1] - width))
        return top, left, height, width

    def _is_mixed(self, mask: Tensor) -> bool:
        counts = torch.bincount(mask.as_subclass(Tensor).flatten(), minlength=IGNORE_LABEL + 1)[:IGNORE_LABEL]
        return int(counts.count_nonzero()) > 1 and int(counts.max()) < self.max_ratio * int(counts.sum())


class PhotometricDistortion(v2.Transform):
    """Brightness, contrast, saturation and hue of an 8-bit RGB picture, each changed with a probability.

    Brightness +-32, contrast and saturation times 0.5..1.5, hue +-36 degrees; contrast before or after the colours, by
    a coin; values are clipped and truncated after each step. torchvision's `RandomPhotometricDistort` means other
    things by all four (brightness is a factor, contrast pivots on the mean grey, saturation blends with grey).
    Saturation and hue are changed on 8-bit HSV, as published, but in Pillow's, which has 256 hues, not 180.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        def drawn(low: float, high: float) -> float | None:
            value = float(torch.empty(()).uniform_(low, high))
            return value if float(torch.rand(())) < self.p else None

        return {
            "brightness": drawn(-32, 32),
            "contrast": drawn(0.5, 1.5),
            "saturation": drawn(0.5, 1.5),
            "hue": drawn(-25.6, 25.6),  # of 256
            "contrast_last": bool(torch.rand(()) < 0.5),
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        brightness, contrast, saturation, hue, contrast_last = (
            params[name] for name in ("brightness", "contrast", "saturation", "hue", "contrast_last")
        )
        picture = F.to_pil_image(inpt)
        if brightness is not None:
            picture = picture.point([_clip(value + brightness) for value in range(256)] * 3)
        with_contrast = [_clip(value * (contrast or 1)) for value in range(256)] * 3
        if contrast is not None and not contrast_last:
            picture = picture.point(with_contrast)
        if saturation is not None or hue is not None:
            tones = [(value + round(hue or 0)) % 256 for value in range(256)]
            saturations = [_clip(value * (saturation or 1)) for value in range(256)]
            picture = picture.convert("HSV").point([*tones, *saturations, *range(256)]).convert("RGB")
        if contrast is not None and contrast_last:
            picture = picture.point(with_contrast)
        return tv_tensors.Image(F.pil_to_tensor(picture))


def _clip(value: float) -> int:
    return int(min(max(value, 0), 255))


class PadTo(v2.Transform):
    """Fill up on the right and at the bottom: pictures with 0 (after normalisation), masks with `IGNORE_LABEL`."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.Mask(pad_to(inpt.as_subclass(Tensor), self.size, IGNORE_LABEL))
        return tv_tensors.Image(pad_to(inpt.as_subclass(Tensor), self.size))
