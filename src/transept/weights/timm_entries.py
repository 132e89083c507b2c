"""Our models under `timm.create_model`, where timm does not have them.

`import transept` arranges that this module is imported together with timm; see `transept/__init__.py`.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import timm
from timm.models import register_model

from transept.models.registry import list_models


def _entry(name: str) -> Callable[..., Any]:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **options: Any,
    ) -> Any:
        create_model = import_module("transept.weights.load").create_model
        return create_model(name, pretrained=pretrained, **options)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"transept's {name}; see `transept info {name}`."
    return create


__all__: list[str] = []  # timm adds the names
for _name in sorted(set(list_models()) - set(timm.list_models())):
    register_model(_entry(_name))
