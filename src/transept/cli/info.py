"""Show one model: its costs beside the published ones, its paper and configuration, its published weights."""

import argparse
import dataclasses

from rich.console import Console
from rich.table import Table

from transept.cli.shared.tables import (
    billions,
    billions_as_printed,
    card,
    millions,
    millions_as_printed,
    people_console,
    print_json,
    print_table,
    scores_as_printed,
)
from transept.cost.kept import cost_of
from transept.models.registry import find_model
from transept.weights.catalogue.records import Checkpoint, checkpoints_of, unpublished
from transept.weights.fetch.locate import how_to_get


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="one of 'transept models'")


def run(args: argparse.Namespace) -> None:
    name, family = find_model(args.name)
    config = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(family.variants[name]).items()
    }
    item = card(name, cost_of(name)) | {"family": family.name, "paper": family.paper, "config": config}
    if args.json:
        print_json(item)
        return
    console = people_console()
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
    print_table(grid)
    console.print("\nconfiguration: " + ", ".join(f"{key}={value}" for key, value in config.items()), highlight=False)
    checkpoints = checkpoints_of(name)
    for task in dict.fromkeys(checkpoint.task for checkpoint in checkpoints):
        console.print(f"\n[bold]weights, {task}[/]", highlight=False)
        for checkpoint in checkpoints:
            if checkpoint.task == task:
                _print_checkpoint(console, checkpoint)
    if item["note"]:
        console.print(f"\nnote: {item['note']}", highlight=False)
    if not checkpoints:
        score = f"ImageNet-1k top-1 {printed['top1']:.1f} % ({source}); " if printed["top1"] else ""
        why = f"{unpublished(name)}; " if unpublished(name) else ""
        console.print(f"\n{score}{why}load your own with weights=FILE", highlight=False)
    console.print(f'\nPython: transept.create_model("{name}", pretrained={bool(checkpoints)})', highlight=False)


def _print_checkpoint(console: Console, checkpoint: Checkpoint) -> None:
    """Its name and scores, how it wants its pictures, and how to get it; addresses stay in one piece, to be copied."""
    scores = scores_as_printed(checkpoint.scores)
    source = f" ({checkpoint.source})" if checkpoint.source else ""
    preprocessing = checkpoint.preprocessing
    size = "x".join(map(str, preprocessing.img_size))
    size = {
        "center": f"{size}, crop {preprocessing.crop_pct:g}",
        "squash": f"pressed into {size}",
        "fit": f"scaled to fit {size}",
    }[preprocessing.crop_mode]
    licence = checkpoint.licence or "licence not stated"
    facts = f"{checkpoint.origin}, {checkpoint.format}, {licence}, {size}, {preprocessing.interpolation}"
    console.print(f"  [bold]{checkpoint.name}[/]  {scores}{source}", highlight=False, soft_wrap=True)
    options = ", ".join(f"{option}={value}" for option, value in checkpoint.options.items())
    said = (facts, options and f"built with {options}", checkpoint.unreadable, checkpoint.note)
    for line in (*said, *how_to_get(checkpoint)):
        if line:
            console.print(f"    {line}", highlight=False, soft_wrap=True)
