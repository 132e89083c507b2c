"""Files of a classifier for other runtimes, all of one command: ONNX, OpenVINO, and ONNX in 8 bits."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from PIL import Image

from tests.export.small import a_classifier
from tests.helpers import fails
from transept.cli.main import main
from transept.errors import TranseptError, UsageError
from transept.export.int8 import INT8_FILE, compare_scores, export_int8
from transept.export.onnx import METADATA, Axis, onnx_runner, pt2_runner, write_graphs
from transept.inference.compile import spread_error
from transept.tasks.classify import Classifier
from transept.tasks.segment import create_segmenter

pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")


class ByCommand(NamedTuple):
    """A classifier, the folder of its files, and what the command reports."""

    classifier: Classifier
    folder: Path
    report: dict[str, Any]


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> ByCommand:
    folder = tmp_path_factory.mktemp("run")
    (folder / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for i in range(8):
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 64)).save(folder / "pictures" / f"{i}.png")
    torch.manual_seed(0)
    classifier = a_classifier()
    classifier.save(folder / "best.safetensors")
    words = [
        "--opset",
        "18",
        "--format",
        "onnx",
        "openvino",
        "pt2",
        "--dtype",
        "float32",
        "--int8",
        "--calibration",
        str(folder / "pictures"),
    ]
    with redirect_stdout(StringIO()) as out:
        assert main(["export", str(folder / "best.safetensors"), "--out", str(folder / "out"), *words, "--json"]) == 0
    assert {path.name for path in (folder / "out").iterdir()} == {
        "model.onnx", "model.bin", "model.xml", "model.pt2", INT8_FILE
    }  # fmt: skip
    return ByCommand(classifier, folder / "out", json.loads(out.getvalue()))


@torch.no_grad()
def test_onnx_takes_any_number_of_pictures(by_command: ByCommand):
    for batch in (1, 5):
        images = torch.randn(batch, 3, 64, 64)
        (logits,) = onnx_runner(by_command.folder / "model.onnx")([images])
        torch.testing.assert_close(logits, by_command.classifier(images), rtol=0, atol=1e-4)


def test_the_opset_is_what_was_asked_for(by_command: ByCommand):
    """In the file made of it, too."""
    for name in ("model.onnx", INT8_FILE):
        domains = {each.domain: each.version for each in onnx.load(by_command.folder / name).opset_import}
        assert domains[""] == 18


def test_opsets_that_cannot_be(by_command: ByCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = str(by_command.folder.parent / "best.safetensors")
    for words, sentence in (
        (["--opset", "11"], "opset=11 cannot be written: torch writes 18 and later ones"),
        (["--opset", "20", "--format", "pt2"], "opset=20 is of ONNX, which none of the formats pt2 is; leave it out"),
    ):
        assert sentence in fails(capsys, ["export", file, "--out", str(tmp_path), *words], 2)
    module, inputs = torch.nn.Linear(2, 2), {"images": torch.zeros(1, 2)}
    with pytest.raises(UsageError, match="opset=99 cannot be written: torch .* writes 18 in its place"):
        write_graphs(module, inputs, [Axis("out", "batch")], tmp_path, ["onnx"], {}, lambda *_: {}, opset=99)
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_openvino(by_command: ByCommand):
    assert by_command.report["errors"]["openvino"]["logits"] < 1e-4
    core = openvino.Core()
    graph = core.read_model(by_command.folder / "model.xml")
    assert json.loads(graph.get_rt_info(METADATA).value)["classes"] == ["a", "b", "c"]
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = torch.randn(5, 3, 64, 64)
    (logits,) = compiled([images.numpy()]).values()
    assert spread_error([by_command.classifier(images)], [torch.from_numpy(logits)]) < 1e-4


@torch.no_grad()
def test_a_broken_picture_spoils_no_other(by_command: ByCommand):
    images = torch.randn(3, 3, 64, 64)
    broken = images.clone()
    broken[1, 0, 5, 5] = torch.nan
    core = openvino.Core()
    compiled = core.compile_model(by_command.folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def by_openvino(values: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.from_numpy(each.copy()) for each in compiled([value.numpy() for value in values]).values()]

    runs = {
        "onnx": onnx_runner(by_command.folder / "model.onnx"),
        "int8": onnx_runner(by_command.folder / INT8_FILE),
        "openvino": by_openvino,
        "pt2": pt2_runner(by_command.folder / "model.pt2"),
    }
    for name, run in runs.items():
        (expected,), (logits,) = run([images]), run([broken])
        assert torch.equal(logits[[0, 2]], expected[[0, 2]]), name
        if name != "int8":  # 8 bits know no NaN
            assert logits[1].isnan().all(), name


def test_images_that_a_graph_is_not_for(by_command: ByCommand):
    """As the table of docs/export.md has it."""
    core = openvino.Core()
    compiled = core.compile_model(by_command.folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    run = onnx_runner(by_command.folder / "model.onnx")
    program = torch.export.load(by_command.folder / "model.pt2").module()
    good = torch.randn(2, 3, 64, 64)
    for wrong in (torch.randn(1, 3, 64, 96), torch.randn(1, 1, 64, 64), good[0], good.permute(0, 2, 3, 1)):
        with pytest.raises(InvalidArgument, match="Got invalid dimensions|Invalid rank"):
            run([wrong])
        with pytest.raises(RuntimeError, match="Can't set the input tensor"):
            compiled([wrong.numpy()])
        with pytest.raises(AssertionError, match="Guard failed: images.size"):
            program(wrong)
    for dtype in (torch.float64, torch.float16, torch.uint8):
        with pytest.raises(InvalidArgument, match="Unexpected input data type"):
            run([good.to(dtype)])
        with pytest.raises(RuntimeError, match="expected scalar type|should be the same"):
            program(good.to(dtype))
    (expected,) = run([good])
    for converted in (good.double(), good.to(memory_format=torch.channels_last)):
        (logits,) = compiled([converted.numpy()]).values()
        assert spread_error([expected], [torch.from_numpy(logits)]) < 1e-4
    with torch.no_grad():
        assert program(good[:0]).shape == run([good[:0]])[0].shape == (0, 3)


def test_8_bits(by_command: ByCommand):
    """Smaller, near the float ones, and quantised only where there are weights."""
    folder, report = by_command.folder, by_command.report["int8"]
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
    compared = compare_scores(folder, by_command.classifier, [(images[:4], labels[:4]), (images[4:], labels[4:])])
    assert compared.images == 6
    assert compared.scores[1] == pytest.approx(4 / 6)
    assert compared.scores[0] == pytest.approx(float((float_best == labels).float().mean()))


def test_calls_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(TranseptError, match="export the classifier to ONNX first"):
        export_int8(a_classifier(), tmp_path, [Image.new("RGB", (64, 64))])
    with pytest.raises(UsageError, match="calibration needs pictures"):
        export_int8(a_classifier(), tmp_path, [])
    segmenter = create_segmenter("semantic_fpn", backbone="xcit_nano_12_p16", width=16, num_classes=5, depth=1)
    with pytest.raises(UsageError, match="8-bit files are made of classifiers, and this is a segmenter"):
        export_int8(segmenter, tmp_path, [])  # pyright: ignore[reportArgumentType]
    a_classifier().save(tmp_path / "best.safetensors")
    words = ["export", str(tmp_path / "best.safetensors"), "--out", str(tmp_path)]
    for wrong, sentence in (
        (["--int8", "--format", "onnx"], "give --calibration FOLDER"),
        (["--calibration", "x"], "--calibration is for --int8"),
        (["--int8", "--format", "pt2"], "--int8 is made of model.onnx"),
        (["--int8", "--backbone"], "--int8 is for classifiers at their own size"),
    ):
        assert sentence in fails(capsys, [*words, *wrong], 2)
    (tmp_path / "file").touch()
    assert "is a file; give a folder" in fails(capsys, [*words[:2], "--out", str(tmp_path / "file")], 1)
