"""Runs that are stopped, killed, changed or out of room: what was saved stays, and the answer is a sentence."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from tests.helpers import fails
from tests.robust import sets
from transept.cli.main import main
from transept.tasks.classify import Classifier


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    page = sets.PAGE | {"data": str(sets.class_folders(root / "set"))}
    (root / "recipe.yaml").write_text(yaml.safe_dump(page))
    return root / "recipe.yaml"


@pytest.fixture(scope="module")
def whole_run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert main(["train", str(recipe), "--out", str(folder)]) == 0
    return folder


def start(recipe: Path, folder: Path, *options: str) -> "subprocess.Popen[str]":
    """A run that goes on until it is stopped, with a state already saved."""
    words = ["train", str(recipe), "--out", str(folder), "--schedule.epochs", "10000", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "transept", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (folder / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("presses", "pause"), [(2, 0.005), (3, 0.002), (3, 0.02), (5, 0.2)])
@pytest.mark.parametrize("where", ["anywhere", "while saving", "with workers"])
def test_ctrl_c_pressed_again(recipe: Path, tmp_path: Path, where: str, presses: int, pause: float):
    folder = tmp_path / "run"
    process = start(recipe, folder, "--workers", "2" if where == "with workers" else "0")
    while where == "while saving" and not any(folder.glob(".last-*.ckpt")):
        assert process.poll() is None
    for _ in range(presses):
        # As a terminal does: to the loading processes, too.
        os.killpg(process.pid, signal.SIGINT) if where == "with workers" else process.send_signal(signal.SIGINT)
        time.sleep(pause)
        if process.poll() is not None:
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].endswith(f"go on with: transept train --resume {folder}")
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] > 0
    assert not list(folder.glob(".last-*"))


def test_a_second_ctrl_c_stops_at_once(recipe: Path, tmp_path: Path, capsys: Any):
    """In the middle of a step, where the first one would have waited for its end."""
    folder, steps = tmp_path / "run", 0

    def press(module: nn.Module, inputs: Any) -> None:
        nonlocal steps
        steps += isinstance(module, Classifier) and module.training
        if steps == 5 and isinstance(module, Classifier):  # in the second epoch
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    hook = register_module_forward_pre_hook(press)
    try:
        assert main(["train", str(recipe), "--out", str(folder), "--schedule.epochs", "3"]) == 130
    finally:
        hook.remove()
    assert signal.getsignal(signal.SIGINT) is before
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("transept: stopped at once; what was saved before is whole; go on with: ")
    assert main(["train", "--resume", str(folder)]) == 0


def test_what_killed_saves_left_is_removed(recipe: Path, whole_run: Path, tmp_path: Path):
    left = [whole_run / name for name in (".last-abcd1234.ckpt", ".best-abc_1234.safetensors", ".config-a1b2c3d4.yaml")]
    kept = [whole_run / name for name in (".last-mine.ckpt", "notes-abcd1234.ckpt")]
    for file in (*left, *kept):
        file.write_text("half")
    assert main(["train", "--resume", str(whole_run)]) == 0
    assert not any(file.exists() for file in left)
    assert all(file.exists() for file in kept)


def test_the_disk_fills_up_in_mid_epoch(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The limit is met by the second state, after room for it was found at the beginning."""
    folder = tmp_path / "run"
    assert main(["train", str(recipe), "--out", str(folder)]) == 0
    size = (folder / "last.ckpt").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    capsys.readouterr()
    words = ["train", "--resume", str(folder), "--schedule.epochs", "2", "--checkpoint_seconds", "0"]
    room = max(size - 100_000, 0)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        code = main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 1, line
    assert "File too large" in line
    assert str(folder) in line
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] > 0
    assert main(words) == 0


@pytest.mark.slow  # a process that imports everything
def test_a_loading_process_is_killed_in_eval(whole_run: Path):
    """As the kernel kills it for want of memory, here while it reads its first picture."""
    code = (
        "import os, signal, sys\n"
        "from transept.cli.main import main\n"
        "from transept.data.classification.image_set import ImageSet\n"
        "read = ImageSet.read\n"
        "def killed(self, index, reduce=None):\n"
        "    from torch.utils.data import get_worker_info\n"
        "    if get_worker_info() is not None:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return read(self, index, reduce)\n"
        "ImageSet.read = killed\n"
        "ImageSet.small = property(lambda self: False)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "eval", str(whole_run), "--workers", "1"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    line = run.stderr.splitlines()[-1]
    assert run.returncode == 1, run.stderr
    assert line.startswith("transept: a process that prepares batches was killed (DataLoader worker"), line
    assert line.endswith("lower workers=1")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_page_that_was_cut_off_is_not_another_run(whole_run: Path, tmp_path: Path, share: float, capsys: Any):
    page = whole_run / "config.yaml"
    text = page.read_text()
    try:
        lines = text.splitlines(keepends=True)
        page.write_text("".join(lines[: int(len(lines) * share)]))
        for words in (["train", "--resume", str(whole_run)], ["eval", str(whole_run)]):
            line = fails(capsys, words)
            assert "config.yaml" in line
            assert "as if it was cut off; put back the file as the run wrote it" in line or "is not YAML" in line
    finally:
        page.write_text(text)


def test_too_little_for_a_batch_norm(tmp_path: Path, capsys: Any):
    """A picture of one cell alone, in the plan and in training."""
    page = sets.PAGE | {"task": "segment", "data": str(sets.masks(tmp_path / "masks")), "batch_size": 1}
    page |= {"segment": {"augmentation": {"crop": [32, 32]}}}
    (tmp_path / "page.yaml").write_text(yaml.safe_dump(page))
    for words in (["--dry-run", "--out", str(tmp_path / "plan")], ["--out", str(tmp_path / "run")]):
        assert main(["train", str(tmp_path / "page.yaml"), *words]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("transept: batch_size=1 with accumulate=1: a batch norm sees one number of each channel")


def test_options_that_differ_are_named_before_data_is_read(whole_run: Path, capsys: Any):
    page = whole_run / "config.yaml"
    text = page.read_text()
    try:
        for name, value in (("depth: 1", "depth: 2"), ("name: adamw", "name: sgd")):
            page.write_text(text.replace(name, value).replace("/set\n", "/moved\n"))
            line = fails(capsys, ["train", "--resume", str(whole_run)])
            assert value.split()[-1] in line
            assert line.partition(", but this run began with")[0].startswith("transept: config.yaml now says ")
    finally:
        page.write_text(text)
