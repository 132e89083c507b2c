"""`eval` and `predict` of detectors, on a COCO folder written here."""

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from pycocotools.coco import COCO

from tests.helpers import ctrl_c, fails
from transept.cli.main import main
from transept.cost.printed import PUBLISHED_DETECTORS
from transept.data.detection.coco_classes import COCO_CLASSES
from transept.data.detection.transforms import DetectionPreprocessing
from transept.tasks.detect import METHODS, Detector, create_detector
from transept.tasks.detect_pictures import DetectionInference
from transept.weights.catalogue.records import CHECKPOINTS
from transept.weights.fetch.keeping import cached

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
        "retinanet",
        backbone="xcit_nano_12_p16",
        num_classes=2,
        classes=CLASSES,
        width=32,
        depth=1,
        preprocessing=DetectionPreprocessing(scale=(128, 96)),
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
    assert main(["eval", str(model), "--data", str(data), "--json", "--workers", "1"]) == 0
    assert json.loads(capsys.readouterr().out) | {"seconds": 0} == report | {"seconds": 0}
    assert main(["eval", str(model), "--data", str(data), "--flip"]) == 0
    out = capsys.readouterr().out
    assert "box AP" in out
    assert "AP50" in out
    assert main(["eval", str(model), "--data", str(data), "--tile", "64", "--json"]) == 0
    tiled = json.loads(capsys.readouterr().out)
    assert (tiled["tile"], tiled["overlap"]) == (64, 0.2)
    assert tiled["bbox"] != report["bbox"]


def test_predict(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a").mkdir()
    (tmp_path / "val2017").mkdir()
    for target in ("a/0.png", "val2017/0.png", "val2017/1.png"):  # drawing a hundred boxes takes seconds
        shutil.copy(data / "val2017" / target[-5:], tmp_path / target)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    pictures = [str(tmp_path / "val2017"), str(tmp_path / "a" / "0.png"), str(tmp_path / "bad.png")]
    out = tmp_path / "out"
    command = ["predict", str(model), *pictures, "--out", str(out), "--score", "0.4", "--classes", "disc", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["images"]) == 3
    assert len(report["skipped"]) == 1
    drawn = {row["drawn"] for row in report["images"]}
    assert len(drawn) == 3
    for name in drawn:
        assert Image.open(name).width > 128
    written = json.loads((out / "results.json").read_text())
    assert {result["category_id"] for result in written} == {0}
    assert min(result["score"] for result in written) > 0.4
    images = {image["id"]: image for image in json.loads((out / "images.json").read_text())["images"]}
    assert [images[i]["file_name"] for i in (1, 2, 3)] == [row["image"] for row in report["images"]]
    # pycocotools reads both as it reads its own
    truth = COCO(out / "images.json")
    loaded = truth.loadRes(str(out / "results.json"))
    assert len(loaded.anns) == len(written) == sum(sum(row["objects"].values()) for row in report["images"])
    assert [category["name"] for category in truth.loadCats(truth.getCatIds())] == CLASSES
    assert truth.imgs[1]["width"] == 128
    detector = Detector.load(model)
    (found,) = detector.predict([Image.open(data / "val2017" / "0.png")])
    best = max(r["score"] for r in written if images[r["image_id"]]["file_name"].endswith("val2017/0.png"))
    assert best == pytest.approx(float(found.scores[found.labels == 0].max()), abs=1e-5)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_table(model: Path, data: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]):
    """A row for each object, those of Python; nothing else is written."""
    out = tmp_path / "new" / f"objects{ending}"
    argv = ["predict", str(model), str(data / "val2017"), "--out", str(out), "--classes", "disc", "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(out.parent.iterdir()) == [out]
    rows = list(csv.DictReader(out.open())) if ending == ".csv" else parquet.read_table(out).to_pylist()
    assert list(rows[0]) == ["path", "label", "score", "x1", "y1", "x2", "y2"]
    (found,) = Detector.load(model).predict(
        [Image.open(data / "val2017" / "3.png")], DetectionInference(score_threshold=0.3, classes=("disc",))
    )
    last = [row for row in rows if row["path"] == str(data / "val2017" / "3.png")]
    assert [float(row["score"]) for row in last] == pytest.approx(found.scores.tolist(), abs=1e-5)
    assert [float(last[0][side]) for side in ("x1", "y1", "x2", "y2")] == pytest.approx(
        found.boxes[0].tolist(), abs=1e-2
    )
    assert {row["label"] for row in rows} == {"disc"}
    assert len(rows) == sum(len(row["rows"]) for row in report["images"])
    assert report["images"][3]["rows"][0]["x1"] == pytest.approx(float(last[0]["x1"]))


def test_no_object_says_how_far_the_best_one_was(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    picture = str(data / "val2017" / "0.png")
    argv = ["predict", str(model), picture, "--out", str(tmp_path / "a.csv"), "--score"]
    assert main([*argv, "0.99"]) == 0
    said = capsys.readouterr().err
    (best,) = re.findall(rf"no object scores 0.99 or more; the best in '{picture}' scores (0[.]\d+): --score", said)
    assert main([*argv, f"{float(best) - 0.01:.3f}"]) == 0
    assert "no object" not in capsys.readouterr().err


def test_a_table_without_objects_has_a_header(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["predict", str(model), str(data / "val2017" / "0.png"), "--score", "0.99"]
    assert main([*argv, "--out", str(tmp_path / "a.csv")]) == 0
    assert (tmp_path / "a.csv").read_text().splitlines() == ["path,label,score,x1,y1,x2,y2"]
    assert "a.csv: 0 rows of 1 picture\n" in capsys.readouterr().out
    (tmp_path / "b.csv").mkdir()
    assert "is a folder; give the name of a file" in fails(capsys, [*argv, "--out", str(tmp_path / "b.csv")], 2)


@pytest.mark.parametrize("done", [0, 2])
def test_stopped(model: Path, data: Path, tmp_path: Path, done: int, capsys: pytest.CaptureFixture[str]):
    """Ctrl-C in the picture after `done`: what was found stays, and is valid."""
    out = tmp_path / "out"
    argv = ["predict", str(model), str(data / "val2017"), "--out", str(out), "--score", "0.72", "--json"]
    with ctrl_c(Detector, done + 1, training=False):
        assert main(argv) == 130
    said = capsys.readouterr()
    if not done:
        assert said.err == "transept: stopped before the first of 4 pictures was done\n"
        assert not out.exists()
        return
    assert said.err == "transept: stopped: 2 of 4 pictures are done, and their results kept\n"
    report = json.loads(said.out)
    assert report["stopped"]
    assert len(report["images"]) == len(json.loads((out / "images.json").read_text())["images"]) == 2
    counts = Counter(result["image_id"] for result in json.loads((out / "results.json").read_text()))
    assert [counts[i] for i in (1, 2)] == [sum(row["objects"].values()) for row in report["images"]]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["eval", "MODEL", "--data", "DATA", "--crop", "64", "64"], "--crop is for segmenters"),
        (["eval", "MODEL", "--data", "DATA", "--classes", "disc"], "--classes is for predict"),
        (["eval", "mask_rcnn/cait_xxs24_224", "--data", "DATA"], "no weights of mask_rcnn on cait_xxs24_224"),
        (["eval", "fcos/cat_small.atss_1x_coco", "--data", "DATA"], "are no weights of fcos, but of atss"),
        (["predict", "MODEL", "DATA/val2017", "--score", "1.5"], "--score=1.5 is not in"),
        (
            ["predict", "MODEL", "DATA/val2017", "--overlap", "0.3"],
            "--overlap=0.3 is of tiles; give their size as tile",
        ),
        (["predict", "MODEL", "DATA/val2017", "--tile", "0"], "--tile=0 must be at least 1"),
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
    assert main(words) == (1 if "no weights of mask_rcnn" in sentence else 2)
    assert sentence in capsys.readouterr().err


def test_several_scales(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(0)
    detector = create_detector(
        "retinanet",
        backbone="xcit_nano_12_p16",
        num_classes=2,
        classes=CLASSES,
        width=32,
        depth=1,
        preprocessing=DetectionPreprocessing(scale=(64, 50)),
    )
    detector.bbox_head.retina_cls.bias.data.fill_(0.5)
    model = str(tmp_path / "model.safetensors")
    detector.save(Path(model))
    reports = {}
    for options in ("", "--multi-scale"):
        assert main(["eval", model, "--data", str(data), "--json", *options.split()]) == 0
        reports[options] = json.loads(capsys.readouterr().out)
    assert reports[""]["scales"] == []
    assert reports["--multi-scale"]["scales"] == [[64, short] for short in range(30, 51, 2)]
    found = []
    pattern = str(data / "val2017" / "[0].png")
    for options in ([], ["--multi-scale", "--flip"]):
        assert main(["predict", model, pattern, "--out", str(tmp_path / "out"), "--json", *options]) == 0
        assert len(json.loads(capsys.readouterr().out)["images"]) == 1
        found.append(json.loads((tmp_path / "out" / "results.json").read_text()))
    assert found[0] != found[1]
    scales = tuple((64, short) for short in range(30, 51, 2))
    (objects,) = detector.predict(
        [Image.open(data / "val2017" / "0.png")], DetectionInference(score_threshold=0.3, scales=scales, flip=True)
    )
    mine = [result["score"] for result in found[1]]
    assert mine == pytest.approx(objects.scores.tolist(), abs=1e-5)


def test_published_detectors_are_ours():
    for name in PUBLISHED_DETECTORS:
        method, backbone = name.partition(" ")[0].split("/")
        assert method in METHODS
        if not name.endswith("3x") and method != "cascade_mask_rcnn":  # of those no weights were released
            assert any((c.model, c.method, c.task) == (backbone, method, "detection") for c in CHECKPOINTS)


def test_coco_classes(shared_data: Path):
    (file, *_) = sorted((shared_data / "coco_mini" / "annotations").glob("*.json"))
    categories = sorted(json.loads(file.read_text())["categories"], key=lambda category: category["id"])
    assert [category["name"] for category in categories] == list(COCO_CLASSES)


@pytest.mark.slow  # the whole detector; test_segment_cli.py has a smaller one
def test_published_detector_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("TRANSEPT_OFFLINE", "1")
    (checkpoint,) = (c for c in CHECKPOINTS if c.name == "xcit_tiny_12_p16.mask_rcnn_3x_coco")
    torch.manual_seed(0)
    random = create_detector("mask_rcnn", backbone="xcit_tiny_12_p16").eval()
    random.roi_head.bbox_head.fc_cls.bias.data[1] = 6  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
    file = cached(checkpoint.file)
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": random.state_dict(), "meta": {}}, file)
    data = tmp_path / "coco"
    (data / "annotations").mkdir(parents=True)
    (data / "val2017").mkdir()
    picture = Image.effect_noise((640, 16), 90).convert("RGB")  # 1333 x 33 for the model
    picture.save(data / "val2017" / "a.png")
    page = {
        "images": [{"id": 1, "file_name": "a.png", "width": 640, "height": 16}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [8, 2, 40, 12], "segmentation": [[8, 2, 48, 2, 48, 14]]}
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(COCO_CLASSES)],
    }
    (data / "annotations" / "instances_val2017.json").write_text(json.dumps(page))
    out = tmp_path / "out"
    words = ["predict", "mask_rcnn/xcit_tiny_12_p16", str(data / "val2017" / "a.png"), "--out", str(out), "--json"]
    assert main(words) == 0
    capsys.readouterr()
    written = json.loads((out / "results.json").read_text())
    (expected,) = random.predict([picture], DetectionInference(score_threshold=0.3))
    assert [result["score"] for result in written] == pytest.approx(expected.scores.tolist(), abs=1e-4)
    assert {result["category_id"] for result in written} == {1}
    categories = json.loads((out / "images.json").read_text())["categories"]
    assert categories[1] == {"id": 1, "name": COCO_CLASSES[1]}
    assert main(["eval", checkpoint.name, "--data", str(data), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["bbox"]["per_class"]) == set(COCO_CLASSES)
    assert report["segm"]["map"] >= 0


def annotation(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(page: dict[str, Any]) -> None:
        page["annotations"][1][key] = value

    return change


def image(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(page: dict[str, Any]) -> None:
        page["images"][1][key] = value

    return change


BAD: dict[str, tuple[Callable[[dict[str, Any]], None], str, str]] = {  # and the sentence, and the reason counted
    "zero area": (annotation("bbox", [30, 18, 0, 40]), "annotation 2 has the bbox [30, 18, 0, 40]", "1 boxes without"),
    "nan": (annotation("bbox", [float("nan"), 18, 9, 9]), "annotation 2 has the bbox [nan", "1 boxes not finite"),
    "negative": (
        annotation("bbox", [30, 18, -9, 9]),
        "annotation 2 has the bbox [30, 18, -9, 9]",
        "1 boxes without area",
    ),
    "outside": (annotation("bbox", [200, 18, 9, 9]), "lies outside its picture of 128 x 96", "1 boxes outside"),
    "category": (annotation("category_id", 99), "annotation 2 has the category 99", "1 of unknown categories"),
    "no image": (annotation("image_id", 99), "annotation 2 is of image 99", "1 without an image"),
    "twice": (annotation("id", 1), "annotation 1 has an id that another", "1 ids given twice"),
    "image twice": (image("id", 3), "image 3 ('1.png') has an id that another", "1 images with an id given twice"),
    "no file": (image("file_name", "no.png"), "no.png', does not exist", "1 images without a file"),
}


def broken(data: Path, root: Path, half: str, change: Callable[[dict[str, Any]], None]) -> tuple[Path, Path]:
    shutil.copytree(data, root / "bad")
    file = root / "bad" / "annotations" / f"instances_{half}2017.json"
    page = json.loads(file.read_text())
    change(page)
    file.write_text(json.dumps(page))
    return root / "bad", file


@pytest.mark.parametrize("what", BAD)
def test_bad_annotations(model: Path, data: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]):
    change, sentence, reason = BAD[what]
    folder, file = broken(data, tmp_path, "val", change)
    said = fails(capsys, ["eval", str(model), "--data", str(folder)])
    assert f"{file.name}'" in said  # of a long path the middle is left out
    assert sentence in said
    assert said.endswith("leave them out with --skip-bad-annotations")
    assert main(["eval", str(model), "--data", str(folder), "--skip-bad-annotations", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert len(report["skipped"]) >= 1
    assert sentence in report["skipped"][0]["reason"]
    line, measured, *never = err.strip().splitlines()
    assert measured == f"transept: {report['measured']}"
    assert all("never found: " in note for note in never)
    assert f"{str(file)!r}, left out: " in line
    assert reason in line
    if what == "no file":
        assert "1 annotations of images left out" in line
        assert report["images"] == 3


@pytest.mark.parametrize(
    ("content", "sentence"), [("[]", "is no COCO file"), ("{", "is not JSON"), ("{}", "no COCO file")]
)
def test_files_that_are_no_coco(
    model: Path, data: Path, tmp_path: Path, content: str, sentence: str, capsys: pytest.CaptureFixture[str]
):
    folder, file = broken(data, tmp_path, "val", lambda page: None)
    file.write_text(content)
    said = fails(capsys, ["eval", str(model), "--data", str(folder)])
    assert str(file) in said
    assert sentence in said


def test_training_says_what_it_leaves_out(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def change(page: dict[str, Any]) -> None:
        for each in BAD["zero area"], BAD["category"]:
            each[0](page)
        page["annotations"][0]["bbox"] = [-8, 8, 40, 40]
        page["annotations"][2]["image_id"] = 99

    folder, file = broken(data, tmp_path, "train", change)
    options = "--detect.method retinanet --detect.preprocessing.scale [96,64] --detect.width 32 --schedule.epochs 1"
    options += " --schedule.warmup_epochs 0 --model.options.embed_dims [16,16,16,16] --model.options.depths [1,1,1,1]"
    options += " --model.options.num_heads [2,2]"
    argv = ["train", "quick-det", "--data", str(folder), "--out", str(tmp_path / "run"), *options.split()]
    said = fails(capsys, argv)
    assert said.startswith("transept: 2 entries of ")  # of a line that is too long, paths are cut in their middle
    assert f"{file.name[-12:]}' cannot be used: annotation 2 has the category 99" in said
    assert not (tmp_path / "run").exists()
    assert main([*argv, "--skip-bad-annotations", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["skipped"] == 2
    assert "left out: 1 of unknown categories, 1 without an image; e.g. annotation 2 has" in err
    assert "not used as they are: 1 boxes clipped at the border, 2 pictures without objects" in err


def test_count(capsys: pytest.CaptureFixture[str]):
    assert main(["count", "mask_rcnn/crossformer_small", "--schedule", "3x", "--json"]) == 0
    item = json.loads(capsys.readouterr().out)
    assert (item["name"], item["img_size"]) == ("mask_rcnn/crossformer_small 3x", [1280, 800])
    parts = item["modules"]
    assert {part for part in parts if "." not in part} == {"backbone", "neck", "rpn_head", "roi_head"}
    assert sum(parts[part]["macs"] for part in parts if "." not in part) == item["macs"]
    assert item["published"]["macs"] == pytest.approx(item["macs_as_published"], abs=5e7)
    assert [weights["model"] for weights in item["weights"]] == ["crossformer_small"]
    assert main(["count", "retinanet/cat_small", "--img-size", "128", "256", "--depth", "1"]) == 0
    table = capsys.readouterr().out
    assert "retinanet/cat_small at 128 x 256" in table
    assert "47 M  " in table  # published operations are for another size
    assert "276" not in table
    for words, sentence in (
        (["mask_rcnn/cat_small", "--schedule", "3x"], "was published in one form"),
        (["cat_small", "--schedule", "1x"], "--schedule is for detectors"),
        (["retinanett/cat_small"], "did you mean 'retinanet'"),
    ):
        assert main(["count", *words]) == 2
        assert sentence in capsys.readouterr().err
