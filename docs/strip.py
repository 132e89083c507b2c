"""Draws what the first pages show, from trained runs: `uv run python docs/strip.py DIGITS [BCCD NUCLEI MASKS]`.

The runs are those of `transept train digits`, `train quick-det --data BCCD` (blood cells, MIT, Shenggan/BCCD_Dataset),
`train quick-seg --data NUCLEI` (CC0, BBBC038) and `train quick-inst --data NUCLEI`. Written are docs/images/strip.png,
the cards of the first page in docs/images/cards, and the pictures of docs/gallery.md in docs/images/gallery. With
DIGITS alone the gallery's other pictures stay, and strip and cards are made of them.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageOps

IMAGES = Path(__file__).parent / "images"
CARD = (480, 300)
PANEL = (520, 520)


def call(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "transept", *map(str, words)], check=True)


def part(file: Path, place: tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
    """A part of a picture (left, top, right, bottom in 0..1), on white: so little that its letters can be read."""
    with Image.open(file) as picture:
        box = [round(share * side) for share, side in zip(place, picture.size * 2, strict=True)]
        cut = picture.convert("RGB").crop((box[0], box[1], box[2], box[3]))
    return ImageOps.pad(cut, size, Image.Resampling.LANCZOS, color="white")


def kept(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=192).save(path, optimize=True)


def shown(file: Path, name: str, width: int = 1100) -> None:
    """A picture of the gallery, no wider than it is read at."""
    with Image.open(file) as picture:
        rgb = picture.convert("RGB")
        if rgb.width > width:
            rgb = rgb.resize((width, round(rgb.height * width / rgb.width)), Image.Resampling.LANCZOS)
    kept(rgb, IMAGES / "gallery" / f"{name}.png")


def draw_gallery(runs: dict[str, Path], out: Path) -> None:
    """Of the runs but the digits': what they find, and their worst pictures."""
    for name, score in (("bccd", 0.4), ("nuclei", None), ("masks", 0.5)):
        pictures = sorted((runs[name] / "samples").iterdir())
        options = [] if score is None else ["--score", score]
        call("predict", runs[name], *pictures, *options, "--out", out / name)
        call("eval", runs[name], "--report", out / f"{name}-report")
        found = sorted((out / name).glob(f"*.{'objects' if score else 'overlay'}.png"))
        shown(found[-1 if name == "masks" else 0], name)  # the last has many, and bright ones
        shown(out / f"{name}-report" / "worst.png", f"{name}-wrong")


def draw_first_page(labels: Path, why: Path, confusion: Path) -> None:
    """The strip, and the cards, where a picture is a few hundred pixels wide."""
    cells, nuclei = (IMAGES / "gallery" / f"{name}.png" for name in ("bccd", "nuclei"))
    panels = [
        part(labels, (0, 0, 0.5, 1), PANEL),
        part(cells, (0.38, 0.285, 0.865, 0.965), PANEL),
        part(nuclei, (0, 0, 0.5, 0.7), PANEL),
        part(why, (0, 0, 0.69, 0.63), PANEL),
    ]
    strip = Image.new("RGB", (len(panels) * (PANEL[0] + 12) - 12, PANEL[1]), "white")
    for i, panel in enumerate(panels):
        strip.paste(panel, (i * (PANEL[0] + 12), 0))
    kept(strip, IMAGES / "strip.png")
    cards = {
        "classify": part(labels, (0, 0, 1, 1), CARD),
        "detect": part(cells, (0.1, 0.285, 0.865, 0.965), CARD),
        "segment": part(nuclei, (0, 0, 1, 0.87), CARD),
        "explain": part(why, (0, 0, 0.69, 0.63), CARD),
        "evaluate": part(confusion, (0, 0, 1, 1), CARD),
        "choose": part(IMAGES / "choose.png", (0, 0.04, 0.54, 0.54), CARD),
    }
    for name, card in cards.items():
        kept(card, IMAGES / "cards" / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("digits", type=Path)
    for name in ("bccd", "nuclei", "masks"):
        parser.add_argument(name, type=Path, nargs="?")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        samples = sorted((args.digits / "samples").iterdir())
        call("predict", args.digits, *samples[:6], "--out", out / "labels.png")
        call("predict", args.digits, *samples[4:6], "--out", out / "two.png")
        call("explain", args.digits, samples[8], "--out", out / "why.png")
        call("eval", args.digits, "--report", out / "digits")
        shown(out / "labels.png", "digits")
        shown(out / "digits" / "confident.png", "digits-wrong")
        if args.masks:
            draw_gallery({name: getattr(args, name) for name in ("bccd", "nuclei", "masks")}, out)
        draw_first_page(out / "two.png", out / "why.png", out / "digits" / "confusion.png")


if __name__ == "__main__":
    main()
