"""The line that a person sees while a model trains."""

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from transept.errors import is_live
from transept.training.jobs.job import Score
from transept.training.loop.module import TaskModule
from transept.words import clock

_REFRESH_SECONDS = 0.2


class ProgressBar(Callback):
    """One line on stderr over the whole run: loss, accuracy, rate and time left.

    Where stderr is no terminal, one line is printed for each epoch instead.
    """

    def __init__(self, score: Score) -> None:
        self.score = score
        self.console = Console(stderr=True)
        self.live = is_live()
        columns = (
            (0, TextColumn("[bold]epoch {task.fields[epoch]}[/]")),
            (100, BarColumn(bar_width=None)),
            (55, TextColumn("{task.percentage:>3.0f} %")),
            (66, TextColumn("loss {task.fields[loss]}")),
            (0, TextColumn("[green]" + score.title + " {task.fields[score]}[/]")),
            (80, TextColumn("[green](best {task.fields[best]})[/]")),
            (96, TextColumn("{task.fields[rate]} images/s")),
            (0, _TimeLeft()),
        )
        wide = self.console.width
        self.bar = Progress(*(column for least, column in columns if wide >= least), console=self.console, expand=True)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.started, self.first_step = time.monotonic(), trainer.global_step
        self.shown, self.best, self.text = 0.0, float("-inf"), "-"
        if self.live:
            total = int(trainer.estimated_stepping_batches)
            self.task = self.bar.add_task("train", total=total, completed=trainer.global_step, **self._fields(trainer))
            self.bar.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        if self.live and time.monotonic() - self.shown > _REFRESH_SECONDS:
            self.shown = time.monotonic()
            self.bar.update(self.task, completed=trainer.global_step, **self._fields(trainer))

    def show_epoch(self, trainer: lightning.Trainer, row: dict[str, float]) -> None:
        """Called with the finished epoch's row of metrics."""
        value = row[f"val_{self.score.key}"]
        self.best = max(self.best, value)
        self.text = self.score.text(value)
        if self.live:
            self.bar.update(self.task, completed=trainer.global_step, **self._fields(trainer))
        else:
            left = clock((trainer.estimated_stepping_batches - trainer.global_step) / self._steps_per_second(trainer))
            best = self.score.text(self.best)
            self.console.print(
                f"epoch {row['epoch']:.0f}/{trainer.max_epochs}  loss {row['train_loss']:.3f}  "
                f"{self.score.title} {self.text} (best {best})  {row['images_per_second']:.0f} images/s  {left} left",
                highlight=False,
                soft_wrap=True,
            )

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.bar.stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()

    def _fields(self, trainer: lightning.Trainer) -> dict[str, Any]:
        module = trainer.lightning_module
        assert isinstance(module, TaskModule)
        meter = module.train_meter
        rate = self._steps_per_second(trainer) * module.recipe.batch_size
        epochs = trainer.max_epochs or 0
        return {
            "epoch": f"{min(trainer.current_epoch + 1, epochs)}/{epochs}",
            "loss": f"{meter.means()['loss']:.3f}" if meter.samples else "-",
            "score": self.text,
            "best": "-" if self.text == "-" else self.score.text(self.best),
            "rate": f"{rate:.0f}",
        }

    def _steps_per_second(self, trainer: lightning.Trainer) -> float:
        return max(trainer.global_step - self.first_step, 1) / max(time.monotonic() - self.started, 1e-3)


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{clock(task.time_remaining)} left", style="cyan")
