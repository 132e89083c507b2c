"""Picture files to 8 bits: to RGB, as a person would see them, or to the bands that a model takes."""

import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import SEEK_END
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor

from transept.data import dicom, raster, tiff
from transept.data.reading import PLAIN, SAY_BANDS, Box, Reading, Values, ValuesError, part, to_bytes
from transept.errors import TranseptError, TranseptWarning
from transept.files import NotRegularError, files_below, open_regular
from transept.words import listed

# Formats are listed because Pillow tries every decoder it has, also those for documents that hold programs (EPS).
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")
EXTENSIONS = ".jpg .jpeg .jpe .jfif .mpo .png .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm .avif .dcm".split()
UNREAD = ".jxl .jp2 .j2k .jpf .jpx .heic .heif .tga .psd .exr .hdr .svg .dng .cr2 .cr3 .nef .arw .nii".split()
"""Endings of pictures that are not read: they are counted, not passed over in silence."""
KEEP_BYTES = 1024 * 2**20
"""Decoded pictures of a set that is read again and again are kept in memory up to so many bytes."""
DARK = 1 / 8
"""Pictures that use less of 16 bits, none of which says how many are meant, would look black."""
Picture = Image.Image | torch.Tensor
"""RGB, or bytes `c H W`: RGB, or the bands that a model takes."""
_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file left out of a set, and why."""

    path: Path
    reason: str


def unusable(skipped: Sequence[Skipped], files: int, mend: str) -> str:
    """What is wrong with the first of some files, and what to do, most likely first; `mend` is what such files want.

    Args:
        files: how many there are in all, of which none may be left out where all are bad.
    """
    bands = all(skip.reason.endswith(SAY_BANDS) for skip in skipped)
    advice = f"; {SAY_BANDS}" if bands else ""
    names = listed((f"{str(skip.path)!r} {skip.reason.removesuffix(advice)}" for skip in skipped), separator="; ")
    ways = [SAY_BANDS] if bands else [mend]
    if len(skipped) < files:
        ways += [mend] if bands else []
        ways.append("leave them out with --skip-bad-images")
    return f"{names}; {', or '.join(ways)}"


def plain_skipped(skipped: Iterable[Skipped]) -> list[dict[str, str]]:
    """Files and annotations that were left out, and why, for JSON."""
    return [{"path": str(skip.path), "reason": skip.reason} for skip in skipped]


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
    window: Callable[[int, int], Box] | None = None,
    reading: Reading | None = None,
) -> Any:
    """The picture in a file as 8-bit RGB: turned upright by its EXIF tag, first frame of an animation.

    CMYK, palette and grey pictures are converted, those of 16 bits scaled by the depth that the file states; what is
    transparent lies on white. What a file does not say, such as the black and white of fractions, or which of its
    pages or bands are meant, is asked of `reading`.

    Args:
        source: a path, or an open file, which errors call `name`.
        name: see above.
        upright: False leaves the picture as it is stored, whatever its EXIF tag says.
        reduce: told the width and height of the result, says how many times smaller a JPEG may be decoded; the largest
            of 8, 4, 2 and 1 that is no more is taken, and rounded up the sides are that many times smaller. The decoder
            then leaves out the finest of the cosines. Other formats keep their size.
        window: told the width and height of the result, says which part of it is wanted; asked only of files of more
            than 8 bits, or where `reading` chooses bands, and what is given is then that part. Of TIFFs rasterio, where
            it is installed, decodes little more.
        reading: which bands are read, and what values are black and white; None: as the file says. Bands in another
            number than three give bytes `c H W` (`tv_tensors.Image`) in the place of a picture.

    Raises:
        BadImageError: no such file, empty, truncated, of no known format, so large that decoding it is an attack
            (`PIL.Image.MAX_IMAGE_PIXELS`, 89 megapixels), or with values that `reading` does not tell how to read.
    """

    reading = reading or PLAIN

    def read(file: BinaryIO) -> Picture:
        if not reading.bands and (plain := _plain(file, upright, reduce)) is not None:
            return plain
        values, orientation, wanted = _values(source, file, whole=bool(reading.bands), window=window)
        values = values.take(reading.bands, exact=reading.exact) if reading.bands else values
        pixels = to_bytes(values, reading.pixel_range)
        pixels = _turned(pixels, orientation) if upright else pixels
        if wanted is not None:
            pixels = part(pixels, wanted(pixels.shape[1], pixels.shape[0]))
        return _picture(pixels, as_bands=bool(reading.bands))

    return _read(source, name, read)


def read_values(source: str | Path | BinaryIO, *, name: str | Path = "") -> Values:
    """All that a file holds, as it is stored: every band of every page.

    Raises:
        BadImageError: as `read_image`.
    """
    return _read(source, name, lambda file: _values(source, file, whole=True)[0])


def is_unstated(source: str | Path | BinaryIO, *, name: str | Path = "", reading: Reading = PLAIN) -> bool:
    """Whether a file has values of 16 bits and does not say how many of them are used; from its head.

    Raises:
        BadImageError: as `read_image`, as far as the head tells.
    """
    return _read(source, name, lambda file: _is_unstated(file, whole=bool(reading.bands)))


def as_bytes(picture: Picture, channels: int = 3) -> torch.Tensor:
    """A picture as bytes `c H W`; of three channels, RGB.

    Raises:
        TranseptError: it has other channels, or is no picture.
    """
    if not isinstance(picture, torch.Tensor):
        picture = pil_to_tensor(picture.convert("RGB") if channels == 3 else picture)
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != channels or not picture.numel():
        kind = str(picture.dtype).removeprefix("torch.")
        raise TranseptError(f"the picture is {tuple(picture.shape)} of {kind}; give {channels} x H x W bytes")
    return picture.as_subclass(torch.Tensor)


def size_of(picture: Picture) -> tuple[int, int]:
    """Width and height."""
    return picture.size if isinstance(picture, Image.Image) else (picture.shape[-1], picture.shape[-2])


def as_array(picture: Picture) -> np.ndarray:
    """Bytes `H W c`."""
    if isinstance(picture, Image.Image):
        return np.asarray(picture)
    return picture.permute(1, 2, 0).as_subclass(torch.Tensor).numpy()


def as_shown(picture: Picture) -> Image.Image:
    """A picture to look at: of one band grey, of two red and green, of more its first three as red, green and blue."""
    if isinstance(picture, Image.Image):
        return picture
    bands = picture.as_subclass(torch.Tensor).cpu()[:3]
    if len(bands) == 2:
        bands = torch.cat([bands, torch.zeros_like(bands[:1])])
    return Image.fromarray(bands.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def read_mask(source: str | Path | BinaryIO, *, name: str | Path = "", orientation: int = 1) -> Image.Image:
    """The picture in a file with its values as they are stored: palette indices, greys of 8 or 16 bits, colours.

    It is turned upright by its own EXIF tag, or by `orientation` (of a picture that it belongs to) where it has none.

    Raises:
        BadImageError: as `read_image`.
    """

    def turn(file: BinaryIO) -> Image.Image:
        with _open(file) as mask:
            mask.load()
            exif = mask.getexif()
            exif.setdefault(_ORIENTATION, orientation)
            return ImageOps.exif_transpose(mask)

    return _read(source, name, turn)


def stored_form(source: str | Path | BinaryIO, *, name: str | Path = "") -> tuple[tuple[int, int], int]:
    """Width and height as stored, and the EXIF orientation (1 where there is none), from the head of the file.

    Raises:
        BadImageError: as `read_image`, as far as the head tells.
    """

    def look(file: BinaryIO) -> tuple[tuple[int, int], int]:
        head = _head(file)
        if tiff.is_tiff(head):
            page = tiff.read_pages(file)[0]
            return page.size, page.orientation
        if dicom.is_dicom(head):
            return dicom.size_of(file), 1
        with _open(file) as picture:
            return picture.size, picture.getexif().get(_ORIENTATION, 1)

    return _read(source, name, look)


def _read(source: str | Path | BinaryIO, name: str | Path, work: Callable[[BinaryIO], _Read]) -> _Read:
    path = Path(source) if isinstance(source, str | Path) else Path(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # odd EXIF or TIFF tags
            if not isinstance(source, str | Path):
                return work(source)
            with open_regular(path) as file:
                return work(file)
    except ValuesError as error:
        raise BadImageError(path, str(error)) from error
    except FileNotFoundError as error:
        raise BadImageError(path, "does not exist") from error
    except IsADirectoryError as error:
        raise BadImageError(path, "is a folder") from error
    except NotRegularError as error:
        raise BadImageError(
            path, "is a pipe, socket or device, not a file; save its content to a file first"
        ) from error
    except PermissionError as error:
        raise BadImageError(path, "may not be read by this user") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise BadImageError(path, f"declares more than {limit} megapixels; scale it down first") from error
    except UnidentifiedImageError as error:
        size = path.stat().st_size if isinstance(source, str | Path) else source.seek(0, SEEK_END)
        raise BadImageError(path, "is no picture of a known format" if size else "is empty") from error
    except OSError as error:
        if error.filename is None:  # of a decoder
            raise BadImageError(path, f"is damaged or truncated ({' '.join(str(error).split())})") from error
        raise BadImageError(path, f"cannot be read ({error.strerror})") from error
    except (
        SyntaxError,
        ValueError,
        EOFError,
        KeyError,
        IndexError,
        AttributeError,
        MemoryError,
        OverflowError,
        RuntimeError,
        TypeError,
        struct.error,
    ) as error:
        # Decoders raise all of these on damaged files.
        raise BadImageError(path, f"is damaged or truncated ({' '.join(str(error).split())})") from error


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    head = file.read(132)
    file.seek(0)
    return head


def _open(file: BinaryIO) -> Image.Image:
    file.seek(0)
    return Image.open(file, formats=_known_formats())


def _plain(file: BinaryIO, upright: bool, reduce: Callable[[int, int], float] | None) -> Image.Image | None:
    """RGB of a picture of bytes, which Pillow reads right; None for others."""
    head = _head(file)
    page = None
    if dicom.is_dicom(head):
        return None
    if tiff.is_tiff(head):
        page = tiff.single_page(tiff.read_pages(file))
        if page.is_deep:
            return None
    with _open(file) as picture:
        if raster.is_deep(picture):
            return None
        if reduce is not None:
            _draft(picture, reduce, upright)
        if not upright:
            picture.getexif().pop(_ORIENTATION, None)  # else Pillow turns TIFFs
        picture.load()
        if page is not None and page.has_alpha:
            tiff.check_alpha(page, np.asarray(picture.getchannel("A")))
        if upright:
            ImageOps.exif_transpose(picture, in_place=True)
        return _to_rgb(picture)


def _values(
    source: str | Path | BinaryIO, file: BinaryIO, *, whole: bool, window: Callable[[int, int], Box] | None = None
) -> tuple[Values, int, Callable[[int, int], Box] | None]:
    """What a file holds, its orientation, and the window where it is still to be cut out.

    Unless the file is wanted `whole`, its bands are colours, perhaps with alpha.
    """
    head = _head(file)
    if dicom.is_dicom(head):
        _check_size(*dicom.size_of(file))
        file.seek(0)
        return dicom.read_values(file, whole=whole), 1, window
    if tiff.is_tiff(head):
        pages = tiff.read_pages(file)
        page = pages[0] if whole else tiff.single_page(pages)
        _check_size(*page.size)
        checked = page.has_alpha and not whole
        if window is not None and page.orientation == 1 and not checked:
            return tiff.read_values(source, file, pages, window(*page.size)), 1, None
        values = tiff.read_values(source, file, pages)
        if checked:
            tiff.check_alpha(page, values.array[..., -1])
        return values, page.orientation, window
    with _open(file) as picture:
        values = raster.read_values(picture, file)  # before its EXIF, for whose sake Pillow loads a PNG
        return values, picture.getexif().get(_ORIENTATION, 1), window


def _is_unstated(file: BinaryIO, *, whole: bool) -> bool:
    head = _head(file)
    if dicom.is_dicom(head):
        return False
    if tiff.is_tiff(head):
        pages = tiff.read_pages(file)
        return (pages[0] if whole else tiff.single_page(pages)).is_unstated
    with _open(file) as picture:
        return raster.is_unstated(picture, file)


def _check_size(width: int, height: int) -> None:
    """As Pillow checks those that it opens."""
    if width * height > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise Image.DecompressionBombError


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`H W c`, as EXIF's orientation says that it is to be seen."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    down = {3: -1, 4: -1, 7: -1, 8: -1}.get(orientation, 1)
    across = {2: -1, 3: -1, 6: -1, 7: -1}.get(orientation, 1)
    return pixels[::down, ::across]


def _picture(pixels: np.ndarray, *, as_bands: bool) -> Picture:
    """Bytes `H W c` as RGB; those of bands that were chosen, in another number than three, as `c H W`."""
    count = pixels.shape[-1]
    if not as_bands and count < 3:
        mode = ("L", "LA")[count - 1]
        return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels[..., 0] if mode == "L" else pixels), mode))
    if count == 3 or not as_bands:
        return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))
    return tv_tensors.Image(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))  # a file's own bytes are read-only


def sample_picture(channels: int = 3) -> Picture:
    """A real photograph, 640 x 427, that scikit-learn brings along: what other forms of a model are checked with.

    Of another number of channels than three it has red, green and blue in turn.
    """
    (package,) = find_spec("sklearn").submodule_search_locations  # pyright: ignore - a dependency; importing it takes 2 s
    photograph = Image.open(Path(package) / "datasets" / "images" / "china.jpg").convert("RGB")
    return photograph if channels == 3 else tv_tensors.Image(as_bytes(photograph)[[i % 3 for i in range(channels)]])


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """The picture files behind paths, folders (searched whole, links too) and glob patterns, each once, in order.

    Raises:
        TranseptError: a source that names nothing.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files = _pictures_in(path)
        elif path.exists() or not any(sign in str(source) for sign in "*?["):
            files = [path]  # a missing file is reported when it is read
        else:
            root = Path(path.anchor) if path.is_absolute() else Path()
            files = sorted(file for file in root.glob(str(path.relative_to(path.anchor))) if file.is_file())
            if not files:
                raise TranseptError(f"no file matches {str(source)!r}")
        found.update(dict.fromkeys(files))
    return list(found)


def _pictures_in(folder: Path) -> list[Path]:
    everything = sorted(files_below(folder))
    files = [file for file in everything if file.suffix.lower() in EXTENSIONS]
    unread = Counter(ending for file in everything if (ending := file.suffix.lower()) in UNREAD)
    passed = ", ".join(f"{count} {ending}" for ending, count in sorted(unread.items()))
    if not files:
        but = f" but {passed}, which are not read; save them as PNG, TIFF or JPEG" if passed else ""
        raise TranseptError(f"the folder {str(folder)!r} holds no pictures{but}")
    if passed:
        warnings.warn(
            f"passed over in {str(folder)!r}: {passed}, which are not read; save them as PNG, TIFF or JPEG",
            TranseptWarning,
            stacklevel=3,
        )
    return files


def _known_formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_rgb(picture: Image.Image) -> Image.Image:
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
