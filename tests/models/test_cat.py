"""CAT: what its paper claims, its options, its image sizes."""

import re
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import linear

from transept.errors import UsageError
from transept.models.cat import (
    CAT,
    DERIVED_BUFFERS,
    FAMILY,
    VARIANTS,
    CATConfig,
    CATPyramid,
    CrossPatchSelfAttention,
    InnerPatchSelfAttention,
    PatchProjection,
)
from transept.models.registry import build_model, list_models, skeletons
from transept.ops import windows

TINY = CATConfig(img_size=(64, 128), embed_dim=4, depths=(1, 0, 2, 1), num_heads=(1, 2, 2, 4), patch_size=4)
DENSE = replace(TINY, img_size=(56, 40), patch_size=3, depths=(1, 1, 2, 1))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def lively(module):
    """The module with every parameter random: at their initial values biases are 0 and tables nearly so."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


def patches_touched(gradient, size):
    """The (row, column) of every patch of a map `b h w c` that received a gradient, in the first image."""
    h, w = gradient.shape[1:3]
    energy = gradient[0].abs().sum(-1).reshape(h // size, size, w // size, size).sum((1, 3))
    return {tuple(place) for place in energy.nonzero().tolist()}


# Attention


def test_inner_patch_attention_never_leaves_its_patch():
    attn = lively(InnerPatchSelfAttention(6, 3, 2, qkv_bias=True))
    x = torch.randn(2, 6, 12, 6, requires_grad=True)
    attn(x)[0, 4, 8].sum().backward()  # patch row 1, column 2
    assert patches_touched(x.grad, 3) == {(1, 2)}
    assert (x.grad[0, 3:6, 6:9].abs().sum(-1) > 0).all()  # all of the patch takes part
    assert not x.grad[1].any()


def test_cross_patch_attention_stays_in_its_channel_and_reaches_every_patch():
    attn = lively(CrossPatchSelfAttention(3, qkv_bias=True))
    x = torch.randn(2, 6, 12, 5, requires_grad=True)
    attn(x)[0, 4, 8, 3].backward()
    assert x.grad.abs().sum((0, 1, 2)).nonzero().flatten().tolist() == [3]
    assert patches_touched(x.grad, 3) == {(row, col) for row in range(2) for col in range(4)}
    assert not x.grad[1].any()


def test_cross_patch_attention_treats_all_channels_alike_and_knows_no_patch_position():
    attn = lively(CrossPatchSelfAttention(3, qkv_bias=True))
    x = torch.randn(2, 6, 9, 5)
    order = torch.randperm(5)
    torch.testing.assert_close(attn(x[..., order]), attn(x)[..., order])
    swapped = x.roll((3, 6), dims=(1, 2))  # whole patches move
    torch.testing.assert_close(attn(swapped), attn(x).roll((3, 6), dims=(1, 2)))


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_cross_patch_attention_equals_its_definition_with_gradients(qkv_bias, training):
    """Four projections, as the paper has it, against the two folded ones."""
    attn = lively(CrossPatchSelfAttention(3, qkv_bias=qkv_bias)).double().train(training)
    x = torch.randn(2, 6, 9, 5, dtype=torch.double, requires_grad=True)

    def literal(x):
        patches = x.reshape(2, 2, 3, 3, 3, 5).permute(0, 5, 1, 3, 2, 4).reshape(10, 6, 9)
        q, k, v = linear(patches, attn.qkv.weight, attn.qkv.bias).chunk(3, dim=-1)
        out = attn.proj((q @ k.mT / 3).softmax(-1) @ v)
        return out.reshape(2, 5, 2, 3, 3, 3).permute(0, 2, 4, 3, 5, 1).reshape(2, 6, 9, 5)

    torch.testing.assert_close(attn(x), literal(x))
    if training:
        weight = torch.randn(2, 6, 9, 5, dtype=torch.double)
        wanted = [x, *attn.parameters()]
        ours, theirs = (torch.autograd.grad((f(x) * weight).sum(), wanted) for f in (attn, literal))
        torch.testing.assert_close(ours, theirs)


def test_relative_position_bias_depends_on_the_offset_alone():
    attn = lively(InnerPatchSelfAttention(6, 3, 2, qkv_bias=True))
    bias = attn.bias().reshape(2, 3, 3, 3, 3)  # m, query row and column, key row and column
    torch.testing.assert_close(bias[:, 1, 2, 0, 1], bias[:, 2, 1, 1, 0])  # one below, one right of the key
    # Offset (2, -1): row (2 + 2) * 5 + (-1 + 2).
    torch.testing.assert_close(bias[:, 2, 0, 0, 1], attn.relative_position_bias_table[21])
    assert bias.unique().numel() == 2 * 25


def test_attention_maps_explain_the_output():
    x = torch.randn(2, 6, 9, 4)
    inner = lively(InnerPatchSelfAttention(4, 3, 2, qkv_bias=True))
    maps = inner.attention(x)  # b n m t t
    assert maps.shape == (2, 6, 2, 9, 9)
    v = inner.qkv_heads(x)[2]
    out = inner.proj((maps.flatten(0, 1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(windows.from_windows(out, (3, 3), x.shape), inner(x))

    cross = lively(CrossPatchSelfAttention(3, qkv_bias=True))
    maps = cross.attention(x)  # b c n n
    assert maps.shape == (2, 4, 6, 6)
    out = linear(maps.flatten(0, 1) @ windows.to_channel_windows(x, 3), *cross.value_out())
    torch.testing.assert_close(windows.from_channel_windows(out, 3, x.shape), cross(x))


@pytest.mark.parametrize(
    "attn", [InnerPatchSelfAttention(4, 3, 2, qkv_bias=True), CrossPatchSelfAttention(3, qkv_bias=True)]
)
def test_padding_inside_attention_is_padding_with_zeros_outside(attn):
    lively(attn)
    x = torch.randn(2, 5, 7, 4)
    padded = torch.zeros(2, 6, 9, 4)
    padded[:, :5, :7] = x
    torch.testing.assert_close(attn(x), attn(padded)[:, :5, :7])


# Reshapes


def test_windows_out_and_back_are_the_identity():
    x = torch.randn(2, 6, 12, 5)
    cut = windows.to_windows(x, (3, 3))
    assert cut.shape == (16, 9, 5)
    torch.testing.assert_close(cut[8 + 6].reshape(3, 3, 5), x[1, 3:6, 6:9])  # second image, patch row 1, column 2
    assert windows.from_windows(cut, (3, 3), x.shape).equal(x)
    by_channel = windows.to_channel_windows(x, 3)
    assert by_channel.shape == (10, 8, 9)
    torch.testing.assert_close(by_channel[5 + 4, 6].reshape(3, 3), x[1, 3:6, 6:9, 4])
    assert windows.from_channel_windows(by_channel, 3, x.shape).equal(x)


def test_patch_projection_orders_phases_down_then_right_and_pads_odd_sides():
    x = torch.randn(2, 4, 6, 5)
    phases = [x[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert windows.space_to_depth(x).equal(torch.cat(phases, dim=-1))
    projection = lively(PatchProjection(5))
    padded = torch.zeros(2, 4, 8, 5)
    padded[:, :3, :7] = x = torch.randn(2, 3, 7, 5)
    assert projection(x).shape == (2, 2, 4, 10)
    torch.testing.assert_close(projection(x), projection(padded))


def test_pad_to_multiple_leaves_whole_maps_alone():
    x = torch.randn(2, 6, 9, 5)
    assert windows.pad_to_multiple(x, 3) is x
    assert windows.pad_to_multiple(x, 4).shape == (2, 8, 12, 5)


# Models


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("cat_tiny", 16_870_996), ("cat_small", 37_294_258), ("cat_base", 51_531_922), ("cat_tiny_v2", 35_833_084)],
)
def test_variants_have_the_published_sizes(name, parameters):
    with skeletons():
        model = CAT(VARIANTS[name])
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_reconstruction_says_so():
    assert list_models("cat_*") == sorted(VARIANTS)
    assert set(FAMILY.notes) == {"cat_tiny_v2"}
    assert "reconstruction" in FAMILY.notes["cat_tiny_v2"]


def test_candidate_b_is_a_matter_of_options():
    with skeletons():
        model = build_model("cat_tiny_v2", embed_dim=96, depths=(0, 0, 3, 1), num_heads=(3, 6, 12, 24))
    assert sum(p.numel() for p in model.parameters()) == 35_786_976
    assert {key.split(".")[2] for key in model.state_dict() if key.startswith("layers.0.")} == {"downsample"}


@pytest.mark.parametrize("model", [CAT(TINY, num_classes=7), CATPyramid(DENSE)])
def test_training_reaches_every_parameter(model):
    out = model.train()(torch.randn(2, 3, 64, 128))
    out = [out] if isinstance(out, torch.Tensor) else out
    sum((level * torch.randn_like(level)).sum() for level in out).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing


def test_gradient_checkpointing_changes_no_gradient():
    model = lively(CAT(TINY, num_classes=7)).train()
    x = torch.randn(2, 3, 64, 128)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        gradients.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_drop_path_grows_over_units_and_is_shared_inside_one():
    model = CAT(TINY, drop_path_rate=0.3)
    rates = [
        [getattr(block.drop_path, "drop_prob", 0.0) for block in unit]
        for layer in model.layers
        for unit in zip(layer.pre_ipsa_blocks, layer.cpsa_blocks, layer.post_ipsa_blocks, strict=True)
    ]
    assert rates == [pytest.approx([rate] * 3) for rate in (0.0, 0.1, 0.2, 0.3)]


def test_initial_values():
    model = CAT(replace(TINY, embed_dim=32), num_classes=7)
    for name, parameter in model.named_parameters():
        if name == "patch_embed.proj.bias":
            assert parameter.any()  # PyTorch's default
        elif name == "ape" or "table" in name or (parameter.ndim == 2):
            assert 0.01 < parameter.std() < 0.03, name
        elif parameter.ndim == 1:
            assert (parameter == (name.endswith("weight"))).all(), name
    assert all(norm.eps == 1e-5 for norm in model.modules() if isinstance(norm, torch.nn.LayerNorm))


def test_no_weight_decay_names_the_position_tables():
    names = CAT(TINY).no_weight_decay()
    assert "ape" in names
    assert len(names) == 1 + 2 * sum(TINY.depths)
    assert all(name == "ape" or name.endswith(".attn.relative_position_bias_table") for name in names)


def test_layer_groups_follow_the_network():
    from timm.models import group_parameters

    model = CAT(TINY)
    groups = list(group_parameters(model, model.group_matcher()).values())
    order = {name: i for i, names in enumerate(groups) for name in names}
    picked = [
        "patch_embed.proj.weight",
        "layers.0.pre_ipsa_blocks.0.norm1.weight",
        "layers.0.cpsa_blocks.0.norm1.weight",
        "layers.0.post_ipsa_blocks.0.norm1.weight",
        "layers.2.pre_ipsa_blocks.0.norm1.weight",
        "layers.2.post_ipsa_blocks.0.norm1.weight",
        "layers.2.pre_ipsa_blocks.1.norm1.weight",
        "layers.3.post_ipsa_blocks.0.norm1.weight",
        "head.weight",
    ]
    positions = [order[name] for name in picked]
    assert positions == sorted(set(positions))
    assert order["ape"] == 0
    assert order["layers.0.downsample.norm.weight"] == order["layers.0.post_ipsa_blocks.0.norm1.weight"]
    assert order["norm.weight"] == order["layers.3.post_ipsa_blocks.0.norm1.weight"]
    coarse = group_parameters(model, model.group_matcher(coarse=True))
    assert len(coarse) == 1 + 4 + 1  # the norm joins the last stage


def test_keys_are_those_of_the_checkpoints():
    keys = CAT(TINY).state_dict()
    assert not [key for key in keys if any(re.search(pattern, key) for pattern in DERIVED_BUFFERS)]
    assert re.search(DERIVED_BUFFERS[0], "layers.2.post_ipsa_blocks.1.attn.relative_position_index")
    dense = CATPyramid(DENSE, out_indices=(1, 3)).state_dict()
    assert dense["ape"].shape == (1, 4, 14, 10)
    assert {key for key in dense if key.startswith(("norm", "head"))} == {
        f"norm{level}.{kind}" for level in (1, 3) for kind in ("weight", "bias")
    }


# Options


def test_options_change_keys_or_shapes():
    x = torch.randn(1, 3, 64, 128)
    keys = {key: value.shape for key, value in CAT(TINY).state_dict().items()}

    def changed(**options):
        model = CAT(replace(TINY, **options))
        assert model(x).shape == (1, 1000)
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        return {key for key in keys.keys() | shapes.keys() if keys.get(key) != shapes.get(key)}

    assert changed(ape=False) == {"ape"}
    assert changed(patch_norm=False) == {"patch_embed.norm.weight", "patch_embed.norm.bias"}
    assert changed(slice_embed=True) == {"patch_embed.proj.weight"}
    assert {key.rsplit(".", 2)[1:] == ["qkv", "bias"] for key in changed(qkv_bias=False)} == {True}
    assert {key.split(".")[4] for key in changed(mlp_ratio=2.0)} == {"mlp"}
    assert all(".attn." in key for key in changed(patch_size=2))


def test_slice_embedding_is_the_convolution_with_its_weights_permuted():
    convolution, slices = CAT(TINY).patch_embed, CAT(replace(TINY, slice_embed=True)).patch_embed
    slices.load_state_dict(convolution.state_dict() | {"proj.weight": slices.proj.weight})
    rows = convolution.proj.weight.detach().reshape(4, 3, 2, 2, 2, 2)  # c 3, row of k2 and k1, column of k2 and k1
    slices.proj.weight.data = rows.permute(0, 4, 2, 5, 3, 1).reshape(4, 48, 1, 1)  # the column is the slower in k
    x = torch.randn(2, 3, 12, 20)
    torch.testing.assert_close(slices(x), convolution(x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depths": (1, 2, 3)}, r"depths=\(1, 2, 3\).*four each"),
        ({"depths": (0, 0, 0, 0)}, r"depths=\(0, 0, 0, 0\).*positive"),
        ({"depths": (1, -2, 3, 4)}, r"depths=\(1, -2, 3, 4\) is not in \[0, 1000\]"),
        ({"num_heads": (2, 4, 8, 12)}, r"num_heads\[3\]=12 must divide the 512 channels of stage 3 \(embed_dim=64\)"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"mlp_ratio": -1.5}, r"mlp_ratio=-1\.5"),
        ({"img_size": (225, 300)}, "img_size is 225x300 .* use 224x224 or 448x448, or build"),
        ({"img_size": 256}, "img_size is 256x256 .* use 224x224 or 448x448"),
    ],
)
def test_wrong_options_are_refused_with_their_values(options, words):
    with torch.device("meta"), pytest.raises(UsageError, match=words):
        build_model("cat_tiny", **options)


def test_wrong_levels_are_refused():
    with pytest.raises(ValueError, match=r"out_indices=\(2, 4\)"):
        CATPyramid(DENSE, out_indices=(2, 4))


# Image sizes


def test_classifier_takes_other_sizes_that_divide():
    model = lively(CAT(TINY, num_classes=7))
    assert model.patch_sizes == [4, 4, 4, 2]
    assert model(torch.randn(2, 3, 128, 192)).shape == (2, 7)


def test_classifier_names_the_nearest_sizes():
    model = CAT(TINY)
    with pytest.raises(ValueError, match=r"image is 100x200 \(height x width\).* use 64x192 or 128x256, or build"):
        model(torch.randn(1, 3, 100, 200))
    with pytest.raises(ValueError, match=r"image is 30x60 .* use 64x64, or build"):
        model(torch.randn(1, 3, 30, 60))


def test_native_sizes_may_shrink_the_patches():
    # Without units at high resolution 96x96 works: late maps of 6x6 and 3x3, one patch each.
    late = replace(TINY, depths=(0, 0, 1, 1), patch_size=7)
    with pytest.raises(ValueError, match=r"img_size is 70x75 .* use 64x64 or 96x96"):
        CAT(replace(late, img_size=(70, 75)))
    assert CAT(replace(late, img_size=(96, 96))).patch_sizes == [7, 7, 6, 3]


def test_padding_changes_nothing_where_nothing_lacks():
    plain = lively(CAT(replace(TINY, img_size=(128, 256))))
    padding = CAT(replace(TINY, img_size=(128, 256), pad=True)).eval()
    padding.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 128, 256)
    assert padding(x).equal(plain(x))
    assert padding(torch.randn(1, 3, 37, 70)).shape == (1, 1000)


def test_padding_classifier_and_pyramid_agree():
    """The pyramid's last map, through the classifier's norm and head, gives the classifier's logits."""
    classifier = lively(CAT(replace(DENSE, pad=True), num_classes=7))
    pyramid = CATPyramid(DENSE).eval()
    state = classifier.state_dict()
    state["ape"] = state["ape"].reshape(1, 14, 10, 4).permute(0, 3, 1, 2)
    state |= {"norm3.weight": state["norm.weight"], "norm3.bias": state["norm.bias"]}
    pyramid.load_state_dict(state, strict=False)
    x = torch.randn(2, 3, 61, 45)
    torch.testing.assert_close(classifier.forward_head(pyramid(x)[3].permute(0, 2, 3, 1)), classifier(x))


@pytest.mark.parametrize("size", [(1, 2), (37, 70), (64, 32), (101, 55)])
def test_pyramid_takes_any_size(size):
    model = lively(CATPyramid(DENSE, out_indices=(0, 2, 3)))
    maps = model(torch.randn(2, 3, *size))
    assert model.feature_info.channels() == [m.shape[1] for m in maps] == [4, 16, 32]
    for level, stride in zip(maps, model.feature_info.reduction(), strict=True):
        assert level.shape[2:] == tuple(-(-side // stride) for side in size)
        assert level.isfinite().all()


def test_pyramid_is_stateless_and_items_do_not_meet():
    model = lively(CATPyramid(DENSE))
    x, other = torch.randn(3, 3, 50, 41), torch.randn(1, 3, 33, 64)
    first = model(x)
    model(other)
    torch.testing.assert_close(model(x), first, rtol=0, atol=0)
    for level, item in zip(first, model(x[1:2]), strict=True):
        torch.testing.assert_close(level[1:2], item)


# The contract


def test_intermediates_are_the_stages():
    model = lively(CAT(TINY, num_classes=7))
    x = torch.randn(2, 3, 64, 128)
    features, maps = model.forward_intermediates(x)
    assert [(m.shape[1], 64 // m.shape[2], 128 // m.shape[3]) for m in maps] == [
        (info["num_chs"], info["reduction"], info["reduction"]) for info in model.feature_info
    ]
    torch.testing.assert_close(model.forward_head(features), model(x))
    last = model.forward_intermediates(x, [-1], norm=True, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(last[0], features.flatten(1, 2))
    hooked = []
    model.get_submodule(model.feature_info[1]["module"]).register_forward_hook(lambda *args: hooked.append(args[2]))
    early = model.forward_intermediates(x, [0, 1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(early, maps[:2])
    torch.testing.assert_close(hooked[0].permute(0, 3, 1, 2), maps[1])
    with pytest.raises(ValueError, match="'NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_pruned_model_ends_at_its_last_stage():
    model = lively(CAT(TINY, num_classes=7))
    x = torch.randn(2, 3, 64, 128)
    wanted = model.forward_intermediates(x, [1], intermediates_only=True)
    assert model.prune_intermediate_layers([1]) == [1]
    torch.testing.assert_close(model.forward_features(x).permute(0, 3, 1, 2), wanted[0])
    assert model(x).shape == (2, model.num_features) == (2, 8)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)


def test_pooling_and_classifier_can_be_taken_off():
    model = CAT(TINY, num_classes=7, in_chans=2)
    x = torch.randn(2, 2, 64, 128)
    model.reset_classifier(0)
    assert model(x).shape == (2, 32)
    model.reset_classifier(5, global_pool="")
    assert model(x).shape == (2, 2, 4, 5)
    with pytest.raises(ValueError, match="'max'"):
        model.reset_classifier(5, global_pool="max")


def test_half_precision_autocast_is_close():
    model = lively(CAT(TINY, num_classes=7))
    x = torch.randn(2, 3, 64, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(x)
    torch.testing.assert_close(low.float(), model(x), rtol=0.1, atol=0.1)


@pytest.mark.slow  # what is captured, tests/models/test_contract.py compares
def test_compiled_model_is_the_same():
    model = lively(CAT(replace(TINY, depths=(1, 0, 0, 1)), num_classes=7))
    x = torch.randn(2, 3, 64, 128)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
