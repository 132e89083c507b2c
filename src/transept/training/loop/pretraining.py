"""Pretraining in Lightning's loop: DINO's own schedules around each step, nearest neighbours in validation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from transept.metrics.knn import NearestNeighbours
from transept.tasks.pretrain import Pretrainer
from transept.training.jobs.pretraining import PretrainJob
from transept.training.loop.module import TaskModule


class PretrainModule(TaskModule):
    """Around a step, DINO's own schedules; in validation, nearest neighbours where there are labels."""

    task: Pretrainer
    job: PretrainJob
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


MODULES: dict[str, type[TaskModule]] = {"pretrain": PretrainModule}
"""Modules that Lightning trains in the place of a plain `TaskModule`."""


def linear(done: float, start: float, end: float) -> float:
    """From `start` on to `end`, where it stays; `done` counts from 0 to 1 in between."""
    return start + (end - start) * min(done, 1.0)


def cosine(done: float, start: float, end: float) -> float:
    """Half a cosine from `start` to `end`."""
    return end + (start - end) * (1 + float(np.cos(np.pi * min(done, 1.0)))) / 2
