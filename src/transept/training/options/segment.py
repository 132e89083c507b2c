"""Options that only `task: segment` reads."""

from dataclasses import dataclass, field

from transept.checks import check_positive
from transept.data.segmentation.transforms import SegmentationAugmentation, SegmentationPreprocessing
from transept.tasks.segment_methods import check_parts


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Options that only `task: segment` reads."""

    method: str = "semantic_fpn"
    """One of `transept.tasks.segment.METHODS`."""
    width: int | None = None
    """Channels of the method's convolutions; default: as published."""
    classifier_std: float = 0.01
    """Standard deviation of the first weights of the last convolutions. The published 0.01 keeps a small model from
    scratch long at the commonest class, as all others begin alike; 0.1 tells them apart from the start."""
    preprocessing: SegmentationPreprocessing = field(default_factory=SegmentationPreprocessing)
    augmentation: SegmentationAugmentation = field(default_factory=SegmentationAugmentation)

    def __post_init__(self) -> None:
        check_parts(self.method, self.width)
        check_positive(classifier_std=self.classifier_std)
