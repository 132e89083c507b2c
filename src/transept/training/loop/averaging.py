"""A moving average of the weights, kept beside them while a model trains."""

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from timm.utils import ModelEmaV3

from transept.tasks.run_folder import AVERAGE
from transept.training.options.recipe import EMAOptions


class Averaging(Callback):
    """timm's `ModelEmaV3` of the whole task, buffers too: average = decay * average + (1 - decay) * weights.

    It starts at the first weights, moves after each step of the optimiser, and is part of the checkpoints.
    """

    average: ModelEmaV3

    def __init__(self, options: EMAOptions, folder: Path, accumulate: int) -> None:
        assert options.decay is not None
        self.decay = options.decay
        self.evaluate = options.evaluate
        self.folder = folder
        self.accumulate = accumulate
        self.resumed: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return self.average.module.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resumed = state_dict

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """The model is on its device by now, and a checkpoint is read."""
        self.average = ModelEmaV3(pl_module.task, decay=self.decay).requires_grad_(False)
        if self.resumed is not None:
            self.average.module.load_state_dict(self.resumed)
        if self.evaluate:
            pl_module.averaging = self

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.accumulate == 0:
            self.average.update(pl_module.task)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if not self.evaluate and trainer.is_global_zero:
            task: Any = self.average.module
            task.save(self.folder / AVERAGE)
