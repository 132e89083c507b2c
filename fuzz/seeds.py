"""Writes the inputs that fuzzing starts from, with the makers of the tests' files: `python -m fuzz.seeds FOLDER`."""

import json
import sys
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.data.test_values import save_dicom, save_geotiff, save_png

from fuzz.readers import PLACES, TABLES
from transept.training.options.pages import read_recipe, recipe_names
from transept.weights.files.writing import write_state_dict

FORMATS = Path(__file__).parents[1] / "tests" / "data" / "detection" / "formats"


def weights(folder: Path) -> None:
    state = {"head.weight": torch.ones(3, 2), "head.bias": torch.zeros(3), "n": torch.tensor(4)}
    save_file(state, folder / "a.safetensors")
    torch.save({"model": state, "epoch": 3}, folder / "a.pth")
    torch.save({"state_dict": state}, folder / "old.pth", _use_new_zipfile_serialization=False)
    write_state_dict(folder / "a.pdparams", state)


def images(folder: Path) -> None:
    draw = np.random.default_rng(0)
    deep = draw.integers(0, 4096, (3, 8, 9), dtype=np.uint16)
    picture = Image.fromarray((deep >> 4).astype(np.uint8).transpose(1, 2, 0))
    for ending in ("png", "jpg", "gif", "bmp", "webp", "ppm", "tif"):
        picture.save(folder / f"a.{ending}")
    picture.convert("P").save(folder / "p.png")
    save_png(folder / "deep.png", deep.transpose(1, 2, 0), 12)
    save_geotiff(folder / "geo.tif", deep, nodata=0)
    save_dicom(folder / "a.dcm", deep[0], WindowCenter=2048, WindowWidth=4096)
    for compression in (None, "zlib"):
        tifffile.imwrite(folder / f"{compression}.tif", deep, planarconfig="separate", compression=compression)
    tifffile.imwrite(folder / "signed.tif", deep[0].astype(np.int32))


def annotations(folder: Path) -> None:
    files = [*FORMATS.rglob("*.json"), *FORMATS.rglob("*.xml"), *FORMATS.rglob("*.yaml"), *FORMATS.rglob("labels/*/*")]
    for number, file in enumerate(files):
        for place, name in enumerate(PLACES):
            if Path(name).suffix == file.suffix:
                (folder / f"{number}-{place}").write_bytes(bytes([place]) + file.read_bytes())


def coco(folder: Path) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 20, 10], "area": 200.5, "iscrowd": 0}
    for name, segmentation in (
        ("polygon", [[1, 2, 20, 2, 20, 12]]),
        ("runs", {"size": [40, 60], "counts": [100, 300, 2000]}),
        ("text", {"size": [40, 60], "counts": "T3d0`0"}),
    ):
        page = {
            "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [box | {"segmentation": segmentation}],
        }
        (folder / name).write_text(json.dumps(page))


def recipes(folder: Path) -> None:
    import yaml

    for name in ("digits", "quick-det", "segment/upernet_crossformer_small_160k"):
        if name in recipe_names():
            (folder / Path(name).name).write_text(yaml.safe_dump(read_recipe(name), sort_keys=False))


def labels(folder: Path) -> None:
    texts = (
        "0: road\n7: sky\n",
        "1 2 3 road\n",
        "name,r,g,b\nroad,1,2,3\n",
        "road:1,2,3::\n",
        "Idx,Name\n1,wall;door\n",
    )
    for place, text in enumerate(texts[: len(TABLES)]):
        (folder / str(place)).write_bytes(bytes([place]) + text.encode())


def main() -> None:
    for write in (weights, images, annotations, coco, recipes, labels):
        folder = Path(sys.argv[1], write.__name__)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)


if __name__ == "__main__":
    main()
