"""Our models under `timm.create_model`, where timm does not have them."""

from collections.abc import Callable
from typing import Any

import timm
from timm.models import register_model

from transept.models.registry import list_models

__all__: list[str] = []  # timm adds the names


def register_models(create_model: Callable[..., Any]) -> None:
    """Register every model of ours whose name timm does not know yet; `create_model` is transept's."""
    for name in list_models():
        if not timm.is_model(name):
            register_model(_entry(name, create_model))


def _entry(name: str, create_model: Callable[..., Any]) -> Callable[..., Any]:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **options: Any,
    ) -> Any:
        return create_model(name, pretrained=pretrained, **options)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"transept's {name}; see `transept info {name}`."
    return create
