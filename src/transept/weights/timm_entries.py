"""Our models under `timm.create_model`, where timm does not have them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import register_model

from transept.models.registry import list_models
from transept.weights.fetch import hub

__all__: list[str] = []  # timm adds the names
_WEIGHTS = "model.safetensors"
_PAGE = ("interpolation", "crop_pct", "crop_mode", "mean", "std")
"""What pictures of saved weights are prepared by."""


def register_models(create_model: Callable[..., Any]) -> None:
    """Register every model of ours whose name timm does not know yet; `create_model` is transept's."""
    for name in list_models():
        if not timm.is_model(name):
            register_model(_entry(name, create_model))


def _entry(name: str, create_model: Callable[..., Any]) -> Callable[..., Any]:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Mapping[str, Any] | None = None,
        cache_dir: Any = None,
        pretrained_model_args: Any = None,  # of a saved model; timm gives them among the options, too
        **options: Any,
    ) -> Any:
        if isinstance(pretrained_cfg, str):  # a tag of published weights
            return create_model(f"{name}.{pretrained_cfg}", pretrained=pretrained, **options)
        page = pretrained_cfg.to_dict() if hasattr(pretrained_cfg, "to_dict") else dict(pretrained_cfg or {})
        page |= pretrained_cfg_overlay or {}
        if page.get("num_classes") is not None and not options.get("features_only"):
            options.setdefault("num_classes", page["num_classes"])
        state = page.get("state_dict") if pretrained else None
        source = _source(page, cache_dir) if pretrained and state is None else None
        model = create_model(name, pretrained=pretrained and source is state is None, weights=source, **options)
        if state is not None:
            model.load_state_dict(state)
        model.pretrained_cfg.update({key: page[key] for key in _PAGE if page.get(key) is not None})
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"transept's {name}; see `transept info {name}`."
    return create


def _source(page: Mapping[str, Any], cache_dir: Any) -> str | None:
    """The file or address that a configuration of timm's names, in timm's order; None: it names none."""
    file, repo_id = page.get("file"), page.get("hf_hub_id")
    if page.get("source") == "local-dir":
        return str(Path(file, _WEIGHTS)) if file else None
    if file and page.get("source") != "hf-hub":
        return str(file)
    if repo_id:
        repo_id, _, revision = repo_id.partition("@")
        name = page.get("hf_hub_filename") or _WEIGHTS
        return str(hub.download(repo_id, name, revision=revision or None, cache_dir=cache_dir)[0])
    return page.get("url") or None
