"""The contract between a run and its task. Each task brings one `Job`; the loop around it is the same for all."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader

from transept.data.images import Skipped
from transept.data.loading import (
    AspectRatioBatchSampler,
    EpochSampler,
    JointlyTransformedSet,
    TransformedSet,
    make_loader,
)
from transept.data.measure import channel_statistics, spread
from transept.data.reading import PLAIN, Reading
from transept.tasks.start import start_from
from transept.tasks.task import Evaluation, Picture, Task, as_picture
from transept.training.options.recipe import Recipe
from transept.training.processes.world import ALONE, World

P = TypeVar("P")


class Meter(Protocol):
    """Sums over batches."""

    samples: int
    sums: dict[str, Any]
    """Names to numbers or tensors of them."""

    def update(self, loss: Tensor, outputs: Any, targets: Any, /) -> None: ...

    def means(self) -> dict[str, float]: ...

    def reset(self) -> None: ...

    def state(self) -> dict[str, Any]:
        """Plain data that is kept when an epoch is interrupted, and told to other processes."""
        ...

    def add(self, state: dict[str, Any], /) -> None:
        """Count in what another meter saw."""
        ...


@dataclass(frozen=True, slots=True)
class Score:
    """The metric that decides which epoch is best; higher is better."""

    key: str
    """As in the run's metrics, e.g. `top1`; there the validation's has the prefix `val_`."""
    title: str
    """As people write it, e.g. `top-1`."""
    axis: str
    """The label of its curve."""
    percent: bool = True
    """In 0..1, and shown so."""

    def text(self, value: float, digits: int = 1) -> str:
        """As people read it."""
        return f"{value:.{digits}%}" if self.percent else f"{value:.{digits + 2}f}"


class Job(ABC):
    """Data, model, batches and meters of one recipe."""

    score: Score
    splits: Any
    """Has `train`, `val`, `classes`, `counts` and `parts`."""
    unused_parameters: ClassVar[bool] = False
    """Some parameters take no part in the loss; processes that share gradients must look for them."""

    distributed: ClassVar[bool] = False
    """Several processes can share the work."""
    val_batch: ClassVar[int | None] = None
    """Pictures that are validated at a time; None: as many as a process learns from."""
    num_samples: ClassVar[int] = 6
    """Pictures that `write_samples` writes."""

    def __init__(self, recipe: Recipe, world: World = ALONE) -> None:
        """Loads and checks the data.

        Args:
            recipe: what to train, and on what.
            world: the processes that share the work.

        Raises:
            TranseptError: the data is missing or bad.
        """
        self.recipe = recipe
        self.world = world
        self.skipped: Sequence[Skipped] = ()
        self.notes: list[str] = []
        """What a user is told before training begins, a sentence each."""

    def start(self, task: Task) -> None:
        """Load the recipe's starting weights, if it names any, and note what was taken of them."""
        if (weights := self.recipe.model.weights) is not None:
            self.notes.append(f"model.weights: {start_from(task, weights, self.reading).summary}")

    @property
    def part_size(self) -> int:
        """Samples that a process has in memory at a time."""
        return self.recipe.part_size // self.world.size

    def backbones(self, task: Any) -> list[nn.Module]:
        """The parts of a task that hold most of its parameters: compiled, checkpointed and sharded block by block."""
        return [getattr(task, "backbone", None) or task.model]

    @property
    def found(self) -> str:
        """What is trained on, as a sentence."""
        return self.splits.parts.found(self.splits, self.recipe.val_fraction)

    def test(self, task: Task) -> Evaluation | None:
        """Scores of the trained task on the data's test split; None where it has no such scores.

        Raises:
            TranseptError: the test split is bad.
        """
        data = replace(self.recipe.data_options, split=self.splits.parts.test)
        return task.evaluate(data, workers=self.recipe.workers)

    @abstractmethod
    def build(self, *, load: bool) -> nn.Module:
        """The task with a fresh model, and with `load` the recipe's starting weights.

        It has `forward`, `loss(outputs, targets)`, and `save(path)`.
        """

    @abstractmethod
    def datasets(self, task: Any) -> tuple[TransformedSet | JointlyTransformedSet, ...]:
        """Samples to learn from, and samples to validate on, as the task takes them."""

    @property
    def repeats(self) -> int:
        """How often in a row each training sample stands."""
        return 1

    @property
    def sampling(self) -> np.ndarray | None:
        """How much more often than others each training sample is drawn; None: all once in each pass."""
        return None

    def settle(self, task: Any, meter: Meter) -> None:
        """Give a task what validation decides, such as thresholds, before it is saved."""
        return

    def sampler(self, *, epoch: int, batch: int) -> EpochSampler | AspectRatioBatchSampler:
        """The order of the training samples, from that epoch and batch on."""
        recipe = self.recipe
        return EpochSampler(
            len(self.splits.train),
            seed=recipe.seed,
            batch_size=self.part_size,
            draws=recipe.schedule.interval * recipe.batch_size if recipe.schedule.iterations else None,
            start_epoch=epoch,
            start_batch=batch,
            repeats=self.repeats,
            weights=self.sampling,
            rank=self.world.rank,
            world_size=self.world.size,
        )

    def collate(self, task: Any) -> Callable[[list[Any]], Any] | None:
        """How samples become a batch, where their sizes differ."""
        return None

    def loaders(self, task: Any, *, epoch: int, batch: int) -> tuple[DataLoader, DataLoader]:
        """Training batches, or their `accumulate` parts, from that epoch and batch (or part) on; validation batches.

        Of several processes each gets its share of both."""
        train, val = self.datasets(task)
        workers, collate, world = self.recipe.workers, self.collate(task), self.world
        sampler, val_batch = self.sampler(epoch=epoch, batch=batch), self.val_batch or self.part_size
        return (
            make_loader(train, self.part_size, sampler=sampler, workers=workers, collate=collate),
            make_loader(val, val_batch, workers=workers, collate=collate, rank=world.rank, world_size=world.size),
        )

    @abstractmethod
    def meters(self) -> tuple[Meter, Meter]:
        """A meter for training, and one for validation."""

    def step(self, task: Any, images: Any, targets: Any) -> tuple[Any, Tensor]:
        """Outputs and loss of a training batch."""
        outputs = task(images)
        return outputs, task.loss(outputs, targets)

    def answers(self, task: Any, outputs: Any, targets: Any) -> Any:
        """The task's outputs as the validation meter compares them with the targets; some jobs decode them first."""
        return outputs

    @property
    def reading(self) -> Reading:
        """How files become pictures, as the training pictures completed it."""
        return self.splits.train.reading

    def measured(self, preprocessing: P) -> P:
        """Preprocessing with mean and deviation of the training pictures, where those are not RGB and it has none."""
        options: Any = preprocessing
        train, channels = self.splits.train, self.reading.channels
        if channels == 3 or len(options.mean) == channels:
            return preprocessing
        mean, std = channel_statistics(train[i][0] for i in spread(len(train)))
        return replace(options, mean=mean, std=std)

    def write_samples(self, folder: Path) -> None:
        """A few held-out pictures to try the model on, spread over all of them."""
        folder.mkdir(exist_ok=True)
        val = self.splits.val
        for i in spread(len(val), self.num_samples):
            self.write_sample(i, val[i][0], folder / f"{val.paths[i].stem}.png")

    def write_sample(self, index: int, picture: Picture, path: Path) -> None:
        """A held-out picture, as the model's reading takes it: its own file where that says what 8-bit RGB does not."""
        val = self.splits.val
        if self.reading == PLAIN:
            as_picture(picture).save(path)
            return
        ((source, name),) = val.some_files([index])
        data = source.read() if isinstance(source, BufferedIOBase) else Path(source).read_bytes()
        path.with_suffix(name.suffix).write_bytes(data)
