"""A COCO file read and judged: its pictures, categories and annotations, and what of them cannot be used."""

import gc
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transept.data.detection.annotations import Annotations
from transept.data.detection.values import SIZES, NotPlainError, plain_integer
from transept.data.images import BadImageError, stored_form
from transept.errors import TranseptError
from transept.files import is_file, read_bytes

_IMAGE_KEYS = ("id", "file_name", "width", "height")


class _Number(int):
    """Stands for the annotation of this number while a file is read."""


def read_coco(file: Path, *, masks: bool = True) -> dict[str, Any]:
    """The content of a COCO file: lists of `images` and `categories`, and the `annotations` in columns.

    Without `masks` segmentations are left in the file. Each annotation goes into the columns as soon as it is read, so
    that the objects of a large file are never in memory together.

    Raises:
        TranseptError: the file is unreadable, no JSON, or no COCO file.
    """
    annotations = Annotations(masks=masks)

    def keep(entry: dict[str, Any]) -> Any:
        if "image_id" in entry:
            return _Number(annotations.add(entry))
        if "file_name" in entry:
            return {key: entry[key] for key in _IMAGE_KEYS if key in entry}
        return entry

    try:
        with _no_collection():
            content = json.loads(read_bytes(file), object_hook=keep)
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
    entries = content["annotations"]
    if any(type(entry) is not _Number or entry != number for number, entry in enumerate(entries)):
        # Some say of no image that they are of it, or objects within others do.
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict | _Number):
                raise TranseptError(f"{str(file)!r}: annotations[{position}] is no object")
        annotations = Annotations((annotations[e] if type(e) is _Number else e for e in entries), masks=masks)
    elif len(entries) < len(annotations):
        raise TranseptError(f"{str(file)!r} is no COCO file: it has annotations outside of 'annotations'")
    content["annotations"] = annotations
    return content


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the search for cycles, a quarter of the time: there are none in what is read, but millions of objects."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def read_categories(entries: list[Any], file: Path, taken: Counter[str] | None = None) -> tuple[list[int], list[str]]:
    """Ids, ascending, and names. What was taken for what it means is counted in `taken`."""
    taken = Counter() if taken is None else taken
    names: dict[int, str] = {}
    for position, entry in enumerate(entries):
        given, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        try:
            number = plain_integer(given, taken)
        except NotPlainError:
            number, name = 0, None
        if type(name) in (int, float):
            name = str(name)
            taken["names that are numbers"] += 1
        if not isinstance(name, str) or not is_text(name):
            raise TranseptError(f"{str(file)!r}: categories[{position}] has no number 'id' or no 'name'")
        if number in names:
            raise TranseptError(f"{str(file)!r} gives the category id {number} to {names[number]!r} and {name!r}")
        names[number] = name
    if not names:
        raise TranseptError(f"{str(file)!r} has no categories")
    ids = sorted(names)
    return ids, [names[number] for number in ids]


def is_text(name: str) -> bool:
    """JSON can write halves of characters, which no file can hold."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def read_size(entry: dict[str, Any], taken: Counter[str]) -> tuple[int, int]:
    """Height and width of an image; (0, 0) where the file does not say.

    Raises:
        NotPlainError: it says what is no size.
    """
    sides = [entry.get(key) for key in ("height", "width")]
    if None in sides:
        return 0, 0
    height, width = (plain_integer(side, taken) for side in sides)
    if {height, width} <= {0, -1}:  # VIA's, which does not look at pictures
        taken[SIZES] += 1
        return 0, 0
    if height < 1 or width < 1:
        raise NotPlainError
    return height, width


@dataclass(slots=True)
class Picture:
    """An image of a COCO file."""

    id: int | str
    path: Path
    size: tuple[int, int]
    """Height and width; (0, 0) until the picture is looked at, where the file leaves them out."""


MISSING = "does not exist"
"""The problem of a picture without a file; `BadImageError` says the same."""


def picture_problem(picture: Picture, check_size: bool) -> str | None:
    """Why a picture cannot be used; fills in a size that the file leaves out."""
    unknown = picture.size == (0, 0)
    if not check_size and not unknown:
        return None if is_file(picture.path) else MISSING
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
