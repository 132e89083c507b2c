"""The cross-attention vision transformers - CAT, CabViT, CrossFormer, XCiT and CaiT - as one package.

The public names below are imported on first use: timm and torchvision take seconds to import, and a program that
only asks for `transept.__version__`, or prints its help, should not wait for them.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transept.analysis.count import count
    from transept.errors import TranseptError
    from transept.weights.create import create_model, list_models, load_weights

__version__ = version("transept")

_HOMES = {
    "count": "transept.analysis.count",
    "create_model": "transept.weights.create",
    "list_models": "transept.weights.create",
    "load_weights": "transept.weights.create",
    "TranseptError": "transept.errors",
}

__all__ = ["TranseptError", "__version__", "count", "create_model", "list_models", "load_weights"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'transept' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
