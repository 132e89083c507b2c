"""What a backbone lies in: detectors and segmenters of mmdetection and mmsegmentation, frames of other code bases."""

from collections.abc import Iterable

from transept.weights.convert.rules import Entries, Names, any_match

BACKBONE = "backbone."

METHODS = {
    # In order: the first whose mark a file has. `{}` is one part of a name, `{*}` any.
    "retinanet": "bbox_head.retina_cls.{}",
    "fcos": "bbox_head.conv_centerness.{}",
    "atss": "bbox_head.atss_cls.{}",
    "cascade_mask_rcnn": "roi_head.mask_head.{}.conv_logits.{}",
    "cascade_rcnn": "roi_head.bbox_head.{}.fc_cls.{}",
    "mask_rcnn": "roi_head.mask_head.conv_logits.{}",
    "semantic_fpn": "decode_head.scale_heads.{*}",
    "upernet": "decode_head.psp_modules.{*}",
}
PARTS = ("neck.", "bbox_head.", "rpn_head.", "roi_head.", "decode_head.", "auxiliary_head.")
"""A system's parts beside its backbone, by how their names begin."""
DINO_HEAD = ("head.mlp.{*}", "head.last_layer.{*}")
"""The projection of self-supervised training, beside the backbone in student and teacher files."""


NORMALIZATION = ("normalize.mean", "normalize.std")
"""Of pictures, which RobustBench and others put into the model, before the network."""
_NORMALIZED = Names((("normalize.{}", "normalize.{}"), ("{*}", "model.{*}")))
_EASYCV = Names((("head.{}", "head_0.fc_cls.{}"), ("{*}", "backbone.model.{*}")))
"""A classifier of EasyCV whose last layer is its own, or a network of its DINO."""
_EASYCV_HEADS = ("head_0.fc_cls.{}", *DINO_HEAD)


def unframed(entries: Entries) -> Entries:
    """The names of the network that another code base put into a frame; those of `NORMALIZATION` stay as they are."""
    names = set(entries)
    if names >= set(NORMALIZATION) and all(name.startswith("model.") for name in names.difference(NORMALIZATION)):
        return _NORMALIZED.read(entries)
    framed = {name for name in names if name.startswith("backbone.model.")}
    if framed and names > framed and all(any_match(_EASYCV_HEADS, name) for name in names - framed):
        return _EASYCV.read(entries)
    return entries


def method_of(names: Iterable[str]) -> str:
    """The detection or segmentation method that names of a file show, as in `METHODS`; "" for none."""
    names = list(names)
    return next((method for method, mark in METHODS.items() if any(any_match((mark,), name) for name in names)), "")


def holds_backbone(names: Iterable[str]) -> bool:
    """Whether the names are those of something that has a backbone, rather than of one."""
    return any(name.startswith(BACKBONE) for name in names)
