#!/usr/bin/env bash
# torch.compile takes "freezing" among its options, and then freezes nothing.
#
# torch 2.15.0: under torch.no_grad() or inference_mode, torch.compile(model, options={"freezing": True}) compiles a graph
# whose weights are still inputs: its products are aten::addmm of plain weights. Dynamo decides while it traces whether
# parameters are constants, by torch._inductor.config.freezing itself, which options do not set by then. With that set
# around the first call (or TORCHINDUCTOR_FREEZING=1) the weights are packed: mkldnn::_linear_pointwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet uv
"$folder/env/bin/uv" pip install --quiet --python "$folder/env/bin/python" torch==2.15.0 numpy
"$folder/env/bin/python" - <<'PYTHON' 2>/dev/null
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile


def kernels(dtype, *, by_option):
    """The products that a compiled linear layer calls."""
    torch._dynamo.reset()
    model = nn.Linear(384, 1536).eval().to(dtype)
    images = torch.randn(1568, 384, dtype=dtype)
    compiled = torch.compile(model, options={"freezing": True} if by_option else None, dynamic=False)
    with torch.inference_mode(), torch._inductor.config.patch(freezing=not by_option):
        compiled(images)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            compiled(images)
    names = {event.key for event in profiled.key_averages()}
    return sorted(names & {"aten::addmm", "mkldnn::_linear_pointwise", "mkl::_mkl_linear"})


import torch._inductor.config

print("torch", torch.__version__)
for dtype in (torch.float32, torch.bfloat16):
    option, setting = kernels(dtype, by_option=True), kernels(dtype, by_option=False)
    print(f"{dtype}: as an option {option}, as a setting {setting}")
    assert option == ["aten::addmm"]
    assert setting
    assert "aten::addmm" not in setting
PYTHON
