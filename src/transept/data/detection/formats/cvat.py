"""CVAT's own XML, "for images 1.1"."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from transept.data.detection.formats.content import (
    ROTATED,
    SPLITS,
    Annotated,
    Contents,
    Shape,
    box_corners,
    check_pixels,
    ellipse,
    numbers_of,
    polygon,
    read_xml,
    turned,
)
from transept.errors import TranseptError
from transept.files import is_file


def read_cvat(root: Path) -> dict[str, Annotated] | None:
    """The XML file of a folder that is CVAT's, with its boxes, polygons, ellipses and masks.

    Splits are the subsets of the project, or files called by them (`train.xml`). Other shapes and tags are left out and
    counted.

    Raises:
        TranseptError: a file cannot be read, there are several, or a shape has no numbers.
    """
    files = {file: tree for file in sorted(root.glob("*.xml")) if (tree := read_xml(file)).tag == "annotations"}
    if not files:
        return None
    if len(files) > 1 and not all(file.stem.lower() in SPLITS for file in files):
        raise TranseptError(
            f"{str(root)!r} has several files of CVAT, {', '.join(f.name for f in files)}; call them train.xml and "
            "val.xml, or keep one"
        )
    names = [label.findtext("name") or "" for tree in files.values() for label in tree.iter("label")]
    contents = Contents(next(iter(files)), root, list(dict.fromkeys(names)) or None)
    for file, tree in files.items():
        for element in tree.iter("image"):
            _add(contents, element, element.get("subset") or SPLITS.get(file.stem.lower(), ""))
    return contents.finish()


def _add(contents: Contents, element: ElementTree.Element, subset: str) -> None:
    name = element.get("name", "")
    split = SPLITS.get(subset.lower(), subset)
    height, width = map(int, numbers_of(element, ("height", "width"), f"image {name!r}"))
    image = contents.add_image(split, _picture(contents.folder, name, subset), (height, width))
    for number, each in enumerate(element, 1):
        place = f"{name}:{each.tag} {number}"
        shape = _shape(each, (height, width), place, contents)
        if shape is None:
            contents.left_out[f"{each.tag} shapes"] += 1
        else:
            contents.add_object(split, image, each.get("label", ""), shape, place)


def _picture(root: Path, name: str, subset: str) -> str:
    places = [f"images/{subset}/{name}", f"images/{name}", name]
    return next((place for place in places if is_file(root / place)), name)


def _shape(each: ElementTree.Element, size: tuple[int, int], place: str, contents: Contents) -> Shape | None:
    degrees = numbers_of(each, ("rotation",), place)[0] if "rotation" in each.attrib else 0
    if each.tag == "box":
        x1, y1, x2, y2 = numbers_of(each, ("xtl", "ytl", "xbr", "ybr"), place)
        if not degrees:
            return Shape([x1, y1, x2 - x1, y2 - y1])
        contents.taken[ROTATED] += 1
        return polygon(turned(box_corners(x1, y1, x2, y2), ((x1 + x2) / 2, (y1 + y2) / 2), degrees))
    if each.tag == "ellipse":
        x, y, across, down = numbers_of(each, ("cx", "cy", "rx", "ry"), place)
        return ellipse((x, y), (across, down), degrees)
    if each.tag == "polygon":
        try:
            pairs = [tuple(map(float, pair.split(","))) for pair in each.get("points", "").split(";")]
            return polygon((x, y) for x, y in pairs)
        except ValueError:
            raise TranseptError(f"{place} has the points {each.get('points')!r}; they are 'x,y;x,y;...'") from None
    return _mask(each, size, place) if each.tag == "mask" else None


def _mask(each: ElementTree.Element, size: tuple[int, int], place: str) -> Shape:
    """Its run lengths go along the rows of its box, COCO's down the columns of the picture."""
    left, top, width, height = map(int, numbers_of(each, ("left", "top", "width", "height"), place))
    try:
        check_pixels(size)
    except TranseptError as error:
        raise TranseptError(f"{place}: {error}") from error
    try:
        runs = [int(run) for run in each.get("rle", "").split(",")]
        if min(left, top, width, height, *runs) < 0 or sum(runs) != width * height:
            raise ValueError(runs)
        inside = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
        whole = np.zeros(size, np.uint8)
        whole[top : top + height, left : left + width] = inside
    except ValueError:
        raise TranseptError(f"{place} has run lengths that do not fill its {width} x {height} pixels") from None
    flat = whole.ravel(order="F")
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    counts = np.diff(ends).tolist()
    return Shape([left, top, width, height], {"size": list(size), "counts": [0, *counts] if flat[0] else counts})
