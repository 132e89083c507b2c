"""One training run: its folder, its checkpoints, its interruption and its resumption."""

import copy
import csv
import dataclasses
import logging
import random
import re
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
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT

from transept.errors import TranseptError, TranseptWarning, UsageError
from transept.files import reserve, write_atomically
from transept.tasks.run_folder import BEST, CONFIG, CURVES, LAST, LOCK, METRICS, SAMPLES, STATE
from transept.train.jobs.classification import ClassifyJob
from transept.train.jobs.detection import DetectJob
from transept.train.jobs.job import Job, Meter, Score
from transept.train.jobs.pretraining import PretrainJob
from transept.train.jobs.segmentation import SegmentJob
from transept.train.loop.averaging import Averaging
from transept.train.loop.curves import draw_curves
from transept.train.loop.dry_run import Plan, draw_batch, make_plan
from transept.train.loop.fingerprint import DataRecord, check_same_data, fingerprint
from transept.train.loop.freezing import freeze, keep_batch_statistics
from transept.train.loop.loggers import make_loggers
from transept.train.loop.module import TaskModule
from transept.train.loop.progress import ProgressBar
from transept.train.loop.states import StateFiles, position, read_state
from transept.train.options.recipe import Recipe, plain
from transept.train.processes.strategies import check_hardware, fit_to_hardware, make_strategy, whole_state
from transept.train.processes.world import (
    LostProcessError,
    World,
    any_of,
    gather,
    kept,
    launch,
    lost_process,
    must_launch,
    same_buffers,
    wanted_world,
)

JOBS: dict[str, type[Job]] = {
    "classify": ClassifyJob,
    "detect": DetectJob,
    "segment": SegmentJob,
    "pretrain": PretrainJob,
}
_LOCK_SECONDS = 10
"""A run that was killed may hold its folder until its loading processes have noticed."""


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
        TranseptError: bad data, data that changed since the run was saved, a folder that cannot be written to, a loss
            that is no number.
        RunInterruptedError: Ctrl-C; everything is saved.
    """
    if recipe.data is None:
        raise UsageError("the recipe names no data; give --data FOLDER")
    recipe = _scaled(recipe)
    world = wanted_world(recipe)
    if must_launch(world):
        return launch(_train, (recipe, folder, resume, progress), size=world.size, folder=folder)
    return _train(recipe, folder, resume, progress)


def plan(recipe: Recipe, picture: Path) -> tuple[Recipe, Plan]:
    """What `train` would do, up to its first batch, which is drawn: the recipe as it is followed, and its size.

    Raises:
        TranseptError: as `train` does, but for what concerns the run folder.
    """
    if recipe.data is None:
        raise UsageError("the recipe names no data; give --data FOLDER")
    recipe = _scaled(recipe)
    world = wanted_world(recipe)
    job, task = _prepare(recipe, world, load=False)
    loader, _ = job.loaders(task, epoch=0, batch=0)
    images, targets = next(iter(loader))
    draw_batch(images, targets, task, picture)
    return recipe, make_plan(recipe, job, task, images, steps_per_epoch=_steps(recipe, len(loader)), world=world)


def _prepare(recipe: Recipe, world: World, *, load: bool) -> tuple[Job, Any]:
    """The job and its task, with the recipe's starting weights where `load` is set."""
    job = JOBS[recipe.task](recipe)
    if world.size > 1 and not job.distributed:
        raise UsageError(f"task={recipe.task} trains in one process, and {world.size} were started")
    job.world = world
    _seed(recipe.seed, 0)
    task: Any = job.build(load=load)
    freeze(task.model if recipe.task == "classify" else task.backbone, recipe.model.freeze)
    if recipe.model.norm_eval:
        keep_batch_statistics(task)
    check_hardware(recipe, world, task)
    return job, task


def _train(recipe: Recipe, folder: Path, resume: bool, progress: bool) -> Result:
    """In this process."""
    world = wanted_world(recipe)
    state, state_file = read_state(folder) if resume else (None, None)
    job, task = _prepare(recipe, world, load=not resume)
    if state is not None:
        check_same_data(fingerprint(job.splits), state, str(recipe.data), accept=recipe.accept_changed_data)
    if world.rank:
        return _fit(recipe, folder, job, task, state, state_file, None)
    # Adam keeps two numbers for each parameter; two states and two files hold weights; each is written beside its
    # predecessor. An average is in the states and may be a file of its own.
    numbers = 8 + 3 + (3 if recipe.ema.decay else 0)
    reserve(folder, 4 * numbers * sum(p.numel() for p in task.parameters()) + 2**20)
    with _claim(folder, resume=resume):
        if not resume:
            config = yaml.safe_dump(plain(dataclasses.asdict(recipe)), sort_keys=False, allow_unicode=True)
            write_atomically(folder / CONFIG, lambda path: path.write_text(config, encoding="utf-8"))
            job.write_samples(folder / SAMPLES)
        return _fit(recipe, folder, job, task, state, state_file, ProgressBar(job.score) if progress else None)


def _fit(
    recipe: Recipe,
    folder: Path,
    job: Job,
    task: Any,
    state: dict[str, Any] | None,
    state_file: Path | None,
    bar: ProgressBar | None,
) -> Result:
    world = job.world
    epoch, batch = position(state)
    train_loader, val_loader = job.loaders(task, epoch=epoch, batch=batch)
    if not len(val_loader):
        raise TranseptError(f"there are fewer validation pictures than the {world.size} processes; start fewer")
    steps = _steps(recipe, len(train_loader))
    sharded = world.size > 1 and recipe.hardware.strategy == "fsdp"
    recorder = Recorder(folder, recipe, job, bar, copy.deepcopy(task) if sharded else None)
    fit_to_hardware(recipe, world, task, job.backbones(task))
    module = (job.module or TaskModule)(task, job, recipe, steps_per_epoch=steps)
    averaging = [Averaging(recipe.ema, folder, recipe.accumulate)] if recipe.ema.decay else []
    with _quiet_lightning():
        trainer = lightning.Trainer(
            max_epochs=recipe.schedule.evaluations,
            limit_train_batches=steps * recipe.accumulate,
            accumulate_grad_batches=recipe.accumulate,
            accelerator="auto",
            devices=world.size // world.nodes,
            num_nodes=world.nodes,
            strategy=make_strategy(recipe, world, unused_parameters=job.unused_parameters),
            precision=recipe.precision,
            gradient_clip_val=recipe.optimizer.clip_grad,
            callbacks=[*averaging, recorder, DataRecord(fingerprint(job.splits)), *([bar] if bar else [])],
            plugins=[StateFiles(overwrite=state_file is not None and state_file.name != STATE)],
            default_root_dir=folder,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=[] if world.rank else make_loggers(recipe.loggers, folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with _graceful_interrupt(recorder), _clear_errors(recorder):
            trainer.fit(module, train_loader, val_loader, ckpt_path=state_file, weights_only=True)
    best = recorder.best
    metrics = {name.removeprefix("val_"): value for name, value in best.items() if name.startswith("val_")}
    return Result(folder, metrics, job.score, int(best["epoch"]), recorder.seconds, len(job.skipped))


class Recorder(Callback):
    """Writes the run folder: a row of metrics, a picture and checkpoints after each epoch.

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
        self.seconds = 0.0
        self.interrupted = False
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
        self.clock = self.saved = time.monotonic()
        self.epoch_seconds = 0.0
        self.epoch_samples = 0
        if self.resumed_meter is not None and self.world.rank == 0:
            self.module.train_meter.add(self.resumed_meter)
        if self.handle_signals is not None:  # Lightning's own handler ends the run without saving it
            self.handle_signals()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.images = _shape(batch[0])
        part = batch_idx % self.recipe.accumulate
        if part == 0:
            due = time.monotonic() - self.saved > self.recipe.checkpoint_seconds
            interrupted, due = any_of([self.interrupted, due], pl_module.device)
            # Saved here, the checkpoint counts the batches before this one as done, and this one as not begun.
            if interrupted or due:
                self._save_state(trainer)
            if interrupted:
                raise RunInterruptedError(
                    f"stopped before step {trainer.global_step + 1}; everything is saved in {self.folder}"
                )
        # Whatever draws from the global generators in this step (drop path, mixing) depends on the step alone, and
        # differs between its parts and between processes.
        _seed(self.recipe.seed, trainer.global_step * self.recipe.accumulate + part + 1, self.world.rank)

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
        task = self._whole_task()
        if self.world.rank == 0:
            if self.best is self.rows[-1]:
                task.save(self.folder / BEST)
            task.save(self.folder / LAST)
        self._save_state(trainer)
        if self.world.rank == 0:
            write_atomically(self.folder / METRICS, self._write_metrics)
            title = f"{self.recipe.model.name} on {Path(str(self.recipe.data)).name}"
            draw_curves(self.rows, self.best, self.score, title, self.folder / CURVES)
        for logger in trainer.loggers:
            logger.log_metrics(self.rows[-1], step=trainer.global_step)
        if self.bar:
            self.bar.show_epoch(trainer, self.rows[-1])

    def _whole_task(self) -> Any:
        if self.shell is None:
            return self.module.evaluated
        state = whole_state(self.module.task)
        if self.world.rank == 0:
            self.shell.load_state_dict(state)
        return self.shell

    def _save_state(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.folder / STATE)
        self.saved = time.monotonic()

    def _write_metrics(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[-1]))
            writer.writeheader()
            for row in self.rows:
                writer.writerow({name: f"{value:.6g}" for name, value in row.items()})


@contextmanager
def _claim(folder: Path, *, resume: bool) -> Iterator[None]:
    """The folder belongs to this process, and where it holds a run, that is the one to resume.

    The lock goes with the process, however that ends.

    Raises:
        TranseptError: another run is or was there.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=_LOCK_SECONDS if resume else 0)
    except Timeout:
        raise TranseptError(f"another process is training in {str(folder)!r}; give another folder with --out") from None
    try:
        if not resume and (folder / CONFIG).exists():
            raise TranseptError(
                f"{str(folder)!r} holds a run already; go on with --resume {folder}, or give another folder with --out"
            )
        yield
    finally:
        lock.release()


def _add_up(meter: Meter) -> None:
    """What all processes saw; all must call this."""
    states = gather(meter.state())
    meter.reset()
    for state in states:
        meter.add(state)


@contextmanager
def _clear_errors(recorder: Recorder) -> Iterator[None]:
    """Lack of memory and lost processes, which libraries report in their own words, in ours."""
    world = recorder.world
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if (sentence := _out_of_memory(error, recorder)) is not None:
            raise TranseptError(sentence if world.rank == 0 else f"process {world.rank}: {sentence}") from error
        if world.size > 1 and lost_process(error):
            raise LostProcessError(f"another process of the job ended; {kept(recorder.folder)}") from error
        raise


def _out_of_memory(error: Exception, recorder: Recorder) -> str | None:
    """What to say if it is that."""
    loading = re.search(r"DataLoader worker .*(killed|exited)", str(error))
    if loading:
        return (
            f"a process that prepares batches was killed ({' '.join(str(error).split())[:120]}), mostly for want of "
            f"memory; lower workers={recorder.recipe.workers}"
        )
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
        return None
    recipe, images = recorder.recipe, recorder.images
    count = images[0] if images else recipe.part_size // recorder.world.size
    what = f"a batch of {count} images" + (f" of {images[-2]} x {images[-1]} pixels" if images else "")
    remedies = [f"--accumulate {2 * recipe.accumulate} (the same batch in more parts)"]
    if not recipe.hardware.grad_checkpointing:
        remedies.append("--hardware.grad_checkpointing true")
    if recipe.precision == "32-true":
        remedies.append("--precision bf16-mixed")
    remedies.append(f"a batch_size below {recipe.batch_size}")
    remedies.append("smaller images")
    return f"out of memory with {what}; try {', '.join(remedies[:2])} or {remedies[2]}"


def _scaled(recipe: Recipe) -> Recipe:
    """With the learning rate for its batch size, and a warning where that is not the published one."""
    scaled = recipe.scaled()
    if scaled is not recipe:
        warnings.warn(
            f"batch_size={recipe.batch_size}, but the recipe is for {recipe.optimizer.lr_batch}: the learning rate "
            f"{recipe.optimizer.lr:g} becomes {scaled.optimizer.lr:g}, and this is no longer the published recipe; "
            "keep its batch size and give --accumulate where memory is short",
            TranseptWarning,
            stacklevel=3,
        )
    return scaled


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


def _shape(images: Any) -> tuple[int, ...]:
    """Of the largest, where a batch has several crops of each picture."""
    return tuple((images[0] if isinstance(images, list | tuple) else images).shape)


def _seed(seed: int, step: int, rank: int = 0) -> None:
    """All three global generators: third-party layers and mixing may draw from any."""
    mixed = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


@contextmanager
def _graceful_interrupt(recorder: Recorder) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) asks to stop between two batches; a second Ctrl-C stops at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        recorder.interrupt()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def install() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    install()
    recorder.handle_signals = install
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's advice on workers, devices and half-read epochs does not apply here."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
