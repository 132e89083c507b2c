"""The command as a user calls it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import transept
from tests.helpers import ctrl_c, fails
from transept.cli.main import VERBS, main
from transept.data.classification.sets import load_splits
from transept.errors import TranseptError
from transept.extras import pip_install
from transept.tasks.classify import Classifier


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a second on two folders of pictures."""
    root = tmp_path_factory.mktemp("data with ünicode")
    for label, color in (("dark", 40), ("light side", 210)):
        (root / "set" / label).mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (20 + i, 24), (color + i, color, color - i)).save(root / "set" / label / f"{i}.png")
    options = "--schedule.epochs 2 --schedule.warmup_epochs 0 --batch-size 8 --model.img_size 16"
    options += " --model.options.depth 1 --model.options.embed_dim 32 --optimizer.lr 0.01"
    assert main(["train", "quick", "--data", str(root / "set"), "--out", str(root / "run"), *options.split()]) == 0
    return root / "run"


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(verb in overview for verb in VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("transept 0.")
    assert main([]) == 2
    for verb in VERBS:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert "--json" in capsys.readouterr().out


def test_models(capsys):
    assert main(["models", "cait_s24*"]) == 0
    table = capsys.readouterr().out
    assert "cait_s24_384" in table
    assert "47.06 M" in table  # counted
    assert "32.2 G" in table  # published
    assert main(["models", "cait_s24_224", "--json"]) == 0
    (card,) = json.loads(capsys.readouterr().out)
    assert (card["parameters"], card["published"]["macs"]) == (46_916_200, 9_400_000_000)
    assert card["weights"][0]["top1"] == 83.5


def test_info_and_count(capsys):
    assert main(["info", "xcit_nano_12_p16"]) == 0
    text = capsys.readouterr().out
    assert "arXiv" in text
    assert "xcit_nano_12_p16_224.fb_dist_in1k" in text
    assert "top-1 72.2 (official README)" in text
    assert main(["count", "xcit_nano_12_p16_224"]) == 0
    assert "blocks.11" in capsys.readouterr().out
    assert main(["count", "cait_xxs24_224", "--img-size", "112", "--features-only", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["img_size"] == [112, 112]
    assert "fpn1" in counted["modules"]


def test_wrong_calls(capsys, tmp_path: Path):
    assert "did you mean 'predict'" in fails(capsys, ["predic"], 2)
    assert "did you mean 'xcit_nano_12_p16_224'" in fails(capsys, ["info", "xcit_nano_12_p16_22"], 2)
    assert "--help" in fails(capsys, ["info"], 2)
    for side in ("1000000000", f"1{'0' * 30}"):
        said = fails(capsys, ["count", "xcit_nano_12_p8_224", "--img-size", side], 2)
        assert f"img_size=[{side}, {side}] is more than 65,536" in said
    assert "--sheets" in fails(capsys, ["predict", "r", "i.png", "--sheets"], 2)
    assert "did you mean 'schedule.epochs'" in fails(capsys, ["train", "digits", "--schedule.epoch", "3"], 2)
    assert "which recipe" in fails(capsys, ["train"], 2)
    assert "give --data" in fails(capsys, ["train", "quick", "--out", str(tmp_path / "r")], 2)
    assert "is no run folder" in fails(capsys, ["train", "--resume", str(tmp_path)], 1)
    assert "give none of them" in fails(capsys, ["train", "digits", "--resume", str(tmp_path)], 2)
    assert "there is no data" in fails(
        capsys, ["train", "quick", "--data", str(tmp_path / "x"), "--out", str(tmp_path)], 1
    )
    assert "is no run folder" in fails(capsys, ["eval", str(tmp_path)], 1)
    assert "is no run folder" in fails(capsys, ["eval", "runs/nothing"], 1)
    assert "did you mean" in fails(capsys, ["eval", "xcit_nano_12_p16_2"], 2)


def test_train_reports_and_refuses_to_overwrite(run: Path, capsys):
    before = (run / "best.safetensors").read_bytes()
    argv = ["train", "quick", "--data", str(run.parent / "set"), "--out", str(run)]
    assert "holds a run already; go on with --resume" in fails(capsys, argv, 1)
    assert (run / "best.safetensors").read_bytes() == before
    assert main(["train", "--resume", str(run), "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out.splitlines()[-1])
    assert report["run"] == str(run)
    assert 0 <= report["top1"] <= 1
    assert report["seconds"] > 0
    assert "transept predict" in err


def test_eval(run: Path, capsys):
    assert main(["eval", str(run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    best = max(float(row["val_top1"]) for row in csv.DictReader((run / "metrics.csv").open()))
    assert result["images"] == 8
    assert result["top1"] == pytest.approx(best, abs=1e-5)
    assert main(["eval", str(run / "best.safetensors"), "--data", str(run.parent / "set")]) == 0
    assert "(8 pictures" in capsys.readouterr().out
    assert "'0' is only in the data" in fails(capsys, ["eval", str(run), "--data", "digits"], 1)


def test_stopped_predict_draws_what_was_done(run: Path, capsys, tmp_path: Path):
    for i in range(3):
        Image.new("RGB", (20, 20), (230, 210, 190)).save(tmp_path / f"{i}.png")
    argv = ["predict", str(run), str(tmp_path), "--batch-size", "1", "--out", str(tmp_path / "sheet.png"), "--json"]
    with ctrl_c(Classifier, 2, training=False):
        assert main(argv) == 130
    out, err = capsys.readouterr()
    assert err == "transept: stopped: 1 of 3 pictures are done, and their results kept\n"
    assert [Path(row["image"]).name for row in json.loads(out)["images"]] == ["0.png"]
    assert (tmp_path / "sheet.png").exists()


def test_predict_into_a_table(run: Path, capsys, tmp_path: Path):
    Image.new("RGB", (20, 20), (230, 210, 190)).save(tmp_path / "a.png")
    argv = ["predict", str(run), str(tmp_path / "a.png"), "--out", str(tmp_path / "a.csv")]
    assert main([*argv, "--json"]) == 0
    (row,) = csv.DictReader((tmp_path / "a.csv").open())
    assert list(row) == ["path", "label_1", "score_1", "label_2", "score_2"]
    assert {row["label_1"], row["label_2"]} == {"dark", "light side"}
    assert float(row["score_1"]) + float(row["score_2"]) == pytest.approx(1)
    (entry,) = json.loads(capsys.readouterr().out)["images"]
    assert entry["rows"][0]["label_1"] == row["label_1"]
    assert main([*argv, "--top", "1"]) == 0
    assert (tmp_path / "a.csv").read_text().startswith("path,label_1,score_1\n")


def test_predict_with_bad_files_among_the_good(run: Path, capsys, tmp_path: Path):
    folder = tmp_path / "my pictures ü"
    folder.mkdir()
    Image.new("RGB", (300, 20), (230, 210, 190)).save(folder / "a light.png")
    Image.new("CMYK", (30, 30), (0, 0, 0, 230)).save(folder / "b dark.jpg")
    (folder / "c.jpg").write_bytes(b"")
    (folder / "d.png").write_text("no picture")
    argv = ["predict", str(run), str(folder), str(tmp_path / "absent.png"), "--out", str(tmp_path / "sheet.png")]
    assert main([*argv, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert [Path(entry["image"]).name for entry in result["images"]] == ["a light.png", "b dark.jpg"]
    assert all(sum(p["score"] for p in entry["predictions"]) == pytest.approx(1) for entry in result["images"])
    assert [Path(skip["path"]).name for skip in result["skipped"]] == ["c.jpg", "d.png", "absent.png"]
    assert err.count("transept: skipped") == 3
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 400
    assert main(argv) == 0
    table = capsys.readouterr().out
    assert "light side" in table
    assert "3 of 5 files could not be read" in table
    assert "c.jpg' is empty" in fails(capsys, ["predict", str(run), str(folder / "c.jpg")])
    (folder / "list.txt").write_text("absent.png\nb dark.jpg")
    assert main(["predict", str(run), f"@{folder / 'list.txt'}", *argv[-2:], "--json"]) == 0
    out, err = capsys.readouterr()
    assert [Path(entry["image"]) for entry in json.loads(out)["images"]] == [folder / "b dark.jpg"]
    assert err == "transept: skipped 'absent.png': does not exist\n"
    Path(folder / "list.txt").write_text("absent.png\nd.png")
    assert main(["predict", str(run), f"@{folder / 'list.txt'}"]) == 1
    assert "none of the 2 files is a readable picture" in capsys.readouterr().err
    assert "ends in .png" in fails(capsys, ["predict", str(run), str(folder), "--out", "x.doc"], 2)


def test_bad_files_stop_training_unless_told_otherwise(run: Path, capsys, tmp_path: Path):
    root = tmp_path / "set"
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8)).save(root / label / f"{i}.png")
    (root / "a" / "bad.png").write_bytes(b"\x89PNG")
    argv = ["train", "quick", "--data", str(root), "--out", str(tmp_path / "run")]
    message = fails(capsys, argv, 1)
    assert "1 file is not readable" in message
    assert "bad.png" in message
    assert not (tmp_path / "run").exists()
    options = "--skip-bad-images --schedule.epochs 1 --schedule.warmup_epochs 0 --model.img_size 16 --batch_size 4"
    assert main([*argv, *options.split(), "--model.options.depth", "1", "--model.options.embed_dim", "32"]) == 0
    assert "1 unreadable files were left out" in capsys.readouterr().out
    assert load_splits(str(root), skip_bad_images=True).skipped[0].path.name == "bad.png"


@pytest.mark.parametrize(
    ("words", "code"),
    [(["predic"], 2), pytest.param(["eval", "."], 1, marks=pytest.mark.slow)],  # the second imports torch
)
def test_exit_code_of_a_process(words: list[str], code: int, tmp_path: Path):
    command = [sys.executable, "-m", "transept.cli.main", *words]
    plain = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (plain.returncode, plain.stdout) == (code, "")
    assert plain.stderr.count("\n") == 1


def test_debug_shows_the_error_itself(tmp_path: Path):
    with pytest.raises(TranseptError, match="is no run folder"):
        main(["eval", str(tmp_path), "--debug"])


def test_convert_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = transept.create_model("xcit_nano_12_p16_224", num_classes=3)
    torch.save({"model": model.state_dict()}, tmp_path / "official.pth")
    for source, target, names in (
        ("official.pth", "a.safetensors", "timm"),
        ("a.safetensors", "b.pdparams", "passl"),
        ("b.pdparams", "c.pth", "MMPretrain"),
        ("c.pth", "d.pth", "official"),
    ):
        assert main(["convert", str(tmp_path / source), str(tmp_path / target), "--to", names]) == 0
    assert "4 joined: cls_attn_blocks.0.attn.qkv" in capsys.readouterr().out
    back = torch.load(tmp_path / "d.pth")["model"]
    counters = {key for key in back if key.endswith("num_batches_tracked")}
    assert all(torch.equal(value, back[key]) for key, value in model.state_dict().items() if key not in counters)
    assert main(["convert", str(tmp_path / "c.pth"), "--identify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["model"], found["names"], found["num_classes"]) == ("xcit_nano_12_p16_224", "MMPretrain", 3)
    assert main(["convert", str(tmp_path / "d.pth"), str(tmp_path / "e.pth"), "--to", "MMPretrian"]) == 2
    assert "no form of XCiT checkpoints is called 'MMPretrian'; did you mean 'MMPretrain'" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "d.pth"), str(tmp_path / "e.npz")]) == 2
    assert main(["convert", str(tmp_path / "d.pth")]) == 2
    assert not (tmp_path / "e.pth").exists()


def test_a_checkpoint_goes_another_way_than_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "random.pth").write_bytes(b"weights")
    assert main(["predict", str(tmp_path / "random.pth"), "a.png"]) == 1
    said = capsys.readouterr().err
    assert all(way in said for way in ("--model.weights", "create_model(NAME, weights=", "transept convert")), said


def test_a_missing_part_of_a_package_is_no_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """As where onnxscript is too old for torch, which asks for onnxscript._framework_apis.torch_2_11."""
    for name in ("transept.cli.models", "transept.cli.shared.tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "rich.table", None)
    assert main(["models"]) == 2
    assert (
        capsys.readouterr().err == f"transept: 'rich' is installed, but lacks rich.table: {pip_install('-U', 'rich')}\n"
    )


def test_more_pictures_at_once_than_there_are(run: Path, capsys: pytest.CaptureFixture[str]):
    many = "1" + 30 * "0"
    said = fails(capsys, ["predict", str(run), str(run / "samples"), "--batch-size", many], 2)
    assert said == f"transept: --batch-size={many} is more than 1e+09"
