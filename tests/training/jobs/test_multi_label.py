"""Classifiers of any number of labels: from a table to a trained model, its scores, and its answers."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import transept
from tests.helpers import assert_same, ctrl_c, fails, metrics
from tests.two_digits import columns, lists, write_two_digits
from transept.cli.main import main
from transept.data.images import read_image
from transept.explain.explanation import Explanation
from transept.models.xcit import XCiT
from transept.tasks.classify import Classifier
from transept.tasks.folders import from_pretrained, save_pretrained
from transept.tasks.labelling import MultiLabel

SMALL = "--model.options.depth 1 --model.options.embed_dim 16 --model.options.num_heads 2 --model.img_size 16".split()
OPTIONS = ["--classify.multi_label", "true", "--precision", "32-true", *SMALL, "--schedule.warmup_epochs", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    rows = write_two_digits(root, 80)
    (root / "lists.csv").write_text(lists(rows))
    (root / "columns.csv").write_text(columns(rows))
    return root


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    folder = data / "run"
    argv = ["train", "digits", "--data", str(data / "lists.csv"), *OPTIONS, "--schedule.epochs", "2"]
    mix = ["--classify.mix.mixup", "0.2", "--classify.class_weights", "balanced", "--classify.sampler", "balanced"]
    assert main([*argv, *mix, "--out", str(folder)]) == 0
    return folder


def test_what_a_run_keeps(run: Path):
    assert list(metrics(run)[-1])[-6:-2] == ["val_loss", "val_map", "val_micro_f1", "val_macro_f1"]
    with safe_open(run / "best.safetensors", framework="pt") as file:
        description = json.loads(file.metadata()["transept"])
    assert (description["multi_label"], len(description["thresholds"])) == (True, 5)
    assert len(list((run / "samples").iterdir())) == 12


def test_its_scores(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["eval", str(run), "--json", "--report", str(tmp_path / "report")]) == 0
    report = json.loads(capsys.readouterr().out)
    best = max(metrics(run), key=lambda row: float(row["val_map"]))
    for name in ("map", "micro_f1", "macro_f1"):
        assert report[name] == pytest.approx(float(best[f"val_{name}"]), abs=1e-4)
    assert report["images"] == 16
    expected = ["average_precision", "precision", "recall", "f1", "pictures", "threshold"]
    assert list(report["per_class"]["3"]) == expected
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert files == {"report.json", "per_class.csv", "precision_recall.png", "calibration.png", "worst.png"}
    rows = list(csv.DictReader((tmp_path / "report" / "per_class.csv").open()))
    assert [row["class"] for row in rows] == ["0", "1", "2", "3", "4"]
    evaluation = transept.evaluate(run, threshold=0.0)
    assert {figures["recall"] for figures in evaluation.metrics["per_class"].values()} == {1.0}


def test_its_answers(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture = str(data / "0004.png")
    assert main(["predict", str(run), picture, "--threshold", "0", "--json", "--out", str(tmp_path / "sheet.png")]) == 0
    (row,) = json.loads(capsys.readouterr().out)["images"]
    scores = [each["score"] for each in row["predictions"]]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    table = tmp_path / "answers.csv"
    assert main(["predict", str(run), picture, "--out", str(table), "--threshold", str(scores[1])]) == 0
    (answer,) = csv.DictReader(table.open())
    assert answer["labels"] == ";".join(each["label"] for each in row["predictions"][:2])
    assert main(["predict", str(run), picture, "--threshold", "1", "--no-sheet"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-1] == "-"
    assert "--threshold=1.5 is not in [0, 1]" in fails(capsys, ["predict", str(run), picture, "--threshold", "1.5"], 2)


def test_a_label_is_explained_though_none_is_said(run: Path, data: Path):
    task = transept.load(run)
    assert isinstance(task, Classifier)
    task.labelling = MultiLabel([1.0] * 5)
    explained = Explanation(task, read_image(data / "0004.png"))
    assert len(explained.named) == 3
    assert len(explained.rows_of("grad-cam")[0].panels) == 3


def test_files_keep_the_thresholds(run: Path, tmp_path: Path):
    task: Any = transept.load(run)
    save_pretrained(task, tmp_path / "folder")
    again = from_pretrained(tmp_path / "folder")
    assert again.labelling.thresholds == task.labelling.thresholds
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(task(images), again(images))


@pytest.mark.slow  # an export, for one line of its notes
def test_exported_files_keep_the_thresholds(run: Path, tmp_path: Path):
    task: Any = transept.load(run)
    exported = task.export(tmp_path / "export", formats=["pt2"])
    assert exported.about["thresholds"] == task.labelling.thresholds


def test_columns_say_the_same(run: Path, data: Path):
    lists, columns = (
        transept.evaluate(run, data / name, split="none").metrics for name in ("lists.csv", "columns.csv")
    )
    assert lists == columns


def test_a_run_that_was_stopped_goes_on(run: Path, data: Path, tmp_path: Path):
    argv = ["train", "digits", "--data", str(data / "lists.csv"), *OPTIONS, "--schedule.epochs", "2"]
    mix = ["--classify.mix.mixup", "0.2", "--classify.class_weights", "balanced", "--classify.sampler", "balanced"]
    with ctrl_c(XCiT, 3):
        assert main([*argv, *mix, "--out", str(tmp_path / "again")]) == 130
    assert main(["train", "--resume", str(tmp_path / "again")]) == 0
    assert_same(run, tmp_path / "again")


def test_what_is_refused(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["train", "digits", *OPTIONS, "--out", str(tmp_path / "run")]
    assert "with multi_label: folders say one class" in fails(capsys, [*argv, "--data", str(data)], 2)
    teacher = ["--classify.distill.kind", "soft", "--classify.distill.teacher", "cait_xxs24_224"]
    assert "multi_label=true, but distill.kind=soft" in fails(capsys, [*argv, *teacher], 2)
    said = "gives a picture any number of labels; --knn and --linear are for classifiers of one"
    assert said in fails(capsys, ["eval", str(run), "--knn"])
    (data / "bare.csv").write_text("path,a,b\n" + "".join(f"{i:04d}.png,0,0\n" for i in range(10)))
    assert main([*argv, "--data", str(data / "bare.csv")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "2 classes have no training pictures" in said[0]
    assert "no validation picture of" in said[-1]
    assert "mAP needs some" in said[-1]


@pytest.mark.slow
def test_it_learns(tmp_path: Path):
    (tmp_path / "t.csv").write_text(lists(write_two_digits(tmp_path, 800)))
    result = transept.train(
        "digits",
        tmp_path / "run",
        data=tmp_path / "t.csv",
        options={"classify.multi_label": True, "schedule.epochs": 10, "model.img_size": 16},
    )
    assert result.metrics["map"] > 0.9
    assert transept.evaluate(tmp_path / "run").metrics["map"] == pytest.approx(result.metrics["map"], abs=1e-4)
