"""The table of docs/export.md: every family as ONNX beside eager, classifier and backbone, at two sizes.

`python benchmarks/export.py` (a quarter of an hour on one core). Weights are random, drawn with a seed, and LayerScale
is near 1, so that an error of any branch shows. Raw results go to benchmarks/results/export.json.

`python benchmarks/export.py --seconds` measures instead how long `transept export` takes, in seconds of one processor,
those of compilers that it starts included (benchmarks/results/export_seconds.json).
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn

import transept
from transept.data.classification.transforms import preprocessing_of
from transept.export.backbone import export_backbone
from transept.export.logits import export_logits
from transept.export.onnx import Exported
from transept.files import write_atomically
from transept.tasks.classify import Classifier

RESULTS = Path(__file__).parent / "results" / "export.json"
DURATIONS = RESULTS.with_name("export_seconds.json")
DURATION_OF = ["cat_tiny", "cait_xxs24_224", "cat_small", "cait_xxs36_224", "xcit_nano_12_p16_224"]
# The second size: that of the same graph where it takes any, else of a further one.
SECOND = {
    "xcit_nano_12_p16_224": None,
    "cait_xxs24_224": None,
    "cabvit_p_l0": None,
    "cabvit_h_l1": (256, 320),
    "cat_tiny": (224, 448),
    "crossformer_tiny": (256, 320),
}


def seeded(name: str, *, features_only: bool) -> Any:
    torch.manual_seed(0)
    model = transept.create_model(name, features_only=features_only).eval()
    for key, parameter in model.named_parameters():
        if "gamma" in key:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def export(name: str, *, features_only: bool, **options: Any) -> tuple[Exported, dict[str, int]]:
    """What was found, and the bytes of each file."""
    model = seeded(name, features_only=features_only)
    with tempfile.TemporaryDirectory() as folder:
        if features_only:
            exported = export_backbone(model, folder, **options)
        else:
            classes = [str(i) for i in range(model.num_classes)]
            exported = export_logits(Classifier(model, classes, preprocessing_of(model)), folder, **options)
        return exported, {kind: path.stat().st_size for kind, path in exported.files.items()}


def row(name: str, *, features_only: bool) -> dict[str, Any]:
    second, start = SECOND[name], time.perf_counter()
    first, sizes = export(name, features_only=features_only, dynamic_size=second is None)
    result = {
        "model": name,
        "graph": "backbone" if features_only else "classifier",
        "img_size": first.about["img_size"],
        "size_step": first.about["size_step"],
        "bytes": sizes,
        "errors": first.errors,
    }
    if second is not None:
        again, _ = export(name, features_only=features_only, img_size=second, formats=["onnx"])
        result["second"] = {"img_size": list(second), "errors": again.errors}
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="rows to measure anew (default: all); the others are kept")
    parser.add_argument("--seconds", action="store_true", help="how long the command takes, in place of its errors")
    args = parser.parse_args()
    if args.seconds:
        durations(args.names)
        return
    for name in args.names or SECOND:
        for features_only in (False, True):
            added = row(name, features_only=features_only)
            print(json.dumps(added), flush=True)
            rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
            rows = [other for other in rows if (other["model"], other["graph"]) != (name, added["graph"])] + [added]
            rows.sort(key=lambda other: (list(SECOND).index(other["model"]), other["graph"]))
            result = {"machine": machine(), "weights": "random, seed 0", "batch": 3, "rows": rows}
            text = json.dumps(result, indent=1) + "\n"
            write_atomically(RESULTS, lambda path, text=text: path.write_text(text))


def duration(file: Path, model: str, kind: str, *, dynamic: bool) -> dict[str, Any]:
    """One command, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "transept",
        "export",
        str(file),
        "--format",
        kind,
        "--out",
        str(file.parent / "out"),
    ]
    command += [*["--dynamic-size"] * dynamic, "--timeout", "36000", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = {"model": model, "format": kind, "dynamic_size": dynamic}
    row |= {"processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)}
    row |= {"seconds": round(time.monotonic() - start, 1), "signs_of_life": ended.stderr.count("still writing")}
    return row | ({"failed": ended.stderr.splitlines()[-1]} if ended.returncode else {})


def durations(names: list[str]) -> None:
    kept = json.loads(DURATIONS.read_text())["rows"] if DURATIONS.exists() else []
    for name in names or DURATION_OF:
        with tempfile.TemporaryDirectory() as folder:
            model, file = seeded(name, features_only=False), Path(folder, "model.safetensors")
            Classifier(model, [str(i) for i in range(model.num_classes)], preprocessing_of(model)).save(str(file))
            for kind in ("onnx", "pt2", "package"):
                for dynamic in (False, True) if SECOND.get(name, 0) is None or name.startswith("cait") else (False,):
                    added = duration(file, name, kind, dynamic=dynamic)
                    print(json.dumps(added), flush=True)
                    same = {key: added[key] for key in ("model", "format", "dynamic_size")}
                    kept = [row for row in kept if row | same != row] + [added]
                    text = json.dumps({"machine": machine(), "threads": 1, "rows": kept}, indent=1) + "\n"
                    write_atomically(DURATIONS, lambda path, text=text: path.write_text(text))


def machine() -> dict[str, Any]:
    return {
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "transept": version("transept"),
    }


if __name__ == "__main__":
    main()
