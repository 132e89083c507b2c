"""The optimiser, and the moving average of what it learns."""

from dataclasses import dataclass

from timm.optim import get_optimizer_info, list_optimizers

from transept.checks import check_known, check_not_negative, check_positive, check_within, shown
from transept.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """The optimiser and its numbers."""

    name: str = "adamw"
    """Any of timm's optimisers."""
    lr: float = 1e-3
    """Peak learning rate, for batches of `lr_batch`."""
    lr_batch: int | None = None
    """The batch size that `lr` was published for. With another, lr * batch_size / lr_batch is used, and a warning says
    so; null: `lr` is for the batch size given, and nothing is scaled."""
    layer_decay: float | None = None
    """Each layer learns this much slower than the one above it, as fine-tuning often has it; only in `task:
    classify`."""
    weight_decay: float = 0.05
    """Biases, vectors and the model's own list are exempt."""
    betas: tuple[float, float] | None = None
    """Decay rates of Adam's two averages, or its kin's; default: the optimiser's own."""
    clip_grad: float | None = 1.0
    """Largest norm of the gradient; null: not clipped."""
    no_weight_decay: list[str] | None = None
    """Exempt instead exactly the parameters whose names contain one of these, as dense recipes are published."""

    def __post_init__(self) -> None:
        check_known(map(str, list_optimizers()), "timm.optim.list_optimizers() lists them", name=self.base)
        check_positive(lr=self.lr, lr_batch=self.lr_batch, clip_grad=self.clip_grad)
        check_not_negative(weight_decay=self.weight_decay)
        check_within("(0, 1]", layer_decay=self.layer_decay)
        check_within("[0, 1)", betas=self.betas)
        if self.layer_decay is not None and self.no_weight_decay is not None:
            raise UsageError(f"layer_decay={self.layer_decay} goes by the model's own list; leave no_weight_decay null")
        if self.betas is not None and not get_optimizer_info(self.base).has_betas:
            raise UsageError(f"betas={shown(self.betas)}, but {self.name!r} has none; give null")

    @property
    def base(self) -> str:
        """The name of what computes a step: Lookahead goes around another."""
        return self.name.lower().removeprefix("lookahead_")


@dataclass(frozen=True, kw_only=True)
class EMAOptions:
    """An exponential moving average of the weights, beside them."""

    decay: float | None = None
    """Share of the average that each step keeps; null: no average."""
    evaluate: bool = True
    """The average is what is evaluated, and saved as best and last. False: the weights themselves are, and the average
    is saved as ema.safetensors."""

    def __post_init__(self) -> None:
        check_within("(0, 1)", decay=self.decay)
