"""How good features are: accuracy of the nearest training pictures, and of a logistic regression."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from transept.data.classification.sets import Splits
from transept.data.classification.transforms import transforms_for
from transept.data.loading import TransformedSet, make_loader
from transept.metrics.knn import KNNMeter, NearestNeighbours
from transept.tasks.pretrain import FeatureExtractor

K = 20
"""Neighbours that vote."""


def feature_scores(
    task: FeatureExtractor,
    splits: Splits,
    *,
    knn: bool,
    linear: bool,
    k: int = K,
    temperature: float = 0.07,
    batch_size: int | None = None,
    workers: int = 0,
) -> dict[str, Any]:
    """Features of the training pictures, then accuracy on the measured ones, in 0..1.

    Args:
        task: where the features come from.
        splits: labelled pictures, both halves.
        knn: whether the nearest training pictures vote, weighted as DINO's are: `knn_top1`, `knn_top5`.
        linear: whether a logistic regression is fitted: `linear_top1`.
        k: neighbours that vote.
        temperature: of their weights.
        batch_size: pictures at once.
        workers: processes that read pictures.
    """
    transform = transforms_for(task)
    train, val = (
        _features(task, make_loader(TransformedSet(half, transform), batch_size or 64, workers=workers))
        for half in (splits.train, splits.val)
    )
    result: dict[str, Any] = {}
    if knn:
        neighbours = NearestNeighbours(*train, len(splits.classes), k=k, temperature=temperature)
        votes, meter = neighbours(val[0]), KNNMeter()
        meter.update(votes.new_zeros(()), votes, val[1])
        result |= meter.means() | {"k": neighbours.k, "temperature": neighbours.temperature}
    if linear:
        result["linear_top1"] = _linear(*train, *val)
    return result


def _features(task: FeatureExtractor, loader: DataLoader) -> tuple[Tensor, Tensor]:
    device = next(task.parameters()).device
    features, labels = [], []
    with torch.inference_mode():
        for images, numbers in loader:
            features.append(task(images.to(device)).float())
            labels.append(numbers)
    return torch.cat(features), torch.cat(labels).to(device)


def _linear(train: Tensor, train_labels: Tensor, val: Tensor, val_labels: Tensor) -> float:
    """Top-1 of a logistic regression on standardised features, with scikit-learn's own regularisation (C = 1)."""
    # Takes seconds, and only this needs it.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(train.cpu().numpy(), train_labels.cpu().numpy())
    return float(classifier.score(val.cpu().numpy(), val_labels.cpu().numpy()))
