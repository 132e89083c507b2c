"""Pretraining without labels."""

from dataclasses import replace
from time import monotonic
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from transept.data.classification.multicrop import multicrop_transform
from transept.data.classification.sets import load_splits
from transept.data.classification.transforms import Preprocessing, eval_transform
from transept.data.loading import Draw, TransformedSet, make_loader
from transept.metrics.knn import KNNMeter
from transept.metrics.loss import LossMeter
from transept.models.registry import find_model
from transept.tasks.feature_scores import feature_scores
from transept.tasks.pretrain import FeatureExtractor, Pretrainer
from transept.tasks.task import Evaluation
from transept.training.jobs.job import Job, Meter, Score
from transept.training.options.recipe import Recipe
from transept.training.processes.world import ALONE, World
from transept.weights.load import create_model


class PretrainJob(Job):
    """Pictures, labelled or not, and a student that learns from its own teacher.

    Labels only measure: the score is that of nearest neighbours. Without them it is the loss on held-out pictures,
    which says that training goes on, not how good the features are.
    """

    score = Score("knn_top1", "k-NN", "k-NN accuracy")
    distributed = True
    num_samples = 12

    def __init__(self, recipe: Recipe, world: World = ALONE) -> None:
        super().__init__(recipe, world)
        self.splits = load_splits(
            str(recipe.data),
            choice=recipe.choice(held_out=True, measures=False),
            val_fraction=recipe.val_fraction,
            skip_bad_images=recipe.skip_bad_images,
            labelled=False,
            reading=recipe.reading,
        )
        self.skipped = self.splits.skipped
        self.labelled = len(self.splits.classes) > 1
        if not self.labelled:
            self.score = Score("negative_loss", "-loss", "negative loss", percent=False)

    def test(self, task: FeatureExtractor) -> Evaluation | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Nearest neighbours among the training pictures."""
        if not self.labelled:
            return None
        recipe, options = self.recipe, self.recipe.pretrain
        started = monotonic()
        splits = task.load_data(replace(recipe.data_options, split=self.splits.parts.test))
        scores = feature_scores(
            task, splits, knn=True, linear=False, k=options.knn_k, temperature=options.knn_temperature
        )
        return Evaluation(
            metrics=scores,
            summary=f"k-NN top-1 {scores['knn_top1']:.2%}",
            images=len(splits.val),
            seconds=monotonic() - started,
            skipped=splits.skipped,
            split=splits.parts.split,
            measured=splits.parts.measured(len(splits.val), splits.measured_classes, str(recipe.data)),
        )

    def build(self, *, load: bool) -> nn.Module:
        recipe = self.recipe
        student, teacher = self._backbone(recipe.model.drop_path_rate), self._backbone(0.0)
        preprocessing = self.measured(Preprocessing(img_size=student.config.img_size))
        if load:
            self.start(FeatureExtractor(student, preprocessing))
        task = Pretrainer(student, teacher, preprocessing, recipe.pretrain)
        task.reading = self.reading
        return task

    def _backbone(self, drop_path_rate: float) -> Any:
        model = self.recipe.model
        name, family = find_model(model.name)
        options: dict[str, Any] = {**family.any_size, **model.options}  # crops are of sizes of their own
        return create_model(
            name,
            num_classes=0,
            in_chans=self.reading.channels,
            img_size=model.img_size,
            drop_path_rate=drop_path_rate,
            **options,
        )

    def datasets(self, task: Pretrainer) -> tuple[TransformedSet, TransformedSet]:
        splits = self.splits
        crops: Any = multicrop_transform(task.preprocessing, self.recipe.pretrain.views)
        val = (
            TransformedSet(splits.val, eval_transform(task.preprocessing))
            if self.labelled
            else _AlwaysTheSame(splits.val, crops)
        )
        return TransformedSet(splits.train, crops), val

    def bank_loader(self, task: Pretrainer) -> DataLoader | None:
        """The training pictures as in evaluation, whose labels vote; None where they have none."""
        if not self.labelled:
            return None
        pictures = TransformedSet(self.splits.train, eval_transform(task.preprocessing))
        return make_loader(pictures, self.part_size, workers=self.recipe.workers)

    def backbones(self, task: Pretrainer) -> list[nn.Module]:
        return [task.student.backbone, task.teacher.backbone]

    def step(self, task: Pretrainer, images: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's entropy stands for the outputs: no meter asks for more of them."""
        outputs = task(images)
        entropy = task.teacher_entropy(outputs)
        return entropy, task.loss(outputs, targets)

    def meters(self) -> tuple[Meter, Meter]:
        return _EntropyMeter(), KNNMeter() if self.labelled else _NegativeLossMeter()


class _AlwaysTheSame(TransformedSet):
    """Random crops that do not change between evaluations."""

    def __getitem__(self, key: int | Draw) -> tuple[Tensor, int]:
        return super().__getitem__(Draw(key, key) if isinstance(key, int) else key)


class _EntropyMeter(LossMeter):
    """The loss in its two parts: see `Pretrainer.teacher_entropy`."""

    def reset(self) -> None:
        super().reset()
        self.sums["teacher_entropy"] = 0.0

    def update(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        super().update(loss, outputs, targets)
        self.sums["teacher_entropy"] += outputs * len(targets)

    def means(self) -> dict[str, float]:
        means = super().means()
        return means | {"divergence": means["loss"] - means["teacher_entropy"]}


class _NegativeLossMeter(LossMeter):
    def means(self) -> dict[str, float]:
        means = super().means()
        return means | {"negative_loss": -means["loss"]}
