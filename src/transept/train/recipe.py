"""What a training run is told: one typed page, read from YAML and the command line."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from transept.data.multicrop import MultiCrop
from transept.data.transforms import Augmentation
from transept.errors import TranseptError, UsageError, unknown


def _positive(where: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise UsageError(f"{where}{name}={value} must be greater than 0")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model."""

    name: str
    """One of `transept models`."""
    img_size: int | None = None
    """Side of the square input in pixels; default: the model's own."""
    weights: str | None = None
    """Weights to start from: a path, an URL or NAME.TAG; default: none, train from scratch."""
    drop_path_rate: float = 0.0
    """Stochastic depth."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of the family's configuration to change, e.g. depth."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How weights are updated."""

    name: str = "adamw"
    """Any of timm's optimisers."""
    lr: float = 1e-3
    """Peak learning rate, for the batch size given: nothing is scaled."""
    weight_decay: float = 0.05
    """Biases, vectors and the model's own list are exempt."""
    betas: tuple[float, float] | None = None
    """Of Adam and its kin; default: the optimiser's own."""
    clip_grad: float | None = 1.0
    """Largest norm of the gradient; null: not clipped."""
    no_weight_decay: list[str] | None = None
    """Exempt instead exactly the parameters whose names contain one of these, as dense recipes are published."""

    def __post_init__(self) -> None:
        _positive("optimizer.", lr=self.lr)
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"optimizer.betas={list(self.betas)}; give two numbers in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """How long, and the course of the learning rate, which changes after each batch.

    The length is counted in epochs or, as dense recipes do, in iterations; an "epoch" of the latter is what lies
    between two evaluations.
    """

    epochs: int = 100
    warmup_epochs: int = 5
    """Of linear warm-up."""
    min_lr: float = 1e-5
    """Learning rate at the end."""
    decay: Literal["cosine", "poly"] = "cosine"
    """After the warm-up: a cosine from its end on; or (1 - t / T) ^ power over all T steps, the warm-up's too."""
    power: float = 1.0
    """Of `poly`."""
    iterations: int | None = None
    """Steps in all, instead of epochs."""
    warmup_iterations: int = 0
    """Of linear warm-up, where the length is in iterations."""
    warmup_ratio: float = 1e-6
    """The first step's share of the learning rate, where `poly` warms up."""
    evaluate_every: int | None = None
    """Iterations between evaluations; default: a tenth of all."""

    def __post_init__(self) -> None:
        _positive("schedule.", epochs=self.epochs, power=self.power)
        if not 0 <= self.warmup_ratio <= 1:
            raise UsageError(f"schedule.warmup_ratio={self.warmup_ratio} is not in [0, 1]")
        if self.iterations is None:
            if not 0 <= self.warmup_epochs <= self.epochs:
                raise UsageError(
                    f"schedule.warmup_epochs={self.warmup_epochs} is not in 0..{self.epochs} (schedule.epochs)"
                )
            if self.evaluate_every is not None or self.warmup_iterations:
                name = "evaluate_every" if self.evaluate_every is not None else "warmup_iterations"
                raise UsageError(f"schedule.{name} is of runs counted in iterations; give schedule.iterations, too")
            return
        _positive("schedule.", iterations=self.iterations)
        if not 0 <= self.warmup_iterations <= self.iterations:
            raise UsageError(
                f"schedule.warmup_iterations={self.warmup_iterations} is not in 0..{self.iterations} "
                "(schedule.iterations)"
            )
        if self.iterations % self.interval:
            raise UsageError(
                f"schedule.evaluate_every={self.interval} does not divide schedule.iterations={self.iterations}"
            )

    @property
    def interval(self) -> int:
        """Iterations from one evaluation to the next, where the length is in iterations."""
        return self.evaluate_every or max((self.iterations or 0) // 10, 1)

    @property
    def evaluations(self) -> int:
        """Epochs, or what stands for them."""
        return self.epochs if self.iterations is None else self.iterations // self.interval


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """What only `task: segment` reads."""

    method: Literal["semantic_fpn", "upernet"] = "semantic_fpn"
    width: int | None = None
    """Channels of the method's convolutions; default: as published."""
    reduce_zero_label: bool | None = None
    """The masks' value 0 means nothing and k is class k - 1, as in ADE20K; default: as the data's class list says."""
    scale: tuple[int, int] = (2048, 512)
    """Longest long and short side that a picture is resized to fit, in training before the random ratio."""
    multiple_of: int = 1
    """In evaluation, sides are stretched to the next multiple."""
    crop: tuple[int, int] = (512, 512)
    """Height and width of training crops."""
    resize_ratio: tuple[float, float] = (0.5, 2.0)
    """Range of the random factor of the scale."""
    category_max_ratio: float = 0.75
    """A crop of which one class covers this share or more is drawn again, up to ten times."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    photometric: float = 0.5
    """Probability of each change of brightness, contrast, saturation and hue."""


@dataclass(frozen=True, kw_only=True)
class DetectOptions:
    """What only `task: detect` reads."""

    method: Literal["retinanet", "fcos", "atss", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"] = "retinanet"
    """Those with a mask in their name learn from masks, and answer with them."""
    width: int = 256
    """Channels of neck and heads."""
    scale: tuple[int, int] = (1333, 800)
    """Longest long and short side that a picture is resized to fit."""
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    """Of channels in 0..1, in the order in which the model takes them."""
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    bgr: bool = False
    """Blue first."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    flip_vertical: float = 0.0
    """Probability of an up-down flip, for pictures without an above."""
    short_sides: list[int] = field(default_factory=list)
    """Multi-scale training: short sides to resize to, one drawn for each picture; default: that of `scale`."""
    crop_resize: float = 0.0
    """Probability that a picture is resized, cropped and resized again."""
    crop_short_sides: list[int] = field(default_factory=lambda: [400, 500, 600])
    """Short sides before that crop."""
    crop_sides: tuple[int, int] = (384, 600)
    """Range of the crop's height and width."""
    color_jitter: float = 0.0
    """Strength of changes of brightness, contrast and saturation."""
    keep_empty: bool = False
    """Train on pictures without objects, too."""
    scenes: tuple[int, int] = (2000, 200)
    """Training and validation pictures of `digits-scenes`."""


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(MultiCrop):
    """What only `task: pretrain` reads."""

    out_dim: int = 65536
    """Prototypes that teacher and student compare pictures with."""
    hidden_dim: int = 2048
    """Width of the projection."""
    bottleneck_dim: int = 256
    """Width before the prototypes."""
    norm_last_layer: bool = True
    """Prototypes keep length 1; without, they learn it."""
    freeze_last_layer: int = 1
    """Epochs in which the prototypes do not learn."""
    momentum: float = 0.996
    """Of the teacher; it rises to 1 along a cosine."""
    student_temp: float = 0.1
    teacher_temp: float = 0.07
    """After the warm-up."""
    teacher_temp_start: float = 0.04
    """Before it."""
    teacher_temp_warmup_epochs: int = 30
    """Of linear change from step to step."""
    center_momentum: float = 0.9
    weight_decay_end: float | None = None
    """Weight decay follows a cosine from `optimizer.weight_decay` to this; default: constant."""
    knn_k: int = 20
    """Neighbours that vote in validation."""
    knn_temperature: float = 0.07
    """Their votes are exp(similarity / temperature)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = (
            "out_dim hidden_dim bottleneck_dim student_temp teacher_temp teacher_temp_start knn_k knn_temperature"
        )
        _positive("pretrain.", **{name: getattr(self, name) for name in positive.split()})
        for name in ("momentum", "center_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"pretrain.{name}={getattr(self, name)} is not in [0, 1]")
        if self.teacher_temp_warmup_epochs < 0 or self.freeze_last_layer < 0:
            name = "teacher_temp_warmup_epochs" if self.teacher_temp_warmup_epochs < 0 else "freeze_last_layer"
            raise UsageError(f"pretrain.{name}={getattr(self, name)} must not be negative")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run."""

    model: ModelOptions
    task: Literal["classify", "detect", "segment", "pretrain"] = "classify"
    data: str | None = None
    """classify: `digits`, or a folder: train/CLASS/* and val/CLASS/*, or CLASS/* to be split.
    detect: `digits-scenes`, or a folder as COCO's: annotations/instances_train2017.json, train2017/*, and for val.
    segment: `digits-scenes`, or a folder of pictures and masks.
    pretrain: as classify, or a folder of pictures without classes."""
    detect: DetectOptions = field(default_factory=DetectOptions)
    segment: SegmentOptions = field(default_factory=SegmentOptions)
    pretrain: PretrainOptions = field(default_factory=PretrainOptions)
    val_fraction: float = 0.2
    """Share held out where the folder is one."""
    skip_bad_images: bool = False
    """Leave unreadable files out instead of stopping."""
    skip_bad_annotations: bool = False
    """Leave out what is wrong in an annotation file, instead of stopping."""
    batch_size: int = 64
    """Samples of one step of the optimiser."""
    accumulate: int = 1
    """Parts that each batch is computed in, one after another, for want of memory. The gradient is that of the whole
    batch, except that batch norm sees one part at a time."""
    workers: int = 0
    """Processes that prepare batches; 0: the training process itself."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    label_smoothing: float = 0.1
    sync_batchnorm: bool = False
    """Statistics of batch norms over all processes."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        _positive("", batch_size=self.batch_size, accumulate=self.accumulate)
        if self.batch_size % self.accumulate:
            raise UsageError(f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}")
        if self.workers < 0:
            raise UsageError(f"workers={self.workers} must not be negative")
        if not 0 < self.val_fraction < 1:
            raise UsageError(f"val_fraction={self.val_fraction} is not between 0 and 1")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing={self.label_smoothing} is not in [0, 1)")

    @property
    def part_size(self) -> int:
        """Samples that are in memory at a time."""
        return self.batch_size // self.accumulate


def recipe_names() -> list[str]:
    """The built-in recipes; the published ones lie in a folder for each task, e.g. `segment/NAME`."""
    return sorted(_names(_folder(), ""))


def recipe_overview() -> str:
    """For messages: the names, but of a folder only how many it has."""
    names = recipe_names()
    folders = Counter(name.partition("/")[0] for name in names if "/" in name)
    return ", ".join(
        [name for name in names if "/" not in name]
        + [f"{folder}/... ({count} published ones)" for folder, count in folders.items()]
    )


def read_recipe(name: str) -> dict[str, Any]:
    """The page of a built-in recipe, or of a YAML file, as plain data; `Recipe` checks it."""
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UsageError(f"there is no recipe file {name!r}; give a YAML file or one of {recipe_overview()}")
        text = Path(name).read_text(encoding="utf-8")
    elif name in recipe_names():
        text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise unknown("recipe", name, recipe_names(), hint=f"known: {recipe_overview()}")
    try:
        page = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TranseptError(f"the recipe {name!r} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(page, dict):
        raise TranseptError(f"the recipe {name!r} must be a mapping of options to values")
    return page


def _names(folder: Any, prefix: str) -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _names(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml")


def _folder() -> Any:
    return files("transept") / "recipes"
