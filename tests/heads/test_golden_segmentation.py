"""Necks and heads compute what those of the official segmenters compute, under the same names (tests/golden)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import transept
from tests.golden import weights
from tests.golden.make import REFERENCE, SEGMENTERS, fingerprint
from transept.models.registry import skeletons
from transept.ops.interpolation import resize_map
from transept.tasks.segment import Segmenter

GOLDEN = Path(__file__).parents[1] / "golden" / "dense"
NAMES = [name for name, _ in SEGMENTERS]


def read(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def build(golden: dict) -> Segmenter:
    with skeletons():
        return transept.create_segmenter(golden["method"], backbone=golden["backbone"]).eval()


def shapes_of(module: torch.nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_and_parameters_are_those_of_the_official_checkpoint(name: str):
    golden = read(name)
    segmenter = build(golden)
    assert fingerprint(shapes_of(segmenter)) == golden["keys"]
    for part, parameters in golden["parameters"].items():
        assert sum(p.numel() for p in segmenter.get_submodule(part).parameters()) == parameters, part
    assert sum(p.numel() for p in segmenter.parameters()) == sum(golden["parameters"].values())


@pytest.mark.parametrize("name", NAMES)
def test_names_one_by_one(name: str):
    table = REFERENCE / "dense_keys" / f"{name}.json"
    if not table.exists():
        pytest.skip(f"needs the recorded names at {table}")
    recorded = json.loads(table.read_text())
    ours = shapes_of(build(read(name)))
    derived = {key for key in recorded["integer_buffers"] if key.endswith("relative_position_index")}
    assert recorded["shapes"].keys() - ours.keys() == derived
    for key, shape in ours.items():
        assert recorded["shapes"][key] == shape, key


# One of each method, at the sizes that do not divide; XCiT's heads differ in the widths of the maps alone.
QUICK = (("semantic_fpn", "odd"), ("upernet", "odd"))
CASES = [
    pytest.param(name, case, marks=[] if (name, case) in QUICK else [pytest.mark.slow])
    for name in NAMES
    if read(name)["cases"]
    for case in ("even", "odd")
]


@pytest.mark.parametrize(("name", "case"), CASES)
@torch.inference_mode()
def test_outputs_equal_the_official_heads(name: str, case: str):
    golden = read(name)
    segmenter = build(golden)
    del segmenter.backbone
    segmenter = segmenter.to_empty(device="cpu")
    shapes = {key: list(value.shape) for key, value in segmenter.state_dict().items() if value.is_floating_point()}
    assert fingerprint(shapes) == golden["head_keys"]
    state = {key: torch.from_numpy(value) for key, value in weights.state_dict_for(shapes).items()}
    segmenter.load_state_dict(state, strict=False)
    recorded = golden["cases"][case]
    maps = [torch.from_numpy(weights.image_for(given["seed"], given["shape"])) for given in recorded["inputs"]]
    segmenter.add_module("backbone", torch.nn.Identity())
    necks = segmenter.neck(maps)
    outputs = {"decode_head": segmenter.decode_head(necks)}
    if segmenter.auxiliary_head is not None:
        outputs["auxiliary_head"] = segmenter.auxiliary_head(maps)
    else:
        outputs |= {f"neck.{i}": level for i, level in enumerate(necks)}
    height, width = recorded["image_size"]
    outputs["logits_at_image_size"] = resize_map(outputs["decode_head"], (height, width))
    assert outputs.keys() == recorded["outputs"].keys()
    for key, value in outputs.items():
        expected = recorded["outputs"][key]
        assert list(value.shape) == expected["shape"], key
        error = np.abs(np.array(weights.sample(value.numpy())) - np.array(expected["sample"])).max()
        assert error < 1e-4 * expected["std"], (key, error / expected["std"])

    labels = segmenter.decode(outputs["logits_at_image_size"]).labels[0]
    histogram = torch.bincount(labels.flatten(), minlength=150)
    # Near ties may fall the other way on another machine.
    assert (histogram - torch.tensor(recorded["argmax_histogram_first_image"])).abs().sum() <= 20
