"""How fast every variant is, and six models of timm: `uv run python benchmarks/variants.py` (a quarter of an hour).

Eager in float32, and the quickest form that takes no compiler in the quickest precision of this processor (ours fused,
timm's as they are), one image at a time and, where that takes no minute, eight. Each model runs alone, with a matrix
product in its turns. Written to src/transept/bench/speeds.json, which `transept models --sort speed` and docs/choose.md
read; `docs/choose.py` draws it.
"""

import argparse
import json
from typing import Any

import timm
import torch

from transept.bench.speeds import FILE, PEERS
from transept.bench.timing import Timing, bench
from transept.cost.kept import cost_of
from transept.files import write_atomically
from transept.inference.processor import fast_bfloat16
from transept.models.registry import list_models

MOST_MACS = 40e9
"""Of all images of a call that is timed."""


def measured(timing: Timing) -> dict[str, float]:
    return {"seconds": round(timing.p50, 5), "mib": round(timing.peak_memory / 2**20, 1)}


def parameters(name: str) -> int:
    if name not in PEERS:
        return cost_of(name).parameters
    with torch.device("meta"):
        return sum(each.numel() for each in timm.create_model(name).parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=[*list_models(), *PEERS])
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    page: dict[str, Any] = json.loads(FILE.read_text()) if FILE.is_file() else {"models": {}}
    fast = torch.bfloat16 if fast_bfloat16() else torch.float32
    for name in args.models:
        peer = name in PEERS
        row: dict[str, Any] = {"source": "timm" if peer else "transept", "parameters": parameters(name)}
        for kind, form, dtype in (("eager", "eager", torch.float32), ("fast", "fused", fast)):
            for batch in (1, 8):
                if batch > 1 and (row["macs"] if peer else cost_of(name).macs) * batch > MOST_MACS:
                    continue
                result = bench(
                    ["xcit_nano_12_p16_224"] if peer else [name],  # there is no run of peers alone
                    peers=[name] if peer else None,
                    batches=[batch],
                    forms=["eager" if peer else form],
                    dtype=dtype,
                    repetitions=args.repetitions,
                )
                timing = next(each for each in result.timings if each.model == name)
                row.setdefault(kind, {})[str(batch)] = measured(timing)
                row["macs"] = timing.macs
                if (kind, batch) == ("eager", 1):
                    page["machine"] = result.machine | {"fast": str(fast).removeprefix("torch.")}
        page["models"][name] = row
        print(name, row, flush=True)
        write_atomically(FILE, lambda path: path.write_text(json.dumps(page, indent=1) + "\n"))


if __name__ == "__main__":
    main()
