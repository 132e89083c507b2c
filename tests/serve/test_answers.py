"""What the page says, without the page."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.serve.trained import CLASSES, FEW, classifier, detector, picture, segmenter
from transept.cli.main import main
from transept.data.images import BadImageError
from transept.errors import UsageError
from transept.extras import install
from transept.serve.answers import Answerer, Limits
from transept.serve.examples import write_examples


def test_a_classifier(tmp_path: Path):
    task = classifier()
    answerer = Answerer(task)
    path = picture(tmp_path, 60, 40)
    answer = answerer.answer(path)
    with Image.open(path) as image:
        (best,) = task.predict([image.convert("RGB")])
    assert [item.label for item in answer.items] == [CLASSES[label] for label in best.labels.tolist()]
    assert [item.score for item in answer.items] == pytest.approx(best.scores.tolist())
    assert answer.drawing is None
    assert 0 < answer.seconds < 60
    overview, alone = answerer.explain(path), answerer.explain(path, "class")
    assert overview.height > alone.height > 200
    with pytest.raises(UsageError, match="did you mean 'class'"):
        answerer.explain(path, "clas")


def test_a_segmenter(tmp_path: Path):
    answerer = Answerer(segmenter())
    answer = answerer.answer(picture(tmp_path, 60, 40))
    assert math.isclose(sum(item.score for item in answer.items), 1, rel_tol=1e-6)
    assert answer.drawing is not None
    assert answer.drawing.width > 480
    with pytest.raises(UsageError, match="is a segmenter; attention is drawn of classifiers"):
        answerer.explain(tmp_path / "picture.png")


def test_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    answerer = Answerer(detector())
    path = picture(tmp_path, 120, 80)
    answer = answerer.answer(path, score=FEW)
    assert answer.drawing is not None
    assert answer.drawing.width >= 1000
    scores = [item.score for item in answer.items]
    assert 3 < len(scores) < 30
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] >= FEW
    with pytest.raises(UsageError, match="not in"):
        answerer.answer(path, score=1.5)
    # Seen at a quarter of its pixels, boxes are still those of the picture that was sent.
    monkeypatch.setattr("transept.serve.answers._DENSE_PIXELS", 60 * 40)
    boxes = np.array([item.box for item in answerer.answer(path, score=FEW).items])
    assert boxes[:, 2].max() > 100
    assert boxes[:, 3].max() > 65
    assert (boxes >= 0).all()
    assert (boxes <= [120, 80, 120, 80]).all()


def test_limits(tmp_path: Path):
    answerer = Answerer(classifier(), Limits(megabytes=0.02, megapixels=0.01))
    sizes = {"picture.png": (110, 100), "slender.png": (420, 20)}
    for name, size in sizes.items():
        Image.new("RGB", size).save(tmp_path / name)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "half.png").write_bytes((tmp_path / "picture.png").read_bytes()[:60])
    wanted = {
        "picture.png": "110 x 100 pixels, 0.0 megapixels; at most 0.01",
        "slender.png": "420 x 20 pixels; at most 20 : 1 is taken",
        "large.png": "is larger than 0.02 MB",
        "text.png": "is no picture of a known format",
        "empty.png": "is empty",
        "half.png": "damaged or truncated",
        "missing.png": "does not exist|cannot be read",
    }
    for name, words in wanted.items():
        with pytest.raises(BadImageError, match=words) as raised:
            answerer.answer(tmp_path / name)
        assert str(raised.value).startswith(f"{name!r} ")  # and not the folder, which is the server's affair
    with pytest.raises(UsageError, match="0 megapixels lets no picture through"):
        Limits(megapixels=0)


def test_examples(tmp_path: Path):
    digits = write_examples(classifier(), tmp_path)
    assert len(digits) == 8
    with Image.open(digits[0]) as image:
        assert image.size == (8, 8)
    scenes = write_examples(segmenter(), tmp_path)
    with Image.open(scenes[0]) as image:
        assert min(image.size) >= 96
    photographs = write_examples(classifier(["a", "b"]), tmp_path)
    assert [file.name for file in photographs] == ["china.jpg", "flower.jpg"]


def test_refusals_of_the_command(capsys, tmp_path: Path):
    classifier().save(tmp_path / "model.safetensors")
    model = str(tmp_path / "model.safetensors")
    for argv, code, words in (
        (["serve", model, "--port", "0"], 2, "--port 0 is not in 1..65535"),
        (["serve", model, "--max-megapixels", "-1"], 2, "the limit of -1 megapixels lets no picture through"),
        (["serve", str(tmp_path)], 1, "is no run folder"),
        (["serve", "xcit_nano_12_p16_22"], 2, "did you mean 'xcit_nano_12_p16_224'"),
    ):
        assert main(argv) == code
        assert words in capsys.readouterr().err


def test_without_gradio(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    classifier().save(tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "transept.serve.page", raising=False)
    assert main(["serve", str(tmp_path / "model.safetensors")]) == 2
    assert capsys.readouterr().err == f"transept: this needs the package 'gradio': {install('serve')}\n"
