"""Show one model: its costs beside the published ones, its paper and configuration, its published weights."""

import argparse
import dataclasses

from rich.console import Console
from rich.table import Table

from transept.analysis.counted import count_variant
from transept.cli.tables import billions, billions_as_printed, card, millions, millions_as_printed, print_json
from transept.models.registry import find_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="one of 'transept models'")


def run(args: argparse.Namespace) -> None:
    name, family = find_model(args.name)
    config = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(family.variants[name]).items()
    }
    item = card(name, count_variant(name)) | {"family": family.name, "paper": family.paper, "config": config}
    if args.json:
        print_json(item)
        return
    console = Console()
    printed = item["published"]
    console.print(f"[bold]{name}[/]  {family.paper}\n", highlight=False)
    grid = Table(box=None, pad_edge=False)
    for head in ("", "counted here", "published", "source"):
        grid.add_column(head, justify="right" if head in ("counted here", "published") else "left")
    source = printed["source"] or "-"
    params, macs = printed["parameters"], printed["macs"]
    grid.add_row("parameters", millions(item["parameters"]), millions_as_printed(params), source)
    grid.add_row("multiply-accumulates", billions(item["macs"]), billions_as_printed(macs), source)
    grid.add_row("activations", millions(item["activations"]), "-", "")
    console.print(grid)
    console.print("\nconfiguration: " + ", ".join(f"{key}={value}" for key, value in config.items()), highlight=False)
    for weights in item["weights"]:
        console.print(
            f"\n[bold]{weights['name']}[/]  ImageNet-1k top-1 {weights['top1']:.1f} % ({weights['source']}), "
            f"crop {weights['crop_pct']:g}, {weights['interpolation']}, {weights['licence']}\n  {weights['url']}",
            highlight=False,
            soft_wrap=True,
        )
    if item["note"]:
        console.print(f"\nnote: {item['note']}", highlight=False)
    if not item["weights"]:
        score = f"ImageNet-1k top-1 {printed['top1']:.1f} % ({source}); " if printed["top1"] else ""
        console.print(f"\n{score}no weights that can be downloaded by name; load your own with weights=FILE")
    console.print(f'\nPython: transept.create_model("{name}", pretrained={bool(item["weights"])})', highlight=False)
