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
from transept.errors import UsageError
from transept.models.registry import build_skeleton, find_model, list_models, skeletons
from transept.tasks.detect import PUBLISHED_3X_OPTIONS, Detector, create_detector
from transept.tasks.segment import Segmenter, create_segmenter

_FILE = "counts.json"


def count_variant(name: str, img_size: int | Sequence[int] | None = None, **options: Any) -> Cost:
    """A fresh count by name. On the meta device even the largest model takes a moment and no memory."""
    return count(build_skeleton(name, **options), img_size)


def segmenter_skeleton(method: str, backbone: str) -> Segmenter:
    """A segmenter for ADE20K on the meta device, with the published options of its backbone."""
    with skeletons():
        return create_segmenter(method, backbone=backbone)


def detector_skeleton(method: str, backbone: str, *, three: bool = False) -> Detector:
    """A detector for COCO on the meta device, with the published options of its backbone.

    With `three` those of the 3x schedule, where it was published with others.

    Raises:
        UsageError: it was not.
    """
    name, _ = find_model(backbone)
    options = {}
    if three:
        if (method, name) not in PUBLISHED_3X_OPTIONS:
            several = " and ".join("/".join(pair) for pair in PUBLISHED_3X_OPTIONS)
            raise UsageError(f"{method}/{backbone} was published in one form; the 3x schedule is of {several}")
        options = PUBLISHED_3X_OPTIONS[method, name]
    with skeletons():
        return create_detector(method, backbone=backbone, **options)


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
