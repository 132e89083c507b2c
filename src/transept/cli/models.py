"""List the models: parameters and multiply-accumulates, counted here and as published, and published accuracy."""

import argparse

from rich.table import Table

from transept.analysis.counted import kept_counts
from transept.cli.tables import (
    billions,
    billions_as_printed,
    card,
    millions,
    millions_as_printed,
    print_json,
    print_table,
)
from transept.errors import unknown
from transept.models.registry import list_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("glob", nargs="?", default="*", help="shell pattern, e.g. 'cait_s*'")


def run(args: argparse.Namespace) -> None:
    names = list_models(args.glob)
    if not names:
        raise unknown("model", args.glob, list_models(), hint="'transept models' lists them all")
    costs = kept_counts()
    cards = [card(name, costs[name]) for name in names]
    if args.json:
        print_json(cards)
        return
    table = Table(title=f"{len(cards)} models", title_justify="left", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("size", justify="right")
    for head in ("parameters", "published", "MACs", "published", "top-1"):
        table.add_column(head, justify="right", no_wrap=True, style="dim" if head == "published" else None)
    table.add_column("published weights", no_wrap=True)
    for item in cards:
        printed, weights = item["published"], item["weights"]
        scores = [entry["top1"] for entry in weights] or ([printed["top1"]] if printed["top1"] else [])
        table.add_row(
            item["name"] + ("*" if item["note"] else ""),
            str(item["img_size"][0]),
            millions(item["parameters"]),
            millions_as_printed(printed["parameters"]),
            billions(item["macs"]),
            billions_as_printed(printed["macs"]),
            " / ".join(f"{top1:.1f}" for top1 in scores) or "-",
            ", ".join(entry["name"].partition(".")[2] for entry in weights)
            or ("see the note" if item["note"] else "-"),
        )
    print_table(table)
    for item in cards:
        if item["note"]:
            print(f"* {item['name']}: {item['note']}")
