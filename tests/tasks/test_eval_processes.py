"""`eval` with several processes that read counts each picture exactly once."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import transept
from tests.helpers import SMALL, lively
from transept.data.classification.transforms import Preprocessing
from transept.data.loading import Samples, make_loader


class Numbers(Samples):
    def __len__(self) -> int:
        return 50_000

    def __getitem__(self, index: int) -> int:
        return index


def test_fifty_thousand_samples_each_once_and_in_order():
    numbers: Any = Numbers()
    read = torch.cat(list(make_loader(numbers, 64, workers=2)))
    assert torch.equal(read, torch.arange(50_000))


def test_scores_do_not_depend_on_the_processes(tmp_path: Path):
    draw = np.random.default_rng(0)
    for number in range(23):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{number}.png")
    model = transept.create_model("cait_xxs24_224", num_classes=2, img_size=32, **SMALL["cait_xxs24_224"])
    task = transept.Classifier(lively(model), ["a", "b"], Preprocessing(img_size=(32, 32))).eval()
    alone, several = (
        transept.evaluate(task, tmp_path, split="none", batch_size=4, workers=workers) for workers in (0, 3)
    )
    assert several.metrics == alone.metrics
    assert several.images == alone.images == 23
    assert [several.metrics["per_class"][name]["pictures"] for name in "ab"] == [12, 11]
