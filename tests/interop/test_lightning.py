"""Our models in a LightningModule of the user's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers import build

lightning = pytest.importorskip("lightning")


class Own(lightning.LightningModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = build(name).train()
        self.losses: list[float] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 2e-3)


@pytest.mark.parametrize("name", ["cabvit_h_l1", pytest.param("crossformer_tiny", marks=pytest.mark.slow)])
def test_trains_and_comes_back(name: str, tmp_path: Path):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(8, 3, 64, 64), torch.arange(8) % 7)
    module = Own(name)
    trainer = lightning.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=4))
    assert sum(module.losses[-2:]) < sum(module.losses[:2])
    (path,) = tmp_path.rglob("*.ckpt")
    again = Own.load_from_checkpoint(path).eval()
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(again.model(x), module.eval().model(x))
