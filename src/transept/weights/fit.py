"""From what a file holds to a model's parameters, with every name accounted for."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import nn

from transept.errors import TranseptError
from transept.models.backbone import Backbone
from transept.models.registry import family_of
from transept.weights.convert import CONVERTERS, OFFICIAL, dialect_of
from transept.weights.convert.rules import Entries, any_match, entries_of
from transept.weights.convert.systems import BACKBONE, DINO_HEAD, PARTS, holds_backbone, method_of
from transept.weights.files.reading import Contents
from transept.weights.identify import identify
from transept.weights.report import KeyReport, LoadReport

_CLASSIFIER_PARTS = (
    "head.{*}",
    "norm.{*}",
    "norm_head.{*}",
    "cls_token",
    "cls_attn_blocks.{*}",
    "blocks_token_only.{*}",
)
_PYRAMID_PARTS = ("fpn{}.{*}", "norm0.{*}", "norm1.{*}", "norm2.{*}", "norm3.{*}", "out_{}.{*}")
_CLASS_LAYERS = tuple(
    f"{layer}.{{}}"
    for layer in (
        "decode_head.conv_seg",
        "auxiliary_head.conv_seg",
        "bbox_head.retina_cls",
        "bbox_head.conv_cls",
        "bbox_head.atss_cls",
        *(f"roi_head.{head}" for head in ("bbox_head.fc_cls", "bbox_head.fc_reg", "mask_head.conv_logits")),
        *(f"roi_head.{head}" for head in ("bbox_head.{}.fc_cls", "bbox_head.{}.fc_reg", "mask_head.{}.conv_logits")),
    )
)
"""Layers of detectors and segmenters whose first axis counts classes."""
_HEAD_TABLE = "relative_position_bias_table"
"""CAT's: cells x heads."""
_COUNTER = "a counter of training steps, which evaluation does not read"


def load_contents(model: nn.Module, contents: Contents, source: str, strict: bool = True) -> LoadReport:
    """Load what a file holds into `model`: converted, fitted, checked, and only then written.

    Raises:
        TranseptError: the file's tensors do not fit; the model is unchanged.
    """
    entries = entries_of(contents.tensors)
    whole = getattr(model, "backbone", None)
    backbone = whole if isinstance(whole, Backbone) else model
    family = family_of(backbone)
    dropped: list[KeyReport] = []
    dialect = OFFICIAL
    if family is not None and isinstance(backbone, Backbone):
        entries, dialect = _officially(entries, family.name, contents.format)
        if backbone is model:
            entries = _backbone_of(entries, dropped)
        own_part, others = _split(entries, BACKBONE if backbone is not model else "")
        if backbone is not model and not own_part:
            own_part, others = others, {}
        own_part, inner_dialect = _officially(own_part, family.name, "")
        dialect = inner_dialect if dialect == OFFICIAL else dialect
        own_part = _fit_backbone(own_part, backbone, family, dropped)
        prefix = BACKBONE if backbone is not model else ""
        others = _fit_classes(others, model, dropped)
        entries = {**{prefix + name: entry for name, entry in own_part.items()}, **others}
    return _write(model, entries, dropped, contents, source, dialect, strict)


def _officially(entries: Entries, family: str, file_format: str) -> tuple[Entries, str]:
    dialect = dialect_of(entries, family, file_format)
    return (entries, OFFICIAL) if dialect is None else (dialect.read(entries), dialect.name)


def _split(entries: Entries, prefix: str) -> tuple[Entries, Entries]:
    if not prefix:
        return entries, {}
    inside = {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}
    return inside, {name: entry for name, entry in entries.items() if not name.startswith(prefix)}


def _backbone_of(entries: Entries, dropped: list[KeyReport]) -> Entries:
    """The backbone's part of a detector, a segmenter or a self-supervised model; a bare backbone as it is."""
    if not holds_backbone(entries):
        return entries
    method = method_of(entries)
    what = f"part of the {method}" if method else "beside the backbone"
    inside, others = _split(entries, BACKBONE)
    for name in list(others):
        if any_match(DINO_HEAD, name):
            _drop(others, name, "the projection of self-supervised training, which only that needs", dropped)
        elif name.startswith(PARTS):
            _drop(others, name, f"{what}, which a backbone alone has no place for", dropped)
    return inside | others


def _drop(entries: Entries, name: str, why: str, dropped: list[KeyReport]) -> None:
    dropped.append(KeyReport(entries.pop(name).file, "", ("dropped",), why))


def _fit_backbone(entries: Entries, model: Backbone, family: Any, dropped: list[KeyReport]) -> Entries:
    own = model.state_dict()
    entries = dict(entries)
    for name in list(entries):
        if name not in own and any(re.search(pattern, name) for pattern in family.derived_buffers):
            _drop(entries, name, "a table that is computed, not learned", dropped)
    pyramid = hasattr(model, "out_indices")
    for name in list(entries):
        if name in own:
            continue
        if pyramid and any_match(_CLASSIFIER_PARTS, name):
            _drop(entries, name, "part of the classifier, which a pyramid does not have", dropped)
        elif pyramid and any_match(_PYRAMID_PARTS, name):
            _drop(entries, name, "of a level that out_indices leaves out", dropped)
        elif any_match(("head.{}",), name):
            _drop(entries, name, "the model was built without a classifier", dropped)
        elif any_match(DINO_HEAD, name):
            _drop(entries, name, "the projection of self-supervised training, which only that needs", dropped)
    if pyramid and not any(any_match(_PYRAMID_PARTS, name) for name in entries):
        # Detectors of CAT-B were published with other heads than the classifier that they start from.
        for name in [name for name in entries if name in own and name.endswith(_HEAD_TABLE)]:
            (given_cells, given), (cells, wanted) = entries[name].tensor.shape, own[name].shape
            if given_cells == cells and given != wanted:
                _drop(entries, name, f"for {given} heads; the model has {wanted}", dropped)
    for name in ("head.weight", "head.bias"):
        if name in entries and name in own and entries[name].tensor.shape[:1] != own[name].shape[:1]:
            given, wanted = entries[name].tensor.shape[0], own[name].shape[0]
            _drop(entries, name, f"for {given} classes; the model has {wanted}", dropped)
    entries = CONVERTERS[family.name].fit(entries, model)
    return _fit_channels(entries, own)


def _fit_channels(entries: Entries, own: Mapping[str, torch.Tensor]) -> Entries:
    """Convolutions on RGB for a model with another number of image channels: summed or repeated, as timm does."""
    out = dict(entries)
    for name, entry in entries.items():
        value = entry.tensor
        if not name.startswith("patch_embed.") or value.ndim != 4 or name not in own or value.shape[1] != 3:
            continue
        wanted = own[name].shape
        if wanted[1] != 3 and (wanted[0], *wanted[2:]) == (value.shape[0], *value.shape[2:]):
            adapted = adapt_input_conv(wanted[1], value.clone())
            out[name] = entry.changed(adapted, f"resized 3 to {wanted[1]} image channels")
    return out


def _fit_classes(entries: Entries, model: nn.Module, dropped: list[KeyReport]) -> Entries:
    own, out = model.state_dict(), dict(entries)
    for name, entry in entries.items():
        if name not in own or not any_match(_CLASS_LAYERS, name):
            continue
        given, wanted = entry.tensor.shape, own[name].shape
        if given[1:] == wanted[1:] and given[0] != wanted[0]:
            _drop(out, name, "for another number of classes", dropped)
    return out


def _write(
    model: nn.Module,
    entries: Entries,
    dropped: list[KeyReport],
    contents: Contents,
    source: str,
    dialect: str,
    strict: bool,
) -> LoadReport:
    """Check the entries against the model, write them, and report."""
    own = model.state_dict()
    keys = list(dropped)
    misshapen, unknown, missing = [], [], []
    for name, entry in entries.items():
        if name not in own:
            keys.append(KeyReport(entry.file, "", ("unexpected",)))
            unknown.append(" + ".join(entry.file))
        elif own[name].shape != entry.tensor.shape:
            given, wanted = tuple(entry.tensor.shape), tuple(own[name].shape)
            misshapen.append(f"{name} is {given} in the file and {wanted} in the model")
        else:
            renamed = () if entry.file == (name,) or len(entry.file) > 1 else ("renamed",)
            keys.append(KeyReport(entry.file, name, (*renamed, *entry.steps) or ("taken",)))
    for name in own:
        if name not in entries:
            why = _harmless(name, own, entries, dropped, model)
            keys.append(KeyReport((), name, ("missing",), why))
            missing += [] if why else [name]
    title = getattr(getattr(model, "backbone", model), "pretrained_cfg", {}).get("architecture", type(model).__name__)
    hopeless = bool(misshapen) or not any(key.file and key.model for key in keys)
    if hopeless or (strict and (unknown or missing)):
        guess = identify(contents)
        form = "pyramid" if hasattr(model, "out_indices") else "classifier"
        looks = f"; this looks like {guess}" if guess and (guess.model, guess.form) != (title, form) else ""
        faults = [
            *([_listed(misshapen, "; ")] if misshapen else []),
            *([f"the model does not know {_listed(unknown)}"] if unknown else []),
            *([f"the file lacks {_listed(missing)}"] if missing else []),
        ]
        mend = "" if hopeless else "; strict=False loads what fits"
        if guess and form == "classifier" and guess.form != "classifier" and isinstance(model, Backbone):
            mend = "; features_only=True builds what it fits"
        raise TranseptError(f"the weights in {source!r} do not fit {title}{looks}: {'; '.join(faults)}{mend}")
    model.load_state_dict({name: entry.tensor for name, entry in entries.items() if name in own}, strict=False)
    return LoadReport(
        source=source,
        model=title,
        format=contents.format,
        wrapper=contents.wrapper,
        wrappers=contents.wrappers,
        prefix=contents.prefix,
        dialect=dialect,
        keys=tuple(keys),
        skipped=contents.skipped,
    )


def _harmless(name: str, own: Mapping[str, Any], entries: Entries, dropped: list[KeyReport], model: nn.Module) -> str:
    """Why the model may do without a value for `name`; "" where it may not."""
    if name.endswith("num_batches_tracked"):
        return _COUNTER
    inner = name.removeprefix(BACKBONE) if isinstance(getattr(model, "backbone", None), Backbone) else name
    if any(key.why.startswith("for ") and "classes" in key.why for key in dropped) and (
        any_match(("head.{}",), inner) or any_match(_CLASS_LAYERS, name)
    ):
        return "the file is for other classes: starts fresh"
    if any_match(("head.{}",), inner):
        return "the file has no classifier: starts fresh"
    if inner.endswith(_HEAD_TABLE) and any("heads; the model has" in key.why for key in dropped):
        return "the file is for other heads: starts fresh"
    classifier = not any(any_match(_PYRAMID_PARTS, other.removeprefix(BACKBONE)) for other in entries)
    if any_match(_PYRAMID_PARTS, inner) and classifier and hasattr(getattr(model, "backbone", model), "out_indices"):
        return "the file has no pyramid: starts fresh, as in the authors' code"
    if name.startswith(PARTS) and not any(other.startswith(PARTS) for other in entries):
        return "the file holds a backbone alone: starts fresh"
    return ""


def _listed(names: list[str], separator: str = ", ") -> str:
    return separator.join(names[:6]) + (f"{separator}and {len(names) - 6} more" if len(names) > 6 else "")
