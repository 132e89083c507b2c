#!/usr/bin/env bash
# Compiled with frozen weights, a float32 linear layer is multiplied by MKL or by oneDNN: the batch's kind decides.
#
# torch 2.15.0 with MKL, on x86-64: for a batch of a fixed size, and for one sample even where the batch is marked dynamic (Dynamo
# takes 1 for a constant), Inductor packs the weights for mkl::_mkl_linear; for a dynamic batch of others, for
# mkldnn::_linear_pointwise. In bfloat16 both are oneDNN's. Where the two libraries differ in speed, so
# do one sample alone and each of many.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet uv
"$folder/env/bin/uv" pip install --quiet --python "$folder/env/bin/python" torch==2.15.0 numpy
"$folder/env/bin/python" - <<'PYTHON' 2>/dev/null
import torch
import torch._inductor.config
from torch import nn
from torch.profiler import ProfilerActivity, profile


def kernels(dtype, batch, *, dynamic):
    torch._dynamo.reset()
    model = nn.Linear(384, 1536).eval().to(dtype)
    samples = torch.randn(batch, 196, 384, dtype=dtype)
    compiled = torch.compile(model, dynamic=None if dynamic else False)
    if dynamic:
        torch._dynamo.maybe_mark_dynamic(samples, 0)
    with torch.inference_mode(), torch._inductor.config.patch(freezing=True):
        compiled(samples)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            compiled(samples)
    names = {event.key for event in profiled.key_averages()}
    return sorted(names & {"aten::addmm", "mkldnn::_linear_pointwise", "mkl::_mkl_linear"})


assert torch.backends.mkl.is_available()
print("torch", torch.__version__)
for dtype in (torch.float32, torch.bfloat16):
    found = {
        (batch, dynamic): kernels(dtype, batch, dynamic=dynamic) for batch in (1, 2) for dynamic in (False, True)
    }
    for (batch, dynamic), names in found.items():
        print(f"{dtype}, batch {batch}, {'dynamic' if dynamic else 'fixed'}: {names}")
    by_mkl = ["mkl::_mkl_linear"] if dtype == torch.float32 else ["mkldnn::_linear_pointwise"]
    assert found[1, False] == found[2, False] == found[1, True] == by_mkl
    assert found[2, True] == ["mkldnn::_linear_pointwise"]
PYTHON
