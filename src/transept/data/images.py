"""Picture files to RGB, as a person would see them."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import SEEK_END
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from transept.errors import TranseptError
from transept.files import files_below

# Formats are listed because Pillow tries every decoder it has, also those for documents that hold programs (EPS).
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")
EXTENSIONS = ".jpg .jpeg .jpe .jfif .mpo .png .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm .avif".split()
KEEP_BYTES = 1024 * 2**20
"""Decoded pictures of a set that is read again and again are kept in memory up to so many bytes."""
_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file left out of a set, and why."""

    path: Path
    reason: str


class BadImageError(TranseptError):
    """A file that cannot be read as a picture."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{str(path)!r} {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # so that it comes whole out of a worker process
        return BadImageError, (self.path, self.reason)


def read_image(
    source: str | Path | BinaryIO,
    *,
    name: str | Path = "",
    upright: bool = True,
    reduce: Callable[[int, int], float] | None = None,
) -> Image.Image:
    """The picture in a file as 8-bit RGB: turned upright by its EXIF tag, first frame of an animation.

    CMYK, palette, grey and 16-bit pictures are converted; what is transparent lies on white.

    Args:
        source: a path, or an open file, which errors call `name`.
        name: see above.
        upright: False leaves the picture as it is stored, whatever its EXIF tag says.
        reduce: told the width and height of the result, says how many times smaller a JPEG may be decoded; the largest
            of 8, 4, 2 and 1 that is no more is taken, and rounded up the sides are that many times smaller. The decoder
            then leaves out the finest of the cosines. Other formats keep their size.

    Raises:
        BadImageError: no such file, empty, truncated, of no known format, or so large that decoding it is an
            attack (`PIL.Image.MAX_IMAGE_PIXELS`, 89 megapixels).
    """

    def convert(picture: Image.Image) -> Image.Image:
        if reduce is not None:
            _draft(picture, reduce, upright)
        picture.load()
        if upright:
            ImageOps.exif_transpose(picture, in_place=True)
        return _to_rgb(picture)

    return _read(source, name, convert, decode=False)


def read_mask(source: str | Path | BinaryIO, *, name: str | Path = "", orientation: int = 1) -> Image.Image:
    """The picture in a file with its values as they are stored: palette indices, greys of 8 or 16 bits, colours.

    It is turned upright by its own EXIF tag, or by `orientation` (of a picture that it belongs to) where it has none.

    Raises:
        BadImageError: as `read_image`.
    """

    def turn(mask: Image.Image) -> Image.Image:
        exif = mask.getexif()
        exif.setdefault(_ORIENTATION, orientation)
        return ImageOps.exif_transpose(mask)

    return _read(source, name, turn)


def stored_form(source: str | Path | BinaryIO, *, name: str | Path = "") -> tuple[tuple[int, int], int]:
    """Width and height as stored, and the EXIF orientation (1 where there is none), from the head of the file.

    Raises:
        BadImageError: as `read_image`, as far as the head tells.
    """
    return _read(source, name, lambda picture: (picture.size, picture.getexif().get(_ORIENTATION, 1)), decode=False)


def _read(
    source: str | Path | BinaryIO, name: str | Path, convert: Callable[[Image.Image], _Read], *, decode: bool = True
) -> _Read:
    path = Path(source) if isinstance(source, str | Path) else Path(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # odd EXIF or TIFF tags
            with Image.open(source, formats=_known_formats()) as picture:
                if decode:
                    picture.load()
                return convert(picture)
    except FileNotFoundError as error:
        raise BadImageError(path, "does not exist") from error
    except IsADirectoryError as error:
        raise BadImageError(path, "is a folder") from error
    except PermissionError as error:
        raise BadImageError(path, "may not be read by this user") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise BadImageError(path, f"declares more than {limit} megapixels; scale it down first") from error
    except UnidentifiedImageError as error:
        size = path.stat().st_size if isinstance(source, str | Path) else source.seek(0, SEEK_END)
        raise BadImageError(path, "is no picture of a known format" if size else "is empty") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, MemoryError, OverflowError, TypeError) as error:
        # Pillow's decoders raise all of these on damaged files.
        raise BadImageError(path, f"is damaged or truncated ({error})") from error


def sample_picture() -> Image.Image:
    """A real photograph, 640 x 427, that scikit-learn brings along: what other forms of a model are checked with."""
    from sklearn.datasets import load_sample_image  # two seconds, which every verb would wait for

    return Image.fromarray(load_sample_image("china.jpg"))


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """The picture files behind paths, folders (searched whole, links too) and glob patterns, each once, in order.

    Raises:
        TranseptError: a source that names nothing.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files = sorted(file for file in files_below(path) if file.suffix.lower() in EXTENSIONS)
            if not files:
                raise TranseptError(f"the folder {str(path)!r} holds no pictures")
        elif path.exists() or not any(sign in str(source) for sign in "*?["):
            files = [path]  # a missing file is reported when it is read
        else:
            root = Path(path.anchor) if path.is_absolute() else Path()
            files = sorted(file for file in root.glob(str(path.relative_to(path.anchor))) if file.is_file())
            if not files:
                raise TranseptError(f"no file matches {str(source)!r}")
        found.update(dict.fromkeys(files))
    return list(found)


def _known_formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM", "TIFF")):
        # convert() would clip 16 bits at 255 and leave a white picture
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) / 257).round().clip(0, 255).astype(np.uint8))
    elif picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture))
        scale = 255 if values.max(initial=0) <= 1 else 1
        picture = Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _draft(picture: Image.Image, reduce: Callable[[int, int], float], upright: bool) -> None:
    width, height = picture.size
    turned = upright and picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    factor = reduce(height, width) if turned else reduce(width, height)
    scale = next((scale for scale in (8, 4, 2) if scale <= factor), 1)
    if scale > 1 and picture.format in ("JPEG", "MPO"):
        picture.draft(None, (width // scale, height // scale))
