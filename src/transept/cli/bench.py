"""Time models beside timm's in the same run: latency, throughput, peak memory, share of a matrix product's rate."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import get_args

import torch
from rich.table import Table

from transept.bench.figure import draw_benchmark
from transept.bench.timing import Benchmark, Form, bench
from transept.cli.shared.tables import print_json, print_table
from transept.errors import UsageError
from transept.files import write_atomically

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PICTURES = (".png", ".pdf", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="one or more of 'transept models'")
    parser.add_argument(
        "--peers",
        nargs="*",
        metavar="NAME",
        help="timm's own form of the models beside them, and further timm models, e.g. deit_small_patch16_224",
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[], metavar="N", help="sides (default: the model's)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], metavar="N", help="default 1 8")
    parser.add_argument(
        "--form", default="eager,fused", help=f"some of {','.join(get_args(Form))}, by commas (default eager,fused)"
    )
    parser.add_argument("--device", default="cpu", help="default cpu")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32")
    parser.add_argument("--train", action="store_true", help="training steps, forward and backward")
    parser.add_argument("--repetitions", type=int, default=15, metavar="N", help="timed calls of each (default 15)")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: torch's)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="accuracy over speed; with --sizes time over resolution"
    )


def run(args: argparse.Namespace) -> None:
    # The profiler writes about itself and about GPUs that are not there.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    forms = args.form.split(",")
    if args.train and args.form == "eager,fused":
        forms = ["eager"]
    if args.picture is not None and args.picture.suffix not in _PICTURES:
        raise UsageError(f"--picture {args.picture}: give a file ending in {', '.join(_PICTURES)}")
    for file in (args.out, args.picture):
        if file is not None and not file.parent.is_dir():
            raise UsageError(f"{file.parent} is no folder; make it, or give another place for {file.name}")
    if args.threads is not None:
        if args.threads < 1:
            raise UsageError(f"--threads {args.threads} must be positive")
        torch.set_num_threads(args.threads)
    result = bench(
        args.names,
        peers=args.peers,
        sizes=args.sizes,
        batches=args.batch,
        forms=forms,
        device=args.device,
        dtype=_DTYPES[args.dtype],
        training=args.train,
        repetitions=args.repetitions,
        report=lambda line: print(line, file=sys.stderr),
    )
    if args.out is not None:
        text = json.dumps(result.as_dict(), indent=1) + "\n"
        write_atomically(args.out, lambda path: path.write_text(text))
    if args.picture is not None:
        draw_benchmark(result, args.picture)
    if args.json:
        print_json(result.as_dict())
    else:
        _print(result)


def _print(result: Benchmark) -> None:
    machine = result.machine
    title = (
        f"{machine['processor']}, {machine['threads']} threads, {machine['dtype']}:"
        f" a matrix product runs {machine['product_gmacs']:.0f} G multiply-accumulates a second"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("form", no_wrap=True)
    for head in ("size", "batch", "p50", "p90", "images/s", "memory", "of product"):
        table.add_column(head, justify="right", no_wrap=True)
    for timing in result.timings:
        table.add_row(
            timing.model,
            f"{timing.source} {timing.form}" + " step" * timing.training,
            f"{timing.img_size[0]} x {timing.img_size[1]}",
            str(timing.batch),
            f"{1e3 * timing.p50:.1f} ms",
            f"{1e3 * timing.p90:.1f} ms",
            f"{timing.images_per_second:.1f}",
            f"{timing.peak_memory / 2**20:.0f} MiB",
            f"{timing.share:.0%}",
            style="dim" if timing.source != "transept" else None,
        )
    print_table(table)
