#!/usr/bin/env bash
# On processors that multiply bfloat16 by vector units alone, PyTorch's fused attention takes up to twice the time of the
# same attention spelt out: its products are MKL's, and those of `@` are oneDNN's. Who compiles it has to scale the
# queries: where the scores are scaled, as one would write it, Inductor recognises attention and puts the fused kernel
# back, with its time.
#
# torch 2.15.0, AMD Zen 4 (avx512_bf16, no amx_bf16), two threads. Windows of 49 tokens, as in window transformers, and
# 197 tokens, as in ViT-S; float32 beside it, where it loses less. On other processors it says so, and ends with 3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet uv 2>/dev/null
"$folder/env/bin/uv" pip install --quiet --python "$folder/env/bin/python" torch==2.15.0 numpy
cat > "$folder/attention.py" <<'PYTHON'
import statistics
import subprocess
import sys
import time

import torch
from torch._inductor.utils import run_and_get_code
from torch.nn.functional import scaled_dot_product_attention as fused


def scaled_queries(q, k, v):
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) @ v


def scaled_scores(q, k, v):
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


def drawn(shape, dtype):
    return [torch.randn(shape, dtype=dtype) for _ in range(3)]


def products_of_onednn(kind):
    """Lines that oneDNN's own log has of matrix products."""
    script = f"import attention, torch; attention.{kind}(*attention.drawn((8, 6, 197, 64), torch.bfloat16))"
    run = subprocess.run(
        [sys.executable, "-c", script], env={"ONEDNN_VERBOSE": "1"}, cwd=sys.path[0], capture_output=True, text=True
    )
    return sum("exec,cpu,matmul" in line for line in run.stdout.splitlines())


def main():
    found = torch.cpu.get_capabilities()
    if not found.get("avx512_bf16") or found.get("amx_bf16"):
        print("needs a processor with avx512_bf16 and without amx_bf16")
        sys.exit(3)
    torch.set_num_threads(2)
    print("torch", torch.__version__, found.get("cpu_name"))
    counts = products_of_onednn("fused"), products_of_onednn("scaled_queries")
    print("matrix products that oneDNN logs: fused", counts[0], "spelt out", counts[1])
    assert counts == (0, 2)
    for way, put_back in ((scaled_queries, False), (scaled_scores, True)):
        with torch.inference_mode():
            _, (code,) = run_and_get_code(torch.compile(way, dynamic=False), *drawn((8, 6, 197, 64), torch.bfloat16))
        print(f"compiled, {way.__name__}: {'the fused kernel' if 'scaled_dot_product' in code else 'two products'}")
        assert ("scaled_dot_product" in code) == put_back
    for dtype in (torch.bfloat16, torch.float32):
        for shape in ((512, 3, 49, 32), (8, 6, 197, 64)):
            inputs, seconds = drawn(shape, dtype), {}
            with torch.inference_mode():
                ways = {"fused": fused, "spelt out": scaled_queries}
                ways["compiled"] = torch.compile(scaled_queries, dynamic=False)
                for turn in range(25):
                    for name, way in ways.items():
                        started = time.perf_counter()
                        way(*inputs)
                        if turn > 4:
                            seconds.setdefault(name, []).append(time.perf_counter() - started)
            ms = {name: statistics.median(series) * 1e3 for name, series in seconds.items()}
            print(dtype, shape, {name: round(value, 2) for name, value in ms.items()}, "ms")
            if dtype == torch.bfloat16:
                assert ms["compiled"] < 0.85 * ms["fused"]


if __name__ == "__main__":
    main()
PYTHON
# What is freed stays with the process: else each call would map its scores anew, which takes as long as computing them.
export MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=1000000000
"$folder/env/bin/python" "$folder/attention.py" 2>/dev/null
