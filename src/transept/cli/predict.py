"""Label pictures: a table, JSON, and an annotated sheet of all of them."""

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from transept.analysis.sheet import Labelled, draw_sheet
from transept.cli.runs import load_classifier
from transept.cli.tables import print_json, print_table
from transept.data.images import BadImageError, find_images, read_image
from transept.data.sets import Skipped
from transept.errors import TranseptError, UsageError

_SHEET_LIMIT = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_NAME", help="a run folder, a .safetensors file, or a model's name")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="picture files, folders of pictures, or patterns")
    parser.add_argument("--top", type=int, default=3, help="how many classes to show (default 3)")
    parser.add_argument("--out", type=Path, default=Path("predictions.png"), help="the sheet (default predictions.png)")
    parser.add_argument("--no-sheet", action="store_true", help="draw no sheet")
    parser.add_argument("--batch-size", type=int, default=32)


def run(args: argparse.Namespace) -> int:
    if args.top < 1 or args.batch_size < 1:
        raise UsageError("--top and --batch-size must be at least 1")
    if args.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp"):
        raise UsageError(f"--out {args.out}: give a name that ends in .png, .jpg, .pdf, .svg or .webp")
    paths = find_images(args.images)
    task, _ = load_classifier(args.model)
    labelled: list[Labelled] = []
    rows: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    readable = _read(paths, skipped)
    while batch := list(islice(readable, args.batch_size)):
        labels, scores = task.predict([picture for _, picture in batch], args.top)
        for (path, picture), numbers, shares in zip(batch, labels.tolist(), scores.tolist(), strict=True):
            best = [(task.classes[number], share) for number, share in zip(numbers, shares, strict=True)]
            rows.append({"image": str(path), "predictions": [{"label": name, "score": share} for name, share in best]})
            if len(labelled) < _SHEET_LIMIT:
                picture.thumbnail((256, 256))
                labelled.append(Labelled(path.name, picture, best))
    for skip in skipped:
        print(f"transept: skipped {str(skip.path)!r}: {skip.reason}", file=sys.stderr)
    if not rows:
        raise TranseptError(f"none of the {len(paths)} files is a readable picture")
    sheet = None if args.no_sheet else args.out
    if sheet:
        draw_sheet(labelled, sheet)
    if args.json:
        print_json(
            {
                "model": args.model,
                "images": rows,
                "skipped": [{"path": str(skip.path), "reason": skip.reason} for skip in skipped],
                "sheet": str(sheet) if sheet else None,
            }
        )
        return 0
    table = Table(box=None, pad_edge=False)
    table.add_column("picture")
    for rank in range(min(args.top, len(task.classes))):
        table.add_column("label" if rank == 0 else "then", style="bold" if rank == 0 else "dim")
        table.add_column("score", justify="right", style=None if rank == 0 else "dim")
    for row in rows:
        cells = [cell for entry in row["predictions"] for cell in (entry["label"], f"{entry['score']:.1%}")]
        table.add_row(row["image"], *cells)
    print_table(table)
    console = Console()
    if skipped:
        console.print(f"\n{len(skipped)} of {len(paths)} files could not be read and were skipped", highlight=False)
    if sheet:
        more = f" (the first {_SHEET_LIMIT})" if len(rows) > _SHEET_LIMIT else ""
        console.print(f"\n{sheet}{more}", highlight=False)
    return 0


def _read(paths: list[Path], skipped: list[Skipped]) -> Any:
    for path in paths:
        try:
            yield path, read_image(path)
        except BadImageError as error:
            skipped.append(Skipped(error.path, error.reason))
