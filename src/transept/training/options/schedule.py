"""The length of a run, and the course of its learning rate."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from transept.checks import check_not_negative, check_positive, check_share, check_within
from transept.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """The length of a run, and the course of its learning rate, which changes after each batch.

    The length is counted in epochs or, as dense recipes do, in iterations; an "epoch" of the latter is what lies
    between two evaluations.
    """

    epochs: int = 100
    warmup_epochs: int = 5
    """The rate rises linearly for so long."""
    warmup_lr: float = 1e-6
    """Learning rate at the start of the warm-up to a cosine."""
    min_lr: float = 1e-5
    """Learning rate at the end, of `cosine` and `poly`."""
    decay: Literal["cosine", "poly", "step"] = "cosine"
    """After the warm-up: a cosine from its end on; or (1 - t / T) ^ power over all T steps, the warm-up's too; or
    lower by the factor `gamma` after each of the `milestones`."""
    power: float = 1.0
    """The exponent of `poly`."""
    milestones: list[int] = field(default_factory=list)
    """Epochs after which `step` lowers the learning rate."""
    gamma: float = 0.1
    """The factor of `step`."""
    cosine_from_start: bool = False
    """The cosine's time counts from the first step, so the warm-up covers its beginning (timm calls that no prefix)."""
    by_epoch: bool = False
    """The cosine moves after each epoch instead, and is one epoch late: DeiT's script and those made from it ask for
    the rate of the epoch just finished."""
    scale_bounds: bool = False
    """`warmup_lr` and `min_lr` are scaled to the batch size as `optimizer.lr` is."""
    iterations: int | None = None
    """Steps in all, instead of epochs."""
    warmup_iterations: int = 0
    """The length of a linear warm-up, in the place of warmup_epochs where it is given or the run is in iterations."""
    warmup_ratio: float = 1e-6
    """The first step's share of the learning rate, where `poly` or `step` warms up."""
    evaluate_every: int | None = None
    """Iterations between evaluations; default: a tenth of all."""
    patience: int | None = None
    """Stop when the validation score has not become better for so many evaluations; default: never."""

    def __post_init__(self) -> None:
        check_positive(1_000_000, epochs=self.epochs, patience=self.patience)
        check_positive(100, power=self.power)
        check_positive(iterations=self.iterations, evaluate_every=self.evaluate_every)
        check_not_negative(warmup_epochs=self.warmup_epochs, warmup_iterations=self.warmup_iterations)
        check_not_negative(warmup_lr=self.warmup_lr, min_lr=self.min_lr)
        check_within("(0, 1]", gamma=self.gamma)
        check_share(warmup_ratio=self.warmup_ratio)
        self._check_decay()
        if self.iterations is None:
            self._check_epochs()
        else:
            self._check_iterations(self.iterations)

    def _check_decay(self) -> None:
        rising = all(a < b for a, b in pairwise([0, *self.milestones]))
        if not rising or (self.decay == "step" and not self.milestones):
            raise UsageError(f"milestones={self.milestones}; give rising numbers of epochs, e.g. [8, 11]")
        for name in ("cosine_from_start", "by_epoch"):
            if self.decay != "cosine" and getattr(self, name):
                raise UsageError(f"{name} is of decay: cosine, not of {self.decay}")
        if self.by_epoch and self.iterations is not None:
            raise UsageError("by_epoch is of runs counted in epochs; leave iterations null")

    def _check_epochs(self) -> None:
        if self.warmup_epochs > self.epochs:
            raise UsageError(f"warmup_epochs={self.warmup_epochs} is not in 0..{self.epochs} (epochs)")
        if self.evaluate_every is not None:
            raise UsageError(
                f"evaluate_every={self.evaluate_every} is of runs counted in iterations; give iterations, too"
            )

    def _check_iterations(self, iterations: int) -> None:
        if self.warmup_iterations > iterations:
            raise UsageError(f"warmup_iterations={self.warmup_iterations} is not in 0..{iterations} (iterations)")
        if iterations % self.interval:
            raise UsageError(f"evaluate_every={self.interval} does not divide iterations={iterations}")

    @property
    def interval(self) -> int:
        """Iterations from one evaluation to the next, where the length is in iterations."""
        return self.evaluate_every or max((self.iterations or 0) // 10, 1)

    @property
    def evaluations(self) -> int:
        """Epochs, or what stands for them."""
        return self.epochs if self.iterations is None else self.iterations // self.interval
