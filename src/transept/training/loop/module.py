"""The Lightning module around a task. Lightning calls, for each epoch: training_step for every part of a batch,
the optimiser after its last part, then validation_step for every batch, then the callbacks of `loop/trainer.py`.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR

from transept.errors import TranseptError, UsageError
from transept.training.jobs.job import Job
from transept.training.loop.averaging import Averaging
from transept.training.options.optimizer import OptimizerOptions
from transept.training.options.recipe import Recipe
from transept.training.processes.strategies import shard


class TaskModule(lightning.LightningModule):
    """Forward, loss, meter; nothing else happens in a step."""

    task: Any

    def __init__(self, task: nn.Module, job: Job, recipe: Recipe, steps_per_epoch: int) -> None:
        super().__init__()
        self.task = task
        self.job = job
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch  # of the optimiser
        self.train_meter, self.val_meter = job.meters()
        self.averaging: Averaging | None = None

    @property
    def evaluated(self) -> Any:
        """The task that is validated and saved: itself, or its moving average."""
        return self.averaging.average.module if self.averaging else self.task

    def configure_model(self) -> None:
        """Called once, before the optimiser is made; only sharding strategies have a mesh of devices."""
        if self.device_mesh is not None:
            shard(self.task, self.job.backbones(self.task), self.device_mesh["data_parallel"])

    def training_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Tensor:
        images, targets = batch
        outputs, loss = self.job.step(self.task, images, targets)
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
        task = self.evaluated
        outputs = task(images)
        loss = task.loss(outputs, targets)
        self.val_meter.update(loss, self.job.answers(task, outputs, targets), targets)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        options = self.recipe.optimizer
        model = getattr(self.task, "model", self.task)
        if options.no_weight_decay is not None:
            model = _groups(model, options.no_weight_decay)
        optimizer = make_optimizer(
            options, model, layer_decay=options.layer_decay, unscales=self.recipe.precision == "16-mixed"
        )
        if self.recipe.schedule.decay != "cosine":
            for group in optimizer.param_groups:  # timm's own schedules read lr_scale themselves
                group["lr"] *= group.get("lr_scale", 1.0)
        scheduler = {"scheduler": self._schedule(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}  # pyright: ignore[reportReturnType]

    def _schedule(self, optimizer: torch.optim.Optimizer) -> CosineLRScheduler | LambdaLR:
        schedule, lr = self.recipe.schedule, self.recipe.optimizer.lr
        total = schedule.iterations or schedule.epochs * self.steps_per_epoch
        by_iterations = schedule.iterations or schedule.warmup_iterations
        warmup = schedule.warmup_iterations if by_iterations else schedule.warmup_epochs * self.steps_per_epoch
        if warmup > total:
            raise UsageError(
                f"schedule.warmup_iterations={warmup}, but the run has {total} ({schedule.epochs} epochs of "
                f"{self.steps_per_epoch}); give fewer, or more epochs"
            )
        if schedule.decay != "cosine":
            decayed = (
                poly(total, schedule.power, schedule.min_lr / lr)
                if schedule.decay == "poly"
                else steps([epoch * self.steps_per_epoch for epoch in schedule.milestones], schedule.gamma)
            )
            return LambdaLR(optimizer, warmed_up(decayed, warmup, schedule.warmup_ratio))
        return CosineLRScheduler(
            optimizer,
            t_initial=max(total - (0 if schedule.cosine_from_start else warmup), 1),
            lr_min=schedule.min_lr,
            warmup_t=warmup,
            warmup_lr_init=min(schedule.warmup_lr, lr),
            warmup_prefix=not schedule.cosine_from_start,
            t_in_epochs=False,
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """timm's schedules keep their length in the state, and the recipe may have made it longer."""
        if self.recipe.schedule.decay == "cosine":
            checkpoint["lr_schedulers"] = [{} for _ in checkpoint["lr_schedulers"]]

    def on_train_start(self) -> None:
        """A run that goes on and has become longer learns at the longer schedule's rate from its first step on."""
        if not self.global_step:
            return
        scheduler: Any = self.lr_schedulers()
        if isinstance(scheduler, CosineLRScheduler):
            self.lr_scheduler_step(scheduler, None)
            return
        factors = (factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas)
        groups = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, factors, strict=True)
        for group, base, factor in groups:
            group["lr"] = base * factor

    def lr_scheduler_step(self, scheduler: CosineLRScheduler | LambdaLR, metric: object) -> None:  # pyright: ignore
        if isinstance(scheduler, CosineLRScheduler):
            step = self.global_step
            if self.recipe.schedule.by_epoch:
                step = max(step // self.steps_per_epoch - 1, 0) * self.steps_per_epoch
            scheduler.step_update(step)
        else:
            scheduler.step()


def make_optimizer(
    options: OptimizerOptions, model: Any, *, layer_decay: float | None = None, unscales: bool = False
) -> Any:
    """timm's of that name, of a model or groups of parameters.

    Adam's step is one kernel over all parameters, except where gradients are scaled (`unscales`): that kernel unscales
    them itself, and they could not be clipped before.
    """
    more: dict[str, Any] = {} if options.betas is None else {"betas": options.betas}
    fused = not unscales and get_optimizer_class(options.base, bind_defaults=False) in (Adam, AdamW)
    if fused:
        more["fused"] = True
    optimizer = create_optimizer_v2(
        model, opt=options.name, lr=options.lr, weight_decay=options.weight_decay, layer_decay=layer_decay, **more
    )
    if fused:  # Lightning refuses to clip in any mixed precision, also in bfloat16, where nothing is scaled
        optimizer._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]
    return optimizer


def check_optimizer(options: OptimizerOptions) -> None:
    """Some optimisers need a GPU, or another package.

    Raises:
        UsageError: this one cannot be made here.
    """
    try:
        make_optimizer(options, nn.Linear(2, 2))
    except (AssertionError, ImportError, NameError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"optimizer.name={options.name!r} cannot be made on this machine ({reason}); give another"
        ) from error


def poly(total: int, power: float, floor: float = 0.0) -> Callable[[int], float]:
    """Step to share of the peak learning rate, from 1 at step 0 to `floor` at `total`."""
    return lambda step: (1 - floor) * max(1 - step / total, 0.0) ** power + floor


def steps(milestones: Sequence[int], gamma: float) -> Callable[[int], float]:
    """Step to share of the peak learning rate, which is lower by the factor `gamma` from each milestone on."""
    return lambda step: gamma ** bisect_right(milestones, step)


def warmed_up(decayed: Callable[[int], float], warmup: int, start: float) -> Callable[[int], float]:
    """Step to share, as mmdetection and mmsegmentation have it: the warm-up multiplies what decays already."""

    def factor(step: int) -> float:
        return decayed(step) * (1 - (1 - step / warmup) * (1 - start) if step < warmup else 1.0)

    return factor


def _groups(model: nn.Module, exempt: Sequence[str]) -> list[dict[str, Any]]:
    """Parameters with weight decay, and without it those whose names contain one of `exempt`."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    free = [p for name, p in named if any(part in name for part in exempt)]
    kept = [p for name, p in named if not any(part in name for part in exempt)]
    groups = [{"params": kept}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
