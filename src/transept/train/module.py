"""The Lightning module around a task. Lightning calls, for each epoch: training_step and the optimiser for every
batch, then validation_step for every batch, then the callbacks of `train/run.py`.
"""

import lightning
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor

from transept.errors import TranseptError
from transept.tasks.classify import Classifier
from transept.train.recipe import Recipe


class Meter:
    """Running loss and accuracy. Sums stay on the device, so a step never waits for them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.samples = 0
        self.sums: dict[str, Tensor | float] = {"loss": 0.0, "top1": 0.0, "top5": 0.0}

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        best = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        self.samples += len(labels)
        self.sums["loss"] += loss.detach().float() * len(labels)
        self.sums["top1"] += best[:, 0].sum()
        self.sums["top5"] += best.sum()

    def means(self) -> dict[str, float]:
        """Mean loss, and accuracies in 0..1, of the samples seen."""
        return {name: float(value) / max(self.samples, 1) for name, value in self.sums.items()}


class ClassifyModule(lightning.LightningModule):
    """Forward, loss, meter; nothing else happens in a step."""

    def __init__(self, task: Classifier, recipe: Recipe, steps_per_epoch: int) -> None:
        super().__init__()
        self.task = task
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.train_meter, self.val_meter = Meter(), Meter()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.task(images)
        loss = self.task.loss(logits, labels)
        # Looking at a number on a GPU makes the processor wait for it: look often enough to stop early.
        if (loss.device.type == "cpu" or self.global_step % 50 == 0) and not torch.isfinite(loss):
            raise TranseptError(
                f"the loss became {loss.item()} at step {self.global_step + 1} (epoch {self.current_epoch + 1}); "
                f"lower the learning rate (--optimizer.lr, now {self.recipe.optimizer.lr:g}) or warm up longer "
                "(--schedule.warmup_epochs); the checkpoints saved before are whole"
            )
        self.train_meter.update(loss, logits, labels)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self.task(images)
        self.val_meter.update(self.task.loss(logits, labels), logits, labels)

    def configure_optimizers(self) -> dict:
        options = self.recipe.optimizer
        optimizer = create_optimizer_v2(
            self.task.model, opt=options.name, lr=options.lr, weight_decay=options.weight_decay
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule(optimizer), "interval": "step"}}

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
