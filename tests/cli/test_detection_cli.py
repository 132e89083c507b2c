"""`eval` and `predict` of detectors, on a COCO folder written here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transept.cli.main import main
from transept.tasks.detect import Detector, create_detector

CLASSES = ["disc", "square"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four bright squares on grey, the odd ones called discs; ids with gaps."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    for half in ("train2017", "val2017"):
        (root / half).mkdir()
        images, annotations = [], []
        for i in range(4):
            pixels = np.full((96, 128, 3), 90, dtype=np.uint8)
            x, y = 10 + 20 * i, 8 + 10 * i
            pixels[y : y + 40, x : x + 40] = (250, 60 * i, 20)
            Image.fromarray(pixels).save(root / half / f"{i}.png")
            images.append({"id": 10 * i + 3, "file_name": f"{i}.png", "height": 96, "width": 128})
            box = {"bbox": [x, y, 40, 40], "area": 1600, "iscrowd": 0}
            annotations.append({"id": i + 1, "image_id": 10 * i + 3, "category_id": 7 if i % 2 else 2} | box)
        categories = [{"id": 2, "name": "disc"}, {"id": 7, "name": "square"}]
        page = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{half}.json").write_text(json.dumps(page))
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that finds something everywhere, discs first: it starts with other biases than it should."""
    torch.manual_seed(0)
    detector = create_detector(
        "retinanet", backbone="xcit_nano_12_p16", num_classes=2, classes=CLASSES, width=32, depth=2
    )
    detector.bbox_head.retina_cls.bias.data = torch.tensor([1.0, 0.0]).repeat(9)
    path = tmp_path_factory.mktemp("model") / "best.safetensors"
    detector.save(path)
    return path


def test_eval(model: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["eval", str(model), "--data", str(data), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 4
    assert 0 <= report["map"] == report["bbox"]["map"] <= 1
    assert set(report["bbox"]["per_class"]) == set(CLASSES)
    assert main(["eval", str(model), "--data", str(data), "--flip"]) == 0
    out = capsys.readouterr().out
    assert "box AP" in out
    assert "AP50" in out


def test_predict(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a").mkdir()
    Image.open(data / "val2017" / "0.png").save(tmp_path / "a" / "0.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    pictures = [str(data / "val2017"), str(tmp_path / "a" / "0.png"), str(tmp_path / "bad.png")]
    out = tmp_path / "out"
    command = ["predict", str(model), *pictures, "--out", str(out), "--score", "0.4", "--classes", "disc", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["images"]) == 5
    assert len(report["skipped"]) == 1
    drawn = {row["drawn"] for row in report["images"]}
    assert len(drawn) == 5
    for name in drawn:
        assert Image.open(name).width > 128
    written = json.loads((out / "results.json").read_text())
    assert written["classes"] == CLASSES
    assert written["results"]
    assert {result["category_id"] for result in written["results"]} == {0}
    assert min(result["score"] for result in written["results"]) > 0.4
    detector = Detector.load(model)
    (found,) = detector.predict([Image.open(data / "val2017" / "0.png")])
    best = max(r["score"] for r in written["results"] if r["image_id"].endswith("val2017/0.png"))
    assert best == pytest.approx(float(found.scores[found.labels == 0].max()), abs=1e-5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["eval", "MODEL", "--data", "DATA", "--crop", "64", "64"], "--crop is for segmenters"),
        (["eval", "MODEL", "--data", "DATA", "--classes", "disc"], "--classes is for predict"),
        (["predict", "MODEL", "DATA/val2017", "--score", "1.5"], "--score 1.5 is not in"),
        (["predict", "MODEL", "DATA/val2017", "--classes", "disk", "--out", "OUT"], "did you mean 'disc'"),
        (["predict", "MODEL", "DATA/val2017", "--out", "OUT.png"], "give a folder"),
    ],
)
def test_wrong_calls(
    model: Path, data: Path, tmp_path: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
):
    places = {"MODEL": str(model), "DATA": str(data), "OUT": str(tmp_path / "out")}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    assert main(words) == 2
    assert sentence in capsys.readouterr().err
