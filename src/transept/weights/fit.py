"""From what a file holds to a model's parameters, with every name accounted for."""

import re
from collections.abc import Mapping

import torch
from timm.models import adapt_input_conv
from torch import nn

from transept.errors import TranseptError
from transept.models.backbone import Backbone, Family
from transept.models.registry import family_of
from transept.weights.convert import OFFICIAL, converter_of, dialect_of
from transept.weights.convert.rules import Dialect, Entries, any_match, entries_of
from transept.weights.convert.systems import (
    BACKBONE,
    DINO_HEAD,
    NORMALIZATION,
    PARTS,
    holds_backbone,
    method_of,
    unframed,
)
from transept.weights.files.reading import Contents
from transept.weights.identify import foreign, identify
from transept.weights.report import KeyReport, LoadReport, Reason
from transept.words import listed

_HEAD = "head.{}", "head.{}.{}"
"""Classifiers of one layer, or of one for each branch."""
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
_Why = tuple[Reason, str]
_COUNTER = Reason.COUNTER, "a counter of training steps, which evaluation does not read"
_PROJECTION = Reason.BESIDE_BACKBONE, "the projection of self-supervised training, which only that needs"
_NORMALIZATION = Reason.PREPROCESSING, "of the pictures, which model.pretrained_cfg has now"


def load_contents(
    model: nn.Module, contents: Contents, source: str, strict: bool = True, *, other_classes: bool = False
) -> LoadReport:
    """Load what a file holds into `model`: converted, fitted, checked, and only then written.

    With `other_classes`, what tells classes apart keeps its values even where as many are in the file.

    Raises:
        TranseptError: the file's tensors do not fit; the model is unchanged.
    """
    if what := foreign(contents):
        raise TranseptError(f"{source!r} {what}")
    entries = unframed(entries_of(contents.tensors))
    whole = getattr(model, "backbone", None)
    backbone = whole if isinstance(whole, Backbone) else model
    family = family_of(backbone)
    dropped: list[KeyReport] = []
    dialect = None
    if family is not None and isinstance(backbone, Backbone):
        entries, dialect = _officially(entries, family.name, contents.format)
        if backbone is model:
            entries = _backbone_of(entries, dropped)
        prefix = BACKBONE if backbone is not model else ""
        inside, others = _split(entries, prefix)
        if prefix and not inside:
            inside, others = others, {}
        inside, inner_dialect = _officially(inside, family.name, "")
        dialect = dialect or inner_dialect
        _check_types({**{prefix + name: entry for name, entry in inside.items()}, **others}, model, source)
        inside = _fit_backbone(inside, backbone, family, dropped, other_classes)
        others = _fit_classes(others, model, dropped, other_classes)
        entries = {**{prefix + name: entry for name, entry in inside.items()}, **others}
    report = _write(model, entries, dropped, contents, source, dialect, strict)
    if any(key.reason is Reason.PREPROCESSING for key in dropped) and isinstance(backbone, Backbone):
        mean, std = (tuple(contents.tensors[name].flatten().tolist()) for name in NORMALIZATION)
        backbone.pretrained_cfg.update(mean=mean, std=std)
    return report


def _officially(entries: Entries, family: str, file_format: str) -> tuple[Entries, Dialect | None]:
    dialect = dialect_of(entries, family, file_format)
    return (entries, None) if dialect is None else (dialect.read(entries), dialect)


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
    part = f"part of the {method}" if method else "beside the backbone"
    why = Reason.BESIDE_BACKBONE, f"{part}, which a backbone alone has no place for"
    inside, others = _split(entries, BACKBONE)
    for name in list(others):
        if any_match(DINO_HEAD, name):
            _drop(others, name, _PROJECTION, dropped)
        elif name.startswith(PARTS):
            _drop(others, name, why, dropped)
    return inside | others


def _drop(entries: Entries, name: str, why: _Why, dropped: list[KeyReport]) -> None:
    reason, words = why
    dropped.append(KeyReport(entries.pop(name).file, "", ("dropped",), words, reason))


def _fit_backbone(
    entries: Entries, model: Backbone, family: Family, dropped: list[KeyReport], other_classes: bool
) -> Entries:
    state = model.state_dict()
    entries = dict(entries)
    for name in NORMALIZATION:
        if name in entries:
            _drop(entries, name, _NORMALIZATION, dropped)
    for name in [name for name in entries if name not in state]:
        if why := _no_place(name, model, family):
            _drop(entries, name, why, dropped)
    if model.is_pyramid and not any(any_match(_PYRAMID_PARTS, name) for name in entries):
        # Detectors of CAT-B were published with other heads than the classifier that they start from.
        for name in [name for name in entries if name in state and name.endswith(_HEAD_TABLE)]:
            (file_cells, file_heads), (cells, heads) = entries[name].tensor.shape, state[name].shape
            if file_cells == cells and file_heads != heads:
                why = Reason.OTHER_HEADS, f"for {file_heads} heads; the model has {heads}"
                _drop(entries, name, why, dropped)
    for name in [name for name in state if any_match(_HEAD, name) and name in entries]:
        file_classes, classes = entries[name].tensor.shape[0], state[name].shape[0]
        if file_classes != classes or other_classes:
            what = f"for {file_classes} classes; the model has {classes}"
            what = what if file_classes != classes else "for classes of other names"
            _drop(entries, name, (Reason.OTHER_CLASSES, what), dropped)
    entries = converter_of(family.name).fit(entries, model)
    return _fit_channels(entries, state)


def _no_place(name: str, model: Backbone, family: Family) -> _Why | None:
    """Why a backbone may leave a tensor that it has no name for; None: for no reason known."""
    if any(re.search(pattern, name) for pattern in family.derived_buffers):
        return Reason.COMPUTED, "a table that is computed, not learned"
    only_there = any(re.search(pattern, name) for pattern in model.classifier_parts)
    if model.is_pyramid and (only_there or any_match(_CLASSIFIER_PARTS, name)):
        return Reason.NO_CLASSIFIER, "part of the classifier, which a pyramid does not have"
    if model.is_pyramid and any_match(_PYRAMID_PARTS, name):
        return Reason.PYRAMID_LEVEL, "of a level that out_indices leaves out"
    if any_match(DINO_HEAD, name):
        return _PROJECTION
    return (Reason.NO_CLASSIFIER, "the model was built without a classifier") if any_match(_HEAD, name) else None


def _fit_channels(entries: Entries, state: Mapping[str, torch.Tensor]) -> Entries:
    """Convolutions on RGB for a model with another number of image channels: summed or repeated, as timm does."""
    out = dict(entries)
    for name, entry in entries.items():
        value = entry.tensor
        if not name.startswith("patch_embed.") or value.ndim != 4 or name not in state or value.shape[1] != 3:
            continue
        wanted = state[name].shape
        if wanted[1] != 3 and (wanted[0], *wanted[2:]) == (value.shape[0], *value.shape[2:]):
            adapted = adapt_input_conv(wanted[1], value.clone())
            out[name] = entry.changed(adapted, f"resized 3 to {wanted[1]} image channels")
    return out


def reads_classes(name: str) -> bool:
    """Whether a parameter of a detector or segmenter is of a layer whose first axis counts classes."""
    return any_match(_CLASS_LAYERS, name)


def _fit_classes(entries: Entries, model: nn.Module, dropped: list[KeyReport], other_classes: bool) -> Entries:
    state, out = model.state_dict(), dict(entries)
    for name, entry in entries.items():
        if name not in state or not reads_classes(name):
            continue
        shape, wanted = entry.tensor.shape, state[name].shape
        if shape[1:] == wanted[1:] and (shape[0] != wanted[0] or other_classes):
            what = "for another number of classes" if shape[0] != wanted[0] else "for classes of other names"
            _drop(out, name, (Reason.OTHER_CLASSES, what), dropped)
    return out


def _check_types(entries: Entries, model: nn.Module, source: str) -> None:
    """Numbers with a fraction are not to come of integers, truth values or complex numbers.

    Raises:
        TranseptError: a parameter has another kind of number in the file.
    """
    wrong = [
        f"{name} is {_type(entry.tensor)} in the file and {_type(value)} in the model"
        for name, value in model.state_dict().items()
        if (entry := entries.get(name)) and value.is_floating_point() and not entry.tensor.is_floating_point()
    ]
    if wrong:
        raise TranseptError(
            f"the weights in {source!r} do not fit {_title(model)}: {listed(wrong, 2, '; ')}; give a file of floating "
            "point numbers: of a quantised one, that which it was made from"
        )


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _title(model: nn.Module) -> str:
    return getattr(getattr(model, "backbone", model), "pretrained_cfg", {}).get("architecture", type(model).__name__)


def _write(
    model: nn.Module,
    entries: Entries,
    dropped: list[KeyReport],
    contents: Contents,
    source: str,
    dialect: Dialect | None,
    strict: bool,
) -> LoadReport:
    """Check the entries against the model, write them, and report."""
    _check_types(entries, model, source)
    state = model.state_dict()
    keys = list(dropped)
    misshapen, unknown, missing = [], [], []
    for name, entry in entries.items():
        if name not in state:
            keys.append(KeyReport(entry.file, "", ("unexpected",)))
            unknown.append(" + ".join(entry.file))
        elif state[name].shape != entry.tensor.shape:
            shape, wanted = tuple(entry.tensor.shape), tuple(state[name].shape)
            misshapen.append(f"{name} is {shape} in the file and {wanted} in the model")
        else:
            renamed = () if entry.file == (name,) or len(entry.file) > 1 else ("renamed",)
            keys.append(KeyReport(entry.file, name, (*renamed, *entry.steps) or ("taken",)))
    for name in state:
        if name not in entries:
            reason, words = _harmless(name, entries, dropped, model) or (None, "")
            keys.append(KeyReport((), name, ("missing",), words, reason))
            missing += [] if reason else [name]
    title = _title(model)
    hopeless = bool(misshapen) or not any(key.file and key.model for key in keys)
    if hopeless or (strict and (unknown or missing)):
        guess = identify(contents)
        form = "pyramid" if isinstance(model, Backbone) and model.is_pyramid else "classifier"
        looks = f"; this looks like {guess}" if guess and (guess.model, guess.form) != (title, form) else ""
        faults = [
            *([listed(misshapen, 1, "; ")] if misshapen else []),
            *([f"the model does not know {listed(unknown, 2)}"] if unknown else []),
            *([f"the file lacks {listed(missing, 2)}"] if missing else []),
        ]
        mend = "" if hopeless else "; strict=False loads what fits"
        if guess and form == "classifier" and guess.form != "classifier" and isinstance(model, Backbone):
            mend = "; features_only=True builds what it fits"
        raise TranseptError(f"the weights in {source!r} do not fit {title}{looks}: {'; '.join(faults)}{mend}")
    model.load_state_dict({name: entry.tensor for name, entry in entries.items() if name in state}, strict=False)
    return LoadReport(
        source=source,
        model=title,
        format=contents.format,
        wrapper=contents.wrapper,
        wrappers=contents.wrappers,
        prefix=contents.prefix,
        dialect=dialect.name if dialect else OFFICIAL,
        departs=dialect.departs if dialect else "",
        keys=tuple(keys),
        skipped=contents.skipped,
    )


def _harmless(name: str, entries: Entries, dropped: list[KeyReport], model: nn.Module) -> _Why | None:
    """Why the model may do without a value for `name`; None where it may not."""
    if name.endswith("num_batches_tracked"):
        return _COUNTER
    whole = getattr(model, "backbone", None)
    backbone, inner = (whole, name.removeprefix(BACKBONE)) if isinstance(whole, Backbone) else (model, name)
    reasons = {key.reason for key in dropped}
    is_classifier = any_match(_HEAD, inner)
    if Reason.OTHER_CLASSES in reasons and (is_classifier or reads_classes(name)):
        return Reason.OTHER_CLASSES, "the file is for other classes: starts fresh"
    if is_classifier:
        return Reason.NO_CLASSIFIER, "the file has no classifier: starts fresh"
    if Reason.OTHER_HEADS in reasons and inner.endswith(_HEAD_TABLE):
        return Reason.OTHER_HEADS, "the file is for other heads: starts fresh"
    plain = not any(any_match(_PYRAMID_PARTS, other.removeprefix(BACKBONE)) for other in entries)
    if plain and any_match(_PYRAMID_PARTS, inner) and isinstance(backbone, Backbone) and backbone.is_pyramid:
        return Reason.PYRAMID_LEVEL, "the file has no pyramid: starts fresh, as in the authors' code"
    if name.startswith(PARTS) and not any(other.startswith(PARTS) for other in entries):
        return Reason.BACKBONE_ALONE, "the file holds a backbone alone: starts fresh"
    return None
