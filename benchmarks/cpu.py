"""The table and the pictures of benchmarks/README.md: `uv run python benchmarks/cpu.py` (half an hour on two cores).

Each group of models takes turns in one process. Raw results, with machine and versions, go to benchmarks/results,
pictures beside them.
"""

import argparse
import json
from pathlib import Path

import torch

from transept.bench.figure import draw_benchmark
from transept.bench.timing import Benchmark, Timing, bench
from transept.files import write_together
from transept.inference.processor import fast_bfloat16

RESULTS = Path(__file__).parent / "results"
WITH_PEER = ("xcit_nano_12_p16_224", "xcit_small_12_p16_224", "cait_xxs24_224", "cait_s24_224")
WITHOUT = ("cat_tiny", "cat_small", "crossformer_tiny", "crossformer_small", "cabvit_h_l1", "cabvit_h_l2")
FORMS = (
    "xcit_nano_12_p16_224",
    "cait_xxs24_224",
    "crossformer_tiny",
    "cat_tiny",
    "cabvit_h_l1",
    "crossvit_small_240",
    "bixt_ti_l64_p16",
    "xcit_small_12_p16_224",
)
# The CabViT paper's comparison, at batch 1.
LATENCY = ("efficientformer_l3", "nextvit_small")
SIZES = (224, 448, 672, 896, 1024)


def save(name: str, result: Benchmark) -> None:
    write_together(
        RESULTS,
        {
            f"{name}.json": lambda path: path.write_text(json.dumps(result.as_dict(), indent=1) + "\n"),
            f"{name}.png": lambda path: draw_benchmark(result, path),
        },
    )


def others(name: str, model: str) -> list[Benchmark]:
    """What was kept of other models."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return []
    kept = json.loads(file.read_text())
    timings = [
        Timing(**each | {"img_size": tuple(each["img_size"])}) for each in kept["timings"] if each["model"] != model
    ]
    return [Benchmark(machine=kept["machine"], timings=timings)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="inference, forms, training, cabvit, resolution; default: all")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of forms")
    parser.add_argument("--models", nargs="+", choices=FORMS, default=FORMS, help="of forms")
    parser.add_argument("--processor", default=fast_bfloat16() or "avx", help="its name in the files of forms")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    few = max(args.repetitions // 3, 3)

    def part(name: str) -> bool:
        return not args.parts or name in args.parts

    def run(names: tuple[str, ...], repetitions: int = args.repetitions, **options: object) -> Benchmark:
        return bench(names, repetitions=repetitions, report=print, **options)  # pyright: ignore[reportArgumentType]

    def together(results: list[Benchmark]) -> Benchmark:
        return Benchmark(machine=results[0].machine, timings=[t for result in results for t in result.timings])

    if part("inference"):  # each model alone with its peer: turns of ten models would be minutes apart
        pairs = [run((name,), peers=(), batches=(1, 8)) for name in WITH_PEER]
        save("inference", together([*pairs, *(run((name,), batches=(1, 8)) for name in WITHOUT)]))
    if part("forms"):
        forms = ["eager", "fused", "compiled", "onnxruntime", "openvino"]
        if args.dtype != "float32":
            forms.remove("onnxruntime")  # it computes in float32 alone
        kept = f"forms-{args.dtype}-{args.processor}"  # each kind of processor has its own
        for name in args.models:  # kept as they come: compiling takes a minute for each form
            result = run((name,), few, peers=(), batches=(1, 8), forms=forms, dtype=getattr(torch, args.dtype))
            save(kept, together([result, *others(kept, name)]))
    if part("training"):
        steps = [run((name,), few, peers=(), batches=(8,), forms=("eager",), training=True) for name in WITH_PEER]
        save("training", together(steps))
    if part("cabvit"):
        save("cabvit", run(("cabvit_h_l1", "cabvit_h_l2"), peers=LATENCY, batches=(1,)))
    if part("resolution"):
        growing = [
            run(("xcit_small_12_p16_224",), few, peers=("deit_small_patch16_224",), sizes=SIZES, forms=("eager",)),
            run(("crossformer_small",), few, sizes=SIZES, forms=("eager",)),
            run(("cat_small",), few, sizes=(224, 448, 672, 896), forms=("eager",)),
        ]
        save("resolution", together(growing))


if __name__ == "__main__":
    main()
