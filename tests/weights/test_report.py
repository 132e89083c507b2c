"""Every tensor that was not simply taken has a reason to decide by, beside the words."""

from pathlib import Path
from typing import Any

import torch

import transept
from transept.weights.report import LoadReport, Reason

SMALL: dict[str, Any] = dict(depth=1, img_size=64)


def load(folder: Path, source: dict[str, Any], **model: Any) -> LoadReport:
    """A small XCiT's weights, without BatchNorm's counters, loaded into another."""
    state = transept.create_model("xcit_nano_12_p8_224", **SMALL, **source).state_dict()
    path = folder / "weights.pth"
    torch.save({name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}, path)
    return transept.load_weights(transept.create_model("xcit_nano_12_p8_224", **SMALL, **model), path)


def reasons(report: LoadReport, action: str) -> dict[str, Reason | None]:
    """By the first part of the name; counters, which every model has, apart."""
    keys = [key for key in report.keys if action in key.actions and key.reason is not Reason.COUNTER]
    return {(key.model or key.file[0]).split(".")[0]: key.reason for key in keys}


def test_reasons_of_a_classifier(tmp_path: Path):
    report = load(tmp_path, dict(num_classes=4), num_classes=10)
    assert reasons(report, "dropped") == reasons(report, "missing") == {"head": Reason.OTHER_CLASSES}
    assert [key.model for key in report.keys if key.fresh] == ["head.weight", "head.bias"]
    assert all(key.why for key in report.keys if key.reason)
    assert reasons(load(tmp_path, dict(num_classes=0), num_classes=10), "missing") == {"head": Reason.NO_CLASSIFIER}
    report = load(tmp_path, dict(num_classes=4), num_classes=0)
    assert reasons(report, "dropped") == {"head": Reason.NO_CLASSIFIER}
    assert not [key for key in report.keys if key.fresh], "a counter starts at zero, but nobody trains it"


def test_reasons_of_a_pyramid(tmp_path: Path):
    report = load(tmp_path, dict(num_classes=4), features_only=True)
    assert set(reasons(report, "dropped").values()) == {Reason.NO_CLASSIFIER}
    assert set(reasons(report, "missing").values()) == {Reason.PYRAMID_LEVEL}
    segmenter = transept.create_segmenter("upernet", backbone="xcit_nano_12_p8", num_classes=3, width=16, **SMALL)
    report = transept.load_weights(segmenter, tmp_path / "weights.pth")
    assert reasons(report, "missing")["decode_head"] is Reason.BACKBONE_ALONE
