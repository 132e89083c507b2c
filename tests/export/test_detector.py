"""Exported detectors find what eager ones find, on real photographs, and what cannot be is said."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import transept
from tests.tasks.test_detect import _sharpen
from transept.data.detection_transforms import DetectionPreprocessing, collate_detections, detection_eval_transform
from transept.data.images import read_image
from transept.errors import TranseptError, TranseptWarning, UsageError
from transept.export.detector import compare_detections, default_size, export_detector, prepare
from transept.export.onnx import METADATA, onnx_runner, pt2_runner, sample_picture
from transept.heads.instances import Detections
from transept.ops.masks import paste_masks
from transept.tasks.detect import METHODS, Detector

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TINY = dict(backbone="xcit_nano_12_p8", depth=1, embed_dim=32, num_heads=2)
FAMILIES: dict[str, dict[str, Any]] = {
    "cat_tiny": dict(depths=(1, 1, 1, 1)),
    "cabvit_h_l1": dict(depths=(1, 1, 2, 1)),
    "crossformer_tiny": dict(depths=(1, 1, 2, 1)),
    "xcit_nano_12_p16": dict(depth=1),
    "cait_xxs24": dict(depth=1),
}
SIZE = (128, 192)


def a_detector(method: str, backbone: str = "", **options: Any) -> Detector:
    """Random weights, sharp enough that dozens of objects are found."""
    options = options or {name: value for name, value in TINY.items() if name != "backbone"}
    detector = transept.create_detector(
        method, backbone=backbone or str(TINY["backbone"]), num_classes=3, width=64, **options
    )
    _sharpen(detector)
    return detector.eval()


def check(detector: Detector, folder: Path, picture: Image.Image, size: tuple[int, int] = SIZE) -> None:
    """What issue 6 asks, written out: counts and labels equal, boxes to 1e-2 px, scores to 1e-4, masks to 1e-3."""
    exported = export_detector(detector, folder, img_size=size, picture=picture)
    inputs = prepare(picture, detector.preprocessing, size)
    with torch.no_grad():
        (expected,) = detector.decode(detector(inputs.images), inputs.sizes, inputs.original_sizes)
    assert len(expected.boxes) > 5
    assert len(expected.scores.unique()) > 5
    for kind, runner in (("onnx", onnx_runner), ("pt2", pt2_runner)):
        found = Detections(*runner(exported.files[kind])(inputs))
        assert exported.errors[kind]["detections"] == len(found.boxes) == len(expected.boxes)
        assert torch.equal(found.labels, expected.labels)
        assert (found.boxes - expected.boxes).abs().max() <= 1e-2
        assert (found.scores - expected.scores).abs().max() <= 1e-4
        assert (found.masks is not None) == detector.has_masks == ("masks" in exported.errors[kind])
        if found.masks is not None and expected.masks is not None:
            assert (found.masks - expected.masks).abs().max() <= 1e-3
        print(detector.method, kind, exported.errors[kind])


@pytest.mark.parametrize("method", ["atss", "mask_rcnn"])
def test_a_photograph(method: str, tmp_path: Path):
    check(a_detector(method), tmp_path, sample_picture())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_photographs_of_coco(method: str, tmp_path: Path, shared_data: Path):
    pictures = sorted((shared_data / "coco_mini" / "val2017").glob("*.jpg"))[:2]
    assert len(pictures) == 2
    detector = a_detector(method)
    for path in pictures:
        check(detector, tmp_path, read_image(path), (320, 416))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_family(method: str, backbone: str, tmp_path: Path):
    check(a_detector(method, backbone, **FAMILIES[backbone]), tmp_path, sample_picture())
