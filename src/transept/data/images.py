"""Picture files to RGB, as a person would see them."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from transept.errors import TranseptError

# Formats are listed because Pillow tries every decoder it has, also those for documents that hold programs (EPS).
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")
EXTENSIONS = ".jpg .jpeg .jpe .jfif .mpo .png .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm .avif".split()


class BadImageError(TranseptError):
    """A file that cannot be read as a picture."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{str(path)!r} {reason}")
        self.path = path
        self.reason = reason


def read_image(path: str | Path) -> Image.Image:
    """The picture in a file as 8-bit RGB: turned upright by its EXIF tag, first frame of an animation.

    CMYK, palette, grey and 16-bit pictures are converted; what is transparent lies on white.

    Raises:
        BadImageError: no such file, empty, truncated, of no known format, or so large that decoding it is an
            attack (`PIL.Image.MAX_IMAGE_PIXELS`, 89 megapixels).
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # odd EXIF or TIFF tags
            with Image.open(path, formats=_known_formats()) as picture:
                picture.load()
                return _to_rgb(ImageOps.exif_transpose(picture))
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
        empty = path.stat().st_size == 0
        raise BadImageError(path, "is empty" if empty else "is no picture of a known format") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, MemoryError, OverflowError, TypeError) as error:
        # Pillow's decoders raise all of these on damaged files.
        raise BadImageError(path, f"is damaged or truncated ({error})") from error


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """The picture files behind paths, folders (searched whole) and glob patterns, each once, in order.

    Raises:
        TranseptError: a source that names nothing.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS)
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
    return picture.convert("RGB")
