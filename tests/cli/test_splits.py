"""What `eval` and `train` say that they read, over tasks and entry points."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import transept
from tests.helpers import NARROW, fails
from transept.cli.main import main
from transept.data.classification.transforms import Preprocessing
from transept.tasks.classify import Classifier
from transept.tasks.run_folder import BEST, TEST

SMALL: dict[str, Any] = dict(depth=1, embed_dim=32, num_heads=2, img_size=32)
QUICK = [
    "--model.name=xcit_nano_12_p16_224",
    "--model.img_size=32",
    "--model.options.depth=1",
    "--model.options.embed_dim=32",
    "--model.options.num_heads=2",
    "--schedule.epochs=1",
    "--schedule.warmup_epochs=0",
    "--batch_size=8",
    "--optimizer.lr_batch=null",
]


def fill(root: Path, cat: int, dog: int) -> Path:
    for name, count in {"cat": cat, "dog": dog}.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (32, 32), (9 * i, 9, 200 * (name == "dog"))).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's file, a folder without splits, and one with three."""
    root = tmp_path_factory.mktemp("splits")
    model = transept.create_model("xcit_nano_12_p16_224", num_classes=2, **SMALL)
    Classifier(model, ["cat", "dog"], Preprocessing(img_size=(32, 32))).save(root / "model.safetensors")
    fill(root / "flat", 6, 5)
    for split, count in (("Train", 4), ("val", 2), ("test", 3)):
        fill(root / "set" / split, count, count)
    return root


def measured(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert main(["eval", *argv, "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_eval_measures_all_that_it_is_given_and_says_what(files: Path, capsys: pytest.CaptureFixture[str]):
    model = str(files / "model.safetensors")
    page, said = measured(capsys, model, "--data", str(files / "flat"))
    assert (page["images"], page["split"]) == (11, None)
    assert page["measured"] == "11 pictures in 2 classes; the folder has no split"
    assert said.startswith(f"transept: {page['measured']}\n")
    page, said = measured(capsys, model, "--data", str(files / "set"))
    assert (page["images"], page["split"]) == (4, "val")
    assert "there is also 'test': --split test measures that" in said
    for split, images in {"test": 6, "train": 8, "Train": 8}.items():
        page, _ = measured(capsys, model, "--data", str(files / "set"), "--split", split)
        assert page["images"] == images
    assert measured(capsys, model, "--data", str(files / "set" / "test"))[0]["images"] == 6
    line = fails(capsys, ["eval", model, "--data", str(files / "set"), "--split", "dev"], 2)
    assert line.endswith("has no split 'dev'; it has 'Train', 'test', 'val'")


def test_features_and_python_take_a_split(files: Path, capsys: pytest.CaptureFixture[str]):
    model, data = str(files / "model.safetensors"), str(files / "set")
    page, said = measured(capsys, model, "--data", data, "--knn", "--k", "1", "--split", "test")
    assert (page["images"], page["training_images"], page["split"]) == (6, 8, "test")
    assert "the split 'test'" in said
    evaluation = transept.evaluate(model, data, split="test")
    assert (evaluation.images, evaluation.split) == (6, "test")
    assert transept.evaluate(model, data).split == "val"


def test_a_class_without_pictures_is_not_measured(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fill(tmp_path, 3, 0)
    (tmp_path / "dog").rmdir()
    page, said = measured(capsys, str(files / "model.safetensors"), "--data", str(tmp_path))
    assert page["images"] == 3
    assert "1 class has nothing to be measured on" in said


def test_a_dry_run_of_few_pictures_named_by_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The batch is what there is of it, and a class is not taken for the number of its pictures."""
    fill(tmp_path / "flat", 6, 5)
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "flat" / name).rename(tmp_path / "flat" / str(number))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "quick", "--data", "flat", "--dry-run", *QUICK, "--batch_size", "64"]) == 0
    said = capsys.readouterr().out
    held = int(re.search(r"(\d+) pictures to train on", said)[1])
    assert f"= 1 process x 1 part of {held} (batch_size is 64, but there are no more), " in said
    assert re.search(r"2 classes to train on: '\d' \d, '\d' \d$", said, re.MULTILINE)


def test_a_run_measures_what_it_held_out_and_its_test_split(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "flat"
    assert main(["train", "quick", "--data", str(files / "flat"), "--out", str(run), *QUICK]) == 0
    said = capsys.readouterr().err
    assert "transept: 9 pictures to train on and 2 to validate, held out by the hash of their names" in said
    assert "2 classes to train on: dog 4, cat 5" in said
    page, said = measured(capsys, str(run))
    assert page["images"] == 2
    assert "held out of the folder as in training; --split none measures all of it" in said
    assert measured(capsys, str(run), "--data", str(files / "flat"))[0]["images"] == 2
    assert measured(capsys, str(run), "--split", "none")[0]["images"] == 11
    assert not (run / TEST).exists()

    run = tmp_path / "set"
    argv = ["train", "quick", "--data", str(files / "set"), "--out", str(run), *QUICK, "--json"]
    assert main(argv) == 0
    out, said = capsys.readouterr()
    assert "the splits 'Train' and 'val'" in said
    assert "the split 'test' is measured at the end, and not read before" in said
    assert "on the 6 pictures of 'test'" in said
    page = json.loads((run / TEST).read_text())
    assert (page["split"], page["images"]) == ("test", 6)
    assert json.loads(out)["test"] == page
    assert page["top1"] == pytest.approx(transept.evaluate(run / BEST, split="test").metrics["top1"])


def test_what_is_wrong_in_the_test_split_costs_no_run(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = tmp_path / "data"
    fill(data / "train", 3, 3)
    fill(data / "val", 2, 2)
    fill(data / "test", 1, 1)
    (data / "test" / "cat" / "0.png").write_text("no picture")
    assert main(["train", "quick", "--data", str(data), "--out", str(tmp_path / "run"), *QUICK]) == 0
    assert "the split 'test' is not measured: 1 file is not readable" in capsys.readouterr().err
    assert (tmp_path / "run" / BEST).is_file()
    assert not (tmp_path / "run" / TEST).exists()


def test_dry_run_says_what_there_is(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["train", "quick", "--data", str(files / "set"), "--out", str(tmp_path / "x"), "--dry-run", *QUICK]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "8 pictures to train on and 4 to validate, the splits 'Train' and 'val'" in out
    assert "\nclassify:\n" in out
    assert not any(f"\n{task}:\n" in out for task in ("detect", "segment", "pretrain")), (
        "options that mean nothing here"
    )


def test_a_detector_measures_the_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    name = "cabvit_h_l1"
    options = dict(num_classes=1, classes=["cell"], width=64, img_size=64)
    detector = transept.create_detector("retinanet", backbone=name, **options, **NARROW[name])
    detector.save(tmp_path / "model.safetensors")
    for split, count in (("train", 3), ("valid", 2), ("test", 1)):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(count)]
        boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [8, 8, 30, 30]} for i in range(count)]
        page = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
        (folder / "_annotations.coco.json").write_text(json.dumps(page))
        for image in images:
            Image.new("RGB", (64, 64)).save(folder / image["file_name"])
    model, data = str(tmp_path / "model.safetensors"), str(tmp_path / "set")
    page, said = measured(capsys, model, "--data", data)
    assert (page["images"], page["split"]) == (2, "valid")
    assert "2 pictures in 1 class, the split 'valid'; there is also 'test'" in said
    assert measured(capsys, model, "--data", data, "--split", "test")[0]["images"] == 1
    assert measured(capsys, model, "--data", f"{data}/test")[0]["images"] == 1
    assert measured(capsys, model, "--data", f"{data}/test/_annotations.coco.json")[0]["images"] == 1
