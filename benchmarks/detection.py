"""Average precision that the built-in quick detection recipes reach, with torchvision's detectors beside them.

Each row is a process of its own on one thread, from scratch, with seed 0. Usage:

    uv run python benchmarks/detection.py --data ../shared/data [--only fcos ...]

Rows are added to, or replaced in, benchmarks/results/detection.json.
"""

import argparse
import csv
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "detection.json"
BASELINE = "benchmarks/detection_baseline.py"
CELLS = ("quick-det", "--detect.augmentation.flip_vertical", "0.5")
NUCLEI = ("quick-inst",)
ROWS: dict[str, tuple[str, ...]] = {
    "atss": CELLS,
    "retinanet": (*CELLS, "--detect.method", "retinanet"),
    "fcos": (*CELLS, "--detect.method", "fcos", "--optimizer.lr", "2e-3"),
    "torchvision RetinaNet, MobileNetV3-small": (
        BASELINE, *CELLS, "--detect.method", "retinanet", "--schedule.epochs", "9",
        "--backbone", "mobilenet_v3_small", "--width", "64",
    ),
    "torchvision RetinaNet, ResNet-18": (
        BASELINE, *CELLS, "--detect.method", "retinanet", "--schedule.epochs", "3",
        "--backbone", "resnet18", "--width", "64",
    ),
    "mask_rcnn": NUCLEI,
    "cascade_mask_rcnn": (*NUCLEI, "--detect.method", "cascade_mask_rcnn", "--schedule.epochs", "6"),
    "torchvision Mask R-CNN, MobileNetV3-small": (
        BASELINE, *NUCLEI, "--schedule.epochs", "6", "--model.norm_eval", "false",
        "--backbone", "mobilenet_v3_small", "--width", "64",
    ),
}  # fmt: skip


def measure(row: str, data: Path, folder: Path) -> dict[str, Any]:
    command = ROWS[row]
    name = "bccd" if "quick-det" in command else "nuclei"
    program = [] if command[0] == BASELINE else ["-m", "transept", "train"]
    given = [*program, *command, "--data", str(data / name), "--out", str(folder)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *given], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    epochs = list(csv.DictReader((folder / "metrics.csv").open()))
    best = max(epochs, key=lambda epoch: float(epoch["val_map"]))
    return {
        "row": row,
        "data": name,
        "options": " ".join(command).removeprefix(f"{BASELINE} "),
        "epoch": int(best["epoch"]),
        "scores": {key.removeprefix("val_"): float(value) for key, value in best.items() if key.startswith("val_")},
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "seconds_of_training": float(epochs[-1]["seconds"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds bccd and nuclei")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    args = parser.parse_args()
    for row in args.only:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(row, args.data, Path(folder) / "run")
        rows = {each["row"]: each for each in json.loads(RESULTS.read_text())["rows"]} if RESULTS.exists() else {}
        rows[row] = found
        versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "transept")}
        machine = {"cpu": platform.machine(), "threads": 1, **versions}
        RESULTS.write_text(
            json.dumps({"machine": machine, "rows": [rows[name] for name in ROWS if name in rows]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
