"""Cross-validation: which pictures are in which fold, and runs of all of them that stop, fail and go on."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import transept
from tests.helpers import assert_same, ctrl_c, fails
from tests.two_digits import columns, write_two_digits
from transept.cli.main import main
from transept.data.classification.sets import load_splits
from transept.data.detection.sets import load_detection_splits
from transept.data.segmentation.sets import load_segmentation_splits
from transept.data.splits import Choice, Fold, held_out
from transept.errors import TranseptError, UsageError
from transept.models.xcit import XCiT

SMALL = "--model.options.depth 1 --model.options.embed_dim 16 --model.options.num_heads 2 --model.img_size 16".split()
SHORT = ["--schedule.epochs", "1", "--schedule.warmup_epochs", "0", "--batch_size", "2", *SMALL]


def folds_of(load: Any, data: str, number: int = 3, **options: Any) -> tuple[list[str], list[Any]]:
    """The validation pictures of all folds, in turn, and the splits."""
    splits = [load(data, choice=Choice(fold=Fold(i + 1, number)), **options) for i in range(number)]
    for each in splits:
        assert not {*map(str, each.train.paths)} & {*map(str, each.val.paths)}
    return [str(path) for each in splits for path in each.val.paths], splits


def class_folders(root: Path, **counts: int) -> str:
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (16, 16), (20 * i, 80, 120)).save(root / name / f"{root.name}-{name}-{i}.png")
    return str(root)


def test_each_picture_is_in_one_fold_and_each_class_in_all(tmp_path: Path):
    names, splits = folds_of(load_splits, class_folders(tmp_path, cat=7, dog=3))
    assert len(names) == len(set(names)) == 10
    assert [each.val.counts(2).tolist()[1] for each in splits] == [1, 1, 1]
    assert max(len(each.val) for each in splits) - min(len(each.val) for each in splits) <= 1
    again, _ = folds_of(load_splits, str(tmp_path))
    assert again == names
    other = load_splits(str(tmp_path), choice=Choice(fold=Fold(1, 3, seed=1)))
    assert list(map(str, other.val.paths)) != names[: len(other.val)]


def test_groups_stay_together(tmp_path: Path):
    rows = write_two_digits(tmp_path, 40)
    lines = columns(rows).splitlines()
    table = [f"{line},{'group' if i == 0 else f'g{i % 7}'}" for i, line in enumerate(lines)]
    (tmp_path / "t.csv").write_text("\n".join(table))
    names, splits = folds_of(load_splits, str(tmp_path / "t.csv"), multi_label=True)
    assert len(names) == len(set(names)) == 40
    for each in splits:
        assert not {*each.train.groups} & {*each.val.groups}
    divided = load_splits(str(tmp_path / "t.csv"), multi_label=True)
    assert len(divided.val)
    assert not {*divided.train.groups} & {*divided.val.groups}


def test_a_split_of_the_datas_own_is_left_alone(tmp_path: Path):
    for split in ("train", "val", "test"):
        class_folders(tmp_path / split, cat=4, dog=4)
    names, splits = folds_of(load_splits, str(tmp_path), number=2)
    assert {Path(name).parent.parent.name for name in names} == {"train"}
    assert splits[0].parts.test == "test"
    found = splits[0].parts.found(splits[0], 0.2)
    assert "4 pictures to train on and 4 to validate, fold 1 of 2 of 'train'" in found
    assert found.endswith("folds are of 'train' alone, and 'val' is not read: 'eval --split val' measures it")


def test_detection_and_segmentation(tmp_path: Path):
    images = [{"id": i, "file_name": f"{i}.png", "width": 16, "height": 16} for i in range(8)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9]} for i in range(4)]
    page = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for i in range(8):
            Image.new("L" if kind == "masks" else "RGB", (16, 16), i % 2).save(tmp_path / kind / f"{i}.png")
    (tmp_path / "classes.txt").write_text("0 ground\n1 cell\n")
    (tmp_path / "c.json").write_text(json.dumps(page))
    names, splits = folds_of(load_detection_splits, str(tmp_path / "c.json"), number=4, keep_empty=True)
    assert len(names) == len(set(names)) == 8
    assert all(len(each.val) == 2 and each.counts == {"cell": 3} for each in splits)
    assert sum(each.train.classes_in(i) == [0] for each in splits for i in range(len(each.train))) == 12
    names, _ = folds_of(load_segmentation_splits, str(tmp_path), number=4)
    assert len(names) == len(set(names)) == 8
    with pytest.raises(UsageError, match="'digits-scenes' is drawn for each split"):
        load_detection_splits("digits-scenes", choice=Choice(fold=Fold(1, 2)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(fold=Fold(1, 9)), "it has 8 pictures, too few for 9 folds; give fewer"),
        (dict(fold=Fold(1, 5), strata=[0, 1] * 4), "it has no class of 5 pictures, too few for 5 folds"),
        (dict(fold=Fold(1, 3), groups=list("aaaabbbb")), "it has 2 groups, too few for 3 folds"),
        (dict(fold=None, groups=["a"] * 8), "all pictures of it are in one group"),
    ],
)
def test_what_cannot_be_divided(options: dict[str, Any], sentence: str):
    with pytest.raises(TranseptError, match=sentence):
        held_out(list("abcdefgh"), 0.2, where="it", **options)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("set")
    class_folders(root / "train", cat=6, dog=6)
    class_folders(root / "test", cat=2, dog=2)
    return str(root)


@pytest.fixture(scope="module")
def runs(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["train", "digits", "--data", data, "--folds", "2", *SHORT, "--out", str(folder)]) == 0
    return folder


def test_what_folds_say(runs: Path, data: str, capsys: pytest.CaptureFixture[str]):
    page = json.loads((runs / "folds.json").read_text())
    top1 = [each["metrics"]["top1"] for each in page["results"]]
    assert page["metrics"]["top1"] == {"mean": statistics.fmean(top1), "std": statistics.stdev(top1)}
    assert page["test"]["top1"]["mean"] == np.mean([each["test"]["top1"] for each in page["results"]])
    assert [each["run"] for each in page["results"]] == ["fold-1", "fold-2"]
    assert main(["eval", str(runs / "fold-2"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["top1"] == pytest.approx(top1[1])
    assert "6 pictures in 2 classes, fold 2 of 2 of the split 'train' as in training" in err
    assert "give one of them, e.g." in fails(capsys, ["eval", str(runs)])
    again = ["train", "digits", "--data", data, "--folds", "2", *SHORT, "--out", str(runs)]
    assert "holds the runs of folds already; go on with --resume" in fails(capsys, again)


def test_folds_that_were_stopped_go_on(runs: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "stopped"
    argv = ["train", "digits", "--data", data, "--folds", "2", *SHORT, "--out", str(folder)]
    for call, where in ((2, "in fold 1"), (1, "after fold 1")):  # of three steps the second, then what is left
        with ctrl_c(XCiT, call):
            assert main(argv) == 130
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"stopped {where} of 2; " in said
        assert said.endswith(f"go on with: transept train --resume {folder}")
        argv = ["train", "--resume", str(folder)]
    assert main(argv) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:4] == ["fold", "top1", "top5", "top1"]
    assert [line.split()[0] for line in table[1:5]] == ["1", "2", "mean", "std"]
    for fold in ("fold-1", "fold-2"):
        assert_same(folder / fold, runs / fold)
    assert main(["train", "--resume", str(folder), "--schedule.epochs", "2", "--json"]) == 0
    assert [each["epoch"] in (1, 2) for each in json.loads(capsys.readouterr().out)["results"]] == [True, True]
    assert len((folder / "fold-2" / "metrics.csv").read_text().splitlines()) == 3


def test_a_fold_that_fails_leaves_the_others(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "runs"
    (folder / "fold-2").mkdir(parents=True)
    (folder / "fold-2" / "best.safetensors").mkdir()  # nothing can be written there
    argv = ["train", "digits", "--data", data, "--folds", "3", *SHORT, "--out", str(folder)]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert "fold 2 of 3 failed, and the others go on: " in err
    assert err.splitlines()[-1].startswith("transept: 1 of 3 folds failed (number 2); try again with: transept train")
    assert [line.split()[:2] for line in out.splitlines()[1:4]][1] == ["2", "failed"]
    (folder / "fold-2" / "best.safetensors").rmdir()
    assert main(["train", "--resume", str(folder)]) == 0
    assert [each["error"] for each in json.loads((folder / "folds.json").read_text())["results"]] == [None] * 3


@pytest.mark.parametrize("made_before", [False, True])
def test_data_that_cannot_be_read_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], made_before: bool
):
    data, run = class_folders(tmp_path / "data", cat=4, dog=4), tmp_path / "run"
    (tmp_path / "data" / "cat" / "bad.png").write_bytes(b"no picture")
    if made_before:
        run.mkdir()
    assert main(["train", "quick", "--data", data, "--folds", "2", "--out", str(run), *SHORT]) == 1
    assert "1 file is not readable" in capsys.readouterr().err
    assert run.exists() == made_before
    assert not list(tmp_path.rglob(".lock"))


def test_what_is_refused(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    argv = ["train", "digits", *SHORT, "--out", str(tmp_path / "runs")]
    assert "--folds 1 must be at least 2" in fails(capsys, [*argv, "--folds", "1"], 2)
    assert "fold=[1, 2] is one fold" in fails(capsys, [*argv, "--folds", "2", "--fold", "[1, 2]"], 2)
    assert main([*argv, "--folds", "2", "--data", "nowhere"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("transept: there is no data 'nowhere'")
    assert not (tmp_path / "runs" / "folds.json").exists()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "under torchrun or srun train each by itself" in fails(capsys, [*argv, "--folds", "2", "--data", data], 2)


def test_a_dry_run_shows_the_halves(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["train", "digits", "--data", data, "--folds", "4", *SHORT, "--dry-run"]
    assert main([*argv, "--out", str(tmp_path / "dry"), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["folds"][3] == {"fold": 4, "train": 9, "val": 3}
    assert page["recipe"]["fold"] == [1, 4]


def test_from_python(data: str, tmp_path: Path):
    options = {name.removeprefix("--"): value for name, value in zip(SHORT[::2], SHORT[1::2], strict=True)}
    options = {name: int(value) for name, value in options.items()}
    runs = transept.train("digits", tmp_path / "runs", data=data, options=options, folds=2)
    assert runs.metrics["top1"].mean == statistics.fmean(each.metrics["top1"] for each in runs.folds)
    assert transept.load(tmp_path / "runs" / "fold-1").classes == ["cat", "dog"]
