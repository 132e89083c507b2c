"""The pictures to label: files, WebDataset shards, and tables of the `datasets` library."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np

from transept.data.classification.image_set import ImageSet, Paths
from transept.data.classification.shards import SHARDS, shard_pictures
from transept.data.classification.tables import hub_pictures
from transept.data.hub import is_table
from transept.data.inputs import find_inputs
from transept.errors import UsageError


class Pictures:
    """The pictures of several sets, numbered one after another."""

    def __init__(self, sets: Sequence[ImageSet]) -> None:
        self._sets = list(sets)
        self._starts = np.cumsum([0, *map(len, sets)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def path(self, number: int) -> Path:
        """Of its file, or what stands for it."""
        images, index = self._at(number)
        return images.paths[index]

    def source(self, number: int) -> Path | BinaryIO:
        """What `read_image` reads."""
        images, index = self._at(number)
        return images.source(index)

    def digest(self) -> str:
        """The same for the same names in the same order."""
        digest = hashlib.sha256()
        for images in self._sets:
            for part in images.description():
                digest.update(part)
        return digest.hexdigest()

    def _at(self, number: int) -> tuple[ImageSet, int]:
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._sets[which], number - int(self._starts[which])


def find_pictures(words: Iterable[str]) -> Pictures:
    """The pictures behind what was named, in order.

    Args:
        words: as `find_inputs`; `wds:PATTERN`, WebDataset shards; `hf:NAME` or a folder that the `datasets` library
            wrote, of which all splits are taken.

    Raises:
        UsageError: as `find_inputs`, or a picture's bytes on standard input, or a package that is not installed.
        TranseptError: a source that names nothing or cannot be read.
    """
    sets: list[ImageSet] = []
    for kind, some in groupby(words, _kind):
        if kind == "files":
            sets.append(_files(list(some)))
        else:
            for word in some:
                sets += [shard_pictures(word.removeprefix(SHARDS))] if kind == "shards" else hub_pictures(word)
    return Pictures(sets)


def _kind(word: str) -> str:
    return "shards" if word.startswith(SHARDS) else "table" if is_table(word) else "files"


def _files(words: Sequence[str]) -> ImageSet:
    inputs = find_inputs(words)
    if any(each.content is not None for each in inputs):
        raise UsageError("a picture on standard input (-) has no name to go on with; save it, and give its file")
    return ImageSet(Paths(Path(), [str(each.path) for each in inputs]), np.zeros(len(inputs), np.uint8))  # pyright: ignore[reportArgumentType]
