"""Measure a classifier: top-1 and top-5 accuracy on the validation pictures of its data, or of a folder."""

import argparse
import sys
import time

import torch
from rich.console import Console
from rich.progress import track

from transept.cli.runs import load_classifier
from transept.cli.tables import print_json
from transept.cli.train import parse_recipe
from transept.data.loading import TransformedSet, make_loader
from transept.data.sets import load_splits
from transept.data.transforms import transforms_for
from transept.errors import TranseptError
from transept.metrics.accuracy import AccuracyMeter
from transept.train.folder import CONFIG
from transept.train.recipe import read_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_NAME", help="a run folder, a .safetensors file, or a model's name")
    parser.add_argument("--data", help="folder of pictures (default: the run's own data)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures")
    parser.add_argument("--skip-bad-images", action="store_true", help="leave unreadable files out instead of stopping")


def run(args: argparse.Namespace) -> None:
    task, folder = load_classifier(args.model)
    recipe = parse_recipe(read_recipe(str(folder / CONFIG)), []) if folder else None
    data = args.data or (recipe.data if recipe else None)
    if data is None:
        raise TranseptError(f"{args.model!r} names no data; give --data FOLDER")
    splits = load_splits(
        data,
        val_fraction=recipe.val_fraction if recipe else 0.2,
        skip_bad_images=args.skip_bad_images or bool(recipe and recipe.skip_bad_images),
    )
    _check_classes(task.classes, splits.classes, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task.to(device).eval()
    loader = make_loader(TransformedSet(splits.val, transforms_for(task)), args.batch_size, workers=args.workers)
    meter, started = AccuracyMeter(), time.monotonic()
    batches = track(loader, "evaluating", console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with torch.inference_mode():
        for images, labels in batches:
            logits, labels = task(images.to(device)), labels.to(device)
            meter.update(task.loss(logits, labels), logits, labels)
    result = meter.means() | {
        "images": meter.samples,
        "seconds": round(time.monotonic() - started, 3),
        "skipped": [{"path": str(skip.path), "reason": skip.reason} for skip in splits.skipped],
    }
    if args.json:
        print_json({"model": args.model, "data": data} | result)
        return
    print(
        f"top-1 {result['top1']:.2%}   top-5 {result['top5']:.2%}   loss {result['loss']:.4f}   "
        f"({meter.samples} pictures, {result['seconds']:.1f} s)"
    )
    if splits.skipped:
        print(f"{len(splits.skipped)} unreadable files were left out, e.g. {splits.skipped[0].path}", file=sys.stderr)


def _check_classes(known: list[str], given: list[str], data: str) -> None:
    if known == given or (len(known) == len(given) == 1000):  # ImageNet folders are named by WordNet numbers, in order
        return
    odd = sorted(set(known) ^ set(given))
    what = f"{odd[0]!r} is only in {'the data' if odd[0] in given else 'the model'}" if odd else "their order differs"
    raise TranseptError(f"the classes of {data!r} are not the model's {len(known)}: {what}")
