"""What only the training pictures can say of how they are to be read: their bands, their range, their mean."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from transept.data.images import DARK, BadImageError, Picture, is_unstated, read_values
from transept.data.reading import Pair, Reading, Values, WantedReading
from transept.errors import TranseptError, UsageError

Source = tuple[str | Path | BinaryIO, Path]
"""A file, and what errors call it."""
MEASURED = 64
"""Pictures of a set that are looked at, spread evenly over it."""
PERCENTILES = (0.1, 99.9)
_PIXELS = 20_000
"""Of each picture."""


def spread(length: int, most: int = MEASURED) -> list[int]:
    """So many indices, or all where there are fewer, evenly over a set."""
    return np.linspace(0, length - 1, min(most, length)).round().astype(int).tolist()


def complete(wanted: Reading | WantedReading, sources: Sequence[Source]) -> Reading:
    """The reading that was wanted, with what the training pictures had to say.

    Bands are counted in the first picture, and a range is that between two percentiles: of each band where bands were
    chosen, else of all. Without a range, pictures whose values use little of 16 bits are refused, for they would be
    black. Files that cannot be read say nothing here.

    Args:
        wanted: or what a trained task says, which is taken as it is.
        sources: some of the training pictures.

    Raises:
        TranseptError: no file has more than 8 bits where a range is to be measured; the pictures would be black.
    """
    if isinstance(wanted, Reading):
        return wanted
    bands = _all_bands(sources) if wanted.bands == "all" else wanted.bands or ()
    reading = Reading(bands=bands, exact=wanted.exact or wanted.bands == "all")
    if wanted.pixel_range is None:
        _refuse_dark(sources, reading)
        return reading
    pairs = _measured_range(sources, bands) if wanted.pixel_range == "auto" else (wanted.pixel_range,)
    return replace(reading, pixel_range=pairs)


def refuse_reading(wanted: Reading | WantedReading, data: str) -> None:
    """Raises `UsageError` where a set that is not made of files is to be read in a way of its own."""
    for name in ("pixel_range", "bands"):
        if isinstance(wanted, WantedReading) and getattr(wanted, name) is not None:
            raise UsageError(f"{name} says how files are read, and {data!r} has none; leave it out")


def channel_statistics(pictures: Iterable[Picture]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of 8-bit pictures, in 0..1, over all their pixels."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for picture in pictures:
        values = _pixels(picture)
        count += values.shape[1]
        total = total + values.sum(dim=1)
        squares = squares + values.square().sum(dim=1)
    mean = total / count
    # One step of 8 bits bounds the deviation of a channel of one value.
    std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def _pixels(picture: Picture) -> Tensor:
    image = picture if isinstance(picture, Tensor) else F.pil_to_tensor(picture)
    return image.as_subclass(Tensor).flatten(1).double() / 255


def _all_values(sources: Iterable[Source]) -> Iterator[Values]:
    for source, name in sources:
        with suppress(BadImageError):  # the check of the whole set names it
            yield read_values(source, name=name)


def _all_bands(sources: Sequence[Source]) -> tuple[int, ...]:
    first = next(_all_values(sources), None)
    return () if first is None else tuple(range(first.array.shape[-1]))


def _measured_range(sources: Sequence[Source], bands: tuple[int, ...]) -> tuple[Pair, ...]:
    parts: list[np.ndarray] = []
    for values in _all_values(sources):
        if values.array.dtype == np.uint8 or (bands and max(bands) >= values.array.shape[-1]):
            continue
        taken = values.take(bands) if bands else values
        pixels = np.where(taken.missing(), np.nan, taken.array).reshape(-1, taken.array.shape[-1])
        parts.append(pixels[:: -(-len(pixels) // _PIXELS)])
    if not parts:
        raise TranseptError(
            "pixel_range=auto measures values of more than 8 bits, and none of the pictures has them; leave it out"
        )
    columns = np.concatenate(parts).T if bands else [np.concatenate([part.ravel() for part in parts])]
    return tuple(_between(column) for column in columns)


def _between(values: np.ndarray) -> Pair:
    known = values[np.isfinite(values)]
    low, high = map(float, np.percentile(known, PERCENTILES)) if known.size else (0.0, 1.0)
    return low, high if high > low else low + 1


def _refuse_dark(sources: Sequence[Source], reading: Reading) -> None:
    unstated: list[Source] = []
    for source, name in sources:
        with suppress(BadImageError):
            if not is_unstated(source, name=name, reading=reading):
                return
            unstated.append((source, name))
    largest = -1
    for values in _all_values(unstated):
        largest = max(largest, int(values.array.max(initial=0, where=~values.missing())))
        if largest >= DARK * 65536:
            return
    if largest > 0:
        top = max(255, 2 ** largest.bit_length() - 1)
        raise TranseptError(
            f"the training pictures have 16 bits, but their values end at {largest} and they would be seen as black; "
            f"give pixel_range=[0, {top}] or pixel_range=auto, or pixel_range=[0, 65535] where they are to be so dark"
        )
