"""`transept explain` as a user calls it, and the blocks of docs/explain.md."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import transept
from tests.helpers import fails
from transept.cli.main import main
from transept.data.classification.transforms import Preprocessing, eval_transform
from transept.explain.explanation import _seen
from transept.tasks.classify import Classifier
from transept.tasks.pretrain import FeatureExtractor

PAGE = Path(__file__).parents[2] / "docs" / "explain.md"


def save(path: Path, name: str, **options: object) -> Path:
    torch.manual_seed(0)
    model = transept.create_model(name, img_size=64, num_classes=3, **options)  # pyright: ignore[reportArgumentType]
    preprocessing = Preprocessing(img_size=(64, 64), crop_pct=0.8)
    Classifier(model, ["a cat", "$dog$", "a hen" * 9], preprocessing).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classifiers with random weights, and a wide picture."""
    root = tmp_path_factory.mktemp("explained")
    save(root / "cabvit.safetensors", "cabvit_h_l1", depths=(1, 1, 3, 2), embed_dims=(8, 16, 32, 48), num_heads=(2, 3))
    save(root / "cait.safetensors", "cait_xxs24_224", depth=2, embed_dim=48, num_heads=4)
    noise = np.random.default_rng(0).integers(0, 255, (90, 150, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "picture.png")
    return root


def test_overview(folder: Path, capsys, tmp_path: Path):
    argv = ["explain", str(folder / "cait.safetensors"), str(folder / "picture.png"), "--out", str(tmp_path / "a.png")]
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [found["kind"] for found in report["maps"]] == ["class", "talking-heads", "rollout", *["grad-cam"] * 3]
    assert report["maps"][0] == {
        "kind": "class",
        "name": "blocks_token_only.1.attn",
        "stage": 0,
        "block": 1,
        "source": None,
        "over": "image",
        "heads": 4,
        "grid": [4, 4],
    }
    assert report["token"] == [32, 32]
    assert len(report["predictions"]) == 3
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width > 1200
        assert len(sheet.convert("RGB").getcolors(sheet.width * sheet.height) or []) > 1000
    assert main(argv) == 0
    assert "blocks_token_only.1.attn" in capsys.readouterr().out


def test_kind_token_block_and_head(folder: Path, capsys, tmp_path: Path):
    argv = ["explain", str(folder / "cabvit.safetensors"), str(folder / "picture.png"), "--kind", "cross-block"]
    argv += ["--json", "--out", str(tmp_path / "b.pdf")]
    assert main([*argv, "--token", "109", "9"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(found["stage"], found["block"], found["source"]) for found in report["maps"]] == [
        (2, 0, None), (2, 1, None), (2, 1, 0), (2, 2, None), (2, 2, 0), (2, 2, 1), (3, 0, None), (3, 1, None), (3, 1, 0)
    ]  # fmt: skip
    assert report["token"] == [63, 0]
    assert main([*argv, "--block", "-3", "--head", "1"]) == 0
    assert len(json.loads(capsys.readouterr().out)["maps"]) == 3
    assert (tmp_path / "b.pdf").read_bytes().startswith(b"%PDF")


def test_a_backbone_without_classes(folder: Path, capsys, tmp_path: Path):
    """What DINO leaves behind: attention, and nothing that asks for a class."""
    torch.manual_seed(0)
    model = transept.create_model("xcit_nano_12_p8_224", img_size=64, num_classes=0, depth=1, embed_dim=32, num_heads=2)
    FeatureExtractor(model, Preprocessing(img_size=(64, 64))).save(tmp_path / "d.safetensors")
    argv = ["explain", str(tmp_path / "d.safetensors"), str(folder / "picture.png"), "--out", str(tmp_path / "d.png")]
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [found["kind"] for found in report["maps"]] == ["class", "cross-covariance"]
    assert report["predictions"] == []
    with Image.open(tmp_path / "d.png") as sheet:
        assert len(sheet.convert("RGB").getcolors(sheet.width * sheet.height) or []) > 1000
    assert "it has class, cross-covariance" in fails(capsys, [*argv, "--kind", "grad-cam"], 2)


def test_what_is_drawn_is_what_the_model_sees():
    ramp = np.tile(np.linspace(0, 255, 150, dtype=np.uint8)[None, :, None], (90, 1, 3))
    picture = Image.fromarray(ramp + np.linspace(0, 60, 90, dtype=np.uint8)[:, None, None] // 2)
    preprocessing = Preprocessing(img_size=(64, 64), crop_pct=0.8, mean=(0, 0, 0), std=(1, 1, 1))
    box = _seen(picture, preprocessing)
    assert (box[2] - box[0], box[3] - box[1]) == pytest.approx((72, 72), abs=0.6)
    view = np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC, box), dtype=np.float32) / 255
    seen = eval_transform(preprocessing)(picture).permute(1, 2, 0).numpy()
    assert np.abs(view - seen).max() < 0.02
    squash = Preprocessing(img_size=(64, 64), crop_mode="squash")
    assert _seen(picture.resize((40, 80)), squash) == (0, 0, 40, 80)


def test_refusals(folder: Path, capsys, tmp_path: Path):
    argv = ["explain", str(folder / "cait.safetensors"), str(folder / "picture.png"), "--out", str(tmp_path / "c.png")]
    assert (
        "--token 5 9 lies outside of what the model sees of the picture, x from 38 to 110 and y from 9 to 80"
        in fails(capsys, [*argv, "--token", "5", "9"], 2)
    )
    assert "give --kind, too" in fails(capsys, [*argv, "--head", "1"], 2)
    assert "did you mean 'rollout'" in fails(capsys, [*argv, "--kind", "rollot"], 2)
    assert "the 2 layers of class attention" in fails(capsys, [*argv, "--kind", "class", "--block", "7"], 2)
    assert "these layers have 4 heads, 0 to 3" in fails(capsys, [*argv, "--kind", "class", "--head", "4"], 2)
    assert "grad-cam has no heads" in fails(capsys, [*argv, "--kind", "grad-cam", "--head", "0"], 2)
    assert "class asks for no token" in fails(capsys, [*argv, "--kind", "class", "--token", "50", "40"], 2)
    assert "ends in .png" in fails(capsys, [*argv[:3], "--out", "x.doc"], 2)
    assert "does not exist" in fails(capsys, [*argv[:2], str(folder / "no.png")], 1)
    segmenter = transept.create_segmenter("semantic_fpn", backbone="xcit_nano_12_p16", num_classes=3, width=16, depth=3)
    segmenter.save(tmp_path / "segmenter.safetensors")
    assert "is a segmenter, and explain draws classifiers" in fails(
        capsys, ["explain", str(tmp_path / "segmenter.safetensors"), argv[2]], 2
    )
    assert not (tmp_path / "c.png").exists()


def test_the_page_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Every block of docs/explain.md, on a run and a picture of the names that it uses."""
    text = PAGE.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with Image.open(folder / "picture.png") as picture:
        picture.save(tmp_path / "photo.jpg")
    for run, source in (("hands", "cait"), ("blocks", "cabvit")):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "best.safetensors").write_bytes((folder / f"{source}.safetensors").read_bytes())
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    assert {language for language, _ in blocks} == {"sh", "python"}
    names: dict[str, object] = {}
    for language, code in blocks:
        if language == "python":
            exec(compile(code, str(PAGE), "exec"), names)
            continue
        for line in code.strip().splitlines():
            words = line.partition("#")[0].split()
            assert words[0] == "transept"
            assert main(words[1:]) == 0, capsys.readouterr().err
    for image in re.findall(r"\((images/[^)]+)\)", text):
        assert (PAGE.parent / image).is_file()
