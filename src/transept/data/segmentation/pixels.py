"""What the pixels of a set's masks say about it: masks of 0 and 255, a single class, and how much is ignored."""

import warnings

import numpy as np

from transept.data.labels import LabelTable
from transept.errors import TranseptError, TranseptWarning
from transept.ops.masks import IGNORE_LABEL
from transept.words import percent

_MUCH = 0.5  # of the pixels; a share that is worth a word


def count_classes(mask: np.ndarray) -> np.ndarray:
    """Pixels of each class, 256 of them with `IGNORE_LABEL`, of a mask `H W`."""
    return np.bincount(mask.ravel(), minlength=256)


def black_and_white(table: LabelTable, pixels: np.ndarray, data: str) -> LabelTable | None:
    """The table by which masks of 0 and 255 are read; None where the masks are others.

    Warns:
        TranseptWarning: the masks are so, and what 255 is taken for.
    """
    found = table.of_black_and_white(pixels)
    if found is not None:
        label = found.values[255]
        meaning = "ignored" if label == IGNORE_LABEL else repr(found.classes[label])
        warnings.warn(f"the masks of {data!r} hold 0 and 255 alone: 255 is {meaning}", TranseptWarning, stacklevel=3)
    return found


def check_training_pixels(pixels: np.ndarray, table: LabelTable, data: str) -> None:
    """Refuses what cannot be learnt from, and says where most is ignored.

    Raises:
        TranseptError: every labelled pixel is of one class.
    """
    present = np.flatnonzero(pixels[:IGNORE_LABEL])
    if len(present) == 1:
        name = table.classes[present[0]]
        if len(table.classes) > 1:
            raise TranseptError(
                f"every labelled pixel of the training masks of {data!r} is {name!r}, so that nothing can be learnt; "
                "check the values of the masks and the class list (255 is ignored)"
            )
        raise TranseptError(
            f"{data!r} has the one class {name!r}, so that nothing can be learnt; name what is around it, too: a "
            f"classes.txt of the two lines 'background' and {name!r} (masks hold 0 and 1, or 0 and 255)"
        )
    share = pixels[IGNORE_LABEL] / max(pixels.sum(), 1)
    if share > _MUCH:
        warnings.warn(
            f"{percent(share)} of the pixels of the training masks of {data!r} are ignored: the value 255, and what "
            "the class list leaves unlabelled",
            TranseptWarning,
            stacklevel=3,
        )
