"""Every kind of picture file, and every way in which one can be broken."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transept.data.images import BadImageError, Skipped, find_images, read_image, unusable
from transept.data.reading import SAY_BANDS
from transept.errors import TranseptError, TranseptWarning

RED = (200, 30, 40)


def test_what_to_do_about_files_that_cannot_be_read():
    """What names an option comes first, and nobody is told to leave all of them out."""
    bands = [Skipped(Path(f"{i}.tif"), f"has 4 bands; {SAY_BANDS}") for i in range(2)]
    broken = Skipped(Path("a.png"), "is empty")
    assert unusable(bands, 2, "remove them") == f"'0.tif' has 4 bands; '1.tif' has 4 bands; {SAY_BANDS}"
    ways = "remove them, or leave them out with --skip-bad-images"
    assert unusable(bands, 3, "remove them").endswith(f"; {SAY_BANDS}, or {ways}")
    assert unusable([broken], 1, "remove them") == "'a.png' is empty; remove them"
    assert unusable([broken, bands[0]], 4, "remove them").endswith(f"; {ways}")


@pytest.fixture
def photo() -> Image.Image:
    """Red on the left, blue on the right, wider than high: any turn or swap shows."""
    picture = Image.new("RGB", (24, 16), RED)
    picture.paste((20, 60, 220), (12, 0, 24, 16))
    return picture


def close(picture: Image.Image, expected: Image.Image, tolerance: int = 12) -> bool:
    difference = np.abs(np.asarray(picture, int) - np.asarray(expected, int))
    return picture.mode == "RGB" and picture.size == expected.size and difference.max() <= tolerance


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "gif", "ppm", "jpg"])
def test_formats(photo, tmp_path: Path, suffix: str):
    options = {"jpg": dict(quality=100, subsampling=0), "webp": dict(lossless=True)}.get(suffix, {})
    photo.save(tmp_path / f"p.{suffix}", **options)
    assert close(read_image(tmp_path / f"p.{suffix}"), photo)


def test_cmyk_palette_and_grey(photo, tmp_path: Path):
    photo.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    photo.convert("CMYK").save(tmp_path / "cmyk.tiff")
    photo.quantize(8).save(tmp_path / "palette.png")
    assert close(read_image(tmp_path / "cmyk.jpg"), photo)
    assert close(read_image(tmp_path / "cmyk.tiff"), photo)
    assert close(read_image(tmp_path / "palette.png"), photo)
    photo.convert("L").save(tmp_path / "grey.png")
    assert close(read_image(tmp_path / "grey.png"), photo.convert("L").convert("RGB"))
    photo.convert("1").save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png").mode == "RGB"


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_keep_their_tones(tmp_path: Path, suffix: str):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / f"deep.{suffix}")
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert close(read_image(tmp_path / f"deep.{suffix}"), Image.fromarray(grey).convert("RGB"), tolerance=1)


def test_what_is_transparent_lies_on_white(tmp_path: Path):
    picture = Image.new("RGBA", (4, 4), (*RED, 255))
    picture.putpixel((1, 2), (*RED, 0))
    picture.save(tmp_path / "clear.png")
    seen = read_image(tmp_path / "clear.png")
    assert seen.getpixel((1, 2)) == (255, 255, 255)
    assert seen.getpixel((0, 0)) == RED


def test_rotated_by_exif(photo, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: the viewer turns it clockwise
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "side.jpg", exif=exif, quality=100, subsampling=0)
    assert close(read_image(tmp_path / "side.jpg"), photo)


def test_first_frame_of_an_animation(photo, tmp_path: Path):
    other = Image.new("RGB", photo.size, (0, 255, 0))
    photo.save(tmp_path / "moving.gif", save_all=True, append_images=[other])
    photo.save(tmp_path / "moving.webp", save_all=True, append_images=[other], lossless=True)
    assert close(read_image(tmp_path / "moving.gif"), photo)
    assert close(read_image(tmp_path / "moving.webp"), photo)


def huge_png(path: Path, side: int = 20_000) -> None:
    """A few hundred bytes that declare 400 megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b""))


def test_broken_files(photo, tmp_path: Path):
    photo.resize((240, 160)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "vector.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage")
    photo.save(tmp_path / "bits.png")
    damaged = bytearray((tmp_path / "bits.png").read_bytes())
    damaged[45:60] = b"\xff" * 15
    (tmp_path / "bits.png").write_bytes(damaged)
    huge_png(tmp_path / "huge.png")
    huge_png(tmp_path / "large.png", side=10_000)
    (tmp_path / "folder.jpg").mkdir()
    cases = {
        "cut.jpg": "is damaged or truncated",
        "empty.png": "is empty",
        "text.jpg": "is no picture of a known format",
        "vector.eps": "is no picture of a known format",
        "bits.png": "is damaged or truncated",
        "huge.png": "declares more than 89 megapixels",
        "large.png": "declares more than 89 megapixels",
        "folder.jpg": "is a folder",
        "absent.jpg": "does not exist",
    }
    for name, reason in cases.items():
        with pytest.raises(BadImageError, match=reason) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_find_images(photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "Fotos, Übung 1"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "deep/c.PNG"):
        photo.save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    assert [path.name for path in find_images([folder])] == ["a.jpg", "b.png", "c.PNG"]
    assert find_images([folder / "b.png", folder / "b.png", folder])[0] == folder / "b.png"
    assert len(find_images([folder / "b.png", folder])) == 3
    assert find_images([str(folder / "*.png")]) == [folder / "b.png"]
    monkeypatch.chdir(folder)
    assert find_images(["*.jpg"]) == [Path("a.jpg")]
    (tmp_path / "none").mkdir()
    with pytest.raises(TranseptError, match="holds no pictures"):
        find_images([tmp_path / "none"])
    with pytest.raises(TranseptError, match="no file matches"):
        find_images([str(tmp_path / "*.webp")])


def test_pictures_that_are_not_read_are_counted(photo, tmp_path: Path):
    for name in ("b.jxl", "c.heic", "d.heic", "notes.txt"):
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(TranseptError, match="holds no pictures but 2 .heic, 1 .jxl, which are not read"):
        find_images([tmp_path])
    photo.save(tmp_path / "a.png")
    with pytest.warns(TranseptWarning, match="2 .heic, 1 .jxl, which are not read; save them as PNG"):
        assert find_images([tmp_path]) == [tmp_path / "a.png"]
