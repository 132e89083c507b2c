"""The contract of a trained task: a model with its classes, its preprocessing and its decoding.

The verbs of the command line, the page in the browser, and `transept.load`, `predict` and `evaluate` ask a task for no
more than stands here. A further task is one file with a `Task`, and one line in `TASKS` (`registry.py`).
"""

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal, NamedTuple, Protocol, Self, TypeVar

from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as v2

from transept import draw
from transept.checks import shown
from transept.data.classification.transforms import Preprocessing, eval_transform
from transept.data.images import DARK, Picture, Skipped, as_array, as_bytes, is_unstated, plain_skipped, read_image
from transept.data.reading import PLAIN, Reading, WantedReading
from transept.data.splits import Choice
from transept.errors import TranseptError, TranseptWarning, UsageError
from transept.export.onnx import DEFAULT_FORMATS, Exported
from transept.files import write_together
from transept.inference.compile import Precision
from transept.models.backbone import Backbone
from transept.models.undrawn import UndrawnWeights
from transept.tasks.data_options import DataOptions
from transept.tasks.saving import METADATA_KEY, describe, save_task
from transept.weights.catalogue.records import Checkpoint
from transept.weights.files.reading import read_checkpoint

Halves = Literal["both", "val"]
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp")
"""The formats of drawings."""
TABLE_ENDINGS = (".csv", ".parquet")
"""The formats of tables of answers."""


class _Module(Protocol):
    training: bool

    def train(self, mode: bool = True) -> Any: ...


@contextmanager
def evaluating(module: _Module) -> Iterator[None]:
    """The module in evaluation mode, and then as it was."""
    training = module.training
    module.train(False)
    try:
        yield
    finally:
        module.train(training)


class Item(NamedTuple):
    """One thing that a prediction says."""

    label: str
    score: float
    """In 0..1: a probability, or of a segmenter the class's share of the picture."""
    box: tuple[float, float, float, float] | None = None
    """A detector's box: x1 y1 x2 y2 in pixels of the picture."""


class Column(NamedTuple):
    name: str
    is_number: bool = False
    style: str | None = None


class Table(NamedTuple):
    """For people: cells as text."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    note: str = ""
    """Below the rows: what they leave out, and what is not of one class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """An option of `predict` and `eval` that a task understands, and `Task.inference` takes."""

    help: str
    type: Callable[[str], Any] = bool
    """`bool`: a switch without a value."""
    number: int | Literal["+"] | None = None
    """The number of values; None: one."""
    metavar: str | tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The scores of a task on a set of pictures."""

    metrics: Mapping[str, Any]
    """Plain data, shares in 0..1: `top1`; `map`, `bbox`, `segm`; `miou`, `per_class`. As `transept eval --json`."""
    summary: str
    """A line for people."""
    table: Table | None = None
    """Scores of each class, for people."""
    images: int
    seconds: float
    """The time of the model, with reading and preparing the pictures."""
    skipped: Sequence[Skipped] = ()
    """Files and annotations that were left out."""
    notes: Sequence[str] = ()
    """Remarks that deserve a look, a sentence each."""
    split: str | None = None
    """The split that was measured, as the data calls it; None where the data has none of its own."""
    measured: str = ""
    """What was measured, as a sentence."""
    files: Mapping[str, Callable[[Path], object]] = field(default_factory=dict, repr=False)
    """The tables and pictures of a report: what writes each, by the file's name. They read pictures again."""

    def write(self, folder: str | PathLike[str]) -> list[str]:
        """Write the report into the folder, which is created: `files`, and `metrics` as report.json; gives their names.

        Raises:
            TranseptError: it cannot be written to, or a picture can no longer be read; what was there is as it was.
        """
        text = json.dumps(self.as_dict(), ensure_ascii=False, indent=1) + "\n"
        report = {"report.json": lambda file: file.write_text(text, encoding="utf-8")}
        write_together(Path(folder), {**report, **self.files})
        return [*report, *self.files]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `transept eval --json` prints it."""
        return dict(self.metrics) | {
            "split": self.split,
            "measured": self.measured,
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "skipped": plain_skipped(self.skipped),
        }


class Results(ABC):
    """The answers of `predict` for many pictures, said and written: `add` each, then `finish`."""

    def __init__(self, task: Any, out: Path) -> None:
        self.task = task
        self.out = out
        self.rows: list[dict[str, Any]] = []
        """Plain data, one for each picture."""
        self.about: dict[str, Any] = {"out": str(out)}
        """Plain data on all of them."""

    @abstractmethod
    def add(self, path: Path, picture: Image.Image, prediction: Any) -> None:
        """Write the files of a picture, and add its row.

        Raises:
            TranseptError: they cannot be written.
        """

    def finish(self) -> str:
        """Write the files of all pictures together; gives the names of what was written."""
        return str(self.out)

    @abstractmethod
    def table(self, top: int) -> Table:
        """The rows for people, with the `top` best of each."""


class Task(nn.Module, ABC):
    """A trained model with all that is needed to use it."""

    name: ClassVar[str]
    """In files and recipes: `classify`."""
    kind: ClassVar[str]
    """For people: `classifier`."""
    checkpoints: ClassVar[str] = ""
    """The catalogue's word for its published weights: `classification`."""
    creator: ClassVar[str]
    """How a model is made that a weights file without a description can be loaded into."""
    options: ClassVar[Mapping[str, Option]]
    """The options of `inference`."""
    shown_defaults: ClassVar[Mapping[str, Any]] = {}
    """Values of `options` that stand in for those not given where people look at the answers."""
    data_options: ClassVar[frozenset[str]] = frozenset()
    """Fields of `DataOptions` that only this kind of data has, and `eval` lets one set."""
    has_one_row: ClassVar[bool] = False
    """`records` gives one row of each picture."""
    has_label_map: ClassVar[bool] = False
    """`label_map` gives a picture."""
    is_dense: ClassVar[bool] = False
    """Its answers have places in the picture, and `draw` shows them there."""
    explains: ClassVar[bool] = False
    """It sees a picture as one image of its own size, and `transept explain` draws where it looks."""
    has_int8: ClassVar[bool] = False
    """`transept export --int8` can write it."""

    methods: ClassVar[Collection[str]] = ()
    """Methods that may stand on a backbone: published ones are called METHOD/BACKBONE."""

    backbone: Backbone
    classes: list[str]
    preprocessing: Any
    run: Path | None = None
    """The run folder that it was loaded from."""
    _reading: Reading = PLAIN
    _warns_of_dark: bool = True

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The backbone's: its name and the channels and native size of its images."""
        return self.backbone.pretrained_cfg

    @property
    def in_chans(self) -> int:
        """The channels of its pictures."""
        return self.pretrained_cfg["input_size"][0]

    # Pictures

    @property
    def reading(self) -> Reading:
        """How files become its pictures: as in training.

        Where training had no wish, the bands of a file are the channels of a model that does not take RGB.
        """
        if self._reading == PLAIN and self.in_chans != 3:
            return Reading(bands=tuple(range(self.in_chans)), exact=True)
        return self._reading

    @reading.setter
    def reading(self, reading: Reading) -> None:
        self._reading = reading

    def read(self, source: str | Path | BinaryIO, *, name: str | Path = "") -> Picture:
        """The picture in a file, as the task was trained to read it; see `read_image`.

        Warns, once, of a picture that will look black because nobody says how many of its 16 bits are used.

        Raises:
            BadImageError: as `read_image`.
        """
        picture = read_image(source, name=name, reading=self.reading)
        if self._warns_of_dark:
            self._warns_of_dark = not warned_of_dark(picture, source, name=name, reading=self.reading)
        return picture

    @property
    def read_as(self) -> dict[str, Any]:
        """The reading for descriptions; empty where files become pictures as a person sees them."""
        return {} if self.reading == PLAIN else {"reading": self.reading.as_dict()}

    def reading_of(self, options: DataOptions) -> Reading | WantedReading:
        """How files become pictures: as in training, and as the options say of what training had no wish about.

        Raises:
            UsageError: bands in another number than the channels.
        """
        kept = self._reading
        reading = self.reading
        if options.bands is not None and not kept.bands:
            reading = replace(reading, bands=self._bands(options.bands), exact=options.bands == "all")
        elif options.pixel_range is None and reading != PLAIN:
            return reading
        if kept.pixel_range:
            return reading
        return WantedReading(pixel_range=options.pixel_range, bands=reading.bands or None, exact=reading.exact)

    def check_reading(self, wanted: WantedReading) -> None:
        """
        Raises:
            UsageError: files were read in another way in training.
        """
        kept = self._reading
        pairs = wanted.pixel_range and {wanted.pixel_range}
        if wanted.bands is not None and kept.bands:
            all_bands = kept.exact and kept.bands == tuple(range(self.in_chans))
            if wanted.bands != kept.bands and not (wanted.bands == "all" and all_bands):
                raise self._trained_with("bands", wanted.bands, shown(kept.bands))
        if pairs and kept.pixel_range and pairs != set(kept.pixel_range):
            raise self._trained_with("pixel_range", wanted.pixel_range, kept.written_range)

    def _trained_with(self, name: str, wanted: Any, kept: str) -> UsageError:
        return UsageError(
            f"{name}={shown(wanted)}, but this {self.kind} was trained with {name}={kept}, and reads all files "
            "so; leave it out"
        )

    def _bands(self, wanted: tuple[int, ...] | Literal["all"]) -> tuple[int, ...]:
        if wanted == "all":
            return tuple(range(self.in_chans))
        if len(wanted) != self.in_chans:
            raise UsageError(
                f"bands={shown(wanted)}: this {self.kind} takes {self.in_chans} bands; give so many numbers"
            )
        return wanted

    # Answers

    @abstractmethod
    def inference(self, **options: Any) -> Any:
        """The task's `...Inference`, from values of `options`; None stands for an option's default.

        Raises:
            UsageError: a value out of its range.
        """

    @abstractmethod
    def predict(self, pictures: Sequence[Picture], inference: Any = None) -> list[Any]:
        """One answer for each picture, whatever its size; `inference` is the task's `...Inference`."""

    def best(self, picture: Picture, count: int) -> Any:
        """The answer with the `count` likeliest classes of a picture, of tasks that `explains` and know classes."""
        (answer,) = self.predict([picture], self.inference(top=count))
        return answer

    def pictures_at_once(self, inference: Any) -> int:
        """How many pictures `predict` is best given together."""
        return 1

    @abstractmethod
    def items(self, prediction: Any) -> list[Item]:
        """A prediction in words, most important first."""

    def columns(self, inference: Any) -> dict[str, type]:
        """Names and types (`str`, `float`, `int`) of what `records` gives."""
        return {"label": str, "score": float}

    def records(self, prediction: Any) -> list[tuple[Any, ...]]:
        """A prediction as rows of a table."""
        return [(item.label, item.score) for item in self.items(prediction)]

    # Answers at scale (`transept.labelling`): other processes make the inputs, and each picture has one row

    def input_of(self, *, exact: bool = True) -> Callable[[Picture], Tensor]:
        """What makes a picture one of the inputs of `answers`, in another process; by itself its bytes `c H W`.

        Not `exact`, it may be quicker at the cost of rounding that is small beside bfloat16's.
        """
        return partial(as_bytes, channels=self.in_chans)

    def answers(self, inputs: Tensor, inference: Any) -> list[Any]:
        """As `predict`, of inputs of one shape: `b c H W`; labelling calls it from several threads at once."""
        return self.predict(list(inputs), inference)

    def picture_columns(self, inference: Any) -> dict[str, Any]:
        """Those of `columns`; where a picture has several rows, a list of each."""
        columns = self.columns(inference)
        return columns if self.has_one_row else {name: list[kind] for name, kind in columns.items()}

    def picture_record(self, prediction: Any, inference: Any, size: tuple[int, int]) -> tuple[Any, ...]:
        """A prediction as one row of `picture_columns`; `size` is the picture's height and width."""
        rows = self.records(prediction)
        if self.has_one_row:
            return rows[0]
        return tuple(list(column) for column in zip(*rows, strict=True)) or ([],) * len(self.columns(inference))

    def label_map(self, prediction: Any) -> Image.Image | None:
        """A picture whose pixels are class numbers, of tasks that `has_label_map`."""

    def compact(self, inference: Any) -> Any:
        """The same inference, with answers in the form that takes `results` and `draw` the least memory."""
        return inference

    @abstractmethod
    def draw(self, picture: Image.Image, prediction: Any, path: Path) -> None:
        """The picture with the prediction, written in the format of the path's ending."""

    def draw_frame(self, picture: Image.Image, prediction: Any) -> Image.Image:
        """A frame of a video with the prediction, of the same size."""
        return draw.labelled_frame(picture, [(item.label, item.score) for item in self.items(prediction)])

    @abstractmethod
    def results(self, out: Path | None, *, inputs: Iterable[Path], **options: Any) -> Results:
        """For `predict`: what takes one prediction after the other and writes it to `out` (None: the default's name).

        `inputs` are the pictures' own files, which nothing written may replace.

        Raises:
            UsageError: `out` is not what this task writes.
        """

    # Scores

    @abstractmethod
    def load_data(self, options: DataOptions, halves: Halves = "both") -> Any:
        """Pictures with their truth: an object with `train`, `val`, `classes`, `skipped`.

        Raises:
            TranseptError: the data is missing or bad.
        """

    def choice(self, data: DataOptions) -> Choice:
        """The splits to read. What its own run held out of data without splits is measured there, and other data
        whole."""
        own = self.run is not None and DataOptions.of_run(self.run).is_of(data.data)
        return data.choice(held_out=own)

    @abstractmethod
    def evaluate(
        self,
        data: DataOptions,
        inference: Any = None,
        *,
        batch_size: int | None = None,
        workers: int = 0,
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> Evaluation:
        """Scores on the validation pictures of the data, or on the split that `data` names.

        Args:
            data: which, and how it is read.
            inference: default: the task's own defaults.
            batch_size: pictures (segmenters: windows) at once.
            workers: processes that read pictures.
            progress: is handed the batches and hands them on, e.g. with a bar.

        Raises:
            TranseptError: the data is missing or bad, or has other classes than the model.
        """

    # Files

    @abstractmethod
    def export(
        self,
        folder: str | PathLike[str],
        *,
        img_size: tuple[int, int] | None = None,
        formats: Sequence[str] = DEFAULT_FORMATS,
        picture: Image.Image | None = None,
        dynamic_size: bool = False,
        dtype: Precision = "auto",
        opset: int | None = None,
    ) -> Exported:
        """Files for other runtimes, kept only if they agree with the model on a picture.

        Args:
            img_size: of the pictures they take; default: the task's own.
            formats: some of `transept.export.onnx.FILES`.
            picture: what to compare on; default: a photograph.
            dynamic_size: they take pictures of any size.
            dtype: of a package and for OpenVINO: "float32", "bfloat16", or "auto", what this processor does best.
            opset: of ONNX, 18 or more; default: the exporter's.

        Raises:
            UsageError: a size that cannot be, an unknown format, or packages that are not installed.
            TranseptError: a file differs from eager, or the folder cannot be written to.
        """

    @property
    def stored(self) -> nn.Module:
        """The module whose parameters a file of the task holds, under its names."""
        return self

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Plain data from which, with the backbone's, `build` makes the task again."""

    @classmethod
    @abstractmethod
    def build(cls, description: Mapping[str, Any]) -> Self:
        """A task without weights, from `description` and the backbone's own."""

    def save(self, path: str | PathLike[str]) -> None:
        """Weights, architecture, classes and preprocessing in one safetensors file, written atomically.

        Raises:
            TranseptError: it cannot be written; what was there is as it was.
        """
        save_task(Path(path), self.name, self.stored, describe(self.backbone) | self.description() | self.read_as)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """A task from the file that `save` wrote, in evaluation mode.

        Raises:
            TranseptError: the file is missing, damaged, of another task, or was not written by `save`.
        """
        return read_task(Path(path), (cls,))

    @classmethod
    def create(cls, method: str, *, backbone: str, **options: Any) -> "Task":
        """A fresh task of one of its `methods`, for the published classes."""
        raise UsageError(f"a {cls.kind} has no methods; {method!r} is none of it")

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """The task of published weights, in evaluation mode."""
        raise UsageError(f"no weights of a {cls.kind} were published")


class ModelTask(Task):
    """A task whose file holds its model under the model's own names."""

    model: Backbone

    @property
    def backbone(self) -> Backbone:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model

    @property
    def stored(self) -> nn.Module:
        return self.model


def warned_of_dark(picture: Picture, source: str | Path | BinaryIO, *, name: str | Path, reading: Reading) -> bool:
    """Warns of a picture that will look black because nobody says how many of its 16 bits are used; whether it did."""
    if reading.pixel_range or not _is_dark(picture) or not is_unstated(source, name=name, reading=reading):
        return False
    warnings.warn(
        f"{str(name or source)!r} has 16 bits and uses less than an eighth of them, so that it looks black; "
        "where it has fewer bits, say so with pixel_range, e.g. pixel_range=[0, 4095]",
        TranseptWarning,
        stacklevel=3,
    )
    return True


def _is_dark(picture: Picture) -> bool:
    """By some of the pixels first: of most pictures they show that it is not."""
    some = picture.resize((16, 16), Image.Resampling.NEAREST) if isinstance(picture, Image.Image) else picture
    return all(as_array(each).max(initial=0) < 256 * DARK for each in (some, picture))


_Task = TypeVar("_Task", bound=Task)


def read_task(path: Path, kinds: Sequence[type[_Task]]) -> _Task:
    """The task in a file that `save_task` wrote, in evaluation mode. The file is opened once.

    Args:
        path: of the file.
        kinds: which tasks are welcome.

    Raises:
        TranseptError: the file is missing, damaged, of another task, or was not written by `save_task`.
    """
    contents = read_checkpoint(path)
    kind = kinds[0]
    try:
        description = json.loads(contents.metadata[METADATA_KEY])
        name = description.get("task", "classify")
        if name not in (each.name for each in kinds):
            names = " or ".join(each.name for each in kinds)
            raise TranseptError(f"{str(path)!r} holds a model that was trained to {name}, not to {names}")
        kind = next(each for each in kinds if each.name == name)
        with UndrawnWeights():
            task = kind.build(description)
        task.reading = Reading.of(description["reading"]) if "reading" in description else PLAIN
        # Our own names are whole: what other code's wrappers put before all of theirs is part of them.
        task.stored.load_state_dict({contents.prefix + key: value for key, value in contents.tensors.items()})
        return task.eval()
    except UsageError as error:
        raise TranseptError(f"{str(path)!r} describes no model that can be built: {error}") from error
    except TranseptError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise TranseptError(
            f"{str(path)!r} does not say which model it is for; load it with {kind.creator}weights=...)"
        ) from error


def as_picture(picture: Picture, channels: int = 3) -> Any:
    """Bytes `3 H W` as a picture; of other channels the bytes themselves.

    Raises:
        TranseptError: it has other channels, or is no picture.
    """
    if channels != 3:
        return tv_tensors.Image(as_bytes(picture, channels))
    return picture if isinstance(picture, Image.Image) else v2.to_pil_image(as_bytes(picture))


class Prepare:
    """A picture of any size to the input of a model whose images are all of one: `c H W`.

    `exact` is `eval_transform`, by Pillow. Otherwise torchvision resizes the bytes, a fifth of the work: two in a
    thousand of a photograph's differ by one of their 255 steps.
    """

    def __init__(self, preprocessing: Preprocessing, channels: int, *, exact: bool = True) -> None:
        self._transform = eval_transform(preprocessing)
        self._channels = channels
        self._exact = exact

    def __call__(self, picture: Picture) -> Tensor:
        picture = as_picture(picture, self._channels)
        return self._transform(picture if self._exact or isinstance(picture, Tensor) else v2.pil_to_tensor(picture))


@dataclass(frozen=True, kw_only=True, slots=True)
class FileNames:
    """Names of written files that are neither an input's nor another picture's."""

    folder: Path
    taken: set[str] = field(default_factory=set)

    @classmethod
    def beside(cls, folder: Path, inputs: Iterable[Path]) -> Self:
        return cls(folder=folder, taken={_key(path) for path in inputs})

    def take(self, stem: str, endings: Mapping[str, str]) -> dict[str, str]:
        """A free name for each ending, all with one stem: `stem`, `stem-2`, ..."""
        number = 1
        while True:
            files = {kind: (stem if number == 1 else f"{stem}-{number}") + end for kind, end in endings.items()}
            keys = {_key(self.folder / file) for file in files.values()}
            if not keys & self.taken:
                self.taken.update(keys)
                return files
            number += 1


def _key(path: Path) -> str:
    """Equal for paths of one file, also where the file system does not tell upper from lower case."""
    return str(path.resolve()).casefold()


def check_classes(expected: Sequence[str], classes: Sequence[str], data: str) -> None:
    """Raises `TranseptError` where a set has other classes than the model, or others in their places."""
    if list(expected) == list(classes):
        return
    odd = sorted(set(expected) ^ set(classes))
    what = f"{odd[0]!r} is only in {'the data' if odd[0] in classes else 'the model'}" if odd else "their order differs"
    raise TranseptError(f"the classes of {data!r} are not the model's {len(expected)}: {what}")


def check_folder(out: Path, kind: str, writes: str) -> None:
    """Raises `UsageError` where `out`, which is to be a folder, is or looks like a file."""
    if out.suffix.lower() in PICTURE_ENDINGS or (out.exists() and not out.is_dir()):
        raise UsageError(
            f"--out {out}: a {kind} writes {writes} for each picture; give a folder or a table, .csv or .parquet"
        )
