"""What evaluation reads of a run's config.yaml."""

import shutil
from pathlib import Path

import pytest

from transept.errors import TranseptError, UsageError
from transept.tasks.data_options import DataOptions

VERSION_0_1 = Path(__file__).parents[1] / "training" / "options" / "version_0_1"


def run_of(tmp_path: Path, text: str) -> Path:
    (tmp_path / "config.yaml").write_text(text)
    return tmp_path


def test_a_run_of_this_version(tmp_path: Path):
    folder = run_of(
        tmp_path, "data: hf:a/b\nval_fraction: 0.3\nskip_bad_images: true\nscenes: [20, 4]\nbatch_size: 8\n"
    )
    expected = DataOptions(data="hf:a/b", val_fraction=0.3, skip_bad_images=True, scenes=(20, 4))
    assert DataOptions.of_run(folder) == expected
    folder = run_of(tmp_path, "data: ADE20K\nreduce_zero_label: false\nskip_bad_annotations: true\n")
    assert DataOptions.of_run(folder) == DataOptions(data="ADE20K", reduce_zero_label=False, skip_bad_annotations=True)


def test_runs_of_version_0_1(tmp_path: Path):
    shutil.copy(VERSION_0_1 / "detect.yaml", tmp_path / "config.yaml")
    assert DataOptions.of_run(tmp_path) == DataOptions(data="digits-scenes", scenes=(2000, 200))
    folder = run_of(tmp_path, "data: digits-scenes\ndetect: {scenes: [20, 4]}\nsegment: {reduce_zero_label: true}\n")
    assert DataOptions.of_run(folder) == DataOptions(data="digits-scenes", scenes=(20, 4), reduce_zero_label=True)


def test_a_run_without_or_with_a_wrong_page(tmp_path: Path):
    with pytest.raises(TranseptError, match=r"is no run folder: config.yaml"):
        DataOptions.of_run(tmp_path)
    for text, sentence in {
        "val_fraction: 2": r"config.yaml': val_fraction=2 is not in \(0, 1\)",
        "val_fraction: much": "config.yaml': ",
        "scenes: [1]": "config.yaml': ",
        "scenes: [0, 5]": r"scenes=\[0, 5\] must be greater than 0",
        "skip_bad_images: often": "skip_bad_images='often' has the wrong type",
        "- a list": "config.yaml': ",
        "data: [": "config.yaml' is not YAML that can be read .line 2: ",
    }.items():
        with pytest.raises(TranseptError, match=sentence) as error:
            DataOptions.of_run(run_of(tmp_path, text))
        assert not isinstance(error.value, UsageError)
        assert "\n" not in str(error.value)
