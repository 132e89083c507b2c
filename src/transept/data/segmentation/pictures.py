"""Pictures with a class for each pixel: of the built-in scenes, from files, and from tables of Hugging Face sets."""

from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torchvision import tv_tensors

from transept.data.hub import stored_file
from transept.data.images import KEEP_BYTES, BadImageError, as_array, read_image, read_mask, stored_form
from transept.data.labels import LabelTable
from transept.data.measure import Source, spread
from transept.data.reading import PLAIN, Reading
from transept.data.scenes import DIGITS, DigitScenes
from transept.style import Color, drawing_color

Pair = tuple[tv_tensors.Image, tv_tensors.Mask]

SCENES = "digits-scenes"


class SegmentationSet(Sequence[Pair]):
    """Pictures (8 bits: RGB, `3 H W`, or other bands `c H W`) with masks (classes, `H W`, 64-bit).

    Pixels of no class are `IGNORE_LABEL`.
    """

    reading: Reading = PLAIN
    """How files become pictures."""
    classes: list[str]
    palette: list[Color]
    """A colour for each class."""
    paths: list[Path]
    """The pictures' files, or names for those that have none."""

    def __len__(self) -> int:
        return len(self.paths)

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The picture `H W c` and its classes `H W`, both 8 bit."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Pair:  # pyright: ignore[reportIncompatibleMethodOverride]
        picture, mask = self.arrays(index)
        return (
            tv_tensors.Image(torch.from_numpy(picture.copy()).permute(2, 0, 1).contiguous()),
            tv_tensors.Mask(torch.from_numpy(mask.astype(np.int64))),
        )


class SceneSegmentation(SegmentationSet):
    """`digits-scenes`: the ground and ten digits."""

    def __init__(self, scenes: DigitScenes) -> None:
        self.scenes = scenes
        self.classes = ["ground", *DIGITS]
        self.palette = [(40, 40, 40), *map(drawing_color, range(10))]
        self.paths = [Path(f"{SCENES}-{scenes.split}-{scenes.seed}-{i:05d}.png") for i in range(len(scenes))]

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        scene = self.scenes[index]
        return scene.image, scene.semantic


class _Source(NamedTuple):
    """A picture and its mask: paths, or files in memory with names for errors."""

    picture: Path | bytes
    mask: Path | bytes
    picture_name: Path
    mask_name: Path


class MaskedPictures(SegmentationSet):
    """Pictures and masks of the same size from files. Decoded ones are kept while they fit into a gigabyte."""

    def __init__(self, paths: Sequence[Path], masks: Sequence[Path], table: LabelTable) -> None:
        self.table = table
        self.classes, self.palette = table.classes, table.palette
        self.paths = list(paths)
        self.masks = list(masks)
        self.reading: Reading = PLAIN
        """How the pictures' files become pictures."""
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._room = KEEP_BYTES

    def use_table(self, table: LabelTable) -> None:
        """Read the masks by another table of the same classes."""
        self.table = table
        self._kept.clear()
        self._room = KEEP_BYTES

    def source(self, index: int) -> _Source:
        return _Source(self.paths[index], self.masks[index], self.paths[index], self.masks[index])

    def some_files(self, indices: Sequence[int] | None = None) -> list[Source]:
        """Pictures to measure the set by, or at these places; one that is missing says so when it is read."""
        files: list[Source] = []
        for i in spread(len(self)) if indices is None else indices:
            with suppress(BadImageError):
                source = self.source(i)
                files.append((_open(source.picture), source.picture_name))
        return files

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """As in the base class.

        Raises:
            BadImageError: either file is unreadable, the mask is of another size than the picture, or a value of it
                is no class.
        """
        kept = self._kept.get(index)
        if kept is None:
            kept = self._read(index)
            size = kept[0].nbytes + kept[1].nbytes
            if size <= self._room:
                self._room -= size
                self._kept[index] = kept
        return kept

    def take(self, indices: Sequence[int]) -> "MaskedPictures":
        """The set of these alone."""
        paths, masks = ([files[i] for i in indices] for files in (self.paths, self.masks))
        return self._read_so(MaskedPictures(paths, masks, self.table))

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return _read_pair(self.source(index), self.table, self.reading)

    def _read_so(self, other: "MaskedPictures") -> "MaskedPictures":
        other.reading = self.reading
        return other


class HubSegmentation(MaskedPictures):
    """A table of the `datasets` library with a picture and a mask in each row."""

    def __init__(self, rows: Any, columns: tuple[str, str], table: LabelTable, name: str) -> None:
        from datasets import Image as ImageFeature  # an extra

        self.columns = columns
        self.data = name.rpartition("/")[0]
        # Undecoded, so that our reader sees the file: EXIF tag, formats, errors with a name.
        self.rows = rows.select_columns(list(columns))
        for column in columns:
            self.rows = self.rows.cast_column(column, ImageFeature(decode=False))
        picture, mask = ([Path(f"{name}[{i}].{column}") for i in range(len(rows))] for column in columns)
        super().__init__(picture, mask, table)

    def take(self, indices: Sequence[int]) -> MaskedPictures:
        name = str(self.paths[0]).partition("[")[0] if self.paths else ""
        return self._read_so(HubSegmentation(self.rows.select(indices), self.columns, self.table, name))

    def source(self, index: int) -> _Source:
        row = self.rows[index]
        names = self.paths[index], self.masks[index]
        picture, mask = (
            stored_file(row[column], name, self.data) for column, name in zip(self.columns, names, strict=True)
        )
        return _Source(picture, mask, *names)


def _read_pair(source: _Source, table: LabelTable, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    picture = as_array(read_image(_open(source.picture), name=source.picture_name, reading=reading))
    height, width = picture.shape[:2]
    mask = read_mask(_open(source.mask), name=source.mask_name)
    if mask.size != (width, height):
        # A mask drawn on the picture as it is stored, before the EXIF tag turns it, is turned with it.
        stored, orientation = stored_form(_open(source.picture), name=source.picture_name)
        if mask.size == stored:
            mask = read_mask(_open(source.mask), name=source.mask_name, orientation=orientation)
    if mask.size != (width, height):
        raise BadImageError(
            source.mask_name,
            f"is {mask.width} x {mask.height}, but its picture {str(source.picture_name)!r} is {width} x {height}",
        )
    return picture, table.encode(mask, source.mask_name)


def _open(source: Path | bytes) -> Path | BinaryIO:
    return BytesIO(source) if isinstance(source, bytes) else source
