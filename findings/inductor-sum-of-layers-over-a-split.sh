#!/usr/bin/env bash
# What is concatenated, split again and given to two linear layers whose outputs are added cannot be compiled in bfloat16
# with frozen weights: Inductor raises an error. Nothing of it may be left out.
#
# torch 2.15.0, on x86-64 with oneDNN. The sum is fused into the second product, whose metadata Inductor can then not
# make anew after it has taken the concatenation and the split away: "FakeTensorUpdater cannot recompute metadata".
# Adding halves of both, which is exact, is compiled, as are float32, trainable weights, and layers without the split.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet uv
"$folder/env/bin/uv" pip install --quiet --python "$folder/env/bin/python" torch==2.15.0 numpy
"$folder/env/bin/python" - <<'PYTHON' 2>/dev/null
from itertools import product

import torch
import torch._inductor.config
from torch import nn


class TwoHeads(nn.Module):
    def __init__(self, joined, added):
        super().__init__()
        self.first, self.second = nn.Linear(96, 100), nn.Linear(192, 100)
        self.joined, self.added = joined, added

    def forward(self, x, y):
        if self.joined:
            x, y = torch.cat([x, y], dim=-1).split([96, 192], dim=-1)
        x, y = self.first(x), self.second(y)
        return x + y if self.added else x / 2 + y / 2


def answer(dtype, frozen, joined, added):
    torch._dynamo.reset()
    model = TwoHeads(joined, added).eval().to(dtype)
    with torch.inference_mode(), torch._inductor.config.patch(freezing=frozen):
        try:
            torch.compile(model)(torch.randn(2, 96, dtype=dtype), torch.randn(2, 192, dtype=dtype))
        except Exception as error:
            assert "FakeTensorUpdater cannot recompute metadata" in str(error)
            return "error"
    return "compiled"


print("torch", torch.__version__)
for case in product((torch.float32, torch.bfloat16), (False, True), (False, True), (False, True)):
    found = answer(*case)
    dtype, frozen, joined, added = case
    print(f"{dtype}, {frozen=}, {joined=}, {added=}: {found}")
    assert found == ("error" if case == (torch.bfloat16, True, True, True) else "compiled")
PYTHON
