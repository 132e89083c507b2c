"""How a classifier's logits become labels, and how they are learnt: one of the classes, or any number of them.

A `Classifier` has one of the two, and asks it wherever they differ.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from transept.checks import check_share
from transept.data.classification.image_set import ImageSet
from transept.data.classification.label_columns import joined
from transept.data.images import Skipped
from transept.errors import UsageError
from transept.metrics.accuracy import AccuracyMeter
from transept.metrics.loss import LossMeter
from transept.metrics.multi_label import DEFAULT_THRESHOLD, MultiLabelMeter
from transept.tasks.classify_results import AnswersMeter, classifier_evaluation
from transept.tasks.multi_label_results import multi_label_evaluation
from transept.tasks.task import Column, Evaluation, Item, Table


class Classification(NamedTuple):
    """The best classes of an image, best first."""

    labels: Tensor
    """`k` class numbers (of a batch: `b k`)."""
    scores: Tensor
    """Their probabilities, in 0..1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationInference:
    """How classes are read from pictures."""

    top: int = 5
    """Classes of each picture, at most; of several labels all are given."""
    threshold: float | None = None
    """The least probability of each of several labels; default: each class's own."""
    batch_size: int = 32
    """Pictures of one call of the model."""

    def __post_init__(self) -> None:
        for name in ("top", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        check_share(threshold=self.threshold)


class Labelling(ABC):
    """What a picture's labels are."""

    score: ClassVar[str]
    """The metric that decides which epoch is best, as the meters call it."""
    is_multi: ClassVar[bool]
    """A picture has any number of labels."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Plain data for files, from which `labelling_of` makes it again."""

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
        """Mean loss of logits `b k`.

        Args:
            labels: of evaluation, or of training, where mixing makes shares of them.
            weights: of each class, ` k`, as `balanced` gives them.
            smoothing: share of each label that is taken from it.
        """

    @abstractmethod
    def balanced(self, counts: Tensor, pictures: int) -> Tensor:
        """Weights by which rare classes are worth as much as frequent ones; `counts` are the pictures of each."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """In 0..1, `b k`."""

    @abstractmethod
    def check(self, inference: ClassificationInference) -> None:
        """Raises `UsageError` where an option is of the other kind."""

    @abstractmethod
    def said(self, best: Classification, inference: ClassificationInference) -> Classification:
        """What is said of a picture, of which `best` ranks all classes."""

    @abstractmethod
    def mixed(self, mixup: Mixup, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures mixed in pairs, and each class's share of them, `b k`."""

    @abstractmethod
    def training_meters(self) -> tuple[LossMeter, LossMeter]:
        """For training, and for validation."""

    @abstractmethod
    def settled(self, meter: Any) -> "Labelling":
        """With what the validation meter says is best for it."""

    @abstractmethod
    def meter(self) -> Any:
        """For `evaluation`: takes loss, logits and labels of each batch."""

    @abstractmethod
    def evaluation(
        self,
        meter: Any,
        classes: Sequence[str],
        images: ImageSet,
        inference: ClassificationInference,
        *,
        seconds: float,
        skipped: Sequence[Skipped],
    ) -> Evaluation:
        """What `meter` saw of the images, in their order."""

    @abstractmethod
    def columns(self, most: int) -> dict[str, type]:
        """Of a table of answers, with `most` classes of each picture."""

    @abstractmethod
    def record(self, items: Sequence[Item]) -> tuple[Any, ...]:
        """A row of it."""

    @abstractmethod
    def table(self, pictures: Sequence[str], best: Sequence[Sequence[tuple[str, float]]], most: int) -> Table:
        """For people: what is said of each picture."""


class SingleLabel(Labelling):
    """A picture is of one class: softmax and cross-entropy.

    Args:
        binary: it is learnt by binary cross-entropy of each class instead; answers are by softmax as ever.
    """

    score = "top1"
    is_multi = False

    def __init__(self, *, binary: bool = False) -> None:
        self.binary = binary

    def description(self) -> dict[str, Any]:
        return {}

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
        """Of class numbers `b`, which are smoothed, or each class's share `b k`, taken as it is."""
        smoothing = 0.0 if labels.is_floating_point() else smoothing
        if self.binary:
            shares = labels if labels.is_floating_point() else one_hot(labels, logits.shape[-1])
            targets = shares.to(logits.dtype) * (1 - smoothing) + smoothing / logits.shape[-1]
            return binary_cross_entropy_with_logits(logits, targets, weights)
        return cross_entropy(logits, labels, weights, label_smoothing=smoothing)

    def balanced(self, counts: Tensor, pictures: int) -> Tensor:
        return counts.sum() / (len(counts) * counts)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(dim=-1)

    def check(self, inference: ClassificationInference) -> None:
        if inference.threshold is not None:
            raise UsageError(
                f"threshold={inference.threshold:g} is of classifiers that give a picture several labels; leave it out"
            )

    def said(self, best: Classification, inference: ClassificationInference) -> Classification:
        return Classification(*(values[: inference.top] for values in best))

    def mixed(self, mixup: Mixup, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return mixup(images, labels)

    def training_meters(self) -> tuple[LossMeter, LossMeter]:
        return AccuracyMeter(), AccuracyMeter()

    def settled(self, meter: Any) -> Labelling:
        return self

    def meter(self) -> AnswersMeter:
        return AnswersMeter()

    def evaluation(
        self,
        meter: AnswersMeter,
        classes: Sequence[str],
        images: ImageSet,
        inference: ClassificationInference,
        *,
        seconds: float,
        skipped: Sequence[Skipped],
    ) -> Evaluation:
        return classifier_evaluation(meter, classes, images, seconds=seconds, skipped=skipped)

    def columns(self, most: int) -> dict[str, type]:
        ranks = range(1, most + 1)
        return {name: kind for rank in ranks for name, kind in ((f"label_{rank}", str), (f"score_{rank}", float))}

    def record(self, items: Sequence[Item]) -> tuple[Any, ...]:
        """The best classes side by side."""
        return tuple(value for item in items for value in (item.label, item.score))

    def table(self, pictures: Sequence[str], best: Sequence[Sequence[tuple[str, float]]], most: int) -> Table:
        return ranked_table(pictures, best, most, "label", "score")


class MultiLabel(Labelling):
    """A picture has any number of labels, each by itself: sigmoid and binary cross-entropy.

    Args:
        thresholds: the least probability of each class's label; None: 0.5.
    """

    score = "map"
    is_multi = True

    def __init__(self, thresholds: Sequence[float] | None = None) -> None:
        self.thresholds = None if thresholds is None else [float(each) for each in thresholds]

    def description(self) -> dict[str, Any]:
        return {"multi_label": True, "thresholds": self.thresholds}

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
        """Of labels 0 or 1, or shares of them, `b k`; smoothing moves them towards 0.5, as timm's loss does."""
        targets = labels.to(logits.dtype) * (1 - smoothing) + 0.5 * smoothing
        return binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)

    def balanced(self, counts: Tensor, pictures: int) -> Tensor:
        """How often a picture lacks the class for each that has it; 1 for a class without pictures."""
        return torch.where(counts > 0, (pictures - counts) / counts.clamp(min=1), 1.0).clamp(min=1e-3)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid()

    def limits(self, num_classes: int, threshold: float | None) -> np.ndarray:
        """The least probability of each class."""
        if threshold is None and self.thresholds is not None:
            return np.array(self.thresholds)
        return np.full(num_classes, DEFAULT_THRESHOLD if threshold is None else threshold)

    def check(self, inference: ClassificationInference) -> None:
        """It has all of them."""

    def said(self, best: Classification, inference: ClassificationInference) -> Classification:
        limits = self.limits(len(best.labels), inference.threshold)
        keep = best.scores >= torch.from_numpy(limits).to(best.scores)[best.labels]
        return Classification(best.labels[keep], best.scores[keep])

    def mixed(self, mixup: Mixup, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """timm mixes numbers: those of the pictures themselves say which share of whose labels each one has."""
        mixup.num_classes = len(images)
        images, shares = mixup(images, torch.arange(len(images), device=images.device))
        return images, shares.to(labels.dtype) @ labels

    def training_meters(self) -> tuple[LossMeter, LossMeter]:
        return LossMeter(), MultiLabelMeter()

    def settled(self, meter: MultiLabelMeter) -> Labelling:
        """The threshold of each class with the highest F1."""
        return MultiLabel(meter.thresholds().tolist())

    def meter(self) -> MultiLabelMeter:
        return MultiLabelMeter()

    def evaluation(
        self,
        meter: MultiLabelMeter,
        classes: Sequence[str],
        images: ImageSet,
        inference: ClassificationInference,
        *,
        seconds: float,
        skipped: Sequence[Skipped],
    ) -> Evaluation:
        limits = self.limits(len(classes), inference.threshold)
        return multi_label_evaluation(meter, classes, images, limits, seconds=seconds, skipped=skipped)

    def columns(self, most: int) -> dict[str, type]:
        return {"labels": str, "scores": str}

    def record(self, items: Sequence[Item]) -> tuple[Any, ...]:
        """Labels as a table to train on has them, and their scores in the same order."""
        return joined([item.label for item in items]), ";".join(f"{item.score:.6g}" for item in items)

    def table(self, pictures: Sequence[str], best: Sequence[Sequence[tuple[str, float]]], most: int) -> Table:
        said = [", ".join(f"{name} {score:.1%}" for name, score in items) or "-" for items in best]
        rows = [[picture, labels] for picture, labels in zip(pictures, said, strict=True)]
        return Table([Column("picture"), Column("labels", style="bold")], rows)


def labelling_of(description: Mapping[str, Any]) -> Labelling:
    """The labelling that a file's description has."""
    return MultiLabel(description["thresholds"]) if description.get("multi_label") else SingleLabel()


def ranked_table(
    pictures: Sequence[str], best: Sequence[Sequence[tuple[str, float]]], ranks: int, label: str, score: str
) -> Table:
    """The `ranks` best classes of each picture with their shares, the first in bold."""
    first = [Column("picture"), Column(label, style="bold"), Column(score, True)]
    columns = first + [Column("then", style="dim"), Column(score, True, "dim")] * (ranks - 1)
    rows = [
        [picture, *(cell for name, share in items[:ranks] for cell in (name, f"{share:.1%}"))]
        for picture, items in zip(pictures, best, strict=True)
    ]
    return Table(columns, rows)
