#!/usr/bin/env bash
# Lightning refuses to clip gradients of a fused optimiser in bfloat16, where no gradient is scaled.
#
# lightning 2.6.6, torch 2.15.0: Trainer(precision="bf16-mixed", gradient_clip_val=1.0) with torch.optim.AdamW(fused=True)
# ends with "does not allow for gradient clipping because it performs unscaling of gradients internally". bf16-mixed has no
# scaler (Lightning itself refuses one there), and the same run in "32-true" clips. The check reads
# `_step_supports_amp_scaling` of the optimiser; set to False, the run clips in bfloat16, too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet uv
"$folder/env/bin/uv" pip install --quiet --python "$folder/env/bin/python" torch==2.15.0 lightning==2.6.6 numpy
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON' 2>/dev/null
import logging
import warnings

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Regression(lightning.LightningModule):
    def __init__(self, *, as_if_plain):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.as_if_plain = as_if_plain
        self.norms = []

    def training_step(self, batch, index):
        return 1e3 * self.layer(batch[0]).float().square().mean()

    def optimizer_step(self, epoch, index, optimizer, closure=None):
        super().optimizer_step(epoch, index, optimizer, closure)
        self.norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in self.parameters()])))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), fused=True)
        if self.as_if_plain:
            optimizer._step_supports_amp_scaling = False
        return optimizer


def fit(precision, *, as_if_plain=False):
    torch.manual_seed(0)
    module = Regression(as_if_plain=as_if_plain)
    trainer = lightning.Trainer(
        accelerator="cpu", precision=precision, gradient_clip_val=1.0, max_steps=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    try:
        trainer.fit(module, DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4))
    except RuntimeError as error:
        return str(error)
    return max(module.norms)


refused, plain, told = fit("bf16-mixed"), fit("32-true"), fit("bf16-mixed", as_if_plain=True)
print("bf16-mixed:", refused)
print("32-true: largest norm", plain)
print("bf16-mixed, _step_supports_amp_scaling=False: largest norm", told)
assert "does not allow for gradient clipping" in refused
assert 0.99 < plain < 1.01
assert 0.99 < told < 1.01
PYTHON
