"""`transept.predict` and `transept.evaluate`: a trained task on pictures and on data, from Python."""

import dataclasses
from collections.abc import Sequence
from os import PathLike
from typing import Any

from PIL import Image
from torch import Tensor

from transept.data.inputs import Input, find_inputs, read_input
from transept.errors import UsageError, unknown
from transept.tasks.data_options import DataOptions
from transept.tasks.load import load
from transept.tasks.task import Evaluation, Option, Picture, Task

Source = str | PathLike[str]


def predict(task: Task | Source, pictures: Source | Picture | Sequence[Source | Picture], **options: Any) -> list[Any]:
    """Ask a trained task about pictures: one answer for each.

    Args:
        task: from `transept.load`, or what that takes.
        pictures: one or more: files, folders, patterns (`"holiday/*.jpg"`), lists of files (`"@list.txt"`),
            standard input (`"-"`), PIL pictures, or bytes `3 H W` (RGB).
        options: a classifier's `top=5`, and of several labels `threshold=None`; a detector's `score=0.3`,
            `classes=None`, `tile=None` (pixels of overlapping tiles), `overlap=0.2`; a detector's or segmenter's
            `multi_scale=False`, `flip=False`; a segmenter's `crop=(H, W)`, `stride=(H, W)`; `batch_size`.

    Returns:
        `Classification` (labels and scores, ` k`), `Detections` (boxes `n 4`, scores and labels ` n`, masks `n H W`) or
        `Segmentation` (labels and scores, `H W`), in the order of the pictures. `task.items(answer)` says it in words.

    Raises:
        UsageError: an option that this task lacks (with the nearest name), or out of its range.
        TranseptError: a file is no picture, or the task cannot be loaded.
    """
    task = task if isinstance(task, Task) else load(task)
    inference = task.inference(**{**task.shown_defaults, **check_options(task, options)})
    answers: list[Any] = []
    size = task.pictures_at_once(inference)
    images = _pictures(pictures)
    for start in range(0, len(images), size):
        chunk = [
            read_input(each, task.read) if isinstance(each, Input) else each for each in images[start : start + size]
        ]
        answers += task.predict(chunk, inference)
    return answers


def evaluate(
    task: Task | Source,
    data: str | PathLike[str] | DataOptions | None = None,
    *,
    split: str | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    **options: Any,
) -> Evaluation:
    """The scores of a trained task on the validation pictures of a data set, or on another split of it.

    Data without splits is measured whole; of the data that the task's own run divided, what that held out.

    Args:
        task: from `transept.load`, or what that takes.
        data: a name or folder as `transept train` takes it, or `DataOptions`; default: the data that its run was
            trained on.
        split: "train", "val", "test" or a split's own name; "none": everything, whatever its folders are called.
        batch_size: pictures (segmenters: windows) at once.
        workers: processes that read pictures.
        options: how answers are read, as in `predict`.

    Returns:
        `metrics` has `top1`, `map` or `miou`, in 0..1, and all other figures; `summary` is a line of them; `measured`
        says in a sentence what was measured.

    Raises:
        UsageError: an option that this task lacks, or out of its range; no such split, or several could be meant.
        TranseptError: the data is missing or bad, or has other classes than the model.
    """
    task = task if isinstance(task, Task) else load(task)
    check_options(task, options)
    inference = task.inference(**options) if options else None
    named = data_of(task, data)
    if split is not None:
        named = dataclasses.replace(named, split=split)
    return task.evaluate(named, inference, batch_size=batch_size, workers=workers)


def data_of(task: Task, data: str | PathLike[str] | DataOptions | None) -> DataOptions:
    """The data named, read as the task's run reads its own; that of the run where none is named.

    Raises:
        UsageError: none is named, and the task is of no run.
    """
    if isinstance(data, DataOptions):
        return data
    options = DataOptions.of_run(task.run) if task.run else DataOptions()
    if data is not None:
        if not options.is_of(str(data)):  # the names of splits are those of the run's own data
            options = dataclasses.replace(options, train_split=None, val_split=None)
        options = dataclasses.replace(options, data=str(data), split=None)
    if options.data is None:
        raise UsageError("the model is of no run, so there is no data of its own to measure it on; name some")
    return options


def check_options(task: Task, options: dict[str, Any]) -> dict[str, Any]:
    """The options, all of them the task's.

    Raises:
        UsageError: one is not; the message names the nearest one.
    """
    names: dict[str, Option] = dict(task.options)
    for name in options:
        if name not in names:
            raise unknown(f"option of a {task.kind}", name, names)
    return options


def _pictures(pictures: Source | Picture | Sequence[Source | Picture]) -> list[Input | Picture]:
    several: Sequence[Any] = pictures if isinstance(pictures, list | tuple) else [pictures]
    inputs: list[Input | Picture] = []
    for each in several:
        if isinstance(each, Image.Image | Tensor):
            inputs.append(each)
        elif isinstance(each, str | PathLike):
            inputs += find_inputs([each])
        else:
            kind = type(each).__name__
            raise UsageError(f"a picture is a {kind}; give a path, a PIL picture (Image.fromarray), or bytes 3 x H x W")
    return inputs
