"""Anchors and points of feature maps. Their values are compared with recorded ones in tests/heads."""

import torch

from transept.ops.anchors import Anchors, base_anchors, cells_on_image, grid_points, inside_image


def test_ratio_is_height_over_width_and_scales_are_innermost():
    base = base_anchors(8, (1, 2), (0.25, 4))
    widths, heights = (base[:, 2:] - base[:, :2]).unbind(dim=1)
    assert torch.allclose(widths, torch.tensor([16.0, 32.0, 4.0, 8.0]))
    assert torch.allclose(heights, torch.tensor([4.0, 8.0, 16.0, 32.0]))
    assert torch.equal(base[:, :2], -base[:, 2:])


def test_order_is_level_row_column_anchor():
    anchors = Anchors(strides=(4, 8), scales=(1,), ratios=(0.5, 2))
    fine, coarse = anchors([(3, 5), (2, 3)])
    assert anchors.per_cell == 2
    assert (len(fine), len(coarse)) == (3 * 5 * 2, 2 * 3 * 2)
    centres = (fine[:, :2] + fine[:, 2:]) / 2
    assert centres[0].tolist() == centres[1].tolist() == [0, 0]
    assert centres[2].tolist() == [4, 0]
    assert centres[2 * 5].tolist() == [0, 4]
    assert centres[-1].tolist() == [16, 8]


def test_points_are_the_centres_of_cells():
    assert grid_points(16, (2, 3)).tolist() == [[8, 8], [24, 8], [40, 8], [8, 24], [24, 24], [40, 24]]


def test_cells_beyond_the_padded_image_are_marked():
    # 40 x 70 pixels are padded to 64 x 96; the batch has 128 x 128.
    valid = cells_on_image(8, (16, 16), (40, 70)).reshape(16, 16)
    assert valid[:8, :12].all()
    assert not valid[8:].any()
    assert not valid[:, 12:].any()
    # A stride above the multiple: the last cell hangs over and counts.
    assert cells_on_image(64, (2, 2), (40, 70)).tolist() == [True, True, False, False]
    anchors = Anchors(strides=(8, 64), scales=(1, 2), ratios=(1,))
    assert int(anchors.on_image([(16, 16), (2, 2)], (40, 70)).sum()) == 2 * (8 * 12 + 2)


def test_inside_means_wholly_on_the_unpadded_image():
    anchors = torch.tensor([[0.0, 0, 29, 19], [-0.1, 0, 5, 5], [0, -0.1, 5, 5], [1, 1, 30, 5], [1, 1, 5, 20]])
    assert inside_image(anchors, (20, 30)).tolist() == [True, False, False, False, False]
