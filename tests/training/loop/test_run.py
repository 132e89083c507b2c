"""Runs that can be trusted: resumed, interrupted, killed, out of room, out of range."""

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from tests.helpers import assert_same, ctrl_c, metrics
from transept.cli.main import main
from transept.errors import TranseptError
from transept.files import reserve, write_atomically
from transept.models.registry import find_model
from transept.tasks.classify import Classifier
from transept.training.loop.run import train
from transept.training.options.pages import read_recipe, recipe_names
from transept.training.options.parsing import parse_recipe, shorter_warmup
from transept.training.options.recipe import Recipe

# Of twelve steps an epoch, with everything that draws random numbers.
OPTIONS = (
    "--schedule.iterations 36 --schedule.evaluate_every 12 --schedule.warmup_epochs 1 --batch_size 48 "
    "--model.img_size 16 --model.drop_path_rate 0.2 --model.options.depth 1 --model.options.embed_dim 32 "
    "--optimizer.lr 3e-3 --precision 32-true "
    "--classify.augmentation.erasing 0.2 --classify.augmentation.color_jitter 0.2"
).split()
WEIGHTS = ("best.safetensors", "last.safetensors")


def recipe(*options: str) -> Recipe:
    return parse_recipe(read_recipe("digits"), [*OPTIONS, *options])


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "transept.cli.main", "train", "digits", "--out", str(folder), *OPTIONS, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for_epoch(folder: Path, process: subprocess.Popen[str]) -> None:
    """The wait is long because a loaded machine is slow; a process that failed ends it at once."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        if (folder / "metrics.csv").exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    raise AssertionError("no epoch within ten minutes")


def test_the_run_folder(whole_run: Path):
    table = metrics(whole_run)
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert [int(row["step"]) for row in table] == [12, 24, 36]
    assert float(table[2]["train_loss"]) < float(table[0]["train_loss"]) < 2.4
    assert float(table[0]["lr"]) > 2e-3 > 1e-4 > float(table[2]["lr"])
    with Image.open(whole_run / "curves.png") as picture:
        assert picture.size[0] > 1000
        assert len(picture.convert("RGB").getcolors(10**7) or []) > 100  # it shows something
    config = yaml.safe_load((whole_run / "config.yaml").read_text())
    assert parse_recipe(config, []) == recipe()
    samples = list((whole_run / "samples").glob("*.png"))
    assert len(samples) == 12
    assert {path.name[0] for path in samples} == set("0123456789")
    task = Classifier.load(whole_run / "best.safetensors")
    answers = task.predict([Image.open(path).convert("RGB") for path in samples])
    assert [len(answer.scores) for answer in answers] == [5] * 12
    assert task.classes == list("0123456789")


def test_another_seed_gives_another_result(whole_run: Path, tmp_path: Path):
    """That the same one gives the same, the resumed runs show, whose first epochs another process trained."""
    train(recipe("--seed", "1", "--schedule.iterations", "12"), tmp_path / "other", progress=False)
    assert metrics(tmp_path / "other")[0]["train_loss"] != metrics(whole_run)[0]["train_loss"]


@pytest.mark.slow  # tests/training/processes/test_scale.py kills one at a random moment
def test_killed_in_mid_epoch_and_resumed(whole_run: Path, tmp_path: Path):
    process = start(tmp_path / "run")
    wait_for_epoch(tmp_path / "run", process)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(metrics(tmp_path / "run")) < 3
    for name in WEIGHTS:
        assert load_file(tmp_path / "run" / name)
    train(recipe(), tmp_path / "run", resume=True, progress=False)
    assert_same(tmp_path / "run", whole_run)


def test_interrupted_in_mid_epoch_and_resumed(whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Ctrl-C at the command; the kills of tests/training/test_scale.py meet processes at random moments."""
    with ctrl_c(Classifier, 18):
        assert main(["train", "digits", "--out", str(tmp_path / "run"), *OPTIONS]) == 130
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1].endswith(f"go on with: transept train --resume {tmp_path / 'run'}")
    assert "Traceback" not in errors
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 18
    assert len(metrics(tmp_path / "run")) == 1
    train(recipe(), tmp_path / "run", resume=True, progress=False)
    assert_same(tmp_path / "run", whole_run)


@pytest.mark.slow
def test_a_process_that_is_interrupted(tmp_path: Path):
    process = start(tmp_path / "run", "--schedule.iterations", "1200", "--schedule.evaluate_every", "120")
    wait_for_epoch(tmp_path / "run", process)
    time.sleep(1.2)  # the curves are drawn first
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].endswith(f"go on with: transept train --resume {tmp_path / 'run'}")
    assert "Traceback" not in errors


def test_a_finished_run_resumes_to_itself(whole_run: Path):
    before = (whole_run / "last.safetensors").read_bytes()
    result = train(recipe(), whole_run, resume=True, progress=False)
    assert result.metrics["top1"] == pytest.approx(max(float(row["val_top1"]) for row in metrics(whole_run)), abs=1e-5)
    assert (whole_run / "last.safetensors").read_bytes() == before


def test_nan_stops_with_a_sentence(tmp_path: Path):
    hot = recipe("--optimizer.lr", "1e9", "--optimizer.name", "sgd", "--schedule.warmup_epochs", "0",
                 "--optimizer.clip_grad", "null")  # fmt: skip
    with pytest.raises(TranseptError, match=r"the loss became (nan|inf) at step \d+ .*lower the learning rate"):
        train(hot, tmp_path / "run", progress=False)


def test_no_room_is_reported_before_training(tmp_path: Path):
    """The limit on file sizes is a disk that fills up: the space is asked for, and refused, for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        with pytest.raises(TranseptError, match=r"cannot write to .*run' \(File too large\); it needs [23] MB of room"):
            train(recipe(), tmp_path / "run", progress=False)
        (tmp_path / "kept.txt").write_text("before")
        with pytest.raises(
            TranseptError, match="cannot write .*kept.txt': File too large; nothing saved before is lost"
        ):
            write_atomically(tmp_path / "kept.txt", lambda path: path.write_bytes(bytes(300_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "kept.txt").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.txt", "run"]
    assert not list((tmp_path / "run").iterdir())


def test_an_unwritable_folder_is_reported_before_training(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(TranseptError, match="cannot write to .*Not a directory.* another folder with --out"):
        reserve(tmp_path / "file" / "run", 10)


def test_resuming_needs_a_whole_checkpoint(tmp_path: Path):
    with pytest.raises(TranseptError, match="has no last.ckpt to resume from"):
        train(recipe(), tmp_path, resume=True)
    (tmp_path / "last.ckpt").write_bytes(b"PK\3\4 cut off")
    with pytest.raises(TranseptError, match="last.ckpt' is damaged"):
        train(recipe(), tmp_path, resume=True)


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipes_are_complete(name: str):
    page = parse_recipe(read_recipe(name), [])
    tasks = {"seg": "segment", "det": "detect", "inst": "detect", "dino": "pretrain"}
    assert page.task == next((task for part, task in tasks.items() if part in name), "classify")
    assert find_model(page.model.name)


def options_of(page: dict[str, Any], prefix: str = "") -> frozenset[str]:
    """The dotted names of a recipe's options."""
    inner = (options_of(value, f"{key}.") for key, value in page.items() if isinstance(value, dict))
    return frozenset().union((prefix + key for key in page), *inner)


def test_recipes_are_read_back_as_they_are_kept():
    """One for each set of options that a recipe names; those that differ in values alone are read alike."""
    pages = {options_of(read_recipe(name)): name for name in recipe_names()}
    assert 10 < len(pages) < len(recipe_names())
    for name in pages.values():
        page = parse_recipe(read_recipe(name), [])
        assert parse_recipe(dataclasses.asdict(page), []) == page


@pytest.mark.parametrize(
    ("page", "given", "warmup"),
    [
        ({"schedule": {"epochs": 40, "warmup_epochs": 3}}, {"schedule.epochs": "2"}, 1),
        ({"schedule": {"epochs": 40, "warmup_epochs": 3}}, {"schedule.epochs": 1}, 0),
        ({"schedule": {"epochs": 4}}, {}, 2),  # the default is 5
        ({"schedule": {"epochs": 40, "warmup_epochs": 3}}, {"schedule.epochs": 3}, None),
        ({"schedule": {"epochs": 2, "warmup_epochs": 3}}, {}, None),  # the page itself is wrong, and is refused
        ({}, {"schedule.epochs": "2", "schedule.warmup_epochs": "4"}, None),
        ({}, {"schedule.epochs": "two"}, None),
        ({"schedule": {"iterations": 100}}, {"schedule.epochs": "2"}, None),
    ],
)
def test_a_warm_up_that_nobody_asked_for_fits_a_short_run(page: dict, given: dict, warmup: int | None):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = shorter_warmup(page, given)
    assert found == ({} if warmup is None else {"schedule.warmup_epochs": warmup})
    assert len(said) == (warmup is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--optimizer.learning_rate 1", "no option is called 'optimizer.learning_rate'; did you mean 'optimizer"),
        ("--schedule.epochs 0", "schedule.epochs=0 must be greater than 0"),
        ("--schedule.epochs 3 --schedule.warmup_epochs 4", r"schedule.warmup_epochs=4 is not in 0..3"),
        ("--batch-size=-4", "batch_size=-4 must be greater than 0"),
        ("--val_fraction 1.5", "val_fraction=1.5 is not in .0, 1."),
        ("--optimizer.lr much", "^optimizer.lr=much; give a number$"),
        ("--precision 8-bit", "^precision=8-bit; give one of auto, 32-true, bf16-mixed, 16-mixed$"),
        ("stray", "unexpected 'stray'"),
    ],
)
def test_wrong_options(options: str, message: str):
    with pytest.raises(TranseptError, match=message) as caught:
        parse_recipe(read_recipe("digits"), options.split())
    assert "\n" not in str(caught.value)


def test_wrong_recipe_files(tmp_path: Path):
    page = tmp_path / "r.yaml"
    for text, message in {
        "model: {name: [": "is not YAML that can be read",
        "- 1": "must be a mapping",
        "model: {nam: xcit}": "no recipe option is called 'model.nam'; did you mean 'model.name'",
        "model: !!python/object/apply:os.system [touch owned]": "is not YAML that can be read",
        "data: digits": "model",
    }.items():
        page.write_text(text)
        with pytest.raises(TranseptError, match=message):
            parse_recipe(read_recipe(str(page)), [])
    with pytest.raises(TranseptError, match="there is no recipe file"):
        read_recipe(str(tmp_path / "absent.yaml"))
    with pytest.raises(TranseptError, match="no recipe is called 'digit'; did you mean 'digits'"):
        read_recipe("digit")


@pytest.mark.slow
def test_digits_reach_97_percent(tmp_path: Path):
    torch.set_num_threads(os.cpu_count() or 2)
    result = train(parse_recipe(read_recipe("digits"), []), tmp_path / "run", progress=False)
    assert result.metrics["top1"] >= 0.97


@pytest.mark.slow
def test_quick_reaches_95_percent_on_signdigits(tmp_path: Path, shared_data: Path):
    torch.set_num_threads(os.cpu_count() or 2)
    quick = parse_recipe(read_recipe("quick"), ["--data", str(shared_data / "signdigits")])
    assert train(quick, tmp_path / "run", progress=False).metrics["top1"] >= 0.95
