"""Measure a trained model on the validation pictures of its data, or of a folder: accuracy, mIoU or average precision.

With --knn and --linear, the features of a classifier or of a pretrained backbone instead.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from transept.checks import check_not_negative
from transept.cli.shared.features import add_feature_arguments, eval_features
from transept.cli.shared.forms import add_form, formed
from transept.cli.shared.reading import add_reading, with_reading
from transept.cli.shared.tables import print_json, print_table, table_for_people
from transept.cli.shared.tasks import (
    add_options,
    inference_of,
    kinds_with,
    load_task,
    named_data,
    option_names,
    options_of,
    refuse,
    was_given,
)
from transept.errors import UsageError, is_live, say
from transept.files import reserve
from transept.tasks.data_options import DataOptions
from transept.tasks.pretrain import FeatureExtractor
from transept.tasks.registry import TASKS
from transept.tasks.task import Task
from transept.words import visible

_SKIPS = {
    "skip_bad_images": "leave unreadable files out instead of stopping",
    "skip_bad_annotations": "detectors: leave out annotations that cannot be used, and count them",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_NAME", help="a run folder, a .safetensors file, or a model's name")
    parser.add_argument("--data", help="folder of pictures (default: the run's own data)")
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="train, val, test, or a split's own name; none: all pictures, whatever the folders are called (default: "
        "val, or all where there are no splits)",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures")
    for name, text in _SKIPS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="write tables and pictures of the scores there")
    add_feature_arguments(parser)
    add_reading(parser)
    add_form(parser)
    add_options(parser, but=("top",))


def run(args: argparse.Namespace) -> None:
    try:
        check_not_negative(1024, workers=args.workers)
    except UsageError as error:
        raise UsageError(f"--{error}") from error
    if args.knn or args.linear:
        _check_features(args)
        eval_features(args)
        return
    if args.k is not None:
        raise UsageError("--k counts the neighbours of --knn; give that, too")
    task = formed(args, load_task(args.model), dtype="float32")
    options = options_of(args, task, but=("top",))
    inference = inference_of(task, options) if options else None
    data = data_options(args, task)
    if args.report is not None:
        check_report(args.report)
    evaluation = task.evaluate(data, inference, batch_size=args.batch_size, workers=args.workers, progress=_tracked)
    for note in (evaluation.measured, *evaluation.notes) if evaluation.measured else evaluation.notes:
        say(note)
    report = {} if args.report is None else {"report": str(args.report), "files": evaluation.write(args.report)}
    if args.json:
        print_json({"model": args.model, "data": data.data} | evaluation.as_dict() | report)
        return
    if evaluation.table is not None:
        print_table(table_for_people(evaluation.table))
        print()
    print(f"{visible(evaluation.summary)}   ({evaluation.images} pictures, {evaluation.seconds:.1f} s)")
    if report:
        print(f"{report['report']}: {', '.join(report['files'])}")
    if evaluation.skipped and not task.is_dense:  # the data of dense tasks names them when it is loaded
        first = evaluation.skipped[0].path
        print(f"{len(evaluation.skipped)} unreadable files were left out, e.g. {str(first)!r}", file=sys.stderr)


def data_options(args: argparse.Namespace, task: Task) -> DataOptions:
    """The data to measure on, as the run reads its own, with what was left out there and is to be here.

    Raises:
        UsageError: an option of other data.
        TranseptError: no data is named.
    """
    data = named_data(args, task)
    if args.skip_bad_annotations and "skip_bad_annotations" not in task.data_options:
        kinds = [kind for kind in TASKS if "skip_bad_annotations" in kind.data_options]
        refuse("skip_bad_annotations", kinds, f"{args.model!r} is a {task.kind}")
    skips = {name: True for name in _SKIPS if getattr(args, name)}
    return with_reading(args, task, dataclasses.replace(data, **skips))


def _check_features(args: argparse.Namespace) -> None:
    """Features are read from pictures as they are."""
    if args.report is not None:
        raise UsageError("--report is of a trained task's answers; leave it out with --knn and --linear")
    for name in option_names(but=("top", *FeatureExtractor.options)):
        if was_given(args, name):
            refuse(name, kinds_with(name), f"{args.model!r} is a source of features")


def check_report(folder: Path) -> None:
    """Raises `UsageError`, before hours of work, where the report's folder is a file or cannot be written to."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--report {folder}: is a file; give a folder")
    reserve(folder, 1)


def _tracked(batches: Iterable[Any]) -> Iterable[Any]:
    console = Console(stderr=True)
    return track(batches, "evaluating", console=console, transient=True, disable=not is_live())
