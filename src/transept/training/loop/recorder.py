"""The files that a run writes after each epoch, and between."""

import copy
import csv
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT

from transept.errors import TranseptError
from transept.files import write_atomically
from transept.tasks.run_folder import BEST, CURVES, LAST, METRICS, STATE
from transept.training.jobs.job import Job, Meter
from transept.training.loop.curves import draw_curves
from transept.training.loop.interruption import RunInterruptedError
from transept.training.loop.module import TaskModule
from transept.training.loop.progress import ProgressBar
from transept.training.loop.seeding import seed_all
from transept.training.options.recipe import Recipe
from transept.training.processes.strategies import whole_state
from transept.training.processes.world import any_of, asked_to_stop, gather, same_buffers

_DRAWN_EVERY = 10.0
"""Seconds: a picture takes a fifth of one, as an epoch of a small run does."""


class Recorder(Callback):
    """Writes the run folder: a row of metrics and checkpoints after each epoch, now and then and at the end a picture.

    Inside an epoch the state is saved every `checkpoint_seconds`, and on Ctrl-C, always between two steps: gradients
    that are not yet whole are in no checkpoint. Of several processes all must agree to save, and the first writes.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, job: Job, bar: ProgressBar | None, shell: Any | None = None
    ) -> None:
        """`shell`: where the task is sharded, a copy that is not; it is filled and saved in its place."""
        self.folder = folder
        self.recipe = recipe
        self.score = job.score
        self.world = job.world
        self.bar = bar
        self.shell = shell
        self.rows: list[dict[str, float]] = []
        self.seconds = self.drawn = 0.0
        self.interrupted = self.saving = False
        self.images: tuple[int, ...] = ()
        self.handle_signals: Callable[[], None] | None = None

    def interrupt(self) -> None:
        """Stop before the next step. Called from the signal handler."""
        self.interrupted = True

    @property
    def best(self) -> dict[str, float]:
        """The row of the best epoch; of equals, the one with the lower loss."""
        return max(self.rows, key=lambda row: (row[f"val_{self.score.key}"], -row.get("val_loss", 0.0)))

    def state_dict(self) -> dict[str, Any]:
        """Called by all processes, when a state is saved."""
        meter = copy.deepcopy(self.module.train_meter)
        _add_up(meter)
        return {"rows": self.rows, "seconds": self.seconds, **meter.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        self.seconds = state_dict["seconds"]
        self.resumed_meter = {name: state_dict[name] for name in ("samples", "sums")}

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, TaskModule)
        self.module = pl_module
        self.resumed_meter: dict[str, Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.clock = self.saved = self.drawn = time.monotonic()
        self.epoch_seconds = 0.0
        self.epoch_samples = 0
        if self.resumed_meter is not None and self.world.rank == 0:
            self.module.train_meter.add(self.resumed_meter)
        if self.handle_signals is not None:  # Lightning's own handler ends the run without saving it
            self.handle_signals()
        self._stop_out_of_patience(trainer)  # a run that stopped so and is resumed has nothing to go on with

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.images = _shape(batch[0])
        part = batch_idx % self.recipe.accumulate
        if part == 0:
            self.interrupted |= asked_to_stop.is_set()
            due = time.monotonic() - self.saved > self.recipe.checkpoint_seconds
            interrupted, due = any_of([self.interrupted, due], pl_module.device)
            # Saved here, the checkpoint counts the batches before this one as done, and this one as not begun.
            if interrupted or due:
                self._save_state(trainer)
            if interrupted:
                raise RunInterruptedError(
                    f"stopped before step {trainer.global_step + 1}; everything is saved in {self.folder}; "
                    f"go on with: transept train --resume {self.folder}"
                )
        # Whatever draws from the global generators in this step (drop path, mixing) depends on the step alone, and
        # differs between its parts and between processes.
        seed_all(self.recipe.seed, trainer.global_step * self.recipe.accumulate + part + 1, self.world.rank)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.epoch_samples += len(batch[1]) * self.world.size

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.epoch_seconds = time.monotonic() - self.clock
        same_buffers(self.module.task)
        if self.module.evaluated is not self.module.task:
            same_buffers(self.module.evaluated)

    def on_validation_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        self.images = _shape(batch[0])

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for meter in (self.module.train_meter, self.module.val_meter):
            _add_up(meter)
        for task in (self.module.evaluated, *([] if self.shell is None else [self.shell])):
            self.module.job.settle(task, self.module.val_meter)
        train, val = self.module.train_meter.means(), self.module.val_meter.means()
        self.row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            **{f"train_{name}": value for name, value in train.items()},
            **{f"val_{name}": value for name, value in val.items()},
            "images_per_second": self.epoch_samples / max(self.epoch_seconds, 1e-9),
        }
        self.module.train_meter.reset()
        self.module.val_meter.reset()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        now = time.monotonic()
        self.seconds += now - self.clock
        self.clock, self.epoch_samples = now, 0
        self.rows.append(self.row | {"seconds": self.seconds})
        with self._saves():
            self._save_epoch(trainer)
        for logger in trainer.loggers:
            logger.log_metrics(self.rows[-1], step=trainer.global_step)
        if self.bar:
            self.bar.show_epoch(trainer, self.rows[-1])
        self._stop_out_of_patience(trainer)

    def _save_epoch(self, trainer: lightning.Trainer) -> None:
        task = self._whole_task()
        if self.world.rank == 0:
            if self.best is self.rows[-1]:
                task.save(self.folder / BEST)
            task.save(self.folder / LAST)
        self._save_state(trainer)
        if self.world.rank == 0:
            write_atomically(self.folder / METRICS, self._write_metrics)
            if time.monotonic() - self.drawn > _DRAWN_EVERY:
                self._draw_curves()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._draw_curves()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        with suppress(TranseptError):  # the first error is the one to be told
            self._draw_curves()

    def _draw_curves(self) -> None:
        if self.world.rank == 0 and self.rows:
            title = f"{self.recipe.model.name} on {Path(str(self.recipe.data)).name}"
            with self._saves():
                draw_curves(self.rows, self.best, self.score, title, self.folder / CURVES)
            self.drawn = time.monotonic()

    def _stop_out_of_patience(self, trainer: lightning.Trainer) -> None:
        """All processes have the same rows, so they agree."""
        patience = self.recipe.schedule.patience
        if patience is not None and self.rows and len(self.rows) - self.best["epoch"] >= patience:
            trainer.should_stop = True

    def _whole_task(self) -> Any:
        if self.shell is None:
            return self.module.evaluated
        state = whole_state(self.module.task)
        if self.world.rank == 0:
            self.shell.load_state_dict(state)
        return self.shell

    def _save_state(self, trainer: lightning.Trainer) -> None:
        with self._saves():
            trainer.save_checkpoint(self.folder / STATE)
        self.saved = time.monotonic()

    @contextmanager
    def _saves(self) -> Iterator[None]:
        before, self.saving = self.saving, True
        try:
            yield
        finally:
            self.saving = before

    def _write_metrics(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[-1]))
            writer.writeheader()
            for row in self.rows:
                writer.writerow({name: f"{value:.6g}" for name, value in row.items()})


def _add_up(meter: Meter) -> None:
    """Makes a meter's sums those of all processes; all must call this."""
    states = gather(meter.state())
    meter.reset()
    for state in states:
        meter.add(state)


def _shape(images: Any) -> tuple[int, ...]:
    """The shape of a batch; of its largest crops, where it has several of each picture."""
    return tuple((images[0] if isinstance(images, list | tuple) else images).shape)
