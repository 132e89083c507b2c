"""`--bands` and `--pixel_range` of the verbs that run a model which training did not tell how files are read."""

import argparse
import dataclasses
from collections.abc import Sequence

from transept.data.inputs import Input
from transept.data.measure import complete, spread
from transept.errors import UsageError, say
from transept.tasks.data_options import DataOptions
from transept.tasks.task import Task

_TEXTS = {
    "bands": "which bands of a file are read, e.g. '[3, 0, 1]', or all; only where training has not said it",
    "pixel_range": "values of more than 8 bits that are black and white, e.g. '[0, 4095]'",
}
_AUTO = ", or auto, from the percentiles of the pictures"


def add_reading(parser: argparse.ArgumentParser, *, auto: bool = True) -> None:
    """`auto`: there are pictures to measure a range on."""
    group = parser.add_argument_group("how files become pictures, of models that do not say it")
    group.add_argument("--bands", metavar="BANDS", help=_TEXTS["bands"])
    text = _TEXTS["pixel_range"] + (_AUTO if auto else "")
    group.add_argument("--pixel_range", "--pixel-range", metavar="RANGE", help=text)


def names_reading(args: argparse.Namespace) -> bool:
    """Whether one of the two was given."""
    return any(getattr(args, name) is not None for name in _TEXTS)


def with_reading(args: argparse.Namespace, task: Task, data: DataOptions) -> DataOptions:
    """The data's options with those that were given.

    Raises:
        UsageError: values that cannot be, or that the task was trained without.
    """
    texts = {name: value for name in _TEXTS if (value := getattr(args, name)) is not None}
    if not texts:
        return data
    from transept.training.options.parsing import parse_section  # jsonargparse, for which only these options wait

    named = parse_section(DataOptions, texts)
    task.check_reading(named.reading)
    return dataclasses.replace(data, **{name: getattr(named, name) for name in texts})


def set_reading(args: argparse.Namespace, task: Task, pictures: Sequence[Input] = ()) -> None:
    """Have the task read files as the options say; the range between percentiles is that of the pictures.

    Raises:
        UsageError: as `with_reading`; or a range is to be measured, and there are no pictures.
        TranseptError: no picture has more than 8 bits, and a range is to be measured.
    """
    if not names_reading(args):
        return
    options = with_reading(args, task, DataOptions())
    measures = options.pixel_range == "auto"
    if measures and not pictures:
        raise UsageError("pixel_range=auto is measured on pictures, and here are none; give [LOW, HIGH]")
    looked = [pictures[i] for i in spread(len(pictures))] if measures else []
    task.reading = complete(task.reading_of(options), [(each.source, each.path) for each in looked])
    if measures:
        noun = "picture" if len(looked) == 1 else "pictures"
        say(f"pixel_range={task.reading.written_range}, measured on {len(looked)} {noun}")
