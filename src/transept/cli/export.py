"""Write a trained model for other runtimes, and check every file against eager.

model.onnx is ONNX, model.pt2 torch.export's, model.xml OpenVINO's, and model.package.pt2 a package: the model compiled
for this processor, which loads in a moment wherever torch is. Detectors are exported whole, with decoding and
non-maximum suppression, but not as packages. Each file is read back, run on a picture by its runtime, and is kept only
if it gives what the model gives. Classifiers, segmenters and backbones take any number of pictures at once, detectors
one. Height and width are fixed, or with --dynamic-size any, where the architecture permits.
"""

import argparse
import time
import warnings
from _thread import interrupt_main
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import TIMEOUT_MAX, Event, Thread, Timer
from typing import Any, get_args

import torch
from rich.table import Table

from transept.cli.shared.reading import add_reading, names_reading, set_reading
from transept.cli.shared.tables import print_json, print_table
from transept.data.classification.sets import Splits
from transept.data.classification.transforms import transforms_for
from transept.data.images import Picture, find_images, read_image
from transept.data.loading import TransformedSet, make_loader
from transept.data.measure import spread
from transept.errors import TranseptError, TranseptWarning, UsageError, say
from transept.export.backbone import export_backbone
from transept.export.batches import TOLERANCE
from transept.export.detector import BOX_TOLERANCE, MASK_TOLERANCE, SCORE_TOLERANCE
from transept.export.int8 import CALIBRATION_PICTURES, compare_scores, export_int8, latency_ratio
from transept.export.onnx import DEFAULT_FORMATS, FILES, LEAST_OPSET, Exported, Format, check_formats, check_opset
from transept.inference.compile import BFLOAT16_LIMIT, Precision
from transept.models.backbone import Backbone
from transept.tasks.data_options import DataOptions
from transept.tasks.load import load, named_checkpoint, names_model, trained_file
from transept.tasks.saving import describe, rebuild
from transept.tasks.task import Task
from transept.weights.load import create_model, load_weights

_FOLDER = "export"
_UNITS = {
    "boxes": f"pixels (limit {BOX_TOLERANCE:g})",
    "scores": f"(limit {SCORE_TOLERANCE:g})",
    "masks": f"(limit {MASK_TOLERANCE:g})",
}
_RELATIVE = "of its standard deviation (limit {:g})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_NAME", help="a run folder, a .safetensors file, or a model's name")
    parser.add_argument(
        "--out", type=Path, help=f"where to write (default: {_FOLDER} in the run folder, else {_FOLDER}/NAME)"
    )
    parser.add_argument(
        "--img-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="of the pictures the files take (default: what holds the preprocessing's scale, or a classifier's own)",
    )
    parser.add_argument(
        "--dynamic-size", action="store_true", help="one graph for pictures of any size (XCiT, CaiT, BiXT and CabViT-P)"
    )
    parser.add_argument(
        "--backbone", action="store_true", help="the backbone alone, which gives maps of strides 4, 8, 16 and 32"
    )
    parser.add_argument(
        "--int8", action="store_true", help="also model.int8.onnx, a classifier with 8-bit weights and activations"
    )
    parser.add_argument(
        "--calibration",
        metavar="FOLDER",
        help="pictures for the ranges of --int8 (default: some of the run's own training pictures)",
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="the picture to check on (default: a photograph)")
    parser.add_argument(
        "--format",
        nargs="+",
        metavar="FORMAT",
        default=list(DEFAULT_FORMATS),
        help=f"some of {', '.join(FILES)} (default: {' '.join(DEFAULT_FORMATS)})",
    )
    parser.add_argument(
        "--opset", type=int, metavar="N", help=f"of ONNX, {LEAST_OPSET} or more (default: what torch recommends)"
    )
    parser.add_argument(
        "--dtype",
        choices=get_args(Precision),
        default="auto",
        help="of a package, and what OpenVINO is to compute in (default: auto, the quickest here within the limit)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        default=_LONGEST,
        help="stop where the files are not written and checked by then (default %(default)g)",
    )
    add_reading(parser, auto=False)


def run(args: argparse.Namespace) -> None:
    formats = check_formats(args.format)
    check_opset(args.opset, formats)
    if not 0 < args.timeout <= TIMEOUT_MAX:
        raise UsageError(f"--timeout {args.timeout:g} must be greater than 0, and {TIMEOUT_MAX:.0f} at most")
    _check_options(args)
    task = None if args.backbone and names_model(args.model) else load(args.model)
    if task is not None:
        set_reading(args, task)
    elif names_reading(args):
        raise UsageError("--bands and --pixel_range are for what answers, and a name's --backbone alone reads no files")
    picture = None if args.image is None else task.read(args.image) if task else read_image(args.image)
    folder = task.run if task else None
    out = args.out or (folder / _FOLDER if folder else Path(_FOLDER, _name(args.model)))
    if out.exists() and not out.is_dir():
        raise TranseptError(f"--out {out} is a file; give a folder")
    if args.int8 and task and not task.has_int8:
        raise UsageError(f"--int8 is for classifiers, and {args.model!r} is a {task.kind}")
    splits = task.load_data(DataOptions.of_run(task.run)) if args.int8 and task and task.run else None
    calibration = _calibration(args.calibration, task, splits) if args.int8 else []
    size = None if args.img_size is None else (args.img_size[0], args.img_size[1])
    options: dict[str, Any] = dict(
        img_size=size,
        formats=formats,
        picture=picture,
        dynamic_size=args.dynamic_size,
        dtype=args.dtype,
        opset=args.opset,
    )
    with _working(formats), _within(args.timeout):
        if args.backbone or task is None:
            exported = export_backbone(_pyramid(args.model, task), out, **options)
        else:
            exported = task.export(out, **options)
    int8 = _int8(task, out, calibration, splits) if args.int8 else None
    limits = _limits(exported)
    if args.json:
        print_json(
            {
                "model": args.model,
                "task": exported.about["task"],
                "img_size": exported.about["img_size"],
                "files": {kind: str(path) for kind, path in exported.files.items()},
                "errors": exported.errors,
                "image": None if args.image is None else str(args.image),
                "dtype": exported.about.get("dtype", "float32"),
                "limits": limits,
                "int8": int8,
            }
        )
        return
    _print(exported)
    print(limits)
    if int8 is not None:
        _print_int8(int8)


@contextmanager
def _working(formats: Sequence[Format]) -> Iterator[None]:
    """Says on stderr that it is at work, where that takes long: deep models take minutes to trace."""
    names, done, start = ", ".join(FILES[kind] for kind in formats), Event(), time.monotonic()

    def speak() -> None:
        while not done.wait(_SILENCE):
            say(f"still writing and checking {names}, for {time.monotonic() - start:.0f} s")

    speaker = Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        done.set()
        speaker.join()


_SILENCE = 10.0
"""Seconds without a word."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Ends the work as Ctrl-C does, in the main thread at its next step in Python: no half file gets its name.

    Raises:
        TranseptError: it took longer.
    """
    over = Event()

    def stop() -> None:
        over.set()
        interrupt_main()

    timer = Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        if not over.is_set():
            raise
        raise TranseptError(
            f"the export took longer than --timeout {seconds:g} seconds and was stopped; nothing was written; give "
            "more, one --format at a time, or a shallower model"
        ) from None
    finally:
        timer.cancel()


_LONGEST = 3600.0
"""Seconds: twenty times what the largest CaiT takes for one file on one core (docs/export.md)."""


def _check_options(args: argparse.Namespace) -> None:
    if args.calibration is not None and not args.int8:
        raise UsageError("--calibration is for --int8; give that, too")
    if args.int8 and "onnx" not in args.format:
        raise UsageError("--int8 is made of model.onnx; give --format onnx, too")
    if args.int8 and (args.backbone or args.img_size or args.dynamic_size):
        raise UsageError(
            "--int8 is for classifiers at their own size; leave out --backbone, --img-size, --dynamic-size"
        )


def _pyramid(source: str, task: Task | None) -> Backbone:
    """The pyramid of a detector or segmenter as it was trained; else one with the weights of a classifier."""
    if task is None:
        model = create_model(source, features_only=True)
        weights: str | Path = named_checkpoint(source).name
    elif task.is_dense:
        return task.backbone
    else:
        model = rebuild(describe(task.backbone), features_only=True)
        weights = trained_file(Path(source))
    fresh = load_weights(model, weights).missing
    if fresh:
        warnings.warn(
            f"{len(fresh)} parameters of the pyramid, {fresh[0]} first, are not in {str(weights)!r} and have random "
            "values; export the backbone of a detector or segmenter that was trained",
            TranseptWarning,
            stacklevel=2,
        )
    return model.eval()


def _calibration(source: str | None, task: Task | None, splits: Splits | None) -> list[Picture]:
    """Pictures spread evenly over a folder, or over the training pictures of a run."""
    if source is not None and task is not None:
        files = find_images([source])
        return [task.read(files[i]) for i in spread(len(files), CALIBRATION_PICTURES)]
    if splits is None:
        raise UsageError("--int8 reads the ranges of activations off pictures; give --calibration FOLDER")
    return [splits.train[i][0] for i in spread(len(splits.train), CALIBRATION_PICTURES)]


def _int8(task: Any, out: Path, calibration: list[Picture], splits: Splits | None) -> dict[str, Any]:
    """Write the file and say how it compares, on the run's validation pictures where it has any."""
    quantised = export_int8(task, out, calibration)
    transform: Any = transforms_for(task)
    image = transform(calibration[0])[None]
    facts: dict[str, Any] = {
        "file": str(quantised.file),
        "layers": quantised.layers,
        "bytes": quantised.sizes,
        "rms_error": quantised.error,
        "latency_ratio": latency_ratio(out, image),
        "threads": torch.get_num_threads(),
        "calibration_images": len(calibration),
    }
    if splits is not None:
        compared = compare_scores(out, task, make_loader(TransformedSet(splits.val, transform), 64))
        facts |= {compared.key: dict(zip(("float", "int8"), compared.scores, strict=True)), "images": compared.images}
    return facts


def _name(source: str) -> str:
    """A folder's name for a weights file, or for a model's name (`upernet/xcit_small_12_p16`)."""
    path = Path(source)
    return path.stem if path.suffix == ".safetensors" else source.replace("/", "-")


def _limits(exported: Exported) -> str:
    height, width = exported.about["img_size"]
    if "size_step" not in exported.about:
        return (
            f"Takes one picture at a time, padded to {height} x {width}, and no batch: the number of objects differs "
            "from picture to picture."
        )
    step = exported.about["size_step"]
    if step is not None:
        return f"Takes any number of pictures at once, of any one size whose sides are multiples of {step}."
    return f"Takes any number of pictures at once, all of {height} x {width} and of no other size."


def _print(exported: Exported) -> None:
    flipped = any(errors.get("flipped") for errors in exported.errors.values())
    close = flipped or exported.about.get("dtype") == "bfloat16"
    how = "within the limits" if close else "up to rounding"
    print(f"Read back, run on a picture, and equal to the model {how}:\n")
    table = Table(box=None, pad_edge=False)
    for head in ("file", "output", "largest difference from eager"):
        table.add_column(head, no_wrap=True)
    for kind, path in exported.files.items():
        errors: dict[str, Any] = dict(exported.errors[kind])
        number = errors.pop("detections", None)
        alone = errors.pop("flipped", 0)
        half = exported.about.get("dtype") == "bfloat16" and kind in ("package", "openvino")
        relative = _RELATIVE.format(BFLOAT16_LIMIT if half else TOLERANCE)
        name = f"{path}" if number is None else f"{path} ({number:.0f} objects compared)"
        if alone:
            name = f"{name[:-1]}, {alone:.0f} found by one of the two only)"
        for output, error in errors.items():
            table.add_row(name, output, f"{error:.1e} {_UNITS.get(output, relative)}")
            name = ""
    print_table(table)


def _print_int8(facts: dict[str, Any]) -> None:
    before, after = (facts["bytes"][kind] / 1e6 for kind in ("float", "int8"))
    print(
        f"{facts['file']}: {facts['layers']} layers in 8 bits, {after:.2f} MB for {before:.2f}, "
        f"{facts['latency_ratio']:.2f} of the time at batch 1, calibrated on {facts['calibration_images']} pictures"
    )
    for key, title in (("top1", "top-1"), ("map", "mAP")):
        if key in facts:
            before, after = facts[key].values()
            print(f"{title} of {facts['images']} validation pictures: {before:.2%} float, {after:.2%} int8")
