"""A task is one file and one line, and so is a head: toy ones, registered here, can do what the others can."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import transept
from tests.helpers import SMALL
from tests.toy_task import BrightnessInference, Photometer
from transept.cli.main import main
from transept.data.classification.transforms import Preprocessing
from transept.data.detection.transforms import DetectionPreprocessing
from transept.data.segmentation.transforms import SegmentationPreprocessing
from transept.errors import TranseptError, UsageError
from transept.heads.fpn import FPN
from transept.heads.retinanet import RetinaNetDecoder, RetinaNetLoss, RetinaNetOutputs
from transept.heads.segmentation import SegmentationHead
from transept.serve.answers import Answerer
from transept.serve.examples import write_examples
from transept.tasks import detect_methods, segment_methods
from transept.tasks.registry import TASKS

NAME = "xcit_nano_12_p8_224"


def plain(capsys: pytest.CaptureFixture[str], *argv: object) -> Any:
    """What a verb prints with --json."""
    assert main([*map(str, argv), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def photometer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of the toy task, which is one line in `TASKS`, in a folder with its data."""
    monkeypatch.setattr("transept.tasks.registry.TASKS", TASKS)
    TASKS.append(Photometer)
    monkeypatch.chdir(tmp_path)
    for level in (0, 128, 255):
        folder = tmp_path / "data" / f"{level / 255:.2f}"
        folder.mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (40, 30), (level, level, i)).save(folder / f"{i}.png")
    backbone = transept.create_model(NAME, num_classes=1, img_size=32, **SMALL[NAME])
    Photometer(backbone, Preprocessing(img_size=(32, 32))).save(tmp_path / "photometer.safetensors")
    yield tmp_path / "photometer.safetensors"
    TASKS.remove(Photometer)


def test_a_task_from_python(photometer: Path):
    task = transept.load(photometer)
    assert isinstance(task, Photometer)
    picture = Image.new("RGB", (40, 30), "grey")
    (plain_answer,), (louder,) = transept.predict(task, picture), transept.predict(photometer, [picture], gain=2)
    assert louder == pytest.approx(2 * plain_answer)
    assert task.predict([picture], BrightnessInference(gain=2)) == [louder]
    error = transept.evaluate(task, "data").metrics["error"]
    assert 0 < error < 1
    with pytest.raises(UsageError, match="no option of a photometer is called 'gian'; did you mean 'gain'"):
        transept.predict(task, picture, gian=2)
    with pytest.raises(UsageError, match="there is no data of its own"):
        transept.evaluate(task)


def test_a_task_on_the_command_line(photometer: Path, capsys: pytest.CaptureFixture[str]):
    rows = plain(capsys, "predict", photometer, "data/0.50/0.png", "--gain", 0.5)["images"]
    assert [row["image"] for row in rows] == ["data/0.50/0.png"]
    assert Path("brightness.txt").read_text() == str(rows[0]["brightness"])
    assert plain(capsys, "eval", photometer, "--data", "data")["images"] == 3
    assert main(["predict", str(photometer), "data/0.50/0.png", "--gain", "0"]) == 2
    assert "--gain=0 must be greater than 0" in capsys.readouterr().err
    assert main(["predict", str(photometer), "data/0.50/0.png", "--score", "0.5"]) == 2
    assert "--score is for detectors, and 'photometer" not in capsys.readouterr().out
    assert main(["explain", str(photometer), "data/0.50/0.png"]) == 2
    assert "is a photometer, and explain draws classifiers" in capsys.readouterr().err


def test_a_task_as_a_file_for_other_runtimes(photometer: Path, capsys: pytest.CaptureFixture[str]):
    exported = plain(capsys, "export", photometer, "--out", "out", "--format", "pt2")
    assert exported["task"] == "brightness"
    assert max(exported["errors"]["pt2"].values()) < 1e-4


def test_a_task_on_the_page(photometer: Path, tmp_path: Path):
    answerer = Answerer(transept.load(photometer))
    (tmp_path / "examples").mkdir()
    answer = answerer.answer(write_examples(answerer.task, tmp_path / "examples")[0])
    assert [item.label for item in answer.items] == ["brightness"]
    assert answer.drawing is None


def test_other_tasks_files_say_what_they_are(photometer: Path):
    with pytest.raises(TranseptError, match="holds a model that was trained to brightness, not to classify"):
        transept.Classifier.load(photometer)


class ToyHead(SegmentationHead):
    """The finest level alone, through one convolution."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(channels, num_classes, dropout=0.0)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.classify(maps[0])


def test_a_head_of_segmenters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def toy(channels: list[int], strides: list[int], num_classes: int, width: int | None) -> segment_methods.Parts:
        return segment_methods.Parts(nn.Identity(), ToyHead(channels[0], num_classes), None)

    monkeypatch.setitem(segment_methods.METHODS, "toy", toy)
    segmenter = transept.create_segmenter(
        "toy",
        backbone=NAME,
        num_classes=3,
        preprocessing=SegmentationPreprocessing(scale=(64, 64)),
        **SMALL[NAME],
    )
    loss = segmenter.train().loss(segmenter(torch.randn(2, 3, 64, 64)), torch.randint(0, 3, (2, 64, 64)))
    loss.backward()
    segmenter.eval().save(tmp_path / "toy.safetensors")
    picture = Image.radial_gradient("L").resize((90, 70)).convert("RGB")
    picture.save(tmp_path / "picture.png")
    (answer,) = transept.predict(tmp_path / "toy.safetensors", picture)
    assert torch.equal(answer.labels, segmenter.predict([picture])[0].labels)
    out = tmp_path / "out"
    assert plain(capsys, "predict", tmp_path / "toy.safetensors", tmp_path / "picture.png", "--out", out)["images"]
    assert plain(capsys, "count", f"toy/{NAME}")["parameters"] > 0


class ToyBoxHead(nn.Module):
    """RetinaNet's last layers without those before."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classes = nn.Conv2d(channels, 9 * num_classes, 1)
        self.boxes = nn.Conv2d(channels, 9 * 4, 1)

    def forward(self, maps: list[Tensor]) -> RetinaNetOutputs:
        return RetinaNetOutputs([self.classes(level) for level in maps], [self.boxes(level) for level in maps])


def test_a_head_of_detectors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def toy(channels: list[int], num_classes: int, width: int) -> detect_methods.Parts:
        stages = detect_methods.SingleStage(
            loss=RetinaNetLoss(num_classes=num_classes), decode=RetinaNetDecoder(num_classes=num_classes)
        )
        neck = FPN(channels, width, 5, start_level=1, extra="on_input")
        return detect_methods.Parts(neck, {"bbox_head": ToyBoxHead(width, num_classes)}, stages)

    monkeypatch.setitem(detect_methods.METHODS, "toy", toy)
    detector = transept.create_detector(
        "toy",
        backbone=NAME,
        num_classes=2,
        width=32,
        preprocessing=DetectionPreprocessing(scale=(64, 64)),
        **SMALL[NAME],
    )
    detector.eval().save(tmp_path / "toy.safetensors")
    Image.radial_gradient("L").resize((90, 70)).convert("RGB").save(tmp_path / "picture.png")
    out = tmp_path / "out"
    rows = plain(capsys, "predict", tmp_path / "toy.safetensors", tmp_path / "picture.png", "--score", 0, "--out", out)[
        "images"
    ]
    assert rows[0]["objects"].keys() <= {"0", "1"}
    assert plain(capsys, "count", f"toy/{NAME}")["parameters"] > 0
