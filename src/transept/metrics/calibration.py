"""How far a classifier's probabilities can be believed.

Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, Section 2, with its 15 bins of equal width. By
hand, because evaluation works without the packages for training, torchmetrics among them.
"""

from typing import NamedTuple

import numpy as np


class Calibration(NamedTuple):
    """Pictures by the probability of their best class, in bins of equal width from 0 to 1."""

    ece: float
    """Expected calibration error, in 0..1: the mean distance of `accuracy` from `confidence`, over pictures."""
    pictures: np.ndarray
    """How many are in each bin."""
    confidence: np.ndarray
    """Their mean probability; NaN where a bin is empty."""
    accuracy: np.ndarray
    """The share of them that is right; NaN where a bin is empty."""


def calibration(probabilities: np.ndarray, right: np.ndarray, bins: int = 15) -> Calibration:
    """Of the best classes' probabilities `n` in 0..1, and whether these were right, `n`; n is at least 1."""
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, probabilities, side="left") - 1, 0, bins - 1)  # (low, high]
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        confidence = np.bincount(place, probabilities, minlength=bins) / count
        accuracy = np.bincount(place, right, minlength=bins) / count
    ece = np.nansum(np.abs(confidence - accuracy) * count) / count.sum()
    return Calibration(float(ece), count, confidence, accuracy)
