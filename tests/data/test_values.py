"""Files of more than 8 bits, of other bands than colours and of several pages, as their own libraries write them."""

import struct
import sys
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import rasterio
import tifffile
import torch
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian

from transept.data.images import BadImageError, is_unstated, read_image, read_values, stored_form
from transept.data.reading import Reading

RAMP = np.arange(256).reshape(8, 32)
"""What every file of a depth should look like."""


def grey(source: Any, **reading: Any) -> np.ndarray:
    """The first channel of what is seen, of a grey picture."""
    picture = np.asarray(read_image(source, reading=Reading(**reading)))
    assert (picture == picture[..., :1]).all()
    return picture[..., 0]


def save_png(path: Path, values: np.ndarray, significant: int | None = None) -> Path:
    """16 bits, with the chunk that says how many of them are used."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, bands = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    stated = b"" if significant is None else chunk(b"sBIT", bytes([significant] * bands))
    parts = chunk(b"IHDR", head) + stated + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


def save_geotiff(path: Path, bands: np.ndarray, **options: Any) -> Path:
    """Bands `c h w`, by GDAL."""
    count, height, width = bands.shape
    options = dict(driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype) | options
    with rasterio.open(path, "w", transform=rasterio.transform.from_origin(10, 20, 1, 1), **options) as file:
        file.write(bands)
    return path


def save_dicom(path: Path, values: np.ndarray, **tags: Any) -> Path:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.Dataset()
    data.file_meta = meta
    data.Rows, data.Columns = values.shape[-2:]
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def refused(source: Any, reason: str, **reading: Any) -> None:
    with pytest.raises(BadImageError, match=reason):
        read_image(source, reading=Reading(**reading))


# Depth


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_the_depth_that_a_file_states(tmp_path: Path, bits: int):
    top = 2**bits - 1
    values = (RAMP * top / 255).round().astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", extratags=[(281, "H", 1, top, True)])
    (tmp_path / "a.pgm").write_bytes(b"P5 32 8 %d\n" % top + values.astype(">u2").tobytes())
    for name in ("a.tif", "a.pgm"):
        assert np.array_equal(grey(tmp_path / name), RAMP)
        assert not is_unstated(tmp_path / name)


def test_twelve_bits_packed(tmp_path: Path):
    values = (RAMP * (4095 / 255)).round().astype(np.uint16)
    assert np.array_equal(grey(save_geotiff(tmp_path / "a.tif", values[None], nbits=12)), RAMP)


@pytest.mark.parametrize("largest", [3071, 65535, 255], ids=["a statistic", "all", "bytes"])
def test_largest_values_that_are_no_depth(tmp_path: Path, largest: int):
    tifffile.imwrite(
        tmp_path / "a.tif", RAMP.astype(np.uint16), photometric="minisblack", extratags=[(281, "H", 1, largest, True)]
    )
    assert is_unstated(tmp_path / "a.tif")
    assert grey(tmp_path / "a.tif").max() == 1


@pytest.mark.parametrize("bands", [1, 3])
def test_significant_bits_of_png(tmp_path: Path, bands: int):
    """The format wants values scaled to 16 bits, with whatever fill; some writers leave them as they were."""
    deep = np.repeat((RAMP * (4095 / 255)).round().astype(np.uint16)[..., None], bands, -1)
    scaled = {"zeros": deep << 4, "bits": (deep << 4) | (deep >> 8), "as they were": deep}
    for values in scaled.values():
        assert np.abs(grey(save_png(tmp_path / "a.png", values, 12)).astype(int) - RAMP).max() <= 1
    dark = (deep >> 5) << 4  # scaled, and by chance no more than 12 bits
    assert grey(save_png(tmp_path / "a.png", dark, 12)).max() == 8
    assert not is_unstated(tmp_path / "a.png")
    assert is_unstated(save_png(tmp_path / "a.png", deep))


def test_sixteen_bits_of_colors(tmp_path: Path):
    values = np.random.default_rng(0).integers(0, 65536, (8, 9, 4), dtype=np.uint16)
    expected = np.round(values[..., :3] / 257)
    save_png(tmp_path / "a.png", values[..., :3])
    tifffile.imwrite(tmp_path / "a.tif", values[..., :3], photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", values[..., :3].transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    for name in ("a.png", "a.tif", "b.tif"):
        assert np.array_equal(np.asarray(read_image(tmp_path / name)), expected)
        seen = np.asarray(read_image(tmp_path / name, reading=Reading(pixel_range=((0, 32767),))))
        assert np.abs(seen - (values[..., :3] / 32767 * 255).clip(0, 255)).max() <= 0.5
    clear = values.copy()
    clear[..., 3] = 0
    assert (np.asarray(read_image(save_png(tmp_path / "a.png", clear))) == 255).all()
    (tmp_path / "a.ppm").write_bytes(b"P6 9 8 4095\n" + (values[..., :3] >> 4).astype(">u2").tobytes())
    assert np.abs(np.asarray(read_image(tmp_path / "a.ppm")) - expected).max() <= 1


def test_sixteen_bits_of_colors_cut_short(tmp_path: Path):
    whole = save_png(tmp_path / "a.png", np.arange(64 * 64 * 3, dtype=np.uint16).reshape(64, 64, 3))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-200])
    refused(tmp_path / "cut.png", "is damaged or truncated")


def test_more_bands_than_any_sensor_has(tmp_path: Path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((1, 1, 10_001), np.uint8), photometric="minisblack",
                     planarconfig="contig")  # fmt: skip
    with pytest.raises(BadImageError, match="states 10001 bands, more than 10000"):
        read_values(tmp_path / "a.tif")


@pytest.mark.parametrize(("tag", "first"), [(277, 65535), (256, 60_000)])
def test_a_tag_that_is_there_twice(tmp_path: Path, tag: int, first: int):
    """GDAL takes the first, and would read 65,535 bands for minutes; the bounds are those of the last."""
    tags = [(256, 3), (257, 2), (258, 32), (259, 1), (262, 1), (273, 8), (277, 2), (278, 2), (279, 48), (339, 2)]
    tags.insert(0, (tag, first))
    tags.sort(key=lambda each: each[0])
    entries = b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in tags)
    pixels = np.arange(12, dtype="<i4").tobytes()
    once = entries.replace(struct.pack("<HHII", tag, 4, 1, first), b"")
    for entered, name in ((entries, "twice.tif"), (once, "a.tif")):
        head = struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + struct.pack("<H", len(entered) // 12)
        (tmp_path / name).write_bytes(head + entered + bytes(4))
    assert np.array_equal(read_values(tmp_path / "a.tif").array, np.arange(12).reshape(2, 3, 2))
    with pytest.raises(BadImageError, match="is damaged: its tags state both 3 x 2 pixels of 2 bands and"):
        read_values(tmp_path / "twice.tif")


def test_dicom_cut_anywhere(tmp_path: Path):
    whole = save_dicom(tmp_path / "a.dcm", np.zeros((8, 8), np.uint16)).read_bytes()
    for length in range(133, len(whole) - 1, 7):
        (tmp_path / "cut.dcm").write_bytes(whole[:length])
        with pytest.raises(BadImageError):
            read_image(tmp_path / "cut.dcm")


def test_a_range_is_of_more_than_bytes(tmp_path: Path):
    Image.fromarray((RAMP * 16).astype(np.uint16)).save(tmp_path / "a.png")
    assert np.array_equal(grey(tmp_path / "a.png", pixel_range=((0, 4080),)), RAMP)
    assert set(np.unique(grey(tmp_path / "a.png", pixel_range=((1600, 1601),)))) == {0, 255}
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "b.png")
    assert np.array_equal(grey(tmp_path / "b.png", pixel_range=((0, 4080),)), RAMP)


def test_signed_numbers_and_fractions(tmp_path: Path):
    values = RAMP.astype(np.float64) * 8 - 1024
    for kind in ("float16", "float32", "float64", "int16", "int32"):
        tifffile.imwrite(tmp_path / "a.tif", values.astype(kind), photometric="minisblack")
        bits = max(32, np.dtype(kind).itemsize * 8)  # neither Pillow nor GDAL keeps fewer
        what = "fractions" if kind.startswith("float") else "signed numbers"
        refused(tmp_path / "a.tif", f"holds {what} of {bits} bits .*say it with pixel_range=.LOW, HIGH.")
        assert np.array_equal(grey(tmp_path / "a.tif", pixel_range=((-1024, 1016),)), RAMP)


def test_missing_values_are_black(tmp_path: Path):
    values = RAMP.astype(np.float32)
    values[0, 5], values[0, 6], values[0, 7] = np.nan, 10_000, -np.inf
    save_geotiff(tmp_path / "a.tif", values[None], nodata=10_000)
    seen = grey(tmp_path / "a.tif", pixel_range=((0, 255),))
    assert seen[0, 4:9].tolist() == [4, 0, 0, 0, 8]
    assert read_values(tmp_path / "a.tif").missing()[0, :, 0].nonzero()[0].tolist() == [5, 6]


def test_white_is_zero(tmp_path: Path):
    for values in (RAMP.astype(np.uint8), (RAMP * 257).astype(np.uint16)):
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
        assert np.array_equal(grey(tmp_path / "a.tif"), 255 - RAMP)


# Bands and pages


def test_four_bands(tmp_path: Path):
    """Near infrared that is tagged as alpha, as GDAL and tifffile do, is no alpha; a mask is."""
    bands = np.random.default_rng(0).integers(0, 200, (8, 9, 4), dtype=np.uint8)
    path = tmp_path / "a.tif"
    for infrared in (120, 0, bands[..., 3]):
        bands[..., 3] = infrared
        tifffile.imwrite(path, bands, photometric="rgb", extrasamples=["unassalpha"])
        refused(path, r"has 4 bands, the last of which is tagged as alpha .*--bands all, or e.g. --bands '\[0, 1, 2\]'")
        assert np.array_equal(np.asarray(read_image(path, reading=Reading(bands=(0, 1, 2)))), bands[..., :3])
        taken = read_image(path, reading=Reading(bands=(3, 0)))
        assert torch.equal(taken, torch.from_numpy(bands.transpose(2, 0, 1)[[3, 0]].copy()))
    bands[..., 3] = 255
    bands[0, 0, 3] = 0
    tifffile.imwrite(path, bands, photometric="rgb", extrasamples=["unassalpha"])
    seen = np.asarray(read_image(path))
    assert seen[0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(seen[1:], bands[1:, :, :3])
    deep = bands.astype(np.uint16) * 257
    tifffile.imwrite(path, deep, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(np.asarray(read_image(path)), seen)
    tifffile.imwrite(path, bands, photometric="rgb", extrasamples=["unspecified"])
    refused(path, "has 4 bands that are not just colours")
    assert read_image(path, reading=Reading(bands=(0, 1, 2, 3))).shape == (4, 8, 9)


@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_twelve_bands(tmp_path: Path, layout: Any, compression: str | None):
    bands = np.random.default_rng(0).integers(0, 65536, (12, 8, 9), dtype=np.uint16)
    stored = bands if layout == "separate" else bands.transpose(1, 2, 0)
    options: dict[str, Any] = dict(photometric="minisblack", planarconfig=layout, compression=compression)
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    refused(tmp_path / "a.tif", "has 12 bands that are not just colours; say which .* --bands all")
    for source in (tmp_path / "a.tif", BytesIO((tmp_path / "a.tif").read_bytes())):
        seen = read_image(source, name="a.tif", reading=Reading(bands=tuple(range(12))))
        assert np.array_equal(seen.numpy(), np.round(bands / 257))
    each = Reading(bands=(0, 11), pixel_range=((0, 65535), (0, 257 * 128)))
    seen = read_image(tmp_path / "a.tif", reading=each).numpy()
    assert np.array_equal(seen[0], np.round(bands[0] / 257))
    assert np.abs(seen[1] - (bands[11] / 257 * 255 / 128).clip(0, 255)).max() <= 0.5
    refused(tmp_path / "a.tif", r"has 12 bands, and bands=\[0, 12\] asks for number 12", bands=(0, 12))
    refused(tmp_path / "a.tif", "has 12 bands, and the model takes files of 4", bands=(0, 1, 2, 3), exact=True)
    assert stored_form(tmp_path / "a.tif") == ((9, 8), 1)


def test_pages(tmp_path: Path):
    pages = np.random.default_rng(0).integers(0, 256, (5, 8, 9), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    refused(tmp_path / "a.tif", r"has 5 pages; say which .* --bands all")
    assert np.array_equal(read_image(tmp_path / "a.tif", reading=Reading(bands=(4,))).numpy()[0], pages[4])
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(pages[0], photometric="minisblack")
        file.write(pages[1, ::2], photometric="minisblack")
    refused(tmp_path / "b.tif", "has pages of different sizes", bands=(0,))
    with tifffile.TiffWriter(tmp_path / "c.tif") as file:
        file.write(pages[0], photometric="minisblack")
        file.write(pages[0, ::2, ::2], photometric="minisblack", subfiletype=1)
    assert np.array_equal(grey(tmp_path / "c.tif"), pages[0])


def test_bands_of_every_format(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 4), dtype=np.uint8)
    colors = Image.fromarray(pixels[..., :3])
    colors.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", reading=Reading(bands=(1,))).numpy()[0], pixels[..., 1])
    Image.fromarray(pixels).save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png", reading=Reading(bands=(3, 2))).shape == (2, 8, 9)
    palette = colors.quantize(4)
    palette.save(tmp_path / "c.png")
    expected = np.asarray(palette.convert("RGB"))[..., 2]
    assert np.array_equal(read_image(tmp_path / "c.png", reading=Reading(bands=(2,))).numpy()[0], expected)
    refused(tmp_path / "a.png", r"has 3 bands, and bands=\[0, 1, 2, 3\] asks for number 3", bands=(0, 1, 2, 3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path: Path, orientation: int):
    """As Pillow turns pictures of bytes."""
    values = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    for name, array in (("bytes.tif", values), ("deep.tif", values.astype(np.uint16) * 257)):
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(tmp_path / name, array, photometric="minisblack", extratags=tags)
        assert np.array_equal(np.asarray(read_image(tmp_path / name, upright=False))[..., 0], values)
    assert np.array_equal(grey(tmp_path / "deep.tif"), grey(tmp_path / "bytes.tif"))


# DICOM


def test_window_of_dicom(tmp_path: Path):
    values = (RAMP * 8).astype(np.int16) - 24
    tags = dict(RescaleSlope="1", RescaleIntercept="-1000")  # Hounsfield units
    path = save_dicom(tmp_path / "a.dcm", values, **tags)
    refused(path, "holds fractions of 64 bits and does not say")
    assert np.array_equal(grey(path, pixel_range=((-1024, 1016),)), RAMP)
    path = save_dicom(path, values, **tags, WindowCenter=["-3.5", "400"], WindowWidth=["2041", "9"])
    assert np.array_equal(grey(path), RAMP)
    assert np.array_equal(grey(save_dicom(path, values, **tags, WindowCenter="-4", WindowWidth="2040",
                                          VOILUTFunction="LINEAR_EXACT")), RAMP)  # fmt: skip
    assert stored_form(path) == ((32, 8), 1)


def test_depth_and_frames_of_dicom(tmp_path: Path):
    values = (RAMP * (4095 / 255)).round().astype(np.uint16)
    assert np.array_equal(grey(save_dicom(tmp_path / "a.dcm", values)), RAMP)
    path = save_dicom(tmp_path / "b", values, PhotometricInterpretation="MONOCHROME1")  # the ending does not matter
    assert np.array_equal(grey(path), 255 - RAMP)
    path = save_dicom(tmp_path / "c.dcm", np.stack([values, values[::-1]]), NumberOfFrames=2)
    refused(path, "has 2 frames")
    assert np.array_equal(read_image(path, reading=Reading(bands=(1,))).numpy()[0], RAMP[::-1])


# Damage, and what is not installed


def test_extras_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bands = np.zeros((12, 8, 9), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="separate")
    save_dicom(tmp_path / "a.dcm", bands[0])
    for package in ("rasterio", "pydicom"):
        monkeypatch.setitem(sys.modules, package, None)
    refused(tmp_path / "a.tif", r"12 x 16 bits, which only rasterio reads: pip install .*\[geo\]'", bands=(0,))
    refused(tmp_path / "a.dcm", r"reading it needs pydicom: pip install .*\[medical\]'")


def test_broken_files(tmp_path: Path):
    bands = np.random.default_rng(0).integers(0, 65536, (12, 64, 64), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "whole.tif", bands, photometric="minisblack", planarconfig="separate")
    for end in (4, 8, 100, 3000, 60_000):
        (tmp_path / "cut.tif").write_bytes((tmp_path / "whole.tif").read_bytes()[:end])
        refused(tmp_path / "cut.tif", "is damaged or truncated|is a TIFF without|is no picture", bands=(0,))
    save_dicom(tmp_path / "whole.dcm", bands[0])
    for end in (132, 200, 4000):
        (tmp_path / "cut.dcm").write_bytes((tmp_path / "whole.dcm").read_bytes()[:end])
        refused(tmp_path / "cut.dcm", "is damaged|without a picture|cannot decode")
    save_png(tmp_path / "whole.png", bands[:3].transpose(1, 2, 0))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    refused(tmp_path / "cut.png", "is damaged")
    (tmp_path / "cut.pgm").write_bytes(b"P5 32 8 4095\n" + bytes(100))
    refused(tmp_path / "cut.pgm", "is damaged or truncated")
    tifffile.imwrite(tmp_path / "huge.tif", shape=(20000, 20000), dtype="uint16", photometric="minisblack")
    refused(tmp_path / "huge.tif", "declares more than 89 megapixels")
