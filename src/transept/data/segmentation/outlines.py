"""Outlines of objects as the masks of a segmenter: COCO's polygons and run lengths, and what other formats have."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from transept.data.detection.categories import Coco
from transept.data.detection.coco_set import CocoSet
from transept.data.detection.masks import mask_api, run_lengths
from transept.data.detection.sets import NoAnnotationsError, read_annotations
from transept.data.labels import LabelTable, table_of_names
from transept.data.segmentation.pictures import MaskedPictures
from transept.data.splits import Choice, Parts
from transept.errors import TranseptError
from transept.ops.masks import IGNORE_LABEL

BACKGROUND = "background"
"""What no object covers."""


class OutlinedPictures(MaskedPictures):
    """Pictures with the outlines of objects. Where several cover a pixel, it is of the smallest.

    Args:
        objects: with masks.
        table: the classes. Objects of others, and what no object covers where none is called `BACKGROUND`, are
            `IGNORE_LABEL`.
        indices: of the pictures; default: all.
    """

    def __init__(self, objects: CocoSet, table: LabelTable, indices: Sequence[int] | None = None) -> None:
        self._objects = objects
        self._indices = range(len(objects)) if indices is None else indices
        numbers = {name: number for number, name in enumerate(table.classes)}
        self._labels = [numbers.get(name, IGNORE_LABEL) for name in objects.classes]
        self._ground = numbers.get(_ground(table.classes), IGNORE_LABEL)
        paths = [objects.paths[i] for i in self._indices]
        super().__init__(paths, [objects.file] * len(paths), table)

    def take(self, indices: Sequence[int]) -> MaskedPictures:
        return self._read_so(OutlinedPictures(self._objects, self.table, [self._indices[i] for i in indices]))

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        number = self._indices[index]
        api, size = mask_api(), self._objects.sizes[number]
        labels = np.full(size, self._ground, np.uint8)
        shapes = [(label, run_lengths(outline, size)) for label, outline in self._objects.outlines(number)]
        for label, shape in sorted(shapes, key=lambda each: api.area(each[1]), reverse=True):
            labels[api.decode(shape) == 1] = self._labels[label]
        return self._objects.picture(number, self.reading), labels


def load_outlines(
    data: str,
    *,
    halves: Literal["both", "val"],
    choice: Choice,
    known: Sequence[str] | None,
    val_fraction: float,
    skip_bad_annotations: bool,
) -> tuple[list[MaskedPictures], Parts]:
    """Training (where it is read) and measured pictures of a folder or file that `read_annotations` knows.

    The classes are `BACKGROUND`, unless one of the objects' has this name, and those of the objects; or the known ones.

    Raises:
        TranseptError: there are none, and as `load_detection_splits` with masks, of which every object needs one.
    """
    try:
        found = read_annotations(data, halves=halves, choice=choice, known=known, val_fraction=val_fraction, masks=True)
    except NoAnnotationsError as error:
        raise TranseptError(
            f"{data!r} has neither masks nor outlines of objects; put pictures and masks into images/training, "
            "annotations/training, images/validation and annotations/validation"
        ) from error
    names = found.order.names if known is None else list(known)
    if known is None and _ground(names) not in names:
        names = [BACKGROUND, *names]
    # What 255 stands for is no question here.
    table = replace(table_of_names(names, repr(data)), others_ignored=True)

    def read(half: Coco | None) -> MaskedPictures:
        if half is None:
            return MaskedPictures([], [], table)
        objects = CocoSet(
            half.file,
            half.folder,
            masks=True,
            skip_bad_annotations=skip_bad_annotations,
            min_size=0,
            content=half.content,
            searched=half.searched,
        )
        objects.say_left_out()
        return OutlinedPictures(objects, table)

    return [read(found.train), read(found.val)], found.parts


def _ground(classes: Sequence[str]) -> str:
    return next((name for name in classes if name.lower() == BACKGROUND), BACKGROUND)
