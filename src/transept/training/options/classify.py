"""Options that only `task: classify` reads."""

from dataclasses import dataclass, field
from typing import Literal

import timm

from transept.checks import check_known, check_not_negative, check_positive, check_share, check_within
from transept.data.classification.transforms import Augmentation
from transept.errors import UsageError
from transept.models.registry import find_model, list_models


@dataclass(frozen=True, kw_only=True)
class MixOptions:
    """Training pictures are mixed in pairs, and their labels with them (timm's `Mixup`)."""

    mixup: float = 0.0
    """alpha of the Beta distribution of shares in Mixup; 0: off."""
    cutmix: float = 0.0
    """The same of CutMix."""
    probability: float = 1.0
    """Probability that anything is mixed."""
    switch: float = 0.5
    """Probability of CutMix where both are on."""
    mode: Literal["batch", "pair", "elem"] = "batch"
    """The unit that draws its share: a batch (or part of one, see `accumulate`), a pair of pictures, or a picture."""

    def __post_init__(self) -> None:
        check_not_negative(mixup=self.mixup, cutmix=self.cutmix)
        check_share(probability=self.probability, switch=self.switch)

    @property
    def on(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """A teacher's opinion is part of the loss: loss = (1 - alpha) * the labels' + alpha * the teacher's.

    Both parts read the same logits, as in the distilled XCiT and CaiT, which have no second head.
    """

    kind: Literal["none", "soft", "hard"] = "none"
    """hard: cross-entropy with the teacher's best class; soft: its probabilities at temperature tau."""
    teacher: str | None = None
    """Name of a model: ours or timm's."""
    weights: str | None = None
    """Its weights: a path, an URL or NAME.TAG; default: the published ones."""
    alpha: float = 0.5
    tau: float = 1.0
    """Temperature, for `soft`."""
    mean: tuple[float, float, float] | None = None
    """Mean by which the teacher's pictures are normalised, channels in 0..1; default: as its weights were published."""
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        check_share(alpha=self.alpha, mean=self.mean)
        check_positive(tau=self.tau, std=self.std)
        if self.kind != "none" and self.teacher is None:
            raise UsageError(f"kind={self.kind} needs a teacher; give the name of a model as teacher, too")
        if self.kind == "none" and self.teacher is not None:
            raise UsageError(f"teacher={self.teacher!r}, but kind is none; give soft or hard")
        if self.teacher is not None and not _is_model(self.teacher):
            models = [*list_models(), *timm.list_models()]
            check_known(models, "'transept models' lists ours, and timm.list_models() others", teacher=self.teacher)


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """Options that only `task: classify` reads."""

    augmentation: Augmentation = field(default_factory=Augmentation)
    mix: MixOptions = field(default_factory=MixOptions)
    distill: DistillOptions = field(default_factory=DistillOptions)
    loss: Literal["softmax", "binary"] = "softmax"
    """softmax: cross-entropy. binary: the mean of the binary cross-entropies of all classes, mixed labels taken as
    shares; answers are by softmax as ever."""
    label_smoothing: float = 0.1
    """Share of each label that is spread over all classes."""
    multi_label: bool = False
    """A picture has any number of labels, each learnt by itself: sigmoid and binary cross-entropy. `label_smoothing`
    then moves each label towards 0.5. The data is a table, a set of the hub, or shards."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class counts in the loss by the inverse of its share of the training pictures, so that a rare one is
    worth as much as a frequent one; of several labels, those that are there count as much as those that are not."""
    sampler: Literal["none", "balanced"] = "none"
    """balanced: a training picture is drawn, with replacement, with the inverse of its class's share, so that an epoch
    has about as many pictures of each class; of several labels, the rarest one decides."""
    crop_pct: float = 1.0
    """Share of the resized picture that evaluation keeps: 0.875 takes 224 of 256 pixels."""

    def __post_init__(self) -> None:
        check_within("[0, 1)", label_smoothing=self.label_smoothing)
        check_within("[0.01, 1]", crop_pct=self.crop_pct)
        if self.multi_label and self.loss == "binary":
            raise UsageError("loss=binary, but multi_label=true has that loss anyway; leave one of them out")
        if self.multi_label and self.distill.kind != "none":
            raise UsageError(f"multi_label=true, but distill.kind={self.distill.kind} teaches one class; leave one out")


def _is_model(name: str) -> bool:
    """Whether it names one of ours, which need no image size in their names, or of timm's."""
    try:
        find_model(name)
    except UsageError:
        return timm.is_model(name.partition(".")[0])
    return True
