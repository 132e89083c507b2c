"""All options of a training run, as one typed page."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from transept.checks import check_not_negative, check_positive
from transept.errors import UsageError
from transept.tasks.data_options import DataOptions
from transept.training.options.classify import ClassifyOptions
from transept.training.options.detect import DetectOptions
from transept.training.options.hardware import HardwareOptions
from transept.training.options.model import ModelOptions
from transept.training.options.optimizer import EMAOptions, OptimizerOptions
from transept.training.options.pretrain import PretrainOptions
from transept.training.options.schedule import ScheduleOptions
from transept.training.options.segment import SegmentOptions


@dataclass(frozen=True, kw_only=True)
class Recipe(DataOptions):
    """A training run.

    Batch size and learning rate: a published page says in `optimizer.lr_batch` for which batch size its
    `optimizer.lr` is. With another `batch_size` the learning rate is lr * batch_size / lr_batch, so that
    `--batch_size 256` of a page for 1024 learns at a quarter of the rate; `schedule.scale_bounds` says whether the
    ends of the schedule are scaled, too. `scaled()` computes it; training warns, and the run's config.yaml has the
    numbers that were used.
    """

    model: ModelOptions
    task: Literal["classify", "detect", "segment", "pretrain"] = "classify"
    classify: ClassifyOptions = field(default_factory=ClassifyOptions)
    detect: DetectOptions = field(default_factory=DetectOptions)
    segment: SegmentOptions = field(default_factory=SegmentOptions)
    pretrain: PretrainOptions = field(default_factory=PretrainOptions)
    batch_size: int = 64
    """Samples of one step of the optimiser, over all processes."""
    accumulate: int = 1
    """Parts that each process computes its share of a batch in, one after another, for want of memory. The gradient is
    that of the whole batch, except that batch norm sees one part at a time."""
    workers: int = 0
    """Processes that prepare batches, for each that trains; 0: the training process itself."""
    fast_decode: bool = True
    """Decode JPEGs of training sets over 512 MB at 1/2, 1/4 or 1/8 of their size where the random crop stays at least
    as large as the model's input."""
    accept_changed_data: bool = False
    """Resume although the data is not as it was."""
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    ema: EMAOptions = field(default_factory=EMAOptions)
    sync_batchnorm: bool = False
    """Statistics of batch norms over all processes."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """auto: bf16-mixed where this machine multiplies bfloat16 faster than float32, else 32-true; the run's own
    config.yaml has what it was."""
    hardware: HardwareOptions = field(default_factory=HardwareOptions)
    checkpoint_seconds: float = 600.0
    """Between two saved states inside an epoch: what a crash costs at most. Each epoch ends with one, too."""
    loggers: list[Literal["wandb", "mlflow"]] = field(default_factory=list)
    """Services that metrics go to besides the run folder and its TensorBoard files."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(batch_size=self.batch_size, accumulate=self.accumulate)
        check_not_negative(1024, workers=self.workers)
        check_not_negative(checkpoint_seconds=self.checkpoint_seconds)
        check_not_negative(2**32 - 1, seed=self.seed)  # NumPy's largest
        if self.batch_size % self.accumulate:
            raise UsageError(f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}")
        if self.task == "classify":
            self._check_mix()
        else:
            self._refuse_classifiers_options()
        if self.task != "detect" and self.detect.sampler != "none":
            raise UsageError(f"detect.sampler is of task: detect, not of {self.task}")
        if self.task == "detect" and self.schedule.iterations is not None:
            raise UsageError(
                f"schedule.iterations={self.schedule.iterations}, but detectors train by epochs; give schedule.epochs"
            )
        if self.task == "pretrain":
            self._refuse_what_breaks_the_teacher()

    def _check_mix(self) -> None:
        if self.classify.mix.on and self.part_size % 2:
            raise UsageError(
                f"classify.mix pairs the pictures of a batch, so batch_size / accumulate = {self.part_size} must be "
                "even"
            )

    def _refuse_classifiers_options(self) -> None:
        for name, on in {
            "classify.mix": self.classify.mix.on,
            "classify.distill": self.classify.distill.kind != "none",
            "optimizer.layer_decay": self.optimizer.layer_decay is not None,
            "classify.augmentation.repeats": self.classify.augmentation.repeats > 1,
            "classify.multi_label": self.classify.multi_label,
            "classify.sampler": self.classify.sampler != "none",
        }.items():
            if on:
                raise UsageError(f"{name} is of task: classify, not of {self.task}")

    def _refuse_what_breaks_the_teacher(self) -> None:
        for name, on in {
            "model.freeze": bool(self.model.freeze),
            "ema.decay": self.ema.decay is not None,
            "hardware.strategy=fsdp": self.hardware.strategy == "fsdp",
        }.items():
            if on:
                raise UsageError(
                    f"{name} does not go with task: pretrain, whose teacher is a moving average of the whole student; "
                    "leave it out"
                )

    def scaled(self) -> "Recipe":
        """With the learning rate for its own batch size; the recipe itself where that is the published one."""
        published = self.optimizer.lr_batch
        if published in (None, self.batch_size):
            return self
        factor = self.batch_size / published
        optimizer = replace(self.optimizer, lr=self.optimizer.lr * factor, lr_batch=self.batch_size)
        schedule = self.schedule
        if schedule.scale_bounds:
            schedule = replace(schedule, warmup_lr=schedule.warmup_lr * factor, min_lr=schedule.min_lr * factor)
        return replace(self, optimizer=optimizer, schedule=schedule)

    @property
    def part_size(self) -> int:
        """Samples that all processes together have in memory at a time."""
        return self.batch_size // self.accumulate


def plain(value: Any) -> Any:
    """Tuples to lists, for YAML and JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value
