"""The data of a run and how it is read, on which training and evaluation must agree."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from transept.checks import check_not_negative, check_positive, check_within, shown
from transept.data.reading import WantedReading
from transept.data.splits import Choice, Fold
from transept.errors import TranseptError, UsageError
from transept.files import is_file, read_yaml
from transept.tasks.kept_recipe import check_whole
from transept.tasks.run_folder import CONFIG

OLD_NAMES = {"segment.reduce_zero_label": "reduce_zero_label", "detect.scenes": "scenes"}
"""Names of version 0.1 for fields of `DataOptions`, to their names now."""

_KINDS = {
    "data": str | None,
    "skip_bad_images": bool,
    "skip_bad_annotations": bool,
    "reduce_zero_label": bool | None,
    "scenes": list,
    "pixel_range": list | str | None,
    "bands": list | str | None,
    "split": str | None,
    "train_split": str | None,
    "val_split": str | None,
    "label_separator": str | None,
    "fold": list | None,
    "fold_seed": int,
}


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The data of a run. Evaluation reads its validation pictures as training did."""

    data: str | None = None
    """classify: `digits`; a folder: `train/CLASS/*` and `val/CLASS/*`, or `CLASS/*` to be split; a CSV or Parquet file
    with columns `path`, `label` and perhaps `split` and `group`; `hf:NAME` of the Hugging Face hub; `wds:TRAIN,VAL`,
    patterns of tar shards.
    detect: `digits-scenes`, or a folder as COCO's: `annotations/instances_train2017.json`, `train2017/*`, and for val.
    segment: `digits-scenes`, or a folder of pictures and masks.
    pretrain: as classify, or a folder of pictures without classes."""
    val_fraction: float = 0.2
    """Share held out where the folder is one."""
    skip_bad_images: bool = False
    """Leave unreadable files out instead of stopping."""
    skip_bad_annotations: bool = False
    """Leave out what is wrong in an annotation file, instead of stopping; only detectors read it."""
    reduce_zero_label: bool | None = None
    """The masks' value 0 means nothing and k is class k - 1, as in ADE20K; default: as the data's class list says.
    Only segmenters read it."""
    scenes: tuple[int, int] = (2000, 200)
    """Training and validation pictures of `digits-scenes`."""
    pixel_range: tuple[float, float] | Literal["auto"] | None = None
    """The values of files of more than 8 bits that are black and white, e.g. [0, 4095] of 12-bit cameras; auto: between
    the percentiles 0.1 and 99.9 of the training pictures, of each band where `bands` are chosen; default: as the files
    say. Bytes stay as they are."""
    bands: tuple[int, ...] | Literal["all"] | None = None
    """The bands of a file that are read, counted from 0 through all of its pages, e.g. [3, 0, 1]; all: as many as the
    first training picture has; default: red, green and blue as a person sees them."""
    split: str | None = None
    """What is measured: train, val, test, or a split's own name; none: everything, the data has no splits. Default: the
    validation split; data without splits is measured whole, and what a run held out of its own data as it was. Training
    does not read it."""
    train_split: str | None = None
    """Name of the split to learn from, where several could be meant; none: the data has no splits, whatever its
    folders are called."""
    val_split: str | None = None
    """Name of the split to validate on, where several could be meant."""

    fold: tuple[int, int] | None = None
    """Which of how many equal parts of the training pictures is validated, e.g. [1, 5]; `transept train --folds 5`
    trains all of them in turn. Each picture is in one fold, of each class its share. Validation splits are not read."""
    fold_seed: int = 0
    """Of the division into folds; the recipe's `seed` does not change it."""
    label_separator: str | None = None
    """What stands between the labels of a cell, where pictures have several; default: whichever of ; | , occurs."""

    def __post_init__(self) -> None:
        check_within("(0, 1)", val_fraction=self.val_fraction)
        check_not_negative(fold_seed=self.fold_seed)
        if self.label_separator == "":
            raise UsageError("label_separator='' separates nothing; leave it out for the default")
        if self.fold is not None and not (self.fold[1] >= 2 and 1 <= self.fold[0] <= self.fold[1]):
            raise UsageError(f"fold={shown(self.fold)}; give [which, of how many], from [1, 2] on")
        check_positive(scenes=self.scenes)
        for name in ("split", "train_split", "val_split"):
            if getattr(self, name) == "":
                raise UsageError(f"{name}='' names no split; leave it out for the default")
        if isinstance(self.pixel_range, tuple) and not self.pixel_range[0] < self.pixel_range[1]:
            raise UsageError(f"pixel_range={shown(self.pixel_range)}; give [low, high] with low < high, or auto")
        if isinstance(self.bands, tuple):
            check_not_negative(bands=self.bands)
            if not self.bands:
                raise UsageError("bands=[] leaves nothing to read; give numbers from 0 on, or all")

    @property
    def reading(self) -> WantedReading:
        """How files become pictures."""
        return WantedReading(pixel_range=self.pixel_range, bands=self.bands)

    def choice(self, *, held_out: bool, measures: bool = True) -> Choice:
        """Which splits are read: see `Choice`. Training takes no notice of `split`, so it `measures` nothing."""
        fold = Fold(*self.fold, self.fold_seed) if self.fold and held_out else None
        return Choice(self.split if measures else None, self.train_split, self.val_split, held_out, fold)

    def is_of(self, data: str | None) -> bool:
        """Whether that is the same data."""
        if data is None or self.data is None:
            return data == self.data
        return data == self.data or Path(data).expanduser().resolve() == Path(self.data).expanduser().resolve()

    @property
    def data_options(self) -> "DataOptions":
        """These alone, where a subclass says more."""
        return DataOptions(**{field.name: getattr(self, field.name) for field in dataclasses.fields(DataOptions)})

    @classmethod
    def of_run(cls, folder: Path) -> Self:
        """Reads the config.yaml of a run folder, of this version or of 0.1.

        Raises:
            TranseptError: there is none, it cannot be understood, or was cut off.
        """
        file = folder / CONFIG
        if not is_file(file):
            raise TranseptError(f"{str(folder)!r} is no run folder: {CONFIG} is not there")
        page = read_yaml(file)
        check_whole(page, folder)
        try:
            return cls(**_fields(page))
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise TranseptError(f"cannot read {str(file)!r}: {' '.join(str(error).split())}") from error


def _fields(page: dict[str, Any]) -> dict[str, Any]:
    values = {field.name: page[field.name] for field in dataclasses.fields(DataOptions) if field.name in page}
    for old, new in OLD_NAMES.items():
        section, _, name = old.partition(".")
        if name in (page.get(section) or {}):
            values.setdefault(new, page[section][name])
    for name, kind in _KINDS.items():
        if name in values and not isinstance(values[name], kind):
            raise UsageError(f"{name}={shown(values[name])} has the wrong type")
    if "scenes" in values:
        train, val = values["scenes"]
        values["scenes"] = (train, val)
    for name in ("pixel_range", "bands", "fold"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    return values
