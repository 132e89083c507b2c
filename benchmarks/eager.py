"""Eager float32 speed of inference and training steps beside timm: `make bench`.

Same machine, same run, same weights' shapes and inputs; the two models alternate, and medians are compared. Also
states the rate of a large matrix product in the same run, and which share of it each model reaches.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import transept

NAMES = ("xcit_nano_12_p16_224", "xcit_small_12_p16_224", "cait_xxs24_224", "cait_s24_224")
RESULTS = Path(__file__).parent / "results"


def seconds(calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Times of each call, taken in turns after two rounds of warming up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repetitions + 2):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn >= 2:
                times[name].append(time.perf_counter() - started)
    return times


def step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    def run() -> None:
        model(images).square().mean().backward()
        model.zero_grad()

    return run


def forward(model: nn.Module, images: Tensor) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        model(images)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--repetitions", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    square = torch.randn(2048, 2048)
    product = statistics.median(seconds({"product": lambda: square @ square}, 15)["product"])
    gmacs = 2048**3 / product / 1e9
    rows = []
    for name in args.names:
        ours, theirs = transept.create_model(name), timm.create_model(name)
        macs = transept.count(ours).macs
        for mode, batch in (("inference", 1), ("inference", 8), ("training", 8)):
            images = torch.randn(batch, 3, 224, 224)
            for model in (ours, theirs):
                model.train(mode == "training")
            make = step if mode == "training" else forward
            repetitions = args.repetitions if mode == "inference" else max(args.repetitions // 3, 3)
            times = seconds({"transept": make(ours, images), "timm": make(theirs, images)}, repetitions)
            median = {key: statistics.median(values) for key, values in times.items()}
            spread = {key: (min(values), max(values)) for key, values in times.items()}
            row = {"model": name, "mode": mode, "batch": batch, "seconds": median, "min_max": spread}
            row["ratio"] = median["timm"] / median["transept"]
            if mode == "inference":
                row["share_of_product_rate"] = macs * batch / median["transept"] / 1e9 / gmacs
            rows.append(row)
            print(
                f"{name:24} {mode:10} batch {batch}   {1e3 * median['transept']:8.1f} ms   timm "
                f"{1e3 * median['timm']:8.1f} ms   {row['ratio']:.2f} times timm's speed"
                + (f"   {row['share_of_product_rate']:.2f} of the product rate" if mode == "inference" else ""),
                flush=True,
            )
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "transept": transept.__version__,
        "matrix_product_gmacs": gmacs,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "eager.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
