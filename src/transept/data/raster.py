"""PNG, PGM and other files that Pillow opens: the values of those with 16 bits, of which Pillow keeps 8."""

from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from transept.data.reading import Pair, Values

_SIGNIFICANT = b"sBIT"


def is_deep(picture: Image.Image) -> bool:
    """Whether the file has more than 8 bits of each value; the picture is opened and not loaded."""
    if picture.format == "PPM":
        return _ppm_range(picture) is not None
    return picture.format == "PNG" and ";16" in _raw_mode(picture)


def is_unstated(picture: Image.Image, file: BinaryIO) -> bool:
    """Whether nobody says how many of its 16 bits are used."""
    if picture.format == "PPM":
        return _ppm_range(picture) == (0, 65535)
    return is_deep(picture) and _significant_bits(file) is None


def read_values(picture: Image.Image, file: BinaryIO) -> Values:
    """The values as they are stored; of palettes the colours, of animations the first frame."""
    if not is_deep(picture):
        mode = "RGBA" if picture.has_transparency_data else {"P": "RGB", "1": "L"}.get(picture.mode, picture.mode)
        array = np.asarray(picture.convert(mode))
        return Values(array[..., None] if array.ndim == 2 else array)
    if picture.format == "PPM":
        stated = _ppm_range(picture)
        return Values(_ppm_values(picture, file), None if stated == (0, 65535) else stated)
    array = _png_values(picture, file)
    return Values(array, _png_range(array, _significant_bits(file)))


def _raw_mode(picture: Any) -> str:
    args = picture.tile[0].args if picture.tile else ""
    return args if isinstance(args, str) else str(args[0])


def _ppm_range(picture: Any) -> Pair | None:
    """0 and the largest value of a binary PGM or PPM of 16 bits."""
    tile = picture.tile[0]
    if tile.codec_name == "raw":  # the largest value is that of the type
        return (0, 65535) if tile.args[0] == "I;16B" else None
    return (0, tile.args[1]) if tile.codec_name == "ppm" and tile.args[1] > 255 else None


def _ppm_values(picture: Any, file: BinaryIO) -> np.ndarray:
    bands = 3 if picture.mode == "RGB" else 1
    file.seek(picture.tile[0].offset)
    size = picture.width * picture.height * bands
    data = file.read(2 * size)
    if len(data) < 2 * size:
        raise EOFError("fewer values than its head says")
    return np.frombuffer(data, ">u2").reshape(picture.height, picture.width, bands).astype(np.uint16)


def _png_values(picture: Image.Image, file: BinaryIO) -> np.ndarray:
    """Pillow keeps 8 bits of colours, so it is asked for the higher and for the lower ones.

    torchvision reads all 16 at once, but a damaged file ends the process there.
    """
    if picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.uint16, copy=False)[..., None]
    mode = _raw_mode(picture).partition(";")[0]
    if mode == "LA":  # its four bytes as if they were colours
        return _png_bytes(file, "RGBA").view(">u2").astype(np.uint16)
    high, low = (_png_bytes(file, f"{mode};16{order}") for order in "BL")
    return high.astype(np.uint16) << 8 | low


def _png_bytes(file: BinaryIO, raw_mode: str) -> np.ndarray:
    file.seek(0)
    with Image.open(file, formats=("PNG",)) as picture:
        picture.tile = [tile._replace(args=raw_mode) for tile in picture.tile]
        return np.array(picture)


def _significant_bits(file: BinaryIO) -> int | None:
    """The most of a PNG's bands, where the file says how many are used."""
    file.seek(8)
    while (head := file.read(8))[4:] not in (b"IDAT", b""):
        length = int.from_bytes(head[:4])
        if head[4:] == _SIGNIFICANT:
            return max(file.read(length))
        file.seek(length + 4, 1)
    return None


def _png_range(array: np.ndarray, bits: int | None) -> Pair | None:
    """Black and white of a PNG of 16 bits that says how many are used.

    The format wants values scaled up to 16 bits, by shifting and filling with zeros or with the highest bits again, or
    by rounding. Where they are not, writers have stored the numbers as they were.
    """
    if bits is None or bits >= 16:
        return None if bits is None else (0, 65535)
    top = 2**bits - 1
    if array.max(initial=0) > top:
        return 0, 65535
    value = array.astype(np.int64)
    number = value >> (16 - bits)
    scaled = (
        number << (16 - bits),
        (number << (16 - bits)) | (number >> max(2 * bits - 16, 0)),
        (np.round(value * (top / 65535)) * (65535 / top)).round(),
    )
    return (0, 65535) if any((value == each).all() for each in scaled) else (0, top)
