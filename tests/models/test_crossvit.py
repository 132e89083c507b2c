"""CrossViT: what the paper says of its two branches, and what a model for another size does."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.functional import interpolate

import transept
from tests.golden import weights
from tests.golden.recorded import build, largest_difference
from tests.helpers import image, noisy
from transept.explain.attention import _layers, _reading
from transept.models.crossvit import branch_grids
from transept.weights.convert import from_official

SMALL: dict[str, Any] = dict(depth=2, embed_dims=(24, 48), num_heads=3, num_classes=7)
GOLDEN = Path(__file__).parents[1] / "golden" / "crossvit"


def small(**options: Any) -> Any:
    return noisy("crossvit_tiny_240", 0.2, **({"img_size": 72} | SMALL | options))


def sequences(model: Any, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Both branches as they came, and after each stage."""
    streams = [tuple(model.embed(x)[0])]
    for stage in model.blocks:
        streams.append(stage(*streams[-1]))
    return streams


@pytest.mark.parametrize("b", [0, 1])
@torch.no_grad()
def test_branches_meet_in_their_class_tokens_alone(b: int):
    model, x = small(), image(1, 72, 72)
    before = [stage[1 - b] for stage in sequences(model, x)]
    model.pos_embed[b].add_(torch.randn_like(model.pos_embed[b]))
    after = [stage[1 - b] for stage in sequences(model, x)]
    assert torch.equal(before[1][:, 1:], after[1][:, 1:]), "patches of the first stage saw the other branch"
    assert not torch.allclose(before[1][:, 0], after[1][:, 0], atol=1e-3)
    assert not torch.allclose(before[2][:, 1:], after[2][:, 1:], atol=1e-5), "nothing came through the class token"


@torch.no_grad()
def test_a_fusion_changes_no_patch_and_the_order_of_branches_is_free():
    model = small()
    small_, large = sequences(model, image(1, 72, 72))[0]
    stage = model.blocks[0]
    encoded, fused = stage.encode(small_, large), stage(small_, large)
    assert all(torch.equal(a[:, 1:], b[:, 1:]) for a, b in zip(encoded, fused, strict=True))
    assert not any(torch.allclose(a[:, 0], b[:, 0], atol=1e-3) for a, b in zip(encoded, fused, strict=True))
    tokens = stage.fuse(encoded[0] + 0, encoded[1] * 1)
    assert all(torch.equal(token[:, 0], branch[:, 0]) for token, branch in zip(tokens, fused, strict=True))


def test_which_tokens_the_last_fusion_lets_each_head_reach():
    model = small()
    encoded = [t.detach().requires_grad_() for t in model.blocks[2].encode(*sequences(model, image(1, 72, 72))[2])]
    tokens = model.blocks[2].fuse(*encoded)
    for b in (0, 1):
        own, other = torch.autograd.grad(tokens[b].square().sum(), [encoded[b], encoded[1 - b]], retain_graph=True)
        assert own[:, 0].any()
        assert not own[:, 1:].any(), "a class token reached the patches of its own branch"
        assert not other[:, 0].any(), "a class token reached the other class token"
        assert other[:, 1:].abs().sum(dim=-1).all()


@torch.no_grad()
def test_patches_with_their_positions_may_change_places():
    model = small()
    streams = list(model.embed(image(1, 72, 72))[0])
    orders = [torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(t.shape[1] - 1)]) for t in streams]

    def logits(small_: Tensor, large: Tensor) -> Tensor:
        for stage in model.blocks:
            small_, large = stage(small_, large)
        return model.forward_head((model.norm[0](small_), model.norm[1](large)))

    shuffled = [t[:, order] for t, order in zip(streams, orders, strict=True)]
    assert torch.allclose(logits(*streams), logits(*shuffled), atol=1e-5)


@torch.no_grad()
def test_logits_are_the_mean_of_both_branches():
    model, x = small(), image(2, 72, 72)
    tokens = [sequence[:, 0] for sequence in model.forward_features(x)]
    assert torch.allclose(model(x), (model.head[0](tokens[0]) + model.head[1](tokens[1])) / 2, atol=1e-6)
    nn.init.zeros_(model.head[1].weight)
    nn.init.zeros_(model.head[1].bias)
    assert torch.allclose(model(x), model.head[0](tokens[0]) / 2, atol=1e-6)


@torch.no_grad()
def test_each_branch_sees_a_picture_of_its_own():
    model = small(img_size=240)
    low = image(1, 224, 224)
    high = interpolate(low, size=(240, 240), mode="bicubic", align_corners=False)
    (first, second), (same, other) = model.pictures(low), model.pictures(high)
    assert torch.equal(first, same)
    assert torch.equal(second, low)
    assert not torch.allclose(second, other, atol=1e-3)


def test_pictures_have_whole_patches():
    assert branch_grids((240, 240)) == ((20, 20), (14, 14))
    assert branch_grids((408, 504)) == ((34, 42), (24, 30))
    for side in (120, 360, 480, 600):
        assert branch_grids((side, 240)) == ((side // 12, 20), (side * 14 // 15 // 16, 14))
    assert branch_grids((1, 17)) == ((1, 1), (1, 1))


@torch.no_grad()
def test_any_image_is_pressed_into_the_model_or_keeps_its_size():
    model, x = small(img_size=(48, 96)), image(1, 48, 96)
    resized = interpolate(x, size=(100, 50), mode="bilinear")
    pressed = interpolate(resized, size=(48, 96), mode="bicubic", align_corners=False)
    assert [tuple(t.shape[1:]) for t in model.forward_features(resized)] == [(1 + 4 * 8, 24), (1 + 3 * 6, 48)]
    assert torch.allclose(model.pictures(resized)[0], pressed, atol=1e-6)
    free = small(img_size=(48, 96), squash=False)
    free.load_state_dict(model.state_dict())
    assert torch.equal(free(x), model(x))
    assert [tuple(t.shape[1:]) for t in free.forward_features(resized)] == [(1 + 8 * 4, 24), (1 + 6 * 3, 48)]


@torch.no_grad()
def test_weights_of_another_size_bring_their_positions(tmp_path: Path):
    source = small(img_size=120)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    wide = transept.create_model("crossvit_tiny_240", img_size=(48, 240), weights=tmp_path / "weights.pth", **SMALL)
    for b, (native, grid) in enumerate((((10, 10), (4, 20)), ((7, 7), (3, 14)))):
        old, new = source.pos_embed[b], wide.pos_embed[b]
        assert torch.equal(old[:, 0], new[:, 0])
        table = old[:, 1:].unflatten(1, native).permute(0, 3, 1, 2)
        expected = interpolate(table, size=grid, mode="bicubic", align_corners=False)
        assert torch.allclose(new[:, 1:], expected.flatten(2).transpose(1, 2), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["crossvit_tiny_240", pytest.param("crossvit_15_dagger_408", marks=pytest.mark.slow)])
def test_timm_computes_the_same(name: str):
    ours = transept.create_model(name, img_size=120 if name.endswith("240") else None).eval()
    theirs = timm.create_model(name, **({"img_size": 120} if name.endswith("240") else {})).eval()
    theirs.load_state_dict(from_official(ours.state_dict(), "CrossViT", "timm"))
    for size in ((120, 120), (90, 140)):
        assert torch.allclose(ours(image(1, *size)), theirs(image(1, *size)), atol=1e-5)
    ours.reset_classifier(0)
    theirs.reset_classifier(0)
    assert torch.allclose(ours(image(1, 120, 120)), theirs(image(1, 120, 120)), atol=1e-5)
    ours_maps, theirs_maps = (m.forward_intermediates(image(1, 120, 120)) for m in (ours, theirs))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours_maps[1], theirs_maps[1], strict=True))
    assert [list(level.values())[:2] for level in ours.feature_info] == [
        [level["num_chs"], level["reduction"]] for level in theirs.feature_info
    ]


@torch.inference_mode()
def test_attention_of_the_fusion_is_the_recorded():
    golden = json.loads((GOLDEN / "crossvit_tiny_240-img120_classes10.json").read_text())
    model = build(golden)
    layers, seen = _layers(model, "class"), {}
    with _reading(model, layers, lambda layer, found: seen.update({layer.name: found})):
        model(torch.from_numpy(weights.image_for(golden["input"]["seed"], golden["input"]["shape"])))
    for i in (0, 2):
        for b, grid in ((0, (7, 7)), (1, (10, 10))):  # patches of the other branch
            found = seen[f"blocks.{i}.fusion.{b}.attn"]
            assert found.keys[0].grid == grid
            assert largest_difference(found.weights, golden["features"][f"fusion_attention.{i}.{b}"]) < 1e-6


def test_drop_path_of_the_small_branch_and_of_the_fusions():
    model = small(drop_path_rate=0.5)  # two blocks a stage: 0, 0.1, ... 0.5
    rates = [
        [getattr(block.drop_path, "drop_prob", 0.0) for block in (*stage.blocks[0], *stage.blocks[1], *stage.fusion)]
        for stage in model.blocks
    ]
    expected = [[0, 0, 0.1, 0.1, 0.1], [0.2, 0.2, 0.3, 0.3, 0.3], [0.4, 0.4, 0.5, 0.5, 0.5]]
    assert torch.allclose(torch.tensor(rates), torch.tensor(expected))


def test_class_tokens_and_positions_take_weight_decay_as_they_did():
    model = transept.create_model("crossvit_tiny_240")
    assert model.no_weight_decay() == set()
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05).param_groups
    counts = {
        bool(group["weight_decay"]): (len(group["params"]), sum(p.numel() for p in group["params"])) for group in groups
    }
    assert counts == {True: (104, 6_967_872), False: (200, 46_928)}


def test_initialisation():
    model = transept.create_model("crossvit_tiny_240")
    assert all(abs(table.std().item() - 0.02) < 2e-3 for table in model.pos_embed)
    assert abs(model.blocks[0].fusion[0].attn.wk.weight.std().item() - 0.02) < 1e-3
    assert not model.head[1].bias.any()
    assert all(norm.eps == 1e-6 for norm in model.modules() if isinstance(norm, nn.LayerNorm))


def test_the_pyramid_has_both_branches_side_by_side():
    pyramid = small_pyramid()
    names = set(pyramid.state_dict())
    assert not [name for name in names if name.startswith("blocks.2.") and ".blocks." not in name]
    x = image(1, 96, 96)
    levels = {}
    pyramid.fpn2.register_forward_hook(lambda module, inputs, out: levels.update(out=out))
    pyramid(x)
    (first, second), grids = pyramid.embed(x)
    for stage in pyramid.blocks[:2]:
        first, second = stage(first, second)
    for sequence, grid, channels in zip((first, second), grids, (slice(0, 24), slice(24, 72)), strict=True):
        maps = sequence[:, 1:].transpose(1, 2).unflatten(-1, grid)
        expected = interpolate(maps, size=(12, 12), mode="bilinear", align_corners=False)
        assert torch.allclose(levels["out"][:, channels], expected, atol=1e-5)


def small_pyramid() -> Any:
    options = {key: value for key, value in SMALL.items() if key != "num_classes"}
    return transept.create_model("crossvit_tiny_240", features_only=True, img_size=72, **options).eval()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=5), r"embed_dims=\(96, 192\) must be multiples of num_heads=5"),
        (dict(embed_dims=(96,)), r"embed_dims=\(96,\); give two numbers"),
        (dict(conv_embed=True, embed_dims=(6, 12)), r"embed_dims=\(6, 12\) must be multiples of 4 for conv_embed=True"),
        (dict(mlp_ratio=0), "mlp_ratio=0 must be at least 1"),
        (dict(embed_dim=64), "no option of crossvit_tiny_240 is called 'embed_dim'; did you mean 'embed_dims'"),
    ],
)
def test_refusals(options: dict, message: str):
    with pytest.raises(transept.TranseptError, match=message):
        transept.create_model("crossvit_tiny_240", **options)


@pytest.mark.parametrize(
    "option",
    [dict(depth=1), dict(mlp_ratio=2), dict(num_heads=2), dict(embed_dims=(12, 24)), dict(conv_embed=True)],
)
def test_every_option_changes_the_output(option: dict):
    outputs = [small(**options)(image(1, 72, 72)) for options in ({}, option)]
    assert not torch.allclose(*outputs, atol=1e-4)
