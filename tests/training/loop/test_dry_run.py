"""What a run would be agrees with what it then is."""

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from transept.cli.main import main
from transept.errors import UsageError
from transept.inference.processor import fast_bfloat16
from transept.training.loop.dry_run import kept_bytes
from transept.training.loop.loggers import make_loggers
from transept.training.loop.run import plan, train
from transept.training.options.pages import read_recipe
from transept.training.options.parsing import parse_recipe

DIGITS = (
    "--schedule.epochs 2 --schedule.warmup_epochs 0 --batch_size 300 --accumulate 2 --model.img_size 16 "
    "--model.options.depth 1 --model.options.embed_dim 32 --precision 32-true"
).split()
BACKBONE = (
    "--model.options.embed_dims [16,16,16,16] --model.options.depths [1,1,1,1] --model.options.num_heads [2,2]"
).split()


def test_what_the_forward_pass_keeps():
    """The first layer's input, and what the activation gives, which the second layer keeps, too."""
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    assert kept_bytes(model, torch.rand(11, 5)) == 4 * 11 * (5 + 7)
    assert kept_bytes(model.requires_grad_(False), torch.rand(11, 5)) == 0
    assert next(model.parameters()).device.type == "cpu"


def test_a_plan_is_what_the_run_then_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", "--dry-run", "--json", *DIGITS]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["digits.first-batch.png"]
    plan = said["plan"]
    assert (plan["batch"], plan["part"], plan["accumulate"], plan["image"]) == (300, 150, 2, [16, 16])
    recipe = parse_recipe(said["recipe"], [])
    assert recipe == parse_recipe(read_recipe("digits"), DIGITS)
    train(recipe, tmp_path / "run", progress=False)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [plan["steps_per_epoch"], plan["steps"]]
    assert np.asarray(Image.open(tmp_path / "digits.first-batch.png").convert("L")).std() > 20

    # TensorBoard's files tell the same.
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for name in ("val_top1", "train_loss", "lr"):
        assert [event.step for event in events.Scalars(name)] == [int(row["step"]) for row in rows]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(
            [float(row[name]) for row in rows], 1e-5
        )


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("quick-inst", "--scenes [4,2] --detect.preprocessing.scale [96,64]"),
        ("quick-seg", "--segment.preprocessing.scale [96,64] --segment.augmentation.crop [64,64] --segment.width 16"),
    ],
)
def test_a_first_batch_of_scenes(recipe: str, options: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    argv = ["train", recipe, "--dry-run", "--out", str(tmp_path / "run"), *options.split(), *BACKBONE]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "process x 1 part of" in said
    assert f"first batch  {tmp_path / 'run.first-batch.png'}" in said
    assert not (tmp_path / "run").exists()
    drawn = np.asarray(Image.open(tmp_path / "run.first-batch.png").convert("RGB")).astype(int)
    assert (drawn.max(axis=-1) - drawn.min(axis=-1) > 100).any(), "marks are in colours"


def test_the_precision_that_the_machine_does_best(tmp_path: Path):
    recipe = parse_recipe(read_recipe("digits"), [*DIGITS, "--precision", "auto"])
    assert recipe.precision == "auto"
    settled, _ = plan(recipe, tmp_path / "batch.png")
    fast = torch.cuda.is_available() or fast_bfloat16() is not None
    assert settled.precision == ("bf16-mixed" if fast else "32-true")


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_logger_that_is_not_installed(tmp_path: Path):
    with pytest.raises(UsageError, match="loggers=.'wandb'. needs the package 'wandb': .*pip install wandb"):
        make_loggers(["wandb"], tmp_path)
