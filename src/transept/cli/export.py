"""Write a trained model as model.onnx (ONNX) and model.pt2 (torch.export), and check both against eager.

Detectors are exported whole, with decoding and non-maximum suppression. Each file is read back, run on a picture (ONNX
by onnxruntime), and is kept only if it gives what the model gives. Height and width are fixed; classifiers and
segmenters take any number of pictures at once, detectors one.
"""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from transept.cli.runs import load_run
from transept.cli.tables import print_json, print_table
from transept.data.images import read_image
from transept.errors import TranseptError
from transept.export.detector import BOX_TOLERANCE, MASK_TOLERANCE, SCORE_TOLERANCE, export_detector
from transept.export.logits import TOLERANCE, export_logits
from transept.export.onnx import FILES, Exported, check_formats
from transept.tasks.detect import Detector

_FOLDER = "export"
_UNITS = {
    "boxes": f"pixels (limit {BOX_TOLERANCE:g})",
    "scores": f"(limit {SCORE_TOLERANCE:g})",
    "masks": f"(limit {MASK_TOLERANCE:g})",
    "logits": f"of their standard deviation (limit {TOLERANCE:g})",
}


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
        help="of the pictures the files take (default: what holds the preprocessing's scale; a classifier has its own)",
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="the picture to check on (default: a photograph)")
    parser.add_argument("--format", nargs="+", metavar="FORMAT", default=list(FILES), help="onnx, pt2 (default: both)")


def run(args: argparse.Namespace) -> None:
    check_formats(args.format)
    picture = None if args.image is None else read_image(args.image)
    task, folder = load_run(args.model)
    out = args.out or (folder / _FOLDER if folder else Path(_FOLDER, _name(args.model)))
    if out.exists() and not out.is_dir():
        raise TranseptError(f"--out {out} is a file; give a folder")
    size = None if args.img_size is None else (args.img_size[0], args.img_size[1])
    options: dict[str, Any] = dict(img_size=size, formats=args.format, picture=picture)
    if isinstance(task, Detector):
        exported = export_detector(task, out, **options)
    else:
        exported = export_logits(task, out, **options)
    limits = _limits(exported, one=isinstance(task, Detector))
    if args.json:
        print_json(
            {
                "model": args.model,
                "task": exported.about["task"],
                "img_size": exported.about["img_size"],
                "files": {kind: str(path) for kind, path in exported.files.items()},
                "errors": exported.errors,
                "image": None if args.image is None else str(args.image),
                "limits": limits,
            }
        )
        return
    _print(exported)
    print(limits)


def _name(source: str) -> str:
    """A folder's name for a weights file, or for a model's name (`upernet/xcit_small_12_p16`)."""
    path = Path(source)
    return path.stem if path.suffix == ".safetensors" else source.replace("/", "-")


def _limits(exported: Exported, *, one: bool) -> str:
    height, width = exported.about["img_size"]
    if one:
        return (
            f"Takes one picture at a time, padded to {height} x {width}, and no batch: the number of objects differs "
            "from picture to picture."
        )
    return f"Takes any number of pictures at once, all of {height} x {width} and of no other size."


def _print(exported: Exported) -> None:
    table = Table(box=None, pad_edge=False)
    for head in ("file", "output", "largest difference from eager"):
        table.add_column(head, no_wrap=True)
    for kind, path in exported.files.items():
        errors: dict[str, Any] = dict(exported.errors[kind])
        number = errors.pop("detections", None)
        name = f"{path}" if number is None else f"{path} ({number:.0f} objects compared)"
        for output, error in errors.items():
            table.add_row(name, output, f"{error:.1e} {_UNITS[output]}")
            name = ""
    print_table(table)
