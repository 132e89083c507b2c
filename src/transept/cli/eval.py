"""Measure a trained model on the validation pictures of its data, or of a folder: accuracy, mIoU or AP."""

import argparse
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader

from transept.cli.shared.detection import DETECTION_OPTIONS, add_detection_arguments, eval_detector
from transept.cli.shared.features import add_feature_arguments, eval_features
from transept.cli.shared.runs import best_device, load_run
from transept.cli.shared.segmentation import (
    SCALE_OPTIONS,
    WINDOW_OPTIONS,
    add_inference_arguments,
    inference_of,
    refuse_options,
)
from transept.cli.shared.tables import plain_number, plain_skipped, print_json, print_table
from transept.data.classification.sets import load_splits
from transept.data.classification.transforms import transforms_for
from transept.data.loading import TransformedSet, make_loader
from transept.data.segmentation.sets import load_segmentation_splits
from transept.errors import TranseptError, UsageError
from transept.metrics.accuracy import AccuracyMeter
from transept.metrics.segmentation import ConfusionMeter
from transept.tasks.classify import Classifier
from transept.tasks.data_options import DataOptions
from transept.tasks.detect import Detector
from transept.tasks.segment import Segmenter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_NAME", help="a run folder, a .safetensors file, or a model's name")
    parser.add_argument("--data", help="folder of pictures (default: the run's own data)")
    parser.add_argument("--batch-size", type=int, help="pictures (default 64), or sliding windows (default 4), at once")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures")
    parser.add_argument("--skip-bad-images", action="store_true", help="leave unreadable files out instead of stopping")
    add_feature_arguments(parser)
    add_inference_arguments(parser)
    add_detection_arguments(parser)


def run(args: argparse.Namespace) -> None:
    if args.batch_size is not None and args.batch_size < 1:
        raise UsageError("--batch-size must be at least 1")
    if args.knn or args.linear:
        refuse_options(args, SCALE_OPTIONS, of="segmenters and detectors", model="source of features")
        refuse_options(args, WINDOW_OPTIONS, of="segmenters", model="source of features")
        refuse_options(args, DETECTION_OPTIONS, of="detectors", model="source of features")
        eval_features(args)
        return
    if args.k is not None:
        raise UsageError("--k counts the neighbours of --knn; give that, too")
    task, folder = load_run(args.model)
    recipe = DataOptions.of_run(folder) if folder else None
    data = args.data or (recipe.data if recipe else None)
    if data is None:
        raise TranseptError(f"{args.model!r} names no data; give --data FOLDER")
    if isinstance(task, Detector):
        refuse_options(args, WINDOW_OPTIONS, of="segmenters", model="detector")
        eval_detector(task, recipe, data, args)
        return
    refuse_options(args, DETECTION_OPTIONS, of="detectors", model=type(task).__name__.lower())
    if isinstance(task, Segmenter):
        _eval_segmenter(task, recipe, data, args)
    else:
        refuse_options(args, SCALE_OPTIONS, of="segmenters and detectors", model="classifier")
        refuse_options(args, WINDOW_OPTIONS, of="segmenters", model="classifier")
        _eval_classifier(task, recipe, data, args)


def _eval_classifier(task: Classifier, recipe: DataOptions | None, data: str, args: argparse.Namespace) -> None:
    splits = load_splits(
        data,
        val_fraction=recipe.val_fraction if recipe else 0.2,
        skip_bad_images=args.skip_bad_images or bool(recipe and recipe.skip_bad_images),
    )
    _check_classes(task.classes, splits.classes, data)
    device = best_device()
    task.to(device).eval()
    loader = make_loader(TransformedSet(splits.val, transforms_for(task)), args.batch_size or 64, workers=args.workers)
    meter, started = AccuracyMeter(), time.monotonic()
    with torch.inference_mode():
        for images, labels in _tracked(loader):
            logits, labels = task(images.to(device)), labels.to(device)
            meter.update(task.loss(logits, labels), logits, labels)
    result = meter.means() | {
        "images": meter.samples,
        "seconds": round(time.monotonic() - started, 3),
        "skipped": plain_skipped(splits.skipped),
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


def _eval_segmenter(task: Segmenter, recipe: DataOptions | None, data: str, args: argparse.Namespace) -> None:
    inference = inference_of(args)
    splits = load_segmentation_splits(
        data,
        halves="val",
        reduce_zero_label=recipe.reduce_zero_label if recipe else None,
        val_fraction=recipe.val_fraction if recipe else 0.2,
        skip_bad_images=args.skip_bad_images or bool(recipe and recipe.skip_bad_images),
    )
    _check_classes(task.classes, splits.classes, data)
    task.to(best_device()).eval()
    meter, started = ConfusionMeter(len(task.classes)), time.monotonic()
    # Pictures keep their own sizes, so each is a batch of its own.
    loader = DataLoader(splits.val, batch_size=None, num_workers=args.workers)  # pyright: ignore[reportArgumentType]
    for picture, mask in _tracked(loader):
        (prediction,) = task.predict([picture], inference)
        meter.update(prediction.labels.cpu(), mask)
    seconds = time.monotonic() - started
    scores, pixels = meter.scores(), meter.matrix.sum(dim=1)
    if not pixels.sum():
        raise TranseptError(f"no pixel of the validation masks of {data!r} is of a class; all are to be ignored")
    absent = [name for name, count in zip(task.classes, pixels.tolist(), strict=True) if count == 0]
    rows = zip(task.classes, scores.iou.tolist(), scores.accuracy.tolist(), pixels.tolist(), strict=True)
    per_class = {
        name: {"iou": plain_number(iou), "accuracy": plain_number(accuracy), "pixels": count}
        for name, iou, accuracy, count in rows
    }
    if absent:
        noun = "1 class never occurs" if len(absent) == 1 else f"{len(absent)} classes never occur"
        shown = ", ".join(map(repr, absent[:10])) + (", ..." if len(absent) > 10 else "")
        print(f"transept: {noun} in the validation masks of {data!r}: {shown}", file=sys.stderr)
    if args.json:
        print_json(
            {
                "model": args.model,
                "data": data,
                "miou": scores.miou,
                "pixel_accuracy": scores.pixel_accuracy,
                "mean_accuracy": scores.mean_accuracy,
                "per_class": per_class,
                "absent": absent,
                "ratios": list(inference.ratios),
                "flip": inference.flip,
                "crop": args.crop,
                "stride": args.stride,
                "images": len(splits.val),
                "seconds": round(seconds, 3),
                "skipped": plain_skipped(splits.skipped),
            }
        )
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for head in ("IoU", "accuracy", "of all pixels"):
        table.add_column(head, justify="right")
    for name, row in per_class.items():
        share = f"{row['pixels'] / int(pixels.sum()):.2%}"
        table.add_row(escape(name), _percent(row["iou"]), _percent(row["accuracy"]), share)
    print_table(table)
    print(
        f"\nmIoU {scores.miou:.2%}   pixel accuracy {scores.pixel_accuracy:.2%}   "
        f"mean class accuracy {scores.mean_accuracy:.2%}   ({len(splits.val)} pictures, {seconds:.1f} s)"
    )


def _tracked(batches: Iterable[Any]) -> Iterable[Any]:
    console = Console(stderr=True)
    return track(batches, "evaluating", console=console, transient=True, disable=not sys.stderr.isatty())


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _check_classes(known: list[str], given: list[str], data: str) -> None:
    if known == given or (len(known) == len(given) == 1000):  # ImageNet folders are named by WordNet numbers, in order
        return
    odd = sorted(set(known) ^ set(given))
    what = f"{odd[0]!r} is only in {'the data' if odd[0] in given else 'the model'}" if odd else "their order differs"
    raise TranseptError(f"the classes of {data!r} are not the model's {len(known)}: {what}")
