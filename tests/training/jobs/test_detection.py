"""Runs of detectors: every epoch another order, resumed runs that end as whole ones, AP of what was found."""

import dataclasses
import itertools
import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from tests.helpers import rows
from transept.cli.main import main
from transept.data.detection.sets import load_detection_splits
from transept.errors import TranseptError, UsageError
from transept.metrics.detection import detection_scores
from transept.tasks.coco_results import to_coco_results
from transept.tasks.detect import Detector
from transept.training.jobs.detection import DetectJob, collate_targets
from transept.training.jobs.table import JOBS
from transept.training.loop.interruption import RunInterruptedError
from transept.training.loop.run import train
from transept.training.options.pages import read_recipe
from transept.training.options.parsing import parse_recipe
from transept.training.options.recipe import Recipe

pytest.importorskip("faster_coco_eval")

OPTIONS = (
    "--batch_size 2 --scenes [6,3] --detect.preprocessing.scale [96,64] --detect.width 32 --schedule.epochs 2 "
    "--detect.method retinanet "
    "--schedule.warmup_epochs 0 --model.drop_path_rate 0.2 --detect.augmentation.color_jitter 0.2 "
    "--model.options.embed_dims [16,16,16,16] --model.options.depths [1,1,1,1] --model.options.num_heads [2,2]"
).split()


def recipe(*options: str) -> Recipe:
    return parse_recipe(read_recipe("quick-det"), [*OPTIONS, *options])


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = train(recipe(), folder, progress=False)
    assert result.score.key == "map"
    assert 0 <= result.metrics["map"] <= result.metrics["map50"] <= 1
    assert not any(math.isnan(value) for value in result.metrics.values())
    return folder


def test_a_run_is_evaluated_on_its_own_scenes(whole_run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["eval", str(whole_run), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["images"] == 3
    assert report["map"] == pytest.approx(max(float(row["val_map"]) for row in rows(whole_run)), abs=1e-6)


def test_the_run_folder(whole_run: Path):
    assert [row["step"] for row in rows(whole_run)] == ["3", "6"]
    assert {"train_loss", "val_loss", "val_map", "val_map50", "val_recall100"} <= rows(whole_run)[0].keys()
    assert len(list((whole_run / "samples").glob("*.png"))) == 3
    detector = Detector.load(whole_run / "best.safetensors")
    assert (detector.preprocessing.scale, detector.classes) == ((96, 64), list("0123456789"))


class Interrupting(DetectJob):
    """Ctrl-C, for real, while the fifth batch is read: in the second epoch of three batches."""

    def loaders(self, task: Any, *, epoch: int, batch: int) -> tuple[DataLoader, DataLoader]:
        loader, val = super().loaders(task, epoch=epoch, batch=batch)
        collate, read = loader.collate_fn, itertools.count(1)

        def interrupting(samples: list) -> Any:
            if next(read) == 5:
                signal.raise_signal(signal.SIGINT)
            return collate(samples)

        loader.collate_fn = interrupting
        return loader, val


def test_interrupted_in_mid_epoch_and_resumed(whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setitem(JOBS, "detect", Interrupting)
        with pytest.raises(RunInterruptedError, match="stopped before step 5"):
            train(recipe(), tmp_path / "run", progress=False)
    train(recipe(), tmp_path / "run", resume=True, progress=False)
    assert rows(tmp_path / "run") == rows(whole_run)
    for name in ("best.safetensors", "last.safetensors"):
        ours, theirs = load_file(tmp_path / "run" / name), load_file(whole_run / name)
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), name


def test_every_epoch_has_its_own_order():
    job = DetectJob(recipe())
    task = job.build(load=False)
    loader, _ = job.loaders(task, epoch=0, batch=0)
    assert loader.batch_sampler is not None
    orders = []
    for epoch in range(2):
        loader.batch_sampler.sampler.set_epoch(epoch)  # as Lightning does
        orders.append([target.image_id for _, targets in loader for target in targets])
    assert sorted(orders[0]) == sorted(orders[1]) == [1, 2, 3, 4, 5, 6]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("method", ["retinanet", "mask_rcnn"])
def test_answers_are_the_predictions(method: str):
    """What validation scores is what `predict` finds in the pictures as they are."""
    job = DetectJob(recipe("--detect.method", method))
    task = job.build(load=False).eval()
    assert isinstance(task, Detector)
    for name, parameter in task.named_parameters():
        if name.endswith("_cls.bias"):
            torch.nn.init.constant_(parameter, -1.0)
    _, loader = job.loaders(task, epoch=0, batch=0)
    meter = job.meters()[1]
    with torch.no_grad():
        for images, targets in loader:
            outputs = task(images)
            meter.update(task.loss(outputs, targets), job.answers(task, outputs, targets), targets)
    val = job.splits.val
    found = task.predict([picture for picture, _ in val])
    results = to_coco_results(found, val.image_ids, val.category_ids)
    assert len(results) > 10
    scores = detection_scores(val.ground_truth(), results)
    assert meter.means()["recall100"] == pytest.approx(scores.recall100, abs=0.05)
    assert ("mask_map" in meter.means()) == (method == "mask_rcnn")
    assert meter.samples == len(val)


def test_crowds_are_not_learnt():
    target = {
        "boxes": torch.tensor([[0.0, 0, 9, 9], [2, 2, 30, 30]]),
        "labels": torch.tensor([4, 5]),
        "iscrowd": torch.tensor([False, True]),
        "masks": torch.ones(2, 40, 50, dtype=torch.uint8),
        "original_size": torch.tensor([80, 100]),
        "image_id": "a",
    }
    images, (learnt,) = collate_targets([(torch.ones(3, 40, 50), target)])
    assert images.shape == (1, 3, 64, 64)
    assert learnt.labels.tolist() == [4]
    assert (learnt.size, learnt.original_size, learnt.image_id) == ((40, 50), (80, 100), "a")
    assert learnt.masks is not None
    assert learnt.masks.shape == (1, 40, 50)


def test_the_recipe_is_complete():
    page = parse_recipe(read_recipe("quick-det"), [])
    assert (page.task, page.data) == ("detect", "digits-scenes")
    assert parse_recipe(dataclasses.asdict(page), []) == page


def test_what_cannot_be_trained(tmp_path: Path, shared_data: Path):
    with pytest.raises(UsageError, match="detectors train by epochs; give schedule.epochs"):
        recipe("--schedule.iterations", "10")
    bccd = shared_data / "bccd"
    for half in ("train2017", "val2017"):
        (tmp_path / half).symlink_to(bccd / half)
    shutil.copytree(bccd / "annotations", tmp_path / "annotations")
    file = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(TranseptError, match="the validation pictures of .* have no objects; AP needs some"):
        DetectJob(recipe("--data", str(tmp_path)))
    assert len(load_detection_splits(str(bccd)).classes) == 3
