"""Self-supervised pretraining with DINO (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers",
arXiv 2104.14294). Loss and projection are lightly's.

Figure 2, Section 3.1   Pretrainer    student and momentum teacher on crops of the same pictures
Section 3.2             Projected     a backbone under its projection
                        FeatureExtractor    what a run leaves behind: the teacher's backbone

As in the authors' code the teacher has no drop path, and its batch norms see batches of their own: only parameters
are averaged.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from transept.checks import check_not_negative, check_positive, check_share
from transept.data.channels import fit_channels
from transept.data.classification.sets import Splits, load_splits
from transept.data.classification.transforms import Preprocessing, preprocessing_of
from transept.data.reading import PLAIN, Reading
from transept.errors import TranseptError, UsageError
from transept.export.onnx import Exported
from transept.extras import install
from transept.models.backbone import Backbone
from transept.tasks.data_options import DataOptions
from transept.tasks.saving import rebuild, tuples
from transept.tasks.task import Evaluation, Halves, Item, ModelTask, Option, Picture, Prepare, Results, evaluating
from transept.weights.catalogue.records import Checkpoint
from transept.weights.load import create_model


class Projections(NamedTuple):
    """Scores of prototypes, `b out_dim` for each crop."""

    teacher: list[Tensor]
    """Projections of the global crops."""
    student: list[Tensor]
    """Projections of all crops, the global ones first."""


class FeatureExtractor(ModelTask):
    """A backbone without a classifier, and the preprocessing that it was trained for."""

    name = "pretrain"
    kind = "feature extractor"
    checkpoints = "self-supervised"
    creator = "create_model(name, num_classes=0, "
    options: ClassVar[Mapping[str, Option]] = {"batch_size": Option(help="pictures at once", type=int)}
    has_one_row = True
    explains = True
    level: int | None = None
    """The features are the mean over the places of this level's map, and not what a classifier would read."""

    def __init__(self, model: Backbone, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.classes = []
        self.preprocessing = fit_channels(preprocessing, self.in_chans)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images `b 3 H W` to what a classifier would read, or the mean of a level's map: `b c`."""
        if self.level is not None:
            (level,) = self.model.forward_intermediates(images, [self.level], stop_early=True, intermediates_only=True)  # pyright: ignore[reportAssignmentType]
            return level.mean(dim=(2, 3))
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)

    def read_from(self, *, level: int | None = None, pool: str | None = None) -> None:
        """From now on features are of a level (from the end where negative), or pooled in another way.

        Raises:
            UsageError: the model has no such level or way.
        """
        levels, pools = self.model.num_levels, [each for each in self.model.global_pools if each]
        if level is not None and pool is not None:
            raise UsageError(f"pool={pool!r} is of the last layer, and level={level} of another; give one of them")
        if level is not None and not -levels <= level < levels:
            raise UsageError(
                f"level={level}: the model has {levels} levels; give 0 to {levels - 1}, or -1 for the last"
            )
        if pool is not None and pool not in pools:
            raise UsageError(f"pool={pool!r}: the model knows {' and '.join(map(repr, pools))}")
        self.level = level
        if pool is not None:
            self.model.global_pool = cast(Any, pool)

    def inference(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, batch_size: int | None = None
    ) -> int:
        """The number of pictures at once."""
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size={batch_size} must be at least 1")
        return batch_size or 32

    @torch.inference_mode()
    def predict(self, pictures: Sequence[Picture], inference: int | None = None) -> list[Tensor]:
        """RGB pictures of any sizes to the features `c` of each."""
        transform, size = self.input_of(), inference or 32
        starts = range(0, len(pictures), size)
        batches = (torch.stack([transform(each) for each in pictures[i : i + size]]) for i in starts)
        return [features for batch in batches for features in self.answers(batch, size)]

    def pictures_at_once(self, inference: int) -> int:
        return inference

    def input_of(self, *, exact: bool = True) -> Callable[[Picture], Tensor]:
        return Prepare(self.preprocessing, self.in_chans, exact=exact)

    @torch.inference_mode()
    def answers(self, inputs: Tensor, inference: int) -> list[Tensor]:
        with evaluating(self):
            return list(self(inputs.to(next(self.parameters()).device)))

    def columns(self, inference: int) -> dict[str, type]:
        raise self._no_classes()

    def picture_columns(self, inference: int) -> dict[str, Any]:
        return {"features": np.ndarray}

    def picture_record(self, prediction: Tensor, inference: int, size: tuple[int, int]) -> tuple[Any, ...]:
        return (prediction.float().cpu().numpy(),)

    def items(self, prediction: Tensor) -> list[Item]:
        raise self._no_classes()

    def draw(self, picture: Image.Image, prediction: Tensor, path: Path) -> None:
        raise self._no_classes()

    def results(self, out: Path | None, *, inputs: Iterable[Path] = (), **options: Any) -> Results:
        raise self._no_classes()

    def load_data(self, options: DataOptions, halves: Halves = "both") -> Splits:
        return load_splits(
            str(options.data),
            halves=halves,
            choice=self.choice(options),
            val_fraction=options.val_fraction,
            skip_bad_images=options.skip_bad_images,
            reading=self.reading_of(options),
        )

    def evaluate(self, data: DataOptions, inference: Any = None, **options: Any) -> Evaluation:
        raise self._no_classes()

    def export(self, folder: str | PathLike[str], **options: Any) -> Exported:
        raise self._no_classes()

    def description(self) -> dict[str, Any]:
        return {"preprocessing": dataclasses.asdict(self.preprocessing)}

    @classmethod
    def build(cls, description: Mapping[str, Any]) -> Self:
        return cls(rebuild(description, num_classes=0), Preprocessing(**tuples(description["preprocessing"])))

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        model = create_model(checkpoint.name, pretrained=True, num_classes=0)
        return cls(model, preprocessing_of(model)).eval()

    @staticmethod
    def _no_classes() -> TranseptError:
        return TranseptError(
            "the model was pretrained without classes; write its features with 'transept features', measure them with "
            "'transept eval --knn' or '--linear', or train a classifier from it with --model.weights"
        )


class Projected(nn.Module):
    """A backbone under its projection, under the parameter names of the authors' files."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops: Sequence[Tensor]) -> list[Tensor]:
        """Crops `b 3 H W` to `b out_dim` each. Neighbours of one size go through the backbone in one batch."""
        features = [self.backbone(torch.cat(list(same))) for _, same in groupby(crops, lambda crop: crop.shape[-2:])]
        return list(self.head(torch.cat(features)).chunk(len(crops)))


@dataclass(frozen=True, kw_only=True)
class DINO:
    """The projection that student and teacher are compared by, and their temperatures."""

    out_dim: int = 65536
    """Prototypes that teacher and student compare pictures with."""
    hidden_dim: int = 2048
    """Width of the projection."""
    bottleneck_dim: int = 256
    """Width before the prototypes."""
    bn_in_head: bool = False
    """Batch norm in the projection: for small models and batches, whose features of all pictures begin almost alike."""
    norm_last_layer: bool = True
    """Prototypes keep length 1; without, they learn it."""
    freeze_last_layer: int = 1
    """Epochs in which the prototypes do not learn."""
    student_temp: float = 0.1
    teacher_temp: float = 0.07
    """Where it warms up, the last."""
    center_momentum: float = 0.9

    def __post_init__(self) -> None:
        check_positive(10**6, out_dim=self.out_dim, hidden_dim=self.hidden_dim, bottleneck_dim=self.bottleneck_dim)
        check_positive(student_temp=self.student_temp, teacher_temp=self.teacher_temp)
        check_not_negative(freeze_last_layer=self.freeze_last_layer)
        check_share(center_momentum=self.center_momentum)


class Pretrainer(nn.Module):
    """Student and teacher. The trainer calls `update_teacher` after each step, and sets `teacher_temp` before it.

    Args:
        student: a backbone without classifier; it takes crops of every size.
        teacher: another of the same kind, without drop path; it starts as a copy of the student.
        preprocessing: goes with the weights that `save` writes.
        options: projection, temperatures and centre.

    Raises:
        UsageError: lightly is not installed.
    """

    global_crops = 2
    reading: Reading = PLAIN
    """How files become pictures; goes with the weights, too."""

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone,
        preprocessing: Preprocessing,
        options: DINO | None = None,
    ) -> None:
        super().__init__()
        loss, projection = _lightly()
        options = options or DINO()

        def projected(backbone: Backbone) -> Projected:
            head = projection(
                backbone.num_features,
                options.hidden_dim,
                options.bottleneck_dim,
                options.out_dim,
                batch_norm=options.bn_in_head,
                freeze_last_layer=options.freeze_last_layer,
                norm_last_layer=options.norm_last_layer,
            )
            return Projected(backbone, head)

        with torch.no_grad():  # a prototype is direction times length: with gradients the product could not be copied
            self.student, self.teacher = projected(student), projected(teacher)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.preprocessing = preprocessing
        self.teacher_temp = options.teacher_temp
        self.criterion = loss(
            options.out_dim, student_temp=options.student_temp, center_momentum=options.center_momentum
        )

    @property
    def model(self) -> Projected:
        """The module that the optimiser trains. It lists no exemptions from weight decay: only biases and vectors are
        exempt, as in the authors' code."""
        return self.student

    @property
    def backbone(self) -> Backbone:
        """The student's."""
        return self.student.backbone

    def forward(self, crops: Sequence[Tensor]) -> Projections:
        """Crops `b 3 H W`, two global ones before all local ones, to the projections that the loss compares."""
        with torch.no_grad():
            teacher = self.teacher(crops[: self.global_crops])
        return Projections(teacher, self.student(crops))

    def loss(self, outputs: Projections, targets: Any = None) -> Tensor:
        """Cross-entropy between the teacher's view of each global crop and the student's of every other crop.

        The mean over pictures and pairs of crops (Equation 3), in float32. In training mode the centre moves.
        """
        center = self.criterion.center.clone()
        with torch.autocast(center.device.type, enabled=False):
            teacher, student = ([each.float() for each in half] for half in outputs)
            loss = self.criterion(teacher, student, teacher_temp=self.teacher_temp)
        if not self.training:
            self.criterion.center.copy_(center)
        return loss

    @torch.no_grad()
    def teacher_entropy(self, outputs: Projections) -> Tensor:
        """The teacher's entropy in nats, the mean over pictures: to be asked before the loss moves the centre.

        It is ln(out_dim) where the teacher says nothing and 0 where it always names one prototype. The loss is this
        plus the divergence of the student from the teacher: both answers collapsed if that divergence vanishes.
        """
        scores = (torch.stack(outputs.teacher).float() - self.criterion.center) / self.teacher_temp
        logs = scores.log_softmax(-1)
        return -(logs.exp() * logs).sum(-1).mean()

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Each parameter of the teacher to `momentum` times itself plus `1 - momentum` times the student's."""
        for ours, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            ours.lerp_(theirs, 1 - momentum)

    def cancel_last_layer_gradients(self, epoch: int) -> None:
        """In the first epochs, counted from 0, the prototypes do not learn."""
        self.student.head.cancel_last_layer_gradients(epoch)  # pyright: ignore[reportCallIssue]

    @property
    def features(self) -> FeatureExtractor:
        """The teacher without its projection: better than the student all through training (Section 5.1)."""
        features = FeatureExtractor(self.teacher.backbone, self.preprocessing)
        features.reading = self.reading
        return features

    def save(self, path: str | PathLike[str]) -> None:
        """The teacher's backbone, as `FeatureExtractor` does."""
        self.features.save(path)


def _lightly() -> tuple[Any, Any]:
    """Loss and projection."""
    try:
        # An extra, and it takes seconds.
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead
    except ModuleNotFoundError as error:
        raise UsageError(f"pretraining needs the package 'lightly': {install('ssl')}") from error
    return DINOLoss, DINOProjectionHead
