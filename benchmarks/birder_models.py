"""Our models beside birder's: `uv run --with birder python benchmarks/birder_models.py` (half an hour).

birder (on PyPI) has classes of its own for CaiT, CrossFormer, CrossViT and XCiT. Theirs run as they are and compiled
with frozen weights, ours eager, fused and compiled, all in one precision, with random weights and in turns. Seconds go
to results/birder.json.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from birder.model_registry import registry  # pyright: ignore[reportMissingImports]

import transept
from transept.bench.timing import processor
from transept.files import write_atomically
from transept.inference.compile import own_compiled
from transept.turns import take_turns

RESULTS = Path(__file__).parent / "results" / "birder.json"
PAIRS = {
    "cait_xxs24_224": "cait_xxs24",
    "crossformer_tiny": "crossformer_t",
    "crossformer_small": "crossformer_s",
    "crossvit_small_240": "crossvit_s",
    "xcit_small_12_p16_224": "xcit_small12_p16",
}
MACHINE = {
    "processor": processor(),
    "threads": torch.get_num_threads(),
    **{name: version(name) for name in ("torch", "birder", "transept")},
}


def forms(name: str, dtype: torch.dtype, batch: int) -> dict[str, Callable[[], object]]:
    """Each form by whose it is and what it is, ready to be called."""
    ours = transept.create_model(name).eval()
    size = ours.config.img_size
    theirs = registry.net_factory(PAIRS[name], 1000, size=size).eval().to(dtype)
    compiled = registry.net_factory(PAIRS[name], 1000, size=size).eval().to(dtype)
    compiled._compiled_call_impl = own_compiled(compiled, dynamic=False, frozen=True)
    images = torch.randn(batch, 3, *size)
    as_they_run = images.to(dtype)
    precision: Any = str(dtype).removeprefix("torch.")
    own = transept.compile(ours, precision, batch, size)  # a copy; takes float32, whatever it computes in
    ours = ours.to(dtype)
    calls = {
        "transept eager": (ours, as_they_run),
        "transept fused": (transept.fuse(ours), as_they_run),
        "transept compiled": (own, images),
        "birder eager": (theirs, as_they_run),
        "birder compiled": (compiled, as_they_run),
    }
    return {form: torch.inference_mode()(lambda m=model, x=x: m(x)) for form, (model, x) in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--repetitions", type=int, default=10)
    args = parser.parse_args()
    for name in args.models:
        for dtype in args.dtypes:
            for batch in (1, 8):
                torch.compiler.reset()
                calls = forms(name, getattr(torch, dtype), batch)
                times = take_turns([*calls.values()], torch.device("cpu"), args.repetitions)
                seconds = {form: round(statistics.median(each), 5) for form, each in zip(calls, times, strict=True)}
                print(name, dtype, batch, seconds, flush=True)
                kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"seconds": {}}
                kept["machine"] = MACHINE
                kept["seconds"].setdefault(name, {}).setdefault(dtype, {})[str(batch)] = seconds
                write_atomically(RESULTS, lambda path, page=kept: path.write_text(json.dumps(page, indent=1) + "\n"))


if __name__ == "__main__":
    main()
