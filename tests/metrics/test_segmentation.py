"""The confusion matrix against sets of pixels."""

import math

import numpy as np
import pytest
import torch

from transept.errors import TranseptError
from transept.metrics.segmentation import ConfusionMeter


def oracle(labels: np.ndarray, masks: np.ndarray, num_classes: int) -> dict:
    """Scores from the sets of pixels of each class, in plain Python."""
    pixels = [(int(p), int(t)) for p, t in zip(labels.ravel(), masks.ravel(), strict=True) if t != 255]
    iou, accuracy = [], []
    for c in range(num_classes):
        predicted = {i for i, (p, _) in enumerate(pixels) if p == c}
        true = {i for i, (_, t) in enumerate(pixels) if t == c}
        union = len(predicted | true)
        iou.append(len(predicted & true) / union if union else math.nan)
        accuracy.append(len(predicted & true) / len(true) if true else math.nan)

    def mean(values: list[float]) -> float:
        known = [value for value in values if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    right = sum(p == t for p, t in pixels)
    return {
        "miou": mean(iou),
        "pixel_accuracy": right / len(pixels) if pixels else math.nan,
        "mean_accuracy": mean(accuracy),
        "iou": iou,
        "accuracy": accuracy,
    }


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_oracle_over_batches(seed: int):
    rng = np.random.default_rng(seed)
    num_classes, images = int(rng.integers(1, 7)), int(rng.integers(1, 5))
    ignored = float(rng.choice([0.0, 0.3, 1.0]))
    meter = ConfusionMeter(num_classes)
    every: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(images):
        shape = (int(rng.integers(1, 3)), int(rng.integers(1, 6)), int(rng.integers(1, 6)))
        labels = rng.integers(0, num_classes, shape)
        masks = np.where(rng.random(shape) < ignored, 255, rng.integers(0, num_classes, shape))
        every.append((labels, masks))
        meter.update(torch.from_numpy(labels), torch.from_numpy(masks).to(torch.uint8))
    expected = oracle(
        *(np.concatenate([a.ravel() for a in arrays]) for arrays in zip(*every, strict=True)), num_classes
    )
    for name, value in meter.scores()._asdict().items():
        np.testing.assert_allclose(np.asarray(value), expected[name], rtol=1e-12, err_msg=name)


def test_classes_that_never_occur():
    meter = ConfusionMeter(4)
    meter.update(torch.tensor([[0, 0, 2]]), torch.tensor([[0, 1, 255]]))
    scores = meter.scores()
    # class 1 occurs and is missed; 2 is predicted on an ignored pixel only; 3 nowhere
    assert scores.iou.tolist() == pytest.approx([0.5, 0.0, math.nan, math.nan], nan_ok=True)
    assert scores.miou == 0.25
    assert scores.accuracy.tolist() == pytest.approx([1.0, 0.0, math.nan, math.nan], nan_ok=True)
    assert (scores.pixel_accuracy, scores.mean_accuracy) == (0.5, 0.5)
    meter.update(torch.tensor([3]), torch.tensor([0]))
    assert meter.scores().iou.tolist() == pytest.approx([1 / 3, 0.0, math.nan, 0.0], nan_ok=True)
    meter.reset()
    assert math.isnan(meter.scores().miou)
    assert math.isnan(meter.scores().pixel_accuracy)


def test_counts_stay_exact():
    meter = ConfusionMeter(2)
    meter.matrix[0, 0] = 2**53
    meter.update(torch.tensor([0]), torch.tensor([0]))
    assert int(meter.matrix[0, 0]) == 2**53 + 1


def test_processes_add_up():
    labels, masks = torch.randint(3, (4, 9)), torch.randint(3, (4, 9))
    whole, first, second = ConfusionMeter(3), ConfusionMeter(3), ConfusionMeter(3)
    whole.update(labels, masks)
    first.update(labels[:1], masks[:1])
    second.update(labels[1:], masks[1:])
    assert torch.equal(first.matrix + second.matrix, whole.matrix)


@pytest.mark.parametrize(
    ("labels", "masks", "message"),
    [
        ([1], [3], "a mask holds the label 3; classes are 0 to 2, and 255 in a mask is ignored"),
        ([4], [1], "a prediction holds the label 4"),
        ([0], [-1], "a mask holds the label -1"),
        ([0, 1], [1], r"predictions are \(2,\) and masks \(1,\)"),
    ],
)
def test_bad_labels(labels: list, masks: list, message: str):
    with pytest.raises(TranseptError, match=message):
        ConfusionMeter(3).update(torch.tensor(labels), torch.tensor(masks))
