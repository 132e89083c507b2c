"""The optimisers that recipes name."""

import copy

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from transept.training.loop.module import make_optimizer
from transept.training.options.optimizer import OptimizerOptions


@pytest.mark.parametrize(
    ("name", "unscales", "fused"),
    [("adamw", False, True), ("Adam", False, True), ("lookahead_adamw", False, True), ("adamw", True, None)],
)
def test_adam_is_one_kernel(name: str, unscales: bool, fused: bool | None):
    optimizer = make_optimizer(OptimizerOptions(name=name), nn.Linear(4, 4), unscales=unscales)
    assert [group["fused"] for group in optimizer.param_groups] == [fused, fused]


def test_others_are_as_timm_makes_them():
    assert "fused" not in make_optimizer(OptimizerOptions(name="lamb"), nn.Linear(4, 4)).param_groups[0]


def test_one_kernel_takes_the_same_steps():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    fused = copy.deepcopy(plain)
    images = torch.randn(5, 8)
    for model, unscales in ((plain, True), (fused, False)):
        optimizer = make_optimizer(OptimizerOptions(lr=1e-2, betas=(0.8, 0.95)), model, unscales=unscales)
        for _ in range(5):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Regression(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.norms: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return 1e3 * self.layer(batch[0]).float().square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(OptimizerOptions(), self)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None) -> None:  # pyright: ignore
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped(precision: str):
    torch.manual_seed(0)
    module = Regression()
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision=precision,  # pyright: ignore[reportArgumentType]
        gradient_clip_val=1.0,
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4))
    assert module.norms == pytest.approx([1.0, 1.0], rel=0.01)
