"""The weighted nearest-neighbour classifier beside scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from transept.metrics import knn
from transept.metrics.knn import KNNMeter, NearestNeighbours


def halves() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    pixels, labels = (torch.tensor(values) for values in load_digits(return_X_y=True))
    pixels = pixels.float() - 5  # of all lengths and in all directions
    return pixels[:600], labels[:600], pixels[600:900], labels[600:900]


@pytest.mark.parametrize("k", [1, 7, 20])
def test_votes_are_scikit_learns(k: int, monkeypatch: pytest.MonkeyPatch):
    features, labels, queries, answers = halves()

    def weights(distances: np.ndarray) -> np.ndarray:  # of cosine distance: 1 - similarity
        return np.exp((1 - distances) / 0.07)

    theirs = KNeighborsClassifier(k, metric="cosine", weights=weights).fit(features.numpy(), labels.numpy())
    ours = NearestNeighbours(features, labels, 10, k=k, temperature=0.07)
    votes = ours(queries)
    assert torch.allclose(votes, torch.tensor(theirs.predict_proba(queries.numpy())).float(), atol=1e-4)
    assert (votes.argmax(1).numpy() == theirs.predict(queries.numpy())).all()
    meter = KNNMeter()
    meter.update(votes.new_zeros(()), votes, answers)
    assert meter.means()["knn_top1"] == pytest.approx(theirs.score(queries.numpy(), answers.numpy()))
    assert set(meter.means()) == {"knn_top1", "knn_top5"}
    monkeypatch.setattr(knn, "_SIMILARITIES", 600 * 7)  # seven queries at a time
    assert torch.allclose(ours(queries), votes, atol=1e-6)


def test_fewer_features_than_neighbours_and_a_cold_temperature():
    features, labels = torch.eye(3), torch.tensor([0, 1, 1])
    votes = NearestNeighbours(features, labels, 4, k=20, temperature=1e-3)(torch.tensor([[3.0, 1.0, 0.0]]))
    assert votes.tolist() == [[pytest.approx(1), pytest.approx(0), 0, 0]]
