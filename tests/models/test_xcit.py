"""What the XCiT paper claims, and what its configuration refuses."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import transept
from transept.models.registry import build_skeleton
from transept.models.xcit import (
    ClassAttention,
    ConvPatchEmbed,
    CrossCovarianceAttention,
    FourierPositionEncoding,
    LocalPatchInteraction,
)


@pytest.fixture
def xca() -> CrossCovarianceAttention:
    attention = CrossCovarianceAttention(dim=12, num_heads=3)
    nn.init.uniform_(attention.temperature, 1, 4)
    return attention


def test_cross_covariance_ignores_the_order_of_tokens(xca):  # Section 3.2
    x, order = torch.randn(2, 7, 12), torch.randperm(7)
    assert torch.allclose(xca(x)[:, order], xca(x[:, order]), atol=1e-6)


def test_cross_covariance_equals_its_formula(xca):
    x = torch.randn(2, 7, 12)
    q, k, v = (t.reshape(2, 7, 3, 4).permute(0, 2, 3, 1) for t in xca.qkv(x).chunk(3, dim=-1))  # b m d n
    q, k = (nn.functional.normalize(t, dim=-1) for t in (q, k))
    mixed = ((q @ k.transpose(-2, -1)) * xca.temperature).softmax(dim=-1) @ v
    expected = xca.proj(mixed.permute(0, 3, 1, 2).reshape(2, 7, 12))
    assert torch.allclose(xca(x), expected, atol=1e-6)


def test_cross_covariance_rows_sum_to_one_and_survive_dead_channels(xca):
    weights, v = xca.attention(torch.zeros(2, 5, 12))  # zero queries and keys but for the bias
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 4))
    assert v.shape == (2, 3, 5, 4)
    nn.init.zeros_(xca.qkv.bias)
    assert xca(torch.zeros(2, 5, 12)).isfinite().all()


def test_cross_covariance_in_half_precision_does_not_overflow(xca):
    x = 80 * torch.randn(1, 4096, 12)
    expected = xca(x)
    assert torch.allclose(xca.half()(x.half()).float(), expected, atol=0.02 * expected.abs().max().item())


def test_local_patch_interaction_reaches_two_patches_and_one_channel():  # Section 3.3: two 3x3 convolutions
    x = torch.randn(1, 7 * 9, 4, requires_grad=True)
    LocalPatchInteraction(4).eval()(x, (7, 9)).reshape(1, 7, 9, 4)[0, 3, 4, 2].backward()
    reached = x.grad.reshape(7, 9, 4).abs() > 0
    assert reached[..., [0, 1, 3]].sum() == 0
    rows, columns = reached[..., 2].nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 5, 2, 6)


def test_local_patch_interaction_in_training_is_its_three_layers():
    generator = torch.Generator().manual_seed(3)
    local = LocalPatchInteraction(6).double().train()
    for parameter in local.parameters():
        nn.init.normal_(parameter, generator=generator)
    x, scale = torch.randn(2, 20, 6, dtype=torch.float64, requires_grad=True), torch.rand(6, dtype=torch.float64)
    scale.requires_grad_()
    plain = copy.deepcopy(local)
    plain.act = nn.Sequential(plain.act)  # no plain GELU: the layers are called one by one
    outputs = local(x, (4, 5), scale), plain(x, (4, 5)) * scale
    torch.testing.assert_close(*outputs)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(local.get_buffer(name), buffer)
    weights = torch.randn(2, 20, 6, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((out * weights).sum(), [x, scale, *module.parameters()])
        for out, module in zip(outputs, (local, plain), strict=True)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    local.bn.momentum = 0.0  # the check's many calls leave the statistics as they are
    assert torch.autograd.gradgradcheck(lambda x: local(x, (2, 2), scale), x.detach()[:1, :4, :].requires_grad_())


def test_class_attention_reads_all_tokens_for_one_query():
    attention = ClassAttention(dim=12, num_heads=3)
    x = torch.randn(2, 6, 12)
    q, k, v = (t.reshape(2, 6, 3, 4).transpose(1, 2) for t in attention.qkv(x).chunk(3, dim=-1))
    everything = (q @ k.transpose(-2, -1) / math.sqrt(4)).softmax(dim=-1) @ v
    expected = attention.proj(everything.transpose(1, 2).reshape(2, 6, 12))[:, :1]
    assert torch.allclose(attention(x), expected, atol=1e-6)


def test_position_encoding_is_the_projected_sines():  # Appendix A
    encoding = FourierPositionEncoding(6)
    h, w = 3, 5
    features = torch.empty(64, h, w)
    for half, sides in ((0, (h, 0)), (32, (w, 1))):
        side, axis = sides
        for k in range(32):
            for i in range(side):
                angle = 2 * math.pi * (i + 1) / (side + 1e-6) / 10000 ** (2 * (k // 2) / 32)
                value = math.sin(angle) if k % 2 == 0 else math.cos(angle)
                features.select(axis + 1, i)[half + k] = value
    expected = encoding.token_projection(features[None]).flatten(2).transpose(1, 2)
    assert torch.allclose(encoding((h, w)), expected, atol=1e-5)


@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_patch_embedding_rounds_the_grid_up(patch_size: int):
    stem = ConvPatchEmbed(3, 32, patch_size).eval()
    assert stem(torch.randn(1, 3, 33, 50)).shape[-2:] == (math.ceil(33 / patch_size), math.ceil(50 / patch_size))


def test_only_the_nano_models_leave_patch_tokens_unnormalised():
    for name in transept.list_models("xcit_*"):
        model: Any = build_skeleton(name, depth=1)
        assert [block.tokens_norm for block in model.cls_attn_blocks] == [not name.startswith("xcit_nano")] * 2


def test_initialisation():
    model = transept.create_model("xcit_small_24_p16_224", depth=3)
    weight = model.blocks[0].mlp.fc1.weight
    assert abs(weight.std().item() - 0.02) < 4e-4
    assert not model.blocks[0].mlp.fc1.bias.any()
    assert (model.blocks[1].gamma3 == 1e-5).all()
    assert (model.cls_attn_blocks[0].gamma1 == 1e-5).all()
    assert (model.blocks[0].attn.temperature == 1).all()
    assert model.no_weight_decay() == {"cls_token"}
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-5, 0.1)


def test_drop_path_is_the_same_in_every_block_and_absent_from_class_attention():
    model = transept.create_model("xcit_tiny_12_p16_224", depth=3, drop_path_rate=0.3)
    assert [block.drop_path.drop_prob for block in model.blocks] == [0.3] * 3
    assert not hasattr(model.cls_attn_blocks[0], "drop_path")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=5), "embed_dim=128 must be a multiple of num_heads=5"),
        (dict(patch_size=12), "patch_size=12 has no stem; use 16 or 8"),
        (dict(embed_dim=132, patch_size=16), "embed_dim=132 must be a multiple of 8 for patch_size=16"),
        (dict(embeddim=64), "no option of xcit_nano_12_p16_224 is called 'embeddim'; did you mean 'embed_dim'"),
        (dict(out_indices=(4,), features_only=True), r"out_indices=\(4,\); give some of the four levels"),
        (dict(drop_path_rate=1.5), r"drop_path_rate=1.5 is not in \[0, 1\)"),
        (dict(num_classes=-2), "num_classes=-2 is too small"),
        (dict(img_size=(64, 48, 3)), r"img_size=\(64, 48, 3\); give a positive int or \(height, width\)"),
    ],
)
def test_refusals(options: dict, message: str):
    with pytest.raises(transept.TranseptError, match=message):
        transept.create_model("xcit_nano_12_p16_224", **options)


@pytest.mark.parametrize(
    "option",
    [dict(eta=0.5), dict(tokens_norm=True), dict(depth=3), dict(num_heads=2), dict(patch_size=8), dict(embed_dim=64)],
)
def test_every_option_changes_the_output(option: dict):
    base = dict(depth=2, img_size=64, num_classes=7)
    outputs = []
    for options in (base, base | option):
        torch.manual_seed(0)
        model = transept.create_model("xcit_nano_12_p16_224", **options).eval()
        for block in model.cls_attn_blocks:  # a fresh norm2 would be undone by the next norm1
            nn.init.uniform_(block.norm2.weight, 0.5, 2.0, generator=torch.Generator().manual_seed(1))
        outputs.append(model(torch.ones(1, 3, 64, 64).cumsum(-1) / 32 - 1))
    assert not torch.allclose(*outputs, atol=1e-6)
