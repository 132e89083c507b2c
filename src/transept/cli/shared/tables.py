"""Tables, numbers, and the figures of one model."""

import json
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from transept.cost.count import Cost
from transept.cost.printed import PUBLISHED, PUBLISHED_SYSTEMS, SYSTEM_SIZES, Published
from transept.cost.rules import count_as_published
from transept.models.registry import find_model
from transept.tasks.task import Table as PlainTable
from transept.tasks.task import Task
from transept.weights.catalogue.records import METRICS, checkpoints_of
from transept.words import visible


def print_json(value: Any) -> None:
    print(visible(json.dumps(value, ensure_ascii=False)), flush=True)


def print_table(table: Table) -> None:
    """To stdout. Where the terminal is too narrow for the columns, each row becomes some lines of `head: value`."""
    console = people_console()
    above, below, table.title, table.caption = table.title, table.caption, None, None
    with console.capture() as printed:
        if above:  # not wrapped to the columns below it
            console.print(above, style="table.title", highlight=False)
        if table.show_header and _least_width(console, table) > console.width:
            _print_records(console, table)
        else:
            console.print(table)
        if below:
            console.print(below, style="table.caption", highlight=False)
    lines = printed.get().splitlines()
    # The spaces that fill the last column are nobody's.
    print("\n".join(lines if sys.stdout.isatty() else map(str.rstrip, lines)), flush=True)


def _least_width(console: Console, table: Table) -> int:
    """Characters that its columns need if no word is cut."""
    return console.measure(table, options=console.options.update(width=10_000)).minimum


def _print_records(console: Console, table: Table) -> None:
    for row in zip(*(column.cells for column in table.columns), strict=True):
        pairs = zip(table.columns[1:], row[1:], strict=True)
        facts = [f"{column.header}: {cell}" for column, cell in pairs if cell not in ("", "-")]
        # A head stays beside its value: lines break at plain spaces only.
        lines = textwrap.wrap(", ".join(fact.replace(" ", _STAY) for fact in facts), console.width - 2)
        console.print(row[0], style="bold", highlight=False, overflow="fold")
        for line in lines:
            console.print(f"  {line.replace(_STAY, ' ')}", highlight=False, overflow="fold")


_STAY = "\N{NO-BREAK SPACE}"


def table_for_people(table: PlainTable) -> Table:
    """A task's table as rich prints it."""
    note = "\n".join(map(_plain, table.note.splitlines())) or None
    shown = Table(box=None, pad_edge=False, caption=note, caption_justify="left")
    for column in table.columns:
        shown.add_column(_plain(column.name), justify="right" if column.is_number else "left", style=column.style)
    for row in table.rows:
        shown.add_row(*map(_plain, row))
    return shown


def _plain(text: str) -> str:
    """Neither rich's markup nor a terminal's."""
    return escape(visible(text))


def table_width() -> int:
    """How many characters wide a table may be."""
    return people_console().width


def people_console() -> Console:
    """Stdout: as wide as its terminal, and in files and pipes as wide as any table of ours."""
    return Console(width=None if sys.stdout.isatty() else 160)


def millions_as_printed(parameters: int | None) -> str:
    return f"{parameters / 1e6:.9g} M" if parameters else "-"


def billions_as_printed(macs: int | None) -> str:
    return f"{macs / 1e9:.9g} G" if macs else "-"


def millions(number: float) -> str:
    return f"{number / 1e6:.{2 if number >= 1e6 else 4}f} M"


def billions(number: float) -> str:
    return f"{number / 1e9:.{2 if number >= 1e9 else 4}f} G"


def card(name: str, cost: Cost) -> dict[str, Any]:
    """A model's own figures and the published ones, as plain data."""
    printed = PUBLISHED.get(name, Published())
    return _figures(name, cost, printed, {"top1": printed.top1}) | {
        "note": find_model(name)[1].notes.get(name),
        "weights": [weights.as_dict() for weights in checkpoints_of(name)],
    }


def system_card(name: str, system: Task, cost: Cost) -> dict[str, Any]:
    """The same of a detector or segmenter, METHOD/BACKBONE; published operations are for one size of images."""
    method, _, backbone = name.partition(" ")[0].partition("/")
    printed = PUBLISHED_SYSTEMS.get(name, Published())
    size = SYSTEM_SIZES.get(system.name, cost.img_size)
    at_size = sorted(cost.img_size) == sorted(size)
    return _figures(name, cost, printed, {"img_size": list(size)}) | {
        "macs_as_published": count_as_published(system, cost) if at_size else None,
        "weights": [
            weights.as_dict()
            for weights in checkpoints_of(find_model(backbone)[0])
            if (weights.task, weights.method) == (system.checkpoints, method)
        ],
    }


def _figures(name: str, cost: Cost, printed: Published, more: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "img_size": list(cost.img_size),
        "parameters": cost.parameters,
        "macs": cost.macs,
        "activations": cost.activations,
        "published": {
            "parameters": None if printed.params_m is None else round(printed.params_m * 1e6),
            "macs": None if printed.gmacs is None else round(printed.gmacs * 1e9),
            **more,
            "source": printed.source or None,
        },
    }


def scores_as_printed(scores: Mapping[str, float]) -> str:
    """`box AP 45.3, mask AP 40.8`."""
    return ", ".join(f"{METRICS[metric]} {percent(value)}" for metric, value in scores.items())


def percent(score: float) -> str:
    """With the published number of digits, but at least one: `84.0`, `84.15`."""
    return f"{score:.2f}".removesuffix("0")
