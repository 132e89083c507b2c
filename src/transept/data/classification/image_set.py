"""A set of labelled pictures, small enough in memory to be shared with processes that read them."""

import copy
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from PIL import Image

from transept.data.images import KEEP_BYTES, BadImageError, Picture, read_image
from transept.data.measure import Source, spread
from transept.data.reading import PLAIN, Box, Reading
from transept.errors import TranseptError

_SMALL_BYTES = 512 * 2**20
_SMALL_COUNT = 4000


class Paths(Sequence[Path]):
    """Paths as one text. A million `Path`s take a gigabyte, and every worker process would come to have its own copy
    of them, for looking at a Python object writes to its reference count.
    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root = root
        encoded = [os.fsencode(name) for name in names]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Path:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.root / self.name(index)

    def name(self, index: int) -> str:
        """The path from `root`, with slashes."""
        index = range(len(self))[index]
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]])

    def description(self) -> tuple[bytes, bytes]:
        """All that tells the names from others."""
        return self._text, self._ends.astype("<i8").tobytes()


class ImageSet(Sequence[tuple[Picture, Any]]):
    """RGB pictures, or bytes `c H W` of other bands, with class numbers.

    Of small sets (up to 512 MB of files), decoded pictures are kept while they fit into a gigabyte. Large ones are read
    anew each time.
    """

    def __init__(
        self,
        paths: Paths,
        labels: Sequence[int],
        *,
        sizes: np.ndarray | None = None,
        places: np.ndarray | None = None,
    ) -> None:
        """`sizes` are the files' in bytes, where they are known; `places` are what `source` needs besides."""
        self.paths = paths
        self.labels: Any = list(labels)
        self.groups: np.ndarray | None = None
        """The group of each picture, where they have any: pictures of one are all learnt from, or all measured."""
        self.sizes = sizes
        self.places = places
        self.version = ""
        """Tells other contents under the same names apart, where files have no sizes."""
        self.skips_bad_images = False
        """Whether a training picture that turns out to be unreadable is to be replaced by the next one."""
        self.reading: Reading = PLAIN
        """How the files become pictures."""
        self._kept: dict[int, Picture] = {}
        self._room = KEEP_BYTES

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Picture, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        picture = self._kept.get(index)
        if picture is None:
            picture = self.read(index)
            size = _bytes(picture)
            if self.small and size <= self._room:
                self._room -= size
                self._kept[index] = picture
        return picture, self.label(index)

    def label(self, index: int) -> Any:
        """What a model learns of a picture: its class number."""
        return self.labels[index]

    def counts(self, num_classes: int) -> np.ndarray:
        """Pictures of each class."""
        return np.bincount(np.asarray(self.labels, int), minlength=num_classes)

    def rarities(self, num_classes: int) -> np.ndarray:
        """The inverse of how many pictures there are of a picture's class, for each picture."""
        return 1 / self.counts(num_classes)[np.asarray(self.labels, int)]

    def renumbered(self, numbers: Sequence[int], num_classes: int) -> Self:
        """The same pictures among other classes: class i is `numbers[i]` there."""
        other = copy.copy(self)
        other.labels = [numbers[label] for label in self.labels]
        return other

    @property
    def small(self) -> bool:
        """Whether the whole set can be decoded before a run begins, to check it."""
        return len(self) <= _SMALL_COUNT if self.sizes is None else bool(self.sizes.sum() <= _SMALL_BYTES)

    def source(self, index: int) -> Path | BinaryIO:
        """The file of a picture, or its bytes."""
        return self.paths[index]

    def read(
        self,
        index: int,
        reduce: Callable[[int, int], float] | None = None,
        window: Callable[[int, int], Box] | None = None,
    ) -> Picture:
        """The picture from its file; `reduce` and `window` as in `read_image`."""
        source, name = self.source(index), self.paths[index]
        return read_image(source, name=name, reduce=reduce, window=window, reading=self.reading)

    def some_files(self, indices: Sequence[int] | None = None) -> list[Source]:
        """Those to measure the set by, or at these places; one that is missing says so when it is read."""
        files: list[Source] = []
        for i in spread(len(self)) if indices is None else indices:
            with suppress(BadImageError):
                files.append((self.source(i), self.paths[i]))
        return files

    def description(self) -> Iterator[bytes]:
        """Names, sizes and classes of all files, from which their fingerprint is made."""
        yield self.version.encode()
        yield from self.paths.description()
        yield b"" if self.sizes is None else self.sizes.astype("<i8").tobytes()
        yield np.asarray(self.labels, "<i8").tobytes()

    def take(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The set of these samples alone."""
        subset = copy.copy(self)
        subset.paths = Paths(self.paths.root, [self.paths.name(int(i)) for i in indices])
        rows = np.asarray(indices, np.int64)
        subset.labels = self._labels_at(rows)
        subset.groups = None if self.groups is None else self.groups[rows]
        subset.sizes = None if self.sizes is None else self.sizes[rows]
        subset.places = None if self.places is None else self.places[rows]
        subset._kept = {}
        return subset

    def _labels_at(self, rows: np.ndarray) -> Any:
        return [self.labels[i] for i in rows]


def _bytes(picture: Picture) -> int:
    return 3 * picture.width * picture.height if isinstance(picture, Image.Image) else picture.numel()


class ArraySet(ImageSet):
    """Pictures from memory instead of files."""

    def __init__(self, arrays: np.ndarray, labels: Sequence[int], names: Sequence[str]) -> None:
        super().__init__(Paths(Path(), names), labels)
        self._kept = {i: Image.fromarray(array).convert("RGB") for i, array in enumerate(arrays)}

    def take(self, indices: Sequence[int] | np.ndarray) -> Self:
        subset = super().take(indices)
        subset._kept = {i: self._kept[int(index)] for i, index in enumerate(indices)}
        return subset


class ManyLabels(ImageSet):
    """Makes of a kind of set one whose pictures are of any number of classes each, also of none.

    A label is a row of 0 and 1.
    """

    def labelled(self, labels: Sequence[Collection[str]], classes: Sequence[str]) -> Self:
        """The set with these classes of each picture."""
        numbers = {name: number for number, name in enumerate(classes)}
        self.labels = np.zeros((len(labels), len(classes)), np.uint8)
        for row, each in enumerate(labels):
            self.labels[row, [numbers[label] for label in each]] = 1
        return self

    def label(self, index: int) -> np.ndarray:
        """Float32 ` k`."""
        return self.labels[index].astype(np.float32)

    def counts(self, num_classes: int) -> np.ndarray:
        return self.labels.sum(axis=0, dtype=np.int64)

    def rarities(self, num_classes: int) -> np.ndarray:
        """Of the rarest of a picture's classes; pictures without one count as a class of their own."""
        shares = self.labels / np.maximum(self.counts(num_classes), 1)
        without = ~self.labels.any(axis=1)
        return np.where(without, 1 / max(int(without.sum()), 1), shares.max(axis=1, initial=0))

    def renumbered(self, numbers: Sequence[int], num_classes: int) -> Self:
        other = copy.copy(self)
        other.labels = np.zeros((len(self), num_classes), np.uint8)
        other.labels[:, list(numbers)] = self.labels
        return other

    def _labels_at(self, rows: np.ndarray) -> np.ndarray:
        return self.labels[rows]


Read = Callable[[list[str]], tuple[list[str], list[ImageSet]]]
"""Names of splits to the classes of the first, and the pictures of each."""


class MultiLabelSet(ManyLabels):
    """Files of any number of classes each."""


def classes_of(labels: Collection[str]) -> list[str]:
    """Names in their order, numbers in theirs."""
    numbers = all(label.isdecimal() and len(label) < 20 for label in labels)
    return sorted(labels, key=int) if numbers else sorted(labels)


def refuse_unlearnt(labels: Collection[str], classes: Sequence[str], split: str, data: str) -> None:
    """Raises `TranseptError` where a split has a label that is no class of the first one."""
    odd = classes_of(set(labels) - set(classes))
    if odd:
        raise TranseptError(
            f"the label {odd[0]!r} is in the split {split!r} of {data!r} only, so nothing is learnt of it"
        )


def label_words(label: Any, classes: Sequence[str]) -> str:
    """A class number, or a row of 0 and 1, in words."""
    if np.ndim(label) == 0:
        return classes[int(label)]
    present = np.flatnonzero(np.asarray(label) >= 0.5).tolist()
    return ", ".join(classes[i] for i in present) or "none"
