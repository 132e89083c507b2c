"""Names of classes and files that a terminal would obey: shown escaped, kept as they are."""

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

import transept
from tests.helpers import fails
from transept.cli.main import main
from transept.data.classification.transforms import Preprocessing
from transept.draw.legend import shorten
from transept.serve.answers import Answer
from transept.serve.parts import plain, shown
from transept.tasks.classify import Classifier

CLASSES = ["\x1b[2Jdark\u202e", "light\r\nside\x9b1m"]
SHOWN = [r"\u001b[2Jdark\u202e", r"light\r\nside\u009b1m"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("names")
    for name, grey in zip(CLASSES, (40, 210), strict=True):
        (root / "set" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (16, 16), grey + i).save(root / "set" / name / f"{i}\x1b]0;title\a.png")
    model = transept.create_model("xcit_nano_12_p8_224", num_classes=2, img_size=16, depth=1, embed_dim=32)
    classifier = Classifier(model.eval(), CLASSES, Preprocessing(img_size=(16, 16)))
    classifier.save(root / "model.safetensors")
    return root


def acting(text: str) -> set[str]:
    return {letter for letter in text if letter != "\n" and unicodedata.category(letter)[0] == "C"}


def test_on_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)  # whole paths might be cut
    model, data = "model.safetensors", "set"
    (folder / "set" / CLASSES[0] / "bad\x1b[31m.png").write_bytes(b"none")
    assert main(["predict", model, data, "--out", str(tmp_path / "sheet.png"), "--form", "eager"]) == 0
    predicted = capsys.readouterr()
    assert main(["eval", model, "--data", data, "--skip-bad-images", "--report", str(tmp_path / "report")]) == 0
    measured = capsys.readouterr()
    for out, err in (predicted, measured):
        assert acting(out) == acting(err) == set()
        assert r"bad\x1b[31m.png" in err
    assert SHOWN[0] in predicted.out
    assert r"0\u001b]0;title\u0007.png" in predicted.out
    assert all(name in measured.out for name in SHOWN)
    assert "top-1" in measured.out
    assert "top-5" not in measured.out, "which is 100 % of two classes"


def test_json_keeps_them(folder: Path, capsys: pytest.CaptureFixture[str]):
    picture = folder / "set" / CLASSES[1] / "0\x1b]0;title\a.png"
    words = ["predict", str(folder / "model.safetensors"), str(picture), "--no-sheet", "--json", "--form", "eager"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert acting(out) == set()
    (row,) = json.loads(out)["images"]
    assert {each["label"] for each in row["predictions"]} == set(CLASSES)
    assert row["image"] == str(picture)


def test_names_inside_a_file_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = transept.create_model("xcit_nano_12_p8_224", num_classes=2, img_size=16, depth=1, embed_dim=32)
    save_file(model.state_dict() | {"\x1b[2J\u202eextra": model.norm.weight * 0}, tmp_path / "w.safetensors")
    with pytest.raises(transept.TranseptError, match=r"the model does not know \\u001b\[2J\\u202eextra; strict"):
        transept.load_weights(model, tmp_path / "w.safetensors")
    said = fails(capsys, ["predict", str(tmp_path / "\x1b[1m.safetensors"), "x.png"])
    assert acting(said) == set()


def test_on_the_page_and_in_drawings(folder: Path):
    task = transept.load(folder / "model.safetensors")
    picture = Image.new("RGB", (16, 16))
    (answer,) = task.predict([picture])
    best, _ = shown(task, Answer(task.items(answer), None, 0.01))
    assert set(best) == set(SHOWN)
    assert plain("\x1b<b>\u202e") == r"\\u001b&lt;b&gt;\\u202e"
    assert shorten(CLASSES[0]) == SHOWN[0]
    assert shorten("\x1b" * 100, 10) == "\\u001b\\u0…"
