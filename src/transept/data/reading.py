"""How the values that a file holds become a picture of 8 bits."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from transept.checks import shown

Pair = tuple[float, float]
Box = tuple[int, int, int, int]
"""Left, top, width and height."""
_BLOCK = 65536
"""Values that are scaled at a time."""


class ValuesError(Exception):
    """Why the values of a file cannot be read: the end of a sentence that begins with its name."""


SAY_BANDS = "say which are to be read with --bands all, or e.g. --bands '[0, 1, 2]'"
"""Of a file that has more than red, green and blue. In Python the option is `bands`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How files become pictures of 8 bits; kept with the weights. By itself: as a person would see them."""

    pixel_range: tuple[Pair, ...] = ()
    """Which values of files of more than 8 bits become 0 and 255: one pair, or one for each band; none: as the files
    say."""
    bands: tuple[int, ...] = ()
    """Which bands of a file, counted from 0 through all of its pages; none: red, green and blue."""
    exact: bool = False
    """A file has these bands and no more."""

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Self:
        """From what `as_dict` gave, which JSON has made lists of."""
        pairs, bands = description["pixel_range"], description["bands"]
        pairs = tuple((low, high) for low, high in pairs)
        return cls(pixel_range=pairs, bands=tuple(bands), exact=description["exact"])

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def written_range(self) -> str:
        """`pixel_range` as one writes it: a pair, or one for each band."""
        pairs = self.pixel_range
        return shown((pairs if len(pairs) != 1 else pairs[0]) or None)

    @property
    def channels(self) -> int:
        """Of its pictures."""
        return len(self.bands) or 3


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedReading:
    """A `Reading` of which the training pictures may have to say a part."""

    pixel_range: Pair | Literal["auto"] | None = None
    bands: tuple[int, ...] | Literal["all"] | None = None
    exact: bool = False
    """See `Reading`; with `all` it is so anyway."""


PLAIN = Reading()
"""As a person would see them."""


@dataclass(frozen=True, slots=True)
class Values:
    """What a file holds."""

    array: np.ndarray
    """`H W c`: bytes, or numbers of more bits."""
    stated: Pair | None = None
    """Black and white, where the file says so; bytes need not."""
    nodata: float | None = None
    """The value of pixels without one."""
    inverted: bool = False
    """The lowest value is white."""

    def missing(self) -> np.ndarray:
        """`H W c`, true where there is no value."""
        missing = np.isnan(self.array) if self.array.dtype.kind == "f" else np.zeros(self.array.shape, bool)
        return missing if self.nodata is None else missing | (self.array == self.nodata)

    def take(self, bands: tuple[int, ...], *, exact: bool = False) -> "Values":
        """These bands alone.

        Raises:
            ValuesError: the file lacks one, or where it is to be `exact` has more.
        """
        have = self.array.shape[-1]
        noun = "1 band" if have == 1 else f"{have} bands"
        if exact and have > len(bands):
            raise ValuesError(f"has {noun}, and the model takes files of {len(bands)}")
        if max(bands) >= have:
            raise ValuesError(f"has {noun}, and bands={shown(bands)} asks for number {max(bands)}, counted from 0")
        if bands == tuple(range(have)):
            return self
        planes = np.moveaxis(self.array, -1, 0)  # as most files have them
        return dataclasses.replace(self, array=np.moveaxis(planes[list(bands)], 0, -1))


def part(array: np.ndarray, box: Box) -> np.ndarray:
    """The pixels `H W c` in a box."""
    left, top, width, height = box
    return array[top : top + height, left : left + width]


def to_bytes(values: Values, pixel_range: tuple[Pair, ...] = ()) -> np.ndarray:
    """Values to bytes `H W c`: from black to white in equal steps; what lies beyond, or is no value, is black or white.

    Args:
        values: of a file.
        pixel_range: black and white of all bands, or of each; none: as the file says. Bytes are left as they are.

    Raises:
        ValuesError: neither says what is black and white, or there are more bands than pairs.
    """
    array = values.array
    if array.dtype == np.uint8:
        return 255 - array if values.inverted else array
    pairs = pixel_range or ((values.stated or _full_range(array)),)
    if len(pairs) not in (1, array.shape[-1]):
        raise ValuesError(f"has {array.shape[-1]} bands, and pixel_range has pairs for {len(pairs)}")
    scaled = _scaled(array, pairs)
    if values.inverted:
        scaled = 255 - scaled
    if array.dtype.kind == "f" or values.nodata is not None:
        scaled[values.missing()] = 0
    return scaled


def _scaled(array: np.ndarray, pairs: Sequence[Pair]) -> np.ndarray:
    if len(pairs) == 1 and array.flags.c_contiguous:
        scaled = np.empty(array.shape, np.uint8)
        _scale(array, pairs[0], scaled)
        return scaled
    bands = np.moveaxis(array, -1, 0)
    scaled = np.empty(bands.shape, np.uint8)
    for i, band in enumerate(bands):
        _scale(band, pairs[i % len(pairs)], scaled[i])
    return np.moveaxis(scaled, 0, -1)


def _full_range(array: np.ndarray) -> Pair:
    if array.dtype == np.uint16:
        return 0, 65535
    kind = {"f": "fractions", "i": "signed numbers"}.get(array.dtype.kind, "numbers")
    raise ValuesError(
        f"holds {kind} of {8 * array.itemsize} bits and does not say which of them is black and which white; "
        "say it with pixel_range=[LOW, HIGH], or train with pixel_range=auto"
    )


def _scale(array: np.ndarray, pair: Pair, out: np.ndarray) -> None:
    """A few rows at a time, which stay in the processor's cache: a fifth of the time."""
    low, high = pair
    exact = np.float32 if array.dtype in (np.uint16, np.float32) else np.float64
    rows = max(1, _BLOCK // array[0].size)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(array), rows):
            part = np.subtract(array[start : start + rows], low, dtype=exact)
            part *= 255 / (high - low)
            np.clip(np.rint(part, out=part), 0, 255, out=part)
            out[start : start + rows] = np.nan_to_num(part, copy=False) if array.dtype.kind == "f" else part
