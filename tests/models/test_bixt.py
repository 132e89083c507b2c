"""BiXT: what its paper claims of latents, tokens and their one similarity, and what dense models are made of."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import transept
from tests.golden import weights
from tests.golden.recorded import build, largest_difference
from tests.helpers import image, noisy
from transept.models.bixt import BiDirectionalCrossAttention, TokensReadLatents

GOLDEN = Path(__file__).parents[1] / "golden" / "bixt"
SMALL: dict[str, Any] = dict(depth=3, embed_dim=48, num_latents=5, num_classes=7)


def small(**options: Any) -> Any:
    return noisy("bixt_ti_l64_p16", 0.1, **({"img_size": 64} | SMALL | options))


def run(model: Any, tokens: Tensor, latents: Tensor, blocks: slice = slice(None)) -> tuple[Tensor, Tensor]:
    for block in model.blocks[blocks]:
        tokens, latents = block(tokens, latents)
    return tokens, latents


def test_tokens_never_attend_to_each_other():
    model = small()
    start = model.embed(image(1))[0].detach().requires_grad_()

    def reached(blocks: int) -> Tensor:
        tokens, _ = run(model, start, model.latents, slice(blocks))
        (gradient,) = torch.autograd.grad(tokens[0, 3].square().sum(), start)
        return gradient[0].abs().sum(dim=-1) > 0

    assert reached(1).nonzero().flatten().tolist() == [3], "a token reached another within one block"
    assert reached(2).all(), "through the latents every token reaches every other"


def test_every_latent_reads_every_token():
    model = small()
    start = model.embed(image(1))[0].detach().requires_grad_()
    _, latents = run(model, start, model.latents, slice(1))
    for latent in latents[0]:
        (gradient,) = torch.autograd.grad(latent.square().sum(), start, retain_graph=True)
        assert gradient.abs().sum(dim=-1).all()


@torch.no_grad()
def test_the_order_of_tokens_and_of_latents_is_free_and_doubled_tokens_change_nothing():
    model = small()
    tokens, latents = model.embed(image(1))[0], model.latents
    expected = run(model, tokens, latents)[1].mean(dim=1)
    order = torch.randperm(tokens.shape[1])
    for changed in (
        (tokens[:, order], latents),
        (tokens, latents[:, torch.randperm(5)]),
        (torch.cat([tokens, tokens], dim=1), latents),
    ):
        assert torch.allclose(run(model, *changed)[1].mean(dim=1), expected, atol=1e-5)


@torch.no_grad()
def test_both_maps_come_of_one_similarity():
    """A reference vector is changed by hand, and both maps follow as computed from the similarity."""
    attention = BiDirectionalCrossAttention(12, 3, "both")
    latents, tokens = torch.randn(2, 4, 12), torch.randn(2, 7, 12)
    given: list[Tensor] = []
    for reader in (attention.latents_read, attention.tokens_read):
        reader.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    attention(latents, tokens)
    assert given[0] is given[1], "the similarity is not shared"
    (r_lat, _), (r_pat, _) = attention.references_and_values(latents, tokens)
    assert torch.allclose(given[0], torch.einsum("bmld, bmnd -> bmln", r_lat, r_pat) / 2, atol=1e-6)
    maps = [given[0].softmax(dim=-1), given[0].softmax(dim=-2)]
    logs = maps[0].log() - maps[1].log()  # a term for each latent, and one for each token
    centred = logs - logs.mean(-1, keepdim=True) - logs.mean(-2, keepdim=True) + logs.mean((-2, -1), keepdim=True)
    assert centred.abs().max() < 1e-5
    bias = torch.zeros_like(attention.rv_latents.bias)
    bias[:12] = torch.randn(12)  # moves the references of all latents, and no value
    attention.rv_latents.bias += bias
    attention(latents, tokens)
    moved = given[0] + torch.einsum("md, bmnd -> bmn", bias[:12].view(3, 4), r_pat)[:, :, None] / 2
    assert torch.allclose(given[2], moved, atol=1e-5)
    assert not torch.allclose(given[2].softmax(dim=-1), maps[0], atol=1e-3)
    assert torch.allclose(given[2].softmax(dim=-2), maps[1], atol=1e-6), "the same shift for all latents cancels"


@torch.no_grad()
def test_attention_equals_its_formula():
    attention = BiDirectionalCrossAttention(12, 3, "both")
    latents, tokens = torch.randn(2, 4, 12), torch.randn(2, 7, 12)
    (r_lat, v_lat), (r_pat, v_pat) = (
        [t.view(2, -1, 3, 4).transpose(1, 2) for t in layer(x).chunk(2, dim=-1)]
        for layer, x in ((attention.rv_latents, latents), (attention.rv_patches, tokens))
    )
    plain = nn.functional.scaled_dot_product_attention
    expected = (
        attention.proj_lat(plain(r_lat, r_pat, v_pat).transpose(1, 2).flatten(2)),
        attention.proj_pat(plain(r_pat, r_lat, v_lat).transpose(1, 2).flatten(2)),
    )
    for found, wanted in zip(attention(latents, tokens), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("stem", ["bixt_ti_l64_d13_p16"])
@torch.inference_mode()
def test_recorded_attention_and_the_dense_map(stem: str):
    golden = json.loads((GOLDEN / f"{stem}.json").read_text())
    model: Any = build(golden)
    images = torch.from_numpy(weights.image_for(golden["input"]["seed"], golden["input"]["shape"]))
    given = {}
    for i in (1, 6):
        reader = model.blocks[i].cross_attention_latents_token.attn.latents_read
        reader.register_forward_pre_hook(lambda module, inputs, i=i: given.update({i: inputs[0]}))
    (dense,) = model.forward_intermediates(images, [-1], intermediates_only=True, output_fmt="NLC")
    for i, similarity in given.items():
        features = golden["features"]
        assert largest_difference(similarity.softmax(dim=-1), features[f"attention.{i}.latents"]) < 1e-6
        assert largest_difference(similarity.softmax(dim=-2).mT, features[f"attention.{i}.tokens"]) < 1e-6
    pyramid: Any = transept.create_model(golden["model"], features_only=True).eval()
    pyramid.load_state_dict(model.state_dict(), strict=False)
    last = pyramid.run_blocks(images, take=(11,))[1][11]
    assert torch.allclose(last.flatten(2).transpose(1, 2), dense, atol=1e-5)
    assert largest_difference(dense, golden["features"]["blocks.11.tokens"]) < 2e-5


def test_a_pyramid_has_what_its_tokens_need():
    names = {name.split(".", 2)[2] for name in small_pyramid().state_dict() if name.startswith("blocks.1.")}
    assert not [name for name in names if "lat" in name.rsplit(".", 2)[-2] and "proj_lat" in name]
    assert not [name for name in names if "self_attention" in name]
    pyramid = small_pyramid().train()
    sum(level.square().mean() for level in pyramid(image(2))).backward()
    assert not [name for name, p in pyramid.named_parameters() if p.grad is None or not p.grad.any()]


def small_pyramid() -> Any:
    options = {key: value for key, value in SMALL.items() if key != "num_classes"}
    torch.manual_seed(0)
    return transept.create_model("bixt_ti_l64_p16", features_only=True, img_size=64, **options)


def test_a_file_of_the_classifier_fits_the_pyramid(tmp_path: Path):
    model = small()
    state = {f"_orig_mod.{name}": value for name, value in model.state_dict().items()}
    state["_orig_mod.fourier_pos_encode.pos"] = torch.zeros(64, 4, 4)
    torch.save({"state_dict": state, "arch": "bixt_ti_l64_p16"}, tmp_path / "model_best.pth")
    again = small()
    report = transept.load_weights(again, tmp_path / "model_best.pth")
    assert report.dropped == ["_orig_mod.fourier_pos_encode.pos"] or len(report.dropped) == 1
    pyramid = small_pyramid()
    report = transept.load_weights(pyramid, tmp_path / "model_best.pth")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in pyramid.state_dict().items()
               if not name.startswith("fpn"))  # fmt: skip
    assert all(name.startswith("fpn") for name in report.missing)


@pytest.mark.parametrize(("name", "grid"), [("bixt_ti_l64_p16", (10, 14)), ("bixt_ti_l64_p16s8", (21, 28))])
@torch.no_grad()
def test_grids_of_odd_images_are_those_of_the_official_code(name: str, grid: tuple[int, int]):
    model = transept.create_model(name, depth=2, embed_dim=32, num_heads=1).eval()
    assert tuple(model.patch_embed(image(1, 170, 230)).shape[-2:]) == grid


def test_latents_take_weight_decay_as_they_did():
    model = transept.create_model("bixt_ti_l64_p16")
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05).param_groups
    counts = {
        bool(group["weight_decay"]): (len(group["params"]), sum(p.numel() for p in group["params"])) for group in groups
    }
    assert counts == {True: (145, 15_035_904), False: (288, 85_288)}


@torch.no_grad()
def test_initialisation():
    model = transept.create_model("bixt_ti_l64_p16")
    attention = model.blocks[0].cross_attention_latents_token.attn
    for weight, std in (
        (attention.rv_latents.weight, 0.0589),
        (model.blocks[0].self_attention_latents.attn.qkv.weight, 0.0510),
        (model.fourier_pos_encode.token_projection.weight, 0.1244),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.03)
    assert not model.eval()(image(1, 224, 224)).any(), "the head starts at zero"
    scaled = transept.create_model("bixt_ed256LS_l64_p16s8", depth=2)
    assert (scaled.blocks[0].cross_attention_latents_token.ls2_pat.gamma == 1e-5).all()


def test_drop_path_grows_from_block_to_block():
    model = small(drop_path_rate=0.2)
    rates = [
        [
            getattr(part.drop_path, "drop_prob", 0.0)
            for part in (b.cross_attention_latents_token, b.self_attention_latents)
        ]
        for b in model.blocks
    ]
    assert torch.allclose(torch.tensor(rates), torch.tensor([[0.0, 0.0], [0.1, 0.1], [0.2, 0.2]]))


@torch.no_grad()
def test_what_a_token_sees_through_the_latents():
    similarity, grid = torch.randn(1, 2, 4, 6), (2, 3)
    found = TokensReadLatents().attention_weights(grid, similarity, torch.zeros(1, 2, 4, 8)).weights
    by_hand = sum(
        similarity.softmax(dim=2)[:, :, j, :, None] * similarity.softmax(dim=3)[:, :, j, None, :] for j in range(4)
    )
    assert torch.allclose(found, by_hand, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=5), "embed_dim=192 must be a multiple of num_heads=5"),
        (dict(patch_size=12), "patch_size=12; use 16, 8 or 4"),
        (dict(depth=1), "depth=1; give at least 2, for the last block updates the latents alone"),
        (dict(num_latents=0), "num_latents=0 must be at least 1"),
        (dict(conv_embed=True, embed_dim=36, num_heads=6), "must be a multiple of 8 for patch_size=16 and conv_embed"),
    ],
)
def test_refusals(options: dict, message: str):
    with pytest.raises(transept.TranseptError, match=message):
        transept.create_model("bixt_ti_l64_p16", **options)


@pytest.mark.parametrize(
    "option",
    [
        dict(depth=2),
        dict(num_heads=2),
        dict(embed_dim=32, num_heads=2),
        dict(num_latents=4),
        dict(patch_size=8),
        dict(conv_embed=True),
        dict(init_scale=0.5),
    ],
)
def test_every_option_changes_the_output(option: dict):
    outputs = [small(**({"num_heads": 6} | options))(image(1)) for options in ({}, option)]
    assert not torch.allclose(*outputs, atol=1e-5)
