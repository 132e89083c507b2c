"""What `eval` says of a detector, of boxes whose faults are known, on the built-in scenes."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transept.data.detection.masks import decode_masks, mask_api
from transept.data.detection.scenes import SceneDetection
from transept.data.scenes import DigitScenes
from transept.draw.precision_recall import draw_precision_recall
from transept.metrics.detection import Kind, detection_scores
from transept.tasks.detect_report import DetectorReport

pytest.importorskip("faster_coco_eval")

KINDS: tuple[Kind, ...] = ("bbox", "segm")
FILES = {
    "per_class.csv",
    "confusion.csv",
    "confusion.png",
    "precision_recall.csv",
    "precision_recall.png",
    "errors.csv",
}


@pytest.fixture(scope="module")
def scenes() -> SceneDetection:
    return SceneDetection(DigitScenes("val", 4), masks=False)


def report_of(scenes: SceneDetection, results: list[dict[str, Any]]) -> DetectorReport:
    truth = scenes.ground_truth()
    return DetectorReport.of(truth, results, {"bbox": detection_scores(truth, results)})


def perfect(scenes: SceneDetection) -> list[dict[str, Any]]:
    return [
        {key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for entry in scenes.ground_truth()["annotations"]
    ]


def test_faults_are_named(scenes: SceneDetection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    results = perfect(scenes)
    victim = next(i for i, entry in enumerate(results) if entry["image_id"] == 2)
    was = results[victim]["category_id"]
    results[victim] = results[victim] | {"category_id": was % 10 + 1, "score": 0.95}  # another digit
    results.append({"image_id": 3, "category_id": was, "bbox": [0.0, 0.0, 2.0, 2.0], "score": 0.99})
    report = report_of(scenes, results)
    metrics = report.metrics()
    objects = len(scenes.ground_truth()["annotations"])
    assert sum(row["objects"] for row in metrics["per_class"].values()) == objects
    assert metrics["errors"]["classification"]["count"] == metrics["errors"]["background"]["count"] == 1
    assert metrics["errors"]["missed"]["count"] == 0
    names = scenes.classes
    assert {"true": names[was - 1], "predicted": names[was % 10], "count": 1} in metrics["confused"]
    assert metrics["errors"]["classification"]["cost"] > 0
    assert np.mean(metrics["precision_recall"]["mean"]) == pytest.approx(metrics["errors"]["box_ap50"], abs=1e-5)
    table = report.table()
    assert [column.name for column in table.columns] == [
        "class", "box AP", "precision", "recall", "F1", "at score", "objects"
    ]  # fmt: skip
    assert "classification " in table.note
    files = report.files(scenes)
    assert set(files) == FILES | {"worst.png", "confident.png"}
    read: list[int] = []
    take = SceneDetection.__getitem__
    monkeypatch.setattr(SceneDetection, "__getitem__", lambda self, i: read.append(i) or take(self, i))
    for name, write in files.items():
        write(tmp_path / name)
        if name.endswith(".png"):
            Image.open(tmp_path / name).verify()
    # One at a time, and only those that are drawn: the picture of each error in both sheets.
    assert sorted(read) == [1, 1, 2, 2]
    rows = list(csv.reader((tmp_path / "confusion.csv").open(encoding="utf-8", newline="")))
    assert rows[0] == ["true", *names, "background"]
    assert sum(int(count) for row in rows[1:-1] for count in row[1:]) == objects
    curves = list(csv.DictReader((tmp_path / "precision_recall.csv").open(encoding="utf-8", newline="")))
    assert (len(curves), curves[50]["recall"]) == (101, "0.5")
    errors = {row["kind"]: row for row in csv.DictReader((tmp_path / "errors.csv").open(encoding="utf-8", newline=""))}
    assert errors["classification"]["count"] == "1"


def test_nothing_is_wrong(scenes: SceneDetection):
    report = report_of(scenes, perfect(scenes))
    assert set(report.files(scenes)) == FILES
    assert report.metrics()["confused"] == report.notes() == []
    assert report.errors["bbox"].ap50 == 1


def test_masks_have_curves_and_errors_of_their_own(tmp_path: Path):
    """A right box whose mask is of its first rows alone."""
    scenes = SceneDetection(DigitScenes("val", 4), masks=True)
    truth = scenes.ground_truth()
    results = perfect(scenes)
    for result, annotation in zip(results, truth["annotations"], strict=True):
        result["segmentation"] = annotation["segmentation"]
    size = truth["images"][0]["height"], truth["images"][0]["width"]
    mask = decode_masks([results[0]["segmentation"]], size)[0]
    rows = np.flatnonzero(mask.any(axis=1))
    mask[rows[len(rows) // 3] :] = 0
    results[0]["segmentation"] = mask_api().encode(np.asfortranarray(mask))
    report = DetectorReport.of(truth, results, {kind: detection_scores(truth, results, kind) for kind in KINDS})
    metrics = report.metrics()
    assert sum(metrics["errors"][kind]["count"] for kind in ("localisation", "both", "background", "missed")) == 0
    assert metrics["mask_errors"]["localisation"]["count"] == 1
    assert metrics["mask_errors"]["localisation"]["cost"] > 0
    assert metrics["mask_errors"]["mask_ap50"] == pytest.approx(np.mean(metrics["mask_precision_recall"]["mean"]))
    assert metrics["errors"]["box_ap50"] == 1 > metrics["mask_errors"]["mask_ap50"]
    assert "of the box AP50" in (note := report.table().note)
    assert "of the mask AP50: classification 0.0" in note
    files = report.files(scenes)
    assert set(files) == FILES | {f"mask_{name}" for name in FILES if name.startswith(("precision", "errors"))}
    files["mask_precision_recall.png"](tmp_path / "curves.png")
    Image.open(tmp_path / "curves.png").verify()


def test_nothing_is_found(scenes: SceneDetection, tmp_path: Path):
    report = report_of(scenes, [])
    absent = sum(row["objects"] == 0 for row in report.per_class.values())
    assert report.notes()[0].startswith(f"{10 - absent} classes are never found: ")
    files = report.files(scenes)
    assert set(files) == FILES | {"worst.png"}
    files["worst.png"](tmp_path / "worst.png")
    assert Image.open(tmp_path / "worst.png").height > 300


def test_curves_of_many_classes_and_of_none(tmp_path: Path):
    many = {f"a rather long name of a class, number {i}": np.linspace(1, i / 30, 101) for i in range(30)}
    draw_precision_recall(many | {"nothing": np.full(101, np.nan)}, tmp_path / "many.png")
    draw_precision_recall({}, tmp_path / "none.png")
    for name in ("many.png", "none.png"):
        with Image.open(tmp_path / name) as picture:
            assert 500 < picture.height < picture.width < 1600
