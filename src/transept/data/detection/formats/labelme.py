"""LabelMe's JSON, a file a picture."""

import json
import math
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from transept.data.detection.formats.content import (
    SPLITS,
    Annotated,
    Contents,
    Shape,
    ellipse,
    filled,
    frame,
    opened,
    polygon,
)
from transept.data.images import BadImageError, read_mask
from transept.errors import TranseptError
from transept.files import files_below, read_text


def read_labelme(root: Path) -> dict[str, Annotated] | None:
    """JSON files with `shapes`, in folders of splits or anywhere in the folder.

    Rectangles, polygons, circles and masks are objects; polygons of one `group_id` and label are one, as in LabelMe's
    own conversion. Other shapes are left out and counted.

    Raises:
        TranseptError: a file cannot be read, or a shape has no points.
    """
    files = sorted(file for file in files_below(root) if file.suffix.lower() == ".json")
    pages = {file: page for file in files if (page := _page(file)) is not None}
    if not pages:
        return None
    contents = Contents(root, root)
    for file, page in pages.items():
        split = next((SPLITS[part.lower()] for part in file.relative_to(root).parts[:-1] if part.lower() in SPLITS), "")
        image = contents.add_image(split, _picture(root, file, page), _size(page))
        for place, label, shape in _objects(page, file.relative_to(root).as_posix(), contents):
            contents.add_object(split, image, label, shape, place)
    return contents.finish()


def _page(file: Path) -> dict[str, Any] | None:
    with opened(file) as start:
        # Large files of other forms are not parsed: LabelMe's begin with one of its keys.
        head = start.read(4096)
    if not any(key in head for key in (b'"shapes"', b'"flags"', b'"version"')):
        return None
    try:
        page = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise TranseptError(f"{str(file)!r} is not JSON ({error})") from error
    return page if isinstance(page, dict) and isinstance(page.get("shapes"), list) else None


def _picture(root: Path, file: Path, page: dict[str, Any]) -> str:
    """`imagePath` leads from the file's folder, often with the separators of Windows."""
    name = str(page.get("imagePath") or "").replace("\\", "/")
    if Path(name).is_absolute() or name[1:3] == ":/":
        return name
    return (file.parent.relative_to(root) / name).as_posix()


def _size(page: dict[str, Any]) -> tuple[int, int] | None:
    height, width = page.get("imageHeight"), page.get("imageWidth")
    return (height, width) if height and width else None


def _objects(page: dict[str, Any], file: str, contents: Contents) -> list[tuple[str, str, Shape]]:
    objects: list[tuple[str, str, Shape]] = []
    groups: dict[tuple[str, Any], int] = {}
    for number, each in enumerate(page["shapes"], 1):
        place = f"{file}:shape {number}"
        try:
            label, group, shape = str(each["label"]), each.get("group_id"), _shape(each, page)
        except BadImageError as error:
            raise TranseptError(f"{place}: its mask {error.reason}") from error
        except TranseptError as error:
            raise TranseptError(f"{place}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError) as error:
            raise TranseptError(f"{place} is no shape of LabelMe ({error!r})") from error
        if shape is None:
            contents.left_out[f"shapes of the type {each.get('shape_type')!r}"] += 1
        elif group is None or not isinstance(shape.segmentation, list) or (label, group) not in groups:
            if group is not None and isinstance(shape.segmentation, list):
                groups[label, group] = len(objects)
            objects.append((place, label, shape))
        else:
            first, _, whole = objects[groups[label, group]]
            objects[groups[label, group]] = first, label, _joined(whole, shape)
    return objects


def _shape(each: dict[str, Any], page: dict[str, Any]) -> Shape | None:
    kind = each.get("shape_type") or "polygon"
    if kind not in ("rectangle", "polygon", "circle", "mask"):
        return None
    points = [(float(x), float(y)) for x, y in each["points"]]
    if kind == "mask":  # a PNG of the pixels between the two points
        mask = np.asarray(read_mask(BytesIO(b64decode(each["mask"], validate=True)))).astype(bool)
        return filled(mask, (int(page["imageHeight"]), int(page["imageWidth"])), (int(points[0][0]), int(points[0][1])))
    if kind == "rectangle":
        return Shape(frame(points))
    if kind == "circle":
        center, edge = points
        radius = math.dist(center, edge)
        return ellipse(center, (radius, radius))
    return polygon(points)


def _joined(one: Shape, other: Shape) -> Shape:
    corners = [(x, y) for x, y, _, _ in (one.box, other.box)]
    corners += [(x + width, y + height) for x, y, width, height in (one.box, other.box)]
    return Shape(frame(corners), one.segmentation + other.segmentation)
