"""One training run, from its recipe to its result."""

import copy
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from transept.allocator import keep_freed_memory
from transept.checks import shown
from transept.errors import TranseptError, TranseptWarning, UsageError, rank_of_environment, say, warn
from transept.files import reserve, write_atomically
from transept.inference.compile import best_precision
from transept.models.registry import build_skeleton
from transept.tasks.load import load
from transept.tasks.run_folder import BEST, CONFIG, PREVIOUS, SAMPLES, STATE, TEST
from transept.tasks.task import Evaluation
from transept.training.jobs.job import Job, Score
from transept.training.jobs.table import JOBS
from transept.training.loop.averaging import Averaging
from transept.training.loop.continuing import RecipeRecord, check_same_recipe
from transept.training.loop.dry_run import Plan, draw_batch, make_plan
from transept.training.loop.failures import clear_errors, enough_to_normalise
from transept.training.loop.fingerprint import DataRecord, check_same_data, fingerprint
from transept.training.loop.folder import claim, write_config
from transept.training.loop.freezing import freeze, keep_batch_statistics
from transept.training.loop.interruption import graceful_interrupt
from transept.training.loop.loggers import check_loggers
from transept.training.loop.module import TaskModule, check_optimizer
from transept.training.loop.pretraining import MODULES
from transept.training.loop.progress import ProgressBar
from transept.training.loop.recorder import Recorder
from transept.training.loop.seeding import seed_all
from transept.training.loop.states import StateFiles, position, read_state
from transept.training.loop.trainer import make_trainer, quiet_lightning
from transept.training.options.recipe import Recipe
from transept.training.processes.cluster import check_ray, run_on_ray
from transept.training.processes.strategies import check_hardware, fit_to_hardware
from transept.training.processes.world import World, launch, must_launch, wanted_world
from transept.weights.load import check_source


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The report of a finished run."""

    run: Path
    metrics: dict[str, float]
    """Those of the best epoch on the validation pictures, e.g. `top1`, in 0..1."""
    score: Score
    """The one of them that decided."""
    epoch: int
    """The epoch that reached it, from 1."""
    epochs: int
    """All that are finished."""
    seconds: float
    """Training time, data checks and imports not counted."""
    skipped: int
    """Unreadable files left out."""
    test: Evaluation | None = None
    """Scores of the best weights on the test split, where the data has one."""
    note: str = ""
    """What the data has that was not used."""
    interrupted: bool = False
    """Ctrl-C came in the last step: what comes next is not to begin."""


def train(recipe: Recipe, folder: Path, *, resume: bool = False, progress: bool = True) -> Result:
    """Train as the recipe says, in a run folder; with `resume`, go on from its last checkpoint, also beyond the end
    that the run had: learning rates are then those of the longer schedule from where the run stands.

    The folder gets config.yaml, metrics.csv, curves.png, best.safetensors, last.safetensors, last.ckpt (for
    resuming) and a few held-out pictures in samples/. Where the data has a test split, the best weights are measured on
    it at the end, for test.json. Training depends on the recipe alone: an interrupted and
    resumed run ends with the weights of an uninterrupted one.

    Raises:
        UsageError: what this machine cannot do, or starting weights that are not there; no data was read.
        TranseptError: bad data, data that changed since the run was saved, a folder that cannot be written to, a loss
            that is no number.
        RunInterruptedError: Ctrl-C; everything is saved.
    """
    recipe, world = _ready(recipe)
    if not resume:  # a run that goes on has its own weights
        _check_weights(recipe)
    if recipe.hardware.engine == "ray":
        return _train_on_ray(recipe, folder, resume, progress)
    recipe = _fitted(recipe, world)
    if must_launch(world):
        return launch(_train, (recipe, folder, resume, progress), size=world.size, folder=folder)
    return _train(recipe, folder, resume, progress)


def train_on(recipe: Recipe, folder: Path, *, progress: bool = True) -> Result:
    """`train` from where the folder's run stands, which may have ended before its first state."""
    return train(recipe, folder, resume=_stands(folder), progress=progress)


def _stands(folder: Path) -> bool:
    """Whether there is a state to resume from. What an earlier start left is removed where there is none."""
    if any((folder / name).is_file() for name in (STATE, PREVIOUS)):
        return True
    if not rank_of_environment():
        (folder / CONFIG).unlink(missing_ok=True)
    return False


def plan(recipe: Recipe, picture: Path) -> tuple[Recipe, Plan]:
    """`train` up to its first batch, which is drawn: the recipe as it is followed, and its size.

    Raises:
        TranseptError: as `train` does, but for what concerns the run folder.
    """
    recipe, world = _ready(recipe)
    recipe = _fitted(recipe, world)
    job, task = _prepare(recipe, world, load=False)
    loader, _ = job.loaders(task, epoch=0, batch=0)
    images, targets = next(iter(loader))
    draw_batch(images, targets, task, picture)
    with enough_to_normalise(recipe):
        return recipe, make_plan(recipe, job, task, images, steps_per_epoch=_steps(recipe, len(loader)), world=world)


def _ready(recipe: Recipe) -> tuple[Recipe, World]:
    """The recipe for its batch size, and the processes that follow it."""
    if recipe.data is None:
        raise UsageError("data=null: the recipe names none; give --data FOLDER")
    recipe = _scaled(recipe)
    world = wanted_world(recipe)
    if world.size > 1 and not JOBS[recipe.task].distributed:
        raise UsageError(f"task={recipe.task} trains in one process, and {world.size} were started")
    check_loggers(recipe.loggers)
    check_optimizer(recipe.optimizer)
    if recipe.model.freeze:
        name, options = recipe.model.name.partition(".")[0], recipe.model.options
        dense = recipe.task in ("detect", "segment")
        skeleton = build_skeleton(name, img_size=recipe.model.img_size, features_only=dense, **options)
        freeze(skeleton, recipe.model.freeze)
    return recipe, world


def _fitted(recipe: Recipe, world: World) -> Recipe:
    """The recipe for the machine that computes, which is this one. What it cannot do is refused."""
    check_hardware(recipe, world)
    return _in_precision(recipe)


def _train_on_ray(recipe: Recipe, folder: Path, resume: bool, progress: bool) -> Result:
    check_ray()
    reserve(folder, 2**20)
    with claim(folder, resume=resume):  # by others, before Ray starts; then the first process claims it
        pass
    result, stopped = run_on_ray(
        _train_as_a_worker, (recipe, folder, resume, progress), workers=recipe.hardware.workers, folder=folder
    )
    return dataclasses.replace(result, interrupted=stopped)


def _train_as_a_worker(recipe: Recipe, folder: Path, resume: bool, progress: bool) -> Result:
    """Ray calls it anew when a process died."""
    recipe, world = _ready(recipe)
    return _train(_fitted(recipe, world), folder, resume or _stands(folder), progress)


def _check_weights(recipe: Recipe) -> None:
    """Refuse starting weights, and a teacher's, that are not there: reading the data can take long."""
    for name, source in {
        "model.weights": recipe.model.weights,
        "classify.distill.weights": recipe.classify.distill.weights,
    }.items():
        if source is not None:
            try:
                check_source(source)
            except TranseptError as error:
                raise UsageError(f"{name}={shown(source)}: {error}") from error


def _prepare(recipe: Recipe, world: World, *, load: bool) -> tuple[Job, Any]:
    """The job and its task, with the recipe's starting weights where `load` is set."""
    job = JOBS[recipe.task](recipe, world)
    seed_all(recipe.seed, 0)
    try:
        task: Any = job.build(load=load)
    except (RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise TranseptError(f"model: {recipe.model.name} cannot be built as its options say ({reason})") from error
    freeze(task.model if recipe.task == "classify" else task.backbone, recipe.model.freeze)
    if recipe.model.norm_eval:
        keep_batch_statistics(task)
    return job, task


def _train(recipe: Recipe, folder: Path, resume: bool, progress: bool) -> Result:
    """In this process."""
    keep_freed_memory()
    state, file = read_state(folder) if resume else (None, None)
    if state is not None:  # before data is read: the model may not even be one that the state fits
        check_same_recipe(recipe, state)
    job, task = _prepare(recipe, wanted_world(recipe), load=not resume)
    if state is not None:
        check_same_data(fingerprint(job.splits), state, str(recipe.data), accept=recipe.accept_changed_data)
    if job.world.rank:
        return _fit(folder, job, task, state, file, None)
    # Adam keeps two numbers for each parameter; two states and two files hold weights; each is written beside its
    # predecessor. An average is in the states and may be a file of its own.
    numbers = 8 + 3 + (3 if recipe.ema.decay else 0)
    reserve(folder, 4 * numbers * sum(p.numel() for p in task.parameters()) + 2**20)
    with claim(folder, resume=resume):
        write_config(recipe, folder)  # also of a run that goes on: it may have become longer
        if not resume:
            job.write_samples(folder / SAMPLES)
        if progress:
            for note in (job.found, *job.notes):
                say(note)
        result = _fit(folder, job, task, state, file, ProgressBar(job.score) if progress else None)
        return dataclasses.replace(result, test=_test(folder, job)) if job.splits.parts.test else result


def _fit(
    folder: Path, job: Job, task: Any, state: dict[str, Any] | None, file: Path | None, bar: ProgressBar | None
) -> Result:
    recipe, world = job.recipe, job.world
    epoch, batch = position(state)
    train_loader, val_loader = job.loaders(task, epoch=epoch, batch=batch)
    if not len(val_loader):
        raise TranseptError(f"there are fewer validation pictures than the {world.size} processes; start fewer")
    steps = _steps(recipe, len(train_loader))
    sharded = world.size > 1 and recipe.hardware.strategy == "fsdp"
    recorder = Recorder(folder, recipe, job, bar, copy.deepcopy(task) if sharded else None)
    fit_to_hardware(recipe, world, task, job.backbones(task))
    module = MODULES.get(recipe.task, TaskModule)(task, job, recipe, steps_per_epoch=steps)
    averaging = [Averaging(recipe.ema, folder, recipe.accumulate)] if recipe.ema.decay else []
    records = [DataRecord(fingerprint(job.splits)), RecipeRecord(recipe)]
    callbacks = [*averaging, recorder, *records, *([bar] if bar else [])]
    states = StateFiles(overwrite=file is not None and file.name != STATE)
    with quiet_lightning():
        trainer = make_trainer(job, folder, callbacks, states, steps_per_epoch=steps)
        with graceful_interrupt(recorder), clear_errors(recorder), enough_to_normalise(recipe):
            trainer.fit(module, train_loader, val_loader, ckpt_path=file, weights_only=True)
    return _result(folder, job, recorder)


def _test(folder: Path, job: Job) -> Evaluation | None:
    """The best weights on the test split. Training is over, so that what is wrong there is a warning."""
    task = load(folder / BEST).to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        evaluation = job.test(task)
    except TranseptError as error:
        warn(f"the split {job.splits.parts.test!r} is not measured: {error}")
        return None
    if evaluation is not None:
        text = json.dumps(evaluation.as_dict(), ensure_ascii=False, indent=1) + "\n"
        write_atomically(folder / TEST, lambda file: file.write_text(text, encoding="utf-8"))
    return evaluation


def _result(folder: Path, job: Job, recorder: Recorder) -> Result:
    best = recorder.best
    metrics = {name.removeprefix("val_"): value for name, value in best.items() if name.startswith("val_")}
    epochs = len(recorder.rows)
    return Result(
        folder,
        metrics,
        job.score,
        int(best["epoch"]),
        epochs,
        recorder.seconds,
        len(job.skipped),
        note=job.splits.parts.note,
        interrupted=recorder.interrupted,
    )


def _scaled(recipe: Recipe) -> Recipe:
    """With the learning rate for its batch size, and a warning where that is not the published one."""
    scaled = recipe.scaled()
    if scaled is not recipe:
        warnings.warn(
            f"batch_size={recipe.batch_size}, but the recipe is for {recipe.optimizer.lr_batch}: the learning rate "
            f"{recipe.optimizer.lr:g} becomes {scaled.optimizer.lr:g}, and this is no longer the published recipe; "
            "keep its batch size and give --accumulate where memory is short",
            TranseptWarning,
            stacklevel=4,
        )
    return scaled


def _in_precision(recipe: Recipe) -> Recipe:
    """With what "auto" is on this machine, so that a run that goes on elsewhere keeps it."""
    if recipe.precision != "auto":
        return recipe
    dtype, _ = best_precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return dataclasses.replace(recipe, precision="bf16-mixed" if dtype == "bfloat16" else "32-true")


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
