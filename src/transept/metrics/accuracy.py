"""Accuracy of a classifier."""

from torch import Tensor


class AccuracyMeter:
    """Running loss and accuracy. Sums stay on the device, so a step never waits for them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.samples = 0
        self.sums: dict[str, Tensor | float] = {"loss": 0.0, "top1": 0.0, "top5": 0.0}

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        best = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        self.samples += len(labels)
        self.sums["loss"] += loss.detach().float() * len(labels)
        self.sums["top1"] += best[:, 0].sum()
        self.sums["top5"] += best.sum()

    def means(self) -> dict[str, float]:
        """Mean loss, and accuracies in 0..1, of the samples seen."""
        return {name: float(value) / max(self.samples, 1) for name, value in self.sums.items()}
