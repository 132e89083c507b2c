"""CrossFormer's claims, options, sizes and messages, on small models."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from transept.errors import UsageError
from transept.layers.position_bias import DynamicPositionBias
from transept.models.crossformer import (
    VARIANTS,
    CooledBlock,
    CrossFormer,
    CrossFormerConfig,
    CrossFormerPyramid,
    Grouping,
    LongDistanceAttention,
    PatchMerging,
    ShortDistanceAttention,
    progressive_group_size,
)
from transept.models.registry import build_model
from transept.ops.windows import crop_map, from_windows, pad_map, relative_offsets, relative_position_index, to_windows

TINY = CrossFormerConfig(
    img_size=(64, 64),
    embed_dim=16,
    depths=(2, 3, 4, 2),
    num_heads=(1, 2, 4, 8),
    group_sizes=(4, 3, 4, 2),
    intervals=(3, 2, 2, 1),
)


def classifier(config: CrossFormerConfig = TINY, **options) -> CrossFormer:
    torch.manual_seed(0)
    return _spread(CrossFormer(replace(config, **options), num_classes=5)).eval()


def pyramid(config: CrossFormerConfig = TINY, **options) -> CrossFormerPyramid:
    torch.manual_seed(0)
    return _spread(CrossFormerPyramid(replace(config, **options))).eval()


def _spread(model):
    """Larger weights than at initialisation, so that what should differ differs."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def reached(attention: nn.Module, size: tuple[int, int], grouping: Grouping, token: tuple[int, int], masked: bool):
    """The tokens on which the output of one depends, as a set of (row, column)."""
    x = torch.randn(1, *size, 16, requires_grad=True)
    mask = grouping.mask(size, device=x.device, dtype=x.dtype) if masked else None
    attention(x, grouping, mask)[0, token[0], token[1]].pow(2).sum().backward()
    assert x.grad is not None
    return {tuple(place) for place in x.grad[0].abs().sum(-1).nonzero().tolist()}


# Section 3.2.1: who attends to whom


def test_short_distance_mixes_only_its_window():
    attention = ShortDistanceAttention(16, 2)
    grouping = attention.grouping((6, 9), 3, 5, TINY)
    assert reached(attention, (6, 9), grouping, (4, 2), masked=False) == {(r, c) for r in (3, 4, 5) for c in (0, 1, 2)}


def test_long_distance_mixes_only_its_dilated_group():
    attention = LongDistanceAttention(16, 2)
    grouping = attention.grouping((12, 24), 4, 3, TINY)
    assert grouping == Grouping((4, 4), 3, (0, 0, 0, 0))
    expected = {(r, c) for r in (1, 4, 7, 10) for c in (14, 17, 20, 23)}  # the second tile
    assert reached(attention, (12, 24), grouping, (7, 20), masked=False) == expected


def test_legacy_long_distance_spans_the_map():
    attention = LongDistanceAttention(16, 2)
    grouping = attention.grouping((8, 11), 4, 3, replace(TINY, grouping="legacy"))
    assert grouping == Grouping((3, 4), 3, (0, 1, 0, 1))
    expected = {(r, c) for r in (1, 4, 7) for c in (2, 5, 8)}
    assert reached(attention, (8, 11), grouping, (4, 8), masked=True) == expected


@pytest.mark.parametrize("pad_side", ["end", "both"])
@pytest.mark.parametrize("kind", [ShortDistanceAttention, LongDistanceAttention])
def test_padding_is_never_attended_to(kind, pad_side):
    """What the position bias or the projections say about padding changes nothing; without the mask it does."""
    attention = kind(16, 2).eval()
    size = (7, 10)
    grouping = attention.grouping(size, 4, 2, replace(TINY, pad_side=pad_side))
    assert any(grouping.pads)
    mask = grouping.mask(size, device=torch.device("cpu"), dtype=torch.float32)
    x = torch.randn(2, *size, 16)
    out = attention(x, grouping, mask)
    groups = to_windows(pad_map(torch.ones(1, *size, 1), grouping.pads), grouping.sides, grouping.interval).squeeze(-1)
    assert torch.equal(mask[:, 0, 0], torch.where(groups == 1, 0.0, -1e6))
    valid = to_windows(pad_map(x, grouping.pads), grouping.sides, grouping.interval).unflatten(0, (2, -1))
    # One group that has padding, computed from its real tokens alone.
    g = int(((groups.sum(1) > 0) & (groups.sum(1) < groups.shape[1])).nonzero()[0])
    keep = groups[g].nonzero().flatten()
    q, k, v = (t.unflatten(-1, (2, 8)).transpose(0, 1) for t in attention.qkv(valid[0, g, keep]).chunk(3, dim=-1))
    logits = q @ k.transpose(-2, -1) * 8**-0.5 + attention.pos(grouping.sides)[:, keep][:, :, keep]
    expected = attention.proj((logits.softmax(-1) @ v).transpose(0, 1).flatten(1))
    got = to_windows(pad_map(out, grouping.pads), grouping.sides, grouping.interval).unflatten(0, (2, -1))[0, g, keep]
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(out, attention(x, grouping))


def test_groups_of_padding_alone_are_finite_in_half_precision():
    size = (5, 5)
    attention = LongDistanceAttention(16, 2).to(torch.float16)
    grouping = attention.grouping(size, 4, 7, TINY)
    x = torch.randn(1, *size, 16, dtype=torch.float16, requires_grad=True)
    mask = grouping.mask(size, device=x.device, dtype=x.dtype)
    assert (mask < 0).flatten(1).all(dim=1).any()
    attention(x, grouping, mask).sum().backward()
    gradients = [x.grad, *(p.grad for p in attention.parameters())]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("kind", "size", "rule", "expected"),
    [
        (ShortDistanceAttention, (5, 9), "current", Grouping((9, 9), 1, (0, 0, 0, 4))),
        (LongDistanceAttention, (5, 9), "current", Grouping((9, 9), 1, (0, 0, 0, 4))),
        (ShortDistanceAttention, (5, 9), "legacy", Grouping((5, 5), 1, (0, 1, 0, 0))),
        (LongDistanceAttention, (5, 9), "legacy", Grouping((5, 5), 1, (0, 1, 0, 0))),
        (LongDistanceAttention, (8, 9), "current", Grouping((7, 7), 4, (0, 19, 0, 20))),
        (LongDistanceAttention, (8, 9), "legacy", Grouping((2, 3), 4, (0, 3, 0, 0))),
    ],
)
def test_small_maps(kind, size, rule, expected):
    assert kind(16, 2).grouping(size, 7, 4, replace(TINY, grouping=rule)) == expected


def test_adaptive_interval_covers_the_map_with_one_tile():
    config = replace(TINY, adaptive_interval=True)
    assert LongDistanceAttention(16, 2).grouping((16, 22), 7, 9, config) == Grouping((7, 7), 4, (0, 6, 0, 12))


# Groups


@pytest.mark.parametrize(
    ("size", "sides", "interval"), [((6, 8), (3, 2), 1), ((12, 8), (3, 2), 2), ((6, 9), (2, 3), 3)]
)
def test_groups_out_and_back_are_the_identity(size, sides, interval):
    x = torch.arange(2 * size[0] * size[1] * 5).view(2, *size, 5)
    groups = to_windows(x, sides, interval)
    assert groups.shape == (x.numel() // 5 // (sides[0] * sides[1]), sides[0] * sides[1], 5)
    assert torch.equal(from_windows(groups, sides, x.shape, interval), x)


def test_groups_hold_one_residue():
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(18), indexing="ij")
    groups = to_windows(torch.stack([rows % 3, columns % 3], dim=-1)[None], (2, 6), 3)
    assert torch.equal(groups, groups[:, :1].expand_as(groups))


def test_crop_undoes_pad():
    x = torch.randn(2, 3, 4, 5)
    padded = pad_map(x, (1, 2, 3, 4))
    assert padded.shape == (2, 10, 7, 5)
    assert torch.equal(crop_map(padded, (1, 2, 3, 4)), x)


# Section 3.2.2: dynamic position bias


def test_relative_position_index_finds_query_minus_key():
    offsets = relative_offsets((3, 4), device=torch.device("cpu"), dtype=torch.float32)
    places = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    found = offsets[relative_position_index((3, 4), device=torch.device("cpu"))]
    assert torch.equal(found, (places[:, None] - places).float())


def test_bias_depends_on_the_offset_alone():
    bias = DynamicPositionBias(128, 3)((4, 5)).view(3, 4, 5, 4, 5)
    torch.testing.assert_close(bias[:, 1:, 2:, 1:, 2:], bias[:, :-1, :-2, :-1, :-2])
    assert not torch.allclose(bias, bias.permute(0, 3, 4, 1, 2))  # query minus key is not key minus query


def test_bias_of_a_smaller_group_is_part_of_a_larger_one():
    pos = DynamicPositionBias(128, 3)
    large, small = pos((6, 5)).view(3, 6, 5, 6, 5), pos((2, 3)).view(3, 2, 3, 2, 3)
    torch.testing.assert_close(large[:, :2, :3, :2, :3], small)


def test_bias_that_ignores_an_axis_is_symmetric_along_it():
    """Where the first layer drops the rows' sign (its row weights are 0), columns alone matter; and the reverse."""
    for axis, order in ((0, (0, 3, 2, 1, 4)), (1, (0, 1, 4, 3, 2))):
        pos = DynamicPositionBias(128, 3)
        with torch.no_grad():
            pos.pos_proj.weight[:, axis] = 0
        bias = pos((3, 4)).view(3, 3, 4, 3, 4)
        torch.testing.assert_close(bias, bias.permute(order))
        assert not torch.allclose(bias, bias.permute(0, 3, 4, 1, 2))


class TestKeptBias:
    """In evaluation the bias is computed once per size, and again whenever a parameter has changed."""

    @pytest.fixture
    def pos(self) -> DynamicPositionBias:
        return DynamicPositionBias(128, 3).eval()

    def check(self, pos: DynamicPositionBias, sides: tuple[int, int] = (3, 4)) -> Tensor:
        with torch.no_grad():
            bias = pos(sides)
            assert torch.equal(bias, pos.compute(sides))
        return bias

    def test_is_kept(self, pos):
        assert self.check(pos) is self.check(pos)
        assert self.check(pos, (4, 3)) is not self.check(pos)

    def test_in_place_change(self, pos):
        self.check(pos)
        with torch.no_grad():
            pos.pos3[2].weight.mul_(2)
        self.check(pos)

    def test_loading(self, pos):
        self.check(pos)
        pos.load_state_dict(DynamicPositionBias(128, 3).state_dict())
        self.check(pos)

    def test_replaced_parameter(self, pos):
        self.check(pos)
        pos.pos_proj.weight = nn.Parameter(torch.randn(8, 2))
        self.check(pos)

    def test_new_data(self, pos):
        self.check(pos)
        pos.pos_proj.weight.data = torch.randn(8, 2)
        self.check(pos)

    def test_cast(self, pos):
        self.check(pos)
        assert self.check(pos.double()).dtype == torch.float64

    def test_autocast(self, pos):
        self.check(pos)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert self.check(pos).dtype == torch.bfloat16
        assert self.check(pos).dtype == torch.float32

    def test_eval_forgets(self, pos):
        self.check(pos)
        pos.pos_proj.weight.data.mul_(2)
        self.check(pos.eval())

    def test_functional_call(self, pos):
        self.check(pos)
        doubled = {name: 2 * p.detach() for name, p in pos.named_parameters()}
        with torch.no_grad():
            bias = torch.func.functional_call(pos, doubled, ((3, 4),))
        assert not torch.allclose(bias, self.check(pos))

    def test_copies_start_empty(self, pos):
        self.check(pos)
        assert copy.deepcopy(pos)._kept is None

    def test_inference_mode_does_not_reach_training(self, pos):
        with torch.inference_mode():
            assert not pos((3, 4)).is_inference()
        pos((3, 4)).sum().backward()
        assert pos.pos_proj.weight.grad is not None


# CrossFormer++


def test_cooling_layers_stand_behind_every_third_block_but_the_last():
    config = replace(VARIANTS["crossformer_pp_huge"], embed_dim=16, num_heads=(1, 1, 1, 1))
    places = [
        [i for i, block in enumerate(stage.blocks) if isinstance(block, CooledBlock)]
        for stage in CrossFormer(config).layers
    ]
    assert places == [[2], [2], [2, 5, 8, 11, 14], []]


def test_cooling_replaces_the_residual_stream():
    block = CooledBlock(ShortDistanceAttention(16, 2), 16, 4.0, 0.0)
    nn.init.zeros_(block.ex_conv.weight)
    nn.init.zeros_(block.ex_conv.bias)
    assert not block(torch.randn(1, 4, 4, 16), Grouping((4, 4), 1, (0, 0, 0, 0))).any()


@pytest.mark.parametrize(
    ("group_type", "expected"),
    [
        ("constant", [4, 4, 4, 4] + 18 * [14] + [7, 7]),
        ("7_14", [4, 4, 4, 4] + 4 * [7] + 14 * [14] + [7, 7]),
        ("linear", [4, 7, 5, 6, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 7, 7]),
        ("linear_div", [4, 7, 5, 6, 4, 4, 5, 5, 6, 6] + 8 * [7] + 4 * [14] + [7, 7]),
        ("alter", [4, 7, 5, 6, 4, 4, 5, 5, 6, 6, 7, 7, 7, 14, 7, 14, 7, 14, 7, 14, 7, 14, 7, 7]),
    ],
)
def test_progressive_group_sizes(group_type, expected):
    config = replace(VARIANTS["crossformer_pp_small"], group_type=group_type)
    stages = [0] * 2 + [1] * 2 + [2] * 18 + [3] * 2
    sizes = [progressive_group_size(config, stage=s, block=k, grid_side=56) for k, s in enumerate(stages)]
    assert sizes == expected


# Sizes


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (67, 99), (32, 160)])
def test_classifier_takes_what_can_be_halved(size):
    assert classifier()(torch.randn(2, 3, *size)).shape == (2, 5)


@pytest.mark.parametrize("size", [(64, 64), (100, 76), (37, 141), (1, 3)])
@pytest.mark.parametrize("grouping", ["current", "legacy"])
def test_pyramid_takes_any_size(size, grouping):
    sides = [tuple(max(side // 4, 1) for side in size)]
    for _ in range(3):
        sides.append(tuple(-(-side // 2) for side in sides[-1]))
    with torch.no_grad():
        levels = pyramid(grouping=grouping)(torch.randn(1, 3, *size))
    assert [(level.shape[1], *level.shape[2:]) for level in levels] == [(16 * 2**i, *s) for i, s in enumerate(sides)]


def test_padding_option_changes_nothing_at_sizes_that_need_none():
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        assert torch.equal(classifier(pad=True)(x), classifier()(x))
        assert classifier(pad=True)(torch.randn(1, 3, 90, 51)).shape == (1, 5)


def test_the_native_size_is_only_a_hint():
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        assert torch.equal(classifier(img_size=(96, 64))(x), classifier()(x))


def test_nothing_remembers_the_last_image():
    model, x = pyramid(), torch.randn(1, 3, 128, 96)
    with torch.no_grad():
        before = model(x)
        model(torch.randn(1, 3, 33, 40))
        assert all(map(torch.equal, before, model(x)))


def test_merging_of_odd_sides_pads_after_the_norm():
    merging = PatchMerging(8, (2, 4))
    x = torch.randn(1, 5, 3, 8)
    padded = torch.zeros(1, 6, 4, 8)
    padded[:, :5, :3] = merging.norm(x)
    expected = merging.reductions(padded.permute(0, 3, 1, 2))
    torch.testing.assert_close(merging(x), expected)
    assert expected.shape == (1, 3, 2, 16)


def test_pyramid_and_classifier_agree():
    features, model = pyramid(), classifier()
    model.load_state_dict(features.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        wanted = model.forward_intermediates(x, intermediates_only=True)
        assert all(map(torch.equal, features(x), wanted))


# Training


@pytest.mark.parametrize("options", [{}, {"grouping": "legacy"}, {"activation_cooling": True}])
def test_gradients_reach_every_parameter(options):
    model = pyramid(**options).train()
    sum(level.sum() + level.pow(2).sum() for level in model(torch.randn(2, 3, 128, 96))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_drop_path_grows_with_depth():
    model = CrossFormer(TINY, drop_path_rate=0.5)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0.05 * i for i in range(11)])


def test_gradient_checkpointing_changes_no_gradient():
    x = torch.randn(1, 3, 64, 96)
    plain, saving = pyramid(activation_cooling=True).train(), pyramid(activation_cooling=True).train()
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        sum(level.pow(2).mean() for level in model(x)).backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# Options and messages


@pytest.mark.parametrize(
    "options",
    [
        {"grouping": "legacy"},
        {"group_sizes": (7, 3, 3, 2)},
        {"intervals": (2, 2, 2, 1)},
        {"group_type": "7_14"},
        {"group_type": "linear"},
        {"group_type": "linear_div"},
        {"group_type": "alter"},
        {"adaptive_interval": True},
        {"activation_cooling": True},
        {"pad_side": "both"},
        {"mask_padding": False},
        {"mlp_ratio": 2.0},
        {"patch_sizes": (4, 8)},
        {"merge_sizes": ((2, 4), (2,), (2, 4))},
        {"num_heads": (2, 2, 4, 8)},
    ],
    ids=str,
)
def test_every_option_changes_the_output(options):
    x = torch.randn(1, 3, 224, 160)
    with torch.no_grad():
        assert not torch.allclose(classifier(**options)(x), classifier()(x), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grouping": "old"}, "grouping='old'; use one of 'current', 'legacy'"),
        (
            {"group_type": "cosine"},
            "group_type='cosine'; use one of 'constant', '7_14', 'linear', 'linear_div', 'alter'",
        ),
        ({"pad_side": "top"}, "pad_side='top'; use one of 'end', 'both'"),
        ({"group_sizes": (7, 6, 5)}, "group_sizes=(7, 6, 5); give one positive number for each of the 4 stages"),
        ({"intervals": (8, 4, 0, 1)}, "intervals=(8, 4, 0, 1); give one positive number"),
        ({"embed_dim": 40}, "embed_dim=40 must be a multiple of 16"),
        ({"num_heads": (1, 2, 3, 4)}, "the 64 channels of stage 2 must be a multiple of num_heads=3"),
        ({"merge_sizes": ((2,), (4,))}, "merge_sizes=((2,), (4,)); give the kernels of each of the 3 mergings"),
        ({"merge_sizes": ((2,), (2, 5), (2,))}, "merge_sizes has (2, 5); start with 2"),
        ({"patch_sizes": (8, 16)}, "patch_sizes has (8, 16); start with 4"),
        ({"grouping": "legacy", "adaptive_interval": True}, "leave out adaptive_interval=True"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(TINY, **options)


def test_sizes_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"image is 240x200, .* use 224x192 or 256x224 .* or pad=True"):
        classifier()(torch.randn(1, 3, 240, 200))
    with pytest.raises(ValueError, match=r"image is 16x70, .* use 32x64 or 32x96 "):
        classifier()(torch.randn(1, 3, 16, 70))
    with pytest.raises(UsageError, match="crossformer_tiny: image is 240x160, "):
        build_model("crossformer_tiny", img_size=(240, 160))


def test_levels_are_checked():
    with pytest.raises(ValueError, match=r"out_indices=\(1, 4\)"):
        CrossFormerPyramid(TINY, out_indices=(1, 4))
    assert [level.shape[1] for level in CrossFormerPyramid(TINY, out_indices=(2, 0))(torch.randn(1, 3, 64, 64))] == [
        64,
        16,
    ]


# The contract


def test_layer_groups_follow_the_network():
    from timm.models import group_parameters

    model = classifier(activation_cooling=True)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    order = [groups[name] for name, _ in model.named_parameters()]
    assert order == sorted(order)
    assert groups["layers.0.downsample.norm.weight"] == groups["layers.0.blocks.1.norm1.weight"]
    assert groups["layers.1.blocks.0.norm1.weight"] == groups["layers.0.blocks.1.norm1.weight"] + 1


def test_forward_intermediates_formats():
    model, x = classifier(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        final, (level,) = model.forward_intermediates(x, indices=1, norm=True)
        torch.testing.assert_close(level, final.permute(0, 3, 1, 2))
        sequence = model.forward_intermediates(x, indices=[1], output_fmt="NLC", intermediates_only=True)[0]
        assert sequence.shape == (2, 8 * 12, 32)
        torch.testing.assert_close(model.forward_head(final), model(x))


def test_every_norm_has_the_published_eps():
    """1e-6 for 1e-5 moves the logits too little for the recordings to show it."""
    model = build_model("crossformer_pp_small", depths=(1, 1, 4, 1), img_size=64)
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}
