"""Masks of objects: polygons and run-length encodings as COCO writes them, checked before pycocotools reads them."""

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from transept.data.detection.values import NUMBERS, NotPlainError, plain_integer, plain_number
from transept.errors import UsageError
from transept.extras import install


def plain_mask(segmentation: Any, taken: Counter[str]) -> Any:
    """The same with numbers that are written as text, and whole ones that are written as floats, as numbers."""
    with suppress(NotPlainError, TypeError):  # what is not plain is judged as it is
        if isinstance(segmentation, dict):
            counts = segmentation.get("counts")
            if isinstance(counts, list):
                counts = [plain_integer(run, taken) for run in counts]
            size = [plain_integer(side, taken) for side in segmentation.get("size", ())]
            return segmentation | {"size": size} | ({} if counts is None else {"counts": counts})
        if isinstance(segmentation, list) and any(type(each) is not array for each in segmentation):
            return [each if isinstance(each, array) else _plain_polygon(each, taken) for each in segmentation]
    return segmentation


def _plain_polygon(polygon: list[Any], taken: Counter[str]) -> list[Any]:
    return [plain_number(value, taken) if type(value) is str else value for value in polygon]


def mask_problem(segmentation: Any, size: tuple[int, int]) -> str | None:
    """Why a polygon or run-length encoding is none of a picture of this size, as the end of a sentence."""
    if not segmentation:
        return "has no segmentation, which masks need"
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, array) and not (
                isinstance(polygon, list) and NUMBERS.issuperset(map(type, polygon))
            ):
                return "has a segmentation that is no list of polygons [x1, y1, x2, y2, ...]"
            if len(polygon) < 6 or len(polygon) % 2:
                return f"has a polygon of {len(polygon)} numbers; it needs pairs, three or more"
            if not _is_finite(polygon):
                return "has a polygon that is not finite"
        return None
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        return "has a segmentation that is neither polygons nor run lengths with 'size' and 'counts'"
    if segmentation.get("size") != list(size):
        return (
            f"has run lengths of the size {segmentation.get('size')}, but its picture is {list(size)} (height, width)"
        )
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != size[0] * size[1]:
            return f"has run lengths that do not add up to {size[0] * size[1]} pixels"
    elif not isinstance(counts, str):
        return "has 'counts' that are neither a list nor a string"
    elif not _fills(counts, size):
        return f"has compressed run lengths that do not decode to {size[0] * size[1]} pixels"
    return None


def _is_finite(polygon: Sequence[float]) -> bool:
    try:
        # The sum is quick, but may overflow.
        return math.isfinite(sum(polygon)) or all(map(math.isfinite, polygon))
    except OverflowError:  # an integer of more than 308 digits
        return False


def _fills(counts: str, size: tuple[int, int]) -> bool:
    """Whether COCO's compressed run lengths describe exactly the pixels; pycocotools crashes on others, or worse.

    Six bits a character from '0', the sixth says that the number goes on; from the third number on each is the
    difference to the one before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return False
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return shift == 0 and min(runs, default=-1) >= 0 and sum(runs) == size[0] * size[1]


def decode_masks(segmentations: list[Any], size: tuple[int, int]) -> np.ndarray:
    """Masks `n H W`, rasterised at the picture's own size."""
    if not segmentations:
        return np.zeros((0, *size), np.uint8)
    encoded = [run_lengths(segmentation, size) for segmentation in segmentations]
    return np.ascontiguousarray(mask_api().decode(encoded).transpose(2, 0, 1))


def run_lengths(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Polygons or run lengths of COCO as compressed run lengths."""
    api = mask_api()
    if isinstance(segmentation, list):
        return api.merge(api.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return api.frPyObjects(segmentation, *size)
    return segmentation


def mask_api() -> Any:
    try:
        from pycocotools import mask  # an extra
    except ModuleNotFoundError as error:
        raise UsageError(f"instance masks need the package 'pycocotools': {install('detect')}") from error
    return mask
