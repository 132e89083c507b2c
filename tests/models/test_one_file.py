"""A family is one file and one line: a toy one, registered here, can do what the others can."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import transept
from tests import contract, toy_family
from tests.helpers import image, tiny
from transept.cli.main import main
from transept.data.classification.transforms import preprocessing_of
from transept.errors import TranseptError, UsageError
from transept.explain.attention import attention_kinds, attention_maps
from transept.explain.explanation import Explanation
from transept.models.attention import AttentionWeights, ShowsAttention, token_weights, whole_map
from transept.models.registry import find_model, register_family, unregister_family
from transept.tasks.classify import Classifier
from transept.tasks.detect import Detector
from transept.tasks.segment import Segmenter
from transept.weights.load import create_model
from transept.weights.report import Reason
from transept.weights.timm_entries import register_models

TOY = "ripple_tiny"
CHECKS = [
    pytest.param(check, id=name, marks=[pytest.mark.slow] if name == "check_compiled" else [])
    for name, check in vars(contract).items()
    if name.startswith("check_")
]


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    register_family(toy_family.FAMILY)  # the one line, of `FAMILIES` in the registry
    register_models(create_model)  # which a family of `FAMILIES` need not say
    yield
    unregister_family(toy_family.FAMILY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights as two kinds of file, those of another family, a trained classifier, and a picture."""
    root = tmp_path_factory.mktemp("toy")
    model = create_model(TOY, num_classes=7).eval()
    save_file(model.state_dict(), root / "toy.safetensors")
    torch.save({"model": model.state_dict()}, root / "toy.pth")
    torch.save(create_model("xcit_nano_12_p16_224").state_dict(), root / "xcit.pth")
    Classifier(model, [f"class {i}" for i in range(7)], preprocessing_of(model)).save(root / "classifier.safetensors")
    Image.radial_gradient("L").resize((90, 70)).convert("RGB").save(root / "picture.png")
    return root


def plain(capsys: pytest.CaptureFixture[str], *argv: object) -> Any:
    """What a verb prints with --json."""
    assert main([*map(str, argv), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: Any):
    check(TOY)


def test_registered_and_taken_away():
    assert transept.list_models("ripple*") == ["ripple_small", "ripple_tiny"]
    with pytest.raises(UsageError, match="'RippleNet', 'ripple_small', 'ripple_tiny': registered already"):
        register_family(toy_family.FAMILY)
    unregister_family(toy_family.FAMILY)
    with pytest.raises(UsageError, match="no model is called 'ripple_tiny'"):
        find_model(TOY)
    register_family(toy_family.FAMILY)
    with pytest.raises(UsageError, match="option of ripple_tiny is called 'depth'; did you mean 'depths'"):
        create_model(TOY, depth=3)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_its_own_file(folder: Path, suffix: str):
    path = folder / f"toy{suffix}"
    model = create_model(TOY, weights=path, num_classes=7).eval()
    assert set(transept.load_weights(model, path).taken) == set(model.state_dict())
    report = transept.load_weights(create_model(TOY, features_only=True), path)
    assert {key.reason for key in report.keys if not key.model} == {Reason.NO_CLASSIFIER}
    report = transept.load_weights(create_model(TOY, num_classes=3), path)
    assert [key.model for key in report.keys if key.fresh] == ["head.weight", "head.bias"]


def test_a_file_that_does_not_fit(folder: Path):
    with pytest.raises(TranseptError, match="do not fit ripple_tiny; this looks like xcit_nano_12_p16_224"):
        create_model(TOY, weights=folder / "xcit.pth")
    with pytest.raises(TranseptError, match="do not fit xcit_nano_12_p16_224; this looks like ripple_tiny"):
        create_model("xcit_nano_12_p16_224", weights=folder / "toy.pth")
    with pytest.raises(TranseptError, match="no weights of ripple_tiny to fetch: no checkpoint of ripple_tiny was"):
        create_model(TOY, pretrained=True)


def test_models_info_and_count(capsys: pytest.CaptureFixture[str]):
    rows = plain(capsys, "models", "ripple*")
    costs = {row["name"]: (row["parameters"], row["macs"], row["weights"], row["note"]) for row in rows}
    parameters = sum(p.numel() for p in create_model(TOY).parameters())
    assert costs[TOY] == (parameters, plain(capsys, "count", TOY)["macs"], [], None)
    assert {row["name"] for row in plain(capsys, "models")} > set(costs)
    item = plain(capsys, "info", TOY)
    assert (item["family"], item["config"]["depths"], item["published"]["top1"]) == ("RippleNet", [1, 1, 2, 1], None)
    assert plain(capsys, "count", f"retinanet/{TOY}")["macs_as_published"] is None
    for verb in ("models", "info", "count"):
        assert main([verb, TOY]) == 0
    assert "load your own with weights=FILE" in capsys.readouterr().out


def test_convert_and_identify(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    identity = plain(capsys, "convert", folder / "toy.pth", "--identify")
    assert [identity[key] for key in ("model", "family", "form", "agreement", "num_classes", "names")] == [
        TOY, "RippleNet", "classifier", 1, 7, "official"
    ]  # fmt: skip
    plain(capsys, "convert", folder / "toy.pth", tmp_path / "new.safetensors")
    model, other = (
        create_model(TOY, weights=path, num_classes=7) for path in (folder / "toy.pth", tmp_path / "new.safetensors")
    )
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert main(["convert", str(folder / "toy.pth"), str(tmp_path / "timm.pth"), "--to", "timm"]) == 2
    assert "no form of RippleNet checkpoints is called 'timm'" in capsys.readouterr().err


def test_explain(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It shows no attention of its own, so what is left is Grad-CAM."""
    argv = ["explain", folder / "classifier.safetensors", folder / "picture.png", "--out", tmp_path / "sheet.png"]
    assert [(shown["kind"], shown["name"]) for shown in plain(capsys, *argv)["maps"]] == [("grad-cam", "stages.3")] * 3
    assert main([*map(str, argv), "--kind", "class"]) == 2
    assert "no attention of ripple_tiny is called 'class'; it has grad-cam" in capsys.readouterr().err
    model = create_model(TOY)
    assert attention_kinds(model) == ["grad-cam"]
    assert attention_maps(model, image()) == []
    (level,) = attention_maps(model, image(1, 64, 96), "grad-cam", blocks=[1])
    assert (level.grid, level.stage) == ((8, 12), 1)


class Gaze(nn.Module, ShowsAttention):
    """Every place looks at itself alone."""

    attention_kind = "gaze"

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # b c h w -> b c h w
        return x

    def attention_weights(self, grid: tuple[int, int], x: torch.Tensor) -> AttentionWeights:
        weights = torch.eye(grid[0] * grid[1]).expand(len(x), 2, -1, -1)
        return token_weights(weights, whole_map(grid, x))


def test_explain_attention_of_its_own(folder: Path, tmp_path: Path):
    """A layer that says its attention is all that it takes."""
    task = Classifier.load(folder / "classifier.safetensors")
    task.model.get_submodule("stages.2").append(Gaze())
    assert attention_kinds(task) == ["gaze", "grad-cam"]
    (layer,) = attention_maps(task, image(1, 64, 96), "gaze", token=(95, 0))
    assert (layer.name, layer.stage, layer.block, layer.grid) == ("stages.2.3", 2, 3, (4, 6))
    assert layer.maps[0, 1, 0].tolist() == [0, 0, 0, 0, 0, 1]
    with Image.open(folder / "picture.png") as picture:
        explanation = Explanation(task, picture)
    rows = explanation.overview()
    assert [row.title for row in rows] == ["Gaze attention, stage 2, block 3", "Through the whole model"]
    explanation.draw(rows, tmp_path / "sheet.png")
    assert explanation.marked


@torch.no_grad()
def test_fuse():
    model = contract.model_of(TOY, tiny)
    assert torch.allclose(transept.fuse(model)(image()), model(image()), atol=1e-5)


def test_export(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """To torch.export; what becomes ONNX does not depend on the family: tests/export."""
    report = plain(capsys, "export", folder / "classifier.safetensors", "--out", tmp_path, "--format", "pt2")
    assert [Path(path).name for path in report["files"].values()] == ["model.pt2"]


@torch.no_grad()
@pytest.mark.parametrize(("create", "method"), [("create_detector", "retinanet"), ("create_segmenter", "upernet")])
def test_detector_and_segmenter(create: str, method: str, tmp_path: Path):
    task = getattr(transept, create)(method, backbone=TOY, num_classes=3, width=32).eval()
    task.save(tmp_path / "task.safetensors")
    again = (Detector if create == "create_detector" else Segmenter).load(tmp_path / "task.safetensors")
    outputs, expected = (model.state_dict() for model in (again, task))
    assert all(torch.equal(value, outputs[name]) for name, value in expected.items())
    picture = Image.radial_gradient("L").resize((90, 70)).convert("RGB")
    assert len(again.predict([picture])) == 1


def test_elsewhere(tmp_path: Path):
    assert timm.create_model(TOY, num_classes=5)(image()).shape == (2, 5)
    transept.save_pretrained(contract.model_of(TOY, tiny), tmp_path / "saved")
    assert torch.equal(
        transept.from_pretrained(str(tmp_path / "saved"))(image()), contract.model_of(TOY, tiny)(image())
    )
