"""Which model a checkpoint is of, from its names and shapes alone."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from transept.models.backbone import Family, ModelConfig
from transept.models.registry import FAMILIES, build_skeleton
from transept.weights.convert import OFFICIAL, dialect_of
from transept.weights.convert.rules import Entries, any_match, entries_of
from transept.weights.convert.systems import BACKBONE, METHODS, NORMALIZATION, holds_backbone, method_of, unframed
from transept.weights.files.reading import Contents

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The model that a checkpoint is of, and how it is written."""

    family: str
    model: str
    """The variant whose names and shapes fit best."""
    also: tuple[str, ...] = ()
    """Variants that fit as well: XCiT's weights, for one, do not show the image size."""
    agreement: float
    """Share of names and shapes that agree, in 0..1; below 1 it is a changed variant, or damaged."""
    form: str
    """classifier, pyramid, or the detection or segmentation method."""
    dialect: str
    num_classes: int | None

    def __str__(self) -> str:
        name = self.model if self.form == "classifier" else f"the {self.form} of {self.model}"
        if self.form in METHODS:
            name = f"{self.form} on {self.model}"
        near = "" if self.agreement > 0.999 else f" ({self.agreement:.0%} of names and shapes agree)"
        return name + near


def identify(contents: Contents) -> Identity | None:
    """The variant, form and dialect of a file; None where it is of none of our families."""
    best: Identity | None = None
    for family in FAMILIES:
        entries = {name: e for name, e in unframed(entries_of(contents.tensors)).items() if name not in NORMALIZATION}
        identity = _within(family, entries, contents.format)
        if identity and (best is None or identity.agreement > best.agreement):
            best = identity
    return best


_VIT_PYTORCH = ("to_patch_embedding.{*}", "sm_image_embedder.{*}", "layers.{}.1.layers.{}.{}.dpb.{*}")
"""Names of its CaiT and XCiT, CrossViT, CrossFormer."""


def foreign(contents: Contents) -> str:
    """What a file is whose network goes by the name of one of ours and computes something else: the rest of a sentence.

    "" for all others. Loading what fits of such a file, if only a class token, would make no model of it.
    """
    if any(any_match(_VIT_PYTORCH, name) for name in contents.tensors):
        return (
            "is a model of vit-pytorch, which is built otherwise than the papers' code (queries without biases, other "
            "norms, heads of a width of their own), so that its weights fit none of ours; take published ones, as "
            "`transept models --weights` lists them"
        )
    return ""


def why_unknown(contents: Contents) -> str:
    """What a file is of which `identify` knows no model: the rest of a sentence."""
    if what := foreign(contents):
        return what
    if contents.tensors and contents.tensors.keys() <= {"linear.weight", "linear.bias"}:
        return "is a classifier alone, as of DINO's evaluation; load its backbone first, then it with strict=False"
    first = next(iter(contents.tensors), "nothing")
    return f"holds {len(contents.tensors)} tensors of none of our families, e.g. {first!r}; or say which: --model NAME"


def _within(family: Family, entries: Entries, file_format: str) -> Identity | None:
    method = method_of(entries)
    dialect = dialect_of(entries, family.name, file_format)
    if dialect:
        entries = dialect.read(entries)
    classes = next((count(entries[name].tensor.shape[0]) for name, count in _CLASS_ROWS if name in entries), None)
    if holds_backbone(entries):
        entries = {name.removeprefix(BACKBONE): e for name, e in entries.items() if name.startswith(BACKBONE)}
        inner = dialect_of(entries, family.name)
        entries, dialect = (inner.read(entries), inner) if inner else (entries, dialect)
    shapes = {
        name: tuple(entry.tensor.shape)
        for name, entry in entries.items()
        if not any(re.search(pattern, name) for pattern in family.derived_buffers)
    }
    if not shapes or not _same_kind(shapes, family):
        return None
    candidates = _candidates(shapes, family)
    scores = {(variant, False): _agreement(shapes, _shapes(family, variant, False)) for variant in candidates}
    if max(scores.values()) < 1:
        scores |= {(variant, True): _agreement(shapes, _shapes(family, variant, True)) for variant in candidates}
    top = max(scores.values())
    equals = [key for key, score in scores.items() if score == top]
    variant, pyramid = equals[0]
    if top < 0.5:
        return None
    if not method:
        classes = next((shapes[name][0] for name in ("head.weight", "head.0.weight") if name in shapes), None)
    return Identity(
        family=family.name,
        model=variant,
        also=tuple(dict.fromkeys(name for name, _ in equals if name != variant)),
        agreement=top,
        form=method or ("pyramid" if pyramid else "classifier"),
        dialect=dialect.name if dialect else OFFICIAL,
        num_classes=classes,
    )


# The layer whose rows count the classes: times the 9 anchors of RetinaNet, with the background in the box heads.
_CLASS_ROWS: tuple[tuple[str, Callable[[int], int]], ...] = (
    ("decode_head.conv_seg.weight", lambda rows: rows),
    ("bbox_head.conv_cls.weight", lambda rows: rows),
    ("bbox_head.atss_cls.weight", lambda rows: rows),
    ("bbox_head.retina_cls.weight", lambda rows: rows // 9),
    ("roi_head.bbox_head.fc_cls.weight", lambda rows: rows - 1),
    ("roi_head.bbox_head.0.fc_cls.weight", lambda rows: rows - 1),
)


def _candidates(shapes: Shapes, family: Family) -> list[str]:
    """The variants with a width that the file has somewhere, for building all of them takes seconds; else all."""
    widths = {shape[0] for shape in shapes.values() if len(shape) == 1}

    def wide(config: ModelConfig) -> bool:
        dims = getattr(config, "embed_dims", None) or (getattr(config, "embed_dim", None),)
        return widths >= set(dims)

    return [name for name, config in family.variants.items() if wide(config)] or list(family.variants)


def _same_kind(shapes: Shapes, family: Family) -> bool:
    """Whether most of the names are, but for their numbers, of this family."""
    known = _kinds(family)
    return sum(_kind(name) in known for name in shapes) > len(shapes) / 2


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


@cache
def _kinds(family: Family) -> frozenset[str]:
    # A family may have several trunks (CabViT-H and -P): one variant of each kind of configuration.
    samples = {type(config): name for name, config in family.variants.items()}.values()
    return frozenset(_kind(name) for variant in samples for name in _shapes(family, variant, False))


@cache
def _shapes(family: Family, variant: str, pyramid: bool) -> Shapes:  # by family, whose variants may be registered anew
    state = build_skeleton(variant, features_only=pyramid).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


def _agreement(shapes: Shapes, known: Shapes) -> float:
    """Names with equal shapes, as a share of all names of either. Counters and the classifier's size do not count."""

    def counts(name: str) -> bool:
        return not name.endswith("num_batches_tracked") and not name.startswith("head.")

    names = {name for name in {*shapes, *known} if counts(name)}
    return sum(shapes.get(name) == known.get(name) for name in names) / max(len(names), 1)
