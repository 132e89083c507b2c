"""The weights that a training run begins with: a whole system's, heads included, or a backbone's."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from os import PathLike

import torch
from torch import Tensor

from transept.checks import shown
from transept.data.reading import PLAIN, Reading
from transept.errors import warn
from transept.tasks.saving import METADATA_KEY
from transept.tasks.task import Task
from transept.weights.catalogue.records import set_preprocessing
from transept.weights.convert.systems import PARTS
from transept.weights.files.reading import Contents, read_checkpoint
from transept.weights.fit import load_contents, reads_classes
from transept.weights.load import find_file
from transept.weights.report import KeyReport, LoadReport

_ROWS = ("decode_head.conv_seg.", "auxiliary_head.conv_seg.")
"""Layers with a row for each class and no more."""


def start_from(task: Task, source: str | PathLike[str], reading: Reading = PLAIN) -> LoadReport:
    """Load what `task` can begin with: all of a system of the same parts, otherwise the backbone alone.

    Layers that tell classes apart are taken where the file's classes are the task's: by name where the file names them
    (`Task.save`), otherwise by number. Elsewhere they start fresh; of segmenters, the classes that both have are taken.

    Args:
        task: freshly built; it is changed in place.
        source: what `transept.load_weights` takes.
        reading: how the task's pictures are read. Weights that were trained on files read in another way of their own
            are taken with a warning.

    Raises:
        TranseptError: the file cannot be read, or does not fit. The task is then unchanged.
    """
    path, published = find_file(str(source))
    contents = read_checkpoint(path)
    classes = _classes_of(contents)
    model = task.stored if _has_its_parts(task, contents.tensors) else task.backbone
    other = classes is not None and classes != list(task.classes)
    report = load_contents(model, contents, str(source), other_classes=other)
    if other and classes is not None and model is task.stored:
        report = _take_classes(task, contents.tensors, classes, report)
    if published:
        set_preprocessing(task.backbone, published)
    before = _reading_of(contents)
    if before not in (PLAIN, reading):
        warn(
            f"the weights of {str(source)!r} are of pictures read with {_words(before)}, and these are read with "
            f"{_words(reading)}"
        )
    return report


def _has_its_parts(task: Task, tensors: Mapping[str, Tensor]) -> bool:
    """Whether neck and heads are those of the task, but for the layers that tell classes apart."""
    ours, theirs = (
        {
            name: tensor.shape
            for name, tensor in state.items()
            if name.startswith(PARTS) and not reads_classes(name) and not name.endswith("num_batches_tracked")
        }
        for state in (task.state_dict(), tensors)
    )
    return ours == theirs


def _take_classes(task: Task, tensors: Mapping[str, Tensor], classes: Sequence[str], report: LoadReport) -> LoadReport:
    """Take from the layers that have a row for each class, a segmenter's, the rows of classes of the same name."""
    numbers = {name: number for number, name in enumerate(classes)}
    pairs = [(ours, numbers[name]) for ours, name in enumerate(task.classes) if name in numbers]
    if not pairs:
        return report
    ours, theirs = (list(rows) for rows in zip(*pairs, strict=True))
    state, taken = task.state_dict(), {}
    for name in state:
        value = tensors.get(name)
        if name.startswith(_ROWS) and value is not None and value.shape[1:] == state[name].shape[1:]:
            with torch.no_grad():
                state[name][ours] = value[theirs].to(state[name])
            done = f"taken of {len(pairs)} of {len(task.classes)} classes"
            taken[name] = KeyReport((name,), name, (done,))
    rest = tuple(key for key in report.keys if key.model not in taken and not taken.keys() & {*key.file})
    return replace(report, keys=(*rest, *taken.values()))


def _reading_of(contents: Contents) -> Reading:
    """How files were read in training, where the file says it."""
    with suppress(KeyError, TypeError, ValueError):
        return Reading.of(json.loads(contents.metadata[METADATA_KEY])["reading"])
    return PLAIN


def _words(reading: Reading) -> str:
    return f"bands={shown(reading.bands or None)} and pixel_range={reading.written_range}"


def _classes_of(contents: Contents) -> Sequence[str] | None:
    """The names of the classes, where the file says them."""
    with suppress(KeyError, TypeError, ValueError):
        return json.loads(contents.metadata[METADATA_KEY])["classes"]
    return None
