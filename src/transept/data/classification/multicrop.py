"""Several crops of one picture, each varied for itself: what a self-supervised model compares.

lightly has such transforms, too, but they draw from NumPy's generator; these draw from torch's only, so that a resumed
run sees what an uninterrupted one does.
"""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from transept.checks import check_not_negative, check_positive, check_range, check_share, check_within, shown
from transept.data.channels import without_color
from transept.data.classification.transforms import Preprocessing, random_blur, to_normalised
from transept.errors import UsageError

_JITTERED, _GREY = 0.8, 0.2


@dataclass(frozen=True, kw_only=True)
class MultiCrop:
    """Numbers and variations of the crops; the defaults are those of the XCiT authors' laboratory."""

    local_crops: int = 8
    """Small crops beside the two global ones, which are of the model's own size."""
    local_size: int = 96
    """Their side in pixels."""
    global_scale: tuple[float, float] = (0.3, 1.0)
    """Area of a global crop, as a share of the picture."""
    local_scale: tuple[float, float] = (0.05, 0.3)
    """Area of a local crop."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    rotation: float = 0.0
    """Largest rotation in degrees, before the crop."""
    color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of changes of brightness, contrast, saturation and hue, of four crops in five; with any, one crop in
    five is made grey."""
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability that the first global, the second global, a local crop is blurred, by 0.1 to 2 pixels."""
    solarize: float = 0.2
    """Probability that the bright half of the second global crop's values is inverted."""

    def __post_init__(self) -> None:
        check_not_negative(100, local_crops=self.local_crops)
        check_not_negative(10, color_jitter=self.color_jitter)
        check_positive(8192, local_size=self.local_size)
        check_range("(0, 1]", global_scale=self.global_scale, local_scale=self.local_scale)
        check_share(flip=self.flip, blur=self.blur, solarize=self.solarize)
        check_within("[0, 360]", rotation=self.rotation)
        if self.color_jitter[3] > 0.5:
            raise UsageError(f"color_jitter={shown(self.color_jitter)}; the last number, of hue, is 0.5 at most")


def multicrop_transform(preprocessing: Preprocessing, crops: MultiCrop) -> Callable[[Image.Image], list[Tensor]]:
    """RGB picture to normalised floats: two global crops `3 H W` of the model's size, then the local ones."""

    if len(preprocessing.mean) != 3:
        crops = without_color(crops, len(preprocessing.mean), color_jitter=(0.0, 0.0, 0.0, 0.0))

    def view(size: tuple[int, int], scale: tuple[float, float], blur: float, solarize: float = 0.0) -> v2.Compose:
        steps: list[Callable] = []
        if crops.rotation:
            steps.append(v2.RandomRotation(crops.rotation, v2.InterpolationMode.BILINEAR))  # pyright: ignore
        steps.append(v2.RandomResizedCrop(size, scale, interpolation=v2.InterpolationMode.BICUBIC))
        if crops.flip:
            steps.append(v2.RandomHorizontalFlip(crops.flip))
        if any(crops.color_jitter):
            steps.append(v2.RandomApply([v2.ColorJitter(*crops.color_jitter)], _JITTERED))
            steps.append(v2.RandomGrayscale(_GREY))
        if blur:
            steps.append(v2.RandomApply([v2.Lambda(random_blur)], blur))
        if solarize:
            steps.append(v2.RandomSolarize(128, solarize))
        return v2.Compose([*steps, *to_normalised(preprocessing)])

    height, width = preprocessing.img_size
    local_size = (crops.local_size, crops.local_size)
    views = [
        view((height, width), crops.global_scale, crops.blur[0]),
        view((height, width), crops.global_scale, crops.blur[1], crops.solarize),
        *[view(local_size, crops.local_scale, crops.blur[2])] * crops.local_crops,
    ]
    return lambda picture: [view(picture) for view in views]
