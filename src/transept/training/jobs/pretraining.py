"""Pretraining without labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from transept.data.classification.multicrop import multicrop_transform
from transept.data.classification.sets import load_splits
from transept.data.classification.transforms import Preprocessing, eval_transform
from transept.data.loading import Draw, EpochSampler, TransformedSet, make_loader
from transept.metrics.knn import KNNMeter, NearestNeighbours
from transept.metrics.loss import LossMeter
from transept.models.registry import find_model
from transept.tasks.pretrain import Pretrainer
from transept.training.jobs.job import Job, Meter, Score
from transept.training.loop.module import TaskModule
from transept.training.options.recipe import Recipe
from transept.training.processes.world import ALONE, World
from transept.weights.load import create_model, load_weights

_SAMPLES = 12


class PretrainModule(TaskModule):
    """Around a step, DINO's own schedules; in validation, nearest neighbours where there are labels."""

    task: Pretrainer
    job: "PretrainJob"
    neighbours: NearestNeighbours | None = None

    @property
    def total_steps(self) -> int:
        schedule = self.recipe.schedule
        return schedule.iterations or schedule.epochs * self.steps_per_epoch

    def training_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> Tensor:
        options = self.recipe.pretrain
        warmup = options.teacher_temp_warmup_epochs * self.steps_per_epoch
        done = self.global_step / warmup if warmup else 1.0
        self.task.teacher_temp = linear(done, options.teacher_temp_start, options.teacher_temp)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        configured: Any = super().configure_optimizers()
        groups = configured["optimizer"].param_groups
        self.decayed = [number for number, group in enumerate(groups) if group["weight_decay"]]
        return configured

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.task.cancel_last_layer_gradients(self.current_epoch)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        options, step = self.recipe.pretrain, self.global_step
        if options.weight_decay_end is not None:
            decay = cosine(step / self.total_steps, self.recipe.optimizer.weight_decay, options.weight_decay_end)
            for number in self.decayed:
                optimizer.param_groups[number]["weight_decay"] = decay
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.task.update_teacher(cosine(step / self.total_steps, options.momentum, 1.0))

    def on_validation_epoch_start(self) -> None:
        bank = self.job.bank_loader(self.task)
        if bank is None:
            return
        features, labels = [], []
        with self.trainer.precision_plugin.forward_context():
            for images, numbers in bank:
                features.append(self.task.features(images.to(self.device)))
                labels.append(numbers)
        options = self.recipe.pretrain
        self.neighbours = NearestNeighbours(
            torch.cat(features),
            torch.cat(labels).to(self.device),
            len(self.job.splits.classes),
            k=options.knn_k,
            temperature=options.knn_temperature,
        )

    def validation_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        if self.neighbours is None:
            super().validation_step(batch, batch_idx)
            return
        images, labels = batch
        votes = self.neighbours(self.task.features(images))
        self.val_meter.update(votes.new_zeros(()), votes, labels)

    def on_validation_epoch_end(self) -> None:
        self.neighbours = None


class PretrainJob(Job):
    """Pictures, labelled or not, and a student that learns from its own teacher.

    Labels only measure: the score is that of nearest neighbours. Without them it is the loss on held-out pictures,
    which says that training goes on, not how good the features are.
    """

    score = Score("knn_top1", "k-NN", "k-NN accuracy")
    distributed = True

    def __init__(self, recipe: Recipe, world: World = ALONE) -> None:
        super().__init__(recipe, world)
        self.splits = load_splits(
            str(recipe.data),
            val_fraction=recipe.val_fraction,
            skip_bad_images=recipe.skip_bad_images,
            labelled=False,
        )
        self.skipped = self.splits.skipped
        self.labelled = len(self.splits.classes) > 1
        if not self.labelled:
            self.score = Score("negative_loss", "-loss", "negative loss", percent=False)

    def build(self, *, load: bool) -> nn.Module:
        recipe = self.recipe
        student, teacher = self._backbone(recipe.model.drop_path_rate), self._backbone(0.0)
        if load and recipe.model.weights is not None:
            load_weights(student, recipe.model.weights)
        return Pretrainer(student, teacher, Preprocessing(img_size=student.config.img_size), recipe.pretrain)

    def _backbone(self, drop_path_rate: float) -> Any:
        model = self.recipe.model
        name, family = find_model(model.name)
        # Crops are of sizes that CAT and CrossFormer take only so.
        pad: dict[str, Any] = {"pad": True} if hasattr(family.variants[name], "pad") else {}
        return create_model(
            name, num_classes=0, img_size=model.img_size, drop_path_rate=drop_path_rate, **pad | model.options
        )

    def loaders(self, task: Pretrainer, *, epoch: int, batch: int) -> tuple[DataLoader, DataLoader]:
        recipe, splits = self.recipe, self.splits
        sampler = EpochSampler(
            len(splits.train),
            seed=recipe.seed,
            batch_size=self.part_size,
            draws=recipe.schedule.interval * recipe.batch_size if recipe.schedule.iterations else None,
            start_epoch=epoch,
            start_batch=batch,
            rank=self.world.rank,
            world_size=self.world.size,
        )
        crops: Any = multicrop_transform(task.preprocessing, recipe.pretrain.views)
        val = (
            TransformedSet(splits.val, eval_transform(task.preprocessing))
            if self.labelled
            else _AlwaysTheSame(splits.val, crops)
        )
        return (
            make_loader(TransformedSet(splits.train, crops), self.part_size, sampler=sampler, workers=recipe.workers),
            make_loader(val, self.part_size, workers=recipe.workers, rank=self.world.rank, world_size=self.world.size),
        )

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

    def write_samples(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        val = self.splits.val
        for i in np.linspace(0, len(val) - 1, min(_SAMPLES, len(val))).round().astype(int):
            picture, _ = val[int(i)]
            picture.save(folder / f"{val.paths[i].stem}.png")


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


def linear(done: float, start: float, end: float) -> float:
    """From `start` on to `end`, where it stays; `done` counts from 0 to 1 in between."""
    return start + (end - start) * min(done, 1.0)


def cosine(done: float, start: float, end: float) -> float:
    """Half a cosine from `start` to `end`."""
    return end + (start - end) * (1 + float(np.cos(np.pi * min(done, 1.0)))) / 2
