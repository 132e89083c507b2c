"""Small tasks and pictures to label, and the rows that were written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import transept
from tests.helpers import SMALL, lively
from transept.data.classification.transforms import Preprocessing
from transept.data.segmentation.transforms import SegmentationPreprocessing
from transept.labelling.job import plan_job, write_shards
from transept.labelling.pictures import find_pictures
from transept.tasks.classify import Classifier
from transept.tasks.segment import Segmenter
from transept.tasks.task import Task

NAME = "cait_xxs24_224"
BAD = 7
"""The number of the picture that is none."""


def classifier() -> Classifier:
    model = transept.create_model(NAME, num_classes=4, img_size=32, **SMALL[NAME])
    return Classifier(lively(model), ["ant", "bee", "cat", "dog"], Preprocessing(img_size=(32, 32))).eval()


def segmenter() -> Segmenter:
    name = "xcit_nano_12_p8_224"
    preprocessing = SegmentationPreprocessing(scale=(48, 48))
    made: Any = transept.create_segmenter(
        "semantic_fpn", backbone=name, num_classes=3, preprocessing=preprocessing, **SMALL[name]
    )
    return lively(made).eval()  # pyright: ignore[reportReturnType]


def write_pictures(folder: Path, count: int = 25, *, sizes: int = 3) -> list[Path]:
    """Noise of few sizes, one file of which is no picture."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    paths = [folder / f"{i:03d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        height, width = 30 + 5 * (i % sizes), 40 + 3 * (i % sizes)
        coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
    paths[BAD].write_bytes(b"no picture")
    return paths


def label(task: Task, source: Path, folder: Path, inference: Any, *, workers: int = 0, **options: Any) -> int:
    """As the verbs do; gives the number of pictures that were looked at."""
    job, missing = plan_job(task, find_pictures([str(source)]), folder, inference, **{"form": "eager"} | options)
    looked: list[int] = []
    write_shards(job, missing, workers=workers, done=looked.append)
    return sum(looked)


def rows(folder: Path) -> list[dict[str, Any]]:
    """As whoever reads the folder as one table sees them."""
    parquet = pytest.importorskip("pyarrow.parquet")
    return parquet.read_table(folder).to_pylist()
