"""Sliding windows against a plain loop."""

import random

import pytest
import torch
from torch.nn.functional import conv2d

from transept.errors import UsageError
from transept.inference.windows import ResizedWindows, WindowRows, sliding_logits, window_starts
from transept.ops.interpolation import resize_map


def test_window_starts():
    assert window_starts(10, 4, 3) == [0, 3, 6]
    assert window_starts(11, 4, 3) == [0, 3, 6, 7]  # the last one is shifted back
    assert window_starts(4, 4, 3) == [0]
    assert window_starts(3, 4, 3) == [0]
    assert window_starts(2048, 512, 341) == [0, 341, 682, 1023, 1364, 1536]


def edge_aware(x: torch.Tensor) -> torch.Tensor:
    """A model whose output depends on where the window ends."""
    weight = torch.arange(4 * 3 * 9, dtype=x.dtype).view(4, 3, 3, 3).sin()
    return conv2d(x, weight, padding=1)


@pytest.mark.parametrize("seed", range(60))
def test_equals_a_plain_loop(seed: int):
    rng = random.Random(seed)
    size, crop = ([rng.randint(1, longest) for _ in range(2)] for longest in (23, 12))
    crop, stride = tuple(crop), tuple(rng.randint(1, side) for side in crop)
    batch_size = rng.randint(1, 5)
    images = torch.randn(2, 3, *size)
    height, width = size
    total, counts = torch.zeros(2, 4, *size), torch.zeros(*size)
    rows = max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1
    columns = max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1
    for row in range(rows):
        for column in range(columns):
            bottom, right = min(row * stride[0] + crop[0], height), min(column * stride[1] + crop[1], width)
            top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
            total[:, :, top:bottom, left:right] += edge_aware(images[:, :, top:bottom, left:right])
            counts[top:bottom, left:right] += 1
    assert counts.min() >= 1
    result = sliding_logits(edge_aware, images, crop, stride, batch_size=batch_size)
    torch.testing.assert_close(result, total / counts)
    # The same by rows, of some columns, resized.
    left = rng.randrange(width)
    columns = (left, rng.randint(left + 1, width))
    some = WindowRows(edge_aware, images[0], crop, stride, columns=columns, batch_size=batch_size)
    strips = [some.rows(y, min(y + 3, height)) for y in range(0, height, 3)]
    torch.testing.assert_close(torch.cat(strips, dim=2), result[:1, :, :, slice(*columns)])
    size = rng.randint(1, 40), rng.randint(1, 40)
    left = rng.randrange(size[1])
    columns = (left, rng.randint(left + 1, size[1]))
    resized = ResizedWindows(edge_aware, images[0], size, columns, crop=crop, stride=stride)
    strips = [resized.rows(y, min(y + 4, size[0])) for y in range(0, size[0], 4)]
    expected = resize_map(result[:1], size)[..., slice(*columns)]
    torch.testing.assert_close(torch.cat(strips, dim=2), expected, rtol=1e-4, atol=1e-5)


def test_memory_is_bounded():
    """No call sees more than `batch_size` windows, and all of one size."""
    shapes = []

    def model(x: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return x

    images = torch.randn(2, 3, 100, 75)
    torch.testing.assert_close(sliding_logits(model, images, (16, 20), (10, 11), batch_size=5, device="cpu"), images)
    assert {shape[1:] for shape in shapes} == {(3, 16, 20)}
    assert max(shape[0] for shape in shapes) == 5
    assert sum(shape[0] for shape in shapes) == 2 * 10 * 6


def test_rows_are_forgotten():
    """No more than a row of windows and what is asked for is kept, and each window is looked at once."""
    seen = []

    def model(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x

    image = torch.randn(3, 300, 40)
    windows = WindowRows(model, image, (16, 16), (11, 11), batch_size=2)
    for y in range(0, 300, 2):
        torch.testing.assert_close(windows.rows(y, y + 2)[0], image[:, y : y + 2])
    assert windows._sum is not None
    assert windows._sum.shape == (3, 20, 40)
    assert sum(seen) == 4 * 27
    with pytest.raises(ValueError, match="row 0 is forgotten; rows are left from 284 on"):
        windows.rows(0, 2)


@pytest.mark.parametrize(
    ("crop", "stride", "message"),
    [
        ((8, 8), (9, 8), r"stride=\(9, 8\) is larger than crop=\(8, 8\)"),
        ((8, 8), (0, 8), r"stride=\(0, 8\) must be a positive height and width"),
        ((8,), (4, 4), r"crop=\(8,\) must be"),
    ],
)
def test_windows_with_gaps(crop: tuple, stride: tuple, message: str):
    with pytest.raises(UsageError, match=message):
        sliding_logits(edge_aware, torch.zeros(1, 3, 20, 20), crop, stride)
