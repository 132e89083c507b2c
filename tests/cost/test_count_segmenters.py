"""Parameters and operations of every published segmenter, beside what was published or counted on the official ones."""

from functools import cache

import pytest

import transept
from transept.cost.count import Cost
from transept.cost.kept import system_skeleton
from transept.models.registry import find_model

# Method, backbone; millions of parameters and 10^9 "FLOPs" at 1024 x 1024 as the repositories print them;
# parameters and multiply-accumulates (10^9) counted on the official models.
PRINTED = [
    ("semantic_fpn", "cat_small", "41", "214", 40.900, 238.60),
    ("semantic_fpn", "cat_base", "55", "276", 55.137, 302.77),
    ("semantic_fpn", "crossformer_small", "34.3", "209.8", 34.260, 209.72),
    ("semantic_fpn", "crossformer_base", "55.6", "320.1", 55.574, 320.01),
    ("semantic_fpn", "crossformer_large", "95.4", "482.7", 95.440, 482.56),
    ("upernet", "crossformer_small", "62.3", "979.5", 62.308, 979.30),
    ("upernet", "crossformer_base", "83.6", "1089.7", 83.622, 1089.59),
    ("upernet", "crossformer_large", "125.5", "1257.8", 125.479, 1257.67),
]
# XCiT prints scores only: parameters and multiply-accumulates at 512 and at 1024, counted on the official models.
XCIT = {
    "semantic_fpn": {
        "tiny_12_p16": (8.900, 21.7, 86.7),
        "tiny_12_p8": (8.594, 39.4, 157.7),
        "small_12_p16": (32.222, 71.4, 285.8),
        "small_12_p8": (31.001, 140.6, 562.5),
        "small_24_p16": (53.640, 93.7, 374.9),
        "small_24_p8": (52.419, 229.8, 919.0),
        "medium_24_p16": (94.035, 160.9, 643.6),
        "medium_24_p8": (91.864, 402.5, 1609.8),
    },
    "upernet": {
        "tiny_12_p16": (34.171, 218.5, 874.2),
        "tiny_12_p8": (33.866, 236.3, 945.1),
        "small_12_p16": (54.199, 241.8, 967.1),
        "small_12_p8": (52.978, 311.0, 1243.8),
        "small_24_p16": (75.617, 264.1, 1056.2),
        "small_24_p8": (74.396, 400.1, 1600.3),
        "medium_24_p16": (112.177, 304.6, 1218.5),
        "medium_24_p8": (110.006, 546.2, 2184.7),
    },
}
ROWS = [(method, name, params, macs, 1024) for method, name, *_, params, macs in PRINTED]
ROWS += [
    (method, f"xcit_{size}", params, macs, side)
    for method, rows in XCIT.items()
    for size, (params, *both) in rows.items()
    for side, macs in zip((512, 1024), both, strict=True)
    if side == 512 or size.startswith("tiny")  # a larger map costs the wider and deeper ones no other products
]


@cache
def cost(method: str, backbone: str, side: int) -> Cost:
    return transept.count(system_skeleton(method, backbone), (side, side))


def saved(method: str, backbone: str, side: int) -> int:
    """Products that the official models compute and ours do not, by the papers' formulas; the outputs are the same."""
    name, family = find_model(backbone)
    variant = family.variants[name]
    sides = [side // 4 // 2**stage for stage in range(4)]
    match family.name:
        case "CAT":
            # Cross-patch attention has four projections of 49 values among the patches of a channel; two are folded.
            padded = [-(-s // 7) * 7 for s in sides]
            return sum(2 * 49 * s * s * c * d for s, c, d in zip(padded, variant.dims, variant.depths, strict=True))
        case "CrossFormer":
            # The official output projection runs on the padding too: multiples of G, or of I in every second block.
            large = method == "semantic_fpn"
            sizes, intervals = ((14, 14, 7, 7), (16, 8, 2, 1)) if large else ((7, 7, 7, 7), (8, 4, 2, 1))
            total = 0
            for s, c, d, g, i in zip(sides, variant.dims, variant.depths, sizes, intervals, strict=True):
                for unit in (g, i):
                    total += d // 2 * c * c * ((-(-s // unit) * unit) ** 2 - s * s)
            return total
        case "XCiT":
            # The position encoding is projected for rows and columns, and not for every token.
            grid = side // variant.patch_size
            return 64 * grid * grid * variant.embed_dim - 2 * 32 * grid * variant.embed_dim
    raise AssertionError(family.name)


# One backbone of each family and patch size; the wider and deeper ones repeat the layers of these.
QUICK = ("cat_small", "crossformer_small", "xcit_tiny_12_p8", "xcit_tiny_12_p16")


def quick_and_slow(rows: list) -> list:
    """The larger side of the two that XCiT is counted at is slow."""
    slow = [row for row in rows if row[1] not in QUICK or (row[1].startswith("xcit") and row[-1] == 1024)]
    return [pytest.param(*row, marks=[pytest.mark.slow] if row in slow else []) for row in rows]


@pytest.mark.parametrize(("method", "backbone", "params", "macs", "side"), quick_and_slow(ROWS))
def test_equals_the_official_model(method: str, backbone: str, params: float, macs: float, side: int):
    ours = cost(method, backbone, side)
    assert round(ours.parameters / 1e6, 3) == params
    digits = 2 if (method, backbone) in [row[:2] for row in PRINTED] else 1
    total = (ours.macs + saved(method, backbone, side)) / 1e9
    assert total == pytest.approx(macs, abs=0.51 * 10**-digits)
    assert ours.macs > 0.99 * macs * 1e9


@pytest.mark.parametrize(("method", "backbone", "params", "flops", "counted", "macs"), quick_and_slow(PRINTED))
def test_equals_what_was_printed(method: str, backbone: str, params: str, flops: str, counted: float, macs: float):
    ours = cost(method, backbone, 1024)
    assert f"{ours.parameters / 1e6:.{len(params.partition('.')[2])}f}" == params
    if backbone.startswith("crossformer"):  # their counter adds biases and norms
        assert ours.macs / 1e9 == pytest.approx(float(flops), rel=0.006)
    else:  # CAT's leaves attention out
        assert 0.88 * ours.macs / 1e9 < float(flops) < ours.macs / 1e9


def test_auxiliary_head_costs_parameters_only():
    ours = cost("upernet", "crossformer_small", 1024)
    assert ours.modules["auxiliary_head"] == (923_798, 0)
    assert ours.modules["decode_head"][0] == 31_497_366
    assert ours.macs == sum(ours.modules[part][1] for part in ("backbone", "decode_head"))
