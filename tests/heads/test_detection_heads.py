"""The parts of detection heads, each alone, on small cases. Whole heads are compared with recordings elsewhere."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.ops import roi_align

from transept.heads.atss import ATSSHead
from transept.heads.cascade_rcnn import CascadeRCNNHead, next_proposals
from transept.heads.dense import Selection, flatten_map, focal_loss
from transept.heads.fcos import FCOSHead
from transept.heads.instances import Detections, Target
from transept.heads.mask_rcnn import MaskRCNNHead
from transept.heads.roi import (
    BoxDecoder,
    BoxHead,
    BoxLoss,
    BoxOutputs,
    RoIFeatures,
    Samples,
    add_masks,
    mask_loss,
    refine_rois,
    roi_levels,
    sample_rois,
    to_rois,
)
from transept.heads.rpn import Proposals, RPNLoss, RPNOutputs
from transept.ops.anchors import Anchors
from transept.ops.boxes import Std, encode_deltas
from transept.ops.matching import BACKGROUND, IGNORED, MaxIoU, RandomSampler

STD: Std = (0.1, 0.1, 0.2, 0.2)


def logit(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).logit()


# Single stage


def test_flattened_maps_are_ordered_as_anchors_are():
    x = torch.arange(2.0 * 6 * 3 * 4).reshape(2, 6, 3, 4)
    flat = flatten_map(x, 2)
    assert flat.shape == (2, 3 * 4 * 3, 2)
    row, column, anchor = 1, 2, 2
    assert flat[1, (row * 4 + column) * 3 + anchor].tolist() == x[1, 4:6, row, column].tolist()


def test_focal_loss_by_hand():
    logits = logit(0.9, 0.2, 0.3, 0.6, 0.5, 0.5).reshape(3, 2)
    loss = focal_loss(logits, torch.tensor([1, BACKGROUND, IGNORED]), torch.tensor([1, 0]))
    positive = 0.25 * (0.1**2 * -math.log(0.9))
    negative = sum(0.75 * p**2 * -math.log(1 - p) for p in (0.2, 0.3, 0.6))
    assert float(loss) == pytest.approx(positive + negative, rel=1e-4)


BOXES = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 90, 90]]])


def test_selection_takes_the_best_pairs_of_prior_and_class():
    logits = logit(0.9, 0.04, 0.5, 0.6, 0.3, 0.2).reshape(1, 3, 2)
    (found,) = Selection()([logits], [BOXES], [(80, 85)])
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6, 0.3, 0.2]))
    assert found.labels.tolist() == [0, 1, 0, 1]  # 0.5 is suppressed by 0.9, 0.04 too low
    assert found.boxes[2].tolist() == [50, 50, 85, 80]
    (found,) = Selection(per_level=2)([logits], [BOXES], [(80, 85)])
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6]))
    (found,) = Selection(per_level=1)([logits, logits - 1], [BOXES, BOXES + 40], [(200, 200)])
    assert len(found.scores) == 2
    (found,) = Selection(max_detections=3, iou_threshold=0.95)([logits], [BOXES], [(80, 85)])
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6, 0.5]))


def test_quality_counts_after_threshold_and_choice():
    logits, quality = logit(0.9, 0.06, 0.04)[None, :, None], logit(0.1, 0.5, 0.99)[None, :, None]
    (found,) = Selection()([logits], [BOXES], [(100, 100)], quality=[quality])
    # The first is chosen, falls behind the threshold, and stays; the third was below it and is out. The first two
    # overlap, and the first still is the better one.
    torch.testing.assert_close(found.scores, torch.tensor([0.09]))
    assert found.boxes.tolist() == [[0, 0, 10, 10]]


def test_centreness_branches_leave_different_towers():
    maps = [torch.randn(1, 32, 5, 6)] * 2
    for head, tower, branch in (
        (FCOSHead(32, 4, channels=32, num_levels=2), "cls_convs", "centerness"),
        (ATSSHead(32, 4, channels=32, num_levels=2), "reg_convs", "centerness"),
    ):
        getattr(head(maps), branch)[0].sum().backward()
        reached = {name.split(".")[0] for name, p in head.named_parameters() if p.grad is not None}
        assert tower in reached
        assert {"cls_convs": "reg_convs", "reg_convs": "cls_convs"}[tower] not in reached


def test_each_level_has_its_factor():
    x = torch.randn(1, 32, 5, 6)
    for head, part in (
        (FCOSHead(32, 4, channels=32, num_levels=2), 1),
        (ATSSHead(32, 4, channels=32, num_levels=2), 1),
    ):
        head.scales[1].scale.data.fill_(3.0)
        one, three = head([x, x])[part]
        expected = one**3 if isinstance(head, FCOSHead) else one * 3
        torch.testing.assert_close(three, expected)
        assert (one.min() > 0) == isinstance(head, FCOSHead)


# Region proposals

GRID = Anchors(strides=(8, 16), scales=(1,), ratios=(1,))


def test_proposals_are_suppressed_within_their_level_only():
    # Each level's first anchor, moved to the same box.
    box = torch.tensor([2.0, 2, 18, 18])
    maps = []
    for anchors, (h, w) in zip(GRID([(2, 2), (1, 1)]), [(2, 2), (1, 1)], strict=True):
        deltas = encode_deltas(anchors, box.expand(len(anchors), 4), (1.0, 1.0, 1.0, 1.0))
        maps.append(deltas.reshape(1, h, w, 4).permute(0, 3, 1, 2))
    scores = [logit(0.1, 0.9, 0.3, 0.2).reshape(1, 1, 2, 2), logit(0.4).reshape(1, 1, 1, 1)]
    (found,) = Proposals(anchors=GRID)(RPNOutputs(scores, maps), [(64, 64)])
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.4]))
    torch.testing.assert_close(found.boxes, box.expand(2, 4))
    (found,) = Proposals(anchors=GRID, kept=1)(RPNOutputs(scores, maps), [(64, 64)])
    torch.testing.assert_close(found.scores, torch.tensor([0.9]))


def test_proposals_without_extent_are_dropped():
    deltas = torch.zeros(1, 4, 2, 2)
    outputs = RPNOutputs([torch.zeros(1, 1, 2, 2)], [deltas])
    one_level = Anchors(strides=(8,), scales=(1,), ratios=(1,))
    # Anchors reach 4 pixels around (0, 0), (8, 0), (0, 8), (8, 8): the image ends before those on the right.
    (found,) = Proposals(anchors=one_level)(outputs, [(20, 4)])
    assert sorted(found.boxes.tolist()) == [[0, 0, 4, 4], [0, 4, 4, 12]]


def test_only_the_best_of_a_level_become_proposals():
    scores = torch.rand(2, 1, 6, 7)
    outputs = RPNOutputs([scores], [torch.zeros(2, 4, 6, 7)])
    one_level = Anchors(strides=(8,), scales=(1,), ratios=(1,))
    for image, found in zip(scores, Proposals(anchors=one_level, per_level=5)(outputs, [(64, 64)] * 2), strict=True):
        torch.testing.assert_close(found.scores, image.flatten().topk(5).values.sigmoid())


def test_rpn_loss_inside_the_image():
    sizes = [(4, 4), (2, 2)]
    anchors = torch.cat(GRID(sizes))
    target = Target(torch.tensor([[4.0, 4, 12, 12]]), torch.tensor([0]), (32, 32))
    outside, inside = (RPNLoss(anchors=GRID, inside=flag).match(anchors, sizes, target) for flag in (False, True))
    assert not (outside == IGNORED).any()
    # Row and column 0 of both levels hang over the border.
    assert int((inside == IGNORED).sum()) == 7 + 3
    assert inside[5] == outside[5] == 0


def test_rpn_loss_by_hand():
    sizes = [(4, 4), (2, 2)]
    target = Target(torch.tensor([[4.0, 4, 12, 12]]), torch.tensor([0]), (32, 32))
    outputs = RPNOutputs([torch.zeros(1, 1, h, w) for h, w in sizes], [torch.full((1, 4, h, w), 0.3) for h, w in sizes])
    losses = RPNLoss(anchors=GRID)(outputs, [target])
    assert float(losses["loss_rpn_cls"]) == pytest.approx(math.log(2))
    # 20 anchors, of which the sixth is the box itself: deltas are zero.
    assert float(losses["loss_rpn_bbox"]) == pytest.approx(4 * 0.3 / 20)
    losses = RPNLoss(anchors=GRID, beta=1.0)(outputs, [target])
    assert float(losses["loss_rpn_bbox"]) == pytest.approx(4 * 0.5 * 0.3**2 / 20)
    losses = RPNLoss(anchors=GRID, sampler=RandomSampler(number=4, positive_fraction=0.5))(outputs, [target])
    assert float(losses["loss_rpn_bbox"]) == pytest.approx(4 * 0.3 / 4)


# Regions


def test_levels_of_regions():
    sides = torch.tensor([1.0, 111.9, 112, 223.9, 224, 447.9, 448, 2000])
    rois = torch.stack((torch.zeros(8), torch.zeros(8), torch.zeros(8), sides, sides), dim=1)
    assert roi_levels(rois).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert roi_levels(rois, num_levels=2).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


def test_features_keep_the_order_of_regions():
    maps = [torch.randn(2, 5, 128 // 2**i, 160 // 2**i) for i in range(5)]
    boxes = [torch.tensor([[0.0, 0, 500, 500], [5, 5, 40, 60], [10, 20, 240, 250]]), torch.tensor([[3.0, 4, 130, 140]])]
    rois = to_rois(boxes)
    assert rois[:, 0].tolist() == [0, 0, 0, 1]
    features = RoIFeatures(size=3)(maps, rois)
    for roi, level, feature in zip(rois, [3, 0, 2, 1], features, strict=True):
        alone = roi_align(maps[level], roi[None], 3, 1 / (4 * 2**level), sampling_ratio=0, aligned=True)[0]
        torch.testing.assert_close(feature, alone)
    assert RoIFeatures(size=3)(maps, rois[:0]).shape == (0, 5, 3, 3)


def test_box_heads():
    x = torch.randn(6, 8, 7, 7)
    for options, outputs in (
        (dict(), (6, 20)),
        (dict(class_agnostic=True), (6, 4)),
        (dict(num_convs=2, num_fcs=1), (6, 20)),
    ):
        head = BoxHead(8, 5, hidden=16, **options)
        logits, deltas = head(x)
        assert (logits.shape, deltas.shape) == ((6, 6), outputs)
        assert len(head.shared_convs) == options.get("num_convs", 0)
    assert head.eval()(x[:0]).logits.shape == (0, 6)


PROPOSALS = torch.tensor([[0.0, 0, 10, 6], [0, 0, 10, 8.5], [40, 40, 50, 50]])
TARGET = Target(torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 49]]), torch.tensor([2, 0]), (64, 64))


def test_truth_is_added_after_matching():
    everything = RandomSampler(number=100, positive_fraction=1.0)
    matcher = MaxIoU(positive=0.7, negative=0.7, low_quality=0.5)
    samples = sample_rois([PROPOSALS], [TARGET], matcher, everything, num_classes=3)
    order = samples.rois[:, 1:].sum(dim=1).argsort()
    rows = [
        (row.rois.tolist()[1:], int(row.labels), int(row.matched), bool(row.truth))
        for row in (Samples(*(part[i] for part in samples)) for i in order)
    ]
    assert rows == [
        ([0, 0, 10, 6], 3, BACKGROUND, False),
        ([0, 0, 10, 8.5], 2, 0, False),
        ([0, 0, 10, 10], 2, 0, True),
        ([40, 40, 50, 49], 0, 1, True),
        ([40, 40, 50, 50], 0, 1, False),
    ]
    assert torch.equal(samples.boxes[samples.labels == 2], TARGET.boxes[:1].expand(2, 4))
    # Low-quality matches are those among the proposals: had the truth been there, it would have been its own best.
    samples = sample_rois([PROPOSALS[:1]], [TARGET], matcher, everything, num_classes=3)
    assert samples.labels[~samples.truth].tolist() == [2]


def test_at_most_a_share_is_positive():
    sampler = RandomSampler(number=4, positive_fraction=0.25)
    samples = sample_rois([PROPOSALS] * 2, [TARGET] * 2, MaxIoU(positive=0.7, negative=0.7), sampler, num_classes=3)
    for image in range(2):
        assert int((samples.matched[samples.rois[:, 0] == image] >= 0).sum()) == 1


def some_samples() -> Samples:
    rois = to_rois([PROPOSALS])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 0, 0]])
    labels, matched = torch.tensor([2, 1, 3]), torch.tensor([0, 0, BACKGROUND])
    return Samples(rois, labels, matched, boxes, torch.tensor([False, True, False]))


def test_box_loss_reads_the_deltas_of_the_class():
    samples = some_samples()
    deltas = torch.full((3, 3, 4), 100.0)
    wanted = encode_deltas(PROPOSALS, samples.boxes, STD)
    deltas[0, 2], deltas[1, 1] = wanted[0] + 0.5, wanted[1] + 0.25
    outputs = BoxOutputs(torch.randn(3, 4), deltas.flatten(1))
    losses = BoxLoss()(outputs, samples)
    assert float(losses["loss_bbox"]) == pytest.approx(4 * 0.75 / 3, rel=1e-5)
    assert float(losses["loss_cls"]) == pytest.approx(float(cross_entropy(outputs.logits, samples.labels)), rel=1e-5)
    smooth = BoxLoss(distance="smooth_l1")(outputs, samples)
    assert float(smooth["loss_bbox"]) == pytest.approx(4 * 0.5 * (0.5**2 + 0.25**2) / 3, rel=1e-5)
    agnostic = BoxLoss()(BoxOutputs(outputs.logits, torch.stack((wanted[0], wanted[1] + 1, wanted[2]))), samples)
    assert float(agnostic["loss_bbox"]) == pytest.approx(4 / 3, rel=1e-5)


def test_giou_loss_is_of_decoded_boxes():
    samples = some_samples()
    outputs = BoxOutputs(torch.randn(3, 4), torch.zeros(3, 4))
    losses = BoxLoss(distance="giou")(outputs, samples)
    # The proposals are the boxes: 10 x 6 and 10 x 8.5 inside 10 x 10.
    assert float(losses["loss_bbox"]) == pytest.approx(10 * (0.4 + 0.15) / 3, rel=1e-4)


def test_mask_loss_is_of_the_true_class():
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[1, 30:45, 30:60] = True  # the upper half of the region, and around it
    target = TARGET._replace(masks=masks)
    rois = to_rois([torch.tensor([[40.0, 40, 50, 50]])])
    samples = Samples(rois, torch.tensor([0]), torch.tensor([1]), rois[:, 1:], torch.tensor([False]))
    logits = torch.zeros(1, 3, 28, 28)
    logits[0, 0, :14], logits[0, 0, 14:] = 20.0, -20.0
    assert float(mask_loss(logits, samples, [target])) == pytest.approx(0, abs=1e-6)
    assert float(mask_loss(logits.flip(1), samples, [target])) == pytest.approx(math.log(2))
    nothing = Samples(*(part[:0] for part in samples))
    assert float(mask_loss(logits[:0], nothing, [target])) == 0


def test_refinement_takes_the_best_class_or_the_true_one():
    rois = to_rois([torch.tensor([[10.0, 10, 30, 30]])]).repeat(3, 1)
    logits = torch.tensor([[0.0, 1, 9]]).repeat(3, 1)  # classes 0, 1 and the background
    deltas = torch.zeros(3, 2, 4)
    deltas[:, 1, 0] = 1.0  # class 1: 0.1 of the width to the right
    deltas[:, 0, 1] = 10.0  # class 0: the height down
    outputs, sizes = BoxOutputs(logits, deltas.flatten(1)), torch.tensor([[35.0, 40.0]])
    moved = [0.0, 12, 10, 32, 30]
    assert refine_rois(rois, outputs, STD, sizes).tolist() == [moved] * 3
    labels = torch.tensor([0, 1, 2])
    assert refine_rois(rois, outputs, STD, sizes, labels).tolist() == [[0, 10, 30, 30, 35], moved, moved]
    samples = Samples(rois, labels, labels, rois[:, 1:], torch.tensor([False, True, False]))
    (left,) = next_proposals(samples, outputs, STD, sizes)
    assert left.tolist() == [[10, 30, 30, 35], moved[1:]]


def test_box_decoder_keeps_images_and_classes_apart():
    rois = to_rois([torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]]), torch.tensor([[0.0, 0, 10, 10]])])
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.45, 0.05], [0.04, 0.16, 0.8]])
    found = BoxDecoder()(rois, BoxOutputs(scores.log(), torch.zeros(3, 8)), [(64, 64), (5, 64)])
    assert [image.labels.tolist() for image in found] == [[0, 1], [1]]
    torch.testing.assert_close(found[0].scores, torch.tensor([0.6, 0.45]))
    assert found[0].boxes.tolist() == [[0, 0, 10, 10], [0, 0, 10, 9]]
    assert found[1].boxes.tolist() == [[0, 0, 10, 5]]
    agnostic = BoxDecoder()(rois, BoxOutputs(scores.log(), torch.zeros(3, 4)), [(64, 64), (5, 64)])
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(agnostic, found, strict=True))


def test_regions_without_extent():
    """Proposals without extent find nothing; a region that a stage moved out of its image still has its score."""
    rois = to_rois([torch.tensor([[0.0, 0, 0, 0], [40, 40, 60, 60]])])
    assert rois[:, 0].tolist() == [-1, 0]
    maps = [torch.randn(1, 5, 16 // 2**i, 16 // 2**i) for i in range(4)]
    assert not RoIFeatures(size=3)(maps, rois)[0].any()
    sizes = torch.tensor([[64.0, 64]])
    outputs = BoxOutputs(torch.tensor([[2.0, 0]] * 2), torch.tensor([[40.0, 0, 0, 0]] * 2))
    moved = refine_rois(rois, outputs, STD, sizes)
    assert moved.tolist() == [[-1, 0, 0, 0, 0], [0, 64, 40, 64, 60]]
    (found,) = BoxDecoder()(moved, BoxOutputs(outputs.logits, torch.zeros(2, 4)), sizes)
    assert found.boxes.tolist() == [[64, 40, 64, 60]]


@torch.no_grad()
def test_masks_are_read_where_the_boxes_were_and_averaged():
    head = CascadeRCNNHead(8, 3, with_masks=True, hidden=16, mask_channels=8)
    maps = [torch.randn(1, 8, 32 // 2**i, 32 // 2**i) for i in range(4)]
    boxes = torch.tensor([[4.0, 8, 60, 100], [20, 20, 50, 50]])
    labels = torch.tensor([2, 0])
    # The original is half as high and a quarter as wide as the resized image.
    factors = torch.tensor([[[4.0, 2, 4, 2]]])
    found = [Detections(boxes / factors[0], torch.ones(2), labels)]
    (masked,) = add_masks(head.mask_heads, maps, found, factors)
    expected = torch.stack([head.masks(i, maps, to_rois([boxes])).sigmoid() for i in range(3)]).mean(dim=0)
    assert masked.masks is not None
    torch.testing.assert_close(masked.masks, torch.stack((expected[0, 2], expected[1, 0])))
    single = MaskRCNNHead(8, 3, hidden=16, mask_channels=8)
    nothing = [Detections(boxes[:0], torch.ones(0), labels[:0])]
    (masked,) = add_masks([single.mask_head], maps, nothing, factors)
    assert masked.masks is not None
    assert masked.masks.shape == (0, 28, 28)
