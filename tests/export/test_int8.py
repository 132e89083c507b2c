"""Classifiers in 8 bits: smaller, near the float ones, and quantised only where there are weights."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from tests.export.small import a_classifier
from transept.cli.main import main
from transept.errors import TranseptError, UsageError
from transept.export.int8 import INT8_FILE, compare_top1, export_int8
from transept.export.onnx import METADATA, onnx_runner
from transept.tasks.segment import create_segmenter

pytest.importorskip("onnxruntime")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few pictures, and a classifier."""
    (tmp_path / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for i in range(8):
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 64)).save(tmp_path / "pictures" / f"{i}.png")
    a_classifier().save(tmp_path / "best.safetensors")
    return tmp_path


def test_by_the_command(folder: Path, capsys: pytest.CaptureFixture[str]):
    words = ["export", str(folder / "best.safetensors"), "--out", str(folder), "--format", "onnx", "--int8"]
    assert main(words) == 2
    assert "give --calibration FOLDER" in capsys.readouterr().err
    assert main([*words, "--calibration", str(folder / "pictures"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["int8"]
    assert report["file"] == str(folder / INT8_FILE)
    assert report["bytes"]["int8"] == (folder / INT8_FILE).stat().st_size
    assert 0 < report["rms_error"] < 0.2
    assert report["latency_ratio"] > 0
    assert "top1" not in report  # a file of weights knows no validation pictures
    model = onnx.load(folder / INT8_FILE)
    (about,) = (entry.value for entry in model.metadata_props if entry.key == METADATA)
    assert (json.loads(about)["precision"], json.loads(about)["classes"]) == ("int8", ["a", "b", "c"])
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = {
        node.output[0]: stored.get(node.input[0]) for node in model.graph.node if node.op_type == "DequantizeLinear"
    }
    kinds = [
        [weights.get(name) for name in node.input[:2]] + [name in stored for name in node.input[:2]]
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv")
    ]
    assert sum(onnx.TensorProto.INT8 in kind for kind in kinds) == report["layers"] >= 10
    assert [None, None, False, False] in kinds, "products of activations are left as they are"
    assert not any(True in kind for kind in kinds), "a layer kept its float weights"

    images = torch.randn(6, 3, 64, 64)
    best, float_best = (onnx_runner(folder / name)([images])[0].argmax(dim=1) for name in (INT8_FILE, "model.onnx"))
    labels = torch.cat((best[:4], (best[4:] + 1) % 3))
    compared = compare_top1(folder, a_classifier(), [(images[:4], labels[:4]), (images[4:], labels[4:])])
    assert compared.images == 6
    assert compared.top1[1] == pytest.approx(4 / 6)
    assert compared.top1[0] == pytest.approx(float((float_best == labels).float().mean()))


def test_calls_that_are_wrong(folder: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(TranseptError, match="export the classifier to ONNX first"):
        export_int8(a_classifier(), folder, [Image.new("RGB", (64, 64))])
    with pytest.raises(UsageError, match="calibration needs pictures"):
        export_int8(a_classifier(), folder, [])
    segmenter = create_segmenter("semantic_fpn", backbone="xcit_nano_12_p16", width=16, num_classes=5, depth=1)
    with pytest.raises(UsageError, match="8-bit files are made of classifiers, and this is a segmenter"):
        export_int8(segmenter, folder, [])  # pyright: ignore[reportArgumentType]
    words = ["export", str(folder / "best.safetensors")]
    for wrong, sentence in (
        (["--calibration", "x"], "--calibration is for --int8"),
        (["--int8", "--format", "pt2"], "--int8 is made of model.onnx"),
        (["--int8", "--backbone"], "--int8 is for classifiers at their own size"),
    ):
        assert main([*words, *wrong]) == 2
        assert sentence in capsys.readouterr().err
