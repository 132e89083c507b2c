"""Figures that the authors, or others who name their counter, print; `transept count` prints ours beside them.

CabViT's figures are those of its successor's paper, FcaFormer, whose models are the same. XCiT's README rounds
parameters to millions and gives no operations: those are MMPretrain 1.2.0's (`configs/xcit`, counted on the converted
official models). CaiT's README leaves out the XXS models.
"""

from dataclasses import dataclass

from transept.models import bixt


@dataclass(frozen=True, slots=True)
class Published:
    """Printed figures; None where nobody we can cite printed one."""

    params_m: float | None = None
    """Millions of parameters."""
    gmacs: float | None = None
    """10^9 multiply-accumulates for one image of the native size."""
    source: str = ""
    top1: float | None = None
    """ImageNet-1k accuracy in percent, for models whose weights are not in the catalogue."""


_XCIT_SOURCE = "MMPretrain 1.2.0 metafile"
_XCIT = {  #      parameters in millions, 10^9 MACs at 224 and at 384
    "nano_12_p16": (3.053224, 0.5571, 1.6363),
    "tiny_12_p16": (6.716272, 1.2397, 3.6415),
    "tiny_24_p16": (12.116896, 2.3393, 6.8730),
    "small_12_p16": (26.253304, 4.8150, 14.1432),
    "small_24_p16": (47.671384, 9.0951, 26.7215),
    "medium_24_p16": (84.395752, 16.1296, 47.3889),
    "large_24_p16": (189.096136, 35.8559, 105.3451),
    "nano_12_p8": (3.049016, 2.1569, 6.3378),
    "tiny_12_p8": (6.706504, 4.8074, 14.1261),
    "tiny_24_p8": (12.107128, 9.2058, 27.0521),
    "small_12_p8": (26.213032, 18.6916, 54.9235),
    "small_24_p8": (47.631112, 35.8121, 105.2367),
    "medium_24_p8": (84.323624, 63.5247, 186.6726),
    "large_24_p8": (188.932648, 141.2257, 415.0031),
}
_CAIT_SOURCE = "official README"
_CAIT: dict[str, tuple[float | None, float | None]] = {  # parameters in millions, "FLOPs" in 10^9
    "cait_xxs24_224": (None, None),
    "cait_xxs24_384": (None, None),
    "cait_xxs36_224": (None, None),
    "cait_xxs36_384": (None, None),
    "cait_xs24_384": (27, 19.3),
    "cait_s24_224": (47, 9.4),
    "cait_s24_384": (47, 32.2),
    "cait_s36_384": (68, 48.0),
    "cait_m36_384": (271, 173.3),
    "cait_m48_448": (356, 329.6),
}

# Those of tiny, small, base and 15 are without position embeddings, the others with them.
_CROSSVIT = {  # parameters in millions, "FLOPs" in 10^9
    "tiny_240": (6.9, 1.6),
    "small_240": (26.7, 5.6),
    "base_240": (104.7, 21.2),
    "9_240": (8.6, 1.8),
    "15_240": (27.4, 5.8),
    "18_240": (43.3, 9.0),
    "9_dagger_240": (8.8, 2.0),
    "15_dagger_240": (28.2, 6.1),
    "18_dagger_240": (44.3, 9.5),
    "15_dagger_408": (28.5, 21.4),
    "18_dagger_408": (44.6, 32.4),
}
_BIXT = {
    "bixt_ti_l64_p16_ft384": Published(15, 3.6, "authors' poster"),
    "bixt_ti_l64_p16s8_ft384": Published(15, 12.5, "authors' poster"),
    "bixt_ed256_l64_p16": Published(27, 2.9, "authors' poster"),
    "bixt_ed256LS_l64_p16s8": Published(27, 8.1, "authors' poster"),
    "bixt_ed256LS_l64_p16s8_ft384": Published(27, 21.6, "authors' poster"),
}

_OTHERS = {
    "cat_tiny": Published(17, 2.8, "official README", 80.3),
    "cat_small": Published(37, 5.9, "official README", 81.8),
    "cat_base": Published(52, 8.9, "official README", 82.8),
    # What the README announces for CAT-T-v2; ours is a reconstruction, and this score is not its score.
    "cat_tiny_v2": Published(36, 3.9, "official README (another network)"),
    "cabvit_h_l1": Published(6.2, 1.4, "FcaFormer", 80.3),
    "cabvit_h_l2": Published(16.3, 3.6, "FcaFormer", 83.1),
    "cabvit_h_l3": Published(27.9, 6.7, "FcaFormer", 84.2),
    "cabvit_h_l4": Published(65.6, 14.5, "FcaFormer", 84.9),
    # FcaFormer's L0 (5.9 M, 74.3 %) attends across blocks; the released CabViT-P does not, and ours has no weights.
    "cabvit_p_l0": Published(),
    "cabvit_p_l0_cross": Published(),
    "crossformer_tiny": Published(27.8, 2.9, "official README", 81.5),
    "crossformer_small": Published(30.7, 4.9, "official README", 82.5),
    "crossformer_base": Published(52.0, 9.2, "official README", 83.4),
    "crossformer_large": Published(92.0, 16.1, "official README", 84.0),
    # The README repeats the operations of crossformer_small here; the official code does 4.4.
    "crossformer_pp_small": Published(23.3, 4.9, "official README", 83.2),
    "crossformer_pp_base": Published(52.0, 9.5, "official README", 84.2),
    "crossformer_pp_large": Published(92.0, 16.6, "official README", 84.7),
    "crossformer_pp_huge": Published(96.0, 21.8, "official README", 84.9),
}

PUBLISHED: dict[str, Published] = {
    **_OTHERS,
    **{
        f"xcit_{size}_{img_size}": Published(params, macs, _XCIT_SOURCE)
        for size, (params, *both) in _XCIT.items()
        for img_size, macs in zip((224, 384), both, strict=True)
    },
    **{f"crossvit_{size}": Published(params, macs, "paper") for size, (params, macs) in _CROSSVIT.items()},
    "crossvit_18_dagger_480": Published(44.9, 56.6, "paper", 84.1),
    **{name: _BIXT.get(name, Published()) for name in bixt.VARIANTS},
    **{name: Published(params, macs, _CAIT_SOURCE if params else "") for name, (params, macs) in _CAIT.items()},
}

SEGMENTER_SIZE = (1024, 1024)
"""Height and width that the operations of segmenters are printed for."""
# CAT's counter leaves the attention's products out, and counts normalisations.
_CAT_DENSE = "official README, without attention"

PUBLISHED_SEGMENTERS: dict[str, Published] = {
    "semantic_fpn/cat_small": Published(41, 214, _CAT_DENSE),
    "semantic_fpn/cat_base": Published(55, 276, _CAT_DENSE),
    "semantic_fpn/crossformer_small": Published(34.3, 209.8, "official README"),
    "semantic_fpn/crossformer_base": Published(55.6, 320.1, "official README"),
    "semantic_fpn/crossformer_large": Published(95.4, 482.7, "official README"),
    "upernet/crossformer_small": Published(62.3, 979.5, "official README"),
    "upernet/crossformer_base": Published(83.6, 1089.7, "official README"),
    "upernet/crossformer_large": Published(125.5, 1257.8, "official README"),
}
"""`METHOD/BACKBONE` to the printed figures of the segmenter for ADE20K. XCiT prints scores alone."""

DETECTOR_SIZE = (1280, 800)
"""Height and width that the operations of detectors are printed for."""

PUBLISHED_DETECTORS: dict[str, Published] = {
    "mask_rcnn/cat_small": Published(57, 295, _CAT_DENSE),
    "mask_rcnn/cat_base": Published(71, 356, _CAT_DENSE),
    # FCOS and ATSS cost the same, as the rows of CAT-B show; 245 is not reproduced.
    "fcos/cat_small": Published(45, 245, _CAT_DENSE),
    "fcos/cat_base": Published(59, 303, _CAT_DENSE),
    "atss/cat_small": Published(45, 243, _CAT_DENSE),
    "atss/cat_base": Published(59, 303, _CAT_DENSE),
    "retinanet/cat_small": Published(47, 276, _CAT_DENSE),
    "retinanet/cat_base": Published(62, 337, _CAT_DENSE),
    "cascade_rcnn/cat_small": Published(82, 270, _CAT_DENSE),
    "cascade_rcnn/cat_base": Published(96, 330, _CAT_DENSE),
    "retinanet/crossformer_small": Published(40.8, 282.0, "official README"),
    "retinanet/crossformer_base": Published(62.1, 389.0, "official README"),
    "mask_rcnn/crossformer_small": Published(50.2, 301.0, "official README"),
    "mask_rcnn/crossformer_base": Published(71.5, 407.9, "official README"),
    "mask_rcnn/crossformer_small 3x": Published(50.2, 291.1, "official README"),
    "mask_rcnn/crossformer_base 3x": Published(71.5, 398.1, "official README"),
    "cascade_mask_rcnn/crossformer_small": Published(88.0, 769.7, "official README"),
}
"""`METHOD/BACKBONE`, with the schedule where a second one has another cost, to the printed figures of the detector for
COCO. XCiT prints scores alone."""

PUBLISHED_SYSTEMS = PUBLISHED_DETECTORS | PUBLISHED_SEGMENTERS
SYSTEM_SIZES = {"detect": DETECTOR_SIZE, "segment": SEGMENTER_SIZE}
"""Task to height and width of the images that published operations are for."""
