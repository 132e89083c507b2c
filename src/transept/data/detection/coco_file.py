"""A COCO file read and judged: its pictures, categories and annotations, and what of them cannot be used."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transept.data.detection.masks import mask_problem
from transept.data.images import BadImageError, stored_form
from transept.errors import TranseptError

Box = tuple[float, float, float, float]
"""x1 y1 x2 y2."""


def read_coco(file: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise TranseptError(f"cannot read {str(file)!r} ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise TranseptError(f"{str(file)!r} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise TranseptError(
            f"{str(file)!r} is no COCO file: it holds a {type(content).__name__}, not an object with 'images', "
            "'annotations' and 'categories'"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            what = f"its {key!r} is no list" if key in content else f"it has no {key!r}"
            raise TranseptError(f"{str(file)!r} is no COCO file: {what}")
    return content


def read_categories(entries: list[Any], file: Path) -> tuple[list[int], list[str]]:
    """Ids, ascending, and names."""
    names: dict[int, str] = {}
    for position, entry in enumerate(entries):
        well = isinstance(entry, dict) and isinstance(entry.get("id"), int) and isinstance(entry.get("name"), str)
        if not well:
            raise TranseptError(f"{str(file)!r}: categories[{position}] has no number 'id' or no 'name'")
        if entry["id"] in names:
            raise TranseptError(
                f"{str(file)!r} gives the category id {entry['id']} to {names[entry['id']]!r} and {entry['name']!r}"
            )
        names[entry["id"]] = entry["name"]
    if not names:
        raise TranseptError(f"{str(file)!r} has no categories")
    ids = sorted(names)
    return ids, [names[number] for number in ids]


@dataclass(slots=True)
class Picture:
    """An image of a COCO file with the annotations that can be used."""

    id: int | str
    path: Path
    size: tuple[int, int]
    """Height and width; (0, 0) until the picture is looked at, where the file leaves them out."""
    annotations: list[dict[str, Any]] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    """x1 y1 x2 y2 of each annotation, clipped."""


def picture_problem(picture: Picture, check_size: bool) -> str | None:
    """Why a picture cannot be used; fills in a size that the file leaves out."""
    unknown = picture.size == (0, 0)
    if not check_size and not unknown:
        return None if picture.path.is_file() else "does not exist"
    try:
        (width, height), orientation = stored_form(picture.path)
    except BadImageError as error:
        return error.reason
    upright = (width, height) if orientation >= 5 else (height, width)
    if unknown:
        picture.size = upright
    elif picture.size not in (upright, (height, width)):
        return f"is {upright[1]} x {upright[0]}, not {picture.size[1]} x {picture.size[0]}"
    return None


def annotation_problem(annotation: dict[str, Any], size: tuple[int, int], *, masks: bool) -> tuple[str, str] | None:
    """Why the shape of an annotation cannot be used: to be counted by, and as the end of a sentence.

    `size` is the picture's height and width; with `masks` its mask is judged, too.
    """
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) for x in box)):
        lack = "no bbox" if box is None else f"the bbox {box!r}"
        return "without a bbox", f"has {lack}; give [x, y, width, height]"
    if not all(map(math.isfinite, box)):
        return "boxes not finite", f"has the bbox {box}, which is not finite"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "boxes without area", f"has the bbox {box}, which has no area"
    x1, y1, x2, y2 = clip_box((x, y, x + width, y + height), size)
    if x1 >= x2 or y1 >= y2:
        return (
            "boxes outside their picture",
            f"has the bbox {box}, which lies outside its picture of {size[1]} x {size[0]}",
        )
    problem = mask_problem(annotation.get("segmentation"), size) if masks else None
    return ("unusable masks", problem) if problem else None


def clip_box(box: Box, size: tuple[int, int]) -> Box:
    """Within a picture of this height and width."""
    height, width = size
    x1, y1, x2, y2 = box
    return min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)


def area_of(annotation: dict[str, Any]) -> float:
    """As annotated, in pixels; that of the box where it is not."""
    area = annotation.get("area")
    return area if isinstance(area, int | float) else annotation["bbox"][2] * annotation["bbox"][3]
