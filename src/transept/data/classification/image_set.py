"""A set of labelled pictures, small enough in memory to be shared with processes that read them."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from PIL import Image

from transept.data.images import KEEP_BYTES, BadImageError, Picture, read_image
from transept.data.measure import Source, spread
from transept.data.reading import PLAIN, Reading

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


class ImageSet(Sequence[tuple[Picture, int]]):
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
        self.labels = list(labels)
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

    def __getitem__(self, index: int) -> tuple[Picture, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        picture = self._kept.get(index)
        if picture is None:
            picture = self.read(index)
            size = _bytes(picture)
            if self.small and size <= self._room:
                self._room -= size
                self._kept[index] = picture
        return picture, self.labels[index]

    @property
    def small(self) -> bool:
        """Whether the whole set can be decoded before a run begins, to check it."""
        return len(self) <= _SMALL_COUNT if self.sizes is None else bool(self.sizes.sum() <= _SMALL_BYTES)

    def source(self, index: int) -> Path | BinaryIO:
        """The file of a picture, or its bytes."""
        return self.paths[index]

    def read(self, index: int, reduce: Callable[[int, int], float] | None = None) -> Picture:
        """The picture from its file; `reduce` as in `read_image`."""
        return read_image(self.source(index), name=self.paths[index], reduce=reduce, reading=self.reading)

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
        subset.labels = [self.labels[i] for i in indices]
        rows = np.asarray(indices, np.int64)
        subset.sizes = None if self.sizes is None else self.sizes[rows]
        subset.places = None if self.places is None else self.places[rows]
        subset._kept = {}
        return subset


def _bytes(picture: Picture) -> int:
    return 3 * picture.width * picture.height if isinstance(picture, Image.Image) else picture.numel()


class ArraySet(ImageSet):
    """Pictures from memory instead of files."""

    def __init__(self, arrays: np.ndarray, labels: Sequence[int], names: Sequence[str]) -> None:
        super().__init__(Paths(Path(), names), labels)
        self._kept = {i: Image.fromarray(array).convert("RGB") for i, array in enumerate(arrays)}
