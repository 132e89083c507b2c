"""Loss, mixing and scores of several labels, against timm and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy

from transept.metrics.multi_label import MultiLabelMeter, best_thresholds, multi_label_scores
from transept.tasks.labelling import MultiLabel


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities, `60 4`, some of them equal; the last class has no pictures."""
    draw = np.random.default_rng(0)
    labels = (draw.random((60, 4)) < (0.5, 0.3, 0.1, 0)).astype(np.uint8)
    return labels, np.clip(0.3 * labels + draw.random((60, 4)) * 0.7, 0, 1).round(2).astype(np.float32)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_timms(weighted: bool):
    logits, labels = torch.randn(6, 5), torch.randint(2, (6, 5)).float()
    weights = MultiLabel().balanced(torch.tensor([3.0, 1, 2, 5, 0]), 6) if weighted else None
    reference = BinaryCrossEntropy(smoothing=0.1, smooth_dense=True, pos_weight=weights)
    ours = MultiLabel().loss(logits, labels, weights, smoothing=0.1)
    assert torch.allclose(ours, reference(logits, labels))
    if weights is not None:
        assert weights.tolist() == pytest.approx([1, 5, 2, 0.2, 1])


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixing_is_timms(mode: str):
    images, labels = torch.randn(6, 3, 8, 8), torch.randint(2, (6, 5)).float()
    options = dict(mixup_alpha=0.4, cutmix_alpha=0.5, mode=mode, label_smoothing=0.0)
    np.random.seed(1)
    mixed, shares = MultiLabel().mixed(Mixup(**options), images.clone(), labels)
    np.random.seed(1)
    expected, targets = Mixup(**options, num_classes=5, multi_label=True)(images.clone(), labels)
    assert torch.equal(mixed, expected)
    assert torch.allclose(shares, targets)
    assert not torch.equal(shares, labels)


def test_scores_are_scikit_learns(answers: tuple[np.ndarray, np.ndarray]):
    labels, probabilities = answers
    scores = multi_label_scores(labels, probabilities, np.full(4, 0.5))
    expected = average_precision_score(labels[:, :3], probabilities[:, :3], average=None)
    assert scores.average_precision[:3] == pytest.approx(expected)
    assert np.isnan(scores.average_precision[3])
    assert scores.map == pytest.approx(average_precision_score(labels[:, :3], probabilities[:, :3]))
    said = (probabilities >= 0.5).astype(int)
    assert scores.micro_f1 == pytest.approx(f1_score(labels, said, average="micro"))
    assert scores.macro_f1 == pytest.approx(f1_score(labels[:, :3], said[:, :3], average="macro"))


def test_no_threshold_is_better(answers: tuple[np.ndarray, np.ndarray]):
    labels, probabilities = answers
    thresholds = best_thresholds(labels, probabilities)
    assert thresholds[3] == 0.5
    for k in range(3):
        every = [f1_score(labels[:, k], probabilities[:, k] >= each) for each in np.unique(probabilities[:, k])]
        ours = f1_score(labels[:, k], probabilities[:, k] >= thresholds[k])
        assert ours == pytest.approx(max(every))
        assert thresholds[k] not in probabilities[:, k]


def test_the_sums_of_two_processes(answers: tuple[np.ndarray, np.ndarray]):
    labels, logits = torch.from_numpy(answers[0]).float(), torch.from_numpy(answers[1]).logit(1e-4)
    meters = [MultiLabelMeter() for _ in range(3)]
    for meter, half in zip(meters, (slice(None), slice(0, None, 2), slice(1, None, 2)), strict=True):
        meter.update(torch.tensor(0.5), logits[half], labels[half])
    meters[1].add(meters[2].state())
    assert meters[1].means() == pytest.approx(meters[0].means())
