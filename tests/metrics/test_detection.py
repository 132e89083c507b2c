"""Average precision equals that of pycocotools, crowds and all."""

import copy
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transept.errors import TranseptError
from transept.metrics.detection import DetectionMeter, DetectionScores, Kind, detection_scores

mask_api = pytest.importorskip("pycocotools.mask")
pytest.importorskip("faster_coco_eval")

H, W = 240, 320


def oracle(truth: dict[str, Any], results: list[dict[str, Any]], kind: Kind) -> DetectionScores:
    """pycocotools' own twelve figures, and its precision of each class."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    drop = "bbox" if kind == "segm" else "segmentation"
    results = [{key: value for key, value in result.items() if key != drop} for result in copy.deepcopy(results)]
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(results), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    names = {category["id"]: category["name"] for category in truth["categories"]}
    precision = run.eval["precision"][:, :, :, 0, 2]
    each = [values[values > -1] for values in np.moveaxis(precision, 2, 0)]
    per_class = {
        names[number]: v.mean() if v.size else np.nan for number, v in zip(run.params.catIds, each, strict=True)
    }
    curves = {names[number]: run.eval["precision"][0, :, k, 0, 2] for k, number in enumerate(run.params.catIds)}
    means = (np.nan if value == -1 else value for value in run.stats)
    return DetectionScores(*means, per_class=per_class, precision50=curves)


def assert_equal(ours: DetectionScores, theirs: DetectionScores) -> None:
    for name, value in theirs.means().items():
        np.testing.assert_allclose(ours.means()[name], value, rtol=0, atol=1e-12, err_msg=name)
    assert ours.per_class == pytest.approx(theirs.per_class, abs=1e-12, nan_ok=True)
    for name, curve in theirs.precision50.items():
        np.testing.assert_allclose(ours.precision50[name], np.where(curve < 0, np.nan, curve), atol=1e-12)


def noisy(truth: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Annotations shifted, some doubled, some of another class, some lost: results of every quality."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    numbers = [category["id"] for category in truth["categories"]]
    results = []
    for annotation in truth["annotations"]:
        height, width = sizes[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        for _ in range(int(rng.integers(0, 3))):
            shift = rng.normal(0, rng.choice([0.02, 0.1, 0.3]), 4) * (w, h, w, h)
            x1, y1 = np.clip(x + shift[0], 0, width - 3), np.clip(y + shift[1], 0, height - 3)
            x2, y2 = np.clip(x1 + w + shift[2], x1 + 2, width), np.clip(y1 + h + shift[3], y1 + 2, height)
            mask = np.zeros((height, width), np.uint8, order="F")
            mask[round(y1) : round(y2), round(x1) : round(x2)] = 1
            rle = mask_api.encode(mask)
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"] if rng.random() < 0.9 else int(rng.choice(numbers)),
                    "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                    "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                    "score": float(rng.random()),
                }
            )
    return results


def a_set(rng: np.random.Generator, images: int = 12) -> dict[str, Any]:
    """As COCO's files are: gaps in ids, polygons, crowds with run lengths, a picture and a class without objects."""
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": number, "name": f"class {number}"} for number in (3, 17, 18, 90)]
    for i in range(images):
        truth["images"].append({"id": 7 * i + 4, "height": H, "width": W, "file_name": f"{i}.jpg"})
        for _ in range(0 if i == 3 else int(rng.integers(2, 12))):
            x, y = rng.uniform(0, W - 20), rng.uniform(0, H - 20)
            w, h = (min(side, room) for side, room in zip(rng.uniform(4, 150, 2), (W - x, H - y), strict=True))
            annotation: dict[str, Any] = {
                "id": 5 * len(truth["annotations"]) + 11,
                "image_id": 7 * i + 4,
                "category_id": int(rng.choice([3, 17, 90])),
                "bbox": [float(v) for v in (x, y, w, h)],
                "area": float(w * h * rng.uniform(0.6, 1)),
                "iscrowd": int(rng.random() < 0.15),
                "segmentation": [[float(v) for v in (x, y, x + w, y, x + w, y + h, x, y + h)]],
            }
            if annotation["iscrowd"]:
                mask = np.zeros((H, W), np.uint8)
                mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
                runs = np.diff([0, *(np.flatnonzero(np.diff(mask.flatten("F"))) + 1), mask.size]).tolist()
                annotation["segmentation"] = {"size": [H, W], "counts": runs if not mask[0, 0] else [0, *runs]}
            truth["annotations"].append(annotation)
    return truth


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(seed: int, kind: Kind):
    rng = np.random.default_rng(seed)
    truth = a_set(rng)
    results = noisy(truth, rng)
    before = copy.deepcopy((truth, results))
    scores = detection_scores(truth, results, kind)
    assert (truth, results) == before
    assert any(annotation["iscrowd"] for annotation in truth["annotations"])
    assert 0.05 < scores.map < scores.map50 < 0.95
    assert np.isnan(scores.per_class["class 18"])
    assert_equal(scores, oracle(truth, results, kind))


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_equals_pycocotools_on_photographs(kind: Kind, shared_data: Path):
    truth = json.loads((shared_data / "coco_mini/annotations/instances_val2017.json").read_text())
    results = noisy(truth, np.random.default_rng(0))
    scores = detection_scores(truth, results, kind)
    assert scores.map > 0.05
    assert_equal(scores, oracle(truth, results, kind))


def test_a_perfect_answer_and_none():
    truth = a_set(np.random.default_rng(0))
    perfect = [annotation | {"score": 0.5} for annotation in truth["annotations"] if not annotation["iscrowd"]]
    assert detection_scores(truth, perfect).map == 1.0
    nothing = detection_scores(truth, [])
    assert (nothing.map, nothing.recall100) == (0.0, 0.0)
    truth["annotations"] = []
    assert np.isnan(detection_scores(truth, perfect).map)


def test_ids_that_are_names():
    truth = a_set(np.random.default_rng(1))
    results = noisy(truth, np.random.default_rng(1))
    expected = detection_scores(truth, results)
    for entry in (*truth["annotations"], *results):
        entry["image_id"] = f"picture-{entry['image_id']}"
    for image in truth["images"]:
        image["id"] = f"picture-{image['id']}"
    truth["categories"][0]["name"] = truth["categories"][1]["name"]
    renamed = detection_scores(truth, results)
    assert renamed.means() == pytest.approx(expected.means(), nan_ok=True)
    assert set(renamed.per_class) == {"class 17 (3)", "class 17 (17)", "class 18", "class 90"}


def test_the_meter_gathers_batches():
    truth = a_set(np.random.default_rng(2))
    results = noisy(truth, np.random.default_rng(2))
    meter = DetectionMeter(truth, masks=True)
    half = len(results) // 2
    meter.update(torch.tensor(2.0), results[:half], [None] * 4)
    meter.update(torch.tensor(5.0), results[half:], [None] * 8)
    means = meter.means()
    assert (means["loss"], meter.samples) == (4.0, 12)
    assert means["map"] == detection_scores(truth, results).map
    assert means["mask_map75"] == detection_scores(truth, results, "segm").map75
    meter.reset()
    assert meter.means()["map"] == 0


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"image_id": 999}, "bbox", "result 0 has the image_id 999, which the annotations lack"),
        ({"category_id": 4}, "bbox", "result 0 has the category_id 4"),
        ({"bbox": None}, "bbox", "result 0 has no 'bbox', which bbox scores need"),
        ({"segmentation": None}, "segm", "result 0 has no 'segmentation', which segm scores need"),
    ],
)
def test_wrong_results(change: dict[str, Any], kind: Kind, message: str):
    truth = a_set(np.random.default_rng(3))
    results = noisy(truth, np.random.default_rng(3))
    results[0] |= change
    with pytest.raises(TranseptError, match=message):
        detection_scores(truth, results, kind)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_annotations_without_areas_have_those_of_what_is_compared(kind: Kind):
    truth = a_set(np.random.default_rng(5))
    results = noisy(truth, np.random.default_rng(5))
    for annotation in truth["annotations"]:
        rles = annotation["segmentation"]
        rle = mask_api.frPyObjects(rles, H, W)
        box_area = annotation["bbox"][2] * annotation["bbox"][3]
        annotation["area"] = box_area if kind == "bbox" else float(np.sum(mask_api.area(rle)))
    expected = detection_scores(truth, results, kind)
    assert expected.map_small != expected.map
    for number, annotation in enumerate(truth["annotations"]):
        annotation["area"] = None
        if number % 2:
            del annotation["area"]
    assert detection_scores(truth, results, kind).means() == pytest.approx(expected.means(), nan_ok=True)


def test_annotations_without_masks():
    truth = a_set(np.random.default_rng(4))
    del truth["annotations"][2]["segmentation"]
    with pytest.raises(TranseptError, match="annotation 21 has no 'segmentation', which segm scores need"):
        detection_scores(truth, [], "segm")
