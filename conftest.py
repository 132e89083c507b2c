"""The Python blocks of the README and of the docs, and the tutorials' commands, run as tests: `pytest README.md docs`.

In one process for each page, for the blocks of a page build on each other, and in an empty folder that is the page's
own. No page downloads anything: an invisible block before the visible one writes what the visible one reads, published
weights by `stand_in`, a run by `digits_run`. What cannot run anywhere is marked with `<!-- skip: next "why" -->`.
"""

import os
import shlex
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

# Containers often set it to keep images small; every process that a test starts would then compile torch anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def begin(page: dict[str, Any]) -> None:
    page["folder_of_page"] = tempfile.TemporaryDirectory()
    page["environment"] = pytest.MonkeyPatch()
    page["environment"].chdir(page["folder_of_page"].name)
    page["environment"].setenv("TORCH_HOME", page["folder_of_page"].name)
    page["environment"].setenv("TRANSEPT_OFFLINE", "1")
    page["stand_in"] = stand_in
    page["digits_run"] = digits_run
    page["find_spec"] = find_spec  # for blocks that need an extra


def end(page: dict[str, Any]) -> None:
    page["environment"].undo()
    page["folder_of_page"].cleanup()


def stand_in(name: str) -> None:
    """Random weights, in the authors' format, where the published ones `model.tag` would lie after their download."""
    import torch

    import transept
    from transept.weights.fetch.download import local_path
    from transept.weights.load import find_checkpoint

    weights = find_checkpoint(name)
    if weights.task == "detection":
        model = transept.create_detector(weights.method, backbone=weights.model, num_classes=80)
    else:
        classes = 0 if weights.task == "self-supervised" else 1000
        model = transept.create_model(weights.model, num_classes=classes)
    path = local_path(weights.url)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict()}, path)


def digits_run(folder: str) -> None:
    """What others read of the run that `transept train digits` leaves, with a smaller model and random weights."""
    import transept
    from transept.data.classification.transforms import Preprocessing
    from transept.tasks.run_folder import BEST, CONFIG

    model = transept.create_model("cait_xxs24_224", num_classes=10, img_size=32, depth=1)
    run = Path(folder)
    run.mkdir(parents=True)
    transept.Classifier(model, [str(digit) for digit in range(10)], Preprocessing(img_size=(32, 32))).save(run / BEST)
    (run / CONFIG).write_text("data: digits\n", encoding="utf-8")


def call(example: Example) -> str | None:
    """Each line of a block, as a command of its own; what it says when it fails."""
    from transept.cli.main import main

    for line in example.parsed.splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "transept"
        if code := main(words):
            return f"{line}: exit code {code}"
    return None


_ALL: dict[str, Any] = dict(setup=begin, teardown=end)
_pages = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/api/*.md", "docs/families/*.md"],
    **_ALL,
).pytest()
_tutorials = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser("sh", call), SkipParser()],
    patterns=["docs/tutorials/*.md"],
    **_ALL,
).pytest()


def pytest_collect_file(file_path: Path, parent: Any) -> Any:
    return _pages(file_path, parent) or _tutorials(file_path, parent)
