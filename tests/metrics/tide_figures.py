"""Writes tide_figures.json: random boxes and masks, and their errors by kind as tidecv 1.0.1 (official) finds them.

tidecv is no dependency. In an environment of its own, with numpy and pycocotools:

    pip install tidecv==1.0.1 && python tests/metrics/tide_figures.py

Every class has objects and there are no crowds; `transept.metrics.detection_errors` says where the two differ.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

SETS = ((0, 12, 3), (3, 8, 2), (2, 16, 5))
"""Seed, pictures, classes."""
MASK_SETS = ((4, 12, 3), (5, 10, 2))
SIDE = 200


def random_set(seed: int, pictures: int, classes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and results in COCO's formats: moved, doubled, renamed, lost and invented boxes."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for picture in range(1, pictures + 1):
        for _ in range(int(rng.integers(0, 9))):
            corner, sides = rng.uniform(0, SIDE - 70, 2), rng.uniform(8, 70, 2)
            label = int(rng.integers(classes)) + 1
            annotations.append(_entry(picture, label, corner, sides))
            for _ in range(int(rng.choice([0, 1, 1, 2, 3]))):
                moved = rng.normal(0, rng.choice([0.03, 0.15, 0.4]), 4) * (*sides, *sides)
                given = label if rng.random() < 0.75 else int(rng.integers(classes)) + 1
                box = _entry(picture, given, corner + moved[:2], np.maximum(sides + moved[2:], 3))
                results.append(box | {"score": round(float(rng.random()), 6)})
        for _ in range(int(rng.integers(0, 3))):
            label, corner = int(rng.integers(classes)) + 1, rng.uniform(0, SIDE - 70, 2)
            box = _entry(picture, label, corner, rng.uniform(8, 70, 2))
            results.append(box | {"score": round(float(rng.random()), 6)})
    truth = {
        "images": [{"id": picture, "height": SIDE, "width": SIDE} for picture in range(1, pictures + 1)],
        "categories": [{"id": label, "name": f"class {label}"} for label in range(1, classes + 1)],
        "annotations": [entry | {"id": i, "iscrowd": 0} for i, entry in enumerate(annotations, 1)],
    }
    return truth, results


def _entry(picture: int, label: int, corner: np.ndarray, sides: np.ndarray) -> dict[str, Any]:
    return {"image_id": picture, "category_id": label, "bbox": [round(float(v), 2) for v in (*corner, *sides)]}


def with_masks(seed: int, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An ellipse, a triangle or a frame in each box: masks overlap otherwise than their boxes."""
    from pycocotools.mask import encode  # pyright: ignore[reportMissingImports]

    rng, (rows, columns) = np.random.default_rng(seed), np.mgrid[:SIDE, :SIDE] + 0.5
    masked = []
    for entry in entries:
        x, y, width, height = entry["bbox"]
        across, down = (columns - x) / width, (rows - y) / height
        inside = (abs(across - 0.5) < 0.5) & (abs(down - 0.5) < 0.5)
        middle = np.maximum(abs(across - 0.5), abs(down - 0.5))
        forms = ((across - 0.5) ** 2 + (down - 0.5) ** 2 < 0.25, across > down, middle > 0.2)
        mask = inside & forms[rng.choice(3, p=(0.7, 0.15, 0.15))]
        runs = encode(np.asfortranarray(mask.astype(np.uint8)))
        masked.append(entry | {"segmentation": {"size": [SIDE, SIDE], "counts": runs["counts"].decode()}})
    return masked


def tide_figures(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """AP50, dAP and counts of boxes ("bbox") or masks ("segm").

    tidecv's order: classification, localisation, both, duplicate, background, missed.
    """
    from tidecv import TIDE, Data  # pyright: ignore[reportMissingImports]

    true, found = Data("truth"), Data("found")
    for image in truth["images"]:
        true.add_image(image["id"], str(image["id"]))
    for category in truth["categories"]:
        true.add_class(category["id"], category["name"])
    for entry in truth["annotations"]:
        add = true.add_ignore_region if entry["iscrowd"] else true.add_ground_truth
        add(entry["image_id"], entry["category_id"], box=entry["bbox"], mask=entry.get("segmentation"))
    for entry in results:
        shape = {"box": entry["bbox"], "mask": entry.get("segmentation")}
        found.add_detection(entry["image_id"], entry["category_id"], entry["score"], **shape)
    run = TIDE().evaluate(true, found, mode=TIDE.BOX if kind == "bbox" else TIDE.MASK)
    return {
        "ap50": run.ap,
        "gains": list(run.fix_main_errors().values()),
        "counts": list(run.count_errors().values()),
        "special": list(run.fix_special_errors().values()),
    }


if __name__ == "__main__":
    sets = []
    for options in SETS + MASK_SETS:
        truth, results = random_set(*options)
        kind = "bbox" if options in SETS else "segm"
        if kind == "segm":
            truth["annotations"] = with_masks(options[0], truth["annotations"])
            results = with_masks(options[0] + 100, results)
        figures = tide_figures(truth, results, kind)
        sets.append({"kind": kind, "truth": truth, "results": results, "tide": figures})
    page = {"tidecv": version("tidecv"), "sets": sets}
    Path(__file__).with_suffix(".json").write_text(json.dumps(page) + "\n", encoding="utf-8")
