"""What `eval` says of a trained task beyond its mean scores, and writes with --report."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import transept
from tests.helpers import SMALL, fails
from transept.cli.main import main
from transept.data.classification.transforms import Preprocessing
from transept.data.scenes import DigitScenes
from transept.data.segmentation.sets import SceneSegmentation
from transept.draw.scores import draw_confusion
from transept.metrics.segmentation import ConfusionMeter
from transept.ops.masks import IGNORE_LABEL
from transept.tasks.classify import Classifier
from transept.tasks.segment_results import WorstPictures

NAME = "xcit_nano_12_p8_224"
FILES = {"report.json", "per_class.csv", "confusion.csv", "confusion.png", "calibration.png"}


@pytest.fixture(scope="module")
def one_class(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that answers "common" with a probability of 0.88, beside nine common pictures and a rare one."""
    folder = tmp_path_factory.mktemp("rare")
    for half in ("train", "val"):
        for name, count in (("common", 9), ("rare", 1)):
            (folder / "set" / half / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (16, 16), (20 * i, 100, 9)).save(folder / "set" / half / name / f"{name}-{i}.png")
    model = transept.create_model(NAME, num_classes=2, img_size=16, **SMALL[NAME])
    head = model.get_classifier()
    nn.init.zeros_(head.weight)
    head.bias.data = head.bias.new_tensor([2.0, 0.0])
    Classifier(model, ["common", "rare"], Preprocessing(img_size=(16, 16))).save(folder / "model.safetensors")
    return folder


def test_a_class_that_is_never_found(one_class: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["eval", str(one_class / "model.safetensors"), "--data", str(one_class / "set")]
    assert main([*argv, "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["top1"], report["balanced_accuracy"]) == (pytest.approx(0.9), 0.5)
    assert report["per_class"]["rare"] == {"precision": None, "recall": 0, "f1": 0, "pictures": 1}
    assert report["confused"] == [{"true": "rare", "predicted": "common", "count": 1}]
    assert report["ece"] == pytest.approx(0.9 - 0.8808, abs=1e-4)
    assert "1 class is never predicted: 'rare' (pictures: 1)" in err
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["class", "precision", "recall", "F1", "pictures"]
    assert lines[2].split() == ["rare", "-", "0.00%", "0.00%", "1"]
    assert lines[-1].startswith("top-1 90.00%")


def test_the_report_of_a_classifier(one_class: Path, tmp_path: Path):
    evaluation = transept.evaluate(one_class / "model.safetensors", one_class / "set")
    written = evaluation.write(tmp_path / "report")
    assert set(written) == {path.name for path in (tmp_path / "report").iterdir()}
    assert set(written) == FILES | {"worst.png", "confident.png"}
    with (tmp_path / "report" / "confusion.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["true", "common", "rare"], ["common", "9", "0"], ["rare", "1", "0"]]
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["per_class"] == evaluation.metrics["per_class"]
    for name in written:
        if name.endswith(".png"):
            Image.open(tmp_path / "report" / name).verify()


def test_wrong_report_folders(one_class: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["eval", str(one_class / "model.safetensors"), "--data", str(one_class / "set"), "--report"]
    (tmp_path / "file").write_text("")
    assert "is a file; give a folder" in fails(capsys, [*argv, str(tmp_path / "file")], 2)
    assert "cannot" in fails(capsys, [*argv, str(tmp_path / "file" / "below")], 1)
    assert "--report is of a trained task's answers" in fails(capsys, [*argv, str(tmp_path / "r"), "--knn"], 2)


def test_the_worst_pictures_of_a_segmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the order of their mIoU, each read when it is drawn; a picture without labelled pixels is none."""
    scenes = SceneSegmentation(DigitScenes("val", 10))
    worst, faults = WorstPictures(3), {7: 0.9, 3: 0.6, 9: 0.3, 1: 0.1}
    for place in range(10):
        mask = scenes[place][1].clone()
        labels = mask.clone()
        labels.ravel()[: int(faults.get(place, 0) * labels.numel())] = 1
        if place == 5:
            mask[:] = IGNORE_LABEL
        meter = ConfusionMeter(len(scenes.classes))
        meter.update(labels, mask)
        worst.add(meter, labels)
    read: list[int] = []
    take = SceneSegmentation.__getitem__
    monkeypatch.setattr(SceneSegmentation, "__getitem__", lambda self, i: read.append(i) or take(self, i))
    worst.draw(scenes, scenes.classes, scenes.palette, tmp_path / "worst.png")
    assert read == [7, 3, 9]
    with Image.open(tmp_path / "worst.png") as picture:
        assert 300 < picture.height < picture.width < 2000


@pytest.mark.parametrize("number", [3, 80])
def test_a_confusion_of_few_and_many_classes_has_a_readable_size(number: int, tmp_path: Path):
    names = [f"a rather long name of a class, number {i}" for i in range(number)]
    draw_confusion(np.eye(number, dtype=int) * 7, names, names, "pictures", tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert number * 15 < min(picture.size) <= max(picture.size) < 4000
