"""Small data sets, recipes and runs, sound ones, for tests that then put something wrong into them."""

import json
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 32
PAGE: dict[str, Any] = {
    "batch_size": 2,
    "model": {"name": "xcit_nano_12_p8_224", "img_size": 32, "options": {"depth": 1, "embed_dim": 32}},
    "schedule": {"epochs": 1, "warmup_epochs": 0},
}
"""A recipe that trains in a second."""


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def class_folders(root: Path) -> Path:
    for name in "ab":
        for i in range(3):
            picture(root / name / f"{i}.png")
    return root


def table(root: Path) -> Path:
    class_folders(root)
    rows = [f"{name}/{i}.png,{name}" for name in "ab" for i in range(3)]
    (root / "table.csv").write_text("\n".join(["path,label", *rows]))
    return root / "table.csv"


def coco_page() -> dict[str, Any]:
    box = {"bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0, "segmentation": [[4, 4, 24, 4, 24, 24, 4, 24]]}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(1, 5)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1 + i % 2} | box for i in range(1, 5)],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "dust"}],
    }


def coco(root: Path, page: dict[str, Any] | None = None) -> Path:
    for i in range(1, 5):
        picture(root / "images" / f"{i}.png")
    (root / "coco.json").write_text(json.dumps(coco_page() if page is None else page))
    return root / "coco.json"


def masks(root: Path) -> Path:
    for split in ("train", "val"):
        for i in range(2):
            picture(root / "images" / split / f"{i}.png")
            (root / "masks" / split).mkdir(parents=True, exist_ok=True)
            mask = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 2
            Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / split / f"{i}.png")
    (root / "classes.txt").write_text("0 ground\n1 cell\n")
    return root


def yolo(root: Path, *, first: str = "images/0.png", names: str = "[cell, dust]") -> Path:
    for i in range(3):
        picture(root / "images" / f"{i}.png")
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{i}.txt").write_text("0 .5 .5 .3 .3\n")
    (root / "train.txt").write_text(f"{first}\nimages/1.png\n")
    (root / "val.txt").write_text("images/2.png\n")
    (root / "data.yaml").write_text(f"names: {names}\ntrain: train.txt\nval: val.txt\n")
    return root


def voc(root: Path, *, first: str = "a") -> Path:
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    box = "<bndbox><xmin>3</xmin><ymin>3</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
    for name in "abc":
        picture(root / "JPEGImages" / f"{name}.png")
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><object><name>cell</name>{box}</object></annotation>"
        )
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"{first}\nb\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("c\n")
    return root


def labelme(root: Path, *, first: str = "0.png") -> Path:
    shape = {"label": "cell", "points": [[3, 3], [30, 3], [30, 30]], "shape_type": "polygon"}
    for i in range(3):
        picture(root / f"{i}.png")
        page = {"version": "5", "flags": {}, "shapes": [shape], "imageHeight": SIDE, "imageWidth": SIDE}
        (root / f"{i}.json").write_text(json.dumps(page | {"imagePath": f"{i}.png" if i else first}))
    return root


def cvat(root: Path, *, first: str = "0.png") -> Path:
    box = '<box label="cell" xtl="3" ytl="3" xbr="30" ybr="30"/>'
    images = [f'<image name="{first if i == 0 else f"{i}.png"}" height="32" width="32">{box}</image>' for i in range(3)]
    for i in range(3):
        picture(root / f"{i}.png")
    (root / "annotations.xml").write_text(f"<annotations>{''.join(images)}</annotations>")
    return root


def label_studio(root: Path, *, first: str = "0.png") -> Path:
    value = {"x": 10, "y": 10, "width": 30, "height": 30, "rectanglelabels": ["cell"]}
    result = {"type": "rectanglelabels", "original_width": SIDE, "original_height": SIDE, "value": value}
    tasks = [
        {"id": i, "data": {"image": f"{i}.png" if i else first}, "annotations": [{"result": [result]}]}
        for i in range(3)
    ]
    for i in range(3):
        picture(root / f"{i}.png")
    (root / "project.json").write_text(json.dumps(tasks))
    return root


def shards(root: Path, *, member: str = "s", label: Callable[[int], str] = lambda i: str(i % 2)) -> Path:
    content = picture(root.with_suffix(".png")).read_bytes()
    root.mkdir()
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}-0.tar", "w") as archive:
            for i in range(4):
                for ending, data in (("png", content), ("cls", label(i).encode())):
                    info = tarfile.TarInfo(f"{member}{i}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, BytesIO(data))
    return root
