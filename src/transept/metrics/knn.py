"""Accuracy of a weighted k-nearest-neighbour classifier on features, by which self-supervised models are compared.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv 1805.01978, Section 3.4;
DINO's k = 20 and temperature 0.07 are the defaults.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from transept.metrics.accuracy import AccuracyMeter

_SIMILARITIES = 2**24
"""At a time, in memory: 64 MiB."""


class NearestNeighbours:
    """Exact: every query is compared with every feature that it was built with.

    Args:
        features: `n c`, of any length.
        labels: their class numbers, `n`.
        num_classes: how many classes there are.
        k: neighbours that vote, or all where there are fewer.
        temperature: a neighbour of cosine similarity s has exp(s / temperature) votes.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, num_classes: int, *, k: int = 20, temperature: float = 0.07
    ) -> None:
        self.features = normalize(features.float())
        self.labels = labels
        self.num_classes = num_classes
        self.k = min(k, len(labels))
        self.temperature = temperature

    def __call__(self, queries: Tensor) -> Tensor:
        """Features `b c` to shares of the votes, `b num_classes`."""
        rows = max(_SIMILARITIES // len(self.labels), 1)
        return torch.cat([self._votes(part) for part in normalize(queries.float()).split(rows)])

    def _votes(self, queries: Tensor) -> Tensor:
        similarities, nearest = (queries @ self.features.T).topk(self.k)
        weights = (similarities / self.temperature).softmax(dim=1)  # exp, without overflow
        votes = weights.new_zeros(len(queries), self.num_classes)
        return votes.scatter_add_(1, self.labels[nearest], weights)


class KNNMeter(AccuracyMeter):
    """`knn_top1` and `knn_top5` in 0..1, of votes as `NearestNeighbours` gives them."""

    def means(self) -> dict[str, float]:
        return {f"knn_{name}": value for name, value in super().means().items() if name != "loss"}
