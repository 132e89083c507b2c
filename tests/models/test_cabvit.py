"""CabViT: what the paper claims, any size, options, errors. Every axis has a size of its own where it can."""

import copy
from dataclasses import replace

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from transept.errors import UsageError
from transept.models.cabvit import FAMILY, VARIANTS
from transept.models.cabvit_block import (
    CabBlock,
    CrossAttentionAmongBlocks,
    offset_index,
    resize_digest_table,
    resize_offset_table,
)
from transept.models.cabvit_h import CabStage, CabViTHConfig
from transept.models.cabvit_p import CabViTPConfig
from transept.models.registry import build_model, skeletons
from transept.weights.convert.cabvit import resize_tables

HYBRID = CabViTHConfig(img_size=(64, 96), embed_dims=(8, 12, 24, 32), depths=(2, 1, 4, 3), num_heads=(3, 4))
PLAIN = CabViTPConfig(img_size=(64, 96), embed_dim=24, depth=4, num_heads=3, cross_blocks=False)
CROSS = replace(PLAIN, cross_blocks=True)
CONFIGS = {
    "hybrid": HYBRID,
    "cf": replace(HYBRID, conv_block="cf"),
    "mb": replace(HYBRID, conv_block="mb"),
    "plain": PLAIN,
    "cross": CROSS,
}
GRID = (4, 6)
CPU = torch.device("cpu")
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
each_cross = pytest.mark.parametrize("config", [HYBRID, CROSS], ids=["hybrid", "cross"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomize(model: nn.Module) -> nn.Module:
    """Weights at which every part matters: the initial scales of 1e-6 hide most of the network."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, mean=float("norm" in name or "gamma" in name or "scale" in name), std=0.2)
    return model.eval()


def classifier(config, **arguments):
    return randomize(FAMILY.classifier(config, num_classes=7, **arguments))


def pyramid(config, **arguments):
    return randomize(FAMILY.pyramid(config, **arguments))


def cab_stages(model):
    """The CaB blocks of each stage."""
    stages = [m.blocks for m in model.modules() if isinstance(m, CabStage)]
    return stages or [model.blocks]


def watch(blocks):
    """Lists that fill with each block's inputs and outputs."""
    inputs, outputs = [], []
    for block in blocks:
        block.register_forward_hook(lambda _, given, made: inputs.append(given))
        block.register_forward_hook(lambda _, given, made: outputs.append(made))
    return inputs, outputs


# Cross attention among blocks


@each_cross
def test_a_digest_reaches_all_later_blocks_of_its_stage(config):
    model = classifier(config)
    watched = [watch(blocks) for blocks in cab_stages(model)]
    model(torch.randn(2, 3, 64, 96))
    for inputs, outputs in watched:
        for j, (_, digests, *_) in enumerate(inputs):
            assert len(digests) == j
            assert all(digests[i] is outputs[i][1] for i in range(j))
            for digest in digests:
                gradient = torch.autograd.grad(outputs[j][0].square().sum(), digest, retain_graph=True)[0]
                assert gradient.abs().sum(-1).gt(0).all()  # every token of it
        assert outputs[-1][1] is None


@each_cross
def test_a_digest_reaches_no_earlier_block(config):
    model = classifier(config)
    for blocks in cab_stages(model):
        _, outputs = watch(blocks)
        model(torch.randn(2, 3, 64, 96))
        for i, (_, digest) in enumerate(outputs[:-1]):
            for x, _ in outputs[: i + 1]:
                assert torch.autograd.grad(x.sum(), digest, retain_graph=True, allow_unused=True)[0] is None


def test_a_digest_leaves_its_stage_through_the_tokens_only():
    model = classifier(HYBRID)
    _, outputs = watch(model.layer_2.blocks)
    logits = model(torch.randn(2, 3, 64, 96))
    digests = [digest for _, digest in outputs[:-1]]
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(logits.sum(), digests))

    outputs.clear()
    model.layer_2.register_forward_hook(lambda _, given, made: made.detach())
    logits = model(torch.randn(2, 3, 64, 96))
    digests = [digest for _, digest in outputs[:-1]]
    assert torch.autograd.grad(logits.sum(), digests, allow_unused=True) == (None, None, None)


def cross_attention(index, dim=24, num_heads=3, stride=4):
    module = randomize(CrossAttentionAmongBlocks(dim, num_heads, GRID, index=index, digest_stride=stride))
    x = torch.randn(2, 24, dim, requires_grad=True)
    digests = tuple(torch.randn(2, 2, dim, requires_grad=True) for _ in range(index))  # ceil(4 / 4) x ceil(6 / 4)
    return module, x, digests, GRID, offset_index(GRID, CPU)


def test_attention_is_joint_over_tokens_and_digests():
    module, x, digests, grid, offsets = cross_attention(index=2)
    weights = module.attention(x, digests, grid, offsets)
    assert weights.shape == (2, 3, 24, 24 + 2 * 2)
    assert weights.sum(-1).allclose(torch.ones(2, 3, 24))
    gradients = torch.autograd.grad(module.cross_attend(x, digests, grid, offsets)[:, 5].square().sum(), [x, *digests])
    assert all(gradient.abs().sum(-1).gt(0).all() for gradient in gradients)


def test_attention_gives_the_weights_that_cross_attend_uses():
    module, x, digests, grid, offsets = cross_attention(index=2)
    weights = module.attention(x, digests, grid, offsets)
    sources = torch.cat([module.norm1(x), module.s_norm(torch.cat(digests, 1) * module.s_scale_factors)], dim=1)
    values = module.qkv(sources)[..., 48:].unflatten(-1, (3, 8)).transpose(1, 2)
    expected = module.proj((weights @ values).transpose(1, 2).flatten(2))
    assert module.cross_attend(x, digests, grid, offsets).allclose(expected, atol=1e-5)


def test_biases_are_by_absolute_offset_and_by_digest_token():
    module, x, digests, grid, offsets = cross_attention(index=1)
    with torch.no_grad():
        module.qkv.weight.zero_()
        module.qkv.bias.zero_()  # the logits are the biases
    weights = module.attention(x, digests, grid, offsets)[0]
    table = module.attention_biases.view(3, *GRID)
    for query, key in ((0, 0), (0, 23), (23, 0), (7, 15), (13, 10)):
        rows, columns = abs(query // 6 - key // 6), abs(query % 6 - key % 6)
        difference = (weights[:, query, key] / weights[:, query, 24]).log()
        assert difference.allclose(table[:, rows, columns] - module.s_token_bias[0, :, 0, 0], atol=1e-5)


def test_scaling_factors_act_by_their_sign_alone():
    module, *arguments = cross_attention(index=1)
    before = module.cross_attend(*arguments)
    with torch.no_grad():
        module.s_scale_factors.mul_(3)
        assert module.cross_attend(*arguments).allclose(before, atol=1e-3)
        module.s_scale_factors.neg_()
        assert not module.cross_attend(*arguments).allclose(before, atol=1e-2)


def cab_block(index=1, **options):
    options = (
        dict(digests=True, for_class_token=False, digest_stride=4, layer_scale_init=1.0, drop_path_rate=0.0) | options
    )
    return randomize(CabBlock(24, 3, (8, 12), index=index, **options))


def extent(gradient):
    """First and last row, first and last column of an 8 x 12 map that a gradient `1 n c` reaches."""
    size = gradient.abs().sum(-1).view(8, 12)
    rows, columns = (size > 1e-5 * size.max()).nonzero(as_tuple=True)
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_the_digest_is_taken_before_enhancement_with_a_long_stride():
    block = cab_block(index=0)
    before = block(torch.randn(1, 96, 24), (), (8, 12), offset_index((8, 12), CPU))[1]
    assert before.shape == (1, 2 * 3, 24)
    with torch.no_grad():
        block.gamma_1.zero_()  # y is x
    x = torch.randn(1, 96, 24, requires_grad=True)
    tokens, digest = block(x, (), (8, 12), offset_index((8, 12), CPU))
    (gradient,) = torch.autograd.grad(digest[:, 4].sum(), x, retain_graph=True)  # centre (4, 4), reach 3
    assert extent(gradient) == (1, 7, 1, 7)
    (gradient,) = torch.autograd.grad(tokens[:, 4 * 12 + 4].square().sum(), x)  # the local convolution reaches 1
    assert extent(gradient) == (3, 5, 3, 5)


def test_the_local_convolution_replaces_the_tokens():
    block = cab_block(index=0)
    with torch.no_grad():
        block.local_conv.c.weight.zero_()
        block.gamma_2.zero_()
    x, _ = block(torch.randn(2, 96, 24), (), (8, 12), offset_index((8, 12), CPU))
    norm = block.local_conv.bn
    expected = norm.bias - norm.running_mean / (norm.running_var + 1e-5).sqrt() * norm.weight
    assert x.allclose(expected.expand(2, 96, 24), atol=1e-6)


def test_the_class_token_attends_and_is_attended_to_but_not_convolved():
    block = cab_block()
    x = torch.randn(1, 1 + 96, 24, requires_grad=True)
    arguments = (torch.randn(1, 6, 24),), (8, 12), offset_index((8, 12), CPU)
    weights = block.attention(x, *arguments)
    assert weights.shape == (1, 3, 97, 97 + 6)
    tokens, digest = block(x, *arguments)
    assert digest.shape == (1, 6, 24)
    assert torch.autograd.grad(tokens[:, 0].square().sum(), x, retain_graph=True)[0].abs().sum(-1).gt(0).all()
    assert torch.autograd.grad(tokens[:, 9].square().sum(), x, retain_graph=True)[0][:, 0].abs().sum() > 0
    with torch.no_grad():
        block.gamma_1.zero_()
    tokens, digest = block(x, *arguments)
    assert torch.autograd.grad(tokens[:, 1:].sum() + digest.sum(), x)[0][:, 0].abs().sum() == 0


def test_the_released_plain_model_crosses_nothing_and_ours_does():
    released, ours = build_model("cabvit_p_l0"), build_model("cabvit_p_l0_cross")
    assert not any(isinstance(m, CrossAttentionAmongBlocks) for m in released.modules())
    assert sum(isinstance(m, CrossAttentionAmongBlocks) for m in ours.modules()) == 12


# Training


@each_config
def test_gradients_reach_every_parameter(config):
    for model, outputs in ((classifier(config), lambda y: [y]), (pyramid(config), list)):
        model.train()
        loss = sum(y.square().sum() for y in outputs(model(torch.randn(3, 3, 64, 96))))
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


@each_config
def test_one_image_has_the_gradient_of_two_copies(config):
    """A guard against a fault of PyTorch that `to_map` names: BatchNorm's backward pass misreads a batch of one."""
    model = classifier(config)
    x = torch.randn(1, 3, 64, 96)
    gradients = []
    for images in (x, x.repeat(2, 1, 1, 1)):
        model.zero_grad()
        model(images).square().sum(-1).mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).norm() <= 1e-3 * gradients[1][name].norm() + 1e-5, name


@each_config
def test_checkpointing_changes_no_gradient_and_no_statistic(config):
    model = classifier(config).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    x = torch.randn(2, 3, 64, 96)
    for m in (model, other):
        m(x).square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_initial_values():
    model = FAMILY.classifier(HYBRID)
    values = {name: parameter for name, parameter in model.named_parameters() if "layer_" in name}
    for name, value in values.items():
        if "gamma" in name:
            assert value.eq(1e-6).all()
        elif "s_scale_factors" in name:
            assert value.eq(1).all()
        elif "bias" in name:  # of layers, offsets and digests
            assert value.eq(0).all()
    for name in ("layer_2.blocks.1.qkv.weight", "layer_0.blocks.1.dwconv.weight", "layer_3.blocks.1.dw_conv.weight"):
        assert 0.01 < values[name].std() < 0.03


def test_drop_path_grows_linearly_over_all_stages():
    model = FAMILY.classifier(HYBRID, drop_path_rate=0.9)
    blocks = [block for s in range(4) for block in model.get_submodule(f"layer_{s}").blocks]
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks] == pytest.approx(
        [0.1 * i for i in range(10)]
    )
    x = torch.randn(2, 3, 64, 96)
    model = randomize(model)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_no_weight_decay_is_the_recipes():
    assert FAMILY.classifier(HYBRID).no_weight_decay() == set()
    assert FAMILY.classifier(CROSS).no_weight_decay() == {"cls_token", "pos_embed"}


@each_config
def test_layer_decay_orders_stem_blocks_head(config):
    model = classifier(config)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    scales = [scale[id(p)] for name, p in model.named_parameters() if "downsample" not in name]
    order = (
        "patch_embed",
        "layer_0.blocks",
        "layer_0.down",
        "layer_1.blocks",
        "layer_2.blocks",
        "layer_3.blocks",
        "head",
    )
    if isinstance(config, CabViTPConfig):
        order = ("patch_embed", "blocks.0", "blocks.1", "blocks.3", "head")
    firsts = [next(scale[id(p)] for name, p in model.named_parameters() if name.startswith(key)) for key in order]
    assert firsts == sorted(set(firsts)), (firsts, scales)


# The scales that the official code forgets


def test_a_file_without_branch_scales_runs_with_their_initial_value():
    config = CONFIGS["cf"]
    model = classifier(config)
    names = [name for name in model.state_dict() if "layer_scale" in name]
    assert len(names) == 2 * sum(config.depths[:2])
    official = {key: value for key, value in model.state_dict().items() if key not in names}
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).fill_(config.layer_scale_init)
    other = classifier(config)
    assert other.load_state_dict(official).missing_keys == []
    assert not set(names) & set(official)  # the caller's dictionary is left alone
    x = torch.randn(2, 3, 64, 96)
    assert torch.equal(model(x), other(x))
    assert other.get_parameter(names[0]).requires_grad


def test_saved_branch_scales_are_restored():
    model, other = classifier(CONFIGS["cf"]), classifier(CONFIGS["cf"])
    other.load_state_dict(model.state_dict())
    name = "layer_0.blocks.1.layer_scale_2"
    assert torch.equal(model.get_parameter(name), other.get_parameter(name))
    copy.deepcopy(other).load_state_dict(model.state_dict())


# Any size


@each_config
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (70, 101), (33, 5)])
def test_classifier_takes_any_size_and_batch_equals_items(config, size):
    model = classifier(config)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()
        assert torch.cat([model(image[None]) for image in x]).allclose(logits, atol=1e-4, rtol=1e-4)


@each_config
@pytest.mark.parametrize("size", [(64, 96), (70, 101), (129, 33), (7, 65)])
def test_pyramid_takes_any_size(config, size):
    model = pyramid(config)
    with torch.no_grad():
        levels = model(torch.randn(2, 3, *size))
    channels = model.feature_info.channels()
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    for level, dim, stride in zip(levels, channels, (4, 8, 16, 32), strict=True):
        assert level.shape[:2] == (2, dim)
        assert level.isfinite().all()
        if isinstance(config, CabViTHConfig):
            assert tuple(level.shape[2:]) == tuple(-(-side // stride) for side in size)


def test_at_native_size_windows_change_nothing():
    model, dense = classifier(HYBRID), pyramid(HYBRID)
    dense.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        whole, windowed = model.run_stages(x, range(4)), dense.run_stages(x, range(4))
    assert all(torch.equal(whole[s], windowed[s]) for s in range(4))


def stage(windowed=True):
    return pyramid(HYBRID).layer_2 if windowed else classifier(HYBRID).layer_2  # grid 4 x 6


def test_whole_windows_do_not_meet():
    x = torch.randn(1, 24, 8, 18, requires_grad=True)
    y = stage()(x, checkpointing=False)
    (gradient,) = torch.autograd.grad(y[:, :, :4, 6:12].square().sum(), x)
    assert gradient[:, :, :4, 6:12].abs().sum(1).gt(0).all()
    gradient[:, :, :4, 6:12] = 0
    assert gradient.abs().sum() == 0


def test_padded_windows_shift_in_turn():
    """On 5 x 6, even blocks see rows 0 | 1 to 4, odd ones 0 to 3 | 4."""
    module = stage()
    x = torch.randn(1, 24, 5, 6)
    one = CabStage([module.blocks[0]], None, (4, 6), windowed=True)
    top = torch.cat([torch.zeros(1, 24, 3, 6), x[:, :, :1]], dim=2)
    with torch.no_grad():
        y = one(x, checkpointing=False)
        assert y[:, :, 1:].allclose(one(x[:, :, 1:], checkpointing=False), atol=1e-6)
        assert y[:, :, :1].allclose(one(top, checkpointing=False)[:, :, 3:], atol=1e-6)

        first, second = module.blocks[:2]
        two = CabStage([first, second], None, (4, 6), windowed=True)
        expected = []
        offsets = offset_index((4, 6), CPU)
        for rows, earlier in ((y[:, :, :4], top), (torch.cat([y[:, :, 4:], torch.zeros(1, 24, 3, 6)], 2), x[:, :, 1:])):
            digest = first(earlier.flatten(2).mT, (), (4, 6), offsets)[1]
            tokens = second(rows.flatten(2).mT, (digest,), (4, 6), offsets)[0]
            expected.append(tokens.mT.unflatten(2, (4, 6)))
        expected = torch.cat(expected, dim=2)[:, :, :5]
        assert two(x, checkpointing=False).allclose(expected, atol=1e-5)


def test_tables_of_the_native_grid_are_used_as_they_are():
    table = torch.randn(3, 24)
    assert resize_offset_table(table, GRID, GRID) is table
    assert resize_digest_table(table, (2, 3), (2, 3)) is table


def test_resized_tables_keep_their_layout():
    ramp = torch.arange(4.0)[:, None] + 100 * torch.arange(6.0)  # bicubic follows neither end of a ramp exactly
    resized = resize_offset_table(ramp.flatten()[None], (4, 6), (7, 11)).view(7, 11)
    assert resized[0, 0].item() == pytest.approx(0, abs=1e-4)
    assert resized[-1, -1].item() == pytest.approx(503, rel=1e-4)
    assert resized[::2, ::2].allclose(ramp, atol=1e-3)
    digests = torch.tensor([1.0, 2.0]).repeat_interleave(6).view(1, 12)  # two digests of 2 x 3
    resized = resize_digest_table(digests, (2, 3), (3, 5))
    assert resized.allclose(torch.tensor([1.0, 2.0]).repeat_interleave(15).view(1, 30))


@each_config
def test_resized_weights_compute_what_the_model_computes_at_that_size(config):
    model = classifier(config)
    new_config = replace(config, img_size=(160, 128))
    other = FAMILY.classifier(new_config, num_classes=7).eval()
    other.load_state_dict(resize_tables(model.state_dict(), new_config, config.img_size))
    x = torch.randn(2, 3, 160, 128)
    with torch.no_grad():
        assert other(x).allclose(model(x), atol=1e-5, rtol=1e-5)


# Contract


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cabvit_h_l1", 6_187_560),
        ("cabvit_h_l2", 16_275_870),
        ("cabvit_h_l3", 27_894_484),
        ("cabvit_h_l4", 65_638_204),
        ("cabvit_p_l0", 5_717_416),
        ("cabvit_p_l0_cross", 5_868_268),
    ],
)
def test_parameter_counts(name, count):
    with skeletons():
        assert sum(p.numel() for p in build_model(name).parameters()) == count
    assert name in VARIANTS


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (dict(digest_stride=2), 16_283_685),
        (dict(conv_block="cf"), 16_252_830 + 2 * 2 * (2 * 96 + 2 * 192) // 2),  # with the scales that were forgotten
        (dict(conv_block="mb"), 16_273_566),
        (dict(img_size=256), 16_275_870 + 7 * 10 * (256 - 196) + 2 * 15 * (64 - 49)),  # 16 and 4 digest tokens still
    ],
)
def test_options_change_the_count_as_the_paper_and_the_code_do(options, count):
    with skeletons():
        assert sum(p.numel() for p in build_model("cabvit_h_l2", **options).parameters()) == count


def test_digest_stride_changes_the_outputs_of_a_plain_model():
    model = classifier(replace(CROSS, digest_stride=2))
    assert model.blocks[1].s_scale_factors.shape == (1, 2 * 3, 1)
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 7)


def test_layer_scale_init_is_used():
    hybrid = FAMILY.classifier(replace(HYBRID, layer_scale_init=0.25))
    plain = FAMILY.classifier(replace(CROSS, layer_scale_init=0.5))
    assert hybrid.layer_0.blocks[1].gamma[0] == hybrid.layer_3.blocks[2].gamma_2[0] == 0.25
    assert plain.blocks[3].gamma_1[0] == 0.5


def test_pyramid_dims():
    x = torch.randn(1, 3, 64, 96)
    assert [y.shape[1] for y in pyramid(HYBRID)(x)] == [96, 192, 384, 768]
    assert [y.shape[1] for y in pyramid(replace(HYBRID, pyramid_dims=(3, 5, 7, 9)))(x)] == [3, 5, 7, 9]
    own = pyramid(replace(HYBRID, pyramid_dims=None))
    assert [y.shape[1] for y in own(x)] == own.feature_info.channels() == [8, 12, 24, 32]


@each_config
def test_out_indices_choose_levels(config):
    model = pyramid(config)
    chosen = FAMILY.pyramid(config, out_indices=(2, 0)).eval()
    chosen.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 70, 101)
    with torch.no_grad():
        levels, some = model(x), chosen(x)
    assert torch.equal(some[0], levels[2])
    assert torch.equal(some[1], levels[0])
    assert chosen.feature_info.reduction() == [16, 4]


@each_config
def test_intermediates_match_forward(config):
    model = classifier(config)
    x = torch.randn(2, 3, 70, 101)
    with torch.no_grad():
        features, levels = model.forward_intermediates(x)
        assert torch.equal(features, model.forward_features(x))
        assert torch.equal(model.forward_head(features), model(x))
        assert len(levels) == len(model.feature_info)
        for level, info in zip(levels, model.feature_info, strict=True):
            assert tuple(level.shape) == (2, info["num_chs"], -(-70 // info["reduction"]), -(-101 // info["reduction"]))
        (one,) = model.forward_intermediates(x, [1], stop_early=True, intermediates_only=True, output_fmt="NLC")
        assert torch.equal(one, levels[1].flatten(2).transpose(1, 2))
        (last,) = model.forward_intermediates(x, 1, norm=True, intermediates_only=True)
        norm = model.norm_head if isinstance(config, CabViTHConfig) else model.norm
        assert last.allclose(norm(levels[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2), atol=1e-6)


@each_config
def test_reset_classifier_and_pools(config):
    model = classifier(config)
    x = torch.randn(2, 3, 64, 96)
    model.reset_classifier(11)
    assert model(x).shape == (2, 11)
    model.reset_classifier(0, "avg")
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(5, "")
    tokens = 2 * 3 if isinstance(config, CabViTHConfig) else 1 + 4 * 6
    assert model(x).shape == (2, tokens, 5)


@each_config
def test_other_numbers_of_channels(config):
    assert classifier(config, in_chans=2)(torch.randn(1, 2, 64, 96)).shape == (1, 7)


@each_config
def test_bfloat16_follows_float32(config):
    model = classifier(config)
    x = torch.randn(2, 3, 70, 101)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x)
        low = model.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    for y in (mixed, low):
        assert (y.float() - expected).abs().mean() < 0.1 * expected.abs().mean() + 0.1


# Errors


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (HYBRID, dict(embed_dims=(9, 12, 24, 32)), r"embed_dims\[0\]=9 must be even"),
        (HYBRID, dict(num_heads=(5, 4)), "a width of 24 must be a multiple of its number of heads, 5"),
        (HYBRID, dict(num_heads=(3, 7)), "a width of 32 must be a multiple of its number of heads, 7"),
        (HYBRID, dict(num_heads=(3, 4, 5)), r"num_heads=\(3, 4, 5\); give 2 positive numbers"),
        (HYBRID, dict(depths=(2, 0, 4, 3)), r"depths=\(2, 0, 4, 3\); give 4 positive numbers"),
        (HYBRID, dict(conv_block="swin"), "conv_block='swin'; use 'convnext'"),
        (HYBRID, dict(digest_stride=0), "digest_stride=0 must be at least 1"),
        (HYBRID, dict(layer_scale_init=-2.0), r"layer_scale_init=-2.0 must be above 0"),
        (HYBRID, dict(pyramid_dims=(1, 2, 3)), r"pyramid_dims=\(1, 2, 3\); give four"),
        (PLAIN, dict(num_heads=5), "a width of 24 must be a multiple of its number of heads, 5"),
        (PLAIN, dict(depth=0), "depth=0 must be at least 1"),
        (PLAIN, dict(patch_size=14), "patch_size=14; use 16"),
        (PLAIN, dict(digest_stride=2), "digest_stride=2 has no effect without cross_blocks; set cross_blocks=True"),
        (PLAIN, dict(layer_scale_init=0.1), "layer_scale_init=0.1 has no effect without cross_blocks"),
    ],
)
def test_wrong_options_are_refused(config, options, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **options)


@each_config
def test_wrong_arguments_are_refused(config):
    with pytest.raises(ValueError, match=r"out_indices=\(1, 4\); give some of the four levels"):
        FAMILY.pyramid(config, out_indices=(1, 4))
    model = classifier(config)
    with pytest.raises(ValueError, match="global_pool is 'max'"):
        model.reset_classifier(3, "max")
    with pytest.raises(ValueError, match="output_fmt is 'NHWC'"):
        model.forward_intermediates(torch.randn(1, 3, 64, 96), output_fmt="NHWC")
    with pytest.raises(ValueError, match=r"indices=\[9\]"):
        model.forward_intermediates(torch.randn(1, 3, 64, 96), [9])


def test_the_registry_names_variant_and_option():
    with pytest.raises(UsageError, match="cabvit_p_l0: digest_stride=3 has no effect"):
        build_model("cabvit_p_l0", digest_stride=3)
    with pytest.raises(UsageError, match="did you mean 'conv_block'"):
        build_model("cabvit_h_l1", conv_blocks="cf")
