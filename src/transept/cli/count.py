"""Count a model's parameters and multiply-accumulates for one image, part by part, beside the published figures."""

import argparse
from typing import Any

from rich.table import Table

from transept.cli.shared.tables import (
    billions,
    billions_as_printed,
    card,
    millions,
    millions_as_printed,
    print_json,
    print_table,
    system_card,
)
from transept.cost.count import Cost, count
from transept.cost.kept import count_variant, system_skeleton
from transept.cost.printed import DETECTOR_SIZE, SEGMENTER_SIZE, SYSTEM_SIZES
from transept.errors import UsageError
from transept.models.registry import find_model
from transept.tasks.detect import Detector


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        help="one of 'transept models', or a whole detector or segmenter: METHOD/MODEL, e.g. retinanet/cat_small, "
        "upernet/crossformer_base",
    )
    parser.add_argument(
        "--img-size",
        type=int,
        nargs="+",
        metavar="N",
        help=f"side of the image in pixels, or height and width (default: the model's own, {SEGMENTER_SIZE[0]} for "
        f"segmenters, {DETECTOR_SIZE[0]} {DETECTOR_SIZE[1]} for detectors)",
    )
    parser.add_argument("--depth", type=int, default=2, help="how many levels of parts to show (default 2)")
    parser.add_argument(
        "--schedule", choices=["1x", "3x"], help="which one where a detector was published in two forms (default 1x)"
    )
    parser.add_argument("--features-only", action="store_true", help="the pyramid of four maps, not the classifier")


def run(args: argparse.Namespace) -> None:
    if args.img_size is not None and (len(args.img_size) > 2 or min(args.img_size) < 1):
        raise UsageError(f"--img-size {' '.join(map(str, args.img_size))}: give a positive side, or height and width")
    size = None if args.img_size is None else (args.img_size[0], args.img_size[-1])
    method, slash, backbone = args.name.partition("/")
    if args.schedule and method not in Detector.methods:
        raise UsageError(f"--schedule is for detectors, METHOD/MODEL; {args.name!r} is none")
    if slash:
        if args.features_only:
            raise UsageError(f"--features-only is of the backbone alone: transept count {backbone} --features-only")
        three = args.schedule == "3x"
        system = system_skeleton(method, backbone, three=three)
        name = args.name + " 3x" * three
        printed_size = SYSTEM_SIZES.get(system.name, system.backbone.config.img_size)
        cost = count(system, size or printed_size)
        item = system_card(name, system, cost)
    else:
        name, family = find_model(args.name)
        cost = count_variant(name, size, features_only=args.features_only)
        item, printed_size = card(name, cost), family.variants[name].img_size
    parts = {
        part: {"parameters": parameters, "macs": macs}
        for part, (parameters, macs) in cost.modules.items()
        if part and part.count(".") < args.depth and (parameters or macs or not slash)
    }
    if args.json:
        print_json(item | {"modules": parts})
        return
    _print(item, cost, parts, None if args.features_only else printed_size)


def _print(item: dict[str, Any], cost: Cost, parts: dict[str, Any], printed_size: tuple[int, int] | None) -> None:
    """`printed_size` is the image that published operations are for; None: no published figures are of this model."""
    height, width = cost.img_size
    title = f"{item['name']} at {height} x {width}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("part", no_wrap=True)
    for head in ("parameters", "MACs", "share"):
        table.add_column(head, justify="right", no_wrap=True)
    for part, figures in parts.items():
        indent, name = "  " * part.count("."), part
        if part == "auxiliary_head":
            name = "auxiliary_head (in training only)"
        idle = part.startswith("auxiliary_head")
        macs, share = ("-", "-") if idle else (billions(figures["macs"]), f"{figures['macs'] / cost.macs:.1%}")
        table.add_row(indent + name, millions(figures["parameters"]), macs, share)
    table.add_section()
    table.add_row("total", millions(cost.parameters), billions(cost.macs), "100.0%", style="bold")
    if item.get("macs_as_published"):
        table.add_row("as the authors counted", "", billions(item["macs_as_published"]), "", style="dim")
    printed = item["published"]
    if printed["parameters"] and printed_size is not None:
        macs = billions_as_printed(printed["macs"] if sorted(cost.img_size) == sorted(printed_size) else None)
        table.add_row(
            f"published ({printed['source']})", millions_as_printed(printed["parameters"]), macs, "", style="dim"
        )
    print_table(table)
