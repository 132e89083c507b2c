"""The names of version 0.1, in pages, in config.yaml of earlier runs and on the command line."""

import dataclasses
import re
import warnings
from pathlib import Path

import pytest
import yaml

from transept.cli.main import main
from transept.errors import TranseptWarning, UsageError
from transept.training.options.pages import read_recipe
from transept.training.options.parsing import option_types, parse_recipe
from transept.training.options.recipe import plain
from transept.training.options.renamed import RENAMED, renamed

RECIPES = Path(__file__).parents[3] / "docs" / "recipes.md"
VERSION_0_1 = Path(__file__).parent / "version_0_1"
RUNS = {
    "classify": "classify/xcit_tiny_12_p16_384_dist",
    "detect": "quick-det",
    "segment": "quick-seg",
    "pretrain": "quick-dino",
}


def test_every_new_name_is_an_option_or_a_section():
    for old, new in RENAMED.items():
        assert new in option_types() or any(name.startswith(f"{new}.") for name in option_types())
        assert old not in option_types()
    assert renamed("mix.mixup") == "classify.mix.mixup"
    assert renamed("optimizer.lr") == "optimizer.lr"


def rows_of_the_page() -> dict[str, str]:
    """Old name to new one, as the table in docs/recipes.md has them; `section.*` in it is the whole section."""
    table = RECIPES.read_text(encoding="utf-8").partition("## Names of version 0.1")[2].partition("\n## ")[0]
    names: dict[str, str] = {}
    for row in table.splitlines():
        if not row.startswith("| `"):
            continue
        old, new = (re.findall("`(.+?)`", cell) for cell in row.strip("| ").split(" | "))
        if old[0].endswith("."):  # a section, its names, and the one section where they stand now
            new = [new[0].replace("*", name) for name in old[1:]]
            old = [old[0] + name for name in old[1:]]
        names |= {a.removesuffix(".*"): b.removesuffix(".*") for a, b in zip(old, new, strict=True)}
    return names


def test_the_page_lists_every_old_name():
    assert rows_of_the_page() == dict(RENAMED)


@pytest.mark.parametrize("task", RUNS)
def test_a_run_of_version_0_1_reads_to_the_same_recipe(task: str):
    page = read_recipe(str(VERSION_0_1 / f"{task}.yaml"))
    with pytest.warns(TranseptWarning, match=r"is now called .* \(and \d+ more have new names") as caught:
        recipe = parse_recipe(page, [])
    assert len(caught) == 1
    assert recipe == parse_recipe(read_recipe(RUNS[task]), [])
    with warnings.catch_warnings():
        warnings.simplefilter("error", TranseptWarning)
        assert parse_recipe(yaml.safe_load(yaml.safe_dump(plain(dataclasses.asdict(recipe)))), []) == recipe


@pytest.mark.parametrize(
    ("words", "new"),
    [
        ("--mix.mixup 0.8", "--classify.mix.mixup 0.8"),
        ("--label-smoothing=0.2", "--classify.label_smoothing=0.2"),
        ("--detect.flip 0", "--detect.augmentation.flip 0"),
        ("--detect.scenes [4,2]", "--scenes [4,2]"),
        ("--segment.crop [96,64]", "--segment.augmentation.crop [96,64]"),
        ("--pretrain.local_crops 2", "--pretrain.views.local_crops 2"),
    ],
)
def test_old_names_on_the_command_line(words: str, new: str):
    old_name = words.split()[0].partition("=")[0][2:].replace("-", "_")
    with pytest.warns(TranseptWarning, match=f"{old_name} is now called {renamed(old_name)}; version 0.3 will not"):
        recipe = parse_recipe(read_recipe("digits"), words.split())
    assert recipe == parse_recipe(read_recipe("digits"), new.split())


def test_an_option_under_both_names():
    with pytest.raises(UsageError, match=r"detect.flip is now called detect.augmentation.flip, which is given, too"):
        parse_recipe(read_recipe("digits"), "--detect.flip 0 --detect.augmentation.flip 1".split())


def test_a_wrong_value_under_an_old_name(capsys: pytest.CaptureFixture):
    assert main(["train", "digits", "--detect.flip", "2"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "transept: detect.flip is now called detect.augmentation.flip; version 0.3 will not know the old name",
        "transept: detect.augmentation.flip=2 is not in [0, 1]",
    ]
