"""Label Studio's JSON and JSON-MIN: rectangles, polygons and ellipses in percent of a picture, and painted masks."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from transept.data.detection.formats.content import (
    ROTATED,
    Annotated,
    Contents,
    Shape,
    box_corners,
    check_pixels,
    ellipse,
    filled,
    opened,
    polygon,
    turned,
)
from transept.data.images import EXTENSIONS
from transept.errors import TranseptError
from transept.files import read_text

_WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""What a result raises that is built in another way than Label Studio builds them."""


def read_label_studio(root: Path) -> dict[str, Annotated] | None:
    """The one JSON file of a folder that is an export of Label Studio ("JSON" or "JSON-MIN").

    Tasks that nobody annotated, and what is neither rectangle, polygon, ellipse nor mask, are left out and counted.

    Raises:
        TranseptError: a file cannot be read, there are several, a task has several annotations, or a result lacks what
            a shape needs.
    """
    files = {file: page for file in sorted(root.glob("*.json")) if _is_export(page := _page(file))}
    if not files:
        return None
    if len(files) > 1:
        raise TranseptError(f"{str(root)!r} has several exports of Label Studio: {', '.join(f.name for f in files)}")
    file, tasks = next(iter(files.items()))
    contents = Contents(file, root)
    for task in tasks:
        try:
            results = _results(task, file)
            if results is None:
                contents.left_out["tasks without annotations"] += 1
                continue
            image = contents.add_image("", _picture(task, file), _size(results))
        except TranseptError:
            raise
        except _WRONG as error:
            raise TranseptError(f"{str(file)!r}: task {task.get('id')} is none of Label Studio ({error!r})") from error
        for number, result in enumerate(results, 1):
            place = f"task {task.get('id')}:{result.get('id', number)}"
            try:
                found = _shape(result, contents)
            except TranseptError as error:
                raise TranseptError(f"{str(file)!r}: {place}: {error}") from error
            except _WRONG as error:
                raise TranseptError(f"{str(file)!r}: {place} is no shape of Label Studio ({error!r})") from error
            if found is None:
                contents.left_out[f"results of the type {result.get('type')!r}"] += 1
            else:
                contents.add_object("", image, *found, place)
    return contents.finish() or {"": Annotated({"images": [], "annotations": [], "categories": []}, root, file)}


def _page(file: Path) -> Any:
    with opened(file) as start:
        if not start.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            return None
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise TranseptError(f"{str(file)!r} is not JSON ({error})") from error


def _is_export(page: Any) -> bool:
    known = ("data", "annotation_id")  # the second is JSON-MIN's
    return (
        isinstance(page, list) and bool(page) and all(isinstance(t, dict) and any(k in t for k in known) for t in page)
    )


def _results(task: dict[str, Any], file: Path) -> list[dict[str, Any]] | None:
    if "data" not in task:
        return _minimal_results(task)
    done = [each for each in task.get("annotations") or [] if not each.get("was_cancelled")]
    chosen = [each for each in done if each.get("ground_truth")] or done
    if len(chosen) > 1:
        raise TranseptError(
            f"{str(file)!r}: task {task.get('id')} has {len(chosen)} annotations; keep one, or mark one as ground truth"
        )
    return chosen[0].get("result") or [] if chosen else None


def _minimal_results(task: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Those of JSON-MIN, whose values say their type by the key of their labels."""
    if task["annotation_id"] is None:
        return None
    lists = (value for value in task.values() if isinstance(value, list))
    values = (value for each in lists for value in each if isinstance(value, dict))
    sizes = ("original_width", "original_height")
    return [
        {"type": next((key for key in value if key.endswith("labels")), None), "value": value}
        | {key: value[key] for key in sizes if key in value}
        for value in values
    ]


def _picture(task: dict[str, Any], file: Path) -> str:
    """The path in a task's data, of an upload, of local files (`?d=`), or of a cloud; it is found by its end."""
    for value in task.get("data", task).values():
        if isinstance(value, str):
            parts = urlsplit(value)
            name = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
            if Path(name).suffix.lower() in EXTENSIONS:
                return f"/{name.lstrip('/')}"
    raise TranseptError(f"{str(file)!r}: task {task.get('id')} names no picture")


def _size(results: list[dict[str, Any]]) -> tuple[int, int] | None:
    sizes = [(each["original_height"], each["original_width"]) for each in results if "original_height" in each]
    return sizes[0] if sizes else None


def _shape(result: dict[str, Any], contents: Contents) -> tuple[str, Shape] | None:
    kind, value = result.get("type"), result.get("value", {})
    if kind not in ("rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels"):
        return None
    if result.get("image_rotation"):
        raise ValueError("it was drawn on a turned picture; save it upright")
    (label,) = value[kind]
    if kind == "brushlabels":
        size = result["original_height"], result["original_width"]
        shape = filled(_painted(value["rle"], size), size)
        return (label, shape) if shape else None
    across, down = result["original_width"] / 100, result["original_height"] / 100
    if kind == "polygonlabels":
        return label, polygon((x * across, y * down) for x, y in value["points"])
    x, y, degrees = value["x"] * across, value["y"] * down, value.get("rotation", 0)
    if kind == "ellipselabels":
        return label, ellipse((x, y), (value["radiusX"] * across, value["radiusY"] * down), degrees)
    width, height = value["width"] * across, value["height"] * down
    if not degrees:
        return label, Shape([x, y, width, height])
    contents.taken[ROTATED] += 1  # about the corner at the top left
    return label, polygon(turned(box_corners(x, y, x + width, y + height), (x, y), degrees))


def _painted(rle: list[int], size: tuple[int, int]) -> np.ndarray:
    """The mask `H W` behind a brush's run lengths: of red, green, blue and alpha in turn, of which alpha is the mask.

    A stream of bits: 32 for the number of values, 5 for the bits of a value less 1, four times 4 for the bits of a
    length less 1. Then blocks: a bit that says whether one value is repeated, 2 bits that choose among the four, the
    length less 1, and the value or that many of them.

    Raises:
        ValueError: the lengths do not add up.
        TranseptError: as `check_pixels`.
    """
    check_pixels(size)
    bits = np.unpackbits(np.asarray(rle, np.uint8))
    text, place = (bits + ord("0")).tobytes().decode(), 0

    def number(width: int) -> int:
        nonlocal place
        place += width
        return int(text[place - width : place], 2)

    total, width = number(32), number(5) + 1
    lengths = [number(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1] or width != 8:
        raise ValueError(f"it has {total} values of {width} bits, not 4 x {size[0]} x {size[1]} of 8")
    values, done = np.empty(total, np.uint8), 0
    while done < total:
        repeats, length = number(1), number(lengths[number(2)]) + 1
        if repeats:
            values[done : done + length] = number(8)
        else:
            values[done : done + length] = np.packbits(bits[place : place + 8 * length])
            place += 8 * length
        done += length
    if done != total:
        raise ValueError(f"its run lengths add up to {done} values, not {total}")
    return values.reshape(*size, 4)[:, :, 3] > 0
