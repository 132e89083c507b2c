"""The feature pyramid in all its uses."""

from collections import OrderedDict

import pytest
import torch
from torch.nn.functional import conv2d, relu
from torchvision.ops import FeaturePyramidNetwork

from transept.heads.fpn import FPN

CHANNELS = (6, 10, 14, 22)
SIZES = ((50, 66), (25, 33), (13, 17), (7, 9))  # none the double of the next


@pytest.fixture
def maps() -> list[torch.Tensor]:
    return [torch.randn(2, c, *size) for c, size in zip(CHANNELS, SIZES, strict=True)]


def test_equals_torchvision_on_odd_sizes(maps):
    neck, theirs = FPN(CHANNELS, 8), FeaturePyramidNetwork(list(CHANNELS), 8)
    names = {"lateral_convs.{}.conv": "inner_blocks.{}.0", "fpn_convs.{}.conv": "layer_blocks.{}.0"}
    state = {
        f"{their.format(i)}.{part}": neck.state_dict()[f"{our.format(i)}.{part}"]
        for our, their in names.items()
        for i in range(4)
        for part in ("weight", "bias")
    }
    theirs.load_state_dict(state)
    expected = theirs(OrderedDict(enumerate(maps))).values()
    for ours, other in zip(neck(maps), expected, strict=True):
        torch.testing.assert_close(ours, other)


@pytest.mark.parametrize("start_level", [0, 1, 2])
def test_the_levels_before_the_first_are_ignored(maps, start_level: int):
    neck = FPN(CHANNELS, 8, 4 - start_level, start_level=start_level)
    out = neck(maps)
    for level in maps[:start_level]:
        level.fill_(float("nan"))
    assert [tuple(level.shape) for level in out] == [(2, 8, *size) for size in SIZES[start_level:]]
    assert all(torch.equal(a, b) for a, b in zip(neck(maps), out, strict=True))


def test_pooled_level(maps):
    *finer, last, pooled = FPN(CHANNELS, 8, 5, extra="pool")(maps)
    assert len(finer) == 3
    assert torch.equal(pooled, last[..., ::2, ::2])


@pytest.mark.parametrize(("extra", "rectified"), [("on_input", False), ("on_output", False), ("on_output", True)])
def test_further_convolutions(maps, extra: str, rectified: bool):
    neck = FPN(CHANNELS, 8, 5, start_level=1, extra=extra, relu_before_extra=rectified)
    torch.nn.init.normal_(neck.fpn_convs[3].conv.bias)
    p3, p4, p5, p6, p7 = neck(maps)
    assert [tuple(level.shape[-2:]) for level in (p3, p4, p5, p6, p7)] == [(25, 33), (13, 17), (7, 9), (4, 5), (2, 3)]
    convs = [neck.fpn_convs[i].conv for i in (3, 4)]
    source = maps[-1] if extra == "on_input" else p5
    torch.testing.assert_close(p6, conv2d(source, convs[0].weight, convs[0].bias, stride=2, padding=1))
    source = relu(p6) if rectified else p6
    torch.testing.assert_close(p7, conv2d(source, convs[1].weight, convs[1].bias, stride=2, padding=1))
    assert p6.min() < 0


def test_initial_values():
    neck = FPN((96, 192), 256, 3, extra="on_input")
    for module in neck.modules():
        if isinstance(module, torch.nn.Conv2d):
            fan = module.kernel_size[0] ** 2 * (module.in_channels + module.out_channels)
            bound = (6 / fan) ** 0.5
            assert 0.98 * bound < module.weight.abs().max() <= bound
            assert not module.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_outs=5), "num_outs=5 with extra='none' and 4 levels"),
        (dict(num_outs=4, extra="pool"), "num_outs=4 with extra='pool' and 4 levels"),
        (dict(num_outs=3), "num_outs=3"),
        (dict(num_outs=3, start_level=2), "num_outs=3 with extra='none' and 2 levels from start_level=2"),
        (dict(start_level=4), "start_level=4 is none of the 4 levels"),
        (dict(num_outs=5, extra="on_lateral"), "extra='on_lateral'; use"),
    ],
)
def test_levels_that_do_not_add_up(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        FPN(CHANNELS, 8, **options)
