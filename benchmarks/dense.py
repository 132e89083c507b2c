"""Detectors and segmenters in all forms, beside torchvision's: `uv run python benchmarks/dense.py` (twenty minutes).

Whole calls, from a picture to objects or labels, on the photographs that scikit-learn carries, with random weights.
Detectors see pictures of 1216 x 800 pixels, segmenters 512 x 512. All forms take turns; raw results go to
results/dense.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.transforms.functional import to_tensor

import transept
from transept.bench.timing import processor
from transept.data.detection.transforms import DetectionPreprocessing
from transept.data.segmentation.transforms import SegmentationPreprocessing
from transept.files import write_atomically

RESULTS = Path(__file__).parent / "results" / "dense.json"
BACKBONE = "xcit_small_12_p16"
SIZE, SQUARE = (800, 1216), (512, 512)
DETECTORS = ("retinanet", "mask_rcnn")
PEER = "torchvision Mask R-CNN ResNet-50"
MACHINE = {
    "processor": processor(),
    "threads": torch.get_num_threads(),
    **{name: version(name) for name in ("torch", "torchvision", "transept")},
}
Call = Callable[[Image.Image], object]


def photographs(size: tuple[int, int]) -> list[Image.Image]:
    return [Image.fromarray(each).resize(size[::-1]) for each in load_sample_images().images]


def forms(task: Any, size: tuple[int, int], dtypes: Sequence[str]) -> dict[str, Call]:
    made = {"eager": task, "fused": transept.fuse(task)}
    made |= {f"compiled {dtype}": transept.compile(task, dtype, 1, size) for dtype in dtypes}
    return {name: lambda picture, form=form: form.predict([picture]) for name, form in made.items()}


@torch.inference_mode()
def peer(model: Any, picture: Image.Image) -> object:
    return model([to_tensor(picture)])


def calls(row: str, dtypes: Sequence[str]) -> tuple[dict[str, Call], tuple[int, int]]:
    torch.manual_seed(0)
    if row == PEER:
        model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=SIZE[0], max_size=SIZE[1]).eval()
        return {"eager": lambda picture: peer(model, picture)}, SIZE
    if row in DETECTORS:
        about = DetectionPreprocessing(scale=SIZE[::-1])
        detector = transept.create_detector(row, backbone=BACKBONE, preprocessing=about).eval()
        return forms(detector, SIZE, dtypes), SIZE
    about = SegmentationPreprocessing(scale=SQUARE)
    segmenter = transept.create_segmenter(row, backbone=BACKBONE, preprocessing=about).eval()
    return forms(segmenter, SQUARE, dtypes), SQUARE


def measure(made: dict[str, Call], size: tuple[int, int], repetitions: int) -> dict[str, float]:
    """The median seconds of a picture."""
    pictures = photographs(size)
    times: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(1 + repetitions):
        for name, call in made.items():
            started = time.perf_counter()
            call(pictures[turn % len(pictures)])
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    rows = [*DETECTORS, "upernet", PEER]
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repetitions", type=int, default=6)
    args = parser.parse_args()
    for row in args.rows:  # kept as they come
        seconds = measure(*calls(row, args.dtypes), args.repetitions)
        print(row, {name: round(each, 3) for name, each in seconds.items()}, flush=True)
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
        page = {"machine": MACHINE, "rows": kept["rows"] | {row: seconds}}
        write_atomically(RESULTS, lambda path, page=page: path.write_text(json.dumps(page, indent=1) + "\n"))


if __name__ == "__main__":
    main()
