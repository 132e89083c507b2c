"""A trained detector on a picture that is larger than those it learned from, by tiles."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

import transept
from transept.cli.main import main

SIDE = 96
OPTIONS = (
    "--detect.method retinanet --detect.preprocessing.scale [96,96] --detect.width 64 --batch_size 4 --ema.decay 0.5 "
    "--schedule.epochs 12 --schedule.warmup_epochs 1 --optimizer.lr 5e-3 --model.options.embed_dims [16,16,16,16] "
    "--model.options.depths [1,1,1,1] --model.options.num_heads [2,2]"
)


def scene(seed: int) -> tuple[Image.Image, list[int]]:
    """A bright square on noise, and its box x1 y1 x2 y2."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(70, 110, (SIDE, SIDE, 3)).astype(np.uint8)
    side = int(rng.integers(18, 30))
    x, y = rng.integers(8, SIDE - side - 8, 2).tolist()
    pixels[y : y + side, x : x + side] = (240, 220, 60)
    return Image.fromarray(pixels), [x, y, x + side, y + side]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("squares")
    for half, count in (("train", 48), ("val", 8)):
        (root / half).mkdir()
        images, annotations = [], []
        for i in range(count):
            picture, (x1, y1, x2, y2) = scene(i + 1000 * (half == "val"))
            picture.save(root / half / f"{i}.png")
            images.append(dict(id=i, file_name=f"{i}.png", width=SIDE, height=SIDE))
            box = dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), iscrowd=0)
            annotations.append(dict(id=i + 1, image_id=i, category_id=0) | box)
        page = dict(images=images, annotations=annotations, categories=[dict(id=0, name="square")])
        (root / f"{half}.json").write_text(json.dumps(page))
    assert main(["train", "quick-det", "--data", str(root), "--out", str(root / "run"), *OPTIONS.split()]) == 0
    return root / "run"


@pytest.mark.slow
def test_objects_of_a_large_picture(run: Path):
    """What is found in small pictures is found in their mosaic, and what lies on the border of a tile once."""
    detector = transept.load(run)
    scenes = [scene(2000 + i) for i in range(12)]
    mosaic, truth = Image.new("RGB", (4 * SIDE, 3 * SIDE)), []
    for i, (picture, (x1, y1, x2, y2)) in enumerate(scenes):
        x, y = SIDE * (i % 4), SIDE * (i // 4)
        mosaic.paste(picture, (x, y))
        truth.append([x1 + x, y1 + y, x2 + x, y2 + y])
    boxes = torch.tensor(truth, dtype=torch.float32)
    borders = torch.arange(57, 4 * SIDE, 57)  # six tenths of 96
    on_border = ((boxes[:, :1] < borders) & (borders < boxes[:, 2:3])).any(dim=1)
    assert int(on_border.sum()) >= 3
    small = transept.predict(detector, [picture for picture, _ in scenes], score=0.5)
    assert [len(objects.boxes) for objects in small] == [1] * 12
    (found,) = transept.predict(detector, mosaic, score=0.5, tile=SIDE, overlap=0.4)
    overlaps = box_iou(boxes, found.boxes)
    assert (overlaps > 0.5).sum(dim=1).tolist() == [1] * 12
    assert len(found.boxes) == 12
    (whole,) = transept.predict(detector, mosaic, score=0.5)
    assert len(whole.boxes) < 6  # scaled down to a quarter
