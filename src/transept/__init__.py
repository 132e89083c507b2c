"""The cross-attention vision transformers - CAT, CabViT, CrossFormer, XCiT and CaiT - as one package.

The public names below are imported on first use: timm and torchvision take seconds to import, and a program that
only asks for `transept.__version__`, or prints its help, should not wait for them.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

from transept.late import late_names
from transept.moved import install

if TYPE_CHECKING:
    from transept.cost.count import count
    from transept.data.classification.transforms import transforms_for
    from transept.data.images import read_image
    from transept.errors import TranseptError
    from transept.explain.attention import AttentionMap, attention_kinds, attention_maps
    from transept.inference.compile import compile
    from transept.inference.fuse import fuse
    from transept.inference.package import load_package
    from transept.tasks.classify import Classifier
    from transept.tasks.detect import Detector, create_detector
    from transept.tasks.folders import from_pretrained, push_to_hub, save_pretrained
    from transept.tasks.load import load
    from transept.tasks.segment import Segmenter, create_segmenter
    from transept.tasks.use import evaluate, predict
    from transept.training.options.recipe import Recipe
    from transept.training.start import train
    from transept.weights.load import create_model, list_models, load_weights

__version__ = version("transept")

_HOMES = {
    "AttentionMap": "transept.explain.attention",
    "Classifier": "transept.tasks.classify",
    "Detector": "transept.tasks.detect",
    "Recipe": "transept.training.options.recipe",
    "Segmenter": "transept.tasks.segment",
    "train": "transept.training.start",
    "evaluate": "transept.tasks.use",
    "load": "transept.tasks.load",
    "predict": "transept.tasks.use",
    "read_image": "transept.data.images",
    "attention_kinds": "transept.explain.attention",
    "attention_maps": "transept.explain.attention",
    "compile": "transept.inference.compile",
    "count": "transept.cost.count",
    "create_detector": "transept.tasks.detect",
    "create_model": "transept.weights.load",
    "create_segmenter": "transept.tasks.segment",
    "from_pretrained": "transept.tasks.folders",
    "fuse": "transept.inference.fuse",
    "list_models": "transept.weights.load",
    "load_package": "transept.inference.package",
    "load_weights": "transept.weights.load",
    "push_to_hub": "transept.tasks.folders",
    "save_pretrained": "transept.tasks.folders",
    "transforms_for": "transept.data.classification.transforms",
    "TranseptError": "transept.errors",
}

__all__ = [
    "AttentionMap",
    "Classifier",
    "Detector",
    "Recipe",
    "Segmenter",
    "TranseptError",
    "__version__",
    "attention_kinds",
    "attention_maps",
    "compile",
    "count",
    "create_detector",
    "create_model",
    "create_segmenter",
    "evaluate",
    "from_pretrained",
    "fuse",
    "list_models",
    "load",
    "load_package",
    "load_weights",
    "predict",
    "push_to_hub",
    "read_image",
    "save_pretrained",
    "train",
    "transforms_for",
]


__getattr__ = late_names("transept", _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _WithTimm(MetaPathFinder):
    """Registers our models with timm when the user imports it: importing it ourselves would take seconds."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        # It may be asked for and not imported: transformers looks whether it is there.
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                if "transept.models" not in sys.modules:  # else our own import is under way, and will register them
                    _register_with_timm()

            spec.loader.exec_module = execute_and_register  # pyright: ignore[reportAttributeAccessIssue]
        return spec


def _register_with_timm() -> None:
    def create_model(*args: Any, **kwargs: Any) -> Any:
        return __getattr__("create_model")(*args, **kwargs)  # imported on first use, as everywhere

    import_module("transept.weights.timm_entries").register_models(create_model)


install()
if "timm" in sys.modules:
    _register_with_timm()
else:
    sys.meta_path.insert(0, _WithTimm())
