"""timm's tools on every family. That it builds our models, and decays their rates by layer, is tested elsewhere."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import FeatureHookNet
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

import transept
from tests.helpers import NAMES, build


@pytest.mark.parametrize("name", NAMES)
def test_layer_decay(name: str):
    """Through the optimiser's factory: one group for each layer and decay, from the stem to the head."""
    model, rate = build(name), 0.5
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=rate)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert sorted(map(id, model.parameters())) == sorted(scale)
    assert {scale[id(p)] for p in model.head.parameters()} == {1}
    stem = [scale[id(p)] for p in model.patch_embed.parameters()]
    assert len(set(stem)) == 1
    assert stem[0] == min(scale.values()) <= rate**3
    levels = sorted((level["module"] for level in model.feature_info), key=model.level_position)
    top = [max(scale[id(p)] for p in model.get_submodule(level).parameters()) for level in levels]
    assert sorted(top) == top
    assert top[-1] > top[0]


@pytest.mark.parametrize("name", NAMES)
def test_moving_average(name: str):
    model = build(name)
    first = copy.deepcopy(model.state_dict())
    average = ModelEmaV3(model, decay=0.75)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    average.update(model)
    for key, value in average.module.state_dict().items():
        moved = 0.25 * model.state_dict()[key] + 0.75 * first[key] if value.is_floating_point() else first[key]
        assert torch.allclose(value, moved, atol=1e-5), key
    with torch.no_grad():  # what evaluation keeps of position biases must follow
        fresh = build(name)
        fresh.load_state_dict(average.module.state_dict())
        x = torch.randn(1, 3, 64, 64)
        average.module(x)
        average.update(model)
        before = fresh(x)
        assert not torch.allclose(average.module(x), before, atol=1e-4)
        fresh.load_state_dict(average.module.state_dict())
        assert torch.equal(average.module(x), fresh(x))


@pytest.mark.parametrize("name", ["cat_tiny", "cabvit_h_l1", "crossformer_tiny", "xcit_nano_12_p8_384", "cait_s24_384"])
def test_data_configuration(name: str):
    """timm's evaluation transform from its configuration is our own."""
    model = transept.create_model(name, **({"depth": 1} if name[:2] in ("xc", "ca") and name[2] == "i" else {}))
    config = resolve_data_config({}, model=model)
    assert config["input_size"] == (3, *model.config.img_size)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 450, 3), dtype=np.uint8))
    theirs = create_transform(**config)(picture)
    assert torch.equal(theirs, transept.transforms_for(model)(picture))


def test_features_by_hooks():
    """timm's hook-based extractor finds the levels by the names of `feature_info`."""
    model = build("crossformer_tiny")
    hooked = FeatureHookNet(model, out_indices=(0, 1, 2, 3), no_rewrite=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = hooked(x)
        maps = model.forward_intermediates(x, intermediates_only=True)
    assert [tuple(each.shape) for each in found] == [(1, *m.permute(0, 2, 3, 1).shape[1:]) for m in maps]
    assert all(torch.equal(a, b.permute(0, 2, 3, 1)) for a, b in zip(found, maps, strict=True))
