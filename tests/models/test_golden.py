"""Every variant computes what its official model computes (tests/golden)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import transept
from tests.golden import weights
from tests.golden.make import FAMILIES, fingerprint

GOLDEN = sorted(path for name in FAMILIES for path in (Path(__file__).parents[1] / "golden" / name).glob("*.json"))
HEAVY = ("large", "medium", "huge", "m36", "m48", "s36", "pp_base", "cabvit_h_l3")
CASES = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if any(size in path.stem for size in HEAVY) else [])
    for path in GOLDEN
]
MODULES = {"embed": "patch_embed"} | {f"stage{i + 1}": f"layers.{i}" for i in range(4)}
"""Recorded names that are no module's."""


def build(golden: dict) -> torch.nn.Module:
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in golden["options"].items()}
    model = transept.create_model(golden["model"], features_only=golden["dense"], **options)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items() if value.is_floating_point()}
    assert fingerprint(shapes) == golden["keys"], "the names or shapes of the official checkpoint differ"
    state = {key: torch.from_numpy(value) for key, value in weights.state_dict_for(shapes).items()}
    model.load_state_dict(state, strict=False)
    return model.eval()


def arrange(value: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """Our layout (tokens, `b h w c` or `b c h w`) as the recorded one."""
    if value.ndim == 4 and len(shape) == 3:
        value = value.flatten(1, 2) if value.shape[3] == shape[2] else value.flatten(2).transpose(1, 2)
    elif value.ndim == 4 and list(value.shape) != shape:
        value = value.permute(0, 3, 1, 2)
    elif value.ndim == 3 and len(shape) == 4:  # a position encoding, the same for all images
        value = value.expand(shape[0], -1, -1).transpose(1, 2).reshape(shape)
    assert list(value.shape) == shape
    return value


def largest_difference(value: torch.Tensor, golden: dict) -> float:
    return float(np.abs(np.array(weights.sample(value.numpy())) - np.array(golden["sample"])).max())


@pytest.mark.parametrize("path", CASES)
@torch.inference_mode()
def test_outputs_and_features_equal_the_official_model(path: Path):
    golden = json.loads(path.read_text())
    model = build(golden)
    assert sum(p.numel() for p in model.parameters()) == golden["parameters"]
    features = {}
    modules = dict(model.named_modules())
    for name in golden["features"]:
        if module := modules.get(MODULES.get(name, name)):
            module.register_forward_hook(lambda module, args, out, name=name: features.__setitem__(name, out))
    images = torch.from_numpy(weights.image_for(golden["input"]["seed"], golden["input"]["shape"]))
    # A classifier's forward leaves out the patches of the last layers; the recordings have them.
    outputs = model(images) if golden["dense"] else model.forward_head(model.forward_features(images))
    named = dict(zip(golden["outputs"], outputs if golden["dense"] else [outputs], strict=True))
    for name, value in named.items():
        # Logits to 1e-5; maps, whose values reach tens, relative to their spread.
        tolerance = 1e-5 if name == "logits" else 2e-5 * golden["outputs"][name]["std"]
        assert largest_difference(arrange(value, golden["outputs"][name]["shape"]), golden["outputs"][name]) < tolerance
    assert len(features) >= min(4, len(golden["features"]))
    for name, value in features.items():
        value = value[0] if isinstance(value, tuple) else value  # CabViT's blocks give their digest as well
        value = arrange(value, golden["features"][name]["shape"])
        assert largest_difference(value, golden["features"][name]) < 2e-5 * golden["features"][name]["std"], name
