"""Coders, overlaps and suppression of boxes."""

import pytest
import torch
from torchvision.ops import box_iou

from transept.ops.boxes import (
    MAX_LOG_RATIO,
    centerness,
    clip_boxes,
    decode_deltas,
    decode_distances,
    encode_deltas,
    encode_distances,
    nms_by_label,
    paired_iou,
)


def random_boxes(n: int, extent: float = 100.0) -> torch.Tensor:
    corner, size = torch.rand(n, 2) * extent, torch.rand(n, 2) * extent / 2 + 1
    return torch.cat((corner, corner + size), dim=1)


@pytest.mark.parametrize("std", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2), (0.033, 0.05, 2.0, 0.067)])
def test_decoding_inverts_encoding(std):
    priors, boxes = random_boxes(200), random_boxes(200)
    decoded = decode_deltas(priors, encode_deltas(priors, boxes, std), std)
    torch.testing.assert_close(decoded, boxes, rtol=0, atol=2e-3)


def test_both_log_sizes_are_clamped_from_both_sides():
    prior = torch.tensor([[0.0, 0.0, 16.0, 32.0]])
    small, large = (
        decode_deltas(prior, torch.tensor([[0, 0, size, size]]), (1.0, 1.0, 1.0, 1.0))[0] for size in (-9.0, 9.0)
    )
    ratio = 1000 / 16
    assert pytest.approx(ratio) == torch.tensor(MAX_LOG_RATIO).exp().item()
    torch.testing.assert_close(small[2:] - small[:2], torch.tensor([16 / ratio, 32 / ratio]))
    torch.testing.assert_close(large[2:] - large[:2], torch.tensor([1000.0, 2000.0]))


def test_deviations_are_per_coordinate():
    prior, box = torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[5.0, 10.0, 25.0, 50.0]])
    deltas = encode_deltas(prior, box, (0.5, 0.25, 2.0, 1.0))
    ln2 = torch.tensor(2.0).log()
    torch.testing.assert_close(deltas, torch.stack((torch.tensor(2.0), torch.tensor(4.0), ln2 / 2, ln2))[None])


def test_distances():
    point, box = torch.tensor([[10.0, 20.0]]), torch.tensor([[7.0, 16.0, 15.0, 26.0]])
    distances = encode_distances(point, box)
    assert distances.tolist() == [[3.0, 4.0, 5.0, 6.0]]
    assert torch.equal(decode_distances(point, distances), box)
    assert centerness(distances).item() == pytest.approx((3 / 5 * 4 / 6) ** 0.5)
    assert centerness(torch.tensor([[2.0, 3.0, 2.0, 3.0]])).item() == 1
    assert centerness(torch.zeros(0, 4)).shape == (0,)


def test_paired_iou_is_the_diagonal_of_all_pairs():
    a, b = random_boxes(50), random_boxes(50)
    torch.testing.assert_close(paired_iou(a, b), box_iou(a, b).diagonal())
    empty = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert paired_iou(empty, empty).item() == 0


def test_each_image_clips_its_own_boxes():
    boxes = torch.tensor([[-5.0, -6.0, 300.0, 400.0]]).expand(2, 3, 4)
    clipped = clip_boxes(boxes, torch.tensor([[50.0, 70.0], [90.0, 30.0]]))
    assert clipped[0].tolist() == [[0, 0, 70, 50]] * 3
    assert clipped[1].tolist() == [[0, 0, 30, 90]] * 3


def test_only_equal_labels_suppress_each_other():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [50, 50, 60, 60]])
    scores, labels = torch.tensor([0.5, 0.9, 0.8, 0.1]), torch.tensor([0, 0, 1, 0])
    assert nms_by_label(boxes, scores, labels, 0.5).tolist() == [1, 2, 3]
    assert nms_by_label(boxes[:0], scores[:0], labels[:0], 0.5).tolist() == []


class Suppress(torch.nn.Module):
    def forward(self, boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nms_by_label(boxes, scores, labels, 0.3)


def test_suppression_in_an_exported_graph_is_the_same():
    boxes, scores, labels = random_boxes(300), torch.rand(300), torch.randint(4, (300,))
    number = torch.export.Dim("number", min=0, max=5000)
    program = torch.export.export(
        Suppress(), (boxes, scores, labels), dynamic_shapes=({0: number}, {0: number}, {0: number})
    )
    for n in (300, 17, 2, 1):
        given = boxes[:n], scores[:n], labels[:n]
        assert torch.equal(program.module()(*given), nms_by_label(*given, 0.3))
