"""Masks to the grids of boxes and back."""

import pytest
import torch
from torch.nn.functional import grid_sample

from transept.ops.masks import crop_masks, paste_masks


def ellipse(height: int, width: int, box: list[float]) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x1, y1, x2, y2 = box
    return ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1


def test_crop_of_whole_pixels_is_exact():
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 4:8, 6:10] = True
    masks[1, 2:6, 3:11] = True
    crops = crop_masks(masks, torch.tensor([[6.0, 4, 14, 12], [3, 2, 11, 6]]), 4)
    assert crops[0].tolist() == [[1, 1, 0, 0]] * 2 + [[0, 0, 0, 0]] * 2
    assert crops[1].all()


def test_paste_inverts_crop():
    box = [7.3, 11.8, 61.2, 40.1]
    mask = ellipse(50, 80, box)[None]
    crop = crop_masks(mask, torch.tensor([box]), 28)
    pasted = paste_masks(crop, torch.tensor([box]), (50, 80))
    assert pasted.dtype == torch.bool
    overlap = (pasted & mask).sum() / (pasted | mask).sum()
    assert overlap > 0.95


def test_full_masks_fill_their_boxes():
    boxes = torch.tensor([[3.0, 2, 9, 8], [-4, 5, 6, 30], [5, 5, 5, 9]])
    pasted = paste_masks(torch.ones(3, 14, 14), boxes, (12, 10))
    expected = torch.zeros(3, 12, 10, dtype=torch.bool)
    expected[0, 2:8, 3:9] = True
    expected[1, 5:, :6] = True
    assert torch.equal(pasted, expected)  # a box without width has no pixels


def test_many_masks_are_pasted_in_chunks(monkeypatch):
    masks, boxes = torch.rand(7, 5, 5), torch.tensor([[1.0, 2, 17, 13]]) + torch.arange(7)[:, None]
    whole = paste_masks(masks, boxes, (16, 24))
    monkeypatch.setattr("transept.ops.masks._CHUNK", 3 * 19)
    assert torch.equal(paste_masks(masks, boxes, (16, 24)), whole)
    assert 0 < whole.float().mean() < 1


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5])
def test_only_the_reach_of_a_box_is_computed(threshold: float):
    """What a grid over the whole image gives, to the bit: also of boxes beyond it, and where the rim fades."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(40, 4, generator=generator) * 60 - 15
    boxes[:30, 2:] = boxes[:30, :2] + boxes[:30, 2:].abs()  # the others are turned inside out
    masks = torch.rand(40, 3, 4, generator=generator)
    y, x = torch.arange(33) + 0.5, torch.arange(47) + 0.5
    x1, y1, x2, y2 = boxes[..., None].unbind(dim=1)
    u, v = (x - x1) / (x2 - x1) * 2 - 1, (y - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack((u[:, None].expand(-1, 33, -1), v[:, :, None].expand(-1, -1, 47)), dim=-1)
    whole = grid_sample(masks[:, None], grid, align_corners=False)[:, 0] >= threshold
    assert torch.equal(paste_masks(masks, boxes, (33, 47), threshold), whole)


def test_no_masks():
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 6)).shape == (0, 5, 6)
    assert crop_masks(torch.zeros(0, 9, 9), torch.zeros(0, 4), 28).shape == (0, 28, 28)
