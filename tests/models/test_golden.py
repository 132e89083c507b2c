"""Every variant computes what its official model computes (tests/golden)."""

import json
from pathlib import Path

import pytest
import torch

from tests.golden import weights
from tests.golden.recorded import GOLDEN, arrange, build, largest_difference, options_of, shapes_of
from transept.models.registry import build_skeleton

# The smallest variant of every family and of every patch size; of the pyramids every size, padding and grouping that
# the official code treats in its own way. What is left differs from these in width and depth.
QUICK = (
    "bixt_ed256LS_l64_p16s8", "bixt_ti_cnv_l64_p16", "bixt_ti_l64_d13_p16", "bixt_ti_l64_p16", "cabvit_h_l1",
    "cabvit_p_l0", "cait_xxs24_224", "cat_small_dense_200x264", "cat_tiny", "cat_tiny_v2_candidate_b",
    "crossformer_pp_small_dense_adaptive_256x352", "crossformer_pp_small_linear_adaptive",
    "crossformer_small_dense_160x224", "crossformer_small_dense_256x352", "crossformer_small_dense_legacy_160x224",
    "crossformer_small_dense_legacy_segfpn_160x224", "crossformer_tiny_256_pad1", "crossvit_9_dagger_240",
    "crossvit_tiny_240-img120_classes10", "crossvit_tiny_240-resized300x200", "xcit_nano_12_p16", "xcit_nano_12_p8",
    "xcit_tiny_12_p16", "xcit_tiny_12_p16_dense_detection", "xcit_tiny_12_p16_dense_segmentation",
)  # fmt: skip
CASES = [pytest.param(p, id=p.stem, marks=[] if p.stem in QUICK else [pytest.mark.slow]) for p in GOLDEN]
MODULES = {"embed": "patch_embed", "pos_encoding": "fourier_pos_encode", "pre_logits": "fc_norm"}
MODULES |= {f"stage{i + 1}": f"layers.{i}" for i in range(4)}
"""Recorded names that are no module's."""
STREAMS = {"tokens": 0, "latents": 1}
"""What BiXT's blocks give, and where."""


def test_names_shapes_and_parameters_of_every_variant():
    recordings = [json.loads(path.read_text()) for path in GOLDEN if path.stem not in QUICK]
    for golden in {(golden["model"], golden["keys"]): golden for golden in recordings}.values():
        shapes_of(build_skeleton(golden["model"], features_only=golden["dense"], **options_of(golden)), golden)


@pytest.mark.parametrize("path", CASES)
@torch.inference_mode()
def test_outputs_and_features_equal_the_official_model(path: Path):
    golden = json.loads(path.read_text())
    model = build(golden)
    features = {}
    modules = dict(model.named_modules())
    for name in golden["features"]:
        block, _, stream = name.rpartition(".")
        if module := modules.get(MODULES.get(name, name)):
            module.register_forward_hook(lambda module, args, out, name=name: features.__setitem__(name, out))
        elif stream in STREAMS and (module := modules.get(block)):
            at = STREAMS[stream]
            module.register_forward_hook(lambda module, args, out, n=name, at=at: features.__setitem__(n, out[at]))
    images = torch.from_numpy(weights.image_for(golden["input"]["seed"], golden["input"]["shape"]))
    # A classifier's forward leaves out the patches of the last layers; the recordings have them.
    outputs = model(images) if golden["dense"] else model.forward_head(model.forward_features(images))
    named = dict(zip(golden["outputs"], outputs if golden["dense"] else [outputs], strict=True))
    for name, value in named.items():
        # Logits to 1e-5; CrossViT's to what rounding of coordinates in its bicubic resize may move, and maps, whose
        # values reach tens, relative to their spread.
        resized = golden["model"].startswith("crossvit")
        spread = golden["outputs"][name]["std"]
        tolerance = 5e-5 * spread if resized else 1e-5 if name == "logits" else 2e-5 * spread
        assert largest_difference(arrange(value, golden["outputs"][name]["shape"]), golden["outputs"][name]) < tolerance
    assert len(features) >= min(4, len(golden["features"]))
    for name, value in features.items():
        value = value[0] if isinstance(value, tuple) else value  # CabViT's blocks give their digest as well
        value = arrange(value, golden["features"][name]["shape"])
        assert largest_difference(value, golden["features"][name]) < 2e-5 * golden["features"][name]["std"], name
