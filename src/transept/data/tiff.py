"""TIFF: what its tags say of its values, and the values of those that Pillow reads wrong or not at all."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from transept.data.reading import SAY_BANDS, Box, Values, ValuesError, part
from transept.extras import install

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
"""Bands that a photometric interpretation means; what a page has more are extra samples."""
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_ORIENTATION = 274
_WHITE_IS_ZERO = 0
_PILLOW = {
    *((bits, _UNSIGNED) for bits in (1, 2, 4, 8, 12, 16)),
    *((bits, _SIGNED) for bits in (16, 32)),
    (32, _FLOAT),
}
"""Bits and kinds of numbers that Pillow reads right in pages of one band."""
_MAX_BANDS = 10_000
"""Sensors have hundreds. GDAL takes minutes for as many as a damaged file may state."""
_MAX_PAGES = 4096


@dataclass(frozen=True, slots=True)
class Page:
    """A picture of a TIFF, as its tags describe it."""

    number: int
    """From 0 on, copies in low resolution counted."""
    size: tuple[int, int]
    """Width and height as stored."""
    samples: int
    bits: int
    """Of each sample; the most where they differ."""
    kind: int
    """Of its numbers: unsigned, signed, fractions."""
    photometric: int
    extra: tuple[int, ...]
    """What its extra samples are: 0 anything, 1 associated alpha, 2 alpha."""
    is_planar: bool
    largest: int | None
    orientation: int
    nodata: float | None

    @property
    def stated(self) -> tuple[float, float] | None:
        """The range of its values, where fewer bits are used than a number has.

        The largest value that the tag gives is a statistic, and states a depth only where it is one: 1023, 4095.
        """
        if self.kind != _UNSIGNED or self.bits > 16:
            return None
        if self.bits not in (8, 16):
            return 0, 2**self.bits - 1
        full = self.largest is not None and 255 < self.largest < 65535 and (self.largest + 1).bit_count() == 1
        return (0, self.largest) if self.bits == 16 and full and self.largest else None

    @property
    def is_deep(self) -> bool:
        """More than bytes."""
        return self.bits > 8 or self.kind != _UNSIGNED

    @property
    def is_unstated(self) -> bool:
        """16 bits, of which nobody says how many are used."""
        return self.bits == 16 and self.kind == _UNSIGNED and self.stated is None

    @property
    def has_alpha(self) -> bool:
        return self.extra in ((1,), (2,)) and self.samples == _COLORS.get(self.photometric, 0) + 1

    @property
    def is_colored(self) -> bool:
        """Its bands are grey or colours, perhaps with alpha."""
        return self.samples == _COLORS.get(self.photometric) or self.has_alpha


def is_tiff(head: bytes) -> bool:
    return head[:4] in _MAGIC


def read_pages(file: BinaryIO) -> list[Page]:
    """The pages of a TIFF, without masks and copies in low resolution.

    Raises:
        ValuesError: it has none.
    """
    pages = [page for page, is_copy in _pages(file) if not is_copy]
    if not pages:
        raise ValuesError("is a TIFF without a picture")
    return pages


def single_page(pages: Sequence[Page]) -> Page:
    """The only page, whose bands are colours.

    Raises:
        ValuesError: there are several, or bands that are no colours.
    """
    page = pages[0]
    if len(pages) > 1:
        raise ValuesError(f"has {len(pages)} pages; {SAY_BANDS}")
    if not page.is_colored:
        raise ValuesError(f"has {page.samples} bands that are not just colours; {SAY_BANDS}")
    return page


def check_alpha(page: Page, alpha: np.ndarray) -> None:
    """Whether the fourth band is what its tag says: GDAL and tifffile call near infrared alpha, too.

    An alpha channel of a TIFF that is not associated is taken at its word where it cuts out a shape, with nothing
    between the transparent and the opaque.

    Raises:
        ValuesError: it may be no alpha.
    """
    opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind == "u" else None
    if page.extra == (1,) or ((alpha == opaque).any() and ((alpha == 0) | (alpha == opaque)).all()):
        return
    raise ValuesError(
        f"has {page.samples} bands, the last of which is tagged as alpha but holds values between transparent and "
        f"opaque, as near infrared does; {SAY_BANDS}"
    )


def read_values(source: str | Path | BinaryIO, file: BinaryIO, pages: Sequence[Page], box: Box | None = None) -> Values:
    """All bands of all pages, one page after another; of the pixels in a box alone, where one is given.

    Raises:
        ValuesError: the pages do not fit together, or rasterio, which reads such files, is not installed.
    """
    first = pages[0]
    if any((page.size, page.bits, page.kind) != (first.size, first.bits, first.kind) for page in pages):
        raise ValuesError("has pages of different sizes or kinds of numbers, which make no picture together")
    if (bands := sum(page.samples for page in pages)) > _MAX_BANDS:
        raise ValuesError(f"states {bands} bands, more than {_MAX_BANDS}; is it damaged?")
    arrays = [_array(source, file, page, box) for page in pages]
    # Pillow turns white bytes itself.
    inverted = first.photometric == _WHITE_IS_ZERO and (first.is_deep or not _pillow_reads(first))
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
    return Values(array, first.stated, first.nodata, inverted)


def _array(source: str | Path | BinaryIO, file: BinaryIO, page: Page, box: Box | None) -> np.ndarray:
    if not _pillow_reads(page) or (box and page.bits in (16, 32) and _has_gdal()):  # Pillow decodes all of a page
        return _with_gdal(source, file, page, box)
    array = _with_pillow(file, page)
    return array if box is None else part(array, box)


def _pages(file: BinaryIO) -> Iterator[tuple[Page, bool]]:
    file.seek(0)
    head = file.read(8)
    if head[2] == 43 or head[3] == 43:
        head += file.read(8)
    directory: Any = ImageFileDirectory_v2(head)
    offset, known = directory.next, set()
    while offset and offset not in known and len(known) < _MAX_PAGES:
        known.add(offset)
        file.seek(offset)
        directory.load(file)
        yield _page(directory, len(known) - 1), bool(directory.get(254, 0) & 5) or directory.get(255) == 2
        offset = directory.next
    file.seek(0)


def _page(tags: Any, number: int) -> Page:
    bits = tags.get(258, (1,))
    kinds = tags.get(339, (_UNSIGNED,))
    return Page(
        number=number,
        size=(int(tags[256]), int(tags[257])),
        samples=int(tags.get(277, 1)),
        bits=max(bits),
        kind=_UNSIGNED if set(kinds) == {4} else max(kinds),  # 4: undefined
        photometric=int(tags.get(262, 1)),
        extra=tuple(tags.get(338, ())),
        is_planar=tags.get(284, 1) == 2,
        largest=max(tags[281]) if 281 in tags else None,
        orientation=int(tags.get(_ORIENTATION, 1)),
        nodata=_nodata(tags.get(42113)),
    )


def _nodata(text: str | None) -> float | None:
    """GDAL's tag."""
    try:
        return None if text is None else float(text.strip("\0 "))
    except ValueError:
        return None


def _pillow_reads(page: Page) -> bool:
    """Pillow gives the values of the page as they are stored."""
    if page.samples == 1:
        return (page.bits, page.kind) in _PILLOW
    return page.bits == 8 and page.kind == _UNSIGNED and page.photometric == 2 and page.extra in ((), (2,))


def _with_pillow(file: BinaryIO, page: Page) -> np.ndarray:
    file.seek(0)
    with Image.open(file, formats=["TIFF"]) as picture:
        picture.seek(page.number)
        picture.getexif().pop(_ORIENTATION, None)  # else Pillow turns it
        array = np.asarray(picture.convert({"P": "RGB", "1": "L"}.get(picture.mode, picture.mode)))
    if page.kind == _UNSIGNED and page.bits > 8:
        array = array.astype(np.uint16, copy=False)
    return array[..., None] if array.ndim == 2 else array


@cache
def _has_gdal() -> bool:
    return find_spec("rasterio") is not None


def _with_gdal(source: str | Path | BinaryIO, file: BinaryIO, page: Page, box: Box | None) -> np.ndarray:
    try:
        import rasterio  # an extra
        from rasterio.errors import NotGeoreferencedWarning
        from rasterio.windows import Window
    except ModuleNotFoundError as error:
        raise ValuesError(
            f"is a TIFF of {page.samples} x {page.bits} bits, which only rasterio reads: {install('geo')}"
        ) from error
    window = None if box is None else Window(*box)  # pyright: ignore[reportCallIssue]
    # Else GDAL lists the folder for each file.
    with warnings.catch_warnings(), rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if isinstance(source, str | Path):
            with rasterio.open(f"GTIFF_DIR:{page.number + 1}:{source}", driver="GTiff") as dataset:
                return _bands(dataset, page, window)
        file.seek(0)
        with (
            rasterio.MemoryFile(file.read()) as memory,
            rasterio.open(f"GTIFF_DIR:{page.number + 1}:{memory.name}", driver="GTiff") as dataset,
        ):
            return _bands(dataset, page, window)


def _bands(dataset: Any, page: Page, window: Any) -> np.ndarray:
    """Where a tag is there twice, GDAL takes the first and Pillow the last, by which the bounds were checked."""
    size = (dataset.width, dataset.height)
    if size != page.size or dataset.count > max(page.samples, _RGBA):
        raise ValuesError(
            "is damaged: its tags state both {} x {} pixels of {} bands and {} x {} of {}".format(
                *page.size, page.samples, *size, dataset.count
            )
        )
    return dataset.read(window=window).transpose(1, 2, 0)


_RGBA = 4
"""Bands as which GDAL gives colours that it has to convert."""
