"""Whole detectors and segmenters in the files of mmdetection and mmsegmentation: which system, and its backbone."""

from collections.abc import Iterable

from transept.weights.convert.rules import any_match

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


def method_of(names: Iterable[str]) -> str:
    """The detection or segmentation method that names of a file show, as in `METHODS`; "" for none."""
    names = list(names)
    return next((method for method, mark in METHODS.items() if any(any_match((mark,), name) for name in names)), "")


def holds_backbone(names: Iterable[str]) -> bool:
    """Whether the names are those of something that has a backbone, rather than of one."""
    return any(name.startswith(BACKBONE) for name in names)
