"""The published checkpoints as `transept models --weights` and `transept info` show them."""

import json
import re
from typing import Any

import pytest

from transept.cli.main import main
from transept.models.registry import list_models
from transept.weights.catalogue.records import CHECKPOINTS


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 0
    return capsys.readouterr().out


def row(text: str, name: str) -> list[str]:
    return next(line for line in text.splitlines() if line.split()[:1] == [name]).split()


def test_all_checkpoints_are_listed_by_task(capsys):
    text = shown(capsys, "models", "--weights")
    assert all(row(text, entry.name) for entry in CHECKPOINTS)
    for task in {entry.task for entry in CHECKPOINTS}:
        assert f"\n{task}, {sum(entry.task == task for entry in CHECKPOINTS)}" in text
    assert row(text, "xcit_small_12_p16_384.mmpretrain_dist_in1k")[1:] == [
        "84.74",
        "MMPretrain",
        "direct",
        "Apache-2.0",
    ]
    assert row(text, "xcit_tiny_12_p8.mask_rcnn_3x_coco")[1:] == ["44.5", "40.3", "official", "direct", "Apache-2.0"]
    assert row(text, "crossformer_large.upernet_ade20k")[1:] == ["50.4", "51.4", "official", "page", "MIT"]
    assert row(text, "regnety_160.fb_in1k")[1:] == ["official", "direct", "Apache-2.0"]  # nobody printed a score


def test_checkpoints_are_chosen_by_pattern(capsys):
    chosen = json.loads(shown(capsys, "models", "--weights", "cat_small*", "--json"))
    assert len(chosen) == 10
    assert chosen == json.loads(shown(capsys, "models", "cat_small*", "--weights", "--json"))
    (entry,) = json.loads(shown(capsys, "models", "--weights", "cat_small.fcos*", "--json"))
    assert (entry["scores"], entry["download"], entry["method"]) == ({"box_ap": 40.0}, "direct", "fcos")
    assert entry["preprocessing"]["crop_mode"] == "fit"
    assert entry["pages"][0]["url"].endswith("/releases/tag/v1.0")
    (entry,) = json.loads(shown(capsys, "models", "--weights", "crossformer_pp_base", "--json"))
    assert (entry["url"], entry["download"], entry["pages"][0]["code"]) == ("", "share page", "crsf")
    for argv, message in (
        (["--weights", "cait_s24.fb*"], "no published checkpoint is called 'cait_s24.fb*'"),
        (["cait*", "--weights", "xcit*"], "two patterns, 'cait*' and 'xcit*'"),
    ):
        assert main(["models", *argv]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 160])
def test_tables_fit_the_terminal(capsys, monkeypatch: pytest.MonkeyPatch, width: int):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for argv in (["models"], ["models", "--weights"]):
        text = re.sub(r"\x1b\[[\d;]*m", "", shown(capsys, *argv))
        assert "…" not in text
        lines = [line for line in text.splitlines() if not line.startswith(("*", "fetch:"))]
        assert max(map(len, lines)) <= width
    assert ("189.096136 M" in shown(capsys, "models", "xcit_large*")) == (width > 100)


def test_detectors_are_listed_with_their_own_scores(capsys):
    text = shown(capsys, "models", "xcit*", "--task", "detect", "--max-params", "30M")
    models, _, detectors = text.partition("Size, costs and top-1 are those of the classifier")
    assert row(models, "xcit_small_12_p16_224")
    assert "xcit_medium_24_p16" not in text, "which has more parameters"
    assert row(detectors, "xcit_tiny_12_p8.mask_rcnn_3x_coco")[1:3] == ["44.5", "40.3"]
    found = [float(line.split()[1]) for line in detectors.splitlines() if ".mask_rcnn_3x_coco" in line]
    assert found == sorted(found, reverse=True)
    assert len(found) > 3
    assert "semantic_fpn" not in text
    assert "Size, costs" not in shown(capsys, "models", "xcit*", "--task", "classify")


def test_models_count_their_files(capsys):
    text = shown(capsys, "models")
    assert row(text, "xcit_small_12_p16_224")[-2:] == ["24", "files"]
    assert row(text, "xcit_small_12_p16_224")[-5:-2] == ["82.0", "/", "83.3"]
    assert row(text, "crossformer_tiny")[-3:] == ["1", "by", "hand"]
    assert row(text, "cat_tiny")[-3:] == ["80.3", "2", "files"]  # the old file and the new score alike
    assert row(text, "cabvit_h_l2")[-2:] == ["83.1", "-"]


def test_info_says_how_to_get_each_file(capsys):
    text = shown(capsys, "info", "crossformer_base")
    assert text.count("https://drive.google.com") == text.count("https://pan.baidu.com") == 5
    assert "https://pan.baidu.com/s/1f5dH__UGDXb-HoOPHT5p0A (Baidu, access code 7md9)\n" in text
    assert "crossformer_base.in1k.pth', or anywhere and give weights=FILE" in text
    headings = [text.index(f"weights, {task}") for task in ("classification", "detection", "segmentation")]
    assert headings == sorted(headings)
    text = shown(capsys, "info", "xcit_nano_12_p16_384")
    assert "MMPretrain, PyTorch, Apache-2.0, pressed into 384x384, bicubic" in text
    text = shown(capsys, "info", "cabvit_h_l1")
    assert "no checkpoint of CabViT was ever published; files of FcaFormer" in " ".join(text.split())


def test_weights_without_a_classifier_are_not_evaluated(capsys):
    assert main(["eval", "xcit_small_12_p16_224.fb_dino_in1k", "--data", "digits"]) == 1
    assert "are self-supervised weights, which have no classifier" in capsys.readouterr().err


def listed(capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
    assert main(["models", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_within_limits_and_in_order(capsys: pytest.CaptureFixture[str]):
    cards = listed(capsys, "--max-params", "30M", "--max-macs", "5G", "--sort", "top1")
    assert all(item["parameters"] <= 30e6 and item["macs"] <= 5e9 for item in cards)
    assert cards[0]["name"] == "xcit_small_12_p16_224"
    costs = [item["macs"] for item in listed(capsys, "cait*", "--sort", "macs")]
    assert costs == sorted(costs)
    detecting = {item["name"].partition("_")[0] for item in listed(capsys, "--task", "detect")}
    assert detecting == {"cat", "crossformer", "xcit"}


def test_the_fastest_first(capsys: pytest.CaptureFixture[str]):
    rates = [item["images_per_second"]["fast"]["1"] for item in listed(capsys, "--sort", "speed")]
    assert len(rates) == len(list_models())
    assert rates == sorted(rates, reverse=True)
    assert main(["models", "xcit_nano*", "--sort", "speed"]) == 0
    text = capsys.readouterr().out
    assert "images/s" in text
    assert "transept bench NAME" in text


def test_limits_that_are_none(capsys: pytest.CaptureFixture[str]):
    assert main(["models", "--max-params", "many"]) == 2
    assert "'many' is no number such as 30M or 5G" in capsys.readouterr().err
    assert main(["models", "--max-params", "3k"]) == 1
    assert "no model is within these limits" in capsys.readouterr().err
