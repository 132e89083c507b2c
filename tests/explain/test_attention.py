"""Attention maps: the weights are the module's own, and each lies where its token lies."""

import threading
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear

import transept
from tests.helpers import NAMES, SMALL, build, image
from transept.errors import UsageError
from transept.explain.attention import _layers, _reading, attention_kinds, attention_maps
from transept.models import bixt, cabvit_block, cabvit_h, cait, cat, crossformer, crossvit, xcit
from transept.models.attention import AttentionWeights, ShowsAttention, TokenSelfAttention
from transept.ops.tokens import merge_heads, split_heads
from transept.ops.windows import crop_map, from_channel_windows, from_windows, pad_map, pad_to_multiple, to_windows

ODD = (75, 53)


@cache
@torch.inference_mode(False)
def model_of(name: str, features_only: bool = False) -> Any:
    torch.manual_seed(0)
    return build(name, features_only)


@torch.no_grad()
def recorded(model: Any, x: Tensor) -> list[tuple[nn.Module, tuple, Any, AttentionWeights]]:
    """Every attention module with its inputs, its output, and the weights read beside it."""
    kinds = dict.fromkeys(module.attention_kind for module in model.modules() if isinstance(module, ShowsAttention))
    layers = [layer for kind in kinds for layer in _layers(model, kind)]
    layers = list({layer.name: layer for layer in layers}.values())
    read, ran = {}, {}
    hooks = [
        model.get_submodule(layer.name).register_forward_hook(
            lambda m, i, o, name=layer.name: ran.update({name: (m, i, o)})
        )
        for layer in layers
    ]
    with _reading(model, layers, lambda layer, weights: read.update({layer.name: weights})):
        model(x)
    for hook in hooks:
        hook.remove()
    return [(*ran[layer.name], read[layer.name]) for layer in layers]


def output_by_hand(module: Any, inputs: tuple, weights: Tensor) -> Tensor:
    """Weights times values, then the module's own way out."""
    x = inputs[0]
    match module:
        case cait.ClassAttention():
            return module.proj(merge_heads(weights @ split_heads(module.v(x), module.num_heads)))
        case crossvit.CrossAttention():
            return module.proj(merge_heads(weights @ split_heads(module.wv(x), module.num_heads)))
        case bixt.LatentsReadTokens():
            return weights @ inputs[1]
        case bixt.TokensReadLatents():  # what it shows has gone on to the tokens that the latents look at
            return x.softmax(dim=-2).mT @ inputs[1]
        case xcit.ClassAttention() | TokenSelfAttention():
            v = split_heads(module.qkv(x).chunk(3, dim=-1)[2], module.num_heads)
            return module.proj(merge_heads(weights @ v))
        case cait.TalkingHeadsAttention():
            v = split_heads(module.qkv(x).chunk(3, dim=-1)[2], module.num_heads)
            mixed = module.proj_w(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # as the official code does it
            return module.proj(merge_heads(mixed @ v))
        case xcit.CrossCovarianceAttention():
            v = split_heads(module.qkv(x).chunk(3, dim=-1)[2], module.num_heads)
            return module.proj(merge_heads(v @ weights.transpose(-2, -1)))
        case cat.InnerPatchSelfAttention():
            padded, side = pad_to_multiple(x, module.patch_size), module.patch_size
            out = module.proj(merge_heads(weights @ module.qkv_heads(padded)[2]))
            return from_windows(out, (side, side), padded.shape)[:, : x.shape[1], : x.shape[2]]
        case cat.CrossPatchSelfAttention():
            padded, side = pad_to_multiple(x, module.patch_size), module.patch_size
            patches = cat.to_channel_windows(padded, side).unflatten(0, (len(x), -1))
            value = module.qkv.weight.chunk(3)[2], module.qkv.bias.chunk(3)[2]
            out = module.proj(weights @ linear(patches, *value)).flatten(0, 1)
            return from_channel_windows(out, side, padded.shape)[:, : x.shape[1], : x.shape[2]]
        case crossformer.GroupAttention():
            sides, interval, pads = inputs[1]
            padded = pad_map(x, pads)
            v = module.qkv(to_windows(padded, sides, interval)).chunk(3, dim=-1)[2]
            out = merge_heads(weights @ split_heads(v, module.num_heads))
            return module.proj(crop_map(from_windows(out, sides, padded.shape, interval), pads))
        case cabvit_block.CabBlock():
            return module.proj(merge_heads(weights @ module._project(*inputs[:3])[2]))
    raise AssertionError(type(module))


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_weights_times_values_are_the_output(name: str, features_only: bool):
    model = model_of(name, features_only)
    checked = recorded(model, image(2, *ODD))
    assert checked
    for module, inputs, output, weights in checked:
        sums = weights.weights.sum(dim=-1)
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
        if isinstance(module, cabvit_block.CabBlock):
            output = module.cross_attend(*inputs)
        assert torch.allclose(output_by_hand(module, inputs, weights.weights), output, atol=2e-5, rtol=1e-4)
        assert weights.weights.shape[-1] == sum(keys.numbers.shape[1] for keys in weights.keys)


@pytest.mark.parametrize("name", ["crossformer_tiny", "cat_tiny"])
def test_tokens_that_a_map_shows_are_those_that_the_output_depends_on(name: str):
    """Also at odd sizes, where groups are padded."""
    model, x, token = model_of(name), image(1, 131, 95), (60, 41)
    maps = {found.name: found for found in attention_maps(model, x, token=token)}
    seen = 0
    for module, inputs, _, _ in recorded(model, x):
        if isinstance(module, cat.CrossPatchSelfAttention):
            continue
        name = next(key for key, other in model.named_modules() if other is module)
        source = inputs[0].detach().requires_grad_()
        h, w = source.shape[1:3]
        stride = 4 * 2 ** maps[name].stage
        output = module(source, *inputs[1:])[0, min(token[1] // stride, h - 1), min(token[0] // stride, w - 1)]
        (gradient,) = torch.autograd.grad(output.square().sum(), source)
        support = gradient[0].abs().sum(dim=-1) > 1e-9
        assert torch.equal(support, maps[name].maps[0].sum(dim=0) > 1e-9), name
        seen += 0 < int(support.sum()) < h * w
    assert seen >= 3


@torch.no_grad()
def test_windows_of_the_pyramid_of_cabvit():
    """In turn they begin with the padding and end with it; the digests of a window lie where it lies."""
    model = model_of("cabvit_h_l1", True)
    x = image(1, 150, 120)  # 10 x 8 tokens of stride 16, in windows of 4 x 4
    blocks = [found for found in recorded(model, x) if found[0].index < 3 and found[1][0].shape[-1] == model.dims[2]]
    numbers = torch.arange(1, 81).view(1, 10, 8, 1)
    for i, (_, inputs, _, weights) in enumerate(blocks):
        assert inputs[2] == (4, 4)
        assert torch.equal(weights.queries.numbers, cabvit_h._cut(numbers, (4, 4), lead=i % 2 == 0)[..., 0] - 1)
        assert [keys.grid for keys in weights.keys] == [(10, 8), *[(3, 2)] * i]
    *_, own, first, second = attention_maps(model, x, token=(119, 149), blocks=[2])
    assert [found.source for found in (own, first, second)] == [None, 0, 1]
    assert own.maps[:, :, 8:, 4:].sum() + first.maps[..., 2, 1].sum() + second.maps[..., 2, 1].sum() < 6
    assert own.maps[:, :, :6].sum() == first.maps[..., :2, :].sum() == first.maps[..., 0].sum() == 0
    assert first.maps[..., 2, 1].min() > 0


@pytest.mark.parametrize(
    ("name", "kind", "block"),
    [("crossformer_tiny", "short-distance", 1), ("cat_tiny", "inner-patch", 2), ("cait_xxs24_224", "talking-heads", 0)],
)
def test_without_a_token_the_mean_over_all(name: str, kind: str, block: int):
    model, x = model_of(name), image(2, 33, 24)
    (mean,) = attention_maps(model, x, kind, blocks=[block])
    h, w = mean.grid
    side = 16 if name.startswith("cait") else 4 * 2**mean.stage
    ones = [
        attention_maps(model, x, kind, blocks=[block], token=(side * column, side * row))[0].maps
        for row in range(h)
        for column in range(w)
    ]
    assert h * w > 1
    assert torch.allclose(torch.stack(ones).mean(dim=0), mean.maps, atol=1e-6)


@torch.no_grad()
def test_timm_has_the_same_weights():
    ours = model_of("cait_xxs24_224")
    theirs = timm.create_model("cait_xxs24_224", img_size=64, num_classes=7, **SMALL["cait_xxs24_224"]).eval()
    theirs.load_state_dict(ours.state_dict())
    caught = {}
    for i in range(2):
        attention = theirs.blocks_token_only[i].attn
        attention.fused_attn = False
        attention.attn_drop.register_forward_pre_hook(lambda m, x, i=i: caught.update({("class", i): x[0]}))
        talking = theirs.blocks[i].attn.proj_w
        talking.register_forward_pre_hook(lambda m, x, i=i: caught.update({("talking-heads", i): x[0]}))
    x = image(2, 64, 64)
    theirs(x)
    for found in attention_maps(ours, x, "class"):
        expected = caught["class", found.block][:, :, 0, 1:].unflatten(-1, (4, 4))
        assert torch.allclose(found.maps, expected, atol=1e-6)
    for found in attention_maps(ours, x, "talking-heads", token=(17, 50)):  # row 3, column 1 of 4
        expected = caught["talking-heads", found.block][:, 13].permute(0, 2, 1).unflatten(-1, (4, 4))
        assert torch.allclose(found.maps, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["cait_xxs24_224", "cabvit_p_l0"])
@torch.no_grad()
def test_rollout_is_the_product_of_whole_matrices(name: str):
    model, x = model_of(name), image(2, 64, 48)
    (rollout,) = attention_maps(model, x, "rollout")
    n = 1 + 4 * 3
    product = torch.eye(n, dtype=torch.float64).repeat(2, 1, 1)
    layers = [found for found in recorded(model, x) if found[0] not in getattr(model, "blocks_token_only", [])]
    layers.sort(key=lambda found: isinstance(found[0], cait.ClassAttention))
    for module, _, _, weights in layers:
        mean, whole = weights.weights.mean(dim=1).double(), torch.eye(n, dtype=torch.float64).repeat(2, 1, 1)
        if isinstance(module, cait.ClassAttention):
            whole[:, :1] = mean
        elif isinstance(module, cait.TalkingHeadsAttention):
            whole[:, 1:, 1:] = mean
        else:
            whole = mean
        product = (whole + torch.eye(n)) / 2 @ product
    assert len(layers) == 4
    assert torch.allclose(rollout.maps[:, 0].flatten(1).double(), product[:, 0, 1:], atol=1e-6)


def test_grad_cam_by_hand():
    """CAT ends with LayerNorm, mean and a linear layer, whose gradient is short enough to write down."""
    model, x = model_of("cat_tiny"), image(2, 128, 96)
    with torch.no_grad():
        last = model.forward_intermediates(x, indices=[-1], intermediates_only=True)[0]  # b c h w
    (found,) = attention_maps(model, x, "grad-cam", target=[4, 2])
    features = last.permute(0, 2, 3, 1)
    mean, deviation = features.mean(-1, keepdim=True), (features.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    normed = (features - mean) / deviation
    slope = (model.head.weight[[4, 2]] * model.norm.weight).detach()[:, None, None] / (last.shape[2] * last.shape[3])
    gradient = (slope - slope.mean(-1, keepdim=True) - normed * (slope * normed).mean(-1, keepdim=True)) / deviation
    expected = (gradient.mean(dim=(1, 2), keepdim=True) * features).sum(dim=-1).relu()
    assert expected.max() > 0
    assert torch.allclose(found.maps[:, 0], expected, rtol=1e-3, atol=1e-6 * float(expected.max()))


def test_grad_cam_of_tokens_by_hand():
    """The patches of XCiT reach the logits through the class token, from whatever block."""
    model, x = model_of("xcit_nano_12_p8_224"), image(1, 64, 48)
    with torch.no_grad():
        tokens, grid = model.embed(x)
        tokens = model.run(model.blocks[0], tokens, grid)
    tokens = tokens.clone().requires_grad_()
    after = model.run(model.blocks[2], model.run(model.blocks[1], tokens, grid), grid)
    logits = model.forward_head(model.class_blocks(after))
    logits.max().backward()
    expected = (tokens.grad.mean(dim=1, keepdim=True) * tokens.detach()).sum(dim=-1).relu().unflatten(1, grid)
    (found,) = attention_maps(model, x, "grad-cam", blocks=[0])
    assert (found.name, found.grid) == ("blocks.0", (8, 6))
    assert torch.allclose(found.maps[:, 0], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_grad_cam_of_every_family(name: str):
    """Whatever the caller's mode, without a trace in the parameters, and not all zero where patches are still read."""
    model, x = build(name).train(), image(1, *ODD)
    model.patch_embed.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode():
        found = [attention_maps(model, x, "grad-cam", target=target)[0] for target in range(7)]
    assert any(each.maps.max() > 0 for each in found)
    assert all(each.maps.min() >= 0 and each.maps.isfinite().all() for each in found)
    assert [p for p in model.parameters() if p.grad is not None] == []
    assert model.training
    assert not model.patch_embed.training


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_fused_or_not_and_without_a_trace(name: str):
    model, x = model_of(name), image(2, *ODD)
    logits = model(x)
    fused = attention_maps(model, x, token=(30, 40))
    with sdpa_kernel(SDPBackend.MATH):
        plain = attention_maps(model, x, token=(30, 40))
    assert [found.name for found in fused] == [found.name for found in plain]
    for a, b in zip(fused, plain, strict=True):
        assert torch.allclose(a.maps, b.maps, atol=1e-5)
        assert a.maps.min() >= 0
        assert not a.maps.requires_grad
    assert torch.equal(model(x), logits)
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("kind", ["class", "talking-heads", "rollout", "grad-cam"])
def test_another_thread_may_run_the_model_meanwhile(kind: str):
    model, x, other = model_of("cait_xxs24_224"), image(1, 64, 48), image(2, *ODD)
    alone = attention_maps(model, x, kind, target=3 if kind == "grad-cam" else None)
    answers: list[Tensor] = []

    def run_the_other(module: nn.Module, inputs: Any, output: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: answers.append(model(other)))
            thread.start()
            thread.join()

    with model.blocks[0].register_forward_hook(run_the_other):
        meanwhile = attention_maps(model, x, kind, target=3 if kind == "grad-cam" else None)
    assert [each.name for each in meanwhile] == [each.name for each in alone]
    assert all(torch.equal(a.maps, b.maps) for a, b in zip(meanwhile, alone, strict=True))
    assert torch.equal(answers[0], model(other))


def test_shares_of_tokens_and_digests_sum_to_one():
    model, x = model_of("cabvit_h_l1"), image(1, *ODD)
    total: dict[str, Any] = {}
    for found in attention_maps(model, x, "cross-block", token=(10, 20)):
        total[found.name] = total.get(found.name, 0) + found.maps.sum(dim=(2, 3))
    assert len(total) == 5
    assert all(torch.allclose(shares, torch.ones_like(shares), atol=1e-5) for shares in total.values())


def test_kinds():
    kinds = {name: attention_kinds(model_of(name)) for name in NAMES}
    assert kinds == {
        "cabvit_h_l1": ["cross-block", "grad-cam"],
        "cabvit_p_l0": ["class", "self", "rollout", "grad-cam"],
        "cabvit_p_l0_cross": ["class", "cross-block", "grad-cam"],
        "bixt_ti_l64_p16": ["latents-to-tokens", "tokens-to-latents", "grad-cam"],
        "cait_xxs24_224": ["class", "talking-heads", "rollout", "grad-cam"],
        "cat_tiny": ["inner-patch", "cross-patch", "grad-cam"],
        "crossformer_tiny": ["short-distance", "long-distance", "grad-cam"],
        "crossvit_tiny_240": ["class", "self", "grad-cam"],
        "xcit_nano_12_p8_224": ["class", "cross-covariance", "grad-cam"],
    }
    assert attention_kinds(model_of("cait_xxs24_224", True)) == ["talking-heads"]
    blocks = [found.block for found in attention_maps(model_of("cat_tiny"), image(1), "cross-patch")]
    assert blocks == [1, 1, 1, 4, 1]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("no attention of cait_xxs24_224 is called 'clas'; did you mean 'class'", dict(kind="clas")),
        ("it has class, talking-heads, rollout, grad-cam", dict(kind="zzz")),
        ("class asks for no token", dict(kind="class", token=(1, 1))),
        (r"token=\(48, 9\) lies outside of the 48 x 64 pixels", dict(token=(48, 9))),
        ("the 2 layers of class attention, 0 to 1", dict(kind="class", blocks=[2])),
        ("numbers of the 2 layers", dict(kind="grad-cam", blocks=[])),
        ("class number from 0 to 6", dict(kind="grad-cam", target=7)),
        ("one for each of the 2 images", dict(kind="grad-cam", target=[1, 2, 3])),
        ("target is Grad-CAM's", dict(kind="class", target=1)),
        ("leave out blocks", dict(kind="rollout", blocks=[0])),
    ],
)
def test_refusals(message: str, arguments: dict[str, Any]):
    with pytest.raises(UsageError, match=message):
        attention_maps(model_of("cait_xxs24_224"), image(2, 64, 48), **arguments)


def test_other_refusals():
    with pytest.raises(UsageError, match=r"\(3, 64, 64\) of float32; give normalised ones, b x 3 x H x W"):
        attention_maps(model_of("cat_tiny"), image(1)[0])
    with pytest.raises(UsageError, match="of uint8"):
        attention_maps(model_of("cat_tiny"), image(1).to(torch.uint8))
    with pytest.raises(UsageError, match="Linear is not one of our models"):
        attention_maps(nn.Linear(1, 1), image(1))
    segmenter = transept.create_segmenter("semantic_fpn", backbone="crossformer_tiny", num_classes=3, width=16)
    (found,) = attention_maps(segmenter, image(1), "short-distance", blocks=[0])
    assert found.name == "layers.0.blocks.0.attn"
