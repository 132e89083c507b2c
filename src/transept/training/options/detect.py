"""Options that only `task: detect` reads."""

from dataclasses import dataclass, field
from typing import Literal

from transept.checks import check_positive, check_within
from transept.data.detection.transforms import DetectionAugmentation, DetectionPreprocessing
from transept.errors import UsageError
from transept.tasks.detect_methods import check_parts


@dataclass(frozen=True, kw_only=True)
class DetectOptions:
    """Options that only `task: detect` reads."""

    method: str = "retinanet"
    """One of `transept.tasks.detect.METHODS`; those with a mask in their name learn from masks, and answer with
    them."""
    width: int = 256
    """Channels of neck and heads."""
    anchor_scale: float = 1.0
    """Factor of the anchors' sides: less than 1 for objects that are small in the resized picture."""
    rois: int | None = None
    """Regions of each picture that the box heads of two-stage methods learn from; default: 512, as published."""
    sampler: Literal["none", "repeat_factor"] = "none"
    """repeat_factor: a training picture is drawn, with replacement, more often where it shows a rare class (LVIS): one
    in the share f of the pictures by the factor sqrt(repeat_threshold / f)."""
    repeat_threshold: float = 0.001
    """The share of the pictures below which a class is rare; LVIS's own, and too low for small sets."""
    keep_empty: bool = False
    """Train on pictures without objects, too."""
    preprocessing: DetectionPreprocessing = field(default_factory=DetectionPreprocessing)
    augmentation: DetectionAugmentation = field(default_factory=DetectionAugmentation)

    def __post_init__(self) -> None:
        check_parts(self.method, self.width, self.anchor_scale)
        check_positive(rois=self.rois)
        check_within("(0, 1]", repeat_threshold=self.repeat_threshold)
        if self.rois is not None and "rcnn" not in self.method:
            raise UsageError(f"rois={self.rois}, but {self.method} has no regions; leave it out")
