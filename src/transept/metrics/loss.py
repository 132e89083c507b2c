"""Mean loss over the samples of an epoch."""

from typing import Any

from torch import Tensor


class LossMeter:
    """Sums that stay on the device, so a step never waits for them. Other meters add theirs."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.samples = 0
        self.sums: dict[str, Tensor | float] = {"loss": 0.0}

    def update(self, loss: Tensor, outputs: Any, targets: Any) -> None:
        self.samples += len(targets)
        self.sums["loss"] += loss.detach().float() * len(targets)

    def state(self) -> dict[str, Any]:
        """The sums so far, as plain data, for `add`."""
        return {"samples": self.samples, "sums": {name: float(value) for name, value in self.sums.items()}}

    def add(self, state: dict[str, Any]) -> None:
        """Count in what another meter saw, in another process or before an interruption."""
        self.samples += state["samples"]
        for name, value in state["sums"].items():
            self.sums[name] += value

    @property
    def loss(self) -> float:
        """The mean so far."""
        return float(self.sums["loss"]) / max(self.samples, 1)

    def means(self) -> dict[str, float]:
        """Each sum by the number of samples seen."""
        return {name: float(value) / max(self.samples, 1) for name, value in self.sums.items()}
