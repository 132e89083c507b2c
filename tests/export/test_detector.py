"""Exported detectors find what eager ones find, on real photographs, and what cannot be is said."""

import dataclasses
import json
import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

import transept
from tests.helpers import NARROW
from transept.cli.main import main
from transept.data.detection.transforms import DetectionPreprocessing, detection_eval_transform
from transept.data.images import read_image, sample_picture
from transept.errors import TranseptError, UsageError
from transept.export.detector import (
    DetectorInputs,
    compare_detections,
    default_size,
    export_detector,
    prepare,
)
from transept.export.onnx import METADATA, Axis, Run, onnx_runner, pt2_runner, write_graphs
from transept.export.openvino import openvino_runner
from transept.heads.instances import Detections
from transept.heads.rpn import Proposals, RPNOutputs
from transept.ops.anchors import Anchors
from transept.tasks.detect import Detector

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")

FAMILIES: dict[str, dict[str, Any]] = {
    name.removesuffix("_224"): options for name, options in NARROW.items() if name != "cabvit_p_l0"
} | {"xcit_nano_12_p8": dict(depth=1, embed_dim=32, num_heads=2)}
PAIRS = [
    ("retinanet", "cat_tiny"),
    ("fcos", "cabvit_h_l1"),
    ("atss", "crossformer_tiny"),
    ("mask_rcnn", "cait_xxs24"),
    ("cascade_rcnn", "xcit_nano_12_p8"),
    ("cascade_mask_rcnn", "cat_tiny"),
    ("cascade_rcnn", "cabvit_h_l1"),
    ("mask_rcnn", "crossformer_tiny"),
    ("fcos", "cait_xxs24"),
    ("atss", "xcit_nano_12_p8"),
]
SIZE = (128, 192)
# Layer to the mean and deviation of each of its outputs over the photograph.
SPREAD = {
    "retina_cls": (-3.5, 1.5),
    "conv_cls": (-2.5, 1.5),
    "atss_cls": (-2.5, 1.5),
    "rpn_cls": (0.0, 1.5),
    "fc_cls": (0.0, 2.0),
    "conv_logits": (0.0, 2.0),
    "conv_centerness": (0.0, 1.0),
    "atss_centerness": (0.0, 1.0),
    "retina_reg": (0.0, 0.2),
    "conv_reg": (2.8, 0.4),
    "atss_reg": (0.0, 1.0),
    "rpn_reg": (0.0, 0.2),
    "fc_reg": (0.0, 1.0),
}


@torch.no_grad()
def a_detector(method: str, backbone: str = "xcit_nano_12_p8") -> Detector:
    """Random weights, scaled so that scores, classes and boxes differ widely over the photograph.

    As they come from the generator all scores are nearly the same, and no two runs of anything agree on their order.
    """
    detector = transept.create_detector(method, backbone=backbone, num_classes=3, width=64, **FAMILIES[backbone]).eval()
    done = set()

    def scale(layer: Any, _: object, outputs: torch.Tensor) -> torch.Tensor | None:
        if layer in done:  # a further level
            return None
        done.add(layer)
        dims = [dim for dim in range(outputs.ndim) if dim != 1]
        shape = [-1] + [1] * (outputs.ndim - 2)
        mean, std = SPREAD[names[layer]]
        gain = std / outputs.std(dims)
        shift = mean - outputs.mean(dims) * gain
        layer.weight.mul_(gain.reshape(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.mul_(gain).add_(shift)
        return outputs * gain.reshape(shape) + shift.reshape(shape)

    names = {layer: name.rpartition(".")[2] for name, layer in detector.named_modules()}
    hooks = [layer.register_forward_hook(scale) for layer, name in names.items() if name in SPREAD]
    inputs = prepare(sample_picture(), detector.preprocessing, SIZE)
    norms = [layer for layer in detector.backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    detector.backbone(inputs.images)  # else CabViT's maps vanish from level to level, and whole levels tie
    for norm in norms:
        norm.eval()
    detector.decode(detector(inputs.images), inputs.sizes)
    for hook in hooks:
        hook.remove()
    return detector


@torch.no_grad()
def agree(detector: Detector, run: Run, inputs: DetectorInputs) -> dict[str, float]:
    """Labels equal, boxes to 1e-2 px, scores to 1e-4, masks to 1e-3; all but one object in 50 found by both."""
    (expected,) = detector.decode(detector(inputs.images), inputs.sizes, inputs.original_sizes)
    found = Detections(*run(inputs))
    assert abs(len(found.boxes) - len(expected.boxes)) <= len(expected.boxes) // 50
    assert len(expected.boxes) > 20
    assert len(expected.labels.unique()) > 1
    assert expected.scores[0] - expected.scores[-1] > 0.1
    assert (found.masks is not None) == (expected.masks is not None) == detector.has_masks
    errors = compare_detections(expected, found, "the graph", detector.max_detections)
    assert errors["detections"] >= 0.98 * len(expected.boxes)
    assert errors["boxes"] <= 1e-2
    assert errors["scores"] <= 1e-4
    assert errors.get("masks", 0.0) <= 1e-3
    return errors


def check(detector: Detector, folder: Path, pictures: list[Image.Image], size: tuple[int, int]) -> tuple[Run, ...]:
    """Export with the first picture, and compare on all."""
    formats = ("onnx", "pt2", "openvino")
    exported = export_detector(detector, folder, img_size=size, picture=pictures[0], formats=formats)
    files = exported.files
    runs = onnx_runner(files["onnx"]), pt2_runner(files["pt2"]), openvino_runner(files["openvino"], "float32")
    extra = {f"{METADATA}.json": ""}
    torch.export.load(exported.files["pt2"], extra_files=extra)
    assert json.loads(extra[f"{METADATA}.json"]) == json.loads(json.dumps(exported.about))
    for run in runs:
        assert [output.shape[0] for output in run(NOTHING)] == [0] * len(names_of(detector))
    for picture in pictures:
        inputs = prepare(picture, detector.preprocessing, size)
        for run, name in zip(runs, formats, strict=True):
            print(detector.method, detector.pretrained_cfg["architecture"], name, agree(detector, run, inputs))
    return runs


NOTHING = DetectorInputs(torch.zeros(1, 3, *SIZE), torch.tensor([[0, 0]]), torch.tensor([[1, 1]]))


FORMATS = ("onnx", "openvino")


class ByCommand(NamedTuple):
    """A detector, and what the command reports of its export."""

    detector: Detector
    report: dict[str, Any]


@pytest.fixture(scope="module", params=["retinanet", pytest.param("mask_rcnn", marks=pytest.mark.slow)])
def by_command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ByCommand:
    """A detector on XCiT for onnxruntime; slow tests have one of two stages, OpenVINO and exported programs."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    detector = a_detector(request.param)
    detector.save(folder / "best.safetensors")
    formats = FORMATS[: 1 + detector.has_masks]
    words = ["--out", str(folder / "out"), "--img-size", *map(str, SIZE), "--format", *formats, "--json"]
    with redirect_stdout(StringIO()) as out:
        assert main(["export", str(folder / "best.safetensors"), *words]) == 0
    files = {"model.onnx", *(["model.xml", "model.bin"] if "openvino" in formats else [])}
    assert {path.name for path in (folder / "out").iterdir()} == files
    return ByCommand(detector, json.loads(out.getvalue()))


def test_a_photograph_by_the_command(by_command: ByCommand):
    detector, report = by_command
    assert (report["task"], report["img_size"]) == ("detect", list(SIZE))
    assert "one picture at a time" in report["limits"]
    inputs = prepare(sample_picture(), detector.preprocessing, SIZE)
    tall = prepare(sample_picture().rotate(90, expand=True), detector.preprocessing, SIZE)  # with more padding
    for kind, file in report["files"].items():
        run = onnx_runner(file) if kind == "onnx" else openvino_runner(file, "float32")
        assert agree(detector, run, inputs) == report["errors"][kind]
        agree(detector, run, tall)
        # Regions have no extent there, and so no objects; anchors keep theirs.
        number = 0 if detector.has_masks else detector.max_detections
        assert [output.shape[0] for output in run(NOTHING)] == [number] * len(names_of(detector))


def names_of(detector: Detector) -> list[str]:
    return ["boxes", "scores", "labels", *["masks"] * detector.has_masks]


def test_names_and_metadata(by_command: ByCommand):
    detector, report = by_command
    session = onnxruntime.InferenceSession(report["files"]["onnx"], providers=["CPUExecutionProvider"])
    outputs = [(node.name, node.shape[0]) for node in session.get_outputs()]
    assert outputs == [(name, "detections") for name in names_of(detector)]
    assert [node.name for node in session.get_inputs()] == ["images", "sizes", "original_sizes"]
    about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    assert about["classes"] == detector.classes
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in about.items()}.items() >= (
        dataclasses.asdict(detector.preprocessing).items()
    )


@pytest.mark.parametrize(
    "preprocessing",
    [
        DetectionPreprocessing(antialias=True),
        DetectionPreprocessing(bgr=True, mean=(0.4, 0.45, 0.5), std=(1.0, 0.5, 0.25)),
        DetectionPreprocessing(per_picture=True),
    ],
)
@torch.no_grad()
def test_the_code_of_the_page(
    preprocessing: DetectionPreprocessing,
    by_command: ByCommand,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """The block of docs/export.md for onnxruntime finds the detector's boxes."""
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (code,) = (block for block in blocks if "InferenceSession" in block and "street.jpg" in block)
    monkeypatch.chdir(tmp_path)
    onnx = pytest.importorskip("onnx")
    model = onnx.load(by_command.report["files"]["onnx"])
    (about,) = (each for each in model.metadata_props if each.key == METADATA)
    # The graph is one and the same: only what is done before it differs.
    about.value = json.dumps(json.loads(about.value) | dataclasses.asdict(preprocessing))
    onnx.save(model, "model.onnx")

    whole = sample_picture()
    for picture in (whole.crop((200, 100, 376, 228)), whole):  # the first is not resized
        picture.save("street.jpg", quality=95)
        names: dict[str, Any] = {}
        exec(compile(code, "docs/export.md", "exec"), names)
        inputs = prepare(read_image(Path("street.jpg")), preprocessing, SIZE)
        assert names["sizes"].tolist() == torch.cat((inputs.sizes, inputs.original_sizes)).tolist()
        level = 1 / 255 / (inputs.images.new_tensor(preprocessing.std).min() if not preprocessing.per_picture else 0.1)
        apart = (torch.from_numpy(names["images"]) - inputs.images).abs()
        assert apart.max() < 1.1 * level
        if picture is whole:
            continue
        assert apart.max() < 1e-5
        detector = by_command.detector
        (expected,) = detector.decode(detector(inputs.images), inputs.sizes, inputs.original_sizes)
        found = Detections(*(torch.from_numpy(names[name]) for name in ("boxes", "scores", "labels")), *names["masks"])
        assert len(expected.boxes) > 20
        assert compare_detections(expected, found, "the page", detector.max_detections)["detections"] > 20
        assert len(capsys.readouterr().out.splitlines()) == len(found.boxes)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "backbone"), PAIRS)
def test_methods_and_families_on_photographs_of_coco(method: str, backbone: str, tmp_path: Path, shared_data: Path):
    paths = sorted((shared_data / "coco_mini" / "val2017").glob("*.jpg"))[:2]
    assert len(paths) == 2
    check(a_detector(method, backbone), tmp_path, [sample_picture(), *map(read_image, paths)], SIZE)


one_level = Proposals(anchors=Anchors(strides=(4,), scales=(8,), ratios=(0.5, 1, 2)))


class ProposalsOf(nn.Module):
    def forward(self, logits: torch.Tensor, deltas: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (found,) = one_level(RPNOutputs([logits], [deltas]), sizes)
        return tuple(found)


def test_equal_scores_are_suppressed_in_one_order(tmp_path: Path):
    """Where the picture is empty or padded whole levels tie; the order among them decides what suppression leaves."""
    logits = torch.tensor([0.5, 0.0, 1.0])[None, :, None, None].repeat(1, 1, 16, 16)
    deltas = torch.linspace(-0.3, 0.3, 12)[None, :, None, None].repeat(1, 1, 16, 16)
    inputs = {"logits": logits, "deltas": deltas, "sizes": torch.tensor([[64, 64]])}
    eager = one_level(RPNOutputs([logits], [deltas]), inputs["sizes"])[0]
    assert 20 < len(eager.boxes) < 300
    outputs = [Axis("boxes", "proposals"), Axis("scores", "proposals")]

    def compare(kind: str, run: Run) -> dict[str, float]:
        boxes, scores = run(list(inputs.values()))
        found = scores > 0  # what is suppressed stays in the graph, without extent
        torch.testing.assert_close((boxes[found], scores[found]), tuple(eager), rtol=1e-5, atol=1e-4)
        return {}

    assert len(write_graphs(ProposalsOf(), inputs, outputs, tmp_path, ("onnx", "pt2"), {}, compare).errors) == 2


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
    assert set(compare_detections(expected, expected.take(order), "x", 4).values()) == {0.0, 4.0}
    near = expected._replace(boxes=expected.boxes + 0.005)
    assert compare_detections(expected, near, "x", 4)["boxes"] == pytest.approx(0.005, rel=1e-3)
    twins = expected.take(torch.tensor([0, 1, 1, 2]))  # boxes without extent do not suppress each other
    assert compare_detections(twins, twins, "x", 4)["detections"] == 4
    assert expected.masks is not None
    for wrong, message in (
        (some(3), "x finds 3 objects in the picture and the detector 4"),
        (
            expected._replace(boxes=expected.boxes + 0.02),
            r"the detector finds as object 1 of 4 at \(0.00, 0.00, 5.00, 8.00\), class 0, score 0.90000, has no like",
        ),
        (expected._replace(scores=expected.scores - 0.001), "has no like within"),
        (expected._replace(labels=1 - expected.labels), "has no like within"),
        (expected._replace(scores=expected.scores * torch.nan), "has no like within"),
        (expected._replace(masks=expected.masks + 0.01), "a mask by 0.01"),
        (expected.take(torch.tensor([0, 1, 2, 2])), "x finds as object [34] of 4"),
    ):
        with pytest.raises(TranseptError, match=message):
            compare_detections(expected, wrong, "x", 4)


def test_ties_at_the_end_of_a_full_list():
    expected = some(4)
    other = expected._replace(boxes=expected.boxes.clone())
    other.boxes[3] += 100
    assert compare_detections(expected, other, "x", 4) == {
        "detections": 3,
        "flipped": 0,
        "boxes": 0,
        "scores": 0,
        "masks": 0,
    }
    with pytest.raises(TranseptError, match="the detector finds as object 4 of 4"):
        compare_detections(expected, other, "x", 100)  # the list has room for both
    lower = other._replace(scores=expected.scores - torch.tensor([0, 0, 0, 3e-4]))
    with pytest.raises(TranseptError, match="x finds as object 4 of 4"):
        compare_detections(expected, lower, "x", 4)
    inside = expected._replace(boxes=expected.boxes.clone())
    inside.boxes[2] += 100
    with pytest.raises(TranseptError, match="the detector finds as object 3 of 4"):
        compare_detections(expected, inside, "x", 4)
    flat = expected._replace(scores=torch.full((4,), 0.5))
    with pytest.raises(TranseptError, match="has no like"):
        compare_detections(flat, flat._replace(boxes=flat.boxes + 1), "x", 4)  # nothing is left to compare


def test_one_decision_of_many_may_flip():
    expected = some(60)
    other = expected._replace(boxes=expected.boxes.clone())
    other.boxes[7] += 100
    errors = compare_detections(expected, other, "x", 100)
    assert (errors["detections"], errors["flipped"], errors["boxes"]) == (59, 1, 0)
    fewer = expected.take(torch.arange(1, 60))
    assert compare_detections(expected, fewer, "x", 100)["flipped"] == 1
    other.boxes[9] += 100
    with pytest.raises(TranseptError, match="the detector finds as object 8 of 60"):
        compare_detections(expected, other, "x", 100)


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
    with pytest.raises(UsageError, match="ONNX needs the package 'onnxruntime': pip install .*\\[export\\]"):
        export_detector(detector, tmp_path, img_size=(64, 64))
