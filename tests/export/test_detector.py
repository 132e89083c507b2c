"""Exported detectors find what eager ones find, on real photographs, and what cannot be is said."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import transept
from tests.tasks.test_detect import _sharpen
from transept.cli.main import main
from transept.data.detection_transforms import DetectionPreprocessing, detection_eval_transform
from transept.data.images import read_image
from transept.errors import TranseptError, UsageError
from transept.export.detector import DetectorInputs, compare_detections, default_size, export_detector, prepare
from transept.export.onnx import METADATA, Run, onnx_runner, pt2_runner, sample_picture
from transept.heads.instances import Detections
from transept.tasks.detect import METHODS, Detector

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TINY = dict(depth=1, embed_dim=32, num_heads=2)
FAMILIES: dict[str, dict[str, Any]] = {
    "cat_tiny": dict(depths=(1, 1, 1, 1)),
    "cabvit_h_l1": dict(depths=(1, 1, 2, 1)),
    "crossformer_tiny": dict(depths=(1, 1, 2, 1)),
    "xcit_nano_12_p16": dict(depth=1),
    "cait_xxs24": dict(depth=1),
}
SIZE = (128, 192)


def a_detector(method: str, backbone: str = "xcit_nano_12_p8", options: Mapping[str, Any] = TINY) -> Detector:
    """Random weights, sharp enough that dozens of objects are found."""
    detector = transept.create_detector(method, backbone=backbone, num_classes=3, width=64, **options)
    _sharpen(detector)
    return detector.eval()


@torch.no_grad()
def agree(detector: Detector, run: Run, inputs: DetectorInputs) -> dict[str, float]:
    """What was asked, written out: numbers and labels equal, boxes to 1e-2 px, scores to 1e-4, masks to 1e-3."""
    (expected,) = detector.decode(detector(inputs.images), inputs.sizes, inputs.original_sizes)
    found = Detections(*run(inputs))
    assert len(found.boxes) == len(expected.boxes) > 5
    assert len(expected.scores.unique()) > 5
    assert torch.equal(found.labels, expected.labels)
    assert (found.boxes - expected.boxes).abs().max() <= 1e-2
    assert (found.scores - expected.scores).abs().max() <= 1e-4
    assert (found.masks is not None) == (expected.masks is not None) == detector.has_masks
    if found.masks is not None and expected.masks is not None:
        assert (found.masks - expected.masks).abs().max() <= 1e-3
    return compare_detections(expected, found, "the graph")


def check(detector: Detector, folder: Path, pictures: list[Image.Image], size: tuple[int, int]) -> tuple[Run, Run]:
    """Export with the first picture, and compare on all."""
    exported = export_detector(detector, folder, img_size=size, picture=pictures[0])
    runs = onnx_runner(exported.files["onnx"]), pt2_runner(exported.files["pt2"])
    for picture in pictures:
        inputs = prepare(picture, detector.preprocessing, size)
        errors = [agree(detector, run, inputs) for run in runs]
        print(detector.method, detector.pretrained_cfg["architecture"], errors)
    return runs


def test_a_photograph_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    detector = a_detector("retinanet")
    detector.save(tmp_path / "best.safetensors")
    words = ["--out", str(tmp_path / "out"), "--img-size", *map(str, SIZE), "--json"]
    assert main(["export", str(tmp_path / "best.safetensors"), *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.onnx", "model.pt2"]
    assert (report["task"], report["img_size"]) == ("detect", list(SIZE))
    assert "one picture at a time" in report["limits"]
    runs = onnx_runner(report["files"]["onnx"]), pt2_runner(report["files"]["pt2"])
    inputs = prepare(sample_picture(), detector.preprocessing, SIZE)
    assert agree(detector, runs[0], inputs) == report["errors"]["onnx"]
    assert agree(detector, runs[1], inputs) == report["errors"]["pt2"]
    tall = sample_picture().rotate(90, expand=True)  # in the same graph, with more padding
    agree(detector, runs[0], prepare(tall, detector.preprocessing, SIZE))

    session = onnxruntime.InferenceSession(report["files"]["onnx"], providers=["CPUExecutionProvider"])
    outputs = [(node.name, node.shape[0]) for node in session.get_outputs()]
    assert outputs == [("boxes", "detections"), ("scores", "detections"), ("labels", "detections")]
    assert [node.name for node in session.get_inputs()] == ["images", "sizes", "original_sizes"]
    about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    extra = {f"{METADATA}.json": ""}
    torch.export.load(report["files"]["pt2"], extra_files=extra)
    assert json.loads(extra[f"{METADATA}.json"]) == about
    assert about["classes"] == detector.classes
    assert (about["scale"], about["multiple_of"], about["bgr"]) == ([1333, 800], 32, False)
    assert about["mean"] == list(detector.preprocessing.mean)


def test_masks_of_a_photograph(tmp_path: Path):
    detector = a_detector("mask_rcnn")
    runs = check(detector, tmp_path, [sample_picture()], SIZE)
    nothing = DetectorInputs(torch.zeros(1, 3, *SIZE), torch.tensor([[0, 0]]), torch.tensor([[1, 1]]))
    for run in runs:
        assert [output.shape[0] for output in run(nothing)] == [0, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_photographs_of_coco(method: str, tmp_path: Path, shared_data: Path):
    paths = sorted((shared_data / "coco_mini" / "val2017").glob("*.jpg"))[:2]
    assert len(paths) == 2
    check(a_detector(method), tmp_path, [sample_picture(), *map(read_image, paths)], (320, 416))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fcos", "cascade_mask_rcnn"])
@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_family(method: str, backbone: str, tmp_path: Path):
    check(a_detector(method, backbone, FAMILIES[backbone]), tmp_path, [sample_picture()], SIZE)


def test_pictures_are_prepared_as_in_evaluation():
    about = DetectionPreprocessing(scale=(320, 240))
    inputs = prepare(sample_picture(), about, default_size(about))
    assert inputs.images.shape == (1, 3, 256, 320)
    assert (inputs.sizes.tolist(), inputs.original_sizes.tolist()) == ([[214, 320]], [[427, 640]])
    expected = detection_eval_transform(about)(v2.functional.to_image(sample_picture()))
    torch.testing.assert_close(inputs.images[0, :, :214], expected, rtol=0, atol=0)
    assert not inputs.images[0, :, 214:].any()
    tall = prepare(sample_picture().rotate(90, expand=True), about, (256, 320))
    assert tall.sizes.tolist() == [[256, 171]]  # 320 x 214 is too high


def some(number: int) -> Detections:
    corner = torch.arange(number)[:, None] * 10.0
    boxes = torch.cat((corner, corner, corner + 5, corner + 8), dim=1)
    return Detections(
        boxes, torch.linspace(0.9, 0.5, number), torch.arange(number) % 2, torch.full((number, 2, 2), 0.5)
    )


def test_what_is_compared():
    expected = some(4)
    order = torch.tensor([1, 0, 2, 3])
    assert set(compare_detections(expected, expected.take(order), "x").values()) == {0.0, 4.0}
    near = expected._replace(boxes=expected.boxes + 0.005)
    assert compare_detections(expected, near, "x")["boxes"] == pytest.approx(0.005, rel=1e-3)
    assert expected.masks is not None
    for wrong, message in (
        (some(3), "x finds 3 objects in the picture and the detector 4"),
        (expected._replace(boxes=expected.boxes + 0.02), r"at \(0.00, 0.00, 5.00, 8.00\), class 0, score 0.90000"),
        (expected._replace(scores=expected.scores - 0.001), "has no like within"),
        (expected._replace(labels=1 - expected.labels), "has no like within"),
        (expected._replace(scores=expected.scores * torch.nan), "has no like within"),
        (expected._replace(masks=expected.masks + 0.01), "a mask by 0.01"),
        (expected.take(torch.tensor([0, 1, 2, 2])), "the object 4 of 4"),
    ):
        with pytest.raises(TranseptError, match=message):
            compare_detections(expected, wrong, "x")


def test_a_graph_that_differs_is_not_kept(tmp_path: Path):
    """The check looks at the file: a decoder that answers otherwise while it is traced is found out."""

    class Other(Detector):
        def decode(self, *args: Any, **kwargs: Any) -> list[Detections]:
            (found,) = super().decode(*args, **kwargs)
            return [found._replace(boxes=found.boxes + 1) if torch.compiler.is_compiling() else found]

    detector = a_detector("retinanet")
    detector.__class__ = Other
    with pytest.raises(TranseptError, match="model.pt2 differs from the detector on the picture"):
        export_detector(detector, tmp_path / "out", img_size=(64, 96), formats=["pt2"])
    assert not list((tmp_path / "out").iterdir())


def test_calls_that_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    detector = a_detector("retinanet")
    with pytest.raises(UsageError, match="img_size=100 x 64: this detector pads to multiples of 32; give 128 x 64"):
        export_detector(detector, tmp_path, img_size=(100, 64))
    with pytest.raises(UsageError, match="no export format is called 'onxx'; did you mean 'onnx'"):
        export_detector(detector, tmp_path, img_size=(64, 64), formats=["onxx"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="ONNX needs the package 'onnxruntime': pip install 'transept.export.'"):
        export_detector(detector, tmp_path, img_size=(64, 64))
