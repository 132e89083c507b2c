"""Exported backbones give the maps of the pyramid, at one size or at any."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import transept
from tests.helpers import NAMES, build
from transept.cli.main import main
from transept.data.classification.transforms import Preprocessing
from transept.errors import UsageError
from transept.export.backbone import export_backbone
from transept.export.onnx import METADATA, onnx_runner, pt2_runner
from transept.models.registry import build_model
from transept.tasks.classify import Classifier

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ANY_SIZE = ("cabvit_p_l0", "cait_xxs24_224", "xcit_nano_12_p8_224")
LEVELS = ["map_4", "map_8", "map_16", "map_32"]


@torch.no_grad()
def check(name: str, folder: Path, *, dynamic: bool) -> None:
    """Batches and, where any may come, sizes that the export itself has not seen."""
    model = build(name, features_only=True)
    exported = export_backbone(model, folder, dynamic_size=dynamic)
    sizes = ((64, 64), (128, 64), (96, 224)) if dynamic else ((64, 64),)
    for run in (onnx_runner(exported.files["onnx"]), pt2_runner(exported.files["pt2"])):
        for batch, (height, width) in zip((1, 4, 2), sizes, strict=False):
            images = torch.randn(batch, 3, height, width)
            expected = model(images)
            found = run([images])
            assert [level.shape for level in found] == [level.shape for level in expected]
            for a, b in zip(found, expected, strict=True):
                assert float((a - b).abs().max()) <= 1e-4 * float(b.std())
    assert exported.about["size_step"] == (32 if dynamic else None)
    assert exported.about["channels"] == model.feature_info.channels()
    print(name, dynamic, json.dumps(exported.errors))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_family(name: str, dynamic: bool, tmp_path: Path):
    if dynamic and name not in ANY_SIZE:
        with pytest.raises(UsageError, match=f"one graph of {name} cannot hold; export one file for each size"):
            export_backbone(build(name, features_only=True), tmp_path, dynamic_size=True)
        return
    check(name, tmp_path, dynamic=dynamic)


@torch.no_grad()
def test_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The pyramid of a classifier's file has its weights, and those that the file lacks are counted."""
    options: dict[str, Any] = dict(img_size=64, depth=1, embed_dim=32, num_heads=2)
    model = build_model("xcit_nano_12_p16", num_classes=2, **options)
    file = tmp_path / "best.safetensors"
    Classifier(model, ["a", "b"], Preprocessing(img_size=(64, 64))).save(file)
    words = ["export", str(file), "--backbone", "--format", "onnx", "--out", str(tmp_path), "--json"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "parameters of the pyramid, fpn1.0.weight first, are not in" in err
    report = json.loads(out)
    assert (report["task"], list(report["errors"]["onnx"])) == ("features", LEVELS)
    session = onnxruntime.InferenceSession(report["files"]["onnx"])
    assert session.get_inputs()[0].shape == ["batch", 3, 64, 64]
    sides = [("batch", 32, 16 // 2**i, 16 // 2**i) for i in range(4)]
    assert [tuple(node.shape) for node in session.get_outputs()] == sides
    about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    assert (about["mean"], about["outputs"]) == ([0.485, 0.456, 0.406], LEVELS)
    model = build_model("xcit_nano_12_p16", features_only=True, out_indices=(2,), **options).eval()
    transept.load_weights(model, file)
    images = torch.randn(2, 3, 64, 64)
    (expected,) = model(images)  # of stride 16: no fresh parameter lies before it
    torch.testing.assert_close(
        onnx_runner(Path(report["files"]["onnx"]))([images])[2], expected, rtol=0, atol=1e-4 * float(expected.std())
    )


def test_calls_that_are_wrong(tmp_path: Path):
    with pytest.raises(UsageError, match="build it with features_only=True"):
        export_backbone(build("xcit_nano_12_p8_224"), tmp_path)
    model = build("xcit_nano_12_p8_224", features_only=True)
    with pytest.raises(UsageError, match="img_size=0 x 64: give a positive height and width"):
        export_backbone(model, tmp_path, img_size=(0, 64))
    with pytest.raises(UsageError, match="img_size=64 x 72: with any size, sides are multiples of 32; give 64 x 96"):
        export_backbone(model, tmp_path, img_size=(64, 72), dynamic_size=True)
