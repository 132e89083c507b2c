"""timm's own tools take our models as they are."""

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils import ModelEmaV3

import transept
from tests.helpers import SMALL
from transept.errors import UsageError


@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "cait_xxs24_224"])
def test_tools(name: str):
    model = transept.create_model(name, depth=3)
    assert resolve_data_config({}, model=model) == {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(model.patch_embed.proj[0][0].weight if "xcit" in name else model.patch_embed.proj.weight)] < 0.07
    assert scale[id(model.blocks[0].norm1.weight)] < scale[id(model.blocks[2].norm1.weight)] < 1
    assert scale[id(model.head.weight)] == 1
    exempt = [
        g for g in create_optimizer_v2(model, opt="adamw", weight_decay=0.1).param_groups if not g["weight_decay"]
    ]
    assert {id(model.cls_token), id(model.blocks[0].norm1.weight)} <= {id(p) for g in exempt for p in g["params"]}
    assert torch.equal(ModelEmaV3(model).module.cls_token, model.cls_token)


@pytest.mark.parametrize("name", ["xcit_tiny_12_p8_224", "cait_xxs24_224"])
@torch.inference_mode()
def test_same_logits_as_timm(name: str):
    """A second witness beside the recordings: timm's implementation with the same weights."""
    ours, theirs = transept.create_model(name).eval(), timm.create_model(name).eval()
    state = ours.state_dict()
    for key in [key for key in state if key.startswith("cls_attn_blocks") and "attn.qkv" in key]:
        for part, value in zip("qkv", state.pop(key).chunk(3), strict=True):
            state[key.replace("qkv", part)] = value
    theirs.load_state_dict({key.replace("pos_embeder", "pos_embed"): value for key, value in state.items()})
    x = torch.randn(2, 3, 224, 224)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


@torch.inference_mode()
def test_pyramids_of_timm():
    model = timm.create_model("crossformer_small", features_only=True).eval()
    maps = model(torch.randn(1, 3, 128, 160))
    sizes = zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    assert [m.shape[1:] for m in maps] == [(c, 128 // r, 160 // r) for c, r in sizes]


@pytest.mark.parametrize("name", ["cat_tiny", "crossformer_tiny", "cabvit_h_l1", "cabvit_p_l0"])
def test_levels_are_counted_from_the_end(name: str):
    for wanted, levels in (((-1,), (3,)), ((-1, 0), (3, 0)), (2, (2, 3))):
        model = timm.create_model(name, features_only=True, out_indices=wanted, **SMALL[name])
        assert model.out_indices == levels
    with torch.no_grad():
        assert model.feature_info.channels() == [m.shape[1] for m in model(torch.randn(2, 3, 64, 64))]
    for wrong in (0, 5, (-5,)):
        with pytest.raises(UsageError, match="give some of the four levels 0, 1, 2, 3"):
            timm.create_model(name, features_only=True, out_indices=wrong, **SMALL[name])


@pytest.mark.parametrize("name", ["cat_tiny", "crossformer_tiny", "cabvit_h_l1"])
@torch.inference_mode()
def test_encoder_of_segmentation_models_pytorch(name: str):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.UPerNet(f"tu-{name}", encoder_weights=None, classes=5).eval()
    assert type(model.encoder.model).__module__.startswith("transept.models")
    assert model(torch.randn(1, 3, 128, 160)).shape == (1, 5, 128, 160)
