"""Modules of version 0.1 under their old names, for one release: importing one works, and warns where it is now."""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "analysis": "",  # a folder that is no more
    "analysis.attention": "explain.attention",
    "analysis.attention_sheet": "explain.page",
    "analysis.bench": "bench.timing",
    "analysis.boxes": "draw.boxes",
    "analysis.count": "cost.count",
    "analysis.explanation": "explain.explanation",
    "analysis.overlay": "draw.overlay",
    "analysis.sheet": "draw.sheet",
    "analysis.speed": "bench.figure",
    "data.ade20k": "data.segmentation.ade20k_classes",
    "data.coco": "data.detection.coco_classes",
    "data.detection_transforms": "data.detection.transforms",
    "data.multicrop": "data.classification.multicrop",
    "data.segmentation_transforms": "data.segmentation.transforms",
    "data.sets": "data.classification.sets",
    "data.shards": "data.classification.shards",
    "data.transforms": "data.classification.transforms",
    "export.fuse": "inference.fuse",
    "export.fused": "inference.fused",
    "export.packed": "inference.packed",
    "tasks.pretrained": "tasks.folders",
    "tasks.windows": "inference.windows",
    "weights.create": "weights.load",
    "weights.download": "weights.fetch.download",
    "weights.hub": "weights.fetch.hub",
    "weights.loading": "weights.fit",
    "weights.published": "cost.printed",
    "weights.reading": "weights.files.reading",
    "weights.released": "weights.catalogue.tables",
    "weights.timm_registry": "weights.timm_entries",
    "weights.writing": "weights.files.writing",
}
"""Old to new, below `transept`."""


class MovedFinder(MetaPathFinder, Loader):
    """Finds the modules of `MOVED`, after every other finder has said no."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        name = fullname.removeprefix("transept.")
        if not fullname.startswith("transept.") or name not in MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=not MOVED[name])

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        new = MOVED[spec.name.removeprefix("transept.")]
        if not new:
            return None
        warnings.warn(
            f"{spec.name} is now transept.{new}; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        module = import_module(f"transept.{new}")
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It was executed under its own name; the import system has given it the spec of the old one."""
        if module.__spec__ is not None and module.__spec__.name in self._specs:
            module.__spec__ = self._specs[module.__spec__.name]

    def __init__(self) -> None:
        self._specs: dict[str, Any] = {}


def install() -> None:
    sys.meta_path.append(MovedFinder())
