"""Every form in which a model runs, beside the recorded outputs of its official model."""

import json
from pathlib import Path

import pytest
import torch

import transept
from tests.golden import weights
from tests.golden.compare import GOLDEN, RECORDED, arrange, build, largest_difference, listed

TOLERANCES = {
    "channels-last": 2e-5,
    "compiled": 2e-5,
    "fused-compiled": 2e-5,
    "bfloat16": 0.1,  # 8 bits of mantissa, over up to 24 blocks
    "fused-bfloat16": 0.1,
    "autocast": 0.1,
}
"""Largest difference of an output, in its recorded standard deviations."""
QUICK = ("channels-last", "fused-bfloat16")


def cases() -> list:
    found = []
    for path in GOLDEN:
        if path.stem in RECORDED:
            for form in TOLERANCES:
                quick = form in QUICK and path.stem == "xcit_nano_12_p16"
                found.append(
                    pytest.param(path, form, id=f"{path.stem}-{form}", marks=[] if quick else pytest.mark.slow)
                )
    return found


@pytest.mark.parametrize(("path", "form"), cases())
@torch.no_grad()
def test_outputs_equal_the_official_model(path: Path, form: str):
    golden = json.loads(path.read_text())
    model = build(golden)
    image = torch.from_numpy(weights.image_for(golden["input"]["seed"], golden["input"]["shape"]))
    if "fused" in form:
        model = transept.fuse(model)
    if "compiled" in form:
        torch.compiler.reset()
        model = torch.compile(model, fullgraph=True)
    if "bfloat16" in form:
        model, image = model.bfloat16(), image.bfloat16()
    if form == "channels-last":
        model, image = model.to(memory_format=torch.channels_last), image.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=form == "autocast"):
        outputs = listed(model(image))
    for value, recorded in zip(outputs, golden["outputs"].values(), strict=True):
        found = largest_difference(arrange(value.float(), recorded["shape"]), recorded)
        assert found < TOLERANCES[form] * recorded["std"], f"{found / recorded['std']:.2g} standard deviations"
