"""Every variant computes what its official model computes (tests/golden)."""

import json
from pathlib import Path

import pytest
import torch

from tests.golden import weights
from tests.golden.compare import GOLDEN, arrange, build, largest_difference

HEAVY = ("large", "medium", "huge", "m36", "m48", "s36", "pp_base", "cabvit_h_l3")
CASES = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if any(size in path.stem for size in HEAVY) else [])
    for path in GOLDEN
]
MODULES = {"embed": "patch_embed"} | {f"stage{i + 1}": f"layers.{i}" for i in range(4)}
"""Recorded names that are no module's."""


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
