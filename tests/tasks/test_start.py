"""What a training run takes of the weights that it begins with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import transept
from tests.helpers import NARROW
from transept.data.classification.transforms import Preprocessing
from transept.tasks.classify import Classifier
from transept.tasks.start import start_from
from transept.tasks.task import Task

OPTIONS: dict[str, Any] = NARROW["cabvit_h_l1"] | {"img_size": 64}


def detector(method: str, classes: Sequence[str], width: int = 64) -> Task:
    names: dict[str, Any] = dict(num_classes=len(classes), classes=classes)
    return transept.create_detector(method, backbone="cabvit_h_l1", width=width, **names, **OPTIONS)


def classifier(classes: Sequence[str]) -> Classifier:
    model = transept.create_model("cabvit_h_l1", num_classes=len(classes), **OPTIONS)
    return Classifier(model, list(classes), Preprocessing(img_size=(64, 64)))


def equal(task: Task, other: Task) -> dict[str, bool]:
    """Parameter to whether it is the same in both, of those that both have in one shape."""
    ours, theirs = dict(task.named_parameters()), dict(other.named_parameters())
    return {
        name: bool(torch.equal(value, theirs[name]))
        for name, value in ours.items()
        if name in theirs and theirs[name].shape == value.shape and value.unique().numel() > 1
    }


@pytest.mark.parametrize("method", ["retinanet", "mask_rcnn"])
def test_a_system_of_the_same_parts_is_taken_whole(method: str, tmp_path: Path):
    first, second = detector(method, "ab"), detector(method, "ab")
    first.save(tmp_path / "best.safetensors")
    report = start_from(second, tmp_path / "best.safetensors")
    assert equal(first, second)
    assert all(equal(first, second).values())
    assert "fresh" not in report.summary
    assert "left" not in report.summary


@pytest.mark.parametrize("classes", [("b", "a"), ("a", "b", "c")])
def test_other_classes_start_fresh(classes: Sequence[str], tmp_path: Path):
    """Also where there are as many of them, in another order: the first is no longer "a"."""
    first, second = detector("retinanet", "ab"), detector("retinanet", classes)
    first.save(tmp_path / "best.safetensors")
    report = start_from(second, tmp_path / "best.safetensors")
    differ = {name for name, same in equal(first, second).items() if not same}
    assert differ <= {"bbox_head.retina_cls.weight"}
    assert "2 of the model start fresh (the file is for other classes)" in report.summary

    one, other = classifier("xyz"), classifier("xzy")
    one.save(tmp_path / "c.safetensors")
    report = start_from(other, tmp_path / "c.safetensors")
    assert {name for name, same in equal(one, other).items() if not same} == {"model.head.weight"}
    assert "2 of the model start fresh" in report.summary


@pytest.mark.parametrize("other", [("fcos", "ab", 64), ("retinanet", "ab", 32)])
def test_of_other_systems_the_backbone_is_taken(other: tuple[str, str, int], tmp_path: Path):
    first, second = detector("retinanet", "ab"), detector(*other)
    first.save(tmp_path / "best.safetensors")
    report = start_from(second, tmp_path / "best.safetensors")
    same = equal(first, second)
    assert all(same[name] for name in same if name.startswith("backbone."))
    assert not any(same[name] for name in same if not name.startswith("backbone."))
    assert "36 of the file are left (part of the retinanet, which a backbone alone has no place for)" in report.summary


def test_a_classifier_starts_a_detector(tmp_path: Path):
    one, second = classifier("xyz"), detector("retinanet", "ab")
    one.save(tmp_path / "c.safetensors")
    start_from(second, tmp_path / "c.safetensors")
    theirs = dict(one.model.named_parameters())
    shared = [name for name, _ in second.backbone.named_parameters() if name in theirs]
    assert len(shared) > 50
    assert all(torch.equal(second.backbone.get_parameter(name), theirs[name]) for name in shared)


def segmenter(classes: Sequence[str]) -> Task:
    names: dict[str, Any] = dict(num_classes=len(classes), classes=classes)
    return transept.create_segmenter("upernet", backbone="cabvit_h_l1", width=16, **names, **OPTIONS)


def test_a_segmenter_takes_the_classes_that_it_knows(tmp_path: Path):
    """A subset in another order, and one more: each row goes to the class of its name."""
    first, second = segmenter(["sky", "road", "tree"]), segmenter(["tree", "car", "sky"])
    first.save(tmp_path / "best.safetensors")
    before = {name: value.clone() for name, value in second.state_dict().items()}
    report = start_from(second, tmp_path / "best.safetensors")
    theirs, ours = first.state_dict(), second.state_dict()
    for head in ("decode_head", "auxiliary_head"):
        name = f"{head}.conv_seg.weight"
        assert torch.equal(ours[name][[0, 2]], theirs[name][[2, 0]])
        assert torch.equal(ours[name][1], before[name][1])
    assert "4 of them of 2 of 3 classes" in report.summary
    assert "fresh" not in report.summary
    other = segmenter(["car"])
    assert "start fresh (the file is for other classes)" in start_from(other, tmp_path / "best.safetensors").summary
