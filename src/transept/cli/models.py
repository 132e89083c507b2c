"""List the models: parameters and multiply-accumulates, counted here and as published, and published accuracy.

With --sort speed also images per second, one at a time, as measured once on the machine that is named below the table.
"""

import argparse
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from rich.table import Table

from transept.bench.speeds import kept_speeds, speeds_machine
from transept.cli.shared.tables import (
    billions,
    billions_as_printed,
    card,
    millions,
    millions_as_printed,
    percent,
    print_json,
    print_table,
    table_width,
)
from transept.cost.kept import cost_of
from transept.errors import TranseptError, UsageError, unknown
from transept.models.registry import list_models
from transept.weights.catalogue.records import CHECKPOINTS, METRICS, Checkpoint

_WIDE = 110
"""Characters that all columns need; a narrower terminal goes without the published costs."""
_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}
_TASKS = {"classify": "classification", "detect": "detection", "segment": "segmentation", "pretrain": "self-supervised"}
_OTHERS = {
    "detect": "Detectors by average precision ('transept count METHOD/MODEL' counts one)",
    "segment": "Segmenters by mIoU ('transept count METHOD/MODEL' counts one)",
    "pretrain": "What was learnt without labels",
}
"""Tasks whose scores are no classifier's."""
_ORDERS: dict[str, Callable[[dict[str, Any]], float]] = {
    "speed": lambda item: -_fastest(item),
    "top1": lambda item: -_best_top1(item),
    "params": lambda item: item["parameters"],
    "macs": lambda item: item["macs"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("glob", nargs="?", help="shell pattern, e.g. 'cait_s*'")
    parser.add_argument(
        "--weights",
        nargs="?",
        const="*",
        metavar="GLOB",
        help="list the published checkpoints instead, all or those whose name.tag matches, e.g. '*.fb_dist_in1k'",
    )
    parser.add_argument("--sort", choices=_ORDERS, help="the best first; default: by name")
    parser.add_argument("--max-params", type=_number, metavar="N", help="at most so many parameters, e.g. 30M")
    parser.add_argument("--max-macs", type=_number, metavar="N", help="at most so many multiply-accumulates, e.g. 5G")
    parser.add_argument(
        "--task",
        choices=_TASKS,
        help="with published weights of a classifier, a detector, a segmenter, or of DINO; with their scores",
    )


def run(args: argparse.Namespace) -> None:
    if args.weights is not None:
        _list_weights(args)
        return
    names = list_models(args.glob or "*")
    if not names:
        raise unknown("model", args.glob, list_models(), hint="'transept models' lists them all")
    cards = _chosen([card(name, cost_of(name)) | {"images_per_second": _speeds(name)} for name in names], args)
    if args.json:
        print_json(cards)
        return
    wide = table_width() >= _WIDE
    table = Table(title=f"{len(cards)} models", title_justify="left", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for head in ("size", "parameters" if wide else "params", "published", "MACs", "published", "top-1"):
        if wide or head != "published":
            table.add_column(head, justify="right", no_wrap=True, style="dim" if head == "published" else None)
    if args.sort == "speed":
        table.add_column("images/s", justify="right", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    for item in cards:
        printed = item["published"]
        params = [millions(item["parameters"]), millions_as_printed(printed["parameters"])]
        macs = [billions(item["macs"]), billions_as_printed(printed["macs"])]
        table.add_row(
            item["name"] + ("*" if item["note"] else ""),
            str(item["img_size"][0]),
            *(params + macs if wide else (params[0], macs[0])),
            _official_top1(item) or "-",
            *([f"{_fastest(item):.3g}" if _fastest(item) else "-"] if args.sort == "speed" else []),
            _files(item["weights"]) or ("see note" if item["note"] else "-"),
        )
    print_table(table)
    if args.sort == "speed" and (about := speeds_machine()):
        where = f"{about['processor']}, {about['threads']} threads"
        print(f"images/s: one at a time, fused, {about['fast']}, on {where}; yours: 'transept bench NAME'")
    if args.task in _OTHERS:
        task, names = _TASKS[args.task], {item["name"] for item in cards}
        print(f"\nSize, costs and top-1 are those of the classifier of that name. {_OTHERS[args.task]}:")
        entries = [entry for entry in CHECKPOINTS if entry.task == task and entry.registered in names]
        print_table(_weights_table(task, sorted(entries, key=lambda entry: -max(entry.scores.values(), default=0))))
    for item in cards:
        if item["note"]:
            print(f"* {item['name']}: {item['note']}")


def _chosen(cards: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Those within the limits, in the order that is asked for."""
    for key, most in (("parameters", args.max_params), ("macs", args.max_macs)):
        cards = [item for item in cards if most is None or item[key] <= most]
    if args.task:
        cards = [item for item in cards if any(each["task"] == _TASKS[args.task] for each in item["weights"])]
    if not cards:
        raise TranseptError("no model is within these limits; allow more, or leave one out")
    return sorted(cards, key=_ORDERS[args.sort]) if args.sort else cards


def _speeds(name: str) -> dict[str, dict[int, float]]:
    speed = kept_speeds().get(name)
    return speed.images_per_second if speed else {}


def _fastest(item: dict[str, Any]) -> float:
    return item["images_per_second"].get("fast", {}).get(1, 0.0)


def _best_top1(item: dict[str, Any]) -> float:
    scores = [weights["top1"] or 0.0 for weights in item["weights"]]
    return max([*scores, item["published"]["top1"] or 0.0])


def _number(text: str) -> float:
    """`30M`, `5G`, `400k` or a plain number."""
    try:
        return float(text[:-1] if text[-1:] in _UNITS else text) * _UNITS.get(text[-1:], 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 30M or 5G") from None


def _official_top1(item: dict[str, Any]) -> str:
    """The scores of all the authors' classifiers, each score once."""
    scores = [weights["top1"] for weights in item["weights"] if weights["origin"] == "official" and weights["top1"]]
    return " / ".join(f"{top1:.1f}" for top1 in dict.fromkeys(scores or filter(None, [item["published"]["top1"]])))


def _files(weights: list[dict[str, Any]]) -> str:
    """`7 files`, or `1 by hand` where the default is behind a share page."""
    if not weights:
        return ""
    files = "file" if len(weights) == 1 else "files"
    return f"{len(weights)} {files if weights[0]['url'] else 'by hand'}"


def _list_weights(args: argparse.Namespace) -> None:
    pattern = args.weights if args.glob is None else args.glob
    if args.glob is not None and args.weights != "*":
        raise UsageError(f"two patterns, {args.glob!r} and {args.weights!r}; give one, after --weights")
    chosen = [entry for entry in CHECKPOINTS if fnmatchcase(entry.name, pattern) or fnmatchcase(entry.model, pattern)]
    if not chosen:
        names = (entry.name for entry in CHECKPOINTS)
        raise unknown("published checkpoint", pattern, names, hint="'transept models --weights' lists them all")
    if args.json:
        print_json([entry.as_dict() for entry in chosen])
        return
    for task in dict.fromkeys(entry.task for entry in chosen):
        print_table(_weights_table(task, [entry for entry in chosen if entry.task == task]))
    print("\nfetch: 'direct' by name; 'page' by hand from a share page, 'not read' at all: see 'transept info MODEL'")


def _fetch(entry: Checkpoint) -> str:
    return "not read" if entry.unreadable else "direct" if entry.url else "page"


def _weights_table(task: str, entries: list[Checkpoint]) -> Table:
    table = Table(
        title=f"\n{task}, {len(entries)}", title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0)
    )
    metrics = list(dict.fromkeys(metric for entry in entries for metric in entry.scores if metric != "top5"))
    table.add_column("checkpoint", no_wrap=True)
    for metric in metrics:
        table.add_column(METRICS[metric], justify="right")
    for head in ("origin", "fetch", "licence"):
        table.add_column(head, no_wrap=True)
    for entry in entries:
        scores = [percent(entry.scores[metric]) if metric in entry.scores else "-" for metric in metrics]
        table.add_row(entry.name, *scores, entry.origin, _fetch(entry), entry.licence or "-")
    return table
