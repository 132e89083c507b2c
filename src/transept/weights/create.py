"""Models by name, with or without weights: the functions behind `transept.create_model` and `transept.load_weights`."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transept.errors import TranseptError, UsageError, unknown
from transept.models import registry
from transept.models.backbone import Backbone, Pyramid
from transept.ops.interpolation import resize_position_embedding
from transept.weights import timm_registry  # noqa: F401  registers our models with timm
from transept.weights.catalogue import CHECKPOINTS, Checkpoint, checkpoints_of, set_preprocessing, unpublished
from transept.weights.locate import locate
from transept.weights.reading import StateDict, fetch, read_state_dict


def list_models(pattern: str = "*", *, tag: bool = False) -> list[str]:
    """Sorted names of the registered models that match a shell pattern; with `tag`, of their weights (`name.tag`)."""
    names = registry.list_models(pattern)
    return sorted(checkpoint.name for name in names for checkpoint in checkpoints_of(name)) if tag else names


def create_model(
    name: str,
    pretrained: bool = False,
    weights: str | PathLike[str] | None = None,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | Sequence[int] | None = None,
    drop_path_rate: float = 0.0,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    **options: Any,
) -> Backbone:
    """A model by name, as in `timm.create_model`.

    Args:
        name: one of `list_models()`, or of `list_models(tag=True)` to choose among its published weights.
        pretrained: load the published weights (the default ones where `name` has no tag).
        weights: load these instead: a path, an URL, or `name.tag`.
        num_classes: size of the logits; 0 makes the model return pooled features. Where it differs from the
            weights', the classifier starts fresh.
        in_chans: channels of the image.
        img_size: native size in pixels, an int or (height, width); default: the variant's.
        drop_path_rate: stochastic depth.
        features_only: build the pyramid instead: a list of maps of strides 4, 8, 16, 32.
        out_indices: which of the four levels.
        options: fields of the family's config, under the paper's names, e.g. `depth=6`.

    Raises:
        UsageError: an unknown name or option (with the nearest match), or values that contradict each other.
        TranseptError: the weights cannot be found or do not fit.
    """
    name, _, tag = name.partition(".")
    model = registry.build_model(
        name,
        num_classes=num_classes,
        in_chans=in_chans,
        img_size=img_size,
        drop_path_rate=drop_path_rate,
        features_only=features_only,
        out_indices=out_indices,
        **options,
    )
    if tag:
        find_checkpoint(f"{name}.{tag}")
    if weights is not None:
        load_weights(model, weights)
    elif pretrained:
        load_weights(model, f"{name}.{tag}" if tag else default_checkpoint(name).name)
    return model


def default_checkpoint(name: str) -> Checkpoint:
    """The published weights that `pretrained=True` means: the authors' classifier, if possible one to be fetched.

    Raises:
        UsageError: no such model.
        TranseptError: nobody released weights of it.
    """
    full, _ = registry.find_model(name)
    published = checkpoints_of(full)
    if not published:
        why = unpublished(full) or f"no checkpoint of {full} was published"
        raise TranseptError(f"there are no weights of {full} to fetch: {why}; load your own with weights=FILE")
    return published[0]


def find_checkpoint(name: str) -> Checkpoint:
    """The catalogue's entry of `name.tag`, whose name may lack its image size, as in `create_model`."""
    model, _, tag = name.partition(".")
    with suppress(UsageError):  # a teacher's name is none of ours
        model, _ = registry.find_model(model)
    for checkpoint in CHECKPOINTS:
        if checkpoint.tag == tag and checkpoint.registered == model:
            return checkpoint
    raise unknown("published checkpoint", name, (checkpoint.name for checkpoint in CHECKPOINTS))


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What `load_weights` did."""

    source: str
    format: str
    resized: list[str] = field(default_factory=list)
    """Position embeddings brought to the model's size."""
    missing: list[str] = field(default_factory=list)
    """The model's names without a value in the file; they keep the values they had."""
    unexpected: list[str] = field(default_factory=list)
    """The file's names that the model lacks."""


def load_weights(model: nn.Module, source: str | PathLike[str], strict: bool = True) -> LoadReport:
    """Load a checkpoint into `model`: a path, an URL, or the `name.tag` of published weights.

    A position embedding of another size is resized. A classifier for another number of classes, or a part that
    a pyramid does not have or has in addition, is left out and named in the report. With `strict` any other
    difference is an error, and the model is then unchanged.

    Raises:
        TranseptError: the file cannot be read, or does not fit.
    """
    source = str(source)
    published: Checkpoint | None = None
    if source.startswith(("http://", "https://")):
        path = fetch(source)
    elif "." in source and "/" not in source and Path(source).suffix not in _SUFFIXES and not Path(source).exists():
        published = find_checkpoint(source)
        path = locate(published)
    else:
        path = Path(source)
    state, form = read_state_dict(path)
    own = model.state_dict()
    family = registry.family_of(model)
    for pattern in family.derived_buffers if family else ():
        state = {key: value for key, value in state.items() if key in own or not re.search(pattern, key)}
    resized = _resize_positions(model, state)
    for key in ("head.weight", "head.bias"):
        if key in state and key in own and own[key].shape != state[key].shape:
            del state[key]
    wrong = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the model"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    may_miss = ("head.", "fpn")
    may_exceed = _CLASSIFIER_PARTS if isinstance(model, Pyramid) else ("head.",)
    unfit = [key for key in missing if not key.startswith(may_miss)]
    unfit += [key for key in unexpected if not key.startswith(may_exceed)]
    if wrong or (strict and unfit):
        what = wrong[0] if wrong else f"{unfit[0]} is {'missing' if unfit[0] in missing else 'unknown to the model'}"
        more = f" ({len(wrong) + len(unfit)} differences in all)" if len(wrong) + len(unfit) > 1 else ""
        raise TranseptError(f"the weights in {str(path)!r} do not fit {_title(model)}: {what}{more}")
    model.load_state_dict(state, strict=False)
    if published:
        set_preprocessing(model, published)
    return LoadReport(source, form, resized, missing, unexpected)


_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_CLASSIFIER_PARTS = ("head.", "cls_token", "cls_attn_blocks.", "blocks_token_only.", "norm.")


def _title(model: nn.Module) -> str:
    return getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__)


def _resize_positions(model: nn.Module, state: StateDict) -> list[str]:
    """Bring `pos_embed` to the model's grid, in place. The file's own grid is taken to be square."""
    own, given = getattr(model, "pos_embed", None), state.get("pos_embed")
    if not isinstance(own, torch.Tensor) or given is None or given.ndim != 3 or own.shape == given.shape:
        return []
    side = round(given.shape[1] ** 0.5)
    if side * side != given.shape[1] or given.shape[2] != own.shape[2]:
        return []
    state["pos_embed"] = resize_position_embedding(given, (side, side), model.grid)  # pyright: ignore
    return ["pos_embed"]
