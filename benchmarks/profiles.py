"""Where the time of a forward pass goes, as a table: `uv run python benchmarks/profiles.py` (some minutes, one thread).

Shares of the kernels' own time at batch 8 and 224 pixels, of each model as it is and fused. Timers add to small kernels
more than to large ones.
"""

from collections import Counter

import torch
from cpu import WITH_PEER, WITHOUT
from torch import nn
from torch.profiler import ProfilerActivity, profile

import transept

KINDS = {
    "products": {"addmm", "mm", "bmm", "baddbmm", "_linear_pointwise"},
    "convolutions": {"mkldnn_convolution", "_convolution_pointwise", "_slow_conv2d_forward"},
    "attention kernel": {"_scaled_dot_product_flash_attention_for_cpu"},
    "GELU": {"gelu"},
    "norms": {"native_layer_norm", "native_batch_norm"},
    "softmax": {"_softmax"},
    "copies": {"copy_", "cat"},
}
OTHERS = "sums, scales, calls"


def shares(model: nn.Module) -> Counter[str]:
    """The share of each kind of kernel in the time of all."""
    images = torch.randn(8, 3, 224, 224)
    with torch.inference_mode():
        for _ in range(2):
            model(images)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(3):
                model(images)
    times: Counter[str] = Counter()
    for event in profiled.key_averages():
        name = event.key.rpartition("::")[2]
        times[next((kind for kind, names in KINDS.items() if name in names), OTHERS)] += event.self_cpu_time_total
    return Counter({kind: time / times.total() for kind, time in times.items()})


def main() -> None:
    torch.set_num_threads(1)
    columns = [*KINDS, OTHERS]
    print("| | |", " | ".join(columns), "|")
    print("|---" * (len(columns) + 2) + "|")
    for name in (*WITH_PEER, *WITHOUT):
        model = transept.create_model(name).eval()
        for form, one in (("eager", model), ("fused", transept.fuse(model))):
            found = shares(one)
            print(f"| {name} | {form} |", " | ".join(f"{found[column]:.0%}" for column in columns), "|")


if __name__ == "__main__":
    main()
