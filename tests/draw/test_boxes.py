"""Drawn objects: in their colours, with labels inside the picture that hide neither small objects nor each other."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transept.draw.boxes import _overlap, _place_labels, draw_objects
from transept.errors import TranseptError

CLASSES = ["red blood cell", "platelet"]
PALETTE = [(200, 40, 40), (40, 80, 220)]


def place(boxes: np.ndarray, size: tuple[int, int] = (640, 480), scores: np.ndarray | None = None) -> list:
    labels = np.arange(len(boxes)) % 2
    return list(_place_labels(boxes, labels, scores, CLASSES, PALETTE, size, unit=max(size) / 504))


@pytest.mark.parametrize("seed", range(8))
def test_where_labels_stand(seed: int):
    rng = np.random.default_rng(seed)
    sides = rng.uniform(8, 200, (30, 2))
    corners = rng.uniform(0, (640, 480), (30, 2))
    boxes = np.hstack((corners, np.minimum(corners + sides, (640, 480))))
    boxes[0] = (0, 0, 640, 480)
    boxes[1] = (636, 0, 640, 4)
    placed = place(boxes, scores=rng.random(30))
    chips = np.array([(chip.x, chip.y, chip.x + chip.width, chip.y + chip.height) for chip in placed])
    assert 15 <= len(chips) <= 30
    assert chips.min() >= 0
    assert chips[:, 2].max() <= 640 + 1e-6
    assert chips[:, 3].max() <= 480 + 1e-6
    both = _overlap(chips, chips)
    share = both / both.diagonal()
    np.fill_diagonal(share, 0)
    assert share.max() < 0.04


def test_a_label_does_not_hide_a_small_object():
    """The usual place, on top of the box, is where the small object is."""
    boxes = np.array([[100.0, 100, 300, 300], [104, 88, 116, 98]])
    chips = place(boxes)
    assert len(chips) == 2
    corners = np.array([(chip.x, chip.y, chip.x + chip.width, chip.y + chip.height) for chip in chips])
    assert _overlap(corners, boxes[1:]).max() == 0


def test_what_is_drawn(tmp_path: Path):
    picture = Image.new("RGB", (160, 120), (128, 128, 128))
    boxes = np.array([[20.0, 30, 80, 90], [100, 20, 150, 60]])
    masks = np.zeros((2, 120, 160), bool)
    masks[0, 30:90, 20:80] = masks[1, 20:60, 100:150] = True
    labels, scores = np.array([0, 1]), np.array([0.9, 0.4])
    path = tmp_path / "drawn.png"
    draw_objects(picture, boxes, labels, CLASSES, PALETTE, path, scores=scores, masks=masks)
    with Image.open(path) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    assert (pixels.shape[1], pixels.shape[0]) == (1400, 1050)  # seven inches, no legend
    scale = 1400 / 160
    for label, (x, y) in enumerate(((50, 70), (130, 45))):
        strength = 0.42 * (1 - 0.5 * (masks[label].mean()) ** 0.5)
        tint = 128 * (1 - strength) + np.array(PALETTE[label]) * strength
        np.testing.assert_allclose(pixels[int(y * scale), int(x * scale)], tint, atol=2)
    assert pixels[int(100 * scale), int(120 * scale)].tolist() == [128, 128, 128]
    border = pixels[int(70 * scale), int(17 * scale) : int(23 * scale)]
    assert np.abs(border - PALETTE[0]).sum(axis=1).min() < 40  # the line of the box, or of the mask


@pytest.mark.parametrize("suffix", [".pdf", ".svg", ".jpg"])
def test_formats_and_no_objects(suffix: str, tmp_path: Path):
    path = tmp_path / f"drawn{suffix}"
    draw_objects(Image.new("L", (40, 90)), np.zeros((0, 4)), np.zeros(0, int), CLASSES, PALETTE, path)
    assert path.stat().st_size > 500


def test_one_class_is_named_once(tmp_path: Path):
    """A legend instead of as many equal labels makes the figure wider."""
    boxes = np.array([[2.0, 2, 30, 30], [40, 40, 60, 60]])
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path, labels in zip(paths, ([0, 0], [0, 1]), strict=True):
        draw_objects(Image.new("RGB", (64, 64)), boxes, np.array(labels), CLASSES, PALETTE, path)
    widths = [Image.open(path).size[0] for path in paths]
    assert widths[0] > widths[1] == 1400


def test_masks_of_another_size(tmp_path: Path):
    with pytest.raises(TranseptError, match=r"masks are \(1, 9, 9\) for 1 objects on a picture of 120 x 160"):
        draw_objects(
            Image.new("RGB", (160, 120)), np.array([[0.0, 0, 9, 9]]), np.array([0]), CLASSES, PALETTE,
            tmp_path / "a.png", masks=np.ones((1, 9, 9), bool),
        )  # fmt: skip
