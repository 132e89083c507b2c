"""Costs against hand formulas and published figures."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import nn

import transept
from transept.cost.kept import count_variant, kept_counts
from transept.cost.printed import PUBLISHED
from transept.models.registry import build_skeleton


def xcit_macs(c: int, depth: int, heads: int, patch_size: int, side: int, classes: int = 1000) -> int:
    """Convolutions and matrix products, written out from the paper; `side` is a multiple of the patch."""
    n, d = (side // patch_size) ** 2, c // heads
    widths = [3, *(c // 2**i for i in reversed(range(patch_size.bit_length() - 1)))]
    stem = sum(9 * a * b * (side // 2 ** (i + 1)) ** 2 for i, (a, b) in enumerate(pairwise(widths)))
    positions = 2 * (side // patch_size) * 32 * c
    xca = 4 * n * c * c + 2 * heads * n * d * d
    block = xca + 2 * 9 * n * c + 8 * n * c * c
    class_block = (2 * (n + 1) + 2) * c * c + 2 * (n + 1) * c + 8 * c * c
    return stem + positions + depth * block + 2 * class_block + c * classes


def cait_macs(c: int, depth: int, heads: int, side: int, classes: int = 1000) -> int:
    n = (side // 16) ** 2
    block = 12 * n * c * c + 2 * n * n * c + 2 * heads * heads * n * n
    class_block = (2 * (n + 1) + 2) * c * c + 2 * (n + 1) * c + 8 * c * c
    return 3 * 256 * c * n + depth * block + 2 * class_block + c * classes


@pytest.mark.parametrize("name", transept.list_models("xcit_*"))
def test_xcit_by_hand(name: str):
    from transept.models.xcit import VARIANTS

    config = VARIANTS[name]
    expected = xcit_macs(config.embed_dim, config.depth, config.num_heads, config.patch_size, config.img_size[0])
    assert kept_counts()[name].macs == expected


@pytest.mark.parametrize("name", transept.list_models("cait_*"))
def test_cait_by_hand(name: str):
    from transept.models.cait import VARIANTS

    config = VARIANTS[name]
    assert kept_counts()[name].macs == cait_macs(config.embed_dim, config.depth, config.num_heads, config.img_size[0])


def crossvit_macs(dims: tuple[int, int], grids: tuple, depth: int, ratio: int, conv: bool, classes: int = 1000) -> int:
    """Both branches, then for each class token a projection there and back and one query to the other's patches."""
    total = 0
    for c, other, (h, w), patch, blocks in zip(dims, dims[::-1], grids, (12, 16), (1, depth), strict=True):
        n = h * w
        stem = 3 * patch * patch * c * n
        if conv:
            middle = (h * 3, w * 3) if patch == 12 else (h * 4, w * 4)
            second = n if patch == 12 else 4 * n
            stem = 3 * 49 * (c // 4) * middle[0] * middle[1] + 9 * (c // 4) * (c // 2) * second + 9 * (c // 2) * c * n
        block = (4 + 2 * ratio) * (n + 1) * c * c + 2 * (n + 1) ** 2 * c
        fusion = (2 * (n + 1) + 2) * c * c + 2 * (n + 1) * c  # of the other's class token, in this one's width
        total += stem + 3 * (blocks * block + fusion + 2 * c * other) + c * classes
    return total


@pytest.mark.parametrize("name", transept.list_models("crossvit_*"))
def test_crossvit_by_hand(name: str):
    from transept.models.crossvit import VARIANTS

    config = VARIANTS[name]
    by_hand = crossvit_macs(config.embed_dims, config.grids, config.depth, config.mlp_ratio, config.conv_embed)
    assert kept_counts()[name].macs == by_hand


# Multiply-accumulates of the official models: so many, and so many for each token.
BIXT_MACS = {
    "bixt_ti_l64_p16": (667_872_768, 5_124_096),
    "bixt_ti_l32_p16": (329_313_792, 4_909_056),
    "bixt_ti_l128_p16": (1_373_302_272, 5_554_176),
    "bixt_ed256_l64_p16": (1_178_855_424, 8_847_360),
    "bixt_ti_l64_d13_p16": (723_709_440, 5_566_464),
}


QUICK = ("bixt_ti_l64_p16",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in BIXT_MACS]
)
def test_the_cost_of_bixt_is_affine_in_the_tokens(name: str):
    """But for the positions, where we project rows and columns apart, and the official code every token."""
    model = build_skeleton(name)
    c, depth, latents = model.embed_dim, model.depth, model.config.num_latents
    fixed, per_token = BIXT_MACS[name]
    assert per_token == (depth - 1) * (11 * c * c + 3 * latents * c) + 2 * c * c + 2 * latents * c + (768 + 64) * c
    for height, width in ((224, 224), (160, 416), (1024, 1024)):
        h, w = height // 16, width // 16
        positions = 64 * c * h * w - 32 * c * (h + w)
        assert transept.count(model, (height, width)).macs == fixed + per_token * h * w - positions


EXCEPTIONS = {"crossformer_pp_small"}  # the README repeats another model's operations
WITHOUT_POSITIONS = {f"crossvit_{size}_240" for size in ("tiny", "small", "base", "15")}
RECONSTRUCTION = "cat_tiny_v2"


# The smallest of every kind: of the others the kept figures are compared below, and counted anew by the slow tests.
COUNTED = ("bixt_ti_l64_p16", "cabvit_h_l1", "cabvit_p_l0", "cabvit_p_l0_cross", "cait_xxs24_224", "cat_tiny",
           "crossformer_pp_small", "crossformer_tiny", "crossvit_9_dagger_240", "xcit_nano_12_p16_224",
           "xcit_nano_12_p8_384")  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in COUNTED else [pytest.mark.slow]) for n in transept.list_models()]
)
def test_kept_figures_are_what_is_counted(name: str):
    assert dataclasses.replace(count_variant(name), modules={}) == kept_counts()[name], "run 'make counts'"


@pytest.mark.parametrize("name", transept.list_models())
def test_published_figures(name: str):
    printed, cost = PUBLISHED[name], kept_counts()[name]
    if name == RECONSTRUCTION:
        return
    if printed.params_m is not None:
        digits = len(str(printed.params_m).partition(".")[2]) if printed.params_m != int(printed.params_m) else 0
        parameters = cost.parameters
        if name in WITHOUT_POSITIONS:
            parameters -= sum(
                p.numel() for n, p in build_skeleton(name).named_parameters() if n.startswith("pos_embed")
            )
        assert abs(parameters / 1e6 - printed.params_m) <= 0.5001 * 10**-digits
    if printed.gmacs is not None and name not in EXCEPTIONS:  # their counters add or leave out norms and softmax
        assert cost.macs / 1e9 == pytest.approx(printed.gmacs, rel=0.03, abs=0.06)


# Counted on the official models (their recordings), which compute a few products that we fold or leave out.
OFFICIAL_MACS = {
    "cat_tiny": 2_770_478_080,
    "cat_small": 6_063_207_936,
    "cat_base": 8_928_056_832,
    "cat_tiny_v2": 4_043_443_200,
    "cabvit_h_l1": 1_374_297_280,
    "cabvit_h_l2": 3_602_233_760,
    "cabvit_h_l3": 6_650_569_984,
    "cabvit_p_l0": 1_253_683_200,
    "crossformer_tiny": 2_857_427_552,
    "crossformer_small": 4_906_063_692,
    "crossformer_base": 9_159_389_964,
    "crossformer_large": 16_107_451_680,
    "crossformer_pp_base": 9_591_549_804,
    "crossformer_pp_huge": 22_000_137_056,
}


@pytest.mark.parametrize("name", OFFICIAL_MACS)
def test_operations_of_the_official_models(name: str):
    share = kept_counts()[name].macs / OFFICIAL_MACS[name]
    assert 0.98 < share < 1.0001


def test_parts_add_up_and_the_model_is_left_alone():
    model = transept.create_model("cait_xxs24_224", depth=2).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cost = transept.count(model, (64, 96))
    assert cost.img_size == (64, 96)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    top = [macs for part, (_, macs) in cost.modules.items() if "." not in part]
    assert sum(top) == cost.macs
    assert cost.modules["blocks"][1] == 2 * cost.modules["blocks.0"][1]
    assert model.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_activations_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 8 * 6, 7))
    assert transept.count(model, (8, 6)).activations == 5 * 8 * 6 + 7
    assert transept.count(model, (8, 6)).macs == 27 * 5 * 48 + 240 * 7


def test_fused_attention_is_counted():
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x) * self.weight

    assert transept.count(Attend(), (10, 4)).macs == 2 * 3 * 10 * 10 * 4
