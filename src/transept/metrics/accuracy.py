"""Accuracy of a classifier."""

from torch import Tensor

from transept.metrics.loss import LossMeter


class AccuracyMeter(LossMeter):
    """Running loss, and top-1 and top-5 accuracy in 0..1."""

    def reset(self) -> None:
        super().reset()
        self.sums |= {"top1": 0.0, "top5": 0.0}

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:  # pyright: ignore
        super().update(loss, logits, labels)
        best = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        self.sums["top1"] += best[:, 0].sum()
        self.sums["top5"] += best.sum()
