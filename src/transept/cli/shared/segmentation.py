"""What `eval` and `predict` share for segmenters: the options of inference, and which options belong to which task."""

import argparse
from collections.abc import Sequence

from transept.errors import UsageError
from transept.tasks.segment import MULTI_SCALE, Inference

SCALE_OPTIONS, WINDOW_OPTIONS = ("multi_scale", "flip"), ("crop", "stride")


def add_inference_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("segmenters and detectors")
    ratios = ", ".join(f"{ratio:g}" for ratio in MULTI_SCALE)
    group.add_argument(
        "--multi-scale",
        action="store_true",
        help=f"mean over the scales {ratios}, as published; detectors: what is found with short sides of 0.6 to 1 of "
        "their scale, merged",
    )
    group.add_argument("--flip", action="store_true", help="the picture and its mirror image, too")
    group = parser.add_argument_group("segmenters only")
    group.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), help="sliding windows instead of the whole")
    group.add_argument(
        "--stride", type=int, nargs=2, metavar=("H", "W"), help="from window to window (default two thirds of --crop)"
    )


def inference_of(args: argparse.Namespace) -> Inference:
    """The options as `Inference`; `--batch-size` counts windows."""
    if args.batch_size is not None and args.crop is None:
        raise UsageError("--batch-size counts a segmenter's sliding windows; give their size with --crop H W")
    for name in ("crop", "stride"):
        given = getattr(args, name)
        if given is not None and min(given) < 1:
            raise UsageError(f"--{name} {given[0]} {given[1]}: give a positive height and width")
    if args.stride is not None and args.crop is None:
        raise UsageError("--stride is of sliding windows; give their size with --crop H W")
    if args.stride is not None and (args.stride[0] > args.crop[0] or args.stride[1] > args.crop[1]):
        raise UsageError(
            f"--stride {args.stride[0]} {args.stride[1]} is larger than --crop {args.crop[0]} {args.crop[1]} and would "
            "leave pixels out; make it smaller"
        )
    return Inference(
        ratios=MULTI_SCALE if args.multi_scale else (1.0,),
        flip=args.flip,
        crop=tuple(args.crop) if args.crop else None,
        stride=tuple(args.stride) if args.stride else None,
        window_batch=4 if args.batch_size is None else args.batch_size,
    )


def refuse_options(args: argparse.Namespace, options: Sequence[str], *, of: str, model: str) -> None:
    """Raises `UsageError` where one of `options`, which are of other models, was given."""
    for option in options:
        if getattr(args, option) not in (None, False):
            raise UsageError(f"--{option.replace('_', '-')} is for {of}, and {args.model!r} is a {model}")
