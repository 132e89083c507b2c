"""Writes the files of this folder with the tools themselves, each in its own environment:

    uv run --no-project --with datumaro==1.13.12 tests/data/detection/formats/make.py yolo cvat voc_detection
    uv run --no-project --with datumaro==1.13.12 tests/data/detection/formats/make.py voc_segmentation
    uv run --no-project --with pascal-voc-writer==0.1.4 tests/data/detection/formats/make.py voc_writer
    uv run --no-project --with labelme==6.3.1 tests/data/detection/formats/make.py labelme labelme_masks
    uv run --no-project --with label-studio-sdk==2.1.2 tests/data/detection/formats/make.py label_studio

Two pictures, 60 x 40: `a` has a cat in x 8..38, y 9..29 and a polygon of a dog; `b` has nothing. Pictures are not kept:
the tests make them.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CAT = (8, 9, 38, 29)
DOG = [(40, 10), (55, 10), (55, 30), (48, 36), (40, 30)]


def from_datumaro(form: str, exporter: str) -> None:
    import numpy as np
    from datumaro.components.annotation import AnnotationType, Bbox, LabelCategories, Mask, Polygon
    from datumaro.components.dataset import Dataset
    from datumaro.components.dataset_base import DatasetItem
    from datumaro.components.media import Image

    x1, y1, x2, y2 = CAT
    cat = Bbox(x1, y1, x2 - x1, y2 - y1, label=0, id=1, group=1)
    dog = Polygon([side for corner in DOG for side in corner], label=1, id=2, group=2)
    if exporter == "yolo_ultralytics" or exporter == "voc_detection":  # these write boxes alone
        dog = Bbox(*dog.get_bbox(), label=1, id=2, group=2)
    if exporter == "voc_segmentation":
        left, right = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
        left[y1:y2, x1:x2] = right[10:30, 40:55] = True
        cat, dog = Mask(left, label=0, id=1, group=1), Mask(right, label=1, id=2, group=2)
    pixels = np.zeros((40, 60, 3), np.uint8)
    in_b = [dog] if exporter == "voc_segmentation" else []  # pictures without masks are not listed
    items = [
        DatasetItem("a", subset="train", media=Image.from_numpy(pixels), annotations=[cat, dog]),
        DatasetItem("b", subset="val", media=Image.from_numpy(pixels), annotations=in_b),
    ]
    labels = LabelCategories.from_iterable(["cat", "dog"])
    with tempfile.TemporaryDirectory() as folder:
        data = Dataset.from_iterable(items, categories={AnnotationType.label: labels})
        data.export(folder, exporter, save_media=True)
        keep(Path(folder), form)


def keep(folder: Path, form: str) -> None:
    """The text files."""
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".txt", ".xml", ".yaml", ".json") or file.parent.name == "SegmentationClass":
            target = HERE / form / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def voc_writer() -> None:
    """VOC's own convention: pixels counted from 1, the last one within the box."""
    from pascal_voc_writer import Writer

    x1, y1, x2, y2 = CAT
    writer = Writer("/data/a.png", 60, 40)
    writer.addObject("cat", x1 + 1, y1 + 1, x2, y2)
    writer.addObject("dog", 41, 11, 55, 36, difficult=1)
    folder = HERE / "voc_writer" / "Annotations"
    folder.mkdir(parents=True, exist_ok=True)
    writer.save(str(folder / "a.xml"))
    Writer("/data/b.png", 60, 40).save(str(folder / "b.xml"))


def labelme() -> None:
    import numpy as np
    from labelme._label_file import LabelFile
    from labelme.utils import img_arr_to_b64

    x1, y1, x2, y2 = CAT
    shared = {"group_id": None, "flags": {}, "description": "", "mask": None, "other_data": {}}
    shapes = [
        shared | {"label": "cat", "points": [[x2, y1], [x1, y2]], "shape_type": "rectangle"},
        shared | {"label": "dog", "points": [list(corner) for corner in DOG], "shape_type": "polygon"},
        shared | {"label": "cat", "points": [[20, 20], [20, 25]], "shape_type": "circle"},
        shared | {"label": "dog", "points": [[5, 5]], "shape_type": "point"},
        shared | {"label": "cat", "points": [[0, 0], [4, 0], [4, 4]], "shape_type": "polygon", "group_id": 7},
        shared | {"label": "cat", "points": [[10, 0], [14, 0], [14, 4]], "shape_type": "polygon", "group_id": 7},
    ]
    painted = np.array([[0, 1, 0], [1, 1, 1]], bool)  # the pixels between the points, both within
    mask = {"points": [[50, 2], [52, 3]], "shape_type": "mask", "mask": img_arr_to_b64(painted.astype(np.uint8))}
    shapes.append(shared | {"label": "dog"} | mask)
    for split, name, found in (("train", "a", shapes), ("val", "b", [])):
        file = HERE / "labelme" / split / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        LabelFile().save(str(file), found, f"{name}.png", 40, 60)


def labelme_masks() -> None:
    """The masks and the list of classes that LabelMe's `labelme2voc.py` makes, of the library's functions."""
    import numpy as np
    from labelme.utils import lblsave, shapes_to_label

    names = ["_background_", "cat", "dog"]
    values = {"__ignore__": -1} | {name: value for value, name in enumerate(names)}
    folder = HERE / "labelme_masks"
    (folder / "SegmentationClass").mkdir(parents=True, exist_ok=True)
    (folder / "class_names.txt").write_text("\n".join(names))
    for split, name in (("train", "a"), ("val", "b")):
        shapes = json.loads((HERE / "labelme" / split / f"{name}.json").read_text())["shapes"]
        shapes = [shape for shape in shapes if shape["shape_type"] in ("rectangle", "polygon")]
        unsure = {"label": "__ignore__", "points": [[0, 35], [5, 39]], "shape_type": "rectangle", "group_id": None}
        mask, _ = shapes_to_label((40, 60, 3), [*shapes, unsure], values)
        lblsave(str(folder / "SegmentationClass" / f"{name}.png"), mask.astype(np.uint8))


def label_studio() -> None:
    """Results that the labelling interface finds valid, in tasks as the server exports them, and its conversion."""
    import numpy as np
    from label_studio_sdk.converter import Converter, brush
    from label_studio_sdk.label_interface import LabelInterface

    config = (
        '<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image"><Label value="cat"/>'
        '</RectangleLabels><PolygonLabels name="outline" toName="image"><Label value="dog"/></PolygonLabels>'
        '<BrushLabels name="brush" toName="image"><Label value="fur"/></BrushLabels></View>'
    )
    x1, y1, x2, y2 = CAT
    place = {"x": x1 / 0.6, "y": y1 / 0.4, "width": (x2 - x1) / 0.6, "height": (y2 - y1) / 0.4, "rotation": 0}
    shared = {"to_name": "image", "original_width": 60, "original_height": 40, "image_rotation": 0}
    cat = {"id": "r1", "from_name": "box", "type": "rectanglelabels", "value": place | {"rectanglelabels": ["cat"]}}
    points = [[x / 0.6, y / 0.4] for x, y in DOG]
    dog = {"id": "r2", "from_name": "outline", "type": "polygonlabels"}
    dog["value"] = {"points": points, "closed": True, "polygonlabels": ["dog"]}
    dog_place = {"x": 40 / 0.6, "y": 10 / 0.4, "width": 15 / 0.6, "height": 26 / 0.4, "rotation": 0}
    dog_box = {"from_name": "box", "type": "rectanglelabels", "value": dog_place | {"rectanglelabels": ["dog"]}}
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:45] = mask[0, 0] = mask[39, 59] = 255
    fur = {"id": "r3", "from_name": "brush", "type": "brushlabels"}
    fur["value"] = {"format": "rle", "rle": brush.mask2rle(mask), "brushlabels": ["fur"]}
    tasks = [
        {
            "id": 1,
            "data": {"image": "/data/upload/1/0f1e2d3c-a.png"},
            "annotations": [{"id": 11, "result": [shared | cat, shared | dog, shared | fur]}],
        },
        {"id": 2, "data": {"image": "/data/local-files/?d=set/b.png"}, "annotations": [{"id": 12, "result": []}]},
        {"id": 3, "data": {"image": "/data/upload/1/c.png"}, "annotations": []},
    ]
    interface = LabelInterface(config)
    for task in tasks:
        assert all(interface.validate_annotation({"result": each["result"]}) for each in task["annotations"])
    folder = HERE / "label_studio"
    folder.mkdir(exist_ok=True)
    file = folder / "project-1.json"
    file.write_text(json.dumps(tasks, indent=1))
    with tempfile.TemporaryDirectory() as out:
        converter = Converter(config, project_dir=None, download_resources=False)
        converter.convert_to_coco(str(file), out, is_dir=False)
        coco = json.loads((Path(out) / "result.json").read_text())
        converter.convert_to_json_min(str(file), out, is_dir=False)
        (HERE / "label_studio_min").mkdir(exist_ok=True)
        shutil.copyfile(Path(out) / "result.json", HERE / "label_studio_min" / "project-1.json")
        # Its Pascal VOC and YOLO: boxes alone, of pictures that have some.
        for result in tasks[0]["annotations"][0]["result"]:
            if result["type"] != "rectanglelabels":
                result |= dog_box | shared
        tasks[0]["annotations"][0]["result"].pop()
        file = Path(out) / "boxes.json"
        file.write_text(json.dumps(tasks))
        boxes = Converter(config.replace('"cat"/>', '"cat"/><Label value="dog"/>'), project_dir=None)
        boxes.convert_to_voc(str(file), str(HERE / "label_studio_voc"), is_dir=False)
        boxes.convert_to_yolo(str(file), str(HERE / "label_studio_yolo"), is_dir=False)
    print("Label Studio's own conversion:", [each["bbox"] for each in coco["annotations"]])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if name in ("voc_writer", "labelme", "labelme_masks", "label_studio"):
            globals()[name]()
        else:
            from_datumaro(name, {"yolo": "yolo_ultralytics"}.get(name, name))
