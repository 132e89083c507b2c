"""What is installed: the wheel's files, and the names and arguments that programs rely on."""

import inspect
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import transept
from transept.cli.main import main

ROOT = Path(__file__).parents[1]


def test_wheel_holds_the_source_and_nothing_else(tmp_path: Path):
    pytest.importorskip("hatchling", reason="needs the build backend 'hatchling'")
    listed = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs the repository's git data")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("transept-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    source = {name for name in names if ".dist-info/" not in name}
    assert source == {line.removeprefix("src/") for line in listed.stdout.splitlines()}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {"transept/py.typed", "transept/recipes/digits.yaml", "transept/cost/counts.json"} <= source


def test_one_version(capsys: pytest.CaptureFixture[str]):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"version: {project['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"transept {project['version']}\n"


def test_import_gives_no_warning():
    subprocess.run([sys.executable, "-W", "error", "-c", "import transept"], check=True)


ARGUMENTS = {
    "attention_kinds": "(model)",
    "attention_maps": "(model, images, kind=None, *, token=None, blocks=None, target=None)",
    "count": "(model, img_size=None)",
    "create_detector": "(method, *, backbone, num_classes=80, weights=None, backbone_weights=None, classes=None, "
    "preprocessing=None, width=256, anchor_scale=1.0, in_chans=3, img_size=None, drop_path_rate=0.0, **options)",
    "create_model": "(name, pretrained=False, weights=None, *, num_classes=1000, in_chans=3, img_size=None, "
    "drop_path_rate=0.0, features_only=False, out_indices=(0, 1, 2, 3), **options)",
    "create_segmenter": "(method, *, backbone, num_classes=150, weights=None, backbone_weights=None, classes=None, "
    "palette=None, preprocessing=None, width=None, in_chans=3, img_size=None, drop_path_rate=0.0, **options)",
    "evaluate": "(task, data=None, *, split=None, batch_size=None, workers=0, **options)",
    "from_pretrained": "(repo_or_folder, *, revision=None, token=None, cache_dir=None, drop_path_rate=0.0)",
    "compile": "(model, dtype='auto', batch=None, img_size=None)",
    "fuse": "(model)",
    "load_package": "(path)",
    "list_models": "(pattern='*', *, tag=False)",
    "load": "(source)",
    "load_weights": "(model, source, strict=True, *, wrapper=None)",
    "predict": "(task, pictures, **options)",
    "push_to_hub": "(model, repo_id, *, private=False, token=None, commit_message='Upload the model with transept', "
    "revision=None, card=True, weights=None, licence=None, datasets=None)",
    "read_image": "(source, *, name='', upright=True, reduce=None, window=None, reading=None)",
    "save_pretrained": "(model, folder, *, card=True, weights=None, licence=None, datasets=None)",
    "train": "(recipe, out, *, data=None, options=None, folds=None, progress=False)",
    "transforms_for": "(model)",
}


def test_arguments_of_public_functions():
    """Programs pass them by these names and rely on these defaults: a change here belongs into the changelog."""
    functions = {name: getattr(transept, name) for name in transept.__all__ if name[0].islower()}
    assert {name: _arguments(function) for name, function in functions.items()} == ARGUMENTS


def _arguments(function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
