"""Seconds and memory of loading a COCO file of 300,000 annotations: `python benchmarks/annotations.py [--polygons]`.

The file and its 10,000 pictures are made in a temporary folder; each measurement is a process of its own. Memory is
what the process holds at most beyond what it held once everything was imported. Two trees are compared by running this
file with the one and the other installed.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

PICTURES, WIDTH, HEIGHT = 10_000, 640, 480


def make(root: Path, annotations: int, polygons: bool) -> None:
    """A training file of that many annotations, and a validation file of one."""
    draw = random.Random(0)
    (root / "annotations").mkdir()
    for half, count, pictures in (("train", annotations, PICTURES), ("val", 1, 1)):
        (root / half).mkdir()
        first = root / half / "0.png"
        Image.new("L", (WIDTH, HEIGHT)).save(first)
        for number in range(1, pictures):
            (root / half / f"{number}.png").hardlink_to(first)
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT, "license": 1}
                for i in range(pictures)
            ],
            "categories": [{"id": i, "name": f"class {i}", "supercategory": ""} for i in range(1, 81)],
            "annotations": [_annotation(i, draw.randrange(pictures), draw, polygons) for i in range(count)],
        }
        (root / "annotations" / f"instances_{half}.json").write_text(json.dumps(content))


def _annotation(number: int, image: int, draw: random.Random, polygons: bool) -> dict[str, object]:
    x, y = round(draw.uniform(0, WIDTH - 100), 2), round(draw.uniform(0, HEIGHT - 100), 2)
    width, height = round(draw.uniform(4, 100), 2), round(draw.uniform(4, 100), 2)
    corners = [round(z + draw.uniform(0, side), 2) for _ in range(20) for z, side in ((x, width), (y, height))]
    return {
        "id": number,
        "image_id": image,
        "category_id": 1 + number % 80,
        "bbox": [x, y, width, height],
        "area": round(width * height, 2),
        "iscrowd": 0,
        "segmentation": [corners] if polygons else [],
    }


def load(root: str, masks: bool) -> None:
    from transept.data.detection.sets import load_detection_splits  # imported in the measured process alone

    if masks:
        import pycocotools.mask  # noqa: F401
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, wall = time.process_time(), time.perf_counter()
    splits = load_detection_splits(root, masks=masks)
    seconds, passed = time.process_time() - start, time.perf_counter() - wall
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"cpu": seconds, "wall": passed, "mib": held / 1024, "pictures": len(splits.train)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--annotations", type=int, default=300_000)
    parser.add_argument("--polygons", action="store_true", help="each annotation has a polygon of 20 corners")
    parser.add_argument("--masks", action="store_true", help="load them, too")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        load(options.load, options.masks)
        return
    with tempfile.TemporaryDirectory() as root:
        make(Path(root), options.annotations, options.polygons)
        command = [sys.executable, __file__, "--load", root, *(["--masks"] if options.masks else [])]
        runs = [json.loads(subprocess.check_output(command)) for _ in range(options.repeat)]
    print({name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]})


if __name__ == "__main__":
    main()
