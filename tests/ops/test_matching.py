"""Assigners and the sampler on small cases worked out by hand. Recorded assignments are in tests/heads."""

import pytest
import torch

from transept.ops.anchors import Anchors
from transept.ops.matching import ATSS, BACKGROUND, IGNORED, InsideBox, MaxIoU, RandomSampler

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6]])
PRIORS = torch.tensor(
    [
        [0.0, 0, 10, 9],  # IoU 0.9 with the first, 0.67 with the second
        [0, 0, 10, 4.5],  # 0.45 and 0.75
        [0, 6, 10, 10],  # 0.4 and 0
        [0, 7, 10, 10],  # 0.3 and 0
        [50, 50, 60, 60],  # none
    ]
)


def test_thresholds():
    matched = MaxIoU(positive=0.7, negative=0.4)(PRIORS, BOXES)
    assert matched.tolist() == [0, 1, IGNORED, BACKGROUND, BACKGROUND]
    assert MaxIoU(positive=0.8, negative=0.8)(PRIORS, BOXES).tolist() == [0] + [BACKGROUND] * 4


def test_low_quality_matches():
    def match(low_quality: float | None, priors: torch.Tensor = PRIORS) -> list[int]:
        return MaxIoU(positive=0.8, negative=0.4, low_quality=low_quality)(priors, BOXES).tolist()

    assert match(None) == [0, IGNORED, IGNORED, BACKGROUND, BACKGROUND]
    assert match(0.7) == [0, 1, IGNORED, BACKGROUND, BACKGROUND]
    assert match(0.76) == [0, IGNORED, IGNORED, BACKGROUND, BACKGROUND]
    # Only one prior touches both boxes: the later box takes it, though the earlier overlaps it more.
    assert match(0.0, PRIORS[[0, 4]]) == [1, BACKGROUND]
    # All that reach a box's best overlap are its own; what none touches stays background.
    assert match(0.0, PRIORS[[1, 1, 4]]) == [1, 1, BACKGROUND]
    assert match(0.0, PRIORS[[4, 4]]) == [BACKGROUND, BACKGROUND]


def test_atss_by_hand():
    # 3 x 3 anchors of 16 pixels, 8 apart, and one of 32: a box on the middle anchor has 4 + 1 candidates.
    levels = Anchors(strides=(8, 16), scales=(2,), ratios=(1,))([(3, 3), (1, 1)])
    box = torch.tensor([[0.5, 0.5, 15.5, 15.5]])
    matched = ATSS(candidates=5)(levels, box)
    # IoU: middle 225/256, its four neighbours less than half; mean + deviation is above those.
    assert matched.tolist() == [BACKGROUND] * 4 + [0] + [BACKGROUND] * 5


def test_atss_gives_an_anchor_claimed_twice_to_the_larger_overlap():
    levels = [torch.tensor([[0.0, 0, 16, 16], [100, 100, 116, 116], [200, 0, 216, 16]])]
    near, nearer = [0.0, 0, 16, 14], [0.0, 0, 16, 15]
    for order in ([near, nearer], [nearer, near]):
        matched = ATSS(candidates=3)(levels, torch.tensor(order))
        assert matched.tolist() == [order.index(nearer), BACKGROUND, BACKGROUND]


def test_atss_wants_the_centre_inside():
    levels = [torch.tensor([[0.0, 0, 16, 16], [100, 100, 116, 116], [200, 0, 216, 16]])]
    assert ATSS()(levels, torch.tensor([[8.1, 0, 24, 16]])).tolist() == [BACKGROUND] * 3
    assert ATSS()(levels, torch.tensor([[7.9, 0, 24, 16]])).tolist() == [0, BACKGROUND, BACKGROUND]


def test_points_inside_boxes():
    levels = [torch.tensor([[5.0, 5.0], [0.0, 5.0]]), torch.tensor([[5.0, 5.0], [-1.0, 5.0]])]
    matcher = InsideBox(ranges=((-1, 64), (64, 128)))

    def match(*boxes: tuple[float, float, float, float]) -> list[int]:
        return matcher(levels, torch.tensor(boxes, dtype=torch.float32)).tolist()

    none = BACKGROUND
    assert match((0, 0, 10, 10)) == [0, none, none, none]  # a point on a side is outside
    assert match((-10, 0, 69, 10)) == [0, none, 0, 0]  # 64 pixels to the right: both levels' ranges end there
    assert match((-10, 0, 69.5, 10)) == [none, none, 0, 0]
    assert match((-50, 0, 20, 10), (-50, 0, 20, 9), (-50, 0, 20, 9)) == [1, 1, none, none]  # the smallest, the first
    assert match((-50, 0, 300, 10)) == [none] * 4


@pytest.mark.parametrize("matcher", [ATSS(), InsideBox(ranges=((-1, 64),))])
def test_no_boxes_and_no_priors(matcher):
    priors = PRIORS if isinstance(matcher, ATSS) else PRIORS[:, :2]
    assert matcher([priors], torch.zeros(0, 4)).tolist() == [BACKGROUND] * 5
    assert matcher([priors[:0]], BOXES).tolist() == []
    plain = MaxIoU(positive=0.5, negative=0.5, low_quality=0.0)
    assert plain(PRIORS, torch.zeros(0, 4)).tolist() == [BACKGROUND] * 5
    assert plain(PRIORS[:0], BOXES).tolist() == []


def test_sampler_fills_up_with_background():
    assignment = torch.tensor([0, 3, BACKGROUND, IGNORED, 1, BACKGROUND, BACKGROUND, 2])
    positive, negative = RandomSampler(number=6, positive_fraction=0.5)(assignment)
    assert len(positive) == len(negative) == 3
    assert (assignment[positive] >= 0).all()
    assert (assignment[negative] == BACKGROUND).all()
    assert len(positive.unique()) == 3
    positive, negative = RandomSampler(number=5, positive_fraction=0.2)(assignment)
    assert (len(positive), len(negative)) == (1, 3)
    positive, negative = RandomSampler(number=4, positive_fraction=0.5)(assignment[2:4])
    assert (len(positive), len(negative)) == (0, 1)


def test_sampler_is_uniform():
    assignment = torch.zeros(10, dtype=torch.long)
    draws = torch.stack([RandomSampler(number=4, positive_fraction=0.5)(assignment)[0] for _ in range(2000)])
    share = torch.bincount(draws.flatten(), minlength=10) / 2000
    assert (share - 0.2).abs().max() < 0.04
