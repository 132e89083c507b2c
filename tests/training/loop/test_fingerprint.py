"""Runs notice that their data has changed."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from transept.cli.main import main
from transept.data.classification.sets import load_splits
from transept.training.loop.fingerprint import fingerprint

OPTIONS = (
    "--schedule.epochs 2 --schedule.warmup_epochs 0 --batch_size 4 --model.img_size 16 --model.options.depth 1 "
    "--model.options.embed_dim 32"
).split()


def fill(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (16, 16), (20 * i, 80, 90)).save(root / name / f"{i}.png")
    return root


def test_what_counts_as_a_change(tmp_path: Path):
    root = fill(tmp_path / "set", {"cat": 6, "dog": 6})

    def now() -> object:
        return fingerprint(load_splits(str(root)))

    first = now()
    assert now() == first
    shutil.copytree(root, tmp_path / "moved")
    assert fingerprint(load_splits(str(tmp_path / "moved"))) == first
    (root / "cat" / "0.png").rename(root / "cat" / "00.png")
    assert now() != first
    (root / "cat" / "00.png").rename(root / "cat" / "0.png")
    assert now() == first
    Image.new("RGB", (40, 30)).save(root / "dog" / "0.png")
    assert now() != first
    digits = fingerprint(load_splits("digits"))
    assert (digits.train, digits.val, digits.classes) == (1437, 360, 10)


def test_resuming_on_changed_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = fill(tmp_path / "set", {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2})
    run = tmp_path / "run"
    train = ["train", "quick", "--data", str(root), "--out", str(run), *OPTIONS]
    assert main([*train, "--schedule.epochs", "1"]) == 0
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("  epochs: 1\n", "  epochs: 2\n"))
    state = torch.load(run / "last.ckpt", weights_only=True)["callbacks"]["DataRecord"]
    assert (state["train"], state["val"], state["classes"]) == (8, 4, 2)
    resume = ["train", "--resume", str(run)]

    def refused(message: str) -> None:
        capsys.readouterr()
        assert main(resume) == 1
        assert message in capsys.readouterr().err

    (root / "train" / "cat" / "0.png").unlink()
    refused("has changed since this run was saved (training pictures: 8 then, 7 now)")
    Image.new("RGB", (9, 9)).save(root / "train" / "cat" / "0.png")
    refused("(as many pictures, but other names or sizes of files)")
    refused("go on all the same with --accept-changed-data")
    assert main([*resume, "--accept-changed-data"]) == 0
    assert torch.load(run / "last.ckpt", weights_only=True)["epoch"] == 1
    assert main(resume) == 0  # the new data is that of the run now
    fill(root, {"train/cow": 2, "val/cow": 2})
    refused("the classes of " + repr(str(root)) + " have changed since this run began (2 then, 3 now); start a new run")
    assert main([*resume, "--accept-changed-data"]) == 1
