"""How fast the models are on one machine, measured once and kept beside this file (`benchmarks/variants.py`)."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("speeds.json")
PEERS = (
    "resnet50",
    "efficientnet_b0",
    "deit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "deit_base_patch16_224",
)
"""timm's models that users know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Of one model: images per second by form ("eager" in float32, "fast") and batch, and MiB that a call holds."""

    source: str
    """`transept` or `timm`."""
    images_per_second: dict[str, dict[int, float]]
    memory: dict[str, dict[int, float]]
    macs: int
    parameters: int


@cache
def kept_speeds() -> dict[str, Speed]:
    """By the model's name; empty where nothing was measured."""
    return {name: _speed(row) for name, row in _page()["models"].items()}


@cache
def speeds_machine() -> dict[str, Any]:
    """The machine that these were measured on: processor, threads, versions; `fast` is the precision of that form."""
    return _page()["machine"]


@cache
def _page() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"machine": {}, "models": {}}


def _speed(row: dict[str, Any]) -> Speed:
    forms = {form: row[form] for form in ("eager", "fast")}
    return Speed(
        source=row["source"],
        images_per_second={
            form: {int(batch): int(batch) / each["seconds"] for batch, each in batches.items()}
            for form, batches in forms.items()
        },
        memory={form: {int(batch): each["mib"] for batch, each in batches.items()} for form, batches in forms.items()},
        macs=row["macs"],
        parameters=row["parameters"],
    )
