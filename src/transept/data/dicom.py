"""DICOM: stored numbers to what they mean, and the window that the file wants them seen in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from transept.data.reading import SAY_BANDS, Pair, Values, ValuesError
from transept.extras import install


def is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def size_of(file: BinaryIO) -> tuple[int, int]:
    """Width and height, from the head of the file.

    Raises:
        ValuesError: pydicom is not installed, or cannot read it.
    """
    with _sound():
        data = _pydicom().dcmread(file, stop_before_pixels=True)
        return int(data.Columns), int(data.Rows)


def read_values(file: BinaryIO, *, whole: bool) -> Values:
    """All bands of all frames, rescaled by slope and intercept (CT: Hounsfield units).

    Black and white are those of the first window; without window and rescaling, those of the bits that are stored.

    Raises:
        ValuesError: unless it is wanted `whole`, it has several frames; pydicom is not installed, or cannot decode it.
    """
    with _sound():
        return _values(_pydicom(), file, whole)


def _values(pydicom: Any, file: BinaryIO, whole: bool) -> Values:
    data = pydicom.dcmread(file)
    if "PixelData" not in data:
        raise ValuesError("is a DICOM file without a picture")
    frames = int(data.get("NumberOfFrames") or 1)
    if frames > 1 and not whole:
        raise ValuesError(f"has {frames} frames; {SAY_BANDS}")
    array = data.pixel_array
    if data.PhotometricInterpretation == "PALETTE COLOR":
        array = pydicom.pixels.apply_color_lut(array, data)
    colors = array.ndim - (frames > 1) == 3
    array = array if colors else array[..., None]
    if frames > 1:
        array = np.moveaxis(array, 0, -2).reshape(*array.shape[1:3], -1)
    if colors:
        return Values(array if array.dtype == np.uint8 else array.astype(np.uint16))
    rescaled = pydicom.pixels.apply_modality_lut(array, data)
    stated = _window(data) or _stored_range(data, is_rescaled=rescaled is not array)
    values = rescaled.astype(np.float32) if array.dtype == np.uint8 and stated != (0, 255) else rescaled
    return Values(values, stated, inverted=data.PhotometricInterpretation == "MONOCHROME1")


@contextmanager
def _sound() -> Iterator[None]:
    """What pydicom raises of damaged files has no common class."""
    try:
        yield
    except ValuesError:
        raise
    except Exception as error:
        raise ValuesError(f"is a DICOM file that pydicom cannot decode ({' '.join(str(error).split())})") from error


def _pydicom() -> Any:
    try:
        import pydicom  # an extra
        import pydicom.pixels
    except ModuleNotFoundError as error:
        raise ValuesError(f"is a DICOM file; reading it needs pydicom: {install('medical')}") from error
    return pydicom


def _window(data: Any) -> Pair | None:
    """The ends of the first window, as PS3.3 C.11.2.1.2 draws its line."""
    center, width = (data.get(name) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or data.get("VOILUTFunction", "LINEAR") == "SIGMOID":
        return None
    center, width = (float(value if isinstance(value, str | float | int) else value[0]) for value in (center, width))
    if data.get("VOILUTFunction") == "LINEAR_EXACT":
        return center - width / 2, center + width / 2
    return (center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2) if width > 1 else None


def _stored_range(data: Any, *, is_rescaled: bool) -> Pair | None:
    if is_rescaled or data.PixelRepresentation:
        return None
    return 0, 2 ** int(data.BitsStored) - 1
