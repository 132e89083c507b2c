"""Training, measuring and using a segmenter as a user calls it, and what the command says of bad data."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import transept
from tests.helpers import fails
from transept.cli.main import main
from transept.cost.printed import PUBLISHED_SEGMENTERS
from transept.data.labels import read_table
from transept.data.segmentation.ade20k_classes import ADE20K_CLASSES
from transept.data.segmentation.sets import load_segmentation_splits
from transept.errors import TranseptWarning
from transept.tasks.segment import METHODS, Segmenter, create_segmenter
from transept.weights.catalogue.records import CHECKPOINTS
from transept.weights.fetch.keeping import cached

COLORS = np.array([(0, 0, 0), (90, 150, 230), (120, 90, 40), (220, 30, 30)])
CLASSES = "0 void\n1 sky\n2 ground\n3 [ball]\n4 boat\n"  # no picture has a boat
RECIPE = """
task: segment
batch_size: 4
model: {name: xcit_nano_12_p16_224, img_size: 32, options: {depth: 2, embed_dim: 32}}
segment: {method: semantic_fpn, width: 16, preprocessing: {scale: [64, 48]}, augmentation: {crop: [32, 40]}}
optimizer: {lr: 1.0e-2}
schedule: {epochs: 6, warmup_epochs: 1, decay: poly}
"""


def scene(seed: int, height: int = 48, width: int = 64) -> tuple[Image.Image, Image.Image]:
    """Sky over ground, a ball, and a strip without a class."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    values = np.where(y < random.uniform(0.3, 0.7) * height, 1, 2)
    middle = random.uniform(0.3, 0.7, 2) * (height, width)
    values[(y - middle[0]) ** 2 + (x - middle[1]) ** 2 < (height / 5) ** 2] = 3
    values[:, :2] = 0
    picture = COLORS[values] + random.normal(0, 12, (height, width, 3))
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8)), Image.fromarray(values.astype(np.uint8))


def write_set(root: Path, train: int = 12, val: int = 4, classes: str = CLASSES) -> Path:
    for half, count in (("training", train), ("validation", val)):
        for folder in ("images", "annotations"):
            (root / folder / half).mkdir(parents=True)
        for i in range(count):
            picture, mask = scene(1000 * (half == "validation") + i)
            picture.save(root / "images" / half / f"{i}.png")
            mask.save(root / "annotations" / half / f"{i}.png")
    (root / "classes.txt").write_text(classes)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data with ünicode")
    write_set(root / "set")
    (root / "tiny.yaml").write_text(RECIPE)
    assert main(["train", str(root / "tiny.yaml"), "--data", str(root / "set"), "--out", str(root / "run")]) == 0
    return root / "run"


def evaluated(capsys: pytest.CaptureFixture[str], run: Path, *options: str) -> dict:
    assert main(["eval", str(run), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def train(run: Path, data: Path, out: Path, *options: str) -> list[str]:
    short = "--schedule.epochs 1 --schedule.warmup_epochs 0".split()
    return ["train", str(run.parent / "tiny.yaml"), "--data", str(data), "--out", str(out), *short, *options]


def test_train_says_once_what_the_data_lacks(run: Path, capsys, tmp_path: Path):
    data = write_set(tmp_path / "set", train=5, val=2)
    (data / "annotations/training/0.png").unlink()
    assert main(train(run, data, tmp_path / "run", "--skip-bad-images", "--json")) == 0
    out, err = capsys.readouterr()
    assert err.count("1 class never occurs in the training pictures of") == 1
    assert err.count("'boat'") == 1
    assert err.count("0.png' has no mask") == 1
    assert f"transept eval {tmp_path / 'run'}" in err
    report = json.loads(out.splitlines()[-1])
    assert (report["run"], report["skipped"]) == (str(tmp_path / "run"), 1)
    assert 0 < report["miou"] < 1
    assert report["seconds"] > 0
    with pytest.warns(TranseptWarning, match="never occurs"):
        load_segmentation_splits(str(run.parent / "set"))


def test_eval(run: Path, capsys, tmp_path: Path):
    result = evaluated(capsys, run)
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert result["miou"] == pytest.approx(max(float(row["val_miou"]) for row in rows), abs=1e-3)
    assert result["images"] == 4
    assert result["absent"] == ["boat"]
    assert list(result["per_class"]) == ["sky", "ground", "[ball]", "boat"]
    # The same numbers, counted pixel by pixel from what the file predicts.
    segmenter = Segmenter.load(run / "best.safetensors")
    val = load_segmentation_splits(str(run.parent / "set"), halves="val").val
    true = np.stack([val.arrays(i)[1] for i in range(len(val))])
    with torch.no_grad():
        found = torch.stack([p.labels for p in segmenter.predict([val[i][0] for i in range(len(val))])]).numpy()
    labelled = true != 255
    assert result["pixel_accuracy"] == pytest.approx((found == true)[labelled].mean())
    for i, (name, row) in enumerate(result["per_class"].items()):
        both = ((found == i) & (true == i)).sum()
        either = (((found == i) | (true == i)) & labelled).sum()
        assert row["pixels"] == (true == i).sum()
        assert row["iou"] == (None if either == 0 else pytest.approx(both / either)), name
        assert row["accuracy"] == (None if name == "boat" else pytest.approx(both / (true == i).sum()))
        said = ((found == i) & labelled).sum()
        assert row["precision"] == (None if said == 0 else pytest.approx(both / said))
        assert row["share"] == pytest.approx((true == i).sum() / labelled.sum())
    assert main(["eval", str(run / "best.safetensors"), "--report", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    *lines, written = out.splitlines()
    assert written == f"{tmp_path}: report.json, per_class.csv, confusion.csv, confusion.png, worst.png"
    with (tmp_path / "confusion.csv").open(encoding="utf-8", newline="") as file:
        counts = [[int(count) for count in row[1:]] for row in list(csv.reader(file))[1:]]
    assert counts == [[int(((true == i) & (found == j)).sum()) for j in range(4)] for i in range(4)]
    assert "[ball]" in out
    assert next(line for line in lines if line.startswith("boat")).split()[2] == "-"  # no accuracy without pixels
    assert lines[-1].startswith(f"mIoU {result['miou']:.2%}   pixel accuracy {result['pixel_accuracy']:.2%}")
    assert err.strip() == (
        "transept: 4 pictures in 3 classes, the split 'validation'\n"
        f"transept: 1 class never occurs in the measured masks of {str(run.parent / 'set')!r}: 'boat'\n"
        f"transept: 1 class is never predicted: '[ball]' (pixels: {(true == 2).sum()})"
    )
    assert Image.open(tmp_path / "worst.png").width > 600


def test_eval_with_scales_mirror_and_windows(run: Path, capsys):
    plain = evaluated(capsys, run)
    whole = evaluated(capsys, run, "--crop", "48", "64")
    assert whole["per_class"] == plain["per_class"]  # one window covers each picture
    many = evaluated(capsys, run, "--multi-scale", "--flip")
    assert (many["ratios"], many["flip"]) == ([0.5, 0.75, 1.0, 1.25, 1.5, 1.75], True)
    windows = evaluated(capsys, run, "--crop", "32", "32", "--stride", "16", "16", "--batch-size", "2")
    assert (windows["crop"], windows["stride"]) == ([32, 32], [16, 16])
    for result in (many, windows):
        assert result["per_class"] != plain["per_class"]
        assert 0 < result["miou"] < 1


def test_eval_refuses_what_does_not_apply(run: Path, capsys, tmp_path: Path):
    assert "--stride=(9, 8) is larger than crop=(8, 8)" in fails(
        capsys, ["eval", str(run), "--crop", "8", "8", "--stride", "9", "8"], 2
    )
    assert "--stride=(9, 8) is of sliding windows" in fails(capsys, ["eval", str(run), "--stride", "9", "8"], 2)
    assert "give a positive height" in fails(capsys, ["eval", str(run), "--crop", "0", "8"], 2)
    assert "--batch-size=3 counts sliding windows" in fails(capsys, ["eval", str(run), "--batch-size", "3"], 2)
    windows = ["--crop", "8", "8", "--batch-size", "0"]
    assert "--batch-size=0 must be at least 1" in fails(capsys, ["eval", str(run), *windows], 2)
    other = write_set(tmp_path / "other", val=2, classes=CLASSES.replace("ground", "lawn"))
    message = fails(capsys, ["eval", str(run), "--data", str(other)])
    assert "are not the model's 4: 'ground' is only in the model" in message
    swapped = write_set(tmp_path / "swapped", val=2, classes="0 void\n2 sky\n1 ground\n3 [ball]\n4 boat\n")
    assert "their order differs" in fails(capsys, ["eval", str(run), "--data", str(swapped)])
    empty = write_set(tmp_path / "empty", val=1)
    Image.new("L", (64, 48)).save(empty / "annotations/validation/0.png")
    assert "no pixel of the measured masks" in fails(capsys, ["eval", str(run), "--data", str(empty)])


def test_classifiers_refuse_the_options_of_segmenters(capsys, tmp_path: Path):
    for label, color in (("dark", 40), ("light", 210)):
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (20, 20), (color + i, color, color)).save(tmp_path / "set" / label / f"{i}.png")
    options = "--schedule.epochs 1 --schedule.warmup_epochs 0 --batch-size 4 --model.img_size 16"
    options += " --model.options.depth 1 --model.options.embed_dim 32"
    run = str(tmp_path / "run")
    assert main(["train", "quick", "--data", str(tmp_path / "set"), "--out", run, *options.split()]) == 0
    capsys.readouterr()
    picture = str(tmp_path / "set/dark/0.png")
    assert "--flip is for detectors and segmenters" in fails(capsys, ["eval", run, "--flip"], 2)
    assert "--crop is for segmenters" in fails(capsys, ["predict", run, picture, "--crop", "8", "8"], 2)


def test_predict(run: Path, capsys, tmp_path: Path):
    folder, out = tmp_path / "my [pictures] ü", tmp_path / "out"
    (folder / "more").mkdir(parents=True)
    picture, mask = scene(7, height=96, width=128)
    picture.save(folder / "one.png")
    scene(8)[0].save(folder / "more" / "one.jpg")
    scene(9)[0].convert("L").save(folder / "One.bmp")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    argv = ["predict", str(run), str(folder), str(tmp_path / "absent.png"), "--out", str(out), "--flip"]
    assert main([*argv, "--json"]) == 0
    printed, err = capsys.readouterr()
    result = json.loads(printed)
    assert err.count("transept: skipped") == 2
    assert {Path(skip["path"]).name for skip in result["skipped"]} == {"broken.png", "absent.png"}
    names = [Path(row[kind]).name for row in result["images"] for kind in ("overlay", "labels", "json")]
    assert len({name.lower() for name in names}) == 9
    assert sorted(names) == sorted(path.name for path in out.iterdir())
    (row,) = (row for row in result["images"] if Path(row["image"]) == folder / "one.png")
    page = json.loads(Path(row["json"]).read_text())
    assert page["classes"] == ["sky", "ground", "[ball]", "boat"]
    assert page["shares"] == row["shares"]
    assert sum(page["shares"].values()) == pytest.approx(1)
    with Image.open(row["labels"]) as labels:
        assert (labels.mode, labels.size) == ("P", (128, 96))
        values = np.asarray(labels)
        palette = labels.getpalette()
    assert page["shares"]["sky"] == pytest.approx((values == 0).mean())
    segmenter = Segmenter.load(run / "best.safetensors")
    assert palette is not None
    assert [tuple(palette[3 * i : 3 * i + 3]) for i in range(4)] == segmenter.palette
    agree = (values == np.asarray(mask) - 1)[np.asarray(mask) > 0].mean()
    assert agree > 0.8  # it has learned its task: the pictures' noise is new to it
    with Image.open(row["overlay"]) as overlay:
        assert overlay.width > overlay.height > 300
    assert main([*argv, "--top", "2"]) == 0
    table = capsys.readouterr().out
    assert "one.png" in table
    assert "2 of 5 files could not be read" in table
    assert str(out) in table


def test_predict_overwrites_no_input(run: Path, capsys, tmp_path: Path):
    for name in ("a.png", "a.overlay.png", "A-2.labels.png"):
        scene(3)[0].save(tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["predict", str(run), str(tmp_path), "--out", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["images"]
    assert all(path.read_bytes() == content for path, content in before.items())
    written = {row[kind] for row in rows for kind in ("overlay", "labels", "json")}
    assert len(written) == 9
    assert not written & {str(path) for path in before}
    assert str(tmp_path / "a-3.overlay.png") in written


def test_predict_refuses(run: Path, capsys, tmp_path: Path):
    picture = str(run.parent / "set/images/validation/0.png")
    assert "give a folder" in fails(capsys, ["predict", str(run), picture, "--out", str(tmp_path / "a.png")], 2)
    (tmp_path / "file").touch()
    assert "give a folder" in fails(capsys, ["predict", str(run), picture, "--out", str(tmp_path / "file")], 2)
    assert "--no-sheet is for classifiers" in fails(capsys, ["predict", str(run), picture, "--no-sheet"], 2)
    (tmp_path / "none.png").touch()
    argv = ["predict", str(run), str(tmp_path / "none.png"), "--out", str(tmp_path / "out")]
    assert "none.png' is empty" in fails(capsys, argv)
    assert not (tmp_path / "out").exists()


def damage(data: Path, what: str) -> None:
    mask = data / "annotations/training/1.png"
    match what:
        case "value":
            values = np.asarray(Image.open(mask)).copy()
            values[5:8, 10] = 77
            Image.fromarray(values).save(mask)
        case "size":
            Image.new("L", (64, 47)).save(mask)
        case "missing":
            mask.unlink()
        case "colours":
            Image.new("RGB", (64, 48), (9, 9, 9)).save(mask)
        case "grey photograph":
            Image.new("F", (64, 48)).save(mask.with_suffix(".tif"))
            mask.unlink()
        case "no list":
            (data / "classes.txt").unlink()
        case "no pixel":
            for file in (data / "annotations/training").iterdir():
                Image.new("L", (64, 48), 255).save(file)


@pytest.mark.parametrize(
    ("what", "messages"),
    [
        ("value", ("1.png', which holds the value 77 in 3 pixels", "has 0 to 4")),
        ("size", ("1.png', which is 64 x 47, but its picture", "is 64 x 48")),
        ("missing", ("images/training/1.png' has no mask", "--skip-bad-images")),
        ("colours", ("1.png', which is a colour picture where class indices are expected", "palette.txt")),
        ("grey photograph", ("1.tif', which is of Pillow's mode 'F'",)),
        ("no list", ("does not say what the values of its masks mean", "classes.txt")),
        ("no pixel", ("no pixel of the training masks",)),
    ],
)
def test_bad_data_stops_in_a_sentence(run: Path, capsys, tmp_path: Path, what: str, messages: tuple[str, ...]):
    data = write_set(tmp_path / "set", train=3, val=2)
    damage(data, what)
    said = fails(capsys, train(run, data, tmp_path / "run"))
    assert all(message in said for message in messages), said
    assert not (tmp_path / "run").exists()


def test_pictures_smaller_than_the_crop(run: Path, capsys, tmp_path: Path):
    data = write_set(tmp_path / "set", train=4, val=2)
    argv = train(run, data, tmp_path / "run", "--segment.augmentation.crop", "[80, 100]", "--json")
    assert main(argv) == 0
    assert 0 < json.loads(capsys.readouterr().out.splitlines()[-1])["miou"] < 1
    assert 0 < evaluated(capsys, tmp_path / "run", "--crop", "200", "300")["miou"] < 1


def test_count(capsys):
    assert main(["count", "upernet/crossformer_small", "--json"]) == 0
    item = json.loads(capsys.readouterr().out)
    parts = item["modules"]
    assert item["img_size"] == [1024, 1024]
    assert {part for part in parts if "." not in part} == {"backbone", "decode_head", "auxiliary_head"}
    assert sum(parts[part]["parameters"] for part in parts if "." not in part) == item["parameters"]
    assert round(item["parameters"] / 1e6, 1) == item["published"]["parameters"] / 1e6 == 62.3
    assert item["macs"] / 1e9 == pytest.approx(item["published"]["macs"] / 1e9, rel=0.01)
    assert [weights["model"] for weights in item["weights"]] == ["crossformer_small"]
    assert main(["count", "semantic_fpn/cat_small", "--img-size", "128", "256", "--depth", "1"]) == 0
    table = capsys.readouterr().out
    assert "semantic_fpn/cat_small at 128 x 256" in table
    assert "neck" in table
    assert "41 M  " in table  # published operations are for another size
    assert "214" not in table
    assert "did you mean 'upernet'" in fails(capsys, ["count", "upernett/cat_small"], 2)
    assert "did you mean 'cat_small'" in fails(capsys, ["count", "upernet/cat_smal"], 2)
    assert "'/' begins with no method" in fails(capsys, ["count", "/"], 2)
    assert "is of the backbone alone" in fails(capsys, ["count", "upernet/cat_small", "--features-only"], 2)
    assert "positive side" in fails(capsys, ["count", "cat_small", "--img-size", "1", "2", "3"], 2)


def test_published_segmenters_are_ours():
    for name in PUBLISHED_SEGMENTERS:
        method, backbone = name.split("/")
        assert method in METHODS
        assert any((c.model, c.method, c.task) == (backbone, method, "segmentation") for c in CHECKPOINTS)


def test_published_segmenter_by_name(run: Path, capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("TRANSEPT_OFFLINE", "1")
    (checkpoint,) = (c for c in CHECKPOINTS if c.name == "xcit_tiny_12_p16.semantic_fpn_80k_ade20k")
    random = create_segmenter("semantic_fpn", backbone="xcit_tiny_12_p16")
    file = cached(checkpoint.file)
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": random.state_dict()}, file)
    scene(2, height=8, width=256)[0].save(tmp_path / "a.png")  # few pixels at the published scale, too
    shares = []
    for name in ("semantic_fpn/xcit_tiny_12_p16", checkpoint.name):
        assert main(["predict", name, str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--json"]) == 0
        shares.append(json.loads(capsys.readouterr().out)["images"][0]["shares"])
    assert shares[0] == shares[1]
    (prediction,) = random.predict([Image.open(tmp_path / "a.png")])
    best = int(prediction.labels.flatten().mode().values)
    assert next(iter(shares[0])) == ADE20K_CLASSES[best]
    assert "no weights of upernet on cait_xxs24_224" in fails(capsys, ["eval", "upernet/cait_xxs24_224"])
    assert "are no weights of upernet, but of semantic_fpn" in fails(capsys, ["eval", f"upernet/{checkpoint.name}"], 2)


def test_ade20k_classes(shared_data: Path):
    assert read_table(shared_data / "ade20k_samples/objectInfo150.csv").classes == list(ADE20K_CLASSES)


def test_other_files_are_refused(run: Path, capsys, tmp_path: Path):
    (tmp_path / "cut.safetensors").write_bytes((run / "best.safetensors").read_bytes()[:1000])
    assert "cut.safetensors" in fails(capsys, ["eval", str(tmp_path / "cut.safetensors")])
    assert "absent.safetensors" in fails(capsys, ["eval", str(tmp_path / "absent.safetensors")])
    transept.save_pretrained(transept.create_model("cait_xxs24_224", depth=1, num_classes=3), tmp_path / "saved")
    message = fails(capsys, ["eval", str(tmp_path / "saved" / "model.safetensors")])
    assert "does not say which model it is for" in message
