"""The annotations of a COCO file in columns: a fourth of the memory that their objects take."""

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from transept.data.detection.values import NUMBERS


class Annotations(Sequence[dict[str, Any]]):
    """The annotations of a file in their order; each is given as an object of COCO's, of the keys that are used.

    The columns hold what is of the usual type. All else waits in `odd`, as it is in the file, to be judged.
    """

    def __init__(self, entries: Iterable[dict[str, Any]] = (), *, masks: bool = True) -> None:
        self.masks = masks
        """Whether segmentations are kept."""
        self.ids: list[Any] = []
        """None where an annotation has none; the same for the images and categories."""
        self.image_ids: list[Any] = []
        self.category_ids: list[Any] = []
        self.boxes = array("d")
        """x, y, width and height of each, one after the other."""
        self.areas = array("d")
        """NaN where there is none."""
        self.crowds = bytearray()
        self.segmentations: list[Any] = []
        """Polygons as arrays of numbers, run lengths as in the file, None where there is none."""
        self.odd: dict[int, dict[str, Any]] = {}
        """Values by key of the annotations, by number, that have such of other types."""
        for entry in entries:
            self.add(entry)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        entry = {"id": self.ids[index], "image_id": self.image_ids[index], "category_id": self.category_ids[index]}
        entry = {key: value for key, value in entry.items() if value is not None}
        box, area = self.boxes[4 * index : 4 * index + 4].tolist(), self.areas[index]
        entry |= {"bbox": box, "iscrowd": self.crowds[index]}
        if not math.isnan(area):
            entry["area"] = area
        if self.masks and self.segmentations[index] is not None:
            entry["segmentation"] = plain_segmentation(self.segmentations[index])
        return entry | self.odd.get(index, {})

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def add(self, entry: dict[str, Any]) -> int:
        """Its number."""
        number = len(self.ids)
        get = entry.get
        box, crowd = get("bbox"), get("iscrowd", 0)
        area: Any = get("area")
        odd: list[str] = []
        try:
            if type(box) is not list or len(box) != 4 or not NUMBERS.issuperset(map(type, box)):
                raise TypeError
            self.boxes.extend(box)
        except (TypeError, OverflowError):  # or an integer of more than 308 digits
            del self.boxes[4 * number :]
            self.boxes.extend((math.nan,) * 4)
            odd.append("bbox")
        if (type(area) is float or type(area) is int) and 0 <= area < 1e300:
            self.areas.append(area)
        else:
            self.areas.append(math.nan)
            if area is not None:
                odd.append("area")
        if type(crowd) is int and (crowd == 0 or crowd == 1):
            self.crowds.append(crowd)
        else:
            self.crowds.append(0)
            odd.append("iscrowd")
        if self.masks:
            self.segmentations.append(_compact(get("segmentation")))
        if odd:
            self.odd[number] = {key: get(key) for key in odd}
        self.ids.append(get("id"))
        self.image_ids.append(get("image_id"))
        self.category_ids.append(get("category_id"))
        return number

    def take(self, numbers: Sequence[int]) -> "Annotations":
        """Those of these numbers alone."""
        part = Annotations(masks=self.masks)
        for name in ("ids", "image_ids", "category_ids", *(["segmentations"] if self.masks else [])):
            column = getattr(self, name)
            setattr(part, name, [column[i] for i in numbers])
        part.areas = array("d", (self.areas[i] for i in numbers))
        part.boxes = array("d", (side for i in numbers for side in self.boxes[4 * i : 4 * i + 4]))
        part.crowds = bytearray(self.crowds[i] for i in numbers)
        part.odd = {place: self.odd[i] for place, i in enumerate(numbers) if i in self.odd}
        return part


def plain_segmentation(segmentation: Any) -> Any:
    """As JSON can hold it."""
    if not isinstance(segmentation, list):
        return segmentation
    return [polygon.tolist() if isinstance(polygon, array) else polygon for polygon in segmentation]


def _compact(segmentation: Any) -> Any:
    if not segmentation:
        return None
    if type(segmentation) is not list:
        return segmentation
    try:
        return [array("d", polygon) if type(polygon) is list else polygon for polygon in segmentation]
    except (TypeError, OverflowError):  # not all are numbers
        return segmentation
