"""Pictures with boxes and masks to what a detector is trained and tested on, on torchvision's transforms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from transept.checks import check_not_negative, check_positive, check_range, check_share
from transept.data.channels import without_color
from transept.data.detection.target import Target
from transept.data.resizing import FitWithin, Normalise, Size, pad_to, picture_size
from transept.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DetectionPreprocessing:
    """Steps that bring pictures to a detector in evaluation; kept with the weights."""

    scale: Size = (1333, 800)
    """Longest long and short side that a picture is resized to fit, aspect kept."""
    multiple_of: int = 32
    """Batches are padded with zeros to multiples of this."""
    antialias: bool = False
    """Whether pictures are smoothed when they shrink; the published systems do not."""
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    """The mean of channels in 0..1, in the order in which the model takes them. Where `bands` give other channels than
    three, default: that of the training set, and its deviation."""
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    bgr: bool = False
    """Blue first, as CAT's FCOS was trained (with mean 102.9801, 115.9465, 122.7717 and std 1, each over 255)."""
    per_picture: bool = False
    """By the mean and deviation of all values of the picture itself, for lights and stains that vary; `mean` and `std`
    are not read then."""

    def __post_init__(self) -> None:
        check_positive(16_384, scale=self.scale, multiple_of=self.multiple_of, std=self.std)
        check_share(mean=self.mean)


@dataclass(frozen=True, kw_only=True)
class DetectionAugmentation:
    """Variations of training pictures. As it stands, the published 1x schedule: a left-right flip."""

    flip: float = 0.5
    """Probability of a left-right flip."""
    flip_vertical: float = 0.0
    """Probability of an up-down flip, for pictures without an above, such as a microscope's."""
    short_sides: tuple[int, ...] = ()
    """Multi-scale training: short sides to resize to, one drawn for each picture (published: 480, 512, ..., 800)."""
    crop_resize: float = 0.0
    """Probability that a picture is resized, cropped and resized again (published with multi-scale: 0.5)."""
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    """Short sides before that crop."""
    crop_sides: tuple[int, int] = (384, 600)
    """Range of the crop's height and width, each drawn for itself."""
    color_jitter: float = 0.0
    """Strength of changes of brightness, contrast and saturation."""

    def __post_init__(self) -> None:
        check_share(flip=self.flip, flip_vertical=self.flip_vertical, crop_resize=self.crop_resize)
        check_not_negative(10, color_jitter=self.color_jitter)
        check_range("[1, 16384]", crop_sides=self.crop_sides)
        check_positive(16_384, short_sides=self.short_sides, crop_short_sides=self.crop_short_sides)
        if not self.crop_short_sides:
            raise UsageError("crop_short_sides=[] leaves nothing to choose from; give side lengths in pixels")


class DetectionBatch(NamedTuple):
    """Pictures of one padded size."""

    images: Tensor
    """`b 3 H W`, zero on the right and at the bottom where a picture is smaller."""
    sizes: Tensor
    """`b 2`, height and width of each picture without padding."""
    targets: list[Target]

    def pin_memory(self) -> "DetectionBatch":
        return self._replace(images=self.images.pin_memory())


def detection_train_transform(preprocessing: DetectionPreprocessing, augmentation: DetectionAugmentation) -> v2.Compose:
    """Picture `3 H W` (8 bit) and target to floats and target. All randomness is torch's.

    Crowds are left out, as the published systems do. Boxes are clipped to the crop; one that is then under a pixel
    wide or high goes, with its mask (the published code keeps slivers of less than a pixel).
    """
    if len(preprocessing.mean) != 3:
        augmentation = without_color(augmentation, len(preprocessing.mean), color_jitter=0.0)
    long = max(preprocessing.scale)
    scales = [(long, side) for side in augmentation.short_sides] or [preprocessing.scale]
    resize: nn.Module = FitWithin(scales, antialias=preprocessing.antialias)
    if augmentation.crop_resize:
        before = [(long, side) for side in augmentation.crop_short_sides]
        cropped = v2.Compose(
            [
                FitWithin(before, antialias=preprocessing.antialias),
                WindowCrop(augmentation.crop_sides),
                FitWithin(scales, antialias=preprocessing.antialias),
            ]
        )
        p = augmentation.crop_resize
        resize = v2.RandomChoice([resize, cropped], p=[1 - p, p])
    steps: list[nn.Module] = [DropCrowds()]
    if augmentation.flip:
        steps.append(v2.RandomHorizontalFlip(augmentation.flip))
    if augmentation.flip_vertical:
        steps.append(v2.RandomVerticalFlip(augmentation.flip_vertical))
    if augmentation.color_jitter:
        steps.append(v2.ColorJitter(*(augmentation.color_jitter,) * 3))
    steps += [
        resize,
        v2.ClampBoundingBoxes(),
        v2.SanitizeBoundingBoxes(labels_getter=_labels),
        Normalise(preprocessing.mean, preprocessing.std, bgr=preprocessing.bgr, per_picture=preprocessing.per_picture),
        v2.ToPureTensor(),
    ]
    return v2.Compose(steps)


def detection_eval_transform(preprocessing: DetectionPreprocessing, scale: Size | None = None) -> v2.Compose:
    """Picture and target to floats at the test scale; another `scale` for multi-scale testing. No object is dropped."""
    return v2.Compose(
        [
            FitWithin([scale or preprocessing.scale], antialias=preprocessing.antialias),
            Normalise(
                preprocessing.mean, preprocessing.std, bgr=preprocessing.bgr, per_picture=preprocessing.per_picture
            ),
            v2.ToPureTensor(),
        ]
    )


def collate_detections(samples: Sequence[tuple[Tensor, Target]], multiple_of: int = 32) -> DetectionBatch:
    """Pictures `3 h w` padded with zeros to the largest height and width, up to the next multiple."""
    sizes = torch.tensor([picture.shape[-2:] for picture, _ in samples])
    height, width = (-(-int(side) // multiple_of) * multiple_of for side in sizes.amax(0))
    images = torch.stack([pad_to(picture, (height, width)) for picture, _ in samples])
    return DetectionBatch(images, sizes, [target for _, target in samples])


class DropCrowds(nn.Module):
    """Take regions of many objects out of a target, and what only evaluation reads."""

    def forward(self, picture: Tensor, target: Target) -> tuple[Tensor, Target]:
        keep = ~target["iscrowd"]
        kept = {name: value for name, value in target.items() if name not in ("iscrowd", "area")}
        if not bool(keep.all()):
            for name in ("boxes", "labels", "masks"):
                if name in kept:
                    kept[name] = _like(kept[name], kept[name][keep])
        return picture, kept


class WindowCrop(v2.Transform):
    """Crop a window at a uniform place, whose height and width are uniform in a range, or the side where it is less."""

    def __init__(self, sides: tuple[int, int]) -> None:
        super().__init__()
        self.sides = sides

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        size = picture_size(flat_inputs)
        height, width = (
            int(torch.randint(min(side, self.sides[0]), min(side, self.sides[1]) + 1, ())) for side in size
        )
        top, left = (int(torch.randint(room + 1, ())) for room in (size[0] - height, size[1] - width))
        return {"window": (top, left, height, width)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, *params["window"])


def _like(example: Tensor, values: Tensor) -> Tensor:
    """`values` as boxes or masks where the example is that; indexing forgets it."""
    if not isinstance(example, tv_tensors.TVTensor):
        return values
    return tv_tensors.wrap(values, like=example)  # pyright: ignore[reportCallIssue]


def _labels(sample: tuple[Tensor, Target]) -> Tensor:
    return sample[1]["labels"]
