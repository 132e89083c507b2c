"""Benchmarks: what they measure, and the command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from transept.bench.figure import draw_benchmark, top1
from transept.bench.timing import Timing, bench, growth
from transept.cli.main import main
from transept.cost.count import count
from transept.errors import UsageError
from transept.models.registry import build_model

NANO = "xcit_nano_12_p16_224"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """The command, with timm's model beside ours."""
    folder = tmp_path_factory.mktemp("bench")
    words = ["bench", "xcit_nano_12_p16", "--peers", "--sizes", "32", "64", "--batch", "2", "--repetitions", "1"]
    assert main([*words, "--out", str(folder / "result.json"), "--picture", str(folder / "picture.png")]) == 0
    return json.loads((folder / "result.json").read_text()), folder / "picture.png"


def test_the_command_measures_and_draws(measured: tuple[dict, Path]):
    result, picture = measured
    rows = [(t["model"], t["source"], t["form"], t["img_size"]) for t in result["timings"]]
    forms = [("transept", "eager"), ("transept", "fused"), ("timm", "eager")]
    assert rows == [(NANO, *form, [side, side]) for side in (32, 64) for form in forms]
    for timing in result["timings"]:
        assert 0 < timing["best"] <= timing["p50"] <= timing["p90"]
        assert timing["images_per_second"] == pytest.approx(2 / timing["p50"])
    ours, _, theirs, larger, *_ = result["timings"]
    cost = count(build_model(NANO), 32)
    assert ours["macs"] == cost.macs < larger["macs"]
    assert ours["peak_memory"] > ours["own_memory"] >= 4 * cost.parameters
    assert larger["peak_memory"] > ours["peak_memory"]
    rate = 1e9 * result["machine"]["product_gmacs"]
    assert 0 < larger["share"] < 3
    assert larger["macs"] * 2 / larger["p50"] / larger["share"] == pytest.approx(rate, rel=1)
    assert theirs["macs"] == pytest.approx(ours["macs"], rel=0.1)
    assert result["machine"]["torch"] == torch.__version__
    assert imread(picture).std() > 0.01


def test_training_steps_keep_more_than_inference():
    inference, training = (
        bench([NANO], sizes=[64], forms=["eager"], training=training, repetitions=1).timings[0]
        for training in (False, True)
    )
    assert training.training
    assert training.peak_memory > 1.5 * inference.peak_memory


def test_growth_and_published_accuracy(measured: tuple[dict, Path], tmp_path: Path):
    rows = [Timing(**row | {"img_size": tuple(row["img_size"])}) for row in measured[0]["timings"][::3]]
    pixels = [row.img_size[0] * row.img_size[1] for row in rows]
    quadratic = [
        Timing(**{f: getattr(r, f) for f in r.__slots__} | {"p50": p**2}) for r, p in zip(rows, pixels, strict=True)
    ]
    assert growth(quadratic) == pytest.approx(2)
    assert growth(quadratic, lambda timing: timing.img_size[0] ** 6) == pytest.approx(3)
    with pytest.raises(ValueError, match="two image sizes"):
        growth(rows[:1])
    assert top1(NANO) == 69.9
    assert top1("deit_small_patch16_224") == 79.8
    assert top1("vit_base_patch16_224") is None
    result = bench([NANO], sizes=[32], forms=["eager"], repetitions=1)
    draw_benchmark(result, tmp_path / "accuracy.png")
    assert imread(tmp_path / "accuracy.png").std() > 0.01


def test_models_of_different_sizes_are_drawn_by_their_accuracy(tmp_path: Path):
    measured = bench([NANO], sizes=[32], forms=["eager"], repetitions=1)
    (row,) = measured.timings
    shapes = []
    for other in (NANO, "crossvit_tiny_240"):
        draw_benchmark(
            replace(measured, timings=[row, replace(row, model=other, img_size=(240, 240))]), tmp_path / "a.png"
        )
        shapes.append(imread(tmp_path / "a.png").shape)
    one_model_at_two_sizes, two_models = shapes
    assert one_model_at_two_sizes != two_models


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("xcit_nano", "no model is called 'xcit_nano'; did you mean"),
        (f"{NANO} --form eagre", "no form is called 'eagre'; did you mean 'eager'?"),
        (f"{NANO} --form fused --train", "form 'fused' is for inference; a training step is 'eager' or 'compiled'"),
        (f"{NANO} --batch 0", "batch=0 must be positive"),
        (f"{NANO} --sizes -3", "size=-3 must be positive"),
        (f"{NANO} --threads 0", "--threads 0 must be positive"),
        (f"{NANO} --device cude", "device='cude' is not there"),
        (f"{NANO} --peers deit_smal_patch16_224", "no timm model is called 'deit_smal_patch16_224'; did you mean"),
        (f"{NANO} --picture speed.txt", "--picture speed.txt: give a file ending in .png"),
        (f"{NANO} --out nowhere/x.json", "nowhere is no folder"),
        ("cat_tiny --sizes 100", "cat_tiny: img_size is 100x100 (height x width), which the stages cannot cut"),
    ],
)
def test_wrong_calls(words: str, sentence: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_a_device_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UsageError, match="device='cuda' is not there: .*; use 'cpu'"):
        bench([NANO], device="cuda")
