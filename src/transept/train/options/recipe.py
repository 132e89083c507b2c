"""What a training run is told: one typed page, read from YAML and the command line."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from transept.data.classification.multicrop import MultiCrop
from transept.data.classification.transforms import Augmentation
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
    freeze: int | list[str] = 0
    """Parts that keep their starting weights: the stem and that many first stages (blocks, where a family has no
    stages), or modules by name, e.g. [patch_embed, layers.0]."""
    norm_eval: bool = False
    """Batch norms keep their statistics, in training too, and only scale and shift: for parts of a batch that are too
    small, or too unlike each other, to be normalised by."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of the family's configuration to change, e.g. depth."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How weights are updated."""

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
    """Of Adam and its kin; default: the optimiser's own."""
    clip_grad: float | None = 1.0
    """Largest norm of the gradient; null: not clipped."""
    no_weight_decay: list[str] | None = None
    """Exempt instead exactly the parameters whose names contain one of these, as dense recipes are published."""

    def __post_init__(self) -> None:
        _positive("optimizer.", lr=self.lr)
        if self.lr_batch is not None:
            _positive("optimizer.", lr_batch=self.lr_batch)
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UsageError(f"optimizer.layer_decay={self.layer_decay} is not in (0, 1]")
        if self.layer_decay is not None and self.no_weight_decay is not None:
            raise UsageError("optimizer.layer_decay goes by the model's own list; leave optimizer.no_weight_decay null")
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
    warmup_lr: float = 1e-6
    """Learning rate at the start of the warm-up to a cosine."""
    min_lr: float = 1e-5
    """Learning rate at the end, of `cosine` and `poly`."""
    decay: Literal["cosine", "poly", "step"] = "cosine"
    """After the warm-up: a cosine from its end on; or (1 - t / T) ^ power over all T steps, the warm-up's too; or
    lower by the factor `gamma` after each of the `milestones`."""
    power: float = 1.0
    """Of `poly`."""
    milestones: list[int] = field(default_factory=list)
    """Of `step`: the epochs after which the learning rate falls."""
    gamma: float = 0.1
    """Of `step`."""
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
    """Of linear warm-up; where it is given, or the length is in iterations, in the place of warmup_epochs."""
    warmup_ratio: float = 1e-6
    """The first step's share of the learning rate, where `poly` or `step` warms up."""
    evaluate_every: int | None = None
    """Iterations between evaluations; default: a tenth of all."""

    def __post_init__(self) -> None:
        _positive("schedule.", epochs=self.epochs, power=self.power, gamma=self.gamma)
        if not 0 <= self.warmup_ratio <= 1:
            raise UsageError(f"schedule.warmup_ratio={self.warmup_ratio} is not in [0, 1]")
        if self.warmup_iterations < 0:
            raise UsageError(f"schedule.warmup_iterations={self.warmup_iterations} must not be negative")
        rising = all(a < b for a, b in pairwise([0, *self.milestones]))
        if not rising or (self.decay == "step" and not self.milestones):
            raise UsageError(f"schedule.milestones={self.milestones}; give rising numbers of epochs, e.g. [8, 11]")
        if self.decay != "cosine" and (self.cosine_from_start or self.by_epoch):
            name = "cosine_from_start" if self.cosine_from_start else "by_epoch"
            raise UsageError(f"schedule.{name} is of decay: cosine, not of {self.decay}")
        if self.by_epoch and self.iterations is not None:
            raise UsageError("schedule.by_epoch is of runs counted in epochs; leave schedule.iterations null")
        if self.iterations is None:
            if not 0 <= self.warmup_epochs <= self.epochs:
                raise UsageError(
                    f"schedule.warmup_epochs={self.warmup_epochs} is not in 0..{self.epochs} (schedule.epochs)"
                )
            if self.evaluate_every is not None:
                raise UsageError(
                    "schedule.evaluate_every is of runs counted in iterations; give schedule.iterations, too"
                )
            return
        _positive("schedule.", iterations=self.iterations)
        if self.warmup_iterations > self.iterations:
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
class MixOptions:
    """Training pictures are mixed in pairs, and their labels with them (timm's `Mixup`)."""

    mixup: float = 0.0
    """alpha of the Beta distribution of shares in Mixup; 0: off."""
    cutmix: float = 0.0
    """The same of CutMix."""
    probability: float = 1.0
    """Of mixing at all."""
    switch: float = 0.5
    """Probability of CutMix where both are on."""
    mode: Literal["batch", "pair", "elem"] = "batch"
    """What draws a share of its own: a batch (or part of one, see `accumulate`), a pair of pictures, or a picture."""

    def __post_init__(self) -> None:
        for name in ("probability", "switch"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"mix.{name}={getattr(self, name)} is not in [0, 1]")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise UsageError(f"mix.{name}={getattr(self, name)} must not be negative")

    @property
    def on(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class EMAOptions:
    """An exponential moving average of the weights, beside them."""

    decay: float | None = None
    """Share of the average that each step keeps; null: no average."""
    evaluate: bool = True
    """The average is what is evaluated, and saved as best and last. False: the weights themselves are, and the average
    is saved as ema.safetensors."""

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 < self.decay < 1:
            raise UsageError(f"ema.decay={self.decay} is not between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """A teacher's opinion is part of the loss: loss = (1 - alpha) * the labels' + alpha * the teacher's.

    Both parts read the same logits, as in the distilled XCiT and CaiT, which have no second head.
    """

    kind: Literal["none", "soft", "hard"] = "none"
    """hard: cross-entropy with the teacher's best class; soft: its probabilities at temperature tau."""
    teacher: str | None = None
    """Name of a model: ours or timm's."""
    weights: str | None = None
    """Its weights: a path, an URL or NAME.TAG; default: the published ones."""
    alpha: float = 0.5
    tau: float = 1.0
    """Temperature, for `soft`."""
    mean: tuple[float, float, float] | None = None
    """What the teacher's pictures are normalised with, of channels in 0..1; default: as its weights were published."""
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        _positive("distill.", tau=self.tau)
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"distill.alpha={self.alpha} is not in [0, 1]")
        if self.kind != "none" and self.teacher is None:
            raise UsageError(f"distill.kind={self.kind} needs a teacher; give --distill.teacher NAME")
        if self.kind == "none" and self.teacher is not None:
            raise UsageError(f"distill.teacher={self.teacher!r}, but distill.kind is none; give soft or hard")


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """What only `task: segment` reads."""

    method: Literal["semantic_fpn", "upernet"] = "semantic_fpn"
    width: int | None = None
    """Channels of the method's convolutions; default: as published."""
    reduce_zero_label: bool | None = None
    """The masks' value 0 means nothing and k is class k - 1, as in ADE20K; default: as the data's class list says."""
    classifier_std: float = 0.01
    """Standard deviation of the first weights of the last convolutions. The published 0.01 keeps a small model from
    scratch long at the commonest class, as all others begin alike; 0.1 tells them apart from the start."""
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

    def __post_init__(self) -> None:
        _positive("segment.", classifier_std=self.classifier_std)


@dataclass(frozen=True, kw_only=True)
class DetectOptions:
    """What only `task: detect` reads."""

    method: Literal["retinanet", "fcos", "atss", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"] = "retinanet"
    """Those with a mask in their name learn from masks, and answer with them."""
    width: int = 256
    """Channels of neck and heads."""
    anchor_scale: float = 1.0
    """Factor of the anchors' sides: less than 1 for objects that are small in the resized picture."""
    rois: int | None = None
    """Of two-stage methods: regions of each picture that the box heads learn from; default: 512, as published."""
    scale: tuple[int, int] = (1333, 800)
    """Longest long and short side that a picture is resized to fit."""
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    """Of channels in 0..1, in the order in which the model takes them."""
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    bgr: bool = False
    """Blue first."""
    per_picture: bool = False
    """Normalise by the mean and deviation of the picture itself instead, for lights and stains that vary."""
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

    def __post_init__(self) -> None:
        if self.rois is not None:
            _positive("detect.", rois=self.rois)
            if "rcnn" not in self.method:
                raise UsageError(f"detect.rois={self.rois}, but {self.method} has no regions; leave it out")


@dataclass(frozen=True, kw_only=True)
class HardwareOptions:
    """On what, and how a model is made to fit. But for rounding, none of it changes what is learnt."""

    devices: int | None = None
    """Processes on each machine, one for each GPU; default: one, or as many as torchrun or srun started."""
    nodes: int | None = None
    """Machines; default: as many as torchrun or srun started processes on."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """Of several processes: each holds the model (ddp, which is auto), or a share of its parameters, gradients and
    optimiser (fsdp)."""
    grad_checkpointing: bool = False
    """Keep few activations and compute the others again: less memory, about a third more time."""
    compile: bool = False
    """Compile the backbone with torch.compile."""
    channels_last: bool = False
    """Keep the colours of a pixel together in memory, which convolutions on GPUs prefer."""

    def __post_init__(self) -> None:
        _positive(
            "hardware.",
            devices=1 if self.devices is None else self.devices,
            nodes=1 if self.nodes is None else self.nodes,
        )


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(MultiCrop):
    """What only `task: pretrain` reads."""

    out_dim: int = 65536
    """Prototypes that teacher and student compare pictures with."""
    hidden_dim: int = 2048
    """Width of the projection."""
    bottleneck_dim: int = 256
    """Width before the prototypes."""
    bn_in_head: bool = False
    """Batch norm in the projection: for small models and batches, whose features of all pictures begin almost alike."""
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
    """A training run.

    Batch size and learning rate: a published page says in `optimizer.lr_batch` for which batch size its
    `optimizer.lr` is. With another `batch_size` the learning rate is lr * batch_size / lr_batch, so that
    `--batch_size 256` of a page for 1024 learns at a quarter of the rate; `schedule.scale_bounds` says whether the
    ends of the schedule are scaled, too. `scaled()` computes it; training warns, and the run's config.yaml has the
    numbers that were used.
    """

    model: ModelOptions
    task: Literal["classify", "detect", "segment", "pretrain"] = "classify"
    data: str | None = None
    """classify: `digits`; a folder: `train/CLASS/*` and `val/CLASS/*`, or `CLASS/*` to be split; `hf:NAME` of the
    Hugging Face hub; `wds:TRAIN,VAL`, patterns of tar shards.
    detect: `digits-scenes`, or a folder as COCO's: `annotations/instances_train2017.json`, `train2017/*`, and for val.
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
    augmentation: Augmentation = field(default_factory=Augmentation)
    mix: MixOptions = field(default_factory=MixOptions)
    distill: DistillOptions = field(default_factory=DistillOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    ema: EMAOptions = field(default_factory=EMAOptions)
    label_smoothing: float = 0.1
    crop_pct: float = 1.0
    """Share of the resized picture that a classifier's evaluation keeps: 0.875 takes 224 of 256 pixels."""
    sync_batchnorm: bool = False
    """Statistics of batch norms over all processes."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    hardware: HardwareOptions = field(default_factory=HardwareOptions)
    checkpoint_seconds: float = 600.0
    """Between two saved states inside an epoch: what a crash costs at most. Each epoch ends with one, too."""
    loggers: list[Literal["wandb", "mlflow"]] = field(default_factory=list)
    """Where metrics go besides the run folder and its TensorBoard files."""
    seed: int = 0

    def __post_init__(self) -> None:
        _positive("", batch_size=self.batch_size, accumulate=self.accumulate)
        if self.batch_size % self.accumulate:
            raise UsageError(f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}")
        if self.checkpoint_seconds < 0:
            raise UsageError(f"checkpoint_seconds={self.checkpoint_seconds} must not be negative")
        if self.workers < 0:
            raise UsageError(f"workers={self.workers} must not be negative")
        if not 0 < self.val_fraction < 1:
            raise UsageError(f"val_fraction={self.val_fraction} is not between 0 and 1")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing={self.label_smoothing} is not in [0, 1)")
        if not 0 < self.crop_pct <= 1:
            raise UsageError(f"crop_pct={self.crop_pct} is not in (0, 1]")
        if self.mix.on and self.part_size % 2:
            raise UsageError(
                f"mix pairs the pictures of a batch, so batch_size / accumulate = {self.part_size} must be even"
            )
        if self.task != "classify":
            for name, given in {
                "mix": self.mix.on,
                "distill": self.distill.kind != "none",
                "optimizer.layer_decay": self.optimizer.layer_decay is not None,
                "augmentation.repeats": self.augmentation.repeats > 1,
            }.items():
                if given:
                    raise UsageError(f"{name} is of task: classify, not of {self.task}")
        if self.task == "pretrain":
            for name, given in {
                "model.freeze": bool(self.model.freeze),
                "ema.decay": self.ema.decay is not None,
                "hardware.strategy=fsdp": self.hardware.strategy == "fsdp",
            }.items():
                if given:
                    raise UsageError(
                        f"{name} does not go with task: pretrain, whose teacher is a moving average of the whole "
                        "student; leave it out"
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
