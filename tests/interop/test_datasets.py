"""A Hugging Face data set with our transform, batched by PyTorch. That training reads such sets is tested elsewhere."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import transept
from tests.helpers import build
from transept.data.classification.transforms import preprocessing_of
from transept.tasks.classify import Classifier

datasets = pytest.importorskip("datasets")


def test_transform_and_predict():
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 255, (70 + i, 90, 3), dtype=np.uint8)) for i in range(6)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcdefg"))})
    table = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 2, 3, 4, 5]}, features)
    model = build("xcit_nano_12_p8_224")
    transform = transept.transforms_for(model)

    def prepare(rows: dict[str, list[Any]]) -> dict[str, Any]:
        return {"images": [transform(picture) for picture in rows["image"]], "labels": rows["label"]}

    (batch,) = DataLoader(table.with_transform(prepare), batch_size=6)
    assert batch["images"].shape == (6, 3, 64, 64)
    task = Classifier(model, features["label"].names, preprocessing_of(model)).eval()
    with torch.no_grad():
        logits = task(batch["images"])
        assert task.loss(logits, batch["labels"]).isfinite()
    answers = task.predict(pictures)
    assert torch.equal(task.decode(logits).labels, torch.stack([answer.labels for answer in answers]))
    shown = table.map(lambda row: {"best": int(task.predict([row["image"]])[0].labels[0])})
    assert shown["best"][:] == [int(answer.labels[0]) for answer in answers]
