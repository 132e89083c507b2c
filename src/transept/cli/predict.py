"""Label pictures, each of their pixels, or the objects in them: a table, JSON, and pictures to look at.

A classifier draws one sheet of all pictures. A segmenter writes three files for each: NAME.overlay.png with a legend,
NAME.labels.png whose pixel values are the class numbers, and NAME.shares.json. A detector writes NAME.objects.png for
each, results.json with all objects in COCO's result format, and images.json, which names its pictures and categories.
With --out TABLE.csv or TABLE.parquet all of them write a table and draw nothing; with --out parquet:FOLDER, for many
pictures, rows go there as they come, and --resume goes on after a stop. A video, the address of a stream or a
camera (/dev/video0), given alone, becomes a video with the answers drawn on its frames (default predictions.mp4), or a
table with the frame and its seconds. Ctrl-C keeps what was done.
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from transept.cli.shared.forms import add_form, check_form, formed
from transept.cli.shared.labelling import add_labelling, check_labelling, label, names_shards, refuse_labelling
from transept.cli.shared.reading import add_reading, names_reading, set_reading
from transept.cli.shared.tables import print_json, print_table, table_for_people
from transept.cli.shared.tasks import add_options, inference_of, load_task, options_of, was_given
from transept.cli.shared.video import predict_video
from transept.data.images import BadImageError, Skipped, as_shown, plain_skipped
from transept.data.inputs import Input, find_inputs, read_input
from transept.data.video import is_video
from transept.errors import StoppedError, TranseptError, UsageError, say
from transept.tasks.table_results import TableResults
from transept.tasks.task import TABLE_ENDINGS, Picture, Results, Task

_TOP = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_NAME", help="a run folder, a .safetensors file, or a model's name")
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="picture files, folders of pictures, or patterns; @LIST: the files in a list, a path in each line; -: a "
        "picture's bytes on standard input (@-: a list); or one video, stream or camera; with --out parquet:FOLDER "
        "also wds:PATTERN, WebDataset shards, and hf:NAME, a Hugging Face set",
    )
    parser.add_argument("--top", type=int, default=_TOP, help="how many classes to show (default %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        help="a classifier's sheet (default predictions.png), else a folder (default predictions); or a table, .csv or "
        ".parquet, or parquet:FOLDER for many pictures; of a video a video (default predictions.mp4), or a table",
    )
    parser.add_argument("--no-sheet", action="store_true", help="draw no sheet (classifiers)")
    parser.add_argument(
        "--every", type=int, metavar="N", help="of a video every Nth frame alone; those between show its answer"
    )
    add_labelling(parser)
    add_reading(parser)
    add_form(parser)
    add_options(parser, but=("top",))


def run(args: argparse.Namespace) -> None:
    if args.top < 1:
        raise UsageError(f"--top {args.top} must be at least 1")
    if args.every is not None and args.every < 1:
        raise UsageError(f"--every {args.every} must be at least 1")
    if names_shards(args.out):
        _label(args)
        return
    refuse_labelling(args)
    video = len(args.images) == 1 and is_video(args.images[0])
    if args.every is not None and not video:
        raise UsageError("--every is for videos, each given alone")
    if video and names_reading(args):
        raise UsageError("--bands and --pixel_range are for pictures, and a video's frames are red, green and blue")
    inputs = [] if video else find_inputs(args.images)
    task = load_task(args.model)
    set_reading(args, task, inputs)
    task = formed(args, task)
    if args.no_sheet and task.is_dense:
        raise UsageError(f"--no-sheet is for classifiers, and {args.model!r} is a {task.kind}")
    inference = _inference(args, task)
    if video:
        predict_video(args, task, inference)
    else:
        _predict_pictures(args, task, inference, inputs)


def _inference(args: argparse.Namespace, task: Task, **changes: Any) -> Any:
    options = {**task.shown_defaults, **options_of(args, task, but=("top",)), **changes}
    return task.compact(inference_of(task, options | ({"top": args.top} if "top" in task.options else {})))


def _label(args: argparse.Namespace) -> None:
    """Many pictures: rows in shards."""
    for name in ("every", "no_sheet"):
        if was_given(args, name):
            raise UsageError(f"--{name.replace('_', '-')} has no sense with --out {args.out}; leave it out")
    check_labelling(args)
    check_form(args)
    task = load_task(args.model)
    set_reading(args, task)
    inference = _inference(args, task)
    task.columns(inference)  # raises where the model knows no classes
    label(args, task, inference)


def _predict_pictures(args: argparse.Namespace, task: Task, inference: Any, inputs: list[Input]) -> None:
    if args.out is not None and args.out.suffix.lower() in TABLE_ENDINGS:
        results = TableResults(task, args.out, inference)
    else:
        results = task.results(args.out, inputs=[each.path for each in inputs], no_sheet=args.no_sheet)
    skipped: list[Skipped] = []
    stopped = False
    try:
        empty = _predict(task, _read(task, inputs, skipped), inference, results)
        if empty is not None and "score" in task.options:
            _say_best(args, task, *empty)
    except KeyboardInterrupt:
        stopped = True
    if not results.rows:
        if stopped:
            raise StoppedError(f"stopped before the first of {len(inputs)} pictures was done")
        raise TranseptError(f"none of the {len(inputs)} files is a readable picture")
    written = results.finish()
    if args.json:
        about = {"skipped": plain_skipped(skipped), "stopped": stopped} | results.about
        print_json({"model": args.model, "images": results.rows} | about)
    else:
        print_table(table_for_people(results.table(args.top)))
        if skipped:
            print(f"\n{len(skipped)} of {len(inputs)} files could not be read and were skipped")
        if written:
            print(f"\n{written}")
    if stopped:
        raise StoppedError(f"stopped: {len(results.rows)} of {len(inputs)} pictures are done, and their results kept")


def _predict(
    task: Task, readable: Iterator[tuple[Path, Picture]], inference: Any, results: Results
) -> tuple[Path, Picture] | None:
    """Gives the first picture where there is an answer to none of them."""
    first, empty = None, True
    while batch := list(islice(readable, task.pictures_at_once(inference))):
        answers = task.predict([picture for _, picture in batch], inference)
        for (path, picture), answer in zip(batch, answers, strict=True):
            results.add(path, as_shown(picture), answer)
            empty = empty and not task.items(answer)
            first = first or (path, picture)
    return first if empty else None


def _say_best(args: argparse.Namespace, task: Task, path: Path, picture: Picture) -> None:
    """Of a detector that found nothing: how far it was from finding something."""
    least = task.shown_defaults["score"] if args.score is None else args.score
    (answer,) = task.predict([picture], _inference(args, task, score=0.0))
    best = max((item.score for item in task.items(answer) if item.score is not None), default=0.0)
    say(f"no object scores {least:g} or more; the best in {str(path)!r} scores {best:.2g}: --score lowers the bound")


def _read(task: Task, inputs: list[Input], skipped: list[Skipped]) -> Iterator[tuple[Path, Picture]]:
    for each in inputs:
        try:
            yield each.path, read_input(each, task.read)
        except BadImageError as error:
            if len(inputs) == 1:
                raise
            skipped.append(Skipped(error.path, error.reason))
            say(f"skipped {str(error.path)!r}: {error.reason}")
