"""Every variant computes what its official model computes (tests/golden)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import transept
from tests.golden import weights
from tests.golden.make import fingerprint

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*/*.json"))
HEAVY = ("large", "medium", "m36", "m48", "s36")
CASES = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if any(size in path.stem for size in HEAVY) else [])
    for path in GOLDEN
]


def build(golden: dict, path: Path) -> torch.nn.Module:
    model = transept.create_model(golden["model"], features_only="dense" in path.stem)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items() if value.is_floating_point()}
    assert fingerprint(shapes) == golden["keys"], "the names or shapes of the official checkpoint differ"
    state = {key: torch.from_numpy(value) for key, value in weights.state_dict_for(shapes).items()}
    model.load_state_dict(state, strict=False)
    return model.eval()


def largest_difference(array: torch.Tensor, golden: dict) -> float:
    assert list(array.shape) == golden["shape"]
    return float(np.abs(np.array(weights.sample(array.numpy())) - np.array(golden["sample"])).max())


@pytest.mark.parametrize("path", CASES)
@torch.inference_mode()
def test_outputs_and_features_equal_the_official_model(path: Path):
    golden = json.loads(path.read_text())
    model = build(golden, path)
    assert sum(p.numel() for p in model.parameters()) == golden["parameters"]
    features = {}
    for name, module in model.named_modules():
        if name in golden["features"]:
            module.register_forward_hook(lambda module, args, out, name=name: features.__setitem__(name, out))
    outputs = model(torch.from_numpy(weights.image_for(golden["input"]["seed"], golden["input"]["shape"])))
    named = {f"level{i}": level for i, level in enumerate(outputs)} if "dense" in path.stem else {"logits": outputs}
    assert named.keys() == golden["outputs"].keys()
    for name, value in named.items():
        # Logits to 1e-5; maps, whose values reach tens, relative to their spread.
        tolerance = 1e-5 if name == "logits" else 2e-5 * golden["outputs"][name]["std"]
        assert largest_difference(value, golden["outputs"][name]) < tolerance, name
    assert len(features) >= 4
    for name, value in features.items():
        if value.ndim == 4 and len(golden["features"][name]["shape"]) == 3:
            value = value.flatten(2).transpose(1, 2)  # our stem gives maps
        elif value.ndim == 3 and len(golden["features"][name]["shape"]) == 4:
            shape = golden["features"][name]["shape"]
            value = value.expand(shape[0], -1, -1).transpose(1, 2).reshape(shape)  # our encoding gives tokens
        assert largest_difference(value, golden["features"][name]) < 2e-5 * golden["features"][name]["std"], name
