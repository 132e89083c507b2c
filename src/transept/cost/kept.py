"""Costs of the package's models at their own size, counted once and kept beside this file.

Counting all of them takes half a minute, which a list should not; a model that was registered since is counted when it
is asked for. `make counts` writes the file anew; a test compares every entry with a fresh count.
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from transept.cost.count import Cost, count
from transept.errors import UsageError, advice
from transept.models.registry import FAMILIES, build_skeleton, find_model, list_models, skeletons
from transept.tasks.registry import TASKS
from transept.tasks.task import Task

_FILE = "counts.json"


def count_variant(name: str, img_size: int | Sequence[int] | None = None, **options: Any) -> Cost:
    """A fresh count by name. On the meta device even the largest model takes a moment and no memory."""
    return count(build_skeleton(name, **options), img_size)


def system_skeleton(method: str, backbone: str, *, three: bool = False) -> Task:
    """A detector or segmenter for the published classes, on the meta device, with its backbone's published options.

    With `three` those of the 3x schedule, where it was published with others.

    Raises:
        UsageError: no such method, or it was published in one form.
    """
    kinds = {name: kind for kind in TASKS for name in kind.methods}
    if method not in kinds:
        name = f"{method}/{backbone}"
        raise UsageError(f"{name!r} begins with no method of detectors or segmenters; {advice(method, kinds)}")
    name, family = find_model(backbone)
    options = {}
    if three:
        if (method, name) not in family.dense_options_3x:
            several = " and ".join("/".join(pair) for each in FAMILIES for pair in each.dense_options_3x)
            raise UsageError(f"{method}/{backbone} was published in one form; the 3x schedule is of {several}")
        options = family.dense_options_3x[method, name]
    with skeletons():
        return kinds[method].create(method, backbone=backbone, **options)


def cost_of(name: str) -> Cost:
    """A model's cost at its own size: the kept one, or counted now where none is kept."""
    return kept_counts().get(name) or count_variant(name)


@cache
def kept_counts() -> dict[str, Cost]:
    """Name to cost, without the parts."""
    kept = json.loads((files("transept.cost") / _FILE).read_text(encoding="utf-8"))
    return {
        name: Cost(**(entry | {"img_size": tuple(entry["img_size"]), "modules": {}})) for name, entry in kept.items()
    }


def _write() -> None:
    counts = {}
    for name in list_models():
        entry = dataclasses.asdict(count_variant(name))
        counts[name] = {key: value for key, value in entry.items() if key not in ("modules", "operations")}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in counts.items())
    Path(__file__).with_name(_FILE).write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    _write()
