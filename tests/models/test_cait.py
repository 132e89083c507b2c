"""What the CaiT paper claims, and what its configuration refuses."""

import pytest
import torch
from torch import nn

import transept
from transept.models.cait import ClassAttentionBlock, TalkingHeadsAttention, TalkingHeadsBlock


@pytest.fixture
def talking() -> TalkingHeadsAttention:
    attention = TalkingHeadsAttention(dim=12, num_heads=3)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attention.eval()


def test_talking_heads_equal_their_formula(talking):  # Section 4
    x = torch.randn(2, 5, 12)
    q, k, v = (t.reshape(2, 5, 3, 4).transpose(1, 2) for t in talking.qkv(x).chunk(3, dim=-1))
    logits = (q @ k.transpose(-2, -1)) * 4**-0.5
    logits = talking.proj_l(logits.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    weights = talking.proj_w(logits.softmax(dim=-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    expected = talking.proj((weights @ v).transpose(1, 2).reshape(2, 5, 12))
    assert torch.allclose(talking(x), expected, atol=1e-5)
    assert torch.allclose(talking.train()(x), expected, atol=1e-5)


def test_heads_talk(talking):
    """Queries of head 0 reach the output of head 2, and stop doing so where the mix is the identity."""

    def reach() -> float:
        x = torch.randn(1, 5, 12)
        captured = {}
        talking.proj.register_forward_pre_hook(lambda module, args: captured.update(heads=args[0]))
        talking.qkv.register_forward_hook(lambda module, args, out: captured.update(qkv=out))
        talking(x.requires_grad_())
        (gradient,) = torch.autograd.grad(captured["heads"][..., 8:].sum(), captured["qkv"])
        return gradient[..., :4].abs().sum().item()  # q of head 0

    assert reach() > 0
    for mix in (talking.proj_l, talking.proj_w):
        nn.init.eye_(mix.weight)
    assert reach() == 0


def test_class_attention_leaves_patch_tokens_as_they_were():  # Section 3
    model = transept.create_model("cait_xxs24_224", depth=1, img_size=64).eval()
    x = torch.randn(2, 3, 64, 64)
    _, (tokens,) = model.forward_intermediates(x, output_fmt="NLC")
    sequence = model.forward_features(x)
    assert torch.equal(sequence[:, 1:], model.norm(tokens))


def test_patches_never_read_the_class_token():
    model = transept.create_model("cait_xxs24_224", depth=2, img_size=64).eval()
    patches = model.forward_features(torch.randn(1, 3, 64, 64))[:, 1:]
    (gradient,) = torch.autograd.grad(patches.square().sum(), model.cls_token, allow_unused=True)
    assert gradient is None or not gradient.any()


def test_class_attention_block_reads_every_patch():
    block = ClassAttentionBlock(dim=12, num_heads=3, init_scale=1.0)
    x = torch.randn(1, 6, 12, requires_grad=True)
    block(torch.randn(1, 1, 12), x).sum().backward()
    assert (x.grad.abs().sum(-1) > 0).all()


def test_position_embedding_follows_the_image():
    model = transept.create_model("cait_xxs24_224", depth=1).eval()
    assert model.pos_embed.shape == (1, 14 * 14, 192)
    assert model(torch.randn(1, 3, 384, 256)).shape == (1, 1000)
    wide = transept.create_model("cait_xxs24_224", depth=1, img_size=(64, 96))
    assert wide.pos_embed.shape == (1, 4 * 6, 192)
    assert wide.pretrained_cfg["input_size"] == (3, 64, 96)


def test_ragged_sides_are_padded_at_the_right_and_bottom():
    model = transept.create_model("cait_xxs24_224", depth=2, img_size=48).eval()
    x = torch.randn(1, 3, 40, 33)
    padded = nn.functional.pad(x, (0, 15, 0, 8))
    assert torch.equal(model(x), model(padded))


def test_initialisation():
    model = transept.create_model("cait_s36_384", depth=2)
    assert abs(model.blocks[0].attn.qkv.weight.std().item() - 0.02) < 4e-4
    assert abs(model.pos_embed.std().item() - 0.02) < 4e-4
    assert (model.blocks[0].gamma_1 == 1e-6).all()
    assert (model.blocks_token_only[1].gamma_2 == 1e-6).all()
    assert model.no_weight_decay() == {"cls_token", "pos_embed"}
    assert all(module.eps == 1e-6 for module in model.modules() if isinstance(module, nn.LayerNorm))


def test_drop_path_is_the_same_in_every_block():
    model = transept.create_model("cait_xxs24_224", depth=3, drop_path_rate=0.2)
    assert [block.drop_path.drop_prob for block in model.blocks] == [0.2] * 3
    assert isinstance(TalkingHeadsBlock(12, 3, 1.0, 0.0).drop_path, nn.Identity)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=7), "embed_dim=192 must be a multiple of num_heads=7"),
        (dict(patch_size=14), "patch_size=14; use 16"),
        (dict(init_values=1), "no option of cait_xxs24_224 is called 'init_values'"),
    ],
)
def test_refusals(options: dict, message: str):
    with pytest.raises(transept.TranseptError, match=message):
        transept.create_model("cait_xxs24_224", **options)
