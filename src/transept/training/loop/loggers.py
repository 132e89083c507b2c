"""Services that the metrics of a run go to besides its folder."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from transept.errors import UsageError
from transept.extras import pip_install
from transept.tasks.run_folder import TENSORBOARD

_PROJECT = "transept"


def make_loggers(names: Sequence[str], folder: Path) -> list[Logger]:
    """TensorBoard always, and those of `wandb` and `mlflow` that are asked for, as their own environment variables say.

    Raises:
        UsageError: a package is missing.
    """
    check_loggers(names)
    loggers: list[Logger] = [TensorBoardLogger(folder, name="", version=TENSORBOARD)]
    for name in names:
        if name == "wandb":
            # The run's name is its id, so that a resumed run goes on there, too.
            project = os.environ.get("WANDB_PROJECT", _PROJECT)
            loggers.append(WandbLogger(folder.name, folder, id=folder.name, project=project, resume="allow"))
        else:
            where = os.environ.get("MLFLOW_TRACKING_URI", f"file:{folder / 'mlruns'}")
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            loggers.append(MLFlowLogger(experiment, run_name=folder.name, tracking_uri=where))
    return loggers


def check_loggers(names: Sequence[str]) -> None:
    """Whether their packages are installed.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise UsageError(f"loggers={list(names)} needs the package {name!r}: {pip_install(name)}; or leave it out")
