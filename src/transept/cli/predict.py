"""Label pictures, each of their pixels, or the objects in them: a table, JSON, and pictures to look at.

A classifier draws one sheet of all pictures. A segmenter writes three files for each: NAME.overlay.png with a legend,
NAME.labels.png whose pixel values are the class numbers, and NAME.shares.json. A detector writes NAME.objects.png for
each, and results.json with all objects in COCO's result format.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from transept.cli.shared.detection import DETECTION_OPTIONS, DRAWN, RESULTS, add_detection_arguments, write_objects
from transept.cli.shared.runs import best_device, load_run
from transept.cli.shared.segmentation import (
    SCALE_OPTIONS,
    WINDOW_OPTIONS,
    add_inference_arguments,
    inference_of,
    refuse_options,
)
from transept.cli.shared.tables import plain_skipped, print_json, print_table
from transept.data.classification.sets import Skipped
from transept.data.images import BadImageError, find_images, read_image
from transept.draw.overlay import draw_overlay, label_image, shares
from transept.draw.sheet import Labelled, draw_sheet
from transept.errors import TranseptError, UsageError
from transept.files import write_together
from transept.tasks.classify import Classifier
from transept.tasks.detect import Detector
from transept.tasks.segment import Segmenter

_SHEET = Path("predictions.png")
_FOLDER = Path("predictions")
_SHEET_LIMIT = 100
_OVERLAY, _LABELS, _SHARES = ".overlay.png", ".labels.png", ".shares.json"
_SEGMENTER_FILES = {"overlay": _OVERLAY, "labels": _LABELS, "json": _SHARES}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_NAME", help="a run folder, a .safetensors file, or a model's name")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="picture files, folders of pictures, or patterns")
    parser.add_argument("--top", type=int, default=3, help="how many classes to show (default 3)")
    parser.add_argument(
        "--out", type=Path, help=f"a classifier's sheet (default {_SHEET}), a segmenter's folder (default {_FOLDER})"
    )
    parser.add_argument("--no-sheet", action="store_true", help="draw no sheet (classifiers)")
    parser.add_argument("--batch-size", type=int, help="pictures (default 32), or sliding windows (default 4), at once")
    add_inference_arguments(parser)
    add_detection_arguments(parser)


def run(args: argparse.Namespace) -> None:
    if args.top < 1 or (args.batch_size is not None and args.batch_size < 1):
        raise UsageError("--top and --batch-size must be at least 1")
    paths = find_images(args.images)
    task, _ = load_run(args.model)
    if isinstance(task, Detector):
        refuse_options(args, ("no_sheet",), of="classifiers", model="detector")
        refuse_options(args, WINDOW_OPTIONS, of="segmenters", model="detector")
        _detect(task, paths, args)
        return
    refuse_options(args, DETECTION_OPTIONS, of="detectors", model=type(task).__name__.lower())
    if isinstance(task, Segmenter):
        refuse_options(args, ("no_sheet",), of="classifiers", model="segmenter")
        _segment(task, paths, args)
    else:
        refuse_options(args, SCALE_OPTIONS, of="segmenters and detectors", model="classifier")
        refuse_options(args, WINDOW_OPTIONS, of="segmenters", model="classifier")
        _classify(task, paths, args)


def _classify(task: Classifier, paths: list[Path], args: argparse.Namespace) -> None:
    out = args.out or _SHEET
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp"):
        raise UsageError(f"--out {out}: give a name that ends in .png, .jpg, .pdf, .svg or .webp")
    labelled: list[Labelled] = []
    rows: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    readable = _read(paths, skipped)
    while batch := list(islice(readable, args.batch_size or 32)):
        labels, scores = task.predict([picture for _, picture in batch], args.top)
        for (path, picture), numbers, parts in zip(batch, labels.tolist(), scores.tolist(), strict=True):
            best = [(task.classes[number], share) for number, share in zip(numbers, parts, strict=True)]
            rows.append({"image": str(path), "predictions": [{"label": name, "score": share} for name, share in best]})
            if len(labelled) < _SHEET_LIMIT:
                picture.thumbnail((256, 256))
                labelled.append(Labelled(path.name, picture, best))
    _report_skipped(skipped, len(paths), any_read=bool(rows))
    sheet = None if args.no_sheet else out
    if sheet:
        draw_sheet(labelled, sheet)
    if args.json:
        sheet_name = str(sheet) if sheet else None
        print_json({"model": args.model, "images": rows, "skipped": plain_skipped(skipped), "sheet": sheet_name})
        return
    best_of = {row["image"]: [(entry["label"], entry["score"]) for entry in row["predictions"]] for row in rows}
    _print_best(best_of.items(), min(args.top, len(task.classes)), "label", "score")
    more = f" (the first {_SHEET_LIMIT})" if len(rows) > _SHEET_LIMIT else ""
    _print_end(skipped, len(paths), f"{sheet}{more}" if sheet else "")


def _segment(task: Segmenter, paths: list[Path], args: argparse.Namespace) -> None:
    inference = inference_of(args)
    out = args.out or _FOLDER
    if out.suffix.lower() in (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp") or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {out}: a segmenter writes three files for each picture; give a folder")
    task.to(best_device())
    rows: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    taken = {_key(path) for path in paths}
    for path, picture in _read(paths, skipped):
        (prediction,) = task.predict([picture], inference)
        labels = prediction.labels.cpu().numpy()
        found = shares(labels, task.classes)
        files = _free_names(out, path.stem, taken, _SEGMENTER_FILES)
        page = {"image": str(path), "width": picture.width, "height": picture.height, "shares": found}
        _write(out, files, picture, labels, page, task)
        rows.append(page | {kind: str(out / file) for kind, file in files.items()})
    _report_skipped(skipped, len(paths), any_read=bool(rows))
    if args.json:
        print_json({"model": args.model, "images": rows, "skipped": plain_skipped(skipped), "out": str(out)})
        return
    best_of = ((row["image"], list(row["shares"].items())[: args.top]) for row in rows)
    _print_best(best_of, min(args.top, max(len(row["shares"]) for row in rows)), "class", "share")
    _print_end(skipped, len(paths), f"{out}: *{_OVERLAY}, *{_LABELS}, *{_SHARES}")


def _detect(task: Detector, paths: list[Path], args: argparse.Namespace) -> None:
    out = args.out or _FOLDER
    if out.suffix.lower() in (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp") or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {out}: a detector writes a file for each picture; give a folder")
    skipped: list[Skipped] = []
    taken = {_key(path) for path in paths} | {_key(out / RESULTS)}
    pictures = (
        (path, picture, _free_names(out, path.stem, taken, {"drawn": DRAWN})["drawn"])
        for path, picture in _read(paths, skipped)
    )
    rows = write_objects(task, pictures, out, args)
    _report_skipped(skipped, len(paths), any_read=bool(rows))
    if args.json:
        print_json({"model": args.model, "images": rows, "skipped": plain_skipped(skipped), "out": str(out)})
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("picture")
    table.add_column("objects")
    for row in rows:
        found = ", ".join(f"{number} {name}" for name, number in row["objects"].items())
        table.add_row(escape(row["image"]), escape(found) or "none")
    print_table(table)
    _print_end(skipped, len(paths), f"{out}: *{DRAWN}, {RESULTS}")


def _write(
    out: Path, files: dict[str, str], picture: Image.Image, labels: Any, page: dict[str, Any], task: Segmenter
) -> None:
    text = json.dumps(page | {"classes": task.classes}, ensure_ascii=False, indent=1) + "\n"
    write_together(
        out,
        {
            files["overlay"]: lambda path: draw_overlay(picture, labels, task.classes, task.palette, path),
            files["labels"]: lambda path: label_image(labels, task.palette).save(path),
            files["json"]: lambda path: path.write_text(text, encoding="utf-8"),
        },
    )


def _free_names(out: Path, stem: str, taken: set[str], endings: dict[str, str]) -> dict[str, str]:
    """Names of a picture's files that are neither an input's nor another picture's; `taken` is told of them."""
    for number in count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        files = {kind: name + ending for kind, ending in endings.items()}
        keys = {_key(out / file) for file in files.values()}
        if not keys & taken:
            taken |= keys
            return files
    raise AssertionError("unreachable")


def _key(path: Path) -> str:
    """Equal for paths of one file, also where the file system does not tell upper from lower case."""
    return str(path.resolve()).casefold()


def _read(paths: list[Path], skipped: list[Skipped]) -> Iterator[tuple[Path, Image.Image]]:
    for path in paths:
        try:
            yield path, read_image(path)
        except BadImageError as error:
            skipped.append(Skipped(error.path, error.reason))


def _report_skipped(skipped: list[Skipped], total: int, *, any_read: bool) -> None:
    for skip in skipped:
        print(f"transept: skipped {str(skip.path)!r}: {skip.reason}", file=sys.stderr)
    if not any_read:
        raise TranseptError(f"none of the {total} files is a readable picture")


def _print_best(rows: Iterable[tuple[str, list[tuple[str, float]]]], ranks: int, label: str, score: str) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("picture")
    for rank in range(ranks):
        table.add_column(label if rank == 0 else "then", style="bold" if rank == 0 else "dim")
        table.add_column(score, justify="right", style=None if rank == 0 else "dim")
    for name, best in rows:
        table.add_row(escape(name), *(cell for entry, share in best for cell in (escape(entry), f"{share:.1%}")))
    print_table(table)


def _print_end(skipped: list[Skipped], total: int, written: str) -> None:
    console = Console()
    if skipped:
        console.print(f"\n{len(skipped)} of {total} files could not be read and were skipped", highlight=False)
    if written:
        console.print(f"\n{written}", highlight=False, markup=False)
