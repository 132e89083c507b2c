"""One training run: its folder, its checkpoints, its interruption and its resumption."""

import csv
import dataclasses
import logging
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn

from transept.errors import TranseptError, UsageError
from transept.files import reserve, write_atomically
from transept.train.classification import ClassifyJob
from transept.train.curves import draw_curves
from transept.train.detection import DetectJob
from transept.train.folder import BEST, CONFIG, CURVES, LAST, METRICS, SAMPLES, STATE
from transept.train.job import Job, Score
from transept.train.module import TaskModule
from transept.train.pretraining import PretrainJob
from transept.train.progress import ProgressBar
from transept.train.recipe import Recipe
from transept.train.segmentation import SegmentJob

JOBS: dict[str, type[Job]] = {
    "classify": ClassifyJob,
    "detect": DetectJob,
    "segment": SegmentJob,
    "pretrain": PretrainJob,
}
_SAVE_SECONDS = 600


class RunInterruptedError(TranseptError):
    """Ctrl-C: the run is saved and can go on."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished run reports."""

    run: Path
    metrics: dict[str, float]
    """Of the best epoch on the validation pictures, e.g. `top1`, in 0..1."""
    score: Score
    """Which of them decided."""
    epoch: int
    """The epoch that reached it, from 1."""
    seconds: float
    """Training time, data checks and imports not counted."""
    skipped: int
    """Unreadable files left out."""


def train(recipe: Recipe, folder: Path, *, resume: bool = False, progress: bool = True) -> Result:
    """Train as the recipe says, in a run folder; with `resume`, go on from its last checkpoint.

    The folder gets config.yaml, metrics.csv, curves.png, best.safetensors, last.safetensors, last.ckpt (for
    resuming) and a few held-out pictures in samples/. Training depends on the recipe alone: an interrupted and
    resumed run ends with the weights of an uninterrupted one.

    Raises:
        TranseptError: bad data, a folder that cannot be written to, a loss that is no number.
        RunInterruptedError: Ctrl-C; everything is saved.
    """
    if recipe.data is None:
        raise UsageError("the recipe names no data; give --data FOLDER")
    state = _read_state(folder) if resume else None
    job = JOBS[recipe.task](recipe)
    _seed(recipe.seed, 0)
    task = job.build(load=not resume)
    # Adam keeps two numbers for each parameter; three files hold weights; each is written beside its predecessor.
    reserve(folder, 4 * (5 + 3) * sum(p.numel() for p in task.parameters()) + 2**20)
    if not resume:
        config = yaml.safe_dump(_plain(dataclasses.asdict(recipe)), sort_keys=False, allow_unicode=True)
        write_atomically(folder / CONFIG, lambda path: path.write_text(config, encoding="utf-8"))
        job.write_samples(folder / SAMPLES)
    return _fit(recipe, folder, job, task, state, progress)


def _fit(
    recipe: Recipe, folder: Path, job: Job, task: nn.Module, state: dict[str, Any] | None, progress: bool
) -> Result:
    epoch, batch = _position(state)
    train_loader, val_loader = job.loaders(task, epoch=epoch, batch=batch)
    steps = _steps(recipe, len(train_loader))
    module = (job.module or TaskModule)(task, job, recipe, steps_per_epoch=steps)
    bar = ProgressBar(job.score) if progress else None
    recorder = Recorder(folder, recipe, job.score, bar)
    with _quiet_lightning():
        trainer = lightning.Trainer(
            max_epochs=recipe.schedule.evaluations,
            limit_train_batches=steps * recipe.accumulate,
            accumulate_grad_batches=recipe.accumulate,
            accelerator="auto",
            devices=1,
            precision=recipe.precision,
            sync_batchnorm=recipe.sync_batchnorm,
            gradient_clip_val=recipe.optimizer.clip_grad,
            callbacks=[recorder, *([bar] if bar else [])],
            plugins=[AtomicCheckpointIO()],
            default_root_dir=folder,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with _graceful_interrupt(recorder.interrupt):
            trainer.fit(
                module,
                train_loader,
                val_loader,
                ckpt_path=folder / STATE if state else None,
                weights_only=True,
            )
    best = recorder.best
    metrics = {name.removeprefix("val_"): value for name, value in best.items() if name.startswith("val_")}
    return Result(folder, metrics, job.score, int(best["epoch"]), recorder.seconds, len(job.skipped))


class Recorder(Callback):
    """Writes the run folder: a row of metrics, a picture and checkpoints after each epoch.

    Inside an epoch the state is saved every ten minutes, and on Ctrl-C, always between two steps: gradients that
    are not yet whole are in no checkpoint.
    """

    def __init__(self, folder: Path, recipe: Recipe, score: Score, bar: ProgressBar | None) -> None:
        self.folder = folder
        self.recipe = recipe
        self.score = score
        self.bar = bar
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self.interrupted = False

    def interrupt(self) -> None:
        """Stop before the next step. Called from the signal handler."""
        self.interrupted = True

    @property
    def best(self) -> dict[str, float]:
        """The row of the best epoch; of equals, the one with the lower loss."""
        return max(self.rows, key=lambda row: (row[f"val_{self.score.key}"], -row.get("val_loss", 0.0)))

    def state_dict(self) -> dict[str, Any]:
        meter = self.module.train_meter
        sums = {name: float(value) for name, value in meter.sums.items()}
        return {"rows": self.rows, "seconds": self.seconds, "samples": meter.samples, "sums": sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        self.seconds = state_dict["seconds"]
        self.resumed_meter = (state_dict["samples"], state_dict["sums"])

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, TaskModule)
        self.module = pl_module
        self.resumed_meter: tuple[int, dict[str, float]] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.clock = self.saved = time.monotonic()
        self.epoch_seconds = 0.0
        self.epoch_samples = 0
        if self.resumed_meter is not None:
            self.module.train_meter.samples, self.module.train_meter.sums = self.resumed_meter  # pyright: ignore

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        part = batch_idx % self.recipe.accumulate
        # Saved here, the checkpoint counts the batches before this one as done, and this one as not begun.
        if self.interrupted and part == 0:
            self._save_state(trainer)
            raise RunInterruptedError(
                f"stopped before step {trainer.global_step + 1}; everything is saved in {self.folder}"
            )
        if time.monotonic() - self.saved > _SAVE_SECONDS and part == 0:
            self._save_state(trainer)
        # Whatever draws from the global generators in this step (drop path, mixing) depends on the step alone, and
        # differs between its parts.
        _seed(self.recipe.seed, trainer.global_step * self.recipe.accumulate + part + 1)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.epoch_samples += len(batch[1])

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.epoch_seconds = time.monotonic() - self.clock

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        train, val = self.module.train_meter.means(), self.module.val_meter.means()
        self.row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
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
        task = self.module.task
        if self.best is self.rows[-1]:
            task.save(self.folder / BEST)
        task.save(self.folder / LAST)
        self._save_state(trainer)
        write_atomically(self.folder / METRICS, self._write_metrics)
        title = f"{self.recipe.model.name} on {Path(str(self.recipe.data)).name}"
        draw_curves(self.rows, self.best, self.score, title, self.folder / CURVES)
        if self.bar:
            self.bar.show_epoch(trainer, self.rows[-1])

    def _save_state(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.folder / STATE)
        self.saved = time.monotonic()

    def _write_metrics(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[-1]))
            writer.writeheader()
            for row in self.rows:
                writer.writerow({name: f"{value:.6g}" for name, value in row.items()})


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own goes through the temporary folder, which may lie on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))


def _steps(recipe: Recipe, parts: int) -> int:
    """The optimiser's, in an epoch of so many parts of batches: a last batch that lacks parts is left out.

    Raises:
        TranseptError: not one batch is whole.
    """
    if parts < recipe.accumulate:
        raise TranseptError(
            f"the training data fills {parts} of the accumulate={recipe.accumulate} parts of a batch; "
            f"lower accumulate or batch_size={recipe.batch_size}"
        )
    return parts // recipe.accumulate


def _position(state: dict[str, Any] | None) -> tuple[int, int]:
    """Epochs finished, and batches (or parts of them) finished in the next one."""
    if state is None:
        return 0, 0
    loop = state["loops"]["fit_loop"]
    epoch = loop["epoch_progress"]["current"]["processed"]
    inside = loop["epoch_progress"]["current"]["started"] > epoch
    return epoch, loop["epoch_loop.batch_progress"]["current"]["completed"] if inside else 0


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    if not path.is_file():
        raise TranseptError(f"{str(folder)!r} has no {STATE} to resume from; start it anew with 'transept train'")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TranseptError(f"{str(path)!r} is damaged ({error}); start the run anew") from error


def _seed(seed: int, step: int) -> None:
    """All three global generators: third-party layers and mixing may draw from any."""
    mixed = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def _plain(value: Any) -> Any:
    """Tuples to lists, so that the YAML is plain."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


@contextmanager
def _graceful_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) asks to stop between two batches; the second stops at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's advice on workers, devices and half-read epochs does not apply here."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            logger.setLevel(level)
