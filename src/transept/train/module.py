"""The Lightning module around a task. Lightning calls, for each epoch: training_step and the optimiser for every
batch, then validation_step for every batch, then the callbacks of `train/run.py`.
"""

from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from transept.errors import TranseptError
from transept.train.job import Job
from transept.train.recipe import Recipe


class TaskModule(lightning.LightningModule):
    """Forward, loss, meter; nothing else happens in a step."""

    task: Any

    def __init__(self, task: nn.Module, job: Job, recipe: Recipe, steps_per_epoch: int) -> None:
        super().__init__()
        self.task = task
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.train_meter, self.val_meter = job.meters()

    def training_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Tensor:
        images, targets = batch
        outputs = self.task(images)
        loss = self.task.loss(outputs, targets)
        # Looking at a number on a GPU makes the processor wait for it: look often enough to stop early.
        if (loss.device.type == "cpu" or self.global_step % 50 == 0) and not torch.isfinite(loss):
            raise TranseptError(
                f"the loss became {loss.item()} at step {self.global_step + 1} (epoch {self.current_epoch + 1}); "
                f"lower the learning rate (--optimizer.lr, now {self.recipe.optimizer.lr:g}) or warm up longer "
                "(--schedule.warmup_epochs); the checkpoints saved before are whole"
            )
        self.train_meter.update(loss, outputs, targets)
        return loss

    def validation_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> None:
        images, targets = batch
        outputs = self.task(images)
        self.val_meter.update(self.task.loss(outputs, targets), outputs, targets)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        options = self.recipe.optimizer
        optimizer = create_optimizer_v2(
            self.task.model, opt=options.name, lr=options.lr, weight_decay=options.weight_decay
        )
        scheduler = {"scheduler": self._schedule(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}  # pyright: ignore[reportReturnType]

    def _schedule(self, optimizer: torch.optim.Optimizer) -> CosineLRScheduler:
        schedule = self.recipe.schedule
        warmup = schedule.warmup_epochs * self.steps_per_epoch
        return CosineLRScheduler(
            optimizer,
            t_initial=max(schedule.epochs * self.steps_per_epoch - warmup, 1),
            lr_min=schedule.min_lr,
            warmup_t=warmup,
            warmup_lr_init=min(1e-6, self.recipe.optimizer.lr),
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def lr_scheduler_step(self, scheduler: CosineLRScheduler, metric: object) -> None:  # pyright: ignore
        scheduler.step_update(self.global_step)
