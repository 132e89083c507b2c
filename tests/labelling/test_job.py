"""Rows are what the task answers, picture for picture, whatever reads them and whenever it was stopped."""

import json
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import transept
from tests.helpers import SMALL
from tests.labelling.small import BAD, classifier, label, rows, segmenter, write_pictures
from tests.toy_task import Photometer
from transept.data.classification.transforms import Preprocessing, eval_transform
from transept.data.detection.masks import mask_api
from transept.data.detection.transforms import DetectionPreprocessing
from transept.data.images import sample_picture
from transept.errors import TranseptError, UsageError
from transept.labelling.inputs import Batches
from transept.labelling.job import ShardWriter, plan_job, written
from transept.labelling.pictures import find_pictures
from transept.tasks.classify import Classifier
from transept.tasks.detect import Detector

pytest.importorskip("pyarrow")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_classifiers_rows(tmp_path: Path, workers: int):
    task, paths = classifier(), write_pictures(tmp_path / "in")
    inference = task.inference(top=2, batch_size=4)
    assert label(task, tmp_path / "in", tmp_path / "out", inference, workers=workers, rows=10) == 25
    found = rows(tmp_path / "out")
    assert [row["path"] for row in found] == list(map(str, paths))
    bad = found.pop(BAD)
    assert bad.pop("path") == str(paths.pop(BAD))
    assert bad.pop("error") == "is no picture of a known format"
    assert set(bad.values()) == {None}
    for row, path in zip(found, paths, strict=True):
        picture = Image.open(path)
        (answer,) = task.predict([picture], inference)
        assert (row["width"], row["height"], row["error"]) == (*picture.size, None)
        assert [row["label_1"], row["label_2"]] == [item.label for item in task.items(answer)]
        assert [row["score_1"], row["score_2"]] == pytest.approx(answer.scores.tolist(), abs=1e-5)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "_plan.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"
    ]  # fmt: skip


def test_any_number_of_labels(tmp_path: Path):
    from transept.tasks.labelling import MultiLabel

    one = classifier()
    task = Classifier(one.model, one.classes, one.preprocessing, labelling=MultiLabel([0.4] * 4)).eval()
    write_pictures(tmp_path / "in", 9)
    label(task, tmp_path / "in", tmp_path / "out", task.inference())
    for row in rows(tmp_path / "out"):
        if row["error"] is None:
            (answer,) = task.predict([Image.open(row["path"])])
            assert row["labels"] == ";".join(item.label for item in task.items(answer))


def test_a_segmenters_rows_and_label_maps(tmp_path: Path):
    task, paths = segmenter(), write_pictures(tmp_path / "in", 9)
    label(task, tmp_path / "in", tmp_path / "out", task.inference(), rows=5)
    for number, (row, path) in enumerate(zip(rows(tmp_path / "out"), paths, strict=True)):
        if number == BAD:
            assert row["labels"] is None
            assert row["share"] is None
            continue
        (answer,) = task.predict([Image.open(path)])
        assert row["labels"] == f"_labels/{number // 5:05d}/{number:08d}.png"
        stored = np.asarray(Image.open(tmp_path / "out" / row["labels"]))
        assert np.array_equal(stored, answer.labels.numpy())
        assert dict(zip(row["class"], row["share"], strict=True)) == {i.label: i.score for i in task.items(answer)}
    maps = tmp_path / "out" / "_labels"
    before = {file: file.read_bytes() for file in maps.rglob("*.png")}
    assert len(before) == 8
    (tmp_path / "out" / "part-00001.parquet").unlink()
    (maps / "00001" / ".00000006-abcdefgh.png").write_bytes(b"half")
    label(task, tmp_path / "in", tmp_path / "out", task.inference(), resume=True)
    assert {file: file.read_bytes() for file in maps.rglob("*") if file.is_file()} == before


def test_a_detectors_rows_and_masks(tmp_path: Path):
    pytest.importorskip("pycocotools")
    small = dict(depth=1, embed_dim=32, num_heads=2, width=32, preprocessing=DetectionPreprocessing(scale=(64, 48)))
    task: Any = transept.create_detector("mask_rcnn", backbone="xcit_nano_12_p16", num_classes=3, **small).eval()
    torch.nn.init.normal_(task.roi_head.bbox_head.fc_cls.weight, std=0.5)
    paths = write_pictures(tmp_path / "in", 9, sizes=2)
    inference = task.compact(task.inference(score=0.2, batch_size=3))
    label(task, tmp_path / "in", tmp_path / "out", inference)
    found = rows(tmp_path / "out")
    assert sum(len(row["label"]) for row in found if row["error"] is None) > 8
    for number, row in enumerate(found):
        if number == BAD:
            assert row["label"] is None
            assert row["mask"] is None
            continue
        (answer,) = task.predict([Image.open(paths[number])], task.inference(score=0.2))
        assert row["label"] == [task.classes[i] for i in answer.labels]
        boxes = [list(box) for box in zip(*(row[side] for side in ("x1", "y1", "x2", "y2")), strict=True)]
        np.testing.assert_allclose(np.array(boxes).reshape(-1, 4), answer.boxes.numpy(), atol=1e-3)
        for counts, mask in zip(row["mask"], answer.masks, strict=True):
            decoded = mask_api().decode({"size": [row["height"], row["width"]], "counts": counts.encode()})
            assert np.array_equal(decoded.astype(bool), mask.numpy())


def test_a_task_that_the_package_lacks(tmp_path: Path):
    """With what `Task` gives it."""
    model = transept.create_model("xcit_nano_12_p8_224", num_classes=1, img_size=32, **SMALL["xcit_nano_12_p8_224"])
    task = Photometer(model, Preprocessing(img_size=(32, 32))).eval()
    write_pictures(tmp_path / "in", 9)
    label(task, tmp_path / "in", tmp_path / "out", task.inference())
    found = rows(tmp_path / "out")
    assert [row["label"] for row in found] == [None if number == BAD else ["brightness"] for number in range(9)]
    assert all(len(row["score"]) == 1 for row in found if row["error"] is None)


def test_batches_are_of_one_shape_and_lose_nothing():
    batches, made = Batches(4), []
    draw = random.Random(0)
    for first in range(0, 300, 3):
        side = draw.choice(range(1, 12))
        made += batches.add([first, first + 1, first + 2], torch.full((3, 3, side, 2), float(first)))
        waiting = first + 3 - sum(len(numbers) for numbers, _ in made)
        assert waiting <= 4 * 4
    made += batches.rest()
    assert sorted(number for numbers, _ in made for number in numbers) == list(range(300))
    assert max(len(numbers) for numbers, _ in made) == 4
    for numbers, inputs in made:
        assert inputs[:, 0, 0, 0].tolist() == [number - number % 3 for number in numbers]


def test_shards_that_are_there_are_kept_and_others_jobs_refused(tmp_path: Path):
    task, out = classifier(), tmp_path / "out"
    write_pictures(tmp_path / "in")
    inference = task.inference(top=2)
    label(task, tmp_path / "in", out, inference, rows=10)
    before = rows(out)
    with pytest.raises(UsageError, match="holds rows already; go on with --resume, or give another folder"):
        label(task, tmp_path / "in", out, inference, rows=10)
    (out / "part-00001.parquet").unlink()
    (out / ".part-00001-abcdefgh.parquet").write_bytes(b"half")
    times = {file.name: file.stat().st_mtime_ns for file in out.glob("part-*")}
    assert label(task, tmp_path / "in", out, inference, resume=True) == 10
    assert {file.name: file.stat().st_mtime_ns for file in out.glob("part-*") if file.name in times} == times
    assert rows(out) == before
    assert not list(out.glob(".part*"))
    assert label(task, tmp_path / "in", out, inference, resume=True) == 0
    for options, said in (
        ({"rows": 5}, "was begun with rows=10, and now it is 5; give the same as then, or another folder"),
        ({"form": "fused", "dtype": "float32"}, "was begun with form='eager', and now it is 'fused'"),
        ({"about": {"level": 3}}, "was begun with level=None, and now it is 3"),
    ):
        with pytest.raises(UsageError, match=said):
            label(task, tmp_path / "in", out, inference, resume=True, **options)
    with pytest.raises(UsageError, match="was begun with inference="):
        label(task, tmp_path / "in", out, task.inference(top=3), resume=True)
    with pytest.raises(UsageError, match="was begun with another model; give the same as then"):
        label(classifier(), tmp_path / "in", out, inference, resume=True)
    (tmp_path / "in" / "new.png").write_bytes(b"")
    with pytest.raises(UsageError, match="was begun with pictures=25, and now it is 26"):
        label(task, tmp_path / "in", out, inference, resume=True)
    (tmp_path / "in" / "000.png").unlink()
    with pytest.raises(UsageError, match="was begun with other pictures; give the same"):
        label(task, tmp_path / "in", out, inference, resume=True)
    assert rows(out) == before


def test_folders_that_are_none(tmp_path: Path):
    task = classifier()
    write_pictures(tmp_path / "in", 9)
    for place in (tmp_path / "in", tmp_path / "in" / "000.png"):
        for resume in (False, True):
            with pytest.raises(UsageError, match="is there, and no folder of rows; give a new folder"):
                label(task, tmp_path / "in", place, task.inference(), resume=resume)
    with pytest.raises(TranseptError, match="cannot make"):
        label(task, tmp_path / "in", tmp_path / "in" / "000.png" / "out", task.inference())
    for text in ("[1]", "{", "\xff"):
        out = tmp_path / f"plan{ord(text[0])}"
        out.mkdir()
        (out / "_plan.json").write_text(text, encoding="latin-1")
        with pytest.raises(TranseptError, match=r"is no plan of rows.*; give another folder"):
            label(task, tmp_path / "in", out, task.inference(), resume=True)


def test_the_form_is_that_of_the_processor_for_all_rows(tmp_path: Path):
    task, said = classifier(), []
    write_pictures(tmp_path / "in", 9)
    pictures = find_pictures([str(tmp_path / "in")])
    job, missing = plan_job(task, pictures, tmp_path / "out", task.inference(), report=said.append)
    assert (job.form, missing) == ("fused", [0])
    assert job.plan.asked["dtype"] in ("bfloat16", "float32")
    assert said[0].startswith(f"fused in {job.dtype}: ")
    assert written(job.plan) == (0, 0, 0)
    assert (job.formed is None) == (job.dtype == "float32")  # made once, to compare and to label
    assert job.formed is None or ShardWriter(job, workers=0)._task is job.formed
    assert plan_job(task, pictures, tmp_path / "other", task.inference(), form="compiled")[0].formed is None


def _label_slowly(source: Path, folder: Path, workers: int) -> None:
    """In a process that is killed: pictures one by one, shards of three."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = classifier()
    label(task, source, folder, task.inference(top=4, batch_size=2), workers=workers, rows=3, resume=True)


def _kill(source: Path, root: Path, kills: int, *, workers: int, seed: int) -> list[Path]:
    """Folders that were written by processes so many of which were killed, at random times after they began."""
    context, draw = multiprocessing.get_context("fork"), random.Random(seed)
    folders: list[Path] = []
    killed = 0
    while killed < kills or not folders or not _is_whole(folders[-1]):
        if not folders or _is_whole(folders[-1]):
            folders.append(root / f"{workers}-{len(folders)}")
        process = context.Process(target=_label_slowly, args=(source, folders[-1], workers))
        process.start()
        if killed < kills:
            had = len(list(folders[-1].glob("part-*")))
            end = time.monotonic() + 60
            while process.is_alive() and len(list(folders[-1].glob("*part-*"))) <= had and time.monotonic() < end:
                time.sleep(0.001)  # until it is writing, or has written, one more
            time.sleep(draw.uniform(0, 0.03))
            process.kill()
        process.join()  # with a time it would wait for the reader's process, too, which ends some seconds later
        killed += process.exitcode == -9
        assert process.exitcode in (0, -9)
    return folders


def _is_whole(folder: Path) -> bool:
    return (folder / "part-00008.parquet").exists() and len(list(folder.glob("part-*"))) == 9


def _survives(tmp_path: Path, kills: int, *, workers: int) -> None:
    paths = write_pictures(tmp_path / "in")
    _label_slowly(tmp_path / "in", tmp_path / "whole", 0)
    expected = rows(tmp_path / "whole")
    assert [row["path"] for row in expected] == list(map(str, paths))
    for folder in _kill(tmp_path / "in", tmp_path, kills, workers=workers, seed=kills):
        assert rows(folder) == expected
        assert not list(folder.glob(".*"))


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_three_times_no_row_is_lost_and_none_twice(tmp_path: Path, workers: int):
    _survives(tmp_path, 3, workers=workers)


@pytest.mark.slow
def test_killed_twenty_times(tmp_path: Path):
    _survives(tmp_path, 20, workers=1)


def test_what_is_kept_is_plain(tmp_path: Path):
    task = classifier()
    write_pictures(tmp_path / "in", 9)
    label(task, tmp_path / "in", tmp_path / "out", task.inference(top=2), about={"level": None})
    plan = json.loads((tmp_path / "out" / "_plan.json").read_text())
    assert plan["pictures"] == 9
    assert plan["inference"] == {"top": 2, "threshold": None, "batch_size": 32}
    assert plan["level"] is None


def test_a_detector_without_masks_has_no_column_of_them():
    detector: Any = transept.create_detector("retinanet", backbone="xcit_nano_12_p16", num_classes=2, depth=1, width=32)
    assert isinstance(detector, Detector)
    assert "mask" not in detector.picture_columns(detector.inference())
    assert detector.picture_columns(detector.inference())["label"] == list[str]


@pytest.mark.parametrize("form", ["eager", "fused"])
def test_pictures_are_resized_exactly_where_float32_shows_it(tmp_path: Path, form: str):
    task, folder = classifier(), tmp_path / "in"
    folder.mkdir()
    sample_picture().save(folder / "a.png")
    dtype = "bfloat16" if form == "fused" else "auto"
    job, _ = plan_job(task, find_pictures([str(folder)]), tmp_path / "out", task.inference(), form=form, dtype=dtype)
    made = task.input_of(exact=job.is_exact)(sample_picture())
    exact = eval_transform(task.preprocessing)(sample_picture())
    assert made.equal(exact) == (form == "eager")
    steps = (made - exact).abs() * torch.tensor(task.preprocessing.std)[:, None, None] * 255
    assert steps.max() < 1.01
    assert (steps > 0.5).float().mean() < 0.01
