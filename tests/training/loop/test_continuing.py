"""Runs that become longer, stop early, or are refused because their page was changed."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.helpers import fails, metrics
from transept.cli.main import main
from transept.errors import UsageError
from transept.training.loop.run import train
from transept.training.options.continuing import continued
from transept.training.options.pages import read_recipe
from transept.training.options.parsing import parse_recipe
from transept.training.options.recipe import Recipe

OPTIONS = (
    "--schedule.iterations 4 --schedule.evaluate_every 2 --schedule.warmup_epochs 0 --batch_size 8 --model.img_size 16 "
    "--model.options.depth 1 --model.options.embed_dim 16 --model.options.num_heads 2 --optimizer.lr 1e-3 "
    "--precision 32-true"
).split()
DECAYS = {
    "cosine": [],
    "poly": ["--schedule.decay", "poly", "--schedule.min_lr", "0"],
}


def recipe(*options: str) -> Recipe:
    return parse_recipe(read_recipe("digits"), [*OPTIONS, *options])


@pytest.fixture(scope="module", params=["cosine", pytest.param("poly", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished run of four steps, and the options of its schedule."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / request.param
    options = DECAYS[request.param]
    train(recipe(*options), folder, progress=False)
    return folder, options


def test_a_longer_run_learns_at_the_rates_of_a_longer_schedule(run: tuple[Path, list[str]], tmp_path: Path):
    finished, options = run
    longer = shutil.copytree(finished, tmp_path / "longer")
    assert main(["train", "--resume", str(longer), "--schedule.iterations", "8"]) == 0
    train(recipe(*options, "--schedule.iterations", "8"), tmp_path / "whole", progress=False)
    rates = [float(row["lr"]) for row in metrics(longer)]
    assert rates[:2] == [float(row["lr"]) for row in metrics(finished)]
    assert rates[2:] == [float(row["lr"]) for row in metrics(tmp_path / "whole")][2:]
    assert rates[2] > rates[1]
    assert [row["step"] for row in metrics(longer)] == ["2", "4", "6", "8"]
    assert yaml.safe_load((longer / "config.yaml").read_text())["schedule"]["iterations"] == 8


def test_what_a_run_that_goes_on_refuses(run: tuple[Path, list[str]], tmp_path: Path, capsys):
    folder = shutil.copytree(run[0], tmp_path / "run")
    resume = ["train", "--resume", str(folder)]
    assert "optimizer.lr cannot change in a run that goes on" in fails(capsys, [*resume, "--optimizer.lr", "1"], 2)
    assert "give none of them" in fails(capsys, ["train", "digits", *resume[1:]], 2)
    fewer = [*resume, "--schedule.iterations", "2"]
    assert "schedule.iterations=2, but 4 are finished; give 4 or more" in fails(capsys, fewer, 2)
    page = folder / "config.yaml"
    page.write_text(page.read_text().replace("lr: 0.001\n", "lr: 0.5\n"))
    assert "config.yaml now says optimizer.lr: 0.5, but this run began with 0.001" in fails(capsys, resume, 1)
    assert len(metrics(folder)) == 2


def test_evaluations_stay_where_they_were():
    """A tenth of all iterations is another number once there are more of them."""
    page = {"task": "classify", "data": "digits", "model": {"name": "cait_xxs24_224"}, "schedule": {"iterations": 50}}
    assert continued(page, []).schedule.interval == 5
    assert continued(page, ["--schedule.iterations", "100"]).schedule.interval == 5
    with pytest.raises(UsageError, match="schedule.evaluate_every=5 does not divide iterations=101"):
        continued(page, ["--schedule.iterations", "101"])


def test_patience(tmp_path: Path, capsys):
    """At a rate of nothing no epoch is better than the first."""
    still = ["--optimizer.lr", "1e-12", "--schedule.min_lr", "0", "--schedule.warmup_lr", "0"]
    argv = ["train", "digits", *OPTIONS, *still, "--schedule.iterations", "20", "--schedule.patience", "2"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    assert "stopped after 3 of 10 epochs: none better in 2" in capsys.readouterr().out
    assert len(metrics(tmp_path / "run")) == 3
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0  # it has nothing to go on with
    assert len(metrics(tmp_path / "run")) == 3
    assert main(["train", "--resume", str(tmp_path / "run"), "--schedule.patience", "3"]) == 0
    assert len(metrics(tmp_path / "run")) == 4
