"""Pictures of other channels than red, green and blue: what of preprocessing and augmentation holds for them."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

from transept.checks import shown
from transept.errors import TranseptWarning, UsageError

_Options = TypeVar("_Options")


def fit_channels(preprocessing: _Options, channels: int) -> _Options:
    """Preprocessing whose `mean` and `std` are of so many channels.

    Those of RGB are repeated in turn, of a single channel their average is taken, as timm does with the weights of a
    first layer.

    Raises:
        UsageError: they are of another number.
    """
    values: Any = preprocessing
    for name in ("mean", "std"):
        numbers = getattr(values, name)
        if len(numbers) == channels:
            continue
        if len(numbers) != 3:
            raise UsageError(f"{name}={shown(numbers)} has {len(numbers)} numbers for {channels} channels")
        values = dataclasses.replace(values, **{name: repeated(numbers, channels)})
    return values


def repeated(numbers: Sequence[float], channels: int) -> tuple[float, ...]:
    """Numbers of red, green and blue for other channels: in turn, or their average for a single one."""
    if channels == 1:
        return (sum(numbers) / len(numbers),)
    return tuple(numbers[i % len(numbers)] for i in range(channels))


def without_color(augmentation: _Options, channels: int, **off: Any) -> _Options:
    """Augmentation without what only red, green and blue can undergo; what was on is named in a warning.

    Args:
        augmentation: a dataclass.
        channels: of the pictures.
        off: its fields that mean colours, and their values for not at all.
    """
    values: Any = augmentation
    on = [name for name, value in off.items() if getattr(values, name) != value]
    if on:
        warnings.warn(
            f"{' and '.join(on)} {'varies' if len(on) == 1 else 'vary'} red, green and blue, and the pictures have "
            f"{channels} channel{'s' if channels > 1 else ''}: left out",
            TranseptWarning,
            stacklevel=3,
        )
    return dataclasses.replace(values, **off)
