"""Count a model's parameters and multiply-accumulates for one image, part by part, beside the published figures."""

import argparse

from rich.table import Table

from transept.analysis.counted import count_variant
from transept.cli.tables import (
    billions,
    billions_as_printed,
    card,
    millions,
    millions_as_printed,
    print_json,
    print_table,
)
from transept.models.registry import find_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="one of 'transept models'")
    parser.add_argument("--img-size", type=int, help="side of the image in pixels (default: the model's own)")
    parser.add_argument("--depth", type=int, default=2, help="how many levels of parts to show (default 2)")
    parser.add_argument("--features-only", action="store_true", help="the pyramid of four maps, not the classifier")


def run(args: argparse.Namespace) -> None:
    name, family = find_model(args.name)
    cost = count_variant(name, args.img_size, features_only=args.features_only)
    item = card(name, cost)
    parts = {
        part: {"parameters": parameters, "macs": macs}
        for part, (parameters, macs) in cost.modules.items()
        if part and part.count(".") < args.depth
    }
    if args.json:
        print_json(item | {"modules": parts})
        return
    height, width = cost.img_size
    table = Table(title=f"{name} at {height} x {width}", title_justify="left", box=None, pad_edge=False)
    table.add_column("part", no_wrap=True)
    for head in ("parameters", "MACs", "share"):
        table.add_column(head, justify="right", no_wrap=True)
    for part, figures in parts.items():
        indent = "  " * part.count(".")
        share = f"{figures['macs'] / cost.macs:.1%}"
        table.add_row(indent + part, millions(figures["parameters"]), billions(figures["macs"]), share)
    table.add_section()
    table.add_row("total", millions(cost.parameters), billions(cost.macs), "100.0%", style="bold")
    printed = item["published"]
    if printed["parameters"] and not args.features_only:
        native = (height, width) == family.variants[name].img_size
        macs = billions_as_printed(printed["macs"] if native else None)
        table.add_row(
            f"published ({printed['source']})", millions_as_printed(printed["parameters"]), macs, "", style="dim"
        )
    print_table(table)
