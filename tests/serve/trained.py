"""One small task of each kind, as a page would serve it, and a picture to ask it about."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import transept
from tests.helpers import SMALL
from transept.data.classification.transforms import Preprocessing
from transept.data.detection.transforms import DetectionPreprocessing
from transept.tasks.classify import Classifier
from transept.tasks.detect import Detector
from transept.tasks.segment import Segmenter

FEW = 0.6
"""Least score of which the detector below finds a few of its objects: drawing a hundred takes seconds."""
CLASSES = [str(digit) for digit in range(10)]


def classifier(classes: list[str] = CLASSES) -> Classifier:
    torch.manual_seed(0)
    model = transept.create_model("cait_xxs24_224", img_size=32, num_classes=len(classes), **SMALL["cait_xxs24_224"])
    return Classifier(model, classes, Preprocessing(img_size=(32, 32))).eval()


def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return transept.create_segmenter(
        "semantic_fpn", backbone="xcit_nano_12_p16", num_classes=11, classes=["ground", *CLASSES], width=16, depth=2
    ).eval()


def detector() -> Detector:
    """Finds a hundred objects wherever it looks."""
    torch.manual_seed(0)
    task = transept.create_detector(
        "mask_rcnn",
        backbone="xcit_nano_12_p16",
        num_classes=10,
        classes=CLASSES,
        width=32,
        depth=2,
        preprocessing=DetectionPreprocessing(scale=(96, 64)),  # at 1333 x 800 a second's test takes minutes
    )
    for name, value in task.named_parameters():
        if "cls" in name and name.endswith("weight"):
            torch.nn.init.normal_(value, std=0.5)
    return task.eval()


def picture(folder: Path, width: int, height: int) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "picture.png")
    return folder / "picture.png"
