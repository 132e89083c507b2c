"""Costs of the registered models at their own size, counted once and kept beside this file.

Counting all of them takes half a minute, which a list should not. `make counts` writes the file anew; a test
compares every entry with a fresh count.
"""

import dataclasses
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from transept.analysis.count import Cost, count
from transept.models.registry import build_skeleton, list_models, skeletons
from transept.tasks.segment import create_segmenter
from transept.weights.published import SEGMENTER_SIZE

_FILE = "counts.json"


def count_variant(name: str, img_size: int | Sequence[int] | None = None, **options: Any) -> Cost:
    """A fresh count by name. On the meta device even the largest model takes a moment and no memory."""
    return count(build_skeleton(name, **options), img_size)


def count_segmenter(method: str, backbone: str, img_size: int | Sequence[int] = SEGMENTER_SIZE) -> Cost:
    """A fresh count of a segmenter for ADE20K, with the published options of its backbone.

    An auxiliary head has parameters and no operations, because it runs in training only.
    """
    with skeletons():
        segmenter = create_segmenter(method, backbone=backbone)
    return count(segmenter, img_size)


def kept_counts() -> dict[str, Cost]:
    """Name to cost, without the parts."""
    kept = json.loads((files("transept.analysis") / _FILE).read_text(encoding="utf-8"))
    return {
        name: Cost(**(entry | {"img_size": tuple(entry["img_size"]), "modules": {}})) for name, entry in kept.items()
    }


def _write() -> None:
    counts = {}
    for name in list_models():
        entry = dataclasses.asdict(count_variant(name))
        counts[name] = {key: value for key, value in entry.items() if key != "modules"}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in counts.items())
    Path(__file__).with_name(_FILE).write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    _write()
