"""Models that are built for a file's weights: nothing is drawn, and all that the file lacks is as ever."""

import pytest
import torch
from torch import nn

import transept
from transept.models.undrawn import UndrawnWeights

MODELS = (
    "cat_tiny",
    "cabvit_h_l1",
    "cabvit_p_l0",
    "crossformer_tiny",
    "xcit_nano_12_p16_224",
    "cait_xxs24_224",
    "crossvit_tiny_240",
    "bixt_ti_l64_p16",
)


def build(name: str) -> nn.Module:
    if "/" not in name:
        return transept.create_model(name)
    method, _, backbone = name.partition("/")
    make = transept.create_segmenter if method in ("semantic_fpn", "upernet") else transept.create_detector
    return make(method, backbone=backbone, num_classes=2)


@pytest.mark.parametrize("name", [*MODELS, "mask_rcnn/xcit_nano_12_p16", "upernet/xcit_nano_12_p16"])
def test_what_is_built_for_a_file_equals_the_model_once_its_weights_are_loaded(name: str):
    drawn = build(name).eval()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with UndrawnWeights():
        built = build(name).eval()
    assert torch.equal(torch.get_rng_state(), before)
    built.load_state_dict(drawn.state_dict())
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = (dict(getattr(model, kind)()) for model in (built, drawn))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_only_draws_are_left_out():
    with UndrawnWeights():
        norm, counts = nn.BatchNorm2d(3), nn.init.constant_(torch.empty(2), 0.5)
        shuffled = torch.randperm(50)
        zeros = nn.init.normal_(nn.Parameter(torch.empty(2))).detach().zero_().add_(3)
    assert torch.equal(norm.weight, torch.ones(3))
    assert counts.tolist() == [0.5, 0.5]
    assert zeros.tolist() == [3, 3]
    assert sorted(shuffled.tolist()) == list(range(50))
    weights = nn.init.uniform_(torch.zeros(9))
    assert weights.count_nonzero() > 0


@pytest.mark.parametrize("bounds", [(-2, 2), (0.5, 3), (3, 4)])
def test_a_truncated_distribution_ends(bounds: tuple[float, float]):
    """Of any memory, and where it leaves zeros out."""
    for content in (torch.nan, torch.inf, 1e9):
        with UndrawnWeights():
            weight = nn.init.trunc_normal_(nn.Parameter(torch.full((99,), content)), a=bounds[0], b=bounds[1])
        assert ((weight >= bounds[0]) & (weight <= bounds[1])).all() or not weight.any()
