"""The boxes, areas and crowds of a file's annotations, judged all together."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from transept.data.detection.annotations import Annotations
from transept.data.detection.values import NotPlainError, plain_flag, plain_number, plain_numbers

_Problem = tuple[str, str]
"""To be counted by, and as the end of a sentence."""


class Boxes:
    """Boxes clipped to pictures, with areas and crowds.

    Args:
        annotations: n of them.
        sizes: `n 2`, height and width of the picture of each.
        taken: counts what was taken for what it means.
    """

    clipped: np.ndarray
    """`n 4`, x1 y1 x2 y2, 64-bit."""
    areas: np.ndarray
    """`n`, as annotated; those of the clipped boxes where they are not."""
    crowd: np.ndarray
    overhang: np.ndarray
    """`n`, pixels by which a box reaches over the border of its picture."""

    def __init__(self, annotations: Annotations, sizes: np.ndarray, taken: Counter[str]) -> None:
        self._annotations, self._sizes, self._taken = annotations, sizes, taken
        self._given = np.array(annotations.boxes, np.float64).reshape(-1, 4)
        self.areas = np.array(annotations.areas, np.float64)
        self.crowd = np.frombuffer(bytes(annotations.crowds), bool).copy()
        odd = {row: self._read_odd(row, values) for row, values in annotations.odd.items()}
        self._odd = {row: problem for row, problem in odd.items() if problem}
        x1y1, x2y2 = self._given[:, :2], self._given[:, :2] + self._given[:, 2:]
        most = sizes[:, ::-1].astype(np.float64)
        self.clipped = np.concatenate([x1y1.clip(0, most), x2y2.clip(0, most)], 1)
        self.overhang = np.maximum(-x1y1, x2y2 - most).max(1, initial=0)
        sides = self.clipped[:, 2:] - self.clipped[:, :2]
        self.areas = np.where(np.isnan(self.areas), sides.prod(1), self.areas)

    def problems(self) -> Iterator[tuple[int, _Problem]]:
        """The boxes that cannot be used, by number."""
        yield from self._odd.items()
        finite = np.all(np.isfinite(self._given), axis=1)
        empty = finite & np.any(self._given[:, 2:] <= 0, axis=1)
        outside = finite & ~empty & np.any(self.clipped[:, 2:] <= self.clipped[:, :2], axis=1)
        for row in np.flatnonzero(~finite | empty | outside).tolist():
            if row in self._odd:
                continue
            box = [int(side) if side.is_integer() else side for side in self._given[row].tolist()]
            height, width = self._sizes[row].tolist()
            if not finite[row]:
                yield row, ("boxes not finite", f"has the bbox {box}, which is not finite")
            elif empty[row]:
                yield row, ("boxes without area", f"has the bbox {box}, which has no area")
            else:
                outside_of = f"lies outside its picture of {width} x {height}"
                yield row, ("boxes outside their picture", f"has the bbox {box}, which {outside_of}")

    def _read_odd(self, row: int, values: dict[str, Any]) -> _Problem | None:
        """Takes the values that are of no usual type, or says why not."""
        try:
            if "bbox" in values:
                box = plain_numbers(values["bbox"], self._taken)
                if len(box) != 4:
                    raise NotPlainError
                self._given[row] = box
        except NotPlainError:
            box = values["bbox"]
            lack = "no bbox" if box is None else f"the bbox {box!r}"
            return "without a bbox", f"has {lack}; give [x, y, width, height]"
        try:
            if "iscrowd" in values:
                self.crowd[row] = plain_flag(values["iscrowd"], self._taken)
        except NotPlainError:
            return "unclear iscrowd", f"has the iscrowd {values['iscrowd']!r}; give 0 or 1"
        try:
            if "area" in values:
                self.areas[row] = plain_number(values["area"], self._taken)
                if self.areas[row] < 0:
                    raise NotPlainError
        except NotPlainError:
            return "unclear areas", f"has the area {values['area']!r}; give pixels, or none for that of the box"
        return None
