"""Pictures of four bands through training and every verb, and models that were made for them without training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors import safe_open

import transept
from tests.helpers import fails
from transept.cli.main import main
from transept.data.channels import fit_channels, without_color
from transept.data.classification.multicrop import MultiCrop, multicrop_transform
from transept.data.classification.transforms import Augmentation, Preprocessing, train_transform
from transept.data.images import as_shown, read_image, sample_picture
from transept.data.reading import Reading, WantedReading
from transept.errors import TranseptError, TranseptWarning, UsageError
from transept.export.detector import prepare
from transept.export.onnx import METADATA
from transept.serve.answers import Answerer
from transept.serve.examples import write_examples
from transept.tasks.classify import Classifier
from transept.tasks.data_options import DataOptions
from transept.tasks.saving import METADATA_KEY
from transept.tasks.task import Task

RNG = np.random.default_rng(0)
SMALL = ["--model.options.depth=1", "--model.options.embed_dim=32", "--model.options.num_heads=2"]
SHORT = ["--schedule.epochs=1", "--schedule.warmup_epochs=0", "--batch_size=4", "--workers=0"]


def save(path: Path, infrared: int = 0) -> Path:
    """A scene of four bands of 12 bits, as GDAL and tifffile write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = RNG.integers(200, 900, (4, 32, 32), dtype=np.uint16)
    bands[3] += infrared
    tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="separate", compression="zlib")
    return path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that only near infrared tells apart."""
    root = tmp_path_factory.mktemp("scenes")
    for i in range(12):
        save(root / "ab"[i % 2] / f"{i}.tif", 1500 * (i % 2))
    return root


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "four"
    options = ["--bands", "all", "--pixel_range", "auto", "--model.img_size", "32", *SMALL, *SHORT]
    assert main(["train", "quick", "--data", str(scenes), "--out", str(folder), *options]) == 0
    return folder


def classifier(channels: int, path: Path) -> Path:
    model = transept.create_model(
        "xcit_nano_12_p16_224", num_classes=2, in_chans=channels, depth=1, embed_dim=32, num_heads=2, img_size=32
    )
    Classifier(model, ["a", "b"], Preprocessing(img_size=(32, 32))).save(path)
    return path


def test_what_is_kept_with_the_weights(run: Path):
    task = transept.load(run)
    assert task.reading.bands == (0, 1, 2, 3)
    assert len(task.reading.pixel_range) == 4
    assert task.reading.pixel_range[3][1] > 2000 > 900 > task.reading.pixel_range[0][1]
    assert len(task.preprocessing.mean) == task.in_chans == 4
    # The range of each band is used, so that its pixels are anywhere in 0..1.
    assert all(0.3 < mean < 0.7 for mean in task.preprocessing.mean)
    assert len(list((run / "samples").glob("*.tif"))) == 2


def test_a_dry_run_says_what_was_measured(run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The numbers that the run kept."""
    options = ["--bands", "all", "--pixel_range", "auto", "--model.img_size", "32", *SMALL, *SHORT]
    words = ["train", "quick", "--data", str(scenes), "--out", str(tmp_path / "x"), "--dry-run", *options]
    assert main(words) == 0
    lines = dict(line.partition("  ")[::2] for line in capsys.readouterr().out.splitlines())
    kept = transept.load(run)
    assert lines["bands"].strip() == "[0, 1, 2, 3], and no file has more"
    low, high = kept.reading.pixel_range[3]
    assert lines["pixel range"].endswith(f"[{low:g}, {high:g}] of band 3")
    assert lines["mean"].strip() == ", ".join(f"{mean:.4f}" for mean in kept.preprocessing.mean)


def test_plain_runs_say_nothing_of_it(tmp_path: Path):
    with safe_open(classifier(3, tmp_path / "a.safetensors"), "pt") as file:
        assert "reading" not in json.loads(file.metadata()[METADATA_KEY])


@pytest.mark.parametrize("verb", [["predict"], ["explain"], ["eval"], ["eval", "--knn", "--k", "2"]], ids=" ".join)
def test_verbs(run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str]):
    sources = [] if verb[0] == "eval" else [str(scenes / "a" / "0.tif"), "--out", str(tmp_path / "sheet.png")]
    assert main([verb[0], str(run), *sources, *verb[1:], "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    if sources:
        assert Image.open(tmp_path / "sheet.png").width > 100
    else:
        assert answer["images"] == 2


def test_export(run: Path, tmp_path: Path):
    """On a photograph that has red, green and blue in turn."""
    task = transept.load(run)
    about = task.export(tmp_path, formats=["pt2"]).about
    assert about["in_chans"] == 4
    assert Reading.of(about["reading"]) == task.reading


@pytest.mark.slow
def test_export_in_8_bits(run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture = str(scenes / "a" / "0.tif")
    options = ["--format", "onnx", "--int8", "--calibration", str(scenes / "a"), "--image", picture, "--json"]
    assert main(["export", str(run), "--out", str(tmp_path), *options]) == 0
    assert json.loads(capsys.readouterr().out)["int8"]["calibration_images"] == 6


def test_serve(run: Path, scenes: Path, tmp_path: Path):
    answerer = Answerer(transept.load(run))
    assert len(answerer.answer(scenes / "a" / "0.tif").items) == 2
    assert answerer.explain(scenes / "a" / "0.tif").width > 100
    (example,) = write_examples(answerer.task, tmp_path)
    assert len(answerer.answer(example).items) == 2


def test_python(run: Path, scenes: Path):
    assert transept.evaluate(run).images == 2
    first, second = transept.predict(run, [scenes / "a" / "0.tif", scenes / "b" / "1.tif"])
    assert len(first.labels) == len(second.labels) == 2
    task = transept.load(run)
    picture = task.read(scenes / "a" / "0.tif")
    (again,) = transept.predict(task, picture)
    assert torch.allclose(first.scores, again.scores)
    assert as_shown(picture).mode == "RGB"


def test_other_pictures_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.new("RGB", (32, 32)).save(tmp_path / "rgb.png")
    assert main(["predict", str(run), str(tmp_path / "rgb.png")]) == 1
    assert "has 3 bands, and bands=[0, 1, 2, 3] asks for number 3" in capsys.readouterr().err
    tifffile.imwrite(tmp_path / "five.tif", np.zeros((5, 32, 32), np.uint8), photometric="minisblack")
    line = fails(capsys, ["explain", str(run), str(tmp_path / "five.tif")])
    assert "has 5 bands, and the model takes files of 4" in line
    with pytest.raises(TranseptError, match=r"the picture is \(3, 32, 32\) of uint8; give 4 x H x W bytes"):
        transept.predict(run, Image.new("RGB", (32, 32)))


def test_without_the_options(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train = ["train", "quick", "--data", str(scenes), "--out", str(tmp_path / "run"), *SMALL]
    assert "12 files are not readable" in (line := fails(capsys, train))
    assert line.endswith("; say which are to be read with --bands all, or e.g. --bands '[0, 1, 2]'"), (
        "and leaves none out"
    )
    assert "give pixel_range=[0, 4095]" in fails(capsys, [*train, "--bands", "all"])


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_models_that_were_made_with_in_chans(tmp_path: Path, channels: int):
    """Their files are read by as many bands, and RGB's mean is repeated as timm repeats weights."""
    task = transept.load(classifier(channels, tmp_path / "a.safetensors"))
    values = RNG.integers(0, 256, (channels, 40, 36), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    (answer,) = transept.predict(task, tmp_path / "a.tif")
    assert answer.scores.sum() == pytest.approx(1)


def test_pretrained_first_layers(tmp_path: Path):
    """timm's rule: repeated in turn and scaled to the same sum, or summed for grey."""
    weights = {}
    for channels in (3, 4, 1):
        source = {} if channels == 3 else {"weights": tmp_path / "rgb.safetensors"}
        model = transept.create_model(
            "xcit_nano_12_p16_224", in_chans=channels, depth=1, embed_dim=32, num_heads=2, img_size=32, **source
        )
        if channels == 3:
            Classifier(model, list(map(str, range(1000))), Preprocessing(img_size=(32, 32))).save(
                tmp_path / "rgb.safetensors"
            )
        weights[channels] = next(p for name, p in model.named_parameters() if name.startswith("patch_embed"))
    assert torch.allclose(weights[4], weights[3][:, [0, 1, 2, 0]] * 3 / 4)
    assert torch.allclose(weights[1], weights[3].sum(1, keepdim=True))


# Segmenters and detectors


def dense_set(root: Path, task: str) -> Path:
    """Six scenes with a bright square of near infrared, its mask and its box."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(6):
        half = "train" if i < 4 else "val"
        bands = RNG.integers(0, 80, (4, 64, 64), dtype=np.uint8)
        bands[3, 10:40, 20:50] += 150
        path = root / ("images" if task == "segment" else ".") / half / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, bands.transpose(1, 2, 0), photometric="rgb", extrasamples=["unassalpha"])
        mask = np.zeros((64, 64), np.uint8)
        mask[10:40, 20:50] = 1
        if task == "segment":
            (root / "annotations" / half).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / "annotations" / half / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.tif", "width": 64, "height": 64, "half": half})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [20, 10, 30, 30], "half": half})
    (root / "classes.txt").write_text("0 ground\n1 field\n")
    for half in ("train", "val"):
        page = {"images": images, "annotations": annotations}
        page = {key: [each for each in entries if each["half"] == half] for key, entries in page.items()}
        (root / f"{half}.json").write_text(json.dumps({**page, "categories": [{"id": 1, "name": "field"}]}))
    return root


@pytest.mark.parametrize(("task", "page"), [("segment", "quick-seg"), ("detect", "quick-det")])
def test_dense_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, page: str):
    data, run = dense_set(tmp_path / "data", task), tmp_path / "run"
    size = {"segment": ["--segment.preprocessing.scale=[64,64]", "--segment.augmentation.crop=[64,64]",
                        "--segment.width=16"],
            "detect": ["--detect.preprocessing.scale=[64,64]", "--detect.augmentation.short_sides=[]",
                       "--detect.width=32", "--detect.method=retinanet"]}[task]  # fmt: skip
    train = ["train", page, "--data", str(data), "--out", str(run), "--bands", "all", "--model.img_size", "64"]
    length = ["--schedule.epochs=1", "--schedule.iterations=null", "--schedule.evaluate_every=null"]
    options = [*size, *length, "--schedule.warmup_epochs=0", "--schedule.warmup_iterations=0", "--batch_size=4"]
    narrow = ["--model.name=xcit_nano_12_p16_224", "--model.options={depth: 1, embed_dim: 32, num_heads: 2}"]
    code = main([*train, *options, *narrow, "--accumulate=1", "--workers=0"])
    assert code == 0, capsys.readouterr().err
    trained: Any = transept.load(run)
    assert len(trained.preprocessing.mean) == trained.in_chans == 4
    assert trained.preprocessing.mean[3] > trained.preprocessing.mean[0]
    assert transept.evaluate(run).images == 2
    picture = next(data.rglob("val/4.tif"))
    capsys.readouterr()
    assert main(["predict", str(run), str(picture), "--out", str(tmp_path / "drawn"), "--json"]) == 0
    drawn = [path for path in (tmp_path / "drawn").iterdir() if path.name.endswith(("overlay.png", "objects.png"))]
    assert np.asarray(Image.open(drawn[0]).convert("RGB")).std() > 5
    answer = Answerer(trained).answer(picture)
    assert answer.drawing is not None
    sample = sample_picture(4)
    size = (64, 64)
    image = trained.prepare(sample, size) if task == "segment" else prepare(sample, trained.preprocessing, size).images
    assert image.shape[-3:] == (4, 64, 64)


# Steps


def test_augmentations_that_hold_for_bands():
    picture = sample_picture(5)
    preprocessing = fit_channels(Preprocessing(img_size=(24, 24)), 5)
    with pytest.warns(TranseptWarning, match="randaugment and color_jitter vary red, green and blue, .* 5 channels"):
        transform = train_transform(preprocessing, Augmentation(color_jitter=0.4, randaugment="rand-m9", erasing=1.0))
    assert transform(picture).shape == (5, 24, 24)
    rotated = train_transform(preprocessing, Augmentation(rotation=20, translation=0.1))
    assert rotated(picture).shape == (5, 24, 24)
    with pytest.warns(TranseptWarning, match="color_jitter varies"):
        views = multicrop_transform(preprocessing, MultiCrop(local_crops=1, local_size=16, blur=(1, 1, 1), solarize=1))
    assert [view.shape for view in views(picture)] == [(5, 24, 24), (5, 24, 24), (5, 16, 16)]


def test_fit_channels():
    rgb = Preprocessing(img_size=(8, 8), mean=(0.1, 0.2, 0.6), std=(1, 2, 3))
    assert fit_channels(rgb, 3) is rgb
    assert fit_channels(rgb, 1).mean == pytest.approx((0.3,))
    assert fit_channels(rgb, 5).std == (1, 2, 3, 1, 2)
    with pytest.raises(UsageError, match=r"mean=\[0.1, 0.2, 0.6, 0.1\] has 4 numbers for 5 channels"):
        fit_channels(fit_channels(rgb, 4), 5)
    plain = Augmentation()
    assert without_color(plain, 4, color_jitter=0.0) == plain


def test_pictures_to_look_at():
    bands = torch.arange(4, dtype=torch.uint8).view(4, 1, 1).expand(4, 2, 3)
    assert as_shown(bands).getpixel((0, 0)) == (0, 1, 2)
    assert as_shown(bands[1:3]).getpixel((0, 0)) == (1, 2, 0)
    assert as_shown(bands[3:]).getpixel((2, 1)) == (3, 3, 3)


def test_dark_pictures_are_said_once(tmp_path: Path):
    Image.fromarray(RNG.integers(0, 4096, (32, 32), dtype=np.uint16)).save(tmp_path / "dark.png")
    task: Task = transept.load(classifier(3, tmp_path / "a.safetensors"))
    with pytest.warns(TranseptWarning, match="uses less than an eighth .* say so with pixel_range") as caught:
        transept.predict(task, [tmp_path / "dark.png"] * 2)
    assert len(caught) == 1


def test_options_of_data_for_a_task_without_wishes(tmp_path: Path):
    task: Task = transept.load(classifier(3, tmp_path / "a.safetensors"))
    wanted = DataOptions(data="x", bands=(3, 2, 1), pixel_range=(0.0, 4095.0))
    assert task.reading_of(wanted) == wanted.reading
    with pytest.raises(UsageError, match="this classifier takes 3 bands; give so many numbers"):
        task.reading_of(DataOptions(data="x", bands=(0, 1)))
    assert task.reading_of(DataOptions(bands="all")) == WantedReading(bands=(0, 1, 2), exact=True)


@pytest.fixture(scope="module")
def unsaid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of red, green and blue that says nothing of files, as published ones do not."""
    return classifier(3, tmp_path_factory.mktemp("models") / "rgb.safetensors")


def answer_of(capsys: pytest.CaptureFixture[str], words: list[str]) -> Any:
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("range_option", ["--pixel_range", pytest.param("--pixel-range", marks=pytest.mark.slow)])
def test_models_that_do_not_say_it_are_told(
    unsaid: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], range_option: str
):
    """Infrared, green and blue of 12-bit files: the same answers as of the picture that those values make."""
    file = scenes / "b" / "1.tif"
    reading = Reading(bands=(3, 1, 2), pixel_range=((0.0, 4095.0),))
    (best,) = transept.predict(unsaid, read_image(file, reading=reading), top=2)
    told = ["--bands", "[3, 1, 2]", range_option, "[0, 4095]"]
    said = answer_of(capsys, ["predict", str(unsaid), str(file), "--no-sheet", *told])
    scores = [entry["score"] for entry in said["images"][0]["predictions"]]
    assert scores == pytest.approx(best.scores.tolist())
    sheet = tmp_path / "sheet.png"
    seen = answer_of(capsys, ["explain", str(unsaid), str(file), "--out", str(sheet), *told])
    assert seen["predictions"][0]["score"] == pytest.approx(max(scores))
    assert answer_of(capsys, ["eval", str(unsaid), "--data", str(scenes), *told])["images"] == 12
    assert "knn_top1" in answer_of(capsys, ["eval", str(unsaid), "--data", str(scenes), "--knn", "--k", "2", *told])


def test_a_range_measured_on_the_pictures(unsaid: Path, scenes: Path, capsys: pytest.CaptureFixture[str]):
    words = ["predict", str(unsaid), str(scenes), "--no-sheet", "--bands", "[3, 1, 2]", "--pixel_range", "auto"]
    assert main(words) == 0
    assert "pixel_range=[[" in (line := capsys.readouterr().err)
    assert "measured on 12 pictures" in line
    measured = ["--bands", "[3, 1, 2]", "--pixel_range", "auto"]
    assert answer_of(capsys, ["eval", str(unsaid), "--data", str(scenes), *measured])["images"] == 12
    line = fails(capsys, ["export", str(unsaid), *measured], 2)
    assert "pixel_range=auto is measured on pictures, and here are none" in line


@pytest.mark.slow  # what a run kept is in its files, as above; how one is told, the other verbs show
def test_exported_files_say_how_a_model_was_told_to_read(unsaid: Path, tmp_path: Path):
    words = ["export", str(unsaid), "--out", str(tmp_path), "--format", "pt2", "--pixel_range", "[0, 4095]"]
    assert main(words) == 0
    extra = {f"{METADATA}.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra[f"{METADATA}.json"])["reading"]["pixel_range"] == [[0, 4095]]


def test_what_training_kept_is_not_contradicted(run: Path, scenes: Path, capsys: pytest.CaptureFixture[str]):
    predict = ["predict", str(run), str(scenes / "a" / "0.tif"), "--no-sheet"]
    line = fails(capsys, [*predict, "--bands", "[3, 2, 1, 0]"], 2)
    assert "bands=[3, 2, 1, 0], but this classifier was trained with bands=[0, 1, 2, 3]" in line
    line = fails(capsys, ["eval", str(run), "--pixel_range", "[0, 4095]"], 2)
    assert "pixel_range=[0, 4095], but this classifier was trained with pixel_range=[[" in line
    assert main([*predict, "--bands", "all"]) == 0
    capsys.readouterr()
    assert "bands=x; give a list" in fails(capsys, [*predict, "--bands", "x"], 2)
    assert "give [low, high] with low < high" in fails(capsys, [*predict, "--pixel_range", "[5, 1]"], 2)
