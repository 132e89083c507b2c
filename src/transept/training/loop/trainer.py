"""Lightning's trainer, as a recipe asks for it."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback

from transept.training.jobs.job import Job
from transept.training.loop.loggers import make_loggers
from transept.training.loop.states import StateFiles
from transept.training.processes.strategies import make_strategy


def make_trainer(
    job: Job, folder: Path, callbacks: Sequence[Callback], states: StateFiles, *, steps_per_epoch: int
) -> lightning.Trainer:
    """A trainer that shows, checks and saves nothing by itself: `callbacks` do."""
    recipe, world = job.recipe, job.world
    assert recipe.precision != "auto"  # settled before the run began
    return lightning.Trainer(
        max_epochs=recipe.schedule.evaluations,
        limit_train_batches=steps_per_epoch * recipe.accumulate,
        accumulate_grad_batches=recipe.accumulate,
        accelerator="auto",
        devices=world.here,
        num_nodes=world.size // world.here,
        strategy=make_strategy(recipe, world, unused_parameters=job.unused_parameters),
        precision=recipe.precision,
        gradient_clip_val=recipe.optimizer.clip_grad,
        callbacks=list(callbacks),
        plugins=[states],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=[] if world.rank else make_loggers(recipe.loggers, folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
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
